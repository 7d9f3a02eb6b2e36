//! A few queries at once: 4-bit codes of all rows, 7-bit codes of what they let through, f32 of what is left.
//!
//! The first sweep only keeps the best score of every block of 16 rows and query, 4 bytes of 16 rows. From the best
//! blocks comes a first bound of the K-th d²; blocks that stay above it are looked at again, row by row.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::Outcome;
use super::best::{Best, Found, Rerank, merge};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::Narrow;
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, Dots, Isa, QueryCodes, Work};
use crate::shard::Shard;

/// Blocks that a thread takes at once: they are read in well under a millisecond.
const TASK_BLOCKS: usize = 64;
/// Blocks beyond K from which the first bound comes.
const SEED_BLOCKS: usize = 24;
/// Rows that are asked for before they are read.
const AHEAD: usize = 6;

/// Blocks of one shard that are taken at once.
#[derive(Debug, Clone, Copy)]
struct Task {
    shard: usize,
    first: usize,
    blocks: usize,
}

/// What a search by levels works on.
pub(super) struct Levels<'a> {
    pub shards: &'a [&'a Shard],
    /// Codes of the shards.
    pub codes: Vec<&'a Codes>,
    pub k: usize,
    /// Rows that may pass the first level before a query is left to the plain scan.
    pub guard: usize,
    pub isa: Isa,
}

impl Levels<'_> {
    /// The answers to `queries`.
    pub fn search(&self, queries: &[&[f32]], cancel: &Cancel) -> Result<Vec<Outcome>> {
        let tasks = self.tasks();
        let prepared: Option<Vec<Vec<Narrow>>> = queries.iter().map(|query| self.prepare(query)).collect();
        let Some(prepared) = prepared else {
            return Ok(queries.iter().map(|_| Outcome::Plain(f64::INFINITY)).collect());
        };
        let scores = self.sweep(&tasks, &prepared, cancel)?;
        let answer = |query: usize| {
            let sweep = Sweep { tasks: &tasks, scores: &scores, queries: queries.len(), query };
            self.answer(queries[query], &prepared[query], sweep, cancel)
        };
        (0..queries.len()).into_par_iter().map(answer).collect()
    }

    fn tasks(&self) -> Vec<Task> {
        let tasks = self.shards.iter().enumerate().flat_map(|(shard, held)| {
            let blocks = held.rows().div_ceil(BLOCK);
            (0..blocks).step_by(TASK_BLOCKS).map(move |first| Task {
                shard,
                first,
                blocks: TASK_BLOCKS.min(blocks - first),
            })
        });
        tasks.collect()
    }

    fn prepare(&self, query: &[f32]) -> Option<Vec<Narrow>> {
        self.codes.iter().map(|codes| Narrow::new(codes, query)).collect()
    }

    /// The best score of every block, (task × query × block).
    fn sweep(&self, tasks: &[Task], prepared: &[Vec<Narrow>], cancel: &Cancel) -> Result<Vec<f32>> {
        let mut scores = vec![f32::NEG_INFINITY; tasks.len() * prepared.len() * TASK_BLOCKS];
        let chunks = scores.par_chunks_mut(prepared.len() * TASK_BLOCKS);
        chunks.zip(tasks).try_for_each(|(scores, task)| {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            self.isa.run(BlockScores { codes: self.codes[task.shard], task: *task, prepared, scores });
            Ok(())
        })?;
        Ok(scores)
    }

    /// The rest of the way for one query.
    fn answer(&self, query: &[f32], prepared: &[Narrow], sweep: Sweep, cancel: &Cancel) -> Result<Outcome> {
        let bound = self.first_bound(prepared, sweep);
        let passed = AtomicUsize::new(0);
        let found = sweep.tasks.par_iter().enumerate().map(|(number, task)| {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let mut found = Vec::new();
            if passed.load(Relaxed) <= self.guard {
                let (narrow, codes) = (&prepared[task.shard], self.codes[task.shard]);
                let scores = sweep.scores(number);
                let rows = self.isa.run(Pass { codes, narrow, task: *task, scores, bound });
                passed.fetch_add(rows.len(), Relaxed);
                self.isa.run(Refine { codes, narrow, shard: task.shard, rows: &rows, bound, found: &mut found });
            }
            Ok(found)
        });
        let mut found: Vec<Bounded> = found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        if passed.into_inner() > self.guard {
            return Ok(Outcome::Plain(bound.max(0.0)));
        }
        let bound = kth(&mut found, self.k).min(bound);
        let mut found: Vec<Found> = found.into_iter().map(|bounded| bounded.found).collect();
        let mut best = Best::default();
        self.isa.run(Rerank { shards: self.shards, query, k: self.k, bound, found: &mut found, best: &mut best });
        Ok(Outcome::Found(merge(self.shards, [best], self.k)))
    }

    /// A d² that the K-th is not above, from the rows that look best.
    fn first_bound(&self, prepared: &[Narrow], sweep: Sweep) -> f64 {
        let (seeds, least) = sweep.seeds(prepared, self.k + SEED_BLOCKS);
        let mut found = Vec::new();
        for (task, block) in seeds {
            let task = Task { blocks: 1, first: sweep.tasks[task].first + block, ..sweep.tasks[task] };
            let (narrow, codes) = (&prepared[task.shard], self.codes[task.shard]);
            let rows = self.isa.run(Pass { codes, narrow, task, scores: &[f32::INFINITY], bound: least });
            self.isa.run(Refine {
                codes,
                narrow,
                shard: task.shard,
                rows: &rows,
                bound: f64::INFINITY,
                found: &mut found,
            });
        }
        kth(&mut found, self.k)
    }
}

