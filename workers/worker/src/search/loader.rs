//! Loads what a searcher holds from the store, and checks that its pieces belong together.

use likeness_contract::documents::{GenerationManifest, ModelManifest, ShardEntry};
use likeness_contract::messages::Served;
use likeness_index::Shard;

use super::holdings::Kit;
use crate::error::TaskError;
use crate::runtime::context::SearchContext;

/// The only distance that shards are ranked by.
const DISTANCE: &str = "euclidean";

/// Manifests and model of a generation.
pub async fn load_kit(cx: &SearchContext, served: &Served) -> Result<Kit, TaskError> {
    let generation = cx.cache.generation(&served.generation).await?;
    let dataset = cx.cache.dataset(&generation.dataset).await?;
    let model = cx.cache.model(&served.model, &cx.device).await?;
    fits(&generation, &model.manifest).map_err(TaskError::invalid)?;
    Ok(Kit { generation, dataset, model })
}

/// One shard of a generation, straight into memory and ready for fast searches.
pub async fn load_shard(cx: &SearchContext, kit: &Kit, entry: &ShardEntry) -> Result<Shard, TaskError> {
    let ShardEntry { shard: number, object, rows } = entry.clone();
    let bytes = cx.store.read(&object).await?;
    let (dim, attributes) = (kit.generation.embedding_dim as usize, kit.generation.vocabulary.len());
    let decode = move || Shard::decode(number, bytes, dim, attributes)?.with_codes();
    let shard = tokio::task::spawn_blocking(decode).await.map_err(TaskError::transient)??;
    if shard.rows() as u64 != rows {
        let found = shard.rows();
        return Err(TaskError::invalid(format!("`{}` has {found} rows, the manifest says {rows}", object.key)));
    }
    Ok(shard)
}

/// Whether a model embeds queries for a generation.
fn fits(generation: &GenerationManifest, model: &ModelManifest) -> Result<(), String> {
    let name = &model.model;
    if generation.model != *name || generation.weights != model.weights.digest {
        let (made_by, of) = (&generation.model, &generation.generation.generation);
        return Err(format!("generation `{of}` was embedded by model `{made_by}`, not by these weights of `{name}`"));
    }
    if model.settings.embedding_dim != generation.embedding_dim {
        let (found, expected) = (model.settings.embedding_dim, generation.embedding_dim);
        return Err(format!("model `{name}` has dimension {found}, the generation has {expected}"));
    }
    if model.vocabulary != generation.vocabulary {
        return Err(format!("model `{name}` has another vocabulary than the generation"));
    }
    if model.distance != DISTANCE {
        return Err(format!("model `{name}` ranks by `{}`; only `{DISTANCE}` can be searched", model.distance));
    }
    Ok(())
}
