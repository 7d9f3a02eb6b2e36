//! Queries through the lists of one shard.

use likeness_contract::ranking::{Candidate, canonical_d2};

use super::lists::Lists;
use crate::codes::query::{query_codes, row_offset, wide_codes};
use crate::kernels::{BLOCK, Dots, QueryCodes, TWO_STEP, Work};
use crate::search::best::{Best, Entry, merge};
use crate::shard::Shard;

/// Rows, centroids and blocks that are asked for before they are read.
const ROWS_AHEAD: usize = 4;
const LISTS_AHEAD: usize = 8;
const BLOCKS_AHEAD: usize = 6;
/// Lists that are looked at in order, so that what is far is soon left out; the same of each of several queries.
const FIRST: usize = 8;
const EARLY: usize = 2;
/// Queries that take centroids or a block of a list together at most.
const TOGETHER: usize = 4;
/// What the rerank of a row and the start of a list cost, in rows that are looked at.
const COSTS: (f32, f32) = (24.0, 8.0);

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effort {
    /// Lists are ordered by q·c − weight·‖c‖²/2;
    pub weight: f32,
    /// those whose score is more than this below the best one's are left out,
    pub cut: f32,
    /// and so are all but this many.
    pub lists: u32,
    /// Rows that go to the canonical distance.
    pub rerank: u32,
}

/// What a search costs, in rows that are looked at.
pub(super) fn cost(scanned: f32, lists: f32, rerank: u32) -> f32 {
    scanned + COSTS.0 * rerank as f32 + COSTS.1 * lists
}

/// A query of a shard.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub query: &'a [f32],
    pub k: usize,
    /// Rows that the lists hold, even if that takes more lists than the effort says.
    pub least: usize,
    pub effort: Effort,
}

/// See the module: the answers of a shard to some queries, each of which is what the query would get alone.
pub(super) struct Probe<'a> {
    pub shard: &'a Shard,
    pub lists: &'a Lists,
    pub asks: &'a [Ask<'a>],
}

impl Work for Probe<'_> {
    type Output = Vec<Vec<Candidate>>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Vec<Candidate>> {
        let Self { shard, lists, asks } = self;
        let coded: Vec<Coded> = asks.iter().map(|ask| Coded::new(lists, ask.query)).collect();
        let visits = visits(dots, lists, asks, &coded);
        let mut tops: Vec<Top> = asks.iter().map(|ask| Top::new((ask.effort.rerank as usize).max(ask.k))).collect();
        scan(dots, lists, &visits, &coded, |query, block, scores| {
            tops[query].offer(dots, scores, block * BLOCK as u32);
        });
        let mut answers = Vec::with_capacity(asks.len());
        for (Ask { query, k, .. }, top) in asks.iter().zip(tops) {
            let rows = top.finish().iter().map(|(_, place)| lists.row(*place)).collect();
            answers.push(rerank(dots, shard, query, *k, rows));
        }
        answers
    }
}

/// The best `k` of some rows by their canonical distance.
#[inline(always)]
fn rerank<D: Dots>(dots: D, shard: &Shard, query: &[f32], k: usize, rows: Vec<u32>) -> Vec<Candidate> {
    let mut found = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        if let Some(next) = rows.get(at + ROWS_AHEAD) {
            dots.prefetch(shard.embedding(*next));
        }
        found.push((canonical_d2(query, shard.embedding(*row)), *row));
    }
    let mut best = Best::default();
    if found.len() > k {
        let (_, last, _) = found.select_nth_unstable_by(k - 1, |a, b| a.0.total_cmp(&b.0));
        // Equally near ones are told apart by their ids.
        let bound = last.0;
        found.retain(|(d2, _)| *d2 <= bound);
    }
    for (d2, row) in found {
        best.offer(Entry { d2, item: shard.item(row), shard: 0, row }, k);
    }
    merge(&[shard], [best], k)
}

/// A query's codes.
pub(super) struct Coded {
    codes: QueryCodes,
    unit: f32,
    /// 4-bit codes stand for code − 7.5, the sums are of code − 8; 2-bit codes stand for code − 1.5.
    middles: (f32, f32),
    wide: Vec<i16>,
    wide_unit: f32,
    wide_offset: i32,
}

