//! Past versions of jobs and records, as they are still read; and written, where they say all of it.

use std::fmt::Debug;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{
    CheckpointOutput, DeviceClass, EvaluateStage, JobOptions, JobRequest, JobSpec, JobWork, Plan, Priority,
    RequestedWork, TaskMessage, TaskOutput, TaskRecord, TaskWork, TrainRequest, TrainStage,
};
use crate::codec::Message;
use crate::documents::ObjectRef;
use crate::ids::JobId;
use crate::settings::{
    EvaluateSettings, EvaluateSettingsV1, ModelSettings, QueryEncoding, TrainSettings, TrainSettingsV1, TrainSettingsV2,
};

/// A version of the settings in a job: the rest of its work is the same in all of them.
pub trait Form: Debug + Clone + PartialEq {
    /// Of a training.
    type Train: Debug + Clone + PartialEq + Serialize + DeserializeOwned;
    /// Of an evaluation.
    type Evaluate: Debug + Clone + PartialEq + Serialize + DeserializeOwned;
}

/// As this program writes what is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
pub struct Newest;

impl Form for Newest {
    type Train = TrainSettings;
    type Evaluate = EvaluateSettings;
}

/// Version 3: trainings with triplets alone, models with two towers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V3;

impl Form for V3 {
    type Train = TrainSettingsV2;
    type Evaluate = EvaluateSettings;
}

/// Version 2: evaluations of fixed numbers, no options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V2;

impl Form for V2 {
    type Train = TrainSettingsV2;
    type Evaluate = EvaluateSettingsV1;
}

/// Version 1: trainings from fresh weights with AdamW alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct V1;

impl Form for V1 {
    type Train = TrainSettingsV1;
    type Evaluate = EvaluateSettingsV1;
}

/// A spec before it had options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct SpecOf<F: Form> {
    work: JobWork<F>,
    device: DeviceClass,
    priority: Priority,
}

impl Message for SpecOf<V1> {
    const NAME: &'static str = JobSpec::NAME;
    const VERSION: u16 = 1;
}

impl Message for SpecOf<V2> {
    const NAME: &'static str = JobSpec::NAME;
    const VERSION: u16 = 2;
}

/// A request before it had options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct RequestOf<F: Form> {
    id: Option<JobId>,
    work: RequestedWork<F>,
    device: DeviceClass,
    priority: Priority,
}

/// A spec with options, as version 3 wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpecV3 {
    work: JobWork<V3>,
    device: DeviceClass,
    priority: Priority,
    options: JobOptions,
}

impl Message for SpecV3 {
    const NAME: &'static str = JobSpec::NAME;
    const VERSION: u16 = 3;
}

/// A spec as version 4 wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpecV4(JobSpec);

impl Message for SpecV4 {
    const NAME: &'static str = JobSpec::NAME;
    const VERSION: u16 = 4;
}

/// A request with options, as version 3 wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestV3 {
    id: Option<JobId>,
    work: RequestedWork<V3>,
    device: DeviceClass,
    priority: Priority,
    options: JobOptions,
}

/// Whether only version 4 knows a model like this.
fn is_new_model(model: &ModelSettings) -> bool {
    match model.encoding {
        QueryEncoding::ThreeState | QueryEncoding::MultiHot => false,
        QueryEncoding::LogProbability => true,
    }
}

/// Whether a job trains a model that only version 4 knows.
fn trains_new_model(work: &JobWork) -> bool {
    matches!(work, JobWork::Train(train) | JobWork::Pipeline { train, .. } if is_new_model(&train.model))
}

/// The same of a request.
fn asks_for_new_model(work: &RequestedWork) -> bool {
    matches!(work, RequestedWork::Train(train) | RequestedWork::Pipeline { train, .. } if is_new_model(&train.model))
}

/// Whether a job trains in rounds of several slots, which only version 5 knows.
pub fn trains_in_rounds(spec: &JobSpec) -> bool {
    match &spec.work {
        JobWork::Train(train) | JobWork::Pipeline { train, .. } => train.train.optimizer.rounds().is_some(),
        _ => false,
    }
}

