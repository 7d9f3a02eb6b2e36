//! The same training gives the same model, whoever computes it and whatever happens meanwhile.

use std::process::Command;

use likeness_contract::documents::ModelManifest;
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{RunResult, TaskOutput, TrainRequest};
use likeness_contract::keys;
use likeness_contract::settings::{Optimizer, RoundSettings, SgdSettings, TrainSettings};
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

/// Three slots a round, with an outer optimizer.
fn in_rounds(change: impl FnOnce(&mut RoundSettings)) -> TrainRequest {
    let training = with_momentum();
    let averaging = RoundSettings::averaging(3, training.train.optimizer.inner());
    let mut rounds = RoundSettings { outer_lr: 0.75, outer_momentum: 0.5, ..averaging };
    change(&mut rounds);
    let train = TrainSettings { optimizer: Optimizer::Rounds(rounds), inner_steps: 8, ..training.train };
    TrainRequest { train, ..training }
}

/// Digests of all that slots and outer steps left, in order.
async fn of_rounds(client: &Client, job: &JobId) -> Vec<(String, Vec<Digest>)> {
    let digests = |output: TaskOutput| match output {
        TaskOutput::Slot { checkpoint, state } => vec![checkpoint.object.digest, state.digest],
        TaskOutput::Round { checkpoint, momentum, .. } => {
            [Some(checkpoint.object), momentum].into_iter().flatten().map(|object| object.digest).collect()
        }
        _ => Vec::new(),
    };
    records(client, job).await.into_iter().map(|record| (record.task.to_string(), digests(record.output))).collect()
}

#[tokio::test]
async fn slots_whose_workers_are_killed_in_every_round_give_the_model_of_an_undisturbed_training() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let mut workers = vec![cluster.task_worker("worker-a"), cluster.task_worker("worker-b")];
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;
    let undisturbed = done(&client, jobs::train("undisturbed", in_rounds(|_| ()))).await;

    let disturbed = submit(&client, jobs::train("disturbed", in_rounds(|_| ()))).await;
    let rounds = 4;
    for round in 0..rounds {
        // Now a slot's worker, now the outer step's.
        let what = if round % 2 == 0 { "slot" } else { "outer" };
        let hit = started(&client, &disturbed, &format!("round-{round:05}-{what}")).await;
        if let Some(holder) = workers.iter().position(|worker| worker.log().contains(hit.worker.as_str())) {
            workers.swap_remove(holder).kill();
            workers.push(cluster.task_worker(&format!("worker-{round}")));
        }
    }
    assert!(matches!(outcome(&client, &disturbed, 1).await, RunResult::Done { .. }));
    assert_eq!(weights(&client, &disturbed).await, weights(&client, &undisturbed).await);
    assert_eq!(of_rounds(&client, &disturbed).await, of_rounds(&client, &undisturbed).await);
    let manifest: ModelManifest = client.store().require(&keys::model_manifest(&disturbed)).await.unwrap();
    assert_eq!(manifest.rounds.len(), rounds);
    assert!(manifest.rounds.iter().all(|round| round.late.is_empty()), "{:?}", manifest.rounds);
}

#[tokio::test]
async fn rounds_with_a_quorum_go_on_without_a_worker_that_stands_still_and_with_one_that_joins() {
    let cluster = Cluster::start().await;
    // Long enough that nobody else gets the message of a worker that stands still.
    let long = |command: &mut Command| {
        command.env("LIKENESS_ACK_WAIT_MS", "120000");
    };
    let _coordinator = cluster.coordinator_with("coordinator", long);
    let client = cluster.client().await;
    let worker = |name: &str| cluster.worker_with(name, "ingest,train,embed,evaluate", long);
    let still = worker("still");
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;

    let quorum = in_rounds(|rounds| (rounds.slots, rounds.quorum, rounds.deadline_s) = (2, 1, 1));
    let job = submit(&client, jobs::train("quorum", quorum)).await;
    let hit = started(&client, &job, "round-00000-slot").await;
    still.freeze();
    let _others = [worker("joins"), worker("joins-too")];
    assert!(matches!(outcome(&client, &job, 1).await, RunResult::Done { .. }));
    still.thaw();

    let manifest: ModelManifest = client.store().require(&keys::model_manifest(&job)).await.unwrap();
    let slot: u32 = hit.task.as_str().rsplit('-').next().and_then(|slot| slot.parse().ok()).expect("a slot's number");
    let late: Vec<_> = manifest.rounds.iter().map(|round| round.late.clone()).collect();
    assert_eq!(late[0], [slot], "{late:?}");
    assert!(late.len() == 5 && late.iter().all(|late| late.len() < 2), "{late:?}");
    let shown = cluster.cli(&["jobs", "show", "quorum"]).await;
    assert!(shown.out.contains("5 of 5 rounds done") && shown.out.contains("late so far"), "{}", shown.out);
    let shown = cluster.cli(&["models", "show", "quorum"]).await;
    assert!(shown.out.contains("of 2 slots") && !shown.out.contains("no slot was late"), "{}", shown.out);
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
