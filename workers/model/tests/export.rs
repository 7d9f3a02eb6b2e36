//! An exported model gives in PyTorch what it gives here: torchvision's ResNet-18 takes the weights by their names, and the
//! attribute tower is built from plain layers.
//!
//! Needs a Python with torch, torchvision and safetensors: `infra/tools/check-export.sh` brings one. Without
//! `LIKENESS_PYTHON` the test says that it was skipped.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;
use std::process::Command;

use candle_core::{Device, Tensor};
use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};
use likeness_contract::weights::export;
use likeness_model::{Batch, CpuCompute, Trainer, Winograd};

const A: usize = 7;
const D: usize = 24;
const B: usize = 4;
const PX: usize = 64;

fn tensor(phase: u64, dims: &[usize]) -> Tensor {
    let count = dims.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| (((i + 1) * (2 * phase + 7_919)) % 1_009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// A model whose batch norms have seen something.
fn trained() -> Trainer {
    let model = ModelSettings {
        architecture: Architecture::ResNet18,
        embedding_dim: D as u32,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(PX as u32),
    };
    let trainer = Trainer::fresh(&model, &TrainSettings::default(), A, 10, &Device::Cpu).unwrap();
    let mut trainer = trainer.with_compute(CpuCompute { whole_network: true, winograd: Winograd::Off });
    for phase in 0..3 {
        let (positives, negatives) = (tensor(10 + phase, &[B, A]), tensor(20 + phase, &[B, A]));
        let (images, labels) = (tensor(phase, &[B, 3, PX, PX]), positives.clone());
        trainer.step(&Batch { images, labels, positives, negatives }).unwrap();
    }
    trainer
}

/// Little-endian numbers, as numpy's `fromfile` reads them.
fn write(folder: &Path, name: &str, tensor: &Tensor) {
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(folder.join(name), bytes).unwrap();
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that did not run must say so")]
fn torchvision_computes_the_same_embeddings_from_an_exported_model() {
    let Some(python) = std::env::var_os("LIKENESS_PYTHON") else {
        eprintln!("SKIPPED: LIKENESS_PYTHON names no Python with torch; run infra/tools/check-export.sh");
        return;
    };
    let trainer = trained();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("export");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), export(&trainer.model().weights().unwrap(), "{}").unwrap())
        .unwrap();
    let (images, vectors) = (tensor(31, &[B, 3, PX, PX]), tensor(32, &[B, A]));
    write(&folder, "images", &images);
    write(&folder, "vectors", &vectors);
    write(&folder, "images.embedded", &trainer.model().embed_images(&images).unwrap());
    write(&folder, "vectors.embedded", &trainer.model().embed_attributes(&vectors).unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../infra/tools/check_export.py");
    let done = Command::new(python).arg(script).arg(&folder).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}");
    eprintln!("{said}");
}
