//! Joins the ranges into the report: JSON, Parquet, HTML, files for TREC's tools, manifest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Device;
use likeness_contract::documents::{ModelManifest, ReportManifest, TrecFiles};
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{EvaluateStage, GenerationRef, TaskOutput};
use likeness_contract::keys;
use likeness_contract::settings::QueryEncoding;
use likeness_evaluation::estimates::Estimates;
use likeness_evaluation::report::{Embedder, LabelCounts, Report, Sheet, Subject, Thumbnail, report_html, report_json};
use likeness_evaluation::sheets::{Hit, Pick, picks, top_items};
use likeness_evaluation::training::TrainingCurve;
use likeness_evaluation::{Query, QueryScore, encode_scores, trec};
use likeness_link::error::ErrorKind;

use super::embedding::{embed_queries, known_model};
use super::gallery::Gallery;
use super::thumbnail::thumbnails;
use super::{drawn, scored, stage};
use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Items shown of a query.
const SHOWN: usize = 12;

/// Writes the report of a generation, once every range has its record.
pub async fn run(cx: &TaskContext, generation: &GenerationRef) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let gallery = Gallery::open(cx, generation, stage.rows).await?;
    let model = known_model(cx, &gallery.manifest).await?;
    let drawn = drawn(cx).await?.queries;
    let scores = scored(cx, &stage, drawn.queries.len(), false).await?;
    let picked = picks(&scores);
    let looked = look(cx, &gallery, model.clone(), &drawn.queries, &picked).await?;
    let sheets = sheets(cx, &gallery, &picked, &looked).await?;
    let trec = trec_files(cx, &gallery, model.clone(), &drawn.queries, looked.labels.items()).await?;
    let manifest = model.as_ref().map(|model| &model.manifest);
    let curve = match manifest {
        Some(manifest) => curve(cx, manifest).await?,
        None => None,
    };

    let subject = subject(cx, &gallery, manifest, &stage, looked.labels.items());
    let write = move || {
        let report = Report::new(subject, stage.settings, &drawn, &looked.labels, looked.estimates.as_ref(), &scores);
        let html = report_html(&report, &scores, curve.as_ref(), &sheets);
        (report, scores, html)
    };
    let (report, scores, html) = tokio::task::spawn_blocking(write).await.map_err(TaskError::transient)?;
    store(cx, report, &scores, html, trec).await
}

async fn store(
    cx: &TaskContext,
    report: Report,
    scores: &[QueryScore],
    html: String,
    trec: TrecFiles,
) -> Result<TaskOutput, TaskError> {
    let key = |what: &'static str, extension: &'static str| {
        move |digest: &Digest| keys::report_file(cx.job(), what, digest, extension)
    };
    let json = cx.create_object(key("report", "json"), report_json(&report)).await?;
    let queries = cx.create_object(key("queries", "parquet"), encode_scores(scores)?).await?;
    let html = cx.create_object(key("report", "html"), html.into_bytes()).await?;
    let manifest = ReportManifest {
        report: cx.job().clone(),
        generation: report.subject.generation,
        model: report.subject.model,
        rows: report.subject.rows,
        items: report.subject.items,
        settings: report.settings,
        json,
        queries,
        html,
        headline: report.headline,
        trec: Some(trec),
    };
    let key = keys::report_manifest(cx.job());
    cx.ensure_leased()?;
    let adopted = cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Report { key, headline: adopted.document.headline })
}

fn subject(
    cx: &TaskContext,
    gallery: &Gallery,
    model: Option<&ModelManifest>,
    stage: &EvaluateStage,
    items: u64,
) -> Subject {
    let embedder = model.zip(gallery.manifest.dataset()).map(|(model, dataset)| Embedder {
        weights: model.weights.digest,
        model_settings: model.settings.clone(),
        train_settings: model.train.clone(),
        dataset: dataset.clone(),
    });
    let (report, generation) = (cx.job().clone(), gallery.manifest.generation.clone());
    Subject { report, generation, model: gallery.manifest.model_name().clone(), embedder, rows: stage.rows, items }
}

