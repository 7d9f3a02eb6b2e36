//! A whole training over a store in memory, and what must be the same when it is done again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use likeness_contract::documents::{DatasetManifest, ModelManifest, ObjectRef, PartEntry};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    CheckpointOutput, DatasetRef, DeviceClass, JobOptions, JobSpec, JobWork, Priority, SlotState, TaskMessage,
    TaskOutput, TaskRecord, TaskWork, TrainStage, task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::{
    Architecture, ColourJitter, InitWeights, Keep, Loss, ModelSettings, Optimizer, Preprocessing, QueryEncoding,
    ResizedCrop, RoundSettings, SgdSettings, TrainSettings, Vocabulary, log_probability_dim,
};
use likeness_contract::weights::Header;
use likeness_data::{PartRow, TripletSampler, encode_part};
use likeness_link::store::Store;
use likeness_model::Model;
use tokio::sync::watch;

use super::figures::{self, Phase};
use crate::cache::Cache;
use crate::error::{TaskError, TaskErrorKind};
use crate::runtime::context::{Progress, Shared, TaskContext};
use crate::runtime::device::DeviceThread;
use crate::runtime::lease::{Interrupt, Lease};

const ATTRIBUTES: usize = 4;
const TRAIN_ROWS: usize = 26;
const VALIDATION_ROWS: usize = 10;
/// 3 steps an epoch, two epochs, rounds of 4 and 2 steps.
const ROUNDS: u32 = 2;

fn job() -> JobId {
    JobId::new("training").unwrap()
}

fn dataset() -> DatasetRef {
    DatasetRef { dataset: Name::new("drawn").unwrap(), version: JobId::new("ingest").unwrap() }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: (0..ATTRIBUTES).map(|i| format!("A{i}")).collect() }
}

fn stage() -> TrainStage {
    TrainStage {
        dataset: dataset(),
        vocabulary: vocabulary(),
        model: ModelSettings {
            architecture: Architecture::CnnS,
            embedding_dim: 8,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(32),
        },
        train: TrainSettings { epochs: 2, batch_size: 8, inner_steps: 4, ..TrainSettings::default() },
        train_rows: TRAIN_ROWS as u64,
        validation_rows: VALIDATION_ROWS as u64,
    }
}

fn spec(stage: TrainStage) -> JobSpec {
    let options = JobOptions::default();
    JobSpec { work: JobWork::Train(stage), device: DeviceClass::Cpu, priority: Priority::Hi, options }
}

