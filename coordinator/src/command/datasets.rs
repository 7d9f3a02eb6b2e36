//! `likeness datasets`: what can be trained on and embedded, and what is taken out of it.

mod removed;
mod versions;

use clap::Subcommand;
use likeness_contract::datasets::{DatasetAbout, Removed};
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{DatasetRef, DatasetSelector};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::client::Client;
use likeness_link::removals;

use self::removed::{CompactArgs, ItemsArgs};
use self::versions::Version;
use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, Table, line, say, thousands};
use crate::command::selectors::DatasetArg;
use crate::command::summary;

const REMOVE_HELP: &str = "\
A removal is for good, whichever version, gallery or release holds the items: searchers leave them out as soon as they hear of it \
(within a moment, and within 30 s at most), galleries that are embedded afterwards do not have them, and neither has any later \
version of the dataset. `likeness datasets compact` makes such a version at once. Only `likeness datasets restore` takes a removal back.

Examples:
  likeness datasets remove 000123.jpg 000124.jpg --dataset celeba
  likeness datasets remove --from takedown.txt --dataset celeba";

/// Subcommands of `likeness datasets`.
#[derive(Debug, Subcommand)]
pub enum DatasetsCommand {
    /// All datasets with their newest version.
    List,
    /// One dataset: its versions, attributes and labels, and the images that were left out with the reason.
    Show {
        /// NAME, or NAME@VERSION.
        dataset: DatasetArg,
    },
    /// Take items down: searchers leave them out at once, what is made afterwards does not have them.
    #[command(after_help = REMOVE_HELP)]
    Remove(ItemsArgs),
    /// Show items again that were removed; versions made meanwhile do not have them.
    Restore(ItemsArgs),
    /// Make a version without the items that were removed; it shares all parts that had none of them.
    Compact(CompactArgs),
}

/// Runs it.
pub async fn run(global: &Global, command: DatasetsCommand) -> Outcome {
    let client = global.connection.client().await?;
    match command {
        DatasetsCommand::List => list(global, &client).await,
        DatasetsCommand::Show { dataset } => show(global, &client, dataset).await,
        DatasetsCommand::Remove(items) => removed::remove(global, &client, items).await,
        DatasetsCommand::Restore(items) => removed::restore(global, &client, items).await,
        DatasetsCommand::Compact(args) => removed::compact(global, &client, args).await,
    }
}

async fn list(global: &Global, client: &Client) -> Outcome {
    let datasets = client.datasets().await?;
    if global.json {
        output::json(&datasets)?;
    } else if datasets.is_empty() {
        say("no datasets yet: make one with `likeness ingest celeba DIR` or `likeness ingest parquet FILES…`");
    } else {
        line(table(&datasets).render());
    }
    Ok(Exit::Done)
}

fn table(datasets: &[DatasetManifest]) -> Table {
    let mut table = Table::new(["dataset", "version", "images", "train", "validation", "test", "attributes", "parts"]);
    for manifest in datasets {
        let rows = |split| thousands(manifest.rows(split));
        table.row([
            manifest.dataset.dataset.to_string(),
            manifest.dataset.version.to_string(),
            rows(Split::All),
            rows(Split::Train),
            rows(Split::Validation),
            rows(Split::Test),
            manifest.vocabulary.len().to_string(),
            manifest.parts.len().to_string(),
        ]);
    }
    table
}

async fn show(global: &Global, client: &Client, DatasetArg(asked): DatasetArg) -> Outcome {
    let manifest = manifest(client, &asked).await?;
    let DatasetRef { dataset, version } = &manifest.dataset;
    let about: Option<DatasetAbout> = client.store().document(&keys::dataset_about(dataset, version)).await?;
    let versions = versions::of(client.store(), dataset).await?;
    let removed = removals::removed(client.store(), dataset).await?;
    if global.json {
        return json(&manifest, about.as_ref(), &versions, &removed);
    }
    line(table(std::slice::from_ref(&manifest)).render());
    line(versions::table(&versions, version).render());
    if removed.last() > 0 {
        let items = output::count(removed.items().len() as u64, "item");
        line(format!("{items} removed, in {}", output::count(removed.last(), "change")));
    }
    print(&manifest, about.as_ref());
    Ok(Exit::Done)
}

/// The manifest, as it always was, with what else is known beside its fields.
fn json(manifest: &DatasetManifest, about: Option<&DatasetAbout>, versions: &[Version], removed: &Removed) -> Outcome {
    let value = |value: Result<serde_json::Value, serde_json::Error>| value.map_err(Failure::usage);
    let mut all = value(serde_json::to_value(manifest))?;
    all["about"] = value(serde_json::to_value(about))?;
    all["versions"] = value(serde_json::to_value(versions))?;
    all["removals"] = removed.last().into();
    all["removed"] = removed.items().map(String::from).collect::<Vec<_>>().into();
    output::json(&all)?;
    Ok(Exit::Done)
}

/// The manifest of a version, the newest where none is named.
pub async fn manifest(client: &Client, asked: &DatasetSelector) -> Outcome<DatasetManifest> {
    let DatasetSelector { dataset, version } = asked;
    let wanted = match version {
        Some(version) => version.clone(),
        None => newest_version(client, dataset).await?,
    };
    let found: Option<DatasetManifest> = client.store().document(&keys::dataset_manifest(dataset, &wanted)).await?;
    found.ok_or_else(|| no_version(dataset, &wanted, version.is_some(), client.store().url()))
}

/// A version that the coordinator told us of is missing only in a store that is not its own.
fn no_version(dataset: &Name, version: &JobId, named: bool, store: &str) -> Failure {
    if named {
        return Failure::usage(format!("dataset `{dataset}` has no version `{version}`"));
    }
    Failure::usage(format!(
        "version `{version}` of dataset `{dataset}` is not in the store `{store}`: is that the store of the coordinator?"
    ))
}

async fn newest_version(client: &Client, name: &Name) -> Outcome<JobId> {
    let datasets = client.datasets().await?;
    if let Some(manifest) = datasets.iter().find(|manifest| manifest.dataset.dataset == *name) {
        return Ok(manifest.dataset.version.clone());
    }
    let known = datasets.iter().map(|manifest| manifest.dataset.dataset.as_str());
    let nearest = likeness_contract::names::nearest(name.as_str(), known);
    Err(Failure::usage(format!("there is no dataset `{name}`{}", likeness_contract::names::hint(&nearest))))
}

fn print(manifest: &DatasetManifest, about: Option<&DatasetAbout>) {
    match about {
        Some(about) => line(summary::labels(&about.labels).render()),
        None => line(format!("attributes: {}", manifest.vocabulary.names.join(", "))),
    }
    for warning in &manifest.warnings {
        line(format!("warning: {warning}"));
    }
    if !manifest.skipped.is_empty() {
        let mut skipped = Table::new(["left out", "why"]);
        for row in &manifest.skipped {
            skipped.row([row.item.clone(), row.reason.clone()]);
        }
        line(skipped.render());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_another_store_is_told_apart_from_none() {
        let (dataset, version) = (Name::new("demo").unwrap(), JobId::new("v1").unwrap());
        let text = |named| no_version(&dataset, &version, named, "/wrong").to_string();
        assert_eq!(text(true), "dataset `demo` has no version `v1`");
        assert!(text(false).contains("not in the store `/wrong`"), "{}", text(false));
    }
}
