//! Sources: behind URLs they are read as if they lay in a folder; asked for again, what was done counts.

use std::path::Path;

use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{IngestSource, RunResult};
use likeness_contract::keys;
use likeness_link::Client;
use likeness_tests::cluster::{done, outcome, submit};
use likeness_tests::s3::S3;
use likeness_tests::{Cluster, faces, jobs};

const PART_ROWS: u32 = 50;

/// Puts a folder's files below `prefix`.
fn upload(s3: &S3, folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let key = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            upload(s3, &entry.path(), &key);
        } else {
            s3.put(&key, std::fs::read(entry.path()).unwrap());
        }
    }
}

/// Digests of a version's parts, and how many rows were left out.
async fn stored(client: &Client, version: &JobId) -> (Vec<Digest>, usize) {
    let key = keys::dataset_manifest(&jobs::name("faces"), version);
    let manifest: DatasetManifest = client.store().require(&key).await.unwrap();
    (manifest.parts.into_iter().map(|part| part.object.digest).collect(), manifest.skipped.len())
}

#[tokio::test]
async fn a_source_behind_a_url_gives_the_same_parts_as_a_folder() {
    let cluster = Cluster::start().await;
    let s3 = S3::start(false).await;
    let _coordinator = cluster.coordinator("coordinator");
    // The store stays a folder: only the source lies in the bucket.
    let _worker = cluster.worker_with("worker", "ingest", |command| s3.found_by(command));
    let client = cluster.client().await;

    let folder = faces::write(cluster.dir(), 120);
    std::fs::write(faces::image(&folder, 7), b"\xff\xd8\xff no image").unwrap();
    std::fs::remove_file(faces::image(&folder, 9)).unwrap();
    upload(&s3, &folder, "raw/faces");
    let near = done(&client, jobs::ingest("near", &folder, PART_ROWS)).await;
    let source = IngestSource::Celeba { dir: "s3://bucket/raw/faces".into() };
    let far = done(&client, jobs::ingest_from("far", source, PART_ROWS)).await;
    let of_folder = stored(&client, &near).await;
    assert_eq!(of_folder.0.len(), 3);
    assert_eq!(of_folder.1, 2, "one damaged, one missing");
    assert_eq!(stored(&client, &far).await, of_folder);

    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/demo/avatars.parquet");
    s3.put("avatars.parquet", std::fs::read(&file).unwrap());
    let parquet = |path: String| IngestSource::Parquet { files: vec![path] };
    let near = done(&client, jobs::ingest_from("file", parquet(file.to_str().unwrap().into()), 1000)).await;
    let far = done(&client, jobs::ingest_from("http", parquet(s3.http_url("avatars.parquet")), 1000)).await;
    assert_eq!(stored(&client, &far).await, stored(&client, &near).await);
}

#[tokio::test]
async fn a_url_without_a_source_fails_by_name() {
    let cluster = Cluster::start().await;
    let s3 = S3::start(false).await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker_with("worker", "ingest", |command| s3.found_by(command));
    let client = cluster.client().await;

    let celeba = |dir: &str| IngestSource::Celeba { dir: dir.into() };
    let missing = s3.http_url("nowhere.parquet");
    let cases = [
        ("bucket", celeba("s3://bucket/nowhere"), "s3://bucket/nowhere"),
        ("http", IngestSource::Parquet { files: vec![missing.clone()] }, missing.as_str()),
        ("folder", celeba("https://host/celeba"), "https://host/celeba"),
        ("scheme", celeba("ftp://host/celeba"), "ftp://host/celeba"),
    ];
    for (job, source, named) in cases {
        let job = submit(&client, jobs::ingest_from(job, source, PART_ROWS)).await;
        let RunResult::Failed { failures } = outcome(&client, &job, 1).await else { panic!("`{job}` can't be done") };
        assert!(format!("{failures:?}").contains(named), "{job}: {failures:?}");
    }
}

#[tokio::test]
async fn a_command_given_again_says_what_was_done_and_tries_again_what_failed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker("worker", "ingest");
    cluster.client().await;

    let folder = faces::write(cluster.dir(), 30);
    let partition = folder.join("list_eval_partition.txt");
    let kept = std::fs::read(&partition).unwrap();
    std::fs::remove_file(&partition).unwrap();
    let command = ["ingest", "celeba", folder.to_str().unwrap()];
    let failed = cluster.cli(&command).await;
    assert_eq!(failed.code, 1, "{}", failed.err);
    assert!(failed.err.contains("list_eval_partition.txt"), "{}", failed.err);

    std::fs::write(&partition, kept).unwrap();
    let mended = cluster.cli(&command).await;
    assert_eq!(mended.code, 0, "{}", mended.err);
    assert!(mended.err.contains("trying again"), "{}", mended.err);

    let again = cluster.cli(&command).await;
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(again.err.contains("was asked before") && again.err.contains("--id"), "{}", again.err);
}
