//! The broker as `infra/nats/setup` configures it: everything works with least rights, and nothing else does.

use likeness_contract::ids::{JobId, RunNumber, WorkerId};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind, TaskMessage, TaskWork, task_ids};
use likeness_contract::messages::{JobEvent, JobNews};
use likeness_contract::subjects;
use likeness_link::{Bus, Client, ClientError, ErrorKind, login};
use likeness_tests::cluster::{done, outcome, submit};
use likeness_tests::{Cluster, faces, jobs, until};

/// What the broker refused so far, one line each.
fn refusals(cluster: &Cluster) -> Vec<String> {
    cluster.broker.log().lines().filter(|line| line.contains("Violation")).map(ToString::to_string).collect()
}

async fn bus(cluster: &Cluster, user: &str) -> Bus {
    Bus::connect(&cluster.nats_as(user), user).await.unwrap()
}

/// Waits until the broker has refused `user` this; that it does is all that is looked for.
async fn refused(cluster: &Cluster, user: &str, what: &str, subject: &str) {
    let seed = std::fs::read_to_string(cluster.nats_as(user).credentials.unwrap()).unwrap();
    let (key, subject) = (login::public_nkey(&seed).unwrap(), format!("Subject \"{subject}\""));
    let is_it = |line: &String| [what, key.as_str(), subject.as_str()].iter().all(|part| line.contains(part));
    let told = async || refusals(cluster).iter().any(is_it).then_some(());
    until(&format!("{user} is told: {what}, {subject}"), told).await;
}

async fn must_not_say(cluster: &Cluster, user: &str, subject: &str) {
    let bus = bus(cluster, user).await;
    bus.client().publish(subject.to_string(), "x".into()).await.unwrap();
    bus.client().flush().await.unwrap();
    refused(cluster, user, "Publish Violation", subject).await;
}

async fn must_not_hear(cluster: &Cluster, user: &str, subject: &str) {
    let bus = bus(cluster, user).await;
    let _listening = bus.client().subscribe(subject.to_string()).await.unwrap();
    bus.client().flush().await.unwrap();
    refused(cluster, user, "Subscription Violation", subject).await;
}

#[tokio::test]
async fn the_pipeline_runs_with_least_rights() {
    let cluster = Cluster::start_secured().await;
    let coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let worker = cluster.task_worker("worker");
    let searcher = cluster.worker("searcher", "search");
    let machine = cluster.worker("machine", "evaluate,search");
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;
    let pipeline = submit(&client, jobs::pipeline("first", jobs::training(6, 30), 15)).await;
    let ended = outcome(&client, &pipeline, 1).await;
    assert!(format!("{ended:?}").starts_with("Done"), "{ended:?}");

    // Another service searches, and follows no job.
    let reader = Client::connect(&cluster.nats_as("reader"), cluster.store_dir().to_str().unwrap()).await.unwrap();
    let request = jobs::search(&["Warm"], &[], 10);
    let whole = async || reader.search(&request).await.ok().filter(|found| found.coverage.share() == 1.0);
    assert_eq!(until("a reader's question is answered", whole).await.hits.len(), 10);

    // The command line as well, with progress and everything.
    for line in [
        vec!["status"],
        vec!["jobs", "list"],
        vec!["releases", "list"],
        vec!["reconcile"],
        vec!["jobs", "watch", "first"],
    ] {
        let told = cluster.cli(&line).await;
        assert_eq!(told.code, 0, "{line:?}: {}", told.err);
    }
    let asked = cluster.cli(&["search", "--with", "Warm", "-k", "3"]).await;
    assert_eq!(asked.code, 0, "{}", asked.err);
    for process in [worker, searcher, machine, coordinator] {
        process.terminate().await;
    }
    assert_eq!(refusals(&cluster), Vec::<String>::new(), "nobody needed more");
}

#[tokio::test]
async fn nobody_does_what_is_another_ones() {
    let cluster = Cluster::start_secured().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 60);

    // Work is published by coordinators alone, and decided on by operators alone.
    let (job, task) = (JobId::new("made-up").unwrap(), task_ids::scan());
    let subject = subjects::task(TaskKind::Ingest, DeviceClass::Any, Priority::Hi, &job, &task);
    let message = TaskMessage { job: job.clone(), run: RunNumber(1), task, work: TaskWork::IngestScan };
    for user in ["searcher", "machine", "operator"] {
        must_not_say(&cluster, user, &subject).await;
    }
    for user in ["worker", "reader"] {
        let error = bus(&cluster, user).await.publish_task(subject.clone(), &message).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused, "{user}: {error}");
        assert!(error.to_string().contains(&subject), "{user}: {error}");
    }
    let submitted = subjects::job_event(&job, "submitted");
    let what = JobNews::Submitted;
    let event = JobEvent { job, run: RunNumber(1), at_ms: 1, what };
    let error = bus(&cluster, "worker").await.publish_event(submitted, &event).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
    for user in ["worker", "searcher", "reader"] {
        let other = Client::connect(&cluster.nats_as(user), cluster.store_dir().to_str().unwrap()).await.unwrap();
        let refused = other.submit(jobs::ingest("faces-1", &root, 60)).await.unwrap_err();
        let ClientError::Link(error) = refused else { panic!("{user}: {refused}") };
        assert_eq!(error.kind, ErrorKind::Refused, "{user}: {error}");
    }

    // Aliases and the lease are the coordinator's.
    let alias = format!("$KV.{}.main", subjects::ALIASES_BUCKET);
    let lease = format!("$KV.{}.{}", subjects::LEASES_BUCKET, subjects::LEADER_KEY);
    for user in ["worker", "searcher", "operator", "reader"] {
        must_not_say(&cluster, user, &alias).await;
        must_not_say(&cluster, user, &lease).await;
        must_not_say(&cluster, user, "$JS.API.STREAM.DELETE.LIKENESS_JOBS").await;
        must_not_say(&cluster, user, "$JS.API.STREAM.PURGE.LIKENESS_JOBS").await;
    }

    // Nobody reads another's replies, or tasks that are not his to take.
    let operator = bus(&cluster, "operator").await.client().new_inbox();
    for user in ["worker", "searcher", "reader", "coordinator"] {
        must_not_hear(&cluster, user, "_INBOX.>").await;
        must_not_hear(&cluster, user, &operator).await;
        must_not_hear(&cluster, user, subjects::JOBS_ALL).await;
    }
    let worker = WorkerId::new("worker-1").unwrap();
    must_not_hear(&cluster, "worker", &subjects::leaf(&worker)).await;
    must_not_hear(&cluster, "reader", subjects::SEARCH).await;

    // Without a key, with another's key or without TLS nobody gets in; it is said once and clearly.
    let mut nobody = cluster.nats();
    nobody.credentials = None;
    assert_eq!(Bus::connect(&nobody, "nobody").await.unwrap_err().kind, ErrorKind::Refused);
    let strange = cluster.dir().join("strange.nk");
    let (seed, _) = login::new_nkey().unwrap();
    std::fs::write(&strange, seed).unwrap();
    let mut stranger = cluster.nats();
    stranger.credentials = Some(strange);
    let refused = Bus::connect(&stranger, "stranger").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused, "{refused}");
    let mut untrusting = cluster.nats();
    untrusting.ca = None;
    assert!(Bus::connect(&untrusting, "untrusting").await.is_err());

    // What is allowed works still.
    client.status().await.unwrap();
}
