//! Searchers over a real broker and a store with hand-made generations.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "search/explained.rs"]
mod explained;
#[path = "search/files.rs"]
mod files;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use likeness_contract::codec::{self, Encoding};
use likeness_contract::documents::{
    DatasetManifest, Embedder, GenerationManifest, ModelManifest, ObjectRef, Origin, PartEntry, ShardEntry,
};
use likeness_contract::ids::{Digest, JobId, Name, WorkerId};
use likeness_contract::jobs::{DatasetRef, GenerationRef};
use likeness_contract::keys;
use likeness_contract::messages::{AliasState, Placement, Served};
use likeness_contract::ranking::{canonical_d2, rank};
use likeness_contract::search::{
    Coverage, Hit, LabelFilter, SearchError, SearchErrorKind, SearchReply, SearchRequest, SearchResults, Term,
    WeightedTerm,
};
use likeness_contract::settings::{
    Architecture, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings, Vocabulary,
};
use likeness_contract::subjects;
use likeness_index::{Approximate, Shard, ShardRows, encode_shard};
use likeness_link::{Bus, NatsSettings, Store, Timings};
use likeness_model::{Model, Winograd, encode_query};
use likeness_worker::args::{DeviceName, Settings};
use likeness_worker::runtime::shutdown::Shutdown;
use likeness_worker::runtime::{self, Leaving};
use likeness_worker::search::settings::SearchSettings;

