//! How much effort finds how much: measured on held-out rows of the shard itself.

use rayon::prelude::*;

use super::Point;
use super::lists::Lists;
use super::probe::{Coded, Effort, Probe, coarse_scores, cost};
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
const SHARES: [f64; 15] =
    [0.8, 0.86, 0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 1.0];

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
        let efforts = cuts.iter().flat_map(|cut| reranks.map(|rerank| Effort { cut: *cut, rerank }));
        let measured = efforts.map(|effort| measure(shard, lists, sample, &exact, k, effort)).collect();
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

/// What an effort finds of the `k` nearest, the query itself left out.
fn measure(shard: &Shard, lists: &Lists, sample: &[u32], exact: &[Vec<u32>], k: usize, effort: Effort) -> Point {
    let one = |(own, exact): (&u32, &Vec<u32>)| {
        let query = shard.embedding(*own);
        let probed = Isa::best().run(Probe { shard, lists, query, k: k + 1, effort });
        let found: Vec<u32> = probed.candidates.iter().map(|c| c.row).filter(|row| row != own).take(k).collect();
        let wanted = &exact[..k.min(exact.len())];
        (wanted.iter().filter(|row| found.contains(row)).count(), wanted.len(), probed.scanned)
    };
    let add = |a: (usize, usize, usize), b: (usize, usize, usize)| (a.0 + b.0, a.1 + b.1, a.2 + b.2);
    let (hits, wanted, scanned) = sample.par_iter().zip(exact).map(one).reduce(|| (0, 0, 0), add);
    let recall = hits as f32 / wanted as f32;
    Point { k: k as u32, effort, recall, scanned: scanned as f32 / sample.len() as f32 }
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
