//! Releases of this program beside each other: what older ones ask is answered in a form that they read, and what is asked of them
//! is said as they know it.

use bytes::Bytes;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::documents::GenerationManifest;
use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::keys;
use likeness_contract::search::{LeafAnswer, LeafAsk, LeafReply, LeafRequest, SearchReply, SearchRequest};
use likeness_contract::subjects;
use likeness_link::Bus;
use likeness_tests::cluster::{done, records};
use likeness_tests::galleries::Made;
use likeness_tests::proxy::{Fate, Frame, Proxy};
use likeness_tests::{Cluster, Process, faces, jobs, until};

/// A message as an older program left it.
fn golden(name: &str) -> Bytes {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/golden");
    std::fs::read(format!("{root}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}")).into()
}

/// The version that a bincode message says it has: behind the magic and its name.
fn version(message: &[u8], name: &str) -> u8 {
    let rest = message.strip_prefix(b"LKN1").expect("a message of ours");
    assert_eq!(&rest[1..=name.len()], name.as_bytes());
    rest[1 + name.len()]
}

/// The generation that the golden messages speak of: faces/pipeline-1, of dimension 2 and three shards.
async fn generation(cluster: &Cluster) -> GenerationRef {
    let store = cluster.store().await;
    let made = Made { name: "pipeline-1", rows: 90, dim: 2, shards: 3 };
    let stored = made.store(&store).await;
    let key = keys::generation_manifest(&stored.gallery, &stored.generation);
    let manifest: GenerationManifest = store.require(&key).await.expect("a manifest");
    let generation = GenerationRef { gallery: jobs::name("faces"), ..stored };
    let manifest = GenerationManifest { generation: generation.clone(), ..manifest };
    let key = keys::generation_manifest(&generation.gallery, &generation.generation);
    store.create_document(&key, &manifest).await.expect("the store takes a manifest");
    generation
}

fn searcher(cluster: &Cluster) -> Process {
    let mut command = cluster.command("likeness-worker");
    command.args(["--roles", "search", "--threads", "1", "--id", "searcher"]).env("LIKENESS_LOG", "info");
    Process::start("searcher", &cluster.dir().join("logs"), command)
}

#[tokio::test]
async fn what_older_programs_ask_is_answered_as_they_read_it() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let generation = generation(&cluster).await;
    let _searcher = searcher(&cluster);
    until("a release", async || client.promote(jobs::name("main"), generation.clone(), None).await.ok()).await;
    let expected = until("an answer", async || client.search(&jobs::search(&["Warm"], &[], 5)).await.ok()).await;
    let bus = Bus::connect(&cluster.nats(), "older").await.expect("a connection");
    let ask = async |subject: String, message: Bytes| {
        bus.client().request(subject, message).await.expect("an answer").payload
    };

    // An older client: version 1 has neither filter nor recall nor pages.
    let mut old: serde_json::Value = serde_json::from_slice(&golden("search-request/v1-mixed.json")).unwrap();
    assert_eq!(old["version"], 1);
    old["body"]["terms"] =
        serde_json::json!([{ "weight": 1.0, "term": { "attributes": { "with": ["Warm"], "without": [] } } }]);
    (old["body"]["k"], old["body"]["deadline_ms"], old["body"]["min_coverage"]) = (5.into(), 20_000.into(), 0.into());
    let reply = ask(subjects::SEARCH.into(), old.to_string().into()).await;
    let form: serde_json::Value = serde_json::from_slice(&reply).unwrap();
    assert!(form["version"].as_u64().unwrap() <= 2, "{form}");
    match codec::decode::<SearchReply>(&reply, Encoding::Json).unwrap() {
        SearchReply::Found(found) => assert_eq!(found.hits, expected.hits),
        SearchReply::Error(error) => panic!("{error}"),
    }
    let nonsense = ask(subjects::SEARCH.into(), golden("search-request/v1-mixed.bin")).await;
    assert!(version(&nonsense, "search-reply") <= 2, "an error is read by it, too");

    // An older root.
    let leaf = subjects::leaf(&WorkerId::new("searcher").unwrap());
    let answer = async |file: &str| {
        let reply = ask(leaf.clone(), golden(file)).await;
        assert!(version(&reply, "leaf-reply") <= 2, "{file}");
        codec::decode::<LeafReply>(&reply, Encoding::Bincode).unwrap().answer
    };
    let mut distances = Vec::new();
    for file in ["leaf-request/v1-top-k.bin", "leaf-request/v2-top-k.bin"] {
        let LeafAnswer::TopK { candidates, details, searched, missing } = answer(file).await else {
            panic!("{file} is answered")
        };
        let shards: Vec<u32> = searched.iter().map(|searched| searched.shard).collect();
        assert_eq!((candidates.len(), shards, missing), (20, vec![0, 2], vec![]));
        assert_eq!(details.len(), if file.contains("v1") { 0 } else { 20 });
        distances.push(candidates);
    }
    assert_eq!(distances[0], distances[1]);
    for version in ["v1", "v2"] {
        let rows = answer(&format!("leaf-request/{version}-details.bin")).await;
        assert!(matches!(&rows, LeafAnswer::Details(rows) if rows.len() == 1), "{rows:?}");
        let item = answer(&format!("leaf-request/{version}-embedding.bin")).await;
        assert_eq!(item, LeafAnswer::Embedding(None), "no item of that name is here");
    }
}

