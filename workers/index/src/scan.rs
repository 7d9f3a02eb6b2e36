//! Exact nearest neighbours by a scan over all rows.
//!
//! Rows are cut into blocks, which threads of the current rayon pool take one by one. Each thread keeps the
//! best K of its own rows per query; what it knows of the K-th distance is shared, so that rows that cannot
//! be among the answer are dropped early, most of them by [`first_pass`]. A dropped row is *strictly* farther than K
//! known rows, whatever its id; so the answer is the same for any number of threads and any size of blocks.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use likeness_contract::ranking::{Candidate, canonical_d2, rank};
use rayon::prelude::*;

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::first_pass;
use crate::shard::Shard;

/// Rows of a block: enough to hide the cost of taking it, few enough to stop quickly.
const BLOCK_ROWS: usize = 1024;
/// Rows of one call of the first pass; with all queries of a batch they stay in the cache.
const STRIP_ROWS: usize = 64;

/// The best `k` rows of all shards, in ranking order; all rows when there are fewer.
///
/// `query` (D) is finite. Fails with `Invalid` for another dimension or a shard given twice, and with
/// `Cancelled` soon after `cancel` is set. Runs on the current rayon pool: give a search its own with
/// `ThreadPool::install`, or it queues behind other work.
pub fn top_k(shards: &[&Shard], query: &[f32], k: usize, cancel: &Cancel) -> Result<Vec<Candidate>> {
    let mut answers = top_k_batch(shards, &[query], k, cancel)?;
    Ok(answers.pop().expect("one answer per query"))
}

/// [`top_k`] for each of several queries in one pass over the rows.
pub fn top_k_batch(shards: &[&Shard], queries: &[&[f32]], k: usize, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
    scan(shards, queries, k, BLOCK_ROWS, cancel)
}

fn scan(shards: &[&Shard], queries: &[&[f32]], k: usize, block: usize, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
    check(shards, queries)?;
    if k == 0 || shards.is_empty() {
        return Ok(vec![Vec::new(); queries.len()]);
    }
    let scan = Scan::new(shards, queries, k, block);
    let workers = rayon::current_num_threads().min(scan.blocks.len());
    let best: Vec<Vec<Best>> = match workers {
        0 => Vec::new(),
        1 => vec![scan.work(cancel)?],
        _ => (0..workers).into_par_iter().with_max_len(1).map(|_| scan.work(cancel)).collect::<Result<_>>()?,
    };
    Ok((0..queries.len()).map(|query| merge(shards, best.iter().map(|worker| &worker[query]), k)).collect())
}

fn check(shards: &[&Shard], queries: &[&[f32]]) -> Result<()> {
    let mut numbers: Vec<u32> = shards.iter().map(|shard| shard.number()).collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(format!("shard {} is given twice", pair[0])));
    }
    for query in queries {
        if let Some(shard) = shards.iter().find(|shard| shard.dim() != query.len()) {
            let (number, dim, found) = (shard.number(), shard.dim(), query.len());
            return Err(Error::invalid(format!("the query has dimension {found}, shard {number} has {dim}")));
        }
        if !query.iter().all(|v| v.is_finite()) {
            return Err(Error::invalid("the query is not finite"));
        }
    }
    Ok(())
}

/// A row with its distance, in ranking order.
#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    d2: f64,
    item: &'a str,
    /// Position among the shards of the scan.
    shard: usize,
    row: u32,
}

impl Ord for Entry<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |entry: &Self| (entry.shard, entry.row);
        rank((self.d2, self.item), (other.d2, other.item)).then_with(|| place(self).cmp(&place(other)))
    }
}
impl PartialOrd for Entry<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry<'_> {}

/// The best K entries of one worker for one query; the worst is on top.
type Best<'a> = BinaryHeap<Entry<'a>>;

/// Rows of one shard that are taken at once.
#[derive(Debug, Clone, Copy)]
struct Block {
    shard: usize,
    first: usize,
    rows: usize,
}

struct Query<'a> {
    values: &'a [f32],
    /// The same, padded like the rows.
    padded: Vec<f32>,
    /// Bits of an upper bound of the K-th d². Distances are not negative, so bits are ordered like values.
    threshold: AtomicU64,
}

struct Scan<'a> {
    shards: &'a [&'a Shard],
    queries: Vec<Query<'a>>,
    k: usize,
    blocks: Vec<Block>,
    next: AtomicUsize,
}

