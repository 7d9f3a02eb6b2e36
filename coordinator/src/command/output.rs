//! What commands print: data on stdout (tables, or JSON with `--json`), talk on stderr.

use std::fmt::Display;
use std::io::{self, Write};

use jiff::Timestamp;
use serde::Serialize;

use crate::command::exit::{Exit, Outcome};

/// Writes a line of data. A reader that has gone away (`… | head`) ends the program quietly; data that can't be
/// written for another reason (a full disk) ends it with an error.
pub fn line(text: impl Display) {
    let Err(error) = writeln!(io::stdout().lock(), "{text}") else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(Exit::Done as i32);
    }
    say(format!("error: can't write the output: {error}"));
    std::process::exit(Exit::Failed as i32);
}

/// Writes a line of data by a program that must go on whether or not anybody reads it.
pub fn note(text: impl Display) {
    let _nobody_reads = writeln!(io::stdout().lock(), "{text}");
}

/// Writes a line of talk. What can't be told does not stop the work.
pub fn say(text: impl Display) {
    let _nobody_reads = writeln!(io::stderr().lock(), "{text}");
}

/// Writes one JSON value.
pub fn json(value: &impl Serialize) -> Outcome<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A table of text; columns that hold only numbers are set flush right.
#[derive(Debug)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its column names.
    pub fn new<const N: usize>(head: [&str; N]) -> Self {
        Self::with_head(head.map(String::from).to_vec())
    }

    /// A table whose column names are found at run time.
    pub fn with_head(head: Vec<String>) -> Self {
        Self { head, rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    /// The table as text, without a newline at its end.
    pub fn render(&self) -> String {
        let columns: Vec<Column> = (0..self.head.len()).map(|i| self.column(i)).collect();
        let lines: Vec<String> =
            std::iter::once(&self.head).chain(&self.rows).map(|cells| render_row(cells, &columns)).collect();
        lines.join("\n")
    }

    fn column(&self, index: usize) -> Column {
        let cells = || self.rows.iter().map(|row| row[index].as_str());
        let width = cells().chain([self.head[index].as_str()]).map(|cell| cell.chars().count()).max().unwrap_or(0);
        Column { width, right: !self.rows.is_empty() && cells().all(is_number) }
    }
}

struct Column {
    width: usize,
    right: bool,
}

fn is_number(cell: &str) -> bool {
    cell.is_empty()
        || cell == "–"
        || cell.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && {
            let digits = cell.trim_start_matches(['+', '-']);
            digits.chars().all(|c| c.is_ascii_digit() || ".,%× /".contains(c))
        }
}

fn render_row(cells: &[String], columns: &[Column]) -> String {
    let padded = cells.iter().zip(columns).map(|(cell, column)| {
        let width = column.width;
        if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
    });
    padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
}

/// A moment as people read it (UTC).
pub fn moment(ms: u64) -> String {
    let timestamp = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| "?".into(), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// A span as people read it: `0.4 s`, `12 s`, `3 min 05 s`, `2 h 07 min`.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..10 => format!("{:.1} s", ms as f64 / 1000.0),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Time on devices as people add it up: `42 s`, `0.80 device-hours`.
pub fn device_time(ms: u64) -> String {
    const HOUR_MS: f64 = 3_600_000.0;
    match ms {
        0..360_000 => span(ms),
        _ => format!("{:.2} device-hours", ms as f64 / HOUR_MS),
    }
}

/// `1.5 GiB`.
pub fn bytes(n: u64) -> String {
    let mut amount = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{amount:.1} {unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1} TiB")
}

/// `1 row`, `2 rows`.
pub fn count(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// `1.2 GB`; powers of 1,000, as disks and clouds count.
pub fn data_size(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if size < 999.5 {
            break;
        }
        (size, unit) = (size / 1000.0, larger);
    }
    let decimals = usize::from(size < 9.95 && unit != "B");
    format!("{size:.decimals$} {unit}")
}

/// `12,345`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        let sizes = [0, 999, 1_000, 9_940, 999_499, 999_500, 1_234_567_890].map(data_size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "9.9 kB", "999 kB", "1.0 MB", "1.2 GB"]);
    }

    #[test]
    fn numbers_stand_flush_right_and_words_flush_left() {
        let mut table = Table::new(["set", "mAP", "queries"]);
        table.row(["singles".into(), ".813".into(), "80".into()]);
        table.row(["pairs".into(), ".56".into(), "300".into()]);
        assert_eq!(
            table.render(),
            "set       mAP  queries\n\
             singles  .813       80\n\
             pairs     .56      300"
        );
    }

    #[test]
    fn a_short_row_is_filled_and_no_line_ends_in_blanks() {
        let mut table = Table::new(["a", "b"]);
        table.row(["x".into()]);
        assert_eq!(table.render(), "a  b\nx");
    }

    #[test]
    fn spans_and_counts_read_well() {
        assert_eq!(span(400), "0.4 s");
        assert_eq!(span(42_000), "42 s");
        assert_eq!(span(185_000), "3 min 05 s");
        assert_eq!(span(7_620_000), "2 h 07 min");
        assert_eq!(device_time(42_000), "42 s");
        assert_eq!(device_time(2_880_000), "0.80 device-hours");
        assert_eq!(
            (bytes(1000).as_str(), bytes(1536).as_str(), bytes(3 << 40).as_str()),
            ("1000 B", "1.5 KiB", "3.0 TiB")
        );
        assert_eq!(count(1, "row"), "1 row");
        assert_eq!(count(1_234_567, "row"), "1,234,567 rows");
    }

    #[test]
    fn moments_are_utc() {
        assert_eq!(moment(0), "1970-01-01 00:00:00");
    }
}
