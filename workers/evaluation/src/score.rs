//! Ranks the gallery for many queries at once, streaming it block by block.
//!
//! Three passes, whatever the size of the gallery: the *census* counts the relevant items of every
//! query and fixes the order of ids; then, for as many queries at a time as fit [`BUDGET_BYTES`], one pass
//! keeps the distances of the *relevant* items, sorted, and one *counts* how many other judged items rank
//! between them. Those counts are the ranks of all relevant items, which is all that most metrics need; the first
//! [`FIRST`] judged items are kept beside them for those that look at what the others are.
//!
//! Memory: the budget, 4 bytes per item (its place in the order of ids, which decides ties), the ids
//! themselves until the census is over, and one block. Distances are `canonical_d2`, ties go by item id.
//! Every query is ranked by itself in the order of blocks, so threads cannot change an answer.

use std::ops::Range;

use likeness_contract::ranking::canonical_d2;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gallery::{Block, Judgement, judge};
use crate::metrics::{article_ap, average_precision, chance, ndcg_at, precision_at, r_precision};
use crate::queries::{Query, QueryImage};
use crate::scores::{Further, QueryScore};

/// Bytes of distances that are held at once.
pub const BUDGET_BYTES: usize = 128 << 20;
/// Relevant items of a bucket, about.
const BUCKET: usize = 8;
/// Items at the head of a ranking that are looked at one by one.
const FIRST: usize = 100;
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
        let asked = queries[batch.clone()].iter().zip(&census.relevant[batch]);
        let mut rankings: Vec<Ranking<'_>> =
            asked.map(|((query, embedding), relevant)| Ranking::new(query, embedding, *relevant)).collect();
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
    relevant: Vec<u64>,
}

impl Census {
    fn new(queries: &[(Query, Vec<f32>)]) -> Self {
        Self { ids: String::new(), ends: Vec::new(), relevant: vec![0; queries.len()] }
    }

    fn add(&mut self, queries: &[(Query, Vec<f32>)], block: &impl Block) -> Result<()> {
        for (query, embedding) in queries {
            check_query(query, embedding, block)?;
        }
        for row in 0..block.rows() {
            self.ids.push_str(block.item(row));
            self.ends.push(self.ids.len());
        }
        self.relevant.par_iter_mut().zip(queries).for_each(|(relevant, (query, _))| {
            for row in 0..block.rows() {
                *relevant += u64::from(judge(query, block, row) == Judgement::Relevant);
            }
        });
        Ok(())
    }

    fn id(&self, item: usize) -> &str {
        let start = if item == 0 { 0 } else { self.ends[item - 1] };
        &self.ids[start..self.ends[item]]
    }

