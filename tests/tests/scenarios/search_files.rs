//! Files of questions: asked of the searchers and as a job, with the same answers.

use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_contract::search::{SearchRequest, Term, WeightedTerm};
use likeness_contract::searches::SearchManifest;
use likeness_tests::cluster::{outcome, started};
use likeness_tests::galleries::Made;
use likeness_tests::{Cluster, faces, jobs, until};
use serde_json::{Value, json};

use super::search::{answered, searcher, searchers};

/// Questions of all kinds, of which four can't be answered.
fn questions(made: &Made) -> String {
    let item = |row: usize| format!("{}-{row:07}", made.name);
    let mut lines = vec![
        json!({"id": "slip", "with": "Wram"}).to_string(),
        json!({"id": "field", "wiht": "Warm"}).to_string(),
        "not json".to_string(),
        json!({"like": "nowhere", "k": 3}).to_string(),
        json!({"with": ["Warm"], "without": "Disc", "k": 40}).to_string(),
        json!({"with": "Warm", "only_with": "Bright", "k": 700}).to_string(),
        json!({"like": [item(1), item(2)], "like_weight": [1, -0.5], "with": "Bright", "recall": null}).to_string(),
    ];
    lines.extend((0..60).map(|row| json!({"id": row, "like": item(row * 7), "k": 1 + row}).to_string()));
    lines.join("\n")
}

fn answers(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[tokio::test]
async fn a_file_is_answered_alike_by_searchers_and_as_a_job_through_a_kill() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let made = Made { name: "made", rows: 600, dim: 16, shards: 4 };
    made.store(client.store()).await;
    let _searcher = searcher(&cluster, "searcher", 1);
    until("a release", async || client.promote(jobs::name("main"), made.generation(), None).await.ok()).await;
    answered(&client, &jobs::search(&["Warm"], &[], 1)).await;
    std::fs::write(cluster.dir().join("questions.jsonl"), questions(&made)).expect("the questions are written");

    let online = cluster.cli(&["search", "--queries", "questions.jsonl", "--min-coverage", "1"]).await;
    assert_eq!(online.code, 1, "{}", online.err);
    let online_answers = answers(&online.out);
    assert_eq!(online_answers.len(), 67);
    for told in [
        "line 1 (`slip`): unknown attribute `Wram`; did you mean `Warm`?",
        "line 2 (`field`): unknown field",
        "line 3: it is no JSON",
        "line 4: ",
    ] {
        assert!(online.err.contains(told), "{told}: {}", online.err);
    }
    assert!(online.err.contains("67 questions, 4 failed"), "{}", online.err);

    // Handed in while nobody evaluates, then by one that is killed, and another one.
    let job = cluster
        .cli(&["search", "--batch", "questions.jsonl", "--queries-per-task", "5", "--id", "asked", "--detach"])
        .await;
    assert_eq!((job.code, job.out.trim()), (0, "asked"), "{}", job.err);
    let early = cluster.cli(&["search", "--answers", "asked"]).await;
    assert!(early.code == 1 && early.err.contains("is running"), "{}", early.err);
    let first = cluster.worker("first", "evaluate");
    let job = JobId::new("asked").expect("a job's id");
    started(&client, &job, "answers").await;
    first.kill();
    let _second = cluster.worker("second", "evaluate");
    outcome(&client, &job, 1).await;
    let batch = cluster.cli(&["search", "--answers", "asked", "--out", "answers.jsonl"]).await;
    assert_eq!(batch.code, 1, "{}", batch.err);
    let text = std::fs::read_to_string(cluster.dir().join("answers.jsonl")).expect("the answers");
    assert_eq!(answers(&text), online_answers, "the same answers, in the same order");
    let manifest: SearchManifest = cluster.document(&keys::search_manifest(&job)).await;
    assert_eq!((manifest.questions, manifest.failed, manifest.answers.len()), (67, 4, 14));

    // The same file of the same release is the same job; without bad questions it ends well.
    std::fs::write(cluster.dir().join("good.csv"), "id,with,k\na,Warm,3\nb,\"Warm,Bright\",\n").expect("written");
    let asked = ["search", "--batch", "good.csv", "--out", "good.parquet", "-k", "7"];
    let good = cluster.cli(&asked).await;
    assert_eq!(good.code, 0, "{}", good.err);
    let again = cluster.cli(&asked).await;
    assert!(again.code == 0 && again.err.contains("was asked before"), "{}", again.err);
    assert!(cluster.dir().join("good.parquet").exists());

    // What is taken down is left out by both, and asked for by neither.
    let down = ["made-0000001", "made-0000014", "made-0000300"];
    let removed = cluster.cli(&[&["datasets", "remove", "--dataset", "made", "--force"], &down[..]].concat()).await;
    assert_eq!(removed.code, 0, "{}", removed.err);
    let gone = async || {
        let told = cluster.cli(&["search", "--like", down[0], "-k", "1"]).await;
        told.err.contains("was removed").then_some(())
    };
    until("the searcher leaves them out", gone).await;
    let online = cluster.cli(&["search", "--queries", "questions.jsonl", "--min-coverage", "1"]).await;
    let batch = ["search", "--batch", "questions.jsonl", "--id", "after", "--out", "after.jsonl"];
    assert_eq!(cluster.cli(&batch).await.code, 1);
    let text = std::fs::read_to_string(cluster.dir().join("after.jsonl")).expect("the answers");
    assert_eq!(answers(&text), answers(&online.out), "the same answers, in the same order");
    assert!(text != online_answers.iter().map(|answer| format!("{answer}\n")).collect::<String>());
    let hits: Vec<Value> =
        answers(&text).iter().flat_map(|answer| answer["hits"].as_array().cloned()).flatten().collect();
    assert!(hits.len() > 100 && hits.iter().all(|hit| !down.contains(&hit["item"].as_str().expect("an id"))));
}

