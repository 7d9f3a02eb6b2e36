//! The query sets: all singles; pairs and triples of distinct attributes with signs at random; everything that is known of
//! one item; an item's image with one of its attributes changed; and the user's own. Where no model embeds attributes, items' images
//! as they are ([`draw_alike`]).
//!
//! They are drawn from the labels of the items that are searched, once per evaluation, and stored; every
//! range of the evaluation and the gate's other generation are asked the same ones. Drawing goes through the
//! space of what may be asked in a seeded random order without repeats and keeps what is admissible, so it
//! ends with fewer only when the data has no more (or after [`MAX_DRAWS`] tries).

use std::collections::HashSet;

use likeness_contract::settings::{EvaluateSettings, ImageEdit, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::brought::BroughtQuery;
use crate::error::{Error, Result};
use crate::labels::LabelBits;
use shuffle::{LazyShuffle, combination, combinations};

mod shuffle;

/// Most combinations that are tried for one set: bounds the time where almost none is admissible.
pub const MAX_DRAWS: u64 = 2_000_000;
/// Reasons that are kept of own queries that are not asked.
pub const MAX_LEFT_OUT: usize = 100;
/// Version of the JSON object that [`DrawnQueries::encode`] writes where it says nothing new.
const FORMAT_2: &str = "likeness-queries-2";
/// The version that also knows the user's own queries, and images that stay in the gallery.
const FORMAT_3: &str = "likeness-queries-3";
/// The version that also knows images as they are, and vectors.
const FORMAT: &str = "likeness-queries-4";

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
    /// The user's own: any attributes, with or without an item's image, or a vector that is judged by them.
    Own,
    /// An item's image as it is, judged by one of the attributes that are known of it.
    Alike,
}

impl QuerySet {
    /// All sets in the order of reports.
    pub const ALL: [Self; 7] =
        [Self::Singles, Self::Pairs, Self::Triples, Self::Full, Self::Images, Self::Own, Self::Alike];
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
            Self::Own => "own",
            Self::Alike => "alike",
        }
    }

    /// The set of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// Terms of one query; none where that differs from query to query.
    pub fn terms(self) -> Option<usize> {
        match self {
            Self::Singles | Self::Images | Self::Alike => Some(1),
            Self::Pairs => Some(2),
            Self::Triples => Some(3),
            Self::Full | Self::Own => None,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Its number, from 0 through all sets.
    pub number: u32,
    /// Its set.
    pub set: QuerySet,
    /// Its conditions, attributes ascending.
    pub terms: Vec<Term>,
    /// For people: `+Smiling −Male`; of an image `000123.jpg +Smiling`; with the name of one that has it before it.
    pub text: String,
    /// The image that asks: of [`QuerySet::Images`] and [`QuerySet::Alike`], and of some of [`QuerySet::Own`].
    pub image: Option<QueryImage>,
    /// What the user calls it, of [`QuerySet::Own`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What asks as it is, of some of [`QuerySet::Own`]; the terms judge alone. D numbers, not yet normalised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vector: Option<Vec<f32>>,
}

/// An item whose image is part of a query, and which is no answer to it unless it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryImage {
    /// Its id.
    pub item: String,
    /// Its place among the searched items, shard by shard.
    pub index: u64,
    /// Attributes that it has, ascending.
    pub has: Vec<u32>,
    /// Whether it stays in the gallery, as with the seed article's author.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays: bool,
}

impl Query {
    /// The item that is no answer to it, since its image asks.
    pub fn held_out(&self) -> Option<&str> {
        self.image.as_ref().filter(|image| !image.stays).map(|image| &*image.item)
    }

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
    /// Wanted: both signs of every attribute for singles, all that were brought for own ones, else the setting.
    pub wanted: u32,
    /// Drawn.
    pub drawn: u32,
}

/// All queries of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Why some of the user's own queries are not asked, by line; at most [`MAX_LEFT_OUT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// Draws the query sets from the labels (N×A) of the items that will be searched; `item` tells the id of one.
///
/// Singles and images need `min_relevant` relevant items; pairs and triples also at most half of the items that are
/// judged for them; the full ones have at least the item that they were made from. Fails as invalid when labels and vocabulary don't fit or there is no item at all; no
/// admissible query is no error here.
pub fn draw_queries(
    vocabulary: &Vocabulary,
    labels: &[i8],
    item: &dyn Fn(usize) -> String,
    settings: &EvaluateSettings,
) -> Result<DrawnQueries> {
    let mut drawn = DrawnQueries::none(vocabulary, labels)?;
    let attributes = vocabulary.len();
    let bits = LabelBits::new(labels, attributes);
    drawn.add(QuerySet::Singles, 2 * attributes as u64, singles(&bits, settings));
    for (set, wanted) in [(QuerySet::Pairs, settings.pairs), (QuerySet::Triples, settings.triples)] {
        drawn.add(set, u64::from(wanted), combined(&bits, set, wanted, settings));
    }
    drawn.add(QuerySet::Full, u64::from(settings.full), full(labels, attributes, settings));
    drawn.add_images(QuerySet::Images, settings.images, images(&bits, labels, item, settings));
    Ok(drawn)
}

