//! Real sets in `LIKENESS_DATA`: a folder that holds `avatars/`, `celeba/`, `emoji/`, each laid out as CelebA.

use std::path::{Path, PathBuf};

use likeness_contract::documents::DatasetManifest;
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::image_bytes;
use likeness_tests::cluster::done;
use likeness_tests::{Cluster, jobs};

/// The set's folder, if it is there.
fn set(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("LIKENESS_DATA").map(|dir| Path::new(&dir).join(name)).filter(|dir| dir.is_dir());
    if found.is_none() {
        eprintln!("skipped: LIKENESS_DATA does not name a folder with `{name}`");
    }
    found
}

/// Rows per split, counted from the partition list.
fn partition(dir: &Path) -> [u64; 3] {
    let text = std::fs::read_to_string(dir.join("list_eval_partition.txt")).unwrap();
    let mut counts = [0; 3];
    for line in text.lines() {
        counts[line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()] += 1;
    }
    counts
}

#[tokio::test]
async fn every_image_of_a_real_set_is_taken_in_with_its_own_bytes() {
    let Some(dir) = set("celeba") else { return };
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker("worker", "ingest");
    let client = cluster.client().await;
    let version = done(&client, jobs::ingest("celeba", &dir, 4096)).await;
    let manifest: DatasetManifest = cluster.document(&keys::dataset_manifest(&jobs::name("faces"), &version)).await;
    assert!(manifest.skipped.is_empty(), "{:?}", manifest.skipped);
    assert_eq!(manifest.vocabulary.len(), 40);
    let rows = [Split::Train, Split::Validation, Split::Test].map(|split| manifest.rows(split));
    assert_eq!(rows, partition(&dir));

    let last = manifest.parts.last().unwrap();
    let image = likeness_contract::search::ImageRef { part: last.object.key.clone(), row: last.rows as u32 - 1 };
    let stored = image_bytes(client.store(), &image).await.unwrap();
    let list = std::fs::read_to_string(dir.join("list_attr_celeba.txt")).unwrap();
    let item = list.lines().last().unwrap().split_whitespace().next().unwrap();
    assert_eq!(stored, std::fs::read(dir.join("img_align_celeba").join(item)).unwrap());
}
