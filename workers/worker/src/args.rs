//! The command line: flag before environment variable before default, checked before any socket opens.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::Parser;
use likeness_contract::ids::{Digest, WorkerId};
use likeness_contract::jobs::TaskKind;
use likeness_contract::names;
use likeness_kernels::nhwc::Isa;
use likeness_link::error::{Error, ErrorKind};
use likeness_link::settings::{NatsSettings, Timings};
use likeness_link::telemetry::LogFormat;
use likeness_model::{CpuCompute, Winograd};

use crate::search::settings::{SearchArgs, SearchSettings};

const ABOUT: &str = "\
A worker of Likeness: takes tasks from NATS, computes them on one device, leaves the results in the store.

Start as many as you like, on any machine that reaches the NATS server and the store; stop any of them at any moment: \
what it was doing is done again by another. One process uses one device; on a machine with four GPUs start four, with \
--device cuda:0 to cuda:3.";

const EXAMPLES: &str = "\
LIKENESS_ISA=avx512, avx2 or portable in the environment has convolutions take these instructions instead of the best that the \
processor has: for equal bytes on unlike machines.

Examples:
  likeness-worker                                       every role on all cores, NATS and store on this machine
  likeness-worker --roles train,embed --device cuda:0   a GPU worker
  likeness-worker --roles search --store s3://bucket/likeness --nats nats://nats:4222

Signals:
  SIGTERM, Ctrl-C   takes no new task, finishes the one at hand or gives it back within --grace-period
  a second one      leaves at once; another worker redoes the task

Exit status: 0 left as asked, 1 took itself out (its log says why) or was refused, 64 wrong flags,
69 NATS or the store cannot be reached, 75 the grace period ran out";

/// Flags of `likeness-worker`.
#[derive(Debug, Clone, Parser)]
#[command(name = "likeness-worker", version, about = ABOUT, long_about = ABOUT, after_help = EXAMPLES)]
pub struct Args {
    /// Address of the NATS server (2.11 or newer, JetStream on); several separated by commas
    #[arg(long, value_name = "URL", env = "LIKENESS_NATS", default_value = "nats://127.0.0.1:4222")]
    pub nats: String,
    /// Object store: a folder, or file://, s3://bucket/prefix, gs://, az://; credentials come from the usual environment
    #[arg(long, value_name = "URL", env = "LIKENESS_STORE", default_value = "./likeness-store")]
    pub store: String,
    /// File with NATS credentials: a .creds file or an NKEY seed
    #[arg(long, value_name = "FILE", env = "LIKENESS_CREDENTIALS")]
    pub credentials: Option<PathBuf>,
    /// Certificate authority of the NATS server, PEM: with it only TLS will do
    #[arg(long, value_name = "FILE", env = "LIKENESS_NATS_CA")]
    pub nats_ca: Option<PathBuf>,
    /// What it does, separated by commas: ingest, train, embed, evaluate, search
    #[arg(long, value_name = "ROLES", env = "LIKENESS_ROLES", default_value = "ingest,train,embed,evaluate,search")]
    pub roles: Roles,
    /// Where it computes: cpu, cuda:N or metal
    #[arg(long, value_name = "DEVICE", env = "LIKENESS_DEVICE", default_value = "cpu")]
    pub device: DeviceName,
    /// Threads that compute; all cores without
    #[arg(long, value_name = "N", env = "LIKENESS_THREADS")]
    pub threads: Option<std::num::NonZeroUsize>,
    /// Where 3×3 convolutions on a CPU take Winograd's way, faster and ten times less exact (1e-5): off,
    /// inference (embedding and search), on (training too)
    #[arg(long, value_name = "WHERE", env = "LIKENESS_WINOGRAD", default_value = "on")]
    pub winograd: Winograd,
    /// Id of this process, unlike any other's; made from host name and time without
    #[arg(long, value_name = "ID", env = "LIKENESS_WORKER_ID")]
    pub id: Option<WorkerId>,
    /// Memory for dataset parts and shards that tasks use again, in bytes; K, M, G are taken
    #[arg(long, value_name = "BYTES", env = "LIKENESS_CACHE_BYTES", default_value = "2G")]
    pub cache_bytes: ByteSize,
    /// Rows from which on a shard that it embeds gets an approximate index beside it, for searches that accept a recall;
    /// smaller ones are searched exactly as fast. 0: none gets any
    #[arg(long, value_name = "ROWS", env = "LIKENESS_APPROXIMATE_ROWS", default_value_t = 4096)]
    pub approximate_rows: u32,
    /// Seconds between SIGTERM and the end
    #[arg(long, value_name = "SECONDS", env = "LIKENESS_GRACE_PERIOD", default_value_t = 30)]
    pub grace_period: u64,
    #[command(flatten)]
    pub search: SearchArgs,
    /// Address at which Prometheus reads metrics: 127.0.0.1:9464, or 0.0.0.0:9464 for other machines; nowhere without
    #[arg(long, value_name = "ADDR", env = "LIKENESS_METRICS")]
    pub metrics: Option<String>,
    /// What is logged, for instance `info` or `likeness=debug`; LIKENESS_LOG_FORMAT=json for one JSON object a line
    #[arg(long, value_name = "FILTER", env = "LIKENESS_LOG", default_value = "info")]
    pub log: String,
    /// Form of the log lines
    #[arg(long, value_name = "human|json", env = "LIKENESS_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
}

