//! A system of its own for one scenario.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt;
use likeness_contract::codec::Message;
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{JobRequest, Outcome, RunResult, TaskRecord};
use likeness_contract::keys;
use likeness_contract::messages::{TaskEvent, TaskNews};
use likeness_link::{Bus, Client, NatsSettings, Store, Timings, WatchEvent};
use tempfile::TempDir;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::broker::Broker;
use crate::process::{Build, Finished, Process, binary, finish};
use crate::s3::S3;
use crate::trio;
use crate::wait::{deadline, until};

/// `ack_wait` of all processes.
pub const ACK_WAIT: Duration = Duration::from_millis(2000);
/// How long leases and presences live.
pub const LEASE: Duration = Duration::from_millis(2000);

/// Broker, store and logs in a temporary folder; processes are started by the scenario.
#[derive(Debug)]
pub struct Cluster {
    /// The broker.
    pub broker: Broker,
    /// The other nodes, where the broker is a cluster.
    pub others: Vec<Broker>,
    /// The store, where it is not a folder.
    pub s3: Option<S3>,
    dir: TempDir,
    /// The folder that `infra/nats/setup` wrote, where the broker lets nobody in without a key.
    keys: Option<PathBuf>,
    _turn: OwnedMutexGuard<()>,
}

/// Scenarios of one test binary take turns.
async fn turn() -> OwnedMutexGuard<()> {
    static TURN: OnceLock<Arc<Mutex<()>>> = OnceLock::new();
    TURN.get_or_init(Arc::default).clone().lock_owned().await
}

impl Cluster {
    /// A broker and an empty store.
    pub async fn start() -> Self {
        let turn = turn().await;
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(dir.path().join("logs")).expect("a folder for logs");
        let broker = Broker::start(&dir.path().join("nats"));
        Self { broker, others: Vec::new(), s3: None, dir, keys: None, _turn: turn }
    }

    /// The same with a store that is reached over HTTP.
    pub async fn start_over_s3() -> Self {
        Self { s3: Some(S3::start(false).await), ..Self::start().await }
    }

    /// The same with a broker of three nodes.
    pub async fn start_trio() -> Self {
        let turn = turn().await;
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(dir.path().join("logs")).expect("a folder for logs");
        let mut others = trio::start(&dir.path().join("nats"));
        let broker = others.remove(0);
        Self { broker, others, s3: None, dir, keys: None, _turn: turn }
    }

    /// The same with a broker that `infra/nats/setup` configured: TLS, and a user for every role.
    pub async fn start_secured() -> Self {
        let turn = turn().await;
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir_all(dir.path().join("logs")).expect("a folder for logs");
        let keys = dir.path().join("keys");
        let mut setup = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/nats/setup"));
        setup.arg(&keys).env("LIKENESS", binary("likeness"));
        let done = finish(setup).await;
        assert_eq!(done.code, 0, "{}", done.err);
        let broker = Broker::start_with(&dir.path().join("nats"), Some(keys.join("server.conf")), true);
        Self { broker, others: Vec::new(), s3: None, dir, keys: Some(keys), _turn: turn }
    }

