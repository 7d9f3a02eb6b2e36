//! How much effort finds how much: measured on held-out rows of the shard itself.

use rayon::prelude::*;

use super::Point;
use super::lists::Lists;
use super::probe::{Coded, Effort, Look, coarse_scores, cost};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::kernels::{BLOCK, Dots, Isa, Work};
use crate::search::{Query, top_k_batch};
use crate::shard::Shard;

/// Rows that are asked as queries: the recall of 10 is then known to about ± 0.005.
const QUERIES: usize = 256;
/// K that are measured, each with the numbers of rows that are reranked.
const CLASSES: [(usize, [u32; 5]); 2] = [(10, [16, 24, 40, 64, 120]), (100, [130, 180, 260, 400, 800])];
/// Parts of the true neighbours whose lists are within a cut that is tried.
const SHARES: [f64; 12] = [0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999];
/// Numbers of lists that are tried with every cut.
const LISTS: [u32; 21] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 384, 512, 768, 1024];
/// Least recall that is of interest, and the least difference between two points.
const LEAST: (f64, f64) = (0.7, 0.002);

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
    let ways = ways(shard, lists, sample, &exact);
    let mut points = Vec::new();
    for (k, reranks) in CLASSES {
        let efforts = promising(&ways, k);
        let measured = efforts.iter().flat_map(|effort| measure(shard, lists, sample, &exact, k, *effort, &reranks));
        points.extend(worthwhile(measured.collect()));
    }
    Ok(points)
}

/// A query's way through the lists.
struct Ways {
    /// How far the score of each list is below the best one's, the best list first; as many as are tried.
    gaps: Vec<f32>,
    /// Rows in the lists up to each of these.
    rows: Vec<usize>,
    /// Place and gap of the list of each true neighbour.
    neighbours: Vec<(u32, f32)>,
}

fn ways(shard: &Shard, lists: &Lists, sample: &[u32], exact: &[Vec<u32>]) -> Vec<Ways> {
    let assigned = lists.assigned(shard.rows());
    let way = |(own, exact): (&u32, &Vec<u32>)| {
        let scores = Isa::best().run(Coarse { lists, query: shard.embedding(*own) });
        let mut order: Vec<u32> = (0..lists.len() as u32).collect();
        let score = |list: u32| scores[list as usize];
        order.sort_unstable_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
        let mut place = vec![0; lists.len()];
        order.iter().enumerate().for_each(|(at, list)| place[*list as usize] = at as u32);
        let gap = |list: u32| score(order[0]) - score(list);
        let mut sum = 0;
        let tried = order.iter().take(LISTS[LISTS.len() - 1] as usize);
        let rows = tried.clone().map(|list| {
            sum += lists.blocks(*list).len() * BLOCK;
            sum
        });
        let rows = rows.collect();
        let neighbours = exact.iter().map(|row| assigned[*row as usize]).map(|list| (place[list as usize], gap(list)));
        Ways { gaps: tried.map(|list| gap(*list)).collect(), rows, neighbours: neighbours.collect() }
    };
    sample.par_iter().zip(exact).map(way).collect()
}

/// The efforts, without their reranks, that reach more than all cheaper ones as far as lists go.
fn promising(ways: &[Ways], k: usize) -> Vec<Effort> {
    let first = |way: &Ways| k.min(way.neighbours.len());
    let mut gaps: Vec<f32> = ways.iter().flat_map(|way| way.neighbours[..first(way)].iter().map(|n| n.1)).collect();
    gaps.sort_unstable_by(f32::total_cmp);
    let mut cuts = SHARES.map(|share| gaps[((gaps.len() as f64 * share) as usize).min(gaps.len() - 1)]).to_vec();
    cuts.push(f32::MAX);
    cuts.dedup();
    let efforts: Vec<Effort> =
        cuts.iter().flat_map(|cut| LISTS.map(|lists| Effort { cut: *cut, lists, rerank: 0 })).collect();
    let reach = |effort: &Effort| {
        let Effort { cut, lists, .. } = *effort;
        let (mut reached, mut rows) = (0, 0);
        for way in ways {
            let within = way.gaps.partition_point(|gap| *gap <= cut).min(lists as usize);
            rows += within.checked_sub(1).map_or(0, |last| way.rows[last.min(way.rows.len() - 1)]);
            reached += way.neighbours[..first(way)].iter().filter(|(at, gap)| *at < lists && *gap <= cut).count();
        }
        (rows, reached as f64 / gaps.len() as f64)
    };
    let reached: Vec<(usize, f64)> = efforts.par_iter().map(reach).collect();
    let mut all: Vec<((usize, f64), Effort)> = reached.into_iter().zip(efforts).collect();
    all.sort_by(|a, b| a.0.0.cmp(&b.0.0).then(b.0.1.total_cmp(&a.0.1)));
    let mut best = LEAST.0;
    all.retain(|((_, reached), _)| {
        let better = *reached >= best + LEAST.1;
        best = if better { *reached } else { best };
        better
    });
    all.into_iter().map(|(_, effort)| effort).collect()
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

/// What an effort finds of the `k` nearest with each number of reranked rows, the query itself left out.
///
/// A neighbour is in the answer exactly if it is among the reranked rows: nothing there can be nearer than it but other neighbours.
fn measure(
    shard: &Shard,
    lists: &Lists,
    sample: &[u32],
    exact: &[Vec<u32>],
    k: usize,
    effort: Effort,
    reranks: &[u32],
) -> Vec<Point> {
    let count = reranks.iter().max().map_or(k, |most| *most as usize) + 1;
    let one = |(own, exact): (&u32, &Vec<u32>)| {
        let (rows, scanned) =
            Isa::best().run(Look { lists, query: shard.embedding(*own), effort, least: k + 1, count });
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
        effort: Effort { rerank: *rerank, ..effort },
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
