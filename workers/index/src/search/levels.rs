//! A few queries at once: 4-bit codes of all rows, 7-bit codes of what they let through, f32 of what is left.
//!
//! The first sweep only keeps the best score of every block of 16 rows and query, 4 bytes of 16 rows. From the best
//! blocks comes a first bound of the K-th d²; blocks that stay above it are looked at again, row by row.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::best::{Bounded, Found, answer, kth};
use super::{Asked, Outcome, Survivors};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::{Narrow, ROWS};
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, Dots, Isa, QueryCodes, Work};
use crate::shard::Shard;

/// Blocks that a thread takes at once: they are read in well under a millisecond.
const TASK_BLOCKS: usize = 64;
/// Blocks beyond K from which the first bound comes.
const SEED_BLOCKS: usize = 24;
/// Rows that are looked at before anything bounds the rest.
const FIRST_ROWS: usize = 1024;
/// Rows that a thread refines at once.
const TASK_ROWS: usize = 256;
/// Blocks that are asked for before they are read.
const BLOCKS_AHEAD: usize = 3;

/// Blocks of one shard that are taken at once.
#[derive(Debug, Clone, Copy)]
struct Task {
    shard: usize,
    first: usize,
    blocks: usize,
}

impl Task {
    fn spot(&self, block: usize) -> Spot {
        Spot { shard: self.shard as u32, at: (self.first + block) as u32 }
    }
}

/// What a search by levels works on.
pub(super) struct Levels<'a> {
    pub shards: &'a [&'a Shard],
    /// Codes of the shards.
    pub codes: &'a [&'a Codes],
    /// Rows that may pass the first level before a query is left to the plain scan.
    pub guard: usize,
    pub isa: Isa,
}

impl Levels<'_> {
    /// The answers to `queries`.
    pub fn search(&self, queries: &[&Asked], cancel: &Cancel) -> Result<Vec<Outcome>> {
        let tasks = self.tasks();
        let prepared: Option<Vec<Vec<Narrow>>> = queries.iter().map(|asked| self.prepare(asked.values)).collect();
        let Some(prepared) = prepared else {
            return Ok(queries.iter().map(|_| Outcome::Plain(f64::INFINITY)).collect());
        };
        let scores = self.sweep(&tasks, queries, &prepared, cancel)?;
        let answer = |query: usize| {
            let sweep = Sweep { tasks: &tasks, scores: &scores, queries: queries.len(), query };
            self.answer(queries[query], &prepared[query], sweep, cancel)
        };
        (0..queries.len()).into_par_iter().map(answer).collect()
    }

    /// How many rows each level lets through for one query; `None` where the levels are not used.
    pub fn survivors(&self, asked: &Asked, cancel: &Cancel) -> Result<Option<Survivors>> {
        let Some(prepared) = self.prepare(asked.values) else { return Ok(None) };
        let (tasks, every) = (self.tasks(), [prepared]);
        let scores = self.sweep(&tasks, &[asked], &every, cancel)?;
        let sweep = Sweep { tasks: &tasks, scores: &scores, queries: 1, query: 0 };
        let bound = self.first_bound(asked, &every[0], sweep);
        let Some(rows) = self.pass(asked, &every[0], &sweep.within(&every[0], bound), bound, cancel)? else {
            return Ok(Some(Survivors { four: None, seven: asked.rows }));
        };
        let mut found = self.refine(&every[0], &rows, bound);
        let bound = kth(&mut found, asked.k).min(bound);
        let seven = found.iter().filter(|bounded| bounded.found.least_d2 <= bound).count();
        Ok(Some(Survivors { four: Some(rows.len()), seven }))
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
    fn sweep(&self, tasks: &[Task], asked: &[&Asked], prepared: &[Vec<Narrow>], cancel: &Cancel) -> Result<Vec<f32>> {
        let mut scores = vec![f32::NEG_INFINITY; tasks.len() * prepared.len() * TASK_BLOCKS];
        let chunks = scores.par_chunks_mut(prepared.len() * TASK_BLOCKS);
        chunks.zip(tasks).try_for_each(|(scores, task)| {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            self.isa.run(BlockScores { codes: self.codes[task.shard], task: *task, asked, prepared, scores });
            Ok(())
        })?;
        Ok(scores)
    }

    /// The rest of the way for one query.
    fn answer(&self, asked: &Asked, prepared: &[Narrow], sweep: Sweep, cancel: &Cancel) -> Result<Outcome> {
        let bound = self.first_bound(asked, prepared, sweep);
        let blocks = sweep.within(prepared, bound);
        let Some(rows) = self.pass(asked, prepared, &blocks, bound, cancel)? else {
            return Ok(Outcome::Plain(bound.max(0.0)));
        };
        let refined = rows.par_chunks(TASK_ROWS).map(|rows| self.refine(prepared, rows, bound));
        let found: Vec<Bounded> = refined.collect::<Vec<_>>().into_iter().flatten().collect();
        Ok(Outcome::Found(answer(self.shards, self.isa, asked, found, bound)))
    }

    /// A query about few rows: all of them go through the 7-bit level, the first ones to bound the rest.
    pub fn few(&self, asked: &Asked, cancel: &Cancel) -> Result<Outcome> {
        let Some(prepared) = self.prepare(asked.values) else { return Ok(Outcome::Plain(f64::INFINITY)) };
        let sets = asked.within.iter().flatten().enumerate();
        let rows: Vec<Spot> =
            sets.flat_map(|(shard, set)| set.iter().map(move |at| Spot { shard: shard as u32, at })).collect();
        let (mut found, mut bound, mut size) = (Vec::new(), f64::INFINITY, FIRST_ROWS.max(asked.k));
        let mut left = rows.as_slice();
        while !left.is_empty() {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let (now, later) = left.split_at(size.min(left.len()));
            let refined = now.par_chunks(TASK_ROWS).map(|rows| self.refine(&prepared, rows, bound));
            found.extend(refined.collect::<Vec<_>>().into_iter().flatten());
            bound = kth(&mut found, asked.k).min(bound);
            found.retain(|bounded| bounded.found.least_d2 <= bound);
            (left, size) = (later, 2 * size);
        }
        Ok(Outcome::Found(answer(self.shards, self.isa, asked, found, bound)))
    }

    /// A d² that the K-th is not above, from the rows that look best.
    fn first_bound(&self, asked: &Asked, prepared: &[Narrow], sweep: Sweep) -> f64 {
        let (blocks, least) = sweep.seeds(prepared, asked.k + SEED_BLOCKS);
        let rows = self.isa.run(Pass { levels: self, asked, prepared, blocks: &blocks, bound: least });
        kth(&mut self.refine(prepared, &rows, f64::INFINITY), asked.k)
    }

    /// The rows of blocks that may be within `bound`; `None` when these are too many.
    fn pass(
        &self,
        asked: &Asked,
        prepared: &[Narrow],
        blocks: &[Spot],
        bound: f64,
        cancel: &Cancel,
    ) -> Result<Option<Vec<Spot>>> {
        let passed = AtomicUsize::new(0);
        let rows = blocks.par_chunks(TASK_BLOCKS).map(|blocks| {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            if passed.load(Relaxed) > self.guard {
                return Ok(Vec::new());
            }
            let rows = self.isa.run(Pass { levels: self, asked, prepared, blocks, bound });
            passed.fetch_add(rows.len(), Relaxed);
            Ok(rows)
        });
        let rows: Vec<Vec<Spot>> = rows.collect::<Result<_>>()?;
        Ok((passed.into_inner() <= self.guard).then(|| rows.into_iter().flatten().collect()))
    }

    /// Bounds of those rows that can be within `bound`.
    fn refine(&self, prepared: &[Narrow], rows: &[Spot], bound: f64) -> Vec<Bounded> {
        self.isa.run(Refine { levels: self, prepared, rows, bound })
    }
}

