//! A few queries at once: 4-bit codes of all rows, 7-bit codes of what they let through, f32 of what is left.
//!
//! The sweep keeps the best score of every block of 16 rows and query. To look at blocks again costs more than to read them
//! in order, so rows that will matter are *noted* when they come by. Which will, a sample says: one task of sixteen is
//! swept before the others, and from the rows that are near in it comes a *guess* at the K-th d², which is likely not below
//! it. The rest of the sweep notes the rows whose score allows a d² within the guess.
//!
//! *Why answers stay exact.* The guess proves nothing. From the 7-bit bounds of the best noted rows comes an upper bound of the
//! K-th d². If it is not above the guess, a row that was not noted has a d² strictly above the guess, so above the K-th: the noted
//! rows are all that matter. If it is above, or if too few or too many rows were noted, nothing of the guess is used: from the
//! best blocks comes a bound of the K-th d², and the blocks that may be within it are looked at again, row by row.
//!
//! What a sample of tasks says is not enough to leave a query to the plain scan: in a shard whose rows are in the order of their
//! kinds, the sample may have none of the kind that the query asks for. So the guard waits for the end of the sweep, and then looks
//! at a few of the blocks that are left.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::best::{Bounded, Found, answer, kth};
use super::{Asked, Outcome, Survivors};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::{Narrow, Place, ROWS};
use crate::error::{Error, Result};
use crate::kernels::{BLOCK, Dots, Isa, QueryCodes, Work};
use crate::shard::Shard;

