//! What this searcher has in memory.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use likeness_contract::datasets::Removed;
use likeness_contract::documents::{DatasetManifest, GenerationManifest};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::messages::{HeldShards, Placement};
use likeness_contract::settings::ModelSettings;
use likeness_index::{Filter, RowSet, Shard};

use super::loader::Loaded;
use super::resident::Resident;
use crate::cache::LoadedModel;

/// What a root needs to answer for a generation, whoever holds its shards.
#[derive(Debug)]
pub struct Kit {
    /// Shards and vocabulary.
    pub generation: Arc<GenerationManifest>,
    /// Where the images lie; embeddings from elsewhere have none.
    pub dataset: Option<Arc<DatasetManifest>>,
    /// Embeds the queries; nothing does for embeddings from elsewhere.
    pub model: Option<Arc<LoadedModel>>,
}

impl Kit {
    /// What questions are checked against.
    pub fn settings(&self) -> ModelSettings {
        super::query::settings(self.model.as_deref(), self.generation.embedding_dim)
    }
}

/// A shard in memory, and perhaps on a device too.
#[derive(Debug)]
pub struct HeldShard {
    shard: Shard,
    resident: Option<Resident>,
    /// Rows whose items were removed since it was made, and the removals that are counted; none where there are no such rows.
    removed: RwLock<(u64, Option<Arc<RowSet>>)>,
}

impl HeldShard {
    /// A shard, with its rows on a device if they are to be searched there.
    pub fn new(shard: Shard, resident: Option<Resident>) -> Self {
        Self { shard, resident, removed: RwLock::default() }
    }

    /// Takes out the rows of items that are removed, and puts back those of others. A list that is older than the one that
    /// counts changes nothing.
    pub fn take_out(&self, removed: &Removed) {
        if removed.last() <= self.removed.read().unwrap_or_else(PoisonError::into_inner).0 {
            return;
        }
        let mut rows = RowSet::none(self.shard.rows());
        removed.items().filter_map(|item| self.shard.find(item)).for_each(|row| rows.insert(row));
        let rows = (rows.count() > 0).then(|| Arc::new(rows));
        let mut known = self.removed.write().unwrap_or_else(PoisonError::into_inner);
        if removed.last() > known.0 {
            *known = (removed.last(), rows);
        }
    }

    /// The rows that were taken out, if there are any.
    pub fn taken_out(&self) -> Option<Arc<RowSet>> {
        self.removed.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// How many rows were taken out.
    pub fn rows_taken_out(&self) -> usize {
        self.taken_out().map_or(0, |rows| rows.count())
    }

    /// The rows that a search is about: those that a filter lets through and that were not taken out.
    pub fn searched(&self, filter: Option<&Filter>) -> likeness_index::Result<RowSet> {
        let mut rows = match filter {
            Some(filter) => self.shard.matching(filter)?,
            None => RowSet::all(self.shard.rows()),
        };
        if let Some(removed) = self.taken_out() {
            rows.subtract(&removed);
        }
        Ok(rows)
    }

    /// The shard alone.
    #[cfg(test)]
    pub fn into_shard(self) -> Shard {
        self.shard
    }

    /// Its rows on the device.
    pub fn resident(&self) -> Option<&Resident> {
        self.resident.as_ref()
    }
}

impl Deref for HeldShard {
    type Target = Shard;

    fn deref(&self) -> &Shard {
        &self.shard
    }
}

/// A generation in memory.
#[derive(Debug, Clone)]
pub struct Held {
    /// For the root.
    pub kit: Arc<Kit>,
    /// For the leaf.
    pub shards: BTreeMap<u32, Arc<HeldShard>>,
    /// Why some of them are searched exactly although they have an approximate index.
    pub index_troubles: BTreeMap<u32, String>,
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
    pub fn shards(&self, generation: &GenerationRef) -> Option<BTreeMap<u32, Arc<HeldShard>>> {
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
        self.write()
            .insert(generation, Held { kit: Arc::new(kit), shards: BTreeMap::new(), index_troubles: BTreeMap::new() });
    }

    /// A shard was loaded, perhaps without its approximate index.
    pub fn add_shard(&self, generation: &GenerationRef, loaded: Loaded) {
        let Loaded { shard, trouble } = loaded;
        if let Some(held) = self.write().get_mut(generation) {
            held.index_troubles.extend(trouble.map(|trouble| (shard.number(), trouble)));
            held.shards.insert(shard.number(), Arc::new(shard));
        }
    }

    /// Which shards are searched exactly although they have an approximate index, in words.
    pub fn index_troubles(&self) -> Vec<String> {
        let words = |generation: &GenerationRef, shard: &u32, why: &String| {
            format!("the approximate index of {}{why}", Placement::trouble_with(generation, Some(*shard)))
        };
        let held = self.read();
        let troubles = held.iter().map(|(generation, held)| (generation, &held.index_troubles));
        troubles
            .flat_map(|(generation, all)| all.iter().map(move |(shard, why)| words(generation, shard, why)))
            .collect()
    }

    /// A shard is another's now.
    pub fn drop_shard(&self, generation: &GenerationRef, shard: u32) {
        if let Some(held) = self.write().get_mut(generation) {
            held.shards.remove(&shard);
            held.index_troubles.remove(&shard);
        }
    }

    /// A generation is no longer of use.
    pub fn drop_generation(&self, generation: &GenerationRef) {
        self.write().remove(generation);
    }

    /// Bytes of memory of all shards.
    pub fn shard_bytes(&self) -> u64 {
        let held = self.read();
        held.values().flat_map(|held| held.shards.values()).map(|shard| shard.memory().total() as u64).sum()
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
