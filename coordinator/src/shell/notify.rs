//! Telling the URLs of a job that a run of it ended.
//!
//! Each URL is tried again with growing pauses until it answers with success, or for a day. That it was told is an
//! object that is created then, and not before: a leader that dies in between leaves it to the next one, which
//! looks at all runs that were closed in the last day. So a message arrives at least once; one that comes twice
//! has the same `webhook-id`.

use std::sync::Arc;
use std::time::Duration;

use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::{JobSpec, Outcome, RunResult, TaskFailure};
use likeness_contract::keys;
use likeness_contract::messages::JobState;
use likeness_contract::usage::Notified;
use likeness_link::error::chain;
use likeness_link::{ErrorKind, Result};
use serde_json::json;

use super::backoff::Backoff;
use super::context::{Context, now_ms};

/// A URL is tried for so long after the end of the run.
const GIVE_UP_MS: u64 = 24 * 3600 * 1000;
/// Pauses between attempts double from the first to the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// Failed tasks that a message names.
const NAMED_FAILURES: usize = 10;
/// Letters of an error that a message repeats.
const ERROR_LETTERS: usize = 1000;

/// Tells of the runs of a job up to `newest` that were closed in the last day, as far as that was not done. Ends
/// when every URL was told or given up.
pub(super) async fn runs_of(cx: Arc<Context>, job: JobId, spec: Arc<JobSpec>, newest: RunNumber) {
    let runs = (1..=newest.0).map(|number| {
        let (cx, job, spec) = (cx.clone(), job.clone(), spec.clone());
        async move {
            if let Some(outcome) = outcome(&cx, &job, RunNumber(number)).await {
                run(cx, spec, outcome).await;
            }
        }
    });
    futures::future::join_all(runs).await;
}

async fn outcome(cx: &Context, job: &JobId, run: RunNumber) -> Option<Outcome> {
    let key = keys::job_outcome(job, run);
    let mut backoff = Backoff::default();
    loop {
        match cx.store.document::<Outcome>(&key).await {
            Ok(outcome) => return outcome,
            Err(error) if error.is_transient() => backoff.wait("an outcome can't be read", &error).await,
            Err(error) => {
                tracing::error!(%job, error = %chain(&error), "nobody is told of a run whose outcome can't be read");
                return None;
            }
        }
    }
}

/// Tells of one closed run.
pub(super) async fn run(cx: Arc<Context>, spec: Arc<JobSpec>, outcome: Outcome) {
    if outcome.closed_ms.saturating_add(GIVE_UP_MS) < now_ms() {
        return;
    }
    let body = body(&spec, &outcome);
    let urls = (0..).zip(&spec.options.notify);
    let told = urls.map(|(number, url)| {
        let message = Message { cx: &cx, job: &outcome.job, run: outcome.run, number, url, body: &body };
        message.deliver(outcome.closed_ms.saturating_add(GIVE_UP_MS))
    });
    futures::future::join_all(told).await;
}

/// What one URL is told of one run.
struct Message<'a> {
    cx: &'a Context,
    job: &'a JobId,
    run: RunNumber,
    number: u32,
    url: &'a str,
    body: &'a [u8],
}

impl Message<'_> {
    async fn deliver(self, until_ms: u64) {
        if self.was_delivered().await {
            return;
        }
        let [mut pause, longest] = PAUSES;
        let given_up = loop {
            let Err(error) = self.post().await else { break None };
            let error = (error.kind, chain(&error));
            if error.0 == ErrorKind::Invalid || now_ms() >= until_ms {
                break Some(error.1);
            }
            tracing::warn!(job = %self.job, error = error.1, again_ms = pause.as_millis(), "a webhook was not delivered");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        };
        match &given_up {
            None => tracing::info!(job = %self.job, run = self.run.0, url = self.number, "webhook delivered"),
            Some(error) => tracing::error!(job = %self.job, run = self.run.0, error, "a webhook was given up"),
        }
        self.note(given_up).await;
    }

    async fn was_delivered(&self) -> bool {
        let key = self.key();
        let mut backoff = Backoff::default();
        loop {
            match self.cx.store.size(&key).await {
                Ok(size) => return size.is_some(),
                Err(error) => backoff.wait("it can't be seen whether a webhook was delivered", &error).await,
            }
        }
    }

    async fn post(&self) -> Result<()> {
        let _permit = self.cx.webhook_permits.acquire().await;
        // The same in every attempt, so that a receiver knows what it has seen.
        let id = format!("{}-{}-{}", self.job, self.run.0, self.number);
        self.cx.webhooks()?.post(self.url, &id, now_ms() / 1000, self.body.to_vec()).await
    }

    async fn note(&self, given_up: Option<String>) {
        let (job, run, url) = (self.job.clone(), self.run, self.number);
        let notified = Notified { job, run, url, at_ms: now_ms(), given_up };
        let mut backoff = Backoff::default();
        while let Err(error) = self.cx.store.create_document(&self.key(), &notified).await {
            backoff.wait("that a webhook was delivered is not stored", &error).await;
        }
    }

    fn key(&self) -> String {
        keys::job_notified(self.job, self.run, self.number)
    }
}

