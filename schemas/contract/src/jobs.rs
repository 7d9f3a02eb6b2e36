//! Jobs: what is asked (`JobRequest`), what was accepted (`JobSpec`), how it is cut (`Plan`), what a task
//! left behind (`TaskRecord`) and how a run ended (`Outcome`).
//!
//! Invariants. A spec is fully resolved; its plan is stored beside it and never changes. A record's existence
//! means success and is the only thing that decides. A run is open from the creation of `runs/N` to the
//! creation of `outcomes/N`; first creator wins.

mod import;
mod past;
mod source;

pub use import::{EmbeddingSource, Import, ImportColumns};
pub use past::{Form, Newest};
pub(crate) use past::{
    RequestOf, RequestV3, SpecOf, SpecV3, V1, V2, asks_for_rounds, request_as_v1, request_as_v2, request_as_v3,
    spec_as_v1, spec_as_v2, spec_as_v3, trains_in_rounds,
};
pub use source::{AppendSource, CelebaSplit, LabelWords, ReadFrom, ReadSource};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, Writer};
use crate::documents::{GateDecision, HeadlineRow, ObjectRef, Skipped};
use crate::ids::{JobId, Name, RunNumber, TaskId, WorkerId};
use crate::searches::{SearchFile, SearchStage};
use crate::settings::{EvaluateSettings, ModelSettings, Split, TrainSettings, Vocabulary};

/// What a task needs of a worker: its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Reads sources, writes dataset parts.
    Ingest,
    /// Trains, averages, closes a model.
    Train,
    /// Embeds gallery rows into shards.
    Embed,
    /// Ranks the gallery for queries, writes reports, decides the gate.
    Evaluate,
}

impl TaskKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Ingest, Self::Train, Self::Embed, Self::Evaluate];

    /// Token in subjects and consumer names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Train => "train",
            Self::Embed => "embed",
            Self::Evaluate => "evaluate",
        }
    }
}

/// Class of device that a job asks for or a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceClass {
    /// Whatever comes first. Training resolves it to one class at acceptance.
    Any,
    /// Processor.
    Cpu,
    /// NVIDIA GPU.
    Cuda,
    /// Apple GPU.
    Metal,
}

impl DeviceClass {
    /// All classes.
    pub const ALL: [Self; 4] = [Self::Any, Self::Cpu, Self::Cuda, Self::Metal];

    /// Token in subjects and consumer names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }
}

/// Workers take `Hi` before `Lo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// First.
    Hi,
    /// After every `Hi`.
    Lo,
}

impl Priority {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hi, Self::Lo];

    /// Token in subjects and consumer names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hi => "hi",
            Self::Lo => "lo",
        }
    }
}

/// Where images and labels come from; paths are as every ingest worker sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum IngestSource {
    /// CelebA as distributed: a folder with `img_align_celeba/`, `list_attr_celeba.txt`,
    /// `list_eval_partition.txt`.
    Celeba {
        /// The folder.
        dir: String,
    },
    /// CelebA-style Parquet as on the Hugging Face hub: image bytes struct and boolean columns.
    Parquet {
        /// The files, in order.
        files: Vec<String>,
    },
    /// A table of images and labels as text, the images as files.
    Csv(CsvSource),
    /// Any of these, and a folder of images, with more said about how they are understood.
    Read(Box<ReadSource>),
    /// What is new in a dataset that is there already.
    Append(Box<AppendSource>),
}

impl IngestSource {
    /// Whether version 2 of a spec and a request can say it.
    pub fn is_of_before(&self) -> bool {
        match self {
            Self::Celeba { .. } | Self::Parquet { .. } | Self::Csv(_) => true,
            Self::Read(_) | Self::Append(_) => false,
        }
    }
}

