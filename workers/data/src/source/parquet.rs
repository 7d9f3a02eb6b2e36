//! CelebA-style Parquet as on the Hugging Face hub: a column `image`, a struct of `bytes` and `path` (or plain
//! binary), and one boolean column per attribute.
//!
//! Attribute columns are boolean (a null is "not known") or integer (−1, 0, 1); their order in the first file is the
//! vocabulary, and every further file must have the same. A row's item id is `image.path`, else an id column,
//! else `<file>#<row>`. Its split is a column `split`, else what the file's name begins with, else a stable
//! hash of the item id (80/10/10, with a warning). Columns that can't be labels are left out with a warning.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_buffer::NullBuffer;
use arrow_cast::cast;
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};

use self::file::{Blame, changed, damaged, open, projection};
use self::listing::Listing;
use super::{Counter, Files, Found, PartContent, check_all};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::rows::{Place, Scan, ScanRow};

mod columns;
pub(crate) mod file;
mod listing;

const IMAGE: &str = "image";
const SPLIT: &str = "split";
/// Images that are held at once before they are checked on all cores.
const IMAGE_BATCH: usize = 256;

/// Lists the rows of all files; of the images only their paths are read.
pub(super) fn scan(paths: &[String], files: Arc<dyn Files>) -> Result<Scan> {
    if paths.is_empty() {
        return Err(Error::invalid("no Parquet file was named"));
    }
    let mut listing = Listing::default();
    for (number, path) in paths.iter().enumerate() {
        let number = u32::try_from(number).map_err(|_| Error::invalid("more than 2³² files"))?;
        whole(path, || listing.add_file(number, path, files.clone()))?;
    }
    listing.finish(paths)
}

/// Reads and checks the images of `rows`, which lie in ascending order in each file.
pub(super) fn read_rows(
    paths: &[String],
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    progress: &Counter<'_>,
) -> Result<PartContent> {
    let mut content = PartContent::default();
    for run in rows.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let path = file_of(&run[0])
            .and_then(|file| paths.get(file as usize))
            .ok_or_else(|| Error::corrupt("list of rows: a row of a file that the source does not have"))?;
        whole(path, || read_run(path, run, files.clone(), progress, &mut content))?;
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
    path: &str,
    rows: &[ScanRow],
    files: Arc<dyn Files>,
    progress: &Counter<'_>,
    content: &mut PartContent,
) -> Result<()> {
    let (builder, blame) = open(path, files)?;
    let mask = projection(&builder, |column| column == IMAGE || column.starts_with("image."));
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
        let images = images_of(path, &batch.map_err(|e| blame.error(e))?, &blame)?;
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

fn images_of(path: &str, batch: &RecordBatch, blame: &Blame) -> Result<Images> {
    let column = batch.column_by_name(IMAGE).ok_or_else(|| changed(path))?;
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