    /// The scenario's own folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The store's folder.
    pub fn store_dir(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Where the store is, for programs.
    pub fn store_url(&self) -> String {
        let folder = || self.store_dir().to_str().expect("a plain path").to_string();
        self.s3.as_ref().map_or_else(folder, S3::url)
    }

    /// Addresses of all nodes of the broker.
    pub fn nats_url(&self) -> String {
        let nodes: Vec<String> = std::iter::once(&self.broker).chain(&self.others).map(Broker::url).collect();
        nodes.join(",")
    }

    /// A program of ours with the addresses and times of this cluster in its environment.
    pub fn command(&self, program: &str) -> Command {
        self.command_of(&Build::under_test(), program)
    }

    /// [`Cluster::command`] of any build.
    pub fn command_of(&self, build: &Build, program: &str) -> Command {
        let mut command = Command::new(build.program(program));
        command
            .current_dir(self.dir())
            .env("LIKENESS_NATS", self.nats_url())
            .env("LIKENESS_STORE", self.store_url())
            .env("LIKENESS_ACK_WAIT_MS", ACK_WAIT.as_millis().to_string())
            .env("LIKENESS_LEASE_MS", LEASE.as_millis().to_string())
            .env_remove("LIKENESS_LOG");
        if let Some(s3) = &self.s3 {
            s3.found_by(&mut command);
        }
        if let Some(keys) = &self.keys {
            command.env("LIKENESS_NATS_CA", keys.join("ca.pem")).env("LIKENESS_CREDENTIALS", keys.join("operator.nk"));
        }
        command
    }

    /// Makes a command prove itself as `user`, where the broker asks for that.
    fn as_user(&self, command: &mut Command, user: &str) {
        if let Some(keys) = &self.keys {
            command.env("LIKENESS_CREDENTIALS", keys.join(format!("{user}.nk")));
        }
    }

    /// Starts a coordinator.
    pub fn coordinator(&self, name: &str) -> Process {
        self.coordinator_with(name, |_| ())
    }

    /// [`Cluster::coordinator`] with more in its environment.
    pub fn coordinator_with(&self, name: &str, environment: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.command("likeness");
        command.arg("coordinator").env("LIKENESS_LOG", "info");
        self.as_user(&mut command, "coordinator");
        environment(&mut command);
        Process::start(name, &self.dir().join("logs"), command)
    }

    /// Starts a worker with these roles: `train,embed`. Its id is new even if its name is not.
    pub fn worker(&self, name: &str, roles: &str) -> Process {
        self.worker_with(name, roles, |_| ())
    }

    /// [`Cluster::worker`] with more in its environment.
    pub fn worker_with(&self, name: &str, roles: &str, environment: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.command("likeness-worker");
        command.args(["--roles", roles, "--threads", "1"]).env("LIKENESS_LOG", "info");
        let user = match (roles == "search", roles.contains("search")) {
            (true, _) => "searcher",
            (_, true) => "machine",
            _ => "worker",
        };
        self.as_user(&mut command, user);
        environment(&mut command);
        Process::start(name, &self.dir().join("logs"), command)
    }

    /// Starts a worker with all roles that do tasks.
    pub fn task_worker(&self, name: &str) -> Process {
        self.worker(name, "ingest,train,embed,evaluate")
    }

    /// Runs the command line to its end.
    pub async fn cli(&self, args: &[&str]) -> Finished {
        let mut command = self.command("likeness");
        command.args(args);
        finish(command).await
    }

    /// How to reach the broker.
    pub fn nats(&self) -> NatsSettings {
        self.nats_as("operator")
    }

    /// The same for another user, where the broker asks who one is.
    pub fn nats_as(&self, user: &str) -> NatsSettings {
        let timings = Timings::from_ack_wait(ACK_WAIT, LEASE);
        let file = |name: &str| self.keys.as_ref().map(|keys| keys.join(name));
        let (credentials, ca) = (file(&format!("{user}.nk")), file("ca.pem"));
        NatsSettings { url: self.nats_url(), credentials, ca, timings }
    }

    /// The store, seen from the test.
    pub async fn store(&self) -> Store {
        match &self.s3 {
            Some(s3) => s3.store(),
            None => Store::open(&self.store_url()).await.expect("the store opens"),
        }
    }

    /// A client, once a coordinator answers.
    pub async fn client(&self) -> Client {
        let bus = Bus::connect(&self.nats(), "likeness-tests").await.expect("the broker is there");
        let client = Client::over(bus, self.store().await);
        until("a coordinator answers", async || client.status().await.ok()).await;
        client
    }

    /// A document of the store that must be there.
    pub async fn document<M: Message>(&self, key: &str) -> M {
        self.store().await.require(key).await.expect("a document")
    }
}

/// Submits a job; the coordinator may be restarting.
pub async fn submit(client: &Client, job: JobRequest) -> JobId {
    until("the job is accepted", async || match client.submit(job.clone()).await {
        Ok(summary) => Some(summary.job),
        Err(likeness_link::ClientError::Api(error)) => panic!("not accepted: {error}"),
        Err(_) => None,
    })
    .await
}

/// Waits for the end of a run, as the store tells it.
pub async fn outcome(client: &Client, job: &JobId, run: u32) -> RunResult {
    let key = keys::job_outcome(job, RunNumber(run));
    let what = format!("run {run} of `{job}` ends");
    until(&what, async || client.store().document::<Outcome>(&key).await.expect("the store answers")).await.result
}

/// Submits a job and waits until its first run is done.
pub async fn done(client: &Client, job: JobRequest) -> JobId {
    let job = submit(client, job).await;
    match outcome(client, &job, 1).await {
        RunResult::Done { .. } => job,
        other => panic!("job `{job}` ended otherwise: {other:?}"),
    }
}

/// All records of a job, sorted by task.
pub async fn records(client: &Client, job: &JobId) -> Vec<TaskRecord> {
    let mut records = Vec::new();
    for key in client.store().list(&keys::task_records(job)).await.expect("the store answers") {
        records.push(client.store().require(&key).await.expect("a record"));
    }
    records
}

/// The record of one task.
pub async fn record(client: &Client, job: &JobId, task: &TaskId) -> Option<TaskRecord> {
    client.store().document(&keys::task_record(job, task)).await.expect("the store answers")
}

/// Waits for an event of a task of the job's newest run that `wanted` accepts.
pub async fn event(client: &Client, job: &JobId, wanted: impl Fn(&TaskEvent) -> bool) -> TaskEvent {
    let search = async {
        let mut events = client.watch(job).await.expect("there is such a job");
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Task(event)) if wanted(&event) => return event,
                Ok(_) => {}
                Err(error) => panic!("the watch broke: {error}"),
            }
        }
        panic!("the run ended without the event")
    };
    tokio::time::timeout(deadline(), search).await.expect("the event comes before the deadline")
}

/// Waits until a task whose id starts so is being worked on.
pub async fn started(client: &Client, job: &JobId, task: &str) -> TaskEvent {
    event(client, job, |event| event.task.as_str().starts_with(task) && event.what == TaskNews::Started).await
}
