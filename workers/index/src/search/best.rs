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
    listed(shards, workers.into_iter().flat_map(|best| best.0).collect(), k)
}

/// The best `k` of entries in any order.
fn listed(shards: &[&Shard], mut entries: Vec<Entry>, k: usize) -> Vec<Candidate> {
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
    let near = isa.run(Rerank { shards, query, k, bound, found });
    // Ids lie anywhere in memory: they are read when it is known of which rows, one after the other.
    let entry = |(d2, found): (f64, Found)| {
        let (shard, row) = (found.shard as usize, found.row);
        Entry { d2, item: shards[shard].item(row), shard, row }
    };
    listed(shards, near.into_iter().map(entry).collect(), k)
}

/// Computes canonical d², of the rows that look nearest first, until the rest can't be in the answer.
///
/// `bound` is a d² that the K-th is known not to be above.
struct Rerank<'a> {
    shards: &'a [&'a Shard],
    query: &'a [f32],
    k: usize,
    bound: f64,
    found: Vec<Found>,
}

/// Rows that are asked for before they are read.
const AHEAD: usize = 8;

impl Work for Rerank<'_> {
    /// The rows whose d² is not above the K-th.
    type Output = Vec<(f64, Found)>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Self::Output {
        let Self { shards, query, k, mut bound, mut found } = self;
        found.retain(|found| found.least_d2 <= bound);
        found.sort_unstable_by(|a, b| a.least_d2.total_cmp(&b.least_d2));
        let mut near = Vec::with_capacity(found.len());
        // Bits of the K least; bits of numbers from 0 on are ordered as the numbers are.
        let mut least = BinaryHeap::with_capacity(k.min(found.len()) + 1);
        for (i, now) in found.iter().enumerate() {
            if now.least_d2 > bound {
                break;
            }
            if let Some(next) = found.get(i + AHEAD) {
                dots.prefetch(shards[next.shard as usize].embedding(next.row));
            }
            let d2 = canonical_d2(query, shards[now.shard as usize].embedding(now.row));
            if d2 > bound {
                continue;
            }
            near.push((d2, *now));
            least.push(d2.to_bits());
            if least.len() > k {
                least.pop();
            }
            if let Some(worst) = least.peek().filter(|_| least.len() == k) {
                bound = bound.min(f64::from_bits(*worst));
            }
        }
        near.retain(|(d2, _)| *d2 <= bound);
        near
    }
}
