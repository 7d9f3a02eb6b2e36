//! Coordinators and brokers that die: jobs end, and nothing is committed twice.

use likeness_contract::ids::JobId;
use likeness_contract::jobs::{JobRequest, RunResult};
use likeness_contract::keys;
use likeness_link::Client;
use likeness_tests::cluster::{done, outcome, records, started, submit};
use likeness_tests::{Cluster, faces, jobs, until};

async fn dataset(cluster: &Cluster, client: &Client) {
    let root = faces::write(cluster.dir(), 120);
    done(client, jobs::ingest("faces-1", &root, 30)).await;
}

/// Every task has one record, every run one outcome, and the planned tasks are all there.
async fn committed_once(client: &Client, job: &JobId) {
    let records = records(client, job).await;
    let tasks: std::collections::BTreeSet<_> = records.iter().map(|record| &record.task).collect();
    assert_eq!(tasks.len(), records.len());
    let detail = until("the job is shown", async || client.show(job).await.ok()).await;
    assert_eq!(detail.summary.done, records.len() as u64);
    assert_eq!(detail.summary.done, detail.summary.tasks);
    assert_eq!(client.store().list(&keys::job_outcomes(job)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_job_outlives_its_coordinator() {
    let cluster = Cluster::start().await;
    let coordinator = cluster.coordinator("first");
    let _worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    dataset(&cluster, &client).await;
    let job = submit(&client, jobs::train("model", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    coordinator.kill();
    let _next = cluster.coordinator("next");
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    committed_once(&client, &job).await;
    let listed = until("the new leader answers", async || client.list(10).await.ok()).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
}

#[tokio::test]
async fn of_two_coordinators_one_leads_and_the_other_takes_over() {
    let cluster = Cluster::start().await;
    let first = cluster.coordinator("first");
    let client = cluster.client().await;
    let leader = client.status().await.unwrap().leader;
    let _second = cluster.coordinator("second");
    let _worker = cluster.task_worker("worker");
    dataset(&cluster, &client).await;
    assert_eq!(client.status().await.unwrap().leader, leader);
    let job = submit(&client, jobs::train("model", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    // Frozen past its lease, it wakes up as a second leader for a moment: harmless.
    first.freeze();
    let other = async || client.status().await.ok().map(|status| status.leader).filter(|id| *id != leader);
    until("the other one leads", other).await;
    first.thaw();
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    committed_once(&client, &job).await;
}

#[tokio::test]
async fn a_job_outlives_its_broker_and_all_that_the_broker_knew() {
    let mut cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    dataset(&cluster, &client).await;

    let job = submit(&client, jobs::train("restarted", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    cluster.broker.restart();
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    committed_once(&client, &job).await;

    let job = submit(&client, jobs::train("wiped", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    cluster.broker.wipe();
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    committed_once(&client, &job).await;
}

#[tokio::test]
async fn the_same_job_submitted_twice_is_one_job_and_another_under_its_id_is_refused() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    dataset(&cluster, &client).await;
    let job = done(&client, jobs::train("model", jobs::training(2, 10))).await;
    let again = client.submit(jobs::train("model", jobs::training(2, 10))).await.unwrap();
    assert_eq!(again.job, job);
    assert_eq!(client.store().list(&keys::job_runs(&job)).await.unwrap().len(), 1);
    let other = client.submit(jobs::train("model", jobs::training(3, 10))).await.unwrap_err();
    assert!(other.to_string().contains("model"), "{other}");
    let unnamed = |request: JobRequest| JobRequest { id: None, ..request };
    let first = client.submit(unnamed(jobs::train("x", jobs::training(1, 10)))).await.unwrap();
    let second = client.submit(unnamed(jobs::train("x", jobs::training(1, 10)))).await.unwrap();
    assert_eq!(first.job, second.job, "the id is the digest of what was asked");
    assert!(matches!(outcome(&client, &first.job, 1).await, RunResult::Done { .. }));
}
