//! The sections of a config file with their keys: what `likeness init` writes and `likeness config show` prints.
//!
//! Names, words and defaults come from the flags themselves, so that a new flag is in the file without anybody's
//! doing.

use clap::builder::PossibleValue;
use clap::{Arg, Args, Command};
use likeness_contract::ids::Name;
use serde::Serialize;
use toml::Table;

use crate::command::exit::{Failure, Outcome};
use crate::command::options::{EmbedOptions, EvaluateOptions, JobOptions, ModelOptions, TrainOptions};
use crate::command::pipeline::PipelineOptions;

/// One section.
#[derive(Debug)]
pub struct Section {
    /// `train`.
    pub name: &'static str,
    /// For people.
    pub about: &'static str,
    /// Its keys, in order.
    pub keys: Vec<Key>,
    /// Values by key; a key that is left open has none.
    pub values: Table,
}

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    /// `report_rows` is a flag, `rows` its key.
    pub name: &'static str,
    /// The name of its flag, which is as good a key.
    pub flag: String,
    /// What it means, with its default in words.
    pub help: String,
    /// The words that it may be.
    words: Vec<String>,
}

impl Key {
    fn new(name: &'static str, arg: &Arg) -> Self {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let words = arg.get_possible_values().iter().map(|value: &PossibleValue| value.get_name().into()).collect();
        Self { name, flag: arg.get_id().to_string(), help, words }
    }

    /// What it could be, for one that has no default.
    pub fn example(&self) -> String {
        let example = match self.name {
            "id" => r#""nightly-faces""#,
            "max_workers" => "8",
            "notify" => r#"["https://example.com/hook"]"#,
            "momentum" => "0.9",
            "embedding_dim" => "128",
            "temperature" => "0.1",
            "resized_crop" => "0.35",
            "init" => r#""resnet18.safetensors""#,
            "gallery" => r#""faces""#,
            "queries" => r#""queries.csv""#,
            _ => return self.words.first().map_or("…".into(), |word| format!("\"{word}\"")),
        };
        example.into()
    }
}

/// The sections with the values of these options.
pub fn of(options: &PipelineOptions) -> Outcome<[Section; 5]> {
    let PipelineOptions { job, model, train, embed, evaluate } = options;
    Ok([
        section("job", "How the job runs", JobOptions::KEYS, job)?,
        section("model", "The network", ModelOptions::KEYS, model)?,
        section("train", "The training", TrainOptions::KEYS, train)?,
        section("embed", "The gallery", EmbedOptions::KEYS, embed)?,
        section("evaluate", "The report", EvaluateOptions::KEYS, evaluate)?,
    ])
}

/// The options with everything that was left open.
pub fn filled(options: &PipelineOptions, dataset: Option<&Name>) -> Outcome<PipelineOptions> {
    let PipelineOptions { job, model, train, embed, evaluate } = options;
    let (model, train, evaluate) = (model.filled()?, train.filled(options.model.recipe())?, evaluate.filled()?);
    Ok(PipelineOptions { job: job.filled(), model, train, embed: embed.filled(dataset), evaluate })
}

fn section<T: Args + Serialize>(
    name: &'static str,
    about: &'static str,
    keys: &[&'static str],
    options: &T,
) -> Outcome<Section> {
    let flags = T::augment_args(Command::new(name));
    let keys = keys.iter().copied().zip(flags.get_arguments()).map(|(key, arg)| Key::new(key, arg)).collect();
    Ok(Section { name, about, keys, values: table(options)? })
}

/// Written and read again: only the text has numbers with as few digits as they need.
fn table(options: &impl Serialize) -> Outcome<Table> {
    let text =
        toml::to_string(options).map_err(|error| Failure::usage(format!("can't be written as TOML: {error}")))?;
    toml::from_str(&text).map_err(Failure::failed)
}
