//! A store that speaks just enough of S3 over HTTP, and can be told to ignore `If-None-Match`, or to fail otherwise
//! ([`crate::meddling`]).
//!
//! Objects lie in memory. No signatures are checked, listings are never cut.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use likeness_link::Store;
use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;

use crate::meddling::{Fault, Meddling};

const BUCKET: &str = "bucket";

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// A running server; it ends with the test's runtime.
#[derive(Debug)]
pub struct S3 {
    endpoint: String,
    objects: Objects,
    /// What goes wrong.
    pub meddling: Arc<Meddling>,
}

/// What a request asks.
struct Request {
    method: String,
    path: String,
    query: String,
    create_only: bool,
    range: Option<std::ops::Range<usize>>,
    body: Vec<u8>,
}

struct Response {
    status: &'static str,
    /// Which bytes of how many the body is.
    content_range: Option<String>,
    body: Vec<u8>,
}

impl S3 {
    /// Starts one on a free port.
    pub async fn start(ignores_create: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let objects = Objects::default();
        let meddling = Arc::<Meddling>::default();
        let (served, rule) = (objects.clone(), meddling.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, served.clone(), ignores_create, rule.clone()));
            }
        });
        Self { endpoint, objects, meddling }
    }

    /// A URL in its bucket.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/likeness")
    }

    /// The plain HTTP address of an object.
    pub fn http_url(&self, key: &str) -> String {
        format!("{}/{BUCKET}/{key}", self.endpoint)
    }

    /// Puts an object there.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into(), bytes);
    }

    /// The environment in which programs find it.
    pub fn found_by(&self, command: &mut Command) {
        command.env("AWS_ENDPOINT", &self.endpoint).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any").env("AWS_ALLOW_HTTP", "true");
    }

    /// The store below [`S3::url`], seen from the test.
    pub fn store(&self) -> Store {
        let s3 = AmazonS3Builder::new().with_endpoint(&self.endpoint).with_allow_http(true).with_region("us-east-1");
        let s3 = s3.with_bucket_name(BUCKET).with_access_key_id("any").with_secret_access_key("any");
        let s3 = s3.build().expect("a store");
        Store::over(Arc::new(PrefixStore::new(s3, "likeness")), &self.url())
    }

    /// Keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

async fn serve(stream: TcpStream, objects: Objects, ignores_create: bool, meddling: Arc<Meddling>) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read(&mut stream).await {
        let head = request.method == "HEAD";
        let failed = |status| Response { status, content_range: None, body: Vec::new() };
        let response = match meddling.fault(&request.method, &request.path) {
            Fault::None => answer(request, &objects, ignores_create),
            Fault::Refused(status) => failed(status),
            Fault::Done(status) => {
                answer(request, &objects, ignores_create);
                failed(status)
            }
            Fault::Swallowed => std::future::pending().await,
        };
        let Response { status, content_range, body } = response;
        let mut response = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
        if let Some(range) = content_range {
            write!(response, "content-range: bytes {range}\r\n").expect("a String takes everything");
        }
        response.push_str("etag: \"0\"\r\nlast-modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n\r\n");
        let mut bytes = response.into_bytes();
        if !head {
            bytes.extend(body);
        }
        if stream.get_mut().write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// The next request; none when the client has gone.
async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|bytes| *bytes > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let (mut length, mut create_only, mut range) = (0, false, None);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.ok()?;
        let header = header.trim().to_ascii_lowercase();
        match header.split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            Some(("if-none-match", value)) => create_only = value.trim() == "*",
            Some(("range", value)) => {
                let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
                range = Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1);
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.trim_start_matches('/').strip_prefix(BUCKET)?.trim_start_matches('/');
    Some(Request { method, path: path.into(), query: query.into(), create_only, range, body })
}

fn answer(request: Request, objects: &Objects, ignores_create: bool) -> Response {
    let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
    let Request { method, path, query, create_only, range, body } = request;
    let whole = |status, body| Response { status, content_range: None, body };
    let empty = |status| whole(status, Vec::new());
    match (method.as_str(), path.as_str()) {
        ("PUT", key) if create_only && !ignores_create && objects.contains_key(key) => empty("412 Precondition Failed"),
        ("PUT", key) => {
            objects.insert(key.into(), body);
            empty("200 OK")
        }
        ("GET", "") => whole("200 OK", listing(&objects, &query).into_bytes()),
        ("GET" | "HEAD", key) => match (objects.get(key), range) {
            (Some(found), None) => whole("200 OK", found.clone()),
            (Some(found), Some(range)) => match found.get(range.clone()) {
                Some(part) => {
                    let of = format!("{}-{}/{}", range.start, range.end - 1, found.len());
                    Response { status: "206 Partial Content", content_range: Some(of), body: part.to_vec() }
                }
                None => empty("416 Range Not Satisfiable"),
            },
            (None, _) => empty("404 Not Found"),
        },
        ("DELETE", key) => {
            objects.remove(key);
            empty("204 No Content")
        }
        ("POST", "") => {
            let text = String::from_utf8_lossy(&body);
            let mut result = String::from("<DeleteResult>");
            for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
                objects.remove(key);
                write!(result, "<Deleted><Key>{key}</Key></Deleted>").expect("a String takes everything");
            }
            whole("200 OK", (result + "</DeleteResult>").into_bytes())
        }
        _ => empty("405 Method Not Allowed"),
    }
}

/// Keys below the `prefix` of a query; with a `delimiter` its "sub-folders" as well.
fn listing(objects: &BTreeMap<String, Vec<u8>>, query: &str) -> String {
    let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    let prefix = value("prefix").unwrap_or_default().replace("%2F", "/");
    let deep = value("delimiter").is_none();
    let mut xml = String::from("<ListBucketResult><IsTruncated>false</IsTruncated>");
    let mut folders = std::collections::BTreeSet::new();
    for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        match key[prefix.len()..].split_once('/') {
            Some((folder, _)) if !deep => {
                folders.insert(format!("{prefix}{folder}/"));
            }
            _ => {
                let size = bytes.len();
                let dated = "<LastModified>2025-01-01T00:00:00.000Z</LastModified>";
                write!(xml, "<Contents><Key>{key}</Key><Size>{size}</Size>{dated}<ETag>\"0\"</ETag></Contents>")
                    .expect("a String takes everything");
            }
        }
    }
    for folder in folders {
        write!(xml, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>").expect("a String takes everything");
    }
    xml + "</ListBucketResult>"
}
