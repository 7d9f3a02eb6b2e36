//! Manifests and releases: JSON documents that make data complete and visible.

mod past;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, Writer};
use crate::ids::{Digest, JobId, Name};
use crate::jobs::{DatasetRef, GenerationRef};
use crate::settings::{EvaluateSettings, ModelSettings, Split, TrainSettings, Vocabulary};

/// An object with the digest of its content; readers check it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ObjectRef {
    /// Its key.
    pub key: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
}

/// A row that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// Its item id.
    pub item: String,
    /// Why.
    pub reason: String,
}

/// `datasets/<dataset>/<version>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DatasetManifest {
    /// Name and version.
    pub dataset: DatasetRef,
    /// Attributes.
    pub vocabulary: Vocabulary,
    /// Parts in order; a row's number in the dataset counts through them.
    pub parts: Vec<PartEntry>,
    /// Rows left out, with reasons.
    pub skipped: Vec<Skipped>,
    /// Things the user should know.
    pub warnings: Vec<String>,
}

impl Message for DatasetManifest {
    const NAME: &'static str = "dataset-manifest";
    const VERSION: u16 = 1;
}

impl DatasetManifest {
    /// Rows of a split.
    pub fn rows(&self, split: Split) -> u64 {
        self.parts.iter().map(|part| part.rows_of(split)).sum()
    }
}

/// A part of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PartEntry {
    /// The file.
    pub object: ObjectRef,
    /// Rows in it.
    pub rows: u64,
    /// Rows per split: train, validation, test.
    pub split_rows: [u64; 3],
}

impl PartEntry {
    /// Rows of a split.
    pub fn rows_of(&self, split: Split) -> u64 {
        (0u8..3).filter(|code| split.contains(*code)).map(|code| self.split_rows[usize::from(code)]).sum()
    }
}

/// `models/<model>/model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelManifest {
    /// The training job.
    pub model: JobId,
    /// Shape and input.
    pub settings: ModelSettings,
    /// How it was trained.
    pub train: TrainSettings,
    /// Attributes that queries can ask for.
    pub vocabulary: Vocabulary,
    /// What it was trained on.
    pub dataset: DatasetRef,
    /// Weights and batch-norm statistics, safetensors.
    pub weights: ObjectRef,
    /// The checkpoint that they are from, with optimizer state.
    pub checkpoint: ObjectRef,
    /// Distance that the model was trained with and that ranks: always `euclidean`.
    pub distance: String,
    /// Optimizer steps behind the weights.
    pub steps: u64,
    /// Loss of the weights on the validation split.
    pub validation_loss: Option<f64>,
    /// Figures of all steps.
    pub training: ObjectRef,
    /// The same for TensorBoard.
    pub tensorboard: ObjectRef,
    /// The round that the weights are from, counted from 0: the last, or the best where the training keeps that; not
    /// known of models before version 2.
    pub round: Option<u32>,
    /// mAP of single attributes on the validation split with these weights.
    pub validation_map: Option<f64>,
    /// Whether the training ended before its last round because its mAP no longer rose.
    pub stopped_early: bool,
    /// Of a training whose slots are brought together: every round in order.
    pub rounds: Vec<RoundFigures>,
}

/// A round of several slots, as it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoundFigures {
    /// From 0.
    pub round: u32,
    /// Optimizer steps of each slot behind it.
    pub step: u64,
    /// Mean training loss of the slots that were taken.
    pub loss: f64,
    /// Slots that were late, so that it went without them.
    pub late: Vec<u32>,
    /// For how long workers that were done with their slots waited for the last one, all together, milliseconds by the workers' clocks.
    pub barrier_ms: u64,
    /// From the last slot's end to the next checkpoint, milliseconds.
    pub outer_ms: u64,
    /// Bytes read and written by its slots and its outer step: weights, statistics and what optimizers remember.
    pub bytes: u64,
}

impl Message for ModelManifest {
    const NAME: &'static str = "model";
    const VERSION: u16 = 4;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::ModelManifestV2::of(self) {
            return writer.newest(&old);
        }
        match past::ModelManifestV3::of(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::ModelManifestV1>(Self::NAME).map(Self::from),
            2 => body.read::<past::ModelManifestV2>(Self::NAME).map(Self::from),
            _ => body.read::<past::ModelManifestV3>(Self::NAME).map(Self::from),
        }
    }
}

/// `galleries/<gallery>/<generation>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GenerationManifest {
    /// Gallery and generation.
    pub generation: GenerationRef,
    /// Where its embeddings are from.
    pub origin: Origin,
    /// Rows of the dataset, or splits of the rows from elsewhere, that are in the gallery.
    pub rows: Split,
    /// D.
    pub embedding_dim: u32,
    /// Attributes of the stored labels.
    pub vocabulary: Vocabulary,
    /// Shards in order.
    pub shards: Vec<ShardEntry>,
    /// Rows left out.
    pub skipped: Vec<Skipped>,
}

/// Where the embeddings of a generation are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A model of ours embedded images of a dataset.
    Model(Embedder),
    /// They were made elsewhere and imported: nothing embeds queries for them, and there are no images.
    Elsewhere,
}

