//! Networks that lose, hold back and cut.

use std::time::Duration;

use likeness_contract::messages::TaskNews;
use likeness_tests::cluster::{event, outcome, started, submit};
use likeness_tests::proxy::{Fate, Frame, Proxy};
use likeness_tests::{Cluster, Process, faces, jobs};

use super::{dataset, ends_as_if_nothing_had_happened, starts, told};

/// One slot that takes much longer than `ack_wait`.
const ONE_LONG_SLOT: (u32, u32) = (120, 600);

/// A worker whose way to the broker goes through `proxy`.
fn worker_behind(cluster: &Cluster, proxy: &Proxy, name: &str) -> Process {
    let url = proxy.url().to_string();
    cluster.worker_with(name, "ingest,train,embed,evaluate", move |command| {
        command.env("LIKENESS_NATS", url);
    })
}

#[tokio::test]
async fn renewals_that_get_lost_cost_the_lease_and_nothing_else() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    let unheard = worker_behind(&cluster, &proxy, "unheard");
    dataset(&cluster, &client).await;
    proxy.rule(|frame: &mut Frame| match frame.payload() {
        b"+WPI" if frame.to_server => Fate::Lost,
        _ => Fate::Passes,
    });
    let job = submit(&client, jobs::train("model", jobs::training(ONE_LONG_SLOT.0, ONE_LONG_SLOT.1))).await;
    let lost = started(&client, &job, "round-00000-slot").await;
    let _other = cluster.task_worker("other");
    let records = ends_as_if_nothing_had_happened(&client, &job).await;
    let slot = records.iter().find(|record| record.task == lost.task).unwrap();
    assert_ne!(slot.worker, lost.worker, "who was not heard in time does not commit");
    assert!(proxy.lost() > 0 && unheard.log().contains("lease lost"), "{}", proxy.lost());
}

#[tokio::test]
async fn what_a_worker_said_before_it_was_cut_off_comes_late_and_acts_on_nobody() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    let zombie = worker_behind(&cluster, &proxy, "zombie");
    dataset(&cluster, &client).await;
    let job = submit(&client, jobs::train("model", jobs::training(ONE_LONG_SLOT.0, ONE_LONG_SLOT.1))).await;
    let held = started(&client, &job, "round-00000-slot").await;
    proxy.stall();
    let _other = cluster.task_worker("other");
    event(&client, &job, |e| e.task == held.task && e.what == TaskNews::Started && e.worker != held.worker).await;
    zombie.says("lease lost: silent").await;
    // Renewals and whatever else it said arrive while the other one works.
    proxy.mend();
    let records = ends_as_if_nothing_had_happened(&client, &job).await;
    let slot = records.iter().find(|record| record.task == held.task).unwrap();
    // On a busy machine the other one may lose it as well, and the first have it once more.
    assert!(slot.attempt > 1, "{slot:?}");
}

#[tokio::test]
async fn an_acknowledgement_that_gets_lost_costs_a_delivery_and_no_computation() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    let worker = worker_behind(&cluster, &proxy, "worker");
    let mut first = true;
    proxy.rule(move |frame: &mut Frame| match frame.payload() {
        b"+ACK" if frame.to_server && std::mem::take(&mut first) => Fate::Lost,
        _ => Fate::Passes,
    });
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    ends_as_if_nothing_had_happened(&client, &job).await;
    assert_eq!(proxy.lost(), 1);
    let events = told(&client, &job).await;
    let adopted =
        |event: &&likeness_contract::messages::TaskEvent| matches!(event.what, TaskNews::Done { adopted: true, .. });
    // The run may be over before the message comes again: then it was purged with the others.
    assert!(events.iter().filter(adopted).count() <= 1);
    assert_eq!(starts(&events, "scan"), 1, "{events:?}");
    assert!(!worker.log().contains("failed"), "{}", worker.log());
}

#[tokio::test]
async fn news_that_gets_lost_is_made_up_for_by_the_sweep() {
    let cluster = Cluster::start().await;
    let coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    let worker = worker_behind(&cluster, &proxy, "worker");
    proxy.rule(|frame: &mut Frame| {
        let of_scan = frame.to_server && frame.subject().ends_with(".scan.done");
        if of_scan { Fate::Lost } else { Fate::Passes }
    });
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    ends_as_if_nothing_had_happened(&client, &job).await;
    assert!(proxy.lost() > 0);
    worker.says("the attempt's last event was lost").await;
    let events = told(&client, &job).await;
    assert!(events.iter().all(|e| e.task.as_str() != "scan" || !matches!(e.what, TaskNews::Done { .. })), "{events:?}");
    assert!(!coordinator.log().contains("ERROR"), "{}", coordinator.log());
}

/// Wide enough a margin that a busy machine does not eat it.
const SLOW_LEASE: Duration = Duration::from_secs(6);

/// When a line of a log was written, as the log writes it.
fn moment_of(log: &str, text: &str) -> String {
    let line = log.lines().find(|line| line.contains(text)).unwrap_or_else(|| panic!("nowhere `{text}`: {log}"));
    line.split_whitespace().next().unwrap().to_string()
}

#[tokio::test]
async fn a_leader_that_is_cut_off_stops_before_another_begins() {
    let cluster = Cluster::start().await;
    let lease = SLOW_LEASE.as_millis().to_string();
    let proxy = Proxy::before(&cluster.broker.url()).await;
    let url = proxy.url().to_string();
    let first = cluster.coordinator_with("first", |command| {
        command.env("LIKENESS_NATS", url).env("LIKENESS_LEASE_MS", &lease);
    });
    let client = cluster.client().await;
    let second = cluster.coordinator_with("second", |command| {
        command.env("LIKENESS_LEASE_MS", &lease);
    });
    second.says("standing by").await;
    let _worker = cluster.task_worker("worker");
    dataset(&cluster, &client).await;
    let job = submit(&client, jobs::train("model", jobs::training(12, 10))).await;
    started(&client, &job, "round-00000-slot").await;
    proxy.stall();
    first.says("the lease is lost").await;
    second.says("this coordinator leads").await;
    let (ended, began) =
        (moment_of(&first.log(), "the lease is lost"), moment_of(&second.log(), "this coordinator leads"));
    assert!(ended < began, "the first led until {ended}, the second from {began} on");
    outcome(&client, &job, 1).await;
    proxy.mend();
    ends_as_if_nothing_had_happened(&client, &job).await;
}

#[tokio::test]
async fn a_task_of_a_newer_program_waits_for_an_upgraded_worker() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    // To this worker every task looks as if a newer coordinator had written it.
    proxy.rule(|frame: &mut Frame| {
        if !frame.to_server && frame.subject().starts_with("likeness.v1.job.") {
            frame.from_a_newer_program();
        }
        Fate::Passes
    });
    let mut old = worker_behind(&cluster, &proxy, "old");
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    old.says("given back for an upgraded worker").await;
    let upgraded = cluster.task_worker("upgraded");
    let records = ends_as_if_nothing_had_happened(&client, &job).await;
    assert!(records.iter().all(|record| upgraded.log().contains(record.worker.as_str())), "{records:?}");
    assert!(told(&client, &job).await.iter().all(|event| !matches!(event.what, TaskNews::Failed { .. })));
    // Given back with a delay each time: no storm, and no crash.
    let given_back = old.log().matches("given back for an upgraded worker").count();
    assert!(given_back < 60, "{given_back}");
    assert!(old.is_running(), "{}", old.log());
}