/// A CSV file: one row an image, a header, one column an attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CsvSource {
    /// The file.
    pub file: String,
    /// The folder that the images' paths start from.
    pub dir: String,
    /// Which column says what.
    pub columns: CsvColumns,
    /// What `0` means.
    pub zero: ZeroLabel,
}

/// Columns by name; where none is named, the one with a usual name, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CsvColumns {
    /// The image's path.
    pub path: Option<String>,
    /// The item id; the path without.
    pub item: Option<String>,
    /// The split; by a hash without.
    pub split: Option<String>,
    /// What stays together in one split when it is chosen by a hash, such as a person; every item by itself without.
    pub group: Option<String>,
    /// The attributes; when empty, all other columns that hold labels.
    pub attributes: Vec<String>,
}

/// What a label `0` means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ZeroLabel {
    /// "Not known" in a column that has `-1` too, else "has not".
    #[default]
    Auto,
    /// "Has not".
    No,
    /// "Not known".
    Unknown,
}

/// A dataset as a user names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetSelector {
    /// Its name.
    pub dataset: Name,
    /// One version; the newest without.
    pub version: Option<JobId>,
}

/// One version of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetRef {
    /// Its name.
    pub dataset: Name,
    /// The ingest job that made the version.
    pub version: JobId,
}

/// One generation of a gallery.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct GenerationRef {
    /// The gallery's name.
    pub gallery: Name,
    /// The job that embedded it.
    pub generation: JobId,
}

/// What a user asks for. The coordinator resolves it into a [`JobSpec`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobRequest {
    /// The job's id; the digest of the resolved spec without.
    pub id: Option<JobId>,
    /// What to do.
    pub work: RequestedWork,
    /// Device class of its tasks.
    pub device: DeviceClass,
    /// Priority of its tasks.
    pub priority: Priority,
    /// How it is carried out.
    pub options: JobOptions,
}

/// How a job is carried out; no part of what it is: the same work with other options is the same job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobOptions {
    /// Most workers at a time; as many as there are without.
    pub max_workers: Option<u32>,
    /// URLs that are told when a run of it ends.
    pub notify: Vec<String>,
}

impl JobOptions {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        let Self { max_workers, notify } = self;
        max_workers.is_none() && notify.is_empty()
    }
}

/// The kinds of jobs, as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", bound = "")]
#[schemars(rename = "RequestedWork", bound = "F: JsonSchema, F::Train: JsonSchema, F::Evaluate: JsonSchema")]
pub enum RequestedWork<F: Form = Newest> {
    /// Read images and labels into a new dataset version.
    Ingest {
        /// Name of the dataset.
        dataset: Name,
        /// Where from.
        source: IngestSource,
        /// Rows per part.
        part_rows: u32,
    },
    /// Train a model.
    Train(TrainRequest<F::Train>),
    /// Embed a gallery with a model.
    Embed {
        /// The model.
        model: JobId,
        /// What and how.
        embed: EmbedRequest,
    },
    /// Evaluate a generation.
    Evaluate {
        /// The generation.
        generation: GenerationRef,
        /// Which items and queries.
        evaluate: EvaluateStage<F::Evaluate>,
    },
    /// Train → embed → evaluate → gate → promote.
    Pipeline {
        /// Training.
        train: TrainRequest<F::Train>,
        /// Embedding, of the same dataset version as the training where `embed.dataset` names the same dataset.
        embed: EmbedRequest,
        /// Evaluation.
        evaluate: EvaluateStage<F::Evaluate>,
        /// Alias that is promoted.
        alias: Name,
    },
    /// Answer a file of questions.
    Search(SearchFile),
    /// [`Self::Embed`] that computes every row, whatever earlier generations have.
    EmbedAnew {
        /// The model.
        model: JobId,
        /// What and how.
        embed: EmbedRequest,
    },
    /// Make a generation of embeddings from elsewhere.
    Import(Import),
}

/// A training as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TrainRequest")]
pub struct TrainRequest<T = TrainSettings> {
    /// The images.
    pub dataset: DatasetSelector,
    /// The model.
    pub model: ModelSettings,
    /// The training.
    pub train: T,
}

