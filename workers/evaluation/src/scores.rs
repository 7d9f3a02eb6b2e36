//! Per-query results and their Parquet form.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use bytes::Bytes;
use likeness_contract::tables::query_report_schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::error::{Error, Result};
use crate::metrics::chance;
use crate::queries::QuerySet;

/// Most queries of one file: bounds what a hostile file can make us hold.
const MAX_QUERIES: i64 = 10_000_000;

/// How well one query was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryScore {
    /// Its number.
    pub query: u32,
    /// Its set.
    pub set: QuerySet,
    /// For people.
    pub text: String,
    /// Items that fulfil it.
    pub relevant: u64,
    /// Items that it ranks; those with an unknown label that it asks for are left out.
    pub judged: u64,
    /// AP.
    pub average_precision: f64,
    /// relevant / judged.
    pub chance: f64,
    /// P@1, P@5, P@10, P@100.
    pub p_at: [f64; 4],
}

/// Scores → Parquet of `tables::query_report_schema`; the same scores give the same bytes.
pub fn encode_scores(scores: &[QueryScore]) -> Result<Vec<u8>> {
    let schema = Arc::new(query_report_schema());
    let floats = |value: &dyn Fn(&QueryScore) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(scores.iter().map(value)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(scores.iter().map(|score| score.query))),
        Arc::new(StringArray::from_iter_values(scores.iter().map(|score| score.set.name()))),
        Arc::new(StringArray::from_iter_values(scores.iter().map(|score| &score.text))),
        Arc::new(UInt64Array::from_iter_values(scores.iter().map(|score| score.relevant))),
        Arc::new(UInt64Array::from_iter_values(scores.iter().map(|score| score.judged))),
        floats(&|score| score.average_precision),
        floats(&|score| score.chance),
        floats(&|score| score.p_at[0]),
        floats(&|score| score.p_at[1]),
        floats(&|score| score.p_at[2]),
        floats(&|score| score.p_at[3]),
    ];
    let failed = |what: &str| Error::invalid(format!("the scores can't be {what}"));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| failed("made a table").because(e))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, None).map_err(|e| failed("written").because(e))?;
    writer.write(&batch).map_err(|e| failed("written").because(e))?;
    writer.close().map_err(|e| failed("written").because(e))?;
    Ok(bytes)
}

/// Reads what [`encode_scores`] wrote; every value is checked, errors name the row.
pub fn decode_scores(bytes: Bytes) -> Result<Vec<QueryScore>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .map_err(|e| Error::corrupt("the scores are no Parquet file").because(e))?;
    let expected = query_report_schema();
    if reader.schema().fields() != expected.fields() {
        return Err(Error::corrupt("the scores have other columns than a query report"));
    }
    let rows = reader.metadata().file_metadata().num_rows();
    if !(0..=MAX_QUERIES).contains(&rows) {
        return Err(Error::corrupt(format!("the scores claim {rows} rows")));
    }
    let reader = reader.build().map_err(|e| Error::corrupt("the scores can't be read").because(e))?;
    let mut scores = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|e| Error::corrupt("the scores can't be read").because(e))?;
        for row in 0..batch.num_rows() {
            scores.push(score_of(&batch, row)?);
        }
    }
    Ok(scores)
}

fn score_of(batch: &RecordBatch, row: usize) -> Result<QueryScore> {
    let text = |column: usize| batch.column(column).as_string::<i32>().value(row);
    let count = |column: usize| batch.column(column).as_primitive::<UInt64Type>().value(row);
    let float = |column: usize| batch.column(column).as_primitive::<Float64Type>().value(row);
    let query = batch.column(0).as_primitive::<UInt32Type>().value(row);
    let set = QuerySet::from_name(text(1))
        .ok_or_else(|| Error::corrupt(format!("query {query} is of the unknown set `{}`", text(1))))?;
    let score = QueryScore {
        query,
        set,
        text: text(2).to_string(),
        relevant: count(3),
        judged: count(4),
        average_precision: float(5),
        chance: float(6),
        p_at: [float(7), float(8), float(9), float(10)],
    };
    score.check()?;
    Ok(score)
}

impl QueryScore {
    fn check(&self) -> Result<()> {
        let shares = [self.average_precision, self.chance].into_iter().chain(self.p_at);
        let sound = self.relevant >= 1
            && self.relevant <= self.judged
            && self.chance == chance(self.relevant, self.judged)
            && shares.into_iter().all(|share| (0.0..=1.0).contains(&share));
        if sound { Ok(()) } else { Err(Error::corrupt(format!("the figures of query {} are impossible", self.query))) }
    }
}

/// Scores of all ranges in order as one list; refuses gaps, repeats and another number than `expected`.
pub fn join(ranges: Vec<Vec<QueryScore>>, expected: usize) -> Result<Vec<QueryScore>> {
    let scores: Vec<QueryScore> = ranges.into_iter().flatten().collect();
    if let Some(at) = scores.iter().enumerate().position(|(number, score)| score.query as usize != number) {
        return Err(Error::corrupt(format!("query {} stands where query {at} belongs", scores[at].query)));
    }
    if scores.len() != expected {
        return Err(Error::corrupt(format!("{} queries were scored, {expected} were drawn", scores.len())));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn scores() -> Vec<QueryScore> {
        (0..7u32)
            .map(|query| QueryScore {
                query,
                set: QuerySet::ALL[query as usize % 3],
                text: format!("+Smiling −Male {query}"),
                relevant: u64::from(query) + 1,
                judged: 30,
                average_precision: 1.0 / f64::from(query + 1),
                chance: f64::from(query + 1) / 30.0,
                p_at: [1.0, 0.4, 0.3, 0.03],
            })
            .collect()
    }

    #[test]
    fn scores_survive_their_file_to_the_last_bit_and_the_file_is_reproducible() {
        let bytes = encode_scores(&scores()).unwrap();
        assert_eq!(bytes, encode_scores(&scores()).unwrap());
        assert_eq!(decode_scores(bytes.into()).unwrap(), scores());
    }

    #[test]
    fn damaged_or_impossible_scores_are_refused() {
        let bytes = encode_scores(&scores()).unwrap();
        for length in [0, 4, bytes.len() / 2, bytes.len() - 1] {
            assert!(decode_scores(Bytes::copy_from_slice(&bytes[..length])).is_err(), "{length} bytes");
        }
        let mut impossible = scores();
        impossible[3].average_precision = f64::NAN;
        let error = decode_scores(encode_scores(&impossible).unwrap().into()).unwrap_err();
        assert_eq!(error.to_string(), "the figures of query 3 are impossible");
        let mut impossible = scores();
        impossible[2].relevant = 31;
        assert!(decode_scores(encode_scores(&impossible).unwrap().into()).is_err());
    }

    #[test]
    fn joined_ranges_have_neither_gaps_nor_repeats() {
        let all = scores();
        let (head, tail) = (all[..3].to_vec(), all[3..].to_vec());
        assert_eq!(join(vec![head.clone(), tail.clone()], 7).unwrap(), all);
        assert!(join(vec![tail.clone(), head.clone()], 7).is_err());
        assert!(join(vec![head.clone(), head.clone(), tail], 7).is_err());
        assert!(join(vec![head], 7).is_err());
    }
}
