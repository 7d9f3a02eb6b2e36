//! Seeded randomness and percentile bootstrap intervals.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples of an interval.
pub const RESAMPLES: usize = 2_000;
/// Share of the resampled means that an interval covers.
pub const LEVEL: f64 = 0.95;

/// The random stream of a purpose under a seed.
pub fn stream(seed: u64, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(purpose);
    rng
}

/// A number below `n` > 0 by one widening multiplication: the same in every version of every library, which
/// a range sampler does not promise. Its bias is below n / 2⁶⁴.
pub fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(n)) >> 64) as u64
}

/// Mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// 95 % percentile interval of the mean over [`RESAMPLES`] resamples of `values`; `[0, 0]` of nothing.
pub fn interval(values: &[f64], seed: u64, purpose: u64) -> [f64; 2] {
    if values.is_empty() {
        return [0.0, 0.0];
    }
    let mut rng = stream(seed, purpose);
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| resampled_mean(values, &mut rng)).collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - LEVEL) / 2.0;
    [quantile(&means, tail), quantile(&means, 1.0 - tail)]
}

fn resampled_mean(values: &[f64], rng: &mut ChaCha8Rng) -> f64 {
    let n = values.len() as u64;
    let sum: f64 = (0..n).map(|_| values[below(rng, n) as usize]).sum();
    sum / n as f64
}

/// Quantile of sorted values by linear interpolation, as numpy's default.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_equal_numpys() {
        // np.quantile([1, 2, 4, 8], [0, 0.025, 0.5, 0.9, 1]) → 1, 1.075, 3, 6.8, 8
        let sorted = [1.0, 2.0, 4.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.025, 1.075), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            assert!((quantile(&sorted, share) - expected).abs() < 1e-12, "{share}");
        }
    }

    #[test]
    fn an_interval_has_the_width_of_the_normal_approximation() {
        // 1,000 zeros and ones: standard error √(.25 / 1000) = .0158, so about .5 ± .031.
        let values: Vec<f64> = (0..1000).map(|i| f64::from(i % 2)).collect();
        let [low, high] = interval(&values, 7, 0);
        assert!((low - 0.469).abs() < 0.004 && (high - 0.531).abs() < 0.004, "{low} {high}");
        assert_eq!(interval(&values, 7, 0), [low, high]);
        assert_ne!(interval(&values, 8, 0), [low, high]);
    }

    #[test]
    fn constant_values_have_an_interval_without_width() {
        assert_eq!(interval(&[0.25; 10], 0, 0), [0.25, 0.25]);
        assert_eq!(interval(&[], 0, 0), [0.0, 0.0]);
    }

    #[test]
    fn numbers_below_n_are_spread_evenly() {
        let mut rng = stream(3, 1);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }
}
