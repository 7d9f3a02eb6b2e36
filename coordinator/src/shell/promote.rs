//! Promotions: searchers load the new generation beside the one that serves, then the release is created, then
//! roots switch. Whatever fails before the creation leaves everything as it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use likeness_contract::documents::{GenerationManifest, ModelManifest, Release};
use likeness_contract::ids::Name;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::keys;
use likeness_contract::messages::{AliasState, Placement};
use likeness_contract::retention::{generation_place, model_place, report_place};
use likeness_contract::subjects::PLACEMENT_BUCKET;
use likeness_link::error::chain;
use likeness_link::{Error, ErrorKind, Result};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::context::{Context, now_ms};
use super::executor::OpenRuns;
use super::leader::{Inbox, Input};
use super::retention::Held;
use super::{facts, releases};
use crate::core::outbox::Promotion;
use crate::core::promote::{self, Decision, Doubt, Readiness, Replaces, Wanted};

/// How often the searchers are looked at while they load.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Why there is no release.
#[derive(Debug)]
pub(super) enum NoRelease {
    /// It can't be made; in words.
    Refused(String),
    /// Store or broker.
    Link(Error),
}

impl From<Error> for NoRelease {
    fn from(error: Error) -> Self {
        Self::Link(error)
    }
}

/// Promotes what a pipeline made, and tells the core.
pub(super) async fn of_pipeline(cx: Arc<Context>, inbox: Inbox, open: OpenRuns, promotion: Promotion) {
    let Promotion { job, run, alias, generation, replaces, gate } = promotion;
    let wanted = Wanted {
        alias,
        job: Some(job.clone()),
        replaces: Replaces::Compared(replaces),
        rolls_back_to: None,
        model: job.clone(),
        generation,
        report: Some(job.clone()),
        gate: Some(gate.clone()),
    };
    let mut backoff = Backoff::default();
    let result = loop {
        match promote(&cx, &wanted, || open.contains(&job, run)).await {
            Ok(release) => break Ok(release.number),
            Err(NoRelease::Refused(why)) => break Err(why),
            Err(NoRelease::Link(error)) if error.is_transient() => backoff.wait("a promotion broke off", &error).await,
            Err(NoRelease::Link(error)) => break Err(chain(&error)),
        }
        if !open.contains(&job, run) {
            return;
        }
    };
    let _not_leading = inbox.send(Input::Promoted(job, run, Box::new(gate), result)).await;
}

/// Makes a release, or finds that its job made it before. `still_wanted` is asked once more right before the release
/// is created.
pub(super) async fn promote(
    cx: &Context,
    wanted: &Wanted,
    still_wanted: impl Fn() -> bool,
) -> std::result::Result<Release, NoRelease> {
    let lock = cx.promotion_lock(&wanted.alias);
    let _one_at_a_time = lock.lock().await;
    let releases = releases::of_alias(&cx.store, &wanted.alias).await?;
    let release = match promote::decide(&releases, wanted) {
        Decision::AlreadyMade(made) => {
            releases::tell(cx, &wanted.alias, &releases::state_of(releases.last())).await?;
            return Ok(*made);
        }
        Decision::MovedOn { newest, compared } => return Err(moved_on(&wanted.alias, newest, compared)),
        Decision::Make(release) => *release,
    };
    let serving = releases.last();
    let made = match &wanted.job {
        // Its run is open: that holds what it made.
        Some(_) => load_and_create(cx, serving, release, still_wanted).await,
        None => held_and_created(cx, serving, release, still_wanted).await,
    };
    match &made {
        Ok(release) => releases::tell(cx, &wanted.alias, &promote::serving(release)).await?,
        Err(_) => stop_loading(cx, &wanted.alias, serving).await,
    }
    made
}

/// The same where no run is open: the generation and its model are held until the release does that.
async fn held_and_created(
    cx: &Context,
    serving: Option<&Release>,
    release: Release,
    still_wanted: impl Fn() -> bool,
) -> std::result::Result<Release, NoRelease> {
    let report = release.report.as_ref().map(report_place);
    let places = [model_place(&release.model), generation_place(&release.generation)].into_iter().chain(report);
    let held = match Held::take(&cx.store, release.alias.as_str(), places.collect()).await? {
        Ok(held) => held,
        Err(place) => return Err(NoRelease::Refused(format!("`{place}` is being deleted by `likeness retention`"))),
    };
    let made = match missing(cx, &release).await {
        Ok(None) => load_and_create(cx, serving, release, still_wanted).await,
        Ok(Some(key)) => Err(NoRelease::Refused(format!("`{key}` is not in the store"))),
        Err(error) => Err(error.into()),
    };
    held.release(&cx.store).await;
    made
}

/// The manifest that a release needs and that is not there; embeddings from elsewhere have no model.
async fn missing(cx: &Context, release: &Release) -> Result<Option<String>> {
    let Some(manifest) = facts::generation_manifest(&cx.store, &release.generation).await? else {
        let GenerationRef { gallery, generation } = &release.generation;
        return Ok(Some(keys::generation_manifest(gallery, generation)));
    };
    let Some(embedder) = manifest.embedder() else { return Ok(None) };
    let model = keys::model_manifest(&embedder.model);
    Ok(cx.store.size(&model).await?.is_none().then_some(model))
}

