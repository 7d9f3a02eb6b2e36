//! The file form of shards: what is written is read back, and nothing damaged gets through.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use bytes::Bytes;
use likeness_index::{ErrorKind, Memory, Shard, ShardRows, decode_shard, encode_shard};
use proptest::prelude::*;

/// `n` valid rows that differ in every column.
fn rows(n: usize, dim: usize, attributes: usize) -> ShardRows {
    let mut embeddings = Vec::new();
    for row in 0..n {
        let raw: Vec<f32> = (0..dim).map(|i| ((row * 31 + i * 17) % 101) as f32 - 50.3).collect();
        let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
        embeddings.extend(raw.iter().map(|v| v / norm));
    }
    ShardRows {
        item_ids: (0..n).map(|row| format!("{:06}.jpg", (row * 7919) % 1_000_003)).collect(),
        embeddings,
        labels: (0..n * attributes).map(|i| (i % 3) as i8 - 1).collect(),
        split: (0..n).map(|row| (row % 3) as u8).collect(),
        source_part: (0..n).map(|row| (row / 100) as u32).collect(),
        source_row: (0..n).map(|row| u32::MAX - row as u32).collect(),
        image_digest: (0..n).map(|row| [row as u8; 32]).collect(),
    }
}

/// A folder with the bytes as its file `shard`.
fn on_disk(bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shard"), bytes).unwrap();
    folder
}

fn corrupt(bytes: impl Into<Bytes>, dim: usize, attributes: usize) -> String {
    let bytes = bytes.into();
    let error = decode_shard(bytes.clone(), dim, attributes).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    let direct = Shard::decode(0, bytes.clone(), dim, attributes).unwrap_err();
    assert_eq!((direct.kind, direct.to_string()), (error.kind, error.to_string()));
    let opened = Shard::open(0, &on_disk(&bytes).path().join("shard"), dim, attributes).unwrap_err();
    assert_eq!((opened.kind, opened.to_string()), (error.kind, error.to_string()));
    error.to_string()
}

#[test]
fn rows_come_back_whole_from_any_shape() {
    for (n, dim, attributes) in [(0, 4, 2), (1, 1, 1), (5, 1, 40), (700, 3, 1), (9_000, 128, 40), (140_000, 2, 1)] {
        let written = rows(n, dim, attributes);
        let bytes = Bytes::from(encode_shard(&written, dim, attributes).unwrap());
        assert_eq!(decode_shard(bytes.clone(), dim, attributes).unwrap(), written);
        let folder = on_disk(&bytes);
        let decoded = Shard::decode(3, bytes, dim, attributes).unwrap();
        let opened = Shard::open(3, &folder.path().join("shard"), dim, attributes).unwrap();
        for shard in [decoded, opened] {
            assert_eq!((shard.number(), shard.rows()), (3, n));
            for row in (0..n as u32).step_by(97) {
                let at = row as usize;
                assert_eq!(shard.embedding(row), &written.embeddings[at * dim..][..dim]);
                assert_eq!(shard.labels(row), &written.labels[at * attributes..][..attributes]);
                assert_eq!(shard.source(row), (written.source_part[at], written.source_row[at]));
                assert_eq!(shard.find(&written.item_ids[at]), Some(row));
            }
            assert_eq!(shard.find("nobody"), None);
        }
    }
}

#[test]
fn equal_rows_give_equal_bytes() {
    assert_eq!(encode_shard(&rows(500, 16, 3), 16, 3).unwrap(), encode_shard(&rows(500, 16, 3), 16, 3).unwrap());
}

#[test]
fn rows_that_break_a_rule_are_refused_by_name() {
    let refusal = |change: &dyn Fn(&mut ShardRows)| {
        let mut rows = rows(20, 4, 2);
        change(&mut rows);
        let error = encode_shard(&rows, 4, 2).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(Shard::new(0, rows, 4, 2).unwrap_err().to_string(), error.to_string());
        error.to_string()
    };
    let item = |row: usize| rows(20, 4, 2).item_ids[row].clone();
    assert_eq!(
        refusal(&|rows| rows.embeddings[13] = f32::NAN),
        format!("the embedding of item `{}` (row 3) is not finite", item(3))
    );
    assert!(refusal(&|rows| rows.embeddings[4..8].fill(0.6)).contains("(row 1) has norm 1.2"));
    assert!(refusal(&|rows| rows.item_ids[7] = item(2)).ends_with("stands in rows 2 and 7"));
    assert_eq!(refusal(&|rows| rows.item_ids[7].clear()), "row 7 has an empty item id");
    assert_eq!(refusal(&|rows| rows.split.truncate(19)), "column `split` has 19 values, 20 rows need 20");
    assert_eq!(refusal(&|rows| rows.labels.truncate(39)), "column `attributes` has 39 values, 20 rows need 40");
    assert!(refusal(&|rows| rows.labels[5] = 2).contains("(row 2) has the label 2"));
    assert!(refusal(&|rows| rows.split[5] = 3).contains("(row 5) has the split 3"));
    assert!(encode_shard(&rows(1, 4, 2), 0, 2).is_err());
}