/// An embedding as asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedRequest {
    /// Name of the gallery.
    pub gallery: Name,
    /// The images.
    pub dataset: DatasetSelector,
    /// Rows of the dataset that become the gallery.
    pub rows: Split,
    /// Rows per shard.
    pub shard_rows: u32,
}

/// What was accepted: everything is fixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobSpec {
    /// What to do.
    pub work: JobWork,
    /// Device class of the tasks that compute on images or tensors.
    pub device: DeviceClass,
    /// Priority of its tasks.
    pub priority: Priority,
    /// How it is carried out.
    pub options: JobOptions,
}

impl Message for JobSpec {
    const NAME: &'static str = "job-spec";
    const VERSION: u16 = 5;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::spec_as_v1(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::spec_as_v2(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::spec_as_v3(self) {
            return writer.newest(&old);
        }
        match past::spec_as_v4(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<SpecOf<V1>>(Self::NAME).map(Self::from),
            2 => body.read::<SpecOf<V2>>(Self::NAME).map(Self::from),
            3 => body.read::<SpecV3>(Self::NAME).map(Self::from),
            // Version 5 only added trainings in rounds.
            _ => body.read(Self::NAME),
        }
    }
}

/// The kinds of jobs, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", bound = "")]
#[schemars(rename = "JobWork", bound = "F: JsonSchema, F::Train: JsonSchema, F::Evaluate: JsonSchema")]
pub enum JobWork<F: Form = Newest> {
    /// See [`RequestedWork::Ingest`].
    Ingest {
        /// Name of the dataset; the version is the job's id.
        dataset: Name,
        /// Where from.
        source: IngestSource,
        /// Rows per part.
        part_rows: u32,
    },
    /// See [`RequestedWork::Train`]; the model is the job's id.
    Train(TrainStage<F::Train>),
    /// See [`RequestedWork::Embed`]; the generation is the job's id.
    Embed {
        /// The model.
        model: JobId,
        /// What and how.
        embed: EmbedStage,
    },
    /// See [`RequestedWork::Evaluate`]; the report is the job's id.
    Evaluate {
        /// The generation.
        generation: GenerationRef,
        /// Which items and queries.
        evaluate: EvaluateStage<F::Evaluate>,
    },
    /// See [`RequestedWork::Pipeline`]; model, generation and report are the job's id.
    Pipeline {
        /// Training.
        train: TrainStage<F::Train>,
        /// Embedding.
        embed: EmbedStage,
        /// Evaluation.
        evaluate: EvaluateStage<F::Evaluate>,
        /// Alias that is promoted.
        alias: Name,
        /// The release that the new one is compared with; none for the first.
        baseline: Option<Baseline>,
    },
    /// See [`RequestedWork::Search`]; the answers are the job's id.
    Search(SearchStage),
    /// See [`RequestedWork::EmbedAnew`]; the generation is the job's id.
    EmbedAnew {
        /// The model.
        model: JobId,
        /// What and how.
        embed: EmbedStage,
    },
    /// See [`RequestedWork::Import`]; the generation is the job's id.
    Import(Import),
}

impl JobWork {
    /// Name of the kind of job.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ingest { .. } => "ingest",
            Self::Train(_) => "train",
            Self::Embed { .. } | Self::EmbedAnew { .. } => "embed",
            Self::Import(_) => "import",
            Self::Evaluate { .. } => "evaluate",
            Self::Pipeline { .. } => "pipeline",
            Self::Search(_) => "search",
        }
    }
}

/// The release that a pipeline compares with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Baseline {
    /// Its number.
    pub release: u64,
    /// Its model.
    pub model: JobId,
    /// The generation of the same rows by its model: the release's own where it fits, else one that the
    /// pipeline makes (`embed`).
    pub generation: GenerationRef,
    /// Whether the pipeline must make that generation.
    pub embed: bool,
}

