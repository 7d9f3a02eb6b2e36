//! A nats-server of its own for each test that wants one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use likeness_link::{Bus, NatsSettings, Timings};

/// Everything must happen within this time.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    dir: tempfile::TempDir,
    pub port: u16,
}

impl Server {
    /// Starts one on a free port, with JetStream in a temporary folder.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, port) = spawn(dir.path(), "-1", &[]);
        Self { child, dir, port }
    }

    /// The same, with a configuration file.
    pub fn with_config(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("server.conf");
        std::fs::write(&file, config).unwrap();
        let (child, port) = spawn(dir.path(), "-1", &["-c", file.to_str().unwrap()]);
        Self { child, dir, port }
    }

    /// Kills it and starts it again on the same port and folder.
    pub fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, _) = spawn(self.dir.path(), &self.port.to_string(), &[]);
    }

    pub fn settings(&self, ack_wait: Duration) -> NatsSettings {
        let timings = Timings::from_ack_wait(ack_wait, Duration::from_secs(2));
        NatsSettings { url: format!("nats://127.0.0.1:{}", self.port), credentials: None, ca: None, timings }
    }

    /// Connected, with everything made.
    pub async fn bus(&self, ack_wait: Duration) -> Bus {
        let bus = Bus::connect(&self.settings(ack_wait), "test").await.unwrap();
        bus.ensure_topology().await.unwrap();
        bus
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, port: &str, more: &[&str]) -> (Child, u16) {
    let ports = dir.join("ports");
    let _ = std::fs::remove_dir_all(&ports);
    std::fs::create_dir_all(&ports).unwrap();
    let binary = binary();
    let child = Command::new(&binary)
        .args(["-js", "-a", "127.0.0.1", "-p", port, "-sd"])
        .arg(dir.join("data"))
        .arg("--ports_file_dir")
        .arg(&ports)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start `{}`: {e}", binary.display()));
    let deadline = Instant::now() + DEADLINE;
    let port = loop {
        if let Some(port) = announced_port(&ports) {
            break port;
        }
        assert!(Instant::now() < deadline, "nats-server did not start within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    };
    (child, port)
}

/// The server writes its addresses to `nats-server_<pid>.ports`.
fn announced_port(ports: &Path) -> Option<u16> {
    let file = std::fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let text = std::fs::read_to_string(file).ok()?;
    let addresses: serde_json::Value = serde_json::from_str(&text).ok()?;
    addresses["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// `LIKENESS_NATS_SERVER`, else on the `PATH`, else where `just tools` puts it.
fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("LIKENESS_NATS_SERVER") {
        return path.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain([tools]).map(|dir| dir.join("nats-server")).find(|p| p.is_file());
    found.expect("no nats-server: set LIKENESS_NATS_SERVER, or put it on the PATH or into target/tools")
}
