//! A CSV file of paths and labels beside a folder of images.
//!
//! The first line names the columns; cells are separated by `,`, `;` or a tab, whichever the first line has most of.
//! A row's image is the cell of the path column, relative to the images' folder. Its item id is the id column's cell,
//! else the path; its split 80/10/10 by a hash of the group column's cell if one is named, else the split column's, else by a
//! hash of the item id.
//!
//! Labels are words: `1`, `true`, `yes` have; `-1`, `false`, `no` have not; an empty cell, `na`, `nan`, `null` and `?` are
//! not known. `0` is "not known" in a column that also has `-1`, as in CelebA's lists, else "has not", unless told.
//! A column most of whose cells are no labels is none of the attributes; one with a few such cells is an error that names
//! the first.

use std::collections::HashMap;

use ::csv::{Reader, ReaderBuilder, StringRecord};
use likeness_contract::jobs::{CsvSource, ZeroLabel};
use likeness_contract::settings::Vocabulary;

use super::{Files, check_names, read_list, shortened, split};
use crate::error::{Error, Result};
use crate::rows::{Place, Scan, ScanRow};

/// Names of the path column in the order in which they are looked for.
const PATHS: [&str; 7] = ["path", "file", "filename", "file_name", "image_path", "image", "image_id"];
/// Names of the id column.
const ITEMS: [&str; 2] = ["item_id", "id"];
/// Names of the split column.
const SPLITS: [&str; 3] = ["split", "partition", "fold"];
/// Bytes that may separate cells.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// Lists the rows; images are not looked at.
pub(super) fn scan(source: &CsvSource, files: &dyn Files) -> Result<Scan> {
    let text = read_list(files, &source.file, "expected a line of column names, then one line per image")?;
    Table::read(source, &text)?.finish(source)
}

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Unknown,
    Has,
    HasNot,
    MinusOne,
    Zero,
    /// No label.
    Other,
}

impl Word {
    fn of(cell: &str) -> Self {
        match cell.trim().to_ascii_lowercase().as_str() {
            "" | "na" | "n/a" | "nan" | "null" | "none" | "?" => Self::Unknown,
            "1" | "+1" | "1.0" | "true" | "yes" | "t" | "y" => Self::Has,
            "false" | "no" | "f" | "n" => Self::HasNot,
            "-1" | "-1.0" => Self::MinusOne,
            "0" | "0.0" | "-0.0" => Self::Zero,
            _ => Self::Other,
        }
    }
}

/// Positions of the columns that are no attributes.
struct Columns {
    path: usize,
    item: Option<usize>,
    split: Option<usize>,
    group: Option<usize>,
}

impl Columns {
    fn of(source: &CsvSource, header: &StringRecord) -> Result<Self> {
        let named = |name: &Option<String>, usual: &[&str]| match name {
            Some(name) => position(source, header, name).map(Some),
            None => Ok(usual.iter().find_map(|usual| header.iter().position(|name| folded(name) == *usual))),
        };
        let columns = &source.columns;
        Ok(Self {
            path: named(&columns.path, &PATHS)?.ok_or_else(|| {
                let (file, there) = (&source.file, there(header));
                Error::invalid(format!("`{file}`: no column is named as one of images is; say which is it: {there}"))
            })?,
            item: named(&columns.item, &ITEMS)?,
            split: named(&columns.split, &SPLITS)?,
            group: named(&columns.group, &[])?,
        })
    }

    /// Where the split is read from: who names a group wants the hash.
    fn read_split(&self) -> Option<usize> {
        self.split.filter(|_| self.group.is_none())
    }

    fn has(&self, column: usize) -> bool {
        column == self.path || [self.item, self.split, self.group].contains(&Some(column))
    }
}

fn folded(name: &str) -> String {
    name.trim().to_lowercase().replace(['-', ' '], "_")
}

fn position(source: &CsvSource, header: &StringRecord, name: &str) -> Result<usize> {
    header
        .iter()
        .position(|column| column.trim() == name)
        .ok_or_else(|| Error::invalid(format!("`{}`: there is no column `{name}`, but {}", source.file, there(header))))
}

fn there(header: &StringRecord) -> String {
    format!("`{}`", shortened_list(header.iter()))
}

