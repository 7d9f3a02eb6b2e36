//! The local cache of shards, as a searcher uses it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use likeness_index::{Approximate, Cache, Cancel, Filter, Label, Query, Shard, ShardRows, top_k, top_k_approximate};

const DIM: usize = 20;
const ROWS: usize = 700;
const ATTRIBUTES: usize = 2;

fn shard(seed: u64, named_in_order: bool) -> Shard {
    let mut state = seed;
    let mut value = || {
        state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9_7f4a_7c15);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut embeddings = Vec::new();
    for _ in 0..ROWS {
        let raw: Vec<f32> = (0..DIM).map(|_| value()).collect();
        let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
        embeddings.extend(raw.into_iter().map(|v| v / norm));
    }
    let name = |row: usize| if named_in_order { format!("é{row:04}") } else { format!("{:04}", (row * 7) % ROWS + 1) };
    let item_ids: Vec<String> =
        (0..ROWS).map(|row| if named_in_order { name(row) } else { format!("{}-{row}", name(row)) }).collect();
    let rows = ShardRows {
        item_ids,
        embeddings,
        labels: (0..ROWS * ATTRIBUTES).map(|i| (i % 3) as i8 - 1).collect(),
        split: (0..ROWS).map(|row| (row % 3) as u8).collect(),
        source_part: (0..ROWS as u32).collect(),
        source_row: (0..ROWS as u32).map(|row| row * 3).collect(),
        image_digest: (0..ROWS).map(|row| [row as u8; 32]).collect(),
    };
    Shard::new(9, rows, DIM, ATTRIBUTES).unwrap()
}

fn digest(number: u8) -> [u8; 32] {
    [number; 32]
}

fn file(folder: &Path, number: u8) -> PathBuf {
    folder.join(format!("{number:02x}").repeat(32) + ".shard")
}

/// Bytes of a file of the shards of these tests.
fn one_file() -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(folder.path(), u64::MAX).unwrap();
    assert!(cache.put(&digest(1), &shard(1, true).with_codes().unwrap()).unwrap());
    cache.bytes()
}

fn assert_same(read: &Shard, expected: &Shard) {
    assert_eq!((read.rows(), read.dim(), read.attributes()), (ROWS, DIM, ATTRIBUTES));
    for row in 0..ROWS as u32 {
        assert_eq!(read.embedding(row), expected.embedding(row));
        assert_eq!(read.item(row), expected.item(row));
        assert_eq!(read.labels(row), expected.labels(row));
        assert_eq!((read.split(row), read.source(row)), (expected.split(row), expected.source(row)));
        assert_eq!(read.image_digest(row), expected.image_digest(row));
        assert_eq!(read.find(expected.item(row)), Some(row));
    }
    let filter = Filter::new().and(1, Label::Has);
    assert_eq!(read.matching(&filter).unwrap(), expected.matching(&filter).unwrap());
    for row in [0, 1, 69] {
        let answer = |shard: &Shard| top_k(&[shard], expected.embedding(row), 10, &Cancel::new()).unwrap();
        assert_eq!(answer(read), answer(expected));
    }
}

#[test]
fn a_shard_comes_back_as_it_was_also_for_another_process() {
    let folder = tempfile::tempdir().unwrap();
    for (number, named_in_order, with_codes) in [(1, true, true), (2, false, true), (3, true, false)] {
        let mut held = shard(5, named_in_order);
        if with_codes {
            held = held.with_codes().unwrap();
        }
        let cache = Cache::open(folder.path(), u64::MAX).unwrap();
        assert!(cache.get(9, &digest(number)).unwrap().is_none());
        assert!(cache.put(&digest(number), &held).unwrap());
        assert!(cache.put(&digest(number), &held).unwrap());
        drop(cache);
        let cache = Cache::open(folder.path(), u64::MAX).unwrap();
        let read = cache.get(9, &digest(number)).unwrap().expect("what was put");
        assert!(read.is_mapped() && !held.is_mapped());
        let (memory, before) = (read.memory(), held.memory());
        assert_eq!((memory.embeddings, memory.codes), (0, before.codes));
        assert_eq!(read.number(), 9);
        assert_same(&read, &held);
        // The map outlives the cache and the file.
        drop(cache);
        fs::remove_file(file(folder.path(), number)).unwrap();
        assert_same(&read, &held);
    }
}

