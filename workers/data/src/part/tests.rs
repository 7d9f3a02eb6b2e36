use likeness_contract::settings::Split;
use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

fn row(i: usize) -> PartRow {
    PartRow {
        item: format!("{i:06}.jpg"),
        image: Bytes::from(vec![i as u8; 1000 + i]),
        width: 100 + i as u32,
        height: 50,
        attributes: vec![(i % 3) as i8 - 1, 1, -1],
        split: (i % 3) as u8,
    }
}

fn rows(count: usize) -> Vec<PartRow> {
    (0..count).map(row).collect()
}

fn refusal(bytes: Bytes, attributes: usize) -> String {
    let error = Part::decode(bytes, attributes).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    error.to_string()
}

fn check_same(part: &Part, rows: &[PartRow]) {
    assert_eq!(part.rows(), rows.len());
    for (i, row) in rows.iter().enumerate() {
        let PartRow { item, image, width, height, attributes, split } = row;
        assert_eq!((part.item(i), part.image(i), part.size(i)), (item.as_str(), image.as_ref(), (*width, *height)));
        assert_eq!((part.attributes(i), part.split(i)), (attributes.as_slice(), *split));
        assert_eq!(part.image_digest(i), *Digest::of(image).as_bytes());
    }
}

#[test]
fn rows_come_back_as_they_were_across_row_groups() {
    for count in [0, 1, GROUP_ROWS, GROUP_ROWS + 1, 3 * GROUP_ROWS - 7] {
        let rows = rows(count);
        let bytes = encode_part(&rows, 3).unwrap();
        check_same(&Part::decode(bytes.into(), 3).unwrap(), &rows);
    }
}

#[test]
fn rows_that_come_in_pieces_make_the_same_part() {
    let rows = rows(2 * GROUP_ROWS + 40);
    let whole = encode_part(&rows, 3).unwrap();
    for piece in [1, 100, GROUP_ROWS, 3 * GROUP_ROWS] {
        let mut part = PartWriter::new(3).unwrap();
        rows.chunks(piece).for_each(|rows| part.push(digested(rows.to_vec())).unwrap());
        let EncodedPart { bytes, digest } = part.finish().unwrap();
        assert!(bytes == whole, "pieces of {piece}");
        assert_eq!(digest, Digest::of(&whole));
    }
}

#[test]
fn the_same_rows_are_the_same_bytes() {
    assert_eq!(encode_part(&rows(300), 3).unwrap(), encode_part(&rows(300), 3).unwrap());
}

#[test]
fn a_single_image_lies_in_a_small_uncompressed_page() {
    let bytes = Bytes::from(encode_part(&rows(600), 3).unwrap());
    let options = parquet::arrow::arrow_reader::ArrowReaderOptions::new()
        .with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options).unwrap();
    let metadata = builder.metadata();
    assert_eq!(metadata.num_row_groups(), 3);
    let image = metadata.row_group(0).column(1);
    assert_eq!((image.column_path().string().as_str(), image.compression()), ("image", Compression::UNCOMPRESSED));
    let pages = metadata.page_index().unwrap().offset_index(0, 1).unwrap().page_locations();
    assert_eq!(pages.len(), GROUP_ROWS / PAGE_ROWS);
}

#[test]
fn rows_that_break_the_schema_are_not_written() {
    let refusal = |change: fn(&mut PartRow)| {
        let mut rows = rows(3);
        change(&mut rows[1]);
        let error = encode_part(&rows, 3).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        error.to_string()
    };
    assert_eq!(refusal(|row| row.item.clear()), "dataset part: empty item id");
    assert_eq!(
        refusal(|row| row.attributes.truncate(2)),
        "dataset part: item `000001.jpg` has 2 labels for 3 attributes"
    );
    assert_eq!(refusal(|row| row.attributes[0] = 2), "dataset part: item `000001.jpg`: label 2 is not −1, 0 or 1");
    assert_eq!(refusal(|row| row.split = 3), "dataset part: item `000001.jpg`: split 3 is not 0, 1 or 2");
}

/// A file with the right schema and wrong values.
fn forged(attributes: [i8; 3], split: u8, items: [&str; 2]) -> Bytes {
    let good = |item: &str| PartRow { item: item.into(), ..row(0) };
    let mut batch = group_of(&digested(items.map(good).to_vec()), 3, Arc::new(dataset_part_schema(3)));
    let mut columns = batch.columns().to_vec();
    columns[5] = Arc::new(columns::labels_column(Int8Array::from([[1, 1, 1], attributes].concat()), 3));
    columns[6] = Arc::new(UInt8Array::from(vec![0, split]));
    batch = RecordBatch::try_new(batch.schema(), columns).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

#[test]
fn a_file_with_wrong_values_is_refused_in_words() {
    assert_eq!(Part::decode(forged([1, 0, -1], 2, ["a", "b"]), 3).unwrap().rows(), 2);
    let cases = [
        (forged([1, 5, 1], 0, ["a", "b"]), "dataset part: row 1: label 5 of attribute 1 is not −1, 0 or 1"),
        (forged([1, 1, 1], 7, ["a", "b"]), "dataset part: split 7 is not 0, 1 or 2"),
        (forged([1, 1, 1], 0, ["a", "a"]), "dataset part: item `a` is there twice"),
        (forged([1, 1, 1], 0, ["", "b"]), "dataset part: row 0 has an empty item id"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refusal(bytes, 3), expected);
    }
}

#[test]
fn another_schema_or_a_cut_file_is_refused() {
    let bytes = Bytes::from(encode_part(&rows(20), 3).unwrap());
    assert!(refusal(bytes.clone(), 4).contains("column `attributes` is FixedSizeList"), "{}", refusal(bytes, 4));
    let (vocabulary, rows_of_list, warnings, places, zeros) = Default::default();
    let scan = crate::rows::Scan { vocabulary, rows: rows_of_list, warnings, places, zeros };
    let list = crate::rows::encode_rows(&scan, String::new());
    assert!(refusal(list.into(), 3).contains("columns ["));
    let bytes = Bytes::from(encode_part(&rows(20), 3).unwrap());
    for length in (0..bytes.len()).step_by(97) {
        assert!(refusal(bytes.slice(..length), 3).starts_with("dataset part: "));
    }
    assert!(Split::All.contains(Part::decode(bytes, 3).unwrap().split(0)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn flipped_bytes_end_in_a_part_or_an_error(at in 0usize..20_000, flip in 1u8..) {
        let mut bytes = encode_part(&rows(12), 3).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        if let Ok(part) = Part::decode(bytes.into(), 3) {
            (0..part.rows()).for_each(|i| assert!(part.split(i) <= 2 && part.attributes(i).len() == 3));
        }
    }
}
