use std::sync::OnceLock;

use likeness_contract::ranking::canonical_d2;

use super::*;
use crate::ErrorKind;
use crate::filter::RowSet;
use crate::rows::ShardRows;
use crate::search::top_k;

const DIM: usize = 24;
const ROWS: usize = 6_000;
const DIGEST: [u8; 32] = [7; 32];

/// Unit rows in clusters, and some that are held back as queries.
fn rows(count: usize, first: u64) -> Vec<Vec<f32>> {
    let mut state = 0u64;
    let mut value = |seed: u64| {
        state = (state ^ seed).wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(0x9e37_79b9_7f4a_7c15);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let centres: Vec<Vec<f32>> = (0..60).map(|_| (0..DIM).map(|_| value(1)).collect()).collect();
    let mut row = |number: u64| {
        let centre = &centres[(number.wrapping_mul(0x9e37_79b9) >> 7) as usize % centres.len()];
        unit(centre.iter().map(|c| c + 0.5 * value(number)).collect())
    };
    (first..first + count as u64).map(&mut row).collect()
}

fn unit(raw: Vec<f32>) -> Vec<f32> {
    let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
    raw.into_iter().map(|v| v / norm).collect()
}

fn shard(vectors: &[Vec<f32>]) -> Shard {
    shard_of(0, vectors)
}

fn shard_of(number: u32, vectors: &[Vec<f32>]) -> Shard {
    let n = vectors.len();
    let rows = ShardRows {
        item_ids: (0..n).map(|row| format!("{row:05}")).collect(),
        embeddings: vectors.concat(),
        labels: vec![1; n],
        split: vec![0; n],
        source_part: vec![0; n],
        source_row: vec![0; n],
        image_digest: vectors.iter().map(|vector| image_digest(vector)).collect(),
    };
    Shard::new(number, rows, DIM, 1).unwrap().with_codes().unwrap()
}

/// Equal vectors are of equal images.
fn image_digest(vector: &[f32]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.iter_mut().zip(vector.iter().flat_map(|v| v.to_le_bytes())).for_each(|(out, byte)| *out = byte);
    digest
}

fn indexed() -> &'static Shard {
    static SHARD: OnceLock<Shard> = OnceLock::new();
    SHARD.get_or_init(|| {
        let shard = shard(&rows(ROWS, 0));
        let index = Approximate::build(&shard).unwrap().unwrap();
        shard.with_approximate(index)
    })
}

fn query(vector: &[f32], k: usize) -> Query<'_> {
    Query { vector, k, within: None }
}

#[test]
fn the_recall_is_about_what_the_answer_says() {
    let shard = indexed();
    let queries = rows(200, 1 << 40);
    for (k, target) in [(10, 0.8), (10, 0.95), (10, 0.99), (7, 0.95), (100, 0.95)] {
        let (mut hits, mut said) = (0, 0.0);
        for vector in &queries {
            let answer = top_k_approximate(&[shard], &query(vector, k), target, &Cancel::new()).unwrap();
            let exact = top_k(&[shard], vector, k, &Cancel::new()).unwrap();
            hits += exact.iter().filter(|candidate| answer.candidates.contains(candidate)).count();
            said += answer.recall / queries.len() as f64;
        }
        let recall = hits as f64 / (k * queries.len()) as f64;
        assert!(said >= target && recall > target - 0.05, "{k} {target}: said {said}, found {recall}");
    }
}

#[test]
fn an_approximate_search_looks_at_few_rows() {
    let shard = indexed();
    let point = shard.approximate().unwrap().effort(10, 0.9).unwrap();
    assert!((point.cost as usize) < ROWS / 4, "{point:?}");
}

#[test]
fn what_is_found_has_canonical_distances_in_ranking_order() {
    let shard = indexed();
    for vector in &rows(20, 1 << 41) {
        let Approximation { candidates, .. } =
            top_k_approximate(&[shard], &query(vector, 10), 0.9, &Cancel::new()).unwrap();
        assert_eq!(candidates.len(), 10);
        assert!(candidates.is_sorted_by(|a, b| a.rank(b).is_lt()));
        for candidate in candidates {
            assert_eq!(candidate.d2.to_bits(), canonical_d2(vector, shard.embedding(candidate.row)).to_bits());
            assert_eq!(shard.item(candidate.row), candidate.item);
        }
    }
}