/// The same of a request.
pub fn asks_for_rounds(request: &JobRequest) -> bool {
    match &request.work {
        RequestedWork::Train(train) | RequestedWork::Pipeline { train, .. } => train.train.optimizer.rounds().is_some(),
        _ => false,
    }
}

/// Whether only version 3 knows this kind of work.
fn is_new_work(work: &JobWork) -> bool {
    match work {
        JobWork::Ingest { source, .. } => !source.is_of_before(),
        JobWork::Train(_) | JobWork::Embed { .. } | JobWork::Evaluate { .. } | JobWork::Pipeline { .. } => false,
        JobWork::Search(_) | JobWork::EmbedAnew { .. } | JobWork::Import(_) => true,
    }
}

/// Whether only version 3 knows this kind of work.
fn is_new_request(work: &RequestedWork) -> bool {
    match work {
        RequestedWork::Ingest { source, .. } => !source.is_of_before(),
        RequestedWork::Train(_)
        | RequestedWork::Embed { .. }
        | RequestedWork::Evaluate { .. }
        | RequestedWork::Pipeline { .. } => false,
        RequestedWork::Search(_) | RequestedWork::EmbedAnew { .. } | RequestedWork::Import(_) => true,
    }
}

/// Whether only version 2 of plans and tasks knows this kind of work.
fn is_new_task(work: &TaskWork) -> bool {
    matches!(
        work,
        TaskWork::SearchPart { .. }
            | TaskWork::SearchFinish
            | TaskWork::EmbedShardAfter { .. }
            | TaskWork::ImportScan
            | TaskWork::ImportShard { .. }
            | TaskWork::ImportFinish
    )
}

/// See [`plan_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanV1(Plan);

