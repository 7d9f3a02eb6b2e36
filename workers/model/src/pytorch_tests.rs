//! Towers, gradients, statistics and an optimizer step against PyTorch's numbers (`tests/expected.py` makes them).

use candle_core::{Device, Tensor};
use serde_json::Value;

use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};

use crate::layers::BatchStatistics;
use crate::tensors::{Stored, StoredTensor};
use crate::{Batch, CpuCompute, Model, Trainer, Triplets, Winograd, checkpoint};

const A: usize = 10;
const D: u32 = 24;
const B: usize = 8;
/// The batch norm behind it takes every constant away again: its gradient is rounding alone.
const NO_GRADIENT: &str = "attributes.linear1.bias";

/// `count` values in [-1, 1) that look random: the script's `noise`.
fn noise(count: usize, phase: u32) -> Vec<f32> {
    let hashed = |k: u32| {
        let mut k = k.wrapping_mul(2_654_435_761).wrapping_add(phase.wrapping_mul(40_503));
        k ^= k >> 15;
        k = k.wrapping_mul(2_246_822_519);
        k ^= k >> 13;
        k = k.wrapping_mul(3_266_489_917);
        k ^ (k >> 16)
    };
    (0..count as u32).map(|k| (f64::from(hashed(k)) / f64::from(1u32 << 31) - 1.0) as f32).collect()
}

fn phase(name: &str) -> u32 {
    name.bytes().enumerate().map(|(i, byte)| (i as u32 + 1) * u32::from(byte)).sum()
}

/// The script's `weights`.
fn formula(name: &str, shape: &[usize]) -> Vec<f32> {
    let values = noise(shape.iter().product(), phase(name));
    let made: Box<dyn Fn(f64) -> f64> = match shape {
        [_] if name.ends_with("running_var") => Box::new(|v| 1.0 + 0.25 * v),
        [_] if name.ends_with("running_mean") || name.ends_with("bias") => Box::new(|v| 0.125 * v),
        [_] => Box::new(|v| 1.0 + 0.125 * v),
        [_, inputs] => Box::new(|v| v / (*inputs as f64).sqrt()),
        _ => Box::new(|v| v * (6.0 / (shape[0] * shape[2] * shape[3]) as f64).sqrt()),
    };
    values.into_iter().map(|v| made(f64::from(v)) as f32).collect()
}

fn settings(architecture: Architecture, px: u32) -> ModelSettings {
    ModelSettings {
        architecture,
        embedding_dim: D,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(px),
    }
}

fn train_settings() -> TrainSettings {
    TrainSettings { warmup_share: 0.0, ..TrainSettings::default() }
}

