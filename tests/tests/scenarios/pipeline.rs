//! From images to a release that answers, the gate, and the way back.

use likeness_contract::documents::{DatasetManifest, ModelManifest, ReportManifest};
use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_contract::search::SearchResults;
use likeness_contract::settings::Loss;
use likeness_link::{Client, image_bytes};
use likeness_tests::cluster::{done, outcome, submit};
use likeness_tests::{Cluster, faces, jobs, until};

const ROWS: usize = 120;

/// The answer of all searchers' shards, once they are loaded.
async fn found(client: &Client, release: u64, with: &[&str], without: &[&str], k: u32) -> SearchResults {
    let request = jobs::search(with, without, k);
    let what = format!("release {release} answers in full");
    let complete = |results: &SearchResults| results.release == release && results.coverage.share() == 1.0;
    until(&what, async || client.search(&request).await.ok().filter(complete)).await
}

/// Share of the hits that are as asked.
fn precision(results: &SearchResults, with: &[&str], without: &[&str]) -> f64 {
    let position = |name: &&str| results.vocabulary.iter().position(|n| n == name).unwrap();
    let agrees = |labels: &[i8]| {
        with.iter().all(|name| labels[position(name)] == 1) && without.iter().all(|name| labels[position(name)] == -1)
    };
    results.hits.iter().filter(|hit| agrees(&hit.labels)).count() as f64 / results.hits.len() as f64
}

async fn ingested(cluster: &Cluster, client: &Client) -> JobId {
    let root = faces::write(cluster.dir(), ROWS);
    std::fs::write(faces::image(&root, 7), b"\xff\xd8\xff no image").unwrap();
    done(client, jobs::ingest("faces-1", &root, 40)).await
}

