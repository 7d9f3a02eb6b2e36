//! A nats-server child with JetStream.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::Process;

const START_WITHIN: Duration = Duration::from_secs(20);

/// A broker that can be killed and started again on the same port, with its data or without.
#[derive(Debug)]
pub struct Broker {
    process: Option<Process>,
    dir: PathBuf,
    port: u16,
    config: Option<PathBuf>,
    tls: bool,
}

impl Broker {
    /// Starts one on a free port; data, ports file and log lie in `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, None, false)
    }

    /// The same, of a server that `config` describes; its address and port stand back.
    pub fn start_with(dir: &Path, config: Option<PathBuf>, tls: bool) -> Self {
        std::fs::create_dir_all(dir).expect("a folder for the broker");
        let mut broker = Self { process: None, dir: dir.into(), port: 0, config, tls };
        broker.spawn("-1");
        broker
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "tls" } else { "nats" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Kills it and starts it again with the same data.
    pub fn restart(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Starts it after [`Broker::kill`] with the same data.
    pub fn start_again(&mut self) {
        self.spawn(&self.port.to_string());
    }

    /// SIGSTOP: alive, but does nothing.
    pub fn freeze(&self) {
        self.process.iter().for_each(Process::freeze);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.iter().for_each(Process::thaw);
    }

    /// Kills it and starts it again without any data.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.data()).expect("its data can be removed");
        self.start_again();
    }

    fn data(&self) -> PathBuf {
        match self.config.as_ref().and_then(|config| config.parent()) {
            Some(folder) => folder.join("jetstream"),
            None => self.dir.join("data"),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    fn spawn(&mut self, port: &str) {
        let ports = self.dir.join("ports");
        if ports.exists() {
            std::fs::remove_dir_all(&ports).expect("the ports file can be removed");
        }
        std::fs::create_dir_all(&ports).expect("a folder for the ports file");
        let mut command = Command::new(server());
        command.args(["-a", "127.0.0.1", "-p", port, "--ports_file_dir"]).arg(&ports);
        match &self.config {
            // What the file names lies beside it.
            Some(config) => {
                command.current_dir(config.parent().expect("a file in a folder"));
                command.arg("--config").arg(config).args(["-m", "-1"])
            }
            None => command.args(["-js", "-sd"]).arg(self.data()),
        };
        self.process = Some(Process::start("nats-server", &self.dir, command));
        let deadline = Instant::now() + START_WITHIN;
        self.port = loop {
            if let Some(port) = announced_port(&ports) {
                break port;
            }
            assert!(Instant::now() < deadline, "nats-server did not start within {START_WITHIN:?}");
            std::thread::sleep(Duration::from_millis(10));
        };
    }
}

/// The server writes its addresses to `nats-server_<pid>.ports`.
fn announced_port(ports: &Path) -> Option<u16> {
    let file = std::fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let addresses: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()?;
    addresses["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// `LIKENESS_NATS_SERVER`, else on the `PATH`, else in `target/tools`.
fn server() -> PathBuf {
    if let Ok(path) = std::env::var("LIKENESS_NATS_SERVER") {
        return path.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain([tools]).map(|dir| dir.join("nats-server")).find(|p| p.is_file());
    found.expect("no nats-server: set LIKENESS_NATS_SERVER, or put it on the PATH or into target/tools")
}
