//! Items that are taken down, or back.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::{StreamExt, TryStreamExt};
use likeness_contract::datasets::{Removal, RemovalChange};
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::Name;
use likeness_contract::jobs::{AppendSource, DatasetSelector, IngestSource, RequestedWork};
use likeness_contract::names;
use likeness_link::client::Client;
use likeness_link::{part_items, removals};

use super::manifest;
use crate::command::Global;
use crate::command::bounded;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::follow;
use crate::command::options::{DEFAULT_ROWS, JobOptions};
use crate::command::output::{self, count, line, say};

/// Parts whose items are read at once.
const PARTS_AT_ONCE: usize = 8;
/// Millions of items.
const MAX_LIST_BYTES: u64 = 1 << 30;
/// Items named in a message.
const NAMED: usize = 5;

/// Flags of `likeness datasets remove` and `restore`.
#[derive(Debug, Args)]
pub struct ItemsArgs {
    /// The items' ids.
    #[arg(required_unless_present = "from")]
    items: Vec<String>,
    /// The dataset.
    #[arg(long, value_name = "NAME")]
    dataset: Name,
    /// A file with more of them, one a line; `-` is the standard input.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Do it with the other items where some are not there; those that are removed stay removed for later versions too.
    #[arg(long)]
    force: bool,
}

/// Flags of `likeness datasets compact`.
#[derive(Debug, Args)]
pub struct CompactArgs {
    /// The dataset.
    dataset: Name,
    /// Print the job's id and don't wait.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    job: JobOptions,
}

/// Takes items down.
pub async fn remove(global: &Global, client: &Client, args: ItemsArgs) -> Outcome {
    let ItemsArgs { items, dataset, from, force } = args;
    let items = listed(items, from.as_deref())?;
    // Also says whether there is such a dataset.
    let newest = manifest(client, &DatasetSelector { dataset: dataset.clone(), version: None }).await?;
    let removed = removals::removed(client.store(), &dataset).await?;
    let (already, new): (Vec<String>, Vec<String>) = items.into_iter().partition(|item| removed.contains(item));
    if !already.is_empty() {
        say(format!("{} removed before", count(already.len() as u64, "item")));
    }
    if !force {
        all_there(client, &newest, &new).await?;
    }
    change(global, client, &dataset, RemovalChange::Remove, new).await
}

/// Takes them back.
pub async fn restore(global: &Global, client: &Client, args: ItemsArgs) -> Outcome {
    let ItemsArgs { items, dataset, from, force } = args;
    let items = listed(items, from.as_deref())?;
    manifest(client, &DatasetSelector { dataset: dataset.clone(), version: None }).await?;
    let removed = removals::removed(client.store(), &dataset).await?;
    let (down, others): (Vec<String>, Vec<String>) = items.into_iter().partition(|item| removed.contains(item));
    if !others.is_empty() && !force {
        return Err(unknown(&format!("not removed from dataset `{dataset}`"), &others, removed.items()));
    }
    change(global, client, &dataset, RemovalChange::Restore, down).await
}

async fn change(
    global: &Global,
    client: &Client,
    dataset: &Name,
    change: RemovalChange,
    items: Vec<String>,
) -> Outcome {
    if items.is_empty() {
        say("nothing is to be done");
        return Ok(Exit::Done);
    }
    let removal = client.change_items(dataset, change, items).await?;
    if global.json {
        output::json(&removal)?;
    } else {
        told(&removal);
    }
    Ok(Exit::Done)
}

fn told(removal: &Removal) {
    let Removal { dataset, number, change, items, created_ms: _ } = removal;
    let items = count(items.len() as u64, "item");
    match change {
        RemovalChange::Remove => {
            line(format!("{items} removed from dataset {dataset} (removal {number}): searchers leave them out"));
            line(format!("  likeness datasets compact {dataset}"));
        }
        RemovalChange::Restore => line(format!("{items} of dataset {dataset} may be shown again (removal {number})")),
    }
}

/// The items of the command line and of the file, each once.
fn listed(items: Vec<String>, from: Option<&Path>) -> Outcome<Vec<String>> {
    let text = from.map_or(Ok(String::new()), |file| bounded::text(file, MAX_LIST_BYTES))?;
    let mut seen = HashSet::new();
    let lines = text.lines().map(|line| line.trim_end_matches('\r').to_string());
    let all = items.into_iter().chain(lines).filter(|item| !item.trim().is_empty());
    let all: Vec<String> = all.filter(|item| seen.insert(item.clone())).collect();
    if all.is_empty() {
        return Err(Failure::usage("no item is named"));
    }
    Ok(all)
}

/// A mistake in an id must not remove what comes later under it.
async fn all_there(client: &Client, newest: &DatasetManifest, items: &[String]) -> Outcome<()> {
    if items.is_empty() {
        return Ok(());
    }
    let parts = futures::stream::iter(&newest.parts).map(|part| part_items(client.store(), &part.object.key));
    let parts = parts.buffered(PARTS_AT_ONCE);
    let there: Vec<Vec<String>> = parts.try_collect().await?;
    let there: HashSet<&str> = there.iter().flatten().map(String::as_str).collect();
    let missing: Vec<String> = items.iter().filter(|item| !there.contains(item.as_str())).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    let dataset = &newest.dataset;
    Err(unknown(
        &format!(
            "not in version `{}` of dataset `{}` (--force removes them all the same)",
            dataset.version, dataset.dataset
        ),
        &missing,
        there,
    ))
}

fn unknown<'a>(what: &str, items: &[String], known: impl IntoIterator<Item = &'a str>) -> Failure {
    let shown: Vec<String> = items.iter().take(NAMED).map(|item| format!("`{item}`")).collect();
    let more = items.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let nearest = names::nearest(&items[0], known);
    Failure::usage(format!("nothing was done: {}{more} {what}{}", shown.join(", "), names::hint(&nearest)))
}

/// Makes a version without the removed items.
pub async fn compact(global: &Global, client: &Client, args: CompactArgs) -> Outcome {
    let CompactArgs { dataset, detach, job } = args;
    let append = AppendSource { base: None, removals: 0, source: None };
    let source = IngestSource::Append(Box::new(append));
    let request = job.request(RequestedWork::Ingest { dataset, source, part_rows: DEFAULT_ROWS });
    let job = client.submit(request).await?;
    follow::submitted(global, client, job, detach).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_from_the_line_and_from_a_file_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("items.txt");
        std::fs::write(&file, "b.jpg\r\n\nc d.jpg\na.jpg\n").unwrap();
        let items = listed(vec!["a.jpg".into()], Some(&file)).unwrap();
        assert_eq!(items, ["a.jpg", "b.jpg", "c d.jpg"]);
        assert!(listed(vec![], None).is_err());
        assert!(listed(vec![], Some(Path::new("/nowhere"))).is_err());
    }

    #[test]
    fn a_wrong_id_is_answered_with_the_nearest() {
        let failure = unknown("not there", &["00012.jpg".into()], ["000012.jpg", "9.jpg"]);
        assert_eq!(failure.to_string(), "nothing was done: `00012.jpg` not there; did you mean `000012.jpg`?");
    }
}
