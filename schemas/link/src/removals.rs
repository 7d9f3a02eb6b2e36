//! Items that were taken out of a dataset: the list in the store, read as a whole or from where one left off, and grown.

use std::time::{SystemTime, UNIX_EPOCH};

use likeness_contract::datasets::{Removal, RemovalChange, Removed};
use likeness_contract::ids::Name;
use likeness_contract::keys;

use crate::error::Result;
use crate::store::Store;

/// What the removals of a dataset add up to.
pub async fn removed(store: &Store, dataset: &Name) -> Result<Removed> {
    Ok(removed_since(store, dataset, &Removed::default()).await?.unwrap_or_default())
}

/// What they add up to now, if there are more than `known` counts. Costs one listing while nothing changes.
pub async fn removed_since(store: &Store, dataset: &Name, known: &Removed) -> Result<Option<Removed>> {
    let newest = newest(store, dataset).await?;
    if newest <= known.last() {
        return Ok(None);
    }
    through(store, dataset, known.clone(), newest).await.map(Some)
}

/// What the first `count` removals add up to: what a job counts is fixed.
pub async fn first_removed(store: &Store, dataset: &Name, count: u64) -> Result<Removed> {
    through(store, dataset, Removed::default(), count).await
}

async fn through(store: &Store, dataset: &Name, mut removed: Removed, newest: u64) -> Result<Removed> {
    for number in removed.last() + 1..=newest {
        removed.apply(&store.require(&keys::removal(dataset, number)).await?);
    }
    Ok(removed)
}

/// Number of the newest removal of a dataset; 0 of none.
pub async fn newest(store: &Store, dataset: &Name) -> Result<u64> {
    Ok(store.list(&keys::removals(dataset)).await?.last().and_then(|key| keys::number_of(key)).unwrap_or(0))
}

/// Appends a removal and returns it; of several writers at once each gets a number of its own.
pub async fn append(store: &Store, dataset: &Name, change: RemovalChange, items: Vec<String>) -> Result<Removal> {
    let mut number = newest(store, dataset).await?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let created_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let mut removal = Removal { dataset: dataset.clone(), number, change, items, created_ms };
    loop {
        number += 1;
        removal.number = number;
        let stored = store.create_document(&keys::removal(dataset, number), &removal).await?;
        if stored.created {
            return Ok(removal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn writers_at_once_get_numbers_of_their_own_and_readers_see_them_all() {
        let (store, faces) = (Store::open("memory:").await.unwrap(), Name::new("faces").unwrap());
        assert_eq!(removed(&store, &faces).await.unwrap(), Removed::default());
        let add = |names: &'static [&str]| append(&store, &faces, RemovalChange::Remove, items(names));
        let (a, b, c) = tokio::join!(add(&["a"]), add(&["b"]), add(&["c"]));
        let mut numbers = [a, b, c].map(|removal| removal.unwrap().number);
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3]);
        let all = removed(&store, &faces).await.unwrap();
        assert_eq!((all.last(), all.items().collect::<Vec<_>>()), (3, vec!["a", "b", "c"]));
        assert_eq!(removed_since(&store, &faces, &all).await.unwrap(), None);
        append(&store, &faces, RemovalChange::Restore, items(&["b"])).await.unwrap();
        let now = removed_since(&store, &faces, &all).await.unwrap().unwrap();
        assert_eq!((now.last(), now.contains("b"), now.contains("a")), (4, false, true));
        assert!(first_removed(&store, &faces, 3).await.unwrap().contains("b"));
        assert_eq!(removed(&store, &Name::new("other").unwrap()).await.unwrap().last(), 0);
    }
}
