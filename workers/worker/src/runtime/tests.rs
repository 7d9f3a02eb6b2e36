//! The runtime against a real broker and a store in a folder: what every end of an attempt leaves behind.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::Device;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    DeviceClass, IngestSource, JobOptions, JobSpec, JobWork, Outcome, Priority, RunResult, TaskKind, TaskMessage,
    TaskOutput, TaskRecord, TaskWork,
};
use likeness_contract::messages::{TaskEvent, TaskNews};
use likeness_contract::{keys, subjects};
use likeness_link::{Bus, Delivery, NatsSettings, Pull, Store, Timings};
use likeness_model::Winograd;

use super::attempt::{Attempts, Ended, Perform};
use super::context::{Shared, TaskContext};
use super::device::DeviceThread;
use super::shutdown::Shutdown;
use super::{Leaving, Worker};
use crate::args::{DeviceName, Settings};
use crate::cache::Cache;
use crate::error::{TaskError, TaskErrorKind};
use crate::search::settings::SearchSettings;

const ACK_WAIT: Duration = Duration::from_millis(1500);
/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker and a store of a test's own.
struct Bench {
    store: Store,
    bus: Bus,
    settings: NatsSettings,
    server: Child,
    folder: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(nats_server())
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(folder.path().join("nats"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let timings = Timings::from_ack_wait(ACK_WAIT, ACK_WAIT);
        let settings = NatsSettings { url: format!("nats://127.0.0.1:{port}"), credentials: None, ca: None, timings };
        let bus = within(async {
            loop {
                match Bus::connect(&settings, "test").await {
                    Ok(bus) => return bus,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        })
        .await;
        bus.ensure_topology().await.unwrap();
        let store = Store::open(folder.path().join("store").to_str().unwrap()).await.unwrap();
        Self { store, bus, settings, server, folder }
    }

    fn attempts(&self, perform: Perform) -> Attempts {
        let cache = Arc::new(Cache::new(self.store.clone(), 0));
        let device = DeviceThread::start(Device::Cpu).unwrap();
        let (store, worker) = (self.store.clone(), WorkerId::new("w1").unwrap());
        let shared = Shared { store, device, cache, worker, approximate_rows: None };
        Attempts { bus: self.bus.clone(), shared, process: "w1-0".into(), perform, give_back: Default::default() }
    }

    /// Stores a spec and publishes a task of it.
    async fn publish(&self) -> TaskMessage {
        let message = message();
        self.store.create_document(&keys::job_spec(&message.job), &spec()).await.unwrap();
        self.bus.publish_task(subject(&message), &message).await.unwrap();
        message
    }

    async fn pull(&self) -> Pull {
        self.bus.task_messages(TaskKind::Ingest, DeviceClass::Any, Priority::Lo).await.unwrap()
    }

    /// Takes the one message and makes an attempt at it.
    async fn attempt(&self, perform: Perform) -> Ended {
        let delivery = delivered(&mut self.pull().await).await;
        within(self.attempts(perform).attempt(delivery, Instant::now(), 1)).await
    }

    async fn record(&self, message: &TaskMessage) -> Option<TaskRecord> {
        self.store.document(&keys::task_record(&message.job, &message.task)).await.unwrap()
    }

    /// The newest event of a kind.
    async fn event(&self, message: &TaskMessage, what: &str) -> Option<TaskNews> {
        let stream = self.bus.jetstream().get_stream(subjects::EVENTS_STREAM).await.unwrap();
        let subject = subjects::task_event(&message.job, &message.task, what);
        let stored = stream.get_last_raw_message_by_subject(&subject).await.ok()?;
        Some(codec::decode::<TaskEvent>(&stored.payload, Encoding::Bincode).unwrap().what)
    }

    async fn queued(&self) -> u64 {
        let mut stream = self.bus.jetstream().get_stream(subjects::JOBS_STREAM).await.unwrap();
        stream.info().await.unwrap().state.messages
    }
}

/// The server that the environment, the PATH or `target/tools` has; without one the tests fail.
fn nats_server() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/nats-server");
    let named = std::env::var_os("LIKENESS_NATS_SERVER").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|folder| folder.join("nats-server")).find(|path| path.is_file());
    let found = named.or(on_path).or_else(|| tools.is_file().then_some(tools));
    found.expect("a nats-server: set LIKENESS_NATS_SERVER, put it on the PATH, or into target/tools")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
}

async fn delivered(pull: &mut Pull) -> Delivery {
    within(async {
        loop {
            if let Some(delivery) = pull.next().await.unwrap() {
                return delivery;
            }
        }
    })
    .await
}

fn message() -> TaskMessage {
    let (job, task) = (JobId::new("job").unwrap(), TaskId::new("scan").unwrap());
    TaskMessage { job, run: RunNumber(1), task, work: TaskWork::IngestScan }
}

fn subject(message: &TaskMessage) -> String {
    subjects::task(TaskKind::Ingest, DeviceClass::Any, Priority::Lo, &message.job, &message.task)
}

fn spec() -> JobSpec {
    let source = IngestSource::Celeba { dir: "nowhere".into() };
    let work = JobWork::Ingest { dataset: Name::new("d").unwrap(), source, part_rows: 1 };
    JobSpec { work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
}

fn output(key: &str) -> TaskOutput {
    TaskOutput::Manifest { key: key.into() }
}

fn record(message: &TaskMessage) -> TaskRecord {
    TaskRecord {
        job: message.job.clone(),
        run: message.run,
        task: message.task.clone(),
        worker: WorkerId::new("other").unwrap(),
        attempt: 1,
        started_ms: 1,
        finished_ms: 2,
        device_ms: 3,
        output: output("theirs"),
    }
}

const OURS: Perform = |_| Box::pin(async { Ok(output("ours")) });
const FOR_EVER: Perform = |_| Box::pin(std::future::pending());

#[tokio::test]
async fn a_task_that_succeeds_leaves_one_record_its_events_and_no_message() {
    let bench = Bench::start().await;
    let message = bench.publish().await;
    assert!(matches!(bench.attempt(OURS).await, Ended::Done));
    let record = bench.record(&message).await.unwrap();
    assert_eq!((record.output, record.attempt), (output("ours"), 1));
    assert_eq!(bench.event(&message, "started").await, Some(TaskNews::Started));
    assert!(matches!(bench.event(&message, "done").await, Some(TaskNews::Done { adopted: false, .. })));
    assert_eq!(bench.queued().await, 0);
}

#[tokio::test]
async fn a_record_that_is_there_is_adopted_without_computing() {
    static COMPUTED: AtomicUsize = AtomicUsize::new(0);
    let counting: Perform = |_| {
        COMPUTED.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(output("ours")) })
    };
    let bench = Bench::start().await;
    let message = bench.publish().await;
    bench.store.create_document(&keys::task_record(&message.job, &message.task), &record(&message)).await.unwrap();
    assert!(matches!(bench.attempt(counting).await, Ended::Nothing));
    assert_eq!(COMPUTED.load(Ordering::Relaxed), 0);
    assert_eq!(bench.event(&message, "done").await, Some(TaskNews::Done { adopted: true, device_ms: 0 }));
    assert_eq!(bench.queued().await, 0);
}

