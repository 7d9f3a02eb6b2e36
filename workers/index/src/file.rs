//! The file form of a shard: Parquet after `contract::tables::shard_schema`.
//!
//! Written plain and uncompressed: embeddings hardly compress, and so the values can be copied from the page
//! into their place. Reading trusts nothing: schema, encoding, lengths and every rule of [`ShardRows`] are
//! checked, memory is bounded by the size of the file, and an error names the column or item.

use std::sync::Arc;

use arrow_array::builder::FixedSizeBinaryBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{UInt8Type, UInt32Type};
use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float32Array, Int8Array, RecordBatch, StringArray, UInt8Array, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use likeness_contract::tables::shard_schema;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, Type};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};
use crate::pages::{ListColumn, VALUE_BYTES, read_group};
use crate::rows::{ShardRows, check_shape};

/// Rows of a row group.
const GROUP_ROWS: usize = 128 << 10;
/// Bytes of a page: large enough that its header costs nothing.
const PAGE_BYTES: usize = 1 << 20;
/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 8 << 10;

/// Rows → bytes of a file. Equal rows give equal bytes.
///
/// Fails with `Invalid` for rows that break a rule of [`ShardRows`].
pub fn encode_shard(rows: &ShardRows, dim: usize, attributes: usize) -> Result<Vec<u8>> {
    rows.check(dim, attributes)?;
    let batch = to_batch(rows, dim, attributes).map_err(|e| Error::invalid("rows make no table").caused_by(e))?;
    let written = |source| Error::invalid("rows can't be written").caused_by(source);
    let mut bytes = Vec::with_capacity(rows.embeddings.len() * VALUE_BYTES + rows.len() * (attributes + 16) * 4);
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties())).map_err(written)?;
    writer.write(&batch).map_err(written)?;
    writer.close().map_err(written)?;
    Ok(bytes)
}

fn properties() -> WriterProperties {
    let vectors = |column: &str| ColumnPath::from(vec![column.to_string(), "list".into(), "item".into()]);
    WriterProperties::builder()
        .set_created_by("likeness-index".into())
        .set_compression(Compression::UNCOMPRESSED)
        .set_encoding(Encoding::PLAIN)
        .set_dictionary_enabled(false)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_column_statistics_enabled(vectors("embedding"), EnabledStatistics::None)
        .set_column_statistics_enabled(vectors("attributes"), EnabledStatistics::None)
        .build()
}

fn to_batch(
    rows: &ShardRows,
    dim: usize,
    attributes: usize,
) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
    let schema = Arc::new(shard_schema(dim, attributes));
    let list = |column: usize, values: ArrayRef| match schema.field(column).data_type() {
        DataType::FixedSizeList(item, width) => FixedSizeListArray::try_new(item.clone(), *width, values, None),
        other => unreachable!("the contract's schema has a list there, not {other}"),
    };
    let embeddings = list(1, Arc::new(Float32Array::from(rows.embeddings.clone())))?;
    let labels = list(2, Arc::new(Int8Array::from(rows.labels.clone())))?;
    let mut digests = FixedSizeBinaryBuilder::with_capacity(rows.len(), 32);
    for digest in &rows.image_digest {
        digests.append_value(digest)?;
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(&rows.item_ids)),
        Arc::new(embeddings),
        Arc::new(labels),
        Arc::new(UInt8Array::from(rows.split.clone())),
        Arc::new(UInt32Array::from(rows.source_part.clone())),
        Arc::new(UInt32Array::from(rows.source_row.clone())),
        Arc::new(digests.finish()),
    ];
    RecordBatch::try_new(schema.clone(), columns)
}

/// Bytes of a file → rows, every rule of [`ShardRows`] checked.
///
/// Fails with `Corrupt`, saying what is wrong.
pub fn decode_shard(bytes: Bytes, dim: usize, attributes: usize) -> Result<ShardRows> {
    let file = ShardFile::open(bytes, dim, attributes)?;
    let mut rows = file.columns()?;
    rows.embeddings.reserve_exact(file.rows() * dim);
    for group in 0..file.groups() {
        file.embeddings(group, |_, values| {
            rows.embeddings.extend(floats(values));
            Ok(())
        })?;
    }
    rows.check(dim, attributes).map_err(Error::in_file)?;
    Ok(rows)
}

