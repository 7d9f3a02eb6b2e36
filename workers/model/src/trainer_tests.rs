//! Checkpoints and resumption.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{
    Architecture, BackboneSettings, ModelSettings, Optimizer, Preprocessing, QueryEncoding, SgdSettings, TrainSettings,
};
use likeness_contract::weights::{self, WholeParts};

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
    fresh_with(&train_settings())
}

fn fresh_with(settings: &TrainSettings) -> Trainer {
    Trainer::fresh(&model_settings(), settings, A, TOTAL, &Device::Cpu).unwrap()
}

fn resumed(bytes: &[u8]) -> crate::Result<Trainer> {
    resumed_with(bytes, &train_settings())
}

fn resumed_with(bytes: &[u8], settings: &TrainSettings) -> crate::Result<Trainer> {
    Trainer::from_checkpoint(bytes, &model_settings(), settings, A, TOTAL, &Device::Cpu)
}

fn sgd() -> TrainSettings {
    TrainSettings { optimizer: Optimizer::Sgd(SgdSettings::default()), clip_norm: 0.5, ..train_settings() }
}

/// The backbone waits for 2 of the 6 steps.
fn warming_up(settings: TrainSettings) -> TrainSettings {
    let backbone = BackboneSettings { lr_factor: 0.25, frozen_epochs: 1 };
    TrainSettings { epochs: 3, backbone, ..settings }
}

fn values(trainer: &Trainer) -> Vec<(String, Vec<f32>)> {
    let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1().unwrap();
    trainer.model().tensors().iter().map(|(name, tensor)| (name.to_owned(), flat(tensor))).collect()
}

/// Names of the tensors that differ.
fn changed(before: &[(String, Vec<f32>)], after: &[(String, Vec<f32>)]) -> Vec<String> {
    before.iter().zip(after).filter(|(b, a)| b.1 != a.1).map(|(b, _)| b.0.clone()).collect()
}

fn is_backbone(name: &str) -> bool {
    name.starts_with("image.") && !name.starts_with("image.fc.")
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
    for settings in [train_settings(), sgd(), warming_up(train_settings()), warming_up(sgd())] {
        let in_one_go = |threads| {
            with_threads(threads, || {
                let mut trainer = fresh_with(&settings);
                train(&mut trainer, 4);
                trainer.checkpoint().unwrap()
            })
        };
        let with_a_break = with_threads(2, || {
            let mut trainer = fresh_with(&settings);
            train(&mut trainer, 2);
            let saved = trainer.checkpoint().unwrap();
            drop(trainer);
            let mut trainer = resumed_with(&saved, &settings).unwrap();
            assert_eq!(trainer.steps(), 2);
            train(&mut trainer, 2);
            trainer.checkpoint().unwrap()
        });
        let one_thread = in_one_go(1);
        assert!(one_thread == in_one_go(2), "one thread and two threads differ");
        assert!(one_thread == in_one_go(3), "one thread and three threads differ");
        assert!(one_thread == with_a_break, "the break changed the result");
    }
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused() {
    let error = resumed_with(&fresh().checkpoint().unwrap(), &sgd()).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Mismatch(_)) && error.to_string().contains("state of"), "{error}");
}

#[test]
fn a_frozen_backbone_stays_as_it_is_while_the_rest_learns() {
    for settings in [warming_up(train_settings()), warming_up(sgd())] {
        let mut trainer = fresh_with(&settings);
        let at_the_start = values(&trainer);
        train(&mut trainer, 2);
        let warmed_up = values(&trainer);
        let learned = changed(&at_the_start, &warmed_up);
        assert!(learned.contains(&"image.fc.weight".into()) && learned.contains(&"attributes.linear1.weight".into()));
        assert!(!learned.iter().any(|name| is_backbone(name)), "{learned:?}");
        train(&mut trainer, 1);
        let learned = changed(&warmed_up, &values(&trainer));
        assert!(learned.contains(&"image.conv1.weight".into()) && learned.contains(&"image.bn1.running_mean".into()));
    }
}

#[test]
fn a_backbone_that_was_frozen_takes_its_first_step_as_any_other() {
    // AdamW's first step is nearly `lr` for every weight, whenever it comes; a count that had gone on would give
    // three times as much.
    let settings = TrainSettings { warmup_share: 0.0, ..warming_up(train_settings()) };
    let mut trainer = fresh_with(&settings);
    train(&mut trainer, 2);
    let before = values(&trainer);
    let lr = crate::learning_rate(&settings, 2, TOTAL) * 0.25;
    train(&mut trainer, 1);
    let (name, stem) = &values(&trainer)[0];
    let largest = stem.iter().zip(&before[0].1).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!((largest / lr - 1.0).abs() < 0.05, "{name}: {largest} instead of {lr}");
}

