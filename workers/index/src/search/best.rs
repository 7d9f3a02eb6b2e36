//! Rows in ranking order, and the best K of them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use likeness_contract::ranking::{Candidate, canonical_d2, rank};

use super::Asked;
use crate::kernels::{Dots, Isa, Work};
use crate::shard::Shard;

/// A row with its distance, in ranking order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub d2: f64,
    pub item: &'a str,
    /// Position among the shards of the search.
    pub shard: usize,
    pub row: u32,
}

impl Ord for Entry<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |entry: &Self| (entry.shard, entry.row);
        rank((self.d2, self.item), (other.d2, other.item)).then_with(|| place(self).cmp(&place(other)))
    }
}
impl PartialOrd for Entry<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Entry<'_> {}

/// The best K entries that were offered; the worst is on top.
#[derive(Debug, Clone, Default)]
pub(crate) struct Best<'a>(BinaryHeap<Entry<'a>>);

impl<'a> Best<'a> {
    /// Adds an entry to the best `k`, if it belongs there; tells the K-th d² when that changed.
    #[inline]
    pub fn offer(&mut self, entry: Entry<'a>, k: usize) -> Option<f64> {
        if self.0.len() < k {
            self.0.push(entry);
        } else {
            let mut worst = self.0.peek_mut().expect("K is not 0");
            if entry >= *worst {
                return None;
            }
            *worst = entry;
        }
        (self.0.len() == k).then(|| self.0.peek().expect("K is not 0").d2)
    }
}

/// The best `k` of what several workers found.
pub(crate) fn merge<'a>(shards: &[&'a Shard], workers: impl IntoIterator<Item = Best<'a>>, k: usize) -> Vec<Candidate> {
    let mut entries: Vec<Entry> = workers.into_iter().flat_map(|best| best.0).collect();
    entries.sort_unstable();
    entries.truncate(k);
    let candidate = |entry: Entry| {
        let Entry { d2, item, shard, row } = entry;
        Candidate { d2, item: item.to_string(), shard: shards[shard].number(), row }
    };
    entries.into_iter().map(candidate).collect()
}

/// A row that may be in the answer, with a d² that its canonical one is not below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub least_d2: f64,
    pub shard: u32,
    pub row: u32,
}

/// A row with both bounds of its canonical d².
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounded {
    pub found: Found,
    pub most_d2: f64,
}

/// The K-th least of the upper bounds; ∞ when there are fewer.
pub(super) fn kth(found: &mut [Bounded], k: usize) -> f64 {
    if found.len() < k {
        return f64::INFINITY;
    }
    found.select_nth_unstable_by(k - 1, |a, b| a.most_d2.total_cmp(&b.most_d2)).1.most_d2
}

/// The answer from all rows that can be in it; `bound` is a d² that the K-th is known not to be above.
pub(super) fn answer(
    shards: &[&Shard],
    isa: Isa,
    asked: &Asked,
    mut found: Vec<Bounded>,
    bound: f64,
) -> Vec<Candidate> {
    let Asked { values: query, k, .. } = *asked;
    let bound = kth(&mut found, k).min(bound);
    let found = found.into_iter().map(|bounded| bounded.found).collect();
    merge(shards, [isa.run(Rerank { shards, query, k, bound, found })], k)
}

/// Offers rows by their canonical d², the nearest first, until the rest can't be in the answer.
///
/// `bound` is a d² that the K-th is known not to be above.
struct Rerank<'a, 'b> {
    shards: &'b [&'a Shard],
    query: &'b [f32],
    k: usize,
    bound: f64,
    found: Vec<Found>,
}

/// Rows that are asked for before they are read.
const AHEAD: usize = 4;

impl<'a> Work for Rerank<'a, '_> {
    type Output = Best<'a>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Best<'a> {
        let Self { shards, query, k, mut bound, mut found } = self;
        let mut best = Best::default();
        found.retain(|found| found.least_d2 <= bound);
        found.sort_unstable_by(|a, b| a.least_d2.total_cmp(&b.least_d2));
        for (i, &Found { least_d2, shard, row }) in found.iter().enumerate() {
            if least_d2 > bound {
                break;
            }
            if let Some(next) = found.get(i + AHEAD) {
                dots.prefetch(shards[next.shard as usize].embedding(next.row));
            }
            let held = shards[shard as usize];
            let d2 = canonical_d2(query, held.embedding(row));
            if d2 > bound {
                continue;
            }
            let entry = Entry { d2, item: held.item(row), shard: shard as usize, row };
            if let Some(worst) = best.offer(entry, k) {
                bound = bound.min(worst);
            }
        }
        best
    }
}