/// The scores of one query.
#[derive(Clone, Copy)]
struct Sweep<'a> {
    tasks: &'a [Task],
    scores: &'a [f32],
    queries: usize,
    query: usize,
}

impl<'a> Sweep<'a> {
    /// Of the blocks of a task.
    fn scores(&self, task: usize) -> &'a [f32] {
        &self.scores[(task * self.queries + self.query) * TASK_BLOCKS..][..self.tasks[task].blocks]
    }

    /// The blocks that hold the `count` rows with the least d² that a score allows, and the largest of these d²
    /// (∞ when there are fewer blocks).
    fn seeds(&self, prepared: &[Narrow], count: usize) -> (Vec<(usize, usize)>, f64) {
        let mut least = f64::INFINITY;
        let mut seeds: Vec<(f64, usize, usize)> = Vec::with_capacity(2 * count);
        for (number, task) in self.tasks.iter().enumerate() {
            let place = &prepared[task.shard].place;
            let mut limit = place.least_score(least);
            for (block, score) in self.scores(number).iter().enumerate() {
                if *score < limit {
                    continue;
                }
                seeds.push((place.least_d2(*score), number, block));
                if seeds.len() == 2 * count {
                    least = cut(&mut seeds, count);
                    limit = place.least_score(least);
                }
            }
        }
        if seeds.len() > count {
            least = cut(&mut seeds, count);
        }
        (seeds.into_iter().map(|(_, task, block)| (task, block)).collect(), least)
    }
}

/// Keeps the `count` least; tells the largest of them.
fn cut(seeds: &mut Vec<(f64, usize, usize)>, count: usize) -> f64 {
    let (_, largest, _) = seeds.select_nth_unstable_by(count - 1, |a, b| a.0.total_cmp(&b.0));
    let largest = largest.0;
    seeds.truncate(count);
    largest
}

/// A row with both bounds of its canonical d².
#[derive(Debug, Clone, Copy)]
struct Bounded {
    found: Found,
    most_d2: f64,
}

/// The K-th least of the upper bounds; ∞ when there are fewer.
fn kth(found: &mut [Bounded], k: usize) -> f64 {
    if found.len() < k {
        return f64::INFINITY;
    }
    found.select_nth_unstable_by(k - 1, |a, b| a.most_d2.total_cmp(&b.most_d2)).1.most_d2
}

