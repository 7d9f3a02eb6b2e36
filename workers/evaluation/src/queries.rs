//! The query sets: all singles, and pairs and triples of distinct attributes with signs at random.
//!
//! They are drawn from the labels of the items that are searched, once per evaluation, and stored; every
//! range of the evaluation and the gate's other generation are asked the same ones. Drawing goes through the
//! space of (attributes, signs) in a seeded random order without repeats and keeps what is admissible, so it
//! ends with fewer only when the data has no more (or after [`MAX_DRAWS`] tries).

use likeness_contract::settings::{EvaluateSettings, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use labels::LabelBits;
use shuffle::{LazyShuffle, combination, combinations};

mod labels;
mod shuffle;

/// Most combinations that are tried for one set: bounds the time where almost none is admissible.
pub const MAX_DRAWS: u64 = 2_000_000;
/// Version of the JSON object that [`DrawnQueries::encode`] writes.
const FORMAT: &str = "likeness-queries-1";

/// A kind of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuerySet {
    /// One attribute.
    Singles,
    /// Two.
    Pairs,
    /// Three.
    Triples,
}

impl QuerySet {
    /// All sets in the order of reports.
    pub const ALL: [Self; 3] = [Self::Singles, Self::Pairs, Self::Triples];

    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Singles => "singles",
            Self::Pairs => "pairs",
            Self::Triples => "triples",
        }
    }

    /// The set of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Terms of one query.
    pub fn terms(self) -> usize {
        match self {
            Self::Singles => 1,
            Self::Pairs => 2,
            Self::Triples => 3,
        }
    }
}

/// One condition of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Position in the vocabulary.
    pub attribute: u32,
    /// Whether the item must have it or must not.
    pub positive: bool,
}

/// One query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Its number, from 0 through all sets.
    pub number: u32,
    /// Its set.
    pub set: QuerySet,
    /// Its conditions, attributes ascending.
    pub terms: Vec<Term>,
    /// For people: `+Smiling −Male`.
    pub text: String,
}

impl Query {
    /// Attributes that are asked for.
    pub fn with(&self) -> Vec<usize> {
        self.terms.iter().filter(|term| term.positive).map(|term| term.attribute as usize).collect()
    }

    /// Attributes that must not be there.
    pub fn without(&self) -> Vec<usize> {
        self.terms.iter().filter(|term| !term.positive).map(|term| term.attribute as usize).collect()
    }
}

/// How many queries of a set were wanted and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetCount {
    /// The set.
    pub set: QuerySet,
    /// Wanted: both signs of every attribute for singles, else the setting.
    pub wanted: u32,
    /// Drawn.
    pub drawn: u32,
}

/// All queries of an evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrawnQueries {
    format: String,
    /// Attributes that terms refer to.
    pub vocabulary: Vocabulary,
    /// Items that they were drawn from.
    pub items: u64,
    /// Per set.
    pub sets: Vec<SetCount>,
    /// By number.
    pub queries: Vec<Query>,
}

/// Draws the query sets from the labels (N×A) of the items that will be searched.
///
/// Singles need `min_relevant` relevant items; pairs and triples also at most half of the items that are
/// judged for them. Fails as invalid when labels and vocabulary don't fit or there is no item at all; no
/// admissible query is no error here.
pub fn draw_queries(vocabulary: &Vocabulary, labels: &[i8], settings: &EvaluateSettings) -> Result<DrawnQueries> {
    let attributes = vocabulary.len();
    if attributes == 0 {
        return Err(Error::invalid("the vocabulary has no attribute"));
    }
    if !labels.len().is_multiple_of(attributes) {
        return Err(Error::corrupt(format!("{} labels are no rows of {attributes} attributes", labels.len())));
    }
    let items = labels.len() / attributes;
    if items == 0 {
        return Err(Error::invalid("the gallery has no item to evaluate"));
    }
    let bits = LabelBits::new(labels, attributes);
    let mut drawn = DrawnQueries {
        format: FORMAT.into(),
        vocabulary: vocabulary.clone(),
        items: items as u64,
        sets: vec![],
        queries: vec![],
    };
    drawn.add(QuerySet::Singles, 2 * attributes as u64, singles(&bits, settings));
    for (set, wanted) in [(QuerySet::Pairs, settings.pairs), (QuerySet::Triples, settings.triples)] {
        drawn.add(set, u64::from(wanted), combined(&bits, set, wanted, settings));
    }
    Ok(drawn)
}

fn singles(bits: &LabelBits, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    (0..bits.attributes())
        .flat_map(|attribute| [true, false].map(|positive| vec![Term { attribute: attribute as u32, positive }]))
        .filter(|terms| bits.count(terms).relevant >= u64::from(settings.min_relevant.max(1)))
        .collect()
}

fn combined(bits: &LabelBits, set: QuerySet, wanted: u32, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    let size = set.terms();
    let signs = 1u64 << size;
    let space = combinations(bits.attributes() as u64, size).saturating_mul(signs);
    let mut order = LazyShuffle::new(space, settings.seed, size as u64);
    let mut found = Vec::new();
    for _ in 0..space.min(MAX_DRAWS) {
        if found.len() == wanted as usize {
            break;
        }
        let number = order.draw();
        let terms = signed(&combination(number / signs, size), number % signs);
        let counts = bits.count(&terms);
        if counts.relevant >= u64::from(settings.min_relevant.max(1)) && 2 * counts.relevant <= counts.judged {
            found.push(terms);
        }
    }
    found
}

fn signed(attributes: &[u32], signs: u64) -> Vec<Term> {
    let positive = |place: usize| signs >> place & 1 == 1;
    attributes.iter().enumerate().map(|(place, &attribute)| Term { attribute, positive: positive(place) }).collect()
}

/// `+Smiling −Male`.
pub fn text(vocabulary: &Vocabulary, terms: &[Term]) -> String {
    let words: Vec<String> = terms
        .iter()
        .map(|term| format!("{}{}", if term.positive { '+' } else { '−' }, vocabulary.names[term.attribute as usize]))
        .collect();
    words.join(" ")
}

impl DrawnQueries {
    fn add(&mut self, set: QuerySet, wanted: u64, all: Vec<Vec<Term>>) {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        self.sets.push(SetCount { set, wanted, drawn: all.len() as u32 });
        for terms in all {
            let text = text(&self.vocabulary, &terms);
            self.queries.push(Query { number: self.queries.len() as u32, set, terms, text });
        }
    }

    /// JSON object; the same queries give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("queries serialise to JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads what [`Self::encode`] wrote and checks it.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let drawn: Self =
            serde_json::from_slice(bytes).map_err(|e| Error::corrupt("the queries are no JSON of ours").because(e))?;
        drawn.check()?;
        Ok(drawn)
    }

    fn check(&self) -> Result<()> {
        if self.format != FORMAT {
            return Err(Error::corrupt(format!("the queries have the format `{}`, not `{FORMAT}`", self.format)));
        }
        for (number, query) in self.queries.iter().enumerate() {
            let known = query.terms.iter().all(|term| (term.attribute as usize) < self.vocabulary.len());
            let ascending = query.terms.is_sorted_by(|a, b| a.attribute < b.attribute);
            let shaped = query.number as usize == number && query.terms.len() == query.set.terms();
            if !(known && ascending && shaped) || query.text != text(&self.vocabulary, &query.terms) {
                return Err(Error::corrupt(format!("query {number} is not well formed")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
