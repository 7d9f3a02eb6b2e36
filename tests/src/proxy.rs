//! A NATS server with a bad network before it: what passes can be lost, changed, held back or cut off.
//!
//! It reads the client protocol, so that a rule can pick one acknowledgement out of a thousand messages.
//!
//! ```no_run
//! # use likeness_tests::proxy::{Proxy, Frame, Fate};
//! # async fn example() {
//! let proxy = Proxy::before("nats://127.0.0.1:4222").await;
//! proxy.rule(|frame: &mut Frame| match frame.payload() {
//!     b"+ACK" if frame.to_server => Fate::Lost,
//!     _ => Fate::Passes,
//! });
//! # }
//! ```

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// One protocol message: a line, with what follows it.
pub struct Frame {
    /// From the client to the server.
    pub to_server: bool,
    bytes: Vec<u8>,
    payload: Range<usize>,
}

impl Frame {
    /// `PUB subject reply length`, `MSG …`, `PING` …
    pub fn line(&self) -> &str {
        let end = self.bytes.iter().position(|byte| *byte == b'\r').unwrap_or(self.bytes.len());
        std::str::from_utf8(&self.bytes[..end]).unwrap_or_default()
    }

    /// Subject of a message that is published or delivered.
    pub fn subject(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    /// The message without its headers; empty of anything else.
    pub fn payload(&self) -> &[u8] {
        &self.bytes[self.payload.clone()]
    }

    /// Raises the version of a bincode message of ours far beyond what this program reads: as if a newer program had sent it.
    pub fn from_a_newer_program(&mut self) {
        let payload = &mut self.bytes[self.payload.clone()];
        // Magic, then the length of the name, the name, the version.
        if payload.starts_with(b"LKN1") {
            let version = 5 + usize::from(payload[4]);
            payload[version] = NEWER;
        }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.to_server { "to the server" } else { "to the client" };
        f.debug_struct("Frame").field("line", &self.line()).field("way", &way).finish_non_exhaustive()
    }
}

/// A version that no message has, in one byte.
const NEWER: u8 = 99;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Passes,
    /// It is never seen again.
    Lost,
}

/// What the network does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Works,
    /// Nothing arrives; what is sent waits.
    Stalls,
    /// Connections end, and nobody answers new ones. The number tells one cut from the next.
    Cut,
}

type Rule = Box<dyn FnMut(&mut Frame) -> Fate + Send>;

/// See the module. Clones are the same proxy.
#[derive(Clone)]
pub struct Proxy {
    url: String,
    network: Arc<watch::Sender<Network>>,
    rule: Arc<Mutex<Option<Rule>>>,
    lost: Arc<AtomicU64>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Stands before a server (`nats://host:port`) on a port of its own, until the test's runtime ends.
    pub async fn before(server: &str) -> Self {
        let server = server.trim_start_matches("nats://").to_string();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("nats://{}", listener.local_addr().expect("an address"));
        let network = Arc::new(watch::Sender::new(Network::Works));
        let proxy = Self { url, network, rule: Arc::default(), lost: Arc::default() };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(client, server.clone()));
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Decides about every frame from now on; it may change the payload.
    pub fn rule(&self, rule: impl FnMut(&mut Frame) -> Fate + Send + 'static) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
    }

    /// Every frame passes again.
    pub fn no_rule(&self) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many frames were lost so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Nothing arrives any more on either side, and nobody is told: what is sent waits.
    pub fn stall(&self) {
        self.network.send_replace(Network::Stalls);
    }

    /// Ends all connections and takes no new ones.
    pub fn cut(&self) {
        self.network.send_replace(Network::Cut);
    }

    /// The network works again; what waited arrives.
    pub fn mend(&self) {
        self.network.send_replace(Network::Works);
    }

    async fn serve(self, client: TcpStream, server: String) {
        if *self.network.borrow() == Network::Cut {
            return;
        }
        let Ok(server) = TcpStream::connect(server).await else { return };
        let mut network = self.network.subscribe();
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // Whichever ends first takes the others with it, and both connections.
        tokio::select! {
            _ = self.carry(from_client, to_server, true) => {}
            _ = self.carry(from_server, to_client, false) => {}
            _ = network.wait_for(|network| *network == Network::Cut) => {}
        }
    }

    async fn carry(
        &self,
        from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        to_server: bool,
    ) -> io::Result<()> {
        let mut from = BufReader::new(from);
        let mut network = self.network.subscribe();
        while let Some(mut frame) = read(&mut from, to_server).await? {
            let works = network.wait_for(|network| *network != Network::Stalls).await;
            works.map_err(|_| io::ErrorKind::NotConnected)?;
            match self.decide(&mut frame) {
                Fate::Passes => to.write_all(&frame.bytes).await?,
                Fate::Lost => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }

    fn decide(&self, frame: &mut Frame) -> Fate {
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.as_mut().map_or(Fate::Passes, |rule| rule(frame))
    }
}

/// The next frame; none at the end of the connection.
async fn read(from: &mut (impl AsyncBufReadExt + Unpin), to_server: bool) -> io::Result<Option<Frame>> {
    let mut bytes = Vec::new();
    if from.read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    let (headers, total) = lengths(&bytes).ok_or(io::ErrorKind::InvalidData)?;
    let start = bytes.len();
    if let Some(total) = total {
        bytes.resize(start + total + 2, 0);
        from.read_exact(&mut bytes[start..]).await?;
    }
    let payload = start + headers..start + total.unwrap_or(headers);
    Ok(Some(Frame { to_server, bytes, payload }))
}

/// Bytes of headers, and of all that follows a line, if anything does.
fn lengths(line: &[u8]) -> Option<(usize, Option<usize>)> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let mut words = line.split(' ').rev();
    let mut number = || words.next()?.parse::<usize>().ok();
    match line.split(' ').next()? {
        "PUB" | "MSG" => Some((0, Some(number()?))),
        "HPUB" | "HMSG" => {
            let total = number()?;
            Some((number()?, Some(total)))
        }
        _ => Some((0, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frames(text: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut from = BufReader::new(text);
        let mut frames = Vec::new();
        while let Some(frame) = read(&mut from, true).await.unwrap() {
            frames.push((frame.line().to_string(), frame.payload().to_vec()));
        }
        frames
    }

    #[tokio::test]
    async fn messages_are_told_from_their_headers_and_from_each_other() {
        let text = b"PING\r\nPUB a 4\r\n+ACK\r\nHPUB b reply 5 9\r\nH\r\n\r\nx\r\ny\r\nMSG c 1 0\r\n\r\n";
        let expected = [("PING", ""), ("PUB a 4", "+ACK"), ("HPUB b reply 5 9", "x\r\ny"), ("MSG c 1 0", "")];
        let frames = frames(text).await;
        let text: Vec<(&str, &str)> =
            frames.iter().map(|(line, payload)| (line.as_str(), std::str::from_utf8(payload).unwrap())).collect();
        assert_eq!(text, expected);
    }
}
