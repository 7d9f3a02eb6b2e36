//! `likeness report`: an evaluation's figures, and its files.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use likeness_contract::documents::{ObjectRef, ReportManifest};
use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{line, say};
use crate::command::{releases, summary};

/// Subcommands of `likeness report`.
#[derive(Debug, Subcommand)]
pub enum ReportCommand {
    /// The headline table: mAP beside chance, P@K. With --json the whole report.
    #[command(after_help = "\
Examples:
  likeness report show                                  of the release that serves
  likeness report show 4f0c2a… --html report.html --queries queries.parquet
  likeness report show 4f0c2a… --json > report.json")]
    Show {
        /// Id of the job that made it; the report of alias `main` without.
        report: Option<JobId>,
        /// Copy the page with plots and result sheets to this file.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Copy the per-query table to this file.
        #[arg(long, value_name = "FILE")]
        queries: Option<PathBuf>,
    },
}

/// Runs it.
pub async fn run(global: &Global, command: ReportCommand) -> Outcome {
    let ReportCommand::Show { report, html, queries } = command;
    let client = global.connection.client().await?;
    let report = match report {
        Some(report) => report,
        None => of_release(&client).await?,
    };
    let manifest = manifest(&client, &report).await?;
    for (file, object) in [(html, &manifest.html), (queries, &manifest.queries)] {
        if let Some(file) = file {
            copy(&client, object, &file).await?;
            say(format!("wrote {}", file.display()));
        }
    }
    if global.json {
        let bytes = client.store().read(&manifest.json).await?;
        line(String::from_utf8_lossy(&bytes).trim_end());
    } else {
        summary::print_report(&manifest);
    }
    Ok(Exit::Done)
}

async fn of_release(client: &Client) -> Outcome<JobId> {
    let release = releases::newest(client, None).await?;
    release.report.ok_or_else(|| {
        Failure::usage(format!("release {} of `{}` has no report: name one", release.number, release.alias))
    })
}

/// The report's manifest; a wrong id is answered with the nearest ones.
pub async fn manifest(client: &Client, report: &JobId) -> Outcome<ReportManifest> {
    if let Some(manifest) = client.store().document(&keys::report_manifest(report)).await? {
        return Ok(manifest);
    }
    let detail = client.show(report).await?;
    let (kind, state) = (&detail.summary.kind, detail.summary.state.name());
    Err(Failure::usage(format!("job `{report}` has no report: it is of kind {kind} and {state}")))
}

/// Writes an object of the store to a file.
pub async fn copy(client: &Client, object: &ObjectRef, file: &Path) -> Outcome<()> {
    let bytes = client.store().read(object).await?;
    let written = tokio::fs::write(file, &bytes).await;
    written.map_err(|error| Failure::failed(format!("can't write `{}`: {error}", file.display())))
}
