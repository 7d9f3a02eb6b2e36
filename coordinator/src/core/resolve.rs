//! What a request means: every version, size, seed and device class is fixed here, or the request is refused with
//! a reason that helps.
//!
//! Pure: what the store and the live workers say comes in as [`Facts`]. Two requests that resolve to the same spec
//! are the same job, which is why the default id is the digest of the spec.

use std::collections::{BTreeMap, BTreeSet};

use likeness_contract::codec;
use likeness_contract::documents::{DatasetManifest, GenerationManifest, ModelManifest, Release};
use likeness_contract::ids::{Digest, JobId, Name};
use likeness_contract::jobs::{
    AppendSource, Baseline, DatasetRef, DatasetSelector, DeviceClass, EmbedRequest, EmbedStage, EvaluateStage,
    GenerationRef, IngestSource, JobOptions, JobRequest, JobSpec, JobWork, RequestedWork, TrainRequest, TrainStage,
};
use likeness_contract::messages::{ApiError, ApiErrorKind};
use likeness_contract::names;
use likeness_contract::searches::{SearchFile, SearchStage};
use likeness_contract::settings::{
    BroughtQueries, InitWeights, ModelSettings, QueryEncoding, Split, TrainSettings, Vocabulary, log_probability_dim,
};

use super::validate::{self, MAX_NUMBERED};

/// What the store and the live workers say about the names in a request. What a request does not name stays empty.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Complete versions of every dataset, oldest first.
    pub versions: BTreeMap<Name, Vec<JobId>>,
    /// Manifests of the versions that [`chosen_version`] tells for the request.
    pub datasets: Vec<DatasetManifest>,
    /// Removals of the dataset that is to grow.
    pub removals: u64,
    /// All models.
    pub models: Vec<JobId>,
    /// The model that is named, or that made the generation that is named.
    pub model: Option<ModelManifest>,
    /// All generations.
    pub generations: Vec<GenerationRef>,
    /// The generation that is named.
    pub generation: Option<GenerationManifest>,
    /// All releases of the alias that is named, oldest first.
    pub releases: Vec<Release>,
    /// The generation of the release that [`compared_release`] tells.
    pub compared_generation: Option<GenerationManifest>,
    /// Its model.
    pub compared_model: Option<ModelManifest>,
    /// Size of the weights that a training starts from, if they are there.
    pub start_bytes: Option<u64>,
    /// Size of the user's own queries of an evaluation, if they are there.
    pub own_bytes: Option<u64>,
    /// Classes of the live devices that train.
    pub trainers: Vec<DeviceClass>,
    /// All aliases, where the one that is named has no release.
    pub aliases: Vec<Name>,
    /// Keys of parts of questions that are not in the store, or are of another size.
    pub missing_parts: Vec<String>,
}

/// A request that can be met.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The job's id.
    pub id: JobId,
    /// What will be done.
    pub spec: JobSpec,
}

/// Resolves a request, or says why it can't be met.
pub fn resolve(request: &JobRequest, facts: &Facts) -> Result<Resolved, ApiError> {
    let JobRequest { id, work, device, priority, options } = request;
    check(validate::options(options))?;
    let (work, device) = match work {
        RequestedWork::Ingest { dataset, source, part_rows } => {
            check(validate::source(source))?;
            check(validate::rows_per_file("part_rows", *part_rows))?;
            let source = resolve_source(dataset, source, facts)?;
            (JobWork::Ingest { dataset: dataset.clone(), source, part_rows: *part_rows }, *device)
        }
        RequestedWork::Train(train) => (JobWork::Train(resolve_train(train, facts)?), one_class(*device, facts)?),
        RequestedWork::Embed { model, embed } => {
            let (model, embed) = resolve_embed(model, embed, facts)?;
            (JobWork::Embed { model, embed }, *device)
        }
        RequestedWork::EmbedAnew { model, embed } => {
            let (model, embed) = resolve_embed(model, embed, facts)?;
            (JobWork::EmbedAnew { model, embed }, *device)
        }
        RequestedWork::Import(import) => {
            check(validate::import(import))?;
            (JobWork::Import(import.clone()), *device)
        }
        RequestedWork::Evaluate { generation, evaluate } => (resolve_evaluate(generation, evaluate, facts)?, *device),
        RequestedWork::Pipeline { train, embed, evaluate, alias } => {
            (resolve_pipeline(train, embed, evaluate, alias, facts)?, one_class(*device, facts)?)
        }
        RequestedWork::Search(file) => (resolve_search(file, facts)?, *device),
    };
    let spec = JobSpec { work, device, priority: *priority, options: options.clone() };
    let id = id.clone().unwrap_or_else(|| default_id(&spec));
    Ok(Resolved { id, spec })
}