/// A checkpoint of step 0 whose weights are the formula's.
fn formula_checkpoint(settings: &ModelSettings) -> Vec<u8> {
    let trainer = Trainer::fresh(settings, &train_settings(), A, u64::MAX, &Device::Cpu).unwrap();
    for (name, tensor) in trainer.model().tensors().parameters.iter().chain(&trainer.model().tensors().statistics) {
        tensor.set(&Tensor::from_vec(formula(name, tensor.dims()), tensor.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    trainer.checkpoint().unwrap()
}

/// Every way to compute on the CPU.
const COMPUTES: [CpuCompute; 3] = [
    CpuCompute { whole_network: false, winograd: Winograd::Off },
    CpuCompute { whole_network: true, winograd: Winograd::Off },
    CpuCompute { whole_network: true, winograd: Winograd::On },
];

fn trainers() -> impl Iterator<Item = Trainer> {
    let settings = settings(Architecture::CnnS, 64);
    let bytes = formula_checkpoint(&settings);
    COMPUTES.into_iter().map(move |compute| {
        let trainer = Trainer::from_checkpoint(&bytes, &settings, &train_settings(), A, u64::MAX, &Device::Cpu);
        trainer.unwrap().with_compute(compute)
    })
}

fn images(count: usize, px: usize) -> Tensor {
    Tensor::from_vec(noise(count * 3 * px * px, 1), (count, 3, px, px), &Device::Cpu).unwrap()
}

fn vectors(which: u32) -> Tensor {
    let values = noise(B * A, which).into_iter().map(|v| ((v + 1.0) * 1.5).floor() - 1.0).collect();
    Tensor::from_vec(values, (B, A), &Device::Cpu).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(include_str!("../tests/expected.json")).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Norm, and scalar product with noise.
fn sketch(values: &[f32]) -> [f64; 2] {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    [dot(values, values).sqrt(), dot(values, &noise(values.len(), 9))]
}

/// Both numbers of a sketch within `tolerance` of the norm.
#[track_caller]
fn assert_sketch(what: &str, values: &[f32], expected: &Value, tolerance: f64) {
    let expected = [expected[0].as_f64().unwrap(), expected[1].as_f64().unwrap()];
    let got = sketch(values);
    let close = got.iter().zip(expected).all(|(g, e)| (g - e).abs() <= tolerance * expected[0].max(1e-9));
    assert!(close, "{what}: {got:?} instead of {expected:?}");
}

#[track_caller]
fn assert_all_close(what: &str, values: &[f32], expected: &Value, tolerance: f64) {
    let expected = expected.as_array().unwrap();
    assert_eq!(values.len(), expected.len(), "{what}");
    for (got, expected) in values.iter().zip(expected) {
        let expected = expected.as_f64().unwrap();
        assert!((f64::from(*got) - expected).abs() <= tolerance, "{what}: {got} instead of {expected}");
    }
}

/// The article's loss asks nothing of the labels.
fn batch() -> Batch {
    Batch { images: images(B, 64), labels: vectors(2), positives: vectors(2), negatives: vectors(3) }
}

#[test]
fn the_training_pass_equals_pytorch() {
    trainers().for_each(|trainer| training_pass_equals_pytorch(&trainer));
}

fn training_pass_equals_pytorch(trainer: &Trainer) {
    let expected = &expected()["training"];
    let mut statistics = BatchStatistics::default();
    let model = trainer.model();
    let placed = model.place_in_training(&batch(), false, &mut statistics).unwrap();
    let triplets = Triplets::new(&placed.anchors, &placed.positives, &placed.negatives).unwrap();
    assert_all_close("dp", &flat(triplets.positive_distances()), &expected["dp"], 1e-5);
    assert_all_close("dn", &flat(triplets.negative_distances()), &expected["dn"], 1e-5);
    let loss = triplets.loss(f64::from(train_settings().margin)).unwrap();
    assert_all_close("loss", &flat(&loss), &Value::Array(vec![expected["loss"].clone()]), 1e-6);

    let gradients = model.gradients(&loss, false).unwrap();
    for (name, parameter) in &model.tensors().parameters {
        let gradient = flat(gradients.get(parameter).unwrap());
        if name == NO_GRADIENT {
            assert!(sketch(&gradient)[0] < 1e-6, "{name}: {gradient:?}");
            continue;
        }
        assert_sketch(name, &gradient, &expected["gradients"][name], 2e-3);
    }
    statistics.apply().unwrap();
    for (name, statistic) in &model.tensors().statistics {
        assert_sketch(name, &flat(statistic), &expected["statistics"][name], 1e-5);
    }
}

#[test]
fn a_step_equals_pytorchs_adamw() {
    trainers().for_each(step_equals_pytorchs_adamw);
}

fn step_equals_pytorchs_adamw(mut trainer: Trainer) {
    let expected = &expected()["training"];
    let figures = trainer.step(&batch()).unwrap();
    assert!((figures.loss - expected["loss"].as_f64().unwrap()).abs() < 1e-6, "{figures:?}");
    for (name, parameter) in &trainer.model().tensors().parameters {
        let before = formula(name, parameter.dims());
        let change: Vec<f32> = flat(parameter).iter().zip(before).map(|(after, before)| after - before).collect();
        if name == NO_GRADIENT {
            continue;
        }
        // The first step is nearly `lr · sign(g)`, so the smallest gradients decide by their rounding.
        assert_sketch(name, &change, &expected["changes"][name], 2e-2);
    }
    for (name, statistic) in &trainer.model().tensors().statistics {
        assert_sketch(name, &flat(statistic), &expected["statistics"][name], 1e-5);
    }
    let model = trainer.into_model();
    let (anchor, positive) =
        (model.embed_images(&images(B, 64)).unwrap(), model.embed_attributes(&vectors(2)).unwrap());
    assert_sketch("anchor after", &flat(&anchor), &expected["anchor_after"], 1e-2);
    assert_sketch("positive after", &flat(&positive), &expected["positive_after"], 1e-3);
}

#[test]
fn inference_equals_torchvisions_networks_under_torchvisions_names() {
    for (name, architecture) in Architecture::ALL {
        let expected = &expected()[name];
        let px = expected["px"].as_u64().unwrap();
        let settings = settings(architecture, px as u32);
        let weights = torchvision_weights(&expected["shapes"]);
        for compute in COMPUTES {
            let model = Model::load(&settings, A, &weights, &Device::Cpu).unwrap().with_compute(compute);
            let embeddings = model.embed_images(&images(2, px as usize)).unwrap();
            assert_all_close(name, &flat(&embeddings), &expected["embeddings"], 2e-5);
        }
    }
}

/// A file with the tensors that torchvision has, as the script saw them, and an attribute tower.
fn torchvision_weights(shapes: &Value) -> Vec<u8> {
    let d = D as usize;
    let mut shapes: Vec<(String, Vec<usize>)> = shapes
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, shape)| (format!("image.{name}"), serde_json::from_value(shape.clone()).unwrap()))
        .collect();
    let vectors = ["bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var", "linear1.bias", "linear2.bias"];
    shapes.extend(vectors.map(|name| (format!("attributes.{name}"), vec![d])));
    shapes.push(("attributes.linear1.weight".into(), vec![d, A]));
    shapes.push(("attributes.linear2.weight".into(), vec![d, d]));
    let stored = |(name, shape): (String, Vec<usize>)| {
        let values = formula(&name, &shape);
        (name, StoredTensor { shape, values })
    };
    checkpoint::write_stored(&shapes.into_iter().map(stored).collect::<Stored>(), None).unwrap()
}
