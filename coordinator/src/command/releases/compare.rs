//! `likeness releases compare A B`: two releases on the same queries.
//!
//! What is compared are the two releases' reports, which keep every query's figures and first 100 items: so a gallery of any
//! size is compared in the memory of a report, by a program without a model. Where the reports were not asked the same
//! queries of the same items (another seed, another dataset), `--evaluate` has both generations evaluated by workers first; the
//! same evaluation asked again is the same job, so that costs once.

use std::str::FromStr;

use likeness_contract::documents::{Release, ReportManifest};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{EvaluateStage, JobRequest, RequestedWork};
use likeness_contract::keys;
use likeness_contract::messages::{ApiErrorKind, JobState, JobSummary};
use likeness_contract::settings::{EvaluateSettings, Split};
use likeness_evaluation::compare::Comparison;
use likeness_link::client::{Client, ClientError};
use serde::Serialize;

use super::find;
use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::follow;
use crate::command::options::JobOptions;
use crate::command::output::{json, line, moment, say};
use crate::command::pipeline::DEFAULT_ALIAS;
use crate::command::report::compare;

/// `ALIAS@N`, `ALIAS` for its newest release, or `N` of alias `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseArg {
    alias: Name,
    number: Option<u64>,
}

impl FromStr for ReleaseArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |alias: &str, number| {
            let alias = Name::new(alias).map_err(|error| error.to_string())?;
            Ok(Self { alias, number })
        };
        if let Ok(number) = text.parse() {
            return named(DEFAULT_ALIAS, Some(number));
        }
        match text.split_once('@') {
            None => named(text, None),
            Some((alias, number)) => {
                let number = number.parse().map_err(|_| format!("`{number}` is no number of a release"))?;
                named(alias, Some(number))
            }
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Compared<'a> {
    a: &'a Release,
    b: &'a Release,
    /// The reports compared.
    reports: [&'a JobId; 2],
    comparison: &'a Comparison,
}

/// Prints release `b` against release `a`.
pub async fn run(
    global: &Global,
    client: &Client,
    [a, b]: [&ReleaseArg; 2],
    evaluate: bool,
    (top, seed): (usize, u64),
) -> Outcome {
    let (a, b) = (release(client, a).await?, release(client, b).await?);
    let reports = if evaluate { evaluated(client, [&a, &b]).await? } else { [own_report(&a)?, own_report(&b)?] };
    let comparison = match compare::compared(client, (&reports[0], &reports[1]), seed).await {
        Err(failure) if !evaluate => return Err(failure.context(WITH_EVALUATE)),
        compared => compared?,
    };
    if global.json {
        json(&Compared { a: &a, b: &b, reports: [&reports[0], &reports[1]], comparison: &comparison })?;
        return Ok(Exit::Done);
    }
    for (letter, release, report) in [("a", &a, &reports[0]), ("b", &b, &reports[1])] {
        line(format!(
            "{letter}: {} release {} of {} UTC, model {}, report {report}",
            release.alias,
            release.number,
            moment(release.created_ms),
            release.model
        ));
    }
    line(format!("\n{}", compare::render(&comparison, top)));
    Ok(Exit::Done)
}

const WITH_EVALUATE: &str =
    "the reports of the releases can't be compared (`--evaluate` asks both the same queries now)";

async fn release(client: &Client, wanted: &ReleaseArg) -> Outcome<Release> {
    let ReleaseArg { alias, number } = wanted;
    find(client.releases(Some(alias.clone())).await?, alias, *number)
}

fn own_report(release: &Release) -> Outcome<JobId> {
    release.report.clone().ok_or_else(|| {
        let Release { alias, number, .. } = release;
        Failure::usage(format!("{alias} release {number} has no report: `--evaluate` makes one of each release"))
    })
}

/// Reports of both generations from the same queries: those that the report of `b`, or of `a`, was made from.
async fn evaluated(client: &Client, releases: [&Release; 2]) -> Outcome<[JobId; 2]> {
    let stage = stage(client, releases).await?;
    let mut jobs = Vec::new();
    for release in releases {
        let work = RequestedWork::Evaluate { generation: release.generation.clone(), evaluate: stage.clone() };
        jobs.push(evaluation(client, work).await?);
    }
    let mut reports = Vec::new();
    for job in jobs {
        let job = if matches!(job.state, JobState::Failed | JobState::Cancelled) {
            client.retry(&job.job).await?
        } else {
            job
        };
        if job.state == JobState::Running {
            say(format!("job {} (evaluate)", job.job));
            follow::done(client, &job.job).await?;
        }
        reports.push(job.job);
    }
    <[JobId; 2]>::try_from(reports).map_err(|_| Failure::failed("two releases have two reports"))
}

/// The evaluation of before, where it was asked before; a new one where its report was deleted since.
async fn evaluation(client: &Client, work: RequestedWork) -> Outcome<JobSummary> {
    let request = JobOptions::default().request(work);
    match client.submit(request.clone()).await {
        Err(ClientError::Api(error)) if error.kind == ApiErrorKind::Conflict => {
            let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
            let id = JobId::new(format!("evaluate-again-{since:x}")).map_err(Failure::failed)?;
            Ok(client.submit(JobRequest { id: Some(id), ..request }).await?)
        }
        submitted => Ok(submitted?),
    }
}

async fn stage(client: &Client, [a, b]: [&Release; 2]) -> Outcome<EvaluateStage> {
    for report in [&b.report, &a.report].into_iter().flatten() {
        let manifest: Option<ReportManifest> = client.store().document(&keys::report_manifest(report)).await?;
        if let Some(ReportManifest { rows, settings, .. }) = manifest {
            // A floor is of a gate.
            return Ok(EvaluateStage { rows, settings: EvaluateSettings { floor: 0.0, ..settings } });
        }
    }
    Ok(EvaluateStage { rows: Split::Test, settings: EvaluateSettings::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_by_alias_and_number() {
        let arg = |text: &str| text.parse::<ReleaseArg>().map(|arg| (arg.alias.to_string(), arg.number));
        assert_eq!(arg("faces@3"), Ok(("faces".into(), Some(3))));
        assert_eq!(arg("faces"), Ok(("faces".into(), None)));
        assert_eq!(arg("12"), Ok((DEFAULT_ALIAS.into(), Some(12))));
        assert!(arg("faces@x").unwrap_err().contains("`x` is no number"));
        assert!(arg("a b").is_err() && arg("faces@").is_err() && arg("@3").is_err());
    }
}
