//! `likeness status`: workers, queues and shard placement at a glance.

use likeness_contract::jobs::{DeviceClass, TaskKind};
use likeness_contract::messages::{JobDetail, JobState, Placement, Presence, Queue, Sighting, Status};
use likeness_contract::schedules::{ScheduleState, ScheduleStatus};
use likeness_link::Client;
use serde_json::json;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, Table, count, line, span};
use crate::command::progress::worker_for;
use crate::command::summary;

/// Newest jobs that are looked at for troubles, and troubles that are shown.
const LOOKED_AT: u32 = 30;
const SHOWN: usize = 20;

/// Asks and prints.
pub async fn run(global: &Global) -> Outcome {
    let client = global.connection.client().await?;
    let status = client.status().await?;
    // A coordinator of an older version can't tell.
    let sightings = client.sightings().await.unwrap_or_default();
    let schedules = client.schedules().await.unwrap_or_default();
    let troubled = troubled(&client).await?;
    if global.json {
        let mut told = serde_json::to_value(&status)?;
        told["sightings"] = serde_json::to_value(&sightings)?;
        told["schedules"] = serde_json::to_value(&schedules)?;
        told["troubles"] =
            troubled.iter().map(|job| json!({ "job": job.summary.job, "tasks": job.troubles })).collect();
        output::json(&told)?;
    } else {
        line(render(&status, &sightings));
        of_schedules(&schedules).into_iter().for_each(|text| line(format!("\n{text}")));
        troubles(&troubled).into_iter().for_each(|text| line(format!("\n{text}")));
    }
    Ok(Exit::Done)
}

/// How many schedules there are, and which one fires next.
fn of_schedules(schedules: &[ScheduleStatus]) -> Option<String> {
    let count = count(schedules.len() as u64, "schedule");
    let paused = schedules.iter().filter(|status| status.schedule.state == ScheduleState::Paused).count();
    let paused = if paused > 0 { format!(" ({paused} paused)") } else { String::new() };
    let next = schedules.iter().filter_map(|status| Some((status.next_ms.first()?, status))).min_by_key(|next| next.0);
    let next = next.map_or(String::new(), |(_, status)| {
        format!("; {} is next, at {}", status.schedule.name, status.next.first().map_or("?", String::as_str))
    });
    (!schedules.is_empty()).then(|| format!("{count}{paused}{next}"))
}

/// Jobs that run or failed, of the newest, in which something was tried again or given up.
async fn troubled(client: &Client) -> Outcome<Vec<JobDetail>> {
    let wanted = |state| matches!(state, JobState::Running | JobState::Failed);
    let mut troubled = Vec::new();
    for job in client.list(LOOKED_AT).await?.into_iter().filter(|job| wanted(job.state)) {
        // A job may be gone from the leader's mind meanwhile.
        let Ok(detail) = client.show(&job.job).await else { continue };
        if !detail.troubles.is_empty() {
            troubled.push(detail);
        }
    }
    Ok(troubled)
}

fn troubles(troubled: &[JobDetail]) -> Option<String> {
    let of_job = |job: &JobDetail| {
        let name = job.summary.job.to_string();
        job.troubles.iter().map(|task| format!("{name} {}", summary::trouble_words(job, task))).collect::<Vec<_>>()
    };
    let lines: Vec<String> = troubled.iter().flat_map(of_job).collect();
    let more = lines.len().saturating_sub(SHOWN);
    let shown = lines.iter().take(SHOWN).cloned();
    let rest = (more > 0).then(|| format!("and {more} more: `likeness jobs show JOB`"));
    (!lines.is_empty()).then(|| shown.chain(rest).collect::<Vec<_>>().join("\n"))
}

fn render(status: &Status, sightings: &[Sighting]) -> String {
    let Status { leader, workers, queues, placement, open_jobs } = status;
    let mut blocks = vec![format!("coordinator {leader} leads; {} open", count(*open_jobs, "job"))];
    blocks.push(if workers.is_empty() { "no workers".into() } else { worker_table(workers, sightings).render() });
    blocks.extend(gone(sightings));
    blocks.push(if queues.is_empty() { "no tasks are queued".into() } else { queue_table(queues).render() });
    blocks.extend(queues.iter().filter_map(|queue| unserved(queue, workers)));
    if placement.iter().any(|searcher| !searcher.held.is_empty()) {
        blocks.push(placement_table(placement).render());
    }
    let troubles = placement.iter().flat_map(|p| p.troubles.iter().map(move |t| format!("{}: {t}", p.worker)));
    blocks.extend(troubles);
    blocks.join("\n\n")
}

/// Whether a worker takes tasks of a kind that ask for a class of device.
pub fn takes(worker: &Presence, kind: TaskKind, device: DeviceClass) -> bool {
    let fits = device == DeviceClass::Any || device == worker.device_class;
    fits && worker.roles.contains(&kind) && !worker.draining
}

/// What a queue waits for that no worker takes from.
fn unserved(queue: &Queue, workers: &[Presence]) -> Option<String> {
    let Queue { kind, device, priority: _, waiting, running: _ } = queue;
    let served = *waiting == 0 || workers.iter().any(|worker| takes(worker, *kind, *device));
    (!served)
        .then(|| format!("{} waiting for {}: none is running", count(*waiting, "task"), worker_for(*kind, *device)))
}