#[test]
fn queries_that_share_lists_are_answered_as_if_each_were_alone() {
    let shard = indexed();
    // Rows that stand there several times: their estimates are equal.
    let again: Vec<Vec<f32>> = rows(ROWS, 0)
        .into_iter()
        .map(|mut row| {
            row[0] = 0.0;
            row[1] = 0.0;
            unit(row)
        })
        .collect();
    let doubled = self::shard_of(1, &[&again[..3_000], &again[..3_000]].concat());
    let index = Approximate::build(&doubled).unwrap().unwrap();
    let doubled = doubled.with_approximate(index);
    let shards = [shard, &doubled, &self::shard_of(2, &rows(10, 3))];
    let vectors = rows(70, 1 << 44);
    let all = RowSet::all(ROWS);
    let few = RowSet::all(10);
    let sets = [&all, &all, &few];
    // Near ones, which share lists; different K and targets; some that are answered exactly.
    let asked = |i: usize| {
        let (vector, k) = (vectors[i / 2].as_slice(), [10, 3, 100, 0, 101][i % 5]);
        let within = (i % 11 == 7).then_some(&sets[..]);
        (Query { vector, k, within }, [0.9, 0.99, 0.7, 1.0][i % 4])
    };
    let queries: Vec<(Query, f64)> = (0..140).map(asked).collect();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for count in [1, 2, 3, 5, 140] {
            let batch = &queries[..count];
            let together = pool.install(|| top_k_approximate_batch(&shards, batch, &Cancel::new())).unwrap();
            for ((query, recall), answer) in batch.iter().zip(together) {
                assert_eq!(answer, top_k_approximate(&shards, query, *recall, &Cancel::new()).unwrap());
            }
        }
    }
    let cancel = Cancel::new();
    cancel.cancel();
    let error = top_k_approximate_batch(&shards, &queries, &cancel).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(top_k_approximate_batch(&shards, &[], &Cancel::new()).unwrap(), []);
}

#[test]
fn what_no_curve_speaks_of_is_answered_exactly() {
    let shard = indexed();
    let vector = &rows(1, 1 << 42)[0];
    let set = RowSet::all(ROWS);
    let sets = [&set];
    let few = self::shard(&rows(10, 3));
    assert!(Approximate::build(&few).unwrap().is_none());
    for (shard, query, target) in [
        (shard, Query { within: Some(&sets), ..query(vector, 10) }, 0.5),
        (shard, query(vector, LARGEST_K + 1), 0.5),
        (&few, query(vector, 3), 0.5),
    ] {
        let answer = top_k_approximate(&[shard], &query, target, &Cancel::new()).unwrap();
        let exact = top_k(&[shard], vector, query.k, &Cancel::new()).unwrap();
        assert_eq!((answer.candidates, answer.recall), (exact, 1.0));
    }
    let error = top_k_approximate(&[shard], &query(vector, 1), 1.5, &Cancel::new()).unwrap_err();
    assert_eq!(error.to_string(), "the target recall 1.5 is not within 0–1");
    let error = top_k_approximate(&[shard], &query(&[1.0], 1), 0.5, &Cancel::new()).unwrap_err();
    assert_eq!(error.to_string(), "the query has dimension 1, shard 0 has 24");
}

#[test]
fn an_index_does_not_depend_on_threads_and_comes_back_from_its_file() {
    let shard = indexed();
    let bytes = shard.approximate().unwrap().encode(shard, &DIGEST);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| Approximate::build(shard)).unwrap().unwrap();
        assert!(again.encode(shard, &DIGEST) == bytes, "{threads} threads");
    }
    let read = Approximate::decode(&bytes, shard, &DIGEST).unwrap();
    assert!(read.encode(shard, &DIGEST) == bytes);
    let read = self::shard(&rows(ROWS, 0)).with_approximate(read);
    for vector in &rows(20, 1 << 43) {
        let answer = |shard| top_k_approximate(&[shard], &query(vector, 10), 0.95, &Cancel::new()).unwrap();
        assert_eq!(answer(&read), answer(shard));
    }
}

#[test]
fn damaged_files_and_those_of_other_shards_are_refused() {
    let shard = indexed();
    let bytes = shard.approximate().unwrap().encode(shard, &DIGEST);
    let refusal = |bytes: &[u8], digest| {
        let error = Approximate::decode(bytes, shard, digest).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt);
        error.to_string()
    };
    assert_eq!(refusal(&bytes, &[8; 32]), "the approximate index is of another shard");
    for at in [20, 100, bytes.len() / 2, bytes.len() - 1] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert_eq!(refusal(&bytes, &DIGEST), "the approximate index does not have the checksum that was written");
    }
    // With a checksum that fits, as a hostile writer would make it.
    let resealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        bytes.truncate(bytes.len() - 4);
        change(&mut bytes);
        let sum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        refusal(&bytes, &DIGEST)
    };
    assert!(resealed(&|bytes| bytes[8] = 9).ends_with("is none of version 2"));
    assert!(resealed(&|bytes| bytes[27] = 255).contains(" lists and "));
    assert!(resealed(&|bytes| bytes[24] -= 1).ends_with("has another size than its header says"));
    assert!(
        resealed(&|bytes| bytes[64..68].copy_from_slice(&f32::NAN.to_le_bytes())).contains("a centroid of norm NaN")
    );
    let lists = shard.approximate().unwrap().lists();
    let assigned = 64 + lists * DIM * 4;
    assert!(resealed(&|bytes| bytes[assigned + 3] = 1).contains("has a row in list 16777"));
    assert!(resealed(&|bytes| bytes[assigned + ROWS * 4] = 0).contains("has the point"));
    for length in [0, 3, 60, 70, 5_000] {
        assert!(Approximate::decode(&bytes[..length], shard, &DIGEST).is_err());
    }
}

