//! The store's promises, over every kind of store that needs no network, and under faults.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use likeness_contract::documents::ObjectRef;
use likeness_contract::ids::{Digest, JobId, RunNumber};
use likeness_contract::jobs::Run;
use likeness_link::error::{ErrorKind, chain};
use likeness_link::store::faulty::FaultyStore;
use likeness_link::{Created, Store};

fn run(opened_ms: u64) -> Run {
    Run { job: JobId::new("a-job").unwrap(), run: RunNumber(1), opened_ms }
}

fn faulty() -> (FaultyStore, Store) {
    let faulty = FaultyStore::in_memory();
    let store = Store::over(Arc::new(faulty.clone()), "memory:");
    (faulty, store)
}

async fn keeps_its_promises(store: &Store) {
    store.probe().await.unwrap();
    assert!(store.list("").await.unwrap().is_empty(), "the probe cleans up behind itself");

    assert_eq!(store.create("jobs/b/spec.json", "one".into()).await.unwrap(), Created::New);
    assert_eq!(store.create("jobs/b/spec.json", "two".into()).await.unwrap(), Created::Existed);
    assert_eq!(store.get("jobs/b/spec.json").await.unwrap().unwrap(), "one");
    assert_eq!(store.get("jobs/b/none").await.unwrap(), None);

    store.create("jobs/a/runs/00001.json", "x".into()).await.unwrap();
    store.create("jobs/a-longer/spec.json", "x".into()).await.unwrap();
    let keys = store.list("jobs").await.unwrap();
    assert_eq!(keys, ["jobs/a-longer/spec.json", "jobs/a/runs/00001.json", "jobs/b/spec.json"]);
    assert_eq!(store.list("jobs/a").await.unwrap(), ["jobs/a/runs/00001.json"], "a prefix ends at a name");
    assert_eq!(store.children("jobs").await.unwrap(), ["a", "a-longer", "b"]);

    let specs = store.objects_below("jobs", |key| key.ends_with("/spec.json")).await.unwrap();
    assert_eq!(
        specs.iter().map(|listed| (&*listed.key, listed.bytes)).collect::<Vec<_>>(),
        [("jobs/a-longer/spec.json", 1), ("jobs/b/spec.json", 3)]
    );
    assert!(specs.iter().all(|listed| listed.modified_ms > 1_700_000_000_000));
    store.create("probe/gone", "x".into()).await.unwrap();
    store.delete("probe/gone").await.unwrap();
    store.delete("probe/gone").await.unwrap();
    assert_eq!(store.get("probe/gone").await.unwrap(), None);
    assert!(store.list("nothing/here").await.unwrap().is_empty());
    assert!(store.children("nothing").await.unwrap().is_empty());

    let first = store.create_document("jobs/c/runs/00001.json", &run(1)).await.unwrap();
    let second = store.create_document("jobs/c/runs/00001.json", &run(2)).await.unwrap();
    assert!(first.created && !second.created);
    assert_eq!(second.document, run(1), "the second creator adopts the first one's document");
    assert_eq!(store.document::<Run>("jobs/none").await.unwrap(), None);
    let missing = store.require::<Run>("jobs/none").await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    assert!(missing.to_string().contains("jobs/none"), "{missing}");

    let bytes = Bytes::from_static(b"a part");
    let object = store.create_object("parts/x".into(), bytes.clone(), Digest::of(&bytes)).await.unwrap();
    assert_eq!(store.create_object("parts/x".into(), bytes.clone(), object.digest).await.unwrap(), object);
    assert_eq!(store.read(&object).await.unwrap(), bytes);
    let other = ObjectRef { digest: Digest::of(b"other"), ..object };
    let corrupt = store.read(&other).await.unwrap_err();
    assert_eq!(corrupt.kind, ErrorKind::Corrupt);
    assert!(corrupt.to_string().contains("parts/x"), "{corrupt}");
}

#[tokio::test]
async fn a_store_in_memory_keeps_its_promises() {
    keeps_its_promises(&Store::open("memory:").await.unwrap()).await;
}

#[tokio::test]
async fn a_local_folder_keeps_its_promises() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("made/when/missing");
    keeps_its_promises(&Store::open(plain.to_str().unwrap()).await.unwrap()).await;
    let url = format!("file://{}", dir.path().join("by-url").display());
    keeps_its_promises(&Store::open(&url).await.unwrap()).await;
}