fn picture(row: usize) -> Vec<u8> {
    let colour = |x: u32, y: u32| image::Rgb([(row * 9) as u8, (x * 5) as u8, (y * 5) as u8]);
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_fn(40, 48, colour).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn part_row(row: usize) -> PartRow {
    PartRow {
        item: format!("item-{row:03}"),
        image: picture(row).into(),
        width: 40,
        height: 48,
        attributes: (0..ATTRIBUTES).map(|a| if row >> a & 1 == 1 { 1 } else { -1 }).collect(),
        split: if row < TRAIN_ROWS { 0 } else { 1 },
    }
}

/// One worker over a store of its own.
struct World {
    shared: Shared,
    stage: TrainStage,
    progress: watch::Sender<Option<Progress>>,
}

impl World {
    async fn new(worker: &str) -> Self {
        Self::of(worker, stage()).await
    }

    async fn of(worker: &str, stage: TrainStage) -> Self {
        let store = Store::open("memory:").await.unwrap();
        let device = DeviceThread::start(Device::Cpu).unwrap();
        let cache = Arc::new(Cache::new(store.clone(), 1 << 20));
        let worker = WorkerId::new(worker).unwrap();
        let shared = Shared { store, device, cache, worker, approximate_rows: None };
        let world = Self { shared, stage, progress: watch::Sender::new(None) };
        world.put_dataset().await;
        world
    }

    /// Two parts, cut in the middle of the training rows.
    async fn put_dataset(&self) {
        let mut parts = Vec::new();
        for rows in [0..20, 20..TRAIN_ROWS + VALIDATION_ROWS] {
            let rows: Vec<PartRow> = rows.map(part_row).collect();
            let bytes = encode_part(&rows, ATTRIBUTES).unwrap();
            let digest = Digest::of(&bytes);
            let key = format!("datasets/part-{}", parts.len());
            let object = self.shared.store.create_object(key, bytes.into(), digest).await.unwrap();
            let of = |split| rows.iter().filter(|row| row.split == split).count() as u64;
            parts.push(PartEntry { object, rows: rows.len() as u64, split_rows: [of(0), of(1), of(2)] });
        }
        let (vocabulary, skipped, warnings) = (vocabulary(), vec![], vec![]);
        let manifest = DatasetManifest { dataset: dataset(), vocabulary, parts, skipped, warnings };
        let key = keys::dataset_manifest(&dataset().dataset, &dataset().version);
        self.shared.store.create_document(&key, &manifest).await.unwrap();
    }

    /// Does a task as a worker does, without its record.
    async fn attempt(&self, task: TaskId, work: TaskWork, lease: Lease) -> Result<TaskOutput, TaskError> {
        let message = TaskMessage { job: job(), run: RunNumber(1), task, work };
        let (message, spec) = (Arc::new(message), Arc::new(spec(self.stage.clone())));
        crate::job::run(&TaskContext::new(&self.shared, message, spec, Arc::new(lease), self.progress.clone())).await
    }

    /// Does a task and makes its record.
    async fn done(&self, task: TaskId, work: TaskWork) -> TaskOutput {
        let output = self.attempt(task.clone(), work, lease()).await.unwrap();
        self.put_record(&task, output.clone()).await;
        output
    }

    async fn put_record(&self, task: &TaskId, output: TaskOutput) {
        let record = TaskRecord {
            job: job(),
            run: RunNumber(1),
            task: task.clone(),
            worker: self.shared.worker.clone(),
            attempt: 1,
            started_ms: 0,
            finished_ms: 0,
            device_ms: 0,
            output,
        };
        self.shared.store.create_document(&keys::task_record(&job(), task), &record).await.unwrap();
    }

    async fn record(&self, task: &TaskId) -> TaskOutput {
        let record: TaskRecord = self.shared.store.require(&keys::task_record(&job(), task)).await.unwrap();
        record.output
    }

    async fn slot(&self, round: u32) -> TaskOutput {
        let (task, work) = self.slot_task(round);
        self.done(task, work).await
    }

    async fn outer(&self, round: u32) -> TaskOutput {
        self.done(task_ids::outer(round), TaskWork::TrainOuter { round }).await
    }

    /// Some slots of a round, and its outer step.
    async fn round_of(&self, round: u32, slots: &[u32]) -> TaskOutput {
        for slot in slots {
            let (task, work) = self.task_of(round, *slot);
            self.done(task, work).await;
        }
        self.outer(round).await
    }

    async fn round(&self, round: u32) -> TaskOutput {
        let slots: Vec<u32> = (0..self.stage.train.optimizer.slots()).collect();
        self.round_of(round, &slots).await
    }

    /// The whole training.
    async fn train(&self) -> ModelManifest {
        self.done(task_ids::train_init(), TaskWork::TrainInit).await;
        for round in 0..self.stage.rounds() {
            self.round(round).await;
        }
        self.done(task_ids::train_finish(), TaskWork::TrainFinish).await;
        self.manifest().await
    }

    fn slot_task(&self, round: u32) -> (TaskId, TaskWork) {
        self.task_of(round, 0)
    }

    fn task_of(&self, round: u32, slot: u32) -> (TaskId, TaskWork) {
        let inner_steps = u64::from(self.stage.train.inner_steps);
        let first_step = u64::from(round) * inner_steps;
        let steps = inner_steps.min(self.stage.total_steps() - first_step) as u32;
        (task_ids::slot(round, slot), TaskWork::TrainSlot { round, slot, first_step, steps })
    }

    async fn manifest(&self) -> ModelManifest {
        self.shared.store.require(&keys::model_manifest(&job())).await.unwrap()
    }
}

fn lease() -> Lease {
    Lease::new(Instant::now(), Duration::from_secs(3600))
}

fn objects(output: TaskOutput) -> (ObjectRef, Option<ObjectRef>) {
    let TaskOutput::Checkpoint(checkpoint) = output else { panic!("no checkpoint: {output:?}") };
    (checkpoint.object, checkpoint.metrics)
}

#[tokio::test]
async fn a_training_leaves_a_model_that_loads_with_the_figures_of_every_step() {
    let world = World::new("w").await;
    assert_eq!(world.stage.rounds(), ROUNDS);
    let manifest = world.train().await;
    assert_eq!((manifest.steps, manifest.distance.as_str()), (6, "euclidean"));
    assert!(manifest.validation_loss.unwrap().is_finite());
    let weights = world.shared.store.read(&manifest.weights).await.unwrap();
    Model::load(&manifest.settings, ATTRIBUTES, &weights, &Device::Cpu).unwrap();

    let rows = figures::decode(world.shared.store.read(&manifest.training).await.unwrap()).unwrap();
    let of = |phase| rows.iter().filter(|row| row.phase == phase).map(|row| row.step).collect::<Vec<_>>();
    assert_eq!((of(Phase::Train), of(Phase::Validation)), ((0..6).collect(), vec![4, 6]));
    assert!(rows.iter().all(|row| row.figures.loss.is_finite()));
    let validated: Vec<u64> = rows.iter().filter(|r| r.phase == Phase::Validation).map(|r| r.figures.rows).collect();
    assert_eq!(validated, [VALIDATION_ROWS as u64; 2]);
    let events = world.shared.store.read(&manifest.tensorboard).await.unwrap();
    assert!(events.windows(15).any(|window| window == b"validation/loss"));
}

#[tokio::test]
async fn two_workers_make_the_same_model() {
    let (one, other) = (World::new("one").await.train().await, World::new("other").await.train().await);
    assert_eq!(one, other);
}

#[tokio::test]
async fn a_slot_done_again_by_a_worker_that_starts_anew_leaves_the_same_objects() {
    let sgd = TrainSettings {
        optimizer: Optimizer::Sgd(SgdSettings::default()),
        clip_norm: 0.1,
        random_crop: 0.0,
        resized_crop: Some(ResizedCrop::from_scale(0.5)),
        colour: ColourJitter { brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.05 },
        ..stage().train
    };
    for train in [stage().train, sgd] {
        let world = World::of("w", TrainStage { train, ..stage() }).await;
        world.done(task_ids::train_init(), TaskWork::TrainInit).await;
        let first = world.round(0).await;
        let second = world.slot(1).await;
        world.shared.cache.training_set.clear();
        for (round, expected) in [(0, first), (1, second)] {
            let (task, work) = world.slot_task(round);
            let (again, _) = objects(world.attempt(task, work, lease()).await.unwrap());
            assert_eq!(again, objects(expected).0, "round {round}");
        }
    }
}

fn outer(output: TaskOutput) -> CheckpointOutput {
    let TaskOutput::Checkpoint(checkpoint) = output else { panic!("no checkpoint: {output:?}") };
    checkpoint
}

#[tokio::test]
async fn a_training_that_stops_early_hands_its_checkpoint_on_and_keeps_the_best_round() {
    let train = TrainSettings {
        epochs: 8,
        inner_steps: 1,
        keep: Keep::Best,
        patience: 2,
        optimizer: Optimizer::Sgd(SgdSettings { lr: 1.0, ..SgdSettings::default() }),
        ..stage().train
    };
    let world = World::of("w", TrainStage { train, ..stage() }).await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let mut rounds = Vec::new();
    for round in 0..world.stage.rounds() {
        rounds.push(outer(world.round(round).await));
    }
    world.done(task_ids::train_finish(), TaskWork::TrainFinish).await;
    let trained = 1 + rounds.iter().position(|round| round.stopped).expect("24 rounds without a stop");
    assert!(trained < rounds.len(), "it stopped at the very end");
    assert!(rounds[trained..].iter().all(|round| round.object == rounds[trained - 1].object));
    let maps: Vec<f64> = rounds[..trained].iter().map(|round| round.validation_map.unwrap()).collect();
    let best = (0..trained).rev().max_by(|a, b| maps[*a].total_cmp(&maps[*b])).unwrap();
    assert_eq!(best, trained - 3, "two validations after the best: {maps:?}");

    let manifest = world.manifest().await;
    assert!(manifest.stopped_early);
    assert_eq!((manifest.round, manifest.validation_map), (Some(best as u32), Some(maps[best])));
    assert_eq!((manifest.checkpoint, manifest.steps), (rounds[best].object.clone(), best as u64 + 1));
    let figures = figures::decode(world.shared.store.read(&manifest.training).await.unwrap()).unwrap();
    assert_eq!(figures.iter().filter(|row| row.phase == Phase::Train).count(), trained);
}

async fn put_weights(world: &World, bytes: Vec<u8>) -> ObjectRef {
    let digest = Digest::of(&bytes);
    let key = keys::brought_weights(&digest);
    world.shared.store.create_object(key, bytes.into(), digest).await.unwrap()
}

fn starting_from(weights: ObjectRef, model: Option<JobId>) -> TrainStage {
    let init = Some(InitWeights { source: "w.safetensors".into(), model, weights });
    TrainStage { train: TrainSettings { init, ..stage().train }, ..stage() }
}

/// The bytes of every tensor that is drawn at random when it starts fresh.
fn drawn(file: &[u8]) -> BTreeMap<String, &[u8]> {
    let header = Header::parse(file).unwrap();
    let (_, values) = file.split_at(header.data_start);
    let is_drawn =
        |name: &str| [".conv1.weight", ".linear1.weight", ".fc.weight"].iter().any(|end| name.ends_with(end));
    let tensors = header.tensors.into_iter().filter(|(name, _)| is_drawn(name) && !name.starts_with("adamw"));
    tensors.map(|(name, tensor)| (name, &values[tensor.data_offsets[0]..tensor.data_offsets[1]])).collect()
}

/// The tensors of the first checkpoint that equal those of `weights`.
async fn taken_over(world: &World, weights: &[u8]) -> Vec<String> {
    let (object, _) = objects(world.done(task_ids::train_init(), TaskWork::TrainInit).await);
    let checkpoint = world.shared.store.read(&object).await.unwrap();
    let (checkpoint, weights) = (drawn(&checkpoint), drawn(weights));
    weights.iter().filter(|(name, values)| checkpoint[*name] == **values).map(|(name, _)| name.clone()).collect()
}

#[tokio::test]
async fn a_training_starts_from_the_backbone_of_a_file_and_from_the_whole_of_a_model_of_ours() {
    let first = World::of("w", TrainStage { train: TrainSettings { seed: 1, ..stage().train }, ..stage() }).await;
    let manifest = first.train().await;
    let weights = first.shared.store.read(&manifest.weights).await.unwrap();

    let mut world = World::new("w").await;
    world.stage = starting_from(put_weights(&world, weights.to_vec()).await, None);
    let names = taken_over(&world, &weights).await;
    assert!(names.iter().any(|name| name == "image.layer4.1.conv1.weight"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("fc") || name.contains("linear")), "{names:?}");

    let mut world = World::new("w").await;
    let model = JobId::new("first").unwrap();
    world.shared.store.create_document(&keys::model_manifest(&model), &manifest).await.unwrap();
    world.stage = starting_from(put_weights(&world, weights.to_vec()).await, Some(model));
    let names = taken_over(&world, &weights).await;
    assert!(names.iter().any(|name| name.contains("fc")) && names.iter().any(|name| name.contains("linear")));
}

#[tokio::test]
async fn weights_of_another_network_are_no_start() {
    let mut world = World::new("w").await;
    world.stage = starting_from(put_weights(&world, b"PK\x03\x04".to_vec()).await, None);
    let error = world.attempt(task_ids::train_init(), TaskWork::TrainInit, lease()).await.unwrap_err();
    assert_eq!(error.kind, TaskErrorKind::Invalid);
    assert!(error.to_string().contains("w.safetensors"), "{error}");
}

#[tokio::test]
async fn the_outer_step_of_one_slot_takes_its_checkpoint() {
    let world = World::new("w").await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let (theta, metrics) = objects(world.slot(0).await);
    assert!(metrics.is_some());
    let outer = world.done(task_ids::outer(0), TaskWork::TrainOuter { round: 0 }).await;
    assert_eq!(objects(outer), (theta, None));
}

#[tokio::test]
async fn an_attempt_that_is_told_to_stop_stores_nothing() {
    let world = World::new("w").await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let before = world.shared.store.list("").await.unwrap();
    for (reason, kind) in [(Interrupt::Cancelled, TaskErrorKind::Cancelled), (Interrupt::Drain, TaskErrorKind::Drain)] {
        let stopped = lease();
        stopped.stop(reason);
        let (task, work) = world.slot_task(0);
        assert_eq!(world.attempt(task, work, stopped).await.unwrap_err().kind, kind);
    }
    assert_eq!(world.shared.store.list("").await.unwrap(), before);
}

#[tokio::test]
async fn a_slot_that_does_not_fit_its_checkpoint_is_invalid() {
    let world = World::new("w").await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let work = TaskWork::TrainSlot { round: 0, slot: 0, first_step: 3, steps: 1 };
    let error = world.attempt(task_ids::slot(0, 0), work, lease()).await.unwrap_err();
    assert_eq!(error.kind, TaskErrorKind::Invalid, "{error}");
    let (task, work) = world.slot_task(1);
    let error = world.attempt(task, work, lease()).await.unwrap_err();
    assert_eq!(error.kind, TaskErrorKind::Invalid, "the record of the round before is missing: {error}");
}

fn joint_stage() -> TrainStage {
    let model = ModelSettings {
        encoding: QueryEncoding::LogProbability,
        embedding_dim: log_probability_dim(ATTRIBUTES),
        ..stage().model
    };
    let train = TrainSettings { average_decay: 0.9, ..stage().train };
    TrainStage { model, train: TrainSettings { loss: Loss::BinaryCrossEntropy, ..train }, ..stage() }
}

#[tokio::test]
async fn a_model_of_log_probabilities_is_trained_and_its_head_is_taken_by_one_that_knows_the_same_attributes() {
    let world = World::of("w", joint_stage()).await;
    let manifest = world.train().await;
    assert!(manifest.validation_loss.unwrap() < 1.0 && manifest.validation_map.is_some(), "{manifest:?}");
    let weights = world.shared.store.read(&manifest.weights).await.unwrap();
    assert!(!drawn(&weights).keys().any(|name| name.starts_with("attributes.")));
    let model = Model::load(&manifest.settings, ATTRIBUTES, &weights, &Device::Cpu).unwrap();
    assert_eq!(model.embedding_dim(), 2 * ATTRIBUTES + 1);

    let first = JobId::new("first").unwrap();
    for (of, head) in [(joint_stage(), true), (stage(), false)] {
        let mut world = World::new("w").await;
        world.shared.store.create_document(&keys::model_manifest(&first), &manifest).await.unwrap();
        let from = starting_from(put_weights(&world, weights.to_vec()).await, Some(first.clone()));
        world.stage = TrainStage { train: TrainSettings { init: from.train.init, ..of.train }, ..of };
        let names = taken_over(&world, &weights).await;
        assert!(names.iter().any(|name| name == "image.conv1.weight"), "{names:?}");
        assert_eq!(names.iter().any(|name| name.contains(".fc.")), head, "{names:?}");
    }
}

/// 6 batches an epoch, two epochs, shared by so many slots.
fn shared_stage(slots: u32, change: impl FnOnce(&mut RoundSettings)) -> TrainStage {
    let mut rounds = RoundSettings::averaging(slots, stage().train.optimizer.inner());
    change(&mut rounds);
    let optimizer = Optimizer::Rounds(rounds);
    TrainStage { train: TrainSettings { batch_size: 4, inner_steps: 2, optimizer, ..stage().train }, ..stage() }
}

fn states(output: TaskOutput) -> (CheckpointOutput, Vec<SlotState>) {
    let TaskOutput::Round { checkpoint, slots, .. } = output else { panic!("no round of several slots: {output:?}") };
    (checkpoint, slots)
}

#[tokio::test]
async fn rounds_of_one_slot_are_plain_training_bit_for_bit() {
    let mut weights = BTreeSet::new();
    for inner_steps in [1, 4, 100] {
        let train = TrainSettings { inner_steps, ..stage().train };
        weights.insert(World::of("w", TrainStage { train, ..stage() }).await.train().await.weights.digest.to_string());
    }
    assert_eq!(weights.len(), 1);
}

#[test]
fn no_row_is_seen_twice_in_an_epoch_over_all_slots() {
    let labels: Vec<i8> = (0..TRAIN_ROWS).flat_map(|row| part_row(row).attributes).collect();
    for slots in [1, 2, 3, 5] {
        let stage = shared_stage(slots, |_| ());
        let sampler = TripletSampler::new(&stage.train, stage.model.encoding, labels.clone(), ATTRIBUTES).unwrap();
        let steps = stage.total_steps();
        let of_step = |step| (0..slots).map(move |slot| (step, slot));
        let batches: Vec<u64> = (0..steps).flat_map(of_step).map(|(step, slot)| stage.batch_of(step, slot)).collect();
        assert!(batches.iter().copied().eq(0..steps * u64::from(slots)), "every batch once: {batches:?}");
        assert_eq!(steps, 12 / u64::from(slots));
        for epoch in 0..2 {
            let rows = |batch: &u64| sampler.batch(*batch).rows;
            let seen: Vec<u32> = batches.iter().filter(|batch| **batch / 6 == epoch).flat_map(rows).collect();
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{slots} slots, epoch {epoch}");
        }
    }
}

#[tokio::test]
async fn slots_that_are_brought_together_leave_a_model_and_how_their_rounds_went() {
    let world = World::of("w", shared_stage(3, |rounds| (rounds.outer_lr, rounds.outer_momentum) = (0.7, 0.5))).await;
    assert_eq!((world.stage.total_steps(), world.stage.rounds()), (4, 2));
    let manifest = world.train().await;
    assert_eq!((manifest.steps, manifest.round), (4, Some(1)));
    let weights = world.shared.store.read(&manifest.weights).await.unwrap();
    Model::load(&manifest.settings, ATTRIBUTES, &weights, &Device::Cpu).unwrap();
    let [first, second] = &manifest.rounds[..] else { panic!("{:?}", manifest.rounds) };
    assert_eq!(((first.round, first.step), (second.round, second.step)), ((0, 2), (1, 4)));
    assert!(first.late.is_empty() && first.loss.is_finite());
    // Weights go to three slots and come back from them; later each slot also reads what its optimizer remembers.
    assert!(second.bytes > first.bytes && first.bytes > 9 * manifest.checkpoint.bytes, "{:?}", manifest.rounds);

    let rows = figures::decode(world.shared.store.read(&manifest.training).await.unwrap()).unwrap();
    let of = |phase| {
        rows.iter().filter(|row| row.phase == phase).map(|row| (row.step, row.figures.rows)).collect::<Vec<_>>()
    };
    assert_eq!(of(Phase::Train), [0, 1, 2, 3].map(|step| (step, 12)));
    assert_eq!(of(Phase::Validation), [2, 4].map(|step| (step, VALIDATION_ROWS as u64)));
}

#[tokio::test]
async fn slots_and_outer_steps_done_again_by_a_worker_that_starts_anew_leave_the_same_objects() {
    let world = World::of("w", shared_stage(2, |rounds| rounds.outer_momentum = 0.5)).await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    world.round(0).await;
    let outer = world.round(1).await;
    world.shared.cache.training_set.clear();
    let (task, work) = world.task_of(1, 1);
    let record = world.record(&task).await;
    let again = world.attempt(task, work, lease()).await.unwrap();
    let objects = |output: TaskOutput| match output {
        TaskOutput::Slot { checkpoint, state } => (checkpoint.object, checkpoint.metrics, Some(state)),
        TaskOutput::Round { checkpoint, momentum, .. } => (checkpoint.object, checkpoint.metrics, momentum),
        other => panic!("{other:?}"),
    };
    assert_eq!(objects(again), objects(record));
    let again = world.attempt(task_ids::outer(1), TaskWork::TrainOuter { round: 1 }, lease()).await.unwrap();
    assert_eq!(objects(again), objects(outer));
}

#[tokio::test]
async fn a_late_slot_is_left_out_and_goes_on_from_what_it_remembers() {
    let mut stage = shared_stage(3, |rounds| rounds.quorum = 2);
    stage.train.epochs = 4;
    let world = World::of("w", stage).await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let (task, work) = world.task_of(0, 0);
    world.done(task, work).await;
    let early = world.attempt(task_ids::outer(0), TaskWork::TrainOuter { round: 0 }, lease()).await.unwrap_err();
    assert_eq!(early.kind, TaskErrorKind::Transient);
    assert!(early.to_string().contains("records of 1 slots, of 2 at least"), "{early}");

    let (_, first) = states(world.round_of(0, &[2]).await);
    assert_eq!((first[0].taken, first[1].taken, first[2].taken), (true, false, true));
    assert_eq!(first[1].state, None, "it has done nothing yet");
    // It comes after its round all the same, and nobody takes it any more.
    let (task, work) = world.task_of(0, 1);
    world.done(task, work).await;
    let (_, second) = states(world.round_of(1, &[0, 1, 2]).await);
    assert!(second.iter().all(|slot| slot.taken && slot.state.is_some()));
    let (_, third) = states(world.round_of(2, &[0, 1]).await);
    assert_eq!(third[2], SlotState { taken: false, state: second[2].state.clone() });
    world.round_of(3, &[1, 2]).await;
    world.done(task_ids::train_finish(), TaskWork::TrainFinish).await;
    let late: Vec<_> = world.manifest().await.rounds.into_iter().map(|round| round.late).collect();
    assert_eq!(late, [vec![1], vec![], vec![2], vec![0]]);
}

#[tokio::test]
async fn a_slot_that_is_not_finite_stores_nothing() {
    let diverging = Optimizer::Sgd(SgdSettings { lr: 1e30, ..SgdSettings::default() }).inner();
    let world = World::of("w", shared_stage(2, |rounds| rounds.inner = diverging)).await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let before = world.shared.store.list("").await.unwrap();
    let (task, work) = world.task_of(0, 1);
    let error = world.attempt(task, work, lease()).await.unwrap_err();
    assert!(error.to_string().contains("diverged at step"), "{error}");
    assert_eq!(world.shared.store.list("").await.unwrap(), before);
}

#[tokio::test]
async fn a_slots_object_whose_digest_is_wrong_is_refused_by_the_outer_step_by_name() {
    let world = World::of("w", shared_stage(2, |_| ())).await;
    world.done(task_ids::train_init(), TaskWork::TrainInit).await;
    let (task, work) = world.task_of(0, 0);
    world.done(task, work).await;
    let (task, work) = world.task_of(0, 1);
    let TaskOutput::Slot { mut checkpoint, state } = world.attempt(task.clone(), work, lease()).await.unwrap() else {
        panic!("no slot of several")
    };
    checkpoint.object.digest = Digest::of(b"what it said it wrote");
    let name = checkpoint.object.key.clone();
    world.put_record(&task, TaskOutput::Slot { checkpoint, state }).await;
    let before = world.shared.store.list("").await.unwrap();
    let refused = world.attempt(task_ids::outer(0), TaskWork::TrainOuter { round: 0 }, lease()).await.unwrap_err();
    assert_eq!(refused.kind, TaskErrorKind::Invalid, "{refused}");
    assert!(refused.chain().contains(&name), "{}", refused.chain());
    assert_eq!(world.shared.store.list("").await.unwrap(), before);
}

#[tokio::test]
async fn rounds_of_several_slots_end_when_the_map_no_longer_rises() {
    let mut stage = shared_stage(2, |rounds| {
        rounds.inner = Optimizer::Sgd(SgdSettings { lr: 1.0, ..SgdSettings::default() }).inner();
    });
    (stage.train.epochs, stage.train.inner_steps) = (8, 1);
    (stage.train.keep, stage.train.patience) = (Keep::Best, 1);
    let world = World::of("w", stage).await;
    let manifest = world.train().await;
    assert!(manifest.stopped_early && manifest.rounds.len() < world.stage.rounds() as usize);
    assert_eq!(manifest.round, Some(manifest.rounds.len() as u32 - 2), "the round before the last is the best");
}
