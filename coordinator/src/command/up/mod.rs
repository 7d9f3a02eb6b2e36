//! `likeness up`: the whole system on one machine, as child processes over one folder.
//!
//! Everything lies in the folder: NATS streams in `nats`, the store in `store`, logs in `logs`, and `up.json`
//! by which other commands find it. Ports are free ones, so that several can run at once. Children that die are
//! started again; all of them end with this process, however it ends.

pub mod binaries;
pub mod child;
pub mod nats;
pub mod signals;
pub mod state;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use likeness_link::client::Client;
use likeness_link::settings::NatsSettings;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::command::Global;
use crate::command::connect::DEFAULT_UP_DIR;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::gateway::DEFAULT_HTTP;
use crate::command::output::{count, note, say};
use crate::command::up::child::{ChildNews, ChildSpec, NewsSender, Supervised};
use crate::command::up::nats::Server;
use crate::command::up::state::{ChildPid, DirLock, UpState};

/// Everything must have reported by then.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Free ports that are tried.
const PORT_TRIES: u32 = 5;
/// What a child gets beyond its own grace period.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// Flags of `likeness up`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Everything that it starts is its own: --nats, --store, --credentials and --up are refused here. Other commands find it \
by themselves when they run in the same folder, and from elsewhere with --up DIR.")]
pub struct UpArgs {
    /// Folder for everything: streams, store, logs.
    #[arg(default_value = DEFAULT_UP_DIR)]
    pub dir: PathBuf,
    /// Port of the NATS server; a free one without.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Worker processes that ingest, train, embed and evaluate.
    #[arg(long, default_value_t = 1)]
    pub workers: u32,
    /// Searcher processes; shards are spread over them.
    #[arg(long, default_value_t = 2)]
    pub searchers: u32,
    /// Threads of a worker [default: all cores, shared between the workers].
    #[arg(long, value_parser = threads)]
    pub threads: Option<usize>,
    /// Device of the workers: `cpu`, `cuda:0`, `metal`.
    #[arg(long, default_value = "cpu", value_parser = device)]
    pub device: String,
    /// Seconds in which a worker finishes its task or gives it back.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub grace_period: u64,
    /// Address of the gateway and its web page [default: 127.0.0.1:8484, or another port where that is taken]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// File of the keys that the gateway lets in; without it only this machine may ask.
    #[arg(long, value_name = "FILE")]
    pub keys: Option<PathBuf>,
    /// nats-server program [default: the one on the PATH from 2.11 on, else target/tools/nats-server].
    #[arg(long, value_name = "FILE", env = "LIKENESS_NATS_SERVER")]
    pub nats_server: Option<PathBuf>,
    /// likeness-worker program [default: the one beside this program].
    #[arg(long, value_name = "FILE", env = "LIKENESS_WORKER")]
    pub worker: Option<PathBuf>,
}

impl UpArgs {
    /// The defaults over a folder.
    pub fn over(dir: PathBuf) -> Self {
        Self {
            dir,
            port: None,
            workers: 1,
            searchers: 2,
            threads: None,
            device: "cpu".into(),
            grace_period: 5,
            http: None,
            keys: None,
            nats_server: std::env::var_os("LIKENESS_NATS_SERVER").map(PathBuf::from),
            worker: std::env::var_os("LIKENESS_WORKER").map(PathBuf::from),
        }
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_period)
    }
}

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if threads > 0 => Ok(threads),
        _ => Err("expected a number from 1".into()),
    }
}

/// A mistake is said before anything starts; whether there is such a device is for the worker to say.
fn device(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("cuda:").is_some_and(|number| number.parse::<u32>().is_ok());
    if number || ["cpu", "cuda", "metal"].contains(&text) {
        return Ok(text.into());
    }
    Err("expected cpu, cuda:0 or metal".into())
}

/// Runs until a signal.
pub async fn run(global: &Global, args: UpArgs) -> Outcome {
    let lock = DirLock::take(&args.dir)?;
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    let running = tokio::select! {
        running = Running::start(&args, lock) => running?,
        () = &mut stop => return Ok(Exit::Done),
    };
    announce(global, &args, &running.state())?;
    stop.await;
    say("stopping (Ctrl-C again to stop at once)");
    running.stop_or_kill().await
}

fn announce(global: &Global, args: &UpArgs, state: &UpState) -> Outcome<()> {
    if global.json {
        return crate::command::output::json(state);
    }
    note("likeness is up");
    note(format!("  NATS   {}", state.nats));
    note(format!("  store  {}", state.store));
    if let Some(http) = &state.http {
        note(format!("  page   {http}"));
    }
    let children = [count(args.workers.into(), "worker"), count(args.searchers.into(), "searcher")];
    note(format!("  with   {}; logs in {}", children.join(", "), folder_of(state).join("logs").display()));
    note("");
    note("In another terminal:");
    let likeness = format!("likeness --up {}", folder_of(state).display());
    note(format!("  {likeness} ingest celeba DIR && {likeness} pipeline"));
    note(format!("  likeness --nats {} --store {} search --with Smiling --sheet found.png", state.nats, state.store));
    note("Ctrl-C stops everything.");
    Ok(())
}