/// The f32 values of little-endian bytes.
fn floats(values: &[u8]) -> impl ExactSizeIterator<Item = f32> {
    values.as_chunks::<VALUE_BYTES>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// An opened file: footer and schema are checked, values are not yet read.
pub(crate) struct ShardFile<R: ChunkReader + Clone + 'static> {
    bytes: R,
    file: SerializedFileReader<R>,
    rows: usize,
    dim: usize,
    attributes: usize,
}

impl<R: ChunkReader + Clone + 'static> ShardFile<R> {
    /// Checks footer, schema and sizes.
    pub fn open(bytes: R, dim: usize, attributes: usize) -> Result<Self> {
        check_shape(dim, attributes, 0)?;
        let no_parquet = |source| Error::corrupt("no readable Parquet file (cut off or damaged)").caused_by(source);
        let file = SerializedFileReader::new(bytes.clone()).map_err(no_parquet)?;
        let rows = claimed_rows(&file, bytes.len() as usize, dim, attributes)?;
        check_plain(&file)?;
        Ok(Self { bytes, file, rows, dim, attributes })
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of row groups.
    pub fn groups(&self) -> usize {
        self.file.num_row_groups()
    }

    /// Rows of a row group; together they are `rows`.
    pub fn group_rows(&self, group: usize) -> usize {
        usize::try_from(self.file.metadata().row_group(group).num_rows()).expect("checked when the file was opened")
    }

    /// Hands a group's embeddings to `put(position of the first value, little-endian values)`, in order.
    pub fn embeddings(&self, group: usize, put: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let column = ListColumn { name: "embedding", leaf: 1, width: self.dim, physical: Type::FLOAT };
        read_group(&self.file, column, group, put)
    }

    /// All columns but the embeddings.
    pub fn columns(&self) -> Result<ShardRows> {
        let mut rows = self.flat_columns()?;
        if rows.len() != self.rows {
            return Err(Error::corrupt(format!("the footer says {} rows, the columns have {}", self.rows, rows.len())));
        }
        let column = ListColumn { name: "attributes", leaf: 2, width: self.attributes, physical: Type::INT32 };
        rows.labels.reserve_exact(self.rows * self.attributes);
        for group in 0..self.groups() {
            read_group(&self.file, column, group, |_, values| push_labels(&mut rows.labels, values))?;
        }
        Ok(rows)
    }

    /// The columns of one value per row; these are few bytes, so that the general reader does.
    fn flat_columns(&self) -> Result<ShardRows> {
        let damaged = |source| Error::corrupt("damaged columns").caused_by(source);
        let builder = ParquetRecordBatchReaderBuilder::try_new(self.bytes.clone()).map_err(damaged)?;
        check_schema(builder.schema(), &shard_schema(self.dim, self.attributes))?;
        let flat = ProjectionMask::roots(builder.parquet_schema(), [0, 3, 4, 5, 6]);
        let reader = builder.with_projection(flat).with_batch_size(BATCH_ROWS).build().map_err(damaged)?;
        let mut rows = ShardRows::default();
        for batch in reader {
            append(&mut rows, &batch.map_err(|source| Error::corrupt("damaged columns").caused_by(source))?)?;
        }
        Ok(rows)
    }
}

fn push_labels(labels: &mut Vec<i8>, values: &[u8]) -> Result<()> {
    for bytes in values.as_chunks::<VALUE_BYTES>().0 {
        let value = i32::from_le_bytes(*bytes);
        labels.push(
            i8::try_from(value).map_err(|_| Error::corrupt(format!("column `attributes` has the label {value}")))?,
        );
    }
    Ok(())
}

