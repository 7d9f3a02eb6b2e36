//! A small HTTP server that takes webhooks and answers as it is told.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request.
#[derive(Debug, Clone)]
pub struct Received {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map_or("", |(_, value)| value)
    }
}

type Seen = Arc<Mutex<Vec<Received>>>;

/// A running server; it ends when dropped.
pub struct Receiver {
    port: u16,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// Answers the n-th request, from 0, with `answer(n)`: a status and further header lines.
    pub async fn start(answer: impl Fn(usize) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Seen::default();
        let task = tokio::spawn(serve(listener, seen.clone(), answer));
        Self { port, seen, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    pub fn seen(&self) -> Vec<Received> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(listener: TcpListener, seen: Seen, answer: impl Fn(usize) -> String) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let Some(received) = read(&mut stream).await else { continue };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(received);
            seen.len() - 1
        };
        let text = format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", answer(number));
        let _gone = stream.write_all(text.as_bytes()).await;
    }
}

async fn read(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..head_end].to_vec()).ok()?;
    let (line, headers) = head.split_once("\r\n")?;
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()));
    let headers: Vec<(String, String)> = headers.split("\r\n").filter_map(header).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
    let mut body = bytes[head_end + 4..].to_vec();
    while body.len() < length.unwrap_or(0) {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Received { line: line.to_string(), headers, body })
}