/// Draws what can be asked where no model embeds attributes: items' images as they are, judged by one attribute that is known of
/// them. As many as `settings.images`; the attribute has `min_relevant` relevant items beside the one that asks, which are at most half
/// of those that are judged. The item leaves the gallery. Fails as [`draw_queries`] does.
pub fn draw_alike(
    vocabulary: &Vocabulary,
    labels: &[i8],
    item: &dyn Fn(usize) -> String,
    settings: &EvaluateSettings,
) -> Result<DrawnQueries> {
    let mut drawn = DrawnQueries::none(vocabulary, labels)?;
    let attributes = vocabulary.len();
    let bits = LabelBits::new(labels, attributes);
    let mut order = LazyShuffle::new(labels.len() as u64, settings.seed, 6);
    let mut found = Vec::new();
    for _ in 0..(labels.len() as u64).min(MAX_DRAWS) {
        if found.len() == settings.images as usize {
            break;
        }
        let place = order.draw() as usize;
        let (index, attribute) = (place / attributes, (place % attributes) as u32);
        let term = Term { attribute, positive: labels[place] == 1 };
        let counts = bits.count(&[term]);
        let enough = counts.relevant > u64::from(settings.min_relevant.max(1)) && 2 * counts.relevant <= counts.judged;
        if labels[place] != 0 && enough {
            found.push((QueryImage::of(index, item(index), &labels[index * attributes..][..attributes], false), term));
        }
    }
    drawn.add_images(QuerySet::Alike, settings.images, found);
    drawn.format = FORMAT.into();
    Ok(drawn)
}

