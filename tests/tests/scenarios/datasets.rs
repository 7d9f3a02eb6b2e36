//! Datasets that grow and shrink: parts are shared, items that are taken down are not found, at once and ever after.

use likeness_contract::datasets::DatasetAbout;
use likeness_contract::documents::{DatasetManifest, GenerationManifest};
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{AppendSource, IngestSource, RunResult};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::{Client, ClientError};
use likeness_tests::cluster::{done, outcome, submit};
use likeness_tests::{Cluster, faces, jobs, until};
use serde_json::Value;

const ROWS: usize = 120;
const PART_ROWS: u32 = 30;

fn append(source: Option<IngestSource>) -> IngestSource {
    IngestSource::Append(Box::new(AppendSource { base: None, removals: 0, source }))
}

async fn version(client: &Client, version: &JobId) -> (DatasetManifest, DatasetAbout) {
    let name = jobs::name("faces");
    let manifest = client.store().require(&keys::dataset_manifest(&name, version)).await.expect("a manifest");
    (manifest, client.store().require(&keys::dataset_about(&name, version)).await.expect("how it came to be"))
}

/// A folder in CelebA's layout with rows `from..to` of [`faces`] alone.
fn some_rows(cluster: &Cluster, name: &str, from: usize, to: usize) -> IngestSource {
    let dir = cluster.dir().join(name);
    let root = faces::write(&dir, to);
    for list in ["list_attr_celeba.txt", "list_eval_partition.txt"] {
        let text = std::fs::read_to_string(root.join(list)).expect("the list is there");
        let known = |line: &&str| !(0..from).any(|row| line.starts_with(&faces::item(row)));
        let kept: Vec<&str> = text.lines().filter(known).collect();
        std::fs::write(root.join(list), kept.join("\n")).expect("the list is written");
    }
    IngestSource::Celeba { dir: root.to_str().expect("a plain path").into() }
}

#[tokio::test]
async fn a_version_that_grows_shares_its_parts_and_drops_what_was_removed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker("worker", "ingest");
    let client = cluster.client().await;
    let first = done(&client, jobs::ingest_from("first", some_rows(&cluster, "a", 0, ROWS), PART_ROWS)).await;
    let (base, about) = version(&client, &first).await;
    assert_eq!((base.parts.len(), about.labels.len(), about.base), (4, 4, None));

    // One item of the second part, one of the third; and one that is not there.
    let (down, also) = (faces::item(31), faces::item(62));
    let wrong = cluster.cli(&["datasets", "remove", "000032.jpeg", "--dataset", "faces"]).await;
    assert_eq!(wrong.code, 64, "{}", wrong.err);
    assert!(wrong.err.contains("did you mean `000032.jpg`"), "{}", wrong.err);
    let removed = cluster.cli(&["datasets", "remove", &down, &also, "--dataset", "faces"]).await;
    assert_eq!(removed.code, 0, "{}", removed.err);

    // Twenty rows that are there already, ten new ones, and the removed ones again.
    let more = append(Some(some_rows(&cluster, "b", 20, ROWS + 10)));
    let second = done(&client, jobs::ingest_from("second", more, PART_ROWS)).await;
    let (grown, about) = version(&client, &second).await;
    assert_eq!(grown.rows(Split::All) as usize, ROWS + 10 - 2);
    assert_eq!((about.base, about.shared_parts, about.removals), (Some(first.clone()), 2, 1));
    assert_eq!(about.already_there, 98);
    assert_eq!(grown.parts[..2], [base.parts[0].clone(), base.parts[3].clone()], "as they lie");
    assert!(grown.skipped.iter().any(|skipped| skipped.item == down && skipped.reason.contains("removal 1")));
    let labels = about.labels.iter().map(|labels| labels.has + labels.has_not + labels.unknown);
    assert!(labels.eq([grown.rows(Split::All); 4]), "{:?}", about.labels);

    // Nothing is new now, and another vocabulary does not fit.
    let again = append(Some(some_rows(&cluster, "c", 0, ROWS)));
    let again = submit(&client, jobs::ingest_from("again", again, PART_ROWS)).await;
    let RunResult::Failed { failures } = outcome(&client, &again, 1).await else { panic!("nothing is new") };
    assert!(failures[0].error.contains("nothing to append"), "{failures:?}");
    let csv = cluster.dir().join("other.csv");
    std::fs::write(&csv, "path,Warm,Cold\nx.jpg,1,0\n").expect("a table");
    let other = cluster.cli(&["ingest", "csv", csv.to_str().unwrap(), "--dataset", "faces", "--append"]).await;
    assert_eq!(other.code, 1, "{}", other.err);
    assert!(other.err.contains("the source lacks `Disc`, `Striped`, `Bright`"), "{}", other.err);

    let shown = cluster.cli(&["datasets", "show", "faces", "--json"]).await;
    let shown: Value = serde_json::from_str(&shown.out).expect("JSON");
    assert_eq!(shown["removed"].as_array().unwrap().len(), 2);
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2);
    assert_eq!(shown["about"]["base"], first.as_str());
}

