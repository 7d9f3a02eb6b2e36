//! The whole-network path against the one layer by layer.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};

use crate::layers::BatchStatistics;
use crate::{CpuCompute, Trainer, Winograd};

const A: usize = 6;
const B: usize = 6;
const LAYER_BY_LAYER: CpuCompute = CpuCompute { whole_network: false, winograd: Winograd::Off };

fn trainer(architecture: Architecture, px: usize, compute: CpuCompute) -> Trainer {
    let settings = ModelSettings {
        architecture,
        embedding_dim: 16,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(px as u32),
    };
    let train = TrainSettings { warmup_share: 0.0, ..TrainSettings::default() };
    Trainer::fresh(&settings, &train, A, 100, &Device::Cpu).unwrap().with_compute(compute)
}

fn tensor(phase: u32, dims: &[usize]) -> Tensor {
    let hashed = |i: u32| {
        let mut k = i.wrapping_mul(2_654_435_761).wrapping_add(phase.wrapping_mul(40_503));
        k ^= k >> 15;
        k = k.wrapping_mul(2_246_822_519);
        (k ^ (k >> 13)) as f32 / (1u32 << 31) as f32 - 1.0
    };
    let count = dims.iter().product::<usize>() as u32;
    Tensor::from_vec((0..count).map(hashed).collect(), dims, &Device::Cpu).unwrap()
}

