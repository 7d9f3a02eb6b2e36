//! The work queue, the buckets and requests, against a real nats-server.

use std::time::{Duration, Instant};

use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{JobId, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind, TaskMessage, TaskWork};
use likeness_contract::messages::{
    ApiError, ApiErrorKind, ApiReply, ApiRequest, HeldShards, Placement, Presence, TaskEvent, TaskNews,
};
use likeness_contract::subjects;
use likeness_link::error::chain;
use likeness_link::kv::Change;
use likeness_link::{Bus, Delivery, Error, ErrorKind, Published, Pull};
use tokio::time::timeout;

use crate::server::{DEADLINE, Server};

const ACK_WAIT: Duration = Duration::from_secs(1);

fn message(task: &str) -> TaskMessage {
    TaskMessage {
        job: JobId::new("job").unwrap(),
        run: RunNumber(1),
        task: TaskId::new(task).unwrap(),
        work: TaskWork::IngestScan,
    }
}

fn subject(message: &TaskMessage) -> String {
    subjects::task(TaskKind::Ingest, DeviceClass::Any, Priority::Hi, &message.job, &message.task)
}

async fn publish(bus: &Bus, task: &str) -> Published {
    let message = message(task);
    bus.publish_task(subject(&message), &message).await.unwrap()
}

async fn pull(bus: &Bus) -> Pull {
    bus.task_messages(TaskKind::Ingest, DeviceClass::Any, Priority::Hi).await.unwrap()
}

/// The next message, over as many pull requests as it takes.
async fn next(pull: &mut Pull) -> Delivery {
    let waited = timeout(DEADLINE, async {
        loop {
            if let Some(delivery) = pull.next().await.unwrap() {
                return delivery;
            }
        }
    });
    waited.await.expect("a message within the deadline")
}

fn worker(name: &str) -> WorkerId {
    WorkerId::new(name).unwrap()
}

fn placement(name: &str) -> Placement {
    Placement { worker: worker(name), held: Vec::<HeldShards>::new(), troubles: vec![] }
}

#[tokio::test]
async fn topology_can_be_made_again_and_by_several_at_once() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    publish(&bus, "kept").await;
    let (a, b, c) = tokio::join!(bus.ensure_topology(), bus.ensure_topology(), bus.ensure_topology());
    a.and(b).and(c).unwrap();
    assert_eq!(next(&mut pull(&bus).await).await.task().unwrap(), message("kept"));
}

#[tokio::test]
async fn one_message_lies_on_a_subject_until_it_is_acknowledged() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    assert_eq!(publish(&bus, "t").await, Published::New);
    assert_eq!(publish(&bus, "t").await, Published::AlreadyThere);
    assert_eq!(publish(&bus, "other").await, Published::New);
    let mut pull = pull(&bus).await;
    let delivery = next(&mut pull).await;
    assert_eq!(publish(&bus, "t").await, Published::AlreadyThere, "also while it is being worked on");
    delivery.ack().await.unwrap();
    assert_eq!(publish(&bus, "t").await, Published::New);
}

#[tokio::test]
async fn a_message_without_news_is_delivered_again() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    publish(&bus, "t").await;
    let mut pull = pull(&bus).await;
    assert_eq!(next(&mut pull).await.deliveries, 1);
    let again = next(&mut pull).await;
    assert_eq!((again.deliveries, again.task().unwrap()), (2, message("t")));
    again.ack().await.unwrap();
    assert!(pull.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn progress_keeps_the_message() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    publish(&bus, "t").await;
    let mut pull = pull(&bus).await;
    let held = next(&mut pull).await;
    let until = Instant::now() + 3 * ACK_WAIT;
    while Instant::now() < until {
        held.progress().await.unwrap();
        let stolen = timeout(ACK_WAIT / 3, pull.next()).await;
        assert!(!matches!(stolen, Ok(Ok(Some(_)))), "delivered to another although it was renewed");
    }
    held.ack().await.unwrap();
    assert_eq!(publish(&bus, "t").await, Published::New);
}

#[tokio::test]
async fn a_message_given_back_comes_after_its_delay_and_a_terminated_one_never() {
    let server = Server::start();
    let bus = server.bus(Duration::from_secs(5)).await;
    publish(&bus, "t").await;
    let mut pull = pull(&bus).await;
    let given_back = Instant::now();
    next(&mut pull).await.nak(Some(Duration::from_millis(400))).await.unwrap();
    assert!(pull.try_next().await.unwrap().is_none());
    let again = next(&mut pull).await;
    assert!(given_back.elapsed() >= Duration::from_millis(400));
    again.term().await.unwrap();
    assert_eq!(publish(&bus, "t").await, Published::New, "its subject is free");
}

