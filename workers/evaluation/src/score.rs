//! Ranks the gallery for many queries at once, streaming it block by block.
//!
//! The first pass is the *census*: it counts the relevant items of every query and fixes the order of ids. Then, for as
//! many queries at a time as fit a budget (see [`budget_bytes`]), one pass keeps the distances of all items, 8 bytes each with a bit that says
//! whether the item is relevant. Sorted, they are the ranks of the relevant items, which is all that most metrics need;
//! the first [`FIRST`] judged items are kept beside them for those that look at what the others are.
//!
//! Memory: the budget, for [`SORTED`] queries at a time up to 24 bytes per item while they are sorted, 4 bytes per item (its place
//! in the order of ids, which decides ties), the ids themselves until the census is over, and one block.
//! Distances are `canonical_d2`, ties go by item id. Every query is ranked by itself in the order of blocks, so threads
//! cannot change an answer.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::distance::Isa;
use crate::error::{Error, Result};
use crate::gallery::Block;
use crate::labels::{Judged, LabelBits, WORD};
use crate::metrics::{article_ap, average_precision, chance, ndcg_at, precision_at, r_precision};
use crate::queries::{Query, QueryImage, Term};
use crate::scores::{FIRST, Found, Further, QueryScore};

/// Queries that a pass is worth the reading for.
const TOGETHER: usize = 40;
/// Fewest and most bytes of distances that are held at once.
const BUDGET_BYTES: [usize; 2] = [64 << 20, 384 << 20];
/// Queries that are sorted at a time.
const SORTED: usize = 4;
/// Rows of a block that all queries look at before the next: about 300 KiB of embeddings, so that they stay in
/// the cache. Whole words of labels.
const TILE_ROWS: usize = 4 * WORD;
/// Key of an item that a query does not judge.
const UNJUDGED: u64 = u64::MAX;

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
    score_within(budget_bytes, queries, blocks, load, progress)
}

/// Bytes of distances that are held at once in a gallery of so many items.
pub fn budget_bytes(items: usize) -> usize {
    let [least, most] = BUDGET_BYTES;
    (TOGETHER * items * size_of::<u64>()).clamp(least, most)
}

/// [`score`] with another budget.
pub fn score_within<B: Block, E: From<Error>>(
    budget_bytes: impl FnOnce(usize) -> usize,
    queries: &[(Query, Vec<f32>)],
    blocks: usize,
    mut load: impl FnMut(usize) -> std::result::Result<B, E>,
    progress: Progress<'_>,
) -> std::result::Result<Vec<QueryScore>, E> {
    let mut passes = Passes { blocks, done: 0, of: 2 * blocks as u64, progress };
    let mut census = Census::new(queries);
    passes.run(&mut load, |block| census.add(queries, block))?;
    let census = census.finish(queries)?;
    let batches = census.batches(budget_bytes(census.order.len()));
    passes.of = (1 + batches.len() as u64) * blocks as u64;

    let mut scores = Vec::with_capacity(queries.len());
    let mut keys: Vec<Vec<u64>> = Vec::new();
    for batch in batches {
        // Room for keys goes from batch to batch: pages that are new to a process have to be cleared.
        keys.resize_with(batch.len(), || Vec::with_capacity(census.order.len()));
        let asked = queries[batch.clone()].iter().zip(&census.queries[batch]);
        let mut rankings: Vec<Ranking<'_>> = asked
            .zip(keys.drain(..))
            .map(|(((query, embedding), counted), keys)| Ranking::new(query, embedding, counted, keys))
            .collect();
        passes.rank(&mut load, &mut rankings, &census.order)?;
        for few in rankings.chunks(SORTED) {
            scores.par_extend(few.par_iter().map(|ranking| ranking.score(&census.order)));
        }
        keys.extend(rankings.into_iter().map(|ranking| ranking.keys));
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
    fn rank<B: Block, E: From<Error>>(
        &mut self,
        load: &mut impl FnMut(usize) -> std::result::Result<B, E>,
        rankings: &mut [Ranking<'_>],
        order: &[u32],
    ) -> std::result::Result<(), E> {
        let mut first = 0;
        self.run(load, |block| {
            let looked = Looked { block, labels: &LabelBits::of(block), first, order: &order[first..] };
            for tile in (0..block.rows()).step_by(TILE_ROWS) {
                let rows = tile..block.rows().min(tile + TILE_ROWS);
                rankings.par_iter_mut().for_each(|ranking| ranking.look(&looked, rows.clone()));
            }
            first += block.rows();
            Ok(())
        })
    }
}

/// A block as rankings look at it.
struct Looked<'a, B> {
    block: &'a B,
    labels: &'a LabelBits,
    /// Items before it.
    first: usize,
    /// Places of its items in the order of ids.
    order: &'a [u32],
}

/// The first pass.
struct Census<'q> {
    ids: String,
    ends: Vec<usize>,
    queries: Vec<Counted>,
    /// Queries whose image leaves the gallery, by its id.
    images: HashMap<&'q str, Vec<usize>>,
}

