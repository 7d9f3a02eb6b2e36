//! Items that were taken down: every searcher knows them for the datasets of the generations that it holds.
//!
//! They are read before a generation is answered for, again as soon as somebody says that there are more, and every
//! [`LOOK_EVERY`] in any case: so a removal is honoured within a moment, and within that time at most should the word of it
//! get lost. What is known is applied to the rows of the shards that are held ([`super::holdings::HeldShard`]); roots look
//! here for the items that a query names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use likeness_contract::datasets::Removed;
use likeness_contract::ids::Name;
use likeness_contract::subjects;
use likeness_link::error::chain;
use likeness_link::{Store, removals};
use tokio::task::JoinSet;

use super::Searcher;
use super::holdings::Held;
use crate::error::TaskError;

/// How often the lists are looked at when nobody says that they grew.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What is removed, by dataset.
#[derive(Debug, Default)]
pub struct Removals {
    known: RwLock<BTreeMap<Name, Arc<Removed>>>,
}

impl Removals {
    /// Of a dataset, as far as it is known.
    pub fn of(&self, dataset: &Name) -> Arc<Removed> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(dataset).cloned().unwrap_or_default()
    }

    /// Reads what is new; tells whether anything is.
    pub async fn refresh(&self, store: &Store, dataset: &Name) -> likeness_link::Result<bool> {
        let known = self.of(dataset);
        let Some(now) = removals::removed_since(store, dataset, &known).await? else { return Ok(false) };
        self.learn(dataset, now);
        Ok(true)
    }

    /// Two readers at once may end in either order: the longer list stays.
    fn learn(&self, dataset: &Name, now: Removed) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(dataset.clone()).or_default();
        if now.last() > entry.last() {
            *entry = Arc::new(now);
        }
    }
}

/// Follows the removals of everything that is held, until the returned set is dropped.
pub async fn follow(searcher: &Arc<Searcher>) -> Result<JoinSet<()>, TaskError> {
    let subscribed = searcher.cx.bus.client().subscribe(subjects::REMOVED_ALL).await;
    let mut said = subscribed.map_err(TaskError::transient)?;
    let (mut tasks, searcher) = (JoinSet::new(), Arc::clone(searcher));
    tasks.spawn(async move {
        loop {
            // A subscription that ended leaves the looking.
            let _ = tokio::time::timeout(LOOK_EVERY, said.next()).await;
            look(&searcher).await;
        }
    });
    Ok(tasks)
}

/// The dataset of what is held; embeddings from elsewhere have none, and nothing is removed of them.
fn dataset_of(held: &Held) -> Option<&Name> {
    held.kit.generation.dataset().map(|dataset| &dataset.dataset)
}

async fn look(searcher: &Arc<Searcher>) {
    let held = searcher.holdings.snapshot();
    let datasets: BTreeSet<&Name> = held.values().filter_map(dataset_of).collect();
    for dataset in datasets {
        match searcher.removals.refresh(&searcher.cx.store, dataset).await {
            Ok(false) => {}
            Ok(true) => {
                let removed = searcher.removals.of(dataset);
                tracing::info!(%dataset, removal = removed.last(), items = removed.items().len(), "items are removed");
                apply(searcher, dataset, removed).await;
            }
            Err(error) => tracing::warn!(%dataset, error = %chain(&error), "can't look for removed items"),
        }
    }
}

/// Takes removed rows out of the shards of a dataset's generations.
async fn apply(searcher: &Arc<Searcher>, dataset: &Name, removed: Arc<Removed>) {
    let (holdings, dataset) = (Arc::clone(&searcher.holdings), dataset.clone());
    let work = move || {
        let held = holdings.snapshot().into_values();
        let of_dataset = held.filter(|held| dataset_of(held) == Some(&dataset));
        of_dataset.flat_map(|held| held.shards.into_values()).for_each(|shard| shard.take_out(&removed));
    };
    if let Err(panic) = tokio::task::spawn_blocking(work).await {
        tracing::error!(%panic, "removed items can't be taken out");
    }
    searcher.curves.forget();
}

#[cfg(test)]
mod tests {
    use likeness_contract::datasets::{Removal, RemovalChange};

    use super::*;

    #[tokio::test]
    async fn the_longer_list_stays_whoever_reads_it_first() {
        let (store, faces) = (Store::open("memory:").await.unwrap(), Name::new("faces").unwrap());
        let removals = Removals::default();
        assert!(!removals.refresh(&store, &faces).await.unwrap());
        let add = |item: &str| removals::append(&store, &faces, RemovalChange::Remove, vec![item.to_string()]);
        add("a").await.unwrap();
        let first: Removal = store.require(&likeness_contract::keys::removal(&faces, 1)).await.unwrap();
        add("b").await.unwrap();
        assert!(removals.refresh(&store, &faces).await.unwrap());
        let mut shorter = Removed::default();
        shorter.apply(&first);
        removals.learn(&faces, shorter);
        assert!(removals.of(&faces).contains("b"));
    }
}
