//! The query sets: all singles; pairs and triples of distinct attributes with signs at random; everything that is known of
//! one item; and an item's image with one of its attributes changed.
//!
//! They are drawn from the labels of the items that are searched, once per evaluation, and stored; every
//! range of the evaluation and the gate's other generation are asked the same ones. Drawing goes through the
//! space of what may be asked in a seeded random order without repeats and keeps what is admissible, so it
//! ends with fewer only when the data has no more (or after [`MAX_DRAWS`] tries).

use std::collections::HashSet;

use likeness_contract::settings::{EvaluateSettings, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::labels::LabelBits;
use shuffle::{LazyShuffle, combination, combinations};

mod shuffle;

/// Most combinations that are tried for one set: bounds the time where almost none is admissible.
pub const MAX_DRAWS: u64 = 2_000_000;
/// Queries of [`QuerySet::Full`] that are wanted.
pub const FULL: u32 = 300;
/// Queries of [`QuerySet::Images`] that are wanted.
pub const IMAGES: u32 = 300;
/// Version of the JSON object that [`DrawnQueries::encode`] writes.
const FORMAT: &str = "likeness-queries-2";

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
    /// Every known attribute of an item.
    Full,
    /// An item's image, with one attribute that it has taken away, or one that it has not added.
    Images,
}

impl QuerySet {
    /// All sets in the order of reports.
    pub const ALL: [Self; 5] = [Self::Singles, Self::Pairs, Self::Triples, Self::Full, Self::Images];
    /// The sets that are pooled: what the gate compares, and where the best and worst queries are looked for.
    pub const POOLED: [Self; 3] = [Self::Singles, Self::Pairs, Self::Triples];

    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Singles => "singles",
            Self::Pairs => "pairs",
            Self::Triples => "triples",
            Self::Full => "full",
            Self::Images => "images",
        }
    }

    /// The set of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Terms of one query; none where that differs from query to query.
    pub fn terms(self) -> Option<usize> {
        match self {
            Self::Singles | Self::Images => Some(1),
            Self::Pairs => Some(2),
            Self::Triples => Some(3),
            Self::Full => None,
        }
    }

    /// Whether it is one of [`Self::POOLED`].
    pub fn is_pooled(self) -> bool {
        Self::POOLED.contains(&self)
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
    /// For people: `+Smiling −Male`; of an image `000123.jpg +Smiling`.
    pub text: String,
    /// The image that the terms change, of [`QuerySet::Images`].
    pub image: Option<QueryImage>,
}

/// An item whose image is part of a query, and which is no answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryImage {
    /// Its id.
    pub item: String,
    /// Its place among the searched items, shard by shard.
    pub index: u64,
    /// Attributes that it has, ascending.
    pub has: Vec<u32>,
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

/// Draws the query sets from the labels (N×A) of the items that will be searched; `item` tells the id of one.
///
/// Singles and images need `min_relevant` relevant items; pairs and triples also at most half of the items that are
/// judged for them; the full ones have at least the item that they were made from. Fails as invalid when labels and vocabulary don't fit or there is no item at all; no
/// admissible query is no error here.
pub fn draw_queries(
    vocabulary: &Vocabulary,
    labels: &[i8],
    item: impl Fn(usize) -> String,
    settings: &EvaluateSettings,
) -> Result<DrawnQueries> {
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
    drawn.add(QuerySet::Full, u64::from(FULL), full(labels, attributes, settings));
    drawn.add_images(images(&bits, labels, item, settings));
    Ok(drawn)
}

/// Everything known of random items, no combination twice.
fn full(labels: &[i8], attributes: usize, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    let items = (labels.len() / attributes) as u64;
    let mut order = LazyShuffle::new(items, settings.seed, 4);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for _ in 0..items {
        if found.len() == FULL as usize {
            break;
        }
        let labels = &labels[order.draw() as usize * attributes..][..attributes];
        let known = labels.iter().zip(0u32..).filter(|(label, _)| **label != 0);
        let terms: Vec<Term> = known.map(|(label, attribute)| Term { attribute, positive: *label == 1 }).collect();
        if !terms.is_empty() && seen.insert(labels) {
            found.push(terms);
        }
    }
    found
}

