//! Checkpoints and resumption.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};

use crate::{ErrorKind, Model, Trainer};

const A: usize = 6;
const PX: usize = 32;
const TOTAL: u64 = 6;

fn model_settings() -> ModelSettings {
    ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: 16,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(PX as u32),
    }
}

fn train_settings() -> TrainSettings {
    TrainSettings { seed: 7, ..TrainSettings::default() }
}

fn fresh() -> Trainer {
    Trainer::fresh(&model_settings(), &train_settings(), A, TOTAL, &Device::Cpu).unwrap()
}

fn resumed(bytes: &[u8]) -> crate::Result<Trainer> {
    Trainer::from_checkpoint(bytes, &model_settings(), &train_settings(), A, TOTAL, &Device::Cpu)
}

fn tensor(phase: u64, dims: &[usize]) -> Tensor {
    let count = dims.iter().product::<usize>() as u64;
    let values = (0..count).map(|i| (((i + 1) * (2 * phase + 7_919)) % 1_009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

fn train(trainer: &mut Trainer, steps: u64) {
    for _ in 0..steps {
        let at = 3 * trainer.steps();
        let vectors = |phase| tensor(phase, &[8, A]);
        trainer.step(&tensor(at, &[8, 3, PX, PX]), &vectors(at + 1), &vectors(at + 2)).unwrap();
    }
}

fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn a_resumed_training_ends_in_the_same_bytes_on_any_number_of_threads() {
    let in_one_go = |threads| {
        with_threads(threads, || {
            let mut trainer = fresh();
            train(&mut trainer, 4);
            trainer.checkpoint().unwrap()
        })
    };
    let with_a_break = with_threads(2, || {
        let mut trainer = fresh();
        train(&mut trainer, 2);
        let saved = trainer.checkpoint().unwrap();
        drop(trainer);
        let mut trainer = resumed(&saved).unwrap();
        assert_eq!(trainer.steps(), 2);
        train(&mut trainer, 2);
        trainer.checkpoint().unwrap()
    });
    let one_thread = in_one_go(1);
    assert!(one_thread == in_one_go(2), "one thread and two threads differ");
    assert!(one_thread == in_one_go(3), "one thread and three threads differ");
    assert!(one_thread == with_a_break, "the break changed the result");
}

#[test]
fn reading_and_writing_again_gives_the_same_bytes() {
    let mut trainer = fresh();
    train(&mut trainer, 1);
    let checkpoint = trainer.checkpoint().unwrap();
    assert!(resumed(&checkpoint).unwrap().checkpoint().unwrap() == checkpoint);
    let weights = trainer.into_model().weights().unwrap();
    let loaded = Model::load(&model_settings(), A, &weights, &Device::Cpu).unwrap();
    assert!(loaded.weights().unwrap() == weights);
}

#[test]
fn fresh_weights_depend_on_the_seed_alone() {
    let weights = |seed| Model::fresh(&model_settings(), A, seed, &Device::Cpu).unwrap().weights().unwrap();
    assert!(weights(1) == weights(1));
    assert!(weights(1) != weights(2));
}

#[test]
fn training_lowers_the_loss_on_a_batch_that_it_sees_again() {
    let settings = TrainSettings { warmup_share: 0.0, ..train_settings() };
    let mut trainer = Trainer::fresh(&model_settings(), &settings, A, 1_000, &Device::Cpu).unwrap();
    let (images, positives, negatives) = (tensor(1, &[8, 3, PX, PX]), tensor(2, &[8, A]), tensor(3, &[8, A]));
    let losses: Vec<f64> = (0..15).map(|_| trainer.step(&images, &positives, &negatives).unwrap().loss).collect();
    assert!(losses[14] < 0.25 * losses[0], "{losses:?}");
}

#[test]
fn a_loss_that_is_no_number_changes_nothing() {
    let mut trainer = fresh();
    train(&mut trainer, 1);
    let before = trainer.checkpoint().unwrap();
    let images = (tensor(1, &[8, 3, PX, PX]) * f64::NAN).unwrap();
    let error = trainer.step(&images, &tensor(2, &[8, A]), &tensor(3, &[8, A])).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::NotFinite(_)), "{error}");
    assert!(trainer.checkpoint().unwrap() == before);
}

#[test]
fn a_weight_that_is_no_number_is_not_written() {
    let trainer = fresh();
    let (name, weight) = &trainer.model().tensors().parameters[0];
    weight.set(&(weight.as_detached_tensor() * f64::INFINITY).unwrap()).unwrap();
    for result in [trainer.checkpoint(), trainer.model().weights()] {
        let error = result.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::NotFinite(_)) && error.to_string().contains(name), "{error}");
    }
}