#[test]
fn another_shape_or_another_table_is_named() {
    let bytes = encode_shard(&rows(20, 4, 2), 4, 2).unwrap();
    assert_eq!(corrupt(bytes.clone(), 5, 2), "column `embedding` has 4 values per row, expected 5");
    assert_eq!(corrupt(bytes.clone(), 4, 3), "column `attributes` has 2 values per row, expected 3");
    assert!(corrupt(bytes[..bytes.len() / 2].to_vec(), 4, 2).contains("cut off or damaged"));
    assert!(corrupt(b"PAR1".to_vec(), 4, 2).contains("cut off or damaged"));
    assert!(corrupt(Vec::new(), 4, 2).contains("cut off or damaged"));
}

#[test]
fn a_changed_value_does_not_have_the_checksum_that_was_written() {
    let written = rows(20, 4, 2);
    let bytes = encode_shard(&written, 4, 2).unwrap();
    let id = written.item_ids[3].clone().into_bytes();
    let embedding: Vec<u8> = written.embeddings[8..12].iter().flat_map(|v| v.to_le_bytes()).collect();
    for (column, needle) in [("item_id", id), ("embedding", embedding), ("image_digest", vec![7; 32])] {
        let mut bytes = bytes.clone();
        let at =
            bytes.windows(needle.len()).position(|window| window == needle).expect("values lie plainly in the file");
        bytes[at] ^= 1;
        let message = corrupt(bytes, 4, 2);
        assert!(message.starts_with(&format!("column `{column}` of row group 0 has the checksum ")), "{message}");
    }
}

/// Files from before there were checksums, or by other tools, are held to the same rules.
#[test]
fn values_that_break_a_rule_in_a_file_are_corruption() {
    let written = rows(20, 4, 2);
    let mut bytes = encode_shard(&written, 4, 2).unwrap();
    let key = b"likeness.crc32c";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("a key in the footer");
    bytes[at] = b'L';
    let needle: Vec<u8> = written.embeddings[8..12].iter().flat_map(|v| v.to_le_bytes()).collect();
    let at = bytes.windows(16).position(|window| window == needle).expect("embeddings lie plainly in the file");
    bytes[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(corrupt(bytes.clone(), 4, 2).ends_with("(row 2) is not finite"));
    bytes[at..at + 4].copy_from_slice(&7f32.to_le_bytes());
    assert!(corrupt(bytes, 4, 2).contains("(row 2) has norm 7."));
}

#[test]
fn memory_is_known_before_a_shard_is_read() {
    for (n, dim, attributes) in [(1, 1, 1), (700, 300, 40), (1_000, 33, 3)] {
        let written = rows(n, dim, attributes);
        let id_bytes = written.item_ids.iter().map(String::len).sum();
        let shard = Shard::new(0, written, dim, attributes).unwrap().with_codes().unwrap();
        let (expected, found) = (Memory::estimate(n, dim, attributes, id_bytes), shard.memory());
        assert_eq!((found.embeddings, found.columns), (expected.embeddings, expected.columns));
        assert!(found.codes <= expected.codes && found.ids <= expected.ids, "{found:?} {expected:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Damage anywhere is an error, or harmless: the same shape of checked rows. It never panics.
    #[test]
    fn damaged_bytes_never_panic(at in any::<prop::sample::Index>(), bits in 1u8.., cut in any::<prop::sample::Index>(), truncate in any::<bool>()) {
        let mut bytes = encode_shard(&rows(40, 5, 3), 5, 3).unwrap();
        let place = at.index(bytes.len());
        bytes[place] ^= bits;
        if truncate {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(rows) = decode_shard(Bytes::from(bytes.clone()), 5, 3) {
            prop_assert!(rows.check(5, 3).is_ok());
            prop_assert_eq!(rows.len(), 40);
        }
        let _ = Shard::decode(0, Bytes::from(bytes), 5, 3);
    }
}
