use super::*;
use crate::error::ErrorKind;

fn scan(rows: usize) -> Scan {
    let row = |i: usize| ScanRow {
        item: format!("{i:06}.jpg"),
        place: if i.is_multiple_of(2) {
            Place::File { path: format!("img/{i:06}.jpg") }
        } else {
            Place::Parquet { file: (i % 3) as u32, row: i as u64 }
        },
        attributes: vec![(i % 3) as i8 - 1, 1],
        split: (i % 3) as u8,
        problem: i.is_multiple_of(7).then(|| "no split".to_string()),
    };
    let vocabulary = Vocabulary { names: vec!["Smiling".into(), "Male".into()] };
    Scan {
        vocabulary,
        rows: (0..rows).map(row).collect(),
        warnings: vec![],
        places: Places::default(),
        zeros: vec![None; 2],
    }
}

#[test]
fn any_range_of_rows_comes_back_as_it_was() {
    let scan = scan(2 * GROUP_ROWS + 100);
    let bytes = Bytes::from(encode_rows(&scan, "{}".into()));
    for (from, rows) in [(0, 1), (0, scan.rows.len()), (5, 10), (GROUP_ROWS - 1, 2), (2 * GROUP_ROWS, 100), (7, 0)] {
        let read = decode_rows(bytes.clone(), 2, from as u64, rows as u32).unwrap();
        assert!(read == scan.rows[from..from + rows], "{from}+{rows}");
    }
}

#[test]
fn bytes_that_are_no_such_list_are_refused_in_words() {
    let bytes = Bytes::from(encode_rows(&scan(10), "notes".into()));
    let refusal = |bytes: Bytes, attributes, from, rows| {
        let error = decode_rows(bytes, attributes, from, rows).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        error.to_string()
    };
    assert_eq!(refusal(bytes.clone(), 2, 8, 3), "list of rows: rows 8..11 of 10 were asked for");
    assert!(refusal(bytes.clone(), 3, 0, 1).contains("column `attributes` is FixedSizeList"));
    assert_eq!(decode_notes(bytes.clone()).unwrap().as_deref(), Some("notes"));
    assert_eq!(decode_notes(bytes.slice(..bytes.len() - 7)).unwrap_err().kind, ErrorKind::Corrupt);
    assert!(refusal(bytes.slice(..bytes.len() / 2), 2, 0, 1).starts_with("list of rows: "));
    refusal(Bytes::new(), 2, 0, 1);
}
