//! A broker of three nodes with three copies of every stream.

use likeness_contract::keys;
use likeness_contract::subjects;
use likeness_link::Client;
use likeness_tests::cluster::{records, started, submit};
use likeness_tests::{Broker, Cluster, Process, faces, jobs, until};

use super::{dataset, ends_as_if_nothing_had_happened};

async fn start() -> (Cluster, Process, Client) {
    let cluster = Cluster::start_trio().await;
    let coordinator = cluster.coordinator_with("coordinator", |command| {
        command.env("LIKENESS_STREAM_REPLICAS", "3");
    });
    let client = cluster.client().await;
    (cluster, coordinator, client)
}

/// The node that leads a stream.
async fn leader(client: &Client, stream: &str) -> String {
    let named = async || {
        let stream = client.bus().jetstream().get_stream(stream).await.ok()?;
        stream.cached_info().cluster.as_ref()?.leader.clone()
    };
    until("the stream has a leader", named).await
}

fn node<'a>(cluster: &'a mut Cluster, name: &str) -> &'a mut Broker {
    match name {
        "node-0" => &mut cluster.broker,
        "node-1" => &mut cluster.others[0],
        _ => &mut cluster.others[1],
    }
}

async fn copies(client: &Client, stream: &str) -> usize {
    let found = async || client.bus().jetstream().get_stream(stream).await.ok();
    until("the stream is there", found).await.cached_info().config.num_replicas
}

#[tokio::test]
#[ignore = "takes two minutes, for elections of three brokers: run it with --run-ignored only"]
async fn a_cluster_of_brokers_may_lose_a_node_its_leader_and_its_quorum() {
    let (mut cluster, _coordinator, client) = start().await;
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    dataset(&cluster, &client).await;

    let job = submit(&client, jobs::train("without-one", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    let led_by = leader(&client, subjects::JOBS_STREAM).await;
    let other = ["node-0", "node-1", "node-2"].into_iter().find(|name| *name != led_by).unwrap();
    node(&mut cluster, other).kill();
    ends_as_if_nothing_had_happened(&client, &job).await;
    node(&mut cluster, other).start_again();

    let job = submit(&client, jobs::train("without-leader", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    let led_by = leader(&client, subjects::JOBS_STREAM).await;
    node(&mut cluster, &led_by).kill();
    ends_as_if_nothing_had_happened(&client, &job).await;
    node(&mut cluster, &led_by).start_again();

    let job = submit(&client, jobs::train("without-quorum", jobs::training(12, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    cluster.others.iter_mut().for_each(Broker::kill);
    // Whoever works on a task can't renew, and nobody hears of another.
    let outcomes = keys::job_outcomes(&job);
    until("nobody answers", async || client.status().await.err()).await;
    assert!(client.store().list(&outcomes).await.unwrap().is_empty());
    cluster.others.iter_mut().for_each(Broker::start_again);
    ends_as_if_nothing_had_happened(&client, &job).await;
    for stream in [subjects::JOBS_STREAM, subjects::EVENTS_STREAM, &format!("KV_{}", subjects::LEASES_BUCKET)] {
        assert_eq!(copies(&client, stream).await, 3, "{stream}");
    }
}

#[tokio::test]
async fn what_is_published_while_a_stream_changes_its_leader_lies_there_once() {
    let (cluster, coordinator, client) = start().await;
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 2)).await;
    let step_down = format!("$JS.API.STREAM.LEADER.STEPDOWN.{}", subjects::JOBS_STREAM);
    let mut changes = 0;
    for more in [1, 10, 20, 30, 40, 50] {
        let reached = async || (records(&client, &job).await.len() >= more).then_some(());
        until(&format!("{more} tasks are done"), reached).await;
        changes += u32::from(client.bus().client().request(step_down.clone(), "".into()).await.is_ok());
    }
    assert!(changes > 0);
    let records = ends_as_if_nothing_had_happened(&client, &job).await;
    assert_eq!(records.len(), 62, "a scan, sixty parts, a manifest");
    assert!(!coordinator.log().contains("ERROR"), "{}", coordinator.log());
}
