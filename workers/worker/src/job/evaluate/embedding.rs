//! Queries as vectors of the generation's own model.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use likeness_contract::documents::GenerationManifest;
use likeness_evaluation::{Query, gallery};
use likeness_model::encode_query;

use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The model that embedded a generation, checked against it: vocabulary, dimension, weights.
pub async fn model_of(cx: &TaskContext, generation: &GenerationManifest) -> Result<Arc<LoadedModel>, TaskError> {
    let loaded = cx.cache.model(&generation.model, &cx.device).await?;
    let (model, name) = (generation.model.as_str(), generation.generation.generation.as_str());
    gallery::check_vocabulary(&format!("model `{model}`"), &loaded.manifest.vocabulary, name, &generation.vocabulary)?;
    gallery::check_dimension(model, loaded.manifest.settings.embedding_dim, name, generation.embedding_dim)?;
    if loaded.manifest.weights.digest != generation.weights {
        let text = format!("generation `{name}` was embedded with other weights than model `{model}` has");
        return Err(TaskError::invalid(text));
    }
    Ok(loaded)
}

/// Embeds queries, each by itself: the vector is the one that a search for the same attributes uses, and does
/// not depend on how queries are cut into tasks.
pub fn embed_queries(
    loaded: &LoadedModel,
    queries: Vec<Query>,
    device: &Device,
) -> Result<Vec<(Query, Vec<f32>)>, TaskError> {
    let attributes = loaded.manifest.vocabulary.len();
    let mut embedded = Vec::with_capacity(queries.len());
    for query in queries {
        let vector = encode_query(loaded.manifest.settings.encoding, attributes, &query.with(), &query.without());
        let vector = Tensor::from_vec(vector, (1, attributes), device)?;
        let embedding = loaded.model.embed_attributes(&vector)?.flatten_all()?.to_vec1::<f32>()?;
        embedded.push((query, embedding));
    }
    Ok(embedded)
}
