//! Brokers that lose what they hold, or are set up wrongly.

use async_nats::jetstream::consumer::{FromConsumer, pull};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind};
use likeness_contract::subjects;
use likeness_link::Client;
use likeness_tests::cluster::{started, submit};
use likeness_tests::{Cluster, faces, jobs, until};

use super::{dataset, ends_as_if_nothing_had_happened};

async fn there(client: &Client, stream: &str) {
    until(&format!("`{stream}` is made again"), async || client.bus().jetstream().get_stream(stream).await.ok()).await;
}

#[tokio::test]
async fn whatever_is_deleted_on_the_broker_is_made_again() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let client = cluster.client().await;
    dataset(&cluster, &client).await;
    let bucket = |name: &str| format!("KV_{name}");
    let streams = [
        subjects::JOBS_STREAM.to_string(),
        subjects::EVENTS_STREAM.into(),
        subjects::DEAD_STREAM.into(),
        bucket(subjects::ALIASES_BUCKET),
        bucket(subjects::PLACEMENT_BUCKET),
        bucket(subjects::LEASES_BUCKET),
        bucket(subjects::PRESENCE_BUCKET),
    ];
    for (number, stream) in streams.iter().enumerate() {
        let job = submit(&client, jobs::train(&format!("model-{number}"), jobs::training(8, 10))).await;
        started(&client, &job, "round-00001-slot").await;
        client.bus().jetstream().delete_stream(stream).await.unwrap();
        ends_as_if_nothing_had_happened(&client, &job).await;
        there(&client, stream).await;
    }
    let said =
        until("all is well", async || Some(cluster.cli(&["reconcile"]).await).filter(|said| said.code == 0)).await;
    assert!(said.out.contains("nothing was missing"), "{}", said.out);
}

/// Nobody mends it by itself here: the coordinator looks once in ten minutes.
#[tokio::test]
async fn what_was_missing_is_mended_and_told_on_demand() {
    let cluster = Cluster::start().await;
    let slow = |command: &mut std::process::Command| {
        command.env("LIKENESS_ACK_WAIT_MS", "600000");
    };
    let _coordinator = cluster.coordinator_with("coordinator", slow);
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 60);
    let job = submit(&client, jobs::ingest("faces-1", &root, 30)).await;
    let stream = client.bus().jetstream().get_stream(subjects::JOBS_STREAM).await.unwrap();
    let published = async || (stream.get_info().await.ok()?.state.messages == 1).then_some(());
    until("the first task is published", published).await;
    client.bus().jetstream().delete_stream(subjects::DEAD_STREAM).await.unwrap();
    stream.purge().await.unwrap();
    let mut command = cluster.command("likeness");
    command.arg("reconcile");
    slow(&mut command);
    let said = likeness_tests::process::finish(command).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    assert_eq!(said.out, format!("made again: stream `{}`\n1 task published again\n", subjects::DEAD_STREAM));
    let _worker = cluster.worker_with("worker", "ingest", slow);
    ends_as_if_nothing_had_happened(&client, &job).await;
}

#[tokio::test]
async fn consumers_that_are_deleted_are_made_again_and_pulls_go_on() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    dataset(&cluster, &client).await;
    let jetstream = client.bus().jetstream();
    for kind in [TaskKind::Train, TaskKind::Embed] {
        let name = subjects::task_consumer(kind, DeviceClass::Cpu, Priority::Lo);
        jetstream.delete_consumer_from_stream(name, subjects::JOBS_STREAM).await.unwrap();
    }
    let job = submit(&client, jobs::train("model", jobs::training(8, 10))).await;
    ends_as_if_nothing_had_happened(&client, &job).await;
}

#[tokio::test]
async fn a_consumer_with_room_for_too_few_workers_says_so() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let jetstream = client.bus().jetstream();
    // As somebody might make it by hand: one waiting pull, where two workers wait.
    let name = subjects::task_consumer(TaskKind::Ingest, DeviceClass::Cpu, Priority::Lo);
    let stream = jetstream.get_stream(subjects::JOBS_STREAM).await.unwrap();
    let consumer = stream.get_consumer::<pull::Config>(&name).await.unwrap();
    let narrow = pull::Config {
        max_waiting: 1,
        ..pull::Config::try_from_consumer_config(consumer.cached_info().config.clone()).unwrap()
    };
    stream.delete_consumer(&name).await.unwrap();
    stream.create_consumer(narrow).await.unwrap();
    let workers = [cluster.worker("first", "ingest"), cluster.worker("second", "ingest")];
    let says =
        async || workers.iter().find(|worker| worker.log().contains("has room for 1 waiting requests")).map(|_| ());
    until("a worker says that it is refused", says).await;
    let root = faces::write(cluster.dir(), 120);
    let job = submit(&client, jobs::ingest("faces-1", &root, 60)).await;
    ends_as_if_nothing_had_happened(&client, &job).await;
}
