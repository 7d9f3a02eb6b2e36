//! Files of questions: JSON lines, CSV or Parquet, one question a line or row, read as they are needed.
//!
//! Whatever the form, a question is a set of named values, understood in one place. A question that can't be understood is handed
//! on with the reason, so that it is answered with it; a file whose columns are wrong is refused before anything is asked.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use likeness_contract::names;
use likeness_contract::search::{LabelFilter, SearchRequest, Term};
use likeness_link::rows::Rows;
use serde_json::{Map, Value};

use super::{attributes, lists, weighed};
use crate::command::exit::{Failure, Outcome};
use crate::command::shrink;

/// What a question may say.
const FIELDS: [&str; 14] = [
    "id",
    "with",
    "without",
    "like",
    "image",
    "vector",
    "attributes_weight",
    "like_weight",
    "image_weight",
    "vector_weight",
    "only_with",
    "only_without",
    "k",
    "recall",
];
/// Longest line that is read.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// How a Parquet file begins.
const PARQUET: &[u8] = b"PAR1";

type Fields = Map<String, Value>;

/// A line or row of a file.
#[derive(Debug)]
pub struct Row {
    /// From 1, as an editor counts; rows of a table without their header.
    pub line: u64,
    /// What stands there, or why it can't be read.
    pub fields: Result<Fields, String>,
}

/// Rows of a file, in order; an error ends them.
pub type RowsOf = Box<dyn Iterator<Item = Outcome<Row>> + Send>;

/// Opens a file of questions that has any; its name's ending tells its form, `-` is the standard input.
pub fn open(file: &Path) -> Outcome<RowsOf> {
    let mut rows = opened_as_named(file)?.peekable();
    match rows.peek() {
        Some(_) => Ok(Box::new(rows)),
        None => Err(Failure::usage(format!("`{}` has no questions", file.display()))),
    }
}

fn opened_as_named(file: &Path) -> Outcome<RowsOf> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
    match ending.as_str() {
        _ if file == Path::new("-") => Ok(Box::new(json_lines(BufReader::new(io::stdin())))),
        "parquet" | "pq" => parquet(file),
        "csv" => csv(file, b','),
        "tsv" => csv(file, b'\t'),
        "jsonl" | "ndjson" | "json" => Ok(Box::new(json_lines(opened(file)?))),
        other => Err(unknown_form(file, other)),
    }
}

fn unknown_form(file: &Path, ending: &str) -> Failure {
    let forms = ["jsonl", "ndjson", "csv", "tsv", "parquet"];
    let nearest = names::hint(&names::nearest(ending, forms));
    let name = file.display();
    Failure::usage(format!("`{name}` has no ending of a file of questions (.jsonl, .csv, .tsv or .parquet){nearest}"))
}

fn unreadable(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("can't read `{}`: {error}", file.display()))
}

fn opened(file: &Path) -> Outcome<BufReader<File>> {
    let mut reader = BufReader::new(File::open(file).map_err(|error| unreadable(file, error))?);
    let begins = reader.fill_buf().map_err(|error| unreadable(file, error))?;
    if begins.starts_with(PARQUET) {
        return Err(unreadable(file, "it is a Parquet file; call it .parquet"));
    }
    Ok(reader)
}

fn json_lines(mut reader: impl BufRead + Send + 'static) -> impl Iterator<Item = Outcome<Row>> + Send {
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            number += 1;
            let line = match next_line(&mut reader) {
                Ok(None) => return None,
                Ok(Some(line)) => line,
                Err(error) => return Some(Err(Failure::failed(format!("line {number} can't be read: {error}")))),
            };
            let fields = match line {
                Ok(bytes) if bytes.trim_ascii().is_empty() => continue,
                Ok(bytes) => object(&bytes),
                Err(too_long) => Err(too_long),
            };
            return Some(Ok(Row { line: number, fields }));
        }
    })
}