/// A block or a row of a shard.
#[derive(Debug, Clone, Copy)]
struct Spot {
    shard: u32,
    at: u32,
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

    /// The blocks whose best row may be within `bound`.
    fn within(&self, prepared: &[Narrow], bound: f64) -> Vec<Spot> {
        let mut blocks = Vec::new();
        for (number, task) in self.tasks.iter().enumerate() {
            let limit = prepared[task.shard].place.least_score(bound);
            let scores = self.scores(number).iter().enumerate();
            blocks.extend(scores.filter(|(_, score)| **score >= limit).map(|(block, _)| task.spot(block)));
        }
        blocks
    }

    /// The blocks that hold the `count` rows with the least d² that a score allows, and the largest of these d²
    /// (∞ when there are fewer blocks).
    fn seeds(&self, prepared: &[Narrow], count: usize) -> (Vec<Spot>, f64) {
        let mut least = f64::INFINITY;
        let mut seeds: Vec<(f64, Spot)> = Vec::with_capacity(2 * count);
        for (number, task) in self.tasks.iter().enumerate() {
            let place = &prepared[task.shard].place;
            let mut limit = place.least_score(least);
            for (block, score) in self.scores(number).iter().enumerate() {
                if *score < limit {
                    continue;
                }
                seeds.push((place.least_d2(*score), task.spot(block)));
                if seeds.len() == 2 * count {
                    least = cut(&mut seeds, count);
                    limit = place.least_score(least);
                }
            }
        }
        if seeds.len() > count {
            least = cut(&mut seeds, count);
        }
        (seeds.into_iter().map(|(_, block)| block).collect(), least)
    }
}

/// Keeps the `count` least; tells the largest of them.
fn cut(seeds: &mut Vec<(f64, Spot)>, count: usize) -> f64 {
    let (_, largest, _) = seeds.select_nth_unstable_by(count - 1, |a, b| a.0.total_cmp(&b.0));
    let largest = largest.0;
    seeds.truncate(count);
    largest
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
    let rows = block.rows();
    let mut scores = [[0f32; BLOCK]; Q];
    for ((scores, sums), narrow) in scores.iter_mut().zip(sums).zip(queries) {
        *scores = row_scores(sums, narrow, &rows);
    }
    scores
}

