//! Exact nearest neighbours, faster than the rows can be read.
//!
//! The answer is defined by the canonical d² (f64, one order of additions) and the order (d², item id). A scan over all
//! f32 rows ([`plain`]) gives it at the speed of memory. To be faster, less must be read: every row also has
//! codes of 4 and of 7 bits ([`crate::codes`]), from which bounds of its d² follow. Rows whose lower bound lies above an
//! upper bound of the K-th d² are left out; all others end in the canonical distance. So codes decide how long an answer
//! takes, never what it is.
//!
//! # The bound
//!
//! In a shard's frame let x be a row and q the query; d² = ‖q‖² − 2g with the *score* g = q·x − ‖x‖²/2. A level
//! stores codes c, and x = a·u + r with the unit vector u = c/‖c‖, a = x·u, so that r is orthogonal to u. Of the row
//! it keeps the scale s ≈ a/‖c‖, an ε ≥ ‖x − s·c‖ ≥ ‖r‖ and ‖x‖²/2. The query is q = σ·p + e with integers p. Then
//!
//! 1. q·x = a(q·u) + q·r, and y = s·σ·(p·c), an exact integer product times two factors, is a(q·u) but for
//!    e·(s·c), by Cauchy–Schwarz at most ‖e‖·H, H being the largest ‖s·c‖ of the shard.
//! 2. Only the part of q that is orthogonal to u meets r, so |q·r| ≤ ε·√(‖q‖² − (q·u)²), again Cauchy–Schwarz; and
//!    |q·u| ≥ (|y| − ‖e‖H) / H. The closer a row, the tighter its bound.
//! 3. So g lies within y − ‖x‖²/2 ± (η + ε·√(‖q‖² − w²)), η = ‖e‖H + slack, w = max(|y| − η, 0)/H.
//!
//! *Roundings.* s is rounded to f32: that adds a part of at most 2⁻²³‖x‖ along u. Bounds are computed in f32 with fewer
//! than 40 operations, each wrong by a factor of 1 ± 2⁻²⁴ of values of at most 4‖q‖X + X², X the largest ‖x‖.
//! The slack 10⁻⁵(‖q‖X + X²/2) is more than all of that; what stands under the root is rounded up by a factor
//! instead, because a root magnifies small differences. d² and the canonical distance are computed in f64 with at most
//! D/8 + 8 additions, each within 2⁻⁵³, and the frame's rotation is orthogonal to 10⁻¹³: 10⁻¹¹(‖q‖² + X²) covers
//! both. Where norms would leave the range in which this holds, codes are not used.
//!
//! *Ties.* A row is dropped only if its canonical d² is *strictly* above one that K rows are known not to
//! exceed. Rows that tie with the K-th are never dropped, whatever their ids.
//!
//! # Ways
//!
//! * Up to 87 queries, 16 at a time ([`levels`]): 4-bit codes of all rows, 7-bit codes of those that pass, f32 of those
//!   that are left. 164 instead of 1,200 bytes of a 300-dimensional row are read.
//! * More queries ([`tiles`]): now arithmetic is what costs, so 7-bit codes go straight to f32.
//! * Queries about some rows only ([`crate::RowSet`]): a set of at most a tenth of the rows is gone through row by row, from
//!   the 7-bit level on, so that the cost is about proportional to the set; larger sets are taken away from the scores
//!   of the other ways. Sets are exact, like everything here.
//! * The plain scan: for shards without codes, for a K so large that most rows are needed, and for queries that more
//!   than 15 % of the rows pass (the guard). Where a few of the blocks that are left say so, a query has cost hardly more than
//!   one reading of the 4-bit codes, 1/7 of the plain scan; where these are misleading, two at most.
//!
//! # Survivors
//!
//! [`survivors`] counts what each level lets through. Of 8,776 faces as our small model embeds them (300 dimensions, of which five hold 99 % of
//! the variance, so that all rows are close) 779 pass the 4-bit level at K = 10 and 127 the 7-bit level; 911 and 261 at
//! K = 100; 3 and 9 of 256 queries were left to the plain scan.

pub(crate) mod best;
mod first_pass;
mod levels;
mod plain;
mod tiles;

#[cfg(test)]
mod tests;

use likeness_contract::ranking::Candidate;

use crate::cancel::Cancel;
use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::filter::RowSet;
use crate::kernels::Isa;
use crate::shard::Shard;
use levels::Levels;
use tiles::Tiles;

/// Most queries that go through the 4-bit level together.
const MAX_NARROW: usize = 16;
/// Queries from which on the 7-bit level is ahead of the 4-bit level in sixteens: measured on 1,000,000 × 300.
const WIDE_FROM: usize = 88;
/// Most queries that go through the 7-bit level together: their codes stay in the second cache.
const MAX_WIDE: usize = 256;
/// Part of the searched rows, as a divisor, up to which K is small enough for codes to be of use.
const MANY: usize = 8;
/// Part of the rows, as a divisor, up to which the rows of a set are looked at one by one.
const FEW: usize = 10;
/// Per cent of the rows that may pass before a query is left to the plain scan.
const GUARD: usize = 15;

