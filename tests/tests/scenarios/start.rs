//! What a program says that cannot start, and how it exits.

use std::time::Duration;

use likeness_tests::process::{Finished, Process, binary, finish};
use likeness_tests::s3::S3;
use likeness_tests::{Cluster, jobs, until};

const NOBODY: &str = "nats://127.0.0.1:9";

async fn run(program: &str, args: &[&str]) -> Finished {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(binary(program));
    command.args(args).current_dir(dir.path()).env_remove("LIKENESS_NATS").env_remove("LIKENESS_STORE");
    finish(command).await
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_within_seconds() {
    let cases: [(&str, &[&str]); 4] = [
        ("likeness", &["--nats", NOBODY, "status"]),
        ("likeness", &["--nats", NOBODY, "search", "--with", "Warm"]),
        ("likeness", &["--nats", NOBODY, "coordinator"]),
        ("likeness-worker", &["--nats", NOBODY]),
    ];
    for (program, args) in cases {
        let ended = run(program, args).await;
        assert_eq!(ended.code, 69, "{program} {args:?}: {}", ended.err);
        assert!(ended.err.contains("127.0.0.1:9"), "{program} {args:?}: {}", ended.err);
        assert!(ended.took < Duration::from_secs(15), "{program} {args:?} took {:?}", ended.took);
    }
}

#[tokio::test]
async fn a_mistake_in_a_flag_is_answered_with_the_nearest() {
    let ended = run("likeness", &["serach"]).await;
    assert_eq!(ended.code, 64, "{}", ended.err);
    assert!(ended.err.contains("search"), "{}", ended.err);
    let ended = run("likeness", &["search", "--wiht", "Warm"]).await;
    assert_eq!(ended.code, 64, "{}", ended.err);
    assert!(ended.err.contains("--with"), "{}", ended.err);
    let ended = run("likeness-worker", &["--roles", "trian"]).await;
    assert_eq!(ended.code, 64, "{}", ended.err);
    assert!(ended.err.contains("train"), "{}", ended.err);
}

#[tokio::test]
async fn a_setting_that_cannot_be_ends_in_64_whoever_notices() {
    let cases: [(&str, &[&str]); 9] = [
        ("likeness", &["--nats", "http://127.0.0.1:80", "status"]),
        ("likeness", &["--nats", "", "status"]),
        ("likeness", &["--nats", NOBODY, "--credentials", "/nope", "status"]),
        ("likeness", &["--log", "likeness=loud", "status"]),
        ("likeness", &["up", "--device", "foo"]),
        ("likeness", &["up", "--port", "0"]),
        ("likeness", &["up", "--store", "/x"]),
        ("likeness-worker", &["--credentials", "/nope"]),
        ("likeness-worker", &["--log", "likeness=loud"]),
    ];
    for (program, args) in cases {
        let ended = run(program, args).await;
        assert_eq!(ended.code, 64, "{program} {args:?}: {}", ended.err);
    }
    let mut command = std::process::Command::new(binary("likeness"));
    command.arg("status").env("LIKENESS_LOG_FORMAT", "xml").env("LIKENESS_NATS", NOBODY);
    let ended = finish(command).await;
    assert_eq!(ended.code, 64, "{}", ended.err);
    assert!(ended.err.contains("LIKENESS_LOG_FORMAT"), "{}", ended.err);
}

#[tokio::test]
async fn a_command_does_not_make_the_store_that_it_looks_for() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    cluster.client().await;
    let wrong = cluster.dir().join("elsewhere");
    let ended = cluster.cli(&["--store", wrong.to_str().unwrap(), "status"]).await;
    assert_eq!(ended.code, 69, "{}", ended.err);
    assert!(ended.err.contains("there is no store in"), "{}", ended.err);
    assert!(!wrong.exists());
    for (store, said) in [("memory:", "memory:"), ("ftp://host/x", "ftp")] {
        let ended = cluster.cli(&["--store", store, "status"]).await;
        assert_eq!(ended.code, 64, "{}", ended.err);
        assert!(ended.err.contains(said), "{}", ended.err);
    }
}

#[tokio::test]
async fn a_job_that_no_worker_takes_says_so() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    cluster.client().await;
    let asked = ["ingest", "celeba", "/nowhere", "--id", "waits", "--detach"];
    assert_eq!(cluster.cli(&asked).await.code, 0);
    for command in [&["jobs", "show", "waits"][..], &["status"]] {
        let waits = "waiting for a worker that ingests: none is running";
        until(waits, async || cluster.cli(command).await.out.contains(waits).then_some(())).await;
    }
}

#[tokio::test]
async fn an_impossible_store_is_refused() {
    let cluster = Cluster::start().await;
    let nats = cluster.broker.url();
    for program in ["likeness", "likeness-worker"] {
        let mut args = vec!["--nats", &nats, "--store", "ftp://host/x"];
        if program == "likeness" {
            args.push("coordinator");
        }
        let ended = run(program, &args).await;
        assert_eq!(ended.code, 64, "{program}: {}", ended.err);
        assert!(ended.err.contains("ftp://host/x"), "{program}: {}", ended.err);
    }
}

#[tokio::test]
async fn a_store_that_ignores_create_if_absent_is_refused_and_one_that_honours_it_is_taken() {
    let cluster = Cluster::start().await;
    let (careless, honest) = (S3::start(true).await, S3::start(false).await);
    let program = |name: &str, s3: &S3| {
        let mut command = cluster.command(name);
        command.env("LIKENESS_STORE", s3.url()).env("LIKENESS_LOG", "info");
        s3.found_by(&mut command);
        if name == "likeness" {
            command.arg("coordinator");
        }
        command
    };
    for name in ["likeness", "likeness-worker"] {
        let ended = finish(program(name, &careless)).await;
        assert_ne!(ended.code, 0, "{name}");
        assert!(ended.err.contains("create-if-absent"), "{name}: {}", ended.err);
    }
    assert!(careless.keys().is_empty(), "nothing is left behind: {:?}", careless.keys());

    let logs = cluster.dir().join("logs");
    let coordinator = Process::start("coordinator", &logs, program("likeness", &honest));
    coordinator.says("this coordinator leads").await;
    let worker = Process::start("worker", &logs, program("likeness-worker", &honest));
    worker.says("ready").await;
    assert!(honest.keys().is_empty(), "probes clean up: {:?}", honest.keys());
}

#[tokio::test]
async fn without_a_coordinator_the_command_line_says_so() {
    let cluster = Cluster::start().await;
    let ended = cluster.cli(&["jobs", "list"]).await;
    assert_eq!(ended.code, 69, "{}", ended.err);
    assert!(ended.err.contains("coordinator"), "{}", ended.err);
}

#[tokio::test]
async fn a_job_that_cannot_be_is_refused_before_it_starts() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let error = client.submit(jobs::train("model", jobs::training(1, 10))).await.unwrap_err();
    assert!(error.to_string().contains("faces"), "{error}");
    let unknown = cluster.cli(&["jobs", "show", "nothing"]).await;
    assert_eq!(unknown.code, 64, "{}", unknown.err);
}
