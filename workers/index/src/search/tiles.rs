//! Many queries at once: a matrix product of 7-bit codes whose results are compared and forgotten where they arise.
//!
//! Threads take pieces of rows. Tiles of rows stay in the first cache while all queries pass over them; the kernel only
//! tells which rows pass a quick test, without a branch, and at the end of a piece those rows are looked at one by one, query by
//! query. Of rows that can be in an answer both bounds of d² are kept; the K-th of the upper ones bounds all later rows, and
//! threads share it. Only what is left at the end goes to the canonical distance: rows lie anywhere in memory, and with
//! a large K several times as many pass on the way as stay. Pieces are small at first, since the first bounds let much through.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::best::{Bounded, Found, answer};
use super::{Asked, Outcome};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::{Level, ROWS, Wide};
use crate::error::{Error, Result};
use crate::filter::RowSet;
use crate::kernels::{Dots, GROUP, GROUPS, Isa, QueryCodes, SET_ROWS, SEVEN_STEP, SetRows, Test, WIDE, Work};
use crate::shard::Shard;

/// Sets of rows of a tile: with three of them a tile of 300 dimensions has 22 KiB.
const SETS: usize = 3;
/// Rows of a tile.
const TILE_ROWS: usize = SETS * SET_ROWS;
/// Rows of the largest pieces.
const PIECE_ROWS: usize = 56 * TILE_ROWS;
/// A piece has so many rows as all before it, divided by this: while the bound is that of a few rows, a piece lets through about
/// K/2 more.
const GROWTH: usize = 2;

/// How many times K rows a thread keeps of a query before it forgets.
const FORGET: usize = 4;
/// Fours of queries of which it is asked together whether any row passed.
const TOGETHER: usize = 4;
/// Part of K, as a divisor, of new rows from which on a thread looks for a new bound.
const NEWS: usize = 4;

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
    /// Rows of the piece that passed the quick test.
    passed: Vec<u32>,
    /// Rows that were looked at one by one since the last piece.
    looked: usize,
    /// The K least upper bounds of d², and new ones that are below the K-th.
    most: Vec<f64>,
    /// The K-th of them when it was last looked for.
    worst: Option<f64>,
}

impl Kept {
    /// Looks at what was found since it last did; tells an upper bound of the K-th d² when enough is new and there are K rows.
    fn bound(&mut self, k: usize) -> Option<f64> {
        let worst = self.worst.unwrap_or(f64::INFINITY);
        let new = self.found[self.seen..].iter().map(|bounded| bounded.most_d2.max(0.0));
        self.most.extend(new.filter(|most| *most < worst));
        self.seen = self.found.len();
        let enough = if self.worst.is_some() { k + (k / NEWS).max(1) } else { k };
        if self.most.len() < enough {
            return None;
        }
        self.worst = Some(*self.most.select_nth_unstable_by(k - 1, f64::total_cmp).1);
        self.most.truncate(k);
        self.worst
    }

    /// Forgets rows that are beyond `bound`, as soon as they may be most of them.
    fn forget(&mut self, k: usize, bound: f64) {
        if self.found.len() > FORGET * k.max(SET_ROWS) {
            let seen = self.found[..self.seen].iter().filter(|bounded| bounded.found.least_d2 <= bound).count();
            self.found.retain(|bounded| bounded.found.least_d2 <= bound);
            self.seen = seen;
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
            pieces: self.pieces(queries.iter().map(|asked| asked.k).max().unwrap_or(1)),
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

    /// Small ones at first; the first of them need not have more than a few times K rows.
    fn pieces(&self, largest_k: usize) -> Vec<Piece> {
        let mut before = GROWTH * (2 * largest_k).next_multiple_of(TILE_ROWS);
        let mut pieces = Vec::new();
        for (shard, held) in self.shards.iter().enumerate() {
            let mut first = 0;
            while first < held.rows() {
                let size = (before / GROWTH).next_multiple_of(TILE_ROWS).min(PIECE_ROWS);
                let rows = size.min(held.rows() - first);
                pieces.push(Piece { shard, first, rows });
                first += rows;
                before += rows;
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
            // Bits of numbers from 0 on are ordered as the numbers are.
            let before = f64::from_bits(shared.fetch_min(bound.to_bits(), Relaxed));
            kept.forget(k, before.min(bound));
        }
    }

    /// What the product needs of a query; nothing passes for one that is given up.
    fn line<'b>(&self, wide: &'b Wide, query: usize, shared: &Shared) -> Line<'b> {
        let bound = f64::from_bits(shared.bounds[query].load(Relaxed));
        let given_up = shared.looked[query].load(Relaxed) > self.guard;
        // Above −∞, which rows that are none have.
        let limit = if given_up { f32::INFINITY } else { wide.place.least_score(bound).max(f32::MIN) };
        let Level { unit, norm, .. } = wide.level;
        let inverse = 1.0 / unit;
        // A looser and quicker bound than that which decides: without the root. Its roundings are in the slack, a part of η.
        let test = Test { norm: norm * inverse, inverse, limit: ((limit - wide.level.eta()) * inverse).max(f32::MIN) };
        Line { wide, limit, test, within: None }
    }
}

/// A query in a product with the rows of a shard.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    wide: &'a Wide,
    /// Scores below it are of no interest.
    limit: f32,
    test: Test,
    /// The rows that are searched, if not all.
    within: Option<&'a RowSet>,
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
    /// Rows that pass, (set × queries in fours).
    passing: Vec<[u32; WIDE]>,
}

