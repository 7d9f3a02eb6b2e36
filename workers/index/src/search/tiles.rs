//! Many queries at once: a matrix product of 7-bit codes whose results are compared and forgotten where they arise.
//!
//! Threads take pieces of rows. Tiles of rows stay in the first cache while all queries pass over them. Of rows that can
//! be in an answer both bounds of d² are kept; the K-th of the upper ones bounds all later rows, and threads share it. Only
//! what is left at the end goes to the canonical distance: rows lie anywhere in memory, and with a large K
//! several times as many pass on the way as stay. Pieces are small at first, since the first bounds let everything through.

use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::best::{Bounded, Found, answer};
use super::{Asked, Outcome};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::Wide;
use crate::error::{Error, Result};
use crate::filter::RowSet;
use crate::kernels::{Dots, GROUP, GROUPS, Isa, QueryCodes, SET_ROWS, SEVEN_STEP, SetRows, Test, WIDE, Work};
use crate::shard::Shard;

/// Sets of rows of a tile: with three of them a tile of 300 dimensions has 22 KiB.
const SETS: usize = 3;
/// Rows of a tile.
const TILE_ROWS: usize = SETS * SET_ROWS;
/// Rows of the first and of the largest pieces.
const PIECES: (usize, usize) = (504, 8064);

/// How many times K rows a thread keeps of a query before it forgets.
const FORGET: usize = 4;

/// What a search by tiles works on.
pub(super) struct Tiles<'a> {
    pub shards: &'a [&'a Shard],
    /// Codes of the shards.
    pub codes: &'a [&'a Codes],
    /// Rows that may be looked at one by one before a query is left to the plain scan.
    pub guard: usize,
    pub isa: Isa,
}

/// Rows of one shard that are taken at once.
#[derive(Debug, Clone, Copy)]
struct Piece {
    shard: usize,
    first: usize,
    rows: usize,
}

/// What the threads know together.
struct Shared {
    pieces: Vec<Piece>,
    next: AtomicUsize,
    /// Bits of an upper bound of each K-th d².
    bounds: Vec<AtomicU64>,
    /// Rows that were looked at one by one, per query.
    looked: Vec<AtomicUsize>,
}

/// What a thread keeps of one query's rows.
#[derive(Debug, Default)]
struct Kept {
    found: Vec<Bounded>,
    /// How many of `found` are in `most`.
    seen: usize,
    /// Rows that were looked at one by one since the last piece.
    looked: usize,
    /// Bits of the K least upper bounds of d²; bits of numbers from 0 on are ordered as the numbers are.
    most: BinaryHeap<u64>,
}

impl Kept {
    /// Looks at what is new; tells an upper bound of the K-th d², if there are K.
    fn bound(&mut self, k: usize) -> Option<u64> {
        for bounded in &self.found[self.seen..] {
            let most = bounded.most_d2.max(0.0).to_bits();
            if self.most.len() < k {
                self.most.push(most);
            } else if let Some(mut worst) = self.most.peek_mut().filter(|worst| **worst > most) {
                *worst = most;
            }
        }
        self.seen = self.found.len();
        (self.most.len() == k).then(|| *self.most.peek().expect("K is not 0"))
    }

    /// Forgets rows that are beyond `bound`, as soon as they may be most of them.
    fn forget(&mut self, k: usize, bound: f64) {
        if self.found.len() > FORGET * k.max(SET_ROWS) {
            self.found.retain(|bounded| bounded.found.least_d2 <= bound);
            self.seen = self.found.len();
        }
    }
}

