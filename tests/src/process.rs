//! A child process whose log is kept and that signals can be sent to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::wait::{deadline, until};

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 40;

/// A running program; killed when dropped. When that is because of a failed test, the end of its log is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command; standard output and error go to `<logs>/<name>.log`, after what is there already.
    pub fn start(name: &str, logs: &Path, mut command: Command) -> Self {
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let both = file.try_clone().expect("a second handle of the log");
        command.stdin(Stdio::null()).stdout(file).stderr(both);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { name: name.into(), child, log }
    }

    /// Its id on this machine.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("process ids fit");
        // SAFETY: kill has no memory effects; the child has not been waited for, so the id is its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "cannot signal {}", self.name);
    }

    /// SIGKILL: gone at once, without a word.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }

    /// SIGSTOP: alive, but does nothing.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGTERM; returns how it ended.
    pub async fn terminate(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.ended().await
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until(&format!("{} ends", self.name), async || child.try_wait().expect("a child of ours")).await
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last line of it.
    pub fn last_line(&self) -> String {
        self.log().lines().last().unwrap_or_default().to_string()
    }

    /// Waits until its log contains a text.
    pub async fn says(&self, text: &str) {
        until(&format!("{} says `{text}`", self.name), async || self.log().contains(text).then_some(())).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            eprintln!("--- end of the log of {} ---\n{shown}", self.name);
        }
    }
}

/// What a command that ran to its end left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

/// Runs a command to its end, which must come before the deadline.
pub async fn finish(mut command: Command) -> Finished {
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = tokio::time::timeout(deadline(), command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{shown} does not end within {:?}", deadline()));
    let output = output.unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    Finished {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        took: started.elapsed(),
    }
}

/// Programs of one build of this project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build(PathBuf);

impl Build {
    /// The one under test: in `LIKENESS_BIN_DIR`, else beside the test's own executable.
    pub fn under_test() -> Self {
        Self(std::env::var_os("LIKENESS_BIN_DIR").map_or_else(
            || {
                let test = std::env::current_exe().expect("the test's own path");
                let deps = test.parent().expect("a folder");
                deps.parent().expect("the target folder").to_path_buf()
            },
            PathBuf::from,
        ))
    }

    /// Another one, that runs beside it during an upgrade: in `LIKENESS_OTHER_BIN_DIR`.
    pub fn other() -> Option<Self> {
        std::env::var_os("LIKENESS_OTHER_BIN_DIR").map(|dir| Self(PathBuf::from(dir)))
    }

    /// A program of it.
    pub fn program(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        assert!(
            path.is_file(),
            "`{}` is missing: run `cargo build -p likeness -p likeness-worker` first",
            path.display()
        );
        path
    }
}

/// A program of ours, of the build under test.
pub fn binary(name: &str) -> PathBuf {
    Build::under_test().program(name)
}
