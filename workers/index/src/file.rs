//! The file form of a shard: Parquet after `contract::tables::shard_schema`.
//!
//! Written plain and uncompressed: embeddings hardly compress, and so the values can be copied from the page
//! into their place. Reading trusts nothing: schema, encoding, lengths and every rule of [`ShardRows`] are
//! checked, memory is bounded by the size of the file, and an error names the column or item.

use std::sync::Arc;

use arrow_array::builder::FixedSizeBinaryBuilder;
use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, Int8Array, RecordBatch, StringArray, UInt8Array, UInt32Array,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use crc32c::crc32c_append;
use likeness_contract::tables::shard_schema;
use likeness_parquet::Sound;
use parquet::arrow::{ArrowWriter, parquet_to_arrow_schema};
use parquet::basic::{Compression, Encoding, Type};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::pages::{Column, VALUE_BYTES, Values, read_group};
use crate::rows::{ShardRows, check_shape};

/// Columns, in their order.
const NAMES: [&str; COLUMNS] =
    ["item_id", "embedding", "attributes", "split", "source_part", "source_row", "image_digest"];
const COLUMNS: usize = 7;
/// The footer's key of the checksums: row groups divided by commas, columns by spaces, in hexadecimal digits.
const SUMS_KEY: &str = "likeness.crc32c";
/// Bytes of an image's digest.
const DIGEST_BYTES: usize = 32;
/// Rows of a row group.
const GROUP_ROWS: usize = 64 << 10;
/// Bytes of a page: large enough that its header costs nothing, small enough to stay in the second cache while its values
/// are checked and copied.
const PAGE_BYTES: usize = 512 << 10;

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
    let sums = sums_text(&sums_of(rows, dim, attributes));
    writer.append_key_value_metadata(KeyValue { key: SUMS_KEY.into(), value: Some(sums) });
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
    let Columns { ids, labels, split, source_part, source_row, image_digest } = file.columns()?;
    let mut embeddings = Vec::with_capacity(file.rows() * dim);
    for group in 0..file.groups() {
        file.embeddings(group, |values| {
            embeddings.extend(values.bytes.as_chunks::<VALUE_BYTES>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            Ok(())
        })?;
    }
    let item_ids = ids.iter().map(str::to_string).collect();
    let rows = ShardRows { item_ids, embeddings, labels, split, source_part, source_row, image_digest };
    rows.check(dim, attributes).map_err(Error::in_file)?;
    Ok(rows)
}

/// The digests of the images of a file's rows, in order; nothing else of it is read.
///
/// Fails with `Corrupt`, saying what is wrong.
pub fn decode_image_digests(bytes: Bytes, dim: usize, attributes: usize) -> Result<Vec<[u8; DIGEST_BYTES]>> {
    let file = ShardFile::open(bytes, dim, attributes)?;
    let mut digests = Vec::with_capacity(file.rows());
    for group in 0..file.groups() {
        file.image_digests(group, &mut digests)?;
    }
    Ok(digests)
}

/// All columns but the embeddings.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    pub ids: Ids,
    pub labels: Vec<i8>,
    pub split: Vec<u8>,
    pub source_part: Vec<u32>,
    pub source_row: Vec<u32>,
    pub image_digest: Vec<[u8; 32]>,
}

/// An opened file: footer and schema are checked, values are not yet read.
pub(crate) struct ShardFile<R: ChunkReader + Clone + 'static> {
    file: SerializedFileReader<Sound<R>>,
    sums: Option<Vec<[u32; COLUMNS]>>,
    rows: usize,
    dim: usize,
    attributes: usize,
}

impl<R: ChunkReader + Clone + 'static> ShardFile<R> {
    /// Checks footer, schema and sizes.
    pub fn open(bytes: R, dim: usize, attributes: usize) -> Result<Self> {
        check_shape(dim, attributes, 0)?;
        let no_parquet = |source| Error::corrupt("no readable Parquet file (cut off or damaged)").caused_by(source);
        let file = SerializedFileReader::new(Sound(bytes.clone())).map_err(no_parquet)?;
        let about = file.metadata().file_metadata();
        let schema = parquet_to_arrow_schema(about.schema_descr(), about.key_value_metadata()).map_err(no_parquet)?;
        check_schema(&schema, &shard_schema(dim, attributes))?;
        let rows = claimed_rows(&file, bytes.len() as usize, dim, attributes)?;
        check_plain(&file)?;
        let sums = promised_sums(about.key_value_metadata(), file.num_row_groups())?;
        Ok(Self { file, sums, rows, dim, attributes })
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

    /// Hands a group's embeddings to `put`, in order.
    pub fn embeddings(&self, group: usize, put: impl FnMut(Values) -> Result<()>) -> Result<()> {
        self.read(1, Type::FLOAT, group, put)
    }

    /// All columns but the embeddings.
    pub fn columns(&self) -> Result<Columns> {
        let mut columns = Columns::default();
        let Columns { ids, labels, split, source_part, source_row, image_digest } = &mut columns;
        ids.reserve(self.rows);
        labels.reserve_exact(self.rows * self.attributes);
        split.reserve_exact(self.rows);
        source_part.reserve_exact(self.rows);
        source_row.reserve_exact(self.rows);
        image_digest.reserve_exact(self.rows);
        for group in 0..self.groups() {
            self.read(0, Type::BYTE_ARRAY, group, |values| push_ids(ids, values))?;
            self.read(2, Type::INT32, group, |values| push_small(labels, "attributes", "label", values.bytes))?;
            self.read(3, Type::INT32, group, |values| push_small(split, "split", "code", values.bytes))?;
            self.read(4, Type::INT32, group, |values| push_numbers(source_part, values))?;
            self.read(5, Type::INT32, group, |values| push_numbers(source_row, values))?;
            self.image_digests(group, image_digest)?;
        }
        columns.ids.shrink();
        Ok(columns)
    }

    fn image_digests(&self, group: usize, all: &mut Vec<[u8; DIGEST_BYTES]>) -> Result<()> {
        self.read(6, Type::FIXED_LEN_BYTE_ARRAY, group, |values| {
            all.extend_from_slice(values.bytes.as_chunks::<DIGEST_BYTES>().0);
            Ok(())
        })
    }

    /// Reads a column of a group and compares its checksum, if the file has them.
    fn read(&self, leaf: usize, physical: Type, group: usize, put: impl FnMut(Values) -> Result<()>) -> Result<()> {
        let name = NAMES[leaf];
        let width = [1, self.dim, self.attributes, 1, 1, 1, 1][leaf];
        let value_bytes = match physical {
            Type::BYTE_ARRAY => None,
            Type::FIXED_LEN_BYTE_ARRAY => Some(DIGEST_BYTES),
            _ => Some(VALUE_BYTES),
        };
        let column = Column { name, leaf, width, physical, list: leaf == 1 || leaf == 2, value_bytes };
        let found = read_group(&self.file, column, group, put)?;
        match self.sums.as_ref().map(|sums| sums[group][leaf]) {
            Some(promised) if promised != found => Err(Error::corrupt(format!(
                "column `{name}` of row group {group} has the checksum {found:08x}, written was {promised:08x}"
            ))),
            _ => Ok(()),
        }
    }
}

