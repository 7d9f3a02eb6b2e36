//! Stores that fail, and what a crash leaves in them.

use std::collections::BTreeSet;

use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::Digest;
use likeness_contract::keys;
use likeness_link::Client;
use likeness_tests::cluster::{done, started, submit};
use likeness_tests::galleries::Made;
use likeness_tests::meddling::Fault;
use likeness_tests::{Cluster, faces, jobs, until};

use super::{dataset, ends_as_if_nothing_had_happened, shown};

/// Digests of the parts of a version of `faces`.
async fn parts(client: &Client, version: &str) -> Vec<Digest> {
    let key = keys::dataset_manifest(&jobs::name("faces"), &jobs::id(version));
    let manifest: DatasetManifest = client.store().require(&key).await.unwrap();
    manifest.parts.into_iter().map(|part| part.object.digest).collect()
}

#[tokio::test]
async fn a_store_that_fails_before_and_after_success_leaves_what_a_good_one_leaves() {
    let cluster = Cluster::start_over_s3().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let root = faces::write(cluster.dir(), 120);
    let undisturbed = submit(&client, jobs::ingest("undisturbed", &root, 12)).await;
    ends_as_if_nothing_had_happened(&client, &undisturbed).await;

    let mut number = 0;
    let meddling = cluster.s3.as_ref().unwrap().meddling.clone();
    meddling.rule(move |method, _key| {
        number += 1;
        match (method, number % 6) {
            ("PUT", 0 | 3) => Fault::Done("503 Service Unavailable"),
            ("PUT", 1) => Fault::Refused("503 Service Unavailable"),
            ("PUT", 4) => Fault::Refused("409 Conflict"),
            ("GET" | "HEAD", 2) => Fault::Refused("503 Service Unavailable"),
            _ => Fault::None,
        }
    });
    let job = submit(&client, jobs::ingest("disturbed", &root, 12)).await;
    ends_as_if_nothing_had_happened(&client, &job).await;
    meddling.stop();
    assert!(meddling.struck() > 10, "{}", meddling.struck());
    assert_eq!(parts(&client, "disturbed").await, parts(&client, "undisturbed").await);
    assert_eq!(shown(&client, &job).await.troubles, []);
}

#[tokio::test]
async fn what_a_crash_leaves_between_data_and_record_is_served_by_nobody_and_collected() {
    let cluster = Cluster::start_over_s3().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    // One way to compute convolutions and another: the second attempt ends in other bytes.
    let worker = |name: &str, winograd: &'static str| {
        cluster.worker_with(name, "ingest,train,embed,evaluate", move |command| {
            command.env("LIKENESS_WINOGRAD", winograd);
        })
    };
    let first = worker("first", "off");
    dataset(&cluster, &client).await;
    let model = done(&client, jobs::train("model", jobs::training(2, 10))).await;
    let s3 = cluster.s3.as_ref().unwrap();
    s3.meddling.rule(|method, key| match method {
        "PUT" if key.ends_with("/tasks/shard-00000.json") => Fault::Swallowed,
        _ => Fault::None,
    });
    let job = submit(&client, jobs::embed("gallery", &model, 60)).await;
    until("the data is there and the record is under way", async || (s3.meddling.struck() > 0).then_some(())).await;
    let shards = |keys: Vec<String>| -> BTreeSet<String> {
        keys.into_iter().filter(|key| key.starts_with("likeness/galleries/faces/gallery/shard-")).collect()
    };
    let left = shards(s3.keys());
    assert_eq!(left.len(), 1, "{left:?}");
    first.kill();
    s3.meddling.stop();

    let _second = worker("second", "on");
    let _searcher = cluster.worker("searcher", "search");
    ends_as_if_nothing_had_happened(&client, &job).await;
    let all = shards(s3.keys());
    assert_eq!(all.len(), 3, "the second attempt was to end in other bytes: {all:?}");
    client.promote(jobs::name("main"), jobs::generation(&job), None).await.unwrap();
    let ask =
        async || client.search(&jobs::search(&["Warm"], &[], 200)).await.ok().filter(|a| a.coverage.share() == 1.0);
    let answer = until("the gallery is searched", ask).await;
    assert_eq!(answer.hits.len(), 120, "each item once");

    let collected = cluster.cli(&["retention", "--apply"]).await;
    assert_eq!(collected.code, 0, "{}", collected.err);
    let kept = shards(s3.keys());
    assert_eq!(all.difference(&kept).collect::<Vec<_>>(), left.iter().collect::<Vec<_>>(), "{}", collected.out);
    assert!(s3.keys().contains(&"likeness/datasets/faces/faces-1/about.json".to_string()), "nothing else goes");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_coordinator_on_a_store_that_it_has_never_seen_takes_up_all_that_is_there() {
    let mut cluster = Cluster::start().await;
    let coordinator = cluster.coordinator("coordinator");
    let worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    dataset(&cluster, &client).await;
    let made = Made { name: "made-1", rows: 60, dim: 8, shards: 2 }.store(&cluster.store().await).await;
    client.promote(jobs::name("main"), made.clone(), None).await.unwrap();
    let job = submit(&client, jobs::train("model", jobs::training(16, 10))).await;
    started(&client, &job, "round-00001-slot").await;
    worker.kill();
    coordinator.kill();

    // Another broker that knows nothing, and the store in another place.
    cluster.broker.wipe();
    let elsewhere = cluster.dir().join("elsewhere");
    copy(&cluster.store_dir(), &elsewhere);
    std::fs::remove_dir_all(cluster.store_dir()).unwrap();
    std::fs::rename(&elsewhere, cluster.store_dir()).unwrap();
    let _coordinator = cluster.coordinator("new-coordinator");
    let _worker = cluster.task_worker("new-worker");
    let _searcher = cluster.worker("searcher", "search");
    let client = cluster.client().await;
    ends_as_if_nothing_had_happened(&client, &job).await;
    let listed: BTreeSet<String> = client.list(10).await.unwrap().into_iter().map(|job| job.job.to_string()).collect();
    assert_eq!(listed, BTreeSet::from(["faces-1".to_string(), "model".to_string()]));
    let answer = until("the release is served", async || client.search(&jobs::search(&["Warm"], &[], 5)).await.ok());
    assert_eq!(answer.await.hits.len(), 5);
}
