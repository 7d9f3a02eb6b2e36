//! `likeness init`: a config file with every key, its meaning and its default.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use clap::Args;

use crate::command::config::template;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{line, say};

/// Flags of `likeness init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to write it; `-` prints it.
    #[arg(default_value = "job.toml", value_name = "FILE")]
    file: PathBuf,
}

/// Writes the file, and never over another one.
pub fn run(args: &InitArgs) -> Outcome {
    let text = template::render()?;
    if args.file.as_os_str() == "-" {
        line(text.trim_end());
        return Ok(Exit::Done);
    }
    let path = args.file.display();
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&args.file).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::usage(format!("`{path}` is there already: name another file")),
            _ => Failure::failed(format!("can't write `{path}`: {error}")),
        })?;
    file.write_all(text.as_bytes())?;
    say(format!("wrote {path}: `likeness plan {path}` says what it would take"));
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let args = InitArgs { file: dir.path().join("job.toml") };
        assert_eq!(run(&args).unwrap(), Exit::Done);
        std::fs::write(&args.file, "mine").unwrap();
        assert_eq!(run(&args).unwrap_err().exit, Exit::Usage);
        assert_eq!(std::fs::read_to_string(&args.file).unwrap(), "mine");
        let nowhere = InitArgs { file: dir.path().join("no/folder/job.toml") };
        assert_eq!(run(&nowhere).unwrap_err().exit, Exit::Failed);
    }
}
