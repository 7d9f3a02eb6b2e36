//! How much effort finds how much: measured on rows of the shard itself that took no part in finding the centroids.
//!
//! Every such row is asked once with every weight, through more lists than any effort has. From what is written down then
//! follows what each effort would find: a neighbour is in the answer exactly if its list is looked at and fewer rows than
//! are reranked look better in the lists that are, since nothing there can be nearer but other neighbours.
//!
//! *Honesty.* Which efforts are worth it is decided on one part of those rows. What they find is said by the other part, on
//! which nothing was chosen, and what is said is a lower bound: the mean of those queries and one that finds nothing, less
//! 1.645 standard errors. So for queries like the rows it is too high in one case of twenty.

use rayon::prelude::*;

use super::Point;
use super::lists::Lists;
use super::probe::{Coarse, Coded, Effort, Visit, cost, key, list_of, scan};
use crate::cancel::Cancel;
use crate::error::Result;
use crate::kernels::{BLOCK, Dots, Isa, Work};
use crate::search::{Query, top_k_batch};
use crate::shard::Shard;

/// Rows that are asked as queries, of which one in `CHOOSING` decides about efforts.
const QUERIES: usize = 768;
const CHOOSING: usize = 3;
/// K that are measured, each with the numbers of rows that are reranked.
const CLASSES: [(usize, [u32; RERANKS]); 2] =
    [(10, [16, 24, 32, 48, 64, 96, 128, 192]), (100, [130, 160, 200, 260, 330, 420, 600, 900])];
const RERANKS: usize = 8;
/// Weights of the centroids' norms that are tried.
const WEIGHTS: [f32; 3] = [0.5, 0.75, 1.0];
/// Parts of the true neighbours whose lists are within a cut that is tried.
const SHARES: [f64; 13] = [0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 1.0];
/// Numbers of lists that are tried with every cut.
const LISTS: [u32; 34] = [
    1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320,
    384, 448, 512, 640, 768, 1024,
];
const MOST_LISTS: usize = LISTS[LISTS.len() - 1] as usize;
/// Least recall that is of interest, and the least difference between two points.
const LEAST: (f32, f32) = (0.7, 0.001);
/// Standard errors between a mean and what is said: one-sided, 19 in 20.
const ERRORS: f64 = 1.645;

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
    let map = Map::new(shard, lists);
    let mut found: [Vec<(Tried, Vec<Trace>)>; CLASSES.len()] = Default::default();
    for weight in WEIGHTS {
        let trace = |(own, exact): (&u32, &Vec<u32>)| {
            Isa::best().run(Follow { lists, map: &map, query: shard.embedding(*own), own: *own, exact, weight })
        };
        let ways: Vec<[Trace; CLASSES.len()]> = sample.par_iter().zip(&exact).map(trace).collect();
        for (class, found) in found.iter_mut().enumerate() {
            let traces: Vec<Trace> = ways.iter().map(|way| way[class].clone()).collect();
            found.push((Tried { class, weight }, traces));
        }
    }
    Ok(found.iter().flat_map(|weights| points(weights)).collect())
}

/// Where the rows are.
struct Map {
    assigned: Vec<u32>,
    places: Vec<u32>,
}

impl Map {
    fn new(shard: &Shard, lists: &Lists) -> Self {
        let mut places = vec![0; shard.rows()];
        lists.places().for_each(|(place, row)| places[row as usize] = place);
        Self { assigned: lists.assigned(shard.rows()), places }
    }
}

/// What some traces are of.
#[derive(Debug, Clone, Copy)]
struct Tried {
    class: usize,
    weight: f32,
}

/// One query's way through the lists.
#[derive(Debug, Clone)]
struct Trace {
    /// How far the score of each list is below the best one's, the best list first; as many as are tried.
    gaps: Vec<f32>,
    /// Rows in the lists up to each of these.
    rows: Vec<u32>,
    /// Lists that are looked at in any case.
    least: usize,
    neighbours: Vec<Neighbour>,
}

/// One of the true neighbours.
#[derive(Debug, Clone)]
struct Neighbour {
    /// The place of its list in the order.
    place: u32,
    /// For each number of reranked rows the place of the list in which the row lies that drives it out.
    lost: [u32; RERANKS],
}