/// Rankings and judgements of a sample of the queries.
async fn trec_files(
    cx: &TaskContext,
    gallery: &Gallery,
    model: Option<Arc<LoadedModel>>,
    queries: &[Query],
    items: u64,
) -> Result<TrecFiles, TaskError> {
    let asked: Vec<Query> = trec::sample(queries.len(), items).into_iter().map(|i| queries[i].clone()).collect();
    let count = asked.len() as u32;
    let gallery = gallery.clone();
    let rank = move |device: &Device| {
        let asked = embed_queries(model.as_deref(), &gallery, asked, device)?;
        trec::trec(&asked, gallery.blocks(), |number| gallery.wait_for_block(number))
    };
    let files = cx.device.run(rank).await?;
    let key = |what: &'static str| move |digest: &Digest| keys::report_file(cx.job(), what, digest, "trec");
    Ok(TrecFiles {
        queries: count,
        run: cx.create_object(key("run"), files.run.into_bytes()).await?,
        qrels: cx.create_object(key("qrels"), files.qrels.into_bytes()).await?,
        graded_qrels: cx.create_object(key("qrels-graded"), files.graded.into_bytes()).await?,
    })
}

/// What passes over the gallery tell beside the scores.
struct Looked {
    /// The nearest items of every picked query.
    hits: Vec<Vec<Hit>>,
    /// Dataset part and row of each of them, by block and row.
    places: HashMap<(usize, usize), (u32, u32)>,
    labels: LabelCounts,
    /// Of a model that has logits.
    estimates: Option<Estimates>,
}

async fn look(
    cx: &TaskContext,
    gallery: &Gallery,
    model: Option<Arc<LoadedModel>>,
    queries: &[Query],
    picked: &[Pick],
) -> Result<Looked, TaskError> {
    let asked: Vec<Query> = picked.iter().map(|pick| queries[pick.query as usize].clone()).collect();
    let gallery = gallery.clone();
    let look = move |device: &Device| {
        let asked = embed_queries(model.as_deref(), &gallery, asked, device)?;
        let hits = top_items(&asked, SHOWN, gallery.blocks(), |number| gallery.wait_for_block(number))?;
        let mut places = HashMap::new();
        let mut labels = LabelCounts::new(gallery.manifest.vocabulary.len());
        let encoding = model.as_ref().map(|model| model.manifest.settings.encoding);
        let has_logits = encoding == Some(QueryEncoding::LogProbability);
        let mut estimates = has_logits.then(|| Estimates::new(gallery.manifest.vocabulary.len()));
        for number in 0..gallery.blocks() {
            let block = gallery.wait_for_block(number)?;
            labels.add(&block);
            if let Some(estimates) = &mut estimates {
                estimates.add(&block);
            }
            for hit in hits.iter().flatten().filter(|hit| hit.block == number) {
                places.insert((number, hit.row), block.source(hit.row));
            }
        }
        Ok(Looked { hits, places, labels, estimates })
    };
    cx.device.run(look).await
}

async fn sheets(
    cx: &TaskContext,
    gallery: &Gallery,
    picked: &[Pick],
    looked: &Looked,
) -> Result<Vec<Sheet>, TaskError> {
    let pictures = match gallery.manifest.dataset() {
        Some(dataset) => {
            let dataset = cx.cache.dataset(dataset).await?;
            thumbnails(cx, &dataset, looked.places.values().copied()).await?
        }
        None => BTreeMap::new(),
    };
    let thumbnail = |hit: &Hit| Thumbnail {
        item: hit.item.clone(),
        distance: hit.d2.sqrt(),
        relevant: hit.relevant,
        jpeg: looked.places.get(&(hit.block, hit.row)).and_then(|place| pictures.get(place)).cloned(),
    };
    let sheets = picked.iter().zip(&looked.hits).map(|(pick, hits)| Sheet {
        why: pick.why,
        query: pick.query,
        found: hits.iter().map(thumbnail).collect(),
    });
    Ok(sheets.collect())
}

/// The training's figures; a report does without them when they are gone or damaged.
async fn curve(cx: &TaskContext, model: &ModelManifest) -> Result<Option<TrainingCurve>, TaskError> {
    let bytes = match cx.store.read(&model.training).await {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {
            tracing::warn!(%error, model = %model.model, "the report has no training curve");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match TrainingCurve::decode(bytes) {
        Ok(curve) => Ok(Some(curve)),
        Err(error) => {
            tracing::warn!(%error, model = %model.model, "the report has no training curve");
            Ok(None)
        }
    }
}
