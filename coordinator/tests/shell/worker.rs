//! A worker that computes nothing: it takes tasks, makes their records and manifests as a real one would, and
//! misbehaves where it is told to.

use std::sync::Arc;
use std::time::Duration;

use likeness_contract::documents::{
    DatasetManifest, Embedder, GateDecision, GenerationManifest, ModelManifest, ObjectRef, Origin, PartEntry,
    ShardEntry,
};
use likeness_contract::ids::{Digest, JobId, WorkerId};
use likeness_contract::jobs::{
    CheckpointOutput, DatasetRef, DeviceClass, JobSpec, JobWork, Priority, TaskKind, TaskMessage, TaskOutput,
    TaskRecord, TaskWork,
};
use likeness_contract::messages::{Presence, TaskEvent, TaskNews};
use likeness_contract::settings::Vocabulary;
use likeness_contract::{keys, subjects};
use likeness_link::{Bus, Delivery, Store};
use tokio::task::JoinHandle;

/// What a worker does with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// As it should.
    Work,
    /// Does it, and its event gets lost.
    Mute,
    /// Reports a failure that another attempt may mend.
    Fail,
    /// Reports a failure that none can mend.
    Refuse,
}

type Choose = Arc<dyn Fn(&TaskMessage) -> Conduct + Send + Sync>;

/// A running worker; it vanishes when dropped.
pub struct Worker(JoinHandle<()>);

impl Drop for Worker {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Worker {
    pub fn start(bus: Bus, store: Store, choose: impl Fn(&TaskMessage) -> Conduct + Send + Sync + 'static) -> Self {
        let hands = Hands { bus, store, id: WorkerId::new("fake").unwrap(), choose: Arc::new(choose) };
        Self(tokio::spawn(hands.run()))
    }