impl Trace {
    /// Lists that an effort looks at.
    fn lists(&self, effort: &Effort) -> usize {
        let within = self.gaps.partition_point(|gap| *gap <= effort.cut);
        within.min(effort.lists as usize).max(self.least).min(self.gaps.len())
    }

    /// The part of the neighbours that is found in the first `lists` lists.
    fn found(&self, lists: usize, rerank: usize) -> f64 {
        let found = |one: &&Neighbour| (one.place as usize) < lists && one.lost[rerank] as usize >= lists;
        self.neighbours.iter().filter(found).count() as f64 / self.neighbours.len().max(1) as f64
    }
}

/// Follows one query.
struct Follow<'a> {
    lists: &'a Lists,
    map: &'a Map,
    query: &'a [f32],
    own: u32,
    exact: &'a [u32],
    weight: f32,
}

impl Work for Follow<'_> {
    type Output = [Trace; CLASSES.len()];

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Self::Output {
        let Self { lists, map, query, own, exact, weight } = self;
        let coded = Coded::new(lists, query);
        let [coarse] = Coarse::new(dots, lists, [(&coded, weight)]);
        let scores = coarse.scores.as_flattened();
        let mut keys: Vec<u64> = (0..lists.len() as u32).map(|list| key(scores[list as usize], list)).collect();
        keys.sort_unstable_by(|a, b| b.cmp(a));
        let mut place = vec![0; lists.len()];
        keys.iter().enumerate().for_each(|(at, key)| place[list_of(*key) as usize] = at as u32);
        let tried: Vec<u32> = keys.iter().take(MOST_LISTS).map(|key| list_of(*key)).collect();
        let list_of_row = |row: u32| map.assigned[row as usize];
        let own_scores: Vec<f32> =
            exact.iter().map(|row| coded.score(dots, lists, list_of_row(*row), map.places[*row as usize])).collect();
        let lowest = own_scores.iter().fold(f32::INFINITY, |a, v| if *v < a { *v } else { a });
        let (own_place, mut better) = (map.places[own as usize], Vec::new());
        let visits: Vec<Visit> = tried.iter().map(|list| Visit { list: *list, query: 0 }).collect();
        scan(dots, lists, &visits, std::slice::from_ref(&coded), |_, block, scores| {
            let mut above = dots.above(scores, lowest);
            while above != 0 {
                let at = above.trailing_zeros();
                above &= above - 1;
                if block * BLOCK as u32 + at != own_place {
                    better.push((block, scores[at as usize]));
                }
            }
        });
        let starts: Vec<u32> = tried.iter().map(|list| lists.blocks(*list).start).collect();
        let better = by_place(&better, lists, &tried, &starts);
        let gaps: Vec<f32> = tried.iter().map(|list| coarse.best - scores[*list as usize]).collect();
        let mut sum = 0;
        let rows: Vec<u32> = tried
            .iter()
            .map(|list| {
                sum += (lists.blocks(*list).len() * BLOCK) as u32;
                sum
            })
            .collect();
        CLASSES.map(|(k, reranks)| {
            let neighbours = exact.iter().zip(&own_scores).take(k).map(|(row, score)| Neighbour {
                place: place[list_of_row(*row) as usize],
                lost: lost(&better, *score, reranks),
            });
            let neighbours = neighbours.collect();
            Trace { gaps: gaps.clone(), rows: rows.clone(), least: least(lists, &tried, k), neighbours }
        })
    }
}

/// Lists that surely hold `k` rows.
fn least(lists: &Lists, tried: &[u32], k: usize) -> usize {
    let mut rows = 0;
    let enough = tried.iter().position(|list| {
        rows += lists.least_rows(*list);
        rows >= k
    });
    enough.map_or(tried.len(), |at| at + 1)
}

/// Scores with the places of their lists, from scores with their blocks in the order of a scan.
fn by_place(better: &[(u32, f32)], lists: &Lists, tried: &[u32], starts: &[u32]) -> Vec<(u32, f32)> {
    let mut at = 0;
    let place = |(block, score): &(u32, f32)| {
        while !(starts[at]..lists.blocks(tried[at]).end).contains(block) {
            at += 1;
        }
        (at as u32, *score)
    };
    better.iter().map(place).collect()
}

