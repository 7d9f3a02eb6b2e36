//! One child process that is kept running: logged to a file, restarted with a growing pause when it ends by
//! itself, asked to stop and, after its grace, killed. It never outlives this process.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pause before the first restart; doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A process that ran so long has proved itself: the pause starts over.
const PROVED_AFTER: Duration = Duration::from_secs(60);

/// Settings of other systems that this process may have been given; the children get theirs as flags.
const NOT_FOR_CHILDREN: [&str; 5] =
    ["LIKENESS_CREDENTIALS", "LIKENESS_NATS_CA", "LIKENESS_WORKER_ID", "LIKENESS_ROLES", "LIKENESS_METRICS"];

/// How to start a child.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// For people, the log file and `up.json`.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where its output goes; appended to.
    pub log: PathBuf,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
}

/// What happened to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChildNews {
    /// It runs.
    Started {
        /// Process id.
        pid: u32,
    },
    /// It ended by itself, or could not be started; another start follows after the pause.
    Died {
        /// In words.
        how: String,
        /// Where its log of this run begins.
        log_from: u64,
        /// Until the restart.
        pause: Duration,
    },
}

/// News with the child's name.
pub type NewsSender = mpsc::UnboundedSender<(String, ChildNews)>;

/// A child under supervision; it is asked to stop when this is dropped.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    stop: CancellationToken,
    task: JoinHandle<bool>,
    _stop_on_drop: DropGuard,
}

