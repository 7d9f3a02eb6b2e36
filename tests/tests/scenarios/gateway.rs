//! The HTTP gateway over a real system: searches, images, jobs with their events, releases, and who may ask.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use likeness_tests::cluster::done;
use likeness_tests::process::finish;
use likeness_tests::{Cluster, Process, faces, jobs, until};
use serde_json::{Value, json};

use super::search::searcher;

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a header, by its name in small letters.
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// A gateway and where it is.
struct Gateway {
    address: SocketAddr,
    process: Process,
}

impl Gateway {
    async fn start(cluster: &Cluster, flags: &[&str]) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let mut command = cluster.command("likeness");
        command.args(["gateway", "--http", &address.to_string()]).args(flags).env("LIKENESS_LOG", "info");
        let process = Process::start("gateway", &cluster.dir().join("logs"), command);
        let gateway = Self { address, process };
        until("the gateway answers", async || TcpStream::connect(address).ok()).await;
        assert_eq!(gateway.get("/healthz").status, 200);
        gateway
    }

    /// Sends a request by hand, so that no client adds or hides anything.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).expect("the gateway takes connections");
        stream.set_read_timeout(Some(Duration::from_secs(90))).expect("a socket");
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent = stream.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| stream.write_all(body));
        let mut bytes = Vec::new();
        // Whoever sends too much is told so before all of it was read.
        let read = stream.read_to_end(&mut bytes);
        assert!(!bytes.is_empty(), "{method} {path}: {sent:?}, {read:?}");
        answer(&bytes)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }
}

fn answer(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|at| at == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(&bytes[end + 4..]) } else { bytes[end + 4..].to_vec() };
    Answer { status, head, body }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|at| at == b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else { break };
        body.extend(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    body
}

fn form(image: &[u8], request: &str) -> Vec<u8> {
    let mut body = format!("--x\r\ncontent-disposition: form-data; name=\"request\"\r\n\r\n{request}\r\n").into_bytes();
    body.extend(b"--x\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a.jpg\"\r\n\r\n");
    body.extend(image);
    body.extend(b"\r\n--x--\r\n");
    body
}

#[tokio::test]
async fn what_the_command_line_does_goes_over_http_too() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let client = cluster.client().await;
    let gateway = Gateway::start(&cluster, &[]).await;
    let ready = gateway.get("/readyz");
    assert_eq!((ready.status, ready.json()["release"].as_bool()), (503, Some(false)), "nothing is served yet");

    // A job goes in over HTTP, and its events come out as they happen.
    let _worker = cluster.task_worker("worker");
    let root = faces::write(cluster.dir(), 120);
    let request = serde_json::to_value(jobs::ingest("faces-1", &root, 60)).expect("JSON");
    let submitted = gateway.post("/v1/jobs", &request);
    assert_eq!((submitted.status, submitted.json()["job"].as_str()), (202, Some("faces-1")), "{}", submitted.text());
    let events = gateway.get("/v1/jobs/faces-1/events");
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    let events = events.text();
    assert!(
        events.contains("event: task") && events.contains("event: job") && events.contains("event: end"),
        "{events}"
    );
    assert!(events.contains("\"closed\"") && events.contains("\"task\":\"scan\""), "{events}");
    let tasks = gateway.get("/v1/jobs/faces-1/tasks").json();
    let states: Vec<&str> = tasks["stages"]
        .as_array()
        .expect("stages")
        .iter()
        .flat_map(|stage| {
            stage["tasks"].as_array().expect("tasks").iter().map(|task| task["state"].as_str().expect("a state"))
        })
        .collect();
    assert_eq!(states, ["done"; 4], "scan, two parts, dataset");
    assert_eq!(gateway.post("/v1/jobs/faces-1/retry", &json!({})).status, 409, "it is done");
    let missing = gateway.get("/v1/jobs/faces-2");
    assert_eq!((missing.status, missing.header("content-type")), (404, Some("application/problem+json")));
    assert_eq!(missing.json()["nearest"], json!(["faces-1"]));

    done(&client, jobs::pipeline("first", jobs::training(6, 30), 15)).await;
    let _searcher = searcher(&cluster, "searcher", 1);
    until("it is ready", async || (gateway.get("/readyz").status == 200).then_some(())).await;
    searches(&gateway);
    images(&gateway, &cluster).await;
    releases(&gateway);
    examples(&gateway, &cluster).await;
    assert!(gateway.process.terminate().await.success(), "SIGTERM is no failure");
}