#[tokio::test]
async fn of_two_commits_the_first_record_stays_and_the_other_adopts_it() {
    let beaten: Perform = |cx: &TaskContext| {
        Box::pin(async {
            let key = keys::task_record(cx.job(), &cx.message().task);
            cx.store.create_document(&key, &record(cx.message())).await?;
            Ok(output("ours"))
        })
    };
    let bench = Bench::start().await;
    let message = bench.publish().await;
    bench.attempt(beaten).await;
    assert_eq!(bench.record(&message).await.unwrap().output, output("theirs"));
    assert!(matches!(bench.event(&message, "done").await, Some(TaskNews::Done { adopted: true, .. })));
    assert_eq!(bench.queued().await, 0);
}

#[tokio::test]
async fn a_panic_is_a_reported_failure_and_the_message_comes_back_later() {
    let panicking: Perform =
        |cx| Box::pin(async { cx.device.run::<()>(|_| panic!("shape mismatch")).await.map(|()| output("never")) });
    let bench = Bench::start().await;
    let message = bench.publish().await;
    let failed = Instant::now();
    assert!(matches!(bench.attempt(panicking).await, Ended::Failed { kind: TaskErrorKind::Transient, .. }));
    let expected = TaskNews::Failed { error: "panicked: shape mismatch".into(), retryable: true };
    assert_eq!(bench.event(&message, "failed").await, Some(expected));
    let again = delivered(&mut bench.pull().await).await;
    assert_eq!(again.deliveries, 2);
    assert!(failed.elapsed() >= Duration::from_secs(1), "deliveries are not burnt");
}

#[tokio::test]
async fn bad_input_ends_the_message_for_good() {
    let invalid: Perform = |_| Box::pin(async { Err(TaskError::invalid("no such column")) });
    let bench = Bench::start().await;
    let message = bench.publish().await;
    bench.attempt(invalid).await;
    let expected = TaskNews::Failed { error: "no such column".into(), retryable: false };
    assert_eq!(bench.event(&message, "failed").await, Some(expected));
    assert_eq!(bench.queued().await, 0);
}

