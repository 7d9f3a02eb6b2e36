//! What tasks and searches of one process load again and again: manifests, dataset parts, shards, models.
//!
//! Everything in the store is immutable, so nothing here can be stale; bytes are checked against their digest
//! when they are read. Parts and shards share one budget of bytes and leave in order of their last use. Two
//! callers that miss the same thing at once both load it, which is harmless.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use likeness_contract::documents::{DatasetManifest, GenerationManifest, ModelManifest, PartEntry, ShardEntry};
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{DatasetRef, GenerationRef, JobSpec};
use likeness_contract::keys;
use likeness_data::Part;
use likeness_index::Shard;
use likeness_link::Store;
use likeness_model::Model;

use crate::error::TaskError;
use crate::job::embed::earlier::LastImages;
use crate::job::train::training_set::LastTrainingSet;
use crate::runtime::device::DeviceThread;

/// Models kept: the one of the task at hand and the one that it is compared with.
const MODELS: u64 = 2;
/// Manifests kept of each kind.
const MANIFESTS: u64 = 16;

/// The distance that ranks, as `model.json` names it.
const DISTANCE: &str = "euclidean";

/// A model in memory, with its manifest.
pub struct LoadedModel {
    /// What it is.
    pub manifest: ModelManifest,
    /// Its weights on the device.
    pub model: Model,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("model", &self.manifest.model).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Block {
    Part(Arc<Part>),
    Shard(Arc<Shard>),
}

/// See the module.
pub struct Cache {
    /// The decoded images of the training at hand: its next round wants them again.
    pub training_set: LastTrainingSet,
    /// Where the images of an earlier generation lie: the next task that copies from it wants it again.
    pub embedded_images: LastImages,
    store: Store,
    datasets: Mutex<Recent<String, Arc<DatasetManifest>>>,
    generations: Mutex<Recent<GenerationRef, Arc<GenerationManifest>>>,
    models: Mutex<Recent<JobId, Arc<LoadedModel>>>,
    specs: Mutex<Recent<JobId, Arc<JobSpec>>>,
    blocks: Mutex<Recent<String, Block>>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("store", &self.store.url()).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache that keeps parts and shards of at most `capacity_bytes` (their size in the store).
    pub fn new(store: Store, capacity_bytes: u64) -> Self {
        Self {
            store,
            datasets: Mutex::new(Recent::new(MANIFESTS)),
            generations: Mutex::new(Recent::new(MANIFESTS)),
            models: Mutex::new(Recent::new(MODELS)),
            specs: Mutex::new(Recent::new(MANIFESTS)),
            blocks: Mutex::new(Recent::new(capacity_bytes)),
            training_set: LastTrainingSet::default(),
            embedded_images: LastImages::default(),
        }
    }

    /// The spec of a job.
    pub async fn spec(&self, job: &JobId) -> Result<Arc<JobSpec>, TaskError> {
        if let Some(spec) = lock(&self.specs).get(job) {
            return Ok(spec);
        }
        let Some(spec) = self.store.document::<JobSpec>(&keys::job_spec(job)).await? else {
            // Another worker may have the store that the job is in.
            let store = self.store.url();
            return Err(TaskError::transient(format!(
                "job `{job}` is not in the store `{store}`: does this worker use the coordinator's store (`--store`)?"
            )));
        };
        let spec: Arc<JobSpec> = Arc::new(spec);
        lock(&self.specs).put(job.clone(), Arc::clone(&spec), 1);
        Ok(spec)
    }

    /// The manifest of a dataset version.
    pub async fn dataset(&self, dataset: &DatasetRef) -> Result<Arc<DatasetManifest>, TaskError> {
        let key = keys::dataset_manifest(&dataset.dataset, &dataset.version);
        if let Some(manifest) = lock(&self.datasets).get(&key) {
            return Ok(manifest);
        }
        let manifest: Arc<DatasetManifest> = Arc::new(self.store.require(&key).await?);
        lock(&self.datasets).put(key, Arc::clone(&manifest), 1);
        Ok(manifest)
    }

    /// A part of a dataset with `attributes` labels per row, decoded.
    pub async fn part(&self, entry: &PartEntry, attributes: usize) -> Result<Arc<Part>, TaskError> {
        let key = &entry.object.key;
        if let Some(Block::Part(part)) = lock(&self.blocks).get(key) {
            return Ok(part);
        }
        let bytes = self.store.read(&entry.object).await?;
        let part = Arc::new(blocking(move || Part::decode(bytes, attributes)).await?);
        lock(&self.blocks).put(key.clone(), Block::Part(Arc::clone(&part)), entry.object.bytes);
        Ok(part)
    }