fn folder_of(state: &UpState) -> &Path {
    Path::new(&state.store).parent().unwrap_or(Path::new("."))
}

/// A running system.
#[derive(Debug)]
pub struct Running {
    nats: Supervised,
    coordinator: Supervised,
    workers: Vec<Supervised>,
    gateway: Supervised,
    state: Shared,
    listener: JoinHandle<()>,
    // Last: the folder is free only when nothing runs in it.
    _lock: DirLock,
}

/// What `up.json` says, with its folder.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<UpState>>, PathBuf);

impl Shared {
    fn get(&self) -> UpState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_http(&self, address: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).http = Some(format!("http://{address}"));
    }

    fn set_pid(&self, name: &str, pid: u32) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.pids.iter_mut().find(|child| child.name == name) {
            Some(child) => child.pid = pid,
            None => state.pids.push(ChildPid { name: name.into(), pid }),
        }
        if let Err(error) = state.write(&self.1) {
            say(format!("warning: can't write `up.json` in `{}`: {error}", self.1.display()));
        }
    }
}

impl Running {
    /// Starts everything and waits until it answers. On an error, or when dropped, nothing is left running.
    pub async fn start(args: &UpArgs, lock: DirLock) -> Outcome<Self> {
        let dir = lock.dir().to_path_buf();
        let program = binaries::nats_server(args.nats_server.as_deref())?;
        let worker = binaries::worker(args.worker.as_deref())?;
        let (news, mut heard) = mpsc::unbounded_channel();

        let (server, nats, pids) = start_nats(args, &program, &dir, &news, &mut heard).await?;
        let store = dir.join("store");
        let store = store.to_str().ok_or_else(|| Failure::usage("the folder's name must be UTF-8"))?.to_string();
        let state = UpState { nats: server.url(), store, http: None, pid: std::process::id(), pids };
        let state = Shared(Arc::new(Mutex::new(state)), dir.clone());

        let coordinator = Supervised::start(coordinator_spec(&state.get(), &dir)?, news.clone());
        // The coordinator makes the streams; workers that come earlier only wait.
        let workers: Vec<Supervised> = worker_specs(args, &worker, &state.get(), &dir)
            .into_iter()
            .map(|spec| Supervised::start(spec, news.clone()))
            .collect();
        let expected = workers.len();
        let reached = state.get();
        let ready = tokio::time::timeout(READY_WITHIN, all_report(&reached, expected));
        tokio::select! {
            ready = ready => ready.map_err(|_| not_ready(&dir))??,
            failure = first_death(&mut heard, |name, pid| state.set_pid(name, pid), &dir) => return Err(failure),
        }
        let address = http_address(args)?;
        let gateway = Supervised::start(gateway_spec(args, address, &reached, &dir)?, news.clone());
        tokio::select! {
            // What is heard first, so that the start of one that answers is known.
            biased;
            failure = first_death(&mut heard, |name, pid| state.set_pid(name, pid), &dir) => return Err(failure),
            listens = tokio::time::timeout(READY_WITHIN, listens(address)) => listens.map_err(|_| not_ready(&dir))?,
        }
        state.set_http(address);
        state.get().write(&dir)?;
        let listener = tokio::spawn(listen(heard, state.clone(), dir));
        Ok(Self { nats, coordinator, workers, gateway, state, listener, _lock: lock })
    }

    /// Where it is.
    pub fn state(&self) -> UpState {
        self.state.get()
    }

    /// Stops gateway, workers, coordinator and server, in this order. `false` when one had to be killed.
    pub async fn stop(self) -> bool {
        self.listener.abort();
        for child in self.workers.iter().chain([&self.gateway]) {
            child.request_stop();
        }
        let mut clean = true;
        for child in self.workers.into_iter().chain([self.gateway, self.coordinator, self.nats]) {
            let name = child.name().to_string();
            if !child.stop().await {
                say(format!("{name} did not stop within its grace period and was killed"));
                clean = false;
            }
        }
        clean
    }

    /// As [`Self::stop`]; a second signal kills what still runs.
    pub async fn stop_or_kill(self) -> Outcome {
        tokio::select! {
            clean = self.stop() => Ok(if clean { Exit::Done } else { Exit::Grace }),
            // The children are killed with the runtime that this return ends.
            () = signals::stop_requested() => Ok(Exit::Grace),
        }
    }
}