const DIM: usize = 24;
const SHARDS: u32 = 5;
const SHARD_ROWS: usize = 300;
/// Presence dies after so long.
const PRESENCE: Duration = Duration::from_millis(5000);
/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker and a store of a test's own.
struct Bench {
    store: Store,
    bus: Bus,
    nats: NatsSettings,
    server: Child,
    folder: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Bench {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(nats_server())
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(folder.path().join("nats"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let timings = Timings::from_ack_wait(PRESENCE, PRESENCE);
        let nats = NatsSettings { url: format!("nats://127.0.0.1:{port}"), credentials: None, ca: None, timings };
        let bus = until(async || Bus::connect(&nats, "test").await.ok()).await;
        bus.ensure_topology().await.unwrap();
        let store = Store::open(folder.path().join("store").to_str().unwrap()).await.unwrap();
        Self { store, bus, nats, server, folder }
    }

    fn searcher(&self, name: &str, replicas: usize) -> Searcher {
        self.searcher_that_keeps(name, replicas, Duration::from_secs(600))
    }

    fn searcher_that_keeps(&self, name: &str, replicas: usize, keep_generation: Duration) -> Searcher {
        self.searcher_with(name, SearchSettings::new(replicas, keep_generation))
    }

    fn searcher_with(&self, name: &str, search: SearchSettings) -> Searcher {
        let settings = Settings {
            worker: WorkerId::new(name).unwrap(),
            kinds: vec![],
            searches: true,
            device: DeviceName::Cpu,
            threads: 1,
            winograd: Winograd::default(),
            cache_bytes: 0,
            approximate_rows: None,
            grace_period: Duration::from_secs(5),
            store: self.folder.path().join("store").to_str().unwrap().into(),
            nats: self.nats.clone(),
            host: "test".into(),
            search,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = Shutdown::default();
        let running = runtime.spawn(runtime::run(settings, Device::Cpu, shutdown.clone()));
        Searcher { runtime: Some(runtime), shutdown, running }
    }

    async fn alias(&self, serving: Option<Served>, loading: Option<Served>) {
        let aliases = self.bus.kv(subjects::ALIASES_BUCKET).await.unwrap();
        aliases.put("production", &AliasState { serving, loading }).await.unwrap();
    }

    async fn placements(&self) -> Vec<Placement> {
        let bucket = self.bus.kv(subjects::PLACEMENT_BUCKET).await.unwrap();
        bucket.entries::<Placement>().await.unwrap().into_iter().map(|entry| entry.value).collect()
    }

    /// Waits until `searchers` announce shards, and every shard of the generation `replicas` times.
    async fn placed(&self, generation: &GenerationRef, searchers: usize, replicas: usize) {
        until(async || {
            let placements = self.placements().await;
            let held = placements.iter().flat_map(|placement| &placement.held);
            let held: Vec<_> = held.filter(|held| held.generation == *generation && !held.shards.is_empty()).collect();
            let holders = |shard| held.iter().filter(|held| held.shards.contains(&shard)).count();
            (held.len() == searchers && (0..SHARDS).all(|shard| holders(shard) == replicas)).then_some(())
        })
        .await
    }

    async fn ask(&self, request: &SearchRequest) -> Result<SearchResults, SearchError> {
        let patience = Duration::from_millis(u64::from(request.deadline_ms) + 200);
        match self.bus.request(subjects::SEARCH.into(), request, patience).await {
            Ok(SearchReply::Found(results)) => Ok(*results),
            Ok(SearchReply::Error(error)) => Err(error),
            Err(error) => {
                let (kind, message) = (SearchErrorKind::Unavailable, error.to_string());
                Err(SearchError { kind, message, nearest: vec![] })
            }
        }
    }

    /// Asks until the answer covers the whole gallery.
    async fn ask_all(&self, request: &SearchRequest) -> SearchResults {
        let request = SearchRequest { min_coverage: 1.0, ..request.clone() };
        until(async || self.ask(&request).await.ok()).await
    }

    /// Stores a generation of random rows and the model that embeds its queries.
    async fn generation(&self, name: &str, seed: u64) -> Generation {
        self.generation_of(name, seed, (0..SHARDS).map(|number| shard_rows(number, seed)).collect()).await
    }

    async fn generation_of(&self, name: &str, seed: u64, slices: Vec<ShardRows>) -> Generation {
        let job = JobId::new(name).unwrap();
        let gallery = Name::new("faces").unwrap();
        let dataset = self.dataset().await;
        let (model, model_manifest) = self.model(&job, &dataset, seed).await;
        let (mut shards, mut rows) = (Vec::new(), Vec::new());
        for (number, shard) in (0..).zip(slices) {
            rows.extend(shard.item_ids.iter().cloned().zip(shard.embeddings.chunks(DIM).map(<[f32]>::to_vec)));
            let bytes = Bytes::from(encode_shard(&shard, DIM, vocabulary().len()).unwrap());
            let digest = Digest::of(&bytes);
            let key = keys::shard(&gallery, &job, number, &digest);
            let object = self.store.create_object(key, bytes, digest).await.unwrap();
            let count = shard.len() as u64;
            let approximate = self.index(&gallery, &job, number, shard, &digest).await;
            shards.push(ShardEntry { shard: number, object, rows: count, approximate });
        }
        let key = keys::generation_manifest(&gallery, &job);
        let manifest = GenerationManifest {
            generation: GenerationRef { gallery, generation: job.clone() },
            origin: Origin::Model(Embedder { model: job, weights: model_manifest.weights.digest, dataset }),
            rows: Split::All,
            embedding_dim: DIM as u32,
            vocabulary: vocabulary(),
            shards,
            skipped: vec![],
        };
        self.store.create_document(&key, &manifest).await.unwrap();
        Generation { reference: manifest.generation.clone(), manifest, model, rows }
    }

    /// Stores the approximate index of a shard that is large enough to have one.
    async fn index(
        &self,
        gallery: &Name,
        job: &JobId,
        number: u32,
        rows: ShardRows,
        shard_digest: &Digest,
    ) -> Option<ObjectRef> {
        let shard = Shard::new(number, rows, DIM, vocabulary().len()).unwrap().with_codes().unwrap();
        let bytes = Bytes::from(Approximate::build(&shard).unwrap()?.encode(&shard, shard_digest.as_bytes()));
        let digest = Digest::of(&bytes);
        let key = keys::approximate(gallery, job, number, &digest);
        Some(self.store.create_object(key, bytes, digest).await.unwrap())
    }

    async fn dataset(&self) -> DatasetRef {
        let dataset = DatasetRef { dataset: Name::new("faces").unwrap(), version: JobId::new("ingest").unwrap() };
        let rows = SHARD_ROWS as u64;
        let part = |number: u32| PartEntry { object: object(part_key(number)), rows, split_rows: [rows, 0, 0] };
        let manifest = DatasetManifest {
            dataset: dataset.clone(),
            vocabulary: vocabulary(),
            parts: (0..SHARDS).map(part).collect(),
            skipped: vec![],
            warnings: vec![],
        };
        let key = keys::dataset_manifest(&dataset.dataset, &dataset.version);
        self.store.create_document(&key, &manifest).await.unwrap();
        dataset
    }

    async fn model(&self, job: &JobId, dataset: &DatasetRef, seed: u64) -> (Model, ModelManifest) {
        let settings = ModelSettings {
            architecture: Architecture::CnnS,
            embedding_dim: DIM as u32,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(32),
        };
        let model = Model::fresh(&settings, vocabulary().len(), seed, &Device::Cpu).unwrap();
        let bytes = Bytes::from(model.weights().unwrap());
        let digest = Digest::of(&bytes);
        let weights = self.store.create_object(keys::weights(job, &digest), bytes, digest).await.unwrap();
        let manifest = ModelManifest {
            model: job.clone(),
            settings,
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: dataset.clone(),
            checkpoint: weights.clone(),
            weights,
            distance: "euclidean".into(),
            steps: 0,
            validation_loss: None,
            training: object("training".into()),
            tensorboard: object("events".into()),
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        };
        self.store.create_document(&keys::model_manifest(job), &manifest).await.unwrap();
        (model, manifest)
    }
}

/// A searcher on an async runtime of its own, so that it can be killed.
struct Searcher {
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<Result<Leaving, runtime::StartError>>,
}

impl Searcher {
    /// Ends it as SIGKILL does: in the middle of everything, without a farewell.
    fn kill(self) {}

    /// How it ends by itself.
    async fn ended(mut self) -> Result<Leaving, runtime::StartError> {
        (&mut self.running).await.unwrap()
    }

    /// Ends it as SIGTERM does.
    async fn leave(mut self) {
        self.shutdown.leaving.cancel();
        assert_eq!((&mut self.running).await.unwrap().unwrap(), Leaving::Asked);
    }
}

impl Drop for Searcher {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Generation {
    reference: GenerationRef,
    manifest: GenerationManifest,
    model: Model,
    rows: Vec<(String, Vec<f32>)>,
}

impl Generation {
    fn served(&self, release: u64) -> Served {
        Served { release, model: self.reference.generation.clone(), generation: self.reference.clone() }
    }

    fn embedding(&self, item: &str) -> &[f32] {
        &self.rows.iter().find(|row| row.0 == item).unwrap().1
    }

    /// The oracle: all rows by distance and id, without `left_out`.
    fn nearest(&self, query: &[f32], k: usize, left_out: &str) -> Vec<(String, f64)> {
        let kept = self.rows.iter().filter(|(item, _)| item != left_out);
        let mut all: Vec<_> = kept.map(|(item, row)| (item.clone(), canonical_d2(query, row))).collect();
        all.sort_by(|a, b| rank((a.1, &a.0), (b.1, &b.0)));
        all.into_iter().take(k).map(|(item, d2)| (item, d2.sqrt())).collect()
    }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: ["Smiling", "Male", "Eyeglasses"].map(String::from).to_vec() }
}

fn part_key(number: u32) -> String {
    format!("datasets/faces/ingest/part-{number:05}.parquet")
}

fn object(key: String) -> ObjectRef {
    ObjectRef { key, digest: Digest::of(b""), bytes: 0 }
}

/// Rows of which every third has a twin in the shard before: equal distances, other ids.
fn shard_rows(number: u32, seed: u64) -> ShardRows {
    let vector = |shard: u32, row: usize| -> Vec<f32> {
        let byte = |i: usize| Digest::of(format!("{seed}/{shard}/{row}/{i}").as_bytes()).as_bytes()[0];
        unit(&(0..DIM).map(|i| f32::from(byte(i)) - 127.5).collect::<Vec<_>>())
    };
    let source = |row: usize| if row.is_multiple_of(3) { number.saturating_sub(1) } else { number };
    let rows = 0..SHARD_ROWS;
    ShardRows {
        item_ids: rows.clone().map(|row| format!("{:06}.jpg", row * SHARDS as usize + number as usize)).collect(),
        embeddings: rows.clone().flat_map(|row| vector(source(row), row)).collect(),
        labels: rows.clone().flat_map(|row| [1, -1, (row % 3) as i8 - 1]).collect(),
        split: rows.clone().map(|row| if row.is_multiple_of(4) { 0 } else { 2 }).collect(),
        source_part: vec![number; SHARD_ROWS],
        source_row: rows.map(|row| row as u32).collect(),
        image_digest: vec![[0; 32]; SHARD_ROWS],
    }
}

/// All rows of [`shard_rows`], cut into so many shards.
fn cut(seed: u64, shards: usize) -> Vec<ShardRows> {
    let all: Vec<ShardRows> = (0..SHARDS).map(|number| shard_rows(number, seed)).collect();
    let rows = SHARDS as usize * SHARD_ROWS;
    let slice = |shard: usize| {
        let mut slice = ShardRows::default();
        for row in shard * rows / shards..(shard + 1) * rows / shards {
            let (from, row) = (&all[row / SHARD_ROWS], row % SHARD_ROWS);
            slice.item_ids.push(from.item_ids[row].clone());
            slice.embeddings.extend(&from.embeddings[row * DIM..][..DIM]);
            slice.labels.extend(&from.labels[row * 3..][..3]);
            slice.split.push(from.split[row]);
            slice.source_part.push(from.source_part[row]);
            slice.source_row.push(from.source_row[row]);
            slice.image_digest.push(from.image_digest[row]);
        }
        slice
    };
    (0..shards).map(slice).collect()
}

/// As a root normalises the sum of one term.
fn unit(values: &[f32]) -> Vec<f32> {
    let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    values.iter().map(|v| (f64::from(*v) / norm) as f32).collect()
}

/// The server that the environment, the PATH or `target/tools` has; without one the tests fail.
fn nats_server() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/nats-server");
    let named = std::env::var_os("LIKENESS_NATS_SERVER").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|folder| folder.join("nats-server")).find(|path| path.is_file());
    let found = named.or(on_path).or_else(|| tools.is_file().then_some(tools));
    found.expect("a nats-server: set LIKENESS_NATS_SERVER, put it on the PATH, or into target/tools")
}

/// Asks again and again until there is an answer; names the line that asked in vain.
#[track_caller]
fn until<T>(ask: impl AsyncFn() -> Option<T>) -> impl Future<Output = T> {
    let asked_at = std::panic::Location::caller();
    async move {
        let start = std::time::Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "it did not happen in time: {asked_at}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

fn request(terms: Vec<Term>) -> SearchRequest {
    let terms = terms.into_iter().map(|term| WeightedTerm { weight: 1.0, term }).collect();
    SearchRequest { deadline_ms: 8000, ..SearchRequest::new(Name::new("production").unwrap(), terms, 20) }
}

fn strict(request: SearchRequest) -> SearchRequest {
    SearchRequest { min_coverage: 1.0, ..request }
}

fn attributes(with: &[&str], without: &[&str]) -> Term {
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    Term::Attributes { with: names(with), without: names(without) }
}

fn vector(values: &[f32]) -> Term {
    Term::Vector { values: values.to_vec() }
}

fn found(hits: &[Hit]) -> Vec<(String, f64)> {
    hits.iter().map(|hit| (hit.item.clone(), hit.distance)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_searcher_and_two_give_the_exact_answer() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 1);
    bench.placed(&generation.reference, 1, 1).await;
    the_answers_are_exact(&bench, &generation).await;
    let _b = bench.searcher("b", 1);
    bench.placed(&generation.reference, 2, 1).await;
    the_answers_are_exact(&bench, &generation).await;
}

async fn the_answers_are_exact(bench: &Bench, generation: &Generation) {
    let asked = unit(&generation.rows[77].1);
    let like = unit(generation.embedding("000033.jpg"));
    for k in [1, 20, 5000] {
        // Each root gets its turn.
        for _ in 0..4 {
            let results = bench.ask_all(&SearchRequest { k, ..request(vec![vector(&asked)]) }).await;
            assert_eq!(found(&results.hits), generation.nearest(&unit(&asked), k as usize, ""));
            let item = Term::Item { item: "000033.jpg".into() };
            let results = bench.ask_all(&SearchRequest { k, ..request(vec![item]) }).await;
            let expected = generation.nearest(&like, k as usize, "000033.jpg");
            assert_eq!(found(&results.hits), expected, "the item itself is left out");
        }
    }
    let input = encode_query(QueryEncoding::ThreeState, 3, &[0], &[1]);
    let input = Tensor::from_vec(input, (1, 3), &Device::Cpu).unwrap();
    let embedded = generation.model.embed_attributes(&input).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let results = bench.ask_all(&request(vec![attributes(&["smiling"], &["Male"])])).await;
    assert_eq!(found(&results.hits), generation.nearest(&unit(&embedded), 20, ""));
    assert_eq!((results.release, results.coverage.total_shards), (1, SHARDS));
    assert_eq!(results.vocabulary, vocabulary().names);
    let hit = &results.hits[0];
    let number = hit.item[..6].parse::<u32>().unwrap();
    assert_eq!(hit.image.part, part_key(number % SHARDS));
    assert_eq!((hit.image.row, hit.labels[..2].to_vec()), (number / SHARDS, vec![1, -1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_searcher_leaves_honest_coverage_until_its_shards_are_taken_over() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let (_a, b) = (bench.searcher("a", 1), bench.searcher("b", 1));
    bench.placed(&generation.reference, 2, 1).await;
    let question = request(vec![vector(&generation.rows[5].1)]);
    let before = bench.ask_all(&question).await;
    b.kill();
    let quick = SearchRequest { deadline_ms: 400, ..question.clone() };
    let missing = until(async || {
        // An error is a request that b took into its grave.
        let results = bench.ask(&quick).await.ok()?;
        let share = results.coverage.share();
        assert!(share < 1.0 || found(&results.hits) == found(&before.hits));
        (share < 1.0).then_some(results.coverage)
    })
    .await;
    assert_eq!(missing.rows, u64::from(missing.shards) * SHARD_ROWS as u64, "{missing:?}");
    assert!(missing.reasons.iter().all(|reason| reason.contains("`b`: ")), "{missing:?}");
    until(async || match bench.ask(&strict(quick.clone())).await {
        Ok(results) => (found(&results.hits) == found(&before.hits)).then_some(()),
        Err(error) => {
            let honest = [SearchErrorKind::Coverage, SearchErrorKind::Deadline, SearchErrorKind::Unavailable];
            assert!(honest.contains(&error.kind), "{error}");
            None
        }
    })
    .await;
    until(async || (bench.placements().await.len() == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_replicas_nobody_notices_that_one_left_or_was_killed() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let (_a, b, c) = (bench.searcher("a", 2), bench.searcher("b", 2), bench.searcher("c", 2));
    bench.placed(&generation.reference, 3, 2).await;
    let question = strict(request(vec![vector(&generation.rows[5].1)]));
    let expected = found(&bench.ask_all(&question).await.hits);
    let leaving = tokio::spawn(b.leave());
    while !leaving.is_finished() {
        assert_eq!(found(&bench.ask(&question).await.unwrap().hits), expected);
    }
    leaving.await.unwrap();
    assert!(bench.placements().await.iter().all(|placement| placement.worker.as_str() != "b"));
    bench.placed(&generation.reference, 2, 2).await;
    c.kill();
    for _ in 0..20 {
        let results = until(async || bench.ask(&question).await.ok()).await;
        assert_eq!(found(&results.hits), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_switched_without_a_gap_and_rolled_back() {
    let bench = Bench::start().await;
    let (old, new) = (bench.generation("g1", 1).await, bench.generation("g2", 2).await);
    bench.alias(Some(old.served(1)), None).await;
    let (_a, _b) = (bench.searcher("a", 2), bench.searcher("b", 2));
    bench.placed(&old.reference, 2, 2).await;
    let question = strict(request(vec![attributes(&["Eyeglasses"], &[])]));
    assert_eq!(bench.ask_all(&question).await.release, 1);
    bench.alias(Some(old.served(1)), Some(new.served(2))).await;
    bench.placed(&new.reference, 2, 2).await;
    assert_eq!(bench.ask(&question).await.unwrap().release, 1, "loaded is not yet served");
    let switched_to = async |release: u64| {
        until(async || {
            let results = bench.ask(&question).await.unwrap();
            let generation = if results.release == 2 { &new } else { &old };
            assert_eq!(results.generation, generation.reference);
            (results.release == release).then_some(())
        })
        .await
    };
    bench.alias(Some(new.served(2)), None).await;
    switched_to(2).await;
    bench.alias(Some(old.served(3)), None).await;
    switched_to(3).await;
    let kept: Vec<usize> = bench.placements().await.iter().map(|placement| placement.held.len()).collect();
    assert_eq!(kept, [2, 2], "the generation that was left stays in memory for a while");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_shard_is_named_and_the_rest_answers() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    let damaged = &generation.manifest.shards[2].object.key;
    let path = bench.folder.path().join("store").join(damaged);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 2);
    let question = request(vec![attributes(&["Smiling"], &[])]);
    let all_others = |results: &SearchResults| results.coverage.shards == SHARDS - 1;
    let results = until(async || bench.ask(&question).await.ok().filter(all_others)).await;
    let [reason] = results.coverage.reasons.as_slice() else { panic!("{:?}", results.coverage) };
    assert!(reason.starts_with("shard 2: `a`: ") && reason.contains("is damaged"), "{reason}");
    let troubles = bench.placements().await[0].troubles.clone();
    assert!(troubles.len() == 1 && troubles[0].contains(damaged.as_str()), "{troubles:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_answered_says_why_in_the_form_that_was_asked() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 2);
    let right = request(vec![attributes(&["Smiling"], &[])]);
    bench.ask_all(&right).await;

    let refused = async |request: SearchRequest| bench.ask(&request).await.unwrap_err().message;
    let alias = Name::new("productoin").unwrap();
    assert_eq!(
        refused(SearchRequest { alias, ..right.clone() }).await,
        "unknown alias `productoin`; did you mean `production`?"
    );
    let term = async |term| refused(request(vec![term])).await;
    assert_eq!(term(attributes(&["Smilling"], &[])).await, "unknown attribute `Smilling`; did you mean `Smiling`?");
    assert_eq!(term(Term::Item { item: "nobody".into() }).await, "gallery `faces` has no item `nobody`");
    let image = Term::Image { bytes: b"GIF89a".to_vec() };
    assert_eq!(term(image).await, "the image can't be used: neither JPEG nor PNG nor WebP");

    let client = bench.bus.client();
    let reply = client.request(subjects::SEARCH, "nonsense".into()).await.unwrap();
    let answer: SearchReply = codec::decode(&reply.payload, Encoding::Bincode).unwrap();
    assert!(matches!(answer, SearchReply::Error(error) if error.kind == SearchErrorKind::Invalid));
    let json = codec::encode(&right, Encoding::Json).unwrap();
    let reply = client.request(subjects::SEARCH, json.into()).await.unwrap();
    let answer: SearchReply = codec::decode(&reply.payload, Encoding::Json).unwrap();
    assert!(matches!(answer, SearchReply::Found(results) if results.hits.len() == 20));
    let info = client.request("$SRV.INFO.likeness-search", "".into()).await.unwrap();
    let info = String::from_utf8(info.payload.to_vec()).unwrap();
    assert!(info.contains(subjects::SEARCH) && info.contains(subjects::SEARCH_GROUP), "{info}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_searches_at_once_are_all_answered_alike() {
    let bench = Arc::new(Bench::start().await);
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let (_a, _b) = (bench.searcher("a", 2), bench.searcher("b", 2));
    bench.placed(&generation.reference, 2, 2).await;
    let question = strict(request(vec![vector(&generation.rows[5].1)]));
    let expected = found(&bench.ask_all(&question).await.hits);
    let asks = (0..100).map(|_| {
        let (bench, question) = (Arc::clone(&bench), question.clone());
        tokio::spawn(async move { bench.ask(&question).await.map(|results| found(&results.hits)) })
    });
    for asked in asks.collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap().unwrap(), expected);
    }
}

/// Ids, order and the bits of the distances.
fn digest(hits: &[Hit]) -> Digest {
    let bytes = |hit: &Hit| [hit.item.as_bytes(), b" ", &hit.distance.to_bits().to_le_bytes()].concat();
    Digest::of(&hits.iter().flat_map(bytes).collect::<Vec<u8>>())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_shards_and_replicas_gives_the_same_answer() {
    let bench = Bench::start().await;
    let mut layouts = Vec::new();
    for shards in [1, 3, 16, 64] {
        layouts.push(bench.generation_of(&format!("in-{shards}"), 7, cut(7, shards)).await);
    }
    let stored = layouts[0].embedding("000033.jpg").to_vec();
    let questions = [
        (SearchRequest { k: 10, ..strict(request(vec![vector(&layouts[0].rows[77].1)])) }, ""),
        (SearchRequest { k: 1500, ..strict(request(vec![vector(&layouts[0].rows[500].1)])) }, ""),
        (SearchRequest { k: 100, ..strict(request(vec![Term::Item { item: "000033.jpg".into() }])) }, "000033.jpg"),
    ];
    let mut expected: Vec<Digest> = Vec::new();
    let mut release = 0;
    for replicas in 1..=3 {
        let names = ["a", "b", "c"].map(|name| format!("{name}{replicas}"));
        let searchers: Vec<_> = names.iter().map(|name| bench.searcher(name, replicas)).collect();
        for layout in &layouts {
            release += 1;
            bench.alias(Some(layout.served(release)), None).await;
            held_by(&bench, layout, replicas).await;
            for (number, (question, left_out)) in questions.iter().enumerate() {
                let results = until(async || {
                    let results = bench.ask(question).await.ok()?;
                    (results.release == release).then_some(results)
                })
                .await;
                let query = if left_out.is_empty() { vector_of(question) } else { stored.clone() };
                let nearest = layout.nearest(&unit(&query), question.k as usize, left_out);
                assert_eq!(
                    found(&results.hits),
                    nearest,
                    "{} shards, {replicas} replicas",
                    layout.manifest.shards.len()
                );
                let found = digest(&results.hits);
                assert_eq!(*expected.get(number).unwrap_or(&found), found);
                expected.extend((expected.len() == number).then_some(found));
            }
        }
        for searcher in searchers {
            searcher.leave().await;
        }
    }
}

fn vector_of(question: &SearchRequest) -> Vec<f32> {
    let Term::Vector { values } = &question.terms[0].term else { panic!("a vector") };
    values.clone()
}

/// Waits until every shard is announced by so many searchers, whichever they are.
async fn held_by(bench: &Bench, layout: &Generation, replicas: usize) {
    until(async || {
        let placements = bench.placements().await;
        let held = placements.iter().flat_map(|placement| &placement.held);
        let held: Vec<_> = held.filter(|held| held.generation == layout.reference).collect();
        let holders = |shard: u32| held.iter().filter(|held| held.shards.contains(&shard)).count();
        (0..layout.manifest.shards.len() as u32).all(|shard| holders(shard) >= replicas).then_some(())
    })
    .await;
}

/// Rows of [`shard_rows`] by item: label of every attribute.
fn labels(item: &str) -> [i8; 3] {
    let row = item[..6].parse::<usize>().unwrap() / SHARDS as usize;
    [1, -1, (row % 3) as i8 - 1]
}

/// The exact answer among the items whose known labels are so.
fn filtered(layout: &Generation, query: &[f32], k: usize, fits: impl Fn([i8; 3]) -> bool) -> Vec<(String, f64)> {
    let all = layout.nearest(query, usize::MAX, "");
    all.into_iter().filter(|(item, _)| fits(labels(item))).take(k).collect()
}

fn filter(with: &[&str], without: &[&str]) -> LabelFilter {
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    LabelFilter { with: names(with), without: names(without) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_are_exact_for_any_number_of_shards() {
    let bench = Bench::start().await;
    let _searchers = [bench.searcher("a", 1), bench.searcher("b", 1)];
    for (release, shards) in (1..).zip([1, 3, 16]) {
        let layout = bench.generation_of(&format!("in-{shards}"), 7, cut(7, shards)).await;
        bench.alias(Some(layout.served(release)), None).await;
        held_by(&bench, &layout, 1).await;
        let asked = layout.rows[77].1.clone();
        let ask = async |filter: LabelFilter, k: u32| {
            let question = strict(SearchRequest { filter, k, ..request(vec![vector(&asked)]) });
            until(async || bench.ask(&question).await.ok().filter(|results| results.release == release)).await
        };
        let (rows, third) = (1500, 500);
        // The third attribute is there in a third of the rows, absent in one, and not known in one.
        for k in [10, 400, 2000] {
            let with = ask(filter(&["eyeglasses"], &[]), k).await;
            let expected = filtered(&layout, &unit(&asked), k as usize, |labels| labels[2] == 1);
            assert_eq!((found(&with.hits), with.matching), (expected, Some(third)), "{shards} shards");
            let without = ask(filter(&["Smiling"], &["Eyeglasses", "Male"]), k).await;
            let expected = filtered(&layout, &unit(&asked), k as usize, |labels| labels[2] == -1);
            assert_eq!((found(&without.hits), without.matching), (expected, Some(third)), "{shards} shards");
            assert_eq!(without.coverage.rows, rows, "coverage tells what was searched, not what fits");
        }
        let nobody = ask(filter(&["Male"], &[]), 5).await;
        assert_eq!((nobody.hits.len(), nobody.matching, nobody.coverage.share()), (0, Some(0), 1.0));
        let unknown = SearchRequest { filter: filter(&[], &["Smilling"]), ..request(vec![vector(&asked)]) };
        let error = bench.ask(&unknown).await.unwrap_err();
        assert_eq!((error.kind, error.nearest), (SearchErrorKind::NotFound, vec!["Smiling".to_string()]));
    }
}

/// All pages of `k` from a first request on.
async fn pages(bench: &Bench, first: &SearchRequest) -> Vec<SearchResults> {
    let mut pages = vec![bench.ask_all(&SearchRequest { paged: true, ..first.clone() }).await];
    while let Some(next) = pages.last().unwrap().next.clone() {
        pages.push(bench.ask_all(&strict(first.after(next))).await);
    }
    pages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_the_one_answer_and_stay_on_their_release() {
    let bench = Bench::start().await;
    let (old, new) = (bench.generation("g1", 1).await, bench.generation("g2", 2).await);
    bench.alias(Some(old.served(1)), None).await;
    // Generations stay for as long as this test looks at the old one, and no longer.
    let _searchers = ["a", "b"].map(|name| bench.searcher_that_keeps(name, 1, Duration::from_secs(4)));
    bench.placed(&old.reference, 2, 1).await;
    let item = Term::Item { item: "000033.jpg".into() };
    let question = request(vec![item, attributes(&["Smiling"], &["Male"])]);
    for (filter, count) in [(LabelFilter::default(), 1499), (filter(&["Eyeglasses"], &[]), 500)] {
        let whole = bench.ask_all(&SearchRequest { k: 2000, filter: filter.clone(), ..question.clone() }).await;
        assert_eq!((whole.next, whole.hits.iter().filter(|hit| hit.item == "000033.jpg").count()), (None, 0));
        for k in [170, 1000] {
            let pages = pages(&bench, &SearchRequest { k, filter: filter.clone(), ..question.clone() }).await;
            let hits: Vec<Hit> = pages.iter().flat_map(|page| page.hits.clone()).collect();
            assert_eq!(digest(&hits), digest(&whole.hits), "bit for bit, in pages of {k}");
            assert!(hits.len().abs_diff(count) <= 1, "{}", hits.len());
        }
    }
    let first = bench.ask_all(&SearchRequest { paged: true, ..question.clone() }).await;
    let second = first.next.clone().map(|next| strict(question.after(next))).unwrap();
    let expected = bench.ask_all(&second).await;
    bench.alias(Some(new.served(2)), None).await;
    until(async || bench.ask(&question).await.ok().filter(|results| results.release == 2)).await;
    // On the old release as long as it is in memory, then no more, and never on the new one.
    let error = until(async || match bench.ask(&second).await {
        Ok(results) => {
            assert_eq!((results.release, digest(&results.hits)), (1, digest(&expected.hits)));
            None
        }
        Err(error) => (error.kind != SearchErrorKind::Coverage).then_some(error),
    })
    .await;
    assert_eq!(error.kind, SearchErrorKind::Expired, "{error}");
    let mut changed = first.next.unwrap();
    changed.replace_range(40..41, if &changed[40..41] == "A" { "B" } else { "A" });
    let error = bench.ask(&question.after(changed)).await.unwrap_err();
    assert_eq!(error.kind, SearchErrorKind::Invalid);
    assert!(error.message.contains("cut off or changed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_the_first_version_is_answered_as_it_always_was() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 1);
    bench.ask_all(&request(vec![vector(&generation.rows[5].1)])).await;
    let ask = async |version: u32, more: &str| {
        let body = format!(
            r#"{{"message":"search-request","version":{version},"body":{{"alias":"production","k":3,"min_coverage":1.0,"deadline_ms":8000,"terms":[{{"weight":1.0,"term":{{"item":{{"item":"000033.jpg"}}}}}}]{more}}}}}"#
        );
        let reply = bench.bus.client().request(subjects::SEARCH, body.into()).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&reply.payload).unwrap()
    };
    let plain = ask(1, "").await;
    assert_eq!((&plain["version"], plain["body"]["found"]["hits"].as_array().unwrap().len()), (&2.into(), 3));
    assert_eq!(ask(2, "").await["version"], 2, "what says nothing new is said as before");
    let paged = ask(2, r#","paged":true,"filter":{"with":["Eyeglasses"]}"#).await;
    assert_eq!(paged["version"], 3);
    assert!(paged["body"]["found"]["next"].is_string() && paged["body"]["found"]["matching"] == 500, "{paged}");
    for (version, slip) in [(1, r#","filter":{"with":["Smiling"]}"#), (2, r#","filters":{"with":["Smiling"]}"#)] {
        let refused = ask(version, slip).await;
        assert_eq!(refused["body"]["error"]["kind"], "invalid", "a filter is never passed over: {refused}");
    }
}

/// One shard of `count` rows.
fn many_rows(number: u32, count: usize) -> ShardRows {
    let value = |row: usize, at: usize| {
        let seed = ((number as usize * 1_000_003 + row) * DIM + at) as u64;
        (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    ShardRows {
        item_ids: (0..count).map(|row| format!("{number}-{row:06}")).collect(),
        embeddings: (0..count).flat_map(|row| unit(&(0..DIM).map(|at| value(row, at)).collect::<Vec<_>>())).collect(),
        labels: vec![1; count * 3],
        split: vec![0; count],
        source_part: vec![0; count],
        source_row: (0..count as u32).collect(),
        image_digest: vec![[0; 32]; count],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approximate_answer_tells_what_is_expected_of_it_and_which_shards_were_exact() {
    let bench = Bench::start().await;
    let slices = vec![many_rows(0, 6000), many_rows(1, 5000), many_rows(2, 400)];
    let generation = bench.generation_of("large", 1, slices).await;
    let [first, second, third] = generation.manifest.shards.as_slice() else { panic!("three shards") };
    assert!(first.approximate.is_some() && third.approximate.is_none(), "few rows have no index");
    let damaged = &second.approximate.as_ref().unwrap().key;
    let path = bench.folder.path().join("store").join(damaged);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    bench.alias(Some(generation.served(1)), None).await;
    let _a = bench.searcher("a", 1);
    let (mut hit, mut all) = (0, 0);
    for row in (0..11_000).step_by(500) {
        let asked = generation.rows[row].1.clone();
        let exact = strict(request(vec![vector(&asked)]));
        let expected = found(&bench.ask_all(&exact).await.hits);
        assert_eq!(expected, generation.nearest(&unit(&asked), 20, ""), "exact without a word of recall");
        let near = bench.ask(&SearchRequest { recall: Some(0.9), ..exact.clone() }).await.unwrap();
        let recall = near.recall.unwrap();
        assert!((0.9..=1.0).contains(&recall.estimate) && recall.shards == 1, "{recall:?}");
        assert_eq!(recall.exact, ["shards 1, 2: it has no approximate index"]);
        assert_eq!(near.coverage.share(), 1.0);
        let near = found(&near.hits);
        assert!(near.is_sorted_by(|a, b| a.1 <= b.1));
        hit += near.iter().filter(|one| expected.contains(one)).count();
        all += expected.len();
    }
    assert!(hit as f64 >= 0.85 * all as f64, "{hit} of {all} were found");
    let question = SearchRequest { recall: Some(0.9), ..strict(request(vec![vector(&generation.rows[7].1)])) };
    let filtered = SearchRequest { filter: filter(&["Smiling"], &[]), ..question.clone() };
    let recall = bench.ask(&filtered).await.unwrap().recall.unwrap();
    assert_eq!((recall.estimate, recall.shards, recall.exact.len()), (1.0, 0, 1), "{recall:?}");
    let many = bench.ask(&SearchRequest { k: 500, ..question.clone() }).await.unwrap();
    assert_eq!(found(&many.hits), generation.nearest(&unit(&generation.rows[7].1), 500, ""));
    let placements = bench.placements().await;
    let [trouble] = placements[0].troubles.as_slice() else { panic!("{:?}", placements[0].troubles) };
    assert!(trouble.starts_with("the approximate index of shard 1 of generation `large`: "), "{trouble}");
    let error = bench.ask(&SearchRequest { recall: Some(1.5), ..question }).await.unwrap_err();
    assert_eq!(error.message, "recall is 1.5, expected 0–1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_does_not_fit_is_refused_by_name_and_taken_by_another() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    // Room for some of the five shards.
    let small = SearchSettings { memory: Some(200 << 10), ..SearchSettings::new(2, Duration::from_secs(600)) };
    let _small = bench.searcher_with("small", small);
    let question = request(vec![vector(&generation.rows[5].1)]);
    let partial = until(async || bench.ask(&question).await.ok().filter(|results| results.coverage.shards > 0)).await;
    let Coverage { shards, reasons, .. } = partial.coverage;
    assert!((1..SHARDS).contains(&shards), "{shards}");
    assert!(reasons.iter().all(|reason| reason.contains("`small`: does not fit: it needs ")), "{reasons:?}");
    let troubles = bench.placements().await[0].troubles.clone();
    assert_eq!(troubles.len() as u32, SHARDS - shards);
    assert!(troubles[0].contains("of generation `g1`: does not fit: it needs "), "{troubles:?}");
    let _large = bench.searcher("large", 2);
    let whole = bench.ask_all(&question).await;
    assert_eq!(found(&whole.hits), generation.nearest(&unit(&generation.rows[5].1), 20, ""));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_searcher_that_starts_again_takes_its_shards_from_its_disk() {
    let bench = Bench::start().await;
    let generation = bench.generation("g1", 1).await;
    bench.alias(Some(generation.served(1)), None).await;
    let folder = bench.folder.path().join("disk");
    let cached = |limit: u64| SearchSettings {
        cache: Some((folder.clone(), limit)),
        ..SearchSettings::new(1, Duration::from_secs(600))
    };
    let question = strict(request(vec![vector(&generation.rows[5].1)]));
    let expected = generation.nearest(&unit(&generation.rows[5].1), 20, "");
    let first = bench.searcher_with("first", cached(1 << 30));
    assert_eq!(found(&bench.ask_all(&question).await.hits), expected);
    first.leave().await;
    // Without the store's shards, and with one of the disk's damaged.
    let mut kept: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    kept.retain(|path| path.extension().is_some_and(|extension| extension == "shard"));
    assert_eq!(kept.len() as u32, SHARDS);
    let damaged = kept.iter().find(|path| path.to_str().unwrap().contains(&hex_of(&generation, 2))).unwrap();
    let mut bytes = std::fs::read(damaged).unwrap();
    let end = bytes.len() - 1;
    bytes[end] ^= 1;
    std::fs::write(damaged, bytes).unwrap();
    for shard in generation.manifest.shards.iter().filter(|entry| entry.shard != 2) {
        std::fs::remove_file(bench.folder.path().join("store").join(&shard.object.key)).unwrap();
    }
    let second = bench.searcher_with("second", cached(1 << 30));
    assert_eq!(found(&bench.ask_all(&question).await.hits), expected);
    // The folder is one process's.
    let other = bench.searcher_with("other", cached(1 << 30));
    let ended = other.ended().await;
    assert!(!matches!(ended, Ok(Leaving::Asked)), "{ended:?}");
    second.leave().await;
}

fn hex_of(generation: &Generation, shard: usize) -> String {
    generation.manifest.shards[shard].object.digest.to_string()
}
