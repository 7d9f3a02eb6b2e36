//! `likeness jobs`: list, show, watch, cancel, retry.

use std::collections::HashMap;

use clap::Subcommand;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{JobOptions, JobSpec, JobWork};
use likeness_contract::messages::{ApiErrorKind, JobDetail, JobState, JobSummary, Presence};
use likeness_contract::usage::JobUsage;
use likeness_link::client::{Client, ClientError};

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, Table, device_time, line, moment, span, thousands};
use crate::command::progress::{Phase, phases};
use crate::command::{follow, progress, rounds, status, summary};

/// Subcommands of `likeness jobs`.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Jobs, newest first.
    List {
        /// Most rows.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// One job in full: stages, tasks at hand, troubles, device time.
    Show {
        /// Its id.
        job: JobId,
    },
    /// Follow a job until it ends; the exit code is the job's.
    Watch {
        /// Its id.
        job: JobId,
    },
    /// End a job: no further task starts, its records stay.
    Cancel {
        /// Its id.
        job: JobId,
    },
    /// Open a new run of a job that failed or was cancelled; what was done stays done.
    Retry {
        /// Its id.
        job: JobId,
        /// Don't wait for it.
        #[arg(long)]
        detach: bool,
    },
}

/// Runs one of them.
pub async fn run(global: &Global, command: JobsCommand) -> Outcome {
    let client = global.connection.client().await?;
    match command {
        JobsCommand::List { limit } => list(global, &client, limit).await,
        JobsCommand::Show { job } => show(global, &client, &job).await,
        JobsCommand::Watch { job } => {
            // Asked first: the coordinator answers a wrong id with the nearest ones.
            client.show(&job).await?;
            follow::wait(global, &client, &job).await
        }
        JobsCommand::Cancel { job } => cancel(global, &client, &job).await,
        JobsCommand::Retry { job, detach } => {
            let summary = client.retry(&job).await?;
            follow::submitted(global, &client, summary, detach).await
        }
    }
}

async fn list(global: &Global, client: &Client, limit: u32) -> Outcome {
    let jobs = client.list(limit).await?;
    let used = used(client, jobs.iter().map(|job| job.job.clone()).collect(), false).await?;
    if global.json {
        output::json(&listed(&jobs, &used)?)?;
    } else if jobs.is_empty() {
        output::say("no jobs yet");
    } else {
        line(table(&jobs, &used).render());
    }
    Ok(Exit::Done)
}

/// What jobs used, by job. A coordinator of an older version can't tell, and the rest is told all the same.
async fn used(client: &Client, jobs: Vec<JobId>, in_full: bool) -> Outcome<HashMap<JobId, JobUsage>> {
    match client.usage(jobs, in_full).await {
        Ok(used) => Ok(used.into_iter().map(|used| (used.job.clone(), used)).collect()),
        Err(ClientError::Api(error)) if error.kind == ApiErrorKind::Invalid => Ok(HashMap::new()),
        Err(ClientError::Api(error)) if error.kind == ApiErrorKind::Conflict => Ok(HashMap::new()),
        Err(error) => Err(error.into()),
    }
}

/// The jobs as JSON, each with what it used.
fn listed(jobs: &[JobSummary], used: &HashMap<JobId, JobUsage>) -> Outcome<Vec<serde_json::Value>> {
    let entry = |job: &JobSummary| -> Outcome<serde_json::Value> {
        let mut entry = serde_json::to_value(job)?;
        let used = used.get(&job.job);
        entry["device_ms"] = used.and_then(|used| used.device_ms).into();
        entry["planned_ms"] = used.and_then(|used| used.planned_ms).into();
        Ok(entry)
    };
    jobs.iter().map(entry).collect()
}

fn table(jobs: &[JobSummary], used: &HashMap<JobId, JobUsage>) -> Table {
    let mut table = Table::new(["job", "kind", "state", "run", "tasks", "opened (UTC)", "took", "on devices"]);
    for job in jobs {
        let device_ms = used.get(&job.job).and_then(|used| used.device_ms);
        table.row([
            job.job.to_string(),
            job.kind.clone(),
            job.state.name().into(),
            job.run.to_string(),
            format!("{}/{}", job.done, job.tasks),
            moment(job.opened_ms),
            job.closed_ms.map_or(String::new(), |closed| span(closed.saturating_sub(job.opened_ms))),
            device_ms.map_or("–".into(), device_time),
        ]);
    }
    table
}