#[tokio::test]
async fn a_cancelled_wait_loses_nothing_and_a_parked_one_gives_back() {
    let server = Server::start();
    let bus = server.bus(Duration::from_secs(5)).await;
    let (mut first, mut second) = (pull(&bus).await, pull(&bus).await);
    assert!(timeout(Duration::from_millis(50), first.next()).await.is_err());
    publish(&bus, "t").await;
    assert_eq!(next(&mut first).await.deliveries, 1);

    assert!(timeout(Duration::from_millis(50), first.next()).await.is_err());
    publish(&bus, "u").await;
    bus.client().flush().await.unwrap();
    first.park().await;
    assert_eq!(next(&mut second).await.task().unwrap(), message("u"));
}

#[tokio::test]
async fn purging_a_job_removes_its_messages_only() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    for task in ["a", "b"] {
        publish(&bus, task).await;
    }
    let other = TaskMessage { job: JobId::new("other").unwrap(), ..message("a") };
    bus.publish_task(subject(&other), &other).await.unwrap();
    let filter = subjects::job_tasks(&message("a").job);
    assert_eq!(bus.purge_subject(subjects::JOBS_STREAM, &filter).await.unwrap(), 2);
    assert_eq!(next(&mut pull(&bus).await).await.task().unwrap(), other);
}

#[tokio::test]
async fn a_deleted_consumer_is_made_again() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let mut pull = pull(&bus).await;
    assert!(pull.try_next().await.unwrap().is_none());
    let name = subjects::task_consumer(TaskKind::Ingest, DeviceClass::Any, Priority::Hi);
    let deletion = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bus.jetstream().delete_consumer_from_stream(&name, subjects::JOBS_STREAM).await.unwrap();
        publish(&bus, "t").await;
    };
    let (delivery, ()) = tokio::join!(next(&mut pull), deletion);
    assert_eq!(delivery.task().unwrap(), message("t"));
}

#[tokio::test]
async fn pulls_and_publishing_go_on_after_a_restart_and_after_the_streams_were_wiped() {
    let mut server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let mut pull = pull(&bus).await;
    publish(&bus, "before").await;
    server.restart();
    let delivery = timeout(DEADLINE, async {
        loop {
            if let Ok(Some(delivery)) = pull.next().await {
                return delivery;
            }
        }
    });
    delivery.await.expect("delivered after the restart").ack().await.unwrap();

    bus.jetstream().delete_stream(subjects::JOBS_STREAM).await.unwrap();
    let gone = bus.publish_task(subject(&message("x")), &message("x")).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    let republish = async {
        let until = Instant::now() + DEADLINE;
        while bus.publish_task(subject(&message("after")), &message("after")).await.is_err() {
            assert!(Instant::now() < until, "the pull makes the stream again");
        }
    };
    let (delivery, ()) = tokio::join!(next(&mut pull), republish);
    assert_eq!(delivery.task().unwrap(), message("after"));
}

#[tokio::test]
async fn a_message_of_a_newer_schema_is_told_from_a_broken_one() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let newer = br#"{"message":"task","version":9,"body":{}}"#;
    let broken = b"\xff\xff";
    for (task, payload, kind) in
        [("newer", newer.as_slice(), ErrorKind::Newer), ("broken", broken.as_slice(), ErrorKind::Corrupt)]
    {
        let sent = bus.jetstream().publish(subject(&message(task)), payload.to_vec().into()).await.unwrap();
        sent.await.unwrap();
        let delivery = next(&mut pull(&bus).await).await;
        assert_eq!(delivery.task().unwrap_err().kind, kind);
        delivery.term().await.unwrap();
    }
}

#[tokio::test]
async fn an_event_is_kept_until_it_is_read() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let TaskMessage { job, run, task, .. } = message("t");
    let subject = subjects::task_event(&job, &task, "started");
    let event =
        TaskEvent { job, run, task, worker: worker("w"), attempt: "a".into(), at_ms: 1, what: TaskNews::Started };
    bus.publish_event(subject.clone(), &event).await.unwrap();
    let stream = bus.jetstream().get_stream(subjects::EVENTS_STREAM).await.unwrap();
    let stored = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
    assert_eq!(codec::decode::<TaskEvent>(&stored.payload, Encoding::Bincode).unwrap(), event);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_creates_or_updates_of_an_entry_one_wins() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let kv = bus.kv(subjects::PLACEMENT_BUCKET).await.unwrap();
    let race = |i: usize| {
        let kv = kv.clone();
        tokio::spawn(async move { kv.create("leader", &placement(&format!("w{i}"))).await.unwrap() })
    };
    let created = futures::future::try_join_all((0..8).map(race)).await.unwrap();
    let won: Vec<u64> = created.into_iter().flatten().collect();
    assert_eq!(won.len(), 1);

    let renew = |i: usize| {
        let (kv, revision) = (kv.clone(), won[0]);
        tokio::spawn(async move { kv.update("leader", &placement(&format!("v{i}")), revision).await.unwrap() })
    };
    let updated = futures::future::try_join_all((0..8).map(renew)).await.unwrap();
    let renewed: Vec<u64> = updated.into_iter().flatten().collect();
    assert_eq!(renewed.len(), 1);
    assert!(renewed[0] > won[0]);

    assert!(!kv.delete_at("leader", won[0]).await.unwrap(), "an old revision deletes nothing");
    assert!(kv.delete_at("leader", renewed[0]).await.unwrap());
    assert!(kv.create("leader", &placement("again")).await.unwrap().is_some(), "a deleted key can be created");
}