#[test]
fn the_longest_unused_file_goes_but_none_that_is_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let (held, one) = (shard(1, true).with_codes().unwrap(), one_file());
    let cache = Cache::open(folder.path(), 3 * one).unwrap();
    for number in 1..=3 {
        assert!(cache.put(&digest(number), &held).unwrap());
    }
    let first = cache.get(0, &digest(1)).unwrap().expect("the first");
    drop(cache.get(0, &digest(2)).unwrap().expect("the second"));
    assert!(cache.put(&digest(4), &held).unwrap());
    let there = || (1..=5).filter(|number| file(folder.path(), *number).exists()).collect::<Vec<u8>>();
    assert_eq!(there(), [1, 2, 4], "3 was unused for the longest time");
    assert!(cache.put(&digest(5), &held).unwrap());
    assert_eq!(there(), [1, 4, 5], "1 is in use");
    assert_eq!(cache.bytes(), 3 * one);
    drop(first);
    assert!(cache.put(&digest(3), &held).unwrap());
    assert_eq!(there(), [3, 4, 5], "1 is not in use any more");
    let alive: Vec<Shard> = [3, 4, 5].map(|number| cache.get(0, &digest(number)).unwrap().expect("a file")).into();
    assert!(!cache.put(&digest(1), &held).unwrap(), "everything is in use");
    assert_eq!(there(), [3, 4, 5]);
    drop((alive, cache));
    // A smaller limit holds from the start.
    let cache = Cache::open(folder.path(), one).unwrap();
    assert_eq!((cache.bytes(), there().len()), (one, 1));
    let small = tempfile::tempdir().unwrap();
    let cache = Cache::open(small.path(), one - 1).unwrap();
    assert!(!cache.put(&digest(1), &held).unwrap());
    let left: Vec<_> = fs::read_dir(small.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn anything_wrong_with_a_file_is_an_error_and_the_file_goes() {
    let folder = tempfile::tempdir().unwrap();
    let held = shard(1, false).with_codes().unwrap();
    let cache = Cache::open(folder.path(), u64::MAX).unwrap();
    assert!(cache.put(&digest(1), &held).unwrap());
    let path = file(folder.path(), 1);
    let sound = fs::read(&path).unwrap();
    let refusal = |bytes: &[u8]| {
        // As another process would have left it: nothing is mapped here.
        fs::write(&path, bytes).unwrap();
        let error = cache.get(0, &digest(1)).unwrap_err();
        assert_eq!(error.kind, likeness_index::ErrorKind::Corrupt, "{error}");
        assert!(!path.exists());
        assert!(cache.get(0, &digest(1)).unwrap().is_none());
        assert!(cache.put(&digest(1), &held).unwrap());
        error.to_string()
    };
    let sections = 12;
    for section in 0..sections {
        let entry = 64 + section * 20;
        let long = |at: usize| u64::from_le_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
        let (at, len) = (long(entry), long(entry + 8));
        assert!(len > 0, "section {section}");
        for place in [at, at + len - 1] {
            let mut bytes = sound.clone();
            bytes[place] ^= 4;
            let said = refusal(&bytes);
            assert!(said.starts_with("the local file of the shard has a damaged section"), "{said}");
        }
    }
    let mut header = sound.clone();
    header[70] ^= 1;
    assert!(refusal(&header).ends_with("has a damaged header"));
    header = sound.clone();
    header[8] = 9;
    assert!(refusal(&header).ends_with("is none of version 2"));
    for len in [0, 100, 5000, sound.len() - 1] {
        assert!(refusal(&sound[..len]).ends_with("is cut off"), "{len}");
    }
    // The file of another shard under this one's name.
    assert!(cache.put(&digest(2), &held).unwrap());
    let other = fs::read(file(folder.path(), 2)).unwrap();
    assert!(refusal(&other).ends_with("is of another shard"));
    let read = cache.get(9, &digest(1)).unwrap().expect("a sound file");
    assert_same(&read, &held);
}

/// A shard that is large enough, with its index and the digests of both files.
fn indexed() -> (Shard, [u8; 32], [u8; 32]) {
    let rows = 4_200;
    let angle = |row: usize, i: usize| ((row * 31 + i * 17) % 997) as f32 * 0.37 + (row % 29 * i) as f32;
    let mut embeddings: Vec<f32> = (0..rows * DIM).map(|at| angle(at / DIM, at % DIM).sin()).collect();
    for row in embeddings.chunks_exact_mut(DIM) {
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= norm);
    }
    let rows = ShardRows {
        item_ids: (0..rows).map(|row| format!("{row:05}")).collect(),
        embeddings,
        labels: vec![1; rows * ATTRIBUTES],
        split: vec![0; rows],
        source_part: vec![0; rows],
        source_row: vec![0; rows],
        image_digest: vec![[0; 32]; rows],
    };
    let shard = Shard::new(3, rows, DIM, ATTRIBUTES).unwrap().with_codes().unwrap();
    let index = Approximate::build(&shard).unwrap().expect("an index");
    (shard.with_approximate(index), digest(1), digest(2))
}

