//! What a validation measures: the figures of fixed triplets, and how well single attributes find their images.

use candle_core::{Device, Tensor};
use likeness_contract::jobs::TrainStage;
use likeness_contract::settings::EvaluateSettings;
use likeness_data::TripletSampler;
use likeness_evaluation::{PlainBlock, Query, QuerySet, draw_queries, headline, score};
use likeness_model::{Model, StepFigures, Trainer, encode_query};

use super::batch::Batch;
use super::training_set::Rows;
use crate::error::TaskError;

/// Queries as in the `singles` of a report: both signs of every attribute that at least 5 images satisfy.
fn singles() -> EvaluateSettings {
    EvaluateSettings {
        pairs: 0,
        triples: 0,
        full: 0,
        images: 0,
        queries_per_task: u32::MAX,
        ..EvaluateSettings::default()
    }
}

/// The whole validation split, measured.
pub(super) struct Validation {
    /// Of fixed triplets.
    pub figures: StepFigures,
    /// mAP of single attributes; none where no attribute has enough images.
    pub map: Option<f64>,
}

impl Validation {
    /// For people, where there is an mAP.
    pub fn in_words(&self) -> Option<String> {
        self.map.map(|map| format!("validation: loss {:.4}, mAP {map:.4}", self.figures.loss))
    }
}

/// What draws from the rows of a split.
pub(super) fn sampler(stage: &TrainStage, rows: &Rows) -> Result<TripletSampler, TaskError> {
    let TrainStage { vocabulary, model, train, .. } = stage;
    Ok(TripletSampler::new(train, model.encoding, rows.labels.clone(), vocabulary.len())?)
}

/// Measures the weights as they are over the whole validation split, after the rounds that the settings name and after the last.
/// `go_on` fails when the attempt was told to stop; no rows, no validation.
pub(super) fn after(
    round: u32,
    trainer: &Trainer,
    stage: &TrainStage,
    rows: &Rows,
    device: &Device,
    go_on: impl Fn() -> Result<(), TaskError>,
) -> Result<Option<Validation>, TaskError> {
    if !is_due(stage, round) || rows.images.is_empty() {
        return Ok(None);
    }
    let sampler = sampler(stage, rows)?;
    let attributes = stage.vocabulary.len();
    let (mut batches, mut embeddings, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for triplets in sampler.validation() {
        go_on()?;
        for row in &triplets.rows {
            labels.extend_from_slice(&rows.labels[*row as usize * attributes..][..attributes]);
        }
        let (anchors, figures) = trainer.validate(&Batch::new(stage, rows, triplets)?.on(device)?)?;
        embeddings.extend(anchors.flatten_all()?.to_vec1::<f32>()?);
        batches.push(figures);
    }
    go_on()?;
    let Some(figures) = StepFigures::mean_of(&batches) else { return Ok(None) };
    let map = map_of_singles(trainer.model(), stage, embeddings, labels, device)?;
    Ok(Some(Validation { figures, map }))
}

/// Whether there is a validation after a round.
pub(super) fn is_due(stage: &TrainStage, round: u32) -> bool {
    let ended = round + 1;
    ended.is_multiple_of(stage.train.validate_every.max(1)) || ended == stage.rounds()
}

/// mAP over the singles among N images: embeddings N × D, labels N × A.
fn map_of_singles(
    model: &Model,
    stage: &TrainStage,
    embeddings: Vec<f32>,
    labels: Vec<i8>,
    device: &Device,
) -> Result<Option<f64>, TaskError> {
    let (dim, attributes) = (model.embedding_dim(), stage.vocabulary.len());
    let item = |row: usize| format!("{row:08}");
    let mut queries = draw_queries(&stage.vocabulary, &labels, &item, &singles())?.queries;
    queries.retain(|query| query.set == QuerySet::Singles);
    if queries.is_empty() {
        return Ok(None);
    }
    let asked = embedded(model, stage, queries, device)?;
    let items = (0..labels.len() / attributes).map(item).collect();
    let block = std::sync::Arc::new(PlainBlock::new(items, embeddings, labels, dim, attributes)?);
    let load = |_| Ok::<_, TaskError>(std::sync::Arc::clone(&block));
    let scores = score(&asked, 1, load, &mut |_, _| {})?;
    Ok(headline(&scores).first().map(|row| row.map))
}

fn embedded(
    model: &Model,
    stage: &TrainStage,
    queries: Vec<Query>,
    device: &Device,
) -> Result<Vec<(Query, Vec<f32>)>, TaskError> {
    let attributes = stage.vocabulary.len();
    let vector = |query: &Query| encode_query(stage.model.encoding, attributes, &query.with(), &query.without());
    let vectors: Vec<f32> = queries.iter().flat_map(vector).collect();
    let vectors = Tensor::from_vec(vectors, (queries.len(), attributes), device)?;
    Ok(queries.into_iter().zip(model.embed_attributes(&vectors)?.to_vec2::<f32>()?).collect())
}
