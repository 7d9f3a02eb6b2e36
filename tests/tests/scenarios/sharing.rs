//! Jobs beside each other, and who is told when one ends.

use std::sync::{Arc, Mutex};

use likeness_contract::ids::JobId;
use likeness_contract::jobs::{JobOptions, JobRequest, Priority, RunResult};
use likeness_contract::keys;
use likeness_link::Client;
use likeness_tests::cluster::{outcome, submit};
use likeness_tests::process::Process;
use likeness_tests::{Cluster, faces, jobs, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Images of the large job, each a task of its own.
const ROWS: usize = 400;

async fn done_of(client: &Client, job: &JobId) -> usize {
    client.store().list(&keys::task_records(job)).await.unwrap().len()
}

async fn assert_done(client: &Client, job: &JobId) {
    let result = outcome(client, job, 1).await;
    assert!(matches!(result, RunResult::Done { .. }), "{result:?}");
}

#[tokio::test]
async fn a_job_of_ten_tasks_beside_one_of_hundreds_ends_soon_and_an_urgent_one_sooner() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), ROWS);
    let _workers = [cluster.worker("one", "ingest"), cluster.worker("two", "ingest")];
    let large = submit(&client, jobs::ingest("large", &root, 1)).await;
    until("the large job goes on", async || (done_of(&client, &large).await >= 5).then_some(())).await;

    let before = done_of(&client, &large).await;
    let ten = |id| jobs::ingest(id, &root, ROWS as u32 / 10);
    let small = submit(&client, ten("small")).await;
    assert_done(&client, &small).await;
    let meanwhile = done_of(&client, &large).await - before;
    assert!(meanwhile < ROWS / 4, "{meanwhile} tasks of the large job were done before ten of the small one");

    let before = done_of(&client, &large).await;
    let urgent = submit(&client, JobRequest { priority: Priority::Hi, ..ten("urgent") }).await;
    assert_done(&client, &urgent).await;
    let meanwhile = done_of(&client, &large).await - before;
    assert!(meanwhile < ROWS / 10, "{meanwhile} tasks of the large job were done before the urgent ones");
    assert!(client.cancel(&large).await.is_ok(), "it still goes on");
}

/// Takes requests and answers the first with 500, all others with 204; each as text.
async fn receiver() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            // The body is the last that comes, and ends with the document.
            while !bytes.ends_with(b"}") && stream.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {}
            let status = if all.lock().unwrap().is_empty() { "500 Internal Server Error" } else { "204 No Content" };
            all.lock().unwrap().push(String::from_utf8(bytes).unwrap());
            let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, seen)
}

#[tokio::test]
async fn a_webhook_is_told_once_it_listens_also_by_another_coordinator() {
    let cluster = Cluster::start().await;
    let start = |name: &str| {
        let mut command = cluster.command("likeness");
        command.arg("coordinator").env("LIKENESS_WEBHOOK_SECRET", "a secret of at least 24 letters");
        Process::start(name, &cluster.dir().join("logs"), command)
    };
    let first = start("first");
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), 12);
    let _worker = cluster.worker("worker", "ingest");
    let (url, seen) = receiver().await;
    let options = JobOptions { notify: vec![url], ..JobOptions::default() };
    let job = submit(&client, JobRequest { options, ..jobs::ingest("told", &root, 12) }).await;
    assert_done(&client, &job).await;
    until("the first try", async || (!seen.lock().unwrap().is_empty()).then_some(())).await;
    first.kill();
    let _second = start("second");
    until("a try that is taken", async || (seen.lock().unwrap().len() >= 2).then_some(())).await;
    let seen = seen.lock().unwrap().clone();
    for request in &seen[..2] {
        let request = request.to_ascii_lowercase();
        assert!(request.starts_with("post /hook http/1.1"), "{request}");
        assert!(request.contains("webhook-signature: v1,") && request.contains("webhook-id: told-1-0"), "{request}");
        assert!(request.contains("\"told\"") && request.contains("done"), "{request}");
    }
}