impl Tile {
    fn new(steps: usize, queries: usize) -> Self {
        Self {
            groups: vec![0; SETS * GROUPS * steps * SEVEN_STEP * GROUP],
            scale: [0.0; TILE_ROWS],
            epsilon: [0.0; TILE_ROWS],
            half: [f32::INFINITY; TILE_ROWS],
            passing: vec![[0; WIDE]; SETS * queries.div_ceil(WIDE)],
        }
    }

    /// Reads `rows` rows; those after them have a score of −∞.
    #[inline(always)]
    fn fill<D: Dots>(&mut self, dots: D, codes: &Codes, first: usize, rows: usize) {
        let seven = codes.seven();
        let bytes = seven.steps() * SEVEN_STEP * GROUP;
        for (number, group) in self.groups.chunks_exact_mut(bytes).enumerate() {
            let start = (number * GROUP).min(rows);
            seven.group(dots, first + start, GROUP.min(rows - start), group);
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
}

impl Work for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(mut self, dots: D) {
        let mut tile = Tile::new(self.codes.seven().steps(), self.lines.len());
        let end = self.piece.first + self.piece.rows;
        for first in (self.piece.first..end).step_by(TILE_ROWS) {
            tile.fill(dots, self.codes, first, TILE_ROWS.min(end - first));
            let next = self.codes.seven().rows(end.min(first + TILE_ROWS)..end.min(first + 2 * TILE_ROWS));
            let mut next = next.chunks(next.len().div_ceil(self.lines.len().div_ceil(WIDE)).max(1));
            for quad in 0..self.lines.len().div_ceil(WIDE) {
                dots.prefetch(next.next().unwrap_or_default());
                self.quad(dots, &mut tile, quad);
            }
            self.collect(&tile, first);
        }
        self.look(dots);
    }
}

impl Product<'_> {
    /// All rows of a tile with a quad of four queries: which of them pass.
    #[inline(always)]
    fn quad<D: Dots>(&self, dots: D, tile: &mut Tile, quad: usize) {
        let lines = &self.lines[quad * WIDE..self.lines.len().min((quad + 1) * WIDE)];
        // The last one stands in for those that there are not.
        let line = |i: usize| &lines[i.min(lines.len() - 1)];
        let queries: [&QueryCodes; WIDE] = std::array::from_fn(|i| &line(i).wide.codes);
        let tests = std::array::from_fn(|i| line(i).test);
        let (set_bytes, quads) = (tile.groups.len() / SETS, tile.passing.len() / SETS);
        for set in 0..SETS {
            let groups = &tile.groups[set * set_bytes..][..set_bytes];
            tile.passing[set * quads + quad] = dots.seven_passing(groups, queries, &tests, tile.set(set));
        }
    }

    /// Adds the rows of a tile that passed to those of each query.
    #[inline(always)]
    fn collect(&mut self, tile: &Tile, first: usize) {
        for (set, quads) in tile.passing.chunks_exact(tile.passing.len() / SETS).enumerate() {
            let first = (first + set * SET_ROWS) as u32;
            for (part, some) in quads.chunks(TOGETHER).enumerate() {
                if some.as_flattened().iter().fold(0, |any, rows| any | rows) == 0 {
                    continue;
                }
                for (kept, rows) in self.kept[part * TOGETHER * WIDE..].iter_mut().zip(some.as_flattened()) {
                    let mut rows = *rows;
                    while rows != 0 {
                        kept.passed.push(first + rows.trailing_zeros());
                        rows &= rows - 1;
                    }
                }
            }
        }
    }

    /// Finds those of the passing rows that may be in a query's answer. They passed with the query's codes of 8 bits, whose
    /// rounding is half of the margin; now they are compared with its codes of 16.
    #[inline(always)]
    fn look<D: Dots>(&mut self, dots: D) {
        for (Line { wide, limit, within, .. }, kept) in self.lines.iter().zip(&mut *self.kept) {
            kept.looked += kept.passed.len();
            for (part, rows) in kept.passed.chunks(ROWS).enumerate() {
                for next in kept.passed.iter().skip((part + 1) * ROWS).take(ROWS) {
                    dots.prefetch(self.codes.seven().row(*next as usize));
                }
                let [most, least] = wide.row.scores(dots, self.codes.seven(), rows);
                for (i, row) in rows.iter().enumerate() {
                    if most[i] >= *limit && within.is_none_or(|set| set.contains(*row)) {
                        let (least_d2, shard) = (wide.place.least_d2(most[i]), self.piece.shard as u32);
                        let found = Found { least_d2, shard, row: *row };
                        kept.found.push(Bounded { found, most_d2: wide.place.most_d2(least[i]) });
                    }
                }
            }
            kept.passed.clear();
        }
    }
}
