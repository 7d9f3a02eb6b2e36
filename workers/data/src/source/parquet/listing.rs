//! The rows of all files: item ids, splits, labels.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use likeness_contract::jobs::CsvColumns;
use likeness_contract::settings::Vocabulary;

use super::super::labels::{Attribute, Words, chosen};
use super::super::{Files, Places, TableFile, check_names, split};
use super::columns::Columns;
use super::file::{Blame, changed, open, projection};
use crate::error::{Error, Result};
use crate::labels::left_out_words;
use crate::rows::{Place, Scan, ScanRow};

/// Rows of labels that are held at once.
const SCAN_BATCH: usize = 8192;

/// Gathers the rows of all files.
pub(super) struct Listing<'a> {
    told: &'a CsvColumns,
    words: &'a Words,
    /// Those of the first file, with the cells of all.
    attributes: Vec<Attribute>,
    /// Without their labels.
    rows: Vec<ScanRow>,
    by_hash: usize,
    left_out: Vec<String>,
}

impl<'a> Listing<'a> {
    /// Of nothing.
    pub fn new(told: &'a CsvColumns, words: &'a Words) -> Self {
        Self { told, words, attributes: Vec::new(), rows: Vec::new(), by_hash: 0, left_out: Vec::new() }
    }

    /// Appends the rows of the file with this number.
    pub fn add_file(&mut self, number: u32, file: &TableFile, files: Arc<dyn Files>) -> Result<()> {
        let TableFile { path, image } = file;
        let (builder, blame) = open(path, files)?;
        let columns = Columns::of(path, builder.schema(), self.told, image)?;
        self.adopt(path, &columns)?;
        let wanted = columns.wanted();
        let mask = projection(&builder, |column| wanted.iter().any(|name| name == column));
        let reader = builder.with_projection(mask).with_batch_size(SCAN_BATCH).build().map_err(|e| blame.error(e))?;
        let mut file =
            FileRows { number, path, split: split::of_file(path), columns: &columns, blame: &blame, next: 0 };
        for batch in reader {
            file.append(&batch.map_err(|e| blame.error(e))?, self)?;
        }
        Ok(())
    }

    /// The first file's columns of attributes are everybody's.
    fn adopt(&mut self, path: &str, columns: &Columns) -> Result<()> {
        for name in &columns.left_out {
            if !self.left_out.contains(name) {
                self.left_out.push(name.clone());
            }
        }
        if self.attributes.is_empty() {
            check_names(&format!("`{path}`"), &columns.attributes)?;
            self.attributes = columns.attributes.iter().map(Attribute::new).collect();
            return Ok(());
        }
        let known = |name: &String| self.attributes.iter().any(|attribute| attribute.name == *name);
        let missing = self.attributes.iter().find(|attribute| !columns.attributes.contains(&attribute.name));
        if let Some(missing) = missing {
            let name = &missing.name;
            return Err(Error::invalid(format!("`{path}`: attribute column `{name}` of the first file is missing")));
        }
        if let Some(extra) = columns.attributes.iter().find(|name| !known(name)) {
            return Err(Error::invalid(format!("`{path}`: attribute column `{extra}` is not in the first file")));
        }
        Ok(())
    }

    /// All rows, if their item ids are unique.
    pub fn finish(self, files: Vec<TableFile>) -> Result<Scan> {
        let Self { told, words, attributes, mut rows, by_hash, mut left_out } = self;
        if rows.is_empty() {
            let more = files.len() - 1;
            return Err(Error::invalid(format!("`{}` and {more} more files have no row", files[0].path)));
        }
        check_unique(&files, &rows)?;
        let (attributes, none) = chosen(attributes, !told.attributes.is_empty())?;
        left_out.extend(none);
        let names: Vec<String> = attributes.iter().map(|attribute| attribute.name.clone()).collect();
        check_names(&format!("`{}`", files[0].path), &names)?;
        let mut warnings: Vec<String> = left_out_words(&left_out).into_iter().collect();
        if by_hash > 0 {
            let of = rows.len();
            warnings.push(match &told.group {
                Some(group) => format!("the split is 80/10/10 by a hash of `{group}`"),
                None => format!(
                    "{by_hash} of {of} rows have no split, by column or by file name: assigned 80/10/10 by a hash of the item id"
                ),
            });
        }
        let zeros = attributes.iter().map(|attribute| attribute.zero(words)).collect();
        for attribute in &attributes {
            rows.iter_mut().zip(attribute.labels(words)).for_each(|(row, label)| row.attributes.push(label));
        }
        let places = Places { dir: String::new(), files };
        Ok(Scan { vocabulary: Vocabulary { names }, rows, warnings, places, zeros })
    }
}

fn check_unique(files: &[TableFile], rows: &[ScanRow]) -> Result<()> {
    let name = |row: &ScanRow| match row.place {
        Place::Parquet { file, row } => format!("`{}` row {row}", files[file as usize].path),
        Place::File { .. } => String::new(),
    };
    let mut first: HashMap<&str, &ScanRow> = HashMap::with_capacity(rows.len());
    for row in rows {
        if let Some(first) = first.insert(&row.item, row) {
            return Err(Error::invalid(format!(
                "{}: item `{}` is there already in {}",
                name(row),
                row.item,
                name(first)
            )));
        }
    }
    Ok(())
}

/// Turns the batches of one file into rows.
struct FileRows<'a> {
    number: u32,
    path: &'a str,
    split: Option<u8>,
    columns: &'a Columns,
    blame: &'a Blame,
    next: u64,
}

