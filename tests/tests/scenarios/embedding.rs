//! Generations that are made of earlier ones, and of embeddings from elsewhere.

use std::fmt::Write;

use likeness_contract::documents::GenerationManifest;
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{GenerationRef, Plan, TaskOutput, TaskWork};
use likeness_contract::keys;
use likeness_contract::search::{SearchRequest, Term, WeightedTerm};
use likeness_link::Client;
use likeness_tests::cluster::{done, records};
use likeness_tests::wait::until;
use likeness_tests::{Cluster, faces, jobs};

async fn shards(client: &Client, generation: &JobId) -> Vec<Digest> {
    let key = keys::generation_manifest(&jobs::name("faces"), generation);
    let manifest: GenerationManifest = client.store().require(&key).await.unwrap();
    manifest.shards.into_iter().map(|shard| shard.object.digest).collect()
}

/// Rows that the shards of a job copied.
async fn copied(client: &Client, job: &JobId) -> Vec<u64> {
    let of = |output: TaskOutput| match output {
        TaskOutput::CopiedShard { copied, .. } => Some(copied),
        TaskOutput::Shard { .. } | TaskOutput::IndexedShard { .. } => Some(0),
        _ => None,
    };
    records(client, job).await.into_iter().filter_map(|record| of(record.output)).collect()
}

#[tokio::test]
async fn a_new_version_is_embedded_by_computing_what_is_new() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _workers = [cluster.task_worker("first"), cluster.task_worker("second")];
    let root = faces::write(cluster.dir(), 120);
    done(&client, jobs::ingest("faces-1", &root, 50)).await;
    let model = done(&client, jobs::train("model", jobs::training(1, 20))).await;
    let first = done(&client, jobs::embed("first", &model, 30)).await;
    assert_eq!(copied(&client, &first).await, [0, 0, 0, 0]);

    // Three images are others now; the shard in the middle stays whole.
    for (row, other) in [(3, 5), (100, 11), (119, 12)] {
        std::fs::copy(faces::image(&root, other), faces::image(&root, row)).unwrap();
    }
    done(&client, jobs::ingest("faces-2", &root, 50)).await;
    let after = done(&client, jobs::embed("after", &model, 30)).await;
    // An image that another row had before is known, too.
    assert_eq!(copied(&client, &after).await, [30, 30, 30, 30]);
    for row in [3, 100] {
        let bytes = std::fs::read(faces::image(&root, row)).unwrap();
        std::fs::write(faces::image(&root, row), [&bytes[..], b"more"].concat()).unwrap();
    }
    done(&client, jobs::ingest("faces-3", &root, 50)).await;
    let newest = done(&client, jobs::embed("newest", &model, 30)).await;
    assert_eq!(copied(&client, &newest).await, [29, 30, 30, 29]);
    let anew = done(&client, jobs::embed_anew("anew", &model, 30)).await;
    assert_eq!(copied(&client, &anew).await, [0, 0, 0, 0]);
    assert_eq!(shards(&client, &newest).await, shards(&client, &anew).await);

    // The plan names where it looked: the newest generation that there was.
    let plan: Plan = client.store().require(&keys::job_plan(&newest)).await.unwrap();
    let earlier = |work: &TaskWork| match work {
        TaskWork::EmbedShardAfter { earlier, .. } => Some(earlier.generation.clone()),
        _ => None,
    };
    let tasks = plan.stages.iter().flat_map(|stage| &stage.tasks);
    assert_eq!(tasks.filter_map(|task| earlier(&task.work)).collect::<Vec<_>>(), vec![after; 4]);
    let shown = cluster.cli(&["jobs", "show", "newest"]).await;
    assert!(shown.out.contains("118 of 120 rows copied"), "{}", shown.out);
}

/// An array of numpy's and its table: unit vectors on a circle, three times as long.
fn write_circle(cluster: &Cluster, rows: usize) {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 2), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    let mut table = "id,upper,note\n".to_string();
    for row in 0..rows {
        let angle = row as f32 / rows as f32 * std::f32::consts::TAU;
        [3.0 * angle.cos(), 3.0 * angle.sin()].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        writeln!(table, "p{row:03},{},at {row}", i32::from(row < rows / 2)).unwrap();
    }
    std::fs::write(cluster.dir().join("circle.npy"), bytes).unwrap();
    std::fs::write(cluster.dir().join("circle.csv"), table).unwrap();
}

