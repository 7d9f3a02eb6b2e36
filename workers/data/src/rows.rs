//! What a scan found, and its form as bytes: the list of rows that all parts of an ingest share.
//!
//! Parquet with row groups of [`GROUP_ROWS`]: a part reads only the groups that hold its rows.

use std::sync::Arc;

use arrow_array::{Array, Int8Array, RecordBatch, StringArray, UInt8Array, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use likeness_contract::datasets::LabelCounts;
use likeness_contract::jobs::ZeroLabel;
use likeness_contract::settings::Vocabulary;
use likeness_parquet::Sound;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::columns::{self, Checked, labels_of, typed};
use crate::error::{Error, Result};
use crate::guard::guarded;
use crate::source::Places;

/// Key of the notes among the file's metadata.
const NOTES: &str = "likeness";
/// Rows of one row group.
const GROUP_ROWS: usize = 4096;

/// All rows of a source, without their images.
#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    /// The attributes.
    pub vocabulary: Vocabulary,
    /// The rows in the order of the source; item ids are unique.
    pub rows: Vec<ScanRow>,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// Where their images are.
    pub places: Places,
    /// What `0` was taken for, by attribute; none where there is none.
    pub zeros: Vec<Option<ZeroLabel>>,
}

impl Scan {
    /// How labels were understood, by attribute, over the rows that can be used.
    pub fn labels(&self) -> Vec<LabelCounts> {
        let mut counts: Vec<LabelCounts> = self.vocabulary.names.iter().zip(&self.zeros).map(no_rows).collect();
        self.rows.iter().filter(|row| row.problem.is_none()).for_each(|row| count_labels(&mut counts, &row.attributes));
        counts
    }
}

fn no_rows((attribute, zero): (&String, &Option<ZeroLabel>)) -> LabelCounts {
    LabelCounts { attribute: attribute.clone(), has: 0, has_not: 0, unknown: 0, zero: *zero }
}

/// Counts the labels of one more row.
pub fn count_labels(counts: &mut [LabelCounts], labels: &[i8]) {
    for (counts, label) in counts.iter_mut().zip(labels) {
        match label {
            1 => counts.has += 1,
            -1 => counts.has_not += 1,
            _ => counts.unknown += 1,
        }
    }
}

/// One row of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRow {
    /// Item id.
    pub item: String,
    /// Where its image is.
    pub place: Place,
    /// A labels: −1 has not, 0 not known, +1 has.
    pub attributes: Vec<i8>,
    /// 0 train, 1 validation, 2 test.
    pub split: u8,
    /// Why the row can't be used, when the scan already knows.
    pub problem: Option<String>,
}

/// Where the image of a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file of its own.
    File {
        /// Relative to the source's folder.
        path: String,
    },
    /// In a row of a Parquet file.
    Parquet {
        /// Position in the source's list of files.
        file: u32,
        /// Row of the file.
        row: u64,
    },
}

fn schema(attributes: usize) -> Schema {
    let mut fields = vec![
        Field::new("item_id", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, true),
        Field::new("file", DataType::UInt32, true),
        Field::new("row", DataType::UInt64, true),
        Field::new("split", DataType::UInt8, false),
        Field::new("problem", DataType::Utf8, true),
    ];
    fields.push(columns::labels_field("attributes", attributes));
    Schema::new(fields)
}

/// The rows as bytes, with what their readers must know besides (`notes`).
pub fn encode_rows(scan: &Scan, notes: String) -> Vec<u8> {
    let attributes = scan.vocabulary.len();
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_key_value_metadata(Some(vec![KeyValue::new(NOTES.to_string(), notes)]))
        .build();
    let schema = Arc::new(schema(attributes));
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties)).expect("a valid schema");
    for rows in scan.rows.chunks(GROUP_ROWS) {
        writer.write(&batch(rows, attributes, schema.clone())).expect("writing to memory");
    }
    writer.into_inner().expect("writing to memory")
}

