//! Ingest: lists a source's rows, stores their images in parts, writes the dataset's manifest.

use likeness_contract::jobs::TaskOutput;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Lists the source's rows and fixes the parts.
pub async fn scan(_cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("scan is not built in"))
}

/// Reads, checks and stores the images of the rows `from..from + rows` of the scan.
pub async fn part(_cx: &TaskContext, _part: u32, _from: u64, _rows: u32) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("part is not built in"))
}

/// Writes the dataset's manifest.
pub async fn finish(_cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    Err(TaskError::transient("finish is not built in"))
}
