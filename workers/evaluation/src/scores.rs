//! Per-query results and their Parquet form.

use std::sync::Arc;

use arrow_array::builder::{Float64Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_schema::DataType;
use bytes::Bytes;
use likeness_contract::tables::{QUERY_REPORT_COLUMNS_V1, QUERY_REPORT_COLUMNS_V2, query_report_schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metrics::chance;
use crate::queries::QuerySet;

/// Most queries of one file: bounds what a hostile file can make us hold.
const MAX_QUERIES: i64 = 10_000_000;

/// Items at the head of a ranking that are looked at one by one, and kept.
pub const FIRST: usize = 100;

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
    /// None in a file of before these were computed.
    pub further: Option<Further>,
    /// The nearest judged items, at most [`FIRST`]; none in a file of before these were kept.
    pub first: Option<Vec<Found>>,
}

/// An item that a query found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its id.
    pub item: String,
    /// Its Euclidean distance.
    pub distance: f64,
}

/// Figures that the second version of the table added.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Further {
    /// P@R, R = all relevant items.
    pub r_precision: f64,
    /// The article's own AP: mean of P@k for k = 1..R.
    pub article_ap: f64,
    /// nDCG@10 by the share of terms fulfilled.
    pub ndcg_at_10: f64,
    /// nDCG@100.
    pub ndcg_at_100: f64,
    /// CS-P@10, of queries by an image and a changed attribute.
    pub cs_p_at_10: Option<f64>,
}

/// Scores → Parquet of `tables::query_report_schema`; the same scores give the same bytes.
pub fn encode_scores(scores: &[QueryScore]) -> Result<Vec<u8>> {
    let schema = Arc::new(query_report_schema());
    let floats = |value: &dyn Fn(&QueryScore) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(scores.iter().map(value)))
    };
    let further = |value: &dyn Fn(&Further) -> Option<f64>| -> ArrayRef {
        Arc::new(scores.iter().map(|score| score.further.as_ref().and_then(value)).collect::<Float64Array>())
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
        further(&|further| Some(further.r_precision)),
        further(&|further| Some(further.article_ap)),
        further(&|further| Some(further.ndcg_at_10)),
        further(&|further| Some(further.ndcg_at_100)),
        further(&|further| further.cs_p_at_10),
        items(scores),
        distances(scores),
    ];
    let failed = |what: &str| Error::invalid(format!("the scores can't be {what}"));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| failed("made a table").because(e))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, None).map_err(|e| failed("written").because(e))?;
    writer.write(&batch).map_err(|e| failed("written").because(e))?;
    writer.close().map_err(|e| failed("written").because(e))?;
    Ok(bytes)
}

/// Type of the items of a list column of the table.
fn item_field(column: usize) -> arrow_schema::FieldRef {
    match query_report_schema().field(column).data_type() {
        DataType::List(item) => Arc::clone(item),
        other => unreachable!("column {column} holds {other}, not lists"),
    }
}

fn items(scores: &[QueryScore]) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new()).with_field(item_field(QUERY_REPORT_COLUMNS_V2));
    for score in scores {
        score.first.iter().flatten().for_each(|found| lists.values().append_value(&found.item));
        lists.append(score.first.is_some());
    }
    Arc::new(lists.finish())
}

fn distances(scores: &[QueryScore]) -> ArrayRef {
    let mut lists = ListBuilder::new(Float64Builder::new()).with_field(item_field(QUERY_REPORT_COLUMNS_V2 + 1));
    for score in scores {
        score.first.iter().flatten().for_each(|found| lists.values().append_value(found.distance));
        lists.append(score.first.is_some());
    }
    Arc::new(lists.finish())
}

/// Reads what [`encode_scores`] wrote; every value is checked, errors name the row.
pub fn decode_scores(bytes: Bytes) -> Result<Vec<QueryScore>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)
        .map_err(|e| Error::corrupt("the scores are no Parquet file").because(e))?;
    let (fields, expected) = (reader.schema().fields(), query_report_schema());
    let known = [QUERY_REPORT_COLUMNS_V1, QUERY_REPORT_COLUMNS_V2, expected.fields.len()];
    if !known.iter().any(|columns| **fields == expected.fields[..*columns]) {
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
        further: further_of(batch, row)?,
        first: first_of(batch, row)?,
    };
    score.check()?;
    Ok(score)
}

