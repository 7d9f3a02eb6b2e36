//! Joins the ranges into the report: JSON, Parquet, HTML, manifest.

use likeness_contract::documents::{ModelManifest, ReportManifest};
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{EvaluateStage, GenerationRef, TaskOutput};
use likeness_contract::keys;
use likeness_evaluation::report::{LabelCounts, Report, Sheet, Subject, Thumbnail, report_html, report_json};
use likeness_evaluation::sheets::{Hit, Pick, picks, top_items};
use likeness_evaluation::training::TrainingCurve;
use likeness_evaluation::{Block as _, QueryScore, encode_scores};
use likeness_link::error::ErrorKind;

use super::embedding::{embed_queries, model_of};
use super::gallery::Gallery;
use super::thumbnail::thumbnails;
use super::{drawn, scored, stage};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Items shown of a query.
const SHOWN: usize = 12;

/// Writes the report of a generation, once every range has its record.
pub async fn run(cx: &TaskContext, generation: &GenerationRef) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let gallery = Gallery::open(cx, generation, stage.rows).await?;
    let model = model_of(cx, &gallery.manifest).await?.manifest.clone();
    let drawn = drawn(cx).await?;
    let scores = scored(cx, &stage, &drawn, false).await?;
    let picked = picks(&scores);
    let (found, labels) = look(cx, &gallery, &drawn.queries, &picked).await?;
    let sheets = sheets(cx, &gallery, &picked, found).await?;
    let curve = curve(cx, &model).await?;

    let subject = subject(cx, &gallery, &model, &stage, labels.items());
    let report = Report::new(subject, stage.settings.clone(), &drawn, &labels, &scores);
    let html = report_html(&report, &scores, curve.as_ref(), &sheets);
    store(cx, report, &scores, html).await
}

async fn store(cx: &TaskContext, report: Report, scores: &[QueryScore], html: String) -> Result<TaskOutput, TaskError> {
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
    };
    let key = keys::report_manifest(cx.job());
    cx.ensure_leased()?;
    let adopted = cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Report { key, headline: adopted.document.headline })
}

fn subject(cx: &TaskContext, gallery: &Gallery, model: &ModelManifest, stage: &EvaluateStage, items: u64) -> Subject {
    Subject {
        report: cx.job().clone(),
        generation: gallery.manifest.generation.clone(),
        model: model.model.clone(),
        weights: model.weights.digest,
        model_settings: model.settings.clone(),
        train_settings: model.train.clone(),
        dataset: gallery.manifest.dataset.clone(),
        rows: stage.rows,
        items,
    }
}

/// A found item and where its image lies.
type Found = Vec<(Hit, (u32, u32))>;

/// The nearest items of the picked queries, and the counts of labels: passes over the gallery.
async fn look(
    cx: &TaskContext,
    gallery: &Gallery,
    queries: &[likeness_evaluation::Query],
    picked: &[Pick],
) -> Result<(Vec<Found>, LabelCounts), TaskError> {
    let loaded = model_of(cx, &gallery.manifest).await?;
    let asked: Vec<_> = picked.iter().map(|pick| queries[pick.query as usize].clone()).collect();
    let gallery = gallery.clone();
    cx.device
        .run(move |device| {
            let asked = embed_queries(&loaded, asked, device)?;
            let hits = top_items(&asked, SHOWN, gallery.blocks(), |number| gallery.wait_for_block(number))?;
            let mut found: Vec<Found> =
                hits.into_iter().map(|hits| hits.into_iter().map(|hit| (hit, (0, 0))).collect()).collect();
            let mut labels = LabelCounts::new(gallery.manifest.vocabulary.len());
            for number in 0..gallery.blocks() {
                let block = gallery.wait_for_block(number)?;
                labels.add(&block);
                let here = found.iter_mut().flatten().filter(|(hit, _)| hit.block == number && hit.row < block.rows());
                here.for_each(|(hit, place)| *place = block.source(hit.row));
            }
            Ok((found, labels))
        })
        .await
}

async fn sheets(
    cx: &TaskContext,
    gallery: &Gallery,
    picked: &[Pick],
    found: Vec<Found>,
) -> Result<Vec<Sheet>, TaskError> {
    let dataset = cx.cache.dataset(&gallery.manifest.dataset).await?;
    let pictures = thumbnails(cx, &dataset, found.iter().flatten().map(|(_, place)| *place)).await?;
    let thumbnail = |(hit, place): (Hit, (u32, u32))| Thumbnail {
        distance: hit.d2.sqrt(),
        item: hit.item,
        relevant: hit.relevant,
        jpeg: pictures.get(&place).cloned(),
    };
    let sheets = picked.iter().zip(found).map(|(pick, found)| Sheet {
        why: pick.why,
        query: pick.query,
        found: found.into_iter().map(thumbnail).collect(),
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
