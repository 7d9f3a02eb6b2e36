//! One query through the lists of one shard.

use likeness_contract::ranking::{Candidate, canonical_d2};

use super::lists::Lists;
use crate::codes::four::Four;
use crate::codes::query::query_codes;
use crate::kernels::{BLOCK, Dots, QueryCodes, Work};
use crate::search::best::{Best, Entry, merge};
use crate::shard::Shard;

/// Rows that are asked for before they are read.
const AHEAD: usize = 4;
/// What the rerank of a row costs, in rows that are looked at.
const RERANK_COST: f32 = 8.0;

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Effort {
    /// Lists whose score is more than this below the best one's are left out,
    pub cut: f32,
    /// and so are all but this many.
    pub lists: u32,
    /// Rows that go to the canonical distance.
    pub rerank: u32,
}

/// What an effort costs, in rows that are looked at.
pub(super) fn cost(scanned: f32, rerank: u32) -> f32 {
    scanned + RERANK_COST * rerank as f32
}

/// See the module: the answer of a shard.
pub(super) struct Probe<'a> {
    pub shard: &'a Shard,
    pub lists: &'a Lists,
    pub query: &'a [f32],
    pub k: usize,
    /// As in [`Look`].
    pub least: usize,
    pub effort: Effort,
}

impl Work for Probe<'_> {
    type Output = Vec<Candidate>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Vec<Candidate> {
        let Self { shard, lists, query, k, least, effort } = self;
        let count = (effort.rerank as usize).max(k);
        let (top, _) = Look { lists, query, effort, least, count }.top(dots);
        let rows: Vec<u32> = top.into_iter().map(|(_, place)| lists.row(place)).collect();
        let mut best = Best::default();
        for (at, row) in rows.iter().enumerate() {
            if let Some(next) = rows.get(at + AHEAD) {
                dots.prefetch(shard.embedding(*next));
            }
            let d2 = canonical_d2(query, shard.embedding(*row));
            best.offer(Entry { d2, item: shard.item(*row), shard: 0, row: *row }, k);
        }
        merge(&[shard], [best], k)
    }
}

/// The rows that look best, `count` of them, the best first, and how many were looked at.
pub(super) struct Look<'a> {
    pub lists: &'a Lists,
    pub query: &'a [f32],
    pub effort: Effort,
    /// Rows that the lists hold, even if that takes more lists than the effort says.
    pub least: usize,
    pub count: usize,
}

impl Work for Look<'_> {
    type Output = (Vec<u32>, usize);

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Self::Output {
        let lists = self.lists;
        let (mut top, scanned) = self.top(dots);
        top.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        (top.into_iter().map(|(_, place)| lists.row(place)).collect(), scanned)
    }
}

impl Look<'_> {
    #[inline(always)]
    fn top<D: Dots>(self, dots: D) -> (Vec<(f32, u32)>, usize) {
        let Self { lists, query, effort, least, count } = self;
        let coded = Coded::new(lists, query);
        let order = order_of_lists(&coarse_scores(dots, lists, &coded), lists, effort, least);
        let (mut top, mut scanned) = (Top::new(count), 0);
        for (at, list) in order.iter().enumerate() {
            if let Some(next) = order.get(at + 1) {
                dots.prefetch(lists.centroids().row(*next as usize));
            }
            let base = dot(query, lists.centroids().row(*list as usize));
            for block in lists.blocks(*list) {
                let scores = scores(dots, lists.fine(), block, &coded, base);
                top.offer(&scores, (block * BLOCK) as u32);
                scanned += BLOCK;
            }
        }
        (top.finish(), scanned)
    }
}

/// A query's codes.
pub(super) struct Coded {
    codes: QueryCodes,
    unit: f32,
    /// Codes stand for code − 7.5, the sums are of code − 8.
    middle: f32,
}

impl Coded {
    #[inline(always)]
    pub fn new(lists: &Lists, query: &[f32]) -> Self {
        let mut turned = vec![0.0; query.len()];
        lists.frame().apply(query, &mut turned);
        let (codes, unit, _) = query_codes(&turned, lists.shape());
        let middle = codes.offset as f32 / 16.0;
        Self { codes, unit, middle }
    }
}

/// Estimated scores q·x − ‖x‖²/2 of the rows of a block, of which `base` is already known.
#[inline(always)]
fn scores<D: Dots>(dots: D, codes: &Four, block: usize, coded: &Coded, base: f32) -> [f32; BLOCK] {
    let block = codes.block(block);
    let [sums] = dots.four(block.codes, [&coded.codes]);
    let [scale, _, half] = block.rows();
    let mut scores = [0f32; BLOCK];
    for i in 0..BLOCK {
        scores[i] = (sums[i] as f32 + coded.middle) * coded.unit * scale[i] + base - half[i];
    }
    scores
}

/// Scores of all centroids, in whole blocks.
#[inline(always)]
pub(super) fn coarse_scores<D: Dots>(dots: D, lists: &Lists, coded: &Coded) -> Vec<f32> {
    let blocks = lists.len().div_ceil(BLOCK);
    let mut all = Vec::with_capacity(blocks * BLOCK);
    for block in 0..blocks {
        all.extend_from_slice(&scores(dots, lists.coarse(), block, coded, 0.0));
    }
    all
}

/// The lists within an effort, the best first; the best ones that surely hold `least` rows, where those don't.
#[inline(always)]
fn order_of_lists(scores: &[f32], lists: &Lists, effort: Effort, least: usize) -> Vec<u32> {
    let best = scores.iter().fold(f32::NEG_INFINITY, |a, v| if *v > a { *v } else { a });
    let within = |limit: f32| -> Vec<(f32, u32)> {
        let all = scores[..lists.len()].iter().enumerate();
        all.filter(|(_, score)| **score >= limit).map(|(list, score)| (*score, list as u32)).collect()
    };
    let mut order = within(best - effort.cut);
    // The last block of a list may be nearly empty.
    let least_rows = |list: u32| (lists.blocks(list).len() * BLOCK).saturating_sub(BLOCK - 1);
    let better = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let most = effort.lists as usize;
    if most > 0 && order.len() > most {
        order.select_nth_unstable_by(most - 1, better);
        order.truncate(most);
    }
    if order.iter().map(|(_, list)| least_rows(*list)).sum::<usize>() < least {
        let close = order.len();
        order = within(f32::NEG_INFINITY);
        order.sort_unstable_by(better);
        let mut rows = 0;
        let enough = order.iter().position(|(_, list)| {
            rows += least_rows(*list);
            rows >= least
        });
        order.truncate(enough.map_or(order.len(), |at| (at + 1).max(close)));
    } else {
        order.sort_unstable_by(better);
    }
    order.into_iter().map(|(_, list)| list).collect()
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane += a * b;
    }
    lanes.iter().sum()
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
    fn offer(&mut self, scores: &[f32; BLOCK], first: u32) {
        let mut any = false;
        for score in scores {
            any |= *score > self.limit;
        }
        if !any {
            return;
        }
        for (at, score) in scores.iter().enumerate() {
            if *score > self.limit {
                self.best.push((*score, first + at as u32));
                if self.best.len() == 2 * self.count {
                    self.cut();
                }
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