/// One of several queries that are answered together.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// (D), finite.
    pub vector: &'a [f32],
    /// Rows of the answer.
    pub k: usize,
    /// The rows that are searched: one set for each shard, in the shards' order. `None` is all of them.
    pub within: Option<&'a [&'a RowSet]>,
}

/// The best `k` rows of all shards, in ranking order; all rows when there are fewer.
///
/// `query` (D) is finite. Fails with `Invalid` for another dimension or a shard given twice, and with
/// `Cancelled` soon after `cancel` is set. Runs on the current rayon pool: give a search its own with
/// `ThreadPool::install`, or it queues behind other work.
pub fn top_k(shards: &[&Shard], query: &[f32], k: usize, cancel: &Cancel) -> Result<Vec<Candidate>> {
    let mut answers = top_k_batch(shards, &[Query { vector: query, k, within: None }], cancel)?;
    Ok(answers.pop().expect("one answer per query"))
}

/// [`top_k`] for each of several queries, each with a K and row sets of its own, which share the reading of the rows.
///
/// Each answer is what the query would get alone. Together they take less time than one after the other, from two queries
/// on: of 1,000,000 × 300 with K = 10 on one thread, a query alone takes 7.3 ms, of two 5.4 each, of four to sixteen 2.6, and of
/// 256 2.2. So there is nothing to gain by waiting for more than four. Queries about few rows are answered one after the other.
pub fn top_k_batch(shards: &[&Shard], queries: &[Query], cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
    check(shards, queries)?;
    let search = Search::new(shards, Isa::best(), GUARD);
    let asked: Vec<Asked> = queries.iter().map(|query| search.asked(query)).collect();
    search.answers(&asked, None, cancel)
}

/// Rows that the levels let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survivors {
    /// By the 4-bit level; `None` where the guard gave up.
    pub four: Option<usize>,
    /// By the 7-bit level: so many canonical distances are computed at most.
    pub seven: usize,
}

/// How many rows the levels let through for a query, to judge their widths on some data; `None` where a search does not use them.
pub fn survivors(shards: &[&Shard], query: &Query, cancel: &Cancel) -> Result<Option<Survivors>> {
    check(shards, std::slice::from_ref(query))?;
    let search = Search::new(shards, Isa::best(), GUARD);
    let asked = search.asked(query);
    let (Way::Levels, Some(codes)) = (search.way(&asked, 1), search.codes.as_deref()) else { return Ok(None) };
    let (shards, isa, guard) = (search.shards.as_slice(), search.isa, search.rows * search.guard / 100);
    Levels { shards, codes, guard, isa }.survivors(&asked, cancel)
}

pub(crate) fn check(shards: &[&Shard], queries: &[Query]) -> Result<()> {
    let mut numbers: Vec<u32> = shards.iter().map(|shard| shard.number()).collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(format!("shard {} is given twice", pair[0])));
    }
    for Query { vector, within, .. } in queries {
        if let Some(shard) = shards.iter().find(|shard| shard.dim() != vector.len()) {
            let (number, dim, found) = (shard.number(), shard.dim(), vector.len());
            return Err(Error::invalid(format!("the query has dimension {found}, shard {number} has {dim}")));
        }
        if !vector.iter().all(|v| v.is_finite()) {
            return Err(Error::invalid("the query is not finite"));
        }
        let fits = |sets: &&[&RowSet]| {
            sets.len() == shards.len() && sets.iter().zip(shards).all(|(set, shard)| set.rows() == shard.rows())
        };
        if within.as_ref().is_some_and(|sets| !fits(sets)) {
            return Err(Error::invalid("the row sets of a query are not those of the shards"));
        }
    }
    Ok(())
}

/// How queries are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Few,
    Levels,
    Tiles,
}

/// A query's answer, or why there is none.
#[derive(Debug)]
enum Outcome {
    Found(Vec<Candidate>),
    /// The plain scan is to answer, and starts with this bound of the K-th d².
    Plain(f64),
}

/// A query with what belongs to it, for the shards that have rows.
#[derive(Debug, Clone)]
struct Asked<'a> {
    values: &'a [f32],
    k: usize,
    /// One set for each shard, or all rows.
    within: Option<Vec<&'a RowSet>>,
    /// Rows that are searched.
    rows: usize,
}

impl Asked<'_> {
    /// The rows `first..first + 64` of a shard that are searched.
    #[inline(always)]
    fn bits(&self, shard: usize, first: usize) -> u64 {
        self.within.as_ref().map_or(u64::MAX, |sets| sets[shard].bits(first))
    }
}