fn batch(rows: &[ScanRow], attributes: usize, schema: Arc<Schema>) -> RecordBatch {
    let paths = rows.iter().map(|row| match &row.place {
        Place::File { path } => Some(path.as_str()),
        Place::Parquet { .. } => None,
    });
    let places = || {
        rows.iter().map(|row| match row.place {
            Place::File { .. } => None,
            Place::Parquet { file, row } => Some((file, row)),
        })
    };
    let labels = rows.iter().flat_map(|row| row.attributes.iter().copied());
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.item))),
        Arc::new(StringArray::from_iter(paths)),
        Arc::new(UInt32Array::from_iter(places().map(|place| place.map(|(file, _)| file)))),
        Arc::new(UInt64Array::from_iter(places().map(|place| place.map(|(_, row)| row)))),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.split))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.problem.as_deref()))),
        Arc::new(columns::labels_column(Int8Array::from_iter_values(labels), attributes)),
    ];
    RecordBatch::try_new(schema, columns).expect("every row has a label per attribute")
}

/// What [`encode_rows`] got besides the rows; none in a list from before there was such a thing.
pub fn decode_notes(bytes: Bytes) -> Result<Option<String>> {
    let corrupt = |detail: String| Error::corrupt(format!("list of rows: {detail}"));
    let read = || ParquetRecordBatchReaderBuilder::try_new(Sound(bytes)).map_err(|e| e.to_string());
    let builder = guarded(read).and_then(|builder| builder).map_err(corrupt)?;
    let all = builder.metadata().file_metadata().key_value_metadata();
    let notes = all.into_iter().flatten().find(|pair| pair.key == NOTES);
    Ok(notes.and_then(|pair| pair.value.clone()))
}

/// The rows `from..from + rows`; fewer, or other than [`encode_rows`] wrote, is an error (`Corrupt`).
pub fn decode_rows(bytes: Bytes, vocabulary_len: usize, from: u64, rows: u32) -> Result<Vec<ScanRow>> {
    let corrupt = |detail: String| Error::corrupt(format!("list of rows: {detail}"));
    guarded(|| read_range(bytes, vocabulary_len, from, rows)).and_then(|rows| rows).map_err(corrupt)
}

fn read_range(bytes: Bytes, vocabulary_len: usize, from: u64, rows: u32) -> Checked<Vec<ScanRow>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Sound(bytes)).map_err(|e| e.to_string())?;
    columns::check_schema(builder.schema(), &schema(vocabulary_len))?;
    let selection = RowSelection::from(vec![
        RowSelector::skip(usize::try_from(from).map_err(|e| e.to_string())?),
        RowSelector::select(rows as usize),
    ]);
    let total = builder.metadata().file_metadata().num_rows();
    if from.saturating_add(u64::from(rows)) > u64::try_from(total).unwrap_or(0) {
        return Err(format!("rows {from}..{} of {total} were asked for", from + u64::from(rows)));
    }
    let reader =
        builder.with_row_selection(selection).with_batch_size(GROUP_ROWS).build().map_err(|e| e.to_string())?;
    let mut read = Vec::with_capacity(rows as usize);
    for batch in reader {
        append(&mut read, &batch.map_err(|e| e.to_string())?, vocabulary_len)?;
    }
    Ok(read)
}

fn append(rows: &mut Vec<ScanRow>, batch: &RecordBatch, attributes: usize) -> Checked<()> {
    let (items, paths) = (typed::<StringArray>(batch, "item_id")?, typed::<StringArray>(batch, "path")?);
    let (files, places) = (typed::<UInt32Array>(batch, "file")?, typed::<UInt64Array>(batch, "row")?);
    let (splits, problems) = (typed::<UInt8Array>(batch, "split")?, typed::<StringArray>(batch, "problem")?);
    let labels = labels_of(batch, "attributes", attributes)?;
    for i in 0..batch.num_rows() {
        let place = if paths.is_valid(i) {
            Place::File { path: paths.value(i).to_string() }
        } else {
            Place::Parquet { file: files.value(i), row: places.value(i) }
        };
        rows.push(ScanRow {
            item: items.value(i).to_string(),
            place,
            attributes: labels.values()[i * attributes..(i + 1) * attributes].to_vec(),
            split: columns::checked_split(splits.value(i))?,
            problem: problems.is_valid(i).then(|| problems.value(i).to_string()),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
