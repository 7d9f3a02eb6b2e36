//! Columns of the crate's own Parquet files: built from values, checked when read back.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, FixedSizeListArray, Int8Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};

/// What is wrong, without naming the file.
pub(crate) type Checked<T> = std::result::Result<T, String>;

fn item_field() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Int8, false))
}

fn list_length(attributes: usize) -> i32 {
    i32::try_from(attributes).expect("fewer than 2³¹ attributes")
}

/// Field of a column of label vectors.
pub(crate) fn labels_field(name: &str, attributes: usize) -> Field {
    Field::new(name, DataType::FixedSizeList(item_field(), list_length(attributes)), false)
}

/// Column of label vectors; `labels` are A per row.
pub(crate) fn labels_column(labels: Int8Array, attributes: usize) -> FixedSizeListArray {
    FixedSizeListArray::new(item_field(), list_length(attributes), Arc::new(labels), None)
}

/// The same names and types in the same order; nullability as Parquet tells it.
pub(crate) fn check_schema(found: &Schema, expected: &Schema) -> Checked<()> {
    let names = |schema: &Schema| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    if names(found) != names(expected) {
        return Err(format!("columns {:?} instead of {:?}", names(found), names(expected)));
    }
    for (found, expected) in found.fields().iter().zip(expected.fields()) {
        if found.data_type() != expected.data_type() {
            let name = expected.name();
            return Err(format!("column `{name}` is {} instead of {}", found.data_type(), expected.data_type()));
        }
        if found.is_nullable() && !expected.is_nullable() {
            return Err(format!("column `{}` may hold nulls", expected.name()));
        }
    }
    Ok(())
}

/// A column by name and type; present and of that type after [`check_schema`].
pub(crate) fn typed<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Checked<&'a T> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("column `{name}` is missing"))?;
    column.as_any().downcast_ref().ok_or_else(|| format!("column `{name}` is {}", column.data_type()))
}

/// The label vectors of a batch, A per row, each −1, 0 or 1.
pub(crate) fn labels_of<'a>(batch: &'a RecordBatch, name: &str, attributes: usize) -> Checked<&'a Int8Array> {
    let lists = typed::<FixedSizeListArray>(batch, name)?;
    let labels = lists.values().as_primitive_opt().ok_or_else(|| format!("column `{name}` holds no Int8"))?;
    if labels.len() != batch.num_rows() * attributes {
        return Err(format!("column `{name}`: {} labels for {} rows", labels.len(), batch.num_rows()));
    }
    match labels.values().iter().position(|label| !(-1..=1).contains(label)) {
        None => Ok(labels),
        Some(at) => Err(format!(
            "row {}: label {} of attribute {} is not −1, 0 or 1",
            at / attributes,
            labels.value(at),
            at % attributes
        )),
    }
}

/// A split: 0 train, 1 validation, 2 test.
pub(crate) fn checked_split(split: u8) -> Checked<u8> {
    if split <= 2 { Ok(split) } else { Err(format!("split {split} is not 0, 1 or 2")) }
}
