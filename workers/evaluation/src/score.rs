//! Ranks the gallery for many queries at once, streaming it block by block.
//!
//! Three passes, whatever the size of the gallery: the *census* counts the relevant and judged items of every
//! query and fixes the order of ids; then, for as many queries at a time as fit [`BUDGET_BYTES`], one pass
//! keeps the distances of the *relevant* items, sorted, and one *counts* how many other judged items rank
//! between them. Those counts are the ranks of all relevant items, and the ranks are all that a metric needs.
//!
//! Memory: the budget, 4 bytes per item (its place in the order of ids, which decides ties), the ids
//! themselves until the census is over, and one block. Distances are `canonical_d2`, ties go by item id.
//! Every query is ranked by itself in the order of blocks, so threads cannot change an answer.

use std::ops::Range;

use likeness_contract::ranking::canonical_d2;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gallery::{Block, Judgement, judge};
use crate::metrics::{average_precision, chance, precision_at};
use crate::queries::Query;
use crate::scores::QueryScore;

/// Bytes of distances that are held at once.
pub const BUDGET_BYTES: usize = 256 << 20;
/// Rows of a block that all queries look at before the next: about 1 MiB of embeddings, so that they stay in
/// the cache.
const TILE_ROWS: usize = 1024;

/// How far the scoring is, in blocks read out of blocks to read.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Ranks the gallery for every query (with its unit embedding of dimension D) and returns the scores in the
/// order of the queries.
///
/// `load(i)` gives block `i` of `blocks`; it is called for every block in order, in each pass, and its error
/// ends the scoring: that is how a caller cancels. Fails as invalid when a query has no relevant item or its
/// embedding is not a finite vector of the gallery's dimension, as corrupt on a duplicate item id.
pub fn score<B: Block, E: From<Error>>(
    queries: &[(Query, Vec<f32>)],
    blocks: usize,
    load: impl FnMut(usize) -> std::result::Result<B, E>,
    progress: Progress<'_>,
) -> std::result::Result<Vec<QueryScore>, E> {
    score_within(BUDGET_BYTES, queries, blocks, load, progress)
}

/// [`score`] with another budget.
pub fn score_within<B: Block, E: From<Error>>(
    budget_bytes: usize,
    queries: &[(Query, Vec<f32>)],
    blocks: usize,
    mut load: impl FnMut(usize) -> std::result::Result<B, E>,
    progress: Progress<'_>,
) -> std::result::Result<Vec<QueryScore>, E> {
    let mut passes = Passes { blocks, done: 0, of: 3 * blocks as u64, progress };
    let mut census = Census::new(queries);
    passes.run(&mut load, |block| census.add(queries, block))?;
    let census = census.finish(queries)?;
    let batches = census.batches(budget_bytes);
    passes.of = (1 + 2 * batches.len() as u64) * blocks as u64;

    let mut scores = Vec::with_capacity(queries.len());
    for batch in batches {
        let mut rankings: Vec<Ranking<'_>> =
            queries[batch].iter().map(|(query, embedding)| Ranking::new(query, embedding)).collect();
        passes.rank(&mut load, &mut rankings, &census.order, Ranking::keep)?;
        rankings.par_iter_mut().for_each(Ranking::sort);
        passes.rank(&mut load, &mut rankings, &census.order, Ranking::count)?;
        scores.extend(rankings.into_iter().map(Ranking::finish));
    }
    Ok(scores)
}

struct Passes<'a> {
    blocks: usize,
    done: u64,
    of: u64,
    progress: Progress<'a>,
}

impl Passes<'_> {
    fn run<B: Block, E: From<Error>>(
        &mut self,
        load: &mut impl FnMut(usize) -> std::result::Result<B, E>,
        mut visit: impl FnMut(&B) -> Result<()>,
    ) -> std::result::Result<(), E> {
        for number in 0..self.blocks {
            visit(&load(number)?)?;
            self.done += 1;
            (self.progress)(self.done, self.of);
        }
        Ok(())
    }

    /// A pass in which every ranking looks at every row, tile by tile; `order` is that of all items.
    fn rank<'q, B: Block, E: From<Error>>(
        &mut self,
        load: &mut impl FnMut(usize) -> std::result::Result<B, E>,
        rankings: &mut [Ranking<'q>],
        order: &[u32],
        look: fn(&mut Ranking<'q>, &B, Range<usize>, &[u32]),
    ) -> std::result::Result<(), E> {
        let mut first = 0;
        self.run(load, |block| {
            let order = &order[first..];
            for tile in (0..block.rows()).step_by(TILE_ROWS) {
                let rows = tile..block.rows().min(tile + TILE_ROWS);
                rankings.par_iter_mut().for_each(|ranking| look(ranking, block, rows.clone(), order));
            }
            first += block.rows();
            Ok(())
        })
    }
}

/// The first pass.
struct Census {
    ids: String,
    ends: Vec<usize>,
    counts: Vec<(u64, u64)>,
}

impl Census {
    fn new(queries: &[(Query, Vec<f32>)]) -> Self {
        Self { ids: String::new(), ends: Vec::new(), counts: vec![(0, 0); queries.len()] }
    }

    fn add(&mut self, queries: &[(Query, Vec<f32>)], block: &impl Block) -> Result<()> {
        for (query, embedding) in queries {
            check_query(query, embedding, block)?;
        }
        for row in 0..block.rows() {
            self.ids.push_str(block.item(row));
            self.ends.push(self.ids.len());
        }
        self.counts.par_iter_mut().zip(queries).for_each(|((relevant, judged), (query, _))| {
            for row in 0..block.rows() {
                let judgement = judge(&query.terms, block.labels(row));
                *judged += u64::from(judgement != Judgement::Unjudged);
                *relevant += u64::from(judgement == Judgement::Relevant);
            }
        });
        Ok(())
    }

