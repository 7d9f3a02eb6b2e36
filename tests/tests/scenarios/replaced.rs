//! A running system is replaced, process by process, as whoever upgrades it does: by programs of the same build, or of another one in
//! `LIKENESS_OTHER_BIN_DIR` (`infra/upgrade` builds it). Nobody who submits or searches may notice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use likeness_contract::documents::{GenerationManifest, ModelManifest};
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{JobRequest, RequestedWork, RunResult};
use likeness_contract::search::SearchRequest;
use likeness_contract::{keys, subjects};
use likeness_link::Client;
use likeness_tests::cluster::{done, outcome, records, submit};
use likeness_tests::process::Build;
use likeness_tests::{Cluster, Process, faces, jobs, until};
use tokio::task::JoinHandle;

/// A process's part in the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Coordinator,
    Worker,
    Searcher,
}

/// In the order of `infra/OPERATING.md`: those who do the work before those who lead.
const CAST: [(Part, &str); 6] = [
    (Part::Searcher, "searcher-1"),
    (Part::Searcher, "searcher-2"),
    (Part::Worker, "worker-1"),
    (Part::Worker, "worker-2"),
    (Part::Coordinator, "coordinator-1"),
    (Part::Coordinator, "coordinator-2"),
];

fn start(cluster: &Cluster, build: &Build, (part, name): (Part, &str)) -> Process {
    let program = if part == Part::Coordinator { "likeness" } else { "likeness-worker" };
    let mut command = cluster.command_of(build, program);
    match part {
        Part::Coordinator => command.arg("coordinator"),
        Part::Worker => command.args(["--roles", "ingest,train,embed,evaluate", "--threads", "1"]),
        Part::Searcher => command.args(["--roles", "search", "--threads", "1", "--replicas", "2", "--id", name]),
    };
    command.env("LIKENESS_LOG", "info");
    Process::start(name, &cluster.dir().join("logs"), command)
}

/// Rows of the data set, and into how many shards they go.
const ROWS: usize = 120;
const SHARDS: usize = 20;

/// A pipeline of some seventy small tasks.
fn pipeline(name: &str) -> JobRequest {
    let mut request = jobs::pipeline(name, jobs::training(20, 5), (ROWS / SHARDS) as u32);
    if let RequestedWork::Pipeline { evaluate, .. } = &mut request.work {
        evaluate.settings.queries_per_task = 5;
    }
    request
}

/// Digests of what a pipeline left: its model and its shards.
async fn left_by(client: &Client, job: &JobId) -> (Digest, Vec<Digest>) {
    let model: ModelManifest = client.store().require(&keys::model_manifest(job)).await.unwrap();
    let key = keys::generation_manifest(&jobs::name("faces"), job);
    let generation: GenerationManifest = client.store().require(&key).await.unwrap();
    (model.weights.digest, generation.shards.into_iter().map(|shard| shard.object.digest).collect())
}

/// Somebody who searches all the time.
struct Asker {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Asker {
    fn start(client: &Client) -> Self {
        let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (client, to_end, counted) = (client.clone(), over.clone(), answers.clone());
        let task = tokio::spawn(async move {
            let question =
                SearchRequest { min_coverage: 1.0, deadline_ms: 20_000, ..jobs::search(&["Warm"], &["Disc"], 10) };
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            while !to_end.load(Ordering::Relaxed) {
                pace.tick().await;
                let results = client.search(&question).await.expect("an answer at any time");
                assert_eq!((results.hits.len(), results.coverage.share()), (10, 1.0));
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { over, answers, task }
    }

    /// Waits for some answers more.
    async fn goes_on(&self) {
        let enough = self.answers.load(Ordering::Relaxed) + 5;
        until("answers", async || (self.answers.load(Ordering::Relaxed) >= enough).then_some(())).await;
    }

    async fn end(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.expect("no error and no partial answer");
        self.answers.load(Ordering::Relaxed)
    }
}

/// Waits until every shard of what `main` serves is held twice.
async fn placed_twice(client: &Client) {
    until("two searchers hold everything", async || {
        let placement = client.status().await.ok()?.placement;
        let serving = client.releases(Some(jobs::name("main"))).await.ok()?.last()?.generation.clone();
        let held = placement.iter().flat_map(|searcher| &searcher.held).filter(|held| held.generation == serving);
        (held.map(|held| held.shards.len()).sum::<usize>() == 2 * SHARDS).then_some(())
    })
    .await;
}

/// Replaces every process by one of `build`, each after the job went on.
async fn replace_all(cluster: &Cluster, client: &Client, system: &mut Vec<Process>, build: &Build, job: &JobId) {
    for (place, member) in CAST.into_iter().enumerate() {
        let before = records(client, job).await.len();
        until("the job goes on", async || (records(client, job).await.len() > before).then_some(())).await;
        if member.0 == Part::Searcher {
            placed_twice(client).await;
        }
        let old = system.remove(place);
        assert!(old.terminate().await.success(), "{} leaves in peace", member.1);
        system.insert(place, start(cluster, build, member));
    }
}

/// Submits a pipeline, replaces all while it runs, and checks that it ended as if nothing had been.
async fn replaced_during(
    cluster: &Cluster,
    client: &Client,
    system: &mut Vec<Process>,
    build: &Build,
    name: &str,
) -> JobId {
    let job = submit(client, pipeline(name)).await;
    replace_all(cluster, client, system, build, &job).await;
    let result = outcome(client, &job, 1).await;
    assert!(matches!(result, RunResult::Done { release: Some(_), .. }), "`{job}` ended otherwise: {result:?}");
    let records = records(client, &job).await;
    let tasks: BTreeSet<_> = records.iter().map(|record| &record.task).collect();
    assert_eq!(tasks.len(), records.len(), "one record a task");
    let workers: BTreeSet<_> = records.iter().map(|record| &record.worker).collect();
    assert!(workers.len() > 2, "workers of before and after had their share: {workers:?}");
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_is_replaced_process_by_process_and_nobody_notices() {
    let here = Build::under_test();
    let other = Build::other();
    let before = other.as_ref().unwrap_or(&here);
    let cluster = Cluster::start().await;
    let mut system: Vec<Process> = CAST.iter().map(|member| start(&cluster, before, *member)).collect();
    let client = cluster.client().await;
    let root = faces::write(cluster.dir(), ROWS);
    done(&client, jobs::ingest("faces-1", &root, 30)).await;
    let alone = done(&client, pipeline("alone")).await;
    placed_twice(&client).await;
    let asker = Asker::start(&client);

    let mut replaced = vec![replaced_during(&cluster, &client, &mut system, &here, "forth").await];
    let mut comparable = true;
    if other.is_some() {
        let after = done(&client, pipeline("after")).await;
        replaced.push(replaced_during(&cluster, &client, &mut system, before, "back").await);
        comparable = left_by(&client, &alone).await == left_by(&client, &after).await;
        println!("the builds compute {}", if comparable { "the same" } else { "otherwise: digests are not compared" });
    }
    asker.goes_on().await;
    println!("{} answers", asker.end().await);

    for job in replaced.iter().filter(|_| comparable) {
        assert!(left_by(&client, job).await == left_by(&client, &alone).await, "`{job}` ended with other digests");
    }
    let dead = client.bus().jetstream().get_stream(subjects::DEAD_STREAM).await.unwrap();
    assert_eq!(dead.cached_info().state.messages, 0, "nothing was given up");
    until("every message is gone", async || client.status().await.ok()?.queues.is_empty().then_some(())).await;
}