impl Coded {
    #[inline(always)]
    pub fn new(lists: &Lists, query: &[f32]) -> Self {
        let mut turned = vec![0.0; query.len()];
        lists.frame().apply(query, &mut turned);
        let (mut codes, unit, _) = query_codes(&turned, lists.shape());
        codes.codes.resize(query.len().next_multiple_of(TWO_STEP), 0);
        let sum = codes.offset as f32 / 8.0;
        let (wide, wide_unit, _) = wide_codes(&turned, lists.heads().code_bytes());
        let wide_offset = row_offset(&wide);
        Self { codes, unit, middles: (sum / 2.0, -1.5 * sum), wide, wide_unit, wide_offset }
    }

    /// q·c of a centroid.
    #[inline(always)]
    fn head<D: Dots>(&self, dots: D, lists: &Lists, list: u32) -> f32 {
        let (codes, scale, _, _) = lists.heads().parts(list as usize);
        dots.row(codes, &self.wide).wrapping_sub(self.wide_offset) as f32 * self.wide_unit * scale
    }

    /// Estimated q·x of the row at a place of a list.
    #[inline(always)]
    pub fn score<D: Dots>(&self, dots: D, lists: &Lists, list: u32, place: u32) -> f32 {
        let head = self.head(dots, lists, list);
        let [scores] = block_scores(dots, lists, place / BLOCK as u32, [self], [head]);
        scores[place as usize % BLOCK]
    }
}

/// Estimated q·x of the rows of a block with some queries; `heads` are their q·c of its list.
#[inline(always)]
fn block_scores<D: Dots, const Q: usize>(
    dots: D,
    lists: &Lists,
    block: u32,
    coded: [&Coded; Q],
    heads: [f32; Q],
) -> [[f32; BLOCK]; Q] {
    let (codes, scales) = lists.fine().block(block as usize);
    let mut queries: [&QueryCodes; Q] = [&coded[0].codes; Q];
    queries.iter_mut().zip(coded).for_each(|(query, coded)| *query = &coded.codes);
    let sums = dots.two(codes, queries);
    let mut scores = [[0f32; BLOCK]; Q];
    for (q, scores) in scores.iter_mut().enumerate() {
        let Coded { unit, middles, .. } = coded[q];
        for i in 0..BLOCK {
            scores[i] = (sums[q][i] as f32 + middles.1) * unit * scales[i] + heads[q];
        }
    }
    scores
}

/// Scores of all centroids, in whole blocks.
pub(super) struct Coarse {
    pub scores: Vec<[f32; BLOCK]>,
    pub best: f32,
}

impl Coarse {
    /// Of queries, each with its weight of the centroids' norms.
    #[inline(always)]
    pub fn new<D: Dots, const Q: usize>(dots: D, lists: &Lists, queries: [(&Coded, f32); Q]) -> [Self; Q] {
        let blocks = lists.len().div_ceil(BLOCK);
        let mut all = [const { Vec::new() }; Q];
        all.iter_mut().for_each(|all: &mut Vec<[f32; BLOCK]>| all.reserve_exact(blocks));
        let mut best = [[f32::NEG_INFINITY; BLOCK]; Q];
        let mut codes: [&QueryCodes; Q] = [&queries[0].0.codes; Q];
        codes.iter_mut().zip(queries).for_each(|(codes, (coded, _))| *codes = &coded.codes);
        for block in 0..blocks {
            let block = lists.coarse().block(block);
            let sums = dots.four(block.codes, codes);
            let [scale, _, half] = block.rows();
            for q in 0..Q {
                let (Coded { unit, middles, .. }, weight) = queries[q];
                let mut scores = [0f32; BLOCK];
                for i in 0..BLOCK {
                    scores[i] = (sums[q][i] as f32 + middles.0) * unit * scale[i] - weight * half[i];
                    best[q][i] = if scores[i] > best[q][i] { scores[i] } else { best[q][i] };
                }
                all[q].push(scores);
            }
        }
        let mut best = best.into_iter();
        all.map(|scores| {
            let best = best.next().unwrap_or([f32::NEG_INFINITY; BLOCK]);
            Self { scores, best: best.into_iter().fold(f32::NEG_INFINITY, f32::max) }
        })
    }

