//! Gradients by finite differences, equal bytes, equal results of both engines.

use super::*;
use crate::nhwc::Isa;
use crate::threads::with_threads;

const ISAS: [Isa; 2] = [Isa::Portable, Isa::Avx2Fma];

fn values(seed: usize, len: usize) -> Vec<f32> {
    let hashed = |i: usize| {
        let mut k = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed as u32 * 40_503);
        k ^= k >> 15;
        k = k.wrapping_mul(2_246_822_519);
        k ^ (k >> 13)
    };
    (0..len).map(|i| hashed(i) as f32 / (1u32 << 31) as f32 - 1.0).collect()
}

/// Small networks of both kinds, with and without a downsampling first block.
fn shapes() -> [NetworkShape; 2] {
    [
        NetworkShape { kind: BlockKind::Basic, depths: [1, 2, 1, 1], width: 16 },
        NetworkShape { kind: BlockKind::Bottleneck, depths: [2, 1, 1, 1], width: 16 },
    ]
}

/// Weights that keep activations near 1, in the order of parameters.
fn parameters(shape: &NetworkShape) -> Vec<Vec<f32>> {
    let (units, _) = shape::units(shape);
    let unit = |(i, unit): (usize, &crate::nhwc::ConvShape)| {
        let scale = (6.0 / unit.depth() as f32).sqrt();
        let weight = values(i, unit.weights()).iter().map(|v| v * scale).collect();
        let gamma = values(100 + i, unit.c_out).iter().map(|v| 1.0 + 0.25 * v).collect();
        [weight, gamma, values(200 + i, unit.c_out).iter().map(|v| 0.25 * v).collect()]
    };
    units.iter().enumerate().flat_map(unit).collect()
}

fn slices(vectors: &[Vec<f32>]) -> Vec<&[f32]> {
    vectors.iter().map(|v| &v[..]).collect()
}

const SIZE: (usize, usize, usize) = (3, 45, 37);

struct Step {
    features: Vec<f32>,
    statistics: Vec<NormStatistics>,
    gradients: Vec<Vec<f32>>,
}

fn step_of(network: &mut TrainNetwork, parameters: &[Vec<f32>], (n, h, w): (usize, usize, usize)) -> Step {
    let mut features = vec![0.0; n * network.shape().features()];
    network.forward(&values(7, n * 3 * h * w), (n, h, w), &slices(parameters), &mut features);
    let statistics = network.statistics().cloned().collect();
    let mut gradients: Vec<Vec<f32>> = parameters.iter().map(|p| vec![f32::NAN; p.len()]).collect();
    let mut slots: Vec<&mut [f32]> = gradients.iter_mut().map(|g| &mut g[..]).collect();
    network.backward(&values(8, features.len()), &slices(parameters), &mut slots);
    Step { features, statistics, gradients }
}

fn step(shape: NetworkShape, isa: Isa, winograd: bool) -> Step {
    step_of(&mut TrainNetwork::new(shape, isa, winograd), &parameters(&shape), SIZE)
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Distance of two vectors as a share of the norm of the second.
fn relative(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: Vec<f32> = got.iter().zip(want).map(|(g, w)| g - w).collect();
    norm(&difference) / norm(want).max(1e-6)
}

/// The loss `Σ features · d_features`, whose gradient [`step_of`] computes.
fn loss(network: &mut TrainNetwork, parameters: &[Vec<f32>]) -> f64 {
    let (n, h, w) = SIZE;
    let mut features = vec![0.0; n * network.shape().features()];
    network.forward(&values(7, n * 3 * h * w), SIZE, &slices(parameters), &mut features);
    features.iter().zip(values(8, features.len())).map(|(f, d)| f64::from(*f) * f64::from(d)).sum()
}

#[test]
fn gradients_are_the_slope_of_the_loss() {
    const H: f32 = 2e-3;
    for shape in shapes() {
        let (mut parameters, isa) = (parameters(&shape), Isa::Portable);
        let gradients = step(shape, isa, false).gradients;
        let mut network = TrainNetwork::new(shape, isa, false);
        for (i, gradient) in gradients.iter().enumerate() {
            // Along the gradient itself: the slope there is its norm, and rounding is smallest against it.
            let length = norm(gradient);
            let (before, mut at) = (parameters[i].clone(), |h: f32| {
                let moved = before.iter().zip(gradient).map(|(p, g)| p + h * (f64::from(*g) / length) as f32);
                parameters[i] = moved.collect();
                loss(&mut network, &parameters)
            });
            let slope = (at(H) - at(-H)) / f64::from(2.0 * H);
            at(0.0);
            assert!((slope - length).abs() < 0.05 * length, "parameter {i} of {shape:?}: {slope} instead of {length}");
        }
    }
}