/// Everything known of random items, no combination twice.
fn full(labels: &[i8], attributes: usize, settings: &EvaluateSettings) -> Vec<Vec<Term>> {
    let items = (labels.len() / attributes) as u64;
    let mut order = LazyShuffle::new(items, settings.seed, 4);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for _ in 0..items {
        if found.len() == settings.full as usize {
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

/// Random items, each with one known attribute turned round; or as the author did, asked for with a random sign.
fn images(
    bits: &LabelBits,
    labels: &[i8],
    item: &dyn Fn(usize) -> String,
    settings: &EvaluateSettings,
) -> Vec<(QueryImage, Term)> {
    let attributes = bits.attributes();
    let author = settings.image_edit == ImageEdit::Author;
    let signs = if author { 2 } else { 1 };
    let space = labels.len() as u64 * signs;
    let mut order = LazyShuffle::new(space, settings.seed, 5);
    let mut found = Vec::new();
    for _ in 0..space.min(MAX_DRAWS) {
        if found.len() == settings.images as usize {
            break;
        }
        let drawn = order.draw();
        let place = (drawn / signs) as usize;
        let (index, attribute) = (place / attributes, (place % attributes) as u32);
        let term = Term { attribute, positive: if author { drawn % 2 == 1 } else { labels[place] == -1 } };
        if labels[place] != 0 && bits.count(&[term]).relevant >= u64::from(settings.min_relevant.max(1)) {
            found.push((QueryImage::of(index, item(index), &labels[index * attributes..][..attributes], author), term));
        }
    }
    found
}

impl QueryImage {
    fn of(index: usize, item: String, labels: &[i8], stays: bool) -> Self {
        let has = (0u32..).zip(labels).filter(|(_, label)| **label == 1).map(|(attribute, _)| attribute).collect();
        Self { item, index: index as u64, has, stays }
    }
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

/// `+Smiling −Male`, after the id of the image, after `NAME:`.
pub fn text(vocabulary: &Vocabulary, terms: &[Term], image: Option<&QueryImage>, name: Option<&str>) -> String {
    let words = terms
        .iter()
        .map(|term| format!("{}{}", if term.positive { '+' } else { '−' }, vocabulary.names[term.attribute as usize]));
    let before = name.map(|name| format!("{name}:")).into_iter().chain(image.map(|image| image.item.clone()));
    before.chain(words).collect::<Vec<String>>().join(" ")
}

/// Whether the image that asks fulfils its own query, which does not count where it leaves the gallery.
fn itself_alone(terms: &[Term], image: Option<&QueryImage>, labels: &[i8], attributes: usize) -> bool {
    image.is_some_and(|image| {
        let of_item = &labels[image.index as usize * attributes..][..attributes];
        !image.stays && terms.iter().all(|term| of_item[term.attribute as usize] == if term.positive { 1 } else { -1 })
    })
}

impl DrawnQueries {
    fn none(vocabulary: &Vocabulary, labels: &[i8]) -> Result<Self> {
        let attributes = vocabulary.len();
        if attributes == 0 {
            return Err(Error::invalid("the vocabulary has no attribute"));
        }
        if !labels.len().is_multiple_of(attributes) {
            return Err(Error::corrupt(format!("{} labels are no rows of {attributes} attributes", labels.len())));
        }
        let items = (labels.len() / attributes) as u64;
        if items == 0 {
            return Err(Error::invalid("the gallery has no item to evaluate"));
        }
        let (format, vocabulary) = (FORMAT_2.into(), vocabulary.clone());
        Ok(Self { format, vocabulary, items, sets: vec![], queries: vec![], left_out: vec![] })
    }

    fn add(&mut self, set: QuerySet, wanted: u64, all: Vec<Vec<Term>>) {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        self.sets.push(SetCount { set, wanted, drawn: all.len() as u32 });
        for terms in all {
            self.push(set, terms, None, None, None);
        }
    }

    fn add_images(&mut self, set: QuerySet, wanted: u32, all: Vec<(QueryImage, Term)>) {
        self.sets.push(SetCount { set, wanted, drawn: all.len() as u32 });
        for (image, term) in all {
            self.push(set, vec![term], Some(image), None, None);
        }
    }

    /// Adds the user's own queries, after all others. `labels` are those that were drawn from, `place` finds an item among
    /// them, `dim` is D. What no item answers is left out, and so is what names an item that is not searched.
    ///
    /// Fails as invalid on an attribute that the gallery does not have, and on a vector of another dimension.
    pub fn add_own(
        &mut self,
        brought: &[BroughtQuery],
        labels: &[i8],
        place: impl Fn(&str) -> Option<usize>,
        dim: usize,
        image_edit: ImageEdit,
    ) -> Result<()> {
        let attributes = self.vocabulary.len();
        let bits = LabelBits::new(labels, attributes);
        let before = self.queries.len();
        for query in brought {
            let terms = query.terms(&self.vocabulary)?;
            query.fits(dim)?;
            let image = match query.item.as_ref().map(|item| (item, place(item))) {
                Some((item, None)) => {
                    self.leave_out(format!("line {}: item `{item}` is not among those that are searched", query.line));
                    continue;
                }
                Some((item, Some(index))) => {
                    let of_item = &labels[index * attributes..][..attributes];
                    Some(QueryImage::of(index, item.clone(), of_item, image_edit == ImageEdit::Author))
                }
                None => None,
            };
            if bits.count(&terms).relevant == u64::from(itself_alone(&terms, image.as_ref(), labels, attributes)) {
                self.leave_out(format!("line {}: no item has and has not what it asks for", query.line));
                continue;
            }
            self.push(QuerySet::Own, terms, image, query.name.clone(), query.vector.clone());
        }
        let drawn = (self.queries.len() - before) as u32;
        self.sets.push(SetCount { set: QuerySet::Own, wanted: brought.len() as u32, drawn });
        self.at_least_format_3();
        Ok(())
    }

    fn leave_out(&mut self, why: String) {
        if self.left_out.len() < MAX_LEFT_OUT {
            self.left_out.push(why);
        }
    }

    /// Queries of the pooled sets, which come before all others.
    pub fn pooled(&self) -> usize {
        self.queries.iter().take_while(|query| query.set.is_pooled()).count()
    }

    fn push(
        &mut self,
        set: QuerySet,
        terms: Vec<Term>,
        image: Option<QueryImage>,
        name: Option<String>,
        vector: Option<Vec<f32>>,
    ) {
        if image.as_ref().is_some_and(|image| image.stays) {
            self.at_least_format_3();
        }
        if vector.is_some() {
            self.format = FORMAT.into();
        }
        let text = text(&self.vocabulary, &terms, image.as_ref(), name.as_deref());
        self.queries.push(Query { number: self.queries.len() as u32, set, terms, text, image, name, vector });
    }

    fn at_least_format_3(&mut self) {
        if self.format == FORMAT_2 {
            self.format = FORMAT_3.into();
        }
    }

    /// JSON object; the same queries give the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        // A vector of a line a number would be most of the file.
        let with_vectors = self.queries.iter().any(|query| query.vector.is_some());
        let write = if with_vectors { serde_json::to_vec } else { serde_json::to_vec_pretty };
        let mut bytes = write(self).expect("queries serialise to JSON");
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
        if ![FORMAT_2, FORMAT_3, FORMAT].contains(&&*self.format) {
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
            && (query.set == QuerySet::Own
                || image.is_some() == matches!(query.set, QuerySet::Images | QuerySet::Alike))
            && (query.set == QuerySet::Own || (query.name.is_none() && query.vector.is_none()))
            && (query.vector.is_none() || image.is_none())
            && image.is_none_or(|image| image.index < self.items && image.has.iter().all(|attribute| known(*attribute)))
            && query.text == text(&self.vocabulary, &query.terms, image, query.name.as_deref())
    }
}

#[cfg(test)]
impl Query {
    /// One to judge by, without number and text.
    pub fn of(set: QuerySet, terms: &[(u32, bool)]) -> Self {
        let terms = terms.iter().map(|&(attribute, positive)| Term { attribute, positive }).collect();
        Self { number: 0, set, terms, text: String::new(), image: None, name: None, vector: None }
    }
}

#[cfg(test)]
mod tests;
