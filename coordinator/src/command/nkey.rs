//! `likeness nkey`: a key that a process proves itself to NATS with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use likeness_link::login;
use serde_json::json;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, line};

const EXAMPLES: &str = "\
Examples:
  likeness nkey worker.nk                  makes the key, unless it is there, and prints its public part
  likeness-worker --credentials worker.nk  proves itself with it

The public part goes into the server's configuration; infra/nats/setup writes one with a user for every role. The file is \
for its owner's eyes alone.";

/// Arguments of `likeness nkey`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct NkeyArgs {
    /// Where the secret part lies: one line, as --credentials takes it.
    file: PathBuf,
}

/// Prints the public part.
pub fn run(global: &Global, args: &NkeyArgs) -> Outcome {
    let public = match create(&args.file)? {
        Some(public) => public,
        None => login::public_nkey(&std::fs::read_to_string(&args.file)?)
            .map_err(|e| Failure::usage(format!("`{}`: {e}", args.file.display())))?,
    };
    if global.json {
        output::json(&json!({ "public": public }))?;
    } else {
        line(public);
    }
    Ok(Exit::Done)
}

/// The public part of a new key; none when the file is there.
fn create(file: &Path) -> Outcome<Option<String>> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = match options.open(file) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(Failure::usage(format!("can't write `{}`: {error}", file.display()))),
    };
    let (seed, public) = login::new_nkey()?;
    writeln!(file, "{seed}")?;
    Ok(Some(public))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("worker.nk");
        let public = create(&file).unwrap().expect("a new key");
        assert_eq!(create(&file).unwrap(), None);
        assert_eq!(login::public_nkey(&std::fs::read_to_string(&file).unwrap()).unwrap(), public);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