#[test]
fn an_index_comes_back_as_it_was_and_counts_for_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (held, own, of_index) = indexed();
    let index = held.approximate().expect("an index");
    let cache = Cache::open(folder.path(), u64::MAX).unwrap();
    assert!(cache.get_index(&held, &own, &of_index).unwrap().is_none());
    assert!(cache.put(&own, &held).unwrap());
    let shard_bytes = cache.bytes();
    assert!(cache.put_index(&held, &own, &of_index, index).unwrap());
    let all = cache.bytes();
    assert!(all > shard_bytes);
    drop(cache);

    let cache = Cache::open(folder.path(), all).unwrap();
    let read = cache.get(3, &own).unwrap().expect("the shard");
    let kept = cache.get_index(&read, &own, &of_index).unwrap().expect("the index");
    assert!(kept.bytes() < index.bytes(), "the centroids lie in the file");
    assert!(kept.encode(&read, &own) == index.encode(&held, &own), "the same file form");
    let read = read.with_approximate(kept);
    for row in [0, 77, 4_100] {
        let ask = |shard: &Shard| {
            let query = Query { vector: held.embedding(row), k: 10, within: None };
            top_k_approximate(&[shard], &query, 0.9, &Cancel::new()).unwrap()
        };
        assert_eq!(ask(&read), ask(&held));
    }
    // Both are in use, so nothing else has room; after that both may go.
    assert!(!cache.put(&digest(7), &held).unwrap());
    drop(read);
    assert!(cache.put(&digest(7), &held).unwrap());
    assert!(cache.bytes() <= all);
}

#[test]
fn anything_wrong_with_the_file_of_an_index_is_an_error_and_the_file_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (held, own, of_index) = indexed();
    let index = held.approximate().expect("an index");
    let cache = Cache::open(folder.path(), u64::MAX).unwrap();
    assert!(cache.put_index(&held, &own, &of_index, index).unwrap());
    let path = folder.path().join("02".repeat(32) + ".index");
    let sound = fs::read(&path).unwrap();
    let refusal = |bytes: &[u8], shard: &[u8; 32]| {
        fs::write(&path, bytes).unwrap();
        let error = cache.get_index(&held, shard, &of_index).unwrap_err();
        assert_eq!(error.kind, likeness_index::ErrorKind::Corrupt, "{error}");
        assert!(!path.exists());
        assert!(cache.put_index(&held, &own, &of_index, index).unwrap());
        error.to_string()
    };
    for section in 0..8 {
        let long = |at: usize| u64::from_le_bytes(sound[at..at + 8].try_into().unwrap()) as usize;
        let (at, len) = (long(64 + section * 20), long(72 + section * 20));
        for place in [at, at + len - 1] {
            let mut bytes = sound.clone();
            bytes[place] ^= 4;
            let said = refusal(&bytes, &own);
            assert!(said.starts_with("the local file of the approximate index has a damaged section"), "{said}");
        }
    }
    assert!(refusal(&sound[..sound.len() - 1], &own).ends_with("is cut off"));
    assert!(refusal(&sound, &digest(9)).ends_with("is of another shard"));
    let mut other = sound.clone();
    other[40] ^= 1;
    assert!(refusal(&other, &own).ends_with("has a damaged header"));
    assert!(cache.get_index(&held, &own, &of_index).unwrap().is_some());
}

#[test]
fn a_folder_belongs_to_one_and_what_a_crash_left_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join("00-1.partial");
    fs::write(&partial, b"half").unwrap();
    fs::write(folder.path().join("other.txt"), b"not ours").unwrap();
    let cache = Cache::open(folder.path(), 1 << 30).unwrap();
    assert!(!partial.exists() && folder.path().join("other.txt").exists());
    let error = Cache::open(folder.path(), 1 << 30).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    assert!(error.to_string().starts_with("another process has the shard cache"), "{error}");
    drop(cache);
    assert!(Cache::open(folder.path(), 1 << 30).is_ok());
    let error = Cache::open(folder.path().join("other.txt"), 1).unwrap_err();
    assert!(error.to_string().contains("other.txt"), "{error}");
}
