//! Releases in the store, and the bucket that tells searchers of them. The bucket is a cache: it is rebuilt from
//! the store whenever a leader begins or the broker lost it.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use likeness_contract::documents::Release;
use likeness_contract::ids::Name;
use likeness_contract::keys;
use likeness_contract::messages::AliasState;
use likeness_contract::subjects::ALIASES_BUCKET;
use likeness_link::{Error, ErrorKind, Result, Store};

use super::context::Context;
use crate::core::promote;

/// Releases that are read at once.
const AT_ONCE: usize = 16;

/// All releases of an alias, oldest first.
pub(super) async fn of_alias(store: &Store, alias: &Name) -> Result<Vec<Release>> {
    let listed = store.list(&keys::releases(alias)).await?;
    let reads = futures::stream::iter(listed).map(|key| async move { store.require::<Release>(&key).await });
    let mut releases: Vec<Release> = reads.buffered(AT_ONCE).try_collect().await?;
    releases.sort_by_key(|release| release.number);
    Ok(releases)
}

/// All aliases that have releases.
pub(super) async fn aliases(store: &Store) -> Result<Vec<Name>> {
    let folders = store.children(keys::RELEASES).await?;
    let name =
        |folder| Name::new(folder).map_err(|e| Error::new(ErrorKind::Corrupt, "a folder below `releases`").because(e));
    folders.into_iter().map(name).collect()
}

/// The newest release of an alias. Numbers have no gaps and keys sort by them.
async fn newest(store: &Store, alias: &Name) -> Result<Option<Release>> {
    match store.list(&keys::releases(alias)).await?.last() {
        Some(key) => store.require(key).await.map(Some),
        None => Ok(None),
    }
}

/// Makes the bucket say what the store says. What was being loaded is loaded again by whoever promotes it.
pub(super) async fn rebuild_aliases(cx: &Context) -> Result<()> {
    let kv = cx.bus.kv(ALIASES_BUCKET).await?;
    let mut names: BTreeSet<Name> = aliases(&cx.store).await?.into_iter().collect();
    let entries = kv.entries::<AliasState>().await?;
    names.extend(entries.iter().filter_map(|entry| Name::new(entry.key.clone()).ok()));
    for alias in names {
        let newest = newest(&cx.store, &alias).await?;
        let state = newest.as_ref().map_or(AliasState { serving: None, loading: None }, promote::serving);
        let known = entries.iter().find(|entry| entry.key == alias.as_str());
        if known.is_none_or(|known| known.value != state) {
            kv.put(alias.as_str(), &state).await?;
        }
    }
    Ok(())
}
