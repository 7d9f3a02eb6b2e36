//! Past versions of jobs and records, as they are still read; and written, where they say all of it.

use serde::{Deserialize, Serialize};

use super::{
    CheckpointOutput, JobRequest, JobSpec, JobWork, RequestedWork, TaskOutput, TaskRecord, TrainRequest, TrainStage,
};
use crate::codec::Message;
use crate::documents::ObjectRef;
use crate::settings::{TrainSettings, TrainSettingsV1};

/// See [`spec_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpecV1(JobSpec<TrainSettingsV1>);

impl Message for SpecV1 {
    const NAME: &'static str = <JobSpec as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The spec as version 1 wrote it, if that says all of it. A job's id is the digest of its spec, so a new setting that is left
/// alone changes no id.
pub fn spec_v1(spec: &JobSpec) -> Option<SpecV1> {
    spec_as_v1(spec).map(SpecV1)
}

/// The same as part of another message.
pub fn spec_as_v1(spec: &JobSpec) -> Option<JobSpec<TrainSettingsV1>> {
    let JobSpec { work, device, priority } = spec.clone();
    Some(JobSpec { work: work.map_train(TrainSettingsV1::of)?, device, priority })
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

impl<T> TrainRequest<T> {
    fn map<U>(self, f: impl FnOnce(T) -> Option<U>) -> Option<TrainRequest<U>> {
        let Self { dataset, model, train } = self;
        Some(TrainRequest { dataset, model, train: f(train)? })
    }
}

impl<T> JobRequest<T> {
    /// The same with other settings of its training; none where there are none.
    fn map_train<U>(self, f: impl FnOnce(T) -> Option<U>) -> Option<JobRequest<U>> {
        let Self { id, work, device, priority } = self;
        let work = match work {
            RequestedWork::Ingest { dataset, source, part_rows } => {
                RequestedWork::Ingest { dataset, source, part_rows }
            }
            RequestedWork::Train(train) => RequestedWork::Train(train.map(f)?),
            RequestedWork::Embed { model, embed } => RequestedWork::Embed { model, embed },
            RequestedWork::Evaluate { generation, evaluate } => RequestedWork::Evaluate { generation, evaluate },
            RequestedWork::Pipeline { train, embed, evaluate, alias } => {
                RequestedWork::Pipeline { train: train.map(f)?, embed, evaluate, alias }
            }
        };
        Some(JobRequest { id, work, device, priority })
    }
}

/// The request as version 1 wrote it, if that says all of it.
pub fn request_as_v1(request: &JobRequest) -> Option<JobRequest<TrainSettingsV1>> {
    request.clone().map_train(TrainSettingsV1::of)
}

impl From<JobRequest<TrainSettingsV1>> for JobRequest {
    fn from(old: JobRequest<TrainSettingsV1>) -> Self {
        old.map_train(|train| Some(TrainSettings::from(train))).expect("every old setting can be said")
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

impl CheckpointOutputV1 {
    /// The same checkpoint, if nothing new was measured.
    fn of(checkpoint: CheckpointOutput) -> Option<Self> {
        let CheckpointOutput {
            step,
            object,
            metrics,
            loss,
            validation_loss,
            images_per_second,
            wait_share,
            validation_map,
            best,
            stopped,
        } = checkpoint;
        let old = Self { step, object, metrics, loss, validation_loss, images_per_second, wait_share };
        (validation_map.is_none() && best.is_none() && !stopped).then_some(old)
    }
}

/// See [`record_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordV1(TaskRecord<CheckpointOutputV1>);

impl Message for RecordV1 {
    const NAME: &'static str = <TaskRecord as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The record as version 1 wrote it, if that says all of it.
pub fn record_v1(record: &TaskRecord) -> Option<RecordV1> {
    if matches!(record.output, TaskOutput::IndexedShard { .. }) {
        return None;
    }
    record.clone().map(CheckpointOutputV1::of).map(RecordV1)
}

impl From<TaskRecord<CheckpointOutputV1>> for TaskRecord {
    fn from(old: TaskRecord<CheckpointOutputV1>) -> Self {
        old.map(|checkpoint| Some(checkpoint.into())).expect("every old checkpoint can be said")
    }
}

impl<C> TaskRecord<C> {
    fn map<D>(self, f: impl FnOnce(C) -> Option<D>) -> Option<TaskRecord<D>> {
        let Self { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output } = self;
        let output = output.map(f)?;
        Some(TaskRecord { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output })
    }
}

impl<C> TaskOutput<C> {
    fn map<D>(self, f: impl FnOnce(C) -> Option<D>) -> Option<TaskOutput<D>> {
        Some(match self {
            Self::Scan { rows_object, rows, vocabulary, warnings } => {
                TaskOutput::Scan { rows_object, rows, vocabulary, warnings }
            }
            Self::Part { object, rows, split_rows, skipped } => TaskOutput::Part { object, rows, split_rows, skipped },
            Self::Checkpoint(checkpoint) => TaskOutput::Checkpoint(f(checkpoint)?),
            Self::Manifest { key } => TaskOutput::Manifest { key },
            Self::Shard { object, rows, skipped } => TaskOutput::Shard { object, rows, skipped },
            Self::Queries { object, queries } => TaskOutput::Queries { object, queries },
            Self::Scores { object, from, queries } => TaskOutput::Scores { object, from, queries },
            Self::Report { key, headline } => TaskOutput::Report { key, headline },
            Self::Gate(decision) => TaskOutput::Gate(decision),
            Self::IndexedShard { object, rows, skipped, approximate } => {
                TaskOutput::IndexedShard { object, rows, skipped, approximate }
            }
        })
    }
}
