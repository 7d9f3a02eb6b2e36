//! `likeness report`: an evaluation's figures, its files, and two of them beside each other.

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

pub mod compare;

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
        /// Write PREFIX.run, PREFIX.qrels and PREFIX.graded.qrels for trec_eval.
        ///
        /// Rankings and judgements of the queries; of a sample of them where whole rankings would be long. The graded
        /// judgements count the attributes that an item has as asked.
        #[arg(long, value_name = "PREFIX")]
        trec: Option<PathBuf>,
    },
    /// Two reports query by query, with paired intervals, and how alike their rankings are.
    #[command(after_help = "\
Overlap@K is the share of the first K images that both found. RBO is the rank-biased overlap of the first 100 (Webber and others 2010, \
extrapolated, p = 0.9): 1 for the same images in the same order, 0 for none in common; the first ten carry 86 % of it.

Only queries that both reports asked of the same number of items are compared; how many were left out is told.

Examples:
  likeness report compare pipeline-ac1c409f4bdf6613 pipeline-7d20b1f0a9c3e855
  likeness report compare pipeline-ac1c409f4bdf6613 pipeline-7d20b1f0a9c3e855 --top 20 --json > compared.json")]
    Compare {
        /// Id of the job that made the first report.
        a: JobId,
        /// Id of the job that made the second; differences are its figures less the first's.
        b: JobId,
        /// Show so many of the queries that gained and lost most.
        #[arg(long, value_name = "N", default_value_t = 5)]
        top: usize,
        /// Seed of the bootstrap.
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
    },
}

/// Runs it.
pub async fn run(global: &Global, command: ReportCommand) -> Outcome {
    let client = global.connection.client().await?;
    match command {
        ReportCommand::Show { report, html, queries, trec } => {
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
            if let Some(prefix) = trec {
                copy_trec(&client, &manifest, &prefix).await?;
            }
            show(global, &client, &manifest).await
        }
        ReportCommand::Compare { a, b, top, seed } => compare::run(global, &client, (&a, &b), top, seed).await,
    }
}

async fn show(global: &Global, client: &Client, manifest: &ReportManifest) -> Outcome {
    if global.json {
        let bytes = client.store().read(&manifest.json).await?;
        line(String::from_utf8_lossy(&bytes).trim_end());
    } else {
        summary::print_report(manifest);
        summary::print_left_out(client, manifest).await?;
    }
    Ok(Exit::Done)
}

async fn copy_trec(client: &Client, manifest: &ReportManifest, prefix: &Path) -> Outcome<()> {
    let Some(files) = &manifest.trec else {
        let report = &manifest.report;
        return Err(Failure::usage(format!("report `{report}` is of a version without rankings: evaluate again")));
    };
    for (extension, object) in [("run", &files.run), ("qrels", &files.qrels), ("graded.qrels", &files.graded_qrels)] {
        let mut file = prefix.as_os_str().to_owned();
        file.push(format!(".{extension}"));
        copy(client, object, Path::new(&file)).await?;
        say(format!("wrote {}", Path::new(&file).display()));
    }
    say(format!("they hold {} of the report's queries", files.queries));
    Ok(())
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
