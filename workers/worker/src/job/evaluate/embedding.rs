//! Queries as vectors of the generation's own space.
//!
//! Attributes go through the attribute tower. The image of a query is an item of the gallery, so its embedding is there
//! already: the query is normalised (image ± embedding of each attribute alone). Of embeddings from elsewhere nothing embeds an
//! attribute: an image asks as it is. A vector that the user brought asks as it is everywhere, normalised.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use likeness_contract::documents::GenerationManifest;
use likeness_evaluation::{Block, Query, Term, gallery};
use likeness_model::encode_query;

use super::gallery::Gallery;
use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// [`model_of`] a generation that one of ours embedded; none of embeddings from elsewhere.
pub async fn known_model(
    cx: &TaskContext,
    generation: &GenerationManifest,
) -> Result<Option<Arc<LoadedModel>>, TaskError> {
    match generation.embedder() {
        Some(_) => model_of(cx, generation).await.map(Some),
        None => Ok(None),
    }
}

/// The model that embedded a generation, checked against it: vocabulary, dimension, weights.
pub async fn model_of(cx: &TaskContext, generation: &GenerationManifest) -> Result<Arc<LoadedModel>, TaskError> {
    let name = generation.generation.generation.as_str();
    let elsewhere = || TaskError::invalid(format!("generation `{name}` was imported: no model embeds queries for it"));
    let embedder = generation.embedder().ok_or_else(elsewhere)?;
    let loaded = cx.cache.model(&embedder.model, &cx.device).await?;
    let model = embedder.model.as_str();
    gallery::check_vocabulary(&format!("model `{model}`"), &loaded.manifest.vocabulary, name, &generation.vocabulary)?;
    gallery::check_dimension(model, loaded.manifest.settings.embedding_dim, name, generation.embedding_dim)?;
    if loaded.manifest.weights.digest != embedder.weights {
        let text = format!("generation `{name}` was embedded with other weights than model `{model}` has");
        return Err(TaskError::invalid(text));
    }
    Ok(loaded)
}

/// Embeds queries, each by itself: the vector is the one that a search for the same attributes uses, and does
/// not depend on how queries are cut into tasks.
pub fn embed_queries(
    model: Option<&LoadedModel>,
    gallery: &Gallery,
    queries: Vec<Query>,
    device: &Device,
) -> Result<Vec<(Query, Vec<f32>)>, TaskError> {
    let images = image_embeddings(gallery, &queries)?;
    let embed = |query: Query| {
        let embedding = match (&query.vector, &query.image, model) {
            (Some(vector), _, _) => changed(vector, &[]),
            (None, None, Some(loaded)) => embed_attributes(loaded, &query.with(), &query.without(), device)?,
            (None, Some(image), Some(loaded)) => {
                let change = |term: &Term| {
                    let attribute = embed_attributes(loaded, &[term.attribute as usize], &[], device)?;
                    Ok((attribute, term.positive))
                };
                let changes = query.terms.iter().map(change).collect::<Result<Vec<_>, TaskError>>()?;
                changed(&images[&image.index], &changes)
            }
            (None, Some(image), None) => images[&image.index].clone(),
            (None, None, None) => {
                let why = "the embeddings were made elsewhere: no model embeds it; bring an `item` or a `vector`";
                return Err(TaskError::invalid(format!("query `{}`: {why}", query.text)));
            }
        };
        Ok((query, embedding))
    };
    queries.into_iter().map(embed).collect()
}

fn embed_attributes(
    loaded: &LoadedModel,
    with: &[usize],
    without: &[usize],
    device: &Device,
) -> Result<Vec<f32>, TaskError> {
    let attributes = loaded.manifest.vocabulary.len();
    let vector = encode_query(loaded.manifest.settings.encoding, attributes, with, without);
    let vector = Tensor::from_vec(vector, (1, attributes), device)?;
    Ok(loaded.model.embed_attributes(&vector)?.flatten_all()?.to_vec1::<f32>()?)
}

/// (image ± attributes) / its norm, summed in f64. An attribute is added or taken away.
fn changed(image: &[f32], changes: &[(Vec<f32>, bool)]) -> Vec<f32> {
    let mut sum: Vec<f64> = image.iter().copied().map(f64::from).collect();
    for (attribute, add) in changes {
        let sign = if *add { 1.0 } else { -1.0 };
        sum.iter_mut().zip(attribute).for_each(|(sum, a)| *sum += sign * f64::from(*a));
    }
    let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.into_iter().map(|value| (value / norm) as f32).collect()
}

/// The embeddings of the items whose images ask, by their place among the searched items.
fn image_embeddings(gallery: &Gallery, queries: &[Query]) -> Result<HashMap<u64, Vec<f32>>, TaskError> {
    let asked: BTreeMap<u64, &str> =
        queries.iter().filter_map(|query| query.image.as_ref()).map(|image| (image.index, &*image.item)).collect();
    let mut found = HashMap::with_capacity(asked.len());
    let mut first = 0;
    for number in 0..gallery.blocks() {
        if found.len() == asked.len() {
            break;
        }
        let block = gallery.wait_for_block(number)?;
        let next = first + block.rows() as u64;
        for (index, item) in asked.range(first..next) {
            let row = (index - first) as usize;
            if block.item(row) != *item {
                let other = block.item(row);
                let text = format!("the query's image `{item}` is `{other}` in this generation: it has other items");
                return Err(TaskError::invalid(text));
            }
            found.insert(*index, block.embedding(row).to_vec());
        }
        first = next;
    }
    match asked.iter().find(|(index, _)| !found.contains_key(index)) {
        None => Ok(found),
        Some((_, item)) => Err(TaskError::invalid(format!("the query's image `{item}` is not in the gallery"))),
    }
}

#[cfg(test)]
mod tests {
    use super::changed;

    #[test]
    fn an_image_moves_towards_an_attribute_or_away_from_it() {
        let by = |attribute: [f32; 2], add| changed(&[1.0, 0.0], &[(attribute.to_vec(), add)]);
        assert_eq!(by([0.0, 1.0], true), [0.5f32.sqrt(); 2]);
        assert_eq!(by([0.0, 1.0], false), [0.5f32.sqrt(), -(0.5f32.sqrt())]);
        assert_eq!(by([1.0, 0.0], false), [0.0, 0.0]);
        assert_eq!(
            changed(&[0.5, 0.0], &[(vec![0.5, 0.0], true), (vec![0.0, 1.0], false)]),
            [0.5f32.sqrt(), -(0.5f32.sqrt())]
        );
    }
}