/// `<kind>-<first digits of the spec's digest>`. A spec is written in the oldest version that says all of it, so a setting that is
/// new and left alone changes no id.
fn default_id(spec: &JobSpec) -> JobId {
    let digest = Digest::of(&codec::encode_document(&as_asked(spec)));
    JobId::new(format!("{}-{}", spec.work.kind(), digest.short())).expect("made of letters, digits and `-`")
}

/// The version that a selector means.
pub fn chosen_version(versions: &BTreeMap<Name, Vec<JobId>>, wanted: &DatasetSelector) -> Result<DatasetRef, ApiError> {
    let DatasetSelector { dataset, version } = wanted;
    let known = versions.get(dataset).filter(|known| !known.is_empty());
    let known = known.ok_or_else(|| not_found("dataset", dataset.as_str(), versions.keys().map(Name::as_str)))?;
    let version = match version {
        None => known.last().expect("checked above"),
        Some(version) if known.contains(version) => version,
        Some(version) => {
            let known = known.iter().map(JobId::as_str);
            return Err(lacks(&format!("dataset `{dataset}`"), "version", version.as_str(), known));
        }
    };
    Ok(DatasetRef { dataset: dataset.clone(), version: version.clone() })
}

/// The release that a pipeline is compared with: the newest.
pub fn compared_release(releases: &[Release]) -> Option<&Release> {
    releases.iter().max_by_key(|release| release.number)
}

/// Whether two specs do the same. The release that a pipeline is compared with follows from the moment it was
/// accepted, not from what was asked: the same pipeline asked again, after its own release, is the same job. So is the
/// same work that is to be carried out in another way.
pub fn same_job(a: &JobSpec, b: &JobSpec) -> bool {
    a == b || as_asked(a) == as_asked(b)
}

fn as_asked(spec: &JobSpec) -> JobSpec {
    let mut spec = JobSpec { options: JobOptions::default(), ..spec.clone() };
    if let JobWork::Pipeline { baseline, .. } = &mut spec.work {
        *baseline = None;
    }
    if let JobWork::Evaluate { evaluate, .. } | JobWork::Pipeline { evaluate, .. } = &mut spec.work {
        evaluate.settings.own.iter_mut().for_each(|own| own.source.clear());
    }
    if let JobWork::Train(TrainStage { train, .. }) | JobWork::Pipeline { train: TrainStage { train, .. }, .. } =
        &mut spec.work
    {
        // The same bytes are the same start, whatever their file was called.
        train.init.iter_mut().for_each(|init| init.source.clear());
    }
    spec
}

/// Datasets that a request names; a pipeline embeds the version that it trains on unless it says otherwise.
pub fn named_datasets(work: &RequestedWork) -> Vec<DatasetSelector> {
    match work {
        RequestedWork::Ingest { dataset, source: IngestSource::Append(append), .. } => {
            vec![DatasetSelector { dataset: dataset.clone(), version: append.base.clone() }]
        }
        RequestedWork::Ingest { .. }
        | RequestedWork::Import(_)
        | RequestedWork::Evaluate { .. }
        | RequestedWork::Search(_) => Vec::new(),
        RequestedWork::Train(train) => vec![train.dataset.clone()],
        RequestedWork::Embed { embed, .. } | RequestedWork::EmbedAnew { embed, .. } => vec![embed.dataset.clone()],
        RequestedWork::Pipeline { train, embed, .. } => vec![train.dataset.clone(), embed.dataset.clone()],
    }
}

/// What grows, and which removals it counts, is fixed here.
fn resolve_source(dataset: &Name, source: &IngestSource, facts: &Facts) -> Result<IngestSource, ApiError> {
    let IngestSource::Append(append) = source else { return Ok(source.clone()) };
    let wanted = DatasetSelector { dataset: dataset.clone(), version: append.base.clone() };
    let base = facts.dataset(&wanted)?.dataset.version.clone();
    let append = AppendSource { base: Some(base), removals: facts.removals, source: append.source.clone() };
    Ok(IngestSource::Append(Box::new(append)))
}

