//! What the tests of the core share: ids, specs, records, and an outbox that checks everything it takes.

use std::collections::VecDeque;

use likeness_contract::codec::{self, Encoding, Message};
use likeness_contract::documents::{GateDecision, ObjectRef};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    DatasetRef, DeviceClass, EmbedStage, EmbeddingSource, EvaluateStage, Import, ImportColumns, IngestSource,
    JobOptions, JobSpec, JobWork, Outcome, Priority, TaskOutput, TaskRecord, TrainStage, ZeroLabel,
};
use likeness_contract::settings::{
    AdamWSettings, Architecture, EvaluateSettings, InnerOptimizer, ModelSettings, Optimizer, Preprocessing,
    QueryEncoding, RoundSettings, Split, TrainSettings, Vocabulary,
};

use super::outbox::{Effect, Outbox};

pub(crate) fn job_id(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

pub(crate) fn task_id(text: &str) -> TaskId {
    TaskId::new(text).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn worker_id(text: &str) -> WorkerId {
    WorkerId::new(text).unwrap()
}

pub(crate) fn dataset_ref() -> DatasetRef {
    DatasetRef { dataset: name("faces"), version: job_id("ingest-1") }
}

pub(crate) fn vocabulary() -> Vocabulary {
    Vocabulary { names: vec!["Smiling".into(), "Male".into(), "Young".into()] }
}

pub(crate) fn spec(work: JobWork) -> JobSpec {
    JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() }
}

pub(crate) fn ingest(part_rows: u32) -> JobSpec {
    let source = IngestSource::Celeba { dir: "/data".into() };
    spec(JobWork::Ingest { dataset: name("faces"), source, part_rows })
}

pub(crate) fn model_settings() -> ModelSettings {
    ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: 64,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(64),
    }
}

/// Ten steps in rounds of four: 4, 4, 2.
pub(crate) fn train_stage() -> TrainStage {
    let train = TrainSettings { epochs: 2, batch_size: 10, inner_steps: 4, ..TrainSettings::default() };
    TrainStage {
        dataset: dataset_ref(),
        vocabulary: vocabulary(),
        model: model_settings(),
        train,
        train_rows: 57,
        validation_rows: 10,
    }
}

/// Ten batches shared by three slots: three steps each, in rounds of two and one.
pub(crate) fn train_in_rounds(quorum: u32, deadline_s: u32) -> JobSpec {
    let averaging = RoundSettings::averaging(3, InnerOptimizer::AdamW(AdamWSettings::default()));
    let optimizer = Optimizer::Rounds(RoundSettings { quorum, deadline_s, ..averaging });
    let stage = train_stage();
    let train = TrainSettings { optimizer, inner_steps: 2, ..stage.train };
    spec(JobWork::Train(TrainStage { train, ..stage }))
}

pub(crate) fn embed_stage(gallery_rows: u64, shard_rows: u32) -> EmbedStage {
    EmbedStage { gallery: name("all"), dataset: dataset_ref(), rows: Split::All, gallery_rows, shard_rows }
}

pub(crate) fn embed(gallery_rows: u64, shard_rows: u32) -> JobSpec {
    spec(JobWork::Embed { model: job_id("model-1"), embed: embed_stage(gallery_rows, shard_rows) })
}

pub(crate) fn evaluate_stage() -> EvaluateStage {
    let settings = EvaluateSettings { queries_per_task: 100, ..EvaluateSettings::default() };
    EvaluateStage { rows: Split::Test, settings }
}

pub(crate) fn record(job: &JobId, task: &str, output: TaskOutput) -> TaskRecord {
    TaskRecord {
        job: job.clone(),
        run: RunNumber(1),
        task: task_id(task),
        worker: worker_id("w"),
        attempt: 1,
        started_ms: 0,
        finished_ms: 1,
        device_ms: 1,
        output,
    }
}

pub(crate) fn object() -> ObjectRef {
    ObjectRef { key: "some/object".into(), digest: Digest::of(b"object"), bytes: 6 }
}

pub(crate) fn scan_output(rows: u64) -> TaskOutput {
    TaskOutput::Scan { rows_object: object(), rows, vocabulary: vocabulary(), warnings: Vec::new() }
}

pub(crate) fn import(shard_rows: u32) -> JobSpec {
    let source = EmbeddingSource::Parquet { files: vec!["/data/vectors.parquet".into()] };
    let (columns, zero) = (ImportColumns::default(), ZeroLabel::Auto);
    spec(JobWork::Import(Import { gallery: name("all"), source, columns, zero, normalize: false, shard_rows }))
}

pub(crate) fn import_scan_output(rows: u64) -> TaskOutput {
    let (rows_object, vocabulary, warnings) = (object(), vocabulary(), Vec::new());
    TaskOutput::ImportScan { rows_object, rows, embedding_dim: 64, vocabulary, warnings }
}

pub(crate) fn shard_output() -> TaskOutput {
    TaskOutput::Shard { object: Some(object()), rows: 1, skipped: Vec::new() }
}

pub(crate) fn gate_decision(passed: bool) -> GateDecision {
    GateDecision {
        passed,
        baseline: None,
        candidate_map: 0.4,
        baseline_map: 0.3,
        difference: 0.1,
        interval: [0.05, 0.15],
        queries: 600,
    }
}

/// Keeps effects in order, each after a round trip through the codec, and fails when one is left over.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    effects: VecDeque<Effect>,
}

impl Outbox for Recording {
    fn send(&mut self, effect: Effect) {
        self.effects.push_back(travelled(effect));
    }
}

impl Recording {
    /// The next effect.
    pub(crate) fn next(&mut self) -> Effect {
        self.effects.pop_front().expect("an effect is expected")
    }

    /// All effects.
    pub(crate) fn drain(&mut self) -> Vec<Effect> {
        self.effects.drain(..).collect()
    }

    /// The next effects are publishes of these tasks.
    pub(crate) fn expect_published(&mut self, tasks: &[&str]) {
        for task in tasks {
            match self.next() {
                Effect::Publish { subject, message } => {
                    assert_eq!(message.task.as_str(), *task);
                    assert!(subject.ends_with(&format!(".{}.{task}", message.job)), "{subject}");
                }
                other => panic!("expected the publish of `{task}`, found {other:?}"),
            }
        }
    }

    /// Nothing more was sent.
    pub(crate) fn expect_nothing(&mut self) {
        assert!(self.effects.is_empty(), "unexpected: {:?}", self.effects);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.expect_nothing();
        }
    }
}

/// What arrives when an effect's message is sent: the same, or the codec is broken.
fn travelled(effect: Effect) -> Effect {
    match effect {
        Effect::Publish { subject, message } => Effect::Publish { subject, message: round_trip(message) },
        Effect::DeadLetter(letter) => Effect::DeadLetter(round_trip(letter)),
        Effect::Announce(event) => Effect::Announce(round_trip(event)),
        Effect::Close { job, run, result } => {
            let outcome = round_trip(Outcome { job, run, closed_ms: 0, result });
            Effect::Close { job: outcome.job, run: outcome.run, result: outcome.result }
        }
        other => other,
    }
}

pub(crate) fn round_trip<M: Message + PartialEq + std::fmt::Debug>(message: M) -> M {
    let bytes = codec::encode(&message, Encoding::Bincode).unwrap();
    let back: M = codec::decode(&bytes, Encoding::Bincode).unwrap();
    assert_eq!(back, message, "a message changed on its way");
    let document = codec::encode_document(&message);
    assert_eq!(codec::decode_document::<M>(&document).unwrap(), message, "a document changed in the store");
    back
}
