//! An array of numpy's with a table of ids and labels beside it.

use ::csv::{ReaderBuilder, StringRecord};
use likeness_contract::jobs::Import;

use super::labels::Column;
use super::{EmbeddingList, Listing, TEST, Vectors, check_dim, row_of};
use crate::error::{Error, Result};
use crate::labels::Word;
use crate::rows::{Place, ScanRow};
use crate::source::{Files, read_list, split};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Largest header that is read: numpy's own are shorter than this by far.
const MAX_HEADER_BYTES: u64 = 1 << 16;
/// Names of the id column.
const ITEMS: [&str; 5] = ["item_id", "image_id", "id", "file", "name"];
/// Name of the split column.
const SPLIT: &str = "split";
/// Bytes that may separate cells.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// Kind of the array's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    F2,
    F4,
    F8,
}

impl Number {
    fn bytes(self) -> u64 {
        match self {
            Self::F2 => 2,
            Self::F4 => 4,
            Self::F8 => 8,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F2 => bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            Self::F4 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F8 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        }
    }
}

/// What the header of an array says.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    number: Number,
    rows: u64,
    dim: usize,
    /// Where the numbers begin.
    start: u64,
}

impl Shape {
    fn read(path: &str, files: &dyn Files) -> Result<Self> {
        let refused = |what: &str| Error::invalid(format!("`{path}`: {what}"));
        let size = files.size(path).map_err(|e| Error::io(path, e))?;
        let head = files.read(path, 0..size.min(MAX_HEADER_BYTES)).map_err(|e| Error::io(path, e))?;
        let shape = Self::of(&head).map_err(|what| refused(&what))?;
        let row = (shape.dim as u64).checked_mul(shape.number.bytes());
        let all = row.and_then(|row| row.checked_mul(shape.rows));
        match all.and_then(|bytes| bytes.checked_add(shape.start)) {
            Some(bytes) if bytes == size => Ok(shape),
            _ => Err(refused(&format!("{size} bytes are not those of {} × {} numbers", shape.rows, shape.dim))),
        }
    }

    /// From the beginning of a file.
    fn of(head: &[u8]) -> std::result::Result<Self, String> {
        let no_array = || "no array of numpy's (.npy)".to_string();
        let rest = head.strip_prefix(MAGIC).ok_or_else(no_array)?;
        let (major, length, begin) = match rest {
            [1, _, a, b, ..] => (1, u64::from(u16::from_le_bytes([*a, *b])), 10),
            [major @ (2 | 3), _, a, b, c, d, ..] => (*major, u64::from(u32::from_le_bytes([*a, *b, *c, *d])), 12),
            _ => return Err(no_array()),
        };
        let start = begin + length;
        let text = head
            .get(begin as usize..start as usize)
            .ok_or_else(|| format!("a header of version {major} is cut off"))?;
        let text = String::from_utf8_lossy(text);
        let value = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start().to_string());
        let descr = value("descr").ok_or_else(no_array)?;
        let number = match descr.split('\'').nth(1) {
            Some("<f2") => Number::F2,
            Some("<f4") => Number::F4,
            Some("<f8") => Number::F8,
            other => return Err(format!("numbers of type `{}`: expected f4, f8 or f2", other.unwrap_or("?"))),
        };
        if value("fortran_order").is_none_or(|order| !order.starts_with("False")) {
            return Err("rows are not one after the other: save `numpy.ascontiguousarray(x)`".into());
        }
        let shape = value("shape").ok_or_else(no_array)?;
        let inside = shape.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(no_array)?.0;
        let sizes: Vec<&str> = inside.split(',').map(str::trim).filter(|size| !size.is_empty()).collect();
        let [rows, dim] = sizes[..] else { return Err(format!("an array of shape ({inside}): expected (N, D)")) };
        let (rows, dim) = (rows.parse().map_err(|_| no_array())?, dim.parse().map_err(|_| no_array())?);
        Ok(Self { number, rows, dim, start })
    }
}

/// Lists the rows of the table; there must be as many as in the array.
pub fn scan(import: &Import, path: &str, table: &str, files: &dyn Files) -> Result<EmbeddingList> {
    let shape = Shape::read(path, files)?;
    let dim = check_dim(&format!("`{path}`"), shape.dim)?;
    let text = read_list(files, table, "expected a line of column names, then a line for each row of the array")?;
    let listing = read_table(import, table, &text)?;
    let lines = listing.items.len() as u64;
    if lines != shape.rows {
        let rows = shape.rows;
        return Err(Error::invalid(format!("`{table}` has {lines} rows, the array `{path}` has {rows}")));
    }
    let place = |place: &Place| match place {
        Place::Parquet { row, .. } => format!("`{table}` row {row}"),
        _ => String::new(),
    };
    Ok(EmbeddingList { scan: listing.finish(import, place)?, dim })
}