/// A training, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "TrainStage")]
pub struct TrainStage<T = TrainSettings> {
    /// The images.
    pub dataset: DatasetRef,
    /// Attributes of the dataset.
    pub vocabulary: Vocabulary,
    /// The model.
    pub model: ModelSettings,
    /// The training.
    pub train: T,
    /// Rows of the training split.
    pub train_rows: u64,
    /// Rows of the validation split.
    pub validation_rows: u64,
}

impl TrainStage {
    /// Batches of one epoch; an incomplete last batch is left out.
    pub fn batches_per_epoch(&self) -> u64 {
        self.train_rows / u64::from(self.train.batch_size.max(1))
    }

    /// Optimizer steps of the whole training, as each of its slots counts them; batches that are not enough for every slot are left out.
    pub fn total_steps(&self) -> u64 {
        self.batches_per_epoch() * u64::from(self.train.epochs) / u64::from(self.train.optimizer.slots())
    }

    /// The batch that a slot takes at a step, counted through all epochs: all slots together take every batch once.
    pub fn batch_of(&self, step: u64, slot: u32) -> u64 {
        step * u64::from(self.train.optimizer.slots()) + u64::from(slot)
    }

    /// Rounds of the whole training.
    pub fn rounds(&self) -> u32 {
        let rounds = self.total_steps().div_ceil(u64::from(self.train.inner_steps.max(1)));
        u32::try_from(rounds).unwrap_or(u32::MAX)
    }
}

/// An embedding, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedStage {
    /// Name of the gallery.
    pub gallery: Name,
    /// The images.
    pub dataset: DatasetRef,
    /// Rows of the dataset that become the gallery.
    pub rows: Split,
    /// How many rows that is.
    pub gallery_rows: u64,
    /// Rows per shard.
    pub shard_rows: u32,
}

/// An evaluation, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "EvaluateStage")]
pub struct EvaluateStage<E = EvaluateSettings> {
    /// Items that are searched and that queries are made from.
    pub rows: Split,
    /// Query sets.
    pub settings: E,
}

/// A job cut into tasks. A stage starts when all the stages in its `after` are complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In order; `after` refers to earlier ones only.
    pub stages: Vec<Stage>,
}

impl Message for Plan {
    const NAME: &'static str = "plan";
    const VERSION: u16 = 2;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        match past::plan_v1(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        // Version 2 only added kinds of work.
        body.read(Self::NAME)
    }
}

/// Tasks that may run at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// For people: `scan`, `round 3`, `embed`.
    pub name: String,
    /// Positions of the stages that must be complete.
    pub after: Vec<u32>,
    /// Its tasks; empty when `expands` is set.
    pub tasks: Vec<PlannedTask>,
    /// The task whose record tells this stage's tasks (`planner::expand` of the coordinator, a pure function).
    pub expands: Option<TaskId>,
}

/// One task of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTask {
    /// Its id.
    pub id: TaskId,
    /// What it does.
    pub work: TaskWork,
}