impl<'a> Scan<'a> {
    fn new(shards: &'a [&'a Shard], queries: &[&'a [f32]], k: usize, block: usize) -> Self {
        let blocks = shards.iter().enumerate().flat_map(|(shard, held)| {
            (0..held.rows()).step_by(block).map(move |first| Block {
                shard,
                first,
                rows: block.min(held.rows() - first),
            })
        });
        let queries = queries.iter().map(|values| {
            let mut padded = values.to_vec();
            padded.resize(shards[0].padded().stride(), 0.0);
            Query { values, padded, threshold: AtomicU64::new(f64::INFINITY.to_bits()) }
        });
        Self { shards, queries: queries.collect(), k, blocks: blocks.collect(), next: AtomicUsize::new(0) }
    }

    /// Takes blocks until none is left.
    fn work(&self, cancel: &Cancel) -> Result<Vec<Best<'a>>> {
        let mut best = vec![Best::new(); self.queries.len()];
        while let Some(block) = self.blocks.get(self.next.fetch_add(1, Relaxed)) {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            for first in (block.first..block.first + block.rows).step_by(STRIP_ROWS) {
                let rows = STRIP_ROWS.min(block.first + block.rows - first);
                for (query, best) in self.queries.iter().zip(&mut best) {
                    self.strip(Block { shard: block.shard, first, rows }, query, best);
                }
            }
        }
        Ok(best)
    }

    /// Offers the rows of one strip to the best of one query.
    fn strip(&self, strip: Block, query: &Query, best: &mut Best<'a>) {
        let mut bound = query.bound();
        let mut first = [0f32; STRIP_ROWS];
        let mut limit = f32::INFINITY;
        if bound.is_finite() {
            let rows = self.shards[strip.shard].padded().padded(strip.first, strip.rows);
            first_pass::distances(&query.padded, rows, &mut first[..strip.rows]);
            limit = first_pass::limit(bound, query.padded.len());
        }
        for (i, first) in first[..strip.rows].iter().enumerate() {
            if *first > limit {
                continue;
            }
            let row = (strip.first + i) as u32;
            if let Some(lower) = self.offer(strip.shard, row, query, bound, best) {
                query.threshold.fetch_min(lower.to_bits(), Relaxed);
                bound = lower.min(bound);
                limit = first_pass::limit(bound, query.padded.len());
            }
        }
    }

    /// Adds a row to the best, if it belongs there; tells the K-th d² when that changed.
    fn offer(&self, shard: usize, row: u32, query: &Query, bound: f64, best: &mut Best<'a>) -> Option<f64> {
        let held = self.shards[shard];
        let d2 = canonical_d2(query.values, held.embedding(row));
        if d2 > bound {
            return None;
        }
        let entry = Entry { d2, item: held.item(row), shard, row };
        if best.len() < self.k {
            best.push(entry);
        } else {
            let mut worst = best.peek_mut().expect("K is not 0");
            if entry >= *worst {
                return None;
            }
            *worst = entry;
        }
        (best.len() == self.k).then(|| best.peek().expect("K is not 0").d2)
    }
}

impl Query<'_> {
    fn bound(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }
}

