//! What the store says about the names in a request. Only what the request names is read; lists of names are read
//! when one of them turns out to be wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use likeness_contract::documents::{GenerationManifest, ModelManifest, ObjectRef};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{
    DatasetRef, DeviceClass, EvaluateStage, GenerationRef, JobRequest, JobSpec, RequestedWork,
};
use likeness_contract::keys;
use likeness_contract::searches::{QuestionPart, SearchFile};
use likeness_contract::settings::{InitWeights, TrainSettings};
use likeness_link::error::chain;
use likeness_link::{Result, Store, removals};
use tokio::time::Instant;

use super::context::Context;
use super::events::ask;
use super::leader::Inbox;
use super::releases;
use crate::core::earlier;
use crate::core::resolve::{self, Facts};

/// Folder of galleries.
const GALLERIES: &str = "galleries";
/// How long a request that needs a worker waits for the first one to be seen.
const FIRST_WORKER: Duration = Duration::from_secs(3);
/// Objects whose size is asked for at once.
const LOOKS_AT_ONCE: usize = 16;
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The facts that a request needs.
pub(super) async fn gather(cx: &Context, inbox: &Inbox, request: &JobRequest) -> Result<Facts> {
    let store = &cx.store;
    let mut facts = Facts::default();
    let named = resolve::named_datasets(&request.work);
    if !named.is_empty() {
        let names: Vec<&Name> = named.iter().map(|selector| &selector.dataset).collect();
        facts.versions = versions(store, inbox, &names).await?;
        for chosen in named.iter().filter_map(|named| resolve::chosen_version(&facts.versions, named).ok()) {
            facts.datasets.extend(dataset(store, &chosen).await?);
        }
    }
    match &request.work {
        RequestedWork::Ingest { dataset, .. } => facts.removals = removals::newest(store, dataset).await?,
        RequestedWork::Import(_) => {}
        RequestedWork::Train(train) => {
            facts.trainers = trainers(cx, request.device).await;
            add_start(store, &train.train, &mut facts).await?;
        }
        RequestedWork::Embed { model, .. } | RequestedWork::EmbedAnew { model, .. } => {
            add_model(store, model, &mut facts).await?
        }
        RequestedWork::Evaluate { generation, evaluate } => {
            add_own_queries(store, evaluate, &mut facts).await?;
            facts.generation = generation_manifest(store, generation).await?;
            match &facts.generation {
                Some(manifest) => {
                    if let Some(embedder) = manifest.embedder().cloned() {
                        add_model(store, &embedder.model, &mut facts).await?;
                    }
                }
                None => facts.generations = generations(store).await?,
            }
        }
        RequestedWork::Pipeline { train, evaluate, alias, .. } => {
            add_own_queries(store, evaluate, &mut facts).await?;
            facts.trainers = trainers(cx, request.device).await;
            add_start(store, &train.train, &mut facts).await?;
            add_release(store, alias, &mut facts).await?;
        }
        RequestedWork::Search(SearchFile { alias, parts }) => {
            add_release(store, alias, &mut facts).await?;
            if facts.releases.is_empty() {
                let folders = store.children(keys::RELEASES).await?;
                facts.aliases = folders.into_iter().filter_map(|folder| Name::new(folder).ok()).collect();
            }
            facts.missing_parts = missing(store, parts).await?;
        }
    }
    Ok(facts)
}

/// What a job's embeddings copy from: `(target, earlier)`, for `planner::copy_from`.
pub(super) async fn earlier(
    store: &Store,
    inbox: &Inbox,
    job: &JobId,
    spec: &JobSpec,
) -> Result<Vec<(GenerationRef, GenerationRef)>> {
    let mut earlier = Vec::new();
    for wanted in earlier::copying(job, spec) {
        let asked = wanted.clone();
        let candidates = move |core: &crate::core::reactor::Reactor| {
            earlier::candidates(core.jobs().flat_map(earlier::embedded), &asked)
        };
        for candidate in ask(inbox, candidates).await.unwrap_or_default() {
            let manifest = generation_manifest(store, &candidate).await;
            match manifest {
                Ok(Some(_)) => {
                    earlier.push((wanted.generation, candidate));
                    break;
                }
                // It was never finished, or it is collected; one that can't be read is of no use either.
                Ok(None) => {}
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => tracing::warn!(error = %chain(&error), "an earlier generation is of no use"),
            }
        }
    }
    Ok(earlier)
}

/// Every dataset, with the complete versions of those that are named.
pub(super) async fn versions(store: &Store, inbox: &Inbox, named: &[&Name]) -> Result<BTreeMap<Name, Vec<JobId>>> {
    let mut versions = BTreeMap::new();
    for name in dataset_names(store).await? {
        if !named.contains(&&name) {
            versions.insert(name, Vec::new());
            continue;
        }
        let complete = complete_versions(store, inbox, &name).await?;
        if !complete.is_empty() {
            versions.insert(name, complete);
        }
    }
    Ok(versions)
}

