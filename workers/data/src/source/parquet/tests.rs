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
use likeness_contract::jobs::{CsvColumns, IngestSource, LabelWords, ReadFrom, ReadSource, ZeroLabel};
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

    let PartContent { rows, skipped } = read_rows(&scan.places, &scan.rows[1..], &|_| ()).unwrap();
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
    let PartContent { rows, skipped } = read_rows(&scan.places, &scan.rows, &|_| ()).unwrap();
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
    let content = read_rows(&scan.places, &scan.rows, &|_| ()).unwrap();
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
        (
            vec![image(), ("Old", numbers([1, 0, 31]))],
            "`x.parquet` row 2: `31` of `Old` is no label: 1, -1, 0, true, false, yes, no or empty",
        ),
        (vec![image(), ("Age", numbers([40, 1, 31]))], "`x.parquet`: no attribute"),
        (
            vec![image(), ("Smiling", Arc::new(Float64Array::from(vec![1.0, -1.0, 0.5])))],
            "`x.parquet` row 2: `0.5` of `Smiling` is no label: 1, -1, 0, true, false, yes, no or empty",
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

fn read(dir: &TempDir, name: &str, columns: CsvColumns, labels: LabelWords) -> Result<Scan> {
    let from = ReadFrom::Parquet { files: vec![dir.path().join(name).to_str().unwrap().into()] };
    scan(&IngestSource::Read(Box::new(ReadSource { from, columns, labels })))
}

#[test]
fn zero_is_not_known_only_beside_minus_one() {
    let dir = TempDir::new().unwrap();
    let numbers = |values: &[i8]| -> ArrayRef { Arc::new(Int8Array::from(values.to_vec())) };
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![1.0, -0.0, f64::NAN]));
    let columns =
        vec![("image", good(&["a", "b", "c"])), ("x", numbers(&[0, 1, 0])), ("y", numbers(&[0, 1, -1])), ("z", floats)];
    let file = write(&dir, "train.parquet", columns);
    let scan = scan(&source(&[&file])).unwrap();
    assert_eq!(
        scan.rows.iter().map(|row| row.attributes.clone()).collect::<Vec<_>>(),
        [[-1, 0, 1], [1, 1, -1], [-1, -1, 0]]
    );
    assert_eq!(scan.zeros, [Some(ZeroLabel::No), Some(ZeroLabel::Unknown), Some(ZeroLabel::No)]);
    let counts: Vec<[u64; 3]> = scan.labels().iter().map(|c| [c.has, c.has_not, c.unknown]).collect();
    assert_eq!(counts, [[1, 2, 0], [1, 1, 1], [1, 1, 1]]);
}

