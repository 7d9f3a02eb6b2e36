//! The file that `likeness init` writes: every key with its meaning and its default, commented out.
//!
//! `#key = value` is the default, so that taking the `#` away changes nothing; a key without one stands as an
//! example after `# e.g.`.

use std::fmt::Write;

use super::sections::{self, Key, Section};
use crate::command::exit::Outcome;
use crate::command::pipeline::{DEFAULT_ALIAS, PipelineOptions};

/// Width of a comment.
const WIDTH: usize = 100;

const HEAD: &str = "\
# A pipeline of Likeness: train, embed, evaluate, pass the gate, promote.
#
#   likeness plan FILE                what it would take
#   likeness pipeline --config FILE   do it; flags win over this file
#   likeness config show FILE         what is in force, and where it comes from
#
# Every key is optional. `#key = value` is the default: take the `#` away and change the value.

# Dataset, or \"dataset@version\" [default: the only one that there is]
# e.g. dataset = \"celeba\"

# Alias that is promoted
";

/// The file.
pub fn render() -> Outcome<String> {
    let filled = sections::filled(&PipelineOptions::default(), None)?;
    let mut text = format!("{HEAD}#alias = \"{DEFAULT_ALIAS}\"\n");
    for section in sections::of(&filled)? {
        let _infallible = write!(text, "\n# {}\n[{}]\n", section.about, section.name);
        section.keys.iter().for_each(|key| write_key(&mut text, &section, key));
    }
    Ok(text)
}

fn write_key(text: &mut String, section: &Section, key: &Key) {
    text.push('\n');
    for line in wrapped(&key.help) {
        let _infallible = writeln!(text, "# {line}");
    }
    let _infallible = match section.values.get(key.name) {
        Some(value) => writeln!(text, "#{} = {value}", key.name),
        None => writeln!(text, "# e.g. {} = {}", key.name, key.example()),
    };
}

fn wrapped(help: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in help.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::Name;
    use likeness_contract::jobs::{DatasetSelector, JobRequest};

    use super::super::JobFile;
    use super::*;

    fn request(text: &str) -> JobRequest {
        let file = JobFile::parse(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
        let dataset = DatasetSelector { dataset: Name::new("faces").unwrap(), version: None };
        let alias = file.alias.clone().unwrap_or(Name::new(DEFAULT_ALIAS).unwrap());
        PipelineOptions::default().or(&file).request(dataset, alias, None, None).unwrap()
    }

    fn without_marks(text: &str) -> String {
        let bare = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_string(),
            _ => line.to_string(),
        };
        text.lines().map(bare).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn as_it_is_written_it_changes_nothing() {
        assert_eq!(request(&render().unwrap()), request(""));
    }

    #[test]
    fn with_every_default_in_force_it_changes_nothing() {
        let text = without_marks(&render().unwrap());
        assert!(text.contains("\nepochs = 15\n") && text.contains("\nmargin = 0.1\n"), "{text}");
        assert_eq!(request(&text), request(""));
    }

    #[test]
    fn every_key_stands_in_it_once_with_its_meaning() {
        let text = render().unwrap();
        for section in sections::of(&PipelineOptions::default()).unwrap() {
            for key in section.keys {
                assert!(key.flag == key.name || key.flag.ends_with(key.name), "{} is not {}", key.flag, key.name);
                assert!(!key.help.is_empty(), "`{}` has no words", key.name);
                let (default, example) = (format!("\n#{} = ", key.name), format!("\n# e.g. {} = ", key.name));
                assert!(text.contains(&default) || text.contains(&example), "`{}` is missing", key.name);
                assert!(!text.contains(&format!("{example}…")), "`{}` has no example", key.name);
            }
        }
    }

    #[test]
    fn examples_can_be_taken_as_they_are() {
        let text = render().unwrap().replace("# e.g. ", "");
        JobFile::parse(&text).unwrap();
    }
}