fn resolve_train(request: &TrainRequest, facts: &Facts) -> Result<TrainStage, ApiError> {
    let manifest = facts.dataset(&request.dataset)?;
    let (train_rows, validation_rows) = (manifest.rows(Split::Train), manifest.rows(Split::Validation));
    check(validate::vocabulary(&manifest.vocabulary))?;
    let model = with_dim(&request.model, manifest.vocabulary.len());
    check(validate::model(&model))?;
    check(validate::trainable(&model, &request.train, manifest.vocabulary.len()))?;
    check(validate::train(&request.train, train_rows, validation_rows))?;
    start_is_there(&request.train, facts)?;
    let mut train = request.train.clone();
    if let Some(plain) = train.optimizer.rounds().filter(|rounds| rounds.is_plain()) {
        // The same training must have the same id, however it was asked for.
        train.optimizer = plain.inner.into();
    }
    if request.model.encoding == QueryEncoding::MultiHot {
        // Multi-hot cannot tell "has not" from "not said", so it is never masked.
        train.masked_share = 0.0;
    }
    let stage = TrainStage {
        dataset: manifest.dataset.clone(),
        vocabulary: manifest.vocabulary.clone(),
        model,
        train,
        train_rows,
        validation_rows,
    };
    let (rounds, slots) = (u64::from(stage.rounds()), u64::from(stage.train.optimizer.slots()));
    let few = rounds.saturating_mul(slots) < MAX_NUMBERED;
    let of_slots = if slots > 1 { format!(" of {slots} slots") } else { String::new() };
    let refused = || format!("{rounds} rounds{of_slots}, expected below {MAX_NUMBERED} in all: raise `inner_steps`");
    check(few.then_some(()).ok_or_else(refused))?;
    Ok(stage)
}

/// The vocabulary decides the dimension of a space of log-probabilities.
fn with_dim(model: &ModelSettings, attributes: usize) -> ModelSettings {
    let open = model.encoding == QueryEncoding::LogProbability && model.embedding_dim == 0;
    let embedding_dim = if open { log_probability_dim(attributes) } else { model.embedding_dim };
    ModelSettings { embedding_dim, ..model.clone() }
}

/// The weights to start from are in the store already: workers anywhere read the same bytes.
fn start_is_there(train: &TrainSettings, facts: &Facts) -> Result<(), ApiError> {
    let Some(InitWeights { source, model, weights }) = &train.init else { return Ok(()) };
    let there = facts.start_bytes == Some(weights.bytes);
    let missing = || invalid(format!("the weights of `{source}` are not in the store as `{}`", weights.key));
    there.then_some(()).ok_or_else(missing)?;
    let Some(model) = model else { return Ok(()) };
    let manifest = facts.model(model)?;
    let own = manifest.weights == *weights;
    own.then_some(()).ok_or_else(|| invalid(format!("`{}` is not the weights of model `{model}`", weights.key)))
}

fn resolve_embed(model: &JobId, request: &EmbedRequest, facts: &Facts) -> Result<(JobId, EmbedStage), ApiError> {
    let manifest = facts.model(model)?;
    let dataset = facts.dataset(&request.dataset)?;
    same_vocabulary(&format!("model `{model}`"), &manifest.vocabulary, &dataset_name(dataset), &dataset.vocabulary)?;
    Ok((model.clone(), embed_stage(request, dataset)?))
}

fn embed_stage(request: &EmbedRequest, manifest: &DatasetManifest) -> Result<EmbedStage, ApiError> {
    let EmbedRequest { gallery, dataset: _, rows, shard_rows } = request;
    check(validate::rows_per_file("shard_rows", *shard_rows))?;
    let gallery_rows = manifest.rows(*rows);
    let (name, dataset) = (split_name(*rows), dataset_name(manifest));
    not_empty(gallery_rows, || format!("gallery `{gallery}` would be empty: {dataset} has no {name} rows"))?;
    let shards = gallery_rows.div_ceil(u64::from(*shard_rows));
    let few = shards < MAX_NUMBERED;
    check(few.then_some(()).ok_or(format!("{shards} shards, expected below {MAX_NUMBERED}: raise `shard_rows`")))?;
    let (gallery, dataset) = (gallery.clone(), manifest.dataset.clone());
    Ok(EmbedStage { gallery, dataset, rows: *rows, gallery_rows, shard_rows: *shard_rows })
}

/// The user's own queries are in the store already: workers anywhere read the same bytes.
fn own_queries_are_there(evaluate: &EvaluateStage, facts: &Facts) -> Result<(), ApiError> {
    let Some(BroughtQueries { source, object }) = &evaluate.settings.own else { return Ok(()) };
    let there = facts.own_bytes == Some(object.bytes);
    let missing = || invalid(format!("the queries of `{source}` are not in the store as `{}`", object.key));
    there.then_some(()).ok_or_else(missing)
}

