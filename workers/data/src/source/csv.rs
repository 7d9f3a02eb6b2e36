//! A CSV file of paths and labels beside a folder of images.
//!
//! The first line names the columns; cells are separated by `,`, `;` or a tab, whichever the first line has most of.
//! A row's image is the cell of the path column, relative to the images' folder. Its item id is the id column's cell,
//! else the path; its split 80/10/10 by a hash of the group column's cell if one is named, else the split column's, else by a
//! hash of the item id.
//!
//! What cells say of an attribute is told in `crate::labels`, which columns are attributes in `labels`.

use std::collections::HashMap;

use ::csv::{Reader, ReaderBuilder, StringRecord};
use likeness_contract::jobs::CsvColumns;
use likeness_contract::settings::Vocabulary;

use super::labels::{Attribute, Words, chosen};
use super::{Files, Places, check_names, read_list, shortened, split};
use crate::error::{Error, Result};
use crate::labels::left_out_words;
use crate::rows::{Place, Scan, ScanRow};

/// Names of the path column in the order in which they are looked for.
const PATHS: [&str; 7] = ["path", "file", "filename", "file_name", "image_path", "image", "image_id"];
/// Names of the id column.
const ITEMS: [&str; 2] = ["item_id", "id"];
/// Bytes that may separate cells.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// The table and how it is understood.
pub(super) struct Csv<'a> {
    pub file: &'a str,
    /// Where the images' paths start.
    pub dir: &'a str,
    pub columns: &'a CsvColumns,
    pub words: &'a Words,
}

/// Lists the rows; images are not looked at.
pub(super) fn scan(source: &Csv, files: &dyn Files) -> Result<Scan> {
    let text = read_list(files, source.file, "expected a line of column names, then one line per image")?;
    Table::read(source, &text)?.finish(source)
}

/// Positions of the columns that are no attributes.
struct Columns {
    path: usize,
    item: Option<usize>,
    split: Option<usize>,
    group: Option<usize>,
}

impl Columns {
    fn of(source: &Csv, header: &StringRecord) -> Result<Self> {
        let named = |name: &Option<String>, usual: &[&str]| match name {
            Some(name) => position(source, header, name).map(Some),
            None => Ok(usual.iter().find_map(|usual| header.iter().position(|name| folded(name) == *usual))),
        };
        let columns = source.columns;
        Ok(Self {
            path: named(&columns.path, &PATHS)?.ok_or_else(|| {
                let (file, there) = (&source.file, there(header));
                Error::invalid(format!("`{file}`: no column is named as one of images is; say which is it: {there}"))
            })?,
            item: named(&columns.item, &ITEMS)?,
            split: named(&columns.split, &split::COLUMNS)?,
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

fn position(source: &Csv, header: &StringRecord, name: &str) -> Result<usize> {
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
    /// Their columns.
    positions: Vec<usize>,
    rows: Vec<Row>,
    by_hash: usize,
}

struct Row {
    line: u64,
    item: String,
    path: String,
    split: u8,
}

impl Table {
    fn read(source: &Csv, text: &str) -> Result<Self> {
        let file = source.file;
        // The reader counts a line that ends in both as two.
        let text = text.replace("\r\n", "\n");
        let mut reader = reader(&text);
        let damaged = |error: ::csv::Error| Error::invalid(format!("`{file}`: {error}"));
        let header = reader.headers().map_err(damaged)?.clone();
        let columns = Columns::of(source, &header)?;
        let positions = candidates(source, &header, &columns)?;
        let attributes = positions.iter().map(|column| Attribute::new(header[*column].trim())).collect();
        let mut table = Self { attributes, positions, rows: Vec::new(), by_hash: 0 };
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(damaged)? {
            let line = record.position().map_or(0, |position| position.line());
            table.push(source, &columns, line, &record)?;
        }
        Ok(table)
    }

    fn push(&mut self, source: &Csv, columns: &Columns, line: u64, record: &StringRecord) -> Result<()> {
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
        for (attribute, column) in self.attributes.iter_mut().zip(&self.positions) {
            let place = || format!("`{}` line {line}", source.file);
            attribute.push(source.words.of(cell(*column)), place, || cell(*column).to_string());
        }
        self.rows.push(Row { line, item: item.into(), path: path.into(), split });
        Ok(())
    }

    fn finish(self, source: &Csv) -> Result<Scan> {
        let Self { attributes, positions: _, rows, by_hash } = self;
        if rows.is_empty() {
            return Err(Error::invalid(format!("`{}` lists no image", source.file)));
        }
        check_unique(source, &rows)?;
        let (attributes, left_out) = chosen(attributes, !source.columns.attributes.is_empty())?;
        let names: Vec<String> = attributes.iter().map(|attribute| attribute.name.clone()).collect();
        check_names(&format!("`{}`", source.file), &names)?;
        let mut warnings: Vec<String> = left_out_words(&left_out).into_iter().collect();
        if by_hash > 0 {
            let of = source.columns.group.as_ref().map_or("the item id".into(), |group| format!("`{group}`"));
            warnings.push(format!("no column tells the split: assigned 80/10/10 by a hash of {of}"));
        }
        let zeros = attributes.iter().map(|attribute| attribute.zero(source.words)).collect();
        let labels: Vec<Vec<i8>> = attributes.iter().map(|attribute| attribute.labels(source.words)).collect();
        let row = |(i, row): (usize, Row)| ScanRow {
            item: row.item,
            place: Place::File { path: row.path },
            attributes: labels.iter().map(|labels| labels[i]).collect(),
            split: row.split,
            problem: None,
        };
        let rows = rows.into_iter().enumerate().map(row).collect();
        let places = Places { dir: source.dir.into(), files: Vec::new() };
        Ok(Scan { vocabulary: Vocabulary { names }, rows, warnings, places, zeros })
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
fn candidates(source: &Csv, header: &StringRecord, columns: &Columns) -> Result<Vec<usize>> {
    let named = &source.columns.attributes;
    if named.is_empty() {
        return Ok((0..header.len()).filter(|column| !columns.has(*column)).collect());
    }
    named.iter().map(|name| position(source, header, name)).collect()
}

/// Whether a path is not one below the folder.
fn leads_out(path: &str) -> bool {
    path.starts_with(['/', '\\']) || path.contains(['\0', ':']) || path.split(['/', '\\']).any(|part| part == "..")
}

fn check_unique(source: &Csv, rows: &[Row]) -> Result<()> {
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