/// Workers that went in the last hour.
fn gone(sightings: &[Sighting]) -> Option<String> {
    let gone = sightings.iter().filter(|seen| !seen.live);
    let lines: Vec<String> = gone
        .map(|seen| format!("gone: {} on {}, last seen {} ago", seen.worker, seen.host, span(seen.ago_ms)))
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn worker_table(workers: &[Presence], sightings: &[Sighting]) -> Table {
    let mut table = Table::new(["worker", "roles", "device", "host", "version", "last seen", "task"]);
    for worker in workers {
        let seen = sightings.iter().find(|seen| seen.worker == worker.worker);
        let mut roles: Vec<&str> = worker.roles.iter().map(|kind| kind.name()).collect();
        if worker.searches {
            roles.push("search");
        }
        let task = worker.task.clone().unwrap_or_default();
        table.row([
            worker.worker.to_string(),
            roles.join(","),
            worker.device.clone(),
            worker.host.clone(),
            worker.version.clone(),
            seen.map_or(String::new(), |seen| format!("{} ago", span(seen.ago_ms))),
            if worker.draining { format!("{task} (draining)").trim().to_string() } else { task },
        ]);
    }
    table
}

fn queue_table(queues: &[Queue]) -> Table {
    let mut table = Table::new(["queue", "device", "priority", "waiting", "running"]);
    for queue in queues {
        table.row([
            queue.kind.name().into(),
            queue.device.name().into(),
            queue.priority.name().into(),
            queue.waiting.to_string(),
            queue.running.to_string(),
        ]);
    }
    table
}

fn placement_table(placement: &[Placement]) -> Table {
    let mut table = Table::new(["searcher", "generation", "shards", "model"]);
    for searcher in placement {
        for held in &searcher.held {
            table.row([
                searcher.worker.to_string(),
                format!("{}/{}", held.generation.gallery, held.generation.generation),
                ranges(&held.shards),
                if held.model_ready { "ready".into() } else { "loading".into() },
            ]);
        }
    }
    table
}

/// `0–3, 7`.
fn ranges(shards: &[u32]) -> String {
    let mut shards = shards.to_vec();
    shards.sort_unstable();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for shard in shards {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 >= shard => *last = shard,
            _ => runs.push((shard, shard)),
        }
    }
    let words: Vec<String> = runs
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}–{last}") })
        .collect();
    words.join(", ")
}

#[cfg(test)]
pub mod tests {
    use likeness_contract::ids::WorkerId;
    use likeness_contract::jobs::Priority;

    use super::*;

    /// A worker on the processor.
    pub fn worker(roles: &[TaskKind]) -> Presence {
        Presence {
            worker: WorkerId::new("w").unwrap(),
            roles: roles.to_vec(),
            searches: false,
            device: "cpu".into(),
            device_class: DeviceClass::Cpu,
            host: "h".into(),
            version: "0".into(),
            task: None,
            draining: false,
        }
    }

    #[test]
    fn a_queue_that_no_worker_takes_from_is_said() {
        let trainer = [worker(&[TaskKind::Train])];
        let queue = |kind, device| Queue { kind, device, priority: Priority::Lo, waiting: 2, running: 0 };
        assert_eq!(unserved(&queue(TaskKind::Train, DeviceClass::Any), &trainer), None);
        assert_eq!(unserved(&queue(TaskKind::Train, DeviceClass::Cpu), &trainer), None);
        let text = unserved(&queue(TaskKind::Train, DeviceClass::Cuda), &trainer);
        assert_eq!(text.as_deref(), Some("2 tasks waiting for a worker that trains on cuda: none is running"));
        assert!(unserved(&queue(TaskKind::Embed, DeviceClass::Any), &trainer).is_some());
        assert_eq!(unserved(&Queue { waiting: 0, ..queue(TaskKind::Embed, DeviceClass::Any) }, &trainer), None);
    }

    #[test]
    fn shards_are_told_as_ranges() {
        assert_eq!(ranges(&[3, 0, 1, 2, 7]), "0–3, 7");
        assert_eq!(ranges(&[]), "");
    }

    #[test]
    fn it_is_told_when_workers_were_last_seen() {
        let sighting = |name: &str, live| Sighting {
            worker: WorkerId::new(name).unwrap(),
            host: "host-b".into(),
            ago_ms: 185_000,
            live,
        };
        let sightings = [sighting("w", true), sighting("x", false)];
        assert_eq!(gone(&sightings).unwrap(), "gone: x on host-b, last seen 3 min 05 s ago");
        let text = worker_table(&[worker(&[TaskKind::Train])], &sightings).render();
        assert!(text.contains("3 min 05 s ago"), "{text}");
    }

    #[test]
    fn an_empty_system_is_said_in_words() {
        let status = Status {
            leader: WorkerId::new("c1").unwrap(),
            workers: Vec::new(),
            queues: Vec::new(),
            placement: Vec::new(),
            open_jobs: 0,
        };
        assert_eq!(render(&status, &[]), "coordinator c1 leads; 0 jobs open\n\nno workers\n\nno tasks are queued");
    }
}