/// The figures of the later columns, where the file has them.
fn further_of(batch: &RecordBatch, row: usize) -> Result<Option<Further>> {
    let float = |column: usize| {
        let column = batch.column(column).as_primitive::<Float64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    if batch.num_columns() == QUERY_REPORT_COLUMNS_V1 {
        return Ok(None);
    }
    let places: [usize; 4] = std::array::from_fn(|i| QUERY_REPORT_COLUMNS_V1 + i);
    let [Some(r_precision), Some(article_ap), Some(ndcg_at_10), Some(ndcg_at_100)] = places.map(float) else {
        return if places.map(float).iter().all(Option::is_none) {
            Ok(None)
        } else {
            Err(Error::corrupt(format!("row {row} has some of its figures only")))
        };
    };
    let cs_p_at_10 = float(QUERY_REPORT_COLUMNS_V1 + 4);
    Ok(Some(Further { r_precision, article_ap, ndcg_at_10, ndcg_at_100, cs_p_at_10 }))
}

/// The head of the ranking, where the file has it.
fn first_of(batch: &RecordBatch, row: usize) -> Result<Option<Vec<Found>>> {
    if batch.num_columns() <= QUERY_REPORT_COLUMNS_V2 {
        return Ok(None);
    }
    let [items, distances] = [0, 1].map(|i| batch.column(QUERY_REPORT_COLUMNS_V2 + i).as_list::<i32>());
    if !items.is_valid(row) || !distances.is_valid(row) {
        return Ok(None);
    }
    let (items, distances) = (items.value(row), distances.value(row));
    let (items, distances) = (items.as_string::<i32>(), distances.as_primitive::<Float64Type>());
    if items.len() != distances.len() || items.len() > FIRST {
        return Err(Error::corrupt(format!("row {row} has {} items and {} distances", items.len(), distances.len())));
    }
    let found = items.iter().flatten().zip(distances.values());
    Ok(Some(found.map(|(item, distance)| Found { item: item.into(), distance: *distance }).collect()))
}

impl Further {
    /// nDCG and the cosines end in additions that round: a hair above 1 is no damage.
    fn check(&self) -> bool {
        let shares = [self.r_precision, self.article_ap, self.ndcg_at_10, self.ndcg_at_100];
        shares.into_iter().chain(self.cs_p_at_10).all(|share| (0.0..=1.0 + 1e-9).contains(&share))
    }
}

impl QueryScore {
    fn check(&self) -> Result<()> {
        let shares = [self.average_precision, self.chance].into_iter().chain(self.p_at);
        let sound = self.relevant >= 1
            && self.relevant <= self.judged
            && self.chance == chance(self.relevant, self.judged)
            && shares.into_iter().all(|share| (0.0..=1.0).contains(&share))
            && self.further.as_ref().is_none_or(Further::check)
            && self.first.as_ref().is_none_or(|first| first_is_sound(first, self.judged));
        if sound { Ok(()) } else { Err(Error::corrupt(format!("the figures of query {} are impossible", self.query))) }
    }
}

/// Distances ascend and are none below 0 or NaN; there are not more items than are judged.
fn first_is_sound(first: &[Found], judged: u64) -> bool {
    first.len() as u64 <= judged
        && first.iter().all(|found| found.distance >= 0.0)
        && first.is_sorted_by(|a, b| a.distance <= b.distance)
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
pub(crate) mod tests {
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
                further: Some(Further {
                    r_precision: 0.5,
                    article_ap: 1.0 / 3.0,
                    ndcg_at_10: 0.7,
                    ndcg_at_100: f64::from(query) / 10.0,
                    cs_p_at_10: (query % 2 == 0).then_some(0.1),
                }),
                first: (query != 5).then(|| {
                    let item = |i: u32| Found { item: format!("{}.jpg", query + i), distance: f64::from(i) / 3.0 };
                    (0..query * 3).map(item).collect()
                }),
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
    fn a_head_that_is_no_ranking_is_refused() {
        let found = |item: &str, distance| Found { item: item.into(), distance };
        for first in [
            vec![found("a", 0.2), found("b", 0.1)],
            vec![found("a", f64::NAN)],
            (0..31).map(|i| found("a", f64::from(i))).collect(),
            (0..101).map(|i| found("a", f64::from(i))).collect(),
        ] {
            let mut impossible = scores();
            impossible[1].first = Some(first);
            assert!(decode_scores(encode_scores(&impossible).unwrap().into()).is_err());
        }
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