#[tokio::test]
async fn images_become_a_release_that_is_compared_replaced_and_brought_back() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker("worker", "ingest,train,embed,evaluate,search");
    let client = cluster.client().await;

    // A poison image is left out and listed; it is no failure.
    let version = ingested(&cluster, &client).await;
    let dataset: DatasetManifest = cluster.document(&keys::dataset_manifest(&jobs::name("faces"), &version)).await;
    assert_eq!(dataset.parts.iter().map(|part| part.rows).sum::<u64>(), ROWS as u64 - 1);
    assert_eq!(dataset.skipped.len(), 1);
    assert_eq!(dataset.skipped[0].item, faces::item(7));
    assert!(!dataset.skipped[0].reason.is_empty());

    // The first release must be better than chance, and is.
    let first = submit(&client, jobs::pipeline("good", jobs::training(16, 20), 50)).await;
    let ended = outcome(&client, &first, 1).await;
    assert!(format!("{ended:?}").contains("release: Some(1)"), "{ended:?}");
    let report: ReportManifest = cluster.document(&keys::report_manifest(&first)).await;
    let singles = report.headline.iter().find(|row| row.set == "singles").unwrap();
    assert!(singles.map > singles.chance + 0.1, "{singles:?}");

    // It finds what is asked.
    let results = found(&client, 1, &["Warm"], &[], 10).await;
    assert_eq!(results.hits.len(), 10);
    assert!(precision(&results, &["Warm"], &[]) >= 0.8, "{results:?}");
    let ordered = |a: f64, b: f64| a <= b;
    assert!(results.hits.windows(2).all(|pair| ordered(pair[0].distance, pair[1].distance)));
    let image = image_bytes(client.store(), &results.hits[0].image).await.unwrap();
    let original = cluster.dir().join("faces/img_align_celeba").join(&results.hits[0].item);
    assert_eq!(image, std::fs::read(original).unwrap(), "a hit leads to the image's own bytes");

    // The command line says the same.
    let cli = cluster.cli(&["search", "--with", "Warm", "-k", "10", "--json"]).await;
    assert_eq!(cli.code, 0, "{}", cli.err);
    let printed: SearchResults = serde_json::from_str(&cli.out).unwrap();
    assert_eq!(printed.hits, results.hits);

    // A model that learned nothing is refused by the gate; the alias stays where it is.
    let bad = ["pipeline", "--id", "bad", "--device", "cpu", "--epochs", "1", "--lr", "1e-9", "--batch-size", "16"];
    let shape = ["--input-px", "32", "--report-rows", "all", "--pairs", "20", "--triples", "10"];
    let refused = cluster.cli(&[bad.as_slice(), &shape].concat()).await;
    assert_eq!(refused.code, 2, "{}\n{}", refused.out, refused.err);
    assert_eq!(client.releases(Some(jobs::name("main"))).await.unwrap().len(), 1);

    // Promotion by hand needs no gate, and rollback brings the first one back as a third.
    let bad = JobId::new("bad").unwrap();
    client.promote(jobs::name("main"), jobs::generation(&bad), None).await.unwrap();
    assert_eq!(found(&client, 2, &["Warm"], &[], 10).await.generation.generation, bad);
    let back = cluster.cli(&["releases", "rollback"]).await;
    assert_eq!(back.code, 0, "{}", back.err);
    let again = found(&client, 3, &["Warm"], &[], 10).await;
    assert_eq!(again.hits, results.hits, "the same release gives the same answer");
    let releases = client.releases(Some(jobs::name("main"))).await.unwrap();
    assert_eq!(releases.iter().map(|release| release.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(releases[2].rolls_back_to, Some(1));

    // A mistake in a name is answered with the nearest one.
    let wrong = cluster.cli(&["search", "--with", "Wram"]).await;
    assert_eq!(wrong.code, 64, "{}", wrong.err);
    assert!(wrong.err.contains("Warm"), "{}", wrong.err);
}

/// The command line's own recipe: an image lies where its log-probabilities say.
#[tokio::test]
async fn the_default_recipe_is_searched_by_attributes_by_an_item_and_by_both_and_says_what_it_sees() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _worker = cluster.worker("worker", "ingest,train,embed,evaluate,search");
    let client = cluster.client().await;
    ingested(&cluster, &client).await;
    let asked = ["pipeline", "--id", "joint", "--device", "cpu", "--epochs", "16", "--batch-size", "16"];
    let shape = ["--input-px", "32", "--report-rows", "all", "--pairs", "20", "--triples", "10", "--random-crop", "0"];
    let made = cluster.cli(&[asked.as_slice(), &shape].concat()).await;
    assert_eq!(made.code, 0, "{}\n{}", made.out, made.err);
    let joint = JobId::new("joint").unwrap();
    let manifest: ModelManifest = cluster.document(&keys::model_manifest(&joint)).await;
    assert_eq!((manifest.settings.embedding_dim, manifest.train.loss), (9, Loss::BinaryCrossEntropy));

    // Six of the images are so.
    let results = found(&client, 1, &["Warm", "Disc"], &["Striped"], 5).await;
    assert!(precision(&results, &["Warm", "Disc"], &["Striped"]) >= 0.8, "{results:?}");
    let item = results.hits[0].item.clone();
    let search = async |words: &[&str]| -> SearchResults {
        let cli = cluster.cli(&[&["search", "-k", "5", "--json"][..], words].concat()).await;
        assert_eq!(cli.code, 0, "{}", cli.err);
        serde_json::from_str(&cli.out).unwrap()
    };
    let alike = search(&["--like", &item]).await;
    assert!(precision(&alike, &["Warm", "Disc"], &["Striped"]) >= 0.8, "{alike:?}");
    let striped = search(&["--like", &item, "--with", "Striped", "--attributes-weight", "2"]).await;
    assert!(precision(&striped, &["Striped"], &[]) > precision(&alike, &["Striped"], &[]), "{striped:?}");
    let explained = search(&["--with", "Warm", "--explain"]).await;
    let findings = explained.explanation.expect("it was asked for").hits;
    let finding = &findings[0].attributes[0];
    assert!(finding.margin > 0.0 && finding.agrees == Some(true), "{findings:?}");
}
