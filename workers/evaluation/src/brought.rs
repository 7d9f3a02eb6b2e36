//! A user's own queries: a file of them, read, checked and put into one form.
//!
//! | form | what |
//! |---|---|
//! | CSV | a line of column names, then a query a line; several attributes in a cell stand between commas |
//! | JSON lines | an object a line; attributes as a list, or between commas |
//! | Parquet | a row a query; attributes as a list of strings, or between commas |
//!
//! Columns: `with`, `without` (attributes), `item` (or `image`, `like`: an item whose image is changed by them), `name` (or `id`: what
//! the user calls the query), `vector` (or `embedding`: what asks instead of attributes and image, which then judge alone; D numbers, not
//! in CSV). All but one of `with` and `without` may be absent. Other columns are refused, since a slip in a name
//! would otherwise ask something else.
//!
//! Every mistake names its line: for CSV and JSON the line of the file, for Parquet the row, from 1.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use bytes::Bytes;
use likeness_contract::names::{hint, nearest};
use likeness_contract::settings::Vocabulary;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::queries::Term;

/// Most queries of a file.
pub const MAX_BROUGHT: usize = 100_000;
/// Most bytes of a file.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most numbers in all vectors of a file.
pub const MAX_NUMBERS: usize = 4_000_000;
/// Version of the JSON object that [`BroughtFile::encode`] writes where no query has a vector.
const FORMAT_1: &str = "likeness-own-queries-1";
/// The version that also knows vectors.
const FORMAT: &str = "likeness-own-queries-2";
/// Columns, each with its other names.
const COLUMNS: [&[&str]; 5] =
    [&["with"], &["without"], &["item", "image", "like"], &["name", "id"], &["vector", "embedding"]];
/// Place of the last one.
const VECTOR: usize = 4;

/// A user's query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroughtQuery {
    /// Where it stood.
    pub line: u64,
    /// What the user calls it.
    pub name: Option<String>,
    /// Attributes that are asked for.
    pub with: Vec<String>,
    /// Attributes that must not be there.
    pub without: Vec<String>,
    /// The item whose image they change.
    pub item: Option<String>,
    /// What asks instead; the attributes judge alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

/// A user's queries as they are stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BroughtFile {
    format: String,
    /// In the order of the file.
    pub queries: Vec<BroughtQuery>,
}

/// A form of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Csv(u8),
    JsonLines,
    Parquet,
}

impl Form {
    fn of(name: &str) -> Result<Self> {
        let (_, ending) = name.rsplit_once('.').unwrap_or_default();
        Ok(match ending.to_lowercase().as_str() {
            "csv" => Self::Csv(b','),
            "tsv" => Self::Csv(b'\t'),
            "jsonl" | "ndjson" | "json" => Self::JsonLines,
            "parquet" | "pq" => Self::Parquet,
            _ => {
                let expected = "expected a name that ends in .csv, .tsv, .jsonl, .ndjson or .parquet";
                return Err(Error::invalid(format!("`{name}` is no file of queries: {expected}")));
            }
        })
    }
}

impl BroughtFile {
    /// Reads a file by its name's ending. Attributes are checked against the vocabulary and written as it has them.
    pub fn read(name: &str, bytes: Bytes, vocabulary: &Vocabulary) -> Result<Self> {
        let queries = match Form::of(name)? {
            Form::Csv(separator) => csv(&bytes, separator)?,
            Form::JsonLines => json_lines(&bytes)?,
            Form::Parquet => parquet(bytes)?,
        };
        if queries.is_empty() {
            return Err(Error::invalid(format!("`{name}` has no query")));
        }
        if queries.len() > MAX_BROUGHT {
            return Err(Error::invalid(format!(
                "`{name}` has {} queries, at most {MAX_BROUGHT} are asked",
                queries.len()
            )));
        }
        let queries = queries.into_iter().map(|query| query.checked(vocabulary)).collect::<Result<Vec<_>>>()?;
        no_repeats(&queries)?;
        let numbers: usize = queries.iter().filter_map(|query| query.vector.as_ref()).map(Vec::len).sum();
        if numbers > MAX_NUMBERS {
            return Err(Error::invalid(format!(
                "the vectors of `{name}` have {numbers} numbers, at most {MAX_NUMBERS} are taken"
            )));
        }
        let format = if numbers > 0 { FORMAT } else { FORMAT_1 };
        Ok(Self { format: format.into(), queries })
    }

