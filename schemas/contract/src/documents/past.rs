//! Past versions of documents, as they are still read; and written, where they say all of it.

use serde::{Deserialize, Serialize};

use super::{
    Embedder, GenerationManifest, HeadlineRow, ModelManifest, ObjectRef, Origin, ReportManifest, ShardEntry, Skipped,
};
use crate::codec::Message;
use crate::ids::{Digest, JobId};
use crate::jobs::{DatasetRef, GenerationRef};
use crate::settings::{
    EvaluateSettings, EvaluateSettingsV1, ModelSettings, QueryEncoding, Split, TrainSettings, TrainSettingsV1,
    TrainSettingsV2, Vocabulary,
};

/// Versions 1 and 2 of a generation: always by a model of ours.
#[derive(Debug, Serialize, Deserialize)]
pub struct GenerationOf<S> {
    generation: GenerationRef,
    model: JobId,
    weights: Digest,
    dataset: DatasetRef,
    rows: Split,
    embedding_dim: u32,
    vocabulary: Vocabulary,
    shards: Vec<S>,
    skipped: Vec<Skipped>,
}

/// Version 1: no approximate indexes.
pub type GenerationManifestV1 = GenerationOf<ShardEntryV1>;
/// Version 2.
pub type GenerationManifestV2 = GenerationOf<ShardEntry>;

/// A shard in version 1.
#[derive(Debug, Serialize, Deserialize)]
pub struct ShardEntryV1 {
    shard: u32,
    object: ObjectRef,
    rows: u64,
}

impl Message for GenerationManifestV1 {
    const NAME: &'static str = GenerationManifest::NAME;
    const VERSION: u16 = 1;
}

impl Message for GenerationManifestV2 {
    const NAME: &'static str = GenerationManifest::NAME;
    const VERSION: u16 = 2;
}

impl GenerationManifestV1 {
    /// The same manifest, if it is by a model and no shard has an approximate index.
    pub fn of(manifest: &GenerationManifest) -> Option<Self> {
        let entry = |entry: &ShardEntry| {
            let ShardEntry { shard, object, rows, approximate } = entry.clone();
            approximate.is_none().then_some(ShardEntryV1 { shard, object, rows })
        };
        of(manifest, entry)
    }
}

impl GenerationManifestV2 {
    /// The same manifest, if it is by a model.
    pub fn of(manifest: &GenerationManifest) -> Option<Self> {
        of(manifest, |entry| Some(entry.clone()))
    }
}

fn of<S>(manifest: &GenerationManifest, entry: impl Fn(&ShardEntry) -> Option<S>) -> Option<GenerationOf<S>> {
    let GenerationManifest { generation, origin, rows, embedding_dim, vocabulary, shards, skipped } = manifest;
    let Origin::Model(Embedder { model, weights, dataset }) = origin else { return None };
    Some(GenerationOf {
        generation: generation.clone(),
        model: model.clone(),
        weights: *weights,
        dataset: dataset.clone(),
        rows: *rows,
        embedding_dim: *embedding_dim,
        vocabulary: vocabulary.clone(),
        shards: shards.iter().map(entry).collect::<Option<_>>()?,
        skipped: skipped.clone(),
    })
}

impl From<ShardEntryV1> for ShardEntry {
    fn from(ShardEntryV1 { shard, object, rows }: ShardEntryV1) -> Self {
        Self { shard, object, rows, approximate: None }
    }
}

impl<S: Into<ShardEntry>> From<GenerationOf<S>> for GenerationManifest {
    fn from(old: GenerationOf<S>) -> Self {
        let GenerationOf { generation, model, weights, dataset, rows, embedding_dim, vocabulary, shards, skipped } =
            old;
        let origin = Origin::Model(Embedder { model, weights, dataset });
        let shards = shards.into_iter().map(Into::into).collect();
        Self { generation, origin, rows, embedding_dim, vocabulary, shards, skipped }
    }
}

/// Version 1 of a model: the last round always, measured by its loss.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelManifestV1 {
    model: JobId,
    settings: ModelSettings,
    train: TrainSettingsV1,
    vocabulary: Vocabulary,
    dataset: DatasetRef,
    weights: ObjectRef,
    checkpoint: ObjectRef,
    distance: String,
    steps: u64,
    validation_loss: Option<f64>,
    training: ObjectRef,
    tensorboard: ObjectRef,
}

impl From<ModelManifestV1> for ModelManifest {
    fn from(old: ModelManifestV1) -> Self {
        let ModelManifestV1 {
            model,
            settings,
            train,
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
        } = old;
        Self {
            model,
            settings,
            train: train.into(),
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        }
    }
}

