//! The soak: pipelines of a few hundred tasks while a seeded schedule kills and stalls workers, coordinators and broker nodes.
//!
//! `chaos --seed N --minutes M`. One pipeline runs undisturbed; then pipelines of the same settings follow each other until the time is
//! over. Each must end with the same digests, one record a task and no dead letter. Prints a table; `infra/chaos` is the way to it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a soak that fails says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::StreamExt;
use likeness_contract::documents::{GenerationManifest, ModelManifest};
use likeness_contract::ids::{Digest, JobId, RunNumber};
use likeness_contract::jobs::{JobRequest, Outcome, RequestedWork, RunResult};
use likeness_contract::messages::TaskNews;
use likeness_contract::{keys, subjects};
use likeness_link::{Client, WatchEvent};
use likeness_tests::chaos::{Blow, Cast, Fault, Victim, schedule};
use likeness_tests::cluster::{done, records, submit};
use likeness_tests::{Broker, Cluster, Process, faces, jobs, until};

const CAST: Cast = Cast { workers: 3, coordinators: 2, nodes: 3 };
/// Rows of the data set, and so shards of the gallery.
const ROWS: usize = 120;
/// After the last fault everything must be over within this time.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Parser)]
struct Args {
    /// Draws the faults; the same seed gives the same ones at the same times.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long faults happen.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a pipeline ends with: digests of its model and of its shards.
type End = (Digest, Vec<Digest>);

/// Train, embed, evaluate, gate, promote: some hundred small tasks.
fn pipeline(name: &str) -> JobRequest {
    let mut request = jobs::pipeline(name, jobs::training(40, 5), 1);
    if let RequestedWork::Pipeline { evaluate, .. } = &mut request.work {
        evaluate.settings.queries_per_task = 2;
    }
    request
}

async fn end_of(client: &Client, job: &JobId) -> End {
    let model: ModelManifest = client.store().require(&keys::model_manifest(job)).await.unwrap();
    let key = keys::generation_manifest(&jobs::name("faces"), job);
    let generation: GenerationManifest = client.store().require(&key).await.unwrap();
    (model.weights.digest, generation.shards.into_iter().map(|shard| shard.object.digest).collect())
}

/// What was counted of the disturbed pipelines.
#[derive(Debug, Default)]
struct Counts {
    pipelines: u64,
    tasks: u64,
    redeliveries: u64,
    again: u64,
    twice: u64,
    adopted: u64,
    released: u64,
    failed: u64,
}

impl Counts {
    /// Adds a job by its records and events; what must hold of it does.
    async fn add(&mut self, client: &Client, job: &JobId) {
        let records = records(client, job).await;
        let tasks: BTreeSet<_> = records.iter().map(|record| &record.task).collect();
        assert_eq!(tasks.len(), records.len(), "two records of a task");
        self.pipelines += 1;
        self.tasks += records.len() as u64;
        self.redeliveries += records.iter().map(|record| record.attempt.saturating_sub(1)).sum::<u64>();
        let (mut starts, mut started) = (BTreeMap::<String, u64>::new(), BTreeSet::new());
        let mut events = client.watch(job).await.unwrap();
        while let Some(event) = events.next().await {
            let WatchEvent::Task(event) = event.unwrap() else { continue };
            match event.what {
                TaskNews::Started => {
                    started.insert(event.attempt.clone());
                    *starts.entry(event.task.to_string()).or_default() += 1;
                }
                TaskNews::Done { adopted: true, .. } => {
                    self.adopted += 1;
                    self.twice += u64::from(started.contains(&event.attempt));
                }
                TaskNews::Released => self.released += 1,
                TaskNews::Failed { .. } => self.failed += 1,
                TaskNews::Done { .. } | TaskNews::Progress { .. } => {}
            }
        }
        self.again += starts.values().map(|starts| starts - 1).sum::<u64>();
    }
}

/// All processes, and what is wrong with them now.
struct Stage {
    cluster: Cluster,
    workers: Vec<Option<Process>>,
    coordinators: Vec<Option<Process>>,
    /// Who is disturbed, how, and until when.
    disturbed: BTreeMap<Victim, (Blow, Instant)>,
    number: u32,
    faults: BTreeMap<String, u64>,
    left_by_themselves: u64,
}

impl Stage {
    async fn start() -> Self {
        let mut stage = Self {
            cluster: Cluster::start_trio().await,
            workers: Vec::new(),
            coordinators: Vec::new(),
            disturbed: BTreeMap::new(),
            number: 0,
            faults: BTreeMap::new(),
            left_by_themselves: 0,
        };
        for _ in 0..CAST.coordinators {
            let coordinator = stage.coordinator();
            stage.coordinators.push(Some(coordinator));
        }
        for _ in 0..CAST.workers {
            let worker = stage.worker();
            stage.workers.push(Some(worker));
        }
        stage
    }

