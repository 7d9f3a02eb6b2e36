//! Labels as bit sets, so that the relevant items of a combination are counted by `and` and `popcount`.

use super::Term;

/// Per attribute: which items have it, and which are known not to have it.
pub struct LabelBits {
    has: Vec<Vec<u64>>,
    has_not: Vec<Vec<u64>>,
    words: usize,
}

/// Items of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Fulfil every term.
    pub relevant: u64,
    /// Have a known label for every term.
    pub judged: u64,
}

impl LabelBits {
    /// From N×A labels.
    pub fn new(labels: &[i8], attributes: usize) -> Self {
        let words = (labels.len() / attributes).div_ceil(64);
        let mut has = vec![vec![0u64; words]; attributes];
        let mut has_not = has.clone();
        for (item, row) in labels.chunks_exact(attributes).enumerate() {
            let bit = 1u64 << (item % 64);
            for (attribute, label) in row.iter().enumerate() {
                match label {
                    1 => has[attribute][item / 64] |= bit,
                    -1 => has_not[attribute][item / 64] |= bit,
                    _ => {}
                }
            }
        }
        Self { has, has_not, words }
    }

    /// A.
    pub fn attributes(&self) -> usize {
        self.has.len()
    }

    /// Relevant and judged items of a query.
    pub fn count(&self, terms: &[Term]) -> Counts {
        let mut counts = Counts { relevant: 0, judged: 0 };
        for word in 0..self.words {
            let (mut relevant, mut judged) = (u64::MAX, u64::MAX);
            for term in terms {
                let attribute = term.attribute as usize;
                let (has, has_not) = (self.has[attribute][word], self.has_not[attribute][word]);
                relevant &= if term.positive { has } else { has_not };
                judged &= has | has_not;
            }
            counts.relevant += u64::from(relevant.count_ones());
            counts.judged += u64::from(judged.count_ones());
        }
        counts
    }
}