/// Versions 2 and 3 of a model: rounds of one slot.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelOf<T> {
    model: JobId,
    settings: ModelSettings,
    train: T,
    vocabulary: Vocabulary,
    dataset: DatasetRef,
    weights: ObjectRef,
    checkpoint: ObjectRef,
    distance: String,
    steps: u64,
    validation_loss: Option<f64>,
    training: ObjectRef,
    tensorboard: ObjectRef,
    round: Option<u32>,
    validation_map: Option<f64>,
    stopped_early: bool,
}

/// Version 2: two towers, trained with triplets.
pub type ModelManifestV2 = ModelOf<TrainSettingsV2>;
/// Version 3.
pub type ModelManifestV3 = ModelOf<TrainSettings>;

impl Message for ModelManifestV2 {
    const NAME: &'static str = ModelManifest::NAME;
    const VERSION: u16 = 2;
}

impl Message for ModelManifestV3 {
    const NAME: &'static str = ModelManifest::NAME;
    const VERSION: u16 = 3;
}

impl ModelManifestV2 {
    /// The same manifest, if version 2 says all of it.
    pub fn of(manifest: &ModelManifest) -> Option<Self> {
        let known = match manifest.settings.encoding {
            QueryEncoding::ThreeState | QueryEncoding::MultiHot => true,
            QueryEncoding::LogProbability => false,
        };
        known.then_some(())?;
        old_model(manifest, TrainSettingsV2::of)
    }
}

impl ModelManifestV3 {
    /// The same manifest, if version 3 says all of it.
    pub fn of(manifest: &ModelManifest) -> Option<Self> {
        old_model(manifest, |train| train.optimizer.rounds().is_none().then_some(train))
    }
}

fn old_model<T>(manifest: &ModelManifest, train_of: impl FnOnce(TrainSettings) -> Option<T>) -> Option<ModelOf<T>> {
    let ModelManifest {
        model,
        settings,
        train,
        vocabulary,
        dataset,
        weights,
        checkpoint,
        distance,
        steps,
        validation_loss,
        training,
        tensorboard,
        round,
        validation_map,
        stopped_early,
        rounds,
    } = manifest.clone();
    rounds.is_empty().then_some(())?;
    Some(ModelOf {
        model,
        settings,
        train: train_of(train)?,
        vocabulary,
        dataset,
        weights,
        checkpoint,
        distance,
        steps,
        validation_loss,
        training,
        tensorboard,
        round,
        validation_map,
        stopped_early,
    })
}

impl<T: Into<TrainSettings>> From<ModelOf<T>> for ModelManifest {
    fn from(old: ModelOf<T>) -> Self {
        let ModelOf {
            model,
            settings,
            train,
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
            round,
            validation_map,
            stopped_early,
        } = old;
        Self {
            model,
            settings,
            train: train.into(),
            vocabulary,
            dataset,
            weights,
            checkpoint,
            distance,
            steps,
            validation_loss,
            training,
            tensorboard,
            round,
            validation_map,
            stopped_early,
            rounds: Vec::new(),
        }
    }
}

/// Version 1 of a report: no files for TREC's tools.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReportManifestV1 {
    report: JobId,
    generation: GenerationRef,
    model: JobId,
    rows: Split,
    items: u64,
    settings: EvaluateSettingsV1,
    json: ObjectRef,
    queries: ObjectRef,
    html: ObjectRef,
    headline: Vec<HeadlineRow>,
}

impl From<ReportManifestV1> for ReportManifest {
    fn from(old: ReportManifestV1) -> Self {
        let ReportManifestV1 { report, generation, model, rows, items, settings, json, queries, html, headline } = old;
        let settings = settings.into();
        Self { report, generation, model, rows, items, settings, json, queries, html, headline, trec: None }
    }
}

/// Version 2 of a report: query sets of fixed numbers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReportManifestV2(ReportManifest<EvaluateSettingsV1>);

impl Message for ReportManifestV2 {
    const NAME: &'static str = <ReportManifest as Message>::NAME;
    const VERSION: u16 = 2;
}

impl ReportManifestV2 {
    /// The same manifest, if version 2 says all of its settings.
    pub fn of(manifest: &ReportManifest) -> Option<Self> {
        manifest.clone().map(EvaluateSettingsV1::of).map(Self)
    }
}

impl From<ReportManifestV2> for ReportManifest {
    fn from(old: ReportManifestV2) -> Self {
        old.0.map(|settings| Some(EvaluateSettings::from(settings))).expect("every old setting can be said")
    }
}

impl<E> ReportManifest<E> {
    fn map<U>(self, f: impl FnOnce(E) -> Option<U>) -> Option<ReportManifest<U>> {
        let Self { report, generation, model, rows, items, settings, json, queries, html, headline, trec } = self;
        let settings = f(settings)?;
        Some(ReportManifest { report, generation, model, rows, items, settings, json, queries, html, headline, trec })
    }
}
