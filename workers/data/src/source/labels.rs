//! Labels as words: what a cell of a column says of an attribute, and which columns are attributes.
//!
//! `1`, `true`, `yes` have; `-1`, `false`, `no` have not; an empty cell, `na`, `nan`, `null`, `none` and `?` are not known.
//! `0` is "not known" in a column that also has `-1`, as in CelebA's lists, else "has not". Words that were told come
//! before all of this. A column most of whose cells are no labels is none of the attributes; one with a few such cells is an
//! error that names the first.

use std::collections::HashMap;

use likeness_contract::jobs::{LabelWords, ZeroLabel};

use super::shortened;
use crate::error::{Error, Result};

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Unknown,
    Has,
    HasNot,
    MinusOne,
    Zero,
    /// No label.
    Other,
}

/// The meaning of words.
pub(super) struct Words {
    told: HashMap<String, Word>,
    zero: ZeroLabel,
}

impl Words {
    /// The usual words with those that were told; one with two meanings is refused.
    pub fn new(labels: &LabelWords) -> Result<Self> {
        let LabelWords { has, has_not, unknown, zero } = labels;
        let mut told = HashMap::new();
        for (words, meaning) in [(has, Word::Has), (has_not, Word::HasNot), (unknown, Word::Unknown)] {
            for word in words {
                let before = told.insert(folded(word), meaning);
                if before.is_some_and(|before| before != meaning) {
                    return Err(Error::invalid(format!("the label `{word}` can't mean two things")));
                }
            }
        }
        Ok(Self { told, zero: *zero })
    }

    pub fn of(&self, cell: &str) -> Word {
        let cell = folded(cell);
        if let Some(told) = self.told.get(&cell) {
            return *told;
        }
        match cell.as_str() {
            "" | "na" | "n/a" | "nan" | "null" | "none" | "?" => Word::Unknown,
            "1" | "+1" | "1.0" | "true" | "yes" | "t" | "y" => Word::Has,
            "false" | "no" | "f" | "n" => Word::HasNot,
            "-1" | "-1.0" => Word::MinusOne,
            "0" | "-0" | "0.0" | "-0.0" => Word::Zero,
            _ => Word::Other,
        }
    }
}

fn folded(word: &str) -> String {
    word.trim().to_lowercase()
}

/// A column that may be an attribute.
#[derive(Debug)]
pub(super) struct Attribute {
    pub name: String,
    words: Vec<Word>,
    /// Where the first that is no label stands, and what it is.
    first_other: Option<(String, String)>,
    others: usize,
}

impl Attribute {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), words: Vec::new(), first_other: None, others: 0 }
    }

    /// The next cell; `place` and `cell` are asked for where it is no label.
    pub fn push(&mut self, word: Word, place: impl FnOnce() -> String, cell: impl FnOnce() -> String) {
        if word == Word::Other {
            self.others += 1;
            self.first_other.get_or_insert_with(|| (place(), shortened(&cell())));
        }
        self.words.push(word);
    }

    /// What `0` means here; none where there is none.
    pub fn zero(&self, words: &Words) -> Option<ZeroLabel> {
        self.words.contains(&Word::Zero).then(|| match words.zero {
            ZeroLabel::Auto if self.words.contains(&Word::MinusOne) => ZeroLabel::Unknown,
            ZeroLabel::Auto => ZeroLabel::No,
            told => told,
        })
    }

    /// One label per cell: −1 has not, 0 not known, +1 has.
    pub fn labels(&self, words: &Words) -> Vec<i8> {
        let zero = if self.zero(words) == Some(ZeroLabel::Unknown) { 0 } else { -1 };
        let label = |word: &Word| match word {
            Word::Has => 1,
            Word::HasNot | Word::MinusOne => -1,
            Word::Zero => zero,
            Word::Unknown | Word::Other => 0,
        };
        self.words.iter().map(label).collect()
    }
}

/// Those that hold labels, and the names of the others. A column that was `named`, or that mostly holds labels, must hold
/// nothing else.
pub(super) fn chosen(all: Vec<Attribute>, named: bool) -> Result<(Vec<Attribute>, Vec<String>)> {
    let (mut attributes, mut left_out) = (Vec::new(), Vec::new());
    for attribute in all {
        match &attribute.first_other {
            Some(_) if !named && 2 * attribute.others >= attribute.words.len() => left_out.push(attribute.name),
            Some((place, cell)) => {
                let name = &attribute.name;
                return Err(Error::invalid(format!(
                    "{place}: `{cell}` of `{name}` is no label: 1, -1, 0, true, false, yes, no or empty"
                )));
            }
            None => attributes.push(attribute),
        }
    }
    Ok((attributes, left_out))
}

/// The warning that names columns.
pub(super) fn left_out_words(columns: &[String]) -> Option<String> {
    (!columns.is_empty()).then(|| format!("columns that are no attributes were left out: `{}`", columns.join("`, `")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(has: &[&str], has_not: &[&str], unknown: &[&str]) -> Result<Words> {
        let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let (has, has_not, unknown) = (owned(has), owned(has_not), owned(unknown));
        Words::new(&LabelWords { has, has_not, unknown, zero: ZeroLabel::Auto })
    }

    #[test]
    fn told_words_come_before_the_usual_ones() {
        let words = words(&["Ja", "2"], &["nein", "1"], &["0"]).unwrap();
        let cells = [" ja ", "2", "NEIN", "1", "0", "yes", "-1", "vielleicht"];
        let expected =
            [Word::Has, Word::Has, Word::HasNot, Word::HasNot, Word::Unknown, Word::Has, Word::MinusOne, Word::Other];
        assert_eq!(cells.map(|cell| words.of(cell)), expected);
    }

    #[test]
    fn a_word_can_not_mean_two_things() {
        let error = words(&["x"], &["X "], &[]).err().unwrap();
        assert_eq!(error.to_string(), "the label `X ` can't mean two things");
        assert!(words(&["x", "x"], &[], &[]).is_ok());
    }
}