/// Random items, each with one known attribute turned round.
fn images(
    bits: &LabelBits,
    labels: &[i8],
    item: impl Fn(usize) -> String,
    settings: &EvaluateSettings,
) -> Vec<(QueryImage, Term)> {
    let attributes = bits.attributes();
    let space = labels.len() as u64;
    let mut order = LazyShuffle::new(space, settings.seed, 5);
    let mut found = Vec::new();
    for _ in 0..space.min(MAX_DRAWS) {
        if found.len() == IMAGES as usize {
            break;
        }
        let place = order.draw() as usize;
        let (index, attribute) = (place / attributes, (place % attributes) as u32);
        let term = Term { attribute, positive: labels[place] == -1 };
        if labels[place] != 0 && bits.count(&[term]).relevant >= u64::from(settings.min_relevant.max(1)) {
            let has = (0u32..).zip(&labels[index * attributes..][..attributes]);
            let has = has.filter(|(_, label)| **label == 1).map(|(attribute, _)| attribute).collect();
            found.push((QueryImage { item: item(index), index: index as u64, has }, term));
        }
    }
    found
}

fn singles(bits: &LabelBits, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    (0..bits.attributes())
        .flat_map(|attribute| [true, false].map(|positive| vec![Term { attribute: attribute as u32, positive }]))
        .filter(|terms| bits.count(terms).relevant >= u64::from(settings.min_relevant.max(1)))
        .collect()
}

fn combined(bits: &LabelBits, set: QuerySet, wanted: u32, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    let size = set.terms().unwrap_or(0);
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

/// `+Smiling −Male`, after the id of the image.
pub fn text(vocabulary: &Vocabulary, terms: &[Term], image: Option<&QueryImage>) -> String {
    let words = terms
        .iter()
        .map(|term| format!("{}{}", if term.positive { '+' } else { '−' }, vocabulary.names[term.attribute as usize]));
    image.map(|image| image.item.clone()).into_iter().chain(words).collect::<Vec<String>>().join(" ")
}

impl DrawnQueries {
    fn add(&mut self, set: QuerySet, wanted: u64, all: Vec<Vec<Term>>) {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        self.sets.push(SetCount { set, wanted, drawn: all.len() as u32 });
        for terms in all {
            self.push(set, terms, None);
        }
    }

    fn add_images(&mut self, all: Vec<(QueryImage, Term)>) {
        self.sets.push(SetCount { set: QuerySet::Images, wanted: IMAGES, drawn: all.len() as u32 });
        for (image, term) in all {
            self.push(QuerySet::Images, vec![term], Some(image));
        }
    }

    fn push(&mut self, set: QuerySet, terms: Vec<Term>, image: Option<QueryImage>) {
        let text = text(&self.vocabulary, &terms, image.as_ref());
        self.queries.push(Query { number: self.queries.len() as u32, set, terms, text, image });
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
            if query.number as usize != number || !self.is_well_formed(query) {
                return Err(Error::corrupt(format!("query {number} is not well formed")));
            }
        }
        Ok(())
    }

    fn is_well_formed(&self, query: &Query) -> bool {
        let known = |attribute: u32| (attribute as usize) < self.vocabulary.len();
        let image = query.image.as_ref();
        query.terms.iter().all(|term| known(term.attribute))
            && query.terms.is_sorted_by(|a, b| a.attribute < b.attribute)
            && query.set.terms().map_or(!query.terms.is_empty(), |terms| query.terms.len() == terms)
            && image.is_some() == (query.set == QuerySet::Images)
            && image.is_none_or(|image| image.index < self.items && image.has.iter().all(|attribute| known(*attribute)))
            && query.text == text(&self.vocabulary, &query.terms, image)
    }
}

#[cfg(test)]
impl Query {
    /// One to judge by, without number and text.
    pub fn of(set: QuerySet, terms: &[(u32, bool)]) -> Self {
        let terms = terms.iter().map(|&(attribute, positive)| Term { attribute, positive }).collect();
        Self { number: 0, set, terms, text: String::new(), image: None }
    }
}

#[cfg(test)]
mod tests;