/// What embedded a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Embedder {
    /// The model.
    pub model: JobId,
    /// Digest of its weights.
    pub weights: Digest,
    /// The images.
    pub dataset: DatasetRef,
}

impl Message for GenerationManifest {
    const NAME: &'static str = "generation";
    const VERSION: u16 = 3;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(old) = past::GenerationManifestV1::of(self) {
            return writer.newest(&old);
        }
        match past::GenerationManifestV2::of(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::GenerationManifestV1>(Self::NAME).map(Self::from),
            _ => body.read::<past::GenerationManifestV2>(Self::NAME).map(Self::from),
        }
    }
}

impl GenerationManifest {
    /// What embedded it; none of embeddings from elsewhere.
    pub fn embedder(&self) -> Option<&Embedder> {
        match &self.origin {
            Origin::Model(embedder) => Some(embedder),
            Origin::Elsewhere => None,
        }
    }

    /// The dataset whose images it embeds; none of embeddings from elsewhere.
    pub fn dataset(&self) -> Option<&DatasetRef> {
        self.embedder().map(|embedder| &embedder.dataset)
    }

    /// What a release or a report calls its model: of embeddings from elsewhere the job that imported them, of which there is no
    /// `model.json`.
    pub fn model_name(&self) -> &JobId {
        self.embedder().map_or(&self.generation.generation, |embedder| &embedder.model)
    }

    /// Rows of all shards.
    pub fn total_rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }
}

/// A shard of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShardEntry {
    /// Its number.
    pub shard: u32,
    /// The file.
    pub object: ObjectRef,
    /// Rows in it.
    pub rows: u64,
    /// Its approximate index; none of a shard of few rows, or from before there were any.
    pub approximate: Option<ObjectRef>,
}

/// `reports/<report>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ReportManifest")]
pub struct ReportManifest<E = EvaluateSettings> {
    /// The job that made it.
    pub report: JobId,
    /// What was evaluated.
    pub generation: GenerationRef,
    /// Its model.
    pub model: JobId,
    /// Items that were searched.
    pub rows: Split,
    /// How many.
    pub items: u64,
    /// Query sets.
    pub settings: E,
    /// The figures.
    pub json: ObjectRef,
    /// Per query.
    pub queries: ObjectRef,
    /// For people.
    pub html: ObjectRef,
    /// The headline table.
    pub headline: Vec<HeadlineRow>,
    /// Rankings for other tools; none in a report of before.
    pub trec: Option<TrecFiles>,
}

impl Message for ReportManifest {
    const NAME: &'static str = "report-manifest";
    const VERSION: u16 = 3;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        match past::ReportManifestV2::of(self) {
            Some(old) => writer.newest(&old),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::ReportManifestV1>(Self::NAME).map(Self::from),
            _ => body.read::<past::ReportManifestV2>(Self::NAME).map(Self::from),
        }
    }
}

/// Files for `trec_eval` and its kin, of a sample of the queries where whole rankings would be long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TrecFiles {
    /// Queries in them.
    pub queries: u32,
    /// Rankings.
    pub run: ObjectRef,
    /// Judgements, 0 or 1.
    pub qrels: ObjectRef,
    /// Judgements by the number of terms fulfilled.
    pub graded_qrels: ObjectRef,
}

/// Means over a query set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeadlineRow {
    /// `singles`, `pairs`, `triples`, `full`, `images`.
    pub set: String,
    /// Queries in it.
    pub queries: u32,
    /// Mean average precision.
    pub map: f64,
    /// Mean of the share of relevant items: what a random order would reach in the mean.
    pub chance: f64,
    /// Mean P@1, P@5, P@10, P@100.
    pub p_at: [f64; 4],
}

/// `releases/<alias>/NNNNNNNN.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The alias.
    pub alias: Name,
    /// From 1, without gaps.
    pub number: u64,
    /// The job that made it; none for one made by hand.
    pub job: Option<JobId>,
    /// The release that it was compared with and replaced.
    pub replaces: Option<u64>,
    /// The older release that it brings back.
    pub rolls_back_to: Option<u64>,
    /// Embeds the queries.
    pub model: JobId,
    /// Answers them.
    pub generation: GenerationRef,
    /// The report.
    pub report: Option<JobId>,
    /// What the gate said.
    pub gate: Option<GateDecision>,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
    /// For instance that no searcher was running.
    pub warnings: Vec<String>,
}

impl Message for Release {
    const NAME: &'static str = "release";
    const VERSION: u16 = 1;
}

/// What the gate decided, with its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GateDecision {
    /// Whether the release may be promoted.
    pub passed: bool,
    /// The release compared with; none: compared with chance.
    pub baseline: Option<u64>,
    /// Mean AP of the new generation over the pooled queries.
    pub candidate_map: f64,
    /// Mean AP of the baseline, or mean chance.
    pub baseline_map: f64,
    /// Mean paired difference.
    pub difference: f64,
    /// Its 95 % bootstrap interval.
    pub interval: [f64; 2],
    /// Pooled queries.
    pub queries: u32,
}
