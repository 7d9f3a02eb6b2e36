//! Waits for a job and shows its progress; Ctrl-C lets go of it.
//!
//! What is shown is what the coordinator says when asked; events only say when to ask. So nothing is lost when
//! an event is, when the coordinator restarts, or when this command starts late.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use likeness_contract::ids::JobId;
use likeness_contract::messages::{JobDetail, JobState, JobSummary};
use likeness_link::client::{Client, ClientError};
use serde_json::json;
use tokio::time::{Instant as TokioInstant, sleep_until};

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, line, moment, say};
use crate::command::progress::Display;
use crate::command::summary;
use crate::command::up::signals;

/// Asks at least so often, whether or not events come.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// Asks at most so often.
const ASK_AT_MOST_EVERY: Duration = Duration::from_millis(250);
/// A coordinator that is away longer is mentioned.
const MENTION_AFTER: Duration = Duration::from_secs(5);

/// What a command does once its job is accepted: wait for it, or only tell its id. The same job asked again is
/// told so when it is done, and tried again when it failed or was cancelled.
pub async fn submitted(global: &Global, client: &Client, job: JobSummary, detach: bool) -> Outcome {
    let job = asked_before(client, job).await?;
    if !detach {
        if job.state == JobState::Running {
            say(format!("job {} ({})", job.job, job.kind));
        }
        return wait(global, client, &job.job).await;
    }
    if global.json {
        output::json(&job)?;
    } else {
        line(&job.job);
    }
    Ok(Exit::Done)
}

async fn asked_before(client: &Client, job: JobSummary) -> Outcome<JobSummary> {
    let Some(closed_ms) = job.closed_ms else { return Ok(job) };
    let (id, state, ended) = (&job.job, job.state.name(), moment(closed_ms));
    match job.state {
        JobState::Failed | JobState::Cancelled => {
            let again = client.retry(id).await?;
            say(format!("job {id} was {state} at {ended} UTC: trying again, what it had done counts"));
            Ok(again)
        }
        JobState::Running | JobState::Done | JobState::Refused => {
            say(format!(
                "job {id} was asked before and ended at {ended} UTC ({state}): nothing is done again; `--id NAME` makes a new job of it"
            ));
            Ok(job)
        }
    }
}

/// Shows the job's progress until its run ends, then what came of it.
pub async fn wait(global: &Global, client: &Client, job: &JobId) -> Outcome {
    let mut display = Display::new();
    let ended = tokio::select! {
        ended = until_ended(client, job, &mut display) => Some(ended?),
        () = signals::interrupted() => None,
    };
    display.close();
    let Some(detail) = ended else { return detached(global, job) };
    if global.json {
        output::json(&detail)?;
    } else {
        summary::print(client, &detail).await?;
    }
    Ok(Exit::of_job(detail.summary.state))
}

/// Shows the job's progress until its run ends, and fails unless it is done; Ctrl-C lets go of it.
pub async fn done(client: &Client, job: &JobId) -> Outcome<()> {
    let mut display = Display::new();
    let ended = tokio::select! {
        ended = until_ended(client, job, &mut display) => Some(ended?),
        () = signals::interrupted() => None,
    };
    display.close();
    match ended.map(|detail| detail.summary.state) {
        Some(JobState::Done) => Ok(()),
        Some(state) => {
            Err(Failure::failed(format!("job {job} is {}: `likeness jobs show {job}` says why", state.name())))
        }
        None => Err(Failure::detached(format!("detached: job {job} goes on"))),
    }
}

fn detached(global: &Global, job: &JobId) -> Outcome {
    say(format!(
        "\ndetached: job {job} goes on. Watch it again with `likeness jobs watch {job}`, end it with `likeness jobs cancel {job}`"
    ));
    if global.json {
        output::json(&json!({ "job": job, "state": JobState::Running.name(), "detached": true }))?;
    }
    Ok(Exit::Detached)
}

/// Follows the job; returns when no run of it is open.
pub async fn until_ended(client: &Client, job: &JobId, display: &mut Display) -> Outcome<JobDetail> {
    let events = client.watch(job).await?;
    let mut events = pin!(events.fuse());
    let mut away: Option<Instant> = None;
    let mut mentioned = false;
    loop {
        let asked = TokioInstant::now();
        match client.show(job).await {
            Ok(detail) => {
                (away, mentioned) = (None, false);
                display.update(&detail, Instant::now());
                if detail.summary.state != JobState::Running {
                    return Ok(detail);
                }
            }
            Err(error) if may_come_back(&error) => {
                let since = *away.get_or_insert_with(Instant::now);
                if since.elapsed() > MENTION_AFTER && !mentioned {
                    display.say(&format!("the coordinator does not answer ({error}); waiting for it"));
                    mentioned = true;
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            Some(_) = events.next() => {}
            () = sleep_until(asked + ASK_EVERY) => {}
        }
        sleep_until(asked + ASK_AT_MOST_EVERY).await;
    }
}

/// Whether it is worth asking again: services restart, jobs go on.
fn may_come_back(error: &ClientError) -> bool {
    use likeness_contract::messages::ApiErrorKind;
    match error {
        ClientError::Link(error) => error.is_transient(),
        ClientError::Api(error) => error.kind == ApiErrorKind::Unavailable,
        ClientError::Search(_) => false,
    }
}