async fn show(global: &Global, client: &Client, job: &JobId) -> Outcome {
    let detail = client.show(job).await?;
    let used = used(client, vec![job.clone()], true).await?.remove(job);
    if global.json {
        let mut shown = serde_json::to_value(&detail)?;
        shown["usage"] = serde_json::to_value(&used)?;
        output::json(&shown)?;
        return Ok(Exit::Done);
    }
    print(&detail, used.as_ref());
    if let Some(words) = summary::copied(client, &detail).await? {
        line(format!("  {words}"));
    }
    if detail.summary.state == JobState::Running && detail.active.is_empty() {
        let workers = client.status().await?.workers;
        waits(&detail, &workers).into_iter().for_each(|text| line(format!("  {text}")));
    }
    Ok(Exit::Done)
}

fn print(detail: &JobDetail, used: Option<&JobUsage>) {
    let JobDetail { summary, spec, stages: _, active, troubles, device_ms, result: _, gate } = detail;
    line(format!("{} {} is {} (run {})", summary.kind, summary.job, summary.state.name(), summary.run));
    line(format!("  {}", what(&spec.work)));
    line(format!("  opened {} UTC, {}", moment(summary.opened_ms), device_words(*device_ms, used)));
    carried_out(spec).into_iter().for_each(|words| line(format!("  {words}")));
    let mut stages = Table::new(["phase", "done", "tasks"]);
    for phase in phases(detail) {
        let more = if phase.open_ended { "+" } else { "" };
        stages.row([phase.kind.name().into(), phase.done.to_string(), format!("{}{more}", phase.tasks)]);
    }
    line(indent(&stages.render()));
    rounds::in_words(detail).into_iter().for_each(|words| line(format!("  {words}")));
    if let Some(table) = used.and_then(usage_table) {
        line(indent(&table.render()));
    }
    for task in active {
        let progress = if task.of > 0 { format!("{}/{}", task.progress, task.of) } else { String::new() };
        line(format!("  at hand: {} on {} {progress} {}", task.task, task.worker, task.note).trim_end());
    }
    if let Some(gate) = gate {
        line(format!("  {}", summary::gate_words(gate)));
    }
    for trouble in troubles {
        line(format!("  {}", summary::trouble_words(detail, trouble)));
    }
}

/// `planned 0.80 device-hours, used 1.10 device-hours`
fn device_words(device_ms: u64, used: Option<&JobUsage>) -> String {
    let device_ms = used.and_then(|used| used.device_ms).unwrap_or(device_ms);
    match used.and_then(|used| used.planned_ms) {
        Some(planned) => format!("planned {}, used {} on devices", device_time(planned), device_time(device_ms)),
        None => format!("{} on devices", device_time(device_ms)),
    }
}

/// How it is carried out, where that was said.
fn carried_out(spec: &JobSpec) -> Vec<String> {
    let JobOptions { max_workers, notify } = &spec.options;
    let workers = max_workers.map(|most| format!("at most {} at a time", output::count(u64::from(most), "worker")));
    workers.into_iter().chain(notify.iter().map(|url| format!("tells {url} when a run ends"))).collect()
}

/// What each phase was planned to take and took; none where nothing is known of either.
fn usage_table(used: &JobUsage) -> Option<Table> {
    let planned = used.estimate.as_ref().map_or(&[][..], |estimate| estimate.phases.as_slice());
    let mut names: Vec<&str> = planned.iter().map(|phase| phase.name.as_str()).collect();
    let more = used.phases.iter().map(|phase| phase.name.as_str()).filter(|name| !names.contains(name));
    let more: Vec<&str> = more.collect();
    names.extend(more);
    let mut table = Table::new(["on devices", "planned", "used", "units planned", "units done"]);
    for name in &names {
        let planned = planned.iter().find(|phase| phase.name == *name);
        let used = used.phases.iter().find(|phase| phase.name == *name);
        let unit = planned.map(|phase| &phase.unit).or(used.map(|phase| &phase.unit));
        let units = |units: Option<u64>| {
            units.zip(unit).map_or("–".into(), |(units, unit)| format!("{} {unit}", thousands(units)))
        };
        table.row([
            name.to_string(),
            planned.and_then(|phase| phase.device_ms).map_or("–".into(), device_time),
            used.map_or("–".into(), |phase| device_time(phase.device_ms)),
            units(planned.and_then(|phase| phase.units)),
            units(used.map(|phase| phase.units)),
        ]);
    }
    (!names.is_empty()).then_some(table)
}

