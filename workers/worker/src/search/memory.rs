//! Whether another shard fits into the memory that a searcher may use for them.
//!
//! What a shard will take follows from its entry in the manifest, before any of it is read; it is never less than what it
//! takes in the end. Searchers without a limit hold whatever is theirs.

use likeness_contract::documents::ShardEntry;
use likeness_index::{Approximate, Memory};

/// Bytes of a row of a shard's file beside embedding, labels and id: the id's length, split, part, row, digest.
const FILE_ROW_BYTES: u64 = 4 + 4 + 4 + 4 + 32;

/// Bytes that a shard will take.
pub fn needed(entry: &ShardEntry, dim: usize, attributes: usize) -> u64 {
    let ShardEntry { shard: _, object, rows, approximate } = entry;
    // Labels are stored as four bytes; what a file has beyond its columns' values counts as ids.
    let values = rows * ((dim + attributes) as u64 * 4 + FILE_ROW_BYTES);
    let ids = object.bytes.saturating_sub(values);
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let exact = Memory::estimate(size(*rows), dim, attributes, size(ids)).total() as u64;
    let index = approximate.as_ref().map_or(0, |index| Approximate::most_bytes(size(index.bytes), size(*rows), dim));
    exact + index as u64
}

/// Takes as many of these shards as fit beside `held` bytes; of the others, why they don't.
pub fn admit(limit: Option<u64>, mut held: u64, shards: Vec<(u32, u64)>) -> (Vec<u32>, Vec<(u32, String)>) {
    let (mut taken, mut refused) = (Vec::new(), Vec::new());
    for (shard, needed) in shards {
        match limit {
            Some(limit) if held.saturating_add(needed) > limit => refused.push((shard, no_room(needed, held, limit))),
            _ => {
                held = held.saturating_add(needed);
                taken.push(shard);
            }
        }
    }
    (taken, refused)
}

fn no_room(needed: u64, held: u64, limit: u64) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let (needed, left, limit) = (mib(needed), mib(limit.saturating_sub(held)), mib(limit));
    format!("does not fit: it needs {needed}, and of this searcher's {limit} (`--search-memory`) {left} are left")
}

#[cfg(test)]
mod tests {
    use likeness_contract::documents::ObjectRef;
    use likeness_contract::ids::Digest;
    use likeness_index::{Shard, ShardRows, encode_shard};

    use super::*;

    #[test]
    fn no_more_is_held_than_fits_and_the_rest_is_told() {
        let mib = 1 << 20;
        let shards = vec![(3, 4 * mib), (4, 8 * mib), (5, 2 * mib)];
        assert_eq!(admit(None, u64::MAX, shards.clone()).0, [3, 4, 5]);
        let (taken, refused) = admit(Some(10 * mib), 3 * mib, shards);
        assert_eq!(taken, [3, 5]);
        let why =
            "does not fit: it needs 8.0 MiB, and of this searcher's 10.0 MiB (`--search-memory`) 3.0 MiB are left";
        assert_eq!(refused, [(4, why.to_string())]);
    }

    #[test]
    fn a_shard_takes_no_more_than_was_said_and_not_much_less() {
        for (count, dim, attributes) in [(5000, 24, 3), (4500, 100, 40), (700, 300, 40), (1, 7, 1)] {
            let value = |at: usize| (at as f32 * 0.7311).sin() + if at % dim == at / dim % dim { 2.0 } else { 0.0 };
            let mut embeddings: Vec<f32> = (0..count * dim).map(value).collect();
            for row in embeddings.chunks_exact_mut(dim) {
                let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter_mut().for_each(|v| *v /= norm);
            }
            let rows = ShardRows {
                item_ids: (0..count).map(|row| format!("folder/{}.jpg", row * 7919 % 10_007)).collect(),
                embeddings,
                labels: vec![1; count * attributes],
                split: vec![0; count],
                source_part: vec![0; count],
                source_row: vec![0; count],
                image_digest: vec![[0; 32]; count],
            };
            let file = encode_shard(&rows, dim, attributes).unwrap();
            let mut shard = Shard::new(0, rows, dim, attributes).unwrap().with_codes().unwrap();
            let object = |bytes: usize| ObjectRef { key: "k".into(), digest: Digest::of(b""), bytes: bytes as u64 };
            let index = Approximate::build(&shard).unwrap();
            let approximate = index.as_ref().map(|index| object(index.encode(&shard, &[0; 32]).len()));
            if let Some(index) = index {
                shard = shard.with_approximate(index);
            }
            let entry = ShardEntry { shard: 0, object: object(file.len()), rows: count as u64, approximate };
            let (said, takes) = (needed(&entry, dim, attributes), shard.memory().total() as u64);
            assert!(said >= takes && said <= takes + takes / 2 + 10_000, "{count} × {dim}: said {said}, takes {takes}");
        }
    }
}