#[test]
fn damaged_bytes_are_refused() {
    let checkpoint = fresh().checkpoint().unwrap();
    let huge_header = [&u64::MAX.to_le_bytes()[..], &checkpoint[8..]].concat();
    for damaged in [&b""[..], b"no safetensors", &checkpoint[..checkpoint.len() - 1], &checkpoint[..100], &huge_header]
    {
        let error = resumed(damaged).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Corrupt(_)), "{error}");
    }
}

#[test]
fn weights_of_another_model_are_refused_in_words() {
    let weights = Model::fresh(&model_settings(), A, 1, &Device::Cpu).unwrap().weights().unwrap();
    let load = |settings: &ModelSettings, attributes| {
        let error = Model::load(settings, attributes, &weights, &Device::Cpu).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Mismatch(_)), "{error}");
        error.to_string()
    };
    let text = load(&model_settings(), 40);
    assert!(text.contains("know 6 attributes") && text.contains("has 40"), "{text}");
    let text = load(&ModelSettings { embedding_dim: 300, ..model_settings() }, A);
    assert!(text.contains("16 dimensions") && text.contains("300"), "{text}");
    let text = load(&ModelSettings { architecture: Architecture::ResNet50, ..model_settings() }, A);
    for word in ["missing: `image.layer1.0.conv3.weight`", "of another shape: `image.conv1.weight` is [32, 3, 7, 7]"] {
        assert!(text.contains(word), "{text}");
    }
    let error = resumed(&weights).unwrap_err();
    assert!(error.to_string().contains("not a checkpoint"), "{error}");
}

#[test]
fn inputs_of_another_shape_are_refused() {
    let model = Model::fresh(&model_settings(), A, 1, &Device::Cpu).unwrap();
    for dims in [&[1, 3, PX, PX + 1][..], &[1, 1, PX, PX], &[0, 3, PX, PX], &[3, PX, PX]] {
        let images = Tensor::zeros(dims, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(model.embed_images(&images).unwrap_err().kind, ErrorKind::Input(_)), "{dims:?}");
    }
    assert!(matches!(model.embed_attributes(&tensor(1, &[1, A + 1])).unwrap_err().kind, ErrorKind::Input(_)));
    let no_model = ModelSettings { embedding_dim: 0, ..model_settings() };
    assert!(matches!(Model::fresh(&no_model, A, 1, &Device::Cpu).unwrap_err().kind, ErrorKind::Settings(_)));
}

#[test]
fn embeddings_of_a_batch_are_unit_vectors_and_equal_those_of_its_rows() {
    let model = Model::fresh(&model_settings(), A, 1, &Device::Cpu).unwrap();
    let images = tensor(1, &[3, 3, PX, PX]);
    let together = model.embed_images(&images).unwrap().to_vec2::<f32>().unwrap();
    for (i, row) in together.iter().enumerate() {
        let norm: f32 = row.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        let alone = model.embed_images(&images.narrow(0, i, 1).unwrap()).unwrap().to_vec2::<f32>().unwrap();
        let close = alone[0].iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "row {i}");
    }
}
