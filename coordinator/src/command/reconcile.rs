//! `likeness reconcile`: asks for what the coordinator also does by itself.

use serde_json::json;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, count, line};

/// Asks and prints how many tasks were published again.
pub async fn run(global: &Global) -> Outcome {
    let client = global.connection.client().await?;
    let republished = client.reconcile().await?;
    if global.json {
        output::json(&json!({ "republished": republished }))?;
    } else if republished == 0 {
        line("store and broker agree: nothing was missing");
    } else {
        line(format!("{} published again", count(republished, "task")));
    }
    Ok(Exit::Done)
}