impl Message for PlanV1 {
    const NAME: &'static str = <Plan as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The plan as version 1 wrote it, if that knows all of its tasks.
pub fn plan_v1(plan: &Plan) -> Option<PlanV1> {
    let mut tasks = plan.stages.iter().flat_map(|stage| &stage.tasks);
    (!tasks.any(|task| is_new_task(&task.work))).then(|| PlanV1(plan.clone()))
}

/// See [`task_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskV1(TaskMessage);

impl Message for TaskV1 {
    const NAME: &'static str = <TaskMessage as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The message as version 1 wrote it, if that knows its task.
pub fn task_v1(message: &TaskMessage) -> Option<TaskV1> {
    (!is_new_task(&message.work)).then(|| TaskV1(message.clone()))
}

/// The spec as version 1 wrote it, if that says all of it. A job's id is the digest of its spec, so a new setting that is left
/// alone changes no id.
pub fn spec_as_v1(spec: &JobSpec) -> Option<SpecOf<V1>> {
    old_spec(spec, TrainSettingsV1::of, EvaluateSettingsV1::of)
}

/// The same of version 2.
pub fn spec_as_v2(spec: &JobSpec) -> Option<SpecOf<V2>> {
    old_spec(spec, TrainSettingsV2::of, EvaluateSettingsV1::of)
}

/// The same of version 3.
pub fn spec_as_v3(spec: &JobSpec) -> Option<SpecV3> {
    let JobSpec { work, device, priority, options } = spec.clone();
    (!trains_new_model(&work)).then_some(())?;
    Some(SpecV3 { work: work.map(TrainSettingsV2::of, Some)?, device, priority, options })
}

/// The same of version 4.
pub fn spec_as_v4(spec: &JobSpec) -> Option<SpecV4> {
    (!trains_in_rounds(spec)).then(|| SpecV4(spec.clone()))
}

/// The request as version 1 wrote it, if that says all of it.
pub fn request_as_v1(request: &JobRequest) -> Option<RequestOf<V1>> {
    old_request(request, TrainSettingsV1::of, EvaluateSettingsV1::of)
}

/// The same of version 2.
pub fn request_as_v2(request: &JobRequest) -> Option<RequestOf<V2>> {
    old_request(request, TrainSettingsV2::of, EvaluateSettingsV1::of)
}

/// The same of version 3.
pub fn request_as_v3(request: &JobRequest) -> Option<RequestV3> {
    let JobRequest { id, work, device, priority, options } = request.clone();
    (!asks_for_new_model(&work)).then_some(())?;
    Some(RequestV3 { id, work: work.map(TrainSettingsV2::of, Some)?, device, priority, options })
}

fn old_spec<F: Form>(
    spec: &JobSpec,
    train: impl FnOnce(TrainSettings) -> Option<F::Train>,
    evaluate: impl FnOnce(EvaluateSettings) -> Option<F::Evaluate>,
) -> Option<SpecOf<F>> {
    let JobSpec { work, device, priority, options } = spec.clone();
    let sayable = options.is_default() && !is_new_work(&work) && !trains_new_model(&work);
    sayable.then_some(())?;
    Some(SpecOf { work: work.map(train, evaluate)?, device, priority })
}

fn old_request<F: Form>(
    request: &JobRequest,
    train: impl FnOnce(TrainSettings) -> Option<F::Train>,
    evaluate: impl FnOnce(EvaluateSettings) -> Option<F::Evaluate>,
) -> Option<RequestOf<F>> {
    let JobRequest { id, work, device, priority, options } = request.clone();
    let sayable = options.is_default() && !is_new_request(&work) && !asks_for_new_model(&work);
    sayable.then_some(())?;
    Some(RequestOf { id, work: work.map(train, evaluate)?, device, priority })
}

impl<F: Form> From<SpecOf<F>> for JobSpec
where
    F::Train: Into<TrainSettings>,
    F::Evaluate: Into<EvaluateSettings>,
{
    fn from(old: SpecOf<F>) -> Self {
        let SpecOf { work, device, priority } = old;
        let work = work.map(|train| Some(train.into()), |evaluate| Some(evaluate.into()));
        let work = work.expect("every old setting can be said");
        Self { work, device, priority, options: JobOptions::default() }
    }
}

impl<F: Form> From<RequestOf<F>> for JobRequest
where
    F::Train: Into<TrainSettings>,
    F::Evaluate: Into<EvaluateSettings>,
{
    fn from(old: RequestOf<F>) -> Self {
        let RequestOf { id, work, device, priority } = old;
        let work = work.map(|train| Some(train.into()), |evaluate| Some(evaluate.into()));
        let work = work.expect("every old setting can be said");
        Self { id, work, device, priority, options: JobOptions::default() }
    }
}

impl From<SpecV3> for JobSpec {
    fn from(SpecV3 { work, device, priority, options }: SpecV3) -> Self {
        let work = work.map(|train| Some(train.into()), Some).expect("every old setting can be said");
        Self { work, device, priority, options }
    }
}

impl From<RequestV3> for JobRequest {
    fn from(RequestV3 { id, work, device, priority, options }: RequestV3) -> Self {
        let work = work.map(|train| Some(train.into()), Some).expect("every old setting can be said");
        Self { id, work, device, priority, options }
    }
}

impl<F: Form> JobWork<F> {
    /// The same with other forms of its settings; none where they can't be said.
    fn map<G: Form>(
        self,
        f: impl FnOnce(F::Train) -> Option<G::Train>,
        g: impl FnOnce(F::Evaluate) -> Option<G::Evaluate>,
    ) -> Option<JobWork<G>> {
        Some(match self {
            Self::Ingest { dataset, source, part_rows } => JobWork::Ingest { dataset, source, part_rows },
            Self::Train(train) => JobWork::Train(train.map(f)?),
            Self::Embed { model, embed } => JobWork::Embed { model, embed },
            Self::Evaluate { generation, evaluate } => JobWork::Evaluate { generation, evaluate: evaluate.map(g)? },
            Self::Pipeline { train, embed, evaluate, alias, baseline } => {
                JobWork::Pipeline { train: train.map(f)?, embed, evaluate: evaluate.map(g)?, alias, baseline }
            }
            Self::Search(search) => JobWork::Search(search),
            Self::EmbedAnew { model, embed } => JobWork::EmbedAnew { model, embed },
            Self::Import(import) => JobWork::Import(import),
        })
    }
}

impl<F: Form> RequestedWork<F> {
    /// The same with other forms of its settings; none where they can't be said.
    fn map<G: Form>(
        self,
        f: impl FnOnce(F::Train) -> Option<G::Train>,
        g: impl FnOnce(F::Evaluate) -> Option<G::Evaluate>,
    ) -> Option<RequestedWork<G>> {
        Some(match self {
            Self::Ingest { dataset, source, part_rows } => RequestedWork::Ingest { dataset, source, part_rows },
            Self::Train(train) => RequestedWork::Train(train.map(f)?),
            Self::Embed { model, embed } => RequestedWork::Embed { model, embed },
            Self::Evaluate { generation, evaluate } => {
                RequestedWork::Evaluate { generation, evaluate: evaluate.map(g)? }
            }
            Self::Pipeline { train, embed, evaluate, alias } => {
                RequestedWork::Pipeline { train: train.map(f)?, embed, evaluate: evaluate.map(g)?, alias }
            }
            Self::Search(file) => RequestedWork::Search(file),
            Self::EmbedAnew { model, embed } => RequestedWork::EmbedAnew { model, embed },
            Self::Import(import) => RequestedWork::Import(import),
        })
    }
}

impl<E> EvaluateStage<E> {
    fn map<U>(self, f: impl FnOnce(E) -> Option<U>) -> Option<EvaluateStage<U>> {
        Some(EvaluateStage { rows: self.rows, settings: f(self.settings)? })
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
    if matches!(record.output, TaskOutput::IndexedShard { .. }) || is_new_output(&record.output) {
        return None;
    }
    record.clone().map(CheckpointOutputV1::of).map(RecordV1)
}

/// See [`record_v2`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordV2(TaskRecord);

impl Message for RecordV2 {
    const NAME: &'static str = <TaskRecord as Message>::NAME;
    const VERSION: u16 = 2;
}

/// The record as version 2 wrote it, if that knows its kind of output.
pub fn record_v2(record: &TaskRecord) -> Option<RecordV2> {
    (!is_new_output(&record.output)).then(|| RecordV2(record.clone()))
}

/// See [`record_v3`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordV3(TaskRecord);

impl Message for RecordV3 {
    const NAME: &'static str = <TaskRecord as Message>::NAME;
    const VERSION: u16 = 3;
}

/// The record as version 3 wrote it, if that knows its kind of output.
pub fn record_v3(record: &TaskRecord) -> Option<RecordV3> {
    let is_new = matches!(record.output, TaskOutput::Slot { .. } | TaskOutput::Round { .. });
    (!is_new).then(|| RecordV3(record.clone()))
}

/// Whether version 2 does not know this kind of output.
fn is_new_output(output: &TaskOutput) -> bool {
    match output {
        TaskOutput::Scan { .. }
        | TaskOutput::Part { .. }
        | TaskOutput::Checkpoint(_)
        | TaskOutput::Manifest { .. }
        | TaskOutput::Shard { .. }
        | TaskOutput::Queries { .. }
        | TaskOutput::Scores { .. }
        | TaskOutput::Report { .. }
        | TaskOutput::Gate(_)
        | TaskOutput::IndexedShard { .. } => false,
        TaskOutput::Answers { .. } | TaskOutput::PooledQueries { .. } | TaskOutput::FlooredGate { .. } => true,
        TaskOutput::CopiedShard { .. } | TaskOutput::Generation { .. } | TaskOutput::ImportScan { .. } => true,
        TaskOutput::Slot { .. } | TaskOutput::Round { .. } => true,
    }
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
            Self::Answers { object, questions, failed } => TaskOutput::Answers { object, questions, failed },
            Self::PooledQueries { object, queries, pooled } => TaskOutput::PooledQueries { object, queries, pooled },
            Self::FlooredGate { decision, floor } => TaskOutput::FlooredGate { decision, floor },
            Self::CopiedShard { object, rows, skipped, approximate, copied } => {
                TaskOutput::CopiedShard { object, rows, skipped, approximate, copied }
            }
            Self::Generation { key, rows, copied } => TaskOutput::Generation { key, rows, copied },
            Self::ImportScan { rows_object, rows, embedding_dim, vocabulary, warnings } => {
                TaskOutput::ImportScan { rows_object, rows, embedding_dim, vocabulary, warnings }
            }
            Self::Slot { checkpoint, state } => TaskOutput::Slot { checkpoint: f(checkpoint)?, state },
            Self::Round { checkpoint, momentum, slots } => {
                TaskOutput::Round { checkpoint: f(checkpoint)?, momentum, slots }
            }
        })
    }
}
