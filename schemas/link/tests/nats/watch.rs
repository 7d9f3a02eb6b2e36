//! Following a job through its events, and without them.

use std::time::Duration;

use futures::{Stream, StreamExt};
use likeness_contract::ids::{JobId, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{Outcome, Run, RunResult};
use likeness_contract::messages::{JobEvent, JobNews, TaskEvent, TaskNews};
use likeness_contract::{keys, subjects};
use likeness_link::{Bus, Client, ClientError, ErrorKind, Result, Store, WatchEvent};
use tokio::time::timeout;

use crate::server::{DEADLINE, Server};

fn job() -> JobId {
    JobId::new("job").unwrap()
}

async fn open_run(store: &Store, number: u32) {
    let run = Run { job: job(), run: RunNumber(number), opened_ms: 1 };
    store.create_document(&keys::job_run(&job(), run.run), &run).await.unwrap();
}

async fn task_started(bus: &Bus, run: u32, task: &str) {
    let task = TaskId::new(task).unwrap();
    let subject = subjects::task_event(&job(), &task, "started");
    let worker = WorkerId::new("w").unwrap();
    let what = TaskNews::Started;
    let event = TaskEvent { job: job(), run: RunNumber(run), task, worker, attempt: "a".into(), at_ms: 1, what };
    bus.publish_event(subject, &event).await.unwrap();
}

async fn closed(bus: &Bus, run: u32) {
    let what = JobNews::Closed(RunResult::Cancelled);
    let subject = subjects::job_event(&job(), what.name());
    bus.publish_event(subject, &JobEvent { job: job(), run: RunNumber(run), at_ms: 1, what }).await.unwrap();
}

/// All events in one word each, until the watch ends.
async fn told(events: impl Stream<Item = Result<WatchEvent>>) -> Vec<String> {
    let words = events.map(|event| match event.unwrap() {
        WatchEvent::Task(event) => event.task.to_string(),
        WatchEvent::Job(event) => event.what.name().to_string(),
    });
    timeout(DEADLINE, words.collect()).await.expect("the watch ends")
}

#[tokio::test]
async fn a_watch_tells_the_newest_run_from_its_opening_to_its_end() {
    let server = Server::start();
    let bus = server.bus(Duration::from_secs(1)).await;
    let store = Store::open("memory:").await.unwrap();
    let client = Client::over(bus.clone(), store.clone());
    assert!(matches!(client.watch(&job()).await, Err(ClientError::Link(e)) if e.kind == ErrorKind::NotFound));

    open_run(&store, 1).await;
    task_started(&bus, 1, "of-the-first-run").await;
    closed(&bus, 1).await;
    open_run(&store, 2).await;
    task_started(&bus, 2, "before").await;
    let events = client.watch(&job()).await.unwrap();
    task_started(&bus, 2, "after").await;
    closed(&bus, 2).await;
    assert_eq!(told(events).await, ["before", "after", "closed"]);
}

#[tokio::test]
async fn a_watch_ends_with_the_outcome_when_its_event_was_lost() {
    let server = Server::start();
    let bus = server.bus(Duration::from_secs(1)).await;
    let store = Store::open("memory:").await.unwrap();
    open_run(&store, 1).await;
    let events = Client::over(bus.clone(), store.clone()).watch(&job()).await.unwrap();
    bus.jetstream().delete_stream(subjects::EVENTS_STREAM).await.unwrap();
    let outcome = Outcome { job: job(), run: RunNumber(1), closed_ms: 2, result: RunResult::Cancelled };
    store.create_document(&keys::job_outcome(&job(), RunNumber(1)), &outcome).await.unwrap();
    assert_eq!(told(events).await, ["closed"]);
}
