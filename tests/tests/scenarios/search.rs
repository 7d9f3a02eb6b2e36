//! The same answer from any number of searchers, and an honest one when some are gone.

use likeness_contract::search::{Hit, SearchErrorKind, SearchRequest, SearchResults};
use likeness_link::{Client, ClientError};
use likeness_tests::cluster::done;
use likeness_tests::galleries::Made;
use likeness_tests::{Cluster, Process, faces, jobs, until};
use serde_json::Value;

fn questions() -> Vec<SearchRequest> {
    vec![
        jobs::search(&["Warm"], &[], 120),
        jobs::search(&["Disc", "Striped"], &["Warm"], 7),
        jobs::search(&[], &["Bright"], 1),
    ]
}

pub(super) async fn answered(client: &Client, request: &SearchRequest) -> Vec<Hit> {
    let complete = |results: &SearchResults| results.coverage.share() == 1.0;
    let whole = until("a complete answer", async || client.search(request).await.ok().filter(complete)).await;
    whole.hits
}

pub(super) async fn searchers(client: &Client, count: usize) {
    let ready = async || {
        let placement = client.status().await.ok()?.placement;
        let ready = placement.iter().filter(|p| p.held.iter().any(|held| held.model_ready && !held.shards.is_empty()));
        (ready.count() == count).then_some(())
    };
    until(&format!("{count} searchers hold shards"), ready).await;
}

/// Its id is its name: which shards it gets follows from the ids, and with others one of three may get none.
pub(super) fn searcher(cluster: &Cluster, name: &str, replicas: u32) -> Process {
    let mut command = cluster.command("likeness-worker");
    command.args(["--roles", "search", "--threads", "1", "--replicas", &replicas.to_string(), "--id", name]);
    command.env("LIKENESS_LOG", "info");
    Process::start(name, &cluster.dir().join("logs"), command)
}

pub(super) async fn release(cluster: &Cluster, client: &Client) {
    let root = faces::write(cluster.dir(), 120);
    done(client, jobs::ingest("faces-1", &root, 60)).await;
    done(client, jobs::pipeline("first", jobs::training(6, 30), 15)).await;
}

#[tokio::test]
async fn one_searcher_and_several_give_the_same_answers() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    release(&cluster, &client).await;

    let first = searcher(&cluster, "alone", 1);
    searchers(&client, 1).await;
    let mut alone = Vec::new();
    for question in questions() {
        alone.push(answered(&client, &question).await);
    }
    assert_eq!(alone[0].len(), 120, "asked for more than there is, all of it is answered");
    assert_eq!((alone[1].len(), alone[2].len()), (7, 1));
    assert!(alone[0].windows(2).all(|pair| pair[0].distance <= pair[1].distance));

    let _others = [searcher(&cluster, "second", 1), searcher(&cluster, "third", 1)];
    searchers(&client, 3).await;
    for (question, expected) in questions().iter().zip(&alone) {
        assert_eq!(&answered(&client, question).await, expected);
    }
    // With its only replicas gone, an answer is partial and says so, until the others have loaded the shards.
    first.kill();
    let question = jobs::search(&["Warm"], &[], 5);
    if let Ok(found) = client.search(&question).await {
        assert!(found.coverage.share() == 1.0 || !found.coverage.reasons.is_empty(), "{:?}", found.coverage);
    }
    match client.search(&SearchRequest { min_coverage: 1.0, ..question }).await {
        Ok(found) => assert_eq!(found.coverage.share(), 1.0),
        Err(ClientError::Search(error)) => assert_eq!(error.kind, SearchErrorKind::Coverage, "{error}"),
        Err(error) => panic!("{error}"),
    }
    for (question, expected) in questions().iter().zip(&alone) {
        assert_eq!(&answered(&client, question).await, expected);
    }
}

