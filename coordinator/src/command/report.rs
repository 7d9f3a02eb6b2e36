//! `likeness report`: an evaluation's figures, and its files.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use likeness_contract::documents::{ObjectRef, ReportManifest};
use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_contract::messages::{JobState, JobSummary};
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
  likeness report show pipeline-ac1c409f4bdf6613 --html report.html --queries queries.parquet
  likeness report show pipeline-ac1c409f4bdf6613 --json > report.json")]
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
    let job = client.show(report).await?.summary;
    Err(no_report(&job, client.store().url()))
}

/// Why there is no report of a job in the store.
fn no_report(job: &JobSummary, store: &str) -> Failure {
    let JobSummary { job, kind, state, .. } = job;
    let makes_one = matches!(kind.as_str(), "evaluate" | "pipeline");
    if makes_one && matches!(state, JobState::Done | JobState::Refused) {
        return Failure::usage(format!(
            "job `{job}` has a report, but not in the store `{store}`: is that the store of the coordinator?"
        ));
    }
    Failure::usage(format!("job `{job}` has no report: it is of kind {kind} and {}", state.name()))
}

/// Writes an object of the store to a file.
pub async fn copy(client: &Client, object: &ObjectRef, file: &Path) -> Outcome<()> {
    let bytes = client.store().read(object).await?;
    let written = tokio::fs::write(file, &bytes).await;
    written.map_err(|error| Failure::failed(format!("can't write `{}`: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::progress::tests::detail;

    #[test]
    fn a_report_of_another_store_is_told_apart_from_none() {
        let job = |kind: &str, state| JobSummary { kind: kind.into(), state, ..detail(&[], &[]).summary };
        let text = no_report(&job("pipeline", JobState::Done), "/wrong").to_string();
        assert!(text.contains("not in the store `/wrong`"), "{text}");
        let text = no_report(&job("pipeline", JobState::Failed), "/s").to_string();
        assert!(text.ends_with("it is of kind pipeline and failed"), "{text}");
        assert!(no_report(&job("train", JobState::Done), "/s").to_string().contains("of kind train"));
    }
}
