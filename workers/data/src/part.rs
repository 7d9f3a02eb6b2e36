//! A dataset part: some rows of a dataset as one Parquet file (`tables::dataset_part_schema`).
//!
//! Images lie in it as their own bytes, uncompressed, in row groups of [`GROUP_ROWS`] and small pages, so that
//! one row can be read by a few small ranges. Reading checks everything that later code relies on: schema,
//! labels −1/0/1, splits 0–2, unique and non-empty item ids. It does not hash the images again: the whole
//! file's digest was checked when it was fetched.

mod items;

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::builder::FixedSizeBinaryBuilder;
use arrow_array::{
    Array, BinaryArray, FixedSizeBinaryArray, Int8Array, RecordBatch, StringArray, UInt8Array, UInt32Array,
};
use bytes::Bytes;
use likeness_contract::ids::{Digest, Digester};
use likeness_contract::tables::dataset_part_schema;
use likeness_parquet::Sound;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;

use crate::columns::{self, Checked, labels_of, typed};
use crate::error::{Error, Result};
use crate::guard::guarded;

pub use items::{PartItem, part_items};

/// Rows of one row group: a few MB of images.
pub const GROUP_ROWS: usize = 256;
/// Rows of one page of the image column: what reading a single image fetches at most.
const PAGE_ROWS: usize = 8;

/// One row of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRow {
    /// Item id.
    pub item: String,
    /// The image file's own bytes.
    pub image: Bytes,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// A labels: −1 has not, 0 not known, +1 has.
    pub attributes: Vec<i8>,
    /// 0 train, 1 validation, 2 test.
    pub split: u8,
}

/// A row and the SHA-256 of its image.
#[derive(Debug, Clone)]
pub struct DigestedRow {
    row: PartRow,
    digest: Digest,
}

impl DigestedRow {
    /// 0 train, 1 validation, 2 test.
    pub fn split(&self) -> u8 {
        self.row.split
    }
}

/// Digests the rows' images on all cores.
pub fn digested(rows: Vec<PartRow>) -> Vec<DigestedRow> {
    rows.into_par_iter().map(|row| DigestedRow { digest: Digest::of(&row.image), row }).collect()
}

/// Rows as a part's bytes. Wrong lengths, labels or splits are refused (`Invalid`).
pub fn encode_part(rows: &[PartRow], attributes: usize) -> Result<Vec<u8>> {
    let mut part = PartWriter::new(attributes)?;
    part.push(digested(rows.to_vec()))?;
    Ok(part.finish()?.bytes)
}

/// Makes a part of rows that come some at a time; of these no more than a row group is held beside the part itself. The same rows
/// make the same bytes, however they come.
pub struct PartWriter {
    writer: ArrowWriter<Hashed>,
    schema: Arc<arrow_schema::Schema>,
    attributes: usize,
    /// Less than a row group.
    pending: Vec<DigestedRow>,
}

impl std::fmt::Debug for PartWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PartWriter").field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

/// A part as it is stored.
#[derive(Debug)]
pub struct EncodedPart {
    /// The file.
    pub bytes: Vec<u8>,
    /// Of its bytes.
    pub digest: Digest,
}

/// Bytes, digested while they are warm.
#[derive(Default)]
struct Hashed {
    bytes: Vec<u8>,
    digester: Digester,
}

impl std::io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.digester.update(bytes);
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn unwritable(error: parquet::errors::ParquetError) -> Error {
    Error::invalid("dataset part can't be written").because(error)
}

impl PartWriter {
    /// Of rows with so many labels each.
    pub fn new(attributes: usize) -> Result<Self> {
        let schema = Arc::new(dataset_part_schema(attributes));
        let writer = ArrowWriter::try_new(Hashed::default(), schema.clone(), Some(properties())).map_err(unwritable)?;
        Ok(Self { writer, schema, attributes, pending: Vec::new() })
    }

    /// Adds rows. Wrong lengths, labels or splits are refused (`Invalid`).
    pub fn push(&mut self, rows: Vec<DigestedRow>) -> Result<()> {
        if let Some(problem) = rows.iter().find_map(|row| problem_of(&row.row, self.attributes)) {
            return Err(Error::invalid(format!("dataset part: {problem}")));
        }
        self.pending.extend(rows);
        let whole = self.pending.len() / GROUP_ROWS * GROUP_ROWS;
        let rest = self.pending.split_off(whole);
        let groups = std::mem::replace(&mut self.pending, rest);
        groups.chunks(GROUP_ROWS).try_for_each(|group| self.write(group))
    }

    fn write(&mut self, group: &[DigestedRow]) -> Result<()> {
        self.writer.write(&group_of(group, self.attributes, self.schema.clone())).map_err(unwritable)
    }

    /// The part.
    pub fn finish(mut self) -> Result<EncodedPart> {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.write(&rest)?;
        }
        let Hashed { bytes, digester } = self.writer.into_inner().map_err(unwritable)?;
        Ok(EncodedPart { bytes, digest: digester.finish() })
    }
}

fn problem_of(row: &PartRow, attributes: usize) -> Option<String> {
    let item = &row.item;
    if item.is_empty() {
        return Some("empty item id".into());
    }
    if row.attributes.len() != attributes {
        return Some(format!("item `{item}` has {} labels for {attributes} attributes", row.attributes.len()));
    }
    if let Some(label) = row.attributes.iter().find(|label| !(-1..=1).contains(*label)) {
        return Some(format!("item `{item}`: label {label} is not −1, 0 or 1"));
    }
    columns::checked_split(row.split).err().map(|problem| format!("item `{item}`: {problem}"))
}

