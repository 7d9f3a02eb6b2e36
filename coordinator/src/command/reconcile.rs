//! `likeness reconcile`: asks for what the coordinator also does by itself.

use serde_json::json;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, count, line};

/// Asks, and prints what was missing on the broker and how many tasks were published again.
pub async fn run(global: &Global) -> Outcome {
    let client = global.connection.client().await?;
    // Credentials may not be enough to look; the coordinator mends it in any case.
    let missing = client.bus().missing().await.unwrap_or_default();
    let republished = client.reconcile().await?;
    if global.json {
        output::json(&json!({ "missing": missing, "republished": republished }))?;
    } else {
        line(words(&missing, republished));
    }
    Ok(Exit::Done)
}

fn words(missing: &[String], republished: u64) -> String {
    let made = missing.iter().map(|what| format!("made again: {what}"));
    let published = (republished > 0).then(|| format!("{} published again", count(republished, "task")));
    let lines: Vec<String> = made.chain(published).collect();
    if lines.is_empty() { "store and broker agree: nothing was missing".into() } else { lines.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missing_is_told() {
        assert_eq!(words(&[], 0), "store and broker agree: nothing was missing");
        assert_eq!(words(&["stream `A`".into()], 2), "made again: stream `A`\n2 tasks published again");
    }
}