/// Blocks the one thread of the runtime, as SIGSTOP would: renewals are late.
#[tokio::test]
async fn after_a_late_renewal_nothing_more_is_said() {
    let stalled: Perform = |_| {
        Box::pin(async {
            std::thread::sleep(ACK_WAIT + ACK_WAIT / 4);
            Ok(output("late"))
        })
    };
    let bench = Bench::start().await;
    let message = bench.publish().await;
    assert!(matches!(bench.attempt(stalled).await, Ended::Failed { kind: TaskErrorKind::LeaseLost, .. }));
    assert_eq!(bench.record(&message).await, None);
    for silent in ["done", "failed", "released"] {
        assert_eq!(bench.event(&message, silent).await, None, "{silent}");
    }
    let again = delivered(&mut bench.pull().await).await;
    assert_eq!(again.deliveries, 2, "the message is the broker's to give");
}

#[tokio::test]
async fn a_long_task_keeps_its_message_by_renewals() {
    let long: Perform = |cx| {
        Box::pin(async {
            let sleep = |_: &_| {
                std::thread::sleep(ACK_WAIT * 2);
                Ok(())
            };
            cx.device.run(sleep).await?;
            Ok(output("ours"))
        })
    };
    let bench = Bench::start().await;
    let message = bench.publish().await;
    assert!(matches!(bench.attempt(long).await, Ended::Done));
    let record = bench.record(&message).await.unwrap();
    assert_eq!(record.attempt, 1);
    assert!(record.device_ms >= 3000, "{}", record.device_ms);
}

#[tokio::test]
async fn a_task_of_a_run_that_is_closed_stops_soon() {
    let bench = Bench::start().await;
    let message = bench.publish().await;
    let outcome = Outcome { job: message.job.clone(), run: message.run, closed_ms: 1, result: RunResult::Cancelled };
    let close = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        bench.store.create_document(&keys::job_outcome(&message.job, message.run), &outcome).await.unwrap();
    };
    let (ended, ()) = tokio::join!(bench.attempt(FOR_EVER), close);
    assert!(matches!(ended, Ended::Failed { kind: TaskErrorKind::Cancelled, .. }));
    assert_eq!(bench.event(&message, "failed").await, None);
    assert_eq!(bench.queued().await, 0);
}

#[tokio::test]
async fn what_is_no_task_is_removed_and_what_is_newer_is_given_back() {
    let bench = Bench::start().await;
    let jetstream = bench.bus.jetstream();
    jetstream.publish(subject(&message()), "gibberish".into()).await.unwrap().await.unwrap();
    assert!(matches!(bench.attempt(OURS).await, Ended::Nothing));
    assert_eq!(bench.queued().await, 0);
    let newer = r#"{"message":"task","version":99,"body":null}"#;
    jetstream.publish(subject(&message()), newer.into()).await.unwrap().await.unwrap();
    assert!(matches!(bench.attempt(OURS).await, Ended::Nothing));
    assert_eq!(bench.queued().await, 1);
}

#[tokio::test]
async fn a_task_of_a_job_that_a_newer_program_wrote_is_given_back_and_no_failure() {
    let bench = Bench::start().await;
    let message = message();
    let newer = r#"{"message":"job-spec","version":99,"body":null}"#.as_bytes();
    bench.store.create_object(keys::job_spec(&message.job), newer.into(), Digest::of(newer)).await.unwrap();
    bench.bus.publish_task(subject(&message), &message).await.unwrap();
    assert!(matches!(bench.attempt(FOR_EVER).await, Ended::Failed { kind: TaskErrorKind::Newer, .. }));
    assert_eq!(bench.event(&message, "released").await, Some(TaskNews::Released));
    assert_eq!((bench.event(&message, "failed").await, bench.queued().await), (None, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_leaves_gives_its_task_back() {
    let bench = Bench::start().await;
    let message = bench.publish().await;
    let shutdown = Shutdown::default();
    let worker = Worker::start(Arc::new(settings(&bench)), Device::Cpu, shutdown.clone(), FOR_EVER).await.unwrap();
    let running = tokio::spawn(worker.run());
    within(async {
        while bench.event(&message, "started").await.is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    shutdown.begin(Duration::from_secs(1)).await;
    assert_eq!(within(running).await.unwrap().unwrap(), Leaving::Asked);
    assert_eq!(bench.event(&message, "released").await, Some(TaskNews::Released));
    assert_eq!(delivered(&mut bench.pull().await).await.deliveries, 2);
}

fn settings(bench: &Bench) -> Settings {
    Settings {
        worker: WorkerId::new("w1").unwrap(),
        kinds: vec![TaskKind::Ingest],
        searches: false,
        device: DeviceName::Cpu,
        threads: 1,
        winograd: Winograd::default(),
        cache_bytes: 0,
        approximate_rows: None,
        grace_period: Duration::from_secs(1),
        store: bench.folder.path().join("store").to_str().unwrap().into(),
        nats: bench.settings.clone(),
        host: "test".into(),
        search: SearchSettings::new(2, Duration::from_secs(600)),
    }
}
