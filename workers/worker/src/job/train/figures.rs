//! The figures of a training as Parquet (`tables::training_schema`).
//!
//! `step` counts the optimizer steps behind the weights that were measured: a training row is measured before its
//! own step, a validation row after its round. Bytes are a function of the figures alone.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, FixedSizeListArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Schema};
use bytes::Bytes;
use likeness_contract::tables::{DISTANCE_BINS, training_schema};
use likeness_model::StepFigures;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::TaskError;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The batch of a step, in training mode.
    Train,
    /// The whole validation split, in inference mode.
    Validation,
}

impl Phase {
    /// As it stands in the column.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FigureRow {
    pub step: u64,
    pub phase: Phase,
    pub figures: StepFigures,
}

/// Rows as Parquet.
pub(super) fn encode(rows: &[FigureRow]) -> Result<Vec<u8>, TaskError> {
    let schema = Arc::new(training_schema());
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns(rows, &schema)?).map_err(TaskError::invalid)?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).map_err(TaskError::invalid)?;
    writer.write(&batch).map_err(TaskError::invalid)?;
    writer.into_inner().map_err(TaskError::invalid)
}

fn columns(rows: &[FigureRow], schema: &Schema) -> Result<Vec<ArrayRef>, TaskError> {
    let float = |f: fn(&StepFigures) -> f64| -> ArrayRef {
        Arc::new(rows.iter().map(|row| Some(f(&row.figures))).collect::<Float64Array>())
    };
    Ok(vec![
        Arc::new(rows.iter().map(|row| Some(row.step)).collect::<UInt64Array>()),
        Arc::new(rows.iter().map(|row| Some(row.phase.name())).collect::<StringArray>()),
        float(|f| f.loss),
        float(|f| f.easy),
        float(|f| f.semi_hard),
        float(|f| f.hard),
        float(|f| f.correct),
        float(|f| f.dp_mean),
        float(|f| f.dn_mean),
        histograms(rows, schema, "dp_histogram", |f| &f.dp_histogram)?,
        histograms(rows, schema, "dn_histogram", |f| &f.dn_histogram)?,
        float(|f| f.lr),
    ])
}

fn histograms(
    rows: &[FigureRow],
    schema: &Schema,
    column: &str,
    of: fn(&StepFigures) -> &[u32; DISTANCE_BINS],
) -> Result<ArrayRef, TaskError> {
    let counts: UInt32Array = rows.iter().flat_map(|row| of(&row.figures).iter().map(|count| Some(*count))).collect();
    let field = schema.field_with_name(column).map_err(TaskError::invalid)?;
    let DataType::FixedSizeList(item, length) = field.data_type() else {
        return Err(TaskError::invalid(format!("`{column}` is no list")));
    };
    let list = FixedSizeListArray::try_new(Arc::clone(item), *length, Arc::new(counts), None);
    Ok(Arc::new(list.map_err(TaskError::invalid)?))
}

/// What [`encode`] wrote.
pub(super) fn decode(bytes: Bytes) -> Result<Vec<FigureRow>, TaskError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(TaskError::invalid)?;
    if builder.schema().fields() != training_schema().fields() {
        return Err(TaskError::invalid("the training figures have other columns than they should"));
    }
    let mut rows = Vec::new();
    for batch in builder.build().map_err(TaskError::invalid)? {
        let batch = batch.map_err(TaskError::invalid)?;
        for row in 0..batch.num_rows() {
            rows.push(decode_row(&batch, row)?);
        }
    }
    Ok(rows)
}

/// The columns are those of the schema, in its order.
fn decode_row(batch: &RecordBatch, row: usize) -> Result<FigureRow, TaskError> {
    let float = |column: usize| batch.column(column).as_primitive::<Float64Type>().value(row);
    let histogram = |column: usize| -> [u32; DISTANCE_BINS] {
        let counts = batch.column(column).as_fixed_size_list().value(row);
        std::array::from_fn(|bin| counts.as_primitive::<UInt32Type>().value(bin))
    };
    let dp_histogram = histogram(9);
    let phase = match batch.column(1).as_string::<i32>().value(row) {
        "train" => Phase::Train,
        "validation" => Phase::Validation,
        other => return Err(TaskError::invalid(format!("training figures of an unknown phase `{other}`"))),
    };
    let figures = StepFigures {
        rows: dp_histogram.iter().map(|count| u64::from(*count)).sum(),
        loss: float(2),
        easy: float(3),
        semi_hard: float(4),
        hard: float(5),
        correct: float(6),
        dp_mean: float(7),
        dn_mean: float(8),
        dp_histogram,
        dn_histogram: histogram(10),
        lr: float(11),
    };
    Ok(FigureRow { step: batch.column(0).as_primitive::<UInt64Type>().value(row), phase, figures })
}

/// Figures for the tests of this job.
#[cfg(test)]
pub(super) fn example(step: u64, phase: Phase) -> FigureRow {
    let figures = StepFigures {
        rows: 4,
        loss: 0.1 / (step + 1) as f64,
        easy: 0.25,
        semi_hard: 0.25,
        hard: 0.5,
        correct: 0.5,
        dp_mean: 1.2,
        dn_mean: 1.3,
        dp_histogram: std::array::from_fn(|bin| u32::from(bin > 9 && bin < 14)),
        dn_histogram: std::array::from_fn(|bin| if bin == 13 { 4 } else { 0 }),
        lr: 1e-3,
    };
    FigureRow { step, phase, figures }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_survive_the_file_and_equal_figures_give_equal_bytes() {
        let rows = [example(0, Phase::Train), example(1, Phase::Train), example(2, Phase::Validation)];
        let bytes = encode(&rows).unwrap();
        assert_eq!(bytes, encode(&rows).unwrap());
        assert_eq!(decode(bytes.into()).unwrap(), rows);
    }

    #[test]
    fn other_bytes_are_refused() {
        assert!(decode(Bytes::from_static(b"PAR1 no parquet PAR1")).is_err());
    }
}
