//! Which rows of a shard a search is about: sets of rows as bits, and filters on known attributes.
//!
//! A shard keeps two bits of every label, column by column, so that the rows of a filter are found by and-ing a few
//! columns: microseconds for a million rows. Whoever searches keeps the [`RowSet`] as long as it is of use, and may take
//! rows away from it, such as those of items that were removed since the shard was made.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Rows of one word of a set.
const WORD: usize = u64::BITS as usize;

/// A set of the rows of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowSet {
    words: Vec<u64>,
    rows: usize,
}

impl RowSet {
    /// No row of a shard of `rows`.
    pub fn none(rows: usize) -> Self {
        Self { words: vec![0; rows.div_ceil(WORD)], rows }
    }

    /// All rows of a shard of `rows`.
    pub fn all(rows: usize) -> Self {
        let mut all = Self { words: vec![u64::MAX; rows.div_ceil(WORD)], rows };
        all.trim();
        all
    }

    /// Bits past the last row are 0.
    fn trim(&mut self) {
        if let Some(last) = self.words.last_mut().filter(|_| !self.rows.is_multiple_of(WORD)) {
            *last &= (1 << (self.rows % WORD)) - 1;
        }
    }

    /// Rows of the shard, in the set or not.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a row. Panics when the shard has no such row, as does [`Self::remove`].
    pub fn insert(&mut self, row: u32) {
        assert!((row as usize) < self.rows, "a row of the shard");
        self.words[row as usize / WORD] |= 1 << (row as usize % WORD);
    }

    /// Takes a row away.
    pub fn remove(&mut self, row: u32) {
        assert!((row as usize) < self.rows, "a row of the shard");
        self.words[row as usize / WORD] &= !(1 << (row as usize % WORD));
    }

    /// Whether a row is in the set.
    #[inline]
    pub fn contains(&self, row: u32) -> bool {
        self.words[row as usize / WORD] >> (row as usize % WORD) & 1 == 1
    }

    /// Keeps the rows that are also in `other`, a set of the same shard.
    pub fn intersect(&mut self, other: &Self) {
        assert_eq!(self.rows, other.rows, "sets of one shard");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Takes away the rows that are in `other`, a set of the same shard.
    pub fn subtract(&mut self, other: &Self) {
        assert_eq!(self.rows, other.rows, "sets of one shard");
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// How many rows are in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The rows of the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < u64::BITS).then(|| (at * WORD) as u32 + bit)
            })
        })
    }

    /// The 64 rows from `first` on as bits; 0 for those past the end.
    #[inline(always)]
    pub(crate) fn bits(&self, first: usize) -> u64 {
        let word = |at: usize| self.words.get(at).copied().unwrap_or(0);
        let (at, shift) = (first / WORD, first % WORD);
        if shift == 0 { word(at) } else { word(at) >> shift | word(at + 1) << (WORD - shift) }
    }
}

/// What is asked of one attribute's known label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// +1.
    Has,
    /// −1.
    HasNot,
    /// +1 or −1.
    Known,
    /// 0.
    Unknown,
}

/// A conjunction of conditions on known attributes; none lets every row through.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Filter {
    terms: Vec<(usize, Label)>,
}

impl Filter {
    /// Lets every row through.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition on the attribute with this position in the vocabulary.
    #[must_use]
    pub fn and(mut self, attribute: usize, label: Label) -> Self {
        self.terms.push((attribute, label));
        self
    }
}

/// The labels of a shard, column by column.
#[derive(Debug)]
pub(crate) struct LabelColumns {
    /// Per attribute the rows that have it, then those that have it not.
    columns: Vec<u64>,
    words: usize,
    rows: usize,
    attributes: usize,
}