/// `{"type": "job.ended", "timestamp": …, "data": {…}}`, as the Standard Webhooks specification recommends.
fn body(spec: &JobSpec, outcome: &Outcome) -> Vec<u8> {
    let Outcome { job, run, closed_ms, result } = outcome;
    let state = JobState::after(result);
    let kind = spec.work.kind();
    let timestamp = i64::try_from(*closed_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let data = json!({
        "job": job,
        "kind": kind,
        "run": run,
        "state": state.name(),
        "closed_ms": closed_ms,
        "outcome": shortened(result),
        "summary": format!("{kind} {job} is {}{}", state.name(), details(result)),
    });
    let timestamp = timestamp.unwrap_or_default().to_string();
    json!({ "type": "job.ended", "timestamp": timestamp, "data": data }).to_string().into_bytes()
}

fn details(result: &RunResult) -> String {
    match result {
        RunResult::Done { release: Some(release), .. } => format!(": release {release}"),
        RunResult::Done { gate: Some(gate), .. } if !gate.passed => {
            format!(": mAP {:.4}, compared with {:.4}", gate.candidate_map, gate.baseline_map)
        }
        RunResult::Failed { failures } => match failures.as_slice() {
            [] => String::new(),
            [first, rest @ ..] => {
                let more = if rest.is_empty() { String::new() } else { format!(" (and {} more)", rest.len()) };
                format!(": `{}`: {}{more}", first.task, beginning(&first.error))
            }
        },
        RunResult::Done { .. } | RunResult::Cancelled => String::new(),
    }
}

/// A message has a limit; the store has everything.
fn shortened(result: &RunResult) -> RunResult {
    let RunResult::Failed { failures } = result else { return result.clone() };
    let short = |failure: &TaskFailure| TaskFailure { error: beginning(&failure.error), ..failure.clone() };
    RunResult::Failed { failures: failures.iter().take(NAMED_FAILURES).map(short).collect() }
}

fn beginning(text: &str) -> String {
    text.chars().take(ERROR_LETTERS).collect()
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::TaskId;
    use likeness_contract::jobs::{DeviceClass, IngestSource, JobOptions, JobWork, Priority};

    use super::*;

    fn told(result: RunResult) -> serde_json::Value {
        let source = IngestSource::Celeba { dir: "/data".into() };
        let dataset = likeness_contract::ids::Name::new("faces").unwrap();
        let spec = JobSpec {
            work: JobWork::Ingest { dataset, source, part_rows: 1 },
            device: DeviceClass::Any,
            priority: Priority::Lo,
            options: JobOptions::default(),
        };
        let job = JobId::new("j").unwrap();
        let outcome = Outcome { job, run: RunNumber(2), closed_ms: 1_700_000_000_123, result };
        serde_json::from_slice(&body(&spec, &outcome)).unwrap()
    }

    #[test]
    fn a_message_says_what_ended_and_how() {
        let told = told(RunResult::Done { gate: None, release: Some(3) });
        assert_eq!(told["type"], "job.ended");
        assert_eq!(told["timestamp"], "2023-11-14T22:13:20.123Z");
        let data = &told["data"];
        assert_eq!((&data["job"], &data["run"], &data["kind"]), (&json!("j"), &json!(2), &json!("ingest")));
        assert_eq!((&data["state"], &data["summary"]), (&json!("done"), &json!("ingest j is done: release 3")));
        assert_eq!(data["outcome"]["done"]["release"], 3);
    }

    #[test]
    fn a_message_of_a_thousand_failures_is_short() {
        let failure = |n: u32| TaskFailure {
            task: TaskId::new(format!("part-{n:05}")).unwrap(),
            error: "ä".repeat(100_000),
            reported: 5,
            silent: 0,
        };
        let told = told(RunResult::Failed { failures: (0..1000).map(failure).collect() });
        assert!(told.to_string().len() < 40_000, "{}", told.to_string().len());
        assert!(told["data"]["summary"].as_str().unwrap().ends_with("(and 999 more)"));
    }
}
