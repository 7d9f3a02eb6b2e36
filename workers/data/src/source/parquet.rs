//! Parquet as on the Hugging Face hub: a column `image`, a struct of `bytes` and `path` (or plain binary), and one column
//! of labels per attribute.
//!
//! Files are named one by one, by folders that hold them, or by patterns. Attributes are the columns that were named, else
//! all boolean and numeric columns whose cells are labels, in the order of the first file; every further file must have the
//! same. What cells say is told in `labels`; a null is "not known". A row's item id is the id column's cell if one is named,
//! else `image.path`, else a column with a usual name, else `<file>#<row>`. Its split is 80/10/10 by a hash of the group
//! column's cell if one is named, else the split column, else what the file's name begins with (`train-…`), else the hash of the
//! item id. Columns that can't be labels are left out with a warning.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_cast::cast;
use arrow_schema::DataType;
use bytes::Bytes;
use likeness_contract::jobs::CsvColumns;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};

use self::file::{Blame, changed, damaged, open, projection};
use self::listing::Listing;
use super::labels::Words;
use super::{Counter, Files, Found, PartContent, TableFile, check_all, glob};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::rows::{Place, Scan, ScanRow};

mod columns;
pub(crate) mod file;
mod listing;

const IMAGE: &str = "image";
/// Ending of the files that a folder stands for.
const ENDING: &str = ".parquet";
/// Images that are held at once before they are checked on all cores.
const IMAGE_BATCH: usize = 256;

/// Lists the rows of all files; of the images only their paths are read.
pub(super) fn scan(named: &[String], told: &CsvColumns, words: &Words, files: Arc<dyn Files>) -> Result<Scan> {
    if named.is_empty() {
        return Err(Error::invalid("no Parquet file was named"));
    }
    let image = told.path.clone().unwrap_or_else(|| IMAGE.into());
    let paths = expand(named, files.as_ref())?;
    let paths: Vec<TableFile> = paths.into_iter().map(|path| TableFile { path, image: image.clone() }).collect();
    let mut listing = Listing::new(told, words);
    for (number, file) in paths.iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| Error::invalid("more than 2³² files"))?;
        whole(&file.path, || listing.add_file(number, file, files.clone()))?;
    }
    listing.finish(paths)
}