fn searches(gateway: &Gateway) {
    let question =
        |name: &str| json!({ "k": 5, "explain": true, "terms": [{ "term": { "attributes": { "with": [name] } } }] });
    let found = gateway.post("/v1/search", &question("Warm"));
    assert_eq!(found.status, 200, "{}", found.text());
    let found = found.json();
    assert_eq!(found["hits"].as_array().map(Vec::len), Some(5));
    let image = found["hits"][0]["image"].clone();
    let item = found["hits"][0]["item"].as_str().expect("an item").to_string();
    let at = format!("?part={}&row={}", image["part"].as_str().expect("a part"), image["row"]);

    let wrong = gateway.post("/v1/search", &question("Wram"));
    assert_eq!((wrong.status, wrong.json()["nearest"].clone()), (404, json!(["Warm"])), "{}", wrong.text());
    assert_eq!(gateway.post("/v1/search", &json!({ "fitler": {} })).status, 422);
    assert_eq!(gateway.ask("POST", "/v1/search", &[("content-type", "application/json")], b"{").status, 400);
    assert_eq!(gateway.ask("POST", "/v1/search", &[], b"{}").status, 415);
    assert_eq!(gateway.ask("PUT", "/v1/search", &[], b"").status, 405);
    assert_eq!(gateway.get("/v1/nothing").header("content-type"), Some("application/problem+json"));

    let whole = gateway.get(&format!("/v1/images/{item}{at}"));
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("image/jpeg")), "{}", whole.text());
    let by_image = gateway.ask(
        "POST",
        "/v1/search/image",
        &[("content-type", "multipart/form-data; boundary=x")],
        &form(&whole.body, "{\"k\":3}"),
    );
    assert_eq!(by_image.status, 200, "{}", by_image.text());
    assert_eq!(by_image.json()["hits"][0]["item"], json!(item), "an image is nearest to itself");
    let no_image = gateway.ask(
        "POST",
        "/v1/search/image",
        &[("content-type", "multipart/form-data; boundary=x")],
        &form(b"hello", "{}"),
    );
    assert_eq!(no_image.status, 422);

    let batch = gateway.post("/v1/search/batch", &json!({ "queries": [question("Warm"), question("Wram")] })).json();
    assert_eq!(batch["answers"][0]["found"]["hits"], found["hits"]);
    assert_eq!(batch["answers"][1]["error"]["status"], 404);

    let zipped = gateway.ask(
        "POST",
        "/v1/search",
        &[("content-type", "application/json"), ("accept-encoding", "gzip")],
        question("Warm").to_string().as_bytes(),
    );
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    let vocabulary = gateway.get("/v1/aliases/main/vocabulary").json();
    assert_eq!(vocabulary["attributes"].as_array().map(Vec::len), Some(faces::ATTRIBUTES.len()));
    assert_eq!(gateway.get("/v1/aliases/mian/vocabulary").json()["nearest"], json!(["main"]));
}

