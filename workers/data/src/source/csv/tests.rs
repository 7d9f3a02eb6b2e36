use std::fs;

use likeness_contract::jobs::{CsvColumns, CsvSource, IngestSource, ZeroLabel};
use tempfile::TempDir;

use crate::error::{ErrorKind, Result};
use crate::rows::{Place, Scan};
use crate::source::{read_rows, scan};
use crate::testing::fixture;

fn source(dir: &TempDir, columns: CsvColumns, zero: ZeroLabel) -> IngestSource {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    IngestSource::Csv(CsvSource { file: path("faces.csv"), dir: path(""), columns, zero })
}

fn scan_with(text: &str, columns: CsvColumns, zero: ZeroLabel) -> Result<Scan> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("faces.csv"), text).unwrap();
    scan(&source(&dir, columns, zero))
}

fn scanned(text: &str) -> Scan {
    scan_with(text, CsvColumns::default(), ZeroLabel::Auto).unwrap()
}

/// The message without the folder's own name.
fn refusal(text: &str, columns: CsvColumns) -> String {
    let error = scan_with(text, columns, ZeroLabel::Auto).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    let message = error.to_string();
    let (from, to) = (message.find("`/").unwrap(), message.find("faces.csv").unwrap());
    format!("{}{}", &message[..=from], &message[to..])
}

fn labels(scan: &Scan) -> Vec<Vec<i8>> {
    scan.rows.iter().map(|row| row.attributes.clone()).collect()
}

fn column(name: &str) -> Option<String> {
    Some(name.into())
}

#[test]
fn usual_columns_are_found_by_their_names() {
    let scan = scanned("id,file,Smiling,Male,Partition\n7,a/1.jpg,1,-1,0\n8,a/2.jpg,0,1,test\n9,b.png,,1,val\n");
    assert_eq!(scan.vocabulary.names, ["Smiling", "Male"]);
    assert_eq!(scan.rows.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(), ["7", "8", "9"]);
    assert_eq!(scan.rows[0].place, Place::File { path: "a/1.jpg".into() });
    assert_eq!(scan.rows.iter().map(|row| row.split).collect::<Vec<_>>(), [0, 2, 1]);
    assert_eq!(labels(&scan), [[1, -1], [-1, 1], [0, 1]]);
}

#[test]
fn zero_is_not_known_only_beside_minus_one_unless_told() {
    let text = "path,a,b\n1.jpg,1,1\n2.jpg,0,0\n3.jpg,1,-1\n";
    assert_eq!(labels(&scanned(text)), [[1, 1], [-1, 0], [1, -1]]);
    let told = |zero| labels(&scan_with(text, CsvColumns::default(), zero).unwrap());
    assert_eq!(told(ZeroLabel::No), [[1, 1], [-1, -1], [1, -1]]);
    assert_eq!(told(ZeroLabel::Unknown), [[1, 1], [0, 0], [1, -1]]);
    assert_eq!(scanned(text).zeros, [Some(ZeroLabel::No), Some(ZeroLabel::Unknown)]);
    let counts: Vec<[u64; 3]> = scanned(text).labels().iter().map(|c| [c.has, c.has_not, c.unknown]).collect();
    assert_eq!(counts, [[2, 1, 0], [1, 1, 1]]);
}

#[test]
fn words_quotes_other_separators_and_windows_line_ends_are_read() {
    let plain = scanned("path,has glasses,old\na 1.jpg,1,0\nb.jpg,0,1\nc.jpg,,0\n");
    let other = "\u{feff}path;has glasses;old\r\n\"a 1.jpg\";Yes;no\r\nb.jpg; FALSE ;true\r\nc.jpg;NaN;f\r\n";
    assert_eq!((labels(&scanned(other)), scanned(other).vocabulary), (labels(&plain), plain.vocabulary));
    let tabs = "path\told\na.jpg\tt\nb.jpg\tn\n";
    assert_eq!(labels(&scanned(tabs)), [[1], [-1]]);
}