/// Scores of the rows of a block for Q queries.
#[inline(always)]
fn block_scores<D: Dots, const Q: usize>(
    dots: D,
    codes: &Codes,
    block: usize,
    queries: [&Narrow; Q],
) -> [[f32; BLOCK]; Q] {
    let block = codes.four().block(block);
    let mut four: [&QueryCodes; Q] = [&queries[0].four; Q];
    for (four, narrow) in four.iter_mut().zip(queries) {
        *four = &narrow.four;
    }
    let sums = dots.four(block.codes, four);
    let mut scores = [[0f32; BLOCK]; Q];
    for ((scores, sums), narrow) in scores.iter_mut().zip(sums).zip(queries) {
        let level = &narrow.four_level;
        // Codes stand for code − 7.5, the sums are of code − 8.
        let middle = narrow.four.offset as f32 / 16.0;
        for (row, (score, sum)) in scores.iter_mut().zip(sums).enumerate() {
            let (scale, epsilon, half) = block.row(row);
            let y = (sum as f32 + middle) * level.unit * scale;
            *score = y + level.margin(y, epsilon) - half;
        }
    }
    scores
}

/// The best score of each block of a task, (query × block).
struct BlockScores<'a> {
    codes: &'a Codes,
    task: Task,
    prepared: &'a [Vec<Narrow>],
    scores: &'a mut [f32],
}

impl BlockScores<'_> {
    #[inline(always)]
    fn some<D: Dots, const Q: usize>(&mut self, dots: D, block: usize, first: usize) {
        let mut queries = [&self.prepared[first][self.task.shard]; Q];
        for (query, prepared) in queries.iter_mut().zip(&self.prepared[first..]) {
            *query = &prepared[self.task.shard];
        }
        let scores = block_scores(dots, self.codes, self.task.first + block, queries);
        for (i, scores) in scores.iter().enumerate() {
            self.scores[(first + i) * TASK_BLOCKS + block] = largest(scores);
        }
    }
}

impl Work for BlockScores<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(mut self, dots: D) {
        for block in 0..self.task.blocks {
            let mut first = 0;
            while self.prepared.len() - first >= 4 {
                self.some::<D, 4>(dots, block, first);
                first += 4;
            }
            match self.prepared.len() - first {
                3 => self.some::<D, 3>(dots, block, first),
                2 => self.some::<D, 2>(dots, block, first),
                1 => self.some::<D, 1>(dots, block, first),
                _ => {}
            }
        }
    }
}

#[inline(always)]
fn largest(scores: &[f32; BLOCK]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    for eight in scores.as_chunks::<8>().0 {
        for (lane, score) in lanes.iter_mut().zip(eight) {
            *lane = if *score > *lane { *score } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, v| if v > a { v } else { a })
}

/// Rows of a task's blocks whose score allows a d² of at most `bound`.
struct Pass<'a> {
    codes: &'a Codes,
    narrow: &'a Narrow,
    task: Task,
    scores: &'a [f32],
    bound: f64,
}

impl Work for Pass<'_> {
    type Output = Vec<u32>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<u32> {
        let mut rows = Vec::new();
        let limit = self.narrow.place.least_score(self.bound);
        for (block, score) in self.scores.iter().enumerate() {
            if *score < limit {
                continue;
            }
            let block = self.task.first + block;
            let [scores] = block_scores(dots, self.codes, block, [self.narrow]);
            let passes = |(_, score): &(usize, &f32)| **score >= limit && **score > f32::NEG_INFINITY;
            let passed = scores.iter().enumerate().filter(passes);
            rows.extend(passed.map(|(row, _)| (block * BLOCK + row) as u32));
        }
        rows
    }
}

/// Bounds of rows from their 7-bit codes; adds those that can be within `bound`.
struct Refine<'a> {
    codes: &'a Codes,
    narrow: &'a Narrow,
    shard: usize,
    rows: &'a [u32],
    bound: f64,
    found: &'a mut Vec<Bounded>,
}

impl Work for Refine<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) {
        let (seven, narrow, level) = (self.codes.seven(), self.narrow, &self.narrow.row_level);
        for (i, &row) in self.rows.iter().enumerate() {
            if let Some(next) = self.rows.get(i + AHEAD) {
                dots.prefetch(seven.row(*next as usize));
            }
            let (codes, scale, epsilon, half) = seven.parts(row as usize);
            let sum = dots.row(codes, &narrow.row).wrapping_sub(narrow.row_offset);
            let y = sum as f32 * level.unit * scale;
            let margin = level.margin(y, epsilon);
            let least_d2 = narrow.place.least_d2(y + margin - half);
            if least_d2 <= self.bound {
                let found = Found { least_d2, shard: self.shard as u32, row };
                self.found.push(Bounded { found, most_d2: narrow.place.most_d2(y - margin - half) });
            }
        }
    }
}
