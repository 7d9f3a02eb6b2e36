//! `job.toml`: a job's options in a file. Unknown keys are refused with the nearest known one.

use std::path::Path;

use likeness_contract::ids::Name;
use likeness_contract::names;
use serde::Deserialize;

use crate::command::exit::{Failure, Outcome};
use crate::command::options::{EmbedOptions, EvaluateOptions, JobOptions, ModelOptions, TrainOptions};
use crate::command::selectors::DatasetArg;

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
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("can't read `{}`: {error}", path.display())))?;
        Self::parse(&text).map_err(|error| error.context(format!("`{}`", path.display())))
    }

    fn parse(text: &str) -> Outcome<Self> {
        toml::from_str(text).map_err(|error| Failure::usage(explain(text, &error)))
    }
}

/// `line 3: unknown key `epoch`; did you mean `epochs`?`
fn explain(text: &str, error: &toml::de::Error) -> String {
    let place = error.span().map_or(String::new(), |span| {
        let line = 1 + text[..span.start.min(text.len())].matches('\n').count();
        format!("line {line}: ")
    });
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