/// What the census found of a query.
struct Counted {
    /// Judged items by the number of terms that they fulfil.
    levels: Vec<u64>,
    /// The item that is its own image, which it does not judge.
    own: Option<usize>,
}

impl Counted {
    fn relevant(&self) -> u64 {
        self.levels.last().copied().unwrap_or(0)
    }

    fn judged(&self) -> u64 {
        self.levels.iter().sum()
    }
}

/// Place of a query's own image among the items of a word that begins with item `first`.
fn own_place(own: Option<usize>, first: usize) -> Option<usize> {
    own?.checked_sub(first).filter(|place| *place < WORD)
}

impl<'q> Census<'q> {
    fn new(queries: &'q [(Query, Vec<f32>)]) -> Self {
        let mut images: HashMap<&str, Vec<usize>> = HashMap::new();
        for (number, (query, _)) in queries.iter().enumerate() {
            if let Some(item) = query.held_out() {
                images.entry(item).or_default().push(number);
            }
        }
        let levels = |query: &Query| vec![0; query.terms.len() + 1];
        let counted = queries.iter().map(|(query, _)| Counted { levels: levels(query), own: None }).collect();
        Self { ids: String::new(), ends: Vec::new(), queries: counted, images }
    }

    fn add(&mut self, queries: &[(Query, Vec<f32>)], block: &impl Block) -> Result<()> {
        for (query, embedding) in queries {
            check_query(query, embedding, block)?;
        }
        let first = self.ends.len();
        for row in 0..block.rows() {
            for query in self.images.get(block.item(row)).into_iter().flatten() {
                self.queries[*query].own = Some(first + row);
            }
            self.ids.push_str(block.item(row));
            self.ends.push(self.ids.len());
        }
        let labels = LabelBits::of(block);
        self.queries.par_iter_mut().zip(queries).for_each(|(counted, (query, _))| {
            for word in labels.words() {
                let own = own_place(counted.own, first + word * WORD);
                let judged = labels.judge(&query.terms, word).without(own).judged;
                labels.add_levels(&query.terms, word, judged, &mut counted.levels);
            }
        });
        Ok(())
    }

    fn id(&self, item: usize) -> &str {
        let start = if item == 0 { 0 } else { self.ends[item - 1] };
        &self.ids[start..self.ends[item]]
    }

    fn finish(self, queries: &[(Query, Vec<f32>)]) -> Result<Gallery> {
        let lost = self.queries.iter().zip(queries).find(|(counted, _)| counted.relevant() == 0);
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
        Ok(Gallery { order, queries: self.queries })
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
struct Gallery {
    /// Per item, in the order of blocks: its place in the order of ids.
    order: Vec<u32>,
    queries: Vec<Counted>,
}

impl Gallery {
    /// Consecutive queries whose distances fit the budget together, about equally many; at least one each.
    fn batches(&self, budget_bytes: usize) -> Vec<Range<usize>> {
        let queries = self.queries.len();
        let fit = (budget_bytes / (self.order.len() * size_of::<u64>()).max(1)).max(1);
        let batches = queries.div_ceil(fit);
        (0..batches).map(|i| i * queries / batches..(i + 1) * queries / batches).collect()
    }
}

/// A judged item at the head of a ranking.
struct Seen {
    d2: f64,
    /// Place in the order of ids.
    place: u32,
    item: String,
    /// Terms that it fulfils.
    fulfilled: u32,
    /// Cosine between its attributes and those of the image that asks; 0 when none does.
    alike: f64,
}

impl Seen {
    fn found(&self) -> Found {
        Found { item: self.item.clone(), distance: self.d2.sqrt() }
    }
}

/// One query's way through a pass.
struct Ranking<'a> {
    query: &'a Query,
    counted: &'a Counted,
    embedding: Vec<f64>,
    isa: Isa,
    /// Per item, in the order of blocks: the bits of its d², then whether it is relevant; or [`UNJUDGED`]. Distances are not
    /// negative, so keys are ordered as they are, and one bit is free.
    keys: Vec<u64>,
    /// The best judged items, at most [`FIRST`].
    first: Vec<Seen>,
    /// Items with a higher key are not among the first.
    limit: u64,
}

fn key(d2: f64, relevant: bool) -> u64 {
    d2.to_bits() << 1 | u64::from(relevant)
}

impl<'a> Ranking<'a> {
    fn new(query: &'a Query, embedding: &[f32], counted: &'a Counted, mut keys: Vec<u64>) -> Self {
        let embedding = embedding.iter().copied().map(f64::from).collect();
        keys.clear();
        let first = Vec::new();
        Self { query, counted, embedding, isa: Isa::best(), keys, first, limit: UNJUDGED - 1 }
    }

