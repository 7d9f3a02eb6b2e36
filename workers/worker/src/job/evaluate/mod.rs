//! Evaluation: draws queries, ranks the gallery for them, writes the report, decides the gate.

use likeness_contract::jobs::{GenerationRef, TaskOutput};

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Draws the query sets.
pub async fn queries(_cx: &TaskContext, _generation: &GenerationRef) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("queries is not built in"))
}

/// Ranks the items for the queries `from..from + queries`.
pub async fn range(
    _cx: &TaskContext,
    _generation: &GenerationRef,
    _from: u32,
    _queries: u32,
) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("range is not built in"))
}

/// Writes the report.
pub async fn finish(_cx: &TaskContext, _generation: &GenerationRef) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("finish is not built in"))
}

/// Compares the new generation with the baseline, or with chance.
pub async fn gate(_cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("gate is not built in"))
}
