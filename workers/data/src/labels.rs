//! Labels as words, wherever they stand: in tables of images and in tables of embeddings.
//!
//! `1`, `true`, `yes` have; `-1`, `false`, `no` have not; an empty cell, `na`, `nan`, `null`, `none` and `?` are not known.
//! `0` is "not known" in a column that also has `-1`, as in CelebA's lists, else "has not", unless it was told.

use likeness_contract::jobs::ZeroLabel;

/// What a cell says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Unknown,
    Has,
    HasNot,
    MinusOne,
    Zero,
    /// No label.
    Other,
}

impl Word {
    /// What a word usually means.
    pub(crate) fn usual(word: &str) -> Self {
        match folded(word).as_str() {
            "" | "na" | "n/a" | "nan" | "null" | "none" | "?" => Self::Unknown,
            "1" | "+1" | "1.0" | "true" | "yes" | "t" | "y" => Self::Has,
            "false" | "no" | "f" | "n" => Self::HasNot,
            "-1" | "-1.0" => Self::MinusOne,
            "0" | "-0" | "0.0" | "-0.0" => Self::Zero,
            _ => Self::Other,
        }
    }

    pub(crate) fn of_flag(flag: Option<bool>) -> Self {
        match flag {
            None => Self::Unknown,
            Some(true) => Self::Has,
            Some(false) => Self::HasNot,
        }
    }

    pub(crate) fn of_number(number: Option<i64>) -> Self {
        match number {
            None => Self::Unknown,
            Some(1) => Self::Has,
            Some(-1) => Self::MinusOne,
            Some(0) => Self::Zero,
            Some(_) => Self::Other,
        }
    }
}

/// A word as words are compared.
pub(crate) fn folded(word: &str) -> String {
    word.trim().to_lowercase()
}

/// What `0` means in a column; none where there is none.
pub(crate) fn zero_of(column: &[Word], told: ZeroLabel) -> Option<ZeroLabel> {
    column.contains(&Word::Zero).then(|| match told {
        ZeroLabel::Auto if column.contains(&Word::MinusOne) => ZeroLabel::Unknown,
        ZeroLabel::Auto => ZeroLabel::No,
        told => told,
    })
}

/// One label per cell of a column: −1 has not, 0 not known, +1 has.
pub(crate) fn labels_of(column: &[Word], told: ZeroLabel) -> Vec<i8> {
    let zero = if zero_of(column, told) == Some(ZeroLabel::Unknown) { 0 } else { -1 };
    let label = |word: &Word| match word {
        Word::Has => 1,
        Word::HasNot | Word::MinusOne => -1,
        Word::Zero => zero,
        Word::Unknown | Word::Other => 0,
    };
    column.iter().map(label).collect()
}

/// The warning that names columns.
pub(crate) fn left_out_words(columns: &[String]) -> Option<String> {
    (!columns.is_empty()).then(|| format!("columns that are no attributes were left out: `{}`", columns.join("`, `")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_not_known_only_beside_minus_one_unless_told() {
        let column = |cells: &[&str]| cells.iter().map(|cell| Word::usual(cell)).collect::<Vec<Word>>();
        let (plain, coded) = (column(&["0", "Yes", "", "no"]), column(&["-0", " TRUE", "?", "-1"]));
        assert_eq!(labels_of(&plain, ZeroLabel::Auto), [-1, 1, 0, -1]);
        assert_eq!(labels_of(&coded, ZeroLabel::Auto), [0, 1, 0, -1]);
        assert_eq!(labels_of(&plain, ZeroLabel::Unknown)[0], 0);
        assert_eq!(labels_of(&coded, ZeroLabel::No)[0], -1);
        assert_eq!(zero_of(&column(&["1", "-1"]), ZeroLabel::Auto), None);
    }
}
