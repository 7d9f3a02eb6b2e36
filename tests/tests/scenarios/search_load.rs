//! Searchers under load: switches of the release, and the figures that depend on several of them.
//!
//! Figures are printed by tests that run only when asked for, on a machine that does nothing else:
//! `cargo test -p likeness-tests --test scenarios figure -- --ignored --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use likeness_contract::ids::Name;
use likeness_contract::search::{SearchRequest, SearchResults};
use likeness_link::Client;
use likeness_tests::galleries::Made;
use likeness_tests::process::Finished;
use likeness_tests::{Cluster, Process, jobs, until};

/// Switches of the release.
const SWITCHES: usize = 20;

fn searcher(cluster: &Cluster, name: &str) -> Process {
    let mut command = cluster.command("likeness-worker");
    command.args(["--roles", "search", "--threads", "1", "--replicas", "2", "--id", name]);
    command.env("LIKENESS_LOG", "info");
    Process::start(name, &cluster.dir().join("logs"), command)
}

fn main_alias() -> Name {
    jobs::name("main")
}

/// Waits until so many searchers hold every shard of the generation twice.
async fn placed(client: &Client, made: Made, searchers: usize) {
    let ready = async || {
        let placement = client.status().await.ok()?.placement;
        let held = placement.iter().flat_map(|searcher| &searcher.held);
        let held: Vec<_> =
            held.filter(|held| held.generation == made.generation() && !held.shards.is_empty()).collect();
        let shards: usize = held.iter().map(|held| held.shards.len()).sum();
        (held.len() == searchers && shards == 2 * made.shards).then_some(())
    };
    until(&format!("{searchers} searchers hold every shard twice"), ready).await;
}