#[tokio::test]
async fn items_taken_down_are_found_no_more_and_neither_embedded() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.task_worker("worker");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), ROWS);
    done(&client, jobs::ingest("faces-1", &root, 60)).await;
    done(&client, jobs::pipeline("first", jobs::training(6, 30), 30)).await;
    let searcher = cluster.worker("searcher", "search");
    let question = jobs::search(&["Warm"], &[], ROWS as u32);
    let complete = async |rows: usize| {
        let whole = |found: &likeness_contract::search::SearchResults| {
            found.coverage.share() == 1.0 && found.hits.len() == rows
        };
        until(&format!("an answer of {rows} rows"), async || client.search(&question).await.ok().filter(whole)).await
    };
    let before = complete(ROWS).await;
    let gone: Vec<String> = before.hits[..10].iter().map(|hit| hit.item.clone()).collect();

    let list = cluster.dir().join("down.txt");
    std::fs::write(&list, gone.join("\n")).expect("a list of items");
    let removed = ["datasets", "remove", "--dataset", "faces", "--from", list.to_str().unwrap()];
    let removed = cluster.cli(&removed).await;
    assert_eq!(removed.code, 0, "{}", removed.err);
    let after = complete(ROWS - 10).await;
    assert_eq!(after.hits, before.hits[10..]);
    let like = cluster.cli(&["search", "--like", &gone[3]]).await;
    assert_ne!(like.code, 0);
    assert!(like.err.contains("was removed from the dataset"), "{}", like.err);
    let few = client.search(&jobs::search(&["Warm"], &[], 5)).await.expect("an answer");
    assert_eq!(few.hits, before.hits[10..15], "still as many as asked for");

    // A searcher that starts anew knows of it from the first answer on.
    searcher.kill();
    let _again = cluster.worker("again", "search");
    let first = until("an answer", async || match client.search(&question).await {
        Ok(found) if found.coverage.rows > 0 => Some(found),
        Ok(_) | Err(ClientError::Search(_) | ClientError::Link(_)) => None,
        Err(error) => panic!("{error}"),
    })
    .await;
    assert!(first.hits.iter().all(|hit| !gone.contains(&hit.item)), "not even a partial answer shows it");

    // The next generation does not have them, though its dataset's version still does.
    let embedded = done(&client, jobs::embed("embed-2", &jobs::id("first"), 60)).await;
    let generation = jobs::generation(&embedded);
    let key = keys::generation_manifest(&generation.gallery, &generation.generation);
    let manifest: GenerationManifest = client.store().require(&key).await.expect("a generation");
    assert_eq!((manifest.total_rows() as usize, manifest.skipped.len()), (ROWS - 10, 10));
    assert!(manifest.skipped.iter().all(|skipped| gone.contains(&skipped.item)));

    let compacted = cluster.cli(&["datasets", "compact", "faces"]).await;
    assert_eq!(compacted.code, 0, "{}", compacted.err);
    let newest = client.datasets().await.expect("datasets").remove(0);
    assert_eq!(newest.rows(Split::All) as usize, ROWS - 10);

    let restored = cluster.cli(&["datasets", "restore", "--dataset", "faces", "--from", list.to_str().unwrap()]).await;
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert_eq!(complete(ROWS).await.hits, before.hits);
}
