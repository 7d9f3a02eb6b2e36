//! Draws the query sets from the labels of the rows that will be searched.

use likeness_contract::jobs::{GenerationRef, TaskOutput};
use likeness_contract::keys;
use likeness_evaluation::{Block, draw_queries};

use super::gallery::Gallery;
use super::stage;
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
    let vocabulary = gallery.manifest.vocabulary.clone();
    let settings = stage.settings.clone();
    let draw = move || draw_queries(&vocabulary, &labels, |item| items[item].to_string(), &settings);
    let drawn = tokio::task::spawn_blocking(draw).await.map_err(TaskError::transient)??;
    if !drawn.queries.iter().any(|query| query.set.is_pooled()) {
        let (min, items) = (stage.settings.min_relevant, drawn.items);
        let text = format!("no query is possible: among the {items} {place} no attribute has {min} relevant items");
        return Err(TaskError::invalid(text));
    }
    let queries = drawn.queries.len() as u32;
    let object = cx.create_object(|digest| keys::job_data(cx.job(), "queries", digest, "json"), drawn.encode()).await?;
    Ok(TaskOutput::Queries { object, queries })
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