/// What a task does. Settings stand in the job's spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskWork {
    /// Lists the source's rows and fixes the parts.
    IngestScan,
    /// Reads, checks and stores the images of the rows `from..from + rows` of the scan.
    IngestPart {
        /// Number of the part.
        part: u32,
        /// First row.
        from: u64,
        /// Number of rows.
        rows: u32,
    },
    /// Writes the dataset's manifest.
    IngestFinish,
    /// Writes the checkpoint of round 0: fresh weights.
    TrainInit,
    /// H inner steps from the checkpoint before the round.
    TrainSlot {
        /// Round, from 0.
        round: u32,
        /// Slot, from 0.
        slot: u32,
        /// First optimizer step, from 0.
        first_step: u64,
        /// Steps.
        steps: u32,
    },
    /// Takes the slots of a round into the next checkpoint.
    TrainOuter {
        /// Round, from 0.
        round: u32,
    },
    /// Writes the weights, the training figures and `model.json`.
    TrainFinish,
    /// Embeds the rows `from..from + rows` of the selected rows of the dataset.
    EmbedShard {
        /// The model.
        model: JobId,
        /// The generation.
        target: GenerationRef,
        /// Number of the shard.
        shard: u32,
        /// First row among the selected.
        from: u64,
        /// Number of rows.
        rows: u32,
    },
    /// Writes the generation's manifest.
    EmbedFinish {
        /// The model.
        model: JobId,
        /// The generation.
        target: GenerationRef,
    },
    /// Draws the query sets.
    EvaluateQueries {
        /// The generation.
        generation: GenerationRef,
    },
    /// Ranks the items for the queries `from..from + queries`.
    EvaluateRange {
        /// The generation.
        generation: GenerationRef,
        /// First query.
        from: u32,
        /// Number of queries.
        queries: u32,
    },
    /// Writes the report.
    EvaluateFinish {
        /// The generation.
        generation: GenerationRef,
    },
    /// Compares the new generation with the baseline, or with chance.
    Gate,
    /// Answers the questions of one part of a file.
    SearchPart {
        /// Number of the part.
        part: u32,
    },
    /// Writes the manifest of a file's answers.
    SearchFinish,
    /// [`Self::EmbedShard`] that copies the rows whose images an earlier generation of the same model has, where it is still there.
    EmbedShardAfter {
        /// The model.
        model: JobId,
        /// The generation.
        target: GenerationRef,
        /// Number of the shard.
        shard: u32,
        /// First row among the selected.
        from: u64,
        /// Number of rows.
        rows: u32,
        /// The earlier generation.
        earlier: GenerationRef,
    },
    /// Lists the rows of embeddings from elsewhere.
    ImportScan,
    /// Reads, checks and stores the embeddings of the rows `from..from + rows` of the scan.
    ImportShard {
        /// Number of the shard.
        shard: u32,
        /// First row.
        from: u64,
        /// Number of rows.
        rows: u32,
    },
    /// Writes the manifest of the generation.
    ImportFinish,
}

impl TaskWork {
    /// The role that does it.
    pub fn kind(&self) -> TaskKind {
        match self {
            Self::IngestScan | Self::IngestPart { .. } | Self::IngestFinish => TaskKind::Ingest,
            Self::TrainInit | Self::TrainSlot { .. } | Self::TrainOuter { .. } | Self::TrainFinish => TaskKind::Train,
            Self::EmbedShard { .. }
            | Self::EmbedShardAfter { .. }
            | Self::EmbedFinish { .. }
            | Self::ImportScan
            | Self::ImportShard { .. }
            | Self::ImportFinish => TaskKind::Embed,
            Self::EvaluateQueries { .. } | Self::EvaluateRange { .. } | Self::EvaluateFinish { .. } | Self::Gate => {
                TaskKind::Evaluate
            }
            // It ranks a gallery, too.
            Self::SearchPart { .. } | Self::SearchFinish => TaskKind::Evaluate,
        }
    }
}

/// Ids of tasks: the same words for whoever writes a record and whoever reads it.
pub mod task_ids {
    use super::{JobId, TaskId};

    fn id(text: String) -> TaskId {
        TaskId::new(text).expect("made of letters, digits and `-`")
    }