async fn start_nats(
    args: &UpArgs,
    program: &Path,
    dir: &Path,
    news: &NewsSender,
    heard: &mut mpsc::UnboundedReceiver<(String, ChildNews)>,
) -> Outcome<(Server, Supervised, Vec<ChildPid>)> {
    let tries = if args.port.is_some() { 1 } else { PORT_TRIES };
    let mut last = Failure::failed("no free port");
    for attempt in 0..tries {
        let port = args.port.map_or_else(nats::free_port, Ok)?;
        let server = Server::new(port, &attempt.to_string());
        let child = Supervised::start(server.spec(program.to_path_buf(), dir), news.clone());
        let mut pids = Vec::new();
        tokio::select! {
            // What is heard first, so that the start of a server that answers is known.
            biased;
            died = first_death(heard, |name, pid| pids = vec![ChildPid { name: name.into(), pid }], dir) => last = died,
            () = server.answers() => return Ok((server, child, pids)),
            () = tokio::time::sleep(READY_WITHIN) => last = not_ready(dir),
        }
        child.stop().await;
    }
    Err(last)
}

fn coordinator_spec(state: &UpState, dir: &Path) -> Outcome<ChildSpec> {
    Ok(ChildSpec {
        name: "coordinator".into(),
        program: binaries::own()?,
        arguments: [addresses(state), vec!["coordinator".into()]].concat(),
        log: dir.join("logs/coordinator.log"),
        grace: Duration::from_secs(10) + KILL_AFTER,
    })
}

/// The usual address where it is free, so that it can be remembered.
fn http_address(args: &UpArgs) -> Outcome<SocketAddr> {
    if let Some(address) = args.http {
        return Ok(address);
    }
    let usual = DEFAULT_HTTP.parse().map_err(Failure::failed)?;
    if std::net::TcpListener::bind(usual).is_ok() {
        return Ok(usual);
    }
    Ok(SocketAddr::new(usual.ip(), nats::free_port()?))
}

fn gateway_spec(args: &UpArgs, address: SocketAddr, state: &UpState, dir: &Path) -> Outcome<ChildSpec> {
    let mut arguments =
        [addresses(state), vec!["gateway".into(), "--http".into(), address.to_string().into()]].concat();
    if let Some(keys) = &args.keys {
        let keys =
            keys.canonicalize().map_err(|error| Failure::usage(format!("--keys `{}`: {error}", keys.display())))?;
        arguments.extend(["--keys".into(), keys.into()]);
    }
    Ok(ChildSpec {
        name: "gateway".into(),
        program: binaries::own()?,
        arguments,
        log: dir.join("logs/gateway.log"),
        grace: Duration::from_secs(10) + KILL_AFTER,
    })
}

/// Completes when somebody listens there.
async fn listens(address: SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn worker_specs(args: &UpArgs, program: &Path, state: &UpState, dir: &Path) -> Vec<ChildSpec> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.unwrap_or(cores / args.workers.max(1) as usize).max(1);
    // Searches are short and rare beside training: half the cores let neither starve the other.
    let search_threads = (cores / 2 / args.searchers.max(1) as usize).max(1);
    let spec = |name: String, roles: &str, threads: usize| ChildSpec {
        log: dir.join(format!("logs/{name}.log")),
        name,
        program: program.to_path_buf(),
        arguments: [addresses(state), worker_flags(args, roles, threads)].concat(),
        grace: args.grace() + KILL_AFTER,
    };
    let workers = (1..=args.workers).map(|n| spec(format!("worker-{n}"), "ingest,train,embed,evaluate", threads));
    let searchers = (1..=args.searchers).map(|n| spec(format!("searcher-{n}"), "search", search_threads));
    workers.chain(searchers).collect()
}

fn addresses(state: &UpState) -> Vec<OsString> {
    ["--nats", &state.nats, "--store", &state.store].iter().map(Into::into).collect()
}

fn worker_flags(args: &UpArgs, roles: &str, threads: usize) -> Vec<OsString> {
    let (threads, grace) = (threads.to_string(), args.grace_period.to_string());
    let flags = ["--roles", roles, "--device", &args.device, "--threads", &threads, "--grace-period", &grace];
    flags.iter().map(Into::into).collect()
}