#[tokio::test]
async fn mistakes_are_told_with_the_nearest_names_and_end_in_64() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let made = Made { name: "made", rows: 60, dim: 16, shards: 1 };
    made.store(client.store()).await;
    let _searcher = searcher(&cluster, "searcher", 1);
    until("a release", async || client.promote(jobs::name("main"), made.generation(), None).await.ok()).await;
    answered(&client, &jobs::search(&["Warm"], &[], 1)).await;
    let write = |name: &str, text: &str| std::fs::write(cluster.dir().join(name), text).expect("it is written");
    write("a.jsonl", "{\"with\": \"Warm\"}");
    write("empty.jsonl", "\n");
    write("slip.csv", "wiht\nWarm\n");
    for (args, told) in [
        (&["--with", "Wram"][..], "did you mean `Warm`?"),
        (&["--with", "Warm", "--alias", "mian"], "did you mean `main`?"),
        (&["--like", "nowhere"], "has no item `nowhere`"),
        (&["--with", "Warm", "--explian"], "--explain"),
        (&["--like", "made-0000001", "--explain"], "give --with or --without"),
        (&["--with", "Warm", "--only-without", "Dics"], "did you mean `Disc`?"),
        (&["--like", "made-0000001", "--like-weight", "1", "--like-weight", "2"], "`--like-weight` is given 2 times"),
        (&["--queries", "nowhere.jsonl"], "nowhere.jsonl"),
        (&["--queries", "slip.csv"], "did you mean `with`?"),
        (&["--queries", "empty.jsonl"], "has no questions"),
        (&["--queries", "a.jsonl", "--out", "a.txt"], ".parquet or .jsonl"),
        (&["--queries", "a.jsonl", "--out", "./a.jsonl"], "overwritten"),
        (&["--queries", "a.jsonl", "--with", "Warm"], "cannot be used with"),
        (&["--queries", "a.jsonl", "--id", "x"], "give --batch"),
        (&["--batch", "a.jsonl"], "give --out, or --detach"),
        (&["--batch", "a.jsonl", "--out", "a.parquet", "--alias", "mian"], "did you mean `main`?"),
        (&["--batch", "empty.jsonl", "--detach"], "has no questions"),
        (&["--answers", "nowhere"], "nowhere"),
    ] {
        let finished = cluster.cli(&[&["search"], args].concat()).await;
        assert!(finished.code == 64 && finished.err.contains(told), "{args:?}: {} {}", finished.code, finished.err);
    }
}

/// "This one, but with a disc": what is near to an item and an attribute has the attribute more often.
#[tokio::test]
async fn an_item_with_an_attribute_finds_what_is_like_it_and_has_it() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let _worker = cluster.task_worker("worker");
    super::search::release(&cluster, &client).await;
    let _searcher = searcher(&cluster, "searcher", 1);
    searchers(&client, 1).await;
    let disc = 1;
    let (mut plain, mut with_disc) = (0, 0);
    for row in (0..120).filter(|row| !faces::labels(*row)[disc]).take(12) {
        let like = WeightedTerm { weight: 1.0, term: Term::Item { item: faces::item(row) } };
        let attributes = jobs::search(&["Disc"], &[], 10);
        let alone = SearchRequest { terms: vec![like.clone()], ..attributes.clone() };
        let mixed = SearchRequest { terms: [vec![like], attributes.terms.clone()].concat(), ..attributes };
        let have = |hits: &[likeness_contract::search::Hit]| hits.iter().filter(|hit| hit.labels[disc] == 1).count();
        plain += have(&answered(&client, &alone).await);
        with_disc += have(&answered(&client, &mixed).await);
    }
    assert!(with_disc > plain, "{with_disc} of 120 have a disc, {plain} without asking for it");
    let explained = cluster.cli(&["search", "--with", "Disc", "--explain", "--like", "000001.jpg", "-k", "3"]).await;
    assert!(explained.code == 0 && explained.out.contains("of 1"), "{} {}", explained.out, explained.err);
}

/// Not a test: `cargo nextest run -p likeness-tests --run-ignored only -E 'test(questions_a_second)' --no-capture` tells how many questions a
/// second the searchers and a job answer, of 4,096 by vector in 100,000 × 300, each with one thread.
#[tokio::test]
#[ignore = "a measurement"]
async fn questions_a_second() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let made = Made { name: "made", rows: 100_000, dim: 300, shards: 4 };
    made.store(client.store()).await;
    let _searcher = searcher(&cluster, "searcher", 1);
    until("a release", async || client.promote(jobs::name("main"), made.generation(), None).await.ok()).await;
    answered(&client, &jobs::search(&["Warm"], &[], 1)).await;
    let line = |row: usize| json!({"like": format!("made-{:07}", row * 24), "k": 10}).to_string();
    let lines: Vec<String> = (0..4096).map(line).collect();
    std::fs::write(cluster.dir().join("questions.jsonl"), lines.join("\n")).unwrap();
    let worker = cluster.worker("worker", "evaluate");
    let batch = ["search", "--batch", "questions.jsonl", "--out", "batch.parquet"];
    for args in [&["search", "--queries", "questions.jsonl", "--at-once", "64", "--out", "online.parquet"][..], &batch]
    {
        let finished = cluster.cli(args).await;
        assert_eq!(finished.code, 0, "{}", finished.err);
        let seconds = finished.took.as_secs_f64();
        println!("{}: 4,096 questions in {seconds:.1} s, {:.0} a second", args[1], 4096.0 / seconds);
    }
    drop(worker);
}
