//! The failure cases of `schemas/docs/failures.md` that need a bad network, a bad store or several brokers.
//!
//! That page says of every case where its end state is shown.

mod broker;
mod network;
mod nodes;
mod store;
mod table;
mod tasks;

use likeness_contract::ids::JobId;
use likeness_contract::jobs::{RunResult, TaskRecord};
use likeness_contract::keys;
use likeness_contract::messages::{JobDetail, TaskEvent, TaskNews};
use likeness_link::{Client, WatchEvent};
use likeness_tests::cluster::{done, outcome, records};
use likeness_tests::{Cluster, faces, jobs, until};

use futures::StreamExt;

/// The images of all these cases, as the dataset `faces`.
async fn dataset(cluster: &Cluster, client: &Client) {
    let root = faces::write(cluster.dir(), 120);
    done(client, jobs::ingest("faces-1", &root, 60)).await;
}

/// The job ends well, with one record a task and one outcome, and nothing of it lies in a queue. Returns the records.
async fn ends_as_if_nothing_had_happened(client: &Client, job: &JobId) -> Vec<TaskRecord> {
    let result = outcome(client, job, 1).await;
    assert!(matches!(result, RunResult::Done { .. }), "{result:?}");
    let records = records(client, job).await;
    let tasks: std::collections::BTreeSet<_> = records.iter().map(|record| &record.task).collect();
    assert_eq!(tasks.len(), records.len());
    let detail = shown(client, job).await;
    assert_eq!((detail.summary.done, detail.summary.tasks), (records.len() as u64, records.len() as u64));
    assert_eq!(client.store().list(&keys::job_outcomes(job)).await.unwrap().len(), 1);
    let empty = async || client.status().await.ok().map(|status| status.queues).filter(Vec::is_empty);
    until("every message is gone", empty).await;
    records
}

async fn shown(client: &Client, job: &JobId) -> JobDetail {
    until("the job is shown", async || client.show(job).await.ok()).await
}

/// Everything that was told of the tasks of a job whose run is closed.
async fn told(client: &Client, job: &JobId) -> Vec<TaskEvent> {
    let events = client.watch(job).await.expect("there is such a job");
    let of_tasks = events.filter_map(async |event| match event.expect("the events are read") {
        WatchEvent::Task(event) => Some(event),
        WatchEvent::Job(_) => None,
    });
    of_tasks.collect().await
}

/// How often a task was started.
fn starts(events: &[TaskEvent], task: &str) -> usize {
    events.iter().filter(|event| event.task.as_str() == task && event.what == TaskNews::Started).count()
}