fn read_table(import: &Import, table: &str, text: &str) -> Result<Listing> {
    let damaged = |error: ::csv::Error| Error::invalid(format!("`{table}`: {error}"));
    let first = text.lines().next().unwrap_or_default().as_bytes();
    let count = |separator: &u8| first.iter().filter(|byte| *byte == separator).count();
    let separator = SEPARATORS.into_iter().rev().max_by_key(count).unwrap_or(b',');
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(text.as_bytes());
    let header = reader.headers().map_err(damaged)?.clone();
    let (item, split, attributes) = columns(import, table, &header)?;
    let columns = attributes.iter().map(|at| Column::new(header[*at].trim())).collect();
    let mut listing = Listing { columns, ..Listing::default() };
    let mut record = StringRecord::new();
    for row in 0u64.. {
        if !reader.read_record(&mut record).map_err(damaged)? {
            break;
        }
        let line = record.position().map_or(0, |position| position.line());
        let here = || format!("`{table}` line {line}");
        let cell = |at: usize| record.get(at).unwrap_or_default().trim();
        if cell(item).is_empty() {
            return Err(Error::invalid(format!("{}: the item id is empty", here())));
        }
        let unknown =
            |word: &str| Error::invalid(format!("{}: split `{word}` is not train, validation or test", here()));
        let split = match split.map(cell) {
            None => TEST,
            Some(word) => split::of_word(word).ok_or_else(|| unknown(word))?,
        };
        listing.items.push(cell(item).into());
        listing.splits.push(split);
        listing.places.push(Place::Parquet { file: 0, row });
        for (column, at) in listing.columns.iter_mut().zip(&attributes) {
            let word = cell(*at);
            column.push(Word::usual(word), || format!("{}: `{word}`", here()));
        }
    }
    Ok(listing)
}

/// Positions of the id, of the split, and of what may be labels.
fn columns(import: &Import, table: &str, header: &StringRecord) -> Result<(usize, Option<usize>, Vec<usize>)> {
    let at = |name: &str| header.iter().position(|column| column.trim() == name);
    let there = || format!("`{}`", header.iter().map(str::trim).collect::<Vec<_>>().join("`, `"));
    let named = |name: &String| {
        at(name).ok_or_else(|| Error::invalid(format!("`{table}`: there is no column `{name}`, but {}", there())))
    };
    let told = &import.columns;
    let item = match &told.item {
        Some(name) => named(name)?,
        None => ITEMS.iter().find_map(|name| at(name)).ok_or_else(|| {
            Error::invalid(format!("`{table}`: no column is named as one of ids is; say `--id-column`: {}", there()))
        })?,
    };
    let split = match &told.split {
        Some(name) => Some(named(name)?),
        None => at(SPLIT),
    };
    let attributes = if told.attributes.is_empty() {
        (0..header.len()).filter(|column| *column != item && Some(*column) != split).collect()
    } else {
        told.attributes.iter().map(named).collect::<Result<_>>()?
    };
    Ok((item, split, attributes))
}

/// Reads the vectors of rows, which are consecutive ones.
pub fn read(path: &str, rows: &[ScanRow], files: &dyn Files, vectors: &mut Vectors) -> Result<()> {
    let shape = Shape::read(path, files)?;
    let changed = || Error::invalid(format!("`{path}` is not what it was when it was scanned"));
    let Some(first) = rows.first() else { return Ok(()) };
    let (_, first) = row_of(&first.place)?;
    if shape.dim != vectors.dim || first + rows.len() as u64 > shape.rows {
        return Err(changed());
    }
    let row_bytes = shape.dim as u64 * shape.number.bytes();
    let begin = shape.start + first * row_bytes;
    let range = begin..begin + rows.len() as u64 * row_bytes;
    let bytes = files.read(path, range).map_err(|e| Error::io(path, e))?;
    for (row, bytes) in rows.iter().zip(bytes.chunks_exact(row_bytes as usize)) {
        let place = || format!("`{path}` row {}", row_of(&row.place).map_or(0, |(_, row)| row));
        vectors.push(&shape.number.decode(bytes), &row.item, place)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(header: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes()].concat();
        bytes.extend(header.as_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_as_numpy_writes_it() {
        let of = |header: &str| Shape::of(&head(header));
        let shape = of("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }   \n").unwrap();
        assert_eq!((shape.number, shape.rows, shape.dim), (Number::F4, 3, 2));
        for (header, word) in [
            ("{'descr': '>f4', 'fortran_order': False, 'shape': (3, 2), }", "`>f4`"),
            ("{'descr': '<i8', 'fortran_order': False, 'shape': (3, 2), }", "f4, f8 or f2"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 2), }", "ascontiguousarray"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", "(N, D)"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, -2), }", "no array"),
            ("{}", "no array"),
        ] {
            let error = of(header).unwrap_err();
            assert!(error.contains(word), "{header}: {error}");
        }
        assert!(Shape::of(b"PK\x03\x04").unwrap_err().contains("no array"));
        assert!(Shape::of(&head("{'descr'")[..12]).unwrap_err().contains("cut off"));
    }
}
