//! Loads what a searcher holds from the store or from this machine's disk, and checks that its pieces belong together.

use std::sync::Arc;

use candle_core::Device;
use likeness_contract::documents::{Embedder, GenerationManifest, ModelManifest, ObjectRef, ShardEntry};
use likeness_contract::ids::Digest;
use likeness_contract::messages::Served;
use likeness_index::{Approximate, Cache, Shard};
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
    let Some(embedder) = generation.embedder() else { return Ok(Kit { generation, dataset: None, model: None }) };
    let dataset = cx.cache.dataset(&embedder.dataset).await?;
    let model = cx.cache.model(&served.model, &cx.device).await?;
    fits(&generation, embedder, &model.manifest).map_err(TaskError::invalid)?;
    Ok(Kit { generation, dataset: Some(dataset), model: Some(model) })
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

/// Where shards come from, and what makes them ready.
#[derive(Debug)]
pub struct Loader<'a> {
    /// The store and the device.
    pub cx: &'a SearchContext,
    /// Decodes.
    pub pool: &'a ThreadPool,
    /// Shards and indexes on this machine's disk.
    pub disk: Option<&'a Arc<Cache>>,
}

impl Loader<'_> {
    /// One shard of a generation, straight into memory and ready for fast searches: from the disk, if it is there whole, else
    /// from the store.
    pub async fn load(&self, kit: &Kit, entry: &ShardEntry) -> Result<Loaded, TaskError> {
        let ShardEntry { shard: number, object, rows, approximate } = entry.clone();
        let (store, digest) = (&self.cx.store, object.digest);
        let (dim, attributes) = (kit.generation.embedding_dim as usize, kit.generation.vocabulary.len());
        let kept = match self.disk.cloned() {
            Some(disk) => self.on_pool(move || from_disk(&disk, number, &digest)).await?,
            None => None,
        };
        let shard = match kept {
            Some(shard) => shard,
            None => {
                let (bytes, disk) = (store.read(&object).await?, self.disk.cloned());
                let decode = move || {
                    let shard = Shard::decode(number, bytes, dim, attributes).and_then(Shard::with_codes)?;
                    Ok::<_, likeness_index::Error>(match disk {
                        Some(disk) => through_disk(&disk, shard, &digest),
                        None => shard,
                    })
                };
                self.on_pool(decode).await??
            }
        };
        if shard.rows() as u64 != rows {
            let found = shard.rows();
            return Err(TaskError::invalid(format!("`{}` has {found} rows, the manifest says {rows}", object.key)));
        }
        let (shard, trouble) = match approximate {
            Some(index) => self.with_index(shard, digest, index).await?,
            None => (shard, None),
        };
        let device = self.cx.device.device().clone();
        self.on_pool(move || {
            let resident = on_device(&shard, &device);
            Loaded { shard: HeldShard::new(shard, resident), trouble }
        })
        .await
    }

    /// A shard with its approximate index, from the disk or else from the store; or without and why: then it is searched exactly.
    async fn with_index(
        &self,
        shard: Shard,
        digest: Digest,
        index: ObjectRef,
    ) -> Result<(Shard, Option<String>), TaskError> {
        let (disk, of_index) = (self.disk.cloned(), index.digest);
        let keep = Kept { disk, digest, of_index };
        let (shard, found, keep) = self
            .on_pool(move || {
                let found = keep.read(&shard);
                (shard, found, keep)
            })
            .await?;
        if let Some(index) = found {
            return Ok((shard.with_approximate(index), None));
        }
        let bytes = match self.cx.store.read(&index).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok((shard, Some(TaskError::from(error).chain()))),
        };
        self.on_pool(move || match Approximate::decode(&bytes, &shard, keep.digest.as_bytes()) {
            Ok(index) => {
                let index = keep.through(&shard, index);
                (shard.with_approximate(index), None)
            }
            Err(error) => (shard, Some(TaskError::from(error).chain())),
        })
        .await
    }

    async fn on_pool<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, TaskError> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.pool.spawn(move || {
            // Nobody waits when the searcher leaves.
            let _ = done.send(f());
        });
        result.await.map_err(TaskError::transient)
    }
}

fn from_disk(disk: &Cache, number: u32, digest: &Digest) -> Option<Shard> {
    match disk.get(number, digest.as_bytes()) {
        Ok(shard) => shard,
        Err(error) => {
            tracing::warn!(shard = number, %error, "a shard on the disk is of no use, it is read from the store");
            None
        }
    }
}

/// Keeps a shard on the disk and takes it from there: then its embeddings need no memory of the process. It stays as it is
/// where that does not work.
fn through_disk(disk: &Cache, shard: Shard, digest: &Digest) -> Shard {
    let number = shard.number();
    match disk.put(digest.as_bytes(), &shard) {
        Ok(true) => from_disk(disk, number, digest).unwrap_or(shard),
        Ok(false) => shard,
        Err(error) => {
            tracing::warn!(shard = number, %error, "a shard can't be kept on the disk");
            shard
        }
    }
}

/// A shard's rows on a device that is not the processor.
fn on_device(shard: &Shard, device: &Device) -> Option<Resident> {
    if device.is_cpu() {
        return None;
    }
    let resident = Resident::new(shard, device);
    let failed =
        |error| tracing::warn!(shard = shard.number(), %error, "does not fit on the device: searched on the processor");
    resident.map_err(failed).ok()
}

/// Where an approximate index lies on the disk, if there is one.
struct Kept {
    disk: Option<Arc<Cache>>,
    /// Of the shard's file.
    digest: Digest,
    of_index: Digest,
}

impl Kept {
    fn read(&self, shard: &Shard) -> Option<Approximate> {
        let found = self.disk.as_ref()?.get_index(shard, self.digest.as_bytes(), self.of_index.as_bytes());
        let unusable = |error| {
            let number = shard.number();
            tracing::warn!(shard = number, %error, "an index on the disk is of no use, it is read from the store");
        };
        found.map_err(unusable).ok().flatten()
    }

    /// Keeps an index and takes it from the disk, as [`through_disk`] does a shard.
    fn through(&self, shard: &Shard, index: Approximate) -> Approximate {
        let Some(disk) = &self.disk else { return index };
        match disk.put_index(shard, self.digest.as_bytes(), self.of_index.as_bytes(), &index) {
            Ok(true) => self.read(shard).unwrap_or(index),
            Ok(false) => index,
            Err(error) => {
                tracing::warn!(shard = shard.number(), %error, "an index can't be kept on the disk");
                index
            }
        }
    }
}

/// Whether a model embeds queries for a generation.
fn fits(generation: &GenerationManifest, embedder: &Embedder, model: &ModelManifest) -> Result<(), String> {
    let name = &model.model;
    if embedder.model != *name || embedder.weights != model.weights.digest {
        let (made_by, of) = (&embedder.model, &generation.generation.generation);
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
