//! What this searcher has in memory.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use likeness_contract::documents::{DatasetManifest, GenerationManifest};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::messages::HeldShards;
use likeness_index::Shard;

use crate::cache::LoadedModel;

/// What a root needs to answer for a generation, whoever holds its shards.
#[derive(Debug)]
pub struct Kit {
    /// Shards and vocabulary.
    pub generation: Arc<GenerationManifest>,
    /// Where the images lie.
    pub dataset: Arc<DatasetManifest>,
    /// Embeds the queries.
    pub model: Arc<LoadedModel>,
}

/// A generation in memory.
#[derive(Debug, Clone)]
pub struct Held {
    /// For the root.
    pub kit: Arc<Kit>,
    /// For the leaf.
    pub shards: BTreeMap<u32, Arc<Shard>>,
}

/// All generations in memory; root and leaf take what they need and let go of the lock.
#[derive(Debug, Default)]
pub struct Holdings {
    held: RwLock<BTreeMap<GenerationRef, Held>>,
    /// Why the kit of a generation is not there.
    troubles: RwLock<BTreeMap<GenerationRef, String>>,
}

impl Holdings {
    /// For a root.
    pub fn kit(&self, generation: &GenerationRef) -> Option<Arc<Kit>> {
        self.read().get(generation).map(|held| Arc::clone(&held.kit))
    }

    /// For a leaf: the shards of a generation.
    pub fn shards(&self, generation: &GenerationRef) -> Option<BTreeMap<u32, Arc<Shard>>> {
        self.read().get(generation).map(|held| held.shards.clone())
    }

    /// Everything.
    pub fn snapshot(&self) -> BTreeMap<GenerationRef, Held> {
        self.read().clone()
    }

    /// Why a generation's kit could not be loaded.
    pub fn trouble(&self, generation: &GenerationRef) -> Option<String> {
        self.troubles.read().unwrap_or_else(PoisonError::into_inner).get(generation).cloned()
    }

    /// A generation's kit could not be loaded, the last time.
    pub fn on_trouble(&self, generation: GenerationRef, trouble: String) {
        self.troubles.write().unwrap_or_else(PoisonError::into_inner).insert(generation, trouble);
    }

    /// A generation's kit was loaded.
    pub fn add_kit(&self, generation: GenerationRef, kit: Kit) {
        self.troubles.write().unwrap_or_else(PoisonError::into_inner).remove(&generation);
        self.write().insert(generation, Held { kit: Arc::new(kit), shards: BTreeMap::new() });
    }

    /// A shard was loaded.
    pub fn add_shard(&self, generation: &GenerationRef, shard: Shard) {
        if let Some(held) = self.write().get_mut(generation) {
            held.shards.insert(shard.number(), Arc::new(shard));
        }
    }

    /// A shard is another's now.
    pub fn drop_shard(&self, generation: &GenerationRef, shard: u32) {
        if let Some(held) = self.write().get_mut(generation) {
            held.shards.remove(&shard);
        }
    }

    /// A generation is no longer of use.
    pub fn drop_generation(&self, generation: &GenerationRef) {
        self.write().remove(generation);
    }

    /// What is announced to the others.
    pub fn announcement(&self) -> Vec<HeldShards> {
        let held = |(generation, held): (&GenerationRef, &Held)| HeldShards {
            generation: generation.clone(),
            shards: held.shards.keys().copied().collect(),
            model_ready: true,
        };
        self.read().iter().map(held).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<GenerationRef, Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<GenerationRef, Held>> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}
