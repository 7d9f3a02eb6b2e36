//! `likeness schedule`: jobs that begin by themselves at set times.

use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use likeness_contract::ids::Name;
use likeness_contract::jobs::JobRequest;
use likeness_contract::schedules::{
    Became, CatchUp, DEFAULT_CATCH_UP_LIMIT, DEFAULT_LATE_AFTER_S, Fired, Missed, Overlap, ScheduleDetail,
    ScheduleRequest, ScheduleSettings, ScheduleState, ScheduleStatus,
};
use likeness_link::client::Client;

use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::options::words;
use crate::command::output::{self, Table, line, moment, say, span};
use crate::command::{Global, embed, evaluate, ingest, pipeline, train};

/// Subcommands of `likeness schedule`.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Add a schedule: a cron pattern, and the command whose job it submits.
    Add(AddArgs),
    /// All schedules.
    List,
    /// One schedule, and what became of its times, newest first.
    Show {
        /// Its name.
        name: Name,
        /// Most times.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Let it fire no more for now; what it leaves out meanwhile is not made up for.
    Pause {
        /// Its name.
        name: Name,
    },
    /// Let it fire again.
    Resume {
        /// Its name.
        name: Name,
    },
    /// Let it fire never again; its history stays, and jobs that run go on.
    Remove {
        /// Its name.
        name: Name,
    },
}

/// Flags of `likeness schedule add`.
#[derive(Debug, Args)]
#[command(after_help = "\
After `--` stands a command that submits a job (ingest, train, embed, evaluate, pipeline) with its flags. Files that it names (--config, --init, \
--queries) are read now. A dataset without a version is the newest one at every firing. The job of a firing has the id NAME-20261128T030000Z, after \
its time in UTC.

A pattern has five fields: minute, hour, day of the month, month, day of the week; six with seconds before them. `*/15`, `1-5`, `MON`, `L` (last day) and \
@hourly, @daily, @weekly, @monthly, @yearly are understood. A local time that a change of the clock skips fires once, right after; one that it repeats fires \
once. A pattern of every hour fires by the clock as it goes.

Examples:
  likeness schedule add nightly --cron '0 3 * * *' --zone Europe/Berlin --only-if-changed -- pipeline --dataset celeba --epochs 15
  likeness schedule add weekly --cron '0 6 * * MON' --overlap cancel-old -- pipeline --config job.toml
  likeness schedule add inbox --cron '*/30 * * * *' --overlap skip --catch-up none -- ingest folder s3://raw/photos --dataset photos --append")]
pub struct AddArgs {
    /// Its name; it begins the ids of its jobs.
    name: Name,
    /// When it fires.
    #[arg(long, value_name = "PATTERN")]
    cron: String,
    /// Time zone of the pattern.
    #[arg(long, default_value = "UTC")]
    zone: String,
    /// What becomes of a time while the job of an earlier one runs: `skip` it, `queue` it, or `cancel-old`, the earlier job.
    #[arg(long, value_name = "POLICY", default_value = "skip", value_parser = words::<Overlap>(&["skip", "queue", "cancel-old"]))]
    overlap: Overlap,
    /// What becomes of times at which no coordinator ran: `none` fires, the `last` one, or `all` of them one after another, the newest N with `all:N`.
    #[arg(long, value_name = "POLICY", default_value = "last")]
    catch_up: CatchUpArg,
    /// A time that is so long past when its turn comes was missed.
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_LATE_AFTER_S)]
    late_after: u32,
    /// Fire only when a dataset of the job has a newer version than the last job that was done used.
    #[arg(long)]
    only_if_changed: bool,
    /// Take the place of a schedule of that name.
    #[arg(long)]
    replace: bool,
    /// The command whose job it submits.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// `none`, `last`, `all`, `all:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CatchUpArg(CatchUp);

impl FromStr for CatchUpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text.split_once(':') {
            None if text == "none" => CatchUp::None,
            None if text == "last" => CatchUp::Last,
            None if text == "all" => CatchUp::All { limit: DEFAULT_CATCH_UP_LIMIT },
            Some(("all", limit)) => {
                CatchUp::All { limit: limit.parse().map_err(|_| format!("`{limit}` is no number"))? }
            }
            _ => return Err("expected none, last, all or all:N".into()),
        }))
    }
}

/// What may stand after `--`.
#[derive(Debug, Parser)]
#[command(name = "likeness schedule add NAME --", disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// See `likeness ingest --help`.
    Ingest(ingest::IngestArgs),
    /// See `likeness train --help`.
    Train(train::TrainArgs),
    /// See `likeness embed --help`.
    Embed(embed::EmbedArgs),
    /// See `likeness evaluate --help`.
    Evaluate(evaluate::EvaluateArgs),
    /// See `likeness pipeline --help`.
    Pipeline(pipeline::PipelineArgs),
}