/// The checksums that the footer promises; files from before there were any have none.
fn promised_sums(metadata: Option<&Vec<KeyValue>>, groups: usize) -> Result<Option<Vec<[u32; COLUMNS]>>> {
    let Some(entry) = metadata.and_then(|entries| entries.iter().find(|entry| entry.key == SUMS_KEY)) else {
        return Ok(None);
    };
    let column = |text: &str| if text.len() == 8 { u32::from_str_radix(text, 16).ok() } else { None };
    let group = |text: &str| -> Option<[u32; COLUMNS]> {
        text.split(' ').map(column).collect::<Option<Vec<u32>>>()?.try_into().ok()
    };
    let text = entry.value.as_deref().unwrap_or_default();
    let sums: Option<Vec<_>> = if text.is_empty() { Some(Vec::new()) } else { text.split(',').map(group).collect() };
    match sums.filter(|sums| sums.len() == groups) {
        Some(sums) => Ok(Some(sums)),
        None => Err(Error::corrupt(format!("`{SUMS_KEY}` are not the checksums of {groups} row groups"))),
    }
}

fn sums_text(sums: &[[u32; COLUMNS]]) -> String {
    let group = |sums: &[u32; COLUMNS]| sums.map(|sum| format!("{sum:08x}")).join(" ");
    sums.iter().map(group).collect::<Vec<_>>().join(",")
}

/// CRC-32C of the plainly encoded values of every column, for every row group.
fn sums_of(rows: &ShardRows, dim: usize, attributes: usize) -> Vec<[u32; COLUMNS]> {
    let all = |values: &mut dyn Iterator<Item = [u8; 4]>| values.fold(0, |sum, bytes| crc32c_append(sum, &bytes));
    let group = |group: usize| {
        let (from, to) = (group * GROUP_ROWS, rows.len().min((group + 1) * GROUP_ROWS));
        let ids = rows.item_ids[from..to]
            .iter()
            .fold(0, |sum, id| crc32c_append(crc32c_append(sum, &(id.len() as u32).to_le_bytes()), id.as_bytes()));
        let embeddings = rows.embeddings[from * dim..to * dim].chunks(dim).fold(0, |sum, row| {
            let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            crc32c_append(sum, &bytes)
        });
        let labels = &rows.labels[from * attributes..to * attributes];
        [
            ids,
            embeddings,
            all(&mut labels.iter().map(|v| i32::from(*v).to_le_bytes())),
            all(&mut rows.split[from..to].iter().map(|v| u32::from(*v).to_le_bytes())),
            all(&mut rows.source_part[from..to].iter().map(|v| v.to_le_bytes())),
            all(&mut rows.source_row[from..to].iter().map(|v| v.to_le_bytes())),
            rows.image_digest[from..to].iter().fold(0, |sum, digest| crc32c_append(sum, digest)),
        ]
    };
    (0..rows.len().div_ceil(GROUP_ROWS)).into_par_iter().map(group).collect()
}

/// Ids, each after its length.
fn push_ids(ids: &mut Ids, values: Values) -> Result<()> {
    let damaged = || Error::corrupt("column `item_id` is damaged");
    let mut rest = values.bytes;
    for _ in 0..values.count {
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
        let (id, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
        ids.push(std::str::from_utf8(id).map_err(|source| damaged().caused_by(source))?).map_err(Error::in_file)?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(damaged()) }
}

/// Numbers of 32 bits that are small ones.
fn push_small<T: TryFrom<i32>>(all: &mut Vec<T>, column: &str, what: &str, values: &[u8]) -> Result<()> {
    for bytes in values.as_chunks::<VALUE_BYTES>().0 {
        let value = i32::from_le_bytes(*bytes);
        let small =
            T::try_from(value).map_err(|_| Error::corrupt(format!("column `{column}` has the {what} {value}")))?;
        all.push(small);
    }
    Ok(())
}

fn push_numbers(all: &mut Vec<u32>, values: Values) -> Result<()> {
    all.extend(values.bytes.as_chunks::<VALUE_BYTES>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)));
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