    fn coordinator(&mut self) -> Process {
        self.number += 1;
        self.cluster.coordinator_with(&format!("coordinator-{}", self.number), |command| {
            command.env("LIKENESS_STREAM_REPLICAS", "3");
        })
    }

    fn worker(&mut self) -> Process {
        self.number += 1;
        self.cluster.task_worker(&format!("worker-{}", self.number))
    }

    fn node(&mut self, number: usize) -> &mut Broker {
        match number {
            0 => &mut self.cluster.broker,
            other => &mut self.cluster.others[other - 1],
        }
    }

    /// Whoever is disturbed already is left alone.
    fn strike(&mut self, fault: &Fault) {
        if self.disturbed.contains_key(&fault.victim) {
            return;
        }
        eprintln!("{fault}");
        match (fault.victim, fault.blow) {
            (Victim::Worker(number), Blow::Killed) => drop(self.workers[number].take()),
            (Victim::Worker(number), Blow::Stalled) => self.workers[number].iter().for_each(Process::freeze),
            (Victim::Coordinator(number), Blow::Killed) => drop(self.coordinators[number].take()),
            (Victim::Coordinator(number), Blow::Stalled) => self.coordinators[number].iter().for_each(Process::freeze),
            (Victim::Node(number), Blow::Killed) => self.node(number).kill(),
            (Victim::Node(number), Blow::Stalled) => self.node(number).freeze(),
        }
        *self.faults.entry(fault.kind()).or_default() += 1;
        self.disturbed.insert(fault.victim, (fault.blow, Instant::now() + fault.lasts));
    }

    /// Mends what is due, or everything.
    fn mend(&mut self, everything: bool) {
        let now = Instant::now();
        let due = self.disturbed.iter().filter(|(_, (_, until))| everything || *until <= now);
        let due: Vec<(Victim, Blow)> = due.map(|(victim, (blow, _))| (*victim, *blow)).collect();
        for (victim, blow) in due {
            self.disturbed.remove(&victim);
            match (victim, blow) {
                (Victim::Worker(number), Blow::Killed) => self.workers[number] = Some(self.worker()),
                (Victim::Worker(number), Blow::Stalled) => self.workers[number].iter().for_each(Process::thaw),
                (Victim::Coordinator(number), Blow::Killed) => self.coordinators[number] = Some(self.coordinator()),
                (Victim::Coordinator(number), Blow::Stalled) => {
                    self.coordinators[number].iter().for_each(Process::thaw)
                }
                (Victim::Node(number), Blow::Killed) => self.node(number).start_again(),
                (Victim::Node(number), Blow::Stalled) => self.node(number).thaw(),
            }
        }
    }

