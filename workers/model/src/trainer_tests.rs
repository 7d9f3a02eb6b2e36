//! Checkpoints and resumption.

use candle_core::{Device, Tensor};

use likeness_contract::settings::{
    Architecture, BackboneSettings, Loss, ModelSettings, Optimizer, Preprocessing, QueryEncoding, RoundSettings,
    SgdSettings, TrainSettings, log_probability_dim,
};
use likeness_contract::weights::{self, WholeParts};

use crate::{Batch, BatchStatistics, ErrorKind, Model, OuterStep, Trainer, Triplets, learning_rate};

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

/// Every label is known of the positives' attributes: they are their signs.
fn batch(images: Tensor, positives: Tensor, negatives: Tensor) -> Batch {
    let labels = positives.sign().unwrap();
    Batch { images, labels, positives, negatives }
}

fn numbered(number: u64) -> Batch {
    let at = 3 * number;
    let vectors = |phase| tensor(phase, &[8, A]);
    batch(tensor(at, &[8, 3, PX, PX]), vectors(at + 1), vectors(at + 2))
}

fn train(trainer: &mut Trainer, steps: u64) {
    for _ in 0..steps {
        trainer.step(&numbered(trainer.steps())).unwrap();
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
        // The decay of 1e-4 is no gradient.
        let square = |b: f32, a: f32| f64::from(a - b + 0.1 * 1.9 * 1e-4 * b).powi(2);
        let of_tensor = |b: &[f32], a: &[f32]| b.iter().zip(a).map(|(b, a)| square(*b, *a)).sum::<f64>();
        learned.map(|(b, a)| of_tensor(&b.1, &a.1)).sum::<f64>().sqrt()
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
    let batch = batch(tensor(1, &[8, 3, PX, PX]), tensor(2, &[8, A]), tensor(3, &[8, A]));
    let losses: Vec<f64> = (0..15).map(|_| trainer.step(&batch).unwrap().loss).collect();
    assert!(losses[14] < 0.25 * losses[0], "{losses:?}");
}

#[test]
fn a_loss_that_is_no_number_changes_nothing() {
    let mut trainer = fresh();
    train(&mut trainer, 1);
    let before = trainer.checkpoint().unwrap();
    let images = (tensor(1, &[8, 3, PX, PX]) * f64::NAN).unwrap();
    let error = trainer.step(&batch(images, tensor(2, &[8, A]), tensor(3, &[8, A]))).unwrap_err();
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

fn joint_settings() -> ModelSettings {
    let encoding = QueryEncoding::LogProbability;
    ModelSettings { encoding, embedding_dim: log_probability_dim(A), ..model_settings() }
}

fn joint(train: &TrainSettings) -> Trainer {
    Trainer::fresh(&joint_settings(), train, A, TOTAL, &Device::Cpu).unwrap()
}

#[test]
fn a_space_of_log_probabilities_is_trained_by_cross_entropy_and_resumed_to_the_same_bytes() {
    let settings = TrainSettings { average_decay: 0.9, seed: 7, ..TrainSettings::joint() };
    let mut in_one_go = joint(&settings);
    train(&mut in_one_go, 4);
    let mut before = joint(&settings);
    train(&mut before, 2);
    let saved = before.checkpoint().unwrap();
    let mut resumed = Trainer::from_checkpoint(&saved, &joint_settings(), &settings, A, TOTAL, &Device::Cpu).unwrap();
    train(&mut resumed, 2);
    assert!(in_one_go.checkpoint().unwrap() == resumed.checkpoint().unwrap());
    let images = tensor(1, &[3, 3, PX, PX]);
    let places: Vec<Vec<f32>> = resumed.model().embed_images(&images).unwrap().to_vec2().unwrap();
    assert!(places.iter().all(|place| place.len() == 2 * A + 1));
}

#[test]
fn cross_entropy_falls_on_a_batch_that_is_seen_again() {
    let settings = TrainSettings { warmup_share: 0.0, seed: 7, ..TrainSettings::joint() };
    let mut trainer = Trainer::fresh(&joint_settings(), &settings, A, 1_000, &Device::Cpu).unwrap();
    let batch = batch(tensor(1, &[8, 3, PX, PX]), tensor(2, &[8, A]), tensor(3, &[8, A]));
    let losses: Vec<f64> = (0..25).map(|_| trainer.step(&batch).unwrap().loss).collect();
    assert!((losses[0] - 2f64.ln()).abs() < 0.3 && losses[24] < 0.2 * losses[0], "{losses:?}");
}

#[test]
fn the_average_serves_and_the_training_goes_on_without_it() {
    let settings = TrainSettings { average_decay: 0.5, seed: 7, ..TrainSettings::joint() };
    let mut trainer = joint(&settings);
    let first = values(&trainer);
    train(&mut trainer, 1);
    let second = values(&trainer);
    let plain = TrainSettings { average_decay: 0.0, ..settings.clone() };
    let mut without = joint(&plain);
    train(&mut without, 1);
    assert_eq!(second, values(&without), "the average takes no part in the steps");
    // The first step's decay is 1/10.
    let served = values(&trainer.serving().unwrap());
    for ((name, served), (first, second)) in served.iter().zip(first.iter().zip(&second)) {
        for (got, (first, second)) in served.iter().zip(first.1.iter().zip(&second.1)) {
            let want = 0.1 * first + 0.9 * second;
            assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{name}: {got} instead of {want}");
        }
    }
}

#[test]
fn an_image_and_its_mirror_image_are_one_to_a_model_that_embeds_both() {
    let model = joint(&TrainSettings::joint()).into_model();
    let images = tensor(1, &[2, 3, PX, PX]);
    let backwards = Tensor::from_vec((0..PX as u32).rev().collect::<Vec<_>>(), PX, &Device::Cpu).unwrap();
    let mirrored = images.index_select(&backwards, 3).unwrap();
    let places = |model: &Model, images: &Tensor| -> Vec<f32> {
        model.embed_images(images).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far(&places(&model, &images), &places(&model, &mirrored)) > 1e-4);
    let model = model.with_mirrored(true);
    assert!(far(&places(&model, &images), &places(&model, &mirrored)) < 1e-6);
}

#[test]
fn losses_and_spaces_that_do_not_go_together_are_refused() {
    let refused = |model: &ModelSettings, train: &TrainSettings, word: &str| {
        let error = Trainer::fresh(model, train, A, TOTAL, &Device::Cpu).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Settings(_)) && error.to_string().contains(word), "{error}");
    };
    refused(&model_settings(), &TrainSettings::joint(), "needs an encoding of log-probabilities");
    refused(&joint_settings(), &train_settings(), "is trained with binary cross-entropy");
    let other = ModelSettings { embedding_dim: 300, ..joint_settings() };
    refused(&other, &TrainSettings::joint(), "need 13 dimensions, 300 were asked for");
}