#[tokio::test]
async fn embeddings_from_elsewhere_are_imported_promoted_and_searched() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    let _searcher = cluster.worker("searcher", "search");
    write_circle(&cluster, 100);
    let import = ["embed", "import", "circle.npy", "--table", "circle.csv", "--gallery", "mine", "--shard-rows", "40"];
    let refused = cluster.cli(&[&import[..], &["--id", "long"]].concat()).await;
    let told = format!("{} {}", refused.out, refused.err);
    assert!(refused.code == 1 && told.contains("`--normalize`"), "{told}");
    let imported = cluster.cli(&[&import[..], &["--id", "imported", "--normalize"]].concat()).await;
    assert_eq!(imported.code, 0, "{} {}", imported.out, imported.err);
    assert!(imported.out.contains("100 embeddings of 2 numbers, 1 attributes"), "{}", imported.out);
    assert!(imported.out.contains("left out: `note`"), "{}", imported.out);
    assert_eq!(records(&client, &jobs::id("imported")).await.len(), 5, "a scan, three shards, a manifest");

    let mine =
        "{\"name\": \"top\", \"with\": \"upper\", \"vector\": [0, 3]}\n{\"without\": \"upper\", \"item\": \"p075\"}\n";
    std::fs::write(cluster.dir().join("mine.jsonl"), mine).unwrap();
    let evaluate = ["evaluate", "mine/imported", "--report-rows", "all", "--queries", "mine.jsonl"];
    let evaluated = cluster.cli(&[&evaluate[..], &["--images", "40", "--id", "judged"]].concat()).await;
    assert_eq!(evaluated.code, 0, "{} {}", evaluated.out, evaluated.err);
    let json = cluster.cli(&["report", "show", "judged", "--json"]).await;
    let report: serde_json::Value =
        serde_json::from_str(&json.out).unwrap_or_else(|_| panic!("{} {}", json.out, json.err));
    let sets: Vec<_> = report["sets"].as_array().unwrap().iter().map(|set| set["set"].as_str().unwrap()).collect();
    assert_eq!(sets, ["own", "alike"], "{}", json.out);
    let map = |set: usize| report["sets"][set]["map"]["mean"].as_f64().unwrap();
    // Half of the circle is up. What asks from its middle finds that half first; what asks from anywhere, more of it than chance.
    assert!(map(0) > 0.999, "{}", json.out);
    assert!(map(1) > 0.7 && map(1) < 0.999 && report["sets"][1]["queries"] == 40, "{}", json.out);
    let other = cluster.cli(&["evaluate", "mine/imported", "--queries", "wide.jsonl"]);
    std::fs::write(cluster.dir().join("wide.jsonl"), "{\"with\": \"upper\", \"vector\": [1, 2, 3]}\n").unwrap();
    let other = other.await;
    assert!(other.code == 64 && other.err.contains("the gallery's have 2"), "{}", other.err);
    let generation = GenerationRef { gallery: jobs::name("mine"), generation: jobs::id("imported") };
    until("a release", async || client.promote(jobs::name("mine"), generation.clone(), None).await.ok()).await;

    let ask = |term: Term, k: u32| SearchRequest::new(jobs::name("mine"), vec![WeightedTerm { weight: 1.0, term }], k);
    let like = ask(Term::Item { item: "p050".into() }, 2);
    let found = until("an answer", async || client.search(&like).await.ok()).await;
    // They are equally far but for rounding.
    let mut items: Vec<&str> = found.hits.iter().map(|hit| hit.item.as_str()).collect();
    items.sort_unstable();
    assert_eq!(items, ["p049", "p051"], "its neighbours on the circle");
    let up = client.search(&ask(Term::Vector { values: vec![0.0, 7.0] }, 1)).await.unwrap();
    assert_eq!((up.hits[0].item.as_str(), up.hits[0].labels[0]), ("p025", 1));
    assert!(up.hits[0].image.part.is_empty() && up.hits[0].distance < 1e-3, "{:?}", up.hits[0]);
    let upper = cluster.cli(&["search", "--alias", "mine", "--like", "p099", "--only-with", "upper", "-k", "1"]).await;
    assert!(upper.code == 0 && upper.out.contains("p000"), "{} {}", upper.out, upper.err);
    let by_attribute = cluster.cli(&["search", "--alias", "mine", "--with", "upper"]).await;
    assert_eq!(by_attribute.code, 64, "{}", by_attribute.err);
    assert!(by_attribute.err.contains("made elsewhere"), "{}", by_attribute.err);

    // A file of questions as a job is answered as the searchers answer it, and what needs a model fails for itself.
    let questions = "{\"like\": \"p050\", \"k\": 2}\n{\"with\": \"upper\"}\n{\"vector\": [0, 7], \"only_with\": \"upper\", \"k\": 3}\n";
    std::fs::write(cluster.dir().join("questions.jsonl"), questions).unwrap();
    let online = cluster.cli(&["search", "--alias", "mine", "--queries", "questions.jsonl"]).await;
    let batch = cluster.cli(&["search", "--alias", "mine", "--batch", "questions.jsonl", "--out", "a.jsonl"]).await;
    assert_eq!((online.code, batch.code), (1, 1), "{} {}", online.err, batch.err);
    let answers = std::fs::read_to_string(cluster.dir().join("a.jsonl")).unwrap();
    assert_eq!(answers, online.out);
    assert!(answers.contains("p025") && batch.err.contains("made elsewhere"), "{answers} {}", batch.err);
}
