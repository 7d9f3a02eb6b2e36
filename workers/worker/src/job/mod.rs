//! What every kind of task computes: one file per job, one function per task.
//!
//! A task reads immutable inputs, computes, stores immutable data and returns what its record will say. The
//! runtime creates the record; nothing here acknowledges, renews or publishes.

pub mod embed;
pub mod evaluate;
pub mod ingest;
pub mod search;
pub mod train;

use likeness_contract::jobs::{TaskOutput, TaskWork};

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Does the task of the context's message.
pub async fn run(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    match cx.message().work.clone() {
        TaskWork::IngestScan => ingest::scan(cx).await,
        TaskWork::IngestPart { part, from, rows } => ingest::part(cx, part, from, rows).await,
        TaskWork::IngestFinish => ingest::finish(cx).await,
        TaskWork::TrainInit => train::init::run(cx).await,
        TaskWork::TrainSlot { round, slot, first_step, steps } => {
            train::slot::run(cx, round, slot, first_step, steps).await
        }
        TaskWork::TrainOuter { round } => train::outer::run(cx, round).await,
        TaskWork::TrainFinish => train::finish::run(cx).await,
        TaskWork::EmbedShard { model, target, shard, from, rows } => {
            embed::shard(cx, &model, &target, shard, from, rows, None).await
        }
        TaskWork::EmbedShardAfter { model, target, shard, from, rows, earlier } => {
            embed::shard(cx, &model, &target, shard, from, rows, Some(&earlier)).await
        }
        TaskWork::ImportScan => embed::import::scan(cx).await,
        TaskWork::ImportShard { shard, from, rows } => embed::import::shard(cx, shard, from, rows).await,
        TaskWork::ImportFinish => embed::import::finish(cx).await,
        TaskWork::EmbedFinish { model, target } => embed::finish(cx, &model, &target).await,
        TaskWork::EvaluateQueries { generation } => evaluate::queries(cx, &generation).await,
        TaskWork::EvaluateRange { generation, from, queries } => evaluate::range(cx, &generation, from, queries).await,
        TaskWork::EvaluateFinish { generation } => evaluate::finish(cx, &generation).await,
        TaskWork::Gate => evaluate::gate(cx).await,
        TaskWork::SearchPart { part } => search::part(cx, part).await,
        TaskWork::SearchFinish => search::finish(cx).await,
    }
}
