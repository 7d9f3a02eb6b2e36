//! The NATS server of `likeness up`: on a free port, known by a name of its own.
//!
//! A free port that we found may be taken by somebody else before the server binds it. So the server gets a
//! name that nobody else has, and only a server that introduces itself by that name is ours.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;

use crate::command::up::child::ChildSpec;

/// First line that a NATS server sends: `INFO {…}`; larger ones are not ours.
const MAX_INFO_BYTES: u64 = 64 << 10;
const POLL: Duration = Duration::from_millis(20);

/// Where the server listens and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Its name.
    pub name: String,
}

impl Server {
    /// A server on this port.
    pub fn new(port: u16, token: &str) -> Self {
        Self { port, name: format!("likeness-{}-{port}-{token}", std::process::id()) }
    }

    /// The address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How to start it, with its streams below `dir`.
    pub fn spec(&self, program: PathBuf, dir: &Path) -> ChildSpec {
        let arguments = ["-a", "127.0.0.1", "-p", &self.port.to_string(), "--name", &self.name, "-js", "-sd"];
        let mut arguments: Vec<_> = arguments.iter().map(Into::into).collect();
        arguments.push(dir.join("nats").into());
        ChildSpec {
            name: "nats-server".into(),
            program,
            arguments,
            log: dir.join("logs/nats-server.log"),
            grace: Duration::from_secs(10),
        }
    }

    /// Completes when the server answers under its name.
    pub async fn answers(&self) {
        while introduction(self.port).await.as_deref() != Some(self.name.as_str()) {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// A port that is free at this moment.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The name by which whoever listens on `port` introduces itself.
async fn introduction(port: u16) -> Option<String> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.ok()?;
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(MAX_INFO_BYTES));
    tokio::time::timeout(Duration::from_secs(1), reader.read_line(&mut line)).await.ok()?.ok()?;
    name_in(&line)
}

fn name_in(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        server_name: String,
    }
    let info: Info = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
    Some(info.server_name)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[test]
    fn a_server_introduces_itself() {
        assert_eq!(name_in("INFO {\"server_name\":\"x\",\"version\":\"2.14.0\"}\r\n").as_deref(), Some("x"));
        assert_eq!(name_in("SSH-2.0-OpenSSH\r\n"), None);
    }

    #[tokio::test]
    async fn only_the_server_of_our_name_is_ours() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ours = Server::new(port, "ours");
        let name = ours.name.clone();
        let accept = tokio::spawn(async move {
            for name in ["somebody else", &name] {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(format!("INFO {{\"server_name\":\"{name}\"}}\r\n").as_bytes()).await.unwrap();
            }
        });
        tokio::time::timeout(Duration::from_secs(20), ours.answers()).await.unwrap();
        accept.await.unwrap();
    }
}
