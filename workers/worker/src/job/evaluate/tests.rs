//! The tasks of an evaluation, from a stored generation to its report and the gate, over a store in memory.

use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use likeness_contract::codec::Message;
use likeness_contract::documents::{
    DatasetManifest, Embedder, GenerationManifest, ModelManifest, ObjectRef, Origin, PartEntry, ReportManifest,
    ShardEntry,
};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    Baseline, DatasetRef, DeviceClass, EmbedStage, EvaluateStage, GenerationRef, JobOptions, JobSpec, JobWork,
    Priority, TaskMessage, TaskOutput, TaskRecord, TaskWork, TrainStage, task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::{
    Architecture, BroughtQueries, EvaluateSettings, ImageEdit, ModelSettings, Preprocessing, QueryEncoding, Split,
    TrainSettings, Vocabulary,
};
use likeness_data::{PartRow, encode_part};
use likeness_evaluation::brought::BroughtFile;
use likeness_evaluation::report::Report;
use likeness_evaluation::{QueryScore, QuerySet, decode_scores};
use likeness_index::{ShardRows, encode_shard};
use likeness_link::store::Store;
use likeness_model::Model;
use tokio::sync::watch;

use crate::cache::Cache;
use crate::error::{TaskError, TaskErrorKind};
use crate::runtime::context::{Shared, TaskContext};
use crate::runtime::device::DeviceThread;
use crate::runtime::lease::Lease;

const ATTRIBUTES: usize = 5;
const DIM: usize = 16;
const PER_SHARD: usize = 40;
const ROWS: usize = 120;

struct World {
    shared: Shared,
    dataset: DatasetRef,
}

fn job(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: (0..ATTRIBUTES).map(|i| format!("A{i}")).collect() }
}

fn model_settings() -> ModelSettings {
    ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: DIM as u32,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(64),
    }
}

fn generation(text: &str) -> GenerationRef {
    GenerationRef { gallery: name("faces"), generation: job(text) }
}

/// Every combination of the attributes again and again; every tenth item's last label is not known.
fn labels(row: usize) -> Vec<i8> {
    let bit = |attribute: usize| if row >> attribute & 1 == 1 { 1 } else { -1 };
    (0..ATTRIBUTES).map(|attribute| if attribute == 4 && row.is_multiple_of(10) { 0 } else { bit(attribute) }).collect()
}

/// The last third of the rows is for training, the rest for the test.
fn split(row: usize) -> u8 {
    if row >= 80 { 0 } else { 2 }
}

