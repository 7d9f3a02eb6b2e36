use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;

use super::*;

fn vocabulary() -> Vocabulary {
    Vocabulary { names: ["Smiling", "Male", "Wavy_Hair"].map(String::from).to_vec() }
}

fn read(name: &str, text: &str) -> Result<Vec<BroughtQuery>> {
    BroughtFile::read(name, Bytes::copy_from_slice(text.as_bytes()), &vocabulary()).map(|file| file.queries)
}

fn refused(name: &str, text: &str) -> String {
    read(name, text).unwrap_err().to_string()
}

fn query(line: u64, name: Option<&str>, with: &[&str], without: &[&str], item: Option<&str>) -> BroughtQuery {
    let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
    let (name, item) = (name.map(String::from), item.map(String::from));
    BroughtQuery { line, name, with: words(with), without: words(without), item, vector: None }
}

#[test]
fn every_form_says_the_same() {
    let csv = "name,with,without,item\nhappy,\"smiling, wavy hair\",,\n,,Male,\n\n\"a, b\",Smiling,male,1.jpg\n";
    let expected = [
        query(2, Some("happy"), &["Smiling", "Wavy_Hair"], &[], None),
        query(3, None, &[], &["Male"], None),
        query(5, Some("a, b"), &["Smiling"], &["Male"], Some("1.jpg")),
    ];
    assert_eq!(read("q.csv", csv).unwrap(), expected);
    let json = "{\"id\": \"happy\", \"with\": [\"smiling\", \"Wavy-Hair\"]}\n{\"without\": \"Male\", \"item\": null}\n\n\n\
                {\"name\": \"a, b\", \"with\": \"Smiling\", \"without\": [\"male\"], \"image\": \"1.jpg\"}\n";
    let at = |lines: [u64; 3]| {
        expected.iter().zip(lines).map(|(q, line)| BroughtQuery { line, ..q.clone() }).collect::<Vec<_>>()
    };
    assert_eq!(read("q.jsonl", json).unwrap(), at([1, 2, 5]));

    let mut with = ListBuilder::new(StringBuilder::new());
    with.append_value([Some("smiling"), Some("wavy hair")]);
    with.append_null();
    with.append_value([Some("Smiling")]);
    let text = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("with", Arc::new(with.finish())),
        ("without", text([None, Some("Male"), Some("male")])),
        ("like", text([None, None, Some("1.jpg")])),
        ("name", text([Some("happy"), Some(""), Some("a, b")])),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert_eq!(BroughtFile::read("q.parquet", bytes.into(), &vocabulary()).unwrap().queries, at([1, 2, 3]));
}

#[test]
fn a_mistake_is_told_with_its_line_and_the_nearest_name() {
    assert_eq!(
        refused("q.csv", "with\nSmiling\nSmilng\n"),
        "line 3: there is no attribute `Smilng`; did you mean `Smiling`?"
    );
    let both = refused("q.csv", "with,without\nMale,male\n");
    assert_eq!(both, "line 2: `Male` is asked for and must not be there");
    let none = refused("q.jsonl", "{\"with\": [\"Male\"]}\n{\"item\": \"1.jpg\"}");
    assert!(none.starts_with("line 2: it names no attribute"), "{none}");
    let column = refused("q.csv", "whit\nMale\n");
    assert!(column.starts_with("line 1: there is no column `whit`; did you mean `with`"), "{column}");
    let twice = refused("q.csv", "with,item,like\nMale,a,b\n");
    assert_eq!(twice, "line 1: column `like` says `item` once more");
    let same = refused("q.csv", "with\n\"Male,Smiling\"\nMale\n\"Smiling,Male\"\n");
    assert!(same.starts_with("line 4: it asks the same as line 2"), "{same}");
    assert!(read("q.csv", "name,with\na,Male\nb,Male\n").is_ok());
    let list = refused("q.jsonl", "{\"with\": \"Male\", \"item\": [\"a\", \"b\"]}");
    assert_eq!(list, "line 1: `item` is a list");
    assert!(refused("q.jsonl", "\n{\"with\": 3}").starts_with("line 2: expected an object"));
    assert!(refused("q.csv", "with,item\nMale\n").starts_with("line 2: it is no CSV"));
    assert!(refused("q.txt", "with\nMale\n").contains(".csv, .tsv"));
    assert_eq!(refused("q.csv", "with\n"), "`q.csv` has no query");
    assert!(refused("q.parquet", "PAR1").contains("no Parquet file"));
}

#[test]
fn the_stored_form_reads_back_and_another_is_refused() {
    let file = BroughtFile::read("q.csv", Bytes::from("with\nMale\n"), &vocabulary()).unwrap();
    assert_eq!(BroughtFile::decode(&file.encode()).unwrap(), file);
    let other = String::from_utf8(file.encode()).unwrap().replace("queries-1", "queries-9");
    assert!(BroughtFile::decode(other.as_bytes()).is_err());
    assert!(BroughtFile::decode(b"{}").is_err());
}

#[test]
fn a_query_may_bring_its_vector() {
    let file = |name: &str, text: &str| BroughtFile::read(name, Bytes::copy_from_slice(text.as_bytes()), &vocabulary());
    let json = "{\"with\": \"Male\", \"vector\": [0.6, -8e-1]}\n{\"with\": \"Male\", \"embedding\": [1, 0]}\n{\"with\": \"Male\"}\n";
    let found = file("q.jsonl", json).unwrap();
    let vectors: Vec<Option<&[f32]>> = found.queries.iter().map(|query| query.vector.as_deref()).collect();
    assert_eq!(vectors, [Some(&[0.6, -0.8][..]), Some(&[1.0, 0.0][..]), None]);
    assert!(found.has_vectors() && BroughtFile::decode(&found.encode()).unwrap() == found);
    assert!(!file("q.jsonl", "{\"with\": \"Male\"}").unwrap().has_vectors());

    let mut numbers = ListBuilder::new(arrow_array::builder::Float64Builder::new());
    numbers.append_value([Some(0.25), Some(-0.5)]);
    numbers.append_null();
    let columns: Vec<(&str, ArrayRef)> =
        vec![("with", Arc::new(StringArray::from(vec!["Male", "Smiling"]))), ("vector", Arc::new(numbers.finish()))];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let found = BroughtFile::read("q.parquet", bytes.into(), &vocabulary()).unwrap().queries;
    assert_eq!((found[0].vector.as_deref(), found[1].vector.as_deref()), (Some(&[0.25, -0.5][..]), None));

    let refused = |text: &str| file("q.jsonl", text).unwrap_err().to_string();
    assert!(refused("{\"with\": \"Male\", \"vector\": [0, 0]}").contains("line 1: its vector has no direction"));
    assert!(refused("{\"with\": \"Male\", \"vector\": \"1 0\"}").contains("`vector` holds text"));
    assert!(refused("{\"with\": [1, 0]}").contains("`with` holds numbers"));
    assert!(refused("{\"with\": \"Male\", \"item\": \"a\", \"vector\": [1]}").contains("both ask"));
    assert!(file("q.csv", "with,vector\nMale,1 0\n").unwrap_err().to_string().contains("`vector` holds text"));
}