/// Completes when the coordinator leads and all workers are known to it.
async fn all_report(state: &UpState, expected: usize) -> Outcome<()> {
    let settings = NatsSettings::new(state.nats.as_str())?;
    loop {
        if let Ok(client) = Client::connect(&settings, &state.store).await {
            while let Ok(status) = client.status().await {
                if status.workers.len() >= expected {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits for a child that dies while everything starts: what can't start at once won't start later.
async fn first_death(
    heard: &mut mpsc::UnboundedReceiver<(String, ChildNews)>,
    mut started: impl FnMut(&str, u32),
    dir: &Path,
) -> Failure {
    while let Some((name, news)) = heard.recv().await {
        match news {
            ChildNews::Started { pid } => started(&name, pid),
            ChildNews::Died { how, log_from, .. } => return death(&name, &how, dir, log_from),
        }
    }
    Failure::failed("the children were lost")
}

fn death(name: &str, how: &str, dir: &Path, log_from: u64) -> Failure {
    let log = dir.join(format!("logs/{name}.log"));
    let tail = last_lines(&log, log_from, 5);
    Failure::failed(format!("{name} {how}; the end of {}:\n{tail}", log.display()))
}

fn not_ready(dir: &Path) -> Failure {
    let seconds = READY_WITHIN.as_secs();
    Failure::failed(format!("not everything was ready within {seconds} s: see {}", dir.join("logs").display()))
}

/// The end of a log, without what earlier runs wrote: logs are appended to.
fn last_lines(path: &Path, from: u64, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let ours = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or(&bytes);
    let text = String::from_utf8_lossy(ours);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Keeps `up.json` true and tells what happens to children.
async fn listen(mut heard: mpsc::UnboundedReceiver<(String, ChildNews)>, state: Shared, dir: PathBuf) {
    while let Some((name, news)) = heard.recv().await {
        match news {
            ChildNews::Started { pid } => {
                let again = state.get().pids.iter().any(|child| child.name == name && child.pid != pid);
                state.set_pid(&name, pid);
                if again {
                    say(format!("{name} runs again (process {pid})"));
                }
            }
            ChildNews::Died { how, pause, log_from: _ } => {
                let log = dir.join(format!("logs/{name}.log"));
                say(format!("{name} {how}; starting it again in {} s (log: {})", pause.as_secs(), log.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(args: &UpArgs) -> Vec<ChildSpec> {
        worker_specs(args, Path::new("/bin/worker"), &UpState::for_tests(), Path::new("/d"))
    }

    #[test]
    fn one_worker_and_two_searchers_by_default() {
        let specs = specs(&UpArgs::over("/d".into()));
        let names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["worker-1", "searcher-1", "searcher-2"]);
        assert!(specs[0].arguments.contains(&"ingest,train,embed,evaluate".into()));
        assert!(specs[1].arguments.contains(&"search".into()));
    }

    #[test]
    fn cores_are_shared_between_workers_and_never_none() {
        let threads = |spec: &ChildSpec| {
            let at = spec.arguments.iter().position(|a| a == "--threads").unwrap();
            spec.arguments[at + 1].to_str().unwrap().parse::<usize>().unwrap()
        };
        let many = specs(&UpArgs { workers: 1000, searchers: 1000, ..UpArgs::over("/d".into()) });
        assert!(many.iter().all(|spec| threads(spec) == 1));
        let fixed = specs(&UpArgs { threads: Some(3), ..UpArgs::over("/d".into()) });
        assert_eq!(threads(&fixed[0]), 3);
    }

    #[test]
    fn a_death_shows_the_end_of_the_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let log: String = (1..=9).map(|n| format!("line {n}\n")).collect();
        std::fs::write(dir.path().join("logs/worker-1.log"), log).unwrap();
        let text = death("worker-1", "ended with exit status: 64", dir.path(), 0).to_string();
        assert!(text.contains("exit status: 64") && text.contains("line 9") && !text.contains("line 4"), "{text}");
        let text = death("worker-1", "ended", dir.path(), "line n\n".len() as u64 * 7).to_string();
        assert!(text.contains("line 8") && !text.contains("line 7"), "an earlier run is left out: {text}");
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: UpArgs,
        }
        let parse = |line: &str| <Line as clap::Parser>::try_parse_from(["up"].into_iter().chain(line.split(' ')));
        for wrong in ["--port 0", "--threads 0", "--threads many", "--device foo", "--device cuda:"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let args = parse("--port 4333 --threads 2 --device cuda:1").unwrap().args;
        assert_eq!((args.port, args.threads, args.device.as_str()), (Some(4333), Some(2), "cuda:1"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_server_is_known_from_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let args = UpArgs::over(dir.path().into());
        let program = binaries::nats_server(args.nats_server.as_deref()).unwrap();
        let (news, mut heard) = mpsc::unbounded_channel();
        let (_, child, pids) = start_nats(&args, &program, dir.path(), &news, &mut heard).await.unwrap();
        assert_eq!(pids.len(), 1, "so that its next start is told as one");
        assert_eq!(pids[0].name, "nats-server");
        assert!(child.stop().await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_up_in_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = DirLock::take(dir.path()).unwrap();
        let second = DirLock::take(dir.path()).unwrap_err();
        assert!(second.to_string().contains("in use by another `likeness up`"), "{second}");
    }
}
