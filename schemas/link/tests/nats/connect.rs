//! First connections that cannot succeed fail soon and say why.

use std::time::{Duration, Instant};

use likeness_contract::ids::JobId;
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind, TaskMessage, TaskWork};
use likeness_contract::{ids, subjects};
use likeness_link::error::chain;
use likeness_link::{Bus, Error, ErrorKind, NatsSettings, Timings};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::server::Server;

fn settings(url: String) -> NatsSettings {
    let timings = Timings::from_ack_wait(Duration::from_secs(1), Duration::from_secs(2));
    NatsSettings { url, credentials: None, ca: None, timings }
}

async fn refusal(url: String) -> Error {
    let started = Instant::now();
    let error = Bus::connect(&settings(url), "test").await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    error
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let error = refusal("nats://user:secret@127.0.0.1:9".into()).await;
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    assert!(!chain(&error).contains("secret"), "{}", chain(&error));
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    assert_eq!(refusal(url).await.kind, ErrorKind::Unreachable);
}

/// Speaks just enough of the protocol to be taken for a server of this version.
async fn pretend(version: &'static str, jetstream: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let info = serde_json::json!({
            "server_id": "x", "version": version, "proto": 1, "headers": true, "max_payload": 1 << 20,
            "jetstream": jetstream,
        });
        writer.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("PING") {
                writer.write_all(b"PONG\r\n").await.unwrap();
            }
        }
    });
    url
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_with_both_versions() {
    let error = refusal(pretend("2.9.10", true).await).await;
    assert_eq!(error.kind, ErrorKind::Refused);
    let text = error.to_string();
    assert!(text.contains("2.9.10") && text.contains("2.11"), "{text}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_refused() {
    let error = refusal(pretend("2.14.0", false).await).await;
    assert_eq!(error.kind, ErrorKind::Refused);
    assert!(error.to_string().contains("JetStream"), "{error}");
}

const WITH_USERS: &str = r#"
authorization {
  users = [
    { user: full, password: right }
    { user: narrow, password: right, permissions: { publish: ["$JS.API.>", "likeness.v1.event.>"], subscribe: ["_INBOX.>"] } }
  ]
}
"#;

#[tokio::test]
async fn wrong_credentials_are_refused_once() {
    let server = Server::with_config(WITH_USERS);
    let error = refusal(format!("nats://full:wrong@127.0.0.1:{}", server.port)).await;
    assert_eq!(error.kind, ErrorKind::Refused, "{}", chain(&error));
    assert!(!chain(&error).contains("wrong"), "{}", chain(&error));
}

#[tokio::test]
async fn a_forbidden_subject_is_told_by_name() {
    let server = Server::with_config(WITH_USERS);
    let full = settings(format!("nats://full:right@127.0.0.1:{}", server.port));
    Bus::connect(&full, "full").await.unwrap().ensure_topology().await.unwrap();
    let mut narrow = settings(format!("nats://narrow:right@127.0.0.1:{}", server.port));
    narrow.timings.request = Duration::from_secs(1);
    let bus = Bus::connect(&narrow, "narrow").await.unwrap();
    let message = TaskMessage {
        job: JobId::new("job").unwrap(),
        run: ids::RunNumber(1),
        task: ids::TaskId::new("scan").unwrap(),
        work: TaskWork::IngestScan,
    };
    let subject = subjects::task(TaskKind::Ingest, DeviceClass::Any, Priority::Hi, &message.job, &message.task);
    let error = bus.publish_task(subject.clone(), &message).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{}", chain(&error));
    assert!(error.to_string().contains(&subject), "{error}");
}