/// The next line; the inner error is of one that is too long, which is passed over.
fn next_line(reader: &mut impl BufRead) -> io::Result<Option<Result<Vec<u8>, String>>> {
    let mut line = Vec::new();
    if reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
        reader.skip_until(b'\n')?;
        return Ok(Some(Err(format!("the line has more than {MAX_LINE_BYTES} bytes"))));
    }
    Ok(Some(Ok(line)))
}

fn object(bytes: &[u8]) -> Result<Fields, String> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(format!("{} is no question: a JSON object is expected", shown(&other))),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

/// A wrong column concerns every row: it is refused before any is read.
fn check_columns<'a>(file: &Path, columns: impl IntoIterator<Item = &'a str>) -> Outcome<()> {
    for column in columns {
        check_field(column).map_err(|wrong| unreadable(file, wrong))?;
    }
    Ok(())
}

fn check_field(name: &str) -> Result<(), String> {
    if FIELDS.contains(&name) {
        return Ok(());
    }
    let nearest = names::nearest(name, FIELDS);
    let hint = if nearest.is_empty() { format!("; known are {}", FIELDS.join(", ")) } else { names::hint(&nearest) };
    let name: String = name.chars().take(60).collect();
    Err(format!("unknown field `{name}`{hint}"))
}

fn csv(file: &Path, delimiter: u8) -> Outcome<RowsOf> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(opened(file)?);
    let head = reader.headers().map_err(|error| unreadable(file, error))?.clone();
    let head: Vec<String> = head.iter().map(|name| name.trim().trim_start_matches('\u{feff}').to_string()).collect();
    check_columns(file, head.iter().map(String::as_str))?;
    let mut rows = reader.into_records();
    let mut number = 1;
    Ok(Box::new(std::iter::from_fn(move || {
        let row = rows.next()?;
        let told = rows.reader().position().line();
        number += 1;
        let fields = match row {
            Ok(row) => {
                number = row.position().map_or(number, csv::Position::line);
                let cells = head.iter().zip(row.iter()).filter(|(_, cell)| !cell.trim().is_empty());
                Ok(cells.map(|(name, cell)| (name.clone(), cell_value(name, cell))).collect())
            }
            Err(error) if error.is_io_error() => {
                return Some(Err(Failure::failed(format!("line {told} can't be read: {error}"))));
            }
            Err(error) => Err(error.to_string()),
        };
        Some(Ok(Row { line: number, fields }))
    })))
}

/// A cell as JSON has it: numbers and lists where the column has some, else text.
fn cell_value(name: &str, cell: &str) -> Value {
    let text = || Value::String(cell.to_string());
    match name {
        "id" => text(),
        "vector" if !cell.trim_start().starts_with('[') => {
            let numbers: Result<Vec<f64>, _> = cell.split_whitespace().map(str::parse).collect();
            numbers.map_or_else(|_| text(), Value::from)
        }
        "with" | "without" | "only_with" | "only_without" | "like" | "image" if !cell.trim_start().starts_with('[') => {
            text()
        }
        _ => serde_json::from_str(cell.trim()).unwrap_or_else(|_| text()),
    }
}

fn parquet(file: &Path) -> Outcome<RowsOf> {
    let rows = Rows::open(file)?;
    check_columns(file, rows.columns().iter().map(String::as_str))?;
    Ok(Box::new((1..).zip(rows).map(|(line, row)| Ok(Row { line, fields: Ok(row?) }))))
}

