//! Coordinators over a real nats-server and a real folder, with workers that compute nothing.
//!
//! Every test waits for a condition under a deadline and never sleeps for a result.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod receiver;
mod retention;
mod schedules;
mod server;
mod usage;
mod webhooks;
mod worker;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use likeness::shell::{self, CoordinatorSettings};
use likeness_contract::ids::{JobId, Name, RunNumber};
use likeness_contract::jobs::{
    DatasetSelector, DeviceClass, EmbedRequest, EvaluateStage, GenerationRef, IngestSource, JobOptions, JobRequest,
    Outcome, Priority, RequestedWork, RunResult, TaskMessage, TrainRequest,
};
use likeness_contract::messages::{
    AliasState, ApiErrorKind, ApiReply, ApiRequest, DeadLetter, JobState, JobSummary, Placement,
};
use likeness_contract::settings::{
    Architecture, EvaluateSettings, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings,
};
use likeness_contract::{codec, keys, subjects};
use likeness_link::store::faulty::FaultyStore;
use likeness_link::{Bus, Client, ClientError, ErrorKind, NatsSettings, Store, Timings, WebhookSecrets};
use tokio_util::sync::CancellationToken;

use self::server::Server;
use self::worker::{Conduct, Worker};

/// Everything that is waited for must come within this time.
const DEADLINE: Duration = Duration::from_secs(60);
const ACK_WAIT: Duration = Duration::from_millis(1500);
const WEBHOOK_SECRET: &str = "a-secret-that-only-tests-know";
const LEASE: Duration = Duration::from_millis(1500);

/// A server, a store and a client; coordinators and workers come and go.
struct Cluster {
    server: Server,
    store: Store,
    client: Client,
}

/// A coordinator on threads of its own; dropped, it ends as a process that is killed: nothing is given back.
struct Coordinator {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<likeness_link::Result<()>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Coordinator {
    async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// Over a folder that is left to the system's temporary folder when the process ends.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        Self::over(Store::open(dir.to_str().unwrap()).await.unwrap()).await
    }

    async fn over(store: Store) -> Self {
        let server = Server::start();
        let bus = Bus::connect(&settings(&server), "test").await.unwrap();
        bus.ensure_topology().await.unwrap();
        let client = Client::over(bus, store.clone());
        Self { server, store, client }
    }

    fn coordinator(&self) -> Coordinator {
        let mut settings = CoordinatorSettings::new(settings(&self.server), self.store.url());
        settings.promotion_limit = Duration::from_secs(2);
        settings.webhook_secrets = WebhookSecrets::parse(WEBHOOK_SECRET).unwrap();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let task = runtime.spawn(shell::run_over(settings, self.store.clone(), stop.clone()));
        Coordinator { stop, task, runtime: Some(runtime) }
    }

    fn bus(&self) -> Bus {
        self.client.bus().clone()
    }

    fn worker(&self) -> Worker {
        Worker::diligent(self.bus(), self.store.clone())
    }

    fn worker_that(&self, choose: impl Fn(&TaskMessage) -> Conduct + Send + Sync + 'static) -> Worker {
        Worker::start(self.bus(), self.store.clone(), choose)
    }

    /// Submits as soon as somebody leads.
    async fn submit(&self, request: JobRequest) -> JobSummary {
        let submitted = eventually("the job is accepted", || async {
            match self.client.submit(request.clone()).await {
                Ok(summary) => Some(Ok(summary)),
                Err(ClientError::Link(_)) => None,
                Err(ClientError::Api(error)) if error.kind == ApiErrorKind::Unavailable => None,
                Err(error) => Some(Err(error)),
            }
        });
        submitted.await.unwrap()
    }

    async fn outcome(&self, job: &JobId, run: u32) -> RunResult {
        let key = keys::job_outcome(job, RunNumber(run));
        eventually("the run is closed", || async { self.store.document::<Outcome>(&key).await.unwrap() }).await.result
    }

    async fn state(&self, job: &JobId, wanted: JobState) {
        let what = format!("`{job}` is {}", wanted.name());
        let look = || async { self.client.show(job).await.ok().filter(|detail| detail.summary.state == wanted) };
        eventually(&what, look).await;
    }

    /// Messages in the work queue.
    async fn queued(&self) -> u64 {
        let stream = self.bus().jetstream().get_stream(subjects::JOBS_STREAM).await;
        stream.map_or(0, |stream| stream.cached_info().state.messages)
    }