/// Of one query; a loop of its own, which the compiler widens.
#[inline(always)]
fn row_scores(sums: [i32; BLOCK], narrow: &Narrow, rows: &[[f32; BLOCK]; 3]) -> [f32; BLOCK] {
    let (level, [scale, epsilon, half]) = (narrow.four_level, rows);
    // Codes stand for code − 7.5, the sums are of code − 8.
    let middle = narrow.four.offset as f32 / 16.0;
    let mut scores = [0f32; BLOCK];
    for i in 0..BLOCK {
        let y = (sums[i] as f32 + middle) * level.unit * scale[i];
        scores[i] = y + level.quick_margin(y, epsilon[i]) - half[i];
    }
    scores
}

/// The best score of each block of a task, (query × block).
struct BlockScores<'a> {
    codes: &'a Codes,
    task: Task,
    asked: &'a [&'a Asked<'a>],
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
        let at = (self.task.first + block) * BLOCK;
        let searched: [u16; Q] = std::array::from_fn(|i| self.asked[first + i].bits(self.task.shard, at) as u16);
        if searched.iter().all(|bits| *bits == 0) {
            return;
        }
        let mut scores = block_scores(dots, self.codes, self.task.first + block, queries);
        for (i, (scores, searched)) in scores.iter_mut().zip(searched).enumerate() {
            if searched != u16::MAX {
                leave_out(scores, searched);
            }
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

/// Takes away the scores of rows that are not searched.
#[inline(always)]
fn leave_out(scores: &mut [f32; BLOCK], searched: u16) {
    for (row, score) in scores.iter_mut().enumerate() {
        *score = if searched >> row & 1 == 1 { *score } else { f32::NEG_INFINITY };
    }
}

/// The largest score, by halves, which the compiler makes few instructions of.
#[inline(always)]
fn largest(scores: &[f32; BLOCK]) -> f32 {
    let mut lanes = *scores;
    let mut half = BLOCK / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
        }
        half /= 2;
    }
    lanes[0]
}

/// Rows of blocks whose score allows a d² of at most `bound`.
struct Pass<'a> {
    levels: &'a Levels<'a>,
    asked: &'a Asked<'a>,
    prepared: &'a [Narrow],
    blocks: &'a [Spot],
    bound: f64,
}

impl Work for Pass<'_> {
    type Output = Vec<Spot>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Spot> {
        let mut rows = Vec::new();
        for (i, &Spot { shard, at: block }) in self.blocks.iter().enumerate() {
            if let Some(next) = self.blocks.get(i + BLOCKS_AHEAD) {
                dots.prefetch(self.levels.codes[next.shard as usize].four().block_memory(next.at as usize));
            }
            let narrow = &self.prepared[shard as usize];
            // Whatever the limit, −∞ is not above.
            let limit = narrow.place.least_score(self.bound).next_down();
            let [scores] = block_scores(dots, self.levels.codes[shard as usize], block as usize, [narrow]);
            let searched = self.asked.bits(shard as usize, block as usize * BLOCK) as u16;
            let mut above = dots.above(&scores, limit) & searched;
            while above != 0 {
                rows.push(Spot { shard, at: block * BLOCK as u32 + above.trailing_zeros() });
                above &= above - 1;
            }
        }
        rows
    }
}

/// Bounds of rows from their 7-bit codes; those that can be within `bound`.
struct Refine<'a> {
    levels: &'a Levels<'a>,
    prepared: &'a [Narrow],
    rows: &'a [Spot],
    bound: f64,
}

impl Work for Refine<'_> {
    type Output = Vec<Bounded>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Bounded> {
        let mut found = Vec::new();
        for spots in self.rows.chunk_by(|a, b| a.shard == b.shard) {
            let (shard, narrow) = (spots[0].shard, &self.prepared[spots[0].shard as usize]);
            let seven = self.levels.codes[shard as usize].seven();
            for (part, some) in spots.chunks(ROWS).enumerate() {
                for next in spots.iter().skip((part + 1) * ROWS).take(ROWS) {
                    dots.prefetch(seven.row(next.at as usize));
                }
                let mut rows = [0; ROWS];
                rows.iter_mut().zip(some).for_each(|(row, spot)| *row = spot.at);
                let [most, least] = narrow.row.scores(dots, seven, &rows[..some.len()]);
                for (i, &row) in rows[..some.len()].iter().enumerate() {
                    let least_d2 = narrow.place.least_d2(most[i]);
                    if least_d2 <= self.bound {
                        let most_d2 = narrow.place.most_d2(least[i]);
                        found.push(Bounded { found: Found { least_d2, shard, row }, most_d2 });
                    }
                }
            }
        }
        found
    }
}