fn resolve_evaluate(generation: &GenerationRef, evaluate: &EvaluateStage, facts: &Facts) -> Result<JobWork, ApiError> {
    check(validate::evaluate(&evaluate.settings))?;
    own_queries_are_there(evaluate, facts)?;
    if evaluate.settings.floor > 0.0 {
        return Err(invalid("a `floor` is of a pipeline's gate: an evaluation alone promotes nothing".into()));
    }
    let manifest = facts.generation(generation)?;
    let text = generation_name(generation);
    not_empty(manifest.total_rows(), || format!("{text} is empty"))?;
    check(covers(&text, manifest.rows, evaluate.rows))?;
    let Some(embedder) = manifest.embedder() else {
        let judged = (!manifest.vocabulary.is_empty()).then_some(());
        check(
            judged.ok_or(format!("{text} was imported without labels: nothing tells whether what is found is right")),
        )?;
        return Ok(JobWork::Evaluate { generation: generation.clone(), evaluate: evaluate.clone() });
    };
    let model = facts.model(&embedder.model)?;
    let whose = format!("model `{}`", model.model);
    same_vocabulary(&whose, &model.vocabulary, &text, &manifest.vocabulary)?;
    let (trained, embedded) = (model.settings.embedding_dim, manifest.embedding_dim);
    if trained != embedded {
        return Err(invalid(format!("{whose} has dimension {trained}, but {text} has dimension {embedded}")));
    }
    Ok(JobWork::Evaluate { generation: generation.clone(), evaluate: evaluate.clone() })
}

/// The newest release answers, whatever is promoted meanwhile.
fn resolve_search(file: &SearchFile, facts: &Facts) -> Result<JobWork, ApiError> {
    let SearchFile { alias, parts } = file;
    check(validate::questions(parts))?;
    let release = compared_release(&facts.releases);
    let release = release.ok_or_else(|| not_found("alias", alias.as_str(), facts.aliases.iter().map(Name::as_str)))?;
    let whose = format!("release {} of `{alias}`", release.number);
    let generation = facts.compared_generation.as_ref().filter(|found| found.generation == release.generation);
    let generation = generation.ok_or_else(|| gone(&whose, &generation_name(&release.generation)))?;
    if generation.embedder().is_some() {
        let model = facts.compared_model.as_ref().filter(|found| found.model == release.model);
        model.ok_or_else(|| gone(&whose, &format!("model `{}`", release.model)))?;
    }
    if let Some(key) = facts.missing_parts.first() {
        return Err(invalid(format!("part `{key}` of the file of questions is not in the store")));
    }
    let Release { number, model, generation, .. } = release.clone();
    Ok(JobWork::Search(SearchStage { alias: alias.clone(), release: number, model, generation, parts: parts.clone() }))
}

fn resolve_pipeline(
    train: &TrainRequest,
    embed: &EmbedRequest,
    evaluate: &EvaluateStage,
    alias: &Name,
    facts: &Facts,
) -> Result<JobWork, ApiError> {
    let train = resolve_train(train, facts)?;
    let dataset = facts.embedded_dataset(&train, embed)?;
    let trained = format!("dataset `{}` version `{}`", train.dataset.dataset, train.dataset.version);
    same_vocabulary(&trained, &train.vocabulary, &dataset_name(dataset), &dataset.vocabulary)?;
    let embed = embed_stage(embed, dataset)?;
    check(validate::evaluate(&evaluate.settings))?;
    own_queries_are_there(evaluate, facts)?;
    check(covers(&format!("gallery `{}`", embed.gallery), embed.rows, evaluate.rows))?;
    not_empty(dataset.rows(evaluate.rows), || {
        format!("nothing to evaluate: {} has no {} rows", dataset_name(dataset), split_name(evaluate.rows))
    })?;
    let compared = compared_release(&facts.releases);
    let baseline = compared.map(|release| baseline(release, &train.vocabulary, &embed, facts)).transpose()?;
    Ok(JobWork::Pipeline { train, embed, evaluate: evaluate.clone(), alias: alias.clone(), baseline })
}