/// Runs one of them.
pub async fn run(global: &Global, command: ScheduleCommand) -> Outcome {
    if let ScheduleCommand::Add(args) = command {
        return add(global, args).await;
    }
    let client = global.connection.client().await?;
    match command {
        ScheduleCommand::Add(_) | ScheduleCommand::List => list(global, &client).await,
        ScheduleCommand::Show { name, limit } => show(global, &client.schedule(&name, limit).await?),
        ScheduleCommand::Pause { name } => change(global, &client, ScheduleRequest::Pause { name }).await,
        ScheduleCommand::Resume { name } => change(global, &client, ScheduleRequest::Resume { name }).await,
        ScheduleCommand::Remove { name } => change(global, &client, ScheduleRequest::Remove { name }).await,
    }
}

async fn add(global: &Global, args: AddArgs) -> Outcome {
    let AddArgs { name, cron, zone, overlap, catch_up, late_after, only_if_changed, replace, command } = args;
    let (client, job) = scheduled(global, command).await?;
    let CatchUpArg(catch_up) = catch_up;
    let settings = ScheduleSettings { cron, zone, overlap, catch_up, late_after_s: late_after, only_if_changed, job };
    change(global, &client, ScheduleRequest::Add { name, settings: Box::new(settings), replace }).await
}

/// The job that the words after `--` ask for.
async fn scheduled(global: &Global, words: Vec<String>) -> Outcome<(Client, JobRequest)> {
    match parse(words)? {
        JobCommand::Ingest(args) => ingest::job(global, args).await.map(|(client, job, _)| (client, job)),
        JobCommand::Train(args) => train::job(global, args).await,
        JobCommand::Embed(args) => embed::job(global, args).await,
        JobCommand::Evaluate(args) => evaluate::job(global, args).await,
        JobCommand::Pipeline(args) => pipeline::job(global, args).await,
    }
}

fn parse(words: Vec<String>) -> Outcome<JobCommand> {
    // `likeness` itself may stand there, too.
    let words = words.into_iter().enumerate().filter(|(at, word)| *at > 0 || word != "likeness").map(|(_, word)| word);
    let line = Line::try_parse_from(std::iter::once("likeness".to_string()).chain(words));
    Ok(line
        .map_err(|error| Failure::usage(format!("after `--`: {}", error.to_string().trim_start_matches("error: "))))?
        .command)
}

async fn change(global: &Global, client: &Client, change: ScheduleRequest) -> Outcome {
    let status = client.change_schedule(change).await?;
    if global.json {
        output::json(&status)?;
        return Ok(Exit::Done);
    }
    let ScheduleStatus { schedule, next, .. } = &status;
    say(format!("schedule {} is {}", schedule.name, schedule.state.name()));
    if !next.is_empty() {
        say("fires next at");
        next.iter().for_each(|time| line(format!("  {time}")));
    }
    Ok(Exit::Done)
}

async fn list(global: &Global, client: &Client) -> Outcome {
    let schedules = client.schedules().await?;
    if global.json {
        output::json(&schedules)?;
    } else if schedules.is_empty() {
        say("no schedules yet: `likeness schedule add --help`");
    } else {
        line(table(&schedules).render());
    }
    Ok(Exit::Done)
}

fn table(schedules: &[ScheduleStatus]) -> Table {
    let mut table = Table::new(["schedule", "state", "cron", "zone", "job", "next", "last time (UTC)", "became"]);
    for ScheduleStatus { schedule, next, waiting_ms, last, .. } in schedules {
        let settings = &schedule.settings;
        let waits = (!waiting_ms.is_empty()).then(|| format!("{} waiting", waiting_ms.len()));
        table.row([
            schedule.name.to_string(),
            schedule.state.name().into(),
            settings.cron.clone(),
            settings.zone.clone(),
            kind(&settings.job).into(),
            waits.or(next.first().cloned()).unwrap_or_default(),
            last.as_ref().map_or(String::new(), |last| moment(last.firing.scheduled_ms)),
            last.as_ref().map_or(String::new(), words_of),
        ]);
    }
    table
}

fn kind(job: &JobRequest) -> &'static str {
    use likeness_contract::jobs::RequestedWork;
    match &job.work {
        RequestedWork::Ingest { .. } => "ingest",
        RequestedWork::Train(_) => "train",
        RequestedWork::Embed { .. } | RequestedWork::EmbedAnew { .. } => "embed",
        RequestedWork::Evaluate { .. } => "evaluate",
        RequestedWork::Pipeline { .. } => "pipeline",
        RequestedWork::Search(_) => "search",
        RequestedWork::Import(_) => "import",
    }
}