/// Where a neighbour of this score is driven out, for each number of reranked rows.
fn lost(better: &[(u32, f32)], score: f32, reranks: [u32; RERANKS]) -> [u32; RERANKS] {
    let mut lost = [u32::MAX; RERANKS];
    let (mut count, mut next) = (0, 0);
    for (place, other) in better {
        if *other > score {
            count += 1;
            while next < RERANKS && count == reranks[next] {
                lost[next] = *place;
                next += 1;
            }
            if next == RERANKS {
                break;
            }
        }
    }
    lost
}

/// The worthwhile points of one class.
fn points(weights: &[(Tried, Vec<Trace>)]) -> Vec<Point> {
    let mut tried: Vec<(f32, f32, usize, Effort, usize)> = weights
        .par_iter()
        .enumerate()
        .flat_map_iter(|(at, (tried, traces))| {
            let choosing: Vec<&Trace> = traces.iter().step_by(CHOOSING).collect();
            efforts(&choosing, *tried)
                .into_iter()
                .map(move |(cost, recall, effort, rerank)| (cost, recall, at, effort, rerank))
        })
        .collect();
    tried.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut best = LEAST.0;
    tried.retain(|(_, recall, ..)| {
        let better = *recall >= best + LEAST.1 || (*recall > best && *recall == 1.0);
        best = if better { *recall } else { best };
        better
    });
    tried.into_iter().map(|(_, _, at, effort, rerank)| told(&weights[at], effort, rerank)).collect()
}

/// All efforts of a weight, with their costs and what they find.
fn efforts(traces: &[&Trace], Tried { class, weight }: Tried) -> Vec<(f32, f32, Effort, usize)> {
    let reranks = CLASSES[class].1;
    let gap = |trace: &&Trace| -> Vec<f32> {
        trace.neighbours.iter().filter_map(|one| trace.gaps.get(one.place as usize).copied()).collect()
    };
    let mut gaps: Vec<f32> = traces.iter().flat_map(gap).collect();
    gaps.sort_unstable_by(f32::total_cmp);
    if gaps.is_empty() {
        return Vec::new();
    }
    let mut cuts = SHARES.map(|share| gaps[((gaps.len() as f64 * share) as usize).min(gaps.len() - 1)]).to_vec();
    cuts.dedup();
    let effort = |(cut, lists)| Effort { weight, cut, lists, rerank: 0 };
    let efforts: Vec<Effort> = cuts.into_iter().flat_map(|cut| LISTS.map(|lists| (cut, lists))).map(effort).collect();
    let mut sums = vec![Sums::default(); efforts.len()];
    for trace in traces {
        let found = Found::of(trace);
        for (sums, effort) in sums.iter_mut().zip(&efforts) {
            sums.add(trace, &found, trace.lists(effort));
        }
    }
    let count = traces.len();
    let with_reranks = |(sums, effort): (Sums, Effort)| {
        let (scanned, lists) = sums.looks.means(count);
        reranks.into_iter().enumerate().map(move |(at, rerank)| {
            let recall = (sums.found[at] / count as f64) as f32;
            (cost(scanned, lists, rerank), recall, Effort { rerank, ..effort }, at)
        })
    };
    sums.into_iter().zip(efforts).flat_map(with_reranks).collect()
}

/// The part of a trace's neighbours that is found, by numbers of lists and of reranked rows: thousands of efforts ask.
struct Found(Vec<[f64; RERANKS]>);

impl Found {
    fn of(trace: &Trace) -> Self {
        let most = trace.gaps.len();
        let mut changes = vec![[0i32; RERANKS]; most + 2];
        for Neighbour { place, lost } in &trace.neighbours {
            // Found in more lists than those before its own, up to those before the one that drives it out.
            let first = (*place as usize).saturating_add(1);
            for (at, lost) in lost.iter().enumerate() {
                let last = (*lost as usize).min(most);
                if first <= last {
                    changes[first][at] += 1;
                    changes[last + 1][at] -= 1;
                }
            }
        }
        let (all, mut now) = (trace.neighbours.len().max(1) as f64, [0i32; RERANKS]);
        let after = |change: &[i32; RERANKS]| {
            now.iter_mut().zip(change).for_each(|(now, change)| *now += change);
            now.map(|count| f64::from(count) / all)
        };
        Self(changes.iter().take(most + 1).map(after).collect())
    }
}