    /// The manifest of a generation.
    pub async fn generation(&self, generation: &GenerationRef) -> Result<Arc<GenerationManifest>, TaskError> {
        if let Some(manifest) = lock(&self.generations).get(generation) {
            return Ok(manifest);
        }
        let key = keys::generation_manifest(&generation.gallery, &generation.generation);
        let manifest: Arc<GenerationManifest> = Arc::new(self.store.require(&key).await?);
        lock(&self.generations).put(generation.clone(), Arc::clone(&manifest), 1);
        Ok(manifest)
    }

    /// A shard of a generation, decoded and checked.
    pub async fn shard(&self, manifest: &GenerationManifest, entry: &ShardEntry) -> Result<Arc<Shard>, TaskError> {
        let key = &entry.object.key;
        if let Some(Block::Shard(shard)) = lock(&self.blocks).get(key) {
            return Ok(shard);
        }
        let bytes = self.store.read(&entry.object).await?;
        let (number, dim, attributes) = (entry.shard, manifest.embedding_dim as usize, manifest.vocabulary.len());
        let shard = Arc::new(blocking(move || Shard::decode(number, bytes, dim, attributes)).await?);
        lock(&self.blocks).put(key.clone(), Block::Shard(Arc::clone(&shard)), entry.object.bytes);
        Ok(shard)
    }

    /// A finished model, its weights on the device of `thread`.
    pub async fn model(&self, model: &JobId, thread: &DeviceThread) -> Result<Arc<LoadedModel>, TaskError> {
        if let Some(loaded) = lock(&self.models).get(model) {
            return Ok(loaded);
        }
        let manifest: ModelManifest = self.store.require(&keys::model_manifest(model)).await?;
        check_distance(&manifest)?;
        let weights = self.store.read(&manifest.weights).await?;
        let (device, compute) = (thread.device().clone(), thread.compute());
        let load = move || {
            let model = Model::load(&manifest.settings, manifest.vocabulary.len(), &weights, &device)?;
            let model = model.with_mirrored(manifest.train.embed_mirrored);
            Ok::<_, likeness_model::Error>(LoadedModel { manifest, model: model.with_compute(compute) })
        };
        let loaded = Arc::new(blocking(load).await?);
        lock(&self.models).put(model.clone(), Arc::clone(&loaded), 1);
        Ok(loaded)
    }
}

/// Retrieval uses the distance that the model was trained with; this program knows one.
fn check_distance(manifest: &ModelManifest) -> Result<(), TaskError> {
    if manifest.distance == DISTANCE {
        return Ok(());
    }
    let ModelManifest { model, distance, .. } = manifest;
    Err(TaskError::invalid(format!("model `{model}` was trained with distance `{distance}`, known is `{DISTANCE}`")))
}

/// Decodes away from tokio's own threads.
async fn blocking<T, E>(f: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, TaskError>
where
    T: Send + 'static,
    E: Into<TaskError> + Send + 'static,
{
    tokio::task::spawn_blocking(f).await.map_err(TaskError::transient)?.map_err(Into::into)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values with weights; over the capacity the one that was used longest ago leaves.
struct Recent<K, V> {
    capacity: u64,
    weight: u64,
    uses: u64,
    entries: HashMap<K, Entry<V>>,
}

struct Entry<V> {
    value: V,
    weight: u64,
    last_use: u64,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn new(capacity: u64) -> Self {
        Self { capacity, weight: 0, uses: 0, entries: HashMap::new() }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.last_use = self.uses;
        Some(entry.value.clone())
    }

    /// A value heavier than the whole capacity is not kept.
    fn put(&mut self, key: K, value: V, weight: u64) {
        self.remove(&key);
        if weight > self.capacity {
            return;
        }
        self.uses += 1;
        self.weight += weight;
        self.entries.insert(key, Entry { value, weight, last_use: self.uses });
        while self.weight > self.capacity {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last_use);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.weight -= entry.weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_leaves_first() {
        let mut recent = Recent::new(10);
        recent.put("a", 1, 4);
        recent.put("b", 2, 4);
        assert_eq!(recent.get(&"a"), Some(1));
        recent.put("c", 3, 4);
        assert_eq!((recent.get(&"a"), recent.get(&"b"), recent.get(&"c")), (Some(1), None, Some(3)));
        assert_eq!(recent.weight, 8);
    }

    #[test]
    fn a_value_over_the_capacity_is_not_kept_and_evicts_nothing() {
        let mut recent = Recent::new(10);
        recent.put("a", 1, 4);
        recent.put("huge", 2, 11);
        assert_eq!((recent.get(&"a"), recent.get(&"huge")), (Some(1), None));
    }
}
