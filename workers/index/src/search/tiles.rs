//! Many queries at once: a matrix product of 7-bit codes whose results are compared and forgotten where they arise.
//!
//! Threads take pieces of rows. Tiles of rows stay in the first cache while all queries pass over them; rows that
//! can be in an answer go to the canonical distance after every piece, and what that says of the K-th d² is shared. Pieces
//! are small at first, since the first bounds let everything through.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::best::{Best, Found, Rerank, merge};
use super::{Asked, Outcome};
use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::codes::query::Wide;
use crate::error::{Error, Result};
use crate::filter::RowSet;
use crate::kernels::{Dots, GROUP, GROUPS, Isa, QueryCodes, SEVEN_STEP, WIDE, Work};
use crate::shard::Shard;

/// Sets of rows of a tile: with three of them a tile of 300 dimensions has 22 KiB.
const SETS: usize = 3;
/// Rows that the kernel takes at once.
const SET_ROWS: usize = GROUP * GROUPS;
/// Rows of a tile.
const TILE_ROWS: usize = SETS * SET_ROWS;
/// Rows of the first and of the largest pieces.
const PIECES: (usize, usize) = (504, 8064);

/// What a search by tiles works on.
pub(super) struct Tiles<'a> {
    pub shards: &'a [&'a Shard],
    /// Codes of the shards.
    pub codes: &'a [&'a Codes],
    /// Rows that may pass before a query is left to the plain scan.
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
    /// Rows that passed, per query.
    passed: Vec<AtomicUsize>,
}

impl<'a> Tiles<'a> {
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
            passed: queries.iter().map(|_| AtomicUsize::new(0)).collect(),
        };
        let workers = rayon::current_num_threads().min(shared.pieces.len());
        let work = |_| self.work(queries, &prepared, &shared, cancel);
        let best: Vec<Vec<Best>> = match workers {
            0 | 1 => vec![work(0)?],
            _ => (0..workers).into_par_iter().with_max_len(1).map(work).collect::<Result<_>>()?,
        };
        let outcome = |query: usize| {
            if shared.passed[query].load(Relaxed) > self.guard {
                return Outcome::Plain(f64::from_bits(shared.bounds[query].load(Relaxed)));
            }
            let found = best.iter().map(|worker| worker[query].clone());
            Outcome::Found(merge(self.shards, found, queries[query].k))
        };
        Ok((0..queries.len()).map(outcome).collect())
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
    fn work(
        &self,
        queries: &[&Asked],
        prepared: &[Vec<Wide>],
        shared: &Shared,
        cancel: &Cancel,
    ) -> Result<Vec<Best<'a>>> {
        let mut best = vec![Best::default(); queries.len()];
        let mut found: Vec<Vec<Found>> = vec![Vec::new(); queries.len()];
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
            self.isa.run(Product { codes: self.codes[piece.shard], piece: *piece, lines: &lines, found: &mut found });
            for (q, found) in found.iter_mut().enumerate().filter(|(_, found)| !found.is_empty()) {
                let passed = shared.passed[q].fetch_add(found.len(), Relaxed) + found.len();
                // Which rows pass depends on the order of the threads, so the count is not exact; answers are.
                if passed <= self.guard {
                    self.settle(queries[q], found, &mut best[q], &shared.bounds[q]);
                }
                found.clear();
            }
        }
        Ok(best)
    }

    /// What the product needs of a query; nothing passes for one that is given up.
    fn line<'b>(&self, wide: &'b Wide, query: usize, shared: &Shared) -> Line<'b> {
        let bound = f64::from_bits(shared.bounds[query].load(Relaxed));
        let given_up = shared.passed[query].load(Relaxed) > self.guard;
        Line { wide, limit: if given_up { f32::INFINITY } else { wide.place.least_score(bound) }, within: None }
    }

    fn settle(&self, asked: &Asked, found: &mut Vec<Found>, best: &mut Best<'a>, shared: &AtomicU64) {
        let Asked { values: query, k, .. } = *asked;
        let bound = f64::from_bits(shared.load(Relaxed)).min(best.bound(k));
        let changed = self.isa.run(Rerank { shards: self.shards, query, k, bound, found, best });
        if let Some(worst) = changed {
            shared.fetch_min(worst.to_bits(), Relaxed);
        }
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

/// All rows of a piece with all queries; adds those that can be in an answer.
struct Product<'a> {
    codes: &'a Codes,
    piece: Piece,
    lines: &'a [Line<'a>],
    /// Per query.
    found: &'a mut [Vec<Found>],
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
        let set_bytes = tile.groups.len() / SETS;
        for (set, groups) in tile.groups.chunks_exact(set_bytes).enumerate() {
            let sums = dots.seven(groups, queries);
            for (group, sums) in sums.iter().enumerate() {
                let at = set * SET_ROWS + group * GROUP;
                for (query, sums) in sums.iter().enumerate().take(count) {
                    if self.some_pass(tile, at, quad + query, sums) {
                        self.add(tile, at, quad + query, sums, first);
                    }
                }
            }
        }
    }

    /// Whether a row of a group may be in a query's answer, by a looser and quicker bound.
    #[inline(always)]
    fn some_pass(&self, tile: &Tile, at: usize, query: usize, sums: &[i32; GROUP]) -> bool {
        let Line { wide, limit, .. } = self.lines[query];
        let (unit, norm, limit) = (wide.level.unit, wide.level.norm, limit - wide.level.eta());
        let part = |values: &[f32; TILE_ROWS]| -> [f32; GROUP] { values[at..at + GROUP].try_into().expect("a group") };
        let (scale, epsilon, half) = (part(&tile.scale), part(&tile.epsilon), part(&tile.half));
        let mut pass = false;
        for i in 0..GROUP {
            pass |= sums[i] as f32 * unit * scale[i] + epsilon[i] * norm - half[i] >= limit;
        }
        pass
    }

    /// Adds the rows of a group that may be in a query's answer.
    #[inline(always)]
    fn add(&mut self, tile: &Tile, at: usize, query: usize, sums: &[i32; GROUP], first: usize) {
        let Line { wide, limit, within } = self.lines[query];
        for (i, sum) in sums.iter().enumerate() {
            let row = at + i;
            let y = *sum as f32 * wide.level.unit * tile.scale[row];
            let score = y + wide.level.margin(y, tile.epsilon[row]) - tile.half[row];
            if score >= limit && score > f32::NEG_INFINITY {
                let (shard, row) = (self.piece.shard as u32, (first + row) as u32);
                if within.is_some_and(|set| !set.contains(row)) {
                    continue;
                }
                self.found[query].push(Found { least_d2: wide.place.least_d2(score), shard, row });
            }
        }
    }
}
