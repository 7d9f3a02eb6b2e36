//! The rows of all files: item ids, splits, labels.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_schema::DataType;
use likeness_contract::settings::Vocabulary;

use super::super::{Files, check_names, split};
use super::columns::Columns;
use super::file::{Blame, changed, open, projection};
use super::{IMAGE, SPLIT};
use crate::error::{Error, Result};
use crate::rows::{Place, Scan, ScanRow};

/// Rows of labels that are held at once.
const SCAN_BATCH: usize = 8192;

/// Gathers the rows of all files.
#[derive(Default)]
pub(super) struct Listing {
    vocabulary: Vec<String>,
    rows: Vec<ScanRow>,
    warnings: Vec<String>,
    unsplit: usize,
    left_out: Vec<String>,
    /// Per attribute, whether an integer column held −1, 0, 1.
    seen: Vec<[bool; 3]>,
}

impl Listing {
    /// Appends the rows of the file with this number.
    pub fn add_file(&mut self, number: u32, path: &str, files: Arc<dyn Files>) -> Result<()> {
        let (builder, blame) = open(path, files)?;
        let columns = Columns::of(path, builder.schema())?;
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

    /// The first file's attributes are the vocabulary; the others must have the same.
    fn adopt(&mut self, path: &str, columns: &Columns) -> Result<()> {
        for name in &columns.left_out {
            if !self.left_out.contains(name) {
                self.left_out.push(name.clone());
            }
        }
        if self.vocabulary.is_empty() {
            check_names(&format!("`{path}`"), &columns.attributes)?;
            self.vocabulary.clone_from(&columns.attributes);
            self.seen = vec![[false; 3]; self.vocabulary.len()];
            return Ok(());
        }
        if let Some(missing) = self.vocabulary.iter().find(|name| !columns.attributes.contains(name)) {
            return Err(Error::invalid(format!("`{path}`: attribute column `{missing}` of the first file is missing")));
        }
        if let Some(extra) = columns.attributes.iter().find(|name| !self.vocabulary.contains(name)) {
            return Err(Error::invalid(format!("`{path}`: attribute column `{extra}` is not in the first file")));
        }
        Ok(())
    }

    /// All rows, if their item ids are unique.
    pub fn finish(mut self, paths: &[String]) -> Result<Scan> {
        if self.rows.is_empty() {
            return Err(Error::invalid(format!("`{}` and {} more files have no row", paths[0], paths.len() - 1)));
        }
        check_unique(paths, &self.rows)?;
        if !self.left_out.is_empty() {
            self.warnings
                .push(format!("columns that are no attributes were left out: `{}`", self.left_out.join("`, `")));
        }
        let coded = self.vocabulary.iter().zip(&self.seen).filter(|(_, seen)| matches!(seen, [false, true, true]));
        let coded: Vec<&str> = coded.map(|(name, _)| name.as_str()).collect();
        if !coded.is_empty() {
            let coded = coded.join("`, `");
            self.warnings.push(format!("`{coded}` hold 0 and 1 and never -1: 0 was read as not known, not as has not"));
        }
        if self.unsplit > 0 {
            let of = self.rows.len();
            self.warnings.push(format!(
                "{} of {of} rows have no split, by column or by file name: assigned 80/10/10 by a hash of the item id",
                self.unsplit
            ));
        }
        Ok(Scan { vocabulary: Vocabulary { names: self.vocabulary }, rows: self.rows, warnings: self.warnings })
    }
}

fn check_unique(paths: &[String], rows: &[ScanRow]) -> Result<()> {
    let name = |row: &ScanRow| match row.place {
        Place::Parquet { file, row } => format!("`{}` row {row}", paths[file as usize]),
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
        let splits = self.splits(batch, &items)?;
        let attributes = listing.vocabulary.len();
        let mut labels = vec![0i8; batch.num_rows() * attributes];
        for (a, name) in listing.vocabulary.iter().enumerate() {
            self.fill(batch, name, &mut labels, a, attributes, &mut listing.seen[a])?;
        }
        for ((item, split), labels) in items.into_iter().zip(splits).zip(labels.chunks_exact(attributes)) {
            listing.unsplit += usize::from(split.is_none());
            let split = split.unwrap_or_else(|| split::by_hash(&item));
            let place = Place::Parquet { file: self.number, row: self.next };
            self.next += 1;
            listing.rows.push(ScanRow { item, place, attributes: labels.to_vec(), split, problem: None });
        }
        Ok(())
    }

    fn items(&self, batch: &RecordBatch) -> Result<Vec<String>> {
        let paths = match batch.column_by_name(IMAGE).and_then(|image| image.as_struct_opt()) {
            Some(image) if self.columns.image_path => self.text(image.column_by_name("path"))?,
            _ => None,
        };
        let ids = match &self.columns.id {
            Some(id) => self.text(batch.column_by_name(id))?,
            None => None,
        };
        let given = |texts: &Option<StringArray>, i: usize| {
            let texts = texts.as_ref()?;
            (texts.is_valid(i) && !texts.value(i).is_empty()).then(|| texts.value(i).to_string())
        };
        let file = self.path.rsplit(['/', '\\']).next().unwrap_or(self.path);
        let numbered = |i: usize| format!("{file}#{}", self.next + i as u64);
        let item = |i: usize| given(&paths, i).or_else(|| given(&ids, i)).unwrap_or_else(|| numbered(i));
        Ok((0..batch.num_rows()).map(item).collect())
    }

    fn text(&self, column: Option<&ArrayRef>) -> Result<Option<StringArray>> {
        let Some(column) = column else { return Ok(None) };
        let text = cast(column, &DataType::Utf8).map_err(|e| self.blame.error(e))?;
        Ok(Some(text.as_string().clone()))
    }

    fn splits(&self, batch: &RecordBatch, items: &[String]) -> Result<Vec<Option<u8>>> {
        if !self.columns.split {
            return Ok(vec![self.split; items.len()]);
        }
        let words = self.text(batch.column_by_name(SPLIT))?.ok_or_else(|| changed(self.path))?;
        (0..words.len()).map(|i| self.split_of(words.is_valid(i).then(|| words.value(i)), i).map(Some)).collect()
    }

    fn split_of(&self, word: Option<&str>, i: usize) -> Result<u8> {
        word.and_then(split::of_word).ok_or_else(|| {
            let word: String = word.unwrap_or("null").chars().take(60).collect();
            let (path, row) = (self.path, self.next + i as u64);
            Error::invalid(format!("`{path}` row {row}: split `{word}` is not train, validation or test"))
        })
    }

    /// Writes the labels of one column into position `a` of every row.
    fn fill(
        &self,
        batch: &RecordBatch,
        name: &str,
        labels: &mut [i8],
        a: usize,
        attributes: usize,
        seen: &mut [bool; 3],
    ) -> Result<()> {
        let column = batch.column_by_name(name).ok_or_else(|| changed(self.path))?;
        if let Some(flags) = column.as_any().downcast_ref::<BooleanArray>() {
            for (i, flag) in flags.iter().enumerate() {
                labels[i * attributes + a] = flag.map_or(0, |has| if has { 1 } else { -1 });
            }
            return Ok(());
        }
        let numbers: ArrayRef = cast(column, &DataType::Int64).map_err(|e| self.blame.error(e))?;
        let numbers: &Int64Array = numbers.as_primitive::<Int64Type>();
        for (i, number) in numbers.iter().enumerate() {
            let number = number.unwrap_or(0);
            let label = i8::try_from(number).ok().filter(|label| (-1..=1).contains(label)).ok_or_else(|| {
                let (path, row) = (self.path, self.next + i as u64);
                Error::invalid(format!("`{path}` row {row}, column `{name}`: {number} is no label: -1, 0 or 1"))
            })?;
            seen[(label + 1) as usize] = true;
            labels[i * attributes + a] = label;
        }
        Ok(())
    }
}
