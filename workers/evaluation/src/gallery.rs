//! The gallery as the scorer sees it: rows of blocks, and what a row is to a query.

use likeness_contract::settings::Vocabulary;

use crate::error::{Error, Result};
use crate::queries::Query;

/// Some rows of the gallery: ids, embeddings of dimension D, labels of A attributes.
///
/// A shard is one, or those of its rows that are searched; how a gallery is cut into blocks has no influence
/// on any figure.
pub trait Block: Sync {
    /// N.
    fn rows(&self) -> usize;
    /// D.
    fn dim(&self) -> usize;
    /// A.
    fn attributes(&self) -> usize;
    /// Item id of a row.
    fn item(&self, row: usize) -> &str;
    /// Embedding of a row, D finite values.
    fn embedding(&self, row: usize) -> &[f32];
    /// Labels of a row, A of −1, 0, +1.
    fn labels(&self, row: usize) -> &[i8];
}

/// A block that holds its rows itself.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainBlock {
    items: Vec<String>,
    embeddings: Vec<f32>,
    labels: Vec<i8>,
    dim: usize,
    attributes: usize,
}

impl PlainBlock {
    /// Checks and wraps N rows: `items` N ids, `embeddings` N×D, `labels` N×A of −1, 0, +1.
    ///
    /// Fails as corrupt on other lengths, on a label that is none and on a value that is not finite.
    pub fn new(
        items: Vec<String>,
        embeddings: Vec<f32>,
        labels: Vec<i8>,
        dim: usize,
        attributes: usize,
    ) -> Result<Self> {
        let rows = items.len();
        if embeddings.len() != rows * dim {
            return Err(Error::corrupt(format!("{rows} items with {} values of dimension {dim}", embeddings.len())));
        }
        if labels.len() != rows * attributes {
            return Err(Error::corrupt(format!("{rows} items with {} labels of {attributes} each", labels.len())));
        }
        if let Some(at) = embeddings.iter().position(|value| !value.is_finite()) {
            return Err(Error::corrupt(format!("the embedding of `{}` is not finite", items[at / dim])));
        }
        if let Some(at) = labels.iter().position(|label| !(-1..=1).contains(label)) {
            return Err(Error::corrupt(format!("`{}` has the label {}", items[at / attributes], labels[at])));
        }
        Ok(Self { items, embeddings, labels, dim, attributes })
    }
}

impl Block for PlainBlock {
    fn rows(&self) -> usize {
        self.items.len()
    }

    fn dim(&self) -> usize {
        self.dim
    }

    fn attributes(&self) -> usize {
        self.attributes
    }

    fn item(&self, row: usize) -> &str {
        &self.items[row]
    }

    fn embedding(&self, row: usize) -> &[f32] {
        &self.embeddings[row * self.dim..(row + 1) * self.dim]
    }

    fn labels(&self, row: usize) -> &[i8] {
        &self.labels[row * self.attributes..(row + 1) * self.attributes]
    }
}

impl<B: Block + Send> Block for std::sync::Arc<B> {
    fn rows(&self) -> usize {
        (**self).rows()
    }

    fn dim(&self) -> usize {
        (**self).dim()
    }

    fn attributes(&self) -> usize {
        (**self).attributes()
    }

    fn item(&self, row: usize) -> &str {
        (**self).item(row)
    }

    fn embedding(&self, row: usize) -> &[f32] {
        (**self).embedding(row)
    }

    fn labels(&self, row: usize) -> &[i8] {
        (**self).labels(row)
    }
}

/// What a row is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It has every `+` and no `−` attribute.
    Relevant,
    /// It fails at least one term.
    NotRelevant {
        /// Terms that it does fulfil.
        fulfilled: u32,
    },
    /// A label that the query asks for is not known, or it is the query's own image: the row is left out of this query.
    Unjudged,
}

/// Judges a row of a block.
pub fn judge(query: &Query, block: &impl Block, row: usize) -> Judgement {
    let labels = block.labels(row);
    let mut fulfilled = 0;
    for term in &query.terms {
        match (labels[term.attribute as usize], term.positive) {
            (0, _) => return Judgement::Unjudged,
            (1, true) | (-1, false) => fulfilled += 1,
            _ => {}
        }
    }
    match query.held_out() {
        Some(image) if image == block.item(row) => Judgement::Unjudged,
        _ if fulfilled as usize == query.terms.len() => Judgement::Relevant,
        _ => Judgement::NotRelevant { fulfilled },
    }
}