    /// Takes some rows of a block, from a whole word on.
    fn look<B: Block>(&mut self, of: &Looked<'_, B>, rows: Range<usize>) {
        let mut distances = [0f64; TILE_ROWS];
        let distances = &mut distances[..rows.len()];
        self.isa.distances(&self.embedding, |i| of.block.embedding(rows.start + i), distances);
        for (word, distances) in (rows.start / WORD..).zip(distances.chunks(WORD)) {
            let own = own_place(self.counted.own, of.first + word * WORD);
            let Judged { relevant, judged } = of.labels.judge(&self.query.terms, word).without(own);
            for (place, d2) in distances.iter().enumerate() {
                let known = judged >> place & 1 == 1;
                let key = if known { key(*d2, relevant >> place & 1 == 1) } else { UNJUDGED };
                self.keys.push(key);
                if key <= self.limit {
                    self.see(*d2, of, word * WORD + place);
                }
            }
        }
    }

    /// Keeps a judged item if it is among the first so far.
    fn see<B: Block>(&mut self, d2: f64, of: &Looked<'_, B>, row: usize) {
        let (place, labels) = (of.order[row], of.block.labels(row));
        let before = |seen: &Seen| seen.d2.total_cmp(&d2).then(seen.place.cmp(&place)).is_lt();
        let fulfils = |term: &&Term| labels[term.attribute as usize] == if term.positive { 1 } else { -1 };
        let fulfilled = self.query.terms.iter().filter(fulfils).count() as u32;
        let alike = self.query.image.as_ref().map_or(0.0, |image| alike(image, labels));
        let item = of.block.item(row).to_string();
        self.first.insert(self.first.partition_point(before), Seen { d2, place, item, fulfilled, alike });
        self.first.truncate(FIRST);
        if let (FIRST, Some(last)) = (self.first.len(), self.first.last()) {
            self.limit = key(last.d2, true);
        }
    }

    fn score(&self, order: &[u32]) -> QueryScore {
        let ranks = ranks(&self.keys, order);
        let judged = self.counted.judged();
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
            first: Some(self.first.iter().map(Seen::found).collect()),
        }
    }

    fn further(&self, ranks: &[u64]) -> Further {
        let ndcg = |k| ndcg_at(k, self.first.iter().map(|seen| seen.fulfilled), &self.counted.levels);
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

/// Ranks of the relevant items, ascending.
fn ranks(keys: &[u64], order: &[u32]) -> Vec<u64> {
    let mut sorted = keys.to_vec();
    sorted.par_sort_unstable();
    // Keys that differ in the last bit alone: a relevant item and another are equally far.
    if sorted.windows(2).any(|pair| pair[0] ^ pair[1] == 1) {
        drop(sorted);
        return ranks_by_id(keys, order);
    }
    let mut found = 0;
    for place in 0..sorted.len() {
        if is_relevant(sorted[place]) {
            sorted[found] = place as u64 + 1;
            found += 1;
        }
    }
    sorted.truncate(found);
    sorted
}

/// The same where ties are to be broken.
fn ranks_by_id(keys: &[u64], order: &[u32]) -> Vec<u64> {
    let judged = keys.iter().zip(order).filter(|(key, _)| **key != UNJUDGED);
    let mut sorted: Vec<(u64, u32, bool)> = judged.map(|(key, place)| (key >> 1, *place, is_relevant(*key))).collect();
    sorted.par_sort_unstable();
    (1u64..).zip(sorted).filter(|(_, (.., relevant))| *relevant).map(|(rank, _)| rank).collect()
}

fn is_relevant(key: u64) -> bool {
    key & 1 == 1 && key != UNJUDGED
}

/// Cosine between two 0/1 vectors: the attributes that each image has; 0 when either has none.
fn alike(image: &QueryImage, labels: &[i8]) -> f64 {
    let has = labels.iter().filter(|label| **label == 1).count();
    let both = image.has.iter().filter(|attribute| labels[**attribute as usize] == 1).count();
    if both == 0 { 0.0 } else { both as f64 / ((image.has.len() * has) as f64).sqrt() }
}

#[cfg(test)]
mod tests;