/// All datasets, complete or not.
pub(super) async fn dataset_names(store: &Store) -> Result<Vec<Name>> {
    let folders = store.children(keys::DATASETS).await?;
    Ok(folders.into_iter().filter_map(|folder| Name::new(folder).ok()).collect())
}

/// Versions of a dataset that have a manifest, in the order in which their jobs were accepted.
pub(super) async fn complete_versions(store: &Store, inbox: &Inbox, dataset: &Name) -> Result<Vec<JobId>> {
    let listed = store.list(&format!("{}/{dataset}", keys::DATASETS)).await?;
    let version = |key: &String| {
        let (folder, file) = key.rsplit_once('/')?;
        let version = folder.rsplit('/').next().filter(|_| file == "manifest.json")?;
        JobId::new(version).ok()
    };
    let versions: Vec<JobId> = listed.iter().filter_map(version).collect();
    let by_age = move |core: &crate::core::reactor::Reactor| {
        let mut versions = versions;
        versions.sort_by_cached_key(|version| (core.job(version).map(|job| job.accepted_ms), version.clone()));
        versions
    };
    Ok(ask(inbox, by_age).await.unwrap_or_default())
}

/// The manifest of a dataset version.
pub(super) async fn dataset(
    store: &Store,
    version: &DatasetRef,
) -> Result<Option<likeness_contract::documents::DatasetManifest>> {
    store.document(&keys::dataset_manifest(&version.dataset, &version.version)).await
}

/// The manifest of a generation.
pub(super) async fn generation_manifest(
    store: &Store,
    generation: &GenerationRef,
) -> Result<Option<GenerationManifest>> {
    store.document(&keys::generation_manifest(&generation.gallery, &generation.generation)).await
}

/// The manifest of a model.
pub(super) async fn model(store: &Store, model: &JobId) -> Result<Option<ModelManifest>> {
    store.document(&keys::model_manifest(model)).await
}

/// The releases of an alias, with model and generation of the newest.
async fn add_release(store: &Store, alias: &Name, facts: &mut Facts) -> Result<()> {
    facts.releases = releases::of_alias(store, alias).await?;
    if let Some(release) = resolve::compared_release(&facts.releases) {
        facts.compared_model = model(store, &release.model).await?;
        facts.compared_generation = generation_manifest(store, &release.generation).await?;
    }
    Ok(())
}

/// Bytes of an object that a request names. Nothing lies at a key without a name, and not every store says so.
async fn size(store: &Store, key: &str) -> Result<Option<u64>> {
    if key.is_empty() { Ok(None) } else { store.size(key).await }
}

/// Parts of questions that are not there as they are said to be. Sizes tell: a task checks the digest.
async fn missing(store: &Store, parts: &[QuestionPart]) -> Result<Vec<String>> {
    let look = |part: &QuestionPart| {
        let ObjectRef { key, bytes, digest: _ } = part.object.clone();
        async move { Ok((size(store, &key).await? != Some(bytes)).then_some(key)) }
    };
    let looks: Vec<_> = parts.iter().map(look).collect();
    let found: Vec<Option<String>> = futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// What is known of the weights that a training starts from.
async fn add_start(store: &Store, train: &TrainSettings, facts: &mut Facts) -> Result<()> {
    let Some(InitWeights { source: _, model, weights }) = &train.init else { return Ok(()) };
    facts.start_bytes = size(store, &weights.key).await?;
    if let Some(model) = model {
        add_model(store, model, facts).await?;
    }
    Ok(())
}

/// What is known of the user's own queries.
async fn add_own_queries(store: &Store, evaluate: &EvaluateStage, facts: &mut Facts) -> Result<()> {
    if let Some(own) = &evaluate.settings.own {
        facts.own_bytes = size(store, &own.object.key).await?;
    }
    Ok(())
}

async fn add_model(store: &Store, id: &JobId, facts: &mut Facts) -> Result<()> {
    facts.model = model(store, id).await?;
    if facts.model.is_none() {
        let folders = store.children(keys::MODELS).await?;
        facts.models = folders.into_iter().filter_map(|folder| JobId::new(folder).ok()).collect();
    }
    Ok(())
}

/// All generations, complete or not.
pub(super) async fn generations(store: &Store) -> Result<Vec<GenerationRef>> {
    let mut generations = Vec::new();
    for folder in store.children(GALLERIES).await? {
        let Ok(gallery) = Name::new(folder) else { continue };
        let below = store.children(&format!("{GALLERIES}/{gallery}")).await?;
        let made = below.into_iter().filter_map(|generation| JobId::new(generation).ok());
        generations.extend(made.map(|generation| GenerationRef { gallery: gallery.clone(), generation }));
    }
    Ok(generations)
}

/// Classes of live devices that train. Who asks for any right after a start gets the first worker's.
async fn trainers(cx: &Context, asked: DeviceClass) -> Vec<DeviceClass> {
    let deadline = Instant::now() + FIRST_WORKER;
    loop {
        let trainers = cx.roster.trainers();
        if asked != DeviceClass::Any || !trainers.is_empty() || Instant::now() >= deadline {
            return trainers;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
