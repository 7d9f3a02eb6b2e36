//! Which searchers hold a shard: rendezvous hashing.
//!
//! Every searcher computes the same answer from the same list of live searchers, without a master. A searcher
//! that joins takes only the shards that it wins; one that leaves hands on only those that it held.

use std::cmp::Reverse;

use likeness_contract::ids::{Digest, WorkerId};
use likeness_contract::jobs::GenerationRef;

/// The searchers among which shards are shared.
#[derive(Debug)]
pub struct Ring<'a> {
    searchers: Vec<(u64, &'a WorkerId)>,
}

impl<'a> Ring<'a> {
    /// A ring of these searchers, in whatever order.
    pub fn new(searchers: impl IntoIterator<Item = &'a WorkerId>) -> Self {
        let seeded = searchers.into_iter().map(|searcher| (seed(searcher.as_str()), searcher));
        Self { searchers: seeded.collect() }
    }

    /// The `replicas` searchers (all, when there are fewer) that are to hold a shard, the first choice first.
    pub fn holders(&self, generation: &GenerationRef, shard: u32, replicas: usize) -> Vec<&'a WorkerId> {
        let GenerationRef { gallery, generation } = generation;
        let shard = seed(&format!("{gallery}/{generation}/{shard}"));
        let score = |seed: u64| Reverse(mixed(shard ^ seed));
        let mut scored: Vec<_> = self.searchers.iter().map(|(seed, searcher)| (score(*seed), *searcher)).collect();
        scored.sort_unstable();
        scored.truncate(replicas);
        scored.into_iter().map(|(_, searcher)| searcher).collect()
    }
}

/// The same in every process and version: places must not move with an upgrade.
fn seed(text: &str) -> u64 {
    let digest = Digest::of(text.as_bytes());
    u64::from_be_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of the seed.
pub fn mixed(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use likeness_contract::ids::{JobId, Name};

    use super::*;

    const SHARDS: u32 = 600;

    fn placement(searchers: &[WorkerId], replicas: usize) -> Vec<Vec<WorkerId>> {
        let generation =
            GenerationRef { gallery: Name::new("faces").unwrap(), generation: JobId::new("embed-1").unwrap() };
        let ring = Ring::new(searchers);
        (0..SHARDS).map(|shard| ring.holders(&generation, shard, replicas).into_iter().cloned().collect()).collect()
    }

    fn searchers(count: usize) -> Vec<WorkerId> {
        (0..count).map(|i| WorkerId::new(format!("node-{i}")).unwrap()).collect()
    }

    #[test]
    fn a_joining_searcher_moves_only_what_it_wins() {
        let (before, after) = (placement(&searchers(5), 2), placement(&searchers(6), 2));
        let newcomer = &searchers(6)[5];
        let mut moved = 0;
        for (before, after) in before.iter().zip(&after) {
            let taken: Vec<_> = after.iter().filter(|searcher| !before.contains(searcher)).collect();
            assert!(taken.iter().all(|searcher| *searcher == newcomer));
            moved += taken.len();
        }
        // Its fair share is 2 × 600 / 6 = 200.
        assert!((140..=260).contains(&moved), "{moved}");
    }

    #[test]
    fn a_leaving_searcher_moves_only_what_it_held() {
        let (before, after) = (placement(&searchers(6), 2), placement(&searchers(5), 2));
        let gone = &searchers(6)[5];
        for (before, after) in before.iter().zip(&after) {
            let kept = before.iter().filter(|searcher| *searcher != gone);
            assert!(kept.clone().all(|searcher| after.contains(searcher)));
        }
    }

    #[test]
    fn shards_are_spread_evenly_and_replicas_are_distinct() {
        let mut load: BTreeMap<WorkerId, usize> = BTreeMap::new();
        for holders in placement(&searchers(5), 2) {
            assert_ne!(holders[0], holders[1]);
            for holder in holders {
                *load.entry(holder).or_default() += 1;
            }
        }
        assert!(load.values().all(|held| (180..=300).contains(held)), "{load:?}");
    }

    #[test]
    fn the_order_of_the_list_does_not_matter_and_few_searchers_hold_everything() {
        let mut reversed = searchers(4);
        reversed.reverse();
        assert_eq!(placement(&searchers(4), 2), placement(&reversed, 2));
        assert!(placement(&searchers(1), 2).iter().all(|holders| holders.len() == 1));
        assert!(placement(&[], 2).iter().all(Vec::is_empty));
    }
}
