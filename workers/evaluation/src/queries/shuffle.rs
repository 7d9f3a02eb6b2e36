//! A random order of a space too large to be listed.

use std::collections::HashMap;

use crate::bootstrap::{below, stream};
use rand_chacha::ChaCha8Rng;

/// Fisher–Yates over `0..space` that only remembers the places that it has touched.
pub struct LazyShuffle {
    moved: HashMap<u64, u64>,
    next: u64,
    space: u64,
    rng: ChaCha8Rng,
}

impl LazyShuffle {
    /// A random order of `0..space`, by seed; `purpose` tells orders of one seed apart.
    pub fn new(space: u64, seed: u64, purpose: u64) -> Self {
        Self { moved: HashMap::new(), next: 0, space, rng: stream(seed, purpose) }
    }

    /// The next number of the order; call it at most `space` times.
    pub fn draw(&mut self) -> u64 {
        let chosen = self.next + below(&mut self.rng, self.space - self.next);
        let here = self.moved.remove(&self.next).unwrap_or(self.next);
        self.next += 1;
        if chosen + 1 == self.next {
            return here;
        }
        self.moved.insert(chosen, here).unwrap_or(chosen)
    }
}

/// n over k; saturates.
pub fn combinations(n: u64, k: usize) -> u64 {
    (0..k as u64).fold(1u64, |product, i| product.saturating_mul(n.saturating_sub(i)) / (i + 1))
}

/// The `number`-th set of `k` positions in the combinatorial number system, ascending:
/// number = Σ over i of (position i over i + 1).
pub fn combination(number: u64, k: usize) -> Vec<u32> {
    let mut rest = number;
    let mut positions = vec![0u32; k];
    for size in (1..=k).rev() {
        let position = largest(|p| combinations(p, size) <= rest);
        rest -= combinations(position, size);
        positions[size - 1] = position as u32;
    }
    positions
}

/// The largest number for which a monotone condition, true at 0, holds.
fn largest(holds: impl Fn(u64) -> bool) -> u64 {
    let mut high = 1;
    while holds(high) {
        high *= 2;
    }
    let mut low = high / 2;
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn combinations_are_numbered_without_gaps_or_repeats() {
        for k in 1..=3 {
            let all: BTreeSet<Vec<u32>> = (0..combinations(9, k)).map(|number| combination(number, k)).collect();
            assert_eq!(all.len() as u64, combinations(9, k));
            assert!(all.iter().all(|set| set.is_sorted_by(|a, b| a < b) && set.iter().all(|&p| p < 9)));
        }
        assert_eq!((combinations(40, 2), combinations(40, 3), combinations(1, 2)), (780, 9880, 0));
    }

    #[test]
    fn a_shuffle_visits_everything_once_and_depends_on_its_seed() {
        let order = |seed| {
            let mut shuffle = LazyShuffle::new(500, seed, 0);
            (0..500).map(|_| shuffle.draw()).collect::<Vec<_>>()
        };
        assert_eq!(order(1).iter().collect::<BTreeSet<_>>().len(), 500);
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert!(order(1).iter().max() == Some(&499));
    }
}
