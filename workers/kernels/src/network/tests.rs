//! Gradients by finite differences, equal bytes, equal results of both engines.

use super::*;
use crate::nhwc::Isa;
use crate::threads::with_threads;

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

/// The parameters, those of one convolution and its norm moved by `h` along their gradient.
fn moved(parameters: &[Vec<f32>], gradients: &[Vec<f32>], unit: usize, h: f64) -> Vec<Vec<f32>> {
    let mut moved = parameters.to_vec();
    let own = PER_UNIT * unit..PER_UNIT * (unit + 1);
    let along = |(p, g): (&mut f32, &f32)| *p += (h * f64::from(*g)) as f32;
    own.for_each(|i| moved[i].iter_mut().zip(&gradients[i]).for_each(along));
    moved
}

#[test]
fn gradients_are_the_slope_of_the_loss() {
    const H: f64 = 2e-3;
    for shape in shapes() {
        let (parameters, gradients) = (parameters(&shape), step(shape, Isa::detect(), false).gradients);
        let mut network = TrainNetwork::new(shape, Isa::detect(), false);
        for unit in 0..parameters.len() / PER_UNIT {
            // Along the gradient itself the slope is its norm, and rounding is smallest against it.
            let length = norm(&gradients[PER_UNIT * unit..PER_UNIT * (unit + 1)].concat());
            let mut at = |h: f64| loss(&mut network, &moved(&parameters, &gradients, unit, h / length));
            let slope = (at(H) - at(-H)) / (2.0 * H);
            assert!((slope - length).abs() < 0.03 * length, "unit {unit} of {shape:?}: {slope} instead of {length}");
        }
    }
}

#[test]
fn every_instruction_set_and_way_gives_the_portable_result() {
    for shape in shapes() {
        let want = step(shape, Isa::Portable, false);
        for (winograd, tolerance) in [(false, 1e-4), (true, 1e-3)] {
            let got = step(shape, Isa::detect(), winograd);
            assert!(relative(&got.features, &want.features) < tolerance, "features of {shape:?}");
            for (i, (got, want)) in got.gradients.iter().zip(&want.gradients).enumerate() {
                let error = relative(got, want);
                assert!(error < 20.0 * tolerance, "gradient {i} of {shape:?}, winograd {winograd}: {error}");
            }
        }
    }
}

#[test]
fn bytes_of_a_step_do_not_depend_on_the_number_of_threads() {
    for (shape, winograd) in shapes().into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let once = |threads| with_threads(threads, || step(shape, Isa::detect(), winograd));
        let one = once(1);
        for threads in [2, 3] {
            let more = once(threads);
            assert_eq!(one.features, more.features, "{threads} threads, {shape:?}");
            assert_eq!(one.gradients, more.gradients, "{threads} threads, {shape:?}");
            assert_eq!(one.statistics, more.statistics, "{threads} threads, {shape:?}");
        }
    }
}

#[test]
fn a_network_forgets_every_batch_before() {
    for shape in shapes() {
        let (parameters, mut network) = (parameters(&shape), TrainNetwork::new(shape, Isa::detect(), true));
        let fresh = step_of(&mut network, &parameters, SIZE);
        for between in [(5, 33, 33), SIZE, (2, 64, 64)] {
            step_of(&mut network, &parameters, between);
            let again = step_of(&mut network, &parameters, SIZE);
            assert_eq!(fresh.features, again.features, "{shape:?} after {between:?}");
            assert_eq!(fresh.gradients, again.gradients, "{shape:?} after {between:?}");
        }
    }
}

/// An inference network whose running statistics are those of the training pass of [`step`].
fn inference(shape: NetworkShape, winograd: bool) -> (InferNetwork, Step) {
    let (parameters, step, (n, h, w)) = (parameters(&shape), step(shape, Isa::detect(), winograd), SIZE);
    let plan = shape::Plan::new(&shape, n, h, w);
    let biased = |(seen, output): (&NormStatistics, &crate::nhwc::Dims)| -> Vec<f32> {
        let n = output.pixels() as f32;
        seen.variance.iter().map(|v| v * (n - 1.0) / n).collect()
    };
    let variances: Vec<_> = step.statistics.iter().zip(&plan.outputs).map(biased).collect();
    let unit = |(i, p): (usize, &[Vec<f32>; PER_UNIT])| -> [Vec<f32>; 5] {
        let [weight, gamma, beta] = p.clone();
        [weight, gamma, beta, step.statistics[i].mean.clone(), variances[i].clone()]
    };
    let units: Vec<_> = parameters.as_chunks().0.iter().enumerate().map(unit).collect();
    let folded: Vec<_> = units.iter().map(|unit| Folded::of(unit.each_ref().map(|v| &v[..]))).collect();
    (InferNetwork::new(shape, (h, w), &folded, Isa::detect(), winograd), step)
}

#[test]
fn inference_with_the_batchs_own_statistics_equals_the_training_pass() {
    let (n, h, w) = SIZE;
    for shape in shapes() {
        let (network, step) = inference(shape, false);
        let mut features = vec![f32::NAN; step.features.len()];
        network.forward(&values(7, n * 3 * h * w), &mut features);
        let error = relative(&features, &step.features);
        assert!(error < 1e-4, "{shape:?}: {error}");
    }
}

#[test]
fn features_do_not_depend_on_the_batch_around_nor_on_the_number_of_threads() {
    let (_, h, w) = SIZE;
    let (n, image) = (MANY, 3 * h * w);
    let images = values(9, n * image);
    for (shape, winograd) in shapes().into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
        let (network, _) = inference(shape, winograd);
        let run = |images: &[f32]| {
            let mut features = vec![f32::NAN; images.len() / image * shape.features()];
            network.forward(images, &mut features);
            features
        };
        let together = with_threads(2, || run(&images));
        for threads in [1, 3] {
            assert_eq!(together, with_threads(threads, || run(&images)), "{threads} threads, {shape:?}");
        }
        for cut in [1, 7] {
            let apart: Vec<f32> = images.chunks(cut * image).flat_map(run).collect();
            assert_eq!(together, apart, "{cut} at once, {shape:?}, winograd {winograd}");
        }
    }
}

/// More images than go through the last stage together.
const MANY: usize = 67;
