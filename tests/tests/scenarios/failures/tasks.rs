//! Tasks that end their workers, and tasks that others wait for.

use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{RunNumber, WorkerId};
use likeness_contract::jobs::{DeviceClass, JobRequest, Priority, Run, RunResult, TaskKind};
use likeness_contract::messages::{DeadLetter, TaskEvent, TaskNews};
use likeness_contract::{keys, subjects};
use likeness_link::Client;
use likeness_tests::cluster::{outcome, records, submit};
use likeness_tests::{Cluster, faces, jobs, until};

use super::{ends_as_if_nothing_had_happened, shown};

/// Takes tasks, says that it starts, and is gone, until the run is over. Its messages come back at once, so that nobody
/// waits for `ack_wait`.
async fn die_of_every_task(cluster: &Cluster, client: &Client) {
    let mut queue = client.bus().task_messages(TaskKind::Ingest, DeviceClass::Any, Priority::Lo).await.unwrap();
    let bus = likeness_link::Bus::connect(&cluster.nats(), "dying").await.unwrap();
    for number in 0.. {
        let Ok(Some(delivery)) = queue.next().await else { continue };
        let message = delivery.task().unwrap();
        let event = TaskEvent {
            job: message.job.clone(),
            run: message.run,
            task: message.task.clone(),
            worker: WorkerId::new("dying").unwrap(),
            attempt: format!("dying-{number}"),
            at_ms: 1,
            what: TaskNews::Started,
        };
        let subject = subjects::task_event(&message.job, &message.task, "started");
        bus.publish_event(subject, &event).await.unwrap();
        delivery.nak(None).await.unwrap();
    }
}

#[tokio::test]
async fn a_task_that_ends_its_workers_is_given_up_by_name_and_can_be_retried() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    let ended = tokio::select! {
        ended = outcome(&client, &job, 1) => ended,
        () = die_of_every_task(&cluster, &client) => unreachable!("it goes on for ever"),
    };
    let RunResult::Failed { failures } = ended else { panic!("{ended:?}") };
    assert_eq!((failures.len(), failures[0].task.as_str(), failures[0].silent), (1, "scan", 20), "{failures:?}");
    assert!(failures[0].error.contains("ended without a word"), "{}", failures[0].error);
    let stream = client.bus().jetstream().get_stream(subjects::DEAD_STREAM).await.unwrap();
    let subject = subjects::dead(&job, &failures[0].task);
    let letter = until("a dead letter", async || stream.get_last_raw_message_by_subject(&subject).await.ok()).await;
    let letter: DeadLetter = codec::decode(&letter.payload, Encoding::detect(None, &letter.payload)).unwrap();
    assert_eq!(letter.failure, failures[0]);
    let troubles = cluster.cli(&["jobs", "show", "faces-1"]).await;
    assert!(troubles.out.contains("ended without a word"), "{}", troubles.out);

    client.retry(&job).await.unwrap();
    let _worker = cluster.task_worker("worker");
    assert!(matches!(outcome(&client, &job, 2).await, RunResult::Done { .. }));
    assert_eq!(shown(&client, &job).await.summary.run, RunNumber(2));
}

#[tokio::test]
async fn a_job_of_high_priority_starts_within_the_time_of_one_task() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 240);
    let _worker = cluster.task_worker("worker");
    let low = submit(&client, jobs::ingest("low", &root, 1)).await;
    until("it has begun", async || (records(&client, &low).await.len() > 5).then_some(())).await;
    let urgent = JobRequest { priority: Priority::Hi, ..jobs::ingest("high", &root, 120) };
    let high = submit(&client, urgent).await;
    let first = ends_as_if_nothing_had_happened_to(&client, &high).await;
    let accepted: Run = client.store().require(&keys::job_run(&high, RunNumber(1))).await.unwrap();
    let between = async || {
        let low = records(&client, &low).await;
        low.iter().filter(|record| (accepted.opened_ms..first).contains(&record.started_ms)).count()
    };
    // The one at hand when it was accepted began before; one more may begin before its first task is published.
    assert!(between().await <= 2, "{}", between().await);
    ends_as_if_nothing_had_happened(&client, &low).await;
}

/// The job ends well; when its first task began, milliseconds since 1970.
async fn ends_as_if_nothing_had_happened_to(client: &Client, job: &likeness_contract::ids::JobId) -> u64 {
    assert!(matches!(outcome(client, job, 1).await, RunResult::Done { .. }));
    records(client, job).await.iter().map(|record| record.started_ms).min().unwrap()
}