    /// [`super::TaskWork::IngestScan`].
    pub fn scan() -> TaskId {
        id("scan".into())
    }
    /// [`super::TaskWork::ImportScan`].
    pub fn import_scan() -> TaskId {
        id("shard-list".into())
    }
    /// [`super::TaskWork::IngestPart`].
    pub fn part(part: u32) -> TaskId {
        id(format!("part-{part:05}"))
    }
    /// [`super::TaskWork::IngestFinish`].
    pub fn ingest_finish() -> TaskId {
        id("dataset".into())
    }
    /// [`super::TaskWork::TrainInit`].
    pub fn train_init() -> TaskId {
        id("init".into())
    }
    /// [`super::TaskWork::TrainSlot`].
    pub fn slot(round: u32, slot: u32) -> TaskId {
        id(format!("round-{round:05}-slot-{slot:03}"))
    }
    /// [`super::TaskWork::TrainOuter`].
    pub fn outer(round: u32) -> TaskId {
        id(format!("round-{round:05}-outer"))
    }
    /// [`super::TaskWork::TrainFinish`].
    pub fn train_finish() -> TaskId {
        id("model".into())
    }
    /// [`super::TaskWork::EmbedShard`], `EmbedShardAfter` and `ImportShard`; `own` unless it is the baseline's generation.
    pub fn shard(job: &JobId, generation: &JobId, shard: u32) -> TaskId {
        id(format!("{}shard-{shard:05}", prefix(job, generation)))
    }
    /// [`super::TaskWork::EmbedFinish`] and [`super::TaskWork::ImportFinish`].
    pub fn embed_finish(job: &JobId, generation: &JobId) -> TaskId {
        id(format!("{}generation", prefix(job, generation)))
    }
    /// [`super::TaskWork::EvaluateQueries`].
    pub fn queries() -> TaskId {
        id("queries".into())
    }
    /// [`super::TaskWork::EvaluateRange`] number `range` of a generation; `baseline` when it is the one compared with.
    pub fn range(baseline: bool, range: u32) -> TaskId {
        id(format!("{}scores-{range:05}", if baseline { "baseline-" } else { "" }))
    }
    /// [`super::TaskWork::EvaluateFinish`].
    pub fn evaluate_finish() -> TaskId {
        id("report".into())
    }
    /// [`super::TaskWork::Gate`].
    pub fn gate() -> TaskId {
        id("gate".into())
    }
    /// [`super::TaskWork::SearchPart`].
    pub fn answers(part: u32) -> TaskId {
        id(format!("answers-{part:05}"))
    }
    /// [`super::TaskWork::SearchFinish`].
    pub fn search_finish() -> TaskId {
        id("search".into())
    }

    fn prefix(job: &JobId, generation: &JobId) -> &'static str {
        if job == generation { "" } else { "baseline-" }
    }
}

/// What lies in the work queue: one attempt may be made of it, or many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskMessage {
    /// Its job.
    pub job: JobId,
    /// The run that published it.
    pub run: RunNumber,
    /// Its task.
    pub task: TaskId,
    /// What to do.
    pub work: TaskWork,
}

impl Message for TaskMessage {
    const NAME: &'static str = "task";
    const VERSION: u16 = 2;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        match past::task_v1(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        // Version 2 only added kinds of work.
        body.read(Self::NAME)
    }
}

/// `tasks/<task>.json`: the task succeeded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord<C = CheckpointOutput> {
    /// Its job.
    pub job: JobId,
    /// The run in which it succeeded.
    pub run: RunNumber,
    /// Its task.
    pub task: TaskId,
    /// Who did it.
    pub worker: WorkerId,
    /// Which delivery of the message it was, from 1, as the broker counts.
    pub attempt: u64,
    /// Wall-clock start, milliseconds since 1970.
    pub started_ms: u64,
    /// Wall-clock end, milliseconds since 1970.
    pub finished_ms: u64,
    /// Time on the device thread, milliseconds.
    pub device_ms: u64,
    /// What it made.
    pub output: TaskOutput<C>,
}

impl Message for TaskRecord {
    const NAME: &'static str = "task-record";
    const VERSION: u16 = 4;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::record_v1(self) {
            return writer.newest(&old);
        }
        if let Some(old) = past::record_v2(self) {
            return writer.newest(&old);
        }
        match past::record_v3(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<TaskRecord<past::CheckpointOutputV1>>(Self::NAME).map(Self::from),
            // Versions 3 and 4 have more kinds of output and are else the same.
            _ => body.read(Self::NAME),
        }
    }
}

