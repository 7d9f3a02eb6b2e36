use std::fs;
use std::path::Path;
use std::sync::Mutex;

use likeness_contract::jobs::{CelebaSplit, IngestSource, ReadFrom, ReadSource};
use tempfile::TempDir;

use crate::error::ErrorKind;
use crate::rows::{Place, Scan};
use crate::source::{PartContent, read_rows, scan};
use crate::testing::fixture;

const ATTRIBUTES: &str = "3\nSmiling Male Young \n000001.jpg  1 -1  1\n000002.jpg -1  0 -1\n000003.png  1  1  1\n";
const PARTITION: &str = "000001.jpg 0\n000002.jpg 1\n000003.png 2\n";

fn write(dir: &TempDir, attributes: &str, partition: &str) {
    fs::create_dir_all(dir.path().join("img_align_celeba")).unwrap();
    fs::write(dir.path().join("list_attr_celeba.txt"), attributes).unwrap();
    fs::write(dir.path().join("list_eval_partition.txt"), partition).unwrap();
}

fn source(dir: &Path) -> IngestSource {
    IngestSource::Celeba { dir: dir.to_str().unwrap().into() }
}

fn scan_texts(attributes: &str, partition: &str) -> Scan {
    let dir = TempDir::new().unwrap();
    write(&dir, attributes, partition);
    let mut scan = scan(&source(dir.path())).unwrap();
    assert_eq!(scan.places.dir, dir.path().to_str().unwrap());
    scan.places.dir.clear();
    scan
}

