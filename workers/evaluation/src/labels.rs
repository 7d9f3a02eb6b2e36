//! Labels as bit sets, so that many items at once are judged by a query, and counted by `popcount`.

use std::ops::Range;

use crate::gallery::Block;
use crate::queries::Term;

/// Items of a word.
pub(crate) const WORD: usize = 64;

/// Per attribute: which items have it, and which are known not to have it.
pub(crate) struct LabelBits {
    has: Vec<Vec<u64>>,
    has_not: Vec<Vec<u64>>,
    items: usize,
}

/// Items of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Fulfil every term.
    pub relevant: u64,
    /// Have a known label for every term.
    pub judged: u64,
}

/// What the items of a word are to a query, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judged {
    /// Every term is fulfilled.
    pub relevant: u64,
    /// Every term's label is known.
    pub judged: u64,
}

impl Judged {
    /// The same without one item.
    pub fn without(self, place: Option<usize>) -> Self {
        let others = place.map_or(u64::MAX, |place| !(1 << place));
        Self { relevant: self.relevant & others, judged: self.judged & others }
    }
}

impl LabelBits {
    /// From N×A labels.
    pub fn new(labels: &[i8], attributes: usize) -> Self {
        Self::of_rows(labels.len() / attributes, attributes, |item| &labels[item * attributes..][..attributes])
    }

    /// Of the rows of a block.
    pub fn of(block: &impl Block) -> Self {
        Self::of_rows(block.rows(), block.attributes(), |row| block.labels(row))
    }

    fn of_rows<'a>(items: usize, attributes: usize, row: impl Fn(usize) -> &'a [i8]) -> Self {
        let mut has = vec![vec![0u64; items.div_ceil(WORD)]; attributes];
        let mut has_not = has.clone();
        for item in 0..items {
            let (word, place) = (item / WORD, item % WORD);
            for (attribute, label) in row(item).iter().enumerate() {
                has[attribute][word] |= u64::from(*label == 1) << place;
                has_not[attribute][word] |= u64::from(*label == -1) << place;
            }
        }
        Self { has, has_not, items }
    }

    /// A.
    pub fn attributes(&self) -> usize {
        self.has.len()
    }

    /// All words.
    pub fn words(&self) -> Range<usize> {
        0..self.items.div_ceil(WORD)
    }

    /// What the items of a word are to a query of these terms.
    pub fn judge(&self, terms: &[Term], word: usize) -> Judged {
        let all = match self.items - word * WORD {
            items if items < WORD => (1 << items) - 1,
            _ => u64::MAX,
        };
        let mut found = Judged { relevant: all, judged: all };
        for term in terms {
            let attribute = term.attribute as usize;
            let (has, has_not) = (self.has[attribute][word], self.has_not[attribute][word]);
            found.relevant &= if term.positive { has } else { has_not };
            found.judged &= has | has_not;
        }
        found
    }

    /// Adds to `levels[t]` how many of some items of a word fulfil exactly `t` terms.
    ///
    /// Every item has a counter whose bits are spread over `planes`, so that a term is added to all of them at once.
    pub fn add_levels(&self, terms: &[Term], word: usize, among: u64, levels: &mut [u64]) {
        let mut planes = [0u64; usize::BITS as usize];
        let used = (usize::BITS - terms.len().leading_zeros()) as usize;
        for term in terms {
            let of = if term.positive { &self.has } else { &self.has_not };
            let mut carry = of[term.attribute as usize][word];
            for plane in &mut planes[..used] {
                (*plane, carry) = (*plane ^ carry, *plane & carry);
            }
        }
        for (level, count) in levels.iter_mut().enumerate() {
            let bits = planes[..used].iter().enumerate();
            let is_it =
                bits.fold(among, |is_it, (i, plane)| is_it & if level >> i & 1 == 1 { *plane } else { !*plane });
            *count += u64::from(is_it.count_ones());
        }
    }

    /// Relevant and judged items of a query.
    pub fn count(&self, terms: &[Term]) -> Counts {
        let mut counts = Counts { relevant: 0, judged: 0 };
        for word in self.words() {
            let Judged { relevant, judged } = self.judge(terms, word);
            counts.relevant += u64::from(relevant.count_ones());
            counts.judged += u64::from(judged.count_ones());
        }
        counts
    }
}
