//! Random numbers that are the same for ever: ChaCha8 streams and two ways to read them.
//!
//! The distributions of `rand` may change between its releases, and a training that is resumed by an upgraded
//! worker must still end in the same bytes; so bounded integers and unit floats are made here.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream is used for: streams of different purposes never meet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Order of the rows in an epoch.
    Order = 1,
    /// Queries, negatives and augmentation of a step.
    Batch = 2,
    /// Queries and negatives of a validation batch.
    Validation = 3,
    /// Part of an image in a random resized crop.
    Crop = 4,
}

/// The stream number `number` of a purpose under a seed.
pub(crate) fn stream(seed: u64, purpose: Purpose, number: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(number);
    rng
}

/// Uniform in `0..bound`, by multiply-shift: off by at most `bound / 2⁶⁴`. `bound` must not be 0.
pub(crate) fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    debug_assert!(bound > 0);
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

/// Uniform in `0..1`: 24 random bits, exact in f32.
pub(crate) fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// A fair coin.
pub(crate) fn coin(rng: &mut ChaCha8Rng) -> bool {
    rng.next_u32() >> 31 == 1
}

/// A uniformly random order of `items`.
pub(crate) fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}