fn picture(row: usize) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(200, 100, image::Rgb([row as u8, 9, 9]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

impl World {
    async fn new() -> Self {
        let store = Store::open("memory:").await.unwrap();
        let device = DeviceThread::start(Device::Cpu).unwrap();
        let cache = Arc::new(Cache::new(store.clone(), 1 << 20));
        let worker = WorkerId::new("tester").unwrap();
        let shared = Shared { store, device, cache, worker, approximate_rows: None };
        let world = Self { shared, dataset: DatasetRef { dataset: name("drawn"), version: job("ingest") } };
        world.put_dataset().await;
        world
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> ObjectRef {
        let digest = Digest::of(&bytes);
        self.shared.store.create_object(key.to_string(), bytes.into(), digest).await.unwrap()
    }

    async fn put_document<M: Message>(&self, key: &str, document: &M) {
        assert!(self.shared.store.create_document(key, document).await.unwrap().created, "{key}");
    }

    async fn put_dataset(&self) {
        let row = |row: usize| PartRow {
            item: format!("item-{row:03}"),
            // One picture is damaged.
            image: if row == 3 { vec![1, 2, 3] } else { picture(row) }.into(),
            width: 200,
            height: 100,
            attributes: labels(row),
            split: split(row),
        };
        let rows: Vec<PartRow> = (0..ROWS).map(row).collect();
        let object = self.put("datasets/part.parquet", encode_part(&rows, ATTRIBUTES).unwrap()).await;
        let parts = vec![PartEntry { object, rows: ROWS as u64, split_rows: [40, 0, 80] }];
        let (vocabulary, skipped, warnings) = (vocabulary(), vec![], vec![]);
        let dataset = self.dataset.clone();
        let manifest = DatasetManifest { dataset, vocabulary, parts, skipped, warnings };
        let key = keys::dataset_manifest(&self.dataset.dataset, &self.dataset.version);
        self.put_document(&key, &manifest).await;
    }

    /// A model of random weights, and a generation whose embeddings are those of the items' own labels.
    async fn put_generation(&self, id: &str, seed: u64) {
        let model = Model::fresh(&model_settings(), ATTRIBUTES, seed, &Device::Cpu).unwrap();
        let weights = self.put(&format!("models/{id}/weights"), model.weights().unwrap()).await;
        let training = self.put(&format!("models/{id}/training"), b"no parquet".to_vec()).await;
        let manifest = ModelManifest {
            model: job(id),
            settings: model_settings(),
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: self.dataset.clone(),
            weights: weights.clone(),
            checkpoint: training.clone(),
            distance: "euclidean".into(),
            steps: 1,
            validation_loss: None,
            training: training.clone(),
            tensorboard: training,
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        };
        self.put_document(&keys::model_manifest(&job(id)), &manifest).await;
        let mut shards = Vec::new();
        for (shard, first) in (0..ROWS).step_by(PER_SHARD).enumerate() {
            let rows = shard_rows(&model, first);
            let bytes = encode_shard(&rows, DIM, ATTRIBUTES).unwrap();
            let object = self.put(&format!("galleries/faces/{id}/shard-{shard}"), bytes).await;
            shards.push(ShardEntry { shard: shard as u32, object, rows: PER_SHARD as u64, approximate: None });
        }
        let manifest = GenerationManifest {
            generation: generation(id),
            origin: Origin::Model(Embedder { model: job(id), weights: weights.digest, dataset: self.dataset.clone() }),
            rows: Split::All,
            embedding_dim: DIM as u32,
            vocabulary: vocabulary(),
            shards,
            skipped: vec![],
        };
        self.put_document(&keys::generation_manifest(&name("faces"), &job(id)), &manifest).await;
    }

    fn context(&self, spec: JobSpec, task: TaskId, work: TaskWork) -> TaskContext {
        let message = TaskMessage { job: job("evaluation"), run: RunNumber(1), task, work };
        let lease = Lease::new(Instant::now(), Duration::from_secs(3600));
        TaskContext::new(&self.shared, Arc::new(message), Arc::new(spec), Arc::new(lease), watch::Sender::new(None))
    }

    /// Does a task as a worker does, without its record.
    async fn attempt(&self, spec: &JobSpec, task: TaskId, work: TaskWork) -> Result<TaskOutput, TaskError> {
        crate::job::run(&self.context(spec.clone(), task, work)).await
    }

    /// Does a task and makes its record.
    async fn done(&self, spec: &JobSpec, task: TaskId, work: TaskWork) -> TaskOutput {
        let output = self.attempt(spec, task.clone(), work).await.unwrap();
        let record = TaskRecord {
            job: job("evaluation"),
            run: RunNumber(1),
            task: task.clone(),
            worker: WorkerId::new("tester").unwrap(),
            attempt: 1,
            started_ms: 0,
            finished_ms: 0,
            device_ms: 0,
            output: output.clone(),
        };
        self.put_document(&keys::task_record(&job("evaluation"), &task), &record).await;
        output
    }

    /// Queries and all ranges of a generation.
    async fn ranges(&self, spec: &JobSpec, of: &str, baseline: bool, queries: u32) {
        for (range, from) in (0..queries).step_by(25).enumerate() {
            let count = 25.min(queries - from);
            let work = TaskWork::EvaluateRange { generation: generation(of), from, queries: count };
            self.done(spec, task_ids::range(baseline, range as u32), work).await;
        }
    }

    async fn record(&self, task: TaskId) -> TaskOutput {
        let record: TaskRecord =
            self.shared.store.require(&keys::task_record(&job("evaluation"), &task)).await.unwrap();
        record.output
    }

    async fn queries(&self, spec: &JobSpec, of: &str) -> u32 {
        let work = TaskWork::EvaluateQueries { generation: generation(of) };
        match self.done(spec, task_ids::queries(), work).await {
            TaskOutput::Queries { queries, .. } => queries,
            TaskOutput::PooledQueries { queries, pooled, .. } => {
                assert!(pooled > 0 && pooled < queries, "{pooled} of {queries}");
                queries
            }
            other => panic!("no queries: {other:?}"),
        }
    }
}

fn shard_rows(model: &Model, first: usize) -> ShardRows {
    let rows: Vec<usize> = (first..first + PER_SHARD).collect();
    let known: Vec<f32> = rows.iter().flat_map(|row| labels(*row)).map(f32::from).collect();
    let vectors = Tensor::from_vec(known, (PER_SHARD, ATTRIBUTES), &Device::Cpu).unwrap();
    ShardRows {
        item_ids: rows.iter().map(|row| format!("item-{row:03}")).collect(),
        embeddings: model.embed_attributes(&vectors).unwrap().flatten_all().unwrap().to_vec1().unwrap(),
        labels: rows.iter().flat_map(|row| labels(*row)).collect(),
        split: rows.iter().map(|row| split(*row)).collect(),
        source_part: vec![0; PER_SHARD],
        source_row: rows.iter().map(|row| *row as u32).collect(),
        image_digest: rows.iter().map(|row| *Digest::of(&picture(*row)).as_bytes()).collect(),
    }
}

fn stage(rows: Split) -> EvaluateStage {
    let settings = EvaluateSettings { pairs: 20, triples: 20, queries_per_task: 25, ..EvaluateSettings::default() };
    EvaluateStage { rows, settings }
}

fn spec(work: JobWork) -> JobSpec {
    JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Hi, options: JobOptions::default() }
}

fn evaluation(of: &str, rows: Split) -> JobSpec {
    spec(JobWork::Evaluate { generation: generation(of), evaluate: stage(rows) })
}

fn pipeline(world: &World, baseline: Option<&str>) -> JobSpec {
    let train = TrainStage {
        dataset: world.dataset.clone(),
        vocabulary: vocabulary(),
        model: model_settings(),
        train: TrainSettings::default(),
        train_rows: 40,
        validation_rows: 0,
    };
    let embed = EmbedStage {
        gallery: name("faces"),
        dataset: world.dataset.clone(),
        rows: Split::All,
        gallery_rows: ROWS as u64,
        shard_rows: PER_SHARD as u32,
    };
    let baseline = baseline.map(|of| Baseline { release: 3, model: job(of), generation: generation(of), embed: false });
    spec(JobWork::Pipeline { train, embed, evaluate: stage(Split::Test), alias: name("prod"), baseline })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_evaluated_on_the_rows_of_its_split_and_a_repeated_report_is_the_same() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let spec = evaluation("new", Split::Test);
    let queries = world.queries(&spec, "new").await;
    world.ranges(&spec, "new", false, queries).await;
    let finish = || TaskWork::EvaluateFinish { generation: generation("new") };
    let output = world.attempt(&spec, task_ids::evaluate_finish(), finish()).await.unwrap();
    assert_eq!(world.attempt(&spec, task_ids::evaluate_finish(), finish()).await.unwrap(), output);

    let TaskOutput::Report { key, headline } = output else { panic!("no report") };
    let manifest: ReportManifest = world.shared.store.require(&key).await.unwrap();
    assert_eq!((manifest.items, manifest.headline.clone()), (80, headline));
    let sets: Vec<&str> = manifest.headline.iter().map(|row| row.set.as_str()).collect();
    assert_eq!(sets, ["singles", "pairs", "triples", "full", "images"]);
    for row in &manifest.headline[..3] {
        assert!(row.map > row.chance + 0.2, "embeddings of the labels themselves are far above chance: {row:?}");
    }
    let trec = manifest.trec.unwrap();
    let run = world.shared.store.read(&trec.run).await.unwrap();
    let lines = std::str::from_utf8(&run).unwrap().lines().count();
    assert!(trec.queries == queries && lines > 60 * queries as usize && lines <= 80 * queries as usize, "{lines}");
    let json = world.shared.store.read(&manifest.json).await.unwrap();
    let report: Report = serde_json::from_slice(&json).unwrap();
    assert_eq!(report.sets[0].queries_with_unjudged, 2);
    assert_eq!(report.attributes[4].unknown, 8);
    assert_eq!(report.sets.iter().map(|set| set.queries).sum::<u32>(), queries);
    let of_images = report.sets[4].further.unwrap();
    assert!(of_images.cs_p_at_10.unwrap().mean > 0.1 && of_images.ndcg_at_10.mean > 0.3, "{of_images:?}");
    let html = world.shared.store.read(&manifest.html).await.unwrap();
    let html = std::str::from_utf8(&html).unwrap();
    assert!(html.contains("data:image/jpeg;base64,") && !html.contains("<h2>Training</h2>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_release_far_above_chance_passes_the_gate() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let spec = pipeline(&world, None);
    let queries = world.queries(&spec, "new").await;
    world.ranges(&spec, "new", false, queries).await;
    let TaskOutput::Gate(decision) = world.done(&spec, task_ids::gate(), TaskWork::Gate).await else {
        panic!("no gate")
    };
    assert!(decision.passed && decision.interval[0] > 0.2, "{decision:?}");
    assert!(decision.queries < queries && decision.baseline.is_none(), "only pooled sets count: {decision:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_asks_the_baseline_the_same_queries_through_its_own_model() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    world.put_generation("old", 2).await;
    let spec = pipeline(&world, Some("old"));
    let queries = world.queries(&spec, "new").await;
    world.ranges(&spec, "new", false, queries).await;
    let TaskOutput::PooledQueries { pooled, .. } = world.record(task_ids::queries()).await else {
        panic!("not pooled")
    };
    world.ranges(&spec, "old", true, pooled).await;
    let TaskOutput::Gate(decision) = world.done(&spec, task_ids::gate(), TaskWork::Gate).await else {
        panic!("no gate")
    };
    assert_eq!(decision.baseline, Some(3));
    // Were the old gallery asked through the new model, it would answer at random.
    assert!(decision.difference.abs() < 0.1 && decision.baseline_map > 0.4, "{decision:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_without_rows_and_a_gallery_without_possible_queries_are_named() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let work = || TaskWork::EvaluateQueries { generation: generation("new") };
    let empty = world.attempt(&evaluation("new", Split::Validation), task_ids::queries(), work()).await.unwrap_err();
    assert_eq!(empty.kind, TaskErrorKind::Invalid);
    assert_eq!(empty.to_string(), "nothing to evaluate: there are no validation rows of generation `new`");
    let mut demanding = evaluation("new", Split::Test);
    if let JobWork::Evaluate { evaluate, .. } = &mut demanding.work {
        evaluate.settings.min_relevant = 1_000;
    }
    let none = world.attempt(&demanding, task_ids::queries(), work()).await.unwrap_err();
    assert!(none.to_string().contains("no attribute has 1000 relevant items"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_another_vocabulary_is_refused_and_both_are_named() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let key = keys::model_manifest(&job("new"));
    let mut model: ModelManifest = world.shared.store.require(&key).await.unwrap();
    let gallery = keys::generation_manifest(&name("faces"), &job("new"));
    let mut other: GenerationManifest = world.shared.store.require(&gallery).await.unwrap();
    (model.model, other.generation) = (job("odd"), generation("odd"));
    let Origin::Model(embedder) = &mut other.origin else { panic!("by a model") };
    embedder.model = job("odd");
    model.vocabulary.names[2] = "Zebra".into();
    world.put_document(&keys::model_manifest(&job("odd")), &model).await;
    world.put_document(&keys::generation_manifest(&name("faces"), &job("odd")), &other).await;

    let spec = evaluation("odd", Split::Test);
    world.queries(&spec, "odd").await;
    let work = TaskWork::EvaluateRange { generation: generation("odd"), from: 0, queries: 5 };
    let error = world.attempt(&spec, task_ids::range(false, 0), work).await.unwrap_err();
    assert_eq!(error.kind, TaskErrorKind::Invalid);
    let expected =
        "model `odd` has another vocabulary than generation `odd`: attribute 2 is `Zebra` there and `A2` here";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_lost_its_lease_stops_between_shards() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let spec = evaluation("new", Split::Test);
    world.queries(&spec, "new").await;
    let work = TaskWork::EvaluateRange { generation: generation("new"), from: 0, queries: 5 };
    let message = TaskMessage { job: job("evaluation"), run: RunNumber(1), task: task_ids::range(false, 0), work };
    let lease = Arc::new(Lease::new(Instant::now(), Duration::ZERO));
    let progress = watch::Sender::new(None);
    let cx = TaskContext::new(&world.shared, Arc::new(message), Arc::new(spec), lease, progress);
    assert_eq!(crate::job::run(&cx).await.unwrap_err().kind, TaskErrorKind::LeaseLost);
}

/// The same evaluation with other settings.
fn with(mut spec: JobSpec, change: impl FnOnce(&mut EvaluateSettings)) -> JobSpec {
    let (JobWork::Evaluate { evaluate, .. } | JobWork::Pipeline { evaluate, .. }) = &mut spec.work else {
        panic!("evaluates nothing")
    };
    change(&mut evaluate.settings);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_refuses_what_the_comparison_would_let_pass_and_stands_in_the_record() {
    for (floor, passes) in [(0.3, true), (0.999, false)] {
        let world = World::new().await;
        world.put_generation("new", 1).await;
        let spec = with(pipeline(&world, None), |settings| settings.floor = floor);
        let queries = world.queries(&spec, "new").await;
        world.ranges(&spec, "new", false, queries).await;
        let output = world.done(&spec, task_ids::gate(), TaskWork::Gate).await;
        let TaskOutput::FlooredGate { decision, floor: told } = output else { panic!("no floor: {output:?}") };
        assert!(decision.interval[0] > 0.2 && decision.candidate_map < 0.999, "{decision:?}");
        assert_eq!((decision.passed, told), (passes, floor), "{decision:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn own_queries_are_asked_with_and_without_an_image_and_the_report_tells_which_were_not() {
    let world = World::new().await;
    world.put_generation("new", 1).await;
    let lines = "name,with,without,item\nmine,A1,A2,\n,\"A0,A3\",,item-000\n,A1,,item-999\n";
    let file = BroughtFile::read("mine.csv", lines.into(), &vocabulary()).unwrap();
    let object = world.put("queries/own.json", file.encode()).await;
    let own = BroughtQueries { source: "mine.csv".into(), object };
    let spec = with(evaluation("new", Split::Test), |settings| {
        (settings.pairs, settings.triples, settings.full, settings.images) = (0, 0, 0, 7);
        settings.image_edit = ImageEdit::Author;
        settings.own = Some(own);
    });
    let queries = world.queries(&spec, "new").await;
    world.ranges(&spec, "new", false, queries).await;
    let work = TaskWork::EvaluateFinish { generation: generation("new") };
    let output = world.attempt(&spec, task_ids::evaluate_finish(), work).await.unwrap();
    let TaskOutput::Report { key, headline } = output else { panic!("no report") };
    let sets: Vec<(&str, u32)> = headline.iter().map(|row| (row.set.as_str(), row.queries)).collect();
    assert_eq!(sets, [("singles", 10), ("images", 7), ("own", 2)]);
    let manifest: ReportManifest = world.shared.store.require(&key).await.unwrap();
    let scores = decode_scores(world.shared.store.read(&manifest.queries).await.unwrap()).unwrap();
    let own: Vec<&QueryScore> = scores.iter().filter(|score| score.set == QuerySet::Own).collect();
    assert_eq!((own[0].text.as_str(), own[1].text.as_str()), ("mine: +A1 −A2", "item-000 +A0 +A3"));
    // The author's way: the image itself stays among the results, here as the nearest or nearly so.
    let first = own[1].first.as_ref().unwrap();
    assert!(first.len() == 80 && first.iter().take(30).any(|found| found.item == "item-000"), "{first:?}");
    let json = world.shared.store.read(&manifest.json).await.unwrap();
    let report: Report = serde_json::from_slice(&json).unwrap();
    assert_eq!(report.own_left_out, ["line 4: item `item-999` is not among those that are searched"]);
    let html = world.shared.store.read(&manifest.html).await.unwrap();
    assert!(std::str::from_utf8(&html).unwrap().contains("1 of 3 own queries are not asked"));
}