    /// Whether a query brings its vector.
    pub fn has_vectors(&self) -> bool {
        self.format == FORMAT
    }

    /// JSON object; the same queries give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        // A vector of a line a number would be most of the file.
        let write = if self.has_vectors() { serde_json::to_vec } else { serde_json::to_vec_pretty };
        let mut bytes = write(self).expect("queries serialise to JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let file: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupt("the brought queries are no JSON of ours").because(e))?;
        if ![FORMAT_1, FORMAT].contains(&&*file.format) {
            let format = file.format;
            return Err(Error::corrupt(format!("the brought queries have the format `{format}`, not `{FORMAT}`")));
        }
        Ok(file)
    }
}

/// What is compared: two that ask the same under one name could not be told apart in a report.
fn no_repeats(queries: &[BroughtQuery]) -> Result<()> {
    let mut seen = HashMap::new();
    for query in queries {
        let sorted = |words: &[String]| {
            let mut words = words.to_vec();
            words.sort_unstable();
            words
        };
        let vector = query.vector.as_ref().map(|vector| vector.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        let asked = (&query.name, sorted(&query.with), sorted(&query.without), &query.item, vector);
        if let Some(first) = seen.insert(asked, query.line) {
            let line = query.line;
            return Err(Error::invalid(format!(
                "line {line}: it asks the same as line {first}: give them names, or leave one out"
            )));
        }
    }
    Ok(())
}

impl BroughtQuery {
    /// With the vocabulary's own spelling.
    fn checked(mut self, vocabulary: &Vocabulary) -> Result<Self> {
        self.name = self.name.map(|name| name.trim().to_string()).filter(|name| !name.is_empty());
        self.item = self.item.filter(|item| !item.is_empty());
        if let Some(vector) = &self.vector {
            let line = self.line;
            if self.item.is_some() {
                return Err(Error::invalid(format!("line {line}: `item` and `vector` both ask: leave one out")));
            }
            if vector.iter().any(|value| !value.is_finite()) || vector.iter().all(|value| *value == 0.0) {
                return Err(Error::invalid(format!("line {line}: its vector has no direction")));
            }
        }
        let terms = self.terms(vocabulary)?;
        let spelled = |positive: bool| {
            let of_sign = terms.iter().filter(|term| term.positive == positive);
            of_sign.map(|term| vocabulary.names[term.attribute as usize].clone()).collect()
        };
        (self.with, self.without) = (spelled(true), spelled(false));
        Ok(self)
    }

    /// Its conditions, attributes ascending. Fails as invalid on an unknown attribute, on one that is asked for with both signs,
    /// and when there is none.
    pub fn terms(&self, vocabulary: &Vocabulary) -> Result<Vec<Term>> {
        let line = self.line;
        let mut terms: Vec<Term> = Vec::new();
        for (list, positive) in [(&self.with, true), (&self.without, false)] {
            for words in list {
                let places = vocabulary.positions(words).map_err(|unknown| {
                    let near = nearest(unknown, vocabulary.names.iter().map(String::as_str));
                    Error::invalid(format!("line {line}: there is no attribute `{unknown}`{}", hint(&near)))
                })?;
                terms.extend(places.into_iter().map(|place| Term { attribute: place as u32, positive }));
            }
        }
        terms.sort_unstable_by_key(|term| (term.attribute, term.positive));
        terms.dedup();
        if let Some(both) = terms.windows(2).find(|pair| pair[0].attribute == pair[1].attribute) {
            let name = &vocabulary.names[both[0].attribute as usize];
            return Err(Error::invalid(format!("line {line}: `{name}` is asked for and must not be there")));
        }
        if terms.is_empty() {
            return Err(Error::invalid(format!(
                "line {line}: it names no attribute, so no item would be a wrong answer"
            )));
        }
        Ok(terms)
    }

    /// Whether its vector, if it has one, is of dimension `dim`.
    pub fn fits(&self, dim: usize) -> Result<()> {
        match &self.vector {
            Some(vector) if vector.len() != dim => {
                let (line, numbers) = (self.line, vector.len());
                Err(Error::invalid(format!("line {line}: its vector has {numbers} numbers, the gallery's have {dim}")))
            }
            _ => Ok(()),
        }
    }

    fn set(&mut self, column: usize, values: Vec<String>) -> Result<()> {
        match column {
            0 => self.with = values,
            1 => self.without = values,
            VECTOR => {
                let expected = "expected numbers, such as {\"with\": \"Smiling\", \"vector\": [0.6, -0.8]}, or a list of floats in Parquet";
                return Err(Error::invalid(format!("line {}: `vector` holds text; {expected}", self.line)));
            }
            _ => {
                let one = <[String; 1]>::try_from(values).map(|[one]| one);
                let one =
                    one.map_err(|_| Error::invalid(format!("line {}: `{}` is a list", self.line, COLUMNS[column][0])))?;
                *(if column == 2 { &mut self.item } else { &mut self.name }) = Some(one);
            }
        }
        Ok(())
    }
}

/// Which of [`COLUMNS`] a name means.
fn column_of(name: &str, line: u64) -> Result<usize> {
    let name = name.trim();
    let found = COLUMNS.iter().position(|names| names.iter().any(|known| known.eq_ignore_ascii_case(name)));
    found.ok_or_else(|| {
        let near = hint(&nearest(name, COLUMNS.iter().flat_map(|names| names.iter().copied())));
        Error::invalid(format!(
            "line {line}: there is no column `{name}`{near}; known: with, without, item, name, vector"
        ))
    })
}

/// Columns by position. No meaning may come twice.
fn columns_of<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<usize>> {
    let mut columns = Vec::new();
    for name in names {
        let column = column_of(name, 1)?;
        if columns.contains(&column) {
            return Err(Error::invalid(format!("line 1: column `{name}` says `{}` once more", COLUMNS[column][0])));
        }
        columns.push(column);
    }
    Ok(columns)
}

fn csv(bytes: &[u8], separator: u8) -> Result<Vec<BroughtQuery>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = ::csv::ReaderBuilder::new().delimiter(separator).from_reader(bytes);
    let unreadable = |error: ::csv::Error| {
        let line = error.position().map_or(1, ::csv::Position::line);
        Error::invalid(format!("line {line}: it is no CSV: {error}"))
    };
    let columns = columns_of(reader.headers().map_err(unreadable)?)?;
    let mut queries = Vec::new();
    let mut lines = Lines { bytes, at: 0, line: 1 };
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let line = lines.of(record.position().map_or(0, ::csv::Position::byte));
        let mut query = BroughtQuery { line, ..BroughtQuery::default() };
        for (cell, column) in record.iter().zip(&columns).filter(|(cell, _)| !cell.trim().is_empty()) {
            query.set(*column, vec![cell.to_string()])?;
        }
        queries.push(query);
    }
    Ok(queries)
}

