//! Workers that die, freeze, leave and fail.

use likeness_contract::ids::RunNumber;
use likeness_contract::jobs::{RunResult, task_ids};
use likeness_contract::messages::{JobState, TaskNews};
use likeness_contract::{keys, subjects};
use likeness_link::Client;
use likeness_tests::cluster::{done, event, outcome, record, records, started, submit};
use likeness_tests::{Cluster, faces, jobs, until};

/// Long enough a task for something to happen to its worker.
const LONG: (u32, u32) = (24, 60);

async fn dataset(cluster: &Cluster, client: &Client) {
    let root = faces::write(cluster.dir(), 120);
    done(client, jobs::ingest("faces-1", &root, 60)).await;
}

async fn queue_is_empty(client: &Client) {
    let queues = || async { client.status().await.ok().map(|status| status.queues) };
    let empty = async || queues().await.filter(Vec::is_empty).map(drop);
    until("every message is gone", empty).await;
}

#[tokio::test]
async fn a_killed_workers_task_is_done_once_by_another() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let first = cluster.task_worker("first");
    dataset(&cluster, &client).await;

    let job = submit(&client, jobs::train("model", jobs::training(LONG.0, LONG.1))).await;
    let lost = started(&client, &job, "round-00000-slot").await;
    first.kill();
    let _second = cluster.task_worker("second");
    let again =
        event(&client, &job, |e| e.task == lost.task && e.what == TaskNews::Started && e.attempt != lost.attempt);
    let again = again.await;
    assert_ne!(again.worker, lost.worker);
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    let record = record(&client, &job, &lost.task).await.unwrap();
    assert_eq!(record.worker, again.worker);
    assert!(record.attempt >= 2, "the broker counts deliveries: {}", record.attempt);
    queue_is_empty(&client).await;
}

#[tokio::test]
async fn a_frozen_worker_says_nothing_when_it_wakes_too_late() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let frozen = cluster.task_worker("frozen");
    dataset(&cluster, &client).await;

    let job = submit(&client, jobs::train("model", jobs::training(LONG.0, LONG.1))).await;
    let held = started(&client, &job, "round-00000-slot").await;
    frozen.freeze();
    let _other = cluster.task_worker("other");
    until("another worker has done the task", async || record(&client, &job, &held.task).await).await;
    let before = records(&client, &job).await;
    frozen.thaw();
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    let after = records(&client, &job).await;
    for record in before {
        assert!(after.contains(&record), "record of `{}` changed", record.task);
    }
    let slot = record(&client, &job, &held.task).await.unwrap();
    assert_ne!(slot.worker, held.worker);
    queue_is_empty(&client).await;
}

#[tokio::test]
async fn a_worker_that_is_asked_to_leave_gives_its_task_back_within_the_grace_period() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let leaving = cluster.task_worker("leaving");
    dataset(&cluster, &client).await;
    let job = submit(&client, jobs::train("model", jobs::training(LONG.0, LONG.1))).await;
    let held = started(&client, &job, "round-00000-slot").await;
    assert!(leaving.terminate().await.success());
    let gone = async || {
        let workers = client.status().await.ok()?.workers;
        workers.iter().all(|worker| worker.worker != held.worker).then_some(())
    };
    until("its presence is gone", gone).await;
    let _next = cluster.task_worker("next");
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
}

#[tokio::test]
async fn a_task_that_fails_again_and_again_ends_its_run_and_a_retry_keeps_every_record() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 120);
    // A link to itself fails as a broken disk does: for all that is known, another attempt might do better.
    let broken = faces::image(&root, 65);
    let image = std::fs::read(&broken).unwrap();
    std::fs::remove_file(&broken).unwrap();
    std::os::unix::fs::symlink(&broken, &broken).unwrap();

    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    let RunResult::Failed { failures } = outcome(&client, &job, 1).await else { panic!("the run cannot succeed") };
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].task, task_ids::part(1));
    assert_eq!(failures[0].reported, 5);
    assert!(failures[0].error.contains(&faces::item(65)), "{}", failures[0].error);
    let dead = subjects::dead(&job, &failures[0].task);
    let stream = client.bus().jetstream().get_stream(subjects::DEAD_STREAM).await.unwrap();
    until("a dead letter lies there", async || stream.get_last_raw_message_by_subject(&dead).await.ok()).await;
    queue_is_empty(&client).await;

    let kept = records(&client, &job).await;
    assert!(kept.iter().any(|record| record.task == task_ids::part(0)), "the other part was finished");
    std::fs::remove_file(&broken).unwrap();
    std::fs::write(&broken, image).unwrap();
    let summary = client.retry(&job).await.unwrap();
    assert_eq!((summary.run, summary.state), (RunNumber(2), JobState::Running));
    assert!(matches!(outcome(&client, &job, 2).await, RunResult::Done { .. }));
    let after = records(&client, &job).await;
    for record in kept {
        assert!(after.contains(&record), "record of `{}` changed", record.task);
    }
    let part = record(&client, &job, &task_ids::part(1)).await.unwrap();
    assert_eq!(part.run, RunNumber(2));
}

#[tokio::test]
async fn a_cancelled_job_ends_at_once_and_can_be_retried() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    dataset(&cluster, &client).await;
    let job = submit(&client, jobs::train("model", jobs::training(LONG.0, LONG.1))).await;
    started(&client, &job, "round-00000-slot").await;
    let cancelled = client.cancel(&job).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert_eq!(outcome(&client, &job, 1).await, RunResult::Cancelled);
    queue_is_empty(&client).await;
    let listed = client.store().list(&keys::job_outcomes(&job)).await.unwrap();
    assert_eq!(listed.len(), 1);
    client.retry(&job).await.unwrap();
    assert!(matches!(outcome(&client, &job, 2).await, RunResult::Done { .. }));
}
