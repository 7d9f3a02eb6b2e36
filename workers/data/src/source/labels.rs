//! Attributes of a table of images: which columns are some, and the words that were told for their labels.
//!
//! Words that were told come before the usual ones ([`crate::labels`]). A column most of whose cells are no labels is none of the
//! attributes; one with a few such cells is an error that names the first.

use std::collections::HashMap;

use likeness_contract::jobs::{LabelWords, ZeroLabel};

use super::shortened;
use crate::error::{Error, Result};
use crate::labels::{Word, folded, labels_of, zero_of};

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
        Word::usual(&cell)
    }
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
        zero_of(&self.words, words.zero)
    }

    /// One label per cell: −1 has not, 0 not known, +1 has.
    pub fn labels(&self, words: &Words) -> Vec<i8> {
        labels_of(&self.words, words.zero)
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