#[test]
fn columns_and_words_are_taken_as_told() {
    let dir = TempDir::new().unwrap();
    let people: ArrayRef = Arc::new(Int64Array::from((0..40).map(|i| i / 4).collect::<Vec<_>>()));
    let ids: Vec<String> = (0..40).map(|i| format!("id-{i}")).collect();
    let words: Vec<&str> = (0..40).map(|i| ["ja", "nein", "?"][i % 3]).collect();
    let columns = vec![
        ("photo", images(&vec![(Some(fixture("rgb.jpg")), Some("same.jpg")); 40])),
        ("key", texts(&ids.iter().map(String::as_str).collect::<Vec<_>>())),
        ("person", people),
        ("glasses", texts(&words)),
        ("note", texts(&vec!["x"; 40])),
    ];
    write(&dir, "train-0.parquet", columns);
    let some = |name: &str| Some(name.to_string());
    let told = CsvColumns {
        path: some("photo"),
        item: some("key"),
        split: None,
        group: some("person"),
        attributes: vec!["glasses".into()],
    };
    let labels = LabelWords { has: vec!["JA".into()], has_not: vec!["nein".into()], ..LabelWords::default() };
    let scan = read(&dir, "train-0.parquet", told.clone(), labels.clone()).unwrap();
    assert_eq!((items(&scan)[7], &scan.vocabulary.names), ("id-7", &vec!["glasses".to_string()]));
    assert_eq!(scan.rows[..3].iter().map(|row| row.attributes[0]).collect::<Vec<_>>(), [1, -1, 0]);
    assert!(scan.rows.chunks(4).all(|person| person.iter().all(|row| row.split == person[0].split)));
    assert!(scan.rows.iter().any(|row| row.split != 0), "the file's name does not tell the split beside a group");
    let content = read_rows(&scan.places, &scan.rows[3..5], &|_| ()).unwrap();
    assert_eq!(content.rows.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(), ["id-3", "id-4"]);

    let refused = |columns: CsvColumns, labels: LabelWords| {
        let message = read(&dir, "train-0.parquet", columns, labels).unwrap_err().to_string();
        message.replace(&format!("{}/", dir.path().display()), "")
    };
    let missing = refused(CsvColumns { group: some("persons"), ..told.clone() }, labels.clone());
    assert_eq!(missing, "`train-0.parquet`: column `persons` is missing; did you mean `person`?");
    let unlike = refused(CsvColumns { attributes: vec!["photo".into()], ..told.clone() }, labels);
    assert!(unlike.contains("no label can be in it"), "{unlike}");
    let plain = refused(told, LabelWords::default());
    assert!(plain.starts_with("`train-0.parquet` row 0: `ja` of `glasses` is no label"), "{plain}");
}

#[test]
fn folders_and_patterns_stand_for_their_files() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("more/.hidden")).unwrap();
    for (name, item) in
        [("train-1.parquet", "b"), ("train-0.parquet", "a"), ("test-0.parquet", "c"), ("more/val.parquet", "d")]
    {
        write(&dir, name, vec![("image", good(&[item])), ("Smiling", flags(&[true]))]);
    }
    fs::write(dir.path().join("more/.hidden/x.parquet"), b"no parquet").unwrap();
    fs::write(dir.path().join("notes.txt"), b"no parquet").unwrap();
    let of = |patterns: &[&str]| {
        let files = patterns.iter().map(|pattern| dir.path().join(pattern).to_str().unwrap().into()).collect();
        scan(&IngestSource::Parquet { files })
    };
    let listed = |patterns: &[&str]| {
        let scan = of(patterns).unwrap();
        let content = read_rows(&scan.places, &scan.rows, &|_| ()).unwrap();
        assert!(content.skipped.is_empty());
        content.rows.iter().map(|row| row.item.clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&["train-*.parquet"]), ["a", "b"]);
    assert_eq!(listed(&["test-?.parquet", "**/*.parquet"]), ["c", "d", "a", "b"]);
    assert_eq!(listed(&[""]), ["d", "c", "a", "b"]);
    let none = of(&["valid-*.parquet"]).unwrap_err().to_string();
    assert!(none.ends_with("valid-*.parquet`: there is no such Parquet file"), "{none}");
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
        let _ = scan(&source).and_then(|scan| read_rows(&scan.places, &scan.rows, &|_| ()));
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

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        Disk.list(folder)
    }
}

#[test]
fn failing_input_is_told_from_a_damaged_file() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "train.parquet", vec![("Smiling", flags(&[true, false])), ("image", good(&["a", "b"]))]);
    let error = scan_from(&source(&[&file]), Arc::new(Flaky { kind: io::ErrorKind::TimedOut }), None).unwrap_err();
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
    let read: Result<PartContent> = read_rows_from(&scan.places, &scan.rows, Arc::new(Disk), &|_| ());
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
    let content = read_rows(&scan.places, &rows, &|_| ()).unwrap();
    let items: Vec<&str> = content.rows.iter().map(|row| row.item.as_str()).collect();
    assert_eq!(items, ["000101.jpg", "000102.jpg", "000103.jpg", "000701.jpg", "000702.jpg", "003000.jpg"]);
    assert!(content.rows.iter().all(|row| (row.width, row.height) == (96, 96)));
}
