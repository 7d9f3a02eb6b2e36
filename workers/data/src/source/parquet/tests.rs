use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int8Array, Int64Array, RecordBatch, StringArray, StructArray,
};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use likeness_contract::jobs::IngestSource;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use tempfile::TempDir;

use crate::error::{ErrorKind, Result};
use crate::rows::{Place, Scan};
use crate::source::{Disk, Files, PartContent, read_rows, read_rows_from, scan, scan_from};
use crate::testing::{chain, fixture};

fn images(rows: &[(Option<Bytes>, Option<&str>)]) -> ArrayRef {
    let bytes = BinaryArray::from_iter(rows.iter().map(|(bytes, _)| bytes.as_ref()));
    let paths = StringArray::from_iter(rows.iter().map(|(_, path)| *path));
    let field = |name: &str, data_type| Arc::new(Field::new(name, data_type, true));
    Arc::new(StructArray::from(vec![
        (field("bytes", DataType::Binary), Arc::new(bytes) as ArrayRef),
        (field("path", DataType::Utf8), Arc::new(paths)),
    ]))
}

fn good(paths: &[&'static str]) -> ArrayRef {
    images(&paths.iter().map(|path| (Some(fixture("rgb.jpg")), Some(*path))).collect::<Vec<_>>())
}

fn flags(values: &[bool]) -> ArrayRef {
    Arc::new(BooleanArray::from(values.to_vec()))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn write(dir: &TempDir, name: &str, columns: Vec<(&str, ArrayRef)>) -> String {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(2)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let path = dir.path().join(name);
    fs::write(&path, writer.into_inner().unwrap()).unwrap();
    path.to_str().unwrap().into()
}

fn source(files: &[&String]) -> IngestSource {
    IngestSource::Parquet { files: files.iter().map(ToString::to_string).collect() }
}

fn splits(scan: &Scan) -> Vec<u8> {
    scan.rows.iter().map(|row| row.split).collect()
}

fn items(scan: &Scan) -> Vec<&str> {
    scan.rows.iter().map(|row| row.item.as_str()).collect()
}

fn refusal(dir: &TempDir, columns: Vec<(&str, ArrayRef)>) -> String {
    let error = scan(&source(&[&write(dir, "x.parquet", columns)])).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    error.to_string().replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn a_file_as_on_the_hub_is_read_whole() {
    let dir = TempDir::new().unwrap();
    let file = write(
        &dir,
        "celeba.parquet",
        vec![
            ("image", good(&["000001.jpg", "000002.jpg", "000003.jpg"])),
            ("Smiling", Arc::new(BooleanArray::from(vec![Some(true), Some(false), None]))),
            ("Male", Arc::new(Int8Array::from(vec![1, -1, 0]))),
            ("celeb_id", Arc::new(Int64Array::from(vec![2880, 2937, 8692]))),
            ("caption", texts(&["a", "b", "c"])),
            ("split", texts(&["train", "validation", "test"])),
        ],
    );
    let source = source(&[&file]);
    let scan = scan(&source).unwrap();
    assert_eq!(scan.vocabulary.names, ["Smiling", "Male"]);
    assert_eq!(items(&scan), ["000001.jpg", "000002.jpg", "000003.jpg"]);
    assert_eq!(splits(&scan), [0, 1, 2]);
    assert_eq!(scan.rows.iter().map(|row| row.attributes.clone()).collect::<Vec<_>>(), [[1, 1], [-1, -1], [0, 0]]);
    assert_eq!(scan.rows[2].place, Place::Parquet { file: 0, row: 2 });
    assert_eq!(scan.warnings, ["columns that are no attributes were left out: `celeb_id`, `caption`"]);

    let PartContent { rows, skipped } = read_rows(&source, &scan.rows[1..], &|_| ()).unwrap();
    assert!(skipped.is_empty());
    assert_eq!(rows.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(), ["000002.jpg", "000003.jpg"]);
    assert_eq!((rows[0].image.clone(), rows[0].width, rows[0].split), (fixture("rgb.jpg"), 45, 1));
}

#[test]
fn plain_binary_images_and_id_columns_are_read() {
    let dir = TempDir::new().unwrap();
    let bytes = fixture("rgb.png");
    let image: ArrayRef = Arc::new(BinaryArray::from_iter([Some(&bytes), None]));
    let file = write(
        &dir,
        "valid-00000-of-00001.parquet",
        vec![("image_id", texts(&["a", "b"])), ("image", image), ("Smiling", flags(&[true, false]))],
    );
    let source = source(&[&file]);
    let scan = scan(&source).unwrap();
    assert_eq!((items(&scan), splits(&scan)), (vec!["a", "b"], vec![1, 1]));
    assert!(scan.warnings.is_empty(), "{:?}", scan.warnings);
    let PartContent { rows, skipped } = read_rows(&source, &scan.rows, &|_| ()).unwrap();
    assert_eq!((rows.len(), skipped[0].item.as_str(), skipped[0].reason.as_str()), (1, "b", "no image"));
}

#[test]
fn rows_without_any_name_are_numbered_and_split_by_a_hash() {
    let dir = TempDir::new().unwrap();
    let image = images(&vec![(Some(fixture("rgb.jpg")), None); 40]);
    let file = write(&dir, "faces.parquet", vec![("image", image), ("Smiling", flags(&[[true, false]; 20].concat()))]);
    let scan = scan(&source(&[&file])).unwrap();
    assert_eq!((items(&scan)[0], items(&scan)[39]), ("faces.parquet#0", "faces.parquet#39"));
    assert!((1..=2).all(|split| splits(&scan).contains(&split)), "{:?}", splits(&scan));
    assert_eq!(
        scan.warnings,
        ["40 of 40 rows have no split, by column or by file name: assigned 80/10/10 by a hash of the item id"]
    );
}

#[test]
fn several_files_share_one_vocabulary_in_any_order_of_columns() {
    let dir = TempDir::new().unwrap();
    let columns = |smiling: bool, male: bool| (("Smiling", flags(&[smiling])), ("Male", flags(&[male])));
    let (smiling, male) = columns(true, false);
    let first = write(&dir, "train-0.parquet", vec![("image", good(&["a"])), smiling, male]);
    let (smiling, male) = columns(false, true);
    let second = write(&dir, "test-0.parquet", vec![male, ("image", good(&["b"])), smiling]);
    let scan = scan(&source(&[&first, &second])).unwrap();
    assert_eq!(scan.rows.iter().map(|row| row.attributes.clone()).collect::<Vec<_>>(), [[1, -1], [-1, 1]]);
    assert_eq!(splits(&scan), [0, 2]);
    let content = read_rows(&source(&[&first, &second]), &scan.rows, &|_| ()).unwrap();
    assert_eq!(content.rows.len(), 2);
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let dir = TempDir::new().unwrap();
    let image = || ("image", good(&["a"]));
    let both = write(&dir, "1.parquet", vec![image(), ("Smiling", flags(&[true])), ("Male", flags(&[true]))]);
    let one = write(&dir, "2.parquet", vec![("image", good(&["b"])), ("Male", flags(&[true]))]);
    let again = write(&dir, "3.parquet", vec![image(), ("Smiling", flags(&[true])), ("Male", flags(&[true]))]);
    let refusal = |files: &[&String]| {
        scan(&source(files)).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(refusal(&[&both, &one]), "`2.parquet`: attribute column `Smiling` of the first file is missing");
    assert_eq!(refusal(&[&one, &both]), "`1.parquet`: attribute column `Smiling` is not in the first file");
    assert_eq!(refusal(&[&both, &again]), "`3.parquet` row 0: item `a` is there already in `1.parquet` row 0");
    assert_eq!(refusal(&[]), "no Parquet file was named");
}

#[test]
fn columns_that_are_wrong_are_named() {
    let dir = TempDir::new().unwrap();
    let image = || ("image", good(&["a", "b", "c"]));
    let smiling = || ("Smiling", flags(&[true, false, true]));
    let numbers = |values: [i64; 3]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let cases = [
        (
            vec![("images", good(&["a", "b", "c"])), smiling()],
            "`x.parquet`: column `image` is missing; did you mean `images`?",
        ),
        (
            vec![("image", texts(&["a", "b", "c"])), smiling()],
            "`x.parquet`: column `image` is Utf8: expected binary, or a struct of `bytes` and `path`",
        ),
        (vec![image()], "`x.parquet`: no attribute"),
        (vec![image(), ("Age", numbers([1, 0, 31]))], "`x.parquet` row 2, column `Age`: 31 is no label: -1, 0 or 1"),
        (
            vec![image(), ("Smiling", Arc::new(Float64Array::from(vec![1.0, -1.0, 1.0])))],
            "`x.parquet`: column `Smiling` is Float64: a label is boolean, or an integer -1, 0 or 1",
        ),
        (
            vec![image(), smiling(), ("split", texts(&["train", "holdout", "test"]))],
            "`x.parquet` row 1: split `holdout` is not train, validation or test",
        ),
    ];
    for (columns, expected) in cases {
        assert_eq!(refusal(&dir, columns), expected);
    }
}

#[test]
fn integers_that_never_say_minus_are_warned_of() {
    let dir = TempDir::new().unwrap();
    let numbers: ArrayRef = Arc::new(Int8Array::from(vec![0, 1]));
    let file = write(&dir, "train.parquet", vec![("image", good(&["a", "b"])), ("Smiling", numbers)]);
    let scan = scan(&source(&[&file])).unwrap();
    assert_eq!(scan.warnings[0], "`Smiling` hold 0 and 1 and never -1: 0 was read as not known, not as has not");
    assert_eq!(scan.warnings[1], "`Smiling` never differ between rows: nothing can be learned about them");
}

#[test]
fn a_damaged_file_is_named_wherever_it_is_cut() {
    let dir = TempDir::new().unwrap();
    let whole = write(&dir, "train.parquet", vec![("image", good(&["a", "b"])), ("Smiling", flags(&[true, false]))]);
    let bytes = fs::read(&whole).unwrap();
    let cut = dir.path().join("cut.parquet");
    for length in (0..bytes.len()).step_by(7) {
        fs::write(&cut, &bytes[..length]).unwrap();
        let error = scan(&source(&[&cut.to_str().unwrap().to_string()])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.to_string().ends_with("cut.parquet` is no Parquet file or is damaged"), "{}", chain(&error));
    }
    let missing = scan(&source(&[&"/nowhere/x.parquet".to_string()])).unwrap_err();
    assert!(missing.kind == ErrorKind::Invalid && chain(&missing).contains("No such file"), "{}", chain(&missing));
}

#[test]
fn a_file_with_flipped_bits_ends_in_rows_or_an_error() {
    let dir = TempDir::new().unwrap();
    let whole = write(&dir, "train.parquet", vec![("image", good(&["a", "b"])), ("Smiling", flags(&[true, false]))]);
    let bytes = fs::read(&whole).unwrap();
    let path = dir.path().join("flipped.parquet").to_str().unwrap().to_string();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x15;
        fs::write(&path, &flipped).unwrap();
        let source = source(&[&path]);
        let _ = scan(&source).and_then(|scan| read_rows(&source, &scan.rows, &|_| ()));
    }
}

/// A disk that fails from some read on.
struct Flaky {
    kind: io::ErrorKind,
}

impl Files for Flaky {
    fn size(&self, path: &str) -> io::Result<u64> {
        Disk.size(path)
    }

    fn read(&self, path: &str, range: Range<u64>) -> io::Result<Bytes> {
        // The footer can be read, the rows can't.
        if range.start < 100 { Err(io::Error::new(self.kind, "stale handle")) } else { Disk.read(path, range) }
    }

    fn is_folder(&self, path: &str) -> io::Result<bool> {
        Disk.is_folder(path)
    }
}

#[test]
fn failing_input_is_told_from_a_damaged_file() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "train.parquet", vec![("Smiling", flags(&[true, false])), ("image", good(&["a", "b"]))]);
    let error = scan_from(&source(&[&file]), Arc::new(Flaky { kind: io::ErrorKind::TimedOut })).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{}", chain(&error));
    assert!(chain(&error).ends_with("can't be read: stale handle"), "{}", chain(&error));
}

#[test]
fn a_file_that_shrank_since_the_scan_is_noticed() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "train.parquet", vec![("image", good(&["a", "b"])), ("Smiling", flags(&[true, false]))]);
    let source = source(&[&file]);
    let scan = scan(&source).unwrap();
    write(&dir, "train.parquet", vec![("image", good(&["a"])), ("Smiling", flags(&[true]))]);
    let read: Result<PartContent> = read_rows_from(&source, &scan.rows, Arc::new(Disk), &|_| ());
    let error = read.unwrap_err().to_string();
    assert!(error.ends_with("train.parquet` is not what it was when it was scanned"), "{error}");
}

#[test]
fn the_demo_is_read_whole() {
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../infra/demo/avatars.parquet");
    let source = source(&[&demo.to_str().unwrap().to_string()]);
    let scan = scan(&source).unwrap();
    assert!(scan.warnings.is_empty(), "{:?}", scan.warnings);
    assert_eq!((scan.vocabulary.len(), scan.rows.len()), (39, 3000));
    let of_split = |split: u8| splits(&scan).iter().filter(|s| **s == split).count();
    assert_eq!([0, 1, 2].map(of_split), [2000, 200, 800]);
    let rows = [&scan.rows[100..103], &scan.rows[700..702], &scan.rows[2999..]].concat();
    let content = read_rows(&source, &rows, &|_| ()).unwrap();
    let items: Vec<&str> = content.rows.iter().map(|row| row.item.as_str()).collect();
    assert_eq!(items, ["000101.jpg", "000102.jpg", "000103.jpg", "000701.jpg", "000702.jpg", "003000.jpg"]);
    assert!(content.rows.iter().all(|row| (row.width, row.height) == (96, 96)));
}