/// What became of a time.
fn words_of(fired: &Fired) -> String {
    let Fired { firing, unmet, job } = fired;
    match (&firing.became, job, unmet) {
        (Became::Submitted { .. }, _, Some(error)) => format!("not accepted: {error}"),
        (Became::Submitted { job, .. }, Some(summary), None) => format!("job {job}: {}", summary.state.name()),
        (Became::Submitted { job, .. }, None, None) => format!("job {job}: about to be submitted"),
        (Became::Overlapped { running }, ..) => format!("skipped: job {running} was running"),
        (Became::Unchanged { since, .. }, ..) => format!("skipped: no newer data than job {since} used"),
        (Became::Missed { how: Missed::Late, all_since_ms: None }, ..) => "missed: no coordinator ran".into(),
        (Became::Missed { how: Missed::Late, all_since_ms: Some(since) }, ..) => {
            format!("missed, with all since {}: no coordinator ran", moment(*since))
        }
        (Became::Missed { how: Missed::Changed, .. }, ..) => {
            "given up: the schedule was changed while it waited".into()
        }
    }
}

fn show(global: &Global, detail: &ScheduleDetail) -> Outcome {
    if global.json {
        output::json(detail)?;
        return Ok(Exit::Done);
    }
    let ScheduleDetail { status, firings } = detail;
    let ScheduleStatus { schedule, next, waiting_ms, .. } = status;
    let settings = &schedule.settings;
    let state = schedule.state.name();
    line(format!(
        "schedule {} ({state}): {}, `{}` in {}",
        schedule.name,
        kind(&settings.job),
        settings.cron,
        settings.zone
    ));
    let changed = if settings.only_if_changed { ", only if a dataset changed" } else { "" };
    line(format!("  overlap {}, catch-up {}{changed}", settings.overlap.name(), catch_up_words(settings.catch_up)));
    line(format!("  change {} of {} UTC", schedule.number, moment(schedule.changed_ms)));
    if schedule.state == ScheduleState::Active {
        line(format!("  next {}", next.first().map_or("never", String::as_str)));
    }
    waiting_ms.iter().for_each(|ms| line(format!("  waiting for an earlier job: {}", moment(*ms))));
    if !firings.is_empty() {
        line(format!("\n{}", history(firings).render()));
    }
    Ok(Exit::Done)
}

fn catch_up_words(catch_up: CatchUp) -> String {
    match catch_up {
        CatchUp::None => "none".into(),
        CatchUp::Last => "last".into(),
        CatchUp::All { limit } => format!("all:{limit}"),
    }
}

fn history(firings: &[Fired]) -> Table {
    let mut table = Table::new(["time (UTC)", "decided", "became"]);
    for fired in firings {
        let late = fired.firing.decided_ms.saturating_sub(fired.firing.scheduled_ms);
        table.row([moment(fired.firing.scheduled_ms), format!("after {}", span(late)), words_of(fired)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(String::from).collect()
    }

    #[test]
    fn every_command_that_submits_a_job_can_be_scheduled() {
        for line in [
            "pipeline --dataset celeba --epochs 3",
            "likeness train --dataset d --seed 1",
            "embed --model m --dataset d",
            "embed import v.parquet --gallery g",
            "evaluate g/h --pairs 5",
            "ingest folder photos --dataset photos --append",
        ] {
            assert!(parse(words(line)).is_ok(), "{line}: {}", parse(words(line)).unwrap_err());
        }
        for line in ["jobs list", "pipeline --epochs many", "pipline"] {
            let failure = parse(words(line)).unwrap_err();
            assert!(failure.exit == Exit::Usage && failure.to_string().contains("after `--`"), "{failure}");
        }
    }

    #[test]
    fn catching_up_is_said_in_a_word() {
        let read = |text: &str| text.parse::<CatchUpArg>().map(|CatchUpArg(policy)| policy);
        assert_eq!(read("all:7"), Ok(CatchUp::All { limit: 7 }));
        assert_eq!(read("all"), Ok(CatchUp::All { limit: DEFAULT_CATCH_UP_LIMIT }));
        assert_eq!((read("none"), read("last")), (Ok(CatchUp::None), Ok(CatchUp::Last)));
        assert!(read("all:x").is_err() && read("some").is_err() && read("last:2").is_err());
        assert_eq!(read(&catch_up_words(CatchUp::All { limit: 3 })), Ok(CatchUp::All { limit: 3 }));
    }
}