#[test]
fn losses_within_the_batch_train_both_towers() {
    for loss in [Loss::SemiHardTriplet, Loss::AllTriplets, Loss::InfoNce { temperature: 0.1 }] {
        let settings = TrainSettings { loss, ..train_settings() };
        let mut trainer = fresh_with(&settings);
        let before = values(&trainer);
        train(&mut trainer, 1);
        let changed = changed(&before, &values(&trainer));
        for name in ["image.fc.weight", "image.conv1.weight", "attributes.linear1.weight"] {
            assert!(changed.iter().any(|changed| changed == name), "{loss:?}: {changed:?}");
        }
    }
}

fn slot(theta: &[u8], state: Option<&[u8]>, settings: &TrainSettings) -> Trainer {
    Trainer::in_round((theta, state), &model_settings(), settings, A, TOTAL, &Device::Cpu).unwrap()
}

#[test]
fn a_slot_goes_on_from_a_checkpoint_cut_in_two_as_from_a_whole_one() {
    let averaged = TrainSettings { average_decay: 0.5, ..train_settings() };
    for settings in [train_settings(), sgd(), averaged, warming_up(train_settings())] {
        let mut whole = fresh_with(&settings);
        train(&mut whole, 4);
        let mut cut = slot(&fresh_with(&settings).theta().unwrap(), None, &settings);
        train(&mut cut, 2);
        let (theta, state) = (cut.theta().unwrap(), cut.optimizer_state().unwrap());
        let mut cut = slot(&theta, Some(&state), &settings);
        train(&mut cut, 2);
        assert!(cut.checkpoint().unwrap() == whole.checkpoint().unwrap(), "{:?}", settings.optimizer);
    }
}