/// Blocks that a thread takes at once: they are read in well under a millisecond.
const TASK_BLOCKS: usize = 64;
/// Blocks beyond K from which the first bound comes.
const SEED_BLOCKS: usize = 24;
/// Of so many tasks one is swept before the others, for a guess at the K-th d².
const SAMPLE: usize = 16;
/// Least number of tasks for that.
const SAMPLED_TASKS: usize = 4 * SAMPLE;
/// Part of the rows, as a divisor, that the sweep notes of a query; when it would be more, blocks are looked at again.
const NOTED: usize = 32;
/// Of so many blocks one is looked at to see whether a quarter more rows pass than may.
const PROBED: usize = 32;
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

    /// The first row of a block.
    fn row(&self, block: usize) -> Spot {
        Spot { shard: self.shard as u32, at: ((self.first + block) * BLOCK) as u32 }
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
        let every: Vec<&[Narrow]> = prepared.iter().map(Vec::as_slice).collect();
        let (sample, rest) = tasks.split_at(if tasks.len() < SAMPLED_TASKS { 0 } else { tasks.len().div_ceil(SAMPLE) });
        let (scores, _) = self.sweep(sample, queries, &every, &vec![NOTHING; queries.len()], cancel)?;
        let sampled = |query: usize| Sweep { tasks: sample, scores: &scores, queries: queries.len(), query };
        let guess = |query: usize| self.guess(queries[query], every[query], sampled(query));
        let guesses: Vec<Guess> = (0..queries.len()).into_par_iter().map(guess).collect();
        let limits: Vec<f64> = guesses.iter().map(|guess| guess.d2).collect();
        let (swept, noted) = self.sweep(rest, queries, &every, &limits, cancel)?;
        let answer = |(query, (mut guess, noted)): (usize, (Guess, Vec<Noted>))| {
            guess.noted.extend(noted);
            let others = Sweep { tasks: rest, scores: &swept, queries: queries.len(), query };
            self.answer(queries[query], every[query], &[sampled(query), others], guess, cancel)
        };
        let guesses: Vec<_> = guesses.into_iter().zip(noted).enumerate().collect();
        guesses.into_par_iter().map(answer).collect()
    }

    /// How many rows each level lets through for one query; `None` where the levels are not used.
    pub fn survivors(&self, asked: &Asked, cancel: &Cancel) -> Result<Option<Survivors>> {
        let Some(prepared) = self.prepare(asked.values) else { return Ok(None) };
        let tasks = self.tasks();
        let (scores, _) = self.sweep(&tasks, &[asked], &[&prepared], &[NOTHING], cancel)?;
        let sweep = [Sweep { tasks: &tasks, scores: &scores, queries: 1, query: 0 }];
        let bound = self.first_bound(asked, &prepared, &sweep);
        let Some(rows) = self.pass(asked, &prepared, &within(&sweep, &prepared, bound), bound, cancel)? else {
            return Ok(Some(Survivors { four: None, seven: asked.rows }));
        };
        let mut found = self.refine(&prepared, &rows, bound);
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
        // Those of the sample first.
        let (mut sample, rest): (Vec<_>, Vec<_>) = tasks.enumerate().partition(|(number, _)| number % SAMPLE == 0);
        sample.extend(rest);
        sample.into_iter().map(|(_, task)| task).collect()
    }

    fn prepare(&self, query: &[f32]) -> Option<Vec<Narrow>> {
        self.codes.iter().map(|codes| Narrow::new(codes, query)).collect()
    }

    /// The best score of every block, (task × query × block); and per query the rows that may be within its guess, as long as
    /// they are not too many.
    fn sweep(
        &self,
        tasks: &[Task],
        asked: &[&Asked],
        prepared: &[&[Narrow]],
        guesses: &[f64],
        cancel: &Cancel,
    ) -> Result<(Vec<f32>, Vec<Vec<Noted>>)> {
        let part = prepared.len() * TASK_BLOCKS;
        let mut scores = vec![f32::NEG_INFINITY; tasks.len() * part];
        let most = self.rows() / NOTED;
        let none = || vec![Vec::new(); prepared.len()];
        let swept = scores.par_chunks_mut(part.max(1)).zip(tasks).try_fold(none, |mut noted, (scores, task)| {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let (codes, task, into) = (self.codes[task.shard], *task, &mut noted);
            self.isa.run(BlockScores { codes, task, asked, prepared, guesses, most, scores, noted: into });
            Ok(noted)
        });
        let noted = swept.try_reduce(none, |mut noted, more| {
            noted.iter_mut().zip(more).for_each(|(noted, more)| noted.extend(more));
            Ok(noted)
        })?;
        Ok((scores, noted))
    }

    fn rows(&self) -> usize {
        self.shards.iter().map(|shard| shard.rows()).sum()
    }

    /// What a sample says of the K-th d². It proves nothing.
    fn guess(&self, asked: &Asked, prepared: &[Narrow], sample: Sweep) -> Guess {
        let nothing = Guess { d2: NOTHING, noted: Vec::new() };
        if sample.tasks.is_empty() {
            return nothing;
        }
        // How many of the K are in the sample, and by how much more that may be off.
        let expected = asked.k as f64 / SAMPLE as f64;
        let rank = (expected + 2.5 * expected.sqrt() + 1.5).ceil() as usize;
        let (blocks, least) = seeds(&[sample], prepared, rank + SEED_BLOCKS);
        let rows = self.isa.run(Pass { levels: self, asked, prepared, blocks: &blocks, bound: least });
        let d2 = kth(&mut self.refine(prepared, &spots(&rows), f64::INFINITY), rank);
        let blocks = within(&[sample], prepared, d2);
        if d2 == f64::INFINITY || blocks.len() * SAMPLE * NOTED > self.rows() {
            return nothing;
        }
        Guess { d2, noted: self.isa.run(Pass { levels: self, asked, prepared, blocks: &blocks, bound: d2 }) }
    }

    /// The rest of the way for one query.
    fn answer(
        &self,
        asked: &Asked,
        prepared: &[Narrow],
        sweep: &[Sweep],
        guess: Guess,
        cancel: &Cancel,
    ) -> Result<Outcome> {
        let (mut found, rows, bound) = match self.known(asked.k, prepared, guess) {
            Some(known) => known,
            None => {
                let bound = self.first_bound(asked, prepared, sweep);
                let blocks = within(sweep, prepared, bound);
                let Some(rows) = self.pass(asked, prepared, &blocks, bound, cancel)? else {
                    return Ok(Outcome::Plain(bound.max(0.0)));
                };
                (Vec::new(), rows, bound)
            }
        };
        let refined = rows.par_chunks(TASK_ROWS).map(|rows| self.refine(prepared, rows, bound));
        found.extend(refined.collect::<Vec<_>>().into_iter().flatten());
        Ok(Outcome::Found(answer(self.shards, self.isa, asked, found, bound)))
    }

    /// If all rows that may be within the K-th d² were noted: bounds of some of them, the others, and a bound of that d².
    fn known(&self, k: usize, prepared: &[Narrow], guess: Guess) -> Option<(Vec<Bounded>, Vec<Spot>, f64)> {
        let (Guess { d2, mut noted }, count) = (guess, k + SEED_BLOCKS);
        if noted.len() <= count || noted.len() > self.rows() / NOTED {
            return None;
        }
        noted.select_nth_unstable_by(count - 1, |a, b| a.0.total_cmp(&b.0));
        let (first, rest) = noted.split_at(count);
        let mut found = self.refine(prepared, &spots(first), f64::INFINITY);
        let bound = kth(&mut found, k);
        let rest = rest.iter().filter(|(least_d2, _)| *least_d2 <= bound).map(|(_, spot)| *spot);
        // What was not noted is beyond the guess.
        (bound <= d2).then(|| (found, rest.collect(), bound))
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
    fn first_bound(&self, asked: &Asked, prepared: &[Narrow], sweep: &[Sweep]) -> f64 {
        let (blocks, least) = seeds(sweep, prepared, asked.k + SEED_BLOCKS);
        let rows = self.isa.run(Pass { levels: self, asked, prepared, blocks: &blocks, bound: least });
        kth(&mut self.refine(prepared, &spots(&rows), f64::INFINITY), asked.k)
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
        if blocks.len() * BLOCK > self.guard {
            let some: Vec<Spot> = blocks.iter().step_by(PROBED).copied().collect();
            let rows = self.isa.run(Pass { levels: self, asked, prepared, blocks: &some, bound });
            if rows.len() * PROBED > self.guard * 5 / 4 {
                return Ok(None);
            }
        }
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
            Ok(spots(&rows))
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

/// A row with a d² that its canonical one is not below.
type Noted = (f64, Spot);

fn spots(noted: &[Noted]) -> Vec<Spot> {
    noted.iter().map(|(_, spot)| *spot).collect()
}

/// A guess at a d² that no row is within.
const NOTHING: f64 = f64::NEG_INFINITY;

/// What a sample says of a query.
struct Guess {
    /// Likely not below the K-th d², and not far above it.
    d2: f64,
    /// The rows that may be within it: at first those of the sample.
    noted: Vec<Noted>,
}

/// The scores of one query for some tasks.
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
}

/// The blocks whose best row may be within `bound`.
fn within(sweeps: &[Sweep], prepared: &[Narrow], bound: f64) -> Vec<Spot> {
    let mut blocks = Vec::new();
    for sweep in sweeps {
        for (number, task) in sweep.tasks.iter().enumerate() {
            let limit = prepared[task.shard].place.least_score(bound);
            let scores = sweep.scores(number).iter().enumerate();
            blocks.extend(scores.filter(|(_, score)| **score >= limit).map(|(block, _)| task.spot(block)));
        }
    }
    blocks
}

/// The blocks that hold the `count` rows with the least d² that a score allows, and the largest of these d²
/// (∞ when there are fewer blocks).
fn seeds(sweeps: &[Sweep], prepared: &[Narrow], count: usize) -> (Vec<Spot>, f64) {
    let mut least = f64::INFINITY;
    let mut seeds: Vec<(f64, Spot)> = Vec::with_capacity(2 * count);
    for sweep in sweeps {
        for (number, task) in sweep.tasks.iter().enumerate() {
            let place = &prepared[task.shard].place;
            let mut limit = place.least_score(least);
            for (block, score) in sweep.scores(number).iter().enumerate() {
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
    }
    if seeds.len() > count {
        least = cut(&mut seeds, count);
    }
    (seeds.into_iter().map(|(_, block)| block).collect(), least)
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
    prepared: &'a [&'a [Narrow]],
    guesses: &'a [f64],
    /// Of a query, so many rows are noted at most.
    most: usize,
    scores: &'a mut [f32],
    noted: &'a mut [Vec<Noted>],
}

/// Scores of the rows of some blocks, of queries that go together: arithmetic is waited for, and rows are noted after it, since
/// a branch that the processor does not foresee throws away what was begun.
type Strip = [[f32; BLOCK]; BLOCK];

impl BlockScores<'_> {
    #[inline(always)]
    fn some<D: Dots, const Q: usize>(&mut self, dots: D, block: usize, first: usize, strips: &mut [Strip]) {
        let mut queries = [&self.prepared[first][self.task.shard]; Q];
        for (query, prepared) in queries.iter_mut().zip(&self.prepared[first..]) {
            *query = &prepared[self.task.shard];
        }
        let at = (self.task.first + block) * BLOCK;
        let searched: [u16; Q] = std::array::from_fn(|i| self.asked[first + i].bits(self.task.shard, at) as u16);
        if searched.iter().all(|bits| *bits == 0) {
            return;
        }
        let scores = block_scores(dots, self.codes, self.task.first + block, queries);
        for (i, (mut scores, searched)) in scores.into_iter().zip(searched).enumerate() {
            if searched != u16::MAX {
                leave_out(&mut scores, searched);
            }
            self.scores[(first + i) * TASK_BLOCKS + block] = largest(&scores);
            strips[first + i][block % BLOCK] = scores;
        }
    }

    /// All blocks with a single query: memory is waited for, and noting at once keeps the reading going.
    #[inline(always)]
    fn alone<D: Dots>(&mut self, dots: D) {
        let (asked, narrow) = (self.asked[0], &self.prepared[0][self.task.shard]);
        let limit = self.limit(0);
        for (block, best) in self.scores[..self.task.blocks].iter_mut().enumerate() {
            let searched = asked.bits(self.task.shard, (self.task.first + block) * BLOCK) as u16;
            if searched == 0 {
                continue;
            }
            let [mut scores] = block_scores(dots, self.codes, self.task.first + block, [narrow]);
            if searched != u16::MAX {
                leave_out(&mut scores, searched);
            }
            *best = largest(&scores);
            if *best > limit && self.noted[0].len() <= self.most {
                let above = dots.above(&scores, limit);
                note(&scores, above, &narrow.place, self.task.row(block), &mut self.noted[0]);
            }
        }
    }

    /// What scores of rows are above that may be within the guess.
    #[inline(always)]
    fn limit(&self, query: usize) -> f32 {
        self.prepared[query][self.task.shard].place.least_score(self.guesses[query]).next_down()
    }

    /// Notes the rows of the blocks from `first` on that may be within the guess.
    #[inline(always)]
    fn note<D: Dots>(&mut self, dots: D, first: usize, strips: &[Strip]) {
        for (query, strip) in strips.iter().enumerate() {
            let limit = self.limit(query);
            let best = self.scores[query * TASK_BLOCKS + first..].first_chunk().expect("strips of a task");
            let mut blocks = dots.above(best, limit);
            if self.noted[query].len() > self.most {
                continue;
            }
            let place = &self.prepared[query][self.task.shard].place;
            while blocks != 0 {
                let block = blocks.trailing_zeros() as usize;
                let above = dots.above(&strip[block], limit);
                note(&strip[block], above, place, self.task.row(first + block), &mut self.noted[query]);
                blocks &= blocks - 1;
            }
        }
    }
}

impl Work for BlockScores<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(mut self, dots: D) {
        if self.prepared.len() == 1 {
            return self.alone(dots);
        }
        let mut strips = vec![[[0.0; BLOCK]; BLOCK]; self.prepared.len()];
        for block in 0..self.task.blocks {
            let mut first = 0;
            while self.prepared.len() - first >= 4 {
                self.some::<D, 4>(dots, block, first, &mut strips);
                first += 4;
            }
            match self.prepared.len() - first {
                3 => self.some::<D, 3>(dots, block, first, &mut strips),
                2 => self.some::<D, 2>(dots, block, first, &mut strips),
                1 => self.some::<D, 1>(dots, block, first, &mut strips),
                _ => {}
            }
            if block % BLOCK == BLOCK - 1 || block + 1 == self.task.blocks {
                self.note(dots, block / BLOCK * BLOCK, &strips);
            }
        }
    }
}

/// Adds the rows of a block, the first of which is `first`, whose bits are set in `above`.
#[inline(always)]
fn note(scores: &[f32; BLOCK], mut above: u16, place: &Place, first: Spot, noted: &mut Vec<Noted>) {
    while above != 0 {
        let row = above.trailing_zeros();
        noted.push((place.least_d2(scores[row as usize]), Spot { at: first.at + row, ..first }));
        above &= above - 1;
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
    type Output = Vec<Noted>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Noted> {
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
            let above = dots.above(&scores, limit) & searched;
            note(&scores, above, &narrow.place, Spot { shard, at: block * BLOCK as u32 }, &mut rows);
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