async fn images(gateway: &Gateway, cluster: &Cluster) {
    let listed = gateway
        .post("/v1/search", &json!({ "k": 1, "terms": [{ "term": { "attributes": { "with": ["Disc"] } } }] }))
        .json();
    let item = listed["hits"][0]["item"].as_str().expect("an item").to_string();
    let small = gateway.get(&format!("/v1/thumbnails/{item}?size=32"));
    assert_eq!((small.status, small.header("content-type")), (200, Some("image/jpeg")), "{}", small.text());
    let tag = small.header("etag").expect("a tag").to_string();
    let again = gateway.ask("GET", &format!("/v1/thumbnails/{item}?size=32"), &[("if-none-match", &tag)], b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(gateway.get("/v1/images/nobody.jpg").status, 404);
    assert_eq!(gateway.get(&format!("/v1/images/{item}?part=models/x/y.parquet&row=0")).status, 404);
    assert_eq!(gateway.get(&format!("/v1/thumbnails/{item}?size=4000")).status, 422);

    let removed = gateway.post("/v1/datasets/faces/removals", &json!({ "change": "remove", "items": [item] }));
    assert_eq!(removed.status, 200, "{}", removed.text());
    let path = format!("/v1/images/{item}");
    until("it is no longer shown", async || (gateway.get(&path).status == 410).then_some(())).await;
    let finished = cluster.cli(&["datasets", "restore", &item, "--dataset", "faces"]).await;
    assert_eq!(finished.code, 0, "{}", finished.err);
    until("it is shown again", async || (gateway.get(&path).status == 200).then_some(())).await;
}

fn releases(gateway: &Gateway) {
    let releases = gateway.get("/v1/releases").json();
    assert_eq!(releases[0]["number"], 1);
    let generation = releases[0]["generation"].clone();
    let promoted = gateway.post("/v1/releases/main/promote", &json!({ "generation": generation, "report": "first" }));
    assert_eq!((promoted.status, promoted.json()["number"].as_u64()), (200, Some(2)), "{}", promoted.text());
    let back = gateway.post("/v1/releases/main/rollback", &json!({}));
    assert_eq!(back.json()["rolls_back_to"], 1, "{}", back.text());
    let compared = gateway.get("/v1/releases/compare?a=main@1&b=main@2");
    assert_eq!(compared.status, 200, "{}", compared.text());
    assert!(compared.json()["comparison"]["groups"].as_array().is_some_and(|groups| !groups.is_empty()));
    assert_eq!(gateway.get("/v1/releases/main/9").status, 404);

    assert_eq!(gateway.get("/v1/reports").json()[0]["report"], "first");
    let page = gateway.get("/v1/reports/first/page");
    assert!(
        page.text().contains("<html")
            && page.header("content-security-policy").is_some_and(|policy| policy.starts_with("sandbox"))
    );
    let training = gateway.get("/v1/models/first/training").json();
    let train = &training["phases"]["train"];
    assert_eq!(train["step"].as_array().map(Vec::len), train["loss"].as_array().map(Vec::len));
    assert_eq!(gateway.get("/v1/models").json()[0]["serves"], json!(["main"]));
    let status = gateway.get("/v1/status").json();
    assert_eq!(status["status"]["workers"].as_array().map(Vec::len), Some(2));

    let page = gateway.get("/");
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(!policy.contains("unsafe") && policy.contains("script-src 'self'"), "{policy}");
    let document = gateway.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let at = path.replace("{number}", "1").replace(['{', '}'], "");
        for method in methods.as_object().expect("methods").keys().filter(|method| *method == "get") {
            let answered = gateway.get(&at);
            let nothing = answered.status == 404 && answered.text().contains("nothing is at");
            assert!(!nothing && answered.status != 405 && answered.status < 500, "{method} {at}: {}", answered.text());
        }
    }
}

/// The clients that the documentation shows.
async fn examples(gateway: &Gateway, cluster: &Cluster) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/docs/examples");
    let url = format!("http://{}", gateway.address);
    let image = cluster.dir().join("query.jpg");
    let hit =
        gateway.post("/v1/search", &json!({ "k": 1, "terms": [{ "term": { "attributes": { "with": ["Warm"] } } }] }));
    let item = hit.json()["hits"][0]["item"].as_str().expect("an item").to_string();
    std::fs::write(&image, gateway.get(&format!("/v1/images/{item}")).body).expect("a file");
    let run = async |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(cluster.dir());
        let ended = finish(command).await;
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.err);
        ended.out
    };
    let at = |name: &str| examples.join(name).to_str().expect("a plain path").to_string();
    let python = at("search_http.py");
    let found =
        run("python3", &[&python, "--url", &url, "--with", "Warm", "-k", "2", "--thumbnails", "pictures"]).await;
    assert!(found.starts_with(&item) && found.lines().count() == 2 && found.contains(" of 1"), "{found}");
    assert_eq!(std::fs::read_dir(cluster.dir().join("pictures")).expect("pictures").count(), 2);
    let found = run("python3", &[&python, "--url", &url, "--image", "query.jpg", "-k", "1"]).await;
    assert!(found.starts_with(&item), "{found}");
    let said = run("bash", &[&at("curl.sh"), &url, "Warm", "query.jpg"]).await;
    assert!(said.contains("\"hits\"") && said.contains("event: end"), "{said}");
}

