//! What processes tell Prometheus.

use std::process::Command;

use likeness_tests::cluster::done;
use likeness_tests::galleries::Made;
use likeness_tests::{Cluster, Process, faces, jobs, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Lets a process tell its metrics on a free port.
fn on_a_free_port(command: &mut Command) {
    command.env("LIKENESS_METRICS", "127.0.0.1:0");
}

/// Where a process tells them, as its log says.
async fn address(process: &Process) -> String {
    process.says("metrics are told").await;
    let log = process.log();
    let at = log.split("http://").nth(1).and_then(|rest| rest.split("/metrics").next());
    at.unwrap_or_else(|| panic!("no address: {log}")).to_string()
}

async fn scraped(process: &Process) -> String {
    let mut stream = TcpStream::connect(address(process).await).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: likeness\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("200 OK") && head.contains("application/openmetrics-text"), "{head}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    text.to_string()
}

/// The value of a metric, with its labels as written; none when it is not told.
fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

async fn reaches(process: &Process, metric: &str, least: f64) {
    let told = async || value(&scraped(process).await, metric).filter(|value| *value >= least);
    until(&format!("{metric} reaches {least}"), told).await;
}

#[tokio::test]
async fn every_process_tells_what_it_did() {
    let cluster = Cluster::start().await;
    let coordinator = cluster.coordinator_with("coordinator", on_a_free_port);
    let client = cluster.client().await;
    let worker = cluster.worker_with("worker", "ingest,train,embed,evaluate", on_a_free_port);
    let searcher = cluster.worker_with("searcher", "search", on_a_free_port);
    let root = faces::write(cluster.dir(), 40);
    std::fs::write(faces::image(&root, 7), b"no image").unwrap();
    done(&client, jobs::ingest("faces-1", &root, 20)).await;
    let made = Made { name: "made-1", rows: 60, dim: 8, shards: 2 }.store(&cluster.store().await).await;
    until("a release", async || client.promote(jobs::name("main"), made.clone(), None).await.ok()).await;
    until("an answer", async || client.search(&jobs::search(&["Warm"], &[], 5)).await.ok()).await;

    reaches(&coordinator, "likeness_leading", 1.0).await;
    reaches(&coordinator, "likeness_tasks_published_total", 4.0).await;
    reaches(&coordinator, "likeness_runs_total{result=\"done\"}", 1.0).await;
    reaches(&coordinator, "likeness_task_events_total{event=\"done\"}", 4.0).await;
    reaches(&coordinator, "likeness_workers{kind=\"search\"}", 1.0).await;
    reaches(&coordinator, "likeness_tasks_waiting{kind=\"train\"}", 0.0).await;
    reaches(&worker, "likeness_attempts_total{end=\"done\"}", 4.0).await;
    reaches(&worker, "likeness_images_total{kind=\"ingest\"}", 39.0).await;
    reaches(&worker, "likeness_skipped_images_total", 1.0).await;
    reaches(&searcher, "likeness_searches_total{result=\"found\"}", 1.0).await;
    reaches(&searcher, "likeness_search_seconds_count{stage=\"total\"}", 1.0).await;
    reaches(&searcher, "likeness_shard_load_seconds_count", 2.0).await;
    reaches(&searcher, "likeness_coverage", 1.0).await;
}

/// `promtool` belongs to Prometheus; machines without it leave this out.
#[tokio::test]
async fn prometheus_understands_what_is_told_and_what_is_watched() {
    let infra = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/observability");
    let rules = Command::new("promtool").args(["check", "config", "prometheus.yml"]).current_dir(infra).output();
    let Ok(rules) = rules else { return eprintln!("skipped: there is no promtool") };
    assert!(rules.status.success(), "{}", String::from_utf8_lossy(&rules.stderr));
    let dashboard: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{infra}/dashboard.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}