/// What a task made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskOutput<C = CheckpointOutput> {
    /// Of a scan.
    Scan {
        /// The list of rows.
        rows_object: ObjectRef,
        /// How many.
        rows: u64,
        /// The attributes.
        vocabulary: Vocabulary,
        /// Things the user should know.
        warnings: Vec<String>,
    },
    /// Of an ingest part.
    Part {
        /// The part; none when every row was skipped.
        object: Option<ObjectRef>,
        /// Rows in it.
        rows: u64,
        /// Rows per split: train, validation, test.
        split_rows: [u64; 3],
        /// Rows left out.
        skipped: Vec<Skipped>,
    },
    /// Of a round's only slot, of its outer step or of the start.
    Checkpoint(C),
    /// Of the last task of a dataset, model or generation: its manifest.
    Manifest {
        /// Key of the manifest.
        key: String,
    },
    /// Of a shard.
    Shard {
        /// The shard; none when every row was skipped.
        object: Option<ObjectRef>,
        /// Rows in it.
        rows: u64,
        /// Rows left out.
        skipped: Vec<Skipped>,
    },
    /// Of the drawing of the queries.
    Queries {
        /// The queries.
        object: ObjectRef,
        /// How many.
        queries: u32,
    },
    /// Of a range of queries.
    Scores {
        /// Per-query results (query report schema).
        object: ObjectRef,
        /// First query.
        from: u32,
        /// How many.
        queries: u32,
    },
    /// Of a report.
    Report {
        /// Key of the manifest.
        key: String,
        /// Its headline table.
        headline: Vec<HeadlineRow>,
    },
    /// Of the gate.
    Gate(GateDecision),
    /// Of a shard that has an approximate index.
    IndexedShard {
        /// The shard.
        object: ObjectRef,
        /// Rows in it.
        rows: u64,
        /// Rows left out.
        skipped: Vec<Skipped>,
        /// Its approximate index.
        approximate: ObjectRef,
    },
    /// Of a part of a file of questions.
    Answers {
        /// The answers (`tables::answer_schema`).
        object: ObjectRef,
        /// Questions of the part.
        questions: u32,
        /// Those without an answer.
        failed: u32,
    },
    /// Of the drawing of the queries of a pipeline that is compared with a release.
    PooledQueries {
        /// The queries.
        object: ObjectRef,
        /// How many.
        queries: u32,
        /// How many of them the gate compares by: the first ones. The release compared with is asked no others.
        pooled: u32,
    },
    /// Of a gate with a floor.
    FlooredGate {
        /// The decision; it is a refusal below the floor, whatever the comparison says.
        decision: GateDecision,
        /// Least mAP over the pooled queries.
        floor: f64,
    },
    /// Of a shard some of whose embeddings were copied from an earlier generation.
    CopiedShard {
        /// The shard.
        object: ObjectRef,
        /// Rows in it.
        rows: u64,
        /// Rows left out.
        skipped: Vec<Skipped>,
        /// Its approximate index, if it has one.
        approximate: Option<ObjectRef>,
        /// Rows whose embeddings were copied.
        copied: u64,
    },
    /// Of a generation's manifest, if embeddings were copied.
    Generation {
        /// Key of the manifest.
        key: String,
        /// Rows in all shards.
        rows: u64,
        /// Rows whose embeddings were copied.
        copied: u64,
    },
    /// Of a scan of embeddings.
    ImportScan {
        /// The list of rows.
        rows_object: ObjectRef,
        /// How many.
        rows: u64,
        /// D.
        embedding_dim: u32,
        /// The attributes.
        vocabulary: Vocabulary,
        /// Things the user should know.
        warnings: Vec<String>,
    },
    /// Of a slot, where slots are brought together.
    Slot {
        /// Its weights and statistics, θ′, without what its optimizer remembers.
        checkpoint: C,
        /// What its optimizer remembers.
        state: ObjectRef,
    },
    /// Of an outer step that brought slots together.
    Round {
        /// The next checkpoint.
        checkpoint: C,
        /// The momentum of the outer step, where it has one.
        momentum: Option<ObjectRef>,
        /// Every slot, in order.
        slots: Vec<SlotState>,
    },
}

