//! Evaluation: draws queries, ranks the gallery for them, writes the report, decides the gate.
//!
//! All numbers come from `likeness-evaluation`; here shards are streamed through it and queries become
//! vectors. Every task reads records of earlier ones and immutable objects, so a repeated task gives the same
//! bytes.

mod embedding;
mod gallery;
mod queries;
mod range;
mod report;
mod thumbnail;

use likeness_contract::jobs::{EvaluateStage, JobSpec, JobWork, TaskOutput, task_ids};
use likeness_evaluation::gate::with_floor;
use likeness_evaluation::{DrawnQueries, QueryScore, decode_scores, scores};

pub(super) use embedding::known_model;
pub use queries::run as queries;
pub use range::run as range;
pub use report::run as finish;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Compares the new generation with the baseline, or with chance.
pub async fn gate(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let JobWork::Pipeline { evaluate, baseline, .. } = &cx.spec().work else {
        return Err(TaskError::invalid(format!("a job of kind `{}` has no gate", cx.spec().work.kind())));
    };
    let drawn = drawn(cx).await?;
    let candidate = scored(cx, evaluate, drawn.queries.queries.len(), false).await?;
    let compared = match baseline {
        Some(baseline) => Some((baseline.release, scored(cx, evaluate, drawn.of_baseline, true).await?)),
        None => None,
    };
    let (seed, floor) = (evaluate.settings.seed, evaluate.settings.floor);
    let decide = move || {
        let compared = compared.as_ref().map(|(release, scores)| (*release, scores.as_slice()));
        likeness_evaluation::gate(&candidate, compared, seed)
    };
    let decision = tokio::task::spawn_blocking(decide).await.map_err(TaskError::transient)??;
    if floor == 0.0 {
        return Ok(TaskOutput::Gate(decision));
    }
    Ok(TaskOutput::FlooredGate { decision: with_floor(decision, floor), floor })
}

fn stage(spec: &JobSpec) -> Result<&EvaluateStage, TaskError> {
    match &spec.work {
        JobWork::Evaluate { evaluate, .. } | JobWork::Pipeline { evaluate, .. } => Ok(evaluate),
        other => Err(TaskError::invalid(format!("a job of kind `{}` evaluates nothing", other.kind()))),
    }
}

/// What the job drew.
struct Drawn {
    queries: DrawnQueries,
    /// How many of them the generation compared with is asked: the first ones.
    of_baseline: usize,
}

/// The queries that the job drew.
async fn drawn(cx: &TaskContext) -> Result<Drawn, TaskError> {
    let record = cx.record(&task_ids::queries()).await?;
    let (object, of_baseline) = match record.output {
        TaskOutput::Queries { object, queries } => (object, queries),
        TaskOutput::PooledQueries { object, queries: _, pooled } => (object, pooled),
        _ => return Err(TaskError::invalid(format!("the record of `{}` is not of drawn queries", record.task))),
    };
    let bytes = cx.store.read(&object).await?;
    let queries = DrawnQueries::decode(&bytes).map_err(|error| about(&object.key, error))?;
    Ok(Drawn { queries, of_baseline: of_baseline as usize })
}

/// The scores of so many queries, from the records of all ranges in order.
async fn scored(
    cx: &TaskContext,
    stage: &EvaluateStage,
    queries: usize,
    baseline: bool,
) -> Result<Vec<QueryScore>, TaskError> {
    let ranges = queries.div_ceil(stage.settings.queries_per_task.max(1) as usize);
    let mut joined = Vec::with_capacity(ranges);
    for range in 0..ranges {
        let record = cx.record(&task_ids::range(baseline, range as u32)).await?;
        let TaskOutput::Scores { object, .. } = record.output else {
            return Err(TaskError::invalid(format!("the record of `{}` is not of scores", record.task)));
        };
        let bytes = cx.store.read(&object).await?;
        joined.push(decode_scores(bytes).map_err(|error| about(&object.key, error))?);
    }
    Ok(scores::join(joined, queries)?)
}

/// An error about a stored object, with its key.
fn about(key: &str, error: likeness_evaluation::Error) -> TaskError {
    TaskError::invalid(format!("`{key}`: {}", TaskError::from(error).chain()))
}

#[cfg(test)]
mod tests;
