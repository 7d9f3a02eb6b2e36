//! How much effort finds how much: measured on held-out rows of the shard itself.

use rayon::prelude::*;

use super::Point;
use super::lists::Lists;
use super::probe::{Coded, Effort, Look, coarse_scores, cost};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::kernels::{Dots, Isa, Work};
use crate::search::{Query, top_k_batch};
use crate::shard::Shard;

/// Rows that are asked as queries: the recall of 10 is then known to about ± 0.005.
const QUERIES: usize = 256;
/// K that are measured, each with the numbers of rows that are reranked.
const CLASSES: [(usize, [u32; 5]); 2] = [(10, [16, 24, 40, 64, 120]), (100, [130, 180, 260, 400, 800])];
/// Parts of the true neighbours whose lists are within a cut that is measured.
const SHARES: [f64; 14] = [0.8, 0.86, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999];

/// The rows that are asked, in order, evenly spread.
pub(super) fn sample(rows: usize) -> Vec<u32> {
    (0..QUERIES).map(|i| (i as u64 * rows as u64 / QUERIES as u64) as u32).collect()
}

/// The efforts that are worth it: each finds more than all cheaper ones.
pub(super) fn curve(shard: &Shard, lists: &Lists, sample: &[u32]) -> Result<Vec<Point>> {
    let largest = CLASSES[CLASSES.len() - 1].0;
    let queries: Vec<Query> =
        sample.iter().map(|row| Query { vector: shard.embedding(*row), k: largest + 1, within: None }).collect();
    let exact = top_k_batch(&[shard], &queries, &Cancel::new())?;
    let others = |(own, found): (&u32, Vec<likeness_contract::ranking::Candidate>)| -> Vec<u32> {
        found.into_iter().map(|candidate| candidate.row).filter(|row| row != own).take(largest).collect()
    };
    let exact: Vec<Vec<u32>> = sample.iter().zip(exact).map(others).collect();
    let gaps = gaps(shard, lists, sample, &exact);
    let mut points = Vec::new();
    for (k, reranks) in CLASSES {
        let mut within: Vec<f32> = gaps.iter().flat_map(|gaps| gaps[..k.min(gaps.len())].iter().copied()).collect();
        within.sort_unstable_by(f32::total_cmp);
        let mut cuts =
            SHARES.map(|share| within[((within.len() as f64 * share) as usize).min(within.len() - 1)]).to_vec();
        cuts.dedup();
        let measured = cuts.iter().flat_map(|cut| measure(shard, lists, sample, &exact, k, *cut, &reranks)).collect();
        points.extend(worthwhile(measured));
    }
    Ok(points)
}

/// How far the score of each true neighbour's list is below the best list's.
fn gaps(shard: &Shard, lists: &Lists, sample: &[u32], exact: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let assigned = lists.assigned(shard.rows());
    let gaps = |(own, exact): (&u32, &Vec<u32>)| {
        let scores = Isa::best().run(Coarse { lists, query: shard.embedding(*own) });
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        exact.iter().map(|row| best - scores[assigned[*row as usize] as usize]).collect()
    };
    sample.par_iter().zip(exact).map(gaps).collect()
}

struct Coarse<'a> {
    lists: &'a Lists,
    query: &'a [f32],
}

impl Work for Coarse<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<f32> {
        coarse_scores(dots, self.lists, &Coded::new(self.lists, self.query))
    }
}

/// What a cut finds of the `k` nearest with each number of reranked rows, the query itself left out.
///
/// A neighbour is in the answer exactly if it is among the reranked rows: nothing there can be nearer than it but other neighbours.
fn measure(
    shard: &Shard,
    lists: &Lists,
    sample: &[u32],
    exact: &[Vec<u32>],
    k: usize,
    cut: f32,
    reranks: &[u32],
) -> Vec<Point> {
    let count = reranks.iter().max().map_or(k, |most| *most as usize) + 1;
    let one = |(own, exact): (&u32, &Vec<u32>)| {
        let (rows, scanned) = Isa::best().run(Look { lists, query: shard.embedding(*own), cut, count });
        let wanted = &exact[..k.min(exact.len())];
        let places = rows.iter().filter(|row| *row != own).enumerate();
        let hits: Vec<usize> = places.filter(|(_, row)| wanted.contains(row)).map(|(at, _)| at).collect();
        let found = reranks.iter().map(|most| hits.iter().filter(|at| **at < *most as usize).count()).collect();
        (found, wanted.len(), scanned)
    };
    let all: Vec<(Vec<usize>, usize, usize)> = sample.par_iter().zip(exact).map(one).collect();
    let (wanted, scanned) = all.iter().fold((0, 0), |sum, one| (sum.0 + one.1, sum.1 + one.2));
    let point = |(at, rerank): (usize, &u32)| Point {
        k: k as u32,
        effort: Effort { cut, rerank: *rerank },
        recall: all.iter().map(|one| one.0[at]).sum::<usize>() as f32 / wanted as f32,
        scanned: scanned as f32 / sample.len() as f32,
    };
    reranks.iter().enumerate().map(point).collect()
}

fn worthwhile(mut points: Vec<Point>) -> Vec<Point> {
    let cost_of = |point: &Point| cost(point.scanned, point.effort.rerank);
    points.sort_by(|a, b| cost_of(a).total_cmp(&cost_of(b)).then(b.recall.total_cmp(&a.recall)));
    let mut best = f32::NEG_INFINITY;
    points.retain(|point| {
        let better = point.recall > best;
        best = best.max(point.recall);
        better
    });
    points
}
