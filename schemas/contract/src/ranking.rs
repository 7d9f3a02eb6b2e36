//! The ranking order and the merge of partial results: the contract between leaf and root.
//!
//! Candidates are ordered by (squared distance, item id), distances by `total_cmp`, ids by their bytes. The
//! order is total, so the answer cannot depend on the number of shards or on the order in which they answer.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

/// Most results of one request.
pub const MAX_K: usize = 10_000;

/// One row that a shard offers for the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Canonical squared Euclidean distance.
    pub d2: f64,
    /// Item id; unique in a generation.
    pub item: String,
    /// Shard that holds it.
    pub shard: u32,
    /// Row in the shard.
    pub row: u32,
}

/// The ranking order: (d², item id).
pub fn rank(a: (f64, &str), b: (f64, &str)) -> Ordering {
    a.0.total_cmp(&b.0).then_with(|| a.1.as_bytes().cmp(b.1.as_bytes()))
}

impl Candidate {
    /// The ranking order.
    pub fn rank(&self, other: &Self) -> Ordering {
        rank((self.d2, &self.item), (other.d2, &other.item))
    }
}

/// d² of two vectors of equal length, in f64 with one fixed order of additions: eight lanes over the
/// dimensions, summed pairwise. Every path of every shard ends in this procedure.
///
/// Panics when the lengths differ: callers check the dimension once per request.
#[inline]
pub fn canonical_d2(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one dimension");
    let mut lanes = [0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tails = a8.remainder().iter().zip(b8.remainder());
    let mut tail = [0f64; 8];
    for (lane, (x, y)) in tail.iter_mut().zip(tails) {
        let d = f64::from(*x) - f64::from(*y);
        *lane = d * d;
    }
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            let d = f64::from(x[i]) - f64::from(y[i]);
            lanes[i] += d * d;
        }
    }
    for i in 0..8 {
        lanes[i] += tail[i];
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

struct Head(Candidate, std::vec::IntoIter<Candidate>);

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.rank(&self.0)
    }
}

/// Merges partial results, each sorted by [`Candidate::rank`], into the best `k`.
///
/// An item that comes twice (a late or duplicate partial) counts once.
pub fn merge_top_k(partials: Vec<Vec<Candidate>>, k: usize) -> Vec<Candidate> {
    let mut heads: BinaryHeap<Head> = partials
        .into_iter()
        .filter_map(|partial| {
            debug_assert!(partial.is_sorted_by(|a, b| a.rank(b) != Ordering::Greater), "partials are sorted");
            let mut rest = partial.into_iter();
            rest.next().map(|first| Head(first, rest))
        })
        .collect();
    let mut best: Vec<Candidate> = Vec::new();
    while best.len() < k {
        let Some(Head(candidate, mut rest)) = heads.pop() else { break };
        if let Some(next) = rest.next() {
            heads.push(Head(next, rest));
        }
        if best.last().is_none_or(|last| last.item != candidate.item || last.d2.to_bits() != candidate.d2.to_bits()) {
            best.push(candidate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u8..6, 0u16..400).prop_map(|(d, id)| (f64::from(d) / 4.0, format!("item-{id}")));
        proptest::collection::btree_map("[a-z]{1,3}", one, 0..80)
            .prop_map(|map| map.into_iter().map(|(item, (d2, _))| Candidate { d2, item, shard: 0, row: 0 }).collect())
    }

    proptest! {
        #[test]
        fn merge_equals_sort_and_truncate_for_any_split(all in candidates(), cuts in proptest::collection::vec(0usize..7, 80), k in 0usize..100) {
            let mut expected = all.clone();
            expected.sort_by(Candidate::rank);
            expected.truncate(k);
            let mut partials = vec![Vec::new(); 7];
            for (candidate, cut) in all.into_iter().zip(cuts) {
                partials[cut].push(candidate);
            }
            for partial in &mut partials {
                partial.sort_by(Candidate::rank);
            }
            let doubled = partials.iter().cloned().chain(partials.iter().cloned()).collect();
            prop_assert_eq!(merge_top_k(doubled, k), expected.clone());
            partials.reverse();
            prop_assert_eq!(merge_top_k(partials, k), expected);
        }

        #[test]
        fn canonical_distance_is_close_to_the_plain_sum(v in proptest::collection::vec((-1f32..1.0, -1f32..1.0), 0..70)) {
            let (a, b): (Vec<f32>, Vec<f32>) = v.iter().copied().unzip();
            let plain: f64 = v.iter().map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            prop_assert!((canonical_d2(&a, &b) - plain).abs() <= 1e-12 * plain.max(1.0));
        }
    }

    #[test]
    fn tied_distances_are_ordered_by_the_bytes_of_the_id() {
        assert_eq!(rank((1.0, "a10"), (1.0, "a2")), Ordering::Less);
        assert_eq!(rank((1.0, "Z"), (1.0, "a")), Ordering::Less);
        assert_eq!(rank((0.5, "z"), (1.0, "a")), Ordering::Less);
    }
}