impl<C> TaskOutput<C> {
    /// What a gate decided.
    pub fn gate(&self) -> Option<&GateDecision> {
        match self {
            Self::Gate(decision) | Self::FlooredGate { decision, .. } => Some(decision),
            _ => None,
        }
    }
}

/// What an outer step made of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// Whether it was taken; else it was late.
    pub taken: bool,
    /// What its optimizer remembers of the last round that took it, and goes on from; none before the first.
    pub state: Option<ObjectRef>,
}

/// A checkpoint and what was measured on the way to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointOutput {
    /// Optimizer steps behind it.
    pub step: u64,
    /// The checkpoint.
    pub object: ObjectRef,
    /// Figures of its steps (training schema); none of the start and of outer steps.
    pub metrics: Option<ObjectRef>,
    /// Mean training loss of its steps; NaN never.
    pub loss: Option<f64>,
    /// Loss on the validation split after it.
    pub validation_loss: Option<f64>,
    /// Training images per second.
    pub images_per_second: Option<f64>,
    /// Share of the time in which the device waited for data.
    pub wait_share: Option<f64>,
    /// mAP of single attributes on the validation split after it.
    pub validation_map: Option<f64>,
    /// Of an outer step: the best validation so far.
    pub best: Option<BestRound>,
    /// Of an outer step: the training stops here, later rounds hand the checkpoint on.
    pub stopped: bool,
}

impl CheckpointOutput {
    /// A checkpoint of which nothing was measured.
    pub fn of(step: u64, object: ObjectRef) -> Self {
        Self {
            step,
            object,
            metrics: None,
            loss: None,
            validation_loss: None,
            images_per_second: None,
            wait_share: None,
            validation_map: None,
            best: None,
            stopped: false,
        }
    }
}

/// The round with the best mAP on the validation split.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BestRound {
    /// From 0.
    pub round: u32,
    /// Its mAP.
    pub map: f64,
    /// Validations since, none of them better.
    pub since: u32,
}

/// `runs/N.json`: the run is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its job.
    pub job: JobId,
    /// Its number.
    pub run: RunNumber,
    /// When it was opened, milliseconds since 1970.
    pub opened_ms: u64,
}

impl Message for Run {
    const NAME: &'static str = "run";
    const VERSION: u16 = 1;
}

/// `outcomes/N.json`: the run is closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its job.
    pub job: JobId,
    /// Its run.
    pub run: RunNumber,
    /// When it was closed, milliseconds since 1970.
    pub closed_ms: u64,
    /// How it ended.
    pub result: RunResult,
}

impl Message for Outcome {
    const NAME: &'static str = "outcome";
    const VERSION: u16 = 1;
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunResult {
    /// Every task has a record.
    Done {
        /// What the gate said, of a pipeline.
        gate: Option<GateDecision>,
        /// The release that was made, of a pipeline that passed its gate.
        release: Option<u64>,
    },
    /// Something failed for good.
    Failed {
        /// Each failed task with its last error.
        failures: Vec<TaskFailure>,
    },
    /// Somebody cancelled it.
    Cancelled,
}

/// A task that failed for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TaskFailure {
    /// The task; `promote` for the promotion at the end of a pipeline.
    pub task: TaskId,
    /// Its last error.
    pub error: String,
    /// Failures that workers reported.
    pub reported: u32,
    /// Attempts that ended without a word.
    pub silent: u32,
}