/// Every answer is whole and of one release, whatever is served.
fn is_of_one_release(results: &SearchResults) {
    let of = format!("{}-", results.generation.generation);
    assert!(results.hits.iter().all(|hit| hit.item.starts_with(&of)), "an answer of {of} has {:?}", results.hits);
    assert_eq!((results.hits.len(), results.coverage.share()), (10, 1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_switches_under_load_are_not_noticed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let [old, new] = ["old", "new"].map(|name| Made { name, rows: 2_000, dim: 16, shards: 6 });
    for made in [old, new] {
        made.store(client.store()).await;
    }
    let _searchers = [searcher(&cluster, "first"), searcher(&cluster, "second")];
    client.promote(main_alias(), old.generation(), None).await.expect("a first release");
    placed(&client, old, 2).await;
    let question = SearchRequest { min_coverage: 1.0, deadline_ms: 20_000, ..jobs::search(&["Warm"], &["Disc"], 10) };
    until("a first answer", async || client.search(&question).await.ok()).await;

    let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (client, question, over, answers) = (client.clone(), question.clone(), over.clone(), answers.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let results = client.search(&question).await.expect("an answer at any time");
                    is_of_one_release(&results);
                    let odd = results.release % 2 == 1;
                    assert_eq!(results.generation, if odd { old } else { new }.generation(), "{}", results.release);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for switch in 0..SWITCHES {
        let before = answers.load(Ordering::Relaxed);
        let release = match switch % 2 {
            0 => client.promote(main_alias(), new.generation(), None).await,
            _ => client.rollback(main_alias(), None).await,
        };
        let release = release.expect("it is switched");
        assert_eq!(release.number, switch as u64 + 2);
        until("the new release answers", async || {
            let results = client.search(&question).await.expect("an answer at any time");
            (results.release == release.number && answers.load(Ordering::Relaxed) > before).then_some(())
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.await.expect("no error and no mixed answer");
    }
    println!("{SWITCHES} switches, {} answers", answers.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_searcher_is_asked_around() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let made = Made { name: "only", rows: 2_000, dim: 16, shards: 6 };
    made.store(client.store()).await;
    let searchers = ["first", "second", "third"].map(|name| searcher(&cluster, name));
    until("a release", async || client.promote(main_alias(), made.generation(), None).await.ok()).await;
    placed(&client, made, 3).await;
    let question = SearchRequest { min_coverage: 1.0, deadline_ms: 12_000, ..jobs::search(&["Warm"], &["Disc"], 10) };
    let expected = until("a first answer", async || client.search(&question).await.ok()).await.hits;

    let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (client, question, expected) = (client.clone(), question.clone(), expected.clone());
            let (over, answers) = (over.clone(), answers.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let results = client.search(&question).await.expect("an answer at any time");
                    assert_eq!(results.hits, expected);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let answered = async |more: usize| {
        let enough = answers.load(Ordering::Relaxed) + more;
        until("answers", async || (answers.load(Ordering::Relaxed) >= enough).then_some(())).await;
    };
    answered(40).await;
    searchers[0].freeze();
    // More than what may be asked twice at once, so that it has met the frozen one as root and as leaf.
    answered(60).await;
    searchers[0].thaw();
    answered(20).await;
    over.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.await.expect("no failed query");
    }
}

/// Four searchers with every shard of 200,000 rows of 64 dimensions twice.
struct Four {
    cluster: Cluster,
    searchers: Vec<Process>,
    _coordinator: Process,
}

impl Four {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let coordinator = cluster.coordinator("coordinator");
        let client = cluster.client().await;
        let made = Made { name: "large", rows: 200_000, dim: 64, shards: 16 };
        made.store(client.store()).await;
        let searchers = ["one", "two", "three", "four"].map(|name| searcher(&cluster, name));
        until("a release", async || client.promote(main_alias(), made.generation(), None).await.ok()).await;
        placed(&client, made, 4).await;
        Self { cluster, searchers: searchers.into(), _coordinator: coordinator }
    }

    async fn bench(&self, args: &[&str]) -> serde_json::Value {
        let Finished { out, err, .. } = self.cluster.cli(&[&["bench", "search", "--json"], args].concat()).await;
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("no figures: {err}"))
    }
}

#[tokio::test]
#[ignore = "a figure, for a machine that does nothing else"]
async fn figure_beyond_the_slowest_leaf() {
    let four = Four::start().await;
    for rate in ["20", "100"] {
        let figures = four.bench(&["--rate", rate, "--duration", "10"]).await;
        let [beyond, latency, stages] = ["beyond_leaf", "latency", "stages"].map(|name| &figures[name]);
        println!("{rate} a second: beyond the slowest leaf {beyond}\n  latency {latency}\n  stages {stages}");
        assert_eq!(figures["errors"], serde_json::json!({}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a figure, for a machine that does nothing else"]
async fn figure_one_of_four_killed_at_sixty_per_cent_of_the_capacity() {
    let mut four = Four::start().await;
    let swept = four.bench(&["--sweep", "--rate", "150", "--duration", "2.5", "--warmup", "0.5"]).await;
    let capacity = swept["capacity"].as_f64().expect("a capacity");
    for step in swept["steps"].as_array().expect("steps") {
        println!(
            "  {} a second: {} answered, errors {}, {}",
            step["rate"], step["achieved"], step["errors"], step["latency"]
        );
    }
    assert!(capacity > 0.0, "no rate was borne");
    let rate = (capacity * 0.6).to_string();
    println!("capacity {capacity:.0} a second, asked {rate}");
    let victim = four.searchers.pop().expect("four searchers");
    let kill = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_secs(9));
        victim.kill();
    });
    let figures = four.bench(&["--rate", &rate, "--duration", "20"]).await;
    kill.await.expect("it is killed");
    println!("killed about second 8; {} requests, errors {}", figures["due"], figures["errors"]);
    for second in figures["seconds"].as_array().expect("seconds") {
        println!("  {second}");
    }
    println!("latency {}", figures["latency"]);
    assert_eq!(figures["errors"], serde_json::json!({}), "no failed or refused query");
}