    async fn wait_for_queued(&self, wanted: u64) {
        let what = format!("{wanted} messages lie in the queue");
        eventually(&what, || async { (self.queued().await == wanted).then_some(()) }).await;
    }

    async fn dataset(&self) -> JobId {
        let job = self.submit(ingest("faces")).await.job;
        assert_eq!(self.outcome(&job, 1).await, DONE);
        job
    }
}

fn settings(server: &Server) -> NatsSettings {
    let mut timings = Timings::from_ack_wait(ACK_WAIT, LEASE);
    timings.sweep_every = Duration::from_millis(500);
    NatsSettings { url: server.url(), credentials: None, ca: None, timings }
}

async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

const DONE: RunResult = RunResult::Done { gate: None, release: None };

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn request(work: RequestedWork) -> JobRequest {
    JobRequest { id: None, work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
}

/// 25 rows in parts of one: 25 parts, more than a window.
fn ingest(dataset: &str) -> JobRequest {
    let source = IngestSource::Celeba { dir: "/data".into() };
    request(RequestedWork::Ingest { dataset: name(dataset), source, part_rows: 1 })
}

fn pipeline(seed: u64) -> JobRequest {
    let dataset = || DatasetSelector { dataset: name("faces"), version: None };
    let model = ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: 16,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(64),
    };
    let train = TrainSettings { epochs: 1, batch_size: 20, inner_steps: 2, seed, ..TrainSettings::default() };
    request(RequestedWork::Pipeline {
        train: TrainRequest { dataset: dataset(), model, train },
        embed: EmbedRequest { gallery: name("all"), dataset: dataset(), rows: Split::All, shard_rows: 45 },
        evaluate: EvaluateStage { rows: Split::Test, settings: EvaluateSettings::default() },
        alias: name("live"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_accepted_done_and_closed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    for key in [keys::job_spec(&job), keys::job_plan(&job), keys::job_run(&job, RunNumber(1))] {
        assert!(cluster.store.get(&key).await.unwrap().is_some(), "accepted without `{key}`");
    }
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
    cluster.state(&job, JobState::Done).await;
    let detail = cluster.client.show(&job).await.unwrap();
    assert_eq!((detail.summary.done, detail.summary.tasks, detail.device_ms), (27, 27, 27 * 5));
    cluster.wait_for_queued(0).await;
    let again = cluster.submit(ingest("faces")).await;
    assert_eq!((again.job, again.state), (job.clone(), JobState::Done), "the same spec is the same job");
    let datasets = cluster.client.datasets().await.unwrap();
    assert_eq!((datasets.len(), &datasets[0].dataset.version), (1, &job));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_with_another_spec_is_refused() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let named = |dataset| JobRequest { id: Some(JobId::new("mine").unwrap()), ..ingest(dataset) };
    cluster.submit(named("faces")).await;
    match cluster.client.submit(named("places")).await {
        Err(ClientError::Api(error)) => assert_eq!(error.kind, ApiErrorKind::Conflict, "{error}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_empties_the_queue_and_a_retry_keeps_every_record() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let worker = cluster.worker_that(|message| match message.task.as_str() {
        "part-00020" => Conduct::Fail,
        _ => Conduct::Work,
    });
    let record = |task: &str| format!("{}/{task}.json", keys::task_records(&job));
    let (early, late) = (record("part-00019"), record("dataset"));
    eventually("a part is done", || async { cluster.store.get(&early).await.unwrap() }).await;
    let cancelled = cluster.client.cancel(&job).await;
    drop(worker);
    if let Ok(summary) = cancelled {
        assert_eq!(summary.state, JobState::Cancelled);
    }
    cluster.wait_for_queued(0).await;
    let kept: HashSet<String> = cluster.store.list(&keys::task_records(&job)).await.unwrap().into_iter().collect();
    let bytes = cluster.store.get(&early).await.unwrap();
    assert_eq!(cluster.client.retry(&job).await.unwrap().run, RunNumber(2));
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 2).await, DONE);
    let all: HashSet<String> = cluster.store.list(&keys::task_records(&job)).await.unwrap().into_iter().collect();
    assert!(kept.is_subset(&all) && all.contains(&late));
    assert_eq!(cluster.store.get(&early).await.unwrap(), bytes);
    match cluster.client.retry(&job).await {
        Err(ClientError::Api(error)) => assert_eq!(error.kind, ApiErrorKind::Conflict),
        other => panic!("a done job was retried: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_keeps_failing_ends_as_a_dead_letter_and_its_run_as_failed() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let _worker = cluster.worker_that(|message| match message.task.as_str() {
        "part-00003" => Conduct::Fail,
        "part-00004" => Conduct::Refuse,
        _ => Conduct::Work,
    });
    let RunResult::Failed { failures } = cluster.outcome(&job, 1).await else { panic!("not failed") };
    let found: Vec<(&str, u32)> = failures.iter().map(|f| (f.task.as_str(), f.reported)).collect();
    assert_eq!(found, [("part-00003", 5), ("part-00004", 1)]);
    assert_eq!(failures[0].error, "the disk is on fire");
    let records = cluster.store.list(&keys::task_records(&job)).await.unwrap();
    assert_eq!(records.len(), 24, "everything else was finished: scan and 23 parts");
    let bus = cluster.bus();
    let subject = subjects::dead(&job, &failures[0].task);
    let letter = eventually("the dead letter lies there", || async {
        let stream = bus.jetstream().get_stream(subjects::DEAD_STREAM).await.ok()?;
        stream.get_last_raw_message_by_subject(&subject).await.ok()
    });
    let letter: DeadLetter = codec::decode(&letter.await.payload, codec::Encoding::Bincode).unwrap();
    assert_eq!(letter.failure, failures[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_events_are_made_up_for_by_the_sweep() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker_that(|_| Conduct::Mute);
    let job = cluster.submit(ingest("faces")).await.job;
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_none_are_left_out() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let subjects = [
        subjects::task_event(&job, &likeness_contract::jobs::task_ids::scan(), "done"),
        subjects::job_event(&job, "closed"),
        "likeness.v1.event.x".into(),
        subjects::api("submit"),
    ];
    for subject in subjects {
        for payload in [&b""[..], b"LKN1", b"{}", &[0xff; 100]] {
            cluster.bus().client().publish(subject.clone(), payload.to_vec().into()).await.unwrap();
        }
    }
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_coordinator_takes_over_when_the_leader_is_killed() {
    let cluster = Cluster::start().await;
    let first = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let leader = cluster.client.status().await.unwrap().leader;
    let second = cluster.coordinator();
    let worker = cluster.worker_that(|message| match message.task.as_str() {
        "part-00010" => Conduct::Fail,
        _ => Conduct::Work,
    });
    let tenth = format!("{}/part-00009.json", keys::task_records(&job));
    eventually("half of it is done", || async { cluster.store.get(&tenth).await.unwrap() }).await;
    drop(first);
    drop(worker);
    let _worker = cluster.worker();
    let outcome = cluster.outcome(&job, 1).await;
    let failed = matches!(&outcome, RunResult::Failed { failures } if failures.len() == 1);
    assert!(outcome == DONE || failed, "{outcome:?}");
    let taken_over = || async {
        let status = cluster.client.status().await.ok()?;
        (status.leader != leader).then_some(status)
    };
    assert_eq!(eventually("another leads", taken_over).await.open_jobs, 0);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_everything_is_filled_again_from_the_store() {
    let mut cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    cluster.wait_for_queued(1).await;
    cluster.server.wipe();
    cluster.wait_for_queued(1).await;
    let worker = cluster.worker();
    let fifth = format!("{}/part-00004.json", keys::task_records(&job));
    eventually("some of it is done", || async { cluster.store.get(&fifth).await.unwrap() }).await;
    cluster.server.wipe();
    drop(worker);
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_broker_is_waited_for() {
    let mut cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    cluster.wait_for_queued(1).await;
    cluster.server.stop();
    tokio::time::sleep(LEASE).await;
    cluster.server.start_again();
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_queue_is_filled_again_by_the_sweep_and_by_hand() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    cluster.submit(ingest("faces")).await;
    cluster.wait_for_queued(1).await;
    let bus = cluster.bus();
    bus.purge_subject(subjects::JOBS_STREAM, subjects::JOBS_ALL).await.unwrap();
    assert_eq!(cluster.client.reconcile().await.unwrap(), 1);
    cluster.wait_for_queued(1).await;
    bus.purge_subject(subjects::JOBS_STREAM, subjects::JOBS_ALL).await.unwrap();
    cluster.wait_for_queued(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_makes_the_publisher_wait_and_loses_nothing() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    // Who begins to lead brings the stream's settings up to date.
    eventually("somebody leads", || async { cluster.client.status().await.ok() }).await;
    let bus = cluster.bus();
    let stream = bus.jetstream().get_stream(subjects::JOBS_STREAM).await.unwrap();
    let roomy = stream.cached_info().config.clone();
    // Room for about two messages.
    let tight = async_nats::jetstream::stream::Config { max_bytes: 600, ..roomy.clone() };
    bus.jetstream().update_stream(tight).await.unwrap();
    let job = cluster.submit(ingest("faces")).await.job;
    let worker = cluster.worker();
    let fifth = format!("{}/part-00004.json", keys::task_records(&job));
    eventually("parts go through one by one", || async { cluster.store.get(&fifth).await.unwrap() }).await;
    drop(worker);
    assert!(cluster.queued().await < 16, "the queue holds less than a window");
    bus.jetstream().update_stream(roomy).await.unwrap();
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_stream_is_made_again() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    cluster.wait_for_queued(1).await;
    for stream in [subjects::JOBS_STREAM, subjects::EVENTS_STREAM] {
        cluster.bus().jetstream().delete_stream(stream).await.unwrap();
    }
    cluster.wait_for_queued(1).await;
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_is_released_once_and_rolled_back() {
    let cluster = Cluster::start().await;
    let coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let first = cluster.submit(pipeline(1)).await.job;
    let RunResult::Done { gate: Some(_), release: Some(1) } = cluster.outcome(&first, 1).await else {
        panic!("not released")
    };
    let second = cluster.submit(pipeline(2)).await.job;
    let RunResult::Done { release: Some(2), .. } = cluster.outcome(&second, 1).await else { panic!("not released") };
    let releases = cluster.client.releases(Some(name("live"))).await.unwrap();
    assert_eq!(releases.iter().map(|r| r.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((&releases[1].job, releases[1].replaces), (&Some(second), Some(1)));
    assert!(releases[1].warnings[0].contains("no searcher"), "{:?}", releases[1].warnings);
    let back = cluster.client.rollback(name("live"), None).await.unwrap();
    assert_eq!((back.number, back.rolls_back_to, &back.model), (3, Some(1), &first));
    assert_eq!(serving(&cluster).await, Some(3));
    // What the bucket says is only a cache.
    let kv = cluster.bus().kv(subjects::ALIASES_BUCKET).await.unwrap();
    kv.put("live", &AliasState { serving: None, loading: None }).await.unwrap();
    coordinator.stop().await;
    let _coordinator = cluster.coordinator();
    eventually("the alias is told again", || async { serving(&cluster).await.filter(|release| *release == 3) }).await;
    match cluster.client.rollback(name("lve"), None).await {
        Err(ClientError::Api(error)) => assert_eq!(error.nearest, ["live"], "{error}"),
        Err(ClientError::Link(_)) => {}
        other => panic!("an unknown alias was rolled back: {other:?}"),
    }
}

async fn serving(cluster: &Cluster) -> Option<u64> {
    let kv = cluster.bus().kv(subjects::ALIASES_BUCKET).await.unwrap();
    let entry = kv.get::<AliasState>("live").await.unwrap()?;
    Some(entry.value.serving?.release)
}

/// A searcher that loads nothing and has these troubles; for ever.
async fn idle_searcher(bus: Bus, troubles: Vec<String>) {
    let worker = likeness_contract::ids::WorkerId::new("idle").unwrap();
    let presence = likeness_contract::messages::Presence {
        worker: worker.clone(),
        roles: Vec::new(),
        searches: true,
        device: "cpu".into(),
        device_class: DeviceClass::Cpu,
        host: "test".into(),
        version: "0".into(),
        task: None,
        draining: false,
    };
    let placement = Placement { worker, held: Vec::new(), troubles };
    loop {
        bus.kv(subjects::PLACEMENT_BUCKET).await.unwrap().put("idle", &placement).await.unwrap();
        bus.kv(subjects::PRESENCE_BUCKET).await.unwrap().put("idle", &presence).await.unwrap();
        tokio::time::sleep(LEASE / 3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_loaded_is_not_waited_for() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let id = JobId::new("damaged").unwrap();
    let generation = GenerationRef { gallery: name("all"), generation: id.clone() };
    let trouble = format!("{}its digest is wrong", Placement::trouble_with(&generation, Some(1)));
    let idle_searcher = tokio::spawn(idle_searcher(cluster.bus(), vec![trouble]));
    let job = cluster.submit(JobRequest { id: Some(id), ..pipeline(1) }).await.job;
    let RunResult::Failed { failures } = cluster.outcome(&job, 1).await else { panic!("released") };
    // The shards of these tests were never written.
    assert!(failures[0].error.starts_with("the searchers can't load it"), "{}", failures[0].error);
    assert!(failures[0].error.contains("some/object"), "{}", failures[0].error);
    idle_searcher.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_loaded_in_time_is_not_released() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let idle_searcher = tokio::spawn(idle_searcher(cluster.bus(), Vec::new()));
    let job = cluster.submit(pipeline(1)).await.job;
    let RunResult::Failed { failures } = cluster.outcome(&job, 1).await else { panic!("released") };
    assert_eq!(failures[0].task.as_str(), "promote");
    assert!(failures[0].error.contains("2 of 2 shards (0, 1) are not held"), "{}", failures[0].error);
    assert_eq!(serving(&cluster).await, None);
    idle_searcher.abort();
    cluster.client.retry(&job).await.unwrap();
    let RunResult::Done { release: Some(1), .. } = cluster.outcome(&job, 2).await else { panic!("not released") };
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_json_with_json() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let question = codec::encode(&ApiRequest::Show { job: job.clone() }, codec::Encoding::Json).unwrap();
    let reply = cluster.bus().client().request(subjects::api("show"), question.into()).await.unwrap();
    let ApiReply::JobDetail(detail) = codec::decode(&reply.payload, codec::Encoding::Json).unwrap() else { panic!() };
    assert_eq!(detail.summary.job, job);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_answers_is_named_within_seconds() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nats = NatsSettings { url: format!("nats://{free}"), credentials: None, ca: None, timings: Timings::default() };
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let settings = CoordinatorSettings::new(nats, dir.path().to_str().unwrap());
    let error = shell::run(settings, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.to_string().contains(&free.to_string()), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// A cluster whose store fails on demand.
async fn faulty_cluster() -> (Cluster, FaultyStore) {
    let faulty = FaultyStore::in_memory();
    (Cluster::over(Store::over(Arc::new(faulty.clone()), "memory:")).await, faulty)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ignores_create_if_absent_is_refused() {
    let (cluster, faulty) = faulty_cluster().await;
    faulty.set(|faults| faults.ignores_create = true);
    let mut coordinator = cluster.coordinator();
    let error = (&mut coordinator.task).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Refused, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_full_disk_kept_out_is_not_half_accepted() {
    let (cluster, faulty) = faulty_cluster().await;
    let _coordinator = cluster.coordinator();
    let accepted = cluster.submit(ingest("first")).await.job;
    let only = |faults: &mut likeness_link::store::faulty::Faults| {
        (faults.full, faults.only) = (true, Some("runs/".into()));
    };
    faulty.set(only);
    match cluster.client.submit(ingest("second")).await {
        Err(ClientError::Api(error)) => {
            assert_eq!(error.kind, ApiErrorKind::Unavailable);
            assert!(error.message.contains("full"), "{error}");
        }
        other => panic!("accepted on a full disk: {other:?}"),
    }
    let jobs = cluster.client.list(10).await.unwrap();
    assert_eq!(jobs.iter().map(|job| &job.job).collect::<Vec<_>>(), [&accepted]);
    faulty.set(|faults| faults.full = false);
    let second = cluster.submit(ingest("second")).await.job;
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&second, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_waits_for_room_on_the_disk() {
    let (cluster, faulty) = faulty_cluster().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    faulty.set(|faults| (faults.full, faults.only) = (true, Some("outcomes/".into())));
    let _worker = cluster.worker();
    let last = format!("{}/dataset.json", keys::task_records(&job));
    eventually("everything is done", || async { cluster.store.get(&last).await.unwrap() }).await;
    let all_done = || async { cluster.client.show(&job).await.ok().filter(|d| d.summary.done == 27) };
    let detail = eventually("the leader knows it", all_done).await;
    assert_eq!(detail.summary.state, JobState::Running);
    faulty.set(|faults| faults.full = false);
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_reports_failures_after_success_closes_a_run_once() {
    let (cluster, faulty) = faulty_cluster().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    faulty.set(|faults| faults.errors_after_success = 20);
    let _worker = cluster.worker();
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
    cluster.state(&job, JobState::Done).await;
    assert_eq!(cluster.store.list(&keys::job_outcomes(&job)).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_fails_the_run_and_is_named() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let job = cluster.submit(ingest("faces")).await.job;
    let key = format!("{}/scan.json", keys::task_records(&job));
    cluster.store.create(&key, "{ no record".into()).await.unwrap();
    let RunResult::Failed { failures } = cluster.outcome(&job, 1).await else { panic!("not failed") };
    assert_eq!(failures.len(), 1);
    assert!(failures[0].error.contains("tasks/scan.json"), "{}", failures[0].error);
}

/// Makes a document of the store garbage.
fn damage(cluster: &Cluster, key: &str) {
    std::fs::write(std::path::Path::new(cluster.store.url()).join(key), "{ garbage").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_document_hides_nothing_else_and_is_named() {
    let cluster = Cluster::start().await;
    let coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    let dataset = cluster.dataset().await;
    for seed in 1..=2 {
        let job = cluster.submit(pipeline(seed)).await.job;
        assert!(matches!(cluster.outcome(&job, 1).await, RunResult::Done { .. }));
    }
    let again = cluster.submit(pipeline(2)).await;
    assert_eq!(again.state, JobState::Done, "the same pipeline after its own release is the same job");

    damage(&cluster, &keys::release(&name("live"), 1));
    let releases = cluster.client.releases(Some(name("live"))).await.unwrap();
    assert_eq!(releases.len(), 1);
    assert!(releases[0].warnings.iter().any(|w| w.contains("00000001.json")), "{:?}", releases[0].warnings);

    damage(&cluster, &keys::dataset_manifest(&name("faces"), &dataset));
    let datasets = cluster.client.datasets().await.unwrap();
    assert_eq!((datasets.len(), datasets[0].parts.len()), (1, 0));
    assert!(datasets[0].warnings[0].contains("manifest.json"), "{:?}", datasets[0].warnings);

    damage(&cluster, &keys::job_outcome(&again.job, RunNumber(1)));
    coordinator.stop().await;
    let _coordinator = cluster.coordinator();
    let refusal = eventually("another leads", || async {
        match cluster.client.show(&again.job).await {
            Err(ClientError::Api(error)) if error.kind != ApiErrorKind::Unavailable => Some(error),
            Err(_) => None,
            Ok(detail) => panic!("shown: {detail:?}"),
        }
    });
    let refusal = refusal.await;
    assert_eq!(refusal.kind, ApiErrorKind::Conflict);
    assert!(refusal.message.contains("outcomes/00001.json"), "{}", refusal.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_names_a_report_of_its_generation_or_none() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    let dataset = cluster.dataset().await;
    let job = cluster.submit(pipeline(1)).await.job;
    assert!(matches!(cluster.outcome(&job, 1).await, RunResult::Done { .. }));
    let generation = GenerationRef { gallery: name("all"), generation: job.clone() };
    match cluster.client.promote(name("other"), generation, Some(dataset)).await {
        Err(ClientError::Api(error)) => assert_eq!(error.kind, ApiErrorKind::Invalid, "{error}"),
        other => panic!("promoted with the report of an ingest: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_leader_before_is_told_in_full() {
    let cluster = Cluster::start().await;
    let first = cluster.coordinator();
    let worker = cluster.worker();
    let job = cluster.dataset().await;
    cluster.state(&job, JobState::Done).await;
    drop(worker);
    first.stop().await;
    let _second = cluster.coordinator();
    let list = || async { cluster.client.list(10).await.ok() };
    let listed = eventually("another leads", list).await;
    assert_eq!((listed[0].done, listed[0].tasks, listed[0].state), (27, 27, JobState::Done));
    assert_eq!(cluster.client.show(&job).await.unwrap().device_ms, 27 * 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_take_the_lease_from_each_other_close_a_run_once() {
    let cluster = Cluster::start().await;
    let _coordinators = [cluster.coordinator(), cluster.coordinator(), cluster.coordinator()];
    let job = cluster.submit(ingest("faces")).await.job;
    let _worker = cluster.worker();
    let leases = cluster.bus().kv(subjects::LEASES_BUCKET).await.unwrap();
    let key = keys::job_outcome(&job, RunNumber(1));
    let outcome = eventually("the run is closed", || async {
        leases.delete(subjects::LEADER_KEY).await.unwrap();
        cluster.store.document::<Outcome>(&key).await.unwrap()
    });
    assert_eq!(outcome.await.result, DONE);
    cluster.state(&job, JobState::Done).await;
    cluster.wait_for_queued(0).await;
}
