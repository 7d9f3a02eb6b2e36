//! `likeness jobs`: list, show, watch, cancel, retry.

use clap::Subcommand;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::JobWork;
use likeness_contract::messages::{JobDetail, JobState, JobSummary, Presence};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, Table, line, moment, span};
use crate::command::progress::{Phase, phases};
use crate::command::{follow, progress, status, summary};

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
    if global.json {
        output::json(&jobs)?;
    } else if jobs.is_empty() {
        output::say("no jobs yet");
    } else {
        line(table(&jobs).render());
    }
    Ok(Exit::Done)
}

fn table(jobs: &[JobSummary]) -> Table {
    let mut table = Table::new(["job", "kind", "state", "run", "tasks", "opened (UTC)", "took"]);
    for job in jobs {
        table.row([
            job.job.to_string(),
            job.kind.clone(),
            job.state.name().into(),
            job.run.to_string(),
            format!("{}/{}", job.done, job.tasks),
            moment(job.opened_ms),
            job.closed_ms.map_or(String::new(), |closed| span(closed.saturating_sub(job.opened_ms))),
        ]);
    }
    table
}

async fn show(global: &Global, client: &Client, job: &JobId) -> Outcome {
    let detail = client.show(job).await?;
    if global.json {
        output::json(&detail)?;
        return Ok(Exit::Done);
    }
    print(&detail);
    if let Some(words) = summary::copied(client, &detail).await? {
        line(format!("  {words}"));
    }
    if detail.summary.state == JobState::Running && detail.active.is_empty() {
        let workers = client.status().await?.workers;
        waits(&detail, &workers).into_iter().for_each(|text| line(format!("  {text}")));
    }
    Ok(Exit::Done)
}

fn print(detail: &JobDetail) {
    let JobDetail { summary, spec, stages: _, active, troubles, device_ms, result: _, gate } = detail;
    line(format!("{} {} is {} (run {})", summary.kind, summary.job, summary.state.name(), summary.run));
    line(format!("  {}", what(&spec.work)));
    line(format!("  opened {} UTC, {} on devices", moment(summary.opened_ms), span(*device_ms)));
    let mut stages = Table::new(["phase", "done", "tasks"]);
    for phase in phases(detail) {
        let more = if phase.open_ended { "+" } else { "" };
        stages.row([phase.kind.name().into(), phase.done.to_string(), format!("{}{more}", phase.tasks)]);
    }
    line(indent(&stages.render()));
    for task in active {
        let progress = if task.of > 0 { format!("{}/{}", task.progress, task.of) } else { String::new() };
        line(format!("  at hand: {} on {} {progress} {}", task.task, task.worker, task.note).trim_end());
    }
    if let Some(gate) = gate {
        line(format!("  {}", summary::gate_words(gate)));
    }
    for trouble in troubles {
        line(format!("  trouble: {}", summary::failure_words(trouble)));
    }
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
    use likeness_contract::jobs::TaskKind;

    use super::*;
    use crate::command::progress::tests::detail;

    #[test]
    fn the_list_has_one_line_a_job() {
        let summary = detail(&[("scan", 1, 1), ("parts", 1, 3)], &[]).summary;
        let done = JobSummary { closed_ms: Some(90_000), ..summary.clone() };
        let text = table(&[summary, done]).render();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("running") && lines[1].contains("2/4"), "{text}");
        assert!(lines[2].ends_with("1 min 30 s"), "{text}");
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
