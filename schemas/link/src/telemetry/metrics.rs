//! What a process counts of itself, for Prometheus: one registry a process, told over HTTP where `--metrics` asks for it.
//!
//! Metrics are told of from wherever something happens, like log lines, so there is one [`Metrics`] for the process and no
//! handle to pass on. Counters start at zero with the process; what must survive it lies in the store and in the events.
//! Everything is declared here, so that dashboards and alert rules (`infra/observability`) have one list to follow. Labels have few
//! values, and never the name of a job, a task or a worker: Prometheus knows the process by its address.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, ErrorKind, Result};

/// One label and its value.
pub type Label = [(&'static str, &'static str); 1];
/// A gauge with a fraction.
pub type Fraction = Gauge<f64, AtomicU64>;

/// Everything that is counted; the names that Prometheus knows are in [`Metrics::new`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Deliveries of a task that was delivered before.
    pub redeliveries: Counter,
    /// Attempts that found the record of another, or lost against it.
    pub adopted_records: Counter,
    /// Attempts whose renewal was late.
    pub lease_losses: Counter,
    /// Images that were left out, as the manifests list them.
    pub skipped_images: Counter,
    /// Attempts by `end`.
    pub attempts: Family<Label, Counter>,
    /// Seconds on the device by `kind` of task.
    pub task_seconds: Family<Label, Histogram>,
    /// Rows that were ingested or embedded, training images that were seen, by `kind` of task.
    pub images: Family<Label, Counter>,
    /// Training images a second, of the last slot.
    pub training_rate: Fraction,
    /// Answers by `result`.
    pub searches: Family<Label, Counter>,
    /// Seconds of a search by `stage`.
    pub search_seconds: Family<Label, Histogram>,
    /// Answers that lack rows.
    pub incomplete_answers: Counter,
    /// Share of the rows that the last answer is made of.
    pub coverage: Fraction,
    /// Questions to leaves, hedges too.
    pub leaf_requests: Counter,
    /// Questions to a second replica because the first was late.
    pub hedges: Counter,
    /// Seconds that a shard took to load.
    pub shard_load_seconds: Histogram,
    /// Loads of a shard, a model or a manifest that failed.
    pub load_failures: Counter,
    /// Errors of the store by `kind`.
    pub store_errors: Family<Label, Counter>,
    /// Connections to NATS that broke.
    pub nats_disconnects: Counter,
    /// Errors that NATS reported, and messages that it dropped.
    pub nats_errors: Counter,
    /// Whether this coordinator leads.
    pub leading: Gauge,
    /// Times that it lost the lease.
    pub leadership_losses: Counter,
    /// Open jobs.
    pub open_jobs: Gauge,
    /// Runs that ended, by `result`.
    pub runs: Family<Label, Counter>,
    /// Tasks that were published, anew or again.
    pub tasks_published: Counter,
    /// Tasks that were given up: dead letters.
    pub dead_letters: Counter,
    /// What workers told of tasks, by `event`.
    pub task_events: Family<Label, Counter>,
    /// Tasks that wait in the queues, by `kind`.
    pub tasks_waiting: Family<Label, Gauge>,
    /// Tasks that are being worked on, by `kind`.
    pub tasks_running: Family<Label, Gauge>,
    /// Live workers by the `kind` of tasks that they take; `search` too.
    pub workers: Family<Label, Gauge>,
    /// Times that the broker had lost streams.
    pub broker_losses: Counter,
    /// Schedules that are there, as the leader knows.
    pub schedules: Gauge,
    /// Scheduled times by the `outcome` that the leader wrote down: submitted, overlapped, unchanged, missed; and unmet.
    pub firings: Family<Label, Counter>,
    /// How long after its time the last firing was decided.
    pub firing_lag_seconds: Fraction,
    /// Effects that did not work and are tried again: publishes, purges, reads and creates.
    pub retries: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The process's own.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

