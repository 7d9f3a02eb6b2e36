//! Job requests of a size that a scenario can wait for.

use std::path::Path;

use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{
    DatasetSelector, DeviceClass, EmbedRequest, EvaluateStage, GenerationRef, IngestSource, JobOptions, JobRequest,
    Priority, RequestedWork, TrainRequest,
};
use likeness_contract::search::{SearchRequest, Term, WeightedTerm};
use likeness_contract::settings::{
    Architecture, EvaluateSettings, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings,
};

/// A name.
pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

/// A job's id.
pub fn id(text: &str) -> JobId {
    JobId::new(text).expect("a job id")
}

fn request(job: &str, work: RequestedWork) -> JobRequest {
    let options = JobOptions::default();
    JobRequest { id: Some(id(job)), work, device: DeviceClass::Cpu, priority: Priority::Lo, options }
}

/// Reads the images of [`crate::faces`] into the dataset `faces`, `part_rows` a task.
pub fn ingest(job: &str, root: &Path, part_rows: u32) -> JobRequest {
    let dir = root.to_str().expect("a plain path").into();
    ingest_from(job, IngestSource::Celeba { dir }, part_rows)
}

/// Reads any source into the dataset `faces`.
pub fn ingest_from(job: &str, source: IngestSource, part_rows: u32) -> JobRequest {
    request(job, RequestedWork::Ingest { dataset: name("faces"), source, part_rows })
}

fn dataset() -> DatasetSelector {
    DatasetSelector { dataset: name("faces"), version: None }
}

/// A training of `epochs` passes, `inner_steps` steps a task; batches of 16, so 80 training rows make 5 steps an
/// epoch.
pub fn training(epochs: u32, inner_steps: u32) -> TrainRequest {
    let model = ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: 16,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(32),
    };
    let train = TrainSettings {
        epochs,
        batch_size: 16,
        inner_steps,
        validate_every: 4,
        random_crop: 0.0,
        ..TrainSettings::default()
    };
    TrainRequest { dataset: dataset(), model, train }
}

/// Trains a model.
pub fn train(job: &str, training: TrainRequest) -> JobRequest {
    request(job, RequestedWork::Train(training))
}

/// All rows as a gallery, `shard_rows` a task.
pub fn gallery(shard_rows: u32) -> EmbedRequest {
    EmbedRequest { gallery: name("faces"), dataset: dataset(), rows: Split::All, shard_rows }
}

/// Embeds the gallery.
pub fn embed(job: &str, model: &JobId, shard_rows: u32) -> JobRequest {
    request(job, RequestedWork::Embed { model: model.clone(), embed: gallery(shard_rows) })
}

/// Embeds the gallery, and copies nothing from earlier generations.
pub fn embed_anew(job: &str, model: &JobId, shard_rows: u32) -> JobRequest {
    request(job, RequestedWork::EmbedAnew { model: model.clone(), embed: gallery(shard_rows) })
}

/// Queries over all rows, so that a small set has relevant items enough.
pub fn evaluation() -> EvaluateStage {
    let settings = EvaluateSettings { pairs: 20, triples: 10, queries_per_task: 10, ..EvaluateSettings::default() };
    EvaluateStage { rows: Split::All, settings }
}

/// Train → embed → evaluate → gate → promote, for the alias `main`.
pub fn pipeline(job: &str, training: TrainRequest, shard_rows: u32) -> JobRequest {
    let work = RequestedWork::Pipeline {
        train: training,
        embed: gallery(shard_rows),
        evaluate: evaluation(),
        alias: name("main"),
    };
    request(job, work)
}

/// The generation of [`embed`] or [`pipeline`].
pub fn generation(job: &JobId) -> GenerationRef {
    GenerationRef { gallery: name("faces"), generation: job.clone() }
}

/// A search of the alias `main` by attributes.
pub fn search(with: &[&str], without: &[&str], k: u32) -> SearchRequest {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let term = Term::Attributes { with: owned(with), without: owned(without) };
    SearchRequest::new(name("main"), vec![WeightedTerm { weight: 1.0, term }], k)
}
