//! Answers to files of questions as Parquet (`tables::answer_schema`): written by the tasks of a search job and by the
//! command line, read by whoever joins them.

use std::io::Write;
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use likeness_contract::searches::{FileAnswer, FileHit};
use likeness_contract::tables::answer_schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::error::{Error, ErrorKind, Result};

/// Answers that are turned into columns together.
const TOGETHER: usize = 1024;
/// Results of a row group, about.
const GROUP_RESULTS: usize = 1 << 20;

/// Writes a table of answers; the same answers give the same bytes.
pub struct AnswerWriter<W: Write + Send> {
    table: ArrowWriter<W>,
    waiting: Vec<FileAnswer>,
    /// Results since the last row group.
    results: usize,
}

impl<W: Write + Send> std::fmt::Debug for AnswerWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerWriter").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

fn unwritten(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Invalid, "the answers can't be written").because(error)
}

impl<W: Write + Send> AnswerWriter<W> {
    /// An empty table.
    pub fn new(to: W) -> Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let table = ArrowWriter::try_new(to, Arc::new(answer_schema()), Some(properties)).map_err(unwritten)?;
        Ok(Self { table, waiting: Vec::new(), results: 0 })
    }

    /// Adds an answer.
    pub fn write(&mut self, answer: FileAnswer) -> Result<()> {
        self.results += answer.hits.len() + 1;
        self.waiting.push(answer);
        if self.waiting.len() >= TOGETHER || self.results >= GROUP_RESULTS {
            self.write_waiting()?;
        }
        if self.results >= GROUP_RESULTS {
            self.table.flush().map_err(unwritten)?;
            self.results = 0;
        }
        Ok(())
    }

    fn write_waiting(&mut self) -> Result<()> {
        let batch = batch(&std::mem::take(&mut self.waiting))?;
        self.table.write(&batch).map_err(unwritten)
    }

    /// Completes the table and gives back what it was written to.
    pub fn finish(mut self) -> Result<W> {
        self.write_waiting()?;
        self.table.into_inner().map_err(unwritten)
    }
}

fn batch(answers: &[FileAnswer]) -> Result<RecordBatch> {
    let item = |data_type| Arc::new(Field::new("item", data_type, false));
    let mut items = ListBuilder::new(StringBuilder::new()).with_field(item(DataType::Utf8));
    let mut distances = ListBuilder::new(Float64Builder::new()).with_field(item(DataType::Float64));
    for answer in answers {
        for FileHit { item, distance } in &answer.hits {
            items.values().append_value(item);
            distances.values().append_value(*distance);
        }
        items.append(true);
        distances.append(true);
    }
    let numbers = |value: &dyn Fn(&FileAnswer) -> Option<u64>| -> ArrayRef {
        Arc::new(answers.iter().map(value).collect::<UInt64Array>())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(answers.iter().map(|answer| answer.query))),
        Arc::new(answers.iter().map(|answer| answer.id.as_deref()).collect::<StringArray>()),
        numbers(&|answer| answer.release),
        Arc::new(answers.iter().map(|answer| answer.coverage).collect::<Float64Array>()),
        numbers(&|answer| answer.matching),
        Arc::new(items.finish()),
        Arc::new(distances.finish()),
        Arc::new(answers.iter().map(|answer| answer.error.as_deref()).collect::<StringArray>()),
    ];
    RecordBatch::try_new(Arc::new(answer_schema()), columns).map_err(unwritten)
}

/// Reads a table of answers, some at a time.
pub struct AnswerReader {
    batches: ParquetRecordBatchReader,
    now: std::vec::IntoIter<FileAnswer>,
}

impl std::fmt::Debug for AnswerReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnswerReader").finish_non_exhaustive()
    }
}

fn unreadable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Corrupt, "the table of answers can't be read").because(error)
}

impl AnswerReader {
    /// A table that [`AnswerWriter`] wrote.
    pub fn new(bytes: Bytes) -> Result<Self> {
        let table = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(unreadable)?;
        if *table.schema().fields() != answer_schema().fields {
            return Err(unreadable("it has other columns than a table of answers"));
        }
        let batches = table.with_batch_size(TOGETHER).build().map_err(unreadable)?;
        Ok(Self { batches, now: Vec::new().into_iter() })
    }
}

impl Iterator for AnswerReader {
    type Item = Result<FileAnswer>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(answer) = self.now.next() {
                return Some(Ok(answer));
            }
            match self.batches.next()? {
                Ok(batch) => self.now = answers(&batch).into_iter(),
                Err(error) => return Some(Err(unreadable(error))),
            }
        }
    }
}

fn answers(batch: &RecordBatch) -> Vec<FileAnswer> {
    let text = |column: usize, row: usize| {
        let column = batch.column(column).as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).to_string())
    };
    let number = |column: usize, row: usize| {
        let column = batch.column(column).as_primitive::<UInt64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    let hits = |row: usize| {
        let (items, distances) = (batch.column(5).as_list::<i32>().value(row), batch.column(6).as_list::<i32>());
        let (items, distances) = (items.as_string::<i32>(), distances.value(row));
        let distances = distances.as_primitive::<Float64Type>().values();
        let hit = |(item, distance): (Option<&str>, &f64)| FileHit {
            item: item.unwrap_or_default().to_string(),
            distance: *distance,
        };
        items.iter().zip(distances).map(hit).collect()
    };
    let coverage = batch.column(3).as_primitive::<Float64Type>();
    let answer = |row: usize| FileAnswer {
        query: number(0, row).unwrap_or_default(),
        id: text(1, row),
        release: number(2, row),
        coverage: coverage.is_valid(row).then(|| coverage.value(row)),
        matching: number(4, row),
        hits: hits(row),
        error: text(7, row),
    };
    (0..batch.num_rows()).map(answer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(count: u64) -> Vec<FileAnswer> {
        let hit = |at: u64| FileHit { item: format!("{at}.jpg"), distance: 1.0 / (at as f64 + 3.0) };
        let answer = |query: u64| match query % 3 {
            0 => FileAnswer::failed(query, None, "unknown attribute `x`".into()),
            _ => FileAnswer {
                query,
                id: Some(format!("q{query}")),
                release: Some(4),
                coverage: Some(1.0),
                matching: query.is_multiple_of(2).then_some(17),
                hits: (0..query % 5).map(hit).collect(),
                error: None,
            },
        };
        (0..count).map(answer).collect()
    }

    fn written(answers: &[FileAnswer]) -> Vec<u8> {
        let mut writer = AnswerWriter::new(Vec::new()).unwrap();
        answers.iter().for_each(|answer| writer.write(answer.clone()).unwrap());
        writer.finish().unwrap()
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        for count in [0, 1, 2 * TOGETHER as u64 + 7] {
            let answers = some(count);
            let bytes = written(&answers);
            assert_eq!(bytes, written(&answers), "the same bytes again");
            let read: Vec<_> = AnswerReader::new(bytes.into()).unwrap().map(Result::unwrap).collect();
            assert_eq!(read, answers);
        }
    }

    #[test]
    fn another_table_is_refused() {
        assert_eq!(AnswerReader::new(Bytes::from_static(b"PAR1")).unwrap_err().kind, ErrorKind::Corrupt);
    }
}