/// Milliseconds to a minute, for searches.
const SEARCH_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0];
/// A task is sized for 30–120 s.
const TASK_BUCKETS: [f64; 10] = [0.1, 0.5, 2.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
/// Shards are read from a disk or from far away.
const LOAD_BUCKETS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

fn seconds_of<const N: usize>(buckets: [f64; N]) -> Histogram {
    Histogram::new(buckets)
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("likeness"),
            redeliveries: Counter::default(),
            adopted_records: Counter::default(),
            lease_losses: Counter::default(),
            skipped_images: Counter::default(),
            attempts: Family::default(),
            task_seconds: Family::new_with_constructor(|| seconds_of(TASK_BUCKETS)),
            images: Family::default(),
            training_rate: Fraction::default(),
            searches: Family::default(),
            search_seconds: Family::new_with_constructor(|| seconds_of(SEARCH_BUCKETS)),
            incomplete_answers: Counter::default(),
            coverage: Fraction::default(),
            leaf_requests: Counter::default(),
            hedges: Counter::default(),
            shard_load_seconds: seconds_of(LOAD_BUCKETS),
            load_failures: Counter::default(),
            store_errors: Family::default(),
            nats_disconnects: Counter::default(),
            nats_errors: Counter::default(),
            leading: Gauge::default(),
            leadership_losses: Counter::default(),
            open_jobs: Gauge::default(),
            runs: Family::default(),
            tasks_published: Counter::default(),
            dead_letters: Counter::default(),
            task_events: Family::default(),
            tasks_waiting: Family::default(),
            tasks_running: Family::default(),
            workers: Family::default(),
            broker_losses: Counter::default(),
            schedules: Gauge::default(),
            firings: Family::default(),
            firing_lag_seconds: Fraction::default(),
            retries: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let Self { registry: r, .. } = self;
        // Workers.
        r.register("redeliveries", "Deliveries of a task that was delivered before", self.redeliveries.clone());
        r.register("adopted_records", "Attempts that found the record of another", self.adopted_records.clone());
        r.register("lease_losses", "Attempts whose renewal was late", self.lease_losses.clone());
        r.register("skipped_images", "Images that were left out", self.skipped_images.clone());
        r.register("attempts", "Attempts at tasks by their end", self.attempts.clone());
        r.register("task_seconds", "Seconds on the device by kind of task", self.task_seconds.clone());
        r.register("images", "Images by kind of task", self.images.clone());
        r.register("training_images_per_second", "Rate of the last slot of a training", self.training_rate.clone());
        // Searchers.
        r.register("searches", "Searches by result", self.searches.clone());
        r.register("search_seconds", "Seconds of a search by stage", self.search_seconds.clone());
        r.register("incomplete_answers", "Answers whose coverage is below 1", self.incomplete_answers.clone());
        r.register("coverage", "Share of the rows that the last answer is made of", self.coverage.clone());
        r.register("leaf_requests", "Questions to leaves", self.leaf_requests.clone());
        r.register("hedges", "Questions to a second replica because the first was late", self.hedges.clone());
        r.register("shard_load_seconds", "Seconds that a shard took to load", self.shard_load_seconds.clone());
        r.register("load_failures", "Shards, models and manifests that did not load", self.load_failures.clone());
        // Everybody.
        r.register("store_errors", "Errors of the store by kind", self.store_errors.clone());
        r.register("nats_disconnects", "Connections to NATS that broke", self.nats_disconnects.clone());
        r.register("nats_errors", "Errors that NATS reported", self.nats_errors.clone());
        // Coordinators.
        r.register("leading", "Whether this coordinator leads", self.leading.clone());
        r.register("leadership_losses", "Times that this coordinator lost the lease", self.leadership_losses.clone());
        r.register("open_jobs", "Jobs with an open run, as the leader knows", self.open_jobs.clone());
        r.register("runs", "Runs that ended by result", self.runs.clone());
        r.register("tasks_published", "Tasks that were published", self.tasks_published.clone());
        r.register("dead_letters", "Tasks that were given up", self.dead_letters.clone());
        r.register("task_events", "What workers told of tasks", self.task_events.clone());
        r.register("tasks_waiting", "Tasks that wait in the queues by kind", self.tasks_waiting.clone());
        r.register("tasks_running", "Tasks that are being worked on by kind", self.tasks_running.clone());
        r.register("workers", "Live workers by the kind of tasks that they take", self.workers.clone());
        r.register("broker_losses", "Times that the broker had lost streams", self.broker_losses.clone());
        r.register("schedules", "Schedules that are there, as the leader knows", self.schedules.clone());
        r.register("firings", "Scheduled times by what became of them", self.firings.clone());
        r.register("firing_lag_seconds", "Seconds from its time to the last firing", self.firing_lag_seconds.clone());
        r.register("retries", "Publishes, purges, reads and creates that are tried again", self.retries.clone());
    }

    /// All of it in the text form of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

/// Most bytes of a request's head, and the time for it.
const MAX_HEAD: u64 = 8 << 10;
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// What Prometheus expects of the text form.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers `GET /metrics` at an address, `127.0.0.1:9464` or `0.0.0.0:9464`, as long as the process lives; returns the address with the
/// port that it got. Fails with `Invalid` where nothing can listen.
pub async fn serve(address: &str) -> Result<SocketAddr> {
    let unusable = |e| {
        Error::new(ErrorKind::Invalid, format!("metrics can't be served at `{address}`: write HOST:PORT")).because(e)
    };
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let at = listener.local_addr().map_err(unusable)?;
    tracing::info!(at = %format!("http://{at}/metrics"), "metrics are told");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream))),
                // No more handles, for instance.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    Ok(at)
}