#[tokio::test]
async fn what_a_crash_leaves_half_written_is_never_seen() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).await.unwrap();
    std::fs::create_dir_all(dir.path().join("tasks")).unwrap();
    std::fs::write(dir.path().join("tasks/t.json#1"), b"hal").unwrap();
    assert!(store.list("").await.unwrap().is_empty());
    assert_eq!(store.create("tasks/t.json", "whole".into()).await.unwrap(), Created::New);
    assert_eq!(store.list("").await.unwrap(), ["tasks/t.json"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_of_sixteen_creators_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    for url in ["memory:", dir.path().to_str().unwrap()] {
        let store = Store::open(url).await.unwrap();
        let racers = (0..16).map(|i| {
            let store = store.clone();
            tokio::spawn(async move { store.create_document("tasks/t.json", &run(i)).await.unwrap() })
        });
        let finished: Vec<_> = futures::future::try_join_all(racers).await.unwrap();
        let winners: Vec<_> = finished.iter().filter(|adopted| adopted.created).collect();
        assert_eq!(winners.len(), 1, "{url}");
        assert!(finished.iter().all(|adopted| adopted.document == winners[0].document), "{url}");
    }
}

#[tokio::test]
async fn a_store_that_ignores_create_if_absent_is_refused() {
    let (faulty, store) = faulty();
    faulty.set(|f| f.ignores_create = true);
    let error = store.probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.to_string().contains("create-if-absent"), "{error}");
    assert!(store.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_time_out_after_success_is_no_failure() {
    let (faulty, store) = faulty();
    for failures in [1, 3, 4] {
        faulty.set(|f| f.errors_after_success = failures);
        let key = format!("tasks/{failures}.json");
        let adopted = store.create_document(&key, &run(1)).await.unwrap();
        assert!(adopted.created, "our own document is not taken for another's ({failures} failures)");
        faulty.set(|f| f.errors_after_success = 0);
    }
    faulty.set(|f| f.errors_after_success = 1);
    store.create("tasks/taken.json", "first".into()).await.unwrap();
    assert_eq!(store.create("tasks/taken.json", "second".into()).await.unwrap(), Created::Existed);
    assert_eq!(store.get("tasks/taken.json").await.unwrap().unwrap(), "first");
}

#[tokio::test]
async fn a_conflict_without_an_object_is_tried_again() {
    let (faulty, store) = faulty();
    faulty.set(|f| f.conflicts = 2);
    assert_eq!(store.create("tasks/t.json", "mine".into()).await.unwrap(), Created::New);
    assert_eq!(store.get("tasks/t.json").await.unwrap().unwrap(), "mine");
}

#[tokio::test]
async fn a_full_disk_is_told_at_once_with_the_key() {
    let (faulty, store) = faulty();
    faulty.set(|f| f.full = true);
    let error = store.create("parts/part-00001", "x".into()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(error.to_string().contains("parts/part-00001"), "{error}");
    assert!(chain(&error).contains("no space left"), "{}", chain(&error));
}

#[tokio::test]
async fn damaged_reads_are_noticed_and_named() {
    let (faulty, store) = faulty();
    let bytes = Bytes::from(vec![7u8; 3 << 20]);
    let object = store.create_object("parts/p".into(), bytes.clone(), Digest::of(&bytes)).await.unwrap();
    store.create_document("runs/1.json", &run(1)).await.unwrap();
    faulty.set(|f| f.corrupt_reads = true);
    assert_eq!(store.read(&object).await.unwrap_err().kind, ErrorKind::Corrupt);
    let document = store.document::<Run>("runs/1.json").await.unwrap_err();
    assert_eq!(document.kind, ErrorKind::Corrupt);
    assert!(document.to_string().contains("runs/1.json"), "{document}");
    faulty.set(|f| (f.corrupt_reads, f.truncated_reads) = (false, true));
    let error = store.read(&object).await.unwrap_err();
    assert!(error.to_string().contains("parts/p"), "{error}");
    faulty.set(|f| f.truncated_reads = false);
    assert_eq!(store.read(&object).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_store_that_comes_back_within_the_pauses_is_not_noticed() {
    let (faulty, store) = faulty();
    store.create("a", "x".into()).await.unwrap();
    faulty.set(|f| f.unavailable = true);
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        faulty.set(|f| f.unavailable = false);
    };
    let (read, ()) = tokio::join!(store.get("a"), back);
    assert_eq!(read.unwrap().unwrap(), "x");
    faulty.set(|f| f.unavailable = true);
    assert_eq!(store.create("b", "x".into()).await.unwrap_err().kind, ErrorKind::Unreachable);
}