/// The files that names of files, folders and patterns stand for, each once.
fn expand(named: &[String], files: &dyn Files) -> Result<Vec<String>> {
    let mut paths: Vec<String> = Vec::new();
    for name in named {
        let found = if is_folder(name, files) {
            below(name, |path| path.ends_with(ENDING), files)?
        } else if glob::is_pattern(name) && files.size(name).is_err() {
            let (folder, pattern) = glob::split(name);
            below(folder, |path| glob::matches(pattern, path), files)?
        } else {
            vec![name.clone()]
        };
        if found.is_empty() {
            return Err(Error::invalid(format!("`{name}`: there is no such Parquet file")));
        }
        for path in found {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// A place that can't be listed, as behind plain HTTP, is a file.
fn is_folder(path: &str, files: &dyn Files) -> bool {
    files.is_folder(path).unwrap_or(false)
}

/// Files below a folder, but those that are hidden or by their names none of the data.
fn below(folder: &str, wanted: impl Fn(&str) -> bool, files: &dyn Files) -> Result<Vec<String>> {
    let listed = files.list(folder).map_err(|e| Error::io(folder, e))?;
    let shown = |path: &String| !path.split('/').any(|name| name.starts_with(['.', '_']));
    let wanted = listed.into_iter().filter(|path| shown(path) && wanted(path));
    Ok(wanted.map(|path| super::inside(folder, &path)).collect())
}

/// Reads and checks the images of `rows`, which lie in ascending order in each file.
pub(super) fn read_rows(
    paths: &[TableFile],
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    progress: &Counter<'_>,
) -> Result<PartContent> {
    let mut content = PartContent::default();
    for run in rows.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let file = file_of(&run[0])
            .and_then(|file| paths.get(file as usize))
            .ok_or_else(|| Error::corrupt("list of rows: a row of a file that the source does not have"))?;
        whole(&file.path, || read_run(file, run, files.clone(), progress, &mut content))?;
    }
    Ok(content)
}

/// Runs work on one file that may be damaged.
fn whole<T>(path: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    guarded(work).unwrap_or_else(|panic| Err(damaged(path).because(std::io::Error::other(panic))))
}

fn file_of(row: &ScanRow) -> Option<u32> {
    match row.place {
        Place::Parquet { file, .. } => Some(file),
        Place::File { .. } => None,
    }
}

fn read_run(
    file: &TableFile,
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    progress: &Counter<'_>,
    content: &mut PartContent,
) -> Result<()> {
    let TableFile { path, image } = file;
    let (builder, blame) = open(path, files)?;
    let inside = format!("{image}.");
    let mask = projection(&builder, |column| column == image || column.starts_with(&inside));
    let selection = select(rows)?;
    let present = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    if rows.iter().any(|row| matches!(row.place, Place::Parquet { row, .. } if row >= present)) {
        return Err(changed(path));
    }
    let reader = builder
        .with_projection(mask)
        .with_row_selection(selection)
        .with_batch_size(IMAGE_BATCH)
        .build()
        .map_err(|e| blame.error(e))?;
    let mut rest = rows;
    for batch in reader {
        let images = images_of(file, &batch.map_err(|e| blame.error(e))?, &blame)?;
        let (now, later) = rest.split_at_checked(images.len()).ok_or_else(|| changed(path))?;
        rest = later;
        let checked = check_all(now, |i, _| Ok(images.found(i)), progress)?;
        content.rows.extend(checked.rows);
        content.skipped.extend(checked.skipped);
    }
    if rest.is_empty() { Ok(()) } else { Err(changed(path)) }
}

/// The rows of one file as a selection.
fn select(rows: &[ScanRow]) -> Result<RowSelection> {
    let mut selectors = Vec::new();
    let mut next = 0u64;
    for row in rows {
        let Place::Parquet { row, .. } = row.place else { continue };
        let gap = row.checked_sub(next).ok_or_else(|| Error::corrupt("list of rows: not in the order of the file"))?;
        selectors
            .push(RowSelector::skip(usize::try_from(gap).map_err(|_| Error::corrupt("list of rows: row number"))?));
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    // Merges neighbours and drops what is empty.
    Ok(RowSelection::from_iter(selectors))
}

/// The image column of some rows.
struct Images {
    bytes: BinaryArray,
    paths: Option<StringArray>,
}

impl Images {
    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn found(&self, i: usize) -> Found {
        if self.bytes.is_valid(i) {
            return Ok(Bytes::copy_from_slice(self.bytes.value(i)));
        }
        match &self.paths {
            Some(paths) if paths.is_valid(i) => Err(format!("no image bytes, only the path `{}`", paths.value(i))),
            _ => Err("no image".into()),
        }
    }
}

fn images_of(file: &TableFile, batch: &RecordBatch, blame: &Blame) -> Result<Images> {
    let TableFile { path, image } = file;
    let column = batch.column_by_name(image).ok_or_else(|| changed(path))?;
    let convert = |column: &ArrayRef, to: &DataType| cast(column, to).map_err(|e| blame.error(e));
    let Some(image) = column.as_struct_opt() else {
        return Ok(Images { bytes: convert(column, &DataType::Binary)?.as_binary().clone(), paths: None });
    };
    let bytes = image.column_by_name("bytes").ok_or_else(|| changed(path))?;
    // A null struct hides whatever its fields hold.
    let hidden = image.nulls();
    let bytes = convert(bytes, &DataType::Binary)?.as_binary::<i32>().clone();
    let nulls = NullBuffer::union(bytes.nulls(), hidden);
    let (offsets, values, _) = bytes.into_parts();
    let paths = image.column_by_name("path").map(|paths| convert(paths, &DataType::Utf8)).transpose()?;
    Ok(Images { bytes: BinaryArray::new(offsets, values, nulls), paths: paths.map(|paths| paths.as_string().clone()) })
}

#[cfg(test)]
mod tests;
