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
//! * Up to 16 queries ([`levels`]): 4-bit codes of all rows, 7-bit codes of those that pass, f32 of those
//!   that are left. 164 instead of 1,200 bytes of a 300-dimensional row are read.
//! * More queries ([`tiles`]): now arithmetic is what costs, so 7-bit codes go straight to f32.
//! * The plain scan: for shards without codes, for a K so large that most rows are needed, and for queries that more
//!   than 15 % of the rows pass (the guard). Until the guard gives up, a query has cost two readings of the 4-bit
//!   codes at most, 2/7 of the plain scan.

mod best;
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
use crate::kernels::Isa;
use crate::shard::Shard;
use levels::Levels;
use tiles::Tiles;

/// Most queries that go through the 4-bit level together.
const MAX_NARROW: usize = 16;
/// Most queries that go through the 7-bit level together: their codes stay in the second cache.
const MAX_WIDE: usize = 256;
/// Part of the rows, as a divisor, up to which K is small enough for codes to be of use.
const MANY: usize = 8;
/// Per cent of the rows that may pass before a query is left to the plain scan.
const GUARD: usize = 15;

/// The best `k` rows of all shards, in ranking order; all rows when there are fewer.
///
/// `query` (D) is finite. Fails with `Invalid` for another dimension or a shard given twice, and with
/// `Cancelled` soon after `cancel` is set. Runs on the current rayon pool: give a search its own with
/// `ThreadPool::install`, or it queues behind other work.
pub fn top_k(shards: &[&Shard], query: &[f32], k: usize, cancel: &Cancel) -> Result<Vec<Candidate>> {
    let mut answers = top_k_batch(shards, &[query], k, cancel)?;
    Ok(answers.pop().expect("one answer per query"))
}

/// [`top_k`] for each of several queries, which share the reading of the rows.
pub fn top_k_batch(shards: &[&Shard], queries: &[&[f32]], k: usize, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
    check(shards, queries)?;
    if k == 0 || shards.is_empty() {
        return Ok(vec![Vec::new(); queries.len()]);
    }
    let search = Search { shards, k, isa: Isa::best(), guard: GUARD };
    let ways = if queries.len() <= MAX_NARROW { Way::Levels } else { Way::Tiles };
    let answers = queries.chunks(MAX_WIDE).map(|queries| search.by(ways, queries, cancel));
    Ok(answers.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn check(shards: &[&Shard], queries: &[&[f32]]) -> Result<()> {
    let mut numbers: Vec<u32> = shards.iter().map(|shard| shard.number()).collect();
    numbers.sort_unstable();
    if let Some(pair) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::invalid(format!("shard {} is given twice", pair[0])));
    }
    for query in queries {
        if let Some(shard) = shards.iter().find(|shard| shard.dim() != query.len()) {
            let (number, dim, found) = (shard.number(), shard.dim(), query.len());
            return Err(Error::invalid(format!("the query has dimension {found}, shard {number} has {dim}")));
        }
        if !query.iter().all(|v| v.is_finite()) {
            return Err(Error::invalid("the query is not finite"));
        }
    }
    Ok(())
}

/// How queries are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
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

struct Search<'a> {
    shards: &'a [&'a Shard],
    k: usize,
    isa: Isa,
    /// Per cent of the rows that may pass.
    guard: usize,
}

impl Search<'_> {
    /// The answers to `queries`, the asked way as far as it goes.
    fn by(&self, way: Way, queries: &[&[f32]], cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
        let rows: usize = self.shards.iter().map(|shard| shard.rows()).sum();
        let filled: Vec<&Shard> = self.shards.iter().copied().filter(|shard| shard.rows() > 0).collect();
        let codes: Option<Vec<&Codes>> = filled.iter().map(|shard| shard.codes()).collect();
        let useful = codes.filter(|_| way != Way::Plain && self.k <= rows / MANY);
        let Some(codes) = useful else {
            return self.plain(queries, &vec![f64::INFINITY; queries.len()], cancel);
        };
        let (shards, k, isa, guard) = (filled.as_slice(), self.k, self.isa, rows * self.guard / 100);
        let outcomes = match way {
            Way::Tiles => Tiles { shards, codes, k, guard, isa }.search(queries, cancel)?,
            _ => Levels { shards, codes, k, guard, isa }.search(queries, cancel)?,
        };
        self.finish(queries, outcomes, cancel)
    }

    /// Answers by the plain scan what is left over.
    fn finish(&self, queries: &[&[f32]], outcomes: Vec<Outcome>, cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
        let mut answers = vec![Vec::new(); queries.len()];
        let mut left = Vec::new();
        for (at, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Outcome::Found(candidates) => answers[at] = candidates,
                Outcome::Plain(bound) => left.push((at, bound)),
            }
        }
        if left.is_empty() {
            return Ok(answers);
        }
        let (at, bounds): (Vec<usize>, Vec<f64>) = left.into_iter().unzip();
        let queries: Vec<&[f32]> = at.iter().map(|at| queries[*at]).collect();
        for (at, answer) in at.into_iter().zip(self.plain(&queries, &bounds, cancel)?) {
            answers[at] = answer;
        }
        Ok(answers)
    }

    fn plain(&self, queries: &[&[f32]], bounds: &[f64], cancel: &Cancel) -> Result<Vec<Vec<Candidate>>> {
        plain::scan(self.shards, queries, self.k, bounds, plain::BLOCK_ROWS, cancel)
    }
}
