//! Where the answers of a file go: a table, JSON lines in a file, or JSON lines to the standard output.
//!
//! A file has its name only when it is complete; until then `.partial` is added to it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use likeness_contract::names;
use likeness_contract::searches::FileAnswer;
use likeness_link::answers::AnswerWriter;

use crate::command::exit::{Failure, Outcome};
use crate::command::output;

/// See the module.
#[derive(Debug)]
pub enum Answers {
    /// To the standard output.
    Printed,
    /// JSON lines in a file.
    Lines(BufWriter<File>, Named),
    /// A table in a file.
    Table(AnswerWriter<BufWriter<File>>, Named),
}

/// A file that gets its name at the end.
#[derive(Debug)]
pub struct Named {
    file: PathBuf,
    partial: PathBuf,
}

impl Named {
    fn create(file: &Path) -> Outcome<(Self, BufWriter<File>)> {
        let mut partial = file.as_os_str().to_os_string();
        partial.push(".partial");
        let named = Self { file: file.to_path_buf(), partial: partial.into() };
        let created = File::create(&named.partial).map_err(|error| unwritten(file, error))?;
        Ok((named, BufWriter::new(created)))
    }

    fn complete(self, mut to: BufWriter<File>) -> Outcome<()> {
        let done = to.flush().and_then(|()| std::fs::rename(&self.partial, &self.file));
        done.map_err(|error| unwritten(&self.file, error))
    }
}

fn unwritten(file: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("can't write `{}`: {error}", file.display()))
}

impl Answers {
    /// Into this file, or to the standard output.
    pub fn create(out: Option<&Path>) -> Outcome<Self> {
        let Some(file) = out else { return Ok(Self::Printed) };
        check(file)?;
        let (named, to) = Named::create(file)?;
        if is_table(file) { Ok(Self::Table(AnswerWriter::new(to)?, named)) } else { Ok(Self::Lines(to, named)) }
    }

    /// Adds an answer.
    pub fn write(&mut self, answer: FileAnswer) -> Outcome<()> {
        match self {
            Self::Printed => output::line(serde_json::to_string(&answer)?),
            Self::Lines(to, named) => {
                let written = serde_json::to_writer(&mut *to, &answer).map_err(std::io::Error::from);
                written.and_then(|()| to.write_all(b"\n")).map_err(|error| unwritten(&named.file, error))?;
            }
            Self::Table(table, _) => table.write(answer)?,
        }
        Ok(())
    }

    /// All answers are there.
    pub fn finish(self) -> Outcome<()> {
        match self {
            Self::Printed => Ok(()),
            Self::Lines(to, named) => named.complete(to),
            Self::Table(table, named) => named.complete(table.finish()?),
        }
    }
}

/// Refuses a file whose form is not known or whose folder is not there, before anything is asked.
pub fn check(file: &Path) -> Outcome<()> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let known = ["parquet", "jsonl", "ndjson"];
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Failure::usage(format!("there is no folder `{}` for the answers", folder.display())));
    }
    if known.contains(&ending) {
        return Ok(());
    }
    let hint = names::hint(&names::nearest(ending, known));
    Err(Failure::usage(format!("`{}` must end in .parquet or .jsonl{hint}", file.display())))
}

fn is_table(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "parquet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.parquet", "a.jsonl"] {
            let file = dir.path().join(name);
            let mut answers = Answers::create(Some(&file)).unwrap();
            answers.write(FileAnswer::failed(0, Some("x".into()), "why".into())).unwrap();
            assert!(!file.exists());
            answers.finish().unwrap();
            assert!(file.exists() && !dir.path().join(format!("{name}.partial")).exists());
        }
        let line = std::fs::read_to_string(dir.path().join("a.jsonl")).unwrap();
        assert_eq!(serde_json::from_str::<FileAnswer>(&line).unwrap().error.as_deref(), Some("why"));
    }

    #[test]
    fn a_file_of_another_form_is_refused() {
        let failure = Answers::create(Some(Path::new("/tmp/a.parqet"))).unwrap_err();
        assert_eq!(failure.exit as u8, 64);
        assert!(failure.to_string().contains("did you mean `parquet`?"), "{failure}");
        assert_eq!(Answers::create(Some(Path::new("/nowhere/a.jsonl"))).unwrap_err().exit as u8, 64);
    }
}