/// The footer's number of rows, if a file of this size can hold them.
fn claimed_rows<R: ChunkReader + 'static>(
    file: &SerializedFileReader<R>,
    bytes: usize,
    dim: usize,
    attributes: usize,
) -> Result<usize> {
    let claimed = file.metadata().file_metadata().num_rows();
    let mut groups = file.metadata().row_groups().iter().map(|group| group.num_rows());
    let total = groups.try_fold(0i64, |sum, rows| sum.checked_add(rows).filter(|_| rows >= 0));
    let least_row_bytes = (dim + attributes) * VALUE_BYTES;
    let possible = bytes / least_row_bytes;
    match usize::try_from(claimed) {
        Ok(rows) if total == Some(claimed) && rows <= possible && u32::try_from(rows).is_ok() => Ok(rows),
        _ => Err(Error::corrupt(format!(
            "the footer says {claimed} rows, {bytes} bytes hold at most {possible} of dimension {dim}"
        ))),
    }
}

/// Every column chunk is uncompressed, so that what is read can't be larger than the file, and lies at no negative
/// place, which the library would panic at.
fn check_plain<R: ChunkReader + 'static>(file: &SerializedFileReader<R>) -> Result<()> {
    let chunks = file.metadata().row_groups().iter().flat_map(|group| group.columns());
    for chunk in chunks {
        let places = [chunk.dictionary_page_offset().unwrap_or(0), chunk.data_page_offset(), chunk.compressed_size()];
        if places.iter().any(|place| *place < 0) {
            return Err(Error::corrupt(format!("column `{}` lies at a negative place", chunk.column_path().string())));
        }
        if chunk.compression() != Compression::UNCOMPRESSED {
            let (column, codec) = (chunk.column_path().string(), chunk.compression());
            return Err(Error::corrupt(format!("column `{column}` is compressed ({codec}), expected uncompressed")));
        }
    }
    Ok(())
}

/// Names, types and nullability, in order; names the first difference.
fn check_schema(found: &Schema, expected: &Schema) -> Result<()> {
    for (i, wanted) in expected.fields().iter().enumerate() {
        let Some(field) = found.fields().get(i) else {
            return Err(Error::corrupt(format!("column `{}` is missing", wanted.name())));
        };
        if field.name() != wanted.name() {
            return Err(Error::corrupt(format!("column {i} is `{}`, expected `{}`", field.name(), wanted.name())));
        }
        check_type(field, wanted)?;
    }
    match found.fields().get(expected.fields().len()) {
        Some(extra) => Err(Error::corrupt(format!("unexpected column `{}`", extra.name()))),
        None => Ok(()),
    }
}

fn check_type(found: &Field, wanted: &Field) -> Result<()> {
    let difference = match (found.data_type(), wanted.data_type()) {
        (DataType::FixedSizeList(a, found), DataType::FixedSizeList(b, wanted)) if a.data_type() == b.data_type() => {
            (found != wanted).then(|| format!("has {found} values per row, expected {wanted}"))
        }
        (a, b) => (a != b).then(|| format!("is {a}, expected {b}")),
    };
    let difference = difference.or_else(|| found.is_nullable().then(|| "may be null, expected required".into()));
    match difference {
        Some(difference) => Err(Error::corrupt(format!("column `{}` {difference}", wanted.name()))),
        None => Ok(()),
    }
}

/// Appends a batch of the columns `item_id`, `split`, `source_part`, `source_row`, `image_digest`.
fn append(rows: &mut ShardRows, batch: &RecordBatch) -> Result<()> {
    let wrong = || Error::corrupt("columns are not of the type that their schema says");
    let columns = batch.columns();
    let [items, split, part, row, digest] = columns else { return Err(wrong()) };
    let items = items.as_string_opt::<i32>().ok_or_else(wrong)?;
    let digest = digest.as_fixed_size_binary_opt().ok_or_else(wrong)?;
    rows.item_ids.extend((0..items.len()).map(|i| items.value(i).to_string()));
    rows.split.extend(split.as_primitive_opt::<UInt8Type>().ok_or_else(wrong)?.values());
    rows.source_part.extend(part.as_primitive_opt::<UInt32Type>().ok_or_else(wrong)?.values());
    rows.source_row.extend(row.as_primitive_opt::<UInt32Type>().ok_or_else(wrong)?.values());
    for i in 0..digest.len() {
        rows.image_digest.push(digest.value(i).try_into().map_err(|_| wrong())?);
    }
    Ok(())
}