/// The release's own generation where it has the rows of the new one, else one that the pipeline makes.
fn baseline(
    release: &Release,
    vocabulary: &Vocabulary,
    embed: &EmbedStage,
    facts: &Facts,
) -> Result<Baseline, ApiError> {
    let whose = format!("release {} of `{}`", release.number, release.alias);
    let model = facts.compared_model.as_ref().filter(|model| model.model == release.model);
    let generation = facts.compared_generation.as_ref().filter(|g| g.generation == release.generation);
    if generation.is_some_and(|generation| generation.embedder().is_none()) {
        return Err(invalid(format!(
            "{whose} serves embeddings that were made elsewhere, with which nothing can be compared: give another `--alias`"
        )));
    }
    let model = model.ok_or_else(|| gone(&whose, &format!("model `{}`", release.model)))?;
    same_vocabulary(&whose, &model.vocabulary, "the new dataset", vocabulary)?;
    let of_the_same = |g: &&GenerationManifest| g.embedder().is_some_and(|e| e.dataset == embed.dataset);
    let own = generation.filter(of_the_same).filter(|g| g.rows == embed.rows);
    let (release, model) = (release.number, release.model.clone());
    Ok(match own {
        Some(own) => Baseline { release, model, generation: own.generation.clone(), embed: false },
        None => {
            let generation = baseline_generation(&model, embed);
            Baseline { release, model, generation, embed: true }
        }
    })
}

/// Named by its content, so that the id of a job can be the digest of a spec that holds it.
fn baseline_generation(model: &JobId, embed: &EmbedStage) -> GenerationRef {
    let EmbedStage { gallery, dataset, rows, gallery_rows: _, shard_rows } = embed;
    let DatasetRef { dataset, version } = dataset;
    let text = format!("{model} {dataset} {version} {} {shard_rows}", split_name(*rows));
    let id = format!("baseline-{}", Digest::of(text.as_bytes()).short());
    let generation = JobId::new(id).expect("made of letters, digits and `-`");
    GenerationRef { gallery: gallery.clone(), generation }
}

/// Training runs on one class of device, so that a repeated slot gives the same bytes.
fn one_class(asked: DeviceClass, facts: &Facts) -> Result<DeviceClass, ApiError> {
    if asked != DeviceClass::Any {
        return Ok(asked);
    }
    let fastest_first = [DeviceClass::Cuda, DeviceClass::Metal, DeviceClass::Cpu];
    let live = fastest_first.into_iter().find(|class| facts.trainers.contains(class));
    live.ok_or_else(|| {
        let message = "no worker that trains is running, so `any` device means none: start one or name a device class";
        ApiError { kind: ApiErrorKind::Unavailable, message: message.into(), nearest: Vec::new() }
    })
}

impl Facts {
    fn dataset(&self, wanted: &DatasetSelector) -> Result<&DatasetManifest, ApiError> {
        let chosen = chosen_version(&self.versions, wanted)?;
        self.dataset_version(&chosen)
    }

    fn dataset_version(&self, chosen: &DatasetRef) -> Result<&DatasetManifest, ApiError> {
        let found = self.datasets.iter().find(|manifest| manifest.dataset == *chosen);
        found.ok_or_else(|| gone(&format!("dataset `{}`", chosen.dataset), &format!("version `{}`", chosen.version)))
    }

    fn embedded_dataset(&self, train: &TrainStage, embed: &EmbedRequest) -> Result<&DatasetManifest, ApiError> {
        let DatasetSelector { dataset, version } = &embed.dataset;
        if version.is_none() && *dataset == train.dataset.dataset {
            return self.dataset_version(&train.dataset);
        }
        self.dataset(&embed.dataset)
    }

    fn model(&self, model: &JobId) -> Result<&ModelManifest, ApiError> {
        let found = self.model.as_ref().filter(|manifest| manifest.model == *model);
        found.ok_or_else(|| not_found("model", model.as_str(), self.models.iter().map(JobId::as_str)))
    }

    fn generation(&self, wanted: &GenerationRef) -> Result<&GenerationManifest, ApiError> {
        let found = self.generation.as_ref().filter(|manifest| manifest.generation == *wanted);
        found.ok_or_else(|| unknown_generation(wanted, &self.generations))
    }
}

/// The gallery has the rows that are to be evaluated.
fn covers(what: &str, held: Split, asked: Split) -> validate::Checked {
    if held == Split::All || held == asked {
        return Ok(());
    }
    Err(format!("{what} holds the {} rows, so {} rows can't be evaluated in it", split_name(held), split_name(asked)))
}

