//! `likeness datasets`: what can be trained on and embedded.

use clap::Subcommand;
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{JobId, Name};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, Table, line, say, thousands};
use crate::command::selectors::DatasetArg;

/// Subcommands of `likeness datasets`.
#[derive(Debug, Subcommand)]
pub enum DatasetsCommand {
    /// All datasets with their newest version.
    List,
    /// One dataset: its attributes, and the images that were left out with the reason.
    Show {
        /// NAME, or NAME@VERSION.
        dataset: DatasetArg,
    },
}

/// Runs it.
pub async fn run(global: &Global, command: DatasetsCommand) -> Outcome {
    let client = global.connection.client().await?;
    match command {
        DatasetsCommand::List => list(global, &client).await,
        DatasetsCommand::Show { dataset } => show(global, &client, dataset).await,
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
    let named = asked.version.is_some();
    let version = match asked.version {
        Some(version) => version,
        None => newest_version(client, &asked.dataset).await?,
    };
    let key = keys::dataset_manifest(&asked.dataset, &version);
    let found: Option<DatasetManifest> = client.store().document(&key).await?;
    let manifest = found.ok_or_else(|| no_version(&asked.dataset, &version, named, client.store().url()))?;
    if global.json {
        output::json(&manifest)?;
    } else {
        print(&manifest);
    }
    Ok(Exit::Done)
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

fn print(manifest: &DatasetManifest) {
    line(table(std::slice::from_ref(manifest)).render());
    line(format!("attributes: {}", manifest.vocabulary.names.join(", ")));
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