/// The rows of the indexed shard, of which `new` are others and the first `gone` are not there, in another order.
fn nearly(new: usize, gone: usize) -> Shard {
    let mut vectors = rows(ROWS, 0);
    for (at, other) in rows(new, 1 << 42).into_iter().enumerate() {
        vectors[gone + at * 37] = other;
    }
    vectors.drain(..gone);
    vectors.rotate_left(100);
    shard(&vectors)
}

fn adapted(earlier: &Shard, index: &[u8], shard: &Shard) -> Option<Vec<u8>> {
    let earlier = EarlierShard { shard: earlier, digest: &DIGEST, index };
    Approximate::adapt(earlier, shard, &[4; 32]).unwrap()
}

#[test]
fn an_adapted_index_keeps_lists_and_what_it_tells_holds() {
    let earlier = indexed();
    let before = earlier.approximate().unwrap();
    let (new, gone) = (ROWS / 100, 5);
    let shard = nearly(new, gone);
    let bytes = adapted(earlier, &before.encode(earlier, &DIGEST), &shard).expect("few rows differ");
    assert!(adapted(earlier, &before.encode(earlier, &DIGEST), &shard).as_ref() == Some(&bytes), "the same again");
    let index = Approximate::decode(&bytes, &shard, &[4; 32]).unwrap();
    let (old, lists) = (before.lists.assigned(ROWS), index.lists.assigned(shard.rows()));
    let row = |of: &Shard, id: u32| (0..of.rows() as u32).find(|row| of.embedding(*row) == earlier.embedding(id));
    let kept: Vec<(u32, u32)> = (0..ROWS as u32).step_by(29).filter_map(|id| Some((id, row(&shard, id)?))).collect();
    assert!(kept.len() > ROWS / 29 - new);
    assert!(kept.iter().all(|(id, row)| old[*id as usize] == lists[*row as usize]));
    let share = new as f32 / shard.rows() as f32;
    for (before, after) in before.curve.iter().zip(&index.curve) {
        assert_eq!((after.k, after.recall), (before.k, (before.recall - share).max(0.0)));
    }
    let shard = shard.with_approximate(index);
    let (mut found, mut told, mut asked) = (0, 0.0, 0);
    for vector in rows(150, 1 << 43).iter().chain(&rows(new, 1 << 42)) {
        let exact = top_k_batch(&[&shard], &[query(vector, 10)], &Cancel::new()).unwrap().remove(0);
        let answer = top_k_approximate(&[&shard], &query(vector, 10), 0.9, &Cancel::new()).unwrap();
        assert!(answer.recall < 1.0, "the index is used");
        found += exact.iter().filter(|row| answer.candidates.contains(row)).count();
        (told, asked) = (told + answer.recall, asked + 1);
    }
    let (found, told) = (found as f64 / f64::from(asked) / 10.0, told / f64::from(asked));
    assert!(found >= told - 0.01, "{found} of {told}");
}

#[test]
fn an_index_of_too_different_a_shard_is_built() {
    let earlier = indexed();
    let index = earlier.approximate().unwrap().encode(earlier, &DIGEST);
    assert_eq!(adapted(earlier, &index, &nearly(ROWS / 40, 0)), None, "too many are new");
    assert_eq!(adapted(earlier, &index, &nearly(0, ROWS / 40)), None, "too many are gone");
    // From one shard to the other and back: each time a part of the rows is taken for lost.
    let shard = nearly(ROWS / 60, 0);
    let (mut from, mut to, mut held, mut steps) = (earlier, &shard, index.clone(), 0);
    while let Some(next) = adapted(from, &held, to) {
        let resealed = Approximate::decode(&next, to, &[4; 32]).unwrap().encode(to, &DIGEST);
        (from, to, held, steps) = (to, from, resealed, steps + 1);
        assert!(steps < 5, "it promises less each time");
    }
    assert!(steps > 0, "once it does");
    let wrong = EarlierShard { shard: earlier, digest: &[9; 32], index: &index };
    assert_eq!(Approximate::adapt(wrong, &shard, &DIGEST).unwrap_err().kind, ErrorKind::Corrupt);
}