/// Why nobody is at a job that runs.
fn waits(detail: &JobDetail, workers: &[Presence]) -> Option<String> {
    let Phase { kind, device, .. } = phases(detail).into_iter().find(|phase| !phase.is_complete())?;
    let able = workers.iter().filter(|worker| status::takes(worker, kind, device)).count();
    let needed = progress::worker_for(kind, device);
    Some(match able {
        0 => format!("waiting for {needed}: none is running"),
        able => format!("waiting for {needed}: {} running", output::count(able as u64, "such worker")),
    })
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn what(work: &JobWork) -> String {
    match work {
        JobWork::Ingest { dataset, part_rows, .. } => format!("into dataset {dataset}, {part_rows} rows per part"),
        JobWork::Train(train) => training(train),
        JobWork::Embed { model, embed } | JobWork::EmbedAnew { model, embed } => {
            format!("{} images of {} by model {model}", embed.gallery_rows, embed.dataset.dataset)
        }
        JobWork::Import(import) => format!("embeddings from elsewhere into gallery {}", import.gallery),
        JobWork::Evaluate { generation, .. } => format!("of {}/{}", generation.gallery, generation.generation),
        JobWork::Pipeline { train, embed, alias, baseline, .. } => {
            let compared = baseline.as_ref().map_or("chance".into(), |b| format!("release {}", b.release));
            format!("{}; {} images; alias {alias}, against {compared}", training(train), embed.gallery_rows)
        }
        JobWork::Search(search) => {
            let questions: u64 = search.parts.iter().map(|part| u64::from(part.questions)).sum();
            format!("{} of alias {}, release {}", output::count(questions, "question"), search.alias, search.release)
        }
    }
}

fn training(train: &likeness_contract::jobs::TrainStage) -> String {
    let model = &train.model;
    format!(
        "{} at {} px, D = {}, on {} images of {}@{}, {} epochs",
        model.architecture.name(),
        model.preprocessing.input_px,
        model.embedding_dim,
        train.train_rows,
        train.dataset.dataset,
        train.dataset.version,
        train.train.epochs
    )
}

async fn cancel(global: &Global, client: &Client, job: &JobId) -> Outcome {
    let summary = client.cancel(job).await?;
    if global.json {
        output::json(&summary)?;
    } else {
        line(format!("job {} is {}", summary.job, summary.state.name()));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use likeness_contract::jobs::{DeviceClass, TaskKind};
    use likeness_contract::usage::PhaseUsage;

    use super::*;
    use crate::command::progress::tests::detail;

    #[test]
    fn the_list_has_one_line_a_job() {
        let summary = detail(&[("scan", 1, 1), ("parts", 1, 3)], &[]).summary;
        let done = JobSummary { closed_ms: Some(90_000), ..summary.clone() };
        let device_ms = Some(2_880_000);
        let used =
            JobUsage { job: summary.job.clone(), device_ms, planned_ms: None, phases: Vec::new(), estimate: None };
        let text = table(&[summary, done], &HashMap::from([(used.job.clone(), used)])).render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("running") && lines[1].contains("2/4"), "{text}");
        assert!(lines[2].ends_with("1 min 30 s  0.80 device-hours"), "{text}");
    }

    #[test]
    fn what_was_planned_stands_beside_what_was_used() {
        let estimate = crate::command::plan::tests::estimate();
        let phase = PhaseUsage {
            name: "embed".into(),
            kind: TaskKind::Embed,
            device: DeviceClass::Cpu,
            shape: String::new(),
            tasks: 2,
            units: 1_500,
            unit: "images".into(),
            weight: 1_500,
            device_ms: 7_200_000,
        };
        let used = JobUsage {
            job: estimate.job.clone(),
            device_ms: Some(7_200_000),
            planned_ms: Some(2_880_000),
            phases: vec![phase],
            estimate: Some(estimate),
        };
        assert_eq!(device_words(0, Some(&used)), "planned 0.80 device-hours, used 2.00 device-hours on devices");
        assert_eq!(device_words(42_000, None), "42 s on devices");
        let text = usage_table(&used).unwrap().render();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("train") && lines[1].contains("0.80 device-hours"), "{text}");
        assert!(lines[2].contains("2.00 device-hours") && lines[2].ends_with("1,500 images"), "{text}");
    }

    #[test]
    fn a_job_without_a_worker_says_so() {
        let detail = detail(&[("scan", 0, 1)], &[]);
        assert_eq!(waits(&detail, &[]).unwrap(), "waiting for a worker that ingests: none is running");
        let busy = status::tests::worker(&[TaskKind::Ingest]);
        assert_eq!(waits(&detail, &[busy]).unwrap(), "waiting for a worker that ingests: 1 such worker running");
    }

    #[test]
    fn every_kind_of_work_has_words() {
        let detail = detail(&[("scan", 0, 1)], &[]);
        assert_eq!(what(&detail.spec.work), "into dataset d, 1 rows per part");
    }
}
