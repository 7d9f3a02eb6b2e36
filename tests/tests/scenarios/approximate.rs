//! From images to approximate answers: the index is made with the shard, told in the reply, and kept on the searcher's disk.

use std::path::{Path, PathBuf};

use likeness_contract::documents::GenerationManifest;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::TrainRequest;
use likeness_contract::keys;
use likeness_contract::search::{Hit, SearchRequest, SearchResults, Term, WeightedTerm};
use likeness_contract::settings::TrainSettings;
use likeness_link::Client;
use likeness_tests::cluster::done;
use likeness_tests::{Cluster, Process, faces, jobs, until};

/// Rows of the first shard, which is large enough for an index, and of all.
const LARGE: u32 = 4_200;
const ROWS: usize = 4_260;
/// Results of a query, and queries.
const K: u32 = 10;
const QUERIES: usize = 30;
const RECALL: f64 = 0.95;

fn training() -> TrainRequest {
    let training = jobs::training(1, 60);
    let train = TrainSettings { batch_size: 64, validate_every: 60, ..training.train };
    TrainRequest { train, ..training }
}

fn searcher(cluster: &Cluster, name: &str, cache: &Path) -> Process {
    let mut command = cluster.command("likeness-worker");
    command.args(["--roles", "search", "--threads", "1", "--id", name, "--search-cache"]).arg(cache);
    command.env("LIKENESS_LOG", "info");
    Process::start(name, &cluster.dir().join("logs"), command)
}

/// What is like the item of a row.
fn question(row: usize, recall: Option<f64>) -> SearchRequest {
    let term = Term::Item { item: faces::item(row) };
    let request = SearchRequest::new(jobs::name("main"), vec![WeightedTerm { weight: 1.0, term }], K);
    SearchRequest { min_coverage: 1.0, deadline_ms: 20_000, recall, ..request }
}

/// Answers to queries from all over the gallery, once everything is loaded.
async fn answers(client: &Client, recall: Option<f64>) -> Vec<SearchResults> {
    let mut all = Vec::new();
    for query in 0..QUERIES {
        let question = question(query * ROWS / QUERIES, recall);
        all.push(until("a whole answer", async || client.search(&question).await.ok()).await);
    }
    all
}

fn hits(answers: &[SearchResults]) -> Vec<&[Hit]> {
    answers.iter().map(|answer| answer.hits.as_slice()).collect()
}

/// Files of a folder with this ending.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    files.filter(|path| path.to_string_lossy().ends_with(ending)).collect()
}

/// Ingests, trains, embeds, evaluates and promotes; tells of the generation.
async fn release(cluster: &Cluster, client: &Client) -> GenerationManifest {
    let root = faces::write(cluster.dir(), ROWS);
    done(client, jobs::ingest("faces-1", &root, 2_000)).await;
    let job: JobId = done(client, jobs::pipeline("first", training(), LARGE)).await;
    cluster.document(&keys::generation_manifest(&jobs::name("faces"), &job)).await
}

#[tokio::test]
async fn a_pipeline_builds_an_approximate_index_that_answers_and_outlives_a_restart() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let with_indexes = |command: &mut std::process::Command| {
        command.env("LIKENESS_APPROXIMATE_ROWS", "1000");
    };
    let _worker = cluster.worker_with("worker", "ingest,train,embed,evaluate", with_indexes);
    let generation = release(&cluster, &client).await;
    let index: Vec<_> = generation.shards.iter().map(|shard| shard.approximate.clone()).collect();
    let [Some(index), None] = index.as_slice() else { panic!("only the first shard is large enough: {index:?}") };

    let cache = cluster.dir().join("cache");
    let first = searcher(&cluster, "first", &cache);
    let (near, exact) = (answers(&client, Some(RECALL)).await, answers(&client, None).await);
    let (mut found, mut all) = (0, 0);
    for (near, exact) in near.iter().zip(&exact) {
        let told = near.recall.as_ref().expect("the recall is told");
        assert!((RECALL..1.0).contains(&told.estimate) && told.shards == 1, "{told:?}");
        assert_eq!(told.exact, ["shard 1: it has no approximate index"]);
        assert_eq!((&exact.recall, near.coverage.share(), exact.hits.len()), (&None, 1.0, K as usize));
        // Whatever is found has the distance that the exact answer gives it.
        let same = near.hits.iter().filter(|hit| exact.hits.contains(hit)).count();
        (found, all) = (found + same, all + exact.hits.len());
        assert!(near.hits.iter().zip(&exact.hits).all(|(near, exact)| near.distance >= exact.distance));
    }
    println!("{found} of {all} found, {:.3} told", near[0].recall.as_ref().unwrap().estimate);
    assert!(found as f64 >= 0.9 * all as f64, "{found} of {all}");

    let cli = cluster.cli(&["search", "--like", &faces::item(7), "--recall", "0.95", "--json"]).await;
    assert!(cli.code == 0 && cli.out.contains(r#""estimate""#), "{}\n{}", cli.out, cli.err);
    let plain = cluster.cli(&["search", "--like", &faces::item(7), "--recall", "0.95"]).await;
    assert!(plain.code == 0 && plain.err.contains("approximate: about 9"), "{}\n{}", plain.out, plain.err);

    // What is on the disk is enough for another start: the store has lost the index and the shard.
    assert_eq!((files(&cache, ".shard").len(), files(&cache, ".index").len()), (2, 1));
    first.kill();
    for key in [&index.key, &generation.shards[0].object.key] {
        std::fs::remove_file(cluster.store_dir().join(key)).expect("an object of the store");
    }
    let again = searcher(&cluster, "second", &cache);
    assert_eq!(hits(&answers(&client, Some(RECALL)).await), hits(&near));
    assert_eq!(hits(&answers(&client, None).await), hits(&exact));

    // A damaged index is no trouble as long as the shard is there: exact answers, which say so.
    again.kill();
    let [file] = files(&cache, ".index").try_into().expect("one index");
    let mut bytes = std::fs::read(&file).expect("the index");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("the index is written");
    let _last = searcher(&cluster, "third", &cache);
    let told = answers(&client, Some(RECALL)).await;
    assert_eq!(hits(&told), hits(&exact));
    assert_eq!(told[0].recall.as_ref().unwrap().exact, ["shards 0, 1: it has no approximate index"]);
    assert!(!file.exists(), "what can't be used goes");
}
