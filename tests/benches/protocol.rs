//! What the job protocol costs: tasks of no work through a real broker, coordinator and workers, and what deaths cost.
//!
//! `protocol [--tasks N,N] [--workers N]` prints one line of JSON for each work. Workers run in this process, each with everything but its
//! computation; the broker and the coordinators are programs of their own, whose processor time is read from the system.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench program that fails says where")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use candle_core::Device;
use clap::Parser;
use likeness_contract::ids::{JobId, RunNumber};
use likeness_contract::jobs::{
    DatasetSelector, DeviceClass, EmbedRequest, JobOptions, JobRequest, Outcome, Priority, RequestedWork, RunResult,
    TaskOutput, TaskWork,
};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::{Client, NatsSettings, Timings};
use likeness_tests::galleries::Made;
use likeness_tests::process::binary;
use likeness_tests::{Broker, Process, jobs, until};
use likeness_worker::args::Args as WorkerArgs;
use likeness_worker::runtime::shutdown::Shutdown;
use likeness_worker::runtime::{self, Perform};
use tokio::task::JoinHandle;

/// How long a task takes, milliseconds; of all workers of this process.
static TASK_MS: AtomicU64 = AtomicU64::new(0);
/// Tasks that were computed.
static COMPUTED: AtomicU64 = AtomicU64::new(0);

/// `ack_wait` and lease where deaths are measured: short, and told beside the figures.
const SHORT: Duration = Duration::from_secs(2);

#[derive(Parser)]
struct Args {
    /// Sizes of the jobs.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000")]
    tasks: Vec<usize>,
    /// Workers.
    #[arg(long, default_value_t = 8)]
    workers: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Broker, store and coordinators.
struct System {
    broker: Broker,
    dir: tempfile::TempDir,
    timings: Timings,
}

impl System {
    fn start(timings: Timings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { broker: Broker::start(&dir.path().join("nats")), dir, timings }
    }

    fn store(&self) -> String {
        self.dir.path().join("store").to_str().unwrap().into()
    }

    fn nats(&self) -> NatsSettings {
        NatsSettings { url: self.broker.url(), credentials: None, ca: None, timings: self.timings.clone() }
    }

    fn coordinator(&self, name: &str) -> Process {
        let mut command = std::process::Command::new(binary("likeness"));
        let ms = |time: Duration| time.as_millis().to_string();
        command.arg("coordinator").env("LIKENESS_NATS", self.broker.url()).env("LIKENESS_STORE", self.store());
        command
            .env("LIKENESS_ACK_WAIT_MS", ms(self.timings.ack_wait))
            .env("LIKENESS_LEASE_MS", ms(self.timings.lease_ttl));
        Process::start(name, self.dir.path(), command)
    }

    async fn client(&self) -> Client {
        let client = Client::connect(&self.nats(), &self.store()).await.unwrap();
        until("a coordinator answers", async || client.status().await.ok()).await;
        client
    }

