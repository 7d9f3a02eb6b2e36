//! Approximate search: only the lists that are likely to hold the nearest rows are looked at.
//!
//! The rows of a shard are cut into about 8·√N lists around centroids ([`kmeans`]). A query orders the lists by their
//! centroids' scores, goes through the best of them on 2-bit codes, and reranks what looks best by the canonical
//! distance: distances and order of what is found are those of the exact search, only rows can be missing.
//!
//! *Codes.* A row x of the list around c has 2-bit codes of x − c, so that q·x is estimated as q·c + q·(x − c), with q·c
//! from 7-bit codes ([`crate::codes::two`]). Rows are of unit norm, so the order of q·x is the order of the distance. A scan
//! is as fast as its codes can be read, and the few dozen rows more that two bits need reranked cost less than two bits more.
//!
//! *How far.* Lists are ordered by q·c − w·‖c‖²/2: w = 1 is the distance of the centroid; a smaller w looks earlier at lists
//! whose rows are far apart. Those whose score is more than a *cut* below the best one's are left out: a query in the middle of a
//! cluster needs few lists, one between clusters needs more; and there is a largest number of lists. All that, and how
//! many rows are reranked, follows from the target recall by a curve that is measured when the index is built, on rows
//! that took no part in finding the centroids ([`calibrate`]). The recall that is told is a lower bound, of queries like the
//! rows; for other queries it is a guess.
//!
//! *Nearly the same.* A shard that differs in few rows from one with an index takes it over ([`adapt`]).
//!
//! *File.* Centroids, the list of every row and the curve; codes are made again when it is loaded. See
//! `schemas/docs/approximate.md` and [`file`]. On a searcher's own disk it has a [`local`] form with its codes.

mod adapt;
mod calibrate;
mod file;
mod kmeans;
mod lists;
pub(crate) mod local;
mod probe;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use adapt::EarlierShard;
use likeness_contract::ranking::{Candidate, merge_top_k};
use rayon::prelude::*;

use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::kernels::Isa;
use crate::search::{Query, check, top_k_batch};
use crate::shard::Shard;
use lists::Lists;
use probe::{Ask, Effort, Probe};

/// Rows from which on an index is of use: fewer are searched exactly in the same time.
const LEAST_ROWS: usize = 4096;
/// Rows of an answer up to which an effort was measured; larger answers are exact.
const LARGEST_K: usize = 100;
/// Queries that a thread answers together at most: more would make a cancelled search go on for long.
const MOST_TOGETHER: usize = 32;

/// An approximate index of one shard.
#[derive(Debug)]
pub struct Approximate {
    lists: Lists,
    curve: Vec<Point>,
    /// Keeps its local file from being thrown away.
    lease: Option<Arc<()>>,
}

/// What an effort was measured to find.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    /// Rows of the answers.
    k: u32,
    effort: Effort,
    /// Part of the K nearest rows that it surely finds, on average.
    recall: f32,
    /// What it costs, in rows that are looked at.
    cost: f32,
}

/// An answer of [`top_k_approximate`].
#[derive(Debug, Clone, PartialEq)]
pub struct Approximation {
    /// In ranking order.
    pub candidates: Vec<Candidate>,
    /// The part of the true answer that is among them on average, by the samples of the shards: a bound that the mean of
    /// queries like the rows is below in one case of twenty; 1 is exact.
    pub recall: f64,
    /// The same of each shard, as they were given.
    pub recalls: Vec<f64>,
}

impl Approximate {
    /// Rows of an answer up to which recalls were measured; larger answers are exact.
    pub const LARGEST_K: usize = LARGEST_K;

    /// Builds the index on the current rayon pool; `None` for a shard of few rows, which is searched exactly as fast.
    ///
    /// Equal shards give equal indexes, on any number of threads. A shard with codes is calibrated much faster. Takes
    /// time with N·√N.
    pub fn build(shard: &Shard) -> Result<Option<Self>> {
        if shard.rows() < LEAST_ROWS {
            return Ok(None);
        }
        let sample = calibrate::sample(shard.rows());
        let (centroids, assigned) = kmeans::cluster(shard.padded(), shard.rows(), &sample)?;
        let lists = Lists::new(shard.padded(), centroids, assigned)?;
        let curve = calibrate::curve(shard, &lists, &sample)?;
        Ok(Some(Self { lists, curve, lease: None }))
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.lists.len()
    }

    /// Bytes of memory. Those of the centroids' f32 lie in the local file of an index that comes from a [`crate::Cache`].
    pub fn bytes(&self) -> usize {
        self.lists.bytes() + self.curve.len() * size_of::<Point>()
    }

    /// Bytes of memory, at most, of an index whose file has `file_bytes`, before it is read; its shard has `rows` rows of
    /// dimension `dim`.
    pub fn most_bytes(file_bytes: usize, rows: usize, dim: usize) -> usize {
        let lists = file_bytes.saturating_sub(rows * 4) / (dim * 4).max(1);
        Lists::most_bytes(lists, rows, dim)
    }

    pub(crate) fn set_lease(&mut self, lease: Arc<()>) {
        self.lease = Some(lease);
    }

    /// The least effort that surely reaches `recall` for `k`, with what it reaches; `None` where none does.
    fn effort(&self, k: usize, recall: f64) -> Option<Point> {
        let class = self.curve.iter().map(|point| point.k as usize).filter(|class| *class >= k).min()?;
        let enough = |point: &&Point| point.k as usize == class && f64::from(point.recall) >= recall;
        self.curve.iter().filter(enough).min_by(|a, b| a.cost.total_cmp(&b.cost)).copied()
    }
}