#[tokio::test]
async fn a_key_opens_what_its_role_may_and_not_more_often_than_it_may() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator("coordinator");
    let _client = cluster.client().await;
    let keys = cluster.dir().join("keys");
    let file = keys.to_str().expect("a plain path");
    let key = async |name: &str, flags: &[&str]| {
        let made = cluster.cli(&[&["gateway", "key", file, name], flags].concat()).await;
        assert_eq!(made.code, 0, "{}", made.err);
        format!("Bearer {}", made.out.trim())
    };
    let reader = key("reader", &[]).await;
    let operator = key("operator", &["--role", "operator"]).await;
    let slow = key("slow", &["--rate", "0.5"]).await;
    let everywhere = cluster.cli(&["gateway", "--http", "0.0.0.0:0"]).await;
    assert!(everywhere.code == 64 && everywhere.err.contains("--keys"), "{}", everywhere.err);

    let gateway =
        Gateway::start(&cluster, &["--keys", file, "--max-body", "1", "--allow-origin", "https://ours.example"]).await;
    let as_key = |method: &str, path: &str, key: &str| gateway.ask(method, path, &[("authorization", key)], b"");
    let nobody = gateway.get("/v1/status");
    assert_eq!((nobody.status, nobody.header("www-authenticate").is_some()), (401, true));
    assert_eq!(as_key("GET", "/v1/status", "Bearer lk_wrong").status, 401);
    assert_eq!(as_key("GET", "/v1/status", &reader).status, 200);
    assert_eq!(as_key("POST", "/v1/jobs/none/cancel", &reader).status, 403);
    assert_eq!(as_key("POST", "/v1/jobs/none/cancel", &operator).status, 404, "allowed, but there is none");
    assert_eq!(as_key("POST", "/v1/reconcile", &operator).status, 403);

    let job = likeness_contract::jobs::JobRequest { id: None, ..jobs::ingest("x", cluster.dir(), 30) };
    let settings = json!({ "cron": "@yearly", "zone": "Asia/Tokyo", "overlap": "skip", "catch_up": { "all": { "limit": 3 } },
        "late_after_s": 300, "only_if_changed": false, "job": job });
    let settings = serde_json::to_vec(&settings).expect("JSON");
    let put = |key: &str| {
        let headers = [("authorization", key), ("content-type", "application/json")];
        gateway.ask("PUT", "/v1/schedules/new-year", &headers, &settings)
    };
    assert_eq!(put(&reader).status, 403);
    let added = put(&operator);
    assert_eq!((added.status, added.json()["next"].as_array().map(Vec::len)), (200, Some(5)), "{}", added.text());
    assert!(added.json()["next"][0].as_str().is_some_and(|next| next.ends_with("-01-01T00:00:00+09:00[Asia/Tokyo]")));
    assert_eq!(as_key("POST", "/v1/schedules/new-year/pause", &operator).json()["schedule"]["state"], "paused");
    assert_eq!(as_key("GET", "/v1/schedules", &reader).json()[0]["schedule"]["name"], "new-year");
    assert_eq!(as_key("DELETE", "/v1/schedules/new-year", &operator).status, 200);
    assert_eq!(as_key("GET", "/v1/schedules/new-year?limit=5", &reader).json()["status"]["schedule"]["number"], 3);

    // The page's session carries the key, and no other page can use it.
    let login = json!({ "key": reader.trim_start_matches("Bearer ") });
    let session = gateway.post("/v1/session", &login);
    let cookie = session.header("set-cookie").expect("a cookie").split(';').next().expect("its value").to_string();
    assert!(
        session.header("set-cookie").is_some_and(|set| set.contains("HttpOnly") && set.contains("SameSite=Strict"))
    );
    assert_eq!(gateway.ask("GET", "/v1/jobs", &[("cookie", &cookie)], b"").status, 200);
    let from =
        |origin| gateway.ask("POST", "/v1/jobs/none/cancel", &[("authorization", &operator), ("origin", origin)], b"");
    assert_eq!((from("https://evil.example").status, from("https://ours.example").status), (403, 404));
    assert_eq!(from("https://ours.example").header("access-control-allow-origin"), Some("https://ours.example"));

    let limited = (0..10).map(|_| as_key("GET", "/v1/session", &slow)).find(|answer| answer.status != 200);
    assert!(limited.is_none(), "who one is may be asked freely");
    let limited = (0..10).map(|_| as_key("GET", "/v1/releases", &slow)).find(|answer| answer.status == 429);
    let limited = limited.expect("ten requests are more than one in two seconds");
    assert!(limited.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok_and(|s| s >= 1)));

    let large = vec![b' '; 2 << 20];
    let headers = [("authorization", reader.as_str()), ("content-type", "application/json")];
    assert_eq!(gateway.ask("POST", "/v1/search", &headers, &large).status, 413);

    // A line that is taken out of the file withdraws its key.
    let text = std::fs::read_to_string(&keys).expect("the file");
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("operator ")).collect();
    std::fs::write(&keys, without.join("\n")).expect("the file");
    until("the key is no longer known", async || (as_key("GET", "/v1/status", &operator).status == 401).then_some(()))
        .await;
    assert_eq!(as_key("GET", "/v1/status", &reader).status, 200);
}
