//! Loads what a searcher holds from the store, and checks that its pieces belong together.

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::documents::{GenerationManifest, ModelManifest, ShardEntry};
use likeness_contract::ids::Digest;
use likeness_contract::messages::Served;
use likeness_index::{Approximate, Shard};
use rayon::ThreadPool;

use super::holdings::{HeldShard, Kit};
use super::resident::Resident;
use crate::error::TaskError;
use crate::runtime::context::SearchContext;

/// How far loading steps back behind searches, as `nice` counts.
#[cfg(target_os = "linux")]
const NICE: i32 = 15;

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

/// Threads that load shards. They give way to whatever answers queries: after the loss of a searcher the others load its
/// shards just when they have more to do.
pub fn pool(threads: usize) -> Result<ThreadPool, TaskError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("load-{i}"));
    // Whoever waits for the shard hears of a panic by the end of its channel.
    let pool = pool.panic_handler(|_| tracing::error!("the loading of a shard panicked"));
    pool.start_handler(|_| give_way()).build().map_err(TaskError::transient)
}

fn give_way() {
    // On Linux this concerns the calling thread alone.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "loading shards can't give way to searches");
    }
}

/// A shard in memory.
#[derive(Debug)]
pub struct Loaded {
    /// Ready for fast searches.
    pub shard: HeldShard,
    /// Why it does not have the approximate index that the manifest names.
    pub trouble: Option<String>,
}

/// One shard of a generation, straight into memory and ready for fast searches; decoded on `pool`.
pub async fn load_shard(
    cx: &SearchContext,
    pool: &ThreadPool,
    kit: &Kit,
    entry: &ShardEntry,
) -> Result<Loaded, TaskError> {
    let ShardEntry { shard: number, object, rows, approximate } = entry.clone();
    let bytes = cx.store.read(&object).await?;
    let index = match &approximate {
        Some(index) => Some(cx.store.read(index).await.map_err(TaskError::from)),
        None => None,
    };
    let (dim, attributes) = (kit.generation.embedding_dim as usize, kit.generation.vocabulary.len());
    let (done, decoded) = tokio::sync::oneshot::channel();
    let (digest, device) = (object.digest, cx.device.device().clone());
    pool.spawn(move || {
        let shard = Shard::decode(number, bytes, dim, attributes).and_then(|shard| ready(shard, &device));
        let loaded = shard.map(|(shard, resident)| {
            let (shard, trouble) = with_index(shard, index, &digest);
            Loaded { shard: HeldShard::new(shard, resident), trouble }
        });
        // Nobody waits when the searcher leaves.
        let _ = done.send(loaded);
    });
    let loaded = decoded.await.map_err(TaskError::transient)??;
    if loaded.shard.rows() as u64 != rows {
        let found = loaded.shard.rows();
        return Err(TaskError::invalid(format!("`{}` has {found} rows, the manifest says {rows}", object.key)));
    }
    Ok(loaded)
}

/// Ready for fast searches: with its rows on a device that is not the processor, else with codes.
fn ready(shard: Shard, device: &Device) -> likeness_index::Result<(Shard, Option<Resident>)> {
    if device.is_cpu() {
        return Ok((shard.with_codes()?, None));
    }
    match Resident::new(&shard, device) {
        Ok(resident) => Ok((shard, Some(resident))),
        Err(error) => {
            tracing::warn!(shard = shard.number(), %error, "does not fit on the device: searched on the processor");
            Ok((shard.with_codes()?, None))
        }
    }
}

/// A shard with its approximate index, or without and why: then it is searched exactly.
fn with_index(shard: Shard, index: Option<Result<Bytes, TaskError>>, digest: &Digest) -> (Shard, Option<String>) {
    let Some(index) = index else { return (shard, None) };
    let decode = |bytes: Bytes| Approximate::decode(&bytes, &shard, digest.as_bytes()).map_err(TaskError::from);
    match index.and_then(decode) {
        Ok(index) => (shard.with_approximate(index), None),
        Err(error) => (shard, Some(error.chain())),
    }
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