/// Lines of a text whose records come in order; blank ones belong to the record behind them.
struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    fn of(&mut self, byte: u64) -> u64 {
        let byte = usize::try_from(byte).unwrap_or(usize::MAX).clamp(self.at, self.bytes.len());
        let blank = self.bytes[byte..].iter().take_while(|byte| byte.is_ascii_whitespace() && **byte != b'\t').count();
        let begin = byte + blank;
        self.line += self.bytes[self.at..begin].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.at = begin;
        self.line
    }
}

/// A cell of JSON or Parquet.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
    Numbers(Vec<f32>),
    None(()),
}

fn json_lines(bytes: &[u8]) -> Result<Vec<BroughtQuery>> {
    let mut queries = Vec::new();
    for (line, text) in (1u64..).zip(bytes.split(|byte| *byte == b'\n')) {
        if text.trim_ascii().is_empty() {
            continue;
        }
        let object: HashMap<String, Words> = serde_json::from_slice(text).map_err(|e| {
            let expected = "expected an object of strings and lists of strings, such as {\"with\": [\"Smiling\"]}";
            Error::invalid(format!("line {line}: {expected}")).because(e)
        })?;
        let mut query = BroughtQuery { line, ..BroughtQuery::default() };
        for (name, words) in object {
            let column = column_of(&name, line)?;
            match words {
                Words::One(word) => query.set(column, vec![word])?,
                Words::Many(words) => query.set(column, words)?,
                Words::Numbers(numbers) if column == VECTOR => query.vector = Some(numbers),
                Words::Numbers(_) => {
                    let name = COLUMNS[column][0];
                    return Err(Error::invalid(format!("line {line}: `{name}` holds numbers, expected names")));
                }
                Words::None(()) => {}
            }
        }
        queries.push(query);
    }
    Ok(queries)
}