fn not_empty(rows: u64, otherwise: impl FnOnce() -> String) -> Result<(), ApiError> {
    if rows > 0 { Ok(()) } else { Err(invalid(otherwise())) }
}

/// Names the first attribute that differs.
fn same_vocabulary(a_name: &str, a: &Vocabulary, b_name: &str, b: &Vocabulary) -> Result<(), ApiError> {
    if a == b {
        return Ok(());
    }
    let (a_len, b_len) = (a.len(), b.len());
    let differs = (0..a_len.min(b_len)).find(|i| a.names[*i] != b.names[*i]);
    let detail = match differs {
        Some(i) => format!("attribute {i} is `{}` there and `{}` here", a.names[i], b.names[i]),
        None => format!("{a_len} attributes there, {b_len} here"),
    };
    Err(invalid(format!("{a_name} has another vocabulary than {b_name}: {detail}")))
}

fn dataset_name(manifest: &DatasetManifest) -> String {
    format!("dataset `{}` version `{}`", manifest.dataset.dataset, manifest.dataset.version)
}

fn generation_name(generation: &GenerationRef) -> String {
    format!("generation `{}` of gallery `{}`", generation.generation, generation.gallery)
}

fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "train",
        Split::Validation => "validation",
        Split::Test => "test",
        Split::All => "all",
    }
}

fn check(checked: validate::Checked) -> Result<(), ApiError> {
    checked.map_err(invalid)
}

fn invalid(message: String) -> ApiError {
    ApiError { kind: ApiErrorKind::Invalid, message, nearest: Vec::new() }
}

fn gone(whose: &str, what: &str) -> ApiError {
    let message = format!("{what} of {whose} is not in the store");
    ApiError { kind: ApiErrorKind::NotFound, message, nearest: Vec::new() }
}

/// The release that a rollback brings back: the one before what serves unless a number says otherwise. `releases` are
/// those of one alias, oldest first.
pub fn rollback_target(releases: &[Release], to: Option<u64>) -> Result<&Release, ApiError> {
    let Some(newest) = releases.last() else { return Err(invalid("there is no release to roll back".into())) };
    let Release { alias, number: newest, .. } = newest;
    let wanted = to.unwrap_or_else(|| before(releases));
    if wanted == *newest {
        return Err(invalid(format!("release {newest} of `{alias}` is the newest one already")));
    }
    let found = releases.iter().find(|release| release.number == wanted);
    found.ok_or_else(|| {
        let message = match to {
            Some(_) => format!("`{alias}` has no release {wanted}, only 1 to {newest}"),
            None => format!("`{alias}` serves its first release, there is none before it"),
        };
        ApiError { kind: ApiErrorKind::NotFound, message, nearest: Vec::new() }
    })
}

/// The number of the release before the one that serves. What a rollback brought back counts as what it was: a
/// second rollback goes one further back.
fn before(releases: &[Release]) -> u64 {
    let of = |number| releases.iter().find(|release| release.number == number);
    let mut serving = releases.last();
    while let Some(original) = serving.and_then(|release| of(release.rolls_back_to?)) {
        serving = Some(original);
    }
    serving.map_or(0, |release| release.replaces.unwrap_or(release.number - 1))
}

/// A name that nobody has, answered with the nearest that somebody has.
pub fn not_found<'a>(what: &str, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> ApiError {
    let nearest = names::nearest(wrong, known);
    let message = format!("no {what} `{wrong}`{}", names::hint(&nearest));
    ApiError { kind: ApiErrorKind::NotFound, message, nearest }
}

/// A generation that nobody made: the gallery's name is wrong, or the generation.
pub fn unknown_generation(wanted: &GenerationRef, known: &[GenerationRef]) -> ApiError {
    let GenerationRef { gallery, generation } = wanted;
    let in_gallery: Vec<&str> = known.iter().filter(|g| g.gallery == *gallery).map(|g| g.generation.as_str()).collect();
    if in_gallery.is_empty() {
        let galleries: BTreeSet<&str> = known.iter().map(|g| g.gallery.as_str()).collect();
        return not_found("gallery", gallery.as_str(), galleries);
    }
    lacks(&format!("gallery `{gallery}`"), "generation", generation.as_str(), in_gallery)
}

/// A name that is not among those of something that there is.
fn lacks<'a>(whose: &str, what: &str, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> ApiError {
    let nearest = names::nearest(wrong, known);
    let message = format!("{whose} has no {what} `{wrong}`{}", names::hint(&nearest));
    ApiError { kind: ApiErrorKind::NotFound, message, nearest }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
