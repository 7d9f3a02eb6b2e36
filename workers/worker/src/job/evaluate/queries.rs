//! Draws the query sets from the labels of the rows that will be searched.

use std::collections::HashMap;
use std::sync::Arc;

use likeness_contract::documents::GenerationManifest;
use likeness_contract::jobs::{EvaluateStage, GenerationRef, JobWork, TaskOutput};
use likeness_contract::keys;
use likeness_evaluation::brought::BroughtFile;
use likeness_evaluation::{Block, DrawnQueries, QuerySet, draw_alike, draw_queries};

use super::gallery::Gallery;
use super::{about, stage};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Draws the queries and stores them for all ranges, and for the baseline's.
pub async fn run(cx: &TaskContext, generation: &GenerationRef) -> Result<TaskOutput, TaskError> {
    let stage = stage(cx.spec())?.clone();
    let gallery = Gallery::open(cx, generation, stage.rows).await?;
    let (labels, items) = look(cx, &gallery).await?;
    let place = format!("{:?} rows of generation `{}`", stage.rows, generation.generation).to_lowercase();
    if labels.is_empty() {
        return Err(TaskError::invalid(format!("nothing to evaluate: there are no {place}")));
    }
    let manifest = Arc::clone(&gallery.manifest);
    let (settings, own) = (stage.clone(), own(cx, &stage).await?);
    let draw = move || draw(&manifest, &labels, &items, &settings, own);
    let drawn = tokio::task::spawn_blocking(draw).await.map_err(TaskError::transient)??;
    let is_gated = matches!(cx.spec().work, JobWork::Pipeline { .. });
    let has_others = drawn.queries.iter().any(|query| matches!(query.set, QuerySet::Own | QuerySet::Alike));
    if drawn.pooled() == 0 && (is_gated || !has_others) {
        let (min, items) = (stage.settings.min_relevant, drawn.items);
        let text = format!("no query is possible: among the {items} {place} no attribute has {min} relevant items");
        return Err(TaskError::invalid([std::slice::from_ref(&text), &drawn.left_out].concat().join("; ")));
    }
    let (queries, pooled) = (drawn.queries.len() as u32, drawn.pooled() as u32);
    let object = cx.create_object(|digest| keys::job_data(cx.job(), "queries", digest, "json"), drawn.encode()).await?;
    Ok(match &cx.spec().work {
        JobWork::Pipeline { baseline: Some(_), .. } => TaskOutput::PooledQueries { object, queries, pooled },
        _ => TaskOutput::Queries { object, queries },
    })
}

/// The user's own queries.
async fn own(cx: &TaskContext, stage: &EvaluateStage) -> Result<Option<BroughtFile>, TaskError> {
    let Some(brought) = &stage.settings.own else { return Ok(None) };
    let bytes = cx.store.read(&brought.object).await?;
    BroughtFile::decode(&bytes).map(Some).map_err(|error| about(&brought.object.key, error))
}

fn draw(
    manifest: &GenerationManifest,
    labels: &[i8],
    items: &[Box<str>],
    stage: &EvaluateStage,
    own: Option<BroughtFile>,
) -> Result<DrawnQueries, TaskError> {
    let draw = if manifest.embedder().is_some() { draw_queries } else { draw_alike };
    let mut drawn = draw(&manifest.vocabulary, labels, &|item| items[item].to_string(), &stage.settings)?;
    if let Some(own) = own {
        let places: HashMap<&str, usize> = items.iter().enumerate().map(|(place, item)| (&**item, place)).collect();
        drawn.add_own(
            &own.queries,
            labels,
            |item| places.get(item).copied(),
            manifest.embedding_dim as usize,
            stage.settings.image_edit,
        )?;
    }
    Ok(drawn)
}

/// Labels of all searched rows, N×A, and their ids.
async fn look(cx: &TaskContext, gallery: &Gallery) -> Result<(Vec<i8>, Vec<Box<str>>), TaskError> {
    let (mut labels, mut items) = (Vec::new(), Vec::new());
    for number in 0..gallery.blocks() {
        let block = gallery.block(number).await?;
        for row in 0..block.rows() {
            labels.extend_from_slice(block.labels(row));
            items.push(block.item(row).into());
        }
        cx.progress(number as u64 + 1, gallery.blocks() as u64, "shards");
    }
    Ok((labels, items))
}