fn parquet(bytes: Bytes) -> Result<Vec<BroughtQuery>> {
    let unreadable = || Error::invalid("it is no Parquet file that can be read");
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| unreadable().because(e))?;
    let names: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    let columns = columns_of(names.iter().map(String::as_str))?;
    let rows = reader.metadata().file_metadata().num_rows();
    if usize::try_from(rows).map_or(true, |rows| rows > MAX_BROUGHT) {
        return Err(Error::invalid(format!("it has {rows} queries, at most {MAX_BROUGHT} are asked")));
    }
    let mut queries: Vec<BroughtQuery> = Vec::new();
    for batch in reader.build().map_err(|e| unreadable().because(e))? {
        let batch = batch.map_err(|e| unreadable().because(e))?;
        for row in 0..batch.num_rows() {
            let mut query = BroughtQuery { line: queries.len() as u64 + 1, ..BroughtQuery::default() };
            for ((column, name), values) in columns.iter().zip(&names).zip(batch.columns()) {
                if *column == VECTOR {
                    query.vector = numbers_of(values, row, name)?;
                } else if let Some(words) = words_of(values, row, name)? {
                    query.set(*column, words)?;
                }
            }
            queries.push(query);
        }
    }
    Ok(queries)
}

fn numbers_of(values: &ArrayRef, row: usize, name: &str) -> Result<Option<Vec<f32>>> {
    if values.is_null(row) {
        return Ok(None);
    }
    let list = match values.data_type() {
        DataType::List(_) => Some(values.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Some(values.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => Some(values.as_fixed_size_list().value(row)),
        _ => None,
    };
    let numbers = list.filter(|list| list.null_count() == 0).and_then(|list| match list.data_type() {
        DataType::Float32 => Some(list.as_primitive::<Float32Type>().values().to_vec()),
        DataType::Float64 => Some(list.as_primitive::<Float64Type>().values().iter().map(|v| *v as f32).collect()),
        _ => None,
    });
    let kind = values.data_type();
    numbers.map(Some).ok_or_else(|| Error::invalid(format!("column `{name}` holds {kind}, expected lists of floats")))
}

fn words_of(values: &ArrayRef, row: usize, name: &str) -> Result<Option<Vec<String>>> {
    if values.is_null(row) {
        return Ok(None);
    }
    let words = |values: &ArrayRef| -> Option<Vec<String>> {
        match values.data_type() {
            DataType::Utf8 => Some(values.as_string::<i32>().iter().flatten().map(String::from).collect()),
            DataType::LargeUtf8 => Some(values.as_string::<i64>().iter().flatten().map(String::from).collect()),
            DataType::Utf8View => Some(values.as_string_view().iter().flatten().map(String::from).collect()),
            _ => None,
        }
    };
    let found = match values.data_type() {
        DataType::List(_) => words(&values.as_list::<i32>().value(row)),
        DataType::LargeList(_) => words(&values.as_list::<i64>().value(row)),
        _ => words(&values.slice(row, 1)),
    };
    let kind = values.data_type();
    found
        .map(Some)
        .ok_or_else(|| Error::invalid(format!("column `{name}` holds {kind}, expected strings or lists of them")))
}

#[cfg(test)]
mod tests;