/// Refuses `who` (a model, a set of queries) whose vocabulary `theirs` is not the gallery's: its queries would
/// mean other attributes.
pub fn check_vocabulary(who: &str, theirs: &Vocabulary, gallery: &str, of_gallery: &Vocabulary) -> Result<()> {
    if theirs == of_gallery {
        return Ok(());
    }
    let difference = theirs.names.iter().zip(&of_gallery.names).position(|(a, b)| a != b);
    let detail = match difference {
        Some(at) => format!("attribute {at} is `{}` there and `{}` here", theirs.names[at], of_gallery.names[at]),
        None => format!("{} attributes there and {} here", theirs.len(), of_gallery.len()),
    };
    Err(Error::invalid(format!("{who} has another vocabulary than generation `{gallery}`: {detail}")))
}

/// Refuses a model whose embeddings have another length than the gallery's.
pub fn check_dimension(model: &str, of_model: u32, gallery: &str, of_gallery: u32) -> Result<()> {
    if of_model == of_gallery {
        return Ok(());
    }
    let detail = format!("model `{model}` has dimension {of_model}, generation `{gallery}` has dimension {of_gallery}");
    Err(Error::invalid(detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queries::{QueryImage, QuerySet};

    fn one(item: &str, labels: &[i8]) -> PlainBlock {
        PlainBlock::new(vec![item.into()], vec![1.0], labels.to_vec(), 1, labels.len()).unwrap()
    }

    #[test]
    fn an_unknown_label_leaves_the_row_out_even_when_another_term_fails() {
        let query = Query::of(QuerySet::Pairs, &[(0, true), (1, false)]);
        let judge = |labels: &[i8]| judge(&query, &one("a", labels), 0);
        assert_eq!(judge(&[1, -1]), Judgement::Relevant);
        assert_eq!(judge(&[1, 1]), Judgement::NotRelevant { fulfilled: 1 });
        assert_eq!(judge(&[-1, 1]), Judgement::NotRelevant { fulfilled: 0 });
        assert_eq!(judge(&[-1, 0]), Judgement::Unjudged);
        assert_eq!(judge(&[0, -1]), Judgement::Unjudged);
    }

    #[test]
    fn the_image_that_asks_is_no_answer() {
        let mut query = Query::of(QuerySet::Images, &[(0, true)]);
        query.image = Some(QueryImage { item: "a".into(), index: 0, has: vec![], stays: false });
        assert_eq!(judge(&query, &one("a", &[1]), 0), Judgement::Unjudged);
        assert_eq!(judge(&query, &one("b", &[1]), 0), Judgement::Relevant);
        query.image.as_mut().unwrap().stays = true;
        assert_eq!(judge(&query, &one("a", &[1]), 0), Judgement::Relevant);
    }

    #[test]
    fn blocks_of_other_shapes_or_values_are_refused() {
        let items = || vec!["a".to_string(), "b".to_string()];
        let block = |embeddings: Vec<f32>, labels: Vec<i8>| PlainBlock::new(items(), embeddings, labels, 2, 1);
        assert!(block(vec![1.0, 0.0, 0.0, 1.0], vec![1, -1]).is_ok());
        assert!(block(vec![1.0, 0.0], vec![1, -1]).is_err());
        assert!(block(vec![1.0, 0.0, 0.0, 1.0], vec![1]).is_err());
        let nan = block(vec![1.0, 0.0, f32::NAN, 1.0], vec![1, -1]).unwrap_err();
        assert_eq!(nan.to_string(), "the embedding of `b` is not finite");
        let label = block(vec![1.0, 0.0, 0.0, 1.0], vec![1, 2]).unwrap_err();
        assert_eq!(label.to_string(), "`b` has the label 2");
    }

    #[test]
    fn another_vocabulary_or_dimension_is_named_on_both_sides() {
        let vocabulary = |names: &[&str]| Vocabulary { names: names.iter().map(|name| name.to_string()).collect() };
        let error = check_vocabulary("model `m`", &vocabulary(&["A", "B"]), "g", &vocabulary(&["A", "C"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "model `m` has another vocabulary than generation `g`: attribute 1 is `B` there and `C` here"
        );
        assert!(check_vocabulary("model `m`", &vocabulary(&["A"]), "g", &vocabulary(&["A", "C"])).is_err());
        let error = check_dimension("m", 128, "g", 300).unwrap_err();
        assert_eq!(error.to_string(), "model `m` has dimension 128, generation `g` has dimension 300");
    }
}
