//! A nats-server of its own for each test, on a free port, with JetStream in a temporary folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It must start within this time.
const DEADLINE: Duration = Duration::from_secs(15);

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (child, port) = spawn(dir.path(), "-1");
        Self { child, dir, port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills it, forgets all that it held, and starts it again on the same port.
    pub fn wipe(&mut self) {
        self.stop();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.start_again();
    }

    /// Kills it.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port and folder.
    pub fn start_again(&mut self) {
        (self.child, _) = spawn(self.dir.path(), &self.port.to_string());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _dead_already = self.child.kill();
        let _dead_already = self.child.wait();
    }
}

#[allow(clippy::zombie_processes, reason = "`Server` kills its child and waits for it")]
fn spawn(dir: &Path, port: &str) -> (Child, u16) {
    let ports = dir.join("ports");
    let _none_yet = std::fs::remove_dir_all(&ports);
    std::fs::create_dir_all(&ports).unwrap();
    let binary = binary();
    let child = Command::new(&binary)
        .args(["-js", "-a", "127.0.0.1", "-p", port, "-sd"])
        .arg(dir.join("data"))
        .arg("--ports_file_dir")
        .arg(&ports)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("can't start `{}`: {e}", binary.display()));
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(port) = announced_port(&ports) {
            return (child, port);
        }
        assert!(Instant::now() < deadline, "nats-server did not start within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The server writes its addresses to `nats-server_<pid>.ports`.
fn announced_port(ports: &Path) -> Option<u16> {
    let file = std::fs::read_dir(ports).ok()?.next()?.ok()?.path();
    let text = std::fs::read_to_string(file).ok()?;
    let addresses: serde_json::Value = serde_json::from_str(&text).ok()?;
    addresses["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
}

/// `LIKENESS_NATS_SERVER`, else on the `PATH`, else where the project's own script puts it.
fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("LIKENESS_NATS_SERVER") {
        return path.into();
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).chain([tools]).map(|dir| dir.join("nats-server")).find(|p| p.is_file());
    found.expect("no nats-server: set LIKENESS_NATS_SERVER, or put it on the PATH or into target/tools")
}