#[tokio::test]
async fn with_two_replicas_a_killed_searcher_is_not_missed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    release(&cluster, &client).await;
    let first = searcher(&cluster, "first", 2);
    let _second = searcher(&cluster, "second", 2);
    searchers(&client, 2).await;
    let question = jobs::search(&["Warm"], &["Disc"], 10);
    let expected = answered(&client, &question).await;
    first.kill();
    let strict = SearchRequest { min_coverage: 1.0, ..question };
    let again = until("the other one answers alone", async || client.search(&strict).await.ok()).await;
    assert_eq!(again.hits, expected);
}

/// What `likeness search … --json` finds.
async fn asked(cluster: &Cluster, args: &[&str]) -> Value {
    let finished = cluster.cli(&[&["search", "--json", "--min-coverage", "1"], args].concat()).await;
    assert_eq!(finished.code, 0, "{args:?}: {}", finished.err);
    serde_json::from_str(&finished.out).expect("JSON")
}

fn items(found: &Value) -> Vec<String> {
    let hits = found["hits"].as_array().expect("hits");
    hits.iter().map(|hit| hit["item"].as_str().expect("an item").to_string()).collect()
}

#[tokio::test]
async fn the_command_line_filters_and_turns_pages() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let made = Made { name: "made", rows: 600, dim: 16, shards: 4 };
    made.store(client.store()).await;
    let _searchers = ["first", "second"].map(|name| searcher(&cluster, name, 2));
    until("a release", async || client.promote(jobs::name("main"), made.generation(), None).await.ok()).await;
    answered(&client, &jobs::search(&["Warm"], &[], 1)).await;

    let whole = asked(&cluster, &["--with", "Warm", "-k", "1000"]).await;
    assert_eq!((items(&whole).len(), &whole["next"], &whole["recall"]), (600, &Value::Null, &Value::Null));
    // Every row is known to be warm and no disc, every second to be bright; of none it is known whether it is striped.
    let bright =
        asked(&cluster, &["--with", "Warm", "--only-with", "bright", "--only-without", "Disc", "-k", "1000"]).await;
    let even = |item: &String| item[5..].parse::<usize>().expect("a row").is_multiple_of(2);
    let expected: Vec<String> = items(&whole).into_iter().filter(even).collect();
    assert_eq!((items(&bright), &bright["matching"]), (expected, &300.into()));
    let unknown = asked(&cluster, &["--with", "Warm", "--only-with", "Striped"]).await;
    assert_eq!((items(&unknown).len(), &unknown["matching"]), (0, &0.into()), "a label that is not known fits nothing");
    let slip = cluster.cli(&["search", "--with", "Warm", "--only-with", "Brihgt"]).await;
    assert!(slip.code == 64 && slip.err.contains("did you mean `Bright`?"), "{}", slip.err);

    let last = asked(&cluster, &["--with", "Warm", "-k", "100", "--page", "6"]).await;
    assert_eq!((items(&last), &last["next"]), (items(&whole)[500..].to_vec(), &Value::Null));
    let beyond = cluster.cli(&["search", "--with", "Warm", "-k", "100", "--page", "7"]).await;
    assert!(beyond.code == 1 && beyond.err.contains("page 6 is the last one"), "{}", beyond.err);
    let first = asked(&cluster, &["--with", "Warm", "-k", "250", "--page", "1"]).await;
    let file = cluster.dir().join("next");
    std::fs::write(&file, first["next"].as_str().expect("a cursor")).expect("the cursor is written");
    let rest = asked(&cluster, &["--cursor", file.to_str().expect("a plain path"), "-k", "350"]).await;
    assert_eq!((items(&first), items(&rest)), (items(&whole)[..250].to_vec(), items(&whole)[250..].to_vec()));

    let near = asked(&cluster, &["--with", "Warm", "--recall", "0.9"]).await;
    assert_eq!((items(&near), &near["recall"]["estimate"]), (items(&whole)[..20].to_vec(), &1.0.into()));
    assert_eq!(near["recall"]["exact"][0], "shards 0, 1, 2, 3: it has no approximate index");
}