fn merge<'a>(shards: &[&'a Shard], workers: impl Iterator<Item = &'a Best<'a>>, k: usize) -> Vec<Candidate> {
    let mut entries: Vec<Entry> = workers.flatten().copied().collect();
    entries.sort_unstable();
    entries.truncate(k);
    let candidate = |entry: Entry| {
        let Entry { d2, item, shard, row } = entry;
        Candidate { d2, item: item.to_string(), shard: shards[shard].number(), row }
    };
    entries.into_iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rows::ShardRows;

    /// Rows that are drawn from few vectors, so that many distances tie.
    fn gallery(dim: usize, picks: &[(u8, u16)]) -> Vec<(String, Vec<f32>)> {
        let vector = |pick: u8| {
            let raw: Vec<f32> =
                (0..dim).map(|i| f32::from((i as u8).wrapping_mul(pick).wrapping_add(pick / 3)) - 100.5).collect();
            let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
            raw.into_iter().map(|v| v / norm).collect()
        };
        let rows: std::collections::BTreeMap<String, Vec<f32>> =
            picks.iter().map(|(pick, id)| (format!("i{id}"), vector(*pick))).collect();
        let mut rows: Vec<_> = rows.into_iter().collect();
        // Not in the order of ids.
        rows.sort_by_key(|(id, _)| id.bytes().fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b)));
        rows
    }

    fn shard(number: u32, dim: usize, rows: &[&(String, Vec<f32>)]) -> Shard {
        let n = rows.len();
        let rows = ShardRows {
            item_ids: rows.iter().map(|row| row.0.clone()).collect(),
            embeddings: rows.iter().flat_map(|row| row.1.clone()).collect(),
            labels: vec![0; n],
            split: vec![0; n],
            source_part: vec![0; n],
            source_row: vec![0; n],
            image_digest: vec![[0; 32]; n],
        };
        Shard::new(number, rows, dim, 1).unwrap()
    }

    /// The oracle: all distances, sorted.
    fn sorted(rows: &[(String, Vec<f32>)], query: &[f32], k: usize) -> Vec<(u64, String)> {
        let mut all: Vec<_> = rows.iter().map(|(id, row)| (canonical_d2(query, row), id.clone())).collect();
        all.sort_by(|a, b| rank((a.0, &a.1), (b.0, &b.1)));
        all.into_iter().take(k).map(|(d2, id)| (d2.to_bits(), id)).collect()
    }

    fn answers(candidates: &[Candidate]) -> Vec<(u64, String)> {
        candidates.iter().map(|c| (c.d2.to_bits(), c.item.clone())).collect()
    }

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_answer_equals_the_plain_loop_for_any_layout(
            dim in prop_oneof![1usize..4, 15usize..35, Just(128)],
            picks in proptest::collection::vec((0u8..40, 0u16..3000), 0..400),
            cuts in proptest::collection::vec(0usize..5, 400),
            k in prop_oneof![1usize..12, 350usize..500],
            block in prop_oneof![1usize..9, 60usize..200],
            threads in 1usize..4,
        ) {
            let rows = gallery(dim, &picks);
            let mut parts = vec![Vec::new(); 5];
            for (row, cut) in rows.iter().zip(&cuts) {
                parts[*cut].push(row);
            }
            let shards: Vec<Shard> = parts.iter().enumerate().map(|(i, part)| shard(i as u32, dim, part)).collect();
            let shards: Vec<&Shard> = shards.iter().collect();
            let queries = gallery(dim, &[(7, 0), (33, 1)]);
            let queries: Vec<&[f32]> = queries.iter().map(|q| q.1.as_slice()).collect();
            let found = pool(threads).install(|| scan(&shards, &queries, k, block, &Cancel::new())).unwrap();
            for (query, found) in queries.iter().zip(&found) {
                prop_assert_eq!(answers(found), sorted(&rows, query, k));
                for candidate in found {
                    let held = shards[candidate.shard as usize];
                    prop_assert_eq!(held.item(candidate.row), &candidate.item);
                    prop_assert_eq!(held.find(&candidate.item), Some(candidate.row));
                }
            }
        }
    }

    #[test]
    fn distinct_distances_over_many_blocks_are_exact_on_two_threads() {
        let dim = 24;
        let picks: Vec<(u8, u16)> = (0..20_000u32).map(|i| ((i % 251) as u8, i as u16)).collect();
        let mut rows = gallery(dim, &picks);
        for (i, (_, row)) in rows.iter_mut().enumerate() {
            row[i % dim] += i as f32 * 1e-8;
        }
        let shard = shard(0, dim, &rows.iter().collect::<Vec<_>>());
        for k in [1, 10, 1000] {
            let query = &rows[k].1;
            let found = pool(2).install(|| top_k(&[&shard], query, k, &Cancel::new())).unwrap();
            assert_eq!(answers(&found), sorted(&rows, query, k));
        }
    }

    #[test]
    fn a_cancelled_scan_ends_as_cancelled() {
        let rows = gallery(3, &[(1, 1), (2, 2)]);
        let shard = shard(0, 3, &rows.iter().collect::<Vec<_>>());
        let cancel = Cancel::new();
        cancel.cancel();
        let error = top_k(&[&shard], &[1.0, 0.0, 0.0], 1, &cancel).unwrap_err();
        assert_eq!(error.kind, crate::ErrorKind::Cancelled);
    }

    #[test]
    fn wrong_queries_are_refused() {
        let rows = gallery(3, &[(1, 1)]);
        let (a, b) = (shard(4, 3, &rows.iter().collect::<Vec<_>>()), shard(4, 3, &[]));
        let message =
            |shards: &[&Shard], query: &[f32]| top_k(shards, query, 1, &Cancel::new()).unwrap_err().to_string();
        assert_eq!(message(&[&a], &[1.0]), "the query has dimension 1, shard 4 has 3");
        assert_eq!(message(&[&a], &[1.0, f32::NAN, 0.0]), "the query is not finite");
        assert_eq!(message(&[&a, &b], &[1.0, 0.0, 0.0]), "shard 4 is given twice");
    }

    #[test]
    fn no_shards_and_no_rows_answer_nothing() {
        let empty = shard(0, 3, &[]);
        assert!(top_k(&[], &[1.0], 5, &Cancel::new()).unwrap().is_empty());
        assert!(top_k(&[&empty], &[1.0, 0.0, 0.0], 5, &Cancel::new()).unwrap().is_empty());
        assert!(top_k(&[&empty], &[1.0, 0.0, 0.0], 0, &Cancel::new()).unwrap().is_empty());
    }
}
