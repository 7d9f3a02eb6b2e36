//! `job.toml`: a job's options in a file. Unknown keys are refused with the nearest known one.

pub mod sections;
pub mod show;
pub mod template;

use std::collections::HashMap;
use std::path::Path;

use clap::Args;
use likeness_contract::ids::Name;
use likeness_contract::names;
use serde::Deserialize;
use toml::de::{DeTable, DeValue};

use crate::command::bounded;
use crate::command::exit::{Failure, Outcome};
use crate::command::options::{EmbedOptions, EvaluateOptions, JobOptions, ModelOptions, TrainOptions};
use crate::command::selectors::DatasetArg;

/// What a pipeline is made from, and what for.
#[derive(Debug, Clone, Default, Args)]
pub struct Target {
    /// Dataset, or dataset@version [default: the only one that there is].
    #[arg(long)]
    pub dataset: Option<DatasetArg>,
    /// Alias that is promoted [default: main].
    #[arg(long)]
    pub alias: Option<Name>,
}

/// The whole file; every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobFile {
    /// `NAME` or `NAME@VERSION`.
    pub dataset: Option<DatasetArg>,
    /// Alias that a pipeline promotes.
    pub alias: Option<Name>,
    /// `[job]`.
    pub job: JobOptions,
    /// `[model]`.
    pub model: ModelOptions,
    /// `[train]`.
    pub train: TrainOptions,
    /// `[embed]`.
    pub embed: EmbedOptions,
    /// `[evaluate]`.
    pub evaluate: EvaluateOptions,
}

impl JobFile {
    /// Reads the file; an empty one without a path.
    pub fn read(path: Option<&Path>) -> Outcome<Self> {
        Ok(Lines::read(path)?.0)
    }

    fn parse(text: &str) -> Outcome<Self> {
        toml::from_str(text).map_err(|error| Failure::usage(explain(text, &error)))
    }
}

/// Thousands of times what all options take.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// On which line of a file every key stands.
#[derive(Debug, Default)]
pub struct Lines {
    file: String,
    /// By section, empty for the keys before all of them, and key.
    lines: HashMap<(String, String), usize>,
}

impl Lines {
    /// Reads a file with its lines; an empty one without a path.
    pub fn read(path: Option<&Path>) -> Outcome<(JobFile, Self)> {
        let Some(path) = path else { return Ok(Default::default()) };
        let text = bounded::text(path, MAX_FILE_BYTES)?;
        let file = JobFile::parse(&text).map_err(|error| error.context(format!("`{}`", path.display())))?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok((file, Self { file: name, lines: lines_of(&text) }))
    }

    /// `job.toml, line 3` of whichever of the names stands in the section, else `default`.
    pub fn source(&self, section: &str, names: &[&str]) -> String {
        let line = names.iter().find_map(|name| self.lines.get(&(section.to_string(), name.to_string())));
        line.map_or("default".into(), |line| format!("{}, line {line}", self.file))
    }
}

fn lines_of(text: &str) -> HashMap<(String, String), usize> {
    let mut lines = HashMap::new();
    let Ok(file) = DeTable::parse(text) else { return lines };
    for (key, value) in file.get_ref() {
        lines.insert((String::new(), key.get_ref().to_string()), line_at(text, key.span().start));
        let DeValue::Table(section) = value.get_ref() else { continue };
        for inner in section.keys() {
            let name = (key.get_ref().to_string(), inner.get_ref().to_string());
            lines.insert(name, line_at(text, inner.span().start));
        }
    }
    lines
}

fn line_at(text: &str, position: usize) -> usize {
    1 + text[..position.min(text.len())].matches('\n').count()
}

/// `line 3: unknown key `epoch`; did you mean `epochs`?`
fn explain(text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map_or(String::new(), |span| format!("line {}: ", line_at(text, span.start)));
    format!("{place}{}", with_nearest(error.message()))
}

/// Serde's list of all known keys, shortened to those that may be meant.
fn with_nearest(message: &str) -> String {
    if !message.starts_with("unknown field") {
        return message.to_string();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let nearest = names::nearest(wrong, known.iter().copied());
    if nearest.is_empty() {
        return format!("unknown key `{wrong}`; known here: {}", known.join(", "));
    }
    format!("unknown key `{wrong}`{}", names::hint(&nearest))
}

#[cfg(test)]
mod tests {
    use likeness_contract::jobs::Priority;
    use likeness_contract::settings::{Architecture, Split};

    use super::*;

    fn error_of(text: &str) -> String {
        let failure = JobFile::parse(text).unwrap_err();
        assert_eq!(failure.exit as u8, 64);
        failure.to_string()
    }

    #[test]
    fn every_section_is_read() {
        let file = JobFile::parse(
            r#"
            dataset = "celeba@v1"
            alias = "faces"
            [job]
            priority = "hi"
            [model]
            architecture = "resnet18"
            [train]
            epochs = 3
            lr = 1e-3
            [embed]
            rows = "all"
            [evaluate]
            rows = "test"
            "#,
        )
        .unwrap();
        assert_eq!(file.dataset.unwrap().to_string(), "celeba@v1");
        assert_eq!(file.job.priority, Some(Priority::Hi));
        assert_eq!(file.model.architecture, Some(Architecture::ResNet18));
        assert_eq!((file.train.epochs, file.train.lr), (Some(3), Some(1e-3)));
        assert_eq!((file.embed.rows, file.evaluate.rows), (Some(Split::All), Some(Split::Test)));
    }

    #[test]
    fn keys_may_be_called_as_the_flags() {
        let file =
            JobFile::parse("[evaluate]\nfloor = 0.2\nimage_edit = \"author\"\nqueries = \"q.csv\"\nfull = 0").unwrap();
        assert_eq!((file.evaluate.floor, file.evaluate.full), (Some(0.2), Some(0)));
        let file = JobFile::parse("[evaluate]\nreport_rows = \"all\"\nquery_seed = 7\n").unwrap();
        assert_eq!((file.evaluate.rows, file.evaluate.seed), (Some(Split::All), Some(7)));
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_nearest() {
        let error = error_of("[train]\nepoch = 3\n");
        assert!(error.contains("line 2") && error.contains("unknown key `epoch`; did you mean `epochs`?"), "{error}");
        let error = error_of("[trian]\nepochs = 3\n");
        assert!(error.contains("did you mean `train`?"), "{error}");
    }

    #[test]
    fn a_key_like_no_other_is_answered_with_all_that_are_known() {
        let error = error_of("zzzzzzzzzz = 1\n");
        assert!(error.contains("known here: dataset, alias, job"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_names_its_line() {
        let error = error_of("[train]\nseed = 1\nepochs = \"many\"\n");
        assert!(error.contains("line 3"), "{error}");
        assert!(error_of("[model]\narchitecture = \"vgg\"\n").contains("cnn-s"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = JobFile::read(Some(Path::new("/nowhere/job.toml"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/job.toml"), "{error}");
    }
}