    /// [`Self::new`] of up to [`TOGETHER`] queries.
    #[inline(always)]
    fn of<D: Dots>(dots: D, lists: &Lists, queries: &[(&Coded, f32)]) -> Vec<Self> {
        match queries {
            [a] => Self::new(dots, lists, [*a]).into(),
            [a, b] => Self::new(dots, lists, [*a, *b]).into(),
            [a, b, c] => Self::new(dots, lists, [*a, *b, *c]).into(),
            [a, b, c, d, ..] => Self::new(dots, lists, [*a, *b, *c, *d]).into(),
            [] => Vec::new(),
        }
    }

    /// The lists whose scores are not more than `cut` below the best one's, as numbers that grow with the score.
    #[inline(always)]
    fn within<D: Dots>(&self, dots: D, cut: f32) -> Vec<u64> {
        let limit = (self.best - cut).next_down();
        let mut keys = Vec::with_capacity(256);
        for (block, scores) in self.scores.iter().enumerate() {
            let mut above = dots.above(scores, limit);
            while above != 0 {
                let at = above.trailing_zeros() as usize;
                keys.push(key(scores[at], (block * BLOCK + at) as u32));
                above &= above - 1;
            }
        }
        keys
    }
}

/// A list with its score, such that better ones are larger; of equal scores the first list's is.
#[inline(always)]
pub(super) fn key(score: f32, list: u32) -> u64 {
    let bits = score.to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!list)
}

#[inline(always)]
pub(super) fn list_of(key: u64) -> u32 {
    !(key as u32)
}

/// The lists within an effort, the first of them in order; the best ones that surely hold `least` rows, where those don't.
#[inline(always)]
fn chosen<D: Dots>(dots: D, coarse: &Coarse, lists: &Lists, effort: Effort, least: usize) -> Vec<u32> {
    let mut keys = coarse.within(dots, effort.cut);
    let better = |a: &u64, b: &u64| b.cmp(a);
    let cut_to = |keys: &mut Vec<u64>, count: usize| {
        if (1..keys.len()).contains(&count) {
            keys.select_nth_unstable_by(count - 1, better);
        }
    };
    cut_to(&mut keys, effort.lists as usize);
    keys.truncate(effort.lists as usize);
    if keys.iter().map(|key| lists.least_rows(list_of(*key))).sum::<usize>() < least {
        let close = keys.len();
        keys = coarse.within(dots, f32::MAX);
        keys.sort_unstable_by(better);
        let mut rows = 0;
        let enough = keys.iter().position(|key| {
            rows += lists.least_rows(list_of(*key));
            rows >= least
        });
        keys.truncate(enough.map_or(keys.len(), |at| (at + 1).max(close)));
    } else {
        cut_to(&mut keys, FIRST);
        let first = FIRST.min(keys.len());
        keys[..first].sort_unstable_by(better);
    }
    keys.into_iter().map(list_of).collect()
}

/// A list that a query looks at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Visit {
    pub list: u32,
    /// Its position among the queries.
    pub query: u32,
}

/// What the queries look at: a lone query the best lists first; several in the order of lists, so that those who look at the same
/// one share it, after the best few of each.
#[inline(always)]
fn visits<D: Dots>(dots: D, lists: &Lists, asks: &[Ask], coded: &[Coded]) -> Vec<Visit> {
    let mut keyed = Vec::with_capacity(asks.len() * 64);
    for first in (0..asks.len()).step_by(TOGETHER) {
        let end = asks.len().min(first + TOGETHER);
        let mut queries = Vec::with_capacity(TOGETHER);
        queries.extend(coded[first..end].iter().zip(&asks[first..end]).map(|(coded, ask)| (coded, ask.effort.weight)));
        for (at, coarse) in Coarse::of(dots, lists, &queries).iter().enumerate() {
            let Ask { effort, least, .. } = asks[first + at];
            let order = chosen(dots, coarse, lists, effort, least);
            keyed.extend(order.into_iter().enumerate().map(|(rank, list)| (rank >= EARLY, list, (first + at) as u32)));
        }
    }
    if asks.len() > 1 {
        keyed.sort_unstable();
    }
    keyed.into_iter().map(|(_, list, query)| Visit { list, query }).collect()
}

