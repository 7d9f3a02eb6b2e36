//! Approximate search: only the lists that are likely to hold the nearest rows are looked at.
//!
//! The rows of a shard are cut into about 8·√N lists around centroids ([`kmeans`]). A query orders the lists by their
//! centroids' scores, goes through the best of them on 4-bit codes, and reranks what looks best by the canonical
//! distance: distances and order of what is found are those of the exact search, only rows can be missing.
//!
//! *Codes.* A row x of the list around c has 4-bit codes of x − c, so that q·x − ‖x‖²/2 is estimated as
//! q·c + q·(x − c) − ‖x‖²/2 with an exact q·c. What is left after the centroid is shorter than the row, and so is the error.
//!
//! *How far.* Lists whose score is more than a *cut* below the best one's are left out: a query in the middle of a cluster
//! needs few lists, one between clusters needs more; and there is a largest number of lists. Which of both, and how many rows are reranked, follows from the
//! target recall by a curve that is measured when the index is built, on rows that took no part in finding the centroids ([`calibrate`]).
//! The curve speaks of queries like the rows; for other queries it is a guess.
//!
//! *File.* Centroids, the list of every row and the curve; codes are made again when it is loaded. See
//! `schemas/docs/approximate.md` and [`file`].

mod calibrate;
mod file;
mod kmeans;
mod lists;
mod probe;

#[cfg(test)]
mod tests;

use likeness_contract::ranking::{Candidate, merge_top_k};
use rayon::prelude::*;

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::search::{Query, check, top_k_batch};
use crate::shard::Shard;
use lists::Lists;
use probe::{Effort, Probe};

/// Rows from which on an index is of use: fewer are searched exactly in the same time.
const LEAST_ROWS: usize = 4096;
/// Rows of an answer up to which an effort was measured; larger answers are exact.
const LARGEST_K: usize = 100;

/// An approximate index of one shard.
#[derive(Debug)]
pub struct Approximate {
    lists: Lists,
    curve: Vec<Point>,
}

/// What an effort was measured to find.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    /// Rows of the answers.
    k: u32,
    effort: Effort,
    /// Part of the K nearest rows that were found, on average.
    recall: f32,
    /// Rows that were looked at, on average.
    scanned: f32,
}

/// An answer of [`top_k_approximate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Approximation {
    /// In ranking order.
    pub candidates: Vec<Candidate>,
    /// The part of the true answer that is expected among them, by the samples of the shards; 1 is exact.
    pub recall: f64,
}

impl Approximate {
    /// Rows of an answer up to which recalls were measured; larger answers are exact.
    pub const LARGEST_K: usize = LARGEST_K;

    /// Builds the index on the current rayon pool; `None` for a shard of few rows, which is searched exactly as fast.
    ///
    /// Equal shards give equal indexes, on any number of threads. A shard with codes is calibrated much faster.
    pub fn build(shard: &Shard) -> Result<Option<Self>> {
        if shard.rows() < LEAST_ROWS {
            return Ok(None);
        }
        let sample = calibrate::sample(shard.rows());
        let (centroids, assigned) = kmeans::cluster(shard.padded(), shard.rows(), &sample)?;
        let lists = Lists::new(shard.padded(), centroids, assigned)?;
        let curve = calibrate::curve(shard, &lists, &sample)?;
        Ok(Some(Self { lists, curve }))
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.lists.len()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.lists.bytes() + self.curve.len() * size_of::<Point>()
    }

    /// The least effort that was measured to reach `recall` for `k`, with what it reached; `None` where none did.
    fn effort(&self, k: usize, recall: f64) -> Option<Point> {
        let class = self.curve.iter().map(|point| point.k as usize).filter(|class| *class >= k).min()?;
        let enough = |point: &&Point| point.k as usize == class && f64::from(point.recall) >= recall;
        let cost = |point: &Point| probe::cost(point.scanned, point.effort.rerank);
        self.curve.iter().filter(enough).min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()
    }
}

/// The best `k` rows of all shards as far as an effort for the target `recall` (0–1) finds them.
///
/// A shard is searched exactly when it has no index or its curve does not reach the target, and so is everything when the
/// query has row sets, of which no curve speaks, or a K above 100. Fails as [`crate::top_k`] does. Runs on the current
/// rayon pool, each shard on one thread.
pub fn top_k_approximate(shards: &[&Shard], query: &Query, recall: f64, cancel: &Cancel) -> Result<Approximation> {
    if !(0.0..=1.0).contains(&recall) {
        return Err(Error::invalid(format!("the target recall {recall} is not within 0–1")));
    }
    let points: Vec<Option<Point>> = shards.iter().map(|shard| point(shard, query, recall)).collect();
    let exactly: Vec<&Shard> = shards.iter().zip(&points).filter(|(_, p)| p.is_none()).map(|(s, _)| *s).collect();
    check(shards, std::slice::from_ref(query))?;
    // With row sets no shard has a point, so that all are searched exactly.
    let mut partials = top_k_batch(&exactly, std::slice::from_ref(query), cancel)?;
    let probed: Vec<(&Shard, Point)> = shards.iter().zip(&points).filter_map(|(s, p)| Some((*s, (*p)?))).collect();
    let isa = Isa::best();
    let search = |(shard, point): &(&Shard, Point)| {
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let lists = &shard.approximate().expect("a shard with a point").lists;
        Ok(isa.run(Probe {
            shard,
            lists,
            query: query.vector,
            k: query.k,
            least: point.k as usize,
            effort: point.effort,
        }))
    };
    match probed.as_slice() {
        [one] => partials.push(search(one)?),
        many => partials.extend(many.par_iter().map(search).collect::<Result<Vec<_>>>()?),
    }
    let rows: f64 = shards.iter().map(|shard| shard.rows() as f64).sum();
    let missed: f64 = probed.iter().map(|(shard, p)| shard.rows() as f64 * (1.0 - f64::from(p.recall))).sum();
    let recall = if rows > 0.0 { 1.0 - missed / rows } else { 1.0 };
    Ok(Approximation { candidates: merge_top_k(partials, query.k), recall })
}

fn point(shard: &Shard, query: &Query, recall: f64) -> Option<Point> {
    if query.within.is_some() || query.k == 0 || query.k > LARGEST_K {
        return None;
    }
    shard.approximate()?.effort(query.k, recall)
}