async fn load_and_create(
    cx: &Context,
    serving: Option<&Release>,
    mut release: Release,
    still_wanted: impl Fn() -> bool,
) -> std::result::Result<Release, NoRelease> {
    let manifest_key = keys::generation_manifest(&release.generation.gallery, &release.generation.generation);
    let manifest: GenerationManifest = cx.store.require(&manifest_key).await?;
    let state = AliasState { serving: serving.map(promote::served), loading: Some(promote::served(&release)) };
    releases::tell(cx, &release.alias, &state).await?;
    release.warnings.extend(wait_for_searchers(cx, &manifest).await?);
    if !still_wanted() {
        return Err(NoRelease::Refused("its run was closed before the release was made".into()));
    }
    release.created_ms = now_ms();
    let key = keys::release(&release.alias, release.number);
    let adopted = cx.store.create_document(&key, &release).await?;
    let ours = adopted.created || (release.job.is_some() && adopted.document.job == release.job);
    if !ours {
        let newest = Some(adopted.document.number);
        return Err(moved_on(&release.alias, newest, release.replaces));
    }
    let Release { alias, number, .. } = &adopted.document;
    tracing::info!(%alias, release = number, "released");
    Ok(adopted.document)
}

/// Returns warnings for the release.
async fn wait_for_searchers(
    cx: &Context,
    manifest: &GenerationManifest,
) -> std::result::Result<Vec<String>, NoRelease> {
    let shards = u32::try_from(manifest.shards.len()).unwrap_or(u32::MAX);
    let limit = cx.settings.promotion_limit;
    let deadline = Instant::now() + limit;
    // A searcher that has just started, or a leader that has, is not seen yet.
    let seen_by_now = Instant::now() + cx.bus.timings().presence_every;
    let mut looked_at = BTreeSet::new();
    loop {
        let searchers = cx.roster.searchers();
        let placements = if searchers.is_empty() { Vec::new() } else { placements(cx).await? };
        let replicas = cx.settings.replicas;
        let missing = match promote::readiness(&manifest.generation, shards, replicas, &searchers, &placements) {
            Readiness::Ready => return Ok(Vec::new()),
            Readiness::NoSearchers if Instant::now() < seen_by_now => "no searcher is running".into(),
            Readiness::NoSearchers => return Ok(vec!["no searcher was running when it was promoted".into()]),
            Readiness::Missing(missing) => missing,
        };
        for doubt in promote::doubts(&manifest.generation, shards, &searchers, &placements) {
            if looked_at.contains(&doubt) {
                continue;
            }
            look_at(cx, manifest, &doubt).await?;
            looked_at.insert(doubt);
        }
        if Instant::now() >= deadline {
            let waited = limit.as_secs();
            return Err(NoRelease::Refused(format!("not loaded within {waited} s: {missing}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks at what a searcher can't load: an object that is damaged or gone here too will not heal by waiting.
async fn look_at(cx: &Context, manifest: &GenerationManifest, doubt: &Doubt) -> std::result::Result<(), NoRelease> {
    let looked = match doubt {
        Doubt::Kit => look_at_kit(cx, manifest).await,
        Doubt::Shard(shard) => match manifest.shards.iter().find(|entry| entry.shard == *shard) {
            Some(entry) => cx.store.read(&entry.object).await.map(drop),
            None => Ok(()),
        },
    };
    match looked {
        Err(error) if matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound) => {
            Err(NoRelease::Refused(format!("the searchers can't load it: {}", chain(&error))))
        }
        // Theirs may pass, and so may ours.
        _ => Ok(()),
    }
}

async fn look_at_kit(cx: &Context, manifest: &GenerationManifest) -> Result<()> {
    let Some(embedder) = manifest.embedder() else { return Ok(()) };
    let model: ModelManifest = cx.store.require(&keys::model_manifest(&embedder.model)).await?;
    cx.store.read(&model.weights).await.map(drop)
}

/// What every searcher holds, dead ones included.
pub(super) async fn placements(cx: &Context) -> Result<Vec<Placement>> {
    let kv = cx.bus.kv(PLACEMENT_BUCKET).await?;
    Ok(kv.entries::<Placement>().await?.into_iter().map(|entry| entry.value).collect())
}

/// Searchers may let go of what will not be served. Should that be lost, the next look at the aliases says it again.
async fn stop_loading(cx: &Context, alias: &Name, serving: Option<&Release>) {
    if let Err(error) = releases::tell(cx, alias, &releases::state_of(serving)).await {
        tracing::warn!(%alias, error = %chain(&error), "searchers were not told that a promotion ended");
    }
}

fn moved_on(alias: &Name, newest: Option<u64>, compared: Option<u64>) -> NoRelease {
    let release = |number: Option<u64>| number.map_or("no release".into(), |number| format!("release {number}"));
    let (newest, compared) = (release(newest), release(compared));
    NoRelease::Refused(format!("the newest of `{alias}` is {newest}, but this was compared with {compared}"))
}
