//! One query through the lists of one shard.

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
/// Lists that are looked at in order, so that what is far is soon left out.
const FIRST: usize = 8;
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

/// See the module: the answer of a shard.
pub(super) struct Probe<'a> {
    pub shard: &'a Shard,
    pub lists: &'a Lists,
    pub query: &'a [f32],
    pub k: usize,
    /// Rows that the lists hold, even if that takes more lists than the effort says.
    pub least: usize,
    pub effort: Effort,
}

impl Work for Probe<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Candidate> {
        let Self { shard, lists, query, k, least, effort } = self;
        let coded = Coded::new(lists, query);
        let order = chosen(dots, &Coarse::new(dots, lists, &coded, effort.weight), lists, effort, least);
        let mut top = Top::new((effort.rerank as usize).max(k));
        scan(dots, lists, &order, &coded, |block, scores| top.offer(dots, scores, block * BLOCK as u32));
        rerank(dots, shard, query, k, top.finish().iter().map(|(_, place)| lists.row(*place)).collect())
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

    /// Estimated q·x of the rows of a block; `head` is q·c of its list.
    #[inline(always)]
    pub fn scores<D: Dots>(&self, dots: D, lists: &Lists, block: u32, head: f32) -> [f32; BLOCK] {
        let (codes, scales) = lists.fine().block(block as usize);
        let sums = dots.two(codes, &self.codes);
        let mut scores = [0f32; BLOCK];
        for i in 0..BLOCK {
            scores[i] = (sums[i] as f32 + self.middles.1) * self.unit * scales[i] + head;
        }
        scores
    }

    /// Estimated q·x of the row at a place of a list.
    #[inline(always)]
    pub fn score<D: Dots>(&self, dots: D, lists: &Lists, list: u32, place: u32) -> f32 {
        let head = self.head(dots, lists, list);
        self.scores(dots, lists, place / BLOCK as u32, head)[place as usize % BLOCK]
    }
}

/// Scores of all centroids, in whole blocks.
pub(super) struct Coarse {
    pub scores: Vec<[f32; BLOCK]>,
    pub best: f32,
}

impl Coarse {
    #[inline(always)]
    pub fn new<D: Dots>(dots: D, lists: &Lists, coded: &Coded, weight: f32) -> Self {
        let (mut all, mut best) = (Vec::with_capacity(lists.len().div_ceil(BLOCK)), [f32::NEG_INFINITY; BLOCK]);
        for block in 0..lists.len().div_ceil(BLOCK) {
            let block = lists.coarse().block(block);
            let [sums] = dots.four(block.codes, [&coded.codes]);
            let [scale, _, half] = block.rows();
            let mut scores = [0f32; BLOCK];
            for i in 0..BLOCK {
                scores[i] = (sums[i] as f32 + coded.middles.0) * coded.unit * scale[i] - weight * half[i];
                best[i] = if scores[i] > best[i] { scores[i] } else { best[i] };
            }
            all.push(scores);
        }
        Self { scores: all, best: best.into_iter().fold(f32::NEG_INFINITY, f32::max) }
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

/// Calls `each(block, scores)` for all blocks of some lists.
#[inline(always)]
pub(super) fn scan<D: Dots>(
    dots: D,
    lists: &Lists,
    order: &[u32],
    coded: &Coded,
    mut each: impl FnMut(u32, &[f32; BLOCK]),
) {
    let mut blocks = Vec::with_capacity(order.len() * 8);
    for (at, list) in order.iter().enumerate() {
        if let Some(next) = order.get(at + LISTS_AHEAD) {
            dots.prefetch(lists.heads().row(*next as usize));
        }
        let head = coded.head(dots, lists, *list);
        blocks.extend(lists.blocks(*list).map(|block| (block, head)));
    }
    for (at, (block, head)) in blocks.iter().enumerate() {
        if let Some((next, _)) = blocks.get(at + BLOCKS_AHEAD) {
            dots.prefetch(lists.fine().block_memory(*next as usize));
        }
        each(*block, &coded.scores(dots, lists, *block, *head));
    }
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
        self.limit = last.0;
        self.best.truncate(self.count);
    }

    fn finish(mut self) -> Vec<(f32, u32)> {
        if self.best.len() > self.count {
            self.cut();
        }
        self.best
    }
}