impl FileRows<'_> {
    fn append(&mut self, batch: &RecordBatch, listing: &mut Listing) -> Result<()> {
        let items = self.items(batch)?;
        let splits = self.splits(batch, &items, &mut listing.by_hash)?;
        let words = listing.words;
        listing.attributes.iter_mut().try_for_each(|attribute| self.fill(batch, attribute, words))?;
        let attributes = listing.attributes.len();
        for (item, split) in items.into_iter().zip(splits) {
            let place = Place::Parquet { file: self.number, row: self.next };
            self.next += 1;
            listing.rows.push(ScanRow {
                item,
                place,
                attributes: Vec::with_capacity(attributes),
                split,
                problem: None,
            });
        }
        Ok(())
    }

    fn items(&self, batch: &RecordBatch) -> Result<Vec<String>> {
        let Columns { image, image_path, id, id_first, .. } = self.columns;
        let paths = match batch.column_by_name(image).and_then(|image| image.as_struct_opt()) {
            Some(image) if *image_path => self.text(image.column_by_name("path"))?,
            _ => None,
        };
        let ids = match id {
            Some(id) => self.text(batch.column_by_name(id))?,
            None => None,
        };
        let (first, second) = if *id_first { (ids, paths) } else { (paths, ids) };
        let file = self.path.rsplit(['/', '\\']).next().unwrap_or(self.path);
        let numbered = |i: usize| format!("{file}#{}", self.next + i as u64);
        let item = |i: usize| given(&first, i).or_else(|| given(&second, i)).map_or_else(|| numbered(i), String::from);
        Ok((0..batch.num_rows()).map(item).collect())
    }

    fn text(&self, column: Option<&ArrayRef>) -> Result<Option<StringArray>> {
        let Some(column) = column else { return Ok(None) };
        let text = cast(column, &DataType::Utf8).map_err(|e| self.blame.error(e))?;
        Ok(Some(text.as_string().clone()))
    }

    /// `by_hash` counts the rows whose split nothing tells.
    fn splits(&self, batch: &RecordBatch, items: &[String], by_hash: &mut usize) -> Result<Vec<u8>> {
        if let Some(column) = &self.columns.split {
            let words = self.text(batch.column_by_name(column))?.ok_or_else(|| changed(self.path))?;
            return (0..words.len()).map(|i| self.split_of(words.is_valid(i).then(|| words.value(i)), i)).collect();
        }
        let groups = match &self.columns.group {
            Some(group) => self.text(batch.column_by_name(group))?,
            None => match self.split {
                Some(split) => return Ok(vec![split; items.len()]),
                None => None,
            },
        };
        *by_hash += items.len();
        let of = |(i, item): (usize, &String)| split::by_hash(given(&groups, i).unwrap_or(item));
        Ok(items.iter().enumerate().map(of).collect())
    }

    fn split_of(&self, word: Option<&str>, i: usize) -> Result<u8> {
        word.and_then(split::of_word).ok_or_else(|| {
            let word: String = word.unwrap_or("null").chars().take(60).collect();
            let (path, row) = (self.path, self.next + i as u64);
            Error::invalid(format!("`{path}` row {row}: split `{word}` is not train, validation or test"))
        })
    }

    /// Takes the cells of one column.
    fn fill(&self, batch: &RecordBatch, attribute: &mut Attribute, words: &Words) -> Result<()> {
        let column = batch.column_by_name(&attribute.name).ok_or_else(|| changed(self.path))?;
        let place = |i: usize| format!("`{}` row {}", self.path, self.next + i as u64);
        let convert = |to: DataType| cast(column, &to).map_err(|e| self.blame.error(e));
        let unknown = words.of("");
        match column.data_type() {
            DataType::Boolean => {
                let [yes, no] = ["true", "false"].map(|word| words.of(word));
                let word = |flag: Option<bool>| flag.map_or(unknown, |flag| if flag { yes } else { no });
                column.as_boolean().iter().enumerate().for_each(|(i, flag)| {
                    attribute.push(word(flag), || place(i), || format!("{flag:?}"));
                });
            }
            numbers if numbers.is_integer() => {
                // Nearly all cells are one of these.
                let usual = [-1i64, 0, 1].map(|number| (number, words.of(&number.to_string())));
                for (i, number) in convert(DataType::Int64)?.as_primitive::<Int64Type>().iter().enumerate() {
                    let of = |number: i64| match usual.iter().find(|(usual, _)| *usual == number) {
                        Some((_, word)) => *word,
                        None => words.of(&number.to_string()),
                    };
                    let word = number.map_or(unknown, of);
                    attribute.push(word, || place(i), || number.unwrap_or_default().to_string());
                }
            }
            numbers
                if numbers.is_floating() || matches!(numbers, DataType::Decimal128(..) | DataType::Decimal256(..)) =>
            {
                for (i, number) in convert(DataType::Float64)?.as_primitive::<Float64Type>().iter().enumerate() {
                    let word = number.map_or(unknown, |number| words.of(&number.to_string()));
                    attribute.push(word, || place(i), || number.unwrap_or_default().to_string());
                }
            }
            _ => {
                let cells = self.text(Some(column))?.ok_or_else(|| changed(self.path))?;
                for (i, cell) in cells.iter().enumerate() {
                    let cell = cell.unwrap_or_default();
                    attribute.push(words.of(cell), || place(i), || cell.to_string());
                }
            }
        }
        Ok(())
    }
}

/// A cell that is not empty.
fn given(texts: &Option<StringArray>, i: usize) -> Option<&str> {
    let texts = texts.as_ref()?;
    (texts.is_valid(i) && !texts.value(i).is_empty()).then(|| texts.value(i))
}
