//! Takes the slots of a round into the next checkpoint.

use likeness_contract::jobs::TaskOutput;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Takes the slots of a round into the next checkpoint.
pub async fn run(_cx: &TaskContext, _round: u32) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("outer is not built in"))
}