/// The best `k` rows of all shards as far as an effort for the target `recall` (0–1) finds them.
///
/// A shard is searched exactly when it has no index or its curve does not reach the target, and so is everything when the
/// query has row sets, of which no curve speaks, or a K above 100. Fails as [`crate::top_k`] does. Runs on the current
/// rayon pool, each shard on one thread.
pub fn top_k_approximate(shards: &[&Shard], query: &Query, recall: f64, cancel: &Cancel) -> Result<Approximation> {
    let mut answers = top_k_approximate_batch(shards, &[(*query, recall)], cancel)?;
    Ok(answers.pop().expect("one answer per query"))
}

/// [`top_k_approximate`] for several queries, each with its own target, which share the reading of centroids and of the
/// lists that several of them look at. Each answer is what the query would get alone.
pub fn top_k_approximate_batch(
    shards: &[&Shard],
    queries: &[(Query, f64)],
    cancel: &Cancel,
) -> Result<Vec<Approximation>> {
    if let Some((_, recall)) = queries.iter().find(|(_, recall)| !(0.0..=1.0).contains(recall)) {
        return Err(Error::invalid(format!("the target recall {recall} is not within 0–1")));
    }
    let asked: Vec<Query> = queries.iter().map(|(query, _)| *query).collect();
    check(shards, &asked)?;
    let points_of = |(query, recall): &(Query, f64)| shards.iter().map(|shard| point(shard, query, *recall)).collect();
    let points: Vec<Points> = queries.iter().map(points_of).collect();
    let mut partials = vec![Vec::new(); queries.len()];
    for (query, found) in
        exactly(shards, &asked, &points, cancel)?.into_iter().chain(probed(shards, &asked, &points, cancel)?)
    {
        partials[query].push(found);
    }
    let answer = |((query, points), partials): ((&Query, &Points), Vec<Vec<Candidate>>)| {
        let recalls: Vec<f64> = points.iter().map(|point| point.map_or(1.0, |point| point.recall.into())).collect();
        let recall = mean(shards, &recalls);
        Approximation { candidates: merge_top_k(partials, query.k), recall, recalls }
    };
    Ok(asked.iter().zip(&points).zip(partials).map(answer).collect())
}

/// The effort for each shard; none where it is searched exactly.
type Points = Vec<Option<Point>>;

/// Which query, and what shards found for it.
type Found = (usize, Vec<Candidate>);

/// The mean of the shards' recalls, by their rows.
fn mean(shards: &[&Shard], recalls: &[f64]) -> f64 {
    let rows: f64 = shards.iter().map(|shard| shard.rows() as f64).sum();
    let missed: f64 = shards.iter().zip(recalls).map(|(shard, recall)| shard.rows() as f64 * (1.0 - recall)).sum();
    if rows > 0.0 { 1.0 - missed / rows } else { 1.0 }
}

/// What is found in shards that have no point for a query; queries of the same shards are answered together.
///
/// With row sets no shard has one, so that all are searched and the sets are theirs.
fn exactly(shards: &[&Shard], queries: &[Query], points: &[Points], cancel: &Cancel) -> Result<Vec<Found>> {
    let mut by_shards: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (query, points) in points.iter().enumerate() {
        let searched = (0..shards.len()).filter(|shard| points[*shard].is_none()).collect();
        by_shards.entry(searched).or_default().push(query);
    }
    let mut all = Vec::with_capacity(queries.len());
    for (searched, asking) in by_shards.iter().filter(|(searched, _)| !searched.is_empty()) {
        let shards: Vec<&Shard> = searched.iter().map(|shard| shards[*shard]).collect();
        let asked: Vec<Query> = asking.iter().map(|query| queries[*query]).collect();
        all.extend(asking.iter().copied().zip(top_k_batch(&shards, &asked, cancel)?));
    }
    Ok(all)
}

/// What is found by indexes. Every thread takes a part of a shard's queries.
fn probed(shards: &[&Shard], queries: &[Query], points: &[Points], cancel: &Cancel) -> Result<Vec<Found>> {
    let asking = |shard: usize| (0..queries.len()).filter_map(move |query| Some((shard, query, points[query][shard]?)));
    let all: Vec<(usize, usize, Point)> = (0..shards.len()).flat_map(asking).collect();
    let share = all.len().div_ceil(rayon::current_num_threads()).clamp(1, MOST_TOGETHER);
    let of_one_shard = all.chunk_by(|a, b| a.0 == b.0);
    let tasks: Vec<&[(usize, usize, Point)]> = of_one_shard.flat_map(|asking| asking.chunks(share)).collect();
    let search = |task: &&[(usize, usize, Point)]| {
        if cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        let shard = shards[task[0].0];
        let lists = &shard.approximate().expect("a shard with a point").lists;
        let ask = |(_, query, point): &(usize, usize, Point)| {
            let Query { vector: query, k, .. } = queries[*query];
            Ask { query, k, least: point.k as usize, effort: point.effort }
        };
        let asks: Vec<Ask> = task.iter().map(ask).collect();
        let found = Isa::best().run(Probe { shard, lists, asks: &asks });
        Ok(task.iter().map(|(_, query, _)| *query).zip(found).collect())
    };
    match tasks.as_slice() {
        [one] => search(one),
        many => many.par_iter().map(search).collect::<Result<Vec<Vec<Found>>>>().map(|found| found.concat()),
    }
}

fn point(shard: &Shard, query: &Query, recall: f64) -> Option<Point> {
    if query.within.is_some() || query.k == 0 || query.k > LARGEST_K {
        return None;
    }
    shard.approximate()?.effort(query.k, recall)
}
