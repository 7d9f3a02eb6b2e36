//! The scan over all f32 rows: what every other path must answer, and where they end when codes don't help.
//!
//! Rows are cut into blocks, which threads of the current rayon pool take one by one. Each thread keeps the
//! best K of its own rows per query; what it knows of the K-th distance is shared, so that rows that cannot
//! be among the answer are dropped early, most of them by [`first_pass`]. A dropped row is *strictly* farther than K
//! known rows, whatever its id; so the answer is the same for any number of threads and any size of blocks.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use likeness_contract::ranking::{Candidate, canonical_d2};
use rayon::prelude::*;

use super::best::{Best, Entry, merge};
use super::{Asked, first_pass};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::shard::Shard;

/// Rows of a block: enough to hide the cost of taking it, few enough to stop quickly.
pub(super) const BLOCK_ROWS: usize = 1024;
/// Rows of one call of the first pass; with all queries of a batch they stay in the cache.
const STRIP_ROWS: usize = 64;
/// Rows of a strip that are searched, from which on it goes through the first pass as a whole.
const FIRST_PASS_ROWS: u32 = 16;

/// The best K of each query, which comes with a d² that its K-th is known not to be above.
pub(super) fn scan(
    shards: &[&Shard],
    queries: &[(&Asked, f64)],
    block: usize,
    cancel: &Cancel,
) -> Result<Vec<Vec<Candidate>>> {
    let scan = Scan::new(shards, queries, block);
    let workers = rayon::current_num_threads().min(scan.blocks.len());
    let best: Vec<Vec<Best>> = match workers {
        0 => Vec::new(),
        1 => vec![scan.work(cancel)?],
        _ => (0..workers).into_par_iter().with_max_len(1).map(|_| scan.work(cancel)).collect::<Result<_>>()?,
    };
    let merged = |query: usize| merge(shards, best.iter().map(|worker| worker[query].clone()), queries[query].0.k);
    Ok((0..queries.len()).map(merged).collect())
}

/// Rows of one shard that are taken at once.
#[derive(Debug, Clone, Copy)]
struct Block {
    shard: usize,
    first: usize,
    rows: usize,
}

struct Query<'a> {
    asked: &'a Asked<'a>,
    /// The same, padded like the rows.
    padded: Vec<f32>,
    /// Bits of an upper bound of the K-th d². Distances are not negative, so bits are ordered like values.
    threshold: AtomicU64,
}

struct Scan<'a> {
    shards: &'a [&'a Shard],
    queries: Vec<Query<'a>>,
    blocks: Vec<Block>,
    next: AtomicUsize,
}

impl<'a> Scan<'a> {
    fn new(shards: &'a [&'a Shard], queries: &[(&'a Asked<'a>, f64)], block: usize) -> Self {
        let blocks = shards.iter().enumerate().flat_map(|(shard, held)| {
            (0..held.rows()).step_by(block).map(move |first| Block {
                shard,
                first,
                rows: block.min(held.rows() - first),
            })
        });
        let queries = queries.iter().map(|(asked, bound)| {
            let mut padded = asked.values.to_vec();
            padded.resize(shards[0].padded().stride(), 0.0);
            Query { asked, padded, threshold: AtomicU64::new(bound.to_bits()) }
        });
        Self { shards, queries: queries.collect(), blocks: blocks.collect(), next: AtomicUsize::new(0) }
    }

    /// Takes blocks until none is left.
    fn work(&self, cancel: &Cancel) -> Result<Vec<Best<'a>>> {
        let mut best = vec![Best::default(); self.queries.len()];
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
        let searched = query.asked.bits(strip.shard, strip.first);
        let mut bound = query.bound();
        let mut first = [0f32; STRIP_ROWS];
        let mut limit = f32::INFINITY;
        if searched == 0 {
            return;
        }
        if bound.is_finite() && searched.count_ones() >= FIRST_PASS_ROWS {
            let rows = self.shards[strip.shard].padded().padded(strip.first, strip.rows);
            first_pass::distances(&query.padded, rows, &mut first[..strip.rows]);
            limit = first_pass::limit(bound, query.padded.len());
        }
        for (i, first) in first[..strip.rows].iter().enumerate() {
            if *first > limit || searched >> i & 1 == 0 {
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
        let d2 = canonical_d2(query.asked.values, held.embedding(row));
        if d2 > bound {
            return None;
        }
        best.offer(Entry { d2, item: held.item(row), shard, row }, query.asked.k)
    }
}

impl Query<'_> {
    fn bound(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }
}
