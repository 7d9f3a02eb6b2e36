//! One image of a dataset part, by its row: what result pages and reports show. And the items of a part.
//!
//! Reads the Parquet footer and the image and digest columns of the one row group that holds the row.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use likeness_contract::ids::Digest;
use likeness_contract::search::ImageRef;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::{AsyncFileReader, MetadataSuffixFetch};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// Bytes of a file's end that are read first; footers of our parts fit.
const FOOTER_HINT: usize = 64 << 10;

/// A row of a dataset part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemImage {
    /// The item.
    pub item: String,
    /// Its image file.
    pub bytes: Bytes,
}

/// The bytes of an image file, checked against the digest that is stored beside it.
pub async fn image_bytes(store: &Store, image: &ImageRef) -> Result<Bytes> {
    Ok(item_image(store, image).await?.bytes)
}

/// The same with the item that it is of.
pub async fn item_image(store: &Store, image: &ImageRef) -> Result<ItemImage> {
    let ImageRef { part, row } = image;
    if part.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "its embedding was made elsewhere: there is no image of it"));
    }
    let path =
        Path::parse(part).map_err(|e| Error::new(ErrorKind::Invalid, format!("`{part}` is no key")).because(e))?;
    let batch = read_row(store, path, *row as usize).await.map_err(|e| of_parquet(part, e))?;
    let batch = batch.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("`{part}` has no row {row}")))?;
    checked(&batch).ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("row {row} of `{part}` is damaged")))
}

/// Item ids of a part's rows, in order.
pub async fn part_items(store: &Store, part: &str) -> Result<Vec<String>> {
    let path =
        Path::parse(part).map_err(|e| Error::new(ErrorKind::Invalid, format!("`{part}` is no key")).because(e))?;
    read_items(store, path).await.map_err(|e| of_parquet(part, e))
}

async fn read_items(store: &Store, path: Path) -> std::result::Result<Vec<String>, ParquetError> {
    let reader = Reader { objects: store.objects().clone(), path };
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await?;
    let columns = ProjectionMask::columns(builder.parquet_schema(), ["item_id"]);
    let mut rows = builder.with_projection(columns).build()?;
    let mut items = Vec::new();
    while let Some(batch) = rows.next().await.transpose()? {
        let column = batch.column_by_name("item_id").and_then(|column| column.as_string_opt::<i32>());
        let column = column.ok_or_else(|| ParquetError::General("no item ids".into()))?;
        items.extend(column.iter().flatten().map(String::from));
    }
    Ok(items)
}

/// The image, if it is there and matches its digest.
fn checked(batch: &RecordBatch) -> Option<ItemImage> {
    let item = batch.column_by_name("item_id")?.as_string_opt::<i32>()?;
    let image = batch.column_by_name("image")?.as_binary_opt::<i32>()?;
    let digest = batch.column_by_name("image_digest")?.as_fixed_size_binary_opt()?;
    if item.len() != 1 || image.len() != 1 || image.is_null(0) || digest.len() != 1 {
        return None;
    }
    let bytes = Bytes::copy_from_slice(image.value(0));
    let item = item.value(0).to_string();
    (Digest::of(&bytes).as_bytes() == digest.value(0)).then_some(ItemImage { item, bytes })
}

async fn read_row(store: &Store, path: Path, row: usize) -> std::result::Result<Option<RecordBatch>, ParquetError> {
    let reader = Reader { objects: store.objects().clone(), path };
    let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
    let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await?;
    let Some((group, before)) = row_group_of(builder.metadata(), row) else { return Ok(None) };
    let columns = ProjectionMask::columns(builder.parquet_schema(), ["item_id", "image", "image_digest"]);
    let only = RowSelection::from(vec![RowSelector::skip(row - before), RowSelector::select(1)]);
    let mut rows = builder.with_row_groups(vec![group]).with_projection(columns).with_row_selection(only).build()?;
    rows.next().await.transpose()
}

/// The row group that holds a row, and the rows before it.
fn row_group_of(metadata: &ParquetMetaData, row: usize) -> Option<(usize, usize)> {
    let mut before = 0;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        let rows = usize::try_from(group.num_rows()).ok()?;
        if row < before + rows {
            return Some((number, before));
        }
        before += rows;
    }
    None
}

fn of_parquet(part: &str, error: ParquetError) -> Error {
    let missing = |error: &ParquetError| match error {
        ParquetError::External(source) => {
            matches!(source.downcast_ref(), Some(object_store::Error::NotFound { .. }))
        }
        _ => false,
    };
    if missing(&error) {
        return Error::new(ErrorKind::NotFound, format!("`{part}` is not in the store")).because(error);
    }
    let kind = match error {
        ParquetError::External(_) => ErrorKind::Transient,
        _ => ErrorKind::Corrupt,
    };
    Error::new(kind, format!("can't read `{part}`")).because(error)
}

/// Ranges of one object.
struct Reader {
    objects: Arc<dyn ObjectStore>,
    path: Path,
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { self.objects.get_range(&self.path, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        async move { self.objects.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let reader =
                ParquetMetaDataReader::new().with_arrow_reader_options(options).with_prefetch_hint(Some(FOOTER_HINT));
            reader.load_via_suffix_and_finish(self).await.map(Arc::new)
        }
        .boxed()
    }
}

impl MetadataSuffixFetch for &mut Reader {
    fn fetch_suffix(&mut self, suffix: usize) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        let options = GetOptions { range: Some(GetRange::Suffix(suffix as u64)), ..Default::default() };
        async move {
            let result = self.objects.get_opts(&self.path, options).await.map_err(external)?;
            result.bytes().await.map_err(external)
        }
        .boxed()
    }
}
