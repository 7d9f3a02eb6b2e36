//! Writes the checkpoint of round 0: fresh weights.

use likeness_contract::jobs::TaskOutput;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Writes the checkpoint of round 0: fresh weights.
pub async fn run(_cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("init is not built in"))
}