/// What an effort finds and looks at, over some traces.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    found: [f64; RERANKS],
    looks: Looks,
}

impl Sums {
    fn add(&mut self, trace: &Trace, found: &Found, lists: usize) {
        self.found.iter_mut().zip(found.0[lists]).for_each(|(sum, found)| *sum += found);
        self.looks.add(trace, lists);
    }
}

/// Rows and lists that are looked at.
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    rows: u64,
    lists: usize,
}

impl Looks {
    fn add(&mut self, trace: &Trace, lists: usize) {
        self.rows += u64::from(lists.checked_sub(1).map_or(0, |last| trace.rows[last]));
        self.lists += lists;
    }

    fn means(self, count: usize) -> (f32, f32) {
        let count = count.max(1) as f32;
        (self.rows as f32 / count, self.lists as f32 / count)
    }
}

/// What an effort finds, said by the rows that took no part in choosing it.
fn told((tried, traces): &(Tried, Vec<Trace>), effort: Effort, rerank: usize) -> Point {
    let others: Vec<&Trace> =
        traces.iter().enumerate().filter(|(at, _)| at % CHOOSING != 0).map(|(_, trace)| trace).collect();
    let looked: Vec<usize> = others.iter().map(|trace| trace.lists(&effort)).collect();
    let found: Vec<f64> = others.iter().zip(&looked).map(|(trace, lists)| trace.found(*lists, rerank)).collect();
    let mut looks = Looks::default();
    others.iter().zip(&looked).for_each(|(trace, lists)| looks.add(trace, *lists));
    let (scanned, lists) = looks.means(others.len());
    let k = CLASSES[tried.class].0 as u32;
    Point { k, effort, recall: lower_bound(&found) as f32, cost: cost(scanned, lists, effort.rerank) }
}

/// A value that the mean is above in 19 cases of 20.
fn lower_bound(found: &[f64]) -> f64 {
    let count = found.len() as f64 + 1.0;
    let mean = found.iter().sum::<f64>() / count;
    let square = found.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() + mean * mean;
    (mean - ERRORS * (square / count / count).sqrt()).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_below_the_mean_and_never_certain() {
        let mixed: Vec<f64> = (0..512).map(|i| if i % 10 == 0 { 0.5 } else { 1.0 }).collect();
        let bound = lower_bound(&mixed);
        assert!((0.93..0.95).contains(&bound), "{bound}");
        let bound = lower_bound(&[1.0; 512]);
        assert!((0.994..0.996).contains(&bound), "{bound}");
        assert_eq!(lower_bound(&[]), 0.0);
    }

    #[test]
    fn what_is_found_is_the_same_for_all_numbers_of_lists_at_once() {
        let lost = |at: u32| std::array::from_fn(|rerank| if rerank > 5 { u32::MAX } else { at + rerank as u32 });
        let neighbours = [(0, 1), (3, 3), (4, 9), (11, 12), (2, 7), (u32::MAX, 5)];
        let neighbours = neighbours.map(|(place, at)| Neighbour { place, lost: lost(at) }).to_vec();
        let trace = Trace { gaps: vec![0.0; 10], rows: vec![16; 10], least: 1, neighbours };
        let all = Found::of(&trace);
        for (lists, rerank) in (0..=10).flat_map(|lists| (0..RERANKS).map(move |rerank| (lists, rerank))) {
            assert_eq!(all.0[lists][rerank], trace.found(lists, rerank), "{lists} lists, {rerank}");
        }
    }

    #[test]
    fn a_neighbour_is_lost_where_enough_rows_look_better() {
        let better: Vec<(u32, f32)> = (0..40).map(|i| (i / 4, if i % 2 == 0 { 2.0 } else { 0.5 })).collect();
        let lost = lost(&better, 1.0, [1, 2, 3, 5, 19, 20, 21, 22]);
        assert_eq!(lost, [0, 0, 1, 2, 9, 9, u32::MAX, u32::MAX]);
    }
}