#[tokio::test]
async fn an_entry_that_is_not_renewed_dies() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let kv = bus.kv(subjects::PRESENCE_BUCKET).await.unwrap();
    let presence = Presence {
        worker: worker("w"),
        roles: vec![TaskKind::Train],
        searches: false,
        device: "cpu".into(),
        device_class: DeviceClass::Cpu,
        host: "h".into(),
        version: "0".into(),
        task: None,
        draining: false,
    };
    kv.put("w", &presence).await.unwrap();
    assert_eq!(kv.entries::<Presence>().await.unwrap().len(), 1);
    let until = Instant::now() + DEADLINE;
    while !kv.entries::<Presence>().await.unwrap().is_empty() {
        assert!(Instant::now() < until, "the entry outlives its age");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(kv.get::<Presence>("w").await.unwrap(), None);
}

#[tokio::test]
async fn a_watch_tells_what_is_there_and_what_changes() {
    let mut server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let kv = bus.kv(subjects::PLACEMENT_BUCKET).await.unwrap();
    kv.put("a", &placement("a")).await.unwrap();
    let mut watch = kv.watch::<Placement>();
    let Change::Put(entry) = timeout(DEADLINE, watch.next()).await.unwrap() else { panic!("the entry first") };
    assert_eq!((entry.key.as_str(), entry.value), ("a", placement("a")));
    kv.delete("a").await.unwrap();
    assert_eq!(timeout(DEADLINE, watch.next()).await.unwrap(), Change::Gone { key: "a".into() });

    server.restart();
    let until = Instant::now() + DEADLINE;
    while kv.put("b", &placement("b")).await.is_err() {
        assert!(Instant::now() < until, "writing goes on after a restart");
    }
    let seen = timeout(DEADLINE, async {
        loop {
            if let Change::Put(entry) = watch.next().await
                && entry.key == "b"
            {
                return;
            }
        }
    });
    seen.await.expect("the watch mends itself");
}

fn refuse(error: &Error) -> ApiReply {
    ApiReply::Error(ApiError { kind: ApiErrorKind::Invalid, message: chain(error), nearest: vec![] })
}

#[tokio::test]
async fn a_request_is_answered_in_its_own_form() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let answer = |request: ApiRequest| async move {
        match request {
            ApiRequest::Reconcile => ApiReply::Reconciled { republished: 7 },
            _ => ApiReply::Jobs(vec![]),
        }
    };
    let serving = bus.serve(subjects::API_ALL.into(), None, 4, refuse, answer).await.unwrap();
    let subject = subjects::api("reconcile");
    let reply: ApiReply = bus.request(subject.clone(), &ApiRequest::Reconcile, DEADLINE).await.unwrap();
    assert_eq!(reply, ApiReply::Reconciled { republished: 7 });

    let json = codec::encode(&ApiRequest::Reconcile, Encoding::Json).unwrap();
    let reply = bus.client().request(subject.clone(), json.into()).await.unwrap();
    let header = reply.headers.as_ref().and_then(|h| h.get("content-type")).unwrap();
    assert_eq!(header.as_str(), "application/json");
    let decoded: ApiReply = codec::decode(&reply.payload, Encoding::Json).unwrap();
    assert_eq!(decoded, ApiReply::Reconciled { republished: 7 });

    let nonsense = bus.client().request(subject.clone(), "{ nonsense".into()).await.unwrap();
    let refused: ApiReply = codec::decode(&nonsense.payload, Encoding::Json).unwrap();
    assert!(matches!(refused, ApiReply::Error(_)), "{refused:?}");

    serving.stop().await;
    let error = bus.request::<_, ApiReply>(subject, &ApiRequest::Reconcile, DEADLINE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "nobody serves any more");
}

#[tokio::test]
async fn a_request_that_nobody_serves_fails_at_once() {
    let server = Server::start();
    let bus = server.bus(ACK_WAIT).await;
    let started = Instant::now();
    let asked = bus.request::<_, ApiReply>(subjects::api("status"), &ApiRequest::Status, DEADLINE).await;
    assert_eq!(asked.unwrap_err().kind, ErrorKind::Unreachable);
    assert!(started.elapsed() < Duration::from_secs(2));
}
