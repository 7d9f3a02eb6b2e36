//! Fresh weights, as torchvision and PyTorch draw them.
//!
//! Every tensor has a ChaCha stream of its own, chosen by its name: its values depend on the seed, its name and
//! its shape, never on the order in which tensors are made.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How a tensor starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// Normal with variance 2 / fan-out: torchvision's convolutions.
    KaimingFanOut,
    /// Uniform between ±1/√fan_in: PyTorch's `Linear`, weight and bias.
    FanIn(usize),
    /// One value.
    Constant(f32),
}

impl Init {
    /// The elements of the tensor `name` of `shape`.
    pub fn values(self, seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let mut rng = stream(seed, name);
        match self {
            Self::Constant(value) => vec![value; count],
            Self::FanIn(inputs) => {
                let bound = 1.0 / (inputs as f64).sqrt();
                (0..count).map(|_| (bound * (2.0 * uniform(&mut rng) - 1.0)) as f32).collect()
            }
            Self::KaimingFanOut => {
                let fan_out: usize = shape[0] * shape[2..].iter().product::<usize>();
                let std = (2.0 / fan_out as f64).sqrt();
                (0..count).map(|_| (std * normal(&mut rng)) as f32).collect()
            }
        }
    }
}

fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name.as_bytes()));
    rng
}

/// 64-bit FNV-1a: names a stream; part of what a seed means, so it never changes.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// In [0, 1), of 53 random bits.
fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal (Box and Muller; the second value of a pair is not used).
fn normal(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_variance(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        (mean, values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn convolutions_start_with_variance_two_over_fan_out() {
        let values = Init::KaimingFanOut.values(1, "conv", &[64, 32, 3, 3]);
        let (mean, variance) = mean_and_variance(&values);
        let expected = 2.0 / (64.0 * 9.0);
        assert!(mean.abs() < 1e-3 && (variance / expected - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn linear_layers_start_uniform_within_the_root_of_fan_in() {
        let values = Init::FanIn(400).values(1, "linear", &[300, 400]);
        let (mean, variance) = mean_and_variance(&values);
        assert!(values.iter().all(|v| v.abs() <= 0.05));
        assert!(mean.abs() < 1e-3 && (variance / (0.05 * 0.05 / 3.0) - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn a_tensor_depends_on_seed_and_name_alone() {
        let values = |seed, name| Init::FanIn(4).values(seed, name, &[8]);
        assert_eq!(values(1, "a"), values(1, "a"));
        assert_ne!(values(1, "a"), values(1, "b"));
        assert_ne!(values(1, "a"), values(2, "a"));
    }
}