/// A block that is read for some visits.
struct Read {
    block: u32,
    first: u32,
    count: u32,
}

/// Calls `each(query, block, scores)` for all blocks of the lists that are visited.
#[inline(always)]
pub(super) fn scan<D: Dots>(
    dots: D,
    lists: &Lists,
    visits: &[Visit],
    coded: &[Coded],
    mut each: impl FnMut(usize, u32, &[f32; BLOCK]),
) {
    let (heads, reads) = plan(dots, lists, visits, coded);
    for (at, Read { block, first, count }) in reads.iter().enumerate() {
        if let Some(next) = reads.get(at + BLOCKS_AHEAD) {
            dots.prefetch(lists.fine().block_memory(next.block as usize));
        }
        let here = *first as usize..(first + count) as usize;
        let (visits, heads) = (&visits[here.clone()], &heads[here]);
        let coded = |i: usize| &coded[visits[i].query as usize];
        let mut scores = [[0f32; BLOCK]; TOGETHER];
        match *heads {
            [a] => scores[..1].copy_from_slice(&block_scores(dots, lists, *block, [coded(0)], [a])),
            [a, b] => scores[..2].copy_from_slice(&block_scores(dots, lists, *block, [coded(0), coded(1)], [a, b])),
            [a, b, c] => {
                let coded = [coded(0), coded(1), coded(2)];
                scores[..3].copy_from_slice(&block_scores(dots, lists, *block, coded, [a, b, c]));
            }
            [a, b, c, d, ..] => {
                let coded = [coded(0), coded(1), coded(2), coded(3)];
                scores = block_scores(dots, lists, *block, coded, [a, b, c, d]);
            }
            [] => {}
        }
        for (visit, scores) in visits.iter().zip(&scores) {
            each(visit.query as usize, *block, scores);
        }
    }
}

/// q·c of every visit, and the blocks in the order of visits: once for up to [`TOGETHER`] that follow each other in a list.
#[inline(always)]
fn plan<D: Dots>(dots: D, lists: &Lists, visits: &[Visit], coded: &[Coded]) -> (Vec<f32>, Vec<Read>) {
    let (mut heads, mut reads) = (Vec::with_capacity(visits.len()), Vec::with_capacity(visits.len() * 8));
    for (at, visit) in visits.iter().enumerate() {
        if let Some(next) = visits.get(at + LISTS_AHEAD) {
            dots.prefetch(lists.heads().row(next.list as usize));
        }
        heads.push(coded[visit.query as usize].head(dots, lists, visit.list));
    }
    let mut first = 0;
    for visits in visits.chunk_by(|a, b| a.list == b.list).flat_map(|same| same.chunks(TOGETHER)) {
        let count = visits.len() as u32;
        reads.extend(lists.blocks(visits[0].list).map(|block| Read { block, first, count }));
        first += count;
    }
    (heads, reads)
}

/// The places with the best scores.
struct Top {
    best: Vec<(f32, u32)>,
    count: usize,
    /// Scores that are not above it are of no interest.
    limit: f32,
}

impl Top {
    fn new(count: usize) -> Self {
        Self { best: Vec::with_capacity(2 * count), count, limit: f32::NEG_INFINITY }
    }

    #[inline(always)]
    fn offer<D: Dots>(&mut self, dots: D, scores: &[f32; BLOCK], first: u32) {
        let mut above = dots.above(scores, self.limit);
        while above != 0 {
            let at = above.trailing_zeros();
            above &= above - 1;
            self.best.push((scores[at as usize], first + at));
            if self.best.len() == 2 * self.count {
                self.cut();
            }
        }
    }

    fn cut(&mut self) {
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let (_, last, _) = self.best.select_nth_unstable_by(self.count - 1, order);
        // Of equal scores the first place's counts, in whatever order blocks are read.
        self.limit = last.0.next_down();
        self.best.truncate(self.count);
    }

    fn finish(mut self) -> Vec<(f32, u32)> {
        if self.best.len() > self.count {
            self.cut();
        }
        self.best
    }
}