/// Workers are upgraded before the coordinator: what they tell in a form that it can't read yet is found in the store.
#[tokio::test]
async fn an_older_coordinator_finds_in_the_store_what_newer_workers_tell() {
    let cluster = Cluster::start().await;
    let proxy = Proxy::before(&cluster.broker.url()).await;
    proxy.rule(|frame: &mut Frame| {
        if !frame.to_server && frame.subject().starts_with("likeness.v1.event.") {
            frame.from_a_newer_program();
        }
        Fate::Passes
    });
    let url = proxy.url().to_string();
    let coordinator = cluster.coordinator_with("coordinator", |command| {
        command.env("LIKENESS_NATS", url);
    });
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    let root = faces::write(cluster.dir(), 60);
    let job = done(&client, jobs::ingest("faces-1", &root, 30)).await;
    assert_eq!(records(&client, &job).await.len(), 4, "a scan, two parts, a manifest");
    assert!(coordinator.log().contains("no event, left out"), "{}", coordinator.log());
    let dead = client.bus().jetstream().get_stream(subjects::DEAD_STREAM).await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 0);
}

/// Searchers are replaced one after the other: roots ask leaves of the release before in its own form, as far as it can say it.
#[test]
fn what_is_asked_of_older_programs_is_said_as_they_know_it() {
    let ask = |filter: Vec<(u32, bool)>, recall| LeafRequest {
        generation: GenerationRef { gallery: jobs::name("faces"), generation: jobs::id("pipeline-1") },
        deadline_ms: 900,
        number: 77,
        ask: LeafAsk::TopK { shards: vec![0, 2], query: vec![0.6, 0.8], k: 20, details: true, filter, recall },
    };
    let bytes = |request: &LeafRequest| codec::encode(request, Encoding::Bincode).unwrap();
    assert_eq!(bytes(&ask(vec![], None)), golden("leaf-request/v2-top-k.bin"));
    assert_eq!(version(&bytes(&ask(vec![], Some(0.9))), "leaf-request"), 3);
    assert_eq!(version(&bytes(&ask(vec![(0, true)], None)), "leaf-request"), 3);
    let plain: SearchRequest = jobs::search(&["Warm"], &[], 5);
    assert_eq!(version(&codec::encode(&plain, Encoding::Bincode).unwrap(), "search-request"), 1);
    // And what they answer is understood: that nothing was searched approximately, and why shards are missing.
    for file in ["leaf-reply/v1-top-k.bin", "leaf-reply/v2-top-k.bin"] {
        let LeafReply { answer, .. } = codec::decode(&golden(file), Encoding::Bincode).unwrap();
        let LeafAnswer::TopK { searched, .. } = answer else { panic!("{file}") };
        assert!(!searched.is_empty() && searched.iter().all(|searched| searched.how.is_none()), "{file}");
    }
}
