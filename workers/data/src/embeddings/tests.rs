use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Float32Builder, Float64Builder, ListBuilder};
use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use likeness_contract::ids::Name;
use likeness_contract::jobs::{EmbeddingSource, Import, ImportColumns, ZeroLabel};
use parquet::arrow::ArrowWriter;

use super::{EmbeddingList, read_embeddings, scan_embeddings};
use crate::error::Result;
use crate::source::Disk;

fn import(source: EmbeddingSource) -> Import {
    let (gallery, columns, zero) = (Name::new("g").unwrap(), ImportColumns::default(), ZeroLabel::Auto);
    Import { gallery, source, columns, zero, normalize: false, shard_rows: 100 }
}

fn scan(import: &Import) -> Result<EmbeddingList> {
    scan_embeddings(import, Arc::new(Disk))
}

fn read(import: &Import, from: usize, rows: usize) -> Result<Vec<f32>> {
    let found = scan(import)?;
    read_embeddings(import, found.dim, &found.scan.rows[from..from + rows], Arc::new(Disk))
}

fn fixed(rows: &[Option<[f32; 2]>]) -> ArrayRef {
    let mut builder = FixedSizeListBuilder::new(Float32Builder::new(), 2);
    for row in rows {
        row.unwrap_or_default().into_iter().for_each(|value| builder.values().append_value(value));
        builder.append(row.is_some());
    }
    Arc::new(builder.finish())
}

fn lists(rows: &[&[f64]]) -> ArrayRef {
    let mut builder = ListBuilder::new(Float64Builder::new());
    for row in rows {
        row.iter().for_each(|value| builder.values().append_value(*value));
        builder.append(true);
    }
    Arc::new(builder.finish())
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>) -> String {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, c)| (name, c, true))).unwrap();
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path.to_str().unwrap().into()
}

fn npy(path: &Path, descr: &str, shape: &str, values: &[u8]) -> String {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let length = u16::try_from(header.len()).unwrap().to_le_bytes();
    let bytes = [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), values].concat();
    std::fs::write(path, bytes).unwrap();
    path.to_str().unwrap().into()
}