    /// A process that ended although nobody killed it is started again, as any supervisor would; it is counted.
    fn look_after(&mut self) {
        for number in 0..CAST.workers {
            if self.workers[number].as_mut().is_some_and(|worker| !worker.is_running()) {
                eprintln!("worker {number} left: {}", self.workers[number].as_ref().unwrap().last_line());
                self.left_by_themselves += 1;
                self.workers[number] = Some(self.worker());
            }
        }
        for number in 0..CAST.coordinators {
            if self.coordinators[number].as_mut().is_some_and(|coordinator| !coordinator.is_running()) {
                eprintln!("coordinator {number} left: {}", self.coordinators[number].as_ref().unwrap().last_line());
                self.left_by_themselves += 1;
                self.coordinators[number] = Some(self.coordinator());
            }
        }
    }
}

/// Pipelines one after the other until `over`; how long all of them took.
async fn pipelines(client: &Client, expected: &End, over: Instant) -> (Vec<JobId>, Duration) {
    let started = Instant::now();
    let mut ended = Vec::new();
    while Instant::now() < over {
        let job = pipeline(&format!("disturbed-{}", ended.len() + 1));
        let job = submitted(client, &job).await;
        let result = outcome(client, &job).await;
        assert!(matches!(result, RunResult::Done { release: Some(_), .. }), "`{job}` ended otherwise: {result:?}");
        assert!(end_of(client, &job).await == *expected, "`{job}` ended with other digests");
        eprintln!("          {job} is done, with the same digests");
        ended.push(job);
    }
    (ended, started.elapsed())
}

async fn submitted(client: &Client, job: &JobRequest) -> JobId {
    loop {
        match client.submit(job.clone()).await {
            Ok(summary) => return summary.job,
            Err(error) => {
                eprintln!("          not accepted yet: {error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn outcome(client: &Client, job: &JobId) -> RunResult {
    let key = keys::job_outcome(job, RunNumber(1));
    loop {
        if let Some(outcome) = client.store().document::<Outcome>(&key).await.unwrap() {
            return outcome.result;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn disturb(stage: &mut Stage, faults: &[Fault]) {
    let started = Instant::now();
    for fault in faults {
        while started.elapsed() < fault.at {
            stage.mend(false);
            stage.look_after();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stage.strike(fault);
    }
}

/// All faults; then everything is mended, and whatever runs meanwhile must come to its end. Goes on for ever.
async fn trouble(stage: &mut Stage, faults: &[Fault]) {
    disturb(stage, faults).await;
    stage.mend(true);
    let last = Instant::now() + PATIENCE;
    loop {
        stage.look_after();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(Instant::now() < last, "a pipeline does not end although nothing is wrong any more");
    }
}

/// The pipeline that nobody disturbs: what it ends with, and how long it took.
async fn undisturbed(client: &Client, images: &Path) -> (End, Duration) {
    done(client, jobs::ingest("faces-1", images, 10)).await;
    let started = Instant::now();
    let job = submit(client, pipeline("undisturbed")).await;
    assert!(matches!(outcome(client, &job).await, RunResult::Done { release: Some(1), .. }));
    let took = started.elapsed();
    eprintln!("undisturbed: {} tasks in {:.1} s", records(client, &job).await.len(), took.as_secs_f64());
    (end_of(client, &job).await, took)
}

async fn soak(args: &Args) {
    let length = Duration::from_secs_f64(args.minutes * 60.0);
    let faults = schedule(args.seed, CAST, length);
    let mut stage = Stage::start().await;
    let client = stage.cluster.client().await;
    let images = faces::write(stage.cluster.dir(), ROWS);
    let (expected, alone) = tokio::select! {
        done = undisturbed(&client, &images) => done,
        () = trouble(&mut stage, &[]) => unreachable!("it goes on for ever"),
    };

    let running = pipelines(&client, &expected, Instant::now() + length);
    let (ended, took) = tokio::select! {
        ended = running => ended,
        () = trouble(&mut stage, &faults) => unreachable!("it goes on for ever"),
    };
    let quiet = async || client.status().await.ok().map(|status| status.queues).filter(Vec::is_empty);
    until("the queues are empty", quiet).await;
    let mut counts = Counts::default();
    for job in &ended {
        counts.add(&client, job).await;
    }
    let dead = client.bus().jetstream().get_stream(subjects::DEAD_STREAM).await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 0, "nothing may be given up");
    print(args, &stage, &counts, alone, took);
}

fn print(args: &Args, stage: &Stage, counts: &Counts, alone: Duration, took: Duration) {
    let Counts { pipelines, tasks, redeliveries, again, twice, adopted, released, failed } = counts;
    println!("seed {}, {} minutes: all digests are those of the undisturbed run\n", args.seed, args.minutes);
    let line = |what: &str, number: String| println!("{what:<58}{number:>8}");
    for (kind, count) in &stage.faults {
        line(kind, count.to_string());
    }
    line("faults in all", stage.faults.values().sum::<u64>().to_string());
    line("processes that ended although nobody killed them", stage.left_by_themselves.to_string());
    line("pipelines that ended", pipelines.to_string());
    line("tasks, each with one record", tasks.to_string());
    line("tasks given up", "0".into());
    line("redeliveries", redeliveries.to_string());
    line("computations begun again", again.to_string());
    line("tasks computed to the end twice (the first record stayed)", twice.to_string());
    line("records adopted", adopted.to_string());
    line("attempts that failed and came back later", failed.to_string());
    line("attempts given back", released.to_string());
    let undisturbed = alone * u32::try_from(*pipelines).unwrap_or(u32::MAX);
    let seconds = |time: Duration| format!("{:.0} s", time.as_secs_f64());
    line("time of as many undisturbed pipelines", seconds(undisturbed));
    line("time that they took", seconds(took));
    line("time lost to faults", seconds(took.saturating_sub(undisturbed)));
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    eprintln!("seed {}", args.seed);
    soak(&args).await;
}