#[test]
fn a_hash_of_the_group_keeps_it_together() {
    let mut text = String::from("path,person,old,split\n");
    (0..300).for_each(|i| text.push_str(&format!("{i}.jpg,{},{},0\n", i / 10, i % 2)));
    let columns = CsvColumns { group: column("person"), ..Default::default() };
    let scan = scan_with(&text, columns, ZeroLabel::Auto).unwrap();
    assert!(scan.rows.chunks(10).all(|person| person.iter().all(|row| row.split == person[0].split)));
    assert!(scan.rows.iter().any(|row| row.split != scan.rows[0].split));
    assert_eq!(scan.vocabulary.names, ["old"]);
    assert!(scan.warnings.iter().any(|warning| warning.ends_with("by a hash of `person`")), "{:?}", scan.warnings);
}

#[test]
fn columns_without_labels_are_left_out_and_named_ones_are_taken() {
    let text = "picture,name,old,young\nx.jpg,Ann,1,0\ny.jpg,Bob,0,1\n";
    let columns = CsvColumns { path: column("picture"), ..Default::default() };
    let all = scan_with(text, columns.clone(), ZeroLabel::Auto).unwrap();
    assert_eq!(all.vocabulary.names, ["old", "young"]);
    assert!(all.warnings.contains(&"columns that are no attributes were left out: `name`".into()));
    let columns = CsvColumns { attributes: vec!["young".into()], ..columns };
    let one = scan_with(text, columns, ZeroLabel::Auto).unwrap();
    assert_eq!((one.vocabulary.names, one.rows[1].attributes.clone()), (vec!["young".to_string()], vec![1]));
}

#[test]
fn what_is_wrong_names_its_line_or_column() {
    let plain = CsvColumns::default;
    assert_eq!(
        refusal("path,a\n1.jpg,1\n2.jpg,0\n3.jpg,x\n", plain()),
        "`faces.csv` line 4: `x` of `a` is no label: 1, -1, 0, true, false, yes, no or empty"
    );
    assert_eq!(
        refusal("path,a\n1.jpg,1\n1.jpg,0\n", plain()),
        "`faces.csv` line 3: item `1.jpg` is there already in line 2"
    );
    assert_eq!(
        refusal("path,a\n../1.jpg,1\n", plain()),
        "`faces.csv` line 2: `../1.jpg` leads out of the images' folder"
    );
    assert_eq!(refusal("path,a\r\n1.jpg,1\r\n,1\r\n", plain()), "`faces.csv` line 3: no image is named");
    assert_eq!(refusal("path,a\n,1\n", plain()), "`faces.csv` line 2: no image is named");
    assert_eq!(
        refusal("path,split,a\n1.jpg,x,1\n", plain()),
        "`faces.csv` line 2: split `x` is not train, validation or test"
    );
    assert_eq!(refusal("path,a\n", plain()), "`faces.csv` lists no image");
    assert_eq!(
        refusal("picture,a\n1.jpg,1\n", plain()),
        "`faces.csv`: no column is named as one of images is; say which is it: `picture`, `a`"
    );
    assert_eq!(
        refusal("path,a\n1.jpg,1\n", CsvColumns { group: column("who"), ..plain() }),
        "`faces.csv`: there is no column `who`, but `path`, `a`"
    );
    assert!(refusal("path,a\n1.jpg,1,1\n", plain()).contains("line: 2"));
    assert_eq!(refusal("path,name\n1.jpg,Ann\n", plain()), "`faces.csv`: no attribute");
}

#[test]
fn images_are_read_from_the_folder_and_bad_ones_skipped() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("faces")).unwrap();
    fs::write(dir.path().join("faces/good.jpg"), fixture("rgb.jpg")).unwrap();
    fs::write(dir.path().join("faces/bad.jpg"), b"no image").unwrap();
    fs::write(dir.path().join("faces.csv"), "path,a\nfaces/good.jpg,1\nfaces/bad.jpg,0\nfaces/gone.jpg,1\n").unwrap();
    let source = source(&dir, CsvColumns::default(), ZeroLabel::Auto);
    let scan = scan(&source).unwrap();
    let content = read_rows(&scan.places, &scan.rows, &|_| {}).unwrap();
    assert_eq!(content.rows.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(), ["faces/good.jpg"]);
    assert_eq!(
        content.skipped.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(),
        ["faces/bad.jpg", "faces/gone.jpg"]
    );
}