fn batch(px: usize) -> [Tensor; 3] {
    [tensor(1, &[B, 3, px, px]), tensor(2, &[B, A]), tensor(3, &[B, A])]
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖got − want‖ / ‖want‖
fn error(got: &[f32], want: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    difference / norm(&mut want.iter().copied()).max(1e-6)
}

/// A margin above every difference of distances, so that every triplet counts.
const NO_CORNER: f64 = 5.0;

/// Moves the image network's parameters to where its output is smooth, so that rounding can not decide anything: in
/// its own way each engine could else take a value near 0 to the other side of a ReLU, or another of two nearly equal
/// values as the largest.
///
/// Norms give `0.5 · x̂ ± 4`, even channels all above 0 and odd ones all below, shortcuts too. The first convolution's
/// weights and the [`images`] are multiples of small powers of two, whose sums are exact in any order: its outputs are
/// the same bits everywhere, or differ by far more than rounding.
fn make_smooth(trainer: &Trainer) {
    for (name, parameter) in &trainer.model().tensors().parameters {
        let is_norm = name.starts_with("image.") && (name.contains(".bn") || name.contains(".downsample.1."));
        let changed = |f: &dyn Fn(usize, f32) -> f32| {
            let values = flat(parameter).into_iter().enumerate().map(|(i, v)| f(i, v)).collect();
            parameter.set(&Tensor::from_vec(values, parameter.dims(), &Device::Cpu).unwrap()).unwrap();
        };
        match name.rsplit_once('.') {
            Some((_, "weight")) if is_norm => changed(&|_, _| 0.5),
            Some((_, "bias")) if is_norm => changed(&|i, _| if i % 2 == 0 { 4.0 } else { -4.0 }),
            Some(("image.conv1", "weight")) => changed(&|_, v| (v * 256.0).round() / 256.0),
            _ => {}
        }
    }
}

/// Images of few different values.
fn images(px: usize) -> Tensor {
    let sixteenths = (tensor(1, &[B, 3, px, px]) * 16.0).unwrap().round().unwrap();
    (sixteenths / 16.0).unwrap()
}

/// Distances, gradients and new statistics of a training pass, by name.
fn pass(trainer: &Trainer, [images, positives, negatives]: &[Tensor; 3]) -> Vec<(String, Vec<f32>)> {
    let (model, mut statistics) = (trainer.model(), BatchStatistics::default());
    let labels = positives.clone();
    let (images, positives, negatives) = (images.clone(), positives.clone(), negatives.clone());
    let batch = crate::Batch { images, labels, positives, negatives };
    let placed = model.place_in_training(&batch, false, &mut statistics).unwrap();
    let triplets = crate::Triplets::new(&placed.anchors, &placed.positives, &placed.negatives).unwrap();
    let gradients = model.gradients(&triplets.loss(NO_CORNER).unwrap(), false).unwrap();
    let mut all = vec![("dp".to_owned(), flat(triplets.positive_distances()))];
    all.extend(model.tensors().parameters.iter().map(|(name, p)| (name.clone(), flat(gradients.get(p).unwrap()))));
    statistics.apply().unwrap();
    all.extend(model.tensors().statistics.iter().map(|(name, s)| (name.clone(), flat(s))));
    all
}

#[test]
fn a_training_pass_equals_the_one_layer_by_layer() {
    // At sizes at which on one instruction set or another a value lay too near a corner, before the corners were gone.
    for (architecture, px) in [(Architecture::CnnS, 41), (Architecture::CnnS, 45), (Architecture::ResNet50, 49)] {
        let [_, positives, negatives] = batch(px);
        let batch = [images(px), positives, negatives];
        let pass = |compute| {
            let trainer = trainer(architecture, px, compute);
            make_smooth(&trainer);
            pass(&trainer, &batch)
        };
        let want = pass(LAYER_BY_LAYER);
        for winograd in [Winograd::Off, Winograd::On] {
            let got = pass(CpuCompute { whole_network: true, winograd });
            assert_eq!(got.len(), want.len());
            for ((name, got), (_, want)) in got.iter().zip(&want) {
                // A bias before a norm has no gradient but rounding.
                let error = if name == "attributes.linear1.bias" { 0.0 } else { error(got, want) };
                // Gradients that differ little from pixel to pixel cancel in every norm: ten times what is seen.
                assert!(error < 1e-2, "{name} of {architecture:?} at {px}, {winograd:?}: {error}");
            }
        }
    }
}

#[test]
fn a_step_and_what_it_then_embeds_equal_those_layer_by_layer() {
    let [images, positives, negatives] = batch(40);
    let after = |compute| {
        let mut trainer = trainer(Architecture::CnnS, 40, compute);
        // Packed before the step: the step must void it.
        trainer.model().embed_images(&images).unwrap();
        let labels = positives.clone();
        let (positives, negatives) = (positives.clone(), negatives.clone());
        trainer.step(&crate::Batch { images: images.clone(), labels, positives, negatives }).unwrap();
        let tensors: Vec<_> = trainer.model().tensors().iter().map(|(name, t)| (name.to_owned(), flat(t))).collect();
        (tensors, flat(&trainer.model().embed_images(&images).unwrap()))
    };
    let (want, embedded) = after(LAYER_BY_LAYER);
    let (got, got_embedded) = after(CpuCompute { whole_network: true, winograd: Winograd::Off });
    for ((name, got), (_, want)) in got.iter().zip(&want).filter(|((name, _), _)| !name.ends_with("bias")) {
        assert!(error(got, want) < 1e-3, "{name}: {}", error(got, want));
    }
    // AdamW's first step is nearly `lr · sign(g)`, so the smallest gradients decide by their rounding.
    assert!(error(&got_embedded, &embedded) < 1e-2, "{}", error(&got_embedded, &embedded));
}

#[test]
fn embeddings_equal_those_layer_by_layer() {
    for (architecture, px) in [(Architecture::CnnS, 64), (Architecture::ResNet18, 33), (Architecture::ResNet50, 64)] {
        let images = tensor(1, &[3, 3, px, px]);
        let embed = |compute| flat(&trainer(architecture, px, compute).into_model().embed_images(&images).unwrap());
        let want = embed(LAYER_BY_LAYER);
        for winograd in [Winograd::Off, Winograd::Inference] {
            let error = error(&embed(CpuCompute { whole_network: true, winograd }), &want);
            assert!(error < 1e-4, "{architecture:?}, {winograd:?}: {error}");
        }
    }
}

/// Rows of a gallery are copied between generations on the strength of this.
#[test]
fn an_image_is_embedded_to_the_same_bits_whatever_is_beside_it() {
    const MANY: usize = 67;
    for (architecture, px) in [(Architecture::CnnS, 64), (Architecture::CnnS, 41), (Architecture::ResNet50, 49)] {
        let images = tensor(7, &[MANY, 3, px, px]);
        for compute in [
            CpuCompute { whole_network: true, winograd: Winograd::On },
            CpuCompute { whole_network: true, winograd: Winograd::Inference },
            CpuCompute { whole_network: true, winograd: Winograd::Off },
        ] {
            let trainer = trainer(architecture, px, compute);
            let embed = |from: usize, rows: usize| -> Vec<u32> {
                let some = images.narrow(0, from, rows).unwrap().contiguous().unwrap();
                flat(&trainer.model().embed_images(&some).unwrap()).into_iter().map(f32::to_bits).collect()
            };
            let all = embed(0, 64);
            for (from, rows) in [(0, 1), (5, 2), (17, 3), (31, 33), (3, 61), (40, 5)] {
                let dim = all.len() / 64;
                let beside = embed(from, rows);
                let end = (from + rows).min(64);
                assert!(
                    beside[..(end - from) * dim] == all[from * dim..end * dim],
                    "{architecture:?} at {px}, {compute:?}: {rows} images from {from}"
                );
            }
        }
    }
}