fn properties() -> WriterProperties {
    let image = ColumnPath::from("image");
    let digest = ColumnPath::from("image_digest");
    WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_write_batch_size(PAGE_ROWS)
        .set_column_compression(image.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(image.clone(), false)
        .set_column_data_page_row_count_limit(image.clone(), PAGE_ROWS)
        .set_column_statistics_enabled(image, EnabledStatistics::None)
        .set_column_compression(digest.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(digest.clone(), false)
        .set_column_statistics_enabled(digest, EnabledStatistics::None)
        .build()
}

fn group_of(digested: &[DigestedRow], attributes: usize, schema: Arc<arrow_schema::Schema>) -> RecordBatch {
    let mut digest_column = FixedSizeBinaryBuilder::with_capacity(digested.len(), 32);
    for DigestedRow { digest, row: _ } in digested {
        digest_column.append_value(digest.as_bytes()).expect("a digest has 32 bytes");
    }
    let rows = || digested.iter().map(|digested| &digested.row);
    let labels = rows().flat_map(|row| row.attributes.iter().copied());
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(StringArray::from_iter_values(rows().map(|row| &row.item))),
        Arc::new(BinaryArray::from_iter_values(rows().map(|row| &row.image))),
        Arc::new(digest_column.finish()),
        Arc::new(UInt32Array::from_iter_values(rows().map(|row| row.width))),
        Arc::new(UInt32Array::from_iter_values(rows().map(|row| row.height))),
        Arc::new(columns::labels_column(Int8Array::from_iter_values(labels), attributes)),
        Arc::new(UInt8Array::from_iter_values(rows().map(|row| row.split))),
    ];
    RecordBatch::try_new(schema, columns).expect("every column has a value per row")
}

/// A part in memory.
#[derive(Debug)]
pub struct Part {
    attributes: usize,
    groups: Vec<Group>,
    /// First row of each group, and the number of rows at the end.
    starts: Vec<usize>,
}

#[derive(Debug)]
struct Group {
    items: StringArray,
    images: BinaryArray,
    digests: FixedSizeBinaryArray,
    widths: UInt32Array,
    heights: UInt32Array,
    labels: Int8Array,
    splits: UInt8Array,
}

impl Part {
    /// Reads what [`encode_part`] wrote; anything else is `Corrupt`, and the error says what is wrong.
    pub fn decode(bytes: Bytes, attributes: usize) -> Result<Part> {
        let corrupt = |detail: String| Error::corrupt(format!("dataset part: {detail}"));
        guarded(|| Self::decode_checked(bytes, attributes)).and_then(|part| part).map_err(corrupt)
    }

    fn decode_checked(bytes: Bytes, attributes: usize) -> Checked<Part> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(Sound(bytes)).map_err(|e| e.to_string())?;
        columns::check_schema(builder.schema(), &dataset_part_schema(attributes))?;
        let reader = builder.with_batch_size(GROUP_ROWS).build().map_err(|e| e.to_string())?;
        let mut part = Part { attributes, groups: Vec::new(), starts: vec![0] };
        for batch in reader {
            let batch = batch.map_err(|e| e.to_string())?;
            part.starts.push(part.rows() + batch.num_rows());
            part.groups.push(Group::of(&batch, attributes)?);
        }
        part.check_items()?;
        Ok(part)
    }

    fn check_items(&self) -> Checked<()> {
        let mut seen = HashSet::with_capacity(self.rows());
        for i in 0..self.rows() {
            let item = self.item(i);
            if item.is_empty() {
                return Err(format!("row {i} has an empty item id"));
            }
            if !seen.insert(item) {
                return Err(format!("item `{item}` is there twice"));
            }
        }
        Ok(())
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn at(&self, i: usize) -> (&Group, usize) {
        let group = self.starts.partition_point(|start| *start <= i) - 1;
        (&self.groups[group], i - self.starts[group])
    }

    /// Item id of row `i`.
    pub fn item(&self, i: usize) -> &str {
        let (group, row) = self.at(i);
        group.items.value(row)
    }

    /// The image file's own bytes of row `i`.
    pub fn image(&self, i: usize) -> &[u8] {
        let (group, row) = self.at(i);
        group.images.value(row)
    }

    /// SHA-256 of [`Part::image`].
    pub fn image_digest(&self, i: usize) -> [u8; 32] {
        let (group, row) = self.at(i);
        group.digests.value(row).try_into().expect("the schema says 32 bytes")
    }

    /// Width and height in pixels of row `i`.
    pub fn size(&self, i: usize) -> (u32, u32) {
        let (group, row) = self.at(i);
        (group.widths.value(row), group.heights.value(row))
    }

    /// The A labels of row `i`: −1 has not, 0 not known, +1 has.
    pub fn attributes(&self, i: usize) -> &[i8] {
        let (group, row) = self.at(i);
        &group.labels.values()[row * self.attributes..(row + 1) * self.attributes]
    }

    /// Split of row `i`: 0 train, 1 validation, 2 test.
    pub fn split(&self, i: usize) -> u8 {
        let (group, row) = self.at(i);
        group.splits.value(row)
    }
}

impl Group {
    fn of(batch: &RecordBatch, attributes: usize) -> Checked<Self> {
        let group = Self {
            items: typed::<StringArray>(batch, "item_id")?.clone(),
            images: typed::<BinaryArray>(batch, "image")?.clone(),
            digests: typed::<FixedSizeBinaryArray>(batch, "image_digest")?.clone(),
            widths: typed::<UInt32Array>(batch, "width")?.clone(),
            heights: typed::<UInt32Array>(batch, "height")?.clone(),
            labels: labels_of(batch, "attributes", attributes)?.clone(),
            splits: typed::<UInt8Array>(batch, "split")?.clone(),
        };
        for split in group.splits.values() {
            columns::checked_split(*split)?;
        }
        Ok(group)
    }
}

#[cfg(test)]
mod tests;
