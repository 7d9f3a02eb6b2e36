//! Rows of any Parquet file as JSON values: tables that users bring, of which only the names of columns are known.
//!
//! Text, numbers and lists of them; everything else is refused by the column's name before a row is read. Batches are
//! read one after the other, so memory does not grow with the file.

use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_array::types::{UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::reader::ChunkReader;
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// Rows that are read together.
const TOGETHER: usize = 1024;

/// The rows of a Parquet file.
pub struct Rows {
    columns: Vec<String>,
    batches: ParquetRecordBatchReader,
    now: Option<(RecordBatch, usize)>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Rows {
    /// Opens a local file.
    pub fn open(file: &Path) -> Result<Self> {
        let name = file.display();
        let unreadable = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Invalid, format!("can't read `{name}`")).because(e)
        };
        let opened = File::open(file).map_err(|e| unreadable(e.into()))?;
        Self::from(&name.to_string(), opened)
    }

    /// Of a file that was read as a whole.
    pub fn of(name: &str, bytes: Bytes) -> Result<Self> {
        Self::from(name, bytes)
    }

    fn from(name: &str, file: impl ChunkReader + 'static) -> Result<Self> {
        let unreadable = |e: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Invalid, format!("can't read `{name}`")).because(e)
        };
        let table = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| unreadable(e.into()))?;
        for field in table.schema().fields() {
            if !is_known(field.data_type()) {
                let what = format!("column `{}` of `{name}` is {}", field.name(), field.data_type());
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{what}: text, numbers and lists of them are read"),
                ));
            }
        }
        let columns = table.schema().fields().iter().map(|field| field.name().clone()).collect();
        let batches = table.with_batch_size(TOGETHER).build().map_err(|e| unreadable(e.into()))?;
        Ok(Self { columns, batches, now: None })
    }

    /// Names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }
}

impl Iterator for Rows {
    type Item = Result<Map<String, Value>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((batch, row)) = self.now.as_mut().filter(|(batch, row)| *row < batch.num_rows()) {
                let values = self.columns.iter().zip(batch.columns());
                let values = values.map(|(name, column)| (name.clone(), value(column, *row))).collect();
                *row += 1;
                return Some(Ok(values));
            }
            match self.batches.next()? {
                Ok(batch) => self.now = Some((batch, 0)),
                Err(error) => {
                    let broken = Error::new(ErrorKind::Corrupt, "the table can't be read further");
                    return Some(Err(broken.because(error)));
                }
            }
        }
    }
}

fn is_known(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) => is_scalar(item.data_type()),
        other => is_scalar(other),
    }
}

fn is_scalar(data_type: &DataType) -> bool {
    use DataType as T;
    data_type.is_integer()
        || matches!(data_type, T::Utf8 | T::LargeUtf8 | T::Utf8View | T::Float32 | T::Float64 | T::Null)
}

/// The value of a row; null for what is not known.
fn value(column: &dyn Array, row: usize) -> Value {
    use DataType as T;
    if column.is_null(row) {
        return Value::Null;
    }
    let list = |items: &dyn Array| (0..items.len()).map(|at| value(items, at)).collect();
    match column.data_type() {
        T::Utf8 => column.as_string::<i32>().value(row).into(),
        T::LargeUtf8 => column.as_string::<i64>().value(row).into(),
        T::Utf8View => column.as_string_view().value(row).into(),
        T::Float32 => column.as_primitive::<Float32Type>().value(row).into(),
        T::Float64 => column.as_primitive::<Float64Type>().value(row).into(),
        T::Int8 => column.as_primitive::<Int8Type>().value(row).into(),
        T::Int16 => column.as_primitive::<Int16Type>().value(row).into(),
        T::Int32 => column.as_primitive::<Int32Type>().value(row).into(),
        T::Int64 => column.as_primitive::<Int64Type>().value(row).into(),
        T::UInt8 => column.as_primitive::<UInt8Type>().value(row).into(),
        T::UInt16 => column.as_primitive::<UInt16Type>().value(row).into(),
        T::UInt32 => column.as_primitive::<UInt32Type>().value(row).into(),
        T::UInt64 => column.as_primitive::<UInt64Type>().value(row).into(),
        T::List(_) => list(&column.as_list::<i32>().value(row)),
        T::LargeList(_) => list(&column.as_list::<i64>().value(row)),
        T::FixedSizeList(..) => list(&column.as_fixed_size_list().value(row)),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, BooleanArray, FixedSizeListArray, Int64Array, ListArray, StringArray};
    use parquet::arrow::ArrowWriter;
    use serde_json::json;

    use super::*;

    fn stored(columns: Vec<(&str, ArrayRef)>) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut writer = ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        file
    }

    #[test]
    fn text_numbers_and_lists_are_read() {
        let names = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1)]), None]);
        let vectors =
            FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>([Some(vec![Some(0.1), Some(2.0)]), None], 2);
        let file = stored(vec![
            ("with", Arc::new(StringArray::from(vec![Some("Smiling"), None])) as ArrayRef),
            ("k", Arc::new(Int64Array::from(vec![5, 6]))),
            ("list", Arc::new(names)),
            ("vector", Arc::new(vectors)),
        ]);
        let rows: Vec<Value> = Rows::open(file.path()).unwrap().map(|row| Value::Object(row.unwrap())).collect();
        let vector = json!([0.1f32, 2.0]);
        assert_eq!(rows[0], json!({"with": "Smiling", "k": 5, "list": [1], "vector": vector}));
        assert_eq!(rows[1], json!({"with": null, "k": 6, "list": null, "vector": null}));
    }

    #[test]
    fn a_column_of_another_kind_is_named() {
        let file = stored(vec![("flag", Arc::new(BooleanArray::from(vec![true])) as ArrayRef)]);
        let error = crate::error::chain(&Rows::open(file.path()).unwrap_err());
        assert!(error.contains("column `flag`") && error.contains("Boolean"), "{error}");
        let error = Rows::open(Path::new("/nowhere.parquet")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}
