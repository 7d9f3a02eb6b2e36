use std::sync::Arc;
use std::time::Instant;

use arrow_array::{ArrayRef, BinaryArray, Int32Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

use super::*;

/// Rows whose statistics are longer than what is looked at first.
fn table(rows: i32) -> Bytes {
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{row:0700}"))));
    let blobs: ArrayRef = Arc::new(BinaryArray::from_iter_values((0..rows).map(|row| vec![row as u8; 3_000])));
    let batch = RecordBatch::try_from_iter([("numbers", numbers), ("texts", texts), ("blobs", blobs)]).unwrap();
    let settings = WriterProperties::builder()
        .set_data_page_row_count_limit(10)
        .set_write_batch_size(10)
        .set_statistics_truncate_length(None)
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(settings)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes.into()
}

fn read(bytes: Bytes) -> std::result::Result<Vec<RecordBatch>, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Sound(bytes)).map_err(|error| error.to_string())?;
    builder.build().unwrap().collect::<std::result::Result<_, _>>().map_err(|error| error.to_string())
}

/// A field behind all that there are: a list of 2³¹ − 1 elements of a type.
fn endless(kind: u8) -> [u8; 7] {
    [0xf9, 0xf0 | kind, 0xff, 0xff, 0xff, 0xff, 0x07]
}

/// The file with something before the end of its footer.
fn in_the_footer(file: &[u8], more: &[u8]) -> Bytes {
    let end = file.len() - 9;
    let length = u32::from_le_bytes(file[end + 1..end + 5].try_into().unwrap()) + more.len() as u32;
    [&file[..end], more, &[0], &length.to_le_bytes(), b"PAR1"].concat().into()
}

#[test]
fn good_files_are_read_as_they_are() {
    let file = table(100);
    let plain = ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().build().unwrap();
    let plain: Vec<RecordBatch> = plain.map(|batch| batch.unwrap()).collect();
    assert_eq!(read(file.clone()).unwrap(), plain);
    assert_eq!(plain[0].num_rows(), 100);
    // A list that takes bytes, in a field that the reader does not know.
    assert_eq!(read(in_the_footer(&file, &[0xf9, 0x33, 7, 7, 7])).unwrap(), plain);
}

#[test]
fn lists_of_nothing_do_not_hold_up_whoever_reads() {
    let file = table(100);
    let begun = Instant::now();
    for kind in [1, 2] {
        let footer = in_the_footer(&file, &endless(kind).repeat(200));
        assert!(read(footer).unwrap_err().contains("more elements than anybody writes"));
    }
    // The first page's header begins behind the magic; so does a structure that ends with the list.
    let mut page = file.to_vec();
    page[4..12].copy_from_slice(&[0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0]);
    assert!(read(page.into()).unwrap_err().contains("more elements than anybody writes"));
    // Doubles behind the end of the file.
    let mut page = file.to_vec();
    page[4..12].copy_from_slice(&[0x19, 0xf7, 0xff, 0xff, 0xff, 0xff, 0x07, 0]);
    assert!(read(page.into()).unwrap_err().contains("does not end"));
    assert!(begun.elapsed().as_secs() < 20, "each of them would take seconds");
}

#[test]
fn what_is_no_structure_is_refused() {
    use thrift::walk;
    assert_eq!(walk(&[0]), Found::Whole);
    assert_eq!(walk(&[0x15, 4, 0x18, 2, b'a', b'b', 0x11, 0x2b, 1, 0x53, 8, 9, 0, 99]), Found::Whole);
    assert_eq!(walk(&[]), Found::CutOff);
    assert_eq!(walk(&[0x18, 200, 1, 0]), Found::CutOff);
    assert_eq!(walk(&[0x1e, 0]), Found::Other);
    assert_eq!(walk(&[0x1c; 80]), Found::Other, "nested too deep");
    assert_eq!(walk(&[0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]), Found::Other);
    assert_eq!(walk(&[0x1b, 0xff, 0xff, 0xff, 0x7f, 0x12]), Found::TooLong, "pairs of nothing");
    assert!(read(Bytes::from_static(b"PAR1 this is none of it PAR1")).is_err());
    let file = table(20);
    for end in 0..file.len().min(3_000) {
        let _refused = read(file.slice(..end));
    }
}
