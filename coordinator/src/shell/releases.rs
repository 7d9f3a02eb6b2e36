//! Releases in the store, and the bucket that tells searchers of them. The bucket is a cache: it is rebuilt from
//! the store whenever a leader begins or the broker lost it.

use std::collections::BTreeSet;

use futures::StreamExt;
use likeness_contract::documents::Release;
use likeness_contract::ids::Name;
use likeness_contract::keys;
use likeness_contract::messages::AliasState;
use likeness_contract::subjects::ALIASES_BUCKET;
use likeness_link::error::chain;
use likeness_link::{Result, Store};

use super::context::Context;
use crate::core::promote;

/// Releases that are read at once.
const AT_ONCE: usize = 16;

/// All releases of an alias, oldest first. One that can't be read must not hide the others: the newest of these
/// then warns of it.
pub(super) async fn of_alias(store: &Store, alias: &Name) -> Result<Vec<Release>> {
    let listed = store.list(&keys::releases(alias)).await?;
    let reads = futures::stream::iter(listed).map(|key| async move { store.require::<Release>(&key).await });
    let read: Vec<Result<Release>> = reads.buffered(AT_ONCE).collect().await;
    let (mut releases, mut damaged) = (Vec::new(), Vec::new());
    for release in read {
        match release {
            Ok(release) => releases.push(release),
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => damaged.push(error),
        }
    }
    releases.sort_by_key(|release: &Release| release.number);
    match (releases.last_mut(), damaged.pop()) {
        (None, Some(error)) => return Err(error),
        (Some(newest), Some(error)) => {
            newest.warnings.extend(damaged.iter().chain([&error]).map(|error| format!("beside it: {}", chain(error))));
        }
        (_, None) => {}
    }
    Ok(releases)
}

/// All aliases that have releases.
pub(super) async fn aliases(store: &Store) -> Result<Vec<Name>> {
    let mut aliases = Vec::new();
    for folder in store.children(keys::RELEASES).await? {
        match Name::new(folder) {
            Ok(alias) => aliases.push(alias),
            Err(error) => tracing::warn!(%error, "a folder below `releases` is left out"),
        }
    }
    Ok(aliases)
}

/// The newest release of an alias. Numbers have no gaps and keys sort by them.
async fn newest(store: &Store, alias: &Name) -> Result<Option<Release>> {
    match store.list(&keys::releases(alias)).await?.last() {
        Some(key) => store.require(key).await.map(Some),
        None => Ok(None),
    }
}

/// Makes the bucket say what the store says. An alias that is being promoted is left to its promotion; one whose
/// release can't be read is left out, loudly, for the others must go on.
pub(super) async fn rebuild_aliases(cx: &Context) -> Result<()> {
    let kv = cx.bus.kv(ALIASES_BUCKET).await?;
    let mut names: BTreeSet<Name> = aliases(&cx.store).await?.into_iter().collect();
    let entries = kv.entries::<AliasState>().await?;
    names.extend(entries.iter().filter_map(|entry| Name::new(entry.key.clone()).ok()));
    for alias in names {
        let lock = cx.promotion_lock(&alias);
        let Ok(_not_promoting) = lock.try_lock() else { continue };
        match newest(&cx.store, &alias).await {
            Ok(newest) => tell(cx, &alias, &state_of(newest.as_ref())).await?,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                tracing::error!(%alias, error = %chain(&error), "a release can't be read, somebody must mend it")
            }
        }
    }
    Ok(())
}

/// What serves, with nothing to load.
pub(super) fn state_of(newest: Option<&Release>) -> AliasState {
    newest.map_or(AliasState { serving: None, loading: None }, promote::serving)
}

/// Tells searchers the state of an alias, unless they were told of a newer release: a coordinator that led before
/// may still be finishing a promotion.
pub(super) async fn tell(cx: &Context, alias: &Name, state: &AliasState) -> Result<()> {
    let kv = cx.bus.kv(ALIASES_BUCKET).await?;
    let number = |state: &AliasState| state.serving.as_ref().map_or(0, |served| served.release);
    loop {
        let told = kv.get::<AliasState>(alias.as_str()).await?;
        let written = match &told {
            Some(entry) if entry.value == *state || number(&entry.value) > number(state) => return Ok(()),
            Some(entry) => kv.update(alias.as_str(), state, entry.revision).await?,
            None => kv.create(alias.as_str(), state).await?,
        };
        if written.is_some() {
            return Ok(());
        }
    }
}
