//! Finds the programs that `likeness up` starts.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::exit::{Failure, Outcome};

/// Oldest nats-server that has what the streams need.
const MIN_NATS: (u32, u32) = (2, 11);
const NATS_SERVER: &str = "nats-server";
const WORKER: &str = "likeness-worker";

/// The nats-server to run: the one named, else the one on the PATH if it is new enough, else the one that
/// `infra/tools/nats-server.sh` fetched into `target/tools`.
pub fn nats_server(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = named {
        check_nats(path)?;
        return Ok(path.to_path_buf());
    }
    let mut complaints = Vec::new();
    for candidate in on_path(NATS_SERVER).into_iter().chain(beside_build(NATS_SERVER)) {
        match check_nats(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => complaints.push(error.to_string()),
        }
    }
    complaints.push(format!(
        "no usable {NATS_SERVER} (from {}.{}) on the PATH or in target/tools: run infra/tools/nats-server.sh, or name one with --nats-server",
        MIN_NATS.0, MIN_NATS.1
    ));
    Err(Failure::unavailable(complaints.join("; ")))
}

fn check_nats(path: &Path) -> Outcome<()> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|error| Failure::unavailable(format!("can't run `{}`: {error}", path.display())))?;
    let text = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().trim().to_string();
    match parse_version(&text) {
        Some(version) if version >= MIN_NATS => Ok(()),
        Some((major, minor)) => Err(Failure::unavailable(format!(
            "`{}` is version {major}.{minor}, too old: {}.{} or newer is needed",
            path.display(),
            MIN_NATS.0,
            MIN_NATS.1
        ))),
        None => Err(Failure::unavailable(format!("`{}` says `{text}`: that is no {NATS_SERVER}", path.display()))),
    }
}

/// `nats-server: v2.14.0` → (2, 14).
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (program, version) = text.split_once(": v")?;
    let mut numbers = version.split(['.', '-']);
    let version = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    (program == NATS_SERVER).then_some(version)
}

/// The worker program: the one named, else the one beside this program, else the one on the PATH.
pub fn worker(named: Option<&Path>) -> Outcome<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_path_buf());
    }
    let beside = own_folder().map(|folder| folder.join(WORKER)).filter(|path| path.is_file());
    beside.or_else(|| on_path(WORKER)).ok_or_else(|| {
        Failure::unavailable(format!(
            "no `{WORKER}` beside this program or on the PATH: build it with `cargo build`, or name one with --worker"
        ))
    })
}

/// This program.
pub fn own() -> Outcome<PathBuf> {
    Ok(std::env::current_exe()?)
}

fn own_folder() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_path_buf())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// `target/tools` of the checkout: as seen from `target/debug/likeness`, and from the folder we stand in.
fn beside_build(program: &str) -> Vec<PathBuf> {
    let from_build = own_folder().and_then(|folder| Some(folder.parent()?.join("tools").join(program)));
    let from_here = Path::new("target/tools").join(program);
    from_build.into_iter().chain([from_here]).filter(|path| path.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake(version: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nats-server");
        std::fs::write(&path, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (folder, path)
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(parse_version("nats-server: v2.14.0"), Some((2, 14)));
        assert_eq!(parse_version("nats-server: v2.9.10-beta.1"), Some((2, 9)));
        assert_eq!(parse_version("nginx version 1"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn an_old_server_is_refused_with_its_version() {
        let (_folder, path) = fake("nats-server: v2.9.10");
        let failure = nats_server(Some(&path)).unwrap_err();
        assert_eq!(failure.exit as u8, 69);
        assert!(failure.to_string().contains("version 2.9, too old: 2.11"), "{failure}");
    }

    #[test]
    fn a_named_server_that_is_new_enough_is_taken() {
        let (_folder, path) = fake("nats-server: v2.11.0");
        assert_eq!(nats_server(Some(&path)).unwrap(), path);
    }

    #[test]
    fn something_else_under_that_name_is_refused() {
        let (_folder, path) = fake("hello");
        assert!(nats_server(Some(&path)).unwrap_err().to_string().contains("says `hello`"));
        let error = nats_server(Some(Path::new("/nowhere/nats-server"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/nats-server"), "{error}");
    }
}
