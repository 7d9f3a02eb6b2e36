//! The training curve of a report, read from the training's own figures.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt64Type};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One row of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Optimizer step.
    pub step: u64,
    /// Triplet loss.
    pub loss: f64,
    /// Share of correct triplets.
    pub correct: f64,
}

/// Loss and share of correct triplets over a training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TrainingCurve {
    /// On training batches, one point per step.
    pub train: Vec<CurvePoint>,
    /// On the validation split.
    pub validation: Vec<CurvePoint>,
}

impl TrainingCurve {
    /// Reads a Parquet file of `tables::training_schema`; needs only the columns step, phase, loss, correct.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        let unreadable = "the training figures can't be read";
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| Error::corrupt(unreadable).because(e))?;
        let columns = ["step", "phase", "loss", "correct"];
        let expected = likeness_contract::tables::training_schema();
        for name in columns {
            if reader.schema().field_with_name(name).ok() != expected.field_with_name(name).ok() {
                return Err(Error::corrupt(format!("the training figures have no fitting column `{name}`")));
            }
        }
        let mask = ProjectionMask::columns(reader.parquet_schema(), columns);
        let reader = reader.with_projection(mask).build().map_err(|e| Error::corrupt(unreadable).because(e))?;
        let mut curve = Self::default();
        for batch in reader {
            let batch = batch.map_err(|e| Error::corrupt(unreadable).because(e))?;
            let column = |name: &str| batch.column_by_name(name).expect("the projection keeps its columns");
            let (steps, phases) = (column("step").as_primitive::<UInt64Type>(), column("phase").as_string::<i32>());
            let loss = column("loss").as_primitive::<Float64Type>();
            let correct = column("correct").as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                let point = CurvePoint { step: steps.value(row), loss: loss.value(row), correct: correct.value(row) };
                curve.push(phases.value(row), point);
            }
        }
        Ok(curve)
    }

    fn push(&mut self, phase: &str, point: CurvePoint) {
        if !(point.loss.is_finite() && point.correct.is_finite()) {
            return;
        }
        match phase {
            "validation" => self.validation.push(point),
            _ => self.train.push(point),
        }
    }

    /// At most `points` means of consecutive training steps: what a plot can show.
    pub fn smoothed(&self, points: usize) -> Vec<CurvePoint> {
        let window = self.train.len().div_ceil(points.max(1)).max(1);
        self.train.chunks(window).map(mean_point).collect()
    }
}

fn mean_point(points: &[CurvePoint]) -> CurvePoint {
    let n = points.len() as f64;
    CurvePoint {
        step: points[points.len() / 2].step,
        loss: points.iter().map(|point| point.loss).sum::<f64>() / n,
        correct: points.iter().map(|point| point.correct).sum::<f64>() / n,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{Float64Array, RecordBatch, StringArray, UInt64Array};
    use arrow_schema::{DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;

    use super::*;

    fn file(correct: &str) -> Bytes {
        let schema = Arc::new(Schema::new(vec![
            Field::new("step", DataType::UInt64, false),
            Field::new("phase", DataType::Utf8, false),
            Field::new("loss", DataType::Float64, false),
            Field::new(correct, DataType::Float64, false),
        ]));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(UInt64Array::from(vec![0, 1, 1, 2])),
                Arc::new(StringArray::from(vec!["train", "train", "validation", "train"])),
                Arc::new(Float64Array::from(vec![0.3, 0.2, 0.25, 0.1])),
                Arc::new(Float64Array::from(vec![0.5, 0.6, 0.55, 0.7])),
            ],
        )
        .unwrap();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes.into()
    }

    #[test]
    fn phases_are_told_apart_and_steps_are_averaged_for_a_plot() {
        let curve = TrainingCurve::decode(file("correct")).unwrap();
        assert_eq!(curve.validation, [CurvePoint { step: 1, loss: 0.25, correct: 0.55 }]);
        assert_eq!(curve.train.len(), 3);
        let smooth = curve.smoothed(2);
        assert_eq!((smooth.len(), smooth[0].step, smooth[1].loss), (2, 1, 0.1));
        assert!((smooth[0].loss - 0.25).abs() < 1e-12);
    }

    #[test]
    fn a_file_without_the_columns_is_refused_by_name() {
        let error = TrainingCurve::decode(file("right")).unwrap_err();
        assert_eq!(error.to_string(), "the training figures have no fitting column `correct`");
        assert!(TrainingCurve::decode(Bytes::from_static(b"PAR1")).is_err());
    }
}
