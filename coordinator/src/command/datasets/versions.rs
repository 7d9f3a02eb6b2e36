//! The versions of a dataset as the store has them.

use likeness_contract::datasets::DatasetAbout;
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{JobId, Name, RunNumber};
use likeness_contract::jobs::Run;
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::Store;
use serde::Serialize;

use crate::command::exit::Outcome;
use crate::command::output::{Table, moment, thousands};

/// One version.
#[derive(Debug, Serialize)]
pub struct Version {
    version: JobId,
    /// When its job was accepted; not known of one whose job is gone.
    accepted_ms: Option<u64>,
    rows: u64,
    parts: u64,
    /// The version that it grew from.
    base: Option<JobId>,
    shared_parts: u32,
    /// Rows left out for removals.
    removed: u64,
    /// The last removal that it counts.
    removals: u64,
}

/// All complete versions of a dataset, oldest first.
pub async fn of(store: &Store, dataset: &Name) -> Outcome<Vec<Version>> {
    let mut versions = Vec::new();
    for folder in store.children(&format!("{}/{dataset}", keys::DATASETS)).await? {
        let Ok(version) = JobId::new(folder) else { continue };
        let manifest: Option<DatasetManifest> = store.document(&keys::dataset_manifest(dataset, &version)).await?;
        let Some(manifest) = manifest else { continue };
        let about: Option<DatasetAbout> = store.document(&keys::dataset_about(dataset, &version)).await?;
        let run: Option<Run> = store.document(&keys::job_run(&version, RunNumber(1))).await?;
        let (rows, parts) = (manifest.rows(Split::All), manifest.parts.len() as u64);
        let about = about.as_ref();
        versions.push(Version {
            accepted_ms: run.map(|run| run.opened_ms),
            rows,
            parts,
            base: about.and_then(|about| about.base.clone()),
            shared_parts: about.map_or(0, |about| about.shared_parts),
            removed: about.map_or(0, |about| about.removed),
            removals: about.map_or(0, |about| about.removals),
            version,
        });
    }
    versions.sort_by(|a, b| (a.accepted_ms, &a.version).cmp(&(b.accepted_ms, &b.version)));
    Ok(versions)
}

/// The versions; the one that is shown is marked.
pub fn table(versions: &[Version], shown: &JobId) -> Table {
    let mut table =
        Table::new(["version", "accepted (UTC)", "images", "parts", "of them shared", "grew from", "removed"]);
    for version in versions {
        let mark = if version.version == *shown { " *" } else { "" };
        table.row([
            format!("{}{mark}", version.version),
            version.accepted_ms.map_or("?".into(), moment),
            thousands(version.rows),
            version.parts.to_string(),
            version.shared_parts.to_string(),
            version.base.as_ref().map_or("".into(), ToString::to_string),
            thousands(version.removed),
        ]);
    }
    table
}
