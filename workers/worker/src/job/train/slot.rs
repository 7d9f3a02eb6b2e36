//! H inner steps from the checkpoint before the round.

use likeness_contract::jobs::TaskOutput;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// H inner steps from the checkpoint before the round.
pub async fn run(
    _cx: &TaskContext,
    _round: u32,
    _slot: u32,
    _first_step: u64,
    _steps: u32,
) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("slot is not built in"))
}