    fn id(&self, item: usize) -> &str {
        let start = if item == 0 { 0 } else { self.ends[item - 1] };
        &self.ids[start..self.ends[item]]
    }

    fn finish(self, queries: &[(Query, Vec<f32>)]) -> Result<Counted> {
        let lost = self.counts.iter().zip(queries).find(|((relevant, _), _)| *relevant == 0);
        if let Some((_, (query, _))) = lost {
            return Err(Error::invalid(format!("no item of the gallery is relevant to `{}`", query.text)));
        }
        let items = u32::try_from(self.ends.len())
            .map_err(|_| Error::invalid(format!("{} items are too many for one evaluation", self.ends.len())))?;
        let mut by_id: Vec<u32> = (0..items).collect();
        by_id.par_sort_unstable_by(|&a, &b| self.id(a as usize).as_bytes().cmp(self.id(b as usize).as_bytes()));
        if let Some(twice) = by_id.windows(2).find(|pair| self.id(pair[0] as usize) == self.id(pair[1] as usize)) {
            return Err(Error::corrupt(format!("item `{}` is twice in the gallery", self.id(twice[0] as usize))));
        }
        let mut order = vec![0u32; by_id.len()];
        for (place, &item) in (0u32..).zip(&by_id) {
            order[item as usize] = place;
        }
        Ok(Counted { order, relevant: self.counts.into_iter().map(|(relevant, _)| relevant).collect() })
    }
}

fn check_query(query: &Query, embedding: &[f32], block: &impl Block) -> Result<()> {
    if embedding.len() != block.dim() {
        let detail = format!("query `{}` has dimension {}, the gallery {}", query.text, embedding.len(), block.dim());
        return Err(Error::invalid(detail));
    }
    if embedding.iter().any(|value| !value.is_finite()) {
        return Err(Error::invalid(format!("the embedding of query `{}` is not finite", query.text)));
    }
    if query.terms.iter().any(|term| term.attribute as usize >= block.attributes()) {
        let detail =
            format!("query `{}` asks for more than the gallery's {} attributes", query.text, block.attributes());
        return Err(Error::invalid(detail));
    }
    Ok(())
}

/// What the census found.
struct Counted {
    /// Per item, in the order of blocks: its place in the order of ids.
    order: Vec<u32>,
    /// Per query: relevant items.
    relevant: Vec<u64>,
}

impl Counted {
    /// Consecutive queries whose relevant items fit the budget together; at least one each.
    fn batches(&self, budget_bytes: usize) -> Vec<Range<usize>> {
        let mut batches: Vec<Range<usize>> = Vec::new();
        let mut used = 0;
        for (query, &relevant) in self.relevant.iter().enumerate() {
            // An item's distance and id, and the count before it.
            let bytes = relevant as usize * (size_of::<(f64, u32)>() + size_of::<u64>());
            match batches.last_mut() {
                Some(batch) if used + bytes <= budget_bytes => {
                    batch.end = query + 1;
                    used += bytes;
                }
                _ => {
                    batches.push(query..query + 1);
                    used = bytes;
                }
            }
        }
        batches
    }
}

/// One query's way through the second and third pass.
struct Ranking<'a> {
    query: &'a Query,
    embedding: &'a [f32],
    /// (d², place of the id) of the relevant items.
    relevant: Vec<(f64, u32)>,
    /// Other judged items that rank directly before relevant item `i`, after the one before it.
    between: Vec<u64>,
    judged: u64,
}

impl<'a> Ranking<'a> {
    fn new(query: &'a Query, embedding: &'a [f32]) -> Self {
        Self { query, embedding, relevant: Vec::new(), between: Vec::new(), judged: 0 }
    }

    fn keep<B: Block>(&mut self, block: &B, rows: Range<usize>, order: &[u32]) {
        for row in rows {
            let judgement = judge(&self.query.terms, block.labels(row));
            self.judged += u64::from(judgement != Judgement::Unjudged);
            if judgement == Judgement::Relevant {
                self.relevant.push((canonical_d2(self.embedding, block.embedding(row)), order[row]));
            }
        }
    }

    fn sort(&mut self) {
        self.relevant.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        self.between = vec![0; self.relevant.len() + 1];
    }

    fn count<B: Block>(&mut self, block: &B, rows: Range<usize>, order: &[u32]) {
        for row in rows {
            if judge(&self.query.terms, block.labels(row)) == Judgement::NotRelevant {
                let d2 = canonical_d2(self.embedding, block.embedding(row));
                let before =
                    self.relevant.partition_point(|kept| kept.0.total_cmp(&d2).then(kept.1.cmp(&order[row])).is_lt());
                self.between[before] += 1;
            }
        }
    }

    fn finish(self) -> QueryScore {
        let mut others = 0;
        let ranks: Vec<u64> = (1u64..)
            .zip(&self.between[..self.relevant.len()])
            .map(|(hits, between)| {
                others += between;
                hits + others
            })
            .collect();
        QueryScore {
            query: self.query.number,
            set: self.query.set,
            text: self.query.text.clone(),
            relevant: ranks.len() as u64,
            judged: self.judged,
            average_precision: average_precision(&ranks),
            chance: chance(ranks.len() as u64, self.judged),
            p_at: precision_at(&ranks),
        }
    }
}

#[cfg(test)]
mod tests;