impl Tiles<'_> {
    /// The answers to `queries`.
    pub fn search(&self, queries: &[&Asked], cancel: &Cancel) -> Result<Vec<Outcome>> {
        let prepare = |asked: &&Asked| self.codes.iter().map(|codes| Wide::new(codes, asked.values)).collect();
        let prepared: Option<Vec<Vec<Wide>>> = queries.par_iter().map(prepare).collect();
        let Some(prepared) = prepared else {
            return Ok(queries.iter().map(|_| Outcome::Plain(f64::INFINITY)).collect());
        };
        let shared = Shared {
            pieces: self.pieces(),
            next: AtomicUsize::new(0),
            bounds: queries.iter().map(|_| AtomicU64::new(f64::INFINITY.to_bits())).collect(),
            looked: queries.iter().map(|_| AtomicUsize::new(0)).collect(),
        };
        let workers = rayon::current_num_threads().min(shared.pieces.len());
        let work = |_| self.work(queries, &prepared, &shared, cancel);
        let kept: Vec<Vec<Kept>> = match workers {
            0 | 1 => vec![work(0)?],
            _ => (0..workers).into_par_iter().with_max_len(1).map(work).collect::<Result<_>>()?,
        };
        let outcome = |query: usize| {
            let bound = f64::from_bits(shared.bounds[query].load(Relaxed));
            if shared.looked[query].load(Relaxed) > self.guard {
                return Outcome::Plain(bound);
            }
            let found = kept.iter().flat_map(|worker| &worker[query].found).copied().collect();
            Outcome::Found(answer(self.shards, self.isa, queries[query], found, bound))
        };
        Ok((0..queries.len()).into_par_iter().map(outcome).collect())
    }

    fn pieces(&self) -> Vec<Piece> {
        let (mut size, largest) = PIECES;
        let mut pieces = Vec::new();
        for (shard, held) in self.shards.iter().enumerate() {
            let mut first = 0;
            while first < held.rows() {
                let rows = size.min(held.rows() - first);
                pieces.push(Piece { shard, first, rows });
                first += rows;
                size = largest.min(size * 2);
            }
        }
        pieces
    }

    /// Takes pieces until none is left.
    fn work(&self, queries: &[&Asked], prepared: &[Vec<Wide>], shared: &Shared, cancel: &Cancel) -> Result<Vec<Kept>> {
        let mut kept: Vec<Kept> = queries.iter().map(|_| Kept::default()).collect();
        while let Some(piece) = shared.pieces.get(shared.next.fetch_add(1, Relaxed)) {
            if cancel.is_cancelled() {
                return Err(Error::cancelled());
            }
            let lines: Vec<Line> = (0..queries.len())
                .map(|q| Line {
                    within: queries[q].within.as_ref().map(|sets| sets[piece.shard]),
                    ..self.line(&prepared[q][piece.shard], q, shared)
                })
                .collect();
            self.isa.run(Product { codes: self.codes[piece.shard], piece: *piece, lines: &lines, kept: &mut kept });
            for (q, kept) in kept.iter_mut().enumerate().filter(|(_, kept)| kept.looked > 0) {
                self.learn(queries[q].k, kept, &shared.bounds[q], &shared.looked[q]);
            }
        }
        Ok(kept)
    }

    /// Takes what a piece said about a query into the bounds.
    fn learn(&self, k: usize, kept: &mut Kept, shared: &AtomicU64, looked: &AtomicUsize) {
        let new = std::mem::take(&mut kept.looked);
        // Which rows pass depends on the order of the threads, so the count is not exact; answers are.
        if looked.fetch_add(new, Relaxed) + new > self.guard {
            *kept = Kept::default();
            return;
        }
        if let Some(bound) = kept.bound(k) {
            let before = shared.fetch_min(bound, Relaxed);
            kept.forget(k, f64::from_bits(before.min(bound)));
        }
    }

    /// What the product needs of a query; nothing passes for one that is given up.
    fn line<'b>(&self, wide: &'b Wide, query: usize, shared: &Shared) -> Line<'b> {
        let bound = f64::from_bits(shared.bounds[query].load(Relaxed));
        let given_up = shared.looked[query].load(Relaxed) > self.guard;
        // Above −∞, which rows that are none have.
        let limit = if given_up { f32::INFINITY } else { wide.place.least_score(bound).max(f32::MIN) };
        Line { wide, limit, within: None }
    }
}

/// A query in a product with the rows of a shard.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    wide: &'a Wide,
    /// Scores below it are of no interest.
    limit: f32,
    /// The rows that are searched, if not all.
    within: Option<&'a RowSet>,
}

impl Line<'_> {
    /// A looser and quicker bound than that which decides.
    fn test(&self) -> Test {
        let level = &self.wide.level;
        Test { unit: level.unit, norm: level.norm, limit: self.limit - level.eta() }
    }
}

/// All rows of a piece with all queries; adds those that can be in an answer.
struct Product<'a> {
    codes: &'a Codes,
    piece: Piece,
    lines: &'a [Line<'a>],
    /// Per query.
    kept: &'a mut [Kept],
}

/// Rows of a tile: codes as the kernel takes them, and what belongs to the rows.
struct Tile {
    groups: Vec<u8>,
    scale: [f32; TILE_ROWS],
    epsilon: [f32; TILE_ROWS],
    half: [f32; TILE_ROWS],
}

impl Tile {
    fn new(steps: usize) -> Self {
        let groups = vec![0; SETS * GROUPS * steps * SEVEN_STEP * GROUP];
        Self { groups, scale: [0.0; TILE_ROWS], epsilon: [0.0; TILE_ROWS], half: [f32::INFINITY; TILE_ROWS] }
    }