fn table(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn parquet_files_are_read_with_labels_and_splits() {
    let dir = tempfile::tempdir().unwrap();
    let first = write(
        &dir.path().join("a.parquet"),
        vec![
            ("image_id", texts(&["a", "b", "c"])),
            ("embedding", fixed(&[Some([0.6, 0.8]), Some([1.0, 0.0]), Some([0.0, 1.0])])),
            ("smiling", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
            ("coded", Arc::new(Int64Array::from(vec![Some(1), Some(-1), Some(0)]))),
            ("plain", Arc::new(Int64Array::from(vec![Some(1), Some(0), None]))),
            ("count", Arc::new(Int64Array::from(vec![7, 8, 9]))),
            ("split", texts(&["train", "validation", "test"])),
        ],
    );
    let second = write(
        &dir.path().join("b.parquet"),
        vec![
            ("image_id", texts(&["d"])),
            ("embedding", lists(&[&[0.8, 0.6]])),
            ("plain", Arc::new(Int64Array::from(vec![0]))),
            ("coded", Arc::new(Int64Array::from(vec![0]))),
            ("count", Arc::new(Int64Array::from(vec![1]))),
            ("smiling", Arc::new(BooleanArray::from(vec![true]))),
            ("split", texts(&["2"])),
        ],
    );
    let import = import(EmbeddingSource::Parquet { files: vec![first, second] });
    let EmbeddingList { scan: found, dim } = scan(&import).unwrap();
    assert_eq!((dim, found.vocabulary.names.as_slice()), (2, &["smiling", "coded", "plain"].map(String::from)[..]));
    let rows: Vec<(&str, u8, &[i8])> =
        found.rows.iter().map(|row| (row.item.as_str(), row.split, row.attributes.as_slice())).collect();
    let expected: [(&str, u8, &[i8]); 4] =
        [("a", 0, &[1, 1, 1]), ("b", 1, &[0, -1, -1]), ("c", 2, &[-1, 0, 0]), ("d", 2, &[1, 0, -1])];
    assert_eq!(rows, expected);
    assert_eq!(found.warnings, ["columns that are no attributes were left out: `count`"]);
    assert_eq!(read(&import, 0, 4).unwrap(), [0.6, 0.8, 1.0, 0.0, 0.0, 1.0, 0.8, 0.6]);
    assert_eq!(read(&import, 2, 2).unwrap(), [0.0, 1.0, 0.8, 0.6], "some rows of two files");
}

#[test]
fn an_array_goes_with_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let text = table(&dir.path().join("t.csv"), "id;hat;weather\nx;1;rain\ny;0;sun\nz;;-1\n");
    let f4: Vec<u8> = [3.0f32, 4.0, 1.0, 0.0, 0.0, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let f2: Vec<u8> =
        [3.0f32, 4.0, 1.0, 0.0, 0.0, 2.0].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    for (descr, bytes) in [("<f4", &f4), ("<f2", &f2)] {
        let file = npy(&dir.path().join("v.npy"), descr, "(3, 2)", bytes);
        let mut import = import(EmbeddingSource::Npy { file, table: text.clone() });
        let error = read(&import, 0, 3).unwrap_err().to_string();
        assert!(error.contains("the vector of `x` has norm 5.0000 instead of 1"), "{error}");
        import.normalize = true;
        assert_eq!(read(&import, 0, 3).unwrap(), [0.6, 0.8, 1.0, 0.0, 0.0, 1.0]);
        assert_eq!(read(&import, 1, 1).unwrap(), [1.0, 0.0]);
        let found = scan(&import).unwrap().scan;
        let labels: Vec<&[i8]> = found.rows.iter().map(|row| row.attributes.as_slice()).collect();
        assert_eq!((found.vocabulary.names, labels), (vec!["hat".to_string()], vec![&[1][..], &[-1], &[0]]));
        assert!(found.rows.iter().all(|row| row.split == 2), "nothing was trained on them here");
    }
}

#[test]
fn rows_without_labels_get_one_attribute_and_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let columns = vec![("id", texts(&["a"])), ("v", fixed(&[Some([0.0, 1.0])]))];
    let file = write(&dir.path().join("a.parquet"), columns);
    let found = scan(&import(EmbeddingSource::Parquet { files: vec![file] })).unwrap().scan;
    assert_eq!((found.vocabulary.names.len(), found.rows[0].attributes.as_slice()), (1, &[1][..]));
    assert_eq!(found.warnings, ["no column holds labels: every row has the one attribute `imported`"]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let unit = || Some([0.6f32, 0.8]);
    let error = |columns: Vec<(&str, ArrayRef)>, change: &dyn Fn(&mut Import)| {
        let mut import = import(EmbeddingSource::Parquet { files: vec![write(&path, columns)] });
        change(&mut import);
        let rows = scan(&import).map(|found| found.scan.rows.len());
        rows.and_then(|rows| read(&import, 0, rows)).unwrap_err().to_string()
    };
    let none = |_: &mut Import| {};
    let ids = || ("id", texts(&["a", "b"]));
    type Change = Box<dyn Fn(&mut Import)>;
    type Case = (Vec<(&'static str, ArrayRef)>, Change, &'static str);
    let cases: Vec<Case> = vec![
        (
            vec![("id", texts(&["a", "a"])), ("v", fixed(&[unit(), unit()]))],
            Box::new(none),
            "row 1: item `a` is there already",
        ),
        (
            vec![("id", texts(&["a", ""])), ("v", fixed(&[unit(), unit()]))],
            Box::new(none),
            "row 1: the item id is empty",
        ),
        (
            vec![("who", texts(&["a", "b"])), ("v", fixed(&[unit(), unit()]))],
            Box::new(none),
            "say `--id-column`: `who`, `v`",
        ),
        (vec![ids()], Box::new(none), "no column holds lists of numbers"),
        (
            vec![ids(), ("v", fixed(&[unit(), unit()])), ("w", fixed(&[unit(), unit()]))],
            Box::new(none),
            "`--vector-column`",
        ),
        (vec![ids(), ("v", fixed(&[unit(), None]))], Box::new(none), "row 1: the vector of `b` is null"),
        (vec![ids(), ("v", fixed(&[unit(), Some([f32::NAN, 0.0])]))], Box::new(none), "of `b` is not finite"),
        (vec![ids(), ("v", fixed(&[unit(), Some([0.0, 0.0])]))], Box::new(|i| i.normalize = true), "of `b` is zero"),
        (vec![ids(), ("v", lists(&[&[1.0], &[0.6, 0.8]]))], Box::new(none), "of `b` has 2 numbers, expected 1"),
        (vec![ids(), ("v", lists(&[&[], &[]]))], Box::new(none), "vectors of 0 numbers"),
        (
            vec![ids(), ("v", fixed(&[unit(), unit()])), ("split", texts(&["train", "later"]))],
            Box::new(none),
            "row 1: split `later`",
        ),
        (
            vec![ids(), ("v", fixed(&[unit(), unit()])), ("n", Arc::new(Int64Array::from(vec![1, 5])))],
            Box::new(|i| i.columns.attributes = vec!["n".into()]),
            "column `n`:",
        ),
        (
            vec![ids(), ("v", fixed(&[unit(), unit()]))],
            Box::new(|i| i.columns.vector = Some("x".into())),
            "no column `x`",
        ),
    ];
    for (columns, change, word) in cases {
        let text = error(columns, &*change);
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn an_array_of_another_size_than_its_table_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = table(&dir.path().join("t.csv"), "id\nx\n");
    let of = |shape: &str, bytes: usize| {
        let file = npy(&dir.path().join("v.npy"), "<f4", shape, &vec![0; bytes]);
        scan(&import(EmbeddingSource::Npy { file, table: text.clone() })).unwrap_err().to_string()
    };
    assert!(of("(2, 2)", 16).contains("has 1 rows, the array"), "{}", of("(2, 2)", 16));
    assert!(of("(2, 2)", 15).contains("are not those of 2 × 2 numbers"));
    assert!(of("(2, 18446744073709551615)", 16).contains("are not those of"));
}

#[test]
fn a_file_that_is_no_parquet_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = table(&dir.path().join("a.parquet"), "PAR1 but not really PAR1");
    let error = scan(&import(EmbeddingSource::Parquet { files: vec![file] })).unwrap_err().to_string();
    assert!(error.contains("a.parquet` is no Parquet file or is damaged"), "{error}");
}