impl Supervised {
    /// Starts the child and its supervision.
    pub fn start(spec: ChildSpec, news: NewsSender) -> Self {
        let stop = CancellationToken::new();
        let name = spec.name.clone();
        let task = tokio::spawn(supervise(spec, stop.clone(), news));
        Self { name, task, _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks the child to stop, without waiting.
    pub fn request_stop(&self) {
        self.stop.cancel();
    }

    /// Waits until it has stopped; `false` when it had to be killed.
    pub async fn stop(self) -> bool {
        self.stop.cancel();
        self.task.await.unwrap_or(false)
    }
}

async fn supervise(spec: ChildSpec, stop: CancellationToken, news: NewsSender) -> bool {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let log_from = std::fs::metadata(&spec.log).map_or(0, |log| log.len());
        let how = match spawn(&spec) {
            Ok(mut child) => {
                // Nobody listens any more once everything stops.
                let _ = news.send((spec.name.clone(), ChildNews::Started { pid: child.id().unwrap_or_default() }));
                tokio::select! {
                    status = child.wait() => how_it_ended(status),
                    () = stop.cancelled() => return end(&mut child, spec.grace).await,
                }
            }
            Err(error) => format!("could not be started: {error}"),
        };
        if started.elapsed() > PROVED_AFTER {
            pause = FIRST_PAUSE;
        }
        let _ = news.send((spec.name.clone(), ChildNews::Died { how, log_from, pause }));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return true,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn how_it_ended(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended with {status}"),
        Err(error) => format!("was lost: {error}"),
    }
}

/// Starts the program in a process group of its own, so that a Ctrl-C in the terminal reaches us alone and we
/// stop the children in order.
fn spawn(spec: &ChildSpec) -> std::io::Result<Child> {
    let log = open_log(&spec.log)?;
    let mut command = Command::new(&spec.program);
    for variable in NOT_FOR_CHILDREN {
        command.env_remove(variable);
    }
    command
        .args(&spec.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true);
    die_with_parent(&mut command);
    command.spawn()
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::options().create(true).append(true).open(path)
}

/// The kernel kills the child when we die, however that happens.
#[cfg(target_os = "linux")]
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let before_exec = move || {
        // SAFETY: plain system calls without pointers.
        let (result, parent_now) = unsafe { (libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), libc::getppid()) };
        if result != 0 || u32::try_from(parent_now) != Ok(parent) {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two async-signal-safe system calls and allocates nothing.
    unsafe {
        command.pre_exec(before_exec);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_parent(_command: &mut Command) {}

/// SIGTERM, and SIGKILL after the grace; `false` when it came to that.
async fn end(child: &mut Child, grace: Duration) -> bool {
    ask_to_stop(child);
    if tokio::time::timeout(grace, child.wait()).await.is_ok() {
        return true;
    }
    // An error means that it is gone.
    let _ = child.kill().await;
    false
}

fn ask_to_stop(child: &Child) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    // SAFETY: a plain system call; the child is not reaped before `wait`, so the id is still its own. An error
    // means that it is gone.
    let _ = unsafe { libc::kill(pid, libc::SIGTERM) };
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(20);

    struct Fixture {
        folder: tempfile::TempDir,
        news: NewsSender,
        heard: mpsc::UnboundedReceiver<(String, ChildNews)>,
    }

    impl Fixture {
        fn new() -> Self {
            let (news, heard) = mpsc::unbounded_channel();
            Self { folder: tempfile::tempdir().unwrap(), news, heard }
        }

        fn start(&self, script: &str, grace: Duration) -> Supervised {
            let spec = ChildSpec {
                name: "fake".into(),
                program: "/bin/sh".into(),
                arguments: vec!["-c".into(), script.into()],
                log: self.folder.path().join("logs/fake.log"),
                grace,
            };
            Supervised::start(spec, self.news.clone())
        }

        async fn next(&mut self) -> ChildNews {
            tokio::time::timeout(DEADLINE, self.heard.recv()).await.expect("news in time").expect("a sender").1
        }

        async fn logged(&self, text: &str) {
            let log = self.folder.path().join("logs/fake.log");
            let deadline = Instant::now() + DEADLINE;
            while !std::fs::read_to_string(&log).is_ok_and(|log| log.contains(text)) {
                assert!(Instant::now() < deadline, "`{text}` never reached the log");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    fn alive(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_that_dies_is_started_again_with_a_growing_pause() {
        let mut fixture = Fixture::new();
        let child = fixture.start("echo hello; exit 3", DEADLINE);
        let mut pauses = Vec::new();
        while pauses.len() < 2 {
            match fixture.next().await {
                ChildNews::Started { .. } => {}
                ChildNews::Died { how, pause, .. } => {
                    assert!(how.contains("exit status: 3"), "{how}");
                    pauses.push(pause);
                }
            }
        }
        assert_eq!(pauses, [FIRST_PAUSE, FIRST_PAUSE * 2]);
        assert!(child.stop().await);
        fixture.logged("hello").await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn stopping_asks_first() {
        let mut fixture = Fixture::new();
        let child = fixture.start("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done", DEADLINE);
        let ChildNews::Started { pid } = fixture.next().await else { panic!("it starts") };
        fixture.logged("ready").await;
        assert!(child.stop().await);
        fixture.logged("bye").await;
        assert!(!alive(pid));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_that_will_not_stop_is_killed_after_its_grace() {
        let mut fixture = Fixture::new();
        let child = fixture.start("trap '' TERM; echo ready; while :; do sleep 0.05; done", Duration::from_millis(200));
        let ChildNews::Started { pid } = fixture.next().await else { panic!("it starts") };
        fixture.logged("ready").await;
        assert!(!child.stop().await);
        assert!(!alive(pid));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_program_that_is_missing_is_said() {
        let mut fixture = Fixture::new();
        let spec = ChildSpec {
            name: "none".into(),
            program: "/nowhere/program".into(),
            arguments: Vec::new(),
            log: fixture.folder.path().join("none.log"),
            grace: DEADLINE,
        };
        let child = Supervised::start(spec, fixture.news.clone());
        let ChildNews::Died { how, .. } = fixture.next().await else { panic!("it can't start") };
        assert!(how.contains("could not be started"), "{how}");
        assert!(child.stop().await);
    }
}