#[test]
fn gradients_that_are_clipped_leave_a_smaller_step() {
    let step = |clip_norm| {
        let settings = TrainSettings { warmup_share: 0.0, clip_norm, ..sgd() };
        let mut trainer = fresh_with(&settings);
        let before = values(&trainer);
        train(&mut trainer, 1);
        let after = values(&trainer);
        let learned = before.iter().zip(&after).filter(|(b, _)| !b.0.contains("running"));
        let square = |(b, a): (&(String, Vec<f32>), &(String, Vec<f32>))| -> f64 {
            // The decay of 1e-4 is no gradient.
            b.1.iter().zip(&a.1).map(|(b, a)| f64::from(a - b + 0.1 * 1.9 * 1e-4 * b).powi(2)).sum()
        };
        learned.map(square).sum::<f64>().sqrt()
    };
    // A first step with Nesterov momentum is lr (1 + μ) times the gradient.
    let norm = |clip| step(clip) / (0.1 * 1.9);
    let whole = norm(0.0);
    assert!((norm(whole / 4.0) / whole - 0.25).abs() < 1e-3, "{} {whole}", norm(whole / 4.0));
    assert!((norm(whole * 4.0) / whole - 1.0).abs() < 1e-5, "{} {whole}", norm(whole * 4.0));
}

#[test]
fn a_training_started_from_weights_takes_the_backbone_and_draws_the_rest() {
    let weights = Model::fresh(&model_settings(), A, 1, &Device::Cpu).unwrap().weights().unwrap();
    let start = |dim, parts| {
        let settings = ModelSettings { embedding_dim: dim, ..model_settings() };
        let started = Trainer::started(&settings, &train_settings(), A, TOTAL, (&weights, parts), &Device::Cpu);
        let fresh = Trainer::fresh(&settings, &train_settings(), A, TOTAL, &Device::Cpu);
        changed(&values(&started.unwrap()), &values(&fresh.unwrap()))
    };
    let backbone = start(16, WholeParts::default());
    assert!(backbone.contains(&"image.layer4.1.conv2.weight".into()));
    assert!(backbone.iter().all(|name| is_backbone(name)), "{backbone:?}");
    assert_eq!(start(8, WholeParts { head: Some(8), attributes: true }), backbone, "of another dimension");
    let whole = start(16, WholeParts { head: Some(16), attributes: true });
    assert!(whole.contains(&"image.fc.weight".into()) && whole.contains(&"attributes.linear2.weight".into()));
}

#[test]
fn weights_that_do_not_fit_are_no_start() {
    let weights = Model::fresh(&model_settings(), A, 1, &Device::Cpu).unwrap().weights().unwrap();
    let start = |settings: &ModelSettings, bytes: &[u8]| {
        let parts = WholeParts::default();
        let error = Model::started(settings, A, 1, bytes, parts, &Device::Cpu).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Mismatch(_)), "{error}");
        error.to_string()
    };
    let resnet18 = ModelSettings { architecture: Architecture::ResNet18, ..model_settings() };
    assert!(start(&resnet18, &weights).contains("--architecture cnn-s"));
    assert!(start(&model_settings(), b"PK\x03\x04 a checkpoint of PyTorch").contains("weights_only=True"));
}

#[test]
fn the_contract_names_the_tensors_of_a_backbone() {
    for architecture in [Architecture::CnnS, Architecture::ResNet34, Architecture::ResNet50] {
        let settings = ModelSettings { architecture, ..model_settings() };
        let model = Model::fresh(&settings, A, 1, &Device::Cpu).unwrap();
        let image = model.tensors().iter().filter_map(|(name, t)| Some((name.strip_prefix("image.")?, t)));
        let mut own: Vec<_> = image.map(|(name, t)| (name.to_owned(), t.dims().to_vec())).collect();
        let mut expected = weights::backbone_tensors(architecture);
        expected.push(("fc.weight".into(), weights::head_shape(architecture, settings.embedding_dim)));
        expected.push(("fc.bias".into(), vec![settings.embedding_dim as usize]));
        own.sort();
        expected.sort();
        assert!(own == expected, "{}", architecture.name());
    }
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
