//! Ranks the gallery for a range of the queries.

use candle_core::Device;
use likeness_contract::jobs::{GenerationRef, TaskOutput};
use likeness_contract::keys;
use likeness_evaluation::gallery::check_vocabulary;
use likeness_evaluation::{Query, QueryScore, encode_scores, score};

use super::embedding::{embed_queries, known_model};
use super::gallery::Gallery;
use super::{drawn, stage};
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Scores the queries `from..from + count` on a generation with that generation's own model.
pub async fn run(cx: &TaskContext, generation: &GenerationRef, from: u32, count: u32) -> Result<TaskOutput, TaskError> {
    let gallery = Gallery::open(cx, generation, stage(cx.spec())?.rows).await?;
    let model = known_model(cx, &gallery.manifest).await?;
    let drawn = drawn(cx).await?.queries;
    let who = format!("the query set of job `{}`", cx.job());
    let name = generation.generation.as_str();
    check_vocabulary(&who, &drawn.vocabulary, name, &gallery.manifest.vocabulary)?;
    let asked = select(&drawn.queries, from, count)?;
    let progress = cx.clone();
    let rank = move |device: &Device| -> Result<Vec<QueryScore>, TaskError> {
        let asked = embed_queries(model.as_deref(), &gallery, asked, device)?;
        let load = |number| gallery.wait_for_block(number);
        score(&asked, gallery.blocks(), load, &mut |done, of| progress.progress(done, of, "blocks ranked"))
    };
    let scores = cx.device.run(rank).await?;
    let what = format!("scores-{}-{from:06}", generation.generation);
    let object =
        cx.create_object(|digest| keys::job_data(cx.job(), &what, digest, "parquet"), encode_scores(&scores)?).await?;
    Ok(TaskOutput::Scores { object, from, queries: scores.len() as u32 })
}

fn select(queries: &[Query], from: u32, count: u32) -> Result<Vec<Query>, TaskError> {
    let end = from.saturating_add(count) as usize;
    let selected = queries.get(from as usize..end.min(queries.len())).filter(|selected| !selected.is_empty());
    let missing = || TaskError::invalid(format!("queries {from}+{count} are asked for, {} were drawn", queries.len()));
    Ok(selected.ok_or_else(missing)?.to_vec())
}