struct Search<'a> {
    /// Those that have rows.
    shards: Vec<&'a Shard>,
    /// Their codes, if all have some.
    codes: Option<Vec<&'a Codes>>,
    /// Positions of these shards among those given.
    places: Vec<usize>,
    rows: usize,
    isa: Isa,
    /// Per cent of the rows that may pass.
    guard: usize,
}

impl<'a> Search<'a> {
    fn new(shards: &[&'a Shard], isa: Isa, guard: usize) -> Self {
        let places: Vec<usize> = (0..shards.len()).filter(|at| shards[*at].rows() > 0).collect();
        let shards: Vec<&Shard> = places.iter().map(|at| shards[*at]).collect();
        let codes = shards.iter().map(|shard| shard.codes()).collect();
        let rows = shards.iter().map(|shard| shard.rows()).sum();
        Self { shards, codes, places, rows, isa, guard }
    }

    fn asked<'q>(&self, query: &Query<'q>) -> Asked<'q> {
        let Query { vector: values, k, within } = *query;
        let within: Option<Vec<&RowSet>> = within.map(|sets| self.places.iter().map(|at| sets[*at]).collect());
        let rows = within.as_ref().map_or(self.rows, |sets| sets.iter().map(|set| set.count()).sum());
        // Sets of everything need no look.
        let within = within.filter(|_| rows < self.rows);
        Asked { values, k, within, rows }
    }

    /// The way that suits a query of so many.
    fn way(&self, asked: &Asked, queries: usize) -> Way {
        if self.codes.is_none() || asked.k > asked.rows / MANY {
            Way::Plain
        } else if asked.rows <= self.rows / FEW {
            Way::Few
        } else if queries < WIDE_FROM {
            Way::Levels
        } else {
            Way::Tiles
        }
    }

    /// All answers; by the ways that suit, or by `forced` as far as that goes.
    fn answers(&self, asked: &[Asked], forced: Option<Way>, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
        let mut outcomes: Vec<Outcome> = asked.iter().map(|_| Outcome::Found(Vec::new())).collect();
        let mut by_way: [(Way, Vec<usize>); 4] =
            [Way::Plain, Way::Few, Way::Levels, Way::Tiles].map(|way| (way, Vec::new()));
        let some = |query: &&usize| asked[**query].k > 0 && asked[**query].rows > 0;
        let numbers: Vec<usize> = (0..asked.len()).collect();
        let scanned = numbers.iter().filter(some).filter(|query| self.way(&asked[**query], 0) == Way::Levels).count();
        for query in numbers.iter().filter(some) {
            let way = match forced {
                Some(way) if self.codes.is_some() => way,
                _ => self.way(&asked[*query], scanned),
            };
            by_way.iter_mut().find(|(each, _)| *each == way).expect("every way").1.push(*query);
        }
        for (way, queries) in by_way {
            let together = if way == Way::Levels { MAX_NARROW } else { MAX_WIDE };
            for queries in queries.chunks(together) {
                let chosen: Vec<&Asked> = queries.iter().map(|query| &asked[*query]).collect();
                for (query, outcome) in queries.iter().zip(self.by(way, &chosen, cancel)?) {
                    outcomes[*query] = outcome;
                }
            }
        }
        self.finish(asked, outcomes, cancel)
    }

    fn by(&self, way: Way, asked: &[&Asked], cancel: &Cancel) -> Result<Vec<Outcome>> {
        let Some(codes) = self.codes.as_deref().filter(|_| way != Way::Plain) else {
            return Ok(asked.iter().map(|_| Outcome::Plain(f64::INFINITY)).collect());
        };
        let (shards, isa, guard) = (self.shards.as_slice(), self.isa, self.rows * self.guard / 100);
        match way {
            Way::Tiles => Tiles { shards, codes, guard, isa }.search(asked, cancel),
            Way::Few => asked.iter().map(|asked| Levels { shards, codes, guard, isa }.few(asked, cancel)).collect(),
            _ => Levels { shards, codes, guard, isa }.search(asked, cancel),
        }
    }

    /// Answers by the plain scan what is left over.
    fn finish(&self, asked: &[Asked], outcomes: Vec<Outcome>, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
        let mut answers = vec![Vec::new(); asked.len()];
        let mut left = Vec::new();
        for (at, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Outcome::Found(candidates) => answers[at] = candidates,
                Outcome::Plain(bound) => left.push((at, bound)),
            }
        }
        for left in left.chunks(MAX_WIDE) {
            let queries: Vec<(&Asked, f64)> = left.iter().map(|(at, bound)| (&asked[*at], *bound)).collect();
            let found = plain::scan(&self.shards, &queries, plain::BLOCK_ROWS, cancel)?;
            for ((at, _), answer) in left.iter().zip(found) {
                answers[*at] = answer;
            }
        }
        Ok(answers)
    }
}