    pub fn diligent(bus: Bus, store: Store) -> Self {
        Self::start(bus, store, |_| Conduct::Work)
    }
}

struct Hands {
    bus: Bus,
    store: Store,
    id: WorkerId,
    choose: Choose,
}

impl Hands {
    async fn run(self) {
        let mut pulls = Vec::new();
        for kind in TaskKind::ALL {
            for device in [DeviceClass::Any, DeviceClass::Cpu] {
                pulls.push(self.bus.task_messages(kind, device, Priority::Lo).await.unwrap());
            }
        }
        loop {
            self.announce().await;
            for pull in &mut pulls {
                // A broker that is away is waited for.
                if let Ok(Some(delivery)) = pull.try_next().await {
                    self.take(delivery).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn announce(&self) {
        let presence = Presence {
            worker: self.id.clone(),
            roles: TaskKind::ALL.to_vec(),
            searches: false,
            device: "cpu".into(),
            device_class: DeviceClass::Cpu,
            host: "test".into(),
            version: "0".into(),
            task: None,
            draining: false,
        };
        if let Ok(kv) = self.bus.kv(subjects::PRESENCE_BUCKET).await {
            let _broker_away = kv.put(self.id.as_str(), &presence).await;
        }
    }

    async fn take(&self, delivery: Delivery) {
        let message = delivery.task().unwrap();
        let attempt = format!("{}-{}", message.task, delivery.deliveries);
        let closed = self.store.get(&keys::job_outcome(&message.job, message.run)).await.unwrap().is_some();
        if closed {
            let _gone = delivery.term().await;
            return;
        }
        self.say(&message, &attempt, TaskNews::Started).await;
        match (self.choose)(&message) {
            Conduct::Work => {
                let adopted = !self.commit(&message).await;
                self.say(&message, &attempt, TaskNews::Done { adopted, device_ms: 5 }).await;
                let _gone = delivery.ack().await;
            }
            Conduct::Mute => {
                self.commit(&message).await;
                let _gone = delivery.ack().await;
            }
            Conduct::Fail => {
                let error = "the disk is on fire".into();
                self.say(&message, &attempt, TaskNews::Failed { error, retryable: true }).await;
                let _gone = delivery.nak(None).await;
            }
            Conduct::Refuse => {
                let error = "the header is wrong".into();
                self.say(&message, &attempt, TaskNews::Failed { error, retryable: false }).await;
                let _gone = delivery.term().await;
            }
        }
    }

    async fn say(&self, message: &TaskMessage, attempt: &str, what: TaskNews) {
        let TaskMessage { job, run, task, .. } = message.clone();
        let subject = subjects::task_event(&job, &task, what.name());
        let event = TaskEvent { job, run, task, worker: self.id.clone(), attempt: attempt.into(), at_ms: 0, what };
        let _broker_away = self.bus.publish_event(subject, &event).await;
    }

    /// Returns whether the record is its own.
    async fn commit(&self, message: &TaskMessage) -> bool {
        let output = self.output(message).await;
        let TaskMessage { job, run, task, .. } = message.clone();
        let key = keys::task_record(&job, &task);
        let record = TaskRecord {
            job,
            run,
            task,
            worker: self.id.clone(),
            attempt: 1,
            started_ms: 0,
            finished_ms: 1,
            device_ms: 5,
            output,
        };
        self.store.create_document(&key, &record).await.unwrap().created
    }

    async fn output(&self, message: &TaskMessage) -> TaskOutput {
        let job = &message.job;
        match &message.work {
            TaskWork::IngestScan => {
                TaskOutput::Scan { rows_object: object(), rows: 25, vocabulary: vocabulary(), warnings: Vec::new() }
            }
            TaskWork::IngestPart { rows, .. } => {
                let rows = u64::from(*rows);
                TaskOutput::Part { object: Some(object()), rows, split_rows: [rows, 0, 0], skipped: Vec::new() }
            }
            TaskWork::IngestFinish => self.finish_dataset(job).await,
            TaskWork::TrainInit | TaskWork::TrainSlot { .. } | TaskWork::TrainOuter { .. } => checkpoint(),
            TaskWork::TrainFinish => self.finish_model(job).await,
            TaskWork::EmbedShard { rows, .. }
            | TaskWork::EmbedShardAfter { rows, .. }
            | TaskWork::ImportShard { rows, .. } => {
                TaskOutput::Shard { object: Some(object()), rows: u64::from(*rows), skipped: Vec::new() }
            }
            TaskWork::ImportScan => {
                let (rows_object, vocabulary, warnings) = (object(), vocabulary(), Vec::new());
                TaskOutput::ImportScan { rows_object, rows: 25, embedding_dim: 8, vocabulary, warnings }
            }
            TaskWork::EmbedFinish { .. } | TaskWork::ImportFinish => self.finish_generation(job).await,
            TaskWork::EvaluateQueries { .. } => TaskOutput::Queries { object: object(), queries: 30 },
            TaskWork::EvaluateRange { from, queries, .. } => {
                TaskOutput::Scores { object: object(), from: *from, queries: *queries }
            }
            TaskWork::EvaluateFinish { .. } => {
                TaskOutput::Report { key: keys::report_manifest(job), headline: Vec::new() }
            }
            TaskWork::SearchPart { .. } => TaskOutput::Answers { object: object(), questions: 1, failed: 0 },
            TaskWork::SearchFinish => TaskOutput::Manifest { key: keys::search_manifest(job) },
            TaskWork::Gate => TaskOutput::Gate(GateDecision {
                passed: true,
                baseline: None,
                candidate_map: 0.5,
                baseline_map: 0.2,
                difference: 0.3,
                interval: [0.2, 0.4],
                queries: 30,
            }),
        }
    }

    async fn spec(&self, job: &JobId) -> JobSpec {
        self.store.require(&keys::job_spec(job)).await.unwrap()
    }

    async fn finish_dataset(&self, job: &JobId) -> TaskOutput {
        let JobWork::Ingest { dataset, .. } = self.spec(job).await.work else { panic!("an ingest") };
        let key = keys::dataset_manifest(&dataset, job);
        let part = PartEntry { object: object(), rows: 90, split_rows: [60, 10, 20] };
        let manifest = DatasetManifest {
            dataset: DatasetRef { dataset, version: job.clone() },
            vocabulary: vocabulary(),
            parts: vec![part],
            skipped: Vec::new(),
            warnings: Vec::new(),
        };
        self.store.create_document(&key, &manifest).await.unwrap();
        TaskOutput::Manifest { key }
    }

    async fn finish_model(&self, job: &JobId) -> TaskOutput {
        let (JobWork::Train(stage) | JobWork::Pipeline { train: stage, .. }) = self.spec(job).await.work else {
            panic!("a training")
        };
        let key = keys::model_manifest(job);
        let manifest = ModelManifest {
            model: job.clone(),
            settings: stage.model.clone(),
            train: stage.train.clone(),
            vocabulary: stage.vocabulary.clone(),
            dataset: stage.dataset.clone(),
            weights: object(),
            checkpoint: object(),
            distance: "euclidean".into(),
            steps: stage.total_steps(),
            validation_loss: None,
            training: object(),
            tensorboard: object(),
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        };
        self.store.create_document(&key, &manifest).await.unwrap();
        TaskOutput::Manifest { key }
    }

    async fn finish_generation(&self, job: &JobId) -> TaskOutput {
        let JobWork::Pipeline { train, embed, .. } = self.spec(job).await.work else { panic!("a pipeline") };
        let key = keys::generation_manifest(&embed.gallery, job);
        let generation = likeness_contract::jobs::GenerationRef { gallery: embed.gallery, generation: job.clone() };
        let manifest = GenerationManifest {
            generation,
            origin: Origin::Model(Embedder { model: job.clone(), weights: object().digest, dataset: embed.dataset }),
            rows: embed.rows,
            embedding_dim: train.model.embedding_dim,
            vocabulary: train.vocabulary,
            shards: (0..2).map(|shard| ShardEntry { shard, object: object(), rows: 45, approximate: None }).collect(),
            skipped: Vec::new(),
        };
        self.store.create_document(&key, &manifest).await.unwrap();
        TaskOutput::Manifest { key }
    }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: vec!["Smiling".into(), "Male".into()] }
}

fn object() -> ObjectRef {
    ObjectRef { key: "some/object".into(), digest: Digest::of(b"object"), bytes: 6 }
}

fn checkpoint() -> TaskOutput {
    TaskOutput::Checkpoint(CheckpointOutput::of(1, object()))
}
