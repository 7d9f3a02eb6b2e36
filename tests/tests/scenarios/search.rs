//! The same answer from any number of searchers, and an honest one when some are gone.

use likeness_contract::search::{Hit, SearchErrorKind, SearchRequest, SearchResults};
use likeness_link::{Client, ClientError};
use likeness_tests::cluster::done;
use likeness_tests::{Cluster, Process, faces, jobs, until};

fn questions() -> Vec<SearchRequest> {
    vec![
        jobs::search(&["Warm"], &[], 120),
        jobs::search(&["Disc", "Striped"], &["Warm"], 7),
        jobs::search(&[], &["Bright"], 1),
    ]
}

async fn answered(client: &Client, request: &SearchRequest) -> Vec<Hit> {
    let complete = |results: &SearchResults| results.coverage.share() == 1.0;
    let whole = until("a complete answer", async || client.search(request).await.ok().filter(complete)).await;
    whole.hits
}

async fn searchers(client: &Client, count: usize) {
    let ready = async || {
        let placement = client.status().await.ok()?.placement;
        let ready = placement.iter().filter(|p| p.held.iter().any(|held| held.model_ready && !held.shards.is_empty()));
        (ready.count() == count).then_some(())
    };
    until(&format!("{count} searchers hold shards"), ready).await;
}

/// Its id is its name: which shards it gets follows from the ids, and with others one of three may get none.
fn searcher(cluster: &Cluster, name: &str, replicas: u32) -> Process {
    let mut command = cluster.command("likeness-worker");
    command.args(["--roles", "search", "--threads", "1", "--replicas", &replicas.to_string(), "--id", name]);
    command.env("LIKENESS_LOG", "info");
    Process::start(name, &cluster.dir().join("logs"), command)
}

async fn release(cluster: &Cluster, client: &Client) {
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