    /// Reads `rows` rows; those after them have a score of −∞.
    #[inline(always)]
    fn fill(&mut self, codes: &Codes, first: usize, rows: usize) {
        let seven = codes.seven();
        let bytes = seven.steps() * SEVEN_STEP * GROUP;
        for (number, group) in self.groups.chunks_exact_mut(bytes).enumerate() {
            let start = (number * GROUP).min(rows);
            seven.group(first + start, GROUP.min(rows - start), group);
        }
        for row in 0..rows {
            let (_, scale, epsilon, half) = seven.parts(first + row);
            (self.scale[row], self.epsilon[row], self.half[row]) = (scale, epsilon, half);
        }
        self.half[rows..].fill(f32::INFINITY);
    }

    /// What belongs to the rows of a set.
    #[inline(always)]
    fn set(&self, set: usize) -> SetRows<'_> {
        let [scale, epsilon, half] = [&self.scale, &self.epsilon, &self.half]
            .map(|values| values[set * SET_ROWS..][..SET_ROWS].try_into().expect("a set"));
        SetRows { scale, epsilon, half }
    }

    /// Scales, residual norms and halves of the squared norms of the group of rows from `at`.
    #[inline(always)]
    fn rows(&self, at: usize) -> [[f32; GROUP]; 3] {
        [&self.scale, &self.epsilon, &self.half].map(|values| values[at..at + GROUP].try_into().expect("a group"))
    }
}

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(mut self, dots: D) {
        let mut tile = Tile::new(self.codes.seven().steps());
        let end = self.piece.first + self.piece.rows;
        for first in (self.piece.first..end).step_by(TILE_ROWS) {
            tile.fill(self.codes, first, TILE_ROWS.min(end - first));
            for quad in (0..self.lines.len()).step_by(WIDE) {
                self.quad(dots, &tile, first, quad);
            }
        }
    }
}

impl Product<'_> {
    /// All rows of a tile with the four queries from `quad`.
    #[inline(always)]
    fn quad<D: Dots>(&mut self, dots: D, tile: &Tile, first: usize, quad: usize) {
        let count = WIDE.min(self.lines.len() - quad);
        let mut queries: [&QueryCodes; WIDE] = [&self.lines[quad].wide.codes; WIDE];
        for (query, line) in queries.iter_mut().zip(&self.lines[quad..]) {
            *query = &line.wide.codes;
        }
        let tests = std::array::from_fn(|i| self.lines[quad + i.min(count - 1)].test());
        let set_bytes = tile.groups.len() / SETS;
        for (set, groups) in tile.groups.chunks_exact(set_bytes).enumerate() {
            let found = dots.seven_tested(groups, queries, &tests, tile.set(set));
            if found.pass == 0 {
                continue;
            }
            for query in (0..count).filter(|query| found.pass >> query & 1 == 1) {
                for (group, sums) in found.sums.iter().enumerate() {
                    self.add(dots, tile, set * SET_ROWS + group * GROUP, quad + query, &sums[query], first);
                }
            }
        }
    }

    /// Adds the rows of a group that may be in a query's answer. Those that pass with the query's codes of 8 bits, whose
    /// rounding is half of the margin, are looked at again with codes of 16, while the first cache has them.
    #[inline(always)]
    fn add<D: Dots>(&mut self, dots: D, tile: &Tile, at: usize, query: usize, sums: &[i32; GROUP], first: usize) {
        let Line { wide, limit, within } = self.lines[query];
        let [scale, epsilon, half] = tile.rows(at);
        let mut scores = [0f32; GROUP];
        for i in 0..GROUP {
            let y = sums[i] as f32 * wide.level.unit * scale[i];
            scores[i] = y + wide.level.margin(y, epsilon[i]) - half[i];
        }
        let mut pass = dots.reaching(&scores, limit);
        self.kept[query].looked += pass.count_ones() as usize;
        while pass != 0 {
            let row = first + at + pass.trailing_zeros() as usize;
            pass &= pass - 1;
            let (most, least) = wide.row.scores(dots, self.codes.seven(), row);
            let (shard, row) = (self.piece.shard as u32, row as u32);
            if most >= limit && within.is_none_or(|set| set.contains(row)) {
                let found = Found { least_d2: wide.place.least_d2(most), shard, row };
                self.kept[query].found.push(Bounded { found, most_d2: wide.place.most_d2(least) });
            }
        }
    }
}
