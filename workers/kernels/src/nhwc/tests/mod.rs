//! Properties over random shapes, against plain loops and identities.

mod convolution;
mod elementwise;

use proptest::test_runner::{Config, RngSeed};

/// So many cases, the same in every run.
fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Config::default() }
}

/// Values in −1…1, the same for every run.
fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state as f32 / u32::MAX as f32) * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Largest difference over the largest value wanted.
fn error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-30f64, |m, v| m.max(f64::from(v.abs())));
    got.iter().zip(want).fold(0.0f64, |e, (g, w)| {
        let difference = f64::from(g - w).abs();
        if difference.is_nan() { f64::INFINITY } else { e.max(difference / largest) }
    })
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|f| f.to_bits()).collect()
}