/// A question as the searchers take it; `blank` tells what it leaves open. Images are read here.
pub fn question(fields: &Fields, blank: &SearchRequest) -> Result<SearchRequest, String> {
    let said = |name: &str| fields.get(name).filter(|value| !value.is_null());
    fields.keys().try_for_each(|name| check_field(name))?;
    let text = |name: &str| said(name).map_or(Ok(Vec::new()), |value| texts(name, value));
    let weight = |name: &str| said(name).map_or(Ok(Vec::new()), |value| numbers(name, value));
    let images =
        text("image")?.iter().map(|file| Ok(Term::Image { bytes: image(file)? })).collect::<Result<_, String>>()?;
    let items = text("like")?.into_iter().map(|item| Term::Item { item }).collect();
    let vectors = said("vector").map(|value| numbers("vector", value).map(|values| Term::Vector { values }));
    let vectors = vectors.transpose()?.into_iter().collect();
    let asked = attributes(lists(&text("with")?), lists(&text("without")?))?;
    let terms = [
        weighed("attributes_weight", "with", &weight("attributes_weight")?, asked)?,
        weighed("image_weight", "image", &weight("image_weight")?, images)?,
        weighed("like_weight", "like", &weight("like_weight")?, items)?,
        weighed("vector_weight", "vector", &weight("vector_weight")?, vectors)?,
    ]
    .concat();
    if terms.is_empty() {
        return Err("nothing is asked: give with, without, like, image or vector".into());
    }
    let filter = LabelFilter { with: lists(&text("only_with")?), without: lists(&text("only_without")?) };
    let k = said("k").map_or(Ok(blank.k), |value| whole("k", value))?;
    let share = |value: &Value| value.as_f64().ok_or_else(|| wrong("recall", value, "a share of 1"));
    let recall = said("recall").map(share).transpose()?.or(blank.recall);
    Ok(SearchRequest { terms, filter, k, recall, ..blank.clone() })
}