fn shortened_list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 50;
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(MOST);
    let all = names[..names.len() - more].join("`, `");
    if more > 0 { format!("{all}` and {more} more: `…") } else { all }
}

/// Everything that the file says.
struct Table {
    attributes: Vec<Attribute>,
    rows: Vec<Row>,
    by_hash: usize,
}

struct Row {
    line: u64,
    item: String,
    path: String,
    split: u8,
}

/// A column that may be an attribute.
struct Attribute {
    name: String,
    column: usize,
    words: Vec<Word>,
    /// Line and cell of the first that is no label, and how many there are.
    first_other: Option<(u64, String)>,
    others: usize,
}

impl Attribute {
    fn push(&mut self, line: u64, cell: &str) {
        let word = Word::of(cell);
        if word == Word::Other {
            self.others += 1;
            self.first_other.get_or_insert_with(|| (line, shortened(cell)));
        }
        self.words.push(word);
    }

    /// What `0` means here.
    fn zero(&self, told: ZeroLabel) -> i8 {
        match told {
            ZeroLabel::No => -1,
            ZeroLabel::Unknown => 0,
            ZeroLabel::Auto => {
                if self.words.contains(&Word::MinusOne) {
                    0
                } else {
                    -1
                }
            }
        }
    }

    fn labels(&self, told: ZeroLabel) -> Vec<i8> {
        let zero = self.zero(told);
        let label = |word: &Word| match word {
            Word::Has => 1,
            Word::HasNot | Word::MinusOne => -1,
            Word::Zero => zero,
            Word::Unknown | Word::Other => 0,
        };
        self.words.iter().map(label).collect()
    }
}

impl Table {
    fn read(source: &CsvSource, text: &str) -> Result<Self> {
        let file = &source.file;
        // The reader counts a line that ends in both as two.
        let text = text.replace("\r\n", "\n");
        let mut reader = reader(&text);
        let damaged = |error: ::csv::Error| Error::invalid(format!("`{file}`: {error}"));
        let header = reader.headers().map_err(damaged)?.clone();
        let columns = Columns::of(source, &header)?;
        let mut table = Self { attributes: candidates(source, &header, &columns)?, rows: Vec::new(), by_hash: 0 };
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(damaged)? {
            let line = record.position().map_or(0, |position| position.line());
            table.push(source, &columns, line, &record)?;
        }
        Ok(table)
    }

    fn push(&mut self, source: &CsvSource, columns: &Columns, line: u64, record: &StringRecord) -> Result<()> {
        let cell = |column: usize| record.get(column).unwrap_or_default();
        let refused = |what: String| Err(Error::invalid(format!("`{}` line {line}: {what}", source.file)));
        let path = cell(columns.path).trim();
        if path.is_empty() {
            return refused("no image is named".into());
        }
        if leads_out(path) {
            return refused(format!("`{}` leads out of the images' folder", shortened(path)));
        }
        let item = columns.item.map(|column| cell(column).trim()).filter(|item| !item.is_empty()).unwrap_or(path);
        let split = match columns.read_split() {
            Some(column) => match split::of_word(cell(column)) {
                Some(split) => split,
                None => {
                    let word = shortened(cell(column));
                    return refused(format!("split `{word}` is not train, validation or test"));
                }
            },
            None => {
                self.by_hash += 1;
                split::by_hash(columns.group.map(cell).filter(|group| !group.is_empty()).unwrap_or(item))
            }
        };
        self.attributes.iter_mut().for_each(|attribute| attribute.push(line, cell(attribute.column)));
        self.rows.push(Row { line, item: item.into(), path: path.into(), split });
        Ok(())
    }