    fn finish(self, queries: &[(Query, Vec<f32>)]) -> Result<Counted> {
        let lost = self.relevant.iter().zip(queries).find(|(relevant, _)| **relevant == 0);
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
        Ok(Counted { order, relevant: self.relevant })
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
    let of_image = query.image.iter().flat_map(|image| &image.has);
    let mut asked = query.terms.iter().map(|term| &term.attribute).chain(of_image);
    if asked.any(|attribute| *attribute as usize >= block.attributes()) {
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
            let bytes = relevant as usize * (size_of::<(f64, u32)>() + size_of::<u32>());
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

/// A judged item at the head of a ranking.
struct Seen {
    d2: f64,
    /// Place in the order of ids.
    place: u32,
    /// Terms that it fulfils.
    fulfilled: u32,
    /// Cosine between its attributes and those of the image that asks; 0 when none does.
    alike: f64,
}

/// One query's way through the second and third pass.
struct Ranking<'a> {
    query: &'a Query,
    embedding: &'a [f32],
    /// (d², place of the id) of the relevant items.
    relevant: Vec<(f64, u32)>,
    /// Where they are, once they are sorted.
    buckets: Buckets,
    /// Other judged items that rank directly before relevant item `i`, after the one before it.
    between: Vec<u32>,
    /// Judged items by the number of terms that they fulfil.
    levels: Vec<u64>,
    /// The best judged items, at most [`FIRST`].
    first: Vec<Seen>,
}

impl<'a> Ranking<'a> {
    /// `relevant` items are to come: no room is taken for more.
    fn new(query: &'a Query, embedding: &'a [f32], relevant: u64) -> Self {
        let levels = vec![0; query.terms.len() + 1];
        let relevant = Vec::with_capacity(relevant as usize);
        Self { query, embedding, relevant, buckets: Buckets::default(), between: Vec::new(), levels, first: Vec::new() }
    }

    fn keep<B: Block>(&mut self, block: &B, rows: Range<usize>, order: &[u32]) {
        for row in rows {
            match judge(self.query, block, row) {
                Judgement::Unjudged => {}
                Judgement::NotRelevant { fulfilled } => self.levels[fulfilled as usize] += 1,
                Judgement::Relevant => {
                    let terms = self.query.terms.len();
                    self.levels[terms] += 1;
                    let d2 = canonical_d2(self.embedding, block.embedding(row));
                    self.relevant.push((d2, order[row]));
                    self.see(d2, order[row], terms as u32, block.labels(row));
                }
            }
        }
    }

    fn sort(&mut self) {
        self.relevant.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        self.buckets = Buckets::new(&self.relevant);
        self.between = vec![0; self.relevant.len() + 1];
    }

    fn count<B: Block>(&mut self, block: &B, rows: Range<usize>, order: &[u32]) {
        for row in rows {
            if let Judgement::NotRelevant { fulfilled } = judge(self.query, block, row) {
                let d2 = canonical_d2(self.embedding, block.embedding(row));
                let before = self.relevant_before(d2, order[row]);
                self.between[before] += 1;
                self.see(d2, order[row], fulfilled, block.labels(row));
            }
        }
    }

    /// Relevant items that rank before an item.
    fn relevant_before(&self, d2: f64, place: u32) -> usize {
        let bucket = self.buckets.range(d2);
        let before = |kept: &(f64, u32)| kept.0.total_cmp(&d2).then(kept.1.cmp(&place)).is_lt();
        bucket.start + self.relevant[bucket].partition_point(before)
    }

    /// Keeps an item if it is among the first so far.
    fn see(&mut self, d2: f64, place: u32, fulfilled: u32, labels: &[i8]) {
        let before = |seen: &Seen| seen.d2.total_cmp(&d2).then(seen.place.cmp(&place)).is_lt();
        if self.first.len() == FIRST && self.first.last().is_some_and(before) {
            return;
        }
        let alike = self.query.image.as_ref().map_or(0.0, |image| alike(image, labels));
        self.first.insert(self.first.partition_point(before), Seen { d2, place, fulfilled, alike });
        self.first.truncate(FIRST);
    }

    fn finish(self) -> QueryScore {
        let mut others = 0;
        let ranks: Vec<u64> = (1u64..)
            .zip(&self.between[..self.relevant.len()])
            .map(|(hits, between)| {
                others += u64::from(*between);
                hits + others
            })
            .collect();
        let judged = self.levels.iter().sum();
        QueryScore {
            query: self.query.number,
            set: self.query.set,
            text: self.query.text.clone(),
            relevant: ranks.len() as u64,
            judged,
            average_precision: average_precision(&ranks),
            chance: chance(ranks.len() as u64, judged),
            p_at: precision_at(&ranks),
            further: Some(self.further(&ranks)),
        }
    }

    fn further(&self, ranks: &[u64]) -> Further {
        let ndcg = |k| ndcg_at(k, self.first.iter().map(|seen| seen.fulfilled), &self.levels);
        Further {
            r_precision: r_precision(ranks),
            article_ap: article_ap(ranks),
            ndcg_at_10: ndcg(10),
            ndcg_at_100: ndcg(FIRST),
            cs_p_at_10: self.query.image.as_ref().map(|_| self.cs_p_at_10()),
        }
    }

    /// Σ over the first 10 that have the changed attribute as asked of the cosine to the image that asks, / 10.
    fn cs_p_at_10(&self) -> f64 {
        let asked = self.query.terms.len() as u32;
        let fit = self.first.iter().take(10).filter(|seen| seen.fulfilled == asked);
        fit.map(|seen| seen.alike).sum::<f64>() / 10.0
    }
}

/// Where sorted distances are: cut into equal widths, so that a search looks at a few neighbours instead of jumping through all
/// of them. The bucket of a distance never falls as the distance rises, so equal distances share one.
#[derive(Default)]
struct Buckets {
    least: f64,
    /// Buckets per unit of distance.
    scale: f64,
    /// First item of every bucket, then their number.
    starts: Vec<u32>,
}

impl Buckets {
    fn new(sorted: &[(f64, u32)]) -> Self {
        let (least, most) = (sorted.first().map_or(0.0, |first| first.0), sorted.last().map_or(0.0, |last| last.0));
        let count = sorted.len().div_ceil(BUCKET).max(1);
        let width = most - least;
        let scale = if width > 0.0 { count as f64 / width } else { 0.0 };
        let mut buckets = Self { least, scale, starts: vec![0; count + 1] };
        sorted.iter().for_each(|(d2, _)| {
            let next = buckets.of(*d2) + 1;
            buckets.starts[next] += 1;
        });
        (0..count).for_each(|bucket| buckets.starts[bucket + 1] += buckets.starts[bucket]);
        buckets
    }

    /// A cast of a float ends at its bounds.
    fn of(&self, d2: f64) -> usize {
        (((d2 - self.least) * self.scale) as usize).min(self.starts.len() - 2)
    }

    /// The items of the bucket of a distance.
    fn range(&self, d2: f64) -> Range<usize> {
        let bucket = self.of(d2);
        self.starts[bucket] as usize..self.starts[bucket + 1] as usize
    }
}

/// Cosine between two 0/1 vectors: the attributes that each image has; 0 when either has none.
fn alike(image: &QueryImage, labels: &[i8]) -> f64 {
    let has = labels.iter().filter(|label| **label == 1).count();
    let both = image.has.iter().filter(|attribute| labels[**attribute as usize] == 1).count();
    if both == 0 { 0.0 } else { both as f64 / ((image.has.len() * has) as f64).sqrt() }
}

#[cfg(test)]
mod tests;
