//! Webhooks: tried until they are delivered, signed, and not lost with a leader.

use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use likeness_contract::usage::Notified;
use ring::hmac;

use super::receiver::{Received, Receiver};
use super::*;

const OK: &str = "204 No Content";

fn telling(urls: &[String], dataset: &str) -> JobRequest {
    let options = JobOptions { max_workers: None, notify: urls.to_vec() };
    JobRequest { options, ..ingest(dataset) }
}

async fn notified(cluster: &Cluster, job: &JobId, url: u32) -> Notified {
    let key = keys::job_notified(job, RunNumber(1), url);
    eventually("the URL was told", || async { cluster.store.document(&key).await.unwrap() }).await
}

fn assert_signed(received: &Received) {
    let signed = [
        format!("{}.{}.", received.header("webhook-id"), received.header("webhook-timestamp")).as_bytes(),
        &received.body,
    ]
    .concat();
    let signature = received.header("webhook-signature").strip_prefix("v1,").expect("a signature of version 1");
    let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
    hmac::verify(&key, &signed, &STANDARD.decode(signature).unwrap()).expect("the signature is that of the secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_tried_until_it_is_taken_and_goes_nowhere_else() {
    let elsewhere = Receiver::start(|_| OK.into()).await;
    let moved = format!("302 Found\r\nlocation: {}", elsewhere.url("stolen"));
    let receiver = Receiver::start(move |n| match n {
        0 => moved.clone(),
        1 => "500 Internal Server Error".into(),
        _ => OK.into(),
    })
    .await;
    let gone = Receiver::start(|_| "410 Gone".into()).await;
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    let urls = [receiver.url("hook?token=1"), gone.url("hook")];
    let job = cluster.submit(telling(&urls, "faces")).await.job;
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
    assert_eq!(notified(&cluster, &job, 0).await.given_up, None);
    let seen = receiver.seen();
    assert_eq!(seen.len(), 3);
    for received in &seen {
        assert_eq!(received.line, "POST /hook?token=1 HTTP/1.1");
        assert_eq!(received.header("content-type"), "application/json");
        assert_eq!(received.header("webhook-id"), format!("{job}-1-0"));
        assert_signed(received);
    }
    let body: serde_json::Value = serde_json::from_slice(&seen[2].body).unwrap();
    assert_eq!(body["data"]["job"], job.as_str());
    assert_eq!((&body["type"], &body["data"]["state"]), (&"job.ended".into(), &"done".into()));
    assert!(elsewhere.seen().is_empty(), "a redirect was followed");
    let given_up = notified(&cluster, &job, 1).await.given_up.expect("410 ends it");
    assert!(given_up.contains("410 Gone"), "{given_up}");
    assert_eq!(gone.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_not_lost_with_its_leader_and_not_sent_again_by_the_next() {
    let up = Arc::new(AtomicBool::new(false));
    let is_up = up.clone();
    let receiver = Receiver::start(move |_| match is_up.load(Ordering::SeqCst) {
        true => OK.into(),
        false => "503 Service Unavailable".into(),
    })
    .await;
    let cluster = Cluster::start().await;
    let first = cluster.coordinator();
    let worker = cluster.worker();
    let job = cluster.submit(telling(&[receiver.url("hook")], "faces")).await.job;
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
    eventually("it was tried", || async { (!receiver.seen().is_empty()).then_some(()) }).await;
    // Killed with the message in its hands.
    drop(first);
    drop(worker);
    let tried = receiver.seen().len();
    up.store(true, Ordering::SeqCst);
    let second = cluster.coordinator();
    assert_eq!(notified(&cluster, &job, 0).await.given_up, None);
    let delivered = receiver.seen();
    assert!(delivered.len() > tried);
    assert_eq!(delivered[0].header("webhook-id"), delivered[tried].header("webhook-id"));
    second.stop().await;
    // The third leader finds nothing to tell of the first job, and tells of another.
    let _third = cluster.coordinator();
    let _worker = cluster.worker();
    let other = cluster.submit(telling(&[receiver.url("other")], "places")).await.job;
    assert_eq!(cluster.outcome(&other, 1).await, DONE);
    notified(&cluster, &other, 0).await;
    let again = receiver.seen().iter().filter(|received| received.line.contains("/hook")).count();
    assert_eq!(again, delivered.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn urls_that_no_webhook_goes_to_are_refused() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    cluster.submit(ingest("faces")).await;
    for url in
        ["ftp://host/x", "file:///etc/passwd", "https://", "http://:80/", "https://user:hidden@host/", "http://h ost/"]
    {
        match cluster.client.submit(telling(&[url.into()], "places")).await {
            Err(ClientError::Api(error)) => {
                assert_eq!(error.kind, ApiErrorKind::Invalid, "{url}: {error}");
                assert!(!error.message.contains("hidden"), "{error}");
            }
            other => panic!("`{url}` is not refused: {other:?}"),
        }
    }
    let many = vec!["https://host/".to_string(); 9];
    assert!(cluster.client.submit(telling(&many, "places")).await.is_err());
}
