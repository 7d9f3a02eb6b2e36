//! Past versions of jobs and records, as they are still read, and the form that names a job.

use serde::{Deserialize, Serialize};

use super::{
    CheckpointOutput, JobRequest, JobSpec, JobWork, RequestedWork, TaskOutput, TaskRecord, TrainRequest, TrainStage,
};
use crate::codec::{self, Message};
use crate::documents::ObjectRef;
use crate::settings::{TrainSettings, TrainSettingsV1};

/// A spec as version 1 wrote it: see [`JobSpec::naming_bytes`].
#[derive(Serialize, Deserialize)]
struct SpecV1(JobSpec<TrainSettingsV1>);

impl Message for SpecV1 {
    const NAME: &'static str = <JobSpec as Message>::NAME;
    const VERSION: u16 = 1;
}

impl From<JobSpec<TrainSettingsV1>> for JobSpec {
    fn from(old: JobSpec<TrainSettingsV1>) -> Self {
        let JobSpec { work, device, priority } = old;
        Self {
            work: work.map_train(|train| Some(train.into())).expect("every old setting can be said"),
            device,
            priority,
        }
    }
}

impl JobSpec {
    /// The document whose digest names the job: as the oldest version writes it that can say it. So a new setting
    /// that is left alone changes no id.
    pub fn naming_bytes(&self) -> Vec<u8> {
        let Self { work, device, priority } = self.clone();
        match work.map_train(TrainSettingsV1::of) {
            Some(work) => codec::encode_document(&SpecV1(JobSpec { work, device, priority })),
            None => codec::encode_document(self),
        }
    }
}

impl<T> JobWork<T> {
    /// The same with other settings of its training; none where there are none.
    fn map_train<U>(self, f: impl FnOnce(T) -> Option<U>) -> Option<JobWork<U>> {
        Some(match self {
            Self::Ingest { dataset, source, part_rows } => JobWork::Ingest { dataset, source, part_rows },
            Self::Train(train) => JobWork::Train(train.map(f)?),
            Self::Embed { model, embed } => JobWork::Embed { model, embed },
            Self::Evaluate { generation, evaluate } => JobWork::Evaluate { generation, evaluate },
            Self::Pipeline { train, embed, evaluate, alias, baseline } => {
                JobWork::Pipeline { train: train.map(f)?, embed, evaluate, alias, baseline }
            }
        })
    }
}

impl<T> TrainStage<T> {
    fn map<U>(self, f: impl FnOnce(T) -> Option<U>) -> Option<TrainStage<U>> {
        let Self { dataset, vocabulary, model, train, train_rows, validation_rows } = self;
        Some(TrainStage { dataset, vocabulary, model, train: f(train)?, train_rows, validation_rows })
    }
}

impl From<TrainRequest<TrainSettingsV1>> for TrainRequest {
    fn from(old: TrainRequest<TrainSettingsV1>) -> Self {
        let TrainRequest { dataset, model, train } = old;
        Self { dataset, model, train: TrainSettings::from(train) }
    }
}

impl From<JobRequest<TrainSettingsV1>> for JobRequest {
    fn from(old: JobRequest<TrainSettingsV1>) -> Self {
        let JobRequest { id, work, device, priority } = old;
        let work = match work {
            RequestedWork::Ingest { dataset, source, part_rows } => {
                RequestedWork::Ingest { dataset, source, part_rows }
            }
            RequestedWork::Train(train) => RequestedWork::Train(train.into()),
            RequestedWork::Embed { model, embed } => RequestedWork::Embed { model, embed },
            RequestedWork::Evaluate { generation, evaluate } => RequestedWork::Evaluate { generation, evaluate },
            RequestedWork::Pipeline { train, embed, evaluate, alias } => {
                RequestedWork::Pipeline { train: train.into(), embed, evaluate, alias }
            }
        };
        Self { id, work, device, priority }
    }
}

/// Version 1: no mAP, no best round.
#[derive(Debug, Serialize, Deserialize)]
pub struct CheckpointOutputV1 {
    step: u64,
    object: ObjectRef,
    metrics: Option<ObjectRef>,
    loss: Option<f64>,
    validation_loss: Option<f64>,
    images_per_second: Option<f64>,
    wait_share: Option<f64>,
}

impl From<CheckpointOutputV1> for CheckpointOutput {
    fn from(old: CheckpointOutputV1) -> Self {
        let CheckpointOutputV1 { step, object, metrics, loss, validation_loss, images_per_second, wait_share } = old;
        Self { loss, metrics, validation_loss, images_per_second, wait_share, ..Self::of(step, object) }
    }
}

impl From<TaskRecord<CheckpointOutputV1>> for TaskRecord {
    fn from(old: TaskRecord<CheckpointOutputV1>) -> Self {
        let TaskRecord { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output } = old;
        Self { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output: output.into() }
    }
}

impl From<TaskOutput<CheckpointOutputV1>> for TaskOutput {
    fn from(old: TaskOutput<CheckpointOutputV1>) -> Self {
        match old {
            TaskOutput::Scan { rows_object, rows, vocabulary, warnings } => {
                Self::Scan { rows_object, rows, vocabulary, warnings }
            }
            TaskOutput::Part { object, rows, split_rows, skipped } => Self::Part { object, rows, split_rows, skipped },
            TaskOutput::Checkpoint(checkpoint) => Self::Checkpoint(checkpoint.into()),
            TaskOutput::Manifest { key } => Self::Manifest { key },
            TaskOutput::Shard { object, rows, skipped } => Self::Shard { object, rows, skipped },
            TaskOutput::Queries { object, queries } => Self::Queries { object, queries },
            TaskOutput::Scores { object, from, queries } => Self::Scores { object, from, queries },
            TaskOutput::Report { key, headline } => Self::Report { key, headline },
            TaskOutput::Gate(decision) => Self::Gate(decision),
        }
    }
}
