//! What the process says and ends with when it cannot start.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::net::TcpListener;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn worker(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_likeness-worker"));
    let settings = ["NATS", "STORE", "CREDENTIALS", "ROLES", "DEVICE"].map(|name| format!("LIKENESS_{name}"));
    for name in settings {
        command.env_remove(name);
    }
    command.args(args).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn unreachable_nats_ends_with_69_within_seconds_and_names_the_address() {
    let (folder, address, started) = (tempfile::tempdir().unwrap(), nobody(), Instant::now());
    let store = folder.path().to_str().unwrap();
    let output = worker(&["--store", store, "--nats", &format!("nats://{address}")]);
    assert_eq!(output.status.code(), Some(69));
    assert!(said(&output).contains(&address), "{}", said(&output));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn wrong_flags_end_with_64_and_the_nearest_match() {
    let output = worker(&["--roles", "trian"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("did you mean `train`?"), "{}", said(&output));
    let output = worker(&["--rolse", "train"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("--roles"), "{}", said(&output));
}

#[test]
fn a_device_that_this_machine_lacks_is_refused_by_name() {
    if cfg!(feature = "metal") {
        return;
    }
    let output = worker(&["--device", "metal"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("`metal`"), "{}", said(&output));
}

#[test]
fn help_and_version_end_with_0() {
    assert_eq!(worker(&["--version"]).status.code(), Some(0));
    let help = worker(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&help.stdout).contains("--grace-period"));
}
