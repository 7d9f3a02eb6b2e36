//! The same training gives the same model, whoever computes it and whatever happens meanwhile.

use likeness_contract::documents::ModelManifest;
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{RunResult, TaskOutput, TrainRequest};
use likeness_contract::keys;
use likeness_contract::settings::{Optimizer, SgdSettings, TrainSettings};
use likeness_contract::weights::Header;
use likeness_link::Client;
use likeness_tests::cluster::{done, outcome, records, started, submit};
use likeness_tests::{Cluster, faces, jobs};

async fn weights(client: &Client, model: &JobId) -> Digest {
    let manifest: ModelManifest = client.store().require(&keys::model_manifest(model)).await.unwrap();
    let bytes = client.store().read(&manifest.weights).await.unwrap();
    assert_eq!(Digest::of(&bytes), manifest.weights.digest);
    manifest.weights.digest
}

/// Digests of all checkpoints, in order.
async fn checkpoints(client: &Client, job: &JobId) -> Vec<(String, Digest)> {
    let digest = |output: TaskOutput| match output {
        TaskOutput::Checkpoint(checkpoint) => Some(checkpoint.object.digest),
        _ => None,
    };
    let records = records(client, job).await;
    records.into_iter().filter_map(|r| Some((r.task.to_string(), digest(r.output)?))).collect()
}

/// By SGD, clipped: the state of the optimizer travels in the checkpoints.
fn with_momentum() -> TrainRequest {
    let training = jobs::training(16, 20);
    let optimizer = Optimizer::Sgd(SgdSettings::default());
    TrainRequest { train: TrainSettings { optimizer, clip_norm: 1.0, ..training.train }, ..training }
}

#[tokio::test]
async fn a_training_whose_workers_are_killed_gives_the_model_of_an_undisturbed_one() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let mut workers = vec![cluster.task_worker("worker-a"), cluster.task_worker("worker-b")];
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;
    let undisturbed = done(&client, jobs::train("undisturbed", with_momentum())).await;

    let disturbed = submit(&client, jobs::train("disturbed", with_momentum())).await;
    for round in 0..3 {
        let hit = started(&client, &disturbed, &format!("round-{round:05}-slot")).await;
        let holder = workers.iter().position(|worker| worker.log().contains(hit.worker.as_str()));
        workers.swap_remove(holder.expect("one of ours works on it")).kill();
        workers.push(cluster.task_worker(&format!("worker-{round}")));
    }
    assert!(matches!(outcome(&client, &disturbed, 1).await, RunResult::Done { .. }));
    assert_eq!(weights(&client, &disturbed).await, weights(&client, &undisturbed).await);
    assert_eq!(checkpoints(&client, &disturbed).await, checkpoints(&client, &undisturbed).await);
}

#[tokio::test]
async fn a_task_done_twice_by_two_workers_gives_the_same_bytes() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 30)).await;
    let model = done(&client, jobs::train("model", jobs::training(4, 10))).await;
    done(&client, jobs::train("twin", jobs::training(4, 10))).await;
    assert_eq!(weights(&client, &jobs::id("twin")).await, weights(&client, &model).await);

    let once = done(&client, jobs::embed("once", &model, 30)).await;
    let twice = done(&client, jobs::embed_anew("twice", &model, 30)).await;
    let shards = async |job: &JobId| {
        let records = records(&client, job).await;
        let digest = |output: TaskOutput| match output {
            TaskOutput::Shard { object, .. } => object.map(|object| object.digest),
            TaskOutput::IndexedShard { object, .. } => Some(object.digest),
            _ => None,
        };
        records.into_iter().filter_map(|r| digest(r.output)).collect::<Vec<_>>()
    };
    assert_eq!(shards(&once).await.len(), 4);
    assert_eq!(shards(&once).await, shards(&twice).await);
}

/// The weights of `model`, exported through the command line into the cluster's folder.
async fn export(cluster: &Cluster, model: &str) {
    let exported = cluster.cli(&["models", "export", model, "--out", "w.safetensors"]).await;
    assert!(exported.code == 0, "{}", exported.err);
}

#[tokio::test]
async fn an_exported_model_is_a_start_for_the_next_and_a_held_backbone_stays_as_it_is() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;
    done(&client, jobs::train("first", jobs::training(1, 20))).await;
    export(&cluster, "first").await;

    let settings =
        ["--recipe", "article", "--embedding-dim", "16", "--input-px", "32", "--batch-size", "16", "--epochs", "1"];
    let start = ["train", "--id", "second", "--init", "w.safetensors", "--freeze", "backbone"];
    let trained = cluster.cli(&[&start[..], &settings].concat()).await;
    assert!(trained.code == 0, "{}", trained.err);
    assert!(trained.err.contains("all else starts fresh"), "{}", trained.err);

    let stem = async |model: &str| {
        let manifest: ModelManifest = client.store().require(&keys::model_manifest(&jobs::id(model))).await.unwrap();
        let bytes = client.store().read(&manifest.weights).await.unwrap();
        let header = Header::parse(&bytes).unwrap();
        let value = |name: &str| {
            let [from, to] = header.tensors[name].data_offsets;
            bytes[header.data_start..][from..to].to_vec()
        };
        (value("image.conv1.weight"), value("image.fc.weight"))
    };
    let ((first, head), (second, other_head)) = (stem("first").await, stem("second").await);
    assert!(first == second, "the backbone was held");
    assert!(head != other_head, "the head learned");

    let wrong = cluster.cli(&["train", "--init", "w.safetensor"]).await;
    assert!(wrong.code == 64 && wrong.err.contains("did you mean `w.safetensors`?"), "{}", wrong.err);
    let wrong = cluster.cli(&["train", "--init", "w.safetensors", "--architecture", "resnet18"]).await;
    assert!(wrong.code == 64 && wrong.err.contains("--architecture cnn-s"), "{}", wrong.err);
}