#[test]
fn what_is_no_part_of_a_round_is_refused() {
    let refused = |theta: &[u8], state: Option<&[u8]>, word: &str| {
        let settings = train_settings();
        let trainer = Trainer::in_round((theta, state), &model_settings(), &settings, A, TOTAL, &Device::Cpu);
        let error = trainer.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    let theta = fresh().theta().unwrap();
    refused(&fresh().checkpoint().unwrap(), None, "no part of what a round starts from");
    refused(&fresh().model().weights().unwrap(), None, "`step` is missing");
    refused(&theta, Some(&theta), "state of");
    refused(&theta, Some(&fresh_with(&sgd()).optimizer_state().unwrap()), "state of");
}

/// With the count of the training's steps in place of its own, AdamW would correct the first moments of a slot too little.
#[test]
fn a_slot_that_remembers_nothing_takes_a_first_step_whenever_that_is() {
    let settings = train_settings();
    let mut before = fresh_with(&settings);
    train(&mut before, 3);
    let mut late = slot(&before.theta().unwrap(), None, &settings);
    train(&mut late, 1);
    let lr = learning_rate(&settings, 3, TOTAL) as f32;
    let (before, late) = (values(&before), values(&late));
    let weights = before.iter().zip(&late).filter(|((name, _), _)| name.ends_with("fc.weight"));
    let moved = weights.flat_map(|(before, late)| before.1.iter().zip(&late.1)).map(|(a, b)| (a - b).abs());
    let farthest = moved.fold(0.0, f32::max) / lr;
    assert!((0.9..1.1).contains(&farthest), "{farthest} of the learning rate");
}

const SLOTS: u64 = 2;

/// Rounds of one step: every slot a batch of its own, their results averaged.
fn by_rounds(settings: &TrainSettings, steps: u64) -> Trainer {
    let rounds = RoundSettings::averaging(SLOTS as u32, settings.optimizer.inner());
    let mut theta = fresh_with(settings).theta().unwrap();
    let mut states: Vec<Option<Vec<u8>>> = vec![None; SLOTS as usize];
    for step in 0..steps {
        let mut outer = OuterStep::new(&theta).unwrap();
        for (number, state) in (0..).zip(&mut states) {
            let mut trainer = slot(&theta, state.as_deref(), settings);
            trainer.step(&numbered(step * SLOTS + number)).unwrap();
            outer.add(&trainer.theta().unwrap()).unwrap();
            *state = Some(trainer.optimizer_state().unwrap());
        }
        theta = outer.finish(&rounds, None).unwrap().theta;
    }
    slot(&theta, None, settings)
}

fn zeros_like(tensors: &[(String, candle_core::Var)]) -> Vec<Tensor> {
    tensors.iter().map(|(_, var)| var.zeros_like().unwrap()).collect()
}

/// What data parallelism computes, by hand: every step the mean of the batches' gradients at the same weights, one step of SGD
/// with Nesterov momentum by that, and the mean of the statistics that each batch leaves.
fn data_parallel(settings: &TrainSettings, steps: u64) -> Model {
    let Optimizer::Sgd(sgd) = settings.optimizer else { panic!("SGD alone is linear in its gradients") };
    let model = Model::fresh(&model_settings(), A, settings.seed, &Device::Cpu).unwrap();
    let tensors = model.tensors();
    let (parameters, statistics) = (&tensors.parameters, &tensors.statistics);
    let mut velocities = zeros_like(parameters);
    for step in 0..steps {
        let before: Vec<Tensor> = statistics.iter().map(|(_, var)| var.copy().unwrap()).collect();
        let (mut gradients, mut means) = (zeros_like(parameters), zeros_like(statistics));
        let add = |sum: &mut Tensor, value: &Tensor| *sum = (&*sum + (value / SLOTS as f64).unwrap()).unwrap();
        for number in 0..SLOTS {
            statistics.iter().zip(&before).for_each(|((_, var), before)| var.set(before).unwrap());
            let mut of_batch = BatchStatistics::default();
            let placed = model.place_in_training(&numbered(step * SLOTS + number), false, &mut of_batch).unwrap();
            let triplets = Triplets::new(&placed.anchors, &placed.positives, &placed.negatives).unwrap();
            let loss = triplets.loss(f64::from(settings.margin)).unwrap();
            let of_loss = model.gradients(&loss, false).unwrap();
            parameters.iter().zip(&mut gradients).for_each(|((_, p), sum)| add(sum, of_loss.get(p).unwrap()));
            of_batch.apply().unwrap();
            statistics.iter().zip(&mut means).for_each(|((_, var), sum)| add(sum, var.as_tensor()));
        }
        statistics.iter().zip(&means).for_each(|((_, var), mean)| var.set(mean).unwrap());
        let lr = learning_rate(settings, step, TOTAL);
        for (((_, theta), gradient), v) in parameters.iter().zip(gradients).zip(&mut velocities) {
            let gradient = (gradient + (theta.detach() * sgd.weight_decay).unwrap()).unwrap();
            *v = ((&*v * sgd.momentum).unwrap() + &gradient).unwrap();
            let ahead = (gradient + (&*v * sgd.momentum).unwrap()).unwrap();
            theta.set(&(theta.detach() - (ahead * lr).unwrap()).unwrap()).unwrap();
        }
        model.on_weights_changed();
    }
    model
}

#[test]
fn one_step_a_round_by_sgd_is_synchronous_data_parallelism() {
    let optimizer = Optimizer::Sgd(SgdSettings { lr: 0.02, ..SgdSettings::default() });
    let settings = TrainSettings { optimizer, ..train_settings() };
    let (rounds, by_hand) = (by_rounds(&settings, 3), data_parallel(&settings, 3));
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let start = values(&fresh_with(&settings));
    let (mut apart, mut moved) = (0.0f32, 0.0f32);
    for (((name, value), (_, by_hand)), (_, start)) in values(&rounds).iter().zip(by_hand.tensors().iter()).zip(&start)
    {
        for ((a, b), start) in value.iter().zip(flat(by_hand)).zip(start) {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "`{name}`: {a} and {b}");
            apart = apart.max((a - b).abs());
            moved = moved.max((a - start).abs());
        }
    }
    assert!(moved > 1e3 * apart, "moved by {moved}, apart by {apart}");
}