async fn answer(mut stream: TcpStream) {
    let head = tokio::time::timeout(HEAD_WITHIN, head(&mut stream)).await;
    let Ok(Some(head)) = head else { return };
    let (status, body) = match head.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics"] => ("200 OK", metrics().text()),
        ["GET", _] => ("404 Not Found", "ask for /metrics\n".into()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".into()),
    };
    let kind = if status.starts_with("200") { CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    // Who has gone misses nothing.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// Everything up to the empty line; none of what is no request.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut limited = stream.take(MAX_HEAD);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if limited.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(at: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Who is not answered sees the connection end, one way or another.
        stream.read_to_string(&mut answer).await.ok();
        answer
    }

    #[tokio::test]
    async fn what_is_counted_is_told_and_nothing_else_is_answered() {
        metrics().redeliveries.inc();
        metrics().attempts.get_or_create(&[("end", "done")]).inc();
        let at = serve("127.0.0.1:0").await.unwrap();
        let told = ask(at, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
        assert!(told.contains("\nlikeness_redeliveries_total 1\n"), "{told}");
        assert!(told.contains("likeness_attempts_total{end=\"done\"} 1"), "{told}");
        assert!(told.ends_with("# EOF\n"), "{told}");
        assert!(ask(at, "GET / HTTP/1.1\r\n\r\n").await.contains("404"));
        assert!(ask(at, "POST /metrics HTTP/1.1\r\n\r\n").await.contains("405"));
        assert_eq!(ask(at, &format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(10_000))).await, "");
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_refused_by_name() {
        let error = serve("nowhere").await.unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.to_string().contains("`nowhere`"), "{error}");
    }

    /// Words of a text that look like the name of a metric of ours.
    fn names(text: &str) -> std::collections::BTreeSet<&str> {
        text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .filter_map(|word| word.strip_prefix("likeness_"))
            .map(|name| name.strip_suffix("_total").or(name.strip_suffix("_bucket")).unwrap_or(name))
            .collect()
    }

    #[test]
    fn rules_and_dashboard_name_what_there_is_and_every_alarm_is_explained() {
        let infra = |file: &str| {
            let path = format!("{}/../../infra/{file}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let there: std::collections::BTreeSet<&str> = include_str!("metrics.rs")
            .split("r.register(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let (alerts, page) = (infra("observability/alerts.yml"), infra("OPERATING.md"));
        for text in [&alerts, &infra("observability/dashboard.json")] {
            let named = names(text);
            assert!(named.len() > 15 && named.is_subset(&there), "{:?}", named.difference(&there));
        }
        let all = [alerts.as_str(), &infra("observability/dashboard.json")].concat();
        assert_eq!(names(&all), there, "each is shown or watched");
        let alarms = alerts.split("alert: ").skip(1).filter_map(|rest| rest.lines().next());
        for alarm in alarms {
            assert!(page.contains(&format!("| {alarm} |")), "{alarm}");
        }
    }
}