    /// A worker that does everything but compute. Aborted, it stops at once and gives nothing back; its connection closes, which a
    /// killed process's does too.
    fn worker(&self, name: usize) -> JoinHandle<()> {
        let line =
            ["worker", "--nats", &self.broker.url(), "--store", &self.store(), "--roles", "embed", "--threads", "1"];
        let mut settings = WorkerArgs::parse_from(line).resolve(format!("w{name}"), SystemTime::now()).unwrap();
        settings.nats.timings = self.timings.clone();
        let perform: Perform = |cx| {
            Box::pin(async move {
                let work = cx.message().work.clone();
                if let TaskWork::EmbedFinish { target, .. } = work {
                    return Ok(TaskOutput::Manifest {
                        key: keys::generation_manifest(&target.gallery, &target.generation),
                    });
                }
                tokio::time::sleep(Duration::from_millis(TASK_MS.load(Ordering::Relaxed))).await;
                COMPUTED.fetch_add(1, Ordering::Relaxed);
                Ok(TaskOutput::Shard { object: None, rows: 0, skipped: Vec::new() })
            })
        };
        tokio::spawn(async move {
            runtime::run_performing(settings, Device::Cpu, Shutdown::default(), perform).await.unwrap();
        })
    }
}

fn request(made: Made, job: &str) -> JobRequest {
    let dataset = DatasetSelector { dataset: jobs::name("made"), version: Some(jobs::id(made.name)) };
    let embed = EmbedRequest { gallery: jobs::name("nothing"), dataset, rows: Split::All, shard_rows: 1 };
    JobRequest {
        id: Some(jobs::id(job)),
        work: RequestedWork::Embed { model: jobs::id(made.name), embed },
        device: DeviceClass::Any,
        priority: Priority::Lo,
        options: JobOptions::default(),
    }
}

async fn ended(client: &Client, job: &JobId, limit: Duration) {
    let (key, started) = (keys::job_outcome(job, RunNumber(1)), Instant::now());
    loop {
        if let Some(outcome) = client.store().document::<Outcome>(&key).await.unwrap() {
            assert!(matches!(outcome.result, RunResult::Done { .. }), "{outcome:?}");
            return;
        }
        assert!(started.elapsed() < limit, "`{job}` does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// User and system time of a process so far, seconds (100 ticks a second, as Linux tells them to programs).
fn processor_s(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap();
    let after_name: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].iter().map(|field| after_name[*field].parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Tasks a second, and the coordinator's time for each.
async fn throughput(tasks: usize, workers: usize) {
    let system = System::start(Timings::default());
    let coordinator = system.coordinator("coordinator");
    let client = system.client().await;
    let made = Made { name: "many", rows: tasks, dim: 2, shards: 1 };
    made.store(client.store()).await;
    let workers: Vec<JoinHandle<()>> = (0..workers).map(|n| system.worker(n)).collect();
    let all_there = async || (client.status().await.ok()?.workers.len() == workers.len()).then_some(());
    until("all workers are there", all_there).await;
    TASK_MS.store(0, Ordering::Relaxed);
    let (before, started) = (processor_s(coordinator.id()), Instant::now());
    client.submit(request(made, "throughput")).await.unwrap();
    ended(&client, &jobs::id("throughput"), Duration::from_secs(1_200)).await;
    let (took, spent) = (started.elapsed().as_secs_f64(), processor_s(coordinator.id()) - before);
    workers.iter().for_each(JoinHandle::abort);
    println!(
        r#"{{"work":"throughput","tasks":{tasks},"workers":{},"seconds":{took:.3},"tasks_per_s":{:.1},"coordinator_us_per_task":{:.1}}}"#,
        workers.len(),
        tasks as f64 / took,
        1e6 * spent / tasks as f64
    );
}

/// How much longer a job takes when something dies in its middle.
async fn deaths() {
    const TASKS: usize = 120;
    const EACH_MS: u64 = 100;
    TASK_MS.store(EACH_MS, Ordering::Relaxed);
    for what in ["nothing", "worker", "leader", "broker's data"] {
        let mut system = System::start(Timings::from_ack_wait(SHORT, SHORT));
        let first = system.coordinator("first");
        let client = system.client().await;
        let _second = system.coordinator("second");
        let made = Made { name: "few", rows: TASKS, dim: 2, shards: 1 };
        made.store(client.store()).await;
        let workers: Vec<JoinHandle<()>> = (0..2).map(|n| system.worker(n)).collect();
        COMPUTED.store(0, Ordering::Relaxed);
        let started = Instant::now();
        client.submit(request(made, "deaths")).await.unwrap();
        until("a third is done", async || (COMPUTED.load(Ordering::Relaxed) > TASKS as u64 / 3).then_some(())).await;
        let mut first = Some(first);
        match what {
            "worker" => {
                workers[0].abort();
                // Another takes its place at once: what is measured is the lost task alone.
                system.worker(2);
            }
            "leader" => first.take().unwrap().kill(),
            "broker's data" => system.broker.wipe(),
            _ => {}
        }
        ended(&client, &jobs::id("deaths"), Duration::from_secs(120)).await;
        println!(
            r#"{{"work":"death","of":"{what}","tasks":{TASKS},"task_ms":{EACH_MS},"ack_wait_ms":{0},"lease_ms":{0},"seconds":{1:.3},"computed":{2}}}"#,
            SHORT.as_millis(),
            started.elapsed().as_secs_f64(),
            COMPUTED.load(Ordering::Relaxed)
        );
        workers.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    for tasks in &args.tasks {
        throughput(*tasks, args.workers).await;
    }
    deaths().await;
}
