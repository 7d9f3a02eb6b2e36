//! One image out of a dataset part.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::sync::Arc;

use arrow_array::builder::{FixedSizeListBuilder, Int8Builder};
use arrow_array::{ArrayRef, BinaryArray, FixedSizeBinaryArray, RecordBatch, StringArray, UInt8Array, UInt32Array};
use arrow_schema::{DataType, Field};
use likeness_contract::ids::Digest;
use likeness_contract::search::ImageRef;
use likeness_contract::tables::dataset_part_schema;
use likeness_link::{ErrorKind, Store, image_bytes};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// A part of `rows` images in row groups of ten; the image of row 7 does not match its digest.
fn part(rows: u32) -> Vec<u8> {
    let images: Vec<Vec<u8>> = (0..rows).map(|row| format!("image {row}").into_bytes()).collect();
    let mut digests: Vec<[u8; 32]> = images.iter().map(|image| *Digest::of(image).as_bytes()).collect();
    digests[7][0] ^= 1;
    let item = Field::new("item", DataType::Int8, false);
    let mut attributes = FixedSizeListBuilder::new(Int8Builder::new(), 1).with_field(item);
    for _ in 0..rows {
        attributes.values().append_value(1);
        attributes.append(true);
    }
    let numbers = || Arc::new(UInt32Array::from(vec![1; rows as usize])) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("item-{row}")))),
        Arc::new(BinaryArray::from_iter_values(images)),
        Arc::new(FixedSizeBinaryArray::try_from_iter(digests.into_iter()).unwrap()),
        numbers(),
        numbers(),
        Arc::new(attributes.finish()),
        Arc::new(UInt8Array::from(vec![0; rows as usize])),
    ];
    let schema = Arc::new(dataset_part_schema(1));
    let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(10)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

#[tokio::test]
async fn an_image_is_found_by_its_row_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).await.unwrap();
    store.create("parts/p.parquet", part(35).into()).await.unwrap();
    let image = |row| ImageRef { part: "parts/p.parquet".into(), row };
    for row in [0, 9, 10, 34] {
        assert_eq!(image_bytes(&store, &image(row)).await.unwrap(), format!("image {row}"));
    }
    let error = image_bytes(&store, &image(7)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.to_string().contains("row 7"), "{error}");
    assert_eq!(image_bytes(&store, &image(35)).await.unwrap_err().kind, ErrorKind::NotFound);
    let nowhere = ImageRef { part: "parts/none".into(), row: 0 };
    assert_eq!(image_bytes(&store, &nowhere).await.unwrap_err().kind, ErrorKind::NotFound);
}
