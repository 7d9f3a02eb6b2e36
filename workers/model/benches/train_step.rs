//! One training step and one embedding batch of the default small network.
//!
//! `CANDLE_NUM_THREADS=1 cargo bench -p likeness-model`; quoted runs lie in `benches/runs`.

use std::hint::black_box;

use candle_core::{Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};
use likeness_model::{Model, Trainer};

const ATTRIBUTES: usize = 40;

fn settings(architecture: Architecture, px: u32) -> ModelSettings {
    let preprocessing = Preprocessing::imagenet(px);
    ModelSettings { architecture, embedding_dim: 300, encoding: QueryEncoding::ThreeState, preprocessing }
}

fn noise(dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    let values = (0..count).map(|i| ((i * 7_919) % 1_009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("the count is the shape's")
}

fn train_step(c: &mut Criterion) {
    for (architecture, px, batch) in [(Architecture::CnnS, 64, 128), (Architecture::ResNet18, 64, 64)] {
        let settings = settings(architecture, px);
        let mut trainer = Trainer::fresh(&settings, &TrainSettings::default(), ATTRIBUTES, 1_000_000, &Device::Cpu)
            .expect("valid settings");
        let images = noise(&[batch, 3, px as usize, px as usize]);
        let (positives, negatives) = (noise(&[batch, ATTRIBUTES]).round(), noise(&[batch, ATTRIBUTES]).sign());
        let (positives, negatives) = (positives.expect("on the cpu"), negatives.expect("on the cpu"));
        let mut group = c.benchmark_group("train_step");
        group.sample_size(10).throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("{}/px={px}/b={batch}", architecture.name()), |b| {
            b.iter(|| black_box(trainer.step(&images, &positives, &negatives).expect("a finite loss")));
        });
    }
}

fn embed(c: &mut Criterion) {
    let (architecture, px, batch) = (Architecture::CnnS, 64, 128);
    let model = Model::fresh(&settings(architecture, px), ATTRIBUTES, 1, &Device::Cpu).expect("valid settings");
    let images = noise(&[batch, 3, px as usize, px as usize]);
    let mut group = c.benchmark_group("embed");
    group.sample_size(10).throughput(Throughput::Elements(batch as u64));
    group.bench_function(format!("{}/px={px}/b={batch}", architecture.name()), |b| {
        b.iter(|| black_box(model.embed_images(&images).expect("a valid batch")));
    });
}

criterion_group!(benches, train_step, embed);
criterion_main!(benches);