/// Everything that a worker must know before it starts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who it is.
    pub worker: WorkerId,
    /// Kinds of tasks that it takes, in order of the pipeline.
    pub kinds: Vec<TaskKind>,
    /// Whether it serves searches.
    pub searches: bool,
    /// Its device.
    pub device: DeviceName,
    /// Threads that compute.
    pub threads: usize,
    /// Where convolutions take Winograd's way.
    pub winograd: Winograd,
    /// Budget of the cache.
    pub cache_bytes: u64,
    /// Rows from which on shards get an approximate index; none gets any without.
    pub approximate_rows: Option<NonZeroU32>,
    /// Time between SIGTERM and the end.
    pub grace_period: Duration,
    /// The store.
    pub store: String,
    /// The broker.
    pub nats: NatsSettings,
    /// Host name.
    pub host: String,
    /// Of its search role.
    pub search: SearchSettings,
}

impl Args {
    /// Fills in what depends on the machine and the moment.
    ///
    /// # Errors
    /// When an environment variable for times is no number, or `LIKENESS_ISA` is no instruction set of this processor.
    pub fn resolve(self, host: String, now: SystemTime) -> Result<Settings, Error> {
        let timings = Timings::from_env()?;
        Isa::from_environment().map_err(|wrong| Error::new(ErrorKind::Invalid, wrong))?;
        let threads = self.threads.map(usize::from).unwrap_or_else(cores);
        Ok(Settings {
            worker: self.id.unwrap_or_else(|| fresh_id(&host, now)),
            kinds: self.roles.kinds(),
            searches: self.roles.0.contains(&Role::Search),
            search: self.search.resolve(),
            device: self.device,
            threads,
            winograd: self.winograd,
            cache_bytes: self.cache_bytes.0,
            approximate_rows: NonZeroU32::new(self.approximate_rows),
            grace_period: Duration::from_secs(self.grace_period),
            store: self.store,
            nats: NatsSettings { url: self.nats, credentials: self.credentials, ca: self.nats_ca, timings },
            host,
        })
    }
}

impl Settings {
    /// How models are computed on a CPU.
    pub fn compute(&self) -> CpuCompute {
        CpuCompute { winograd: self.winograd, ..CpuCompute::default() }
    }
}

/// One thing that a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Takes tasks of a kind.
    Task(TaskKind),
    /// Serves searches.
    Search,
}

/// A comma-separated list of roles, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    fn kinds(&self) -> Vec<TaskKind> {
        let kind = |role: &Role| match role {
            Role::Task(kind) => Some(*kind),
            Role::Search => None,
        };
        self.0.iter().filter_map(kind).collect()
    }
}

impl FromStr for Roles {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        let roles = words.map(role).collect::<Result<BTreeSet<Role>, String>>()?;
        if roles.is_empty() {
            return Err("name at least one role".into());
        }
        Ok(Self(roles))
    }
}

fn role(word: &str) -> Result<Role, String> {
    if word == "search" {
        return Ok(Role::Search);
    }
    let kind = TaskKind::ALL.into_iter().find(|kind| kind.name() == word);
    kind.map(Role::Task).ok_or_else(|| {
        let known = TaskKind::ALL.iter().map(|kind| kind.name()).chain(["search"]);
        format!("`{word}` is no role{}", names::hint(&names::nearest(word, known)))
    })
}

/// A device as users name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
    /// An Apple GPU.
    Metal,
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => return Ok(Self::Cpu),
            "metal" => return Ok(Self::Metal),
            "cuda" => return Ok(Self::Cuda(0)),
            _ => {}
        }
        let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        number.map(Self::Cuda).ok_or_else(|| {
            let hint = names::hint(&names::nearest(text, ["cpu", "cuda:0", "metal"]));
            format!("`{text}` is no device{hint}")
        })
    }
}

/// A number of bytes: `1048576`, `512M`, `2G`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().trim_end_matches("iB").trim_end_matches('B') {
            "" => 0,
            "K" | "k" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err(format!("`{text}` is no number of bytes: write 512M or 2G")),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| format!("`{text}` is no number of bytes: write 512M or 2G"))
    }
}

/// The host's name, for people.
pub fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "host".into() } else { name.into() }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// `<host>-<8 digits>`: another one for every process and start.
fn fresh_id(host: &str, now: SystemTime) -> WorkerId {
    let name: String = host.split('.').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = if name.is_empty() { "worker".into() } else { name.chars().take(40).collect::<String>() };
    let nanos = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let unique = Digest::of(format!("{host} {} {nanos}", std::process::id()).as_bytes()).short();
    WorkerId::new(format!("{name}-{}", &unique[..8])).expect("made of letters, digits and `-`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        let args = std::iter::once("likeness-worker").chain(args.iter().copied());
        Args::try_parse_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn without_flags_a_worker_does_everything() {
        let settings = parse(&[]).unwrap().resolve("node-1.example".into(), SystemTime::now()).unwrap();
        assert_eq!(settings.kinds, TaskKind::ALL);
        assert!(settings.searches);
        assert!(settings.worker.as_str().starts_with("node1-"), "{}", settings.worker);
    }

    #[test]
    fn a_wrong_role_or_device_is_answered_with_the_nearest() {
        assert!(parse(&["--roles", "train,embedd"]).unwrap_err().contains("did you mean `embed`?"));
        assert!(parse(&["--device", "cuda0"]).unwrap_err().contains("did you mean `cuda:0`?"));
        assert!(parse(&["--roles", ","]).unwrap_err().contains("at least one role"));
    }

    #[test]
    fn sizes_take_the_usual_units() {
        let sizes = ["17", "4K", "512M", "2GiB"].map(|text| text.parse::<ByteSize>().unwrap().0);
        assert_eq!(sizes, [17, 4 << 10, 512 << 20, 2 << 30]);
        for bad in ["", "G", "2X", "-1", "99999999999999T"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_starts_have_two_ids() {
        let now = SystemTime::now();
        assert_ne!(fresh_id("h", now), fresh_id("h", now + Duration::from_nanos(1)));
        assert!(fresh_id("...", now).as_str().starts_with("worker-"));
    }
}
