//! `likeness config show`: what is in force, and where every value comes from.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use likeness_contract::ids::Name;
use serde_json::{Map, json};
use toml::Value;

use super::sections::{self, Section};
use super::{Lines, Target};
use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output;
use crate::command::pipeline::{DEFAULT_ALIAS, PipelineOptions};

/// Subcommands of `likeness config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// What is in force for a pipeline: flags over the file over the defaults, with the source of every value.
    Show(ShowArgs),
}

/// Flags of `likeness config show`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is printed is itself a config file.

Examples:
  likeness config show                     the defaults
  likeness config show job.toml --epochs 3")]
pub struct ShowArgs {
    /// The config file; only defaults and flags without.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    options: PipelineOptions,
}

/// Runs it.
pub fn run(global: &Global, command: ConfigCommand) -> Outcome {
    let ConfigCommand::Show(args) = command;
    let all = resolve(args)?;
    if global.json {
        output::json(&as_json(&all))?;
    } else {
        output::line(render(&all));
    }
    Ok(Exit::Done)
}

/// A value with its source; the section of `dataset` and `alias` has no name.
#[derive(Debug, PartialEq)]
struct Sourced {
    section: &'static str,
    key: &'static str,
    value: Value,
    source: String,
}

fn resolve(args: ShowArgs) -> Outcome<Vec<Sourced>> {
    let ShowArgs { file, target, options } = args;
    let (read, lines) = Lines::read(file.as_deref())?;
    let mut all = Vec::new();
    let flagged = (target.dataset.is_some(), target.alias.is_some());
    let dataset = target.dataset.or(read.dataset.clone());
    let alias = target.alias.or(read.alias.clone()).map_or(DEFAULT_ALIAS.to_string(), |alias| alias.to_string());
    let mut top = |key, value: String, flag| {
        let source = if flag { FLAG.into() } else { lines.source("", &[key]) };
        all.push(Sourced { section: "", key, value: Value::String(value), source });
    };
    if let Some(dataset) = &dataset {
        top("dataset", dataset.to_string(), flagged.0);
    }
    top("alias", alias, flagged.1);
    let name: Option<&Name> = dataset.as_ref().map(|dataset| &dataset.0.dataset);
    let merged = options.clone().or(&read);
    let in_force = sections::of(&sections::filled(&merged, name)?)?;
    for (in_force, flags) in in_force.into_iter().zip(sections::of(&options)?) {
        all.extend(sourced(in_force, &flags, &lines));
    }
    Ok(all)
}

const FLAG: &str = "flag";

fn sourced(in_force: Section, flags: &Section, lines: &Lines) -> Vec<Sourced> {
    let Section { name: section, about: _, keys, mut values } = in_force;
    let sourced = |key: sections::Key| {
        let value = values.remove(key.name)?;
        let flag = flags.values.contains_key(key.name);
        let source = if flag { FLAG.into() } else { lines.source(section, &[key.name, &key.flag]) };
        Some(Sourced { section, key: key.name, value, source })
    };
    keys.into_iter().filter_map(sourced).collect()
}

/// A config file with the sources as comments, flush left.
fn render(all: &[Sourced]) -> String {
    let entry = |sourced: &Sourced| format!("{} = {}", sourced.key, sourced.value);
    let width = all.iter().map(|sourced| entry(sourced).chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut section = "";
    for sourced in all {
        if sourced.section != section {
            section = sourced.section;
            lines.extend([String::new(), format!("[{section}]")]);
        }
        lines.push(format!("{:<width$}  # {}", entry(sourced), sourced.source));
    }
    lines.join("\n")
}

fn as_json(all: &[Sourced]) -> serde_json::Value {
    let mut top = Map::new();
    for Sourced { section, key, value, source } in all {
        let entry = json!({ "value": value, "source": source });
        let within = match *section {
            "" => &mut top,
            section => match top.entry(section).or_insert_with(|| json!({})) {
                serde_json::Value::Object(within) => within,
                _ => continue,
            },
        };
        within.insert((*key).into(), entry);
    }
    top.into()
}

#[cfg(test)]
mod tests {
    use super::super::JobFile;
    use super::*;

    fn shown(file: &str, options: PipelineOptions) -> Vec<Sourced> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        std::fs::write(&path, file).unwrap();
        resolve(ShowArgs { file: Some(path), target: Target::default(), options }).unwrap()
    }

    fn of<'a>(all: &'a [Sourced], section: &str, key: &str) -> (&'a Value, &'a str) {
        let found = all.iter().find(|sourced| (sourced.section, sourced.key) == (section, key)).unwrap();
        (&found.value, &found.source)
    }

    const FILE: &str = "dataset = \"faces\"\n[model]\narchitecture = \"resnet50\"\n\n[train]\nlr = 1e-3\nepochs = 30\n\
        [evaluate]\nreport_rows = \"all\"\n";

    #[test]
    fn every_value_says_where_it_comes_from() {
        let mut flags = PipelineOptions::default();
        flags.train.epochs = Some(3);
        let all = shown(FILE, flags);
        assert_eq!(of(&all, "train", "epochs"), (&Value::Integer(3), "flag"));
        assert_eq!(of(&all, "train", "lr"), (&Value::Float(1e-3), "job.toml, line 6"));
        assert_eq!(of(&all, "train", "margin"), (&Value::Float(0.1), "default"));
        assert_eq!(of(&all, "", "dataset").1, "job.toml, line 1");
        assert_eq!(of(&all, "", "alias"), (&Value::String("main".into()), "default"));
        assert_eq!(of(&all, "evaluate", "rows"), (&Value::String("all".into()), "job.toml, line 9"));
    }

    #[test]
    fn defaults_that_follow_from_other_values_are_resolved() {
        let all = shown(FILE, PipelineOptions::default());
        assert_eq!(of(&all, "model", "input_px"), (&Value::Integer(224), "default"));
        assert_eq!(of(&all, "embed", "gallery"), (&Value::String("faces".into()), "default"));
    }

    #[test]
    fn what_is_printed_is_a_file_that_means_the_same() {
        let all = shown(FILE, PipelineOptions::default());
        let text = render(&all);
        let again = shown(&text, PipelineOptions::default());
        let values = |all: Vec<Sourced>| all.into_iter().map(|s| (s.section, s.key, s.value)).collect::<Vec<_>>();
        assert_eq!(values(again), values(all), "{text}");
        JobFile::parse(&text).unwrap();
    }

    #[test]
    fn as_json_a_value_stands_beside_its_source() {
        let json = as_json(&shown(FILE, PipelineOptions::default()));
        assert_eq!(json["train"]["epochs"], json!({ "value": 30, "source": "job.toml, line 7" }));
        assert_eq!(json["alias"]["value"], "main");
    }

    #[test]
    fn a_mistake_in_the_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.toml");
        std::fs::write(&path, "[train]\nepoch = 3\n").unwrap();
        let args = ShowArgs { file: Some(path), target: Target::default(), options: PipelineOptions::default() };
        let error = resolve(args).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("did you mean `epochs`?"), "{error}");
    }
}