/// How the user calls a question.
pub fn id(fields: &Fields) -> Option<String> {
    match fields.get("id")? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn image(file: &str) -> Result<Vec<u8>, String> {
    shrink::read(Path::new(file)).map_err(|failure| failure.to_string())
}

fn wrong(name: &str, value: &Value, expected: &str) -> String {
    format!("`{name}` is {}, expected {expected}", shown(value))
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

fn texts(name: &str, value: &Value) -> Result<Vec<String>, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    let texts = match value {
        Value::Array(values) => values.iter().map(text).collect(),
        one => text(one).map(|text| vec![text]),
    };
    texts.ok_or_else(|| wrong(name, value, "text or a list of texts"))
}

fn number(name: &str, value: &Value) -> Result<f32, String> {
    let number = value.as_f64().filter(|number| number.is_finite());
    number.map(|number| number as f32).ok_or_else(|| wrong(name, value, "a number"))
}

fn numbers(name: &str, value: &Value) -> Result<Vec<f32>, String> {
    match value {
        Value::Array(values) => values.iter().map(|value| number(name, value)).collect(),
        one => Ok(vec![number(name, one)?]),
    }
}

fn whole(name: &str, value: &Value) -> Result<u32, String> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| wrong(name, value, "a whole number"))
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::Name;
    use likeness_contract::search::WeightedTerm;
    use serde_json::json;

    use super::*;

    fn blank() -> SearchRequest {
        SearchRequest::new(Name::new("main").unwrap(), Vec::new(), 20)
    }

    fn asked(value: Value) -> Result<SearchRequest, String> {
        let Value::Object(fields) = value else { panic!("an object") };
        question(&fields, &blank())
    }

    fn stored(ending: &str, text: &str) -> tempfile::TempPath {
        let file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file.into_temp_path()
    }

    fn rows(ending: &str, text: &str) -> Vec<(u64, Result<SearchRequest, String>)> {
        let rows = open(&stored(ending, text)).unwrap();
        let of = |row: Outcome<Row>| {
            let Row { line, fields } = row.unwrap();
            (line, fields.and_then(|fields| question(&fields, &blank())))
        };
        rows.map(of).collect()
    }

    #[test]
    fn a_question_says_what_a_command_line_says() {
        let request = asked(json!({
            "id": 7, "with": "Smiling,Young", "without": ["Male"], "attributes_weight": 0.5,
            "like": ["a.jpg", "b.jpg"], "like_weight": [1, -0.25], "vector": [0.5, 1], "only_with": ["Hat"], "k": 3
        }));
        let request = request.unwrap();
        let weights: Vec<f32> = request.terms.iter().map(|WeightedTerm { weight, .. }| *weight).collect();
        assert_eq!(weights, [0.5, 1.0, -0.25, 1.0]);
        assert_eq!(request.terms[3].term, Term::Vector { values: vec![0.5, 1.0] });
        assert_eq!((request.k, request.filter.with), (3, vec!["Hat".to_string()]));
        assert_eq!(asked(json!({"with": "A", "k": null})).unwrap().k, 20);
    }

    #[test]
    fn what_is_no_question_says_why() {
        let why = |value| asked(value).unwrap_err();
        assert_eq!(why(json!({"wiht": "A"})), "unknown field `wiht`; did you mean `with`?");
        assert!(why(json!({"zzzzzz": 1})).contains("known are id, with"));
        assert_eq!(why(json!({"id": "x"})), "nothing is asked: give with, without, like, image or vector");
        assert_eq!(why(json!({"with": 3})), "`with` is 3, expected text or a list of texts");
        assert_eq!(why(json!({"like": "a", "k": 1.5})), "`k` is 1.5, expected a whole number");
        assert_eq!(why(json!({"like": "a", "k": -1})), "`k` is -1, expected a whole number");
        assert_eq!(why(json!({"vector": [1, "x"]})), "`vector` is \"x\", expected a number");
        assert!(why(json!({"like": "a", "like_weight": 0})).contains("`like_weight` is 0"));
        assert!(why(json!({"like": "a", "image_weight": 1})).contains("no `image`"));
        assert!(why(json!({"with": "A", "without": "A"})).contains("both with and without"));
        assert!(why(json!({"image": "/nowhere.jpg"})).contains("/nowhere.jpg"));
    }

    #[test]
    fn lines_are_numbered_and_a_bad_one_stops_nothing() {
        let long = format!("{{\"with\": \"{}\"}}", "x".repeat(MAX_LINE_BYTES as usize));
        let text = format!("{{\"with\": \"A\"}}\n\n  \nnot json\n[1]\n{long}\n{{\"like\": \"b\"}}");
        let rows = rows(".jsonl", &text);
        assert_eq!(rows.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 4, 5, 6, 7]);
        let why = |at: usize| rows[at].1.clone().unwrap_err();
        assert!(why(1).starts_with("it is no JSON"));
        assert_eq!(why(2), "[1] is no question: a JSON object is expected");
        assert!(why(3).contains("more than 1048576 bytes"));
        assert!(rows[0].1.is_ok() && rows[4].1.is_ok());
    }

    #[test]
    fn a_table_of_text_is_read_by_its_columns() {
        let text = "id,with,like,vector,k,like_weight\n1,\"Smiling,Young\",,,5,\n2,,a.jpg,0.5 -1,,-2\n3,A\n4,A,,x,,\n";
        let rows = rows(".csv", text);
        assert_eq!(rows[0].0, 2);
        assert_eq!(rows[0].1.as_ref().unwrap().k, 5);
        let second = rows[1].1.as_ref().unwrap();
        assert_eq!(second.terms[0], WeightedTerm { weight: -2.0, term: Term::Item { item: "a.jpg".into() } });
        assert_eq!(second.terms[1].term, Term::Vector { values: vec![0.5, -1.0] });
        assert!(rows[2].1.is_err(), "a row of another length");
        assert_eq!(rows[3].1.clone().unwrap_err(), "`vector` is \"x\", expected a number");
    }

    #[test]
    fn a_wrong_file_is_refused_before_anything_is_asked() {
        let refused = |file: &Path| {
            let failure = open(file).err().expect("refused");
            assert_eq!(failure.exit as u8, 64);
            failure.to_string()
        };
        assert!(refused(&stored(".csv", "wiht,k\nA,1\n")).contains("did you mean `with`?"));
        assert!(refused(&stored(".cvs", "with\n")).contains("did you mean `csv`"));
        assert!(refused(&stored(".jsonl", "PAR1x")).contains("call it .parquet"));
        assert!(refused(&stored(".jsonl", "\n \n")).contains("has no questions"));
        assert!(refused(Path::new("/nowhere.jsonl")).contains("/nowhere.jsonl"));
        assert!(refused(Path::new("/nowhere.parquet")).contains("/nowhere.parquet"));
    }
}
