//! A whole ResNet-50 with real weights gives the embeddings that ONNX Runtime gives.
//!
//! `infra/tools/check-resnet50.sh` fetches the weights and makes the reference; without `LIKENESS_RESNET50` the test says that it was
//! skipped.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;

use candle_core::{Device, Tensor};
use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding};
use likeness_contract::weights::WholeParts;
use likeness_model::{CpuCompute, Model, Winograd};

const D: usize = 32;
const PX: usize = 224;
/// Largest difference of a number, relative to the largest of the embeddings' numbers.
const TOLERANCE: f32 = 1e-4;

fn read(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder.join(name)).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that did not run must say so")]
fn a_resnet50_of_public_weights_embeds_as_onnx_runtime_does() {
    let Some(folder) = std::env::var_os("LIKENESS_RESNET50") else {
        eprintln!("SKIPPED: LIKENESS_RESNET50 names no reference; run infra/tools/check-resnet50.sh");
        return;
    };
    let folder = Path::new(&folder);
    let settings = ModelSettings {
        architecture: Architecture::ResNet50,
        embedding_dim: D as u32,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(PX as u32),
    };
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let parts = WholeParts { head: Some(D as u32), attributes: false };
    let (images, expected) = (read(folder, "images"), read(folder, "embedded"));
    let batch = images.len() / (3 * PX * PX);
    let images = Tensor::from_vec(images, (batch, 3, PX, PX), &Device::Cpu).unwrap();
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (whole_network, winograd) in [(true, Winograd::Off), (true, Winograd::On), (false, Winograd::Off)] {
        let model = Model::started(&settings, 3, 1, &weights, parts, &Device::Cpu).unwrap();
        let model = model.with_compute(CpuCompute { whole_network, winograd });
        let found = model.embed_images(&images).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let worst = found.iter().zip(&expected).fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / largest;
        eprintln!("whole network {whole_network}, Winograd {winograd:?}: largest relative difference {worst:.1e}");
        assert!(found.len() == expected.len() && worst <= TOLERANCE, "{worst}");
    }
}