impl LabelColumns {
    /// From (N × A) labels.
    pub fn new(labels: &[i8], attributes: usize) -> Self {
        let rows = labels.len() / attributes;
        let words = rows.div_ceil(WORD);
        // First (word × column), where threads write next to each other, then turned.
        let mut by_word = vec![0u64; words * 2 * attributes];
        by_word.par_chunks_mut(2 * attributes).zip(labels.par_chunks(WORD * attributes)).for_each(
            |(columns, labels)| {
                for (row, labels) in labels.chunks_exact(attributes).enumerate() {
                    let (has, has_not) = columns.split_at_mut(attributes);
                    for ((has, has_not), label) in has.iter_mut().zip(has_not).zip(labels) {
                        *has |= u64::from(*label > 0) << row;
                        *has_not |= u64::from(*label < 0) << row;
                    }
                }
            },
        );
        let mut columns = vec![0; words * 2 * attributes];
        for (word, bits) in by_word.chunks_exact(2 * attributes).enumerate() {
            for (column, bits) in bits.iter().enumerate() {
                columns[column * words + word] = *bits;
            }
        }
        Self { columns, words, rows, attributes }
    }

    pub fn matching(&self, filter: &Filter) -> Result<RowSet> {
        let mut set = RowSet::all(self.rows);
        for &(attribute, label) in &filter.terms {
            if attribute >= self.attributes {
                let all = self.attributes;
                return Err(Error::invalid(format!("the filter asks for attribute {attribute}, there are {all}")));
            }
            let column = |column: usize| &self.columns[column * self.words..][..self.words];
            let (has, has_not) = (column(attribute), column(self.attributes + attribute));
            for ((word, has), has_not) in set.words.iter_mut().zip(has).zip(has_not) {
                *word &= match label {
                    Label::Has => *has,
                    Label::HasNot => *has_not,
                    Label::Known => has | has_not,
                    Label::Unknown => !(has | has_not),
                };
            }
        }
        Ok(set)
    }

    pub fn bytes_for(rows: usize, attributes: usize) -> usize {
        rows.div_ceil(WORD) * 2 * attributes * 8
    }

    pub fn bytes(&self) -> usize {
        self.columns.len() * 8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_filter_finds_the_rows_that_a_look_at_the_labels_finds(
            labels in proptest::collection::vec(-1i8..=1, 0..900),
            attributes in 1usize..5,
            terms in proptest::collection::vec((0usize..5, prop::sample::select(vec![Label::Has, Label::HasNot, Label::Known, Label::Unknown])), 0..4),
        ) {
            let rows = labels.len() / attributes;
            let labels = &labels[..rows * attributes];
            let filter = terms.iter().fold(Filter::new(), |filter, (attribute, label)| filter.and(*attribute % attributes, *label));
            let fits = |row: &usize| terms.iter().all(|(attribute, label)| {
                let value = labels[row * attributes + attribute % attributes];
                match label { Label::Has => value == 1, Label::HasNot => value == -1, Label::Known => value != 0, Label::Unknown => value == 0 }
            });
            let expected: Vec<u32> = (0..rows).filter(fits).map(|row| row as u32).collect();
            let found = LabelColumns::new(labels, attributes).matching(&filter).unwrap();
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(found.count(), expected.len());
            for first in 0..rows {
                let bits = (0..64).filter(|i| found.bits(first) >> i & 1 == 1).map(|i| (first + i) as u32);
                prop_assert!(bits.eq(expected.iter().copied().filter(|row| (first..first + 64).contains(&(*row as usize)))));
            }
        }
    }

    #[test]
    fn sets_are_joined_and_taken_apart() {
        let mut set = RowSet::all(70);
        assert_eq!((set.count(), set.bits(64)), (70, 0x3f));
        let mut removed = RowSet::none(70);
        [3, 69].into_iter().for_each(|row| removed.insert(row));
        set.subtract(&removed);
        assert!(!set.contains(69) && set.contains(68) && set.count() == 68);
        removed.remove(3);
        set.insert(69);
        set.intersect(&removed);
        assert_eq!(set.iter().collect::<Vec<_>>(), [69]);
    }

    #[test]
    fn an_attribute_that_is_not_there_is_refused() {
        let columns = LabelColumns::new(&[1, 0, -1, 1], 2);
        let error = columns.matching(&Filter::new().and(2, Label::Has)).unwrap_err();
        assert_eq!(error.to_string(), "the filter asks for attribute 2, there are 2");
    }
}