/// The message with the folder's own name taken out.
fn refusal(attributes: &str, partition: &str) -> String {
    let dir = TempDir::new().unwrap();
    write(&dir, attributes, partition);
    let error = scan(&source(dir.path())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    error.to_string().replace(&format!("{}/", dir.path().display()), "")
}

#[test]
fn lists_as_distributed_are_read() {
    let scan = scan_texts(ATTRIBUTES, PARTITION);
    assert_eq!(scan.vocabulary.names, ["Smiling", "Male", "Young"]);
    assert_eq!(scan.rows.iter().map(|row| row.split).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(scan.rows[1].attributes, [-1, 0, -1]);
    assert_eq!(scan.rows[0].place, Place::File { path: "img_align_celeba/000001.jpg".into() });
    assert_eq!(scan.rows[0].item, "000001.jpg");
    assert!(scan.warnings.is_empty(), "{:?}", scan.warnings);
}

#[test]
fn ragged_blanks_blank_lines_windows_line_ends_and_a_byte_order_mark_do_not_matter() {
    let ragged = "\u{feff}3\r\n  Smiling\tMale   Young  \r\n\r\n000001.jpg   1 -1    1 \r\n 000002.jpg -1\t0 -1\r\n\
                  000003.png  1  1  1";
    assert_eq!(scan_texts(ragged, &PARTITION.replace('\n', "  \r\n")), scan_texts(ATTRIBUTES, PARTITION));
}

#[test]
fn a_list_that_is_wrong_names_its_line() {
    let cases = [
        ("", "`list_attr_celeba.txt` is empty"),
        (
            "Smiling Male\n1.jpg 1 1\n",
            "`list_attr_celeba.txt` line 1: expected the number of rows, found `Smiling Male`",
        ),
        ("3\n", "`list_attr_celeba.txt` ends after line 1: expected the attribute names"),
        ("1\n1.jpg 1 -1\n", "`list_attr_celeba.txt` line 2: expected the attribute names, found labels"),
        (
            "1\nSmiling Male Smiling\n1.jpg 1 1 1\n",
            "`list_attr_celeba.txt` line 2: attribute `Smiling` is there twice (first as `Smiling`); case, `-`, `_` and \
             blanks make no difference",
        ),
        (
            "1\nNo_Beard no-beard\n1.jpg 1 1\n",
            "`list_attr_celeba.txt` line 2: attribute `no-beard` is there twice (first as `No_Beard`); case, `-`, `_` \
             and blanks make no difference",
        ),
        ("2\nSmiling Male\n1.jpg 1 1\n2.jpg 1\n", "`list_attr_celeba.txt` line 4: 1 labels for 2 attributes"),
        ("1\nSmiling Male\n1.jpg 1 1 -1\n", "`list_attr_celeba.txt` line 3: 3 labels for 2 attributes"),
        ("1\nSmiling Male\n1.jpg 1 yes\n", "`list_attr_celeba.txt` line 3: label `yes` of `Male` is not 1, -1 or 0"),
        ("1\nSmiling\n1.jpg 2\n", "`list_attr_celeba.txt` line 3: label `2` of `Smiling` is not 1, -1 or 0"),
        ("2\nSmiling\n1.jpg 1\n1.jpg -1\n", "`list_attr_celeba.txt` line 4: `1.jpg` is there already in line 3"),
        ("1\nSmiling\n../../secret.jpg 1\n", "`list_attr_celeba.txt` line 3: `../../secret.jpg` is no plain file name"),
        ("0\nSmiling\n", "`list_attr_celeba.txt` lists no image"),
    ];
    for (attributes, expected) in cases {
        assert_eq!(refusal(attributes, PARTITION), expected);
    }
}

#[test]
fn a_partition_that_is_wrong_names_its_line() {
    let cases = [
        ("000001.jpg\n", "`list_eval_partition.txt` line 1: expected `FILE SPLIT`, found `000001.jpg`"),
        (
            "000001.jpg 0\n000002.jpg 3\n",
            "`list_eval_partition.txt` line 2: split `3` is not 0 (train), 1 (validation) or 2 (test)",
        ),
        ("000001.jpg 0\n\n000001.jpg 1\n", "`list_eval_partition.txt` line 3: `000001.jpg` is there twice"),
    ];
    for (partition, expected) in cases {
        assert_eq!(refusal(ATTRIBUTES, partition), expected);
    }
}

#[test]
fn text_that_is_not_utf_8_names_its_line() {
    let dir = TempDir::new().unwrap();
    write(&dir, ATTRIBUTES, PARTITION);
    fs::write(dir.path().join("list_attr_celeba.txt"), b"1\nSmiling\n\xff.jpg 1\n").unwrap();
    let error = scan(&source(dir.path())).unwrap_err().to_string();
    assert!(error.ends_with("list_attr_celeba.txt` line 3: not UTF-8 text"), "{error}");
}

#[test]
fn a_missing_piece_is_named_with_what_was_expected() {
    let dir = TempDir::new().unwrap();
    let refusal = || {
        let error = scan(&source(dir.path())).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        error.to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(refusal(), "`img_align_celeba` is missing: expected the folder of the images, unpacked");
    fs::create_dir(dir.path().join("img_align_celeba")).unwrap();
    assert_eq!(
        refusal(),
        "`list_attr_celeba.txt` is missing: expected the number of rows, the attribute names, then `FILE 1 -1 …` per image"
    );
    fs::write(dir.path().join("list_attr_celeba.txt"), ATTRIBUTES).unwrap();
    assert_eq!(
        refusal(),
        "`list_eval_partition.txt` is missing: expected a line `FILE SPLIT` per image, SPLIT being 0 (train), \
         1 (validation) or 2 (test)"
    );
    let nowhere = scan(&source(&dir.path().join("nowhere"))).unwrap_err().to_string();
    assert!(nowhere.ends_with("nowhere` is no folder"), "{nowhere}");
}

#[test]
fn the_original_downloads_subfolders_are_looked_into() {
    let dir = TempDir::new().unwrap();
    for folder in ["Anno", "Eval", "Img/img_align_celeba"] {
        fs::create_dir_all(dir.path().join(folder)).unwrap();
    }
    fs::write(dir.path().join("Anno/list_attr_celeba.txt"), ATTRIBUTES).unwrap();
    fs::write(dir.path().join("Eval/list_eval_partition.txt"), PARTITION).unwrap();
    let scan = scan(&source(dir.path())).unwrap();
    assert_eq!(scan.rows[0].place, Place::File { path: "Img/img_align_celeba/000001.jpg".into() });
}

#[test]
fn a_count_that_is_off_and_rows_without_partner_are_warned_of() {
    let scan = scan_texts(&ATTRIBUTES.replacen('3', "202599", 1), "000001.jpg 0\n000003.png 2\n000009.jpg 2\n");
    assert_eq!(scan.warnings.len(), 2);
    assert!(scan.warnings[0].ends_with("list_attr_celeba.txt` announces 202599 rows and has 3: it may be cut short"));
    assert!(scan.warnings[1].contains("1 of 3 files in"), "{}", scan.warnings[1]);
    let problems: Vec<bool> = scan.rows.iter().map(|row| row.problem.is_some()).collect();
    assert_eq!(problems, [false, true, false]);
}

#[test]
fn bad_images_cost_their_row_and_say_why() {
    let dir = TempDir::new().unwrap();
    let names = ["good.jpg", "gone.jpg", "empty.jpg", "text.jpg", "cut.jpg", "bomb.jpg", "unsplit.jpg", "good.png"];
    let lines: String = names.iter().map(|name| format!("{name} 1\n")).collect();
    let splits: String =
        names.iter().filter(|name| **name != "unsplit.jpg").map(|name| format!("{name} 0\n")).collect();
    write(&dir, &format!("8\nSmiling\n{lines}"), &splits);
    let images = dir.path().join("img_align_celeba");
    let jpeg = fixture("rgb.jpg");
    fs::write(images.join("good.jpg"), &jpeg).unwrap();
    fs::write(images.join("empty.jpg"), b"").unwrap();
    fs::write(images.join("text.jpg"), b"<html>not found</html>").unwrap();
    fs::write(images.join("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    fs::write(images.join("bomb.jpg"), fixture("bomb.png")).unwrap();
    fs::write(images.join("good.png"), fixture("rgb.png")).unwrap();

    let source = source(dir.path());
    let heard = Mutex::new(Vec::new());
    let scan = scan(&source).unwrap();
    let PartContent { rows, skipped } =
        read_rows(&scan.places, &scan.rows, &|done| heard.lock().unwrap().push(done)).unwrap();

    assert_eq!(rows.iter().map(|row| row.item.as_str()).collect::<Vec<_>>(), ["good.jpg", "good.png"]);
    assert_eq!((rows[0].width, rows[0].height, &rows[0].image), (45, 32, &jpeg));
    let reasons: Vec<(&str, &str)> = skipped.iter().map(|s| (s.item.as_str(), s.reason.as_str())).collect();
    assert!(reasons[0].0 == "gone.jpg" && reasons[0].1.contains("No such file"), "{reasons:?}");
    assert_eq!(reasons[1], ("empty.jpg", "empty file"));
    assert_eq!(reasons[2], ("text.jpg", "neither JPEG nor PNG nor WebP"));
    assert_eq!(reasons[3], ("cut.jpg", "damaged JPEG: cut short: no end-of-image marker"));
    assert!(reasons[4].1.starts_with("16000×16000 pixels are over the limit"), "{reasons:?}");
    assert!(reasons[5].0 == "unsplit.jpg" && reasons[5].1.contains("list_eval_partition.txt"), "{reasons:?}");
    let mut heard = heard.into_inner().unwrap();
    heard.sort_unstable();
    assert_eq!(heard, (1..=8).collect::<Vec<_>>());
}

#[test]
fn a_hash_of_the_person_or_the_item_can_tell_the_split() {
    let dir = TempDir::new().unwrap();
    let mut attributes = String::from("60\nSmiling\n");
    let mut persons = String::new();
    for row in 0..60 {
        attributes.push_str(&format!("{row}.jpg {}\n", if row % 2 == 0 { 1 } else { -1 }));
        persons.push_str(&format!("{row}.jpg {}\n", row / 4));
    }
    write(&dir, &attributes, "");
    fs::remove_file(dir.path().join("list_eval_partition.txt")).unwrap();
    fs::create_dir(dir.path().join("Anno")).unwrap();
    fs::write(dir.path().join("Anno/identity_CelebA.txt"), &persons).unwrap();
    let with = |split| {
        let from = ReadFrom::Celeba { dir: dir.path().to_str().unwrap().into(), split };
        let (columns, labels) = Default::default();
        scan(&IngestSource::Read(Box::new(ReadSource { from, columns, labels })))
    };
    let by_person = with(CelebaSplit::Identity).unwrap().rows;
    assert!(by_person.chunks(4).all(|person| person.iter().all(|row| row.split == person[0].split)));
    let by_item = with(CelebaSplit::Item).unwrap().rows;
    for rows in [&by_person, &by_item] {
        assert!(rows.iter().all(|row| row.problem.is_none()) && rows.iter().any(|row| row.split != 0));
    }
    assert!(by_item.chunks(4).any(|person| person.iter().any(|row| row.split != person[0].split)));
    fs::write(dir.path().join("Anno/identity_CelebA.txt"), "1.jpg 2 3\n").unwrap();
    let error = with(CelebaSplit::Identity).unwrap_err().to_string();
    assert!(error.ends_with("line 1: expected `FILE PERSON`, found `1.jpg 2 3`"), "{error}");
    assert!(with(CelebaSplit::Partition).is_err());
}
