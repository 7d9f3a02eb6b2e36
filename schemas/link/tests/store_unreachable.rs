//! Alone in its process, because the environment is where an endpoint is named.

use std::time::{Duration, Instant};

use likeness_link::Store;
use likeness_link::error::{ErrorKind, chain};

#[test]
fn an_endpoint_that_nobody_serves_is_named_within_seconds() {
    let variables = [
        ("AWS_ENDPOINT", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_REGION", "us-east-1"),
    ];
    for (name, value) in variables {
        // SAFETY: the only test of this process; no other thread runs yet.
        unsafe { std::env::set_var(name, value) };
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    let error = runtime.block_on(Store::open("s3://bucket/prefix")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{}", chain(&error));
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