    fn finish(self, source: &CsvSource) -> Result<Scan> {
        let Self { attributes, rows, by_hash } = self;
        if rows.is_empty() {
            return Err(Error::invalid(format!("`{}` lists no image", source.file)));
        }
        check_unique(source, &rows)?;
        let mut warnings = Vec::new();
        let attributes = chosen(source, attributes, &mut warnings)?;
        let names: Vec<String> = attributes.iter().map(|attribute| attribute.name.clone()).collect();
        check_names(&format!("`{}`", source.file), &names)?;
        warnings.push(understood(&attributes, source.zero));
        if by_hash > 0 {
            let of = source.columns.group.as_ref().map_or("the item id".into(), |group| format!("`{group}`"));
            warnings.push(format!("no column tells the split: assigned 80/10/10 by a hash of {of}"));
        }
        let labels: Vec<Vec<i8>> = attributes.iter().map(|attribute| attribute.labels(source.zero)).collect();
        let row = |(i, row): (usize, Row)| ScanRow {
            item: row.item,
            place: Place::File { path: row.path },
            attributes: labels.iter().map(|labels| labels[i]).collect(),
            split: row.split,
            problem: None,
        };
        let rows = rows.into_iter().enumerate().map(row).collect();
        Ok(Scan { vocabulary: Vocabulary { names }, rows, warnings })
    }
}

fn reader(text: &str) -> Reader<&[u8]> {
    let first = text.lines().next().unwrap_or_default().as_bytes();
    let count = |separator: &u8| first.iter().filter(|byte| *byte == separator).count();
    // The first of those that are there equally often.
    let separator = SEPARATORS.into_iter().rev().max_by_key(count).unwrap_or(b',');
    ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes())
}

/// The columns named as attributes, or all that are nothing else.
fn candidates(source: &CsvSource, header: &StringRecord, columns: &Columns) -> Result<Vec<Attribute>> {
    let attribute = |column: usize| Attribute {
        name: header[column].trim().into(),
        column,
        words: Vec::new(),
        first_other: None,
        others: 0,
    };
    let named = &source.columns.attributes;
    if named.is_empty() {
        return Ok((0..header.len()).filter(|column| !columns.has(*column)).map(attribute).collect());
    }
    named.iter().map(|name| position(source, header, name).map(attribute)).collect()
}

/// Those that hold labels. A column that was named, or that mostly holds labels, must hold nothing else.
fn chosen(source: &CsvSource, all: Vec<Attribute>, warnings: &mut Vec<String>) -> Result<Vec<Attribute>> {
    let named = !source.columns.attributes.is_empty();
    let (mut attributes, mut left_out) = (Vec::new(), Vec::new());
    for attribute in all {
        match &attribute.first_other {
            Some(_) if !named && 2 * attribute.others >= attribute.words.len() => left_out.push(attribute.name),
            Some((line, cell)) => {
                let (file, name) = (&source.file, &attribute.name);
                return Err(Error::invalid(format!(
                    "`{file}` line {line}: `{cell}` of `{name}` is no label: 1, -1, 0, true, false, yes, no or empty"
                )));
            }
            None => attributes.push(attribute),
        }
    }
    if !left_out.is_empty() {
        warnings.push(format!("columns that are no attributes were left out: `{}`", left_out.join("`, `")));
    }
    Ok(attributes)
}

/// How often each attribute is there, and what `0` was taken for.
fn understood(attributes: &[Attribute], told: ZeroLabel) -> String {
    let counts = |attribute: &Attribute| {
        let labels = attribute.labels(told);
        let count = |label: i8| labels.iter().filter(|l| **l == label).count();
        let zero = match (attribute.words.contains(&Word::Zero), attribute.zero(told)) {
            (false, _) => "",
            (true, 0) => " (0 is not known)",
            (true, _) => " (0 is has not)",
        };
        format!("`{}` {}/{}/{}{zero}", attribute.name, count(1), count(-1), count(0))
    };
    let all: Vec<String> = attributes.iter().map(counts).collect();
    format!("rows that have, have not, are not known: {}", all.join(", "))
}

/// Whether a path is not one below the folder.
fn leads_out(path: &str) -> bool {
    path.starts_with(['/', '\\']) || path.contains(['\0', ':']) || path.split(['/', '\\']).any(|part| part == "..")
}

fn check_unique(source: &CsvSource, rows: &[Row]) -> Result<()> {
    let mut lines: HashMap<&str, u64> = HashMap::with_capacity(rows.len());
    for row in rows {
        if let Some(first) = lines.insert(&row.item, row.line) {
            let (file, line, item) = (&source.file, row.line, &row.item);
            return Err(Error::invalid(format!(
                "`{file}` line {line}: item `{item}` is there already in line {first}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
