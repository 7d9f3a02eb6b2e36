//! Search: leaves answer for their shards, roots embed the query, ask the leaves and merge.

use crate::error::TaskError;
use crate::runtime::context::SearchContext;

/// Serves searches until `cx.shutdown` is cancelled.
pub async fn serve(cx: SearchContext) -> Result<(), TaskError> {
    cx.shutdown.cancelled().await;
    Ok(())
}
