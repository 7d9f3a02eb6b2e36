//! Copying from an earlier generation, against computing all anew.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use image::{ImageFormat, Rgb, RgbImage};
use likeness_contract::codec::Message;
use likeness_contract::documents::{DatasetManifest, GenerationManifest, ModelManifest, ObjectRef, PartEntry};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, WorkerId};
use likeness_contract::jobs::{
    DatasetRef, DeviceClass, EmbedStage, GenerationRef, JobOptions, JobSpec, JobWork, Priority, TaskMessage,
    TaskOutput, TaskRecord, TaskWork, task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::{
    Architecture, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings, Vocabulary,
};
use likeness_data::{PartRow, encode_part};
use likeness_link::Store;
use likeness_model::Model;
use tokio::sync::watch;

use crate::cache::Cache;
use crate::runtime::context::{Shared, TaskContext};
use crate::runtime::device::DeviceThread;
use crate::runtime::lease::Lease;

const ATTRIBUTES: usize = 3;
const DIM: u32 = 8;
const PX: u32 = 32;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn job(text: &str) -> JobId {
    JobId::new(text).unwrap()
}

/// An item of a dataset version: its id, and which picture it is of.
#[derive(Clone, Copy)]
struct Item(usize, usize);

/// Few pixels, all pictures different.
fn picture(number: usize) -> Vec<u8> {
    let [low, high] = [number % 251, number / 251].map(|part| part as u8);
    let image = RgbImage::from_fn(6, 6, |x, y| Rgb([low, high, (40 * x + y) as u8]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

struct World {
    store: Store,
    device: DeviceThread,
    approximate_rows: Option<NonZeroU32>,
}

/// What a task made, in the terms of a test.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    shard: Option<ObjectRef>,
    approximate: Option<ObjectRef>,
    skipped: usize,
    copied: u64,
}

impl Made {
    fn digests(&self) -> [Option<Digest>; 2] {
        [&self.shard, &self.approximate].map(|object| object.as_ref().map(|object| object.digest))
    }
}

impl World {
    async fn new() -> Self {
        let store = Store::open("memory:").await.unwrap();
        let world = Self { store, device: DeviceThread::start(Device::Cpu).unwrap(), approximate_rows: None };
        world.put_model("model", 1).await;
        world
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> ObjectRef {
        let digest = Digest::of(&bytes);
        self.store.create_object(key.to_string(), bytes.into(), digest).await.unwrap()
    }

    async fn put_document<M: Message>(&self, key: &str, document: &M) {
        assert!(self.store.create_document(key, document).await.unwrap().created, "{key}");
    }

    /// A dataset version of one part after the other.
    async fn put_version(&self, version: &str, parts: &[&[Item]]) {
        let mut entries = Vec::new();
        for (number, items) in parts.iter().enumerate() {
            let row = |Item(id, number): &Item| PartRow {
                item: format!("item-{id:05}"),
                image: if *number == DAMAGED { b"no image".to_vec() } else { picture(*number) }.into(),
                width: 6,
                height: 6,
                attributes: vec![1, -1, if id % 2 == 0 { 1 } else { 0 }],
                split: (id % 3) as u8,
            };
            let rows: Vec<PartRow> = items.iter().map(row).collect();
            let object =
                self.put(&format!("datasets/{version}/{number}"), encode_part(&rows, ATTRIBUTES).unwrap()).await;
            let of = |split: u8| rows.iter().filter(|row| row.split == split).count() as u64;
            entries.push(PartEntry { object, rows: rows.len() as u64, split_rows: [0, 1, 2].map(of) });
        }
        let dataset = DatasetRef { dataset: name("faces"), version: job(version) };
        let key = keys::dataset_manifest(&dataset.dataset, &dataset.version);
        let (skipped, warnings) = (vec![], vec![]);
        let manifest = DatasetManifest { dataset, vocabulary: vocabulary(), parts: entries, skipped, warnings };
        self.put_document(&key, &manifest).await;
    }

    async fn put_model(&self, id: &str, seed: u64) {
        let settings = ModelSettings {
            architecture: Architecture::CnnS,
            embedding_dim: DIM,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(PX),
        };
        let model = Model::fresh(&settings, ATTRIBUTES, seed, &Device::Cpu).unwrap();
        let weights = self.put(&format!("models/{id}/weights"), model.weights().unwrap()).await;
        let manifest = ModelManifest {
            model: job(id),
            settings,
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: DatasetRef { dataset: name("faces"), version: job("v1") },
            weights: weights.clone(),
            checkpoint: weights.clone(),
            distance: "euclidean".into(),
            steps: 1,
            validation_loss: None,
            training: weights.clone(),
            tensorboard: weights,
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        };
        self.put_document(&keys::model_manifest(&job(id)), &manifest).await;
    }

    /// Embeds `rows` rows of a version, `shard_rows` a shard, copying from the generation `after`; a process of its own.
    async fn embed(
        &self,
        id: &str,
        model: &str,
        version: &str,
        rows: u64,
        shard_rows: u32,
        after: Option<&str>,
    ) -> Vec<Made> {
        let shared = Shared {
            store: self.store.clone(),
            device: self.device.clone(),
            cache: Arc::new(Cache::new(self.store.clone(), 64 << 20)),
            worker: WorkerId::new("tester").unwrap(),
            approximate_rows: self.approximate_rows,
        };
        let embed = EmbedStage {
            gallery: name("faces"),
            dataset: DatasetRef { dataset: name("faces"), version: job(version) },
            rows: Split::All,
            gallery_rows: rows,
            shard_rows,
        };
        let work = JobWork::Embed { model: job(model), embed };
        let (device, priority, options) = (DeviceClass::Cpu, Priority::Lo, JobOptions::default());
        let spec = Arc::new(JobSpec { work, device, priority, options });
        let (model, target) = (job(model), generation(id));
        let mut made = Vec::new();
        for (shard, from) in (0..).zip((0..rows).step_by(shard_rows as usize)) {
            let rows = u64::from(shard_rows).min(rows - from) as u32;
            let (model, target) = (model.clone(), target.clone());
            let work = match after {
                None => TaskWork::EmbedShard { model, target, shard, from, rows },
                Some(after) => {
                    TaskWork::EmbedShardAfter { model, target, shard, from, rows, earlier: generation(after) }
                }
            };
            made.push(made_by(&self.done(&shared, &spec, id, task_ids::shard(&job(id), &job(id), shard), work).await));
        }
        let finish = TaskWork::EmbedFinish { model, target };
        let finished = self.done(&shared, &spec, id, task_ids::embed_finish(&job(id), &job(id)), finish).await;
        let all_copied: u64 = made.iter().map(|made| made.copied).sum();
        match finished {
            TaskOutput::Manifest { .. } => assert_eq!(all_copied, 0),
            TaskOutput::Generation { rows: all, copied, .. } => {
                assert_eq!((copied, all), (all_copied, self.manifest(id).await.total_rows()));
            }
            other => panic!("{other:?}"),
        }
        made
    }

    async fn done(
        &self,
        shared: &Shared,
        spec: &Arc<JobSpec>,
        id: &str,
        task: likeness_contract::ids::TaskId,
        work: TaskWork,
    ) -> TaskOutput {
        let message = TaskMessage { job: job(id), run: RunNumber(1), task: task.clone(), work };
        let lease = Arc::new(Lease::new(Instant::now(), Duration::from_secs(3600)));
        let cx = TaskContext::new(shared, Arc::new(message), Arc::clone(spec), lease, watch::Sender::new(None));
        let output = crate::job::run(&cx).await.unwrap();
        let record = TaskRecord {
            job: job(id),
            run: RunNumber(1),
            task: task.clone(),
            worker: WorkerId::new("tester").unwrap(),
            attempt: 1,
            started_ms: 0,
            finished_ms: 0,
            device_ms: 0,
            output: output.clone(),
        };
        self.put_document(&keys::task_record(&job(id), &task), &record).await;
        output
    }

    async fn manifest(&self, id: &str) -> GenerationManifest {
        self.store.require(&keys::generation_manifest(&name("faces"), &job(id))).await.unwrap()
    }
}

/// The picture that can't be decoded.
const DAMAGED: usize = usize::MAX;

fn generation(id: &str) -> GenerationRef {
    GenerationRef { gallery: name("faces"), generation: job(id) }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: ["A", "B", "C"].map(String::from).to_vec() }
}

fn made_by(output: &TaskOutput) -> Made {
    match output.clone() {
        TaskOutput::Shard { object, skipped, .. } => {
            Made { shard: object, approximate: None, skipped: skipped.len(), copied: 0 }
        }
        TaskOutput::IndexedShard { object, skipped, approximate, .. } => {
            Made { shard: Some(object), approximate: Some(approximate), skipped: skipped.len(), copied: 0 }
        }
        TaskOutput::CopiedShard { object, skipped, approximate, copied, .. } => {
            Made { shard: Some(object), approximate, skipped: skipped.len(), copied }
        }
        other => panic!("{other:?}"),
    }
}

fn digests(made: &[Made]) -> Vec<[Option<Digest>; 2]> {
    made.iter().map(Made::digests).collect()
}

fn copied(made: &[Made]) -> Vec<u64> {
    made.iter().map(|made| made.copied).collect()
}

fn items(numbers: std::ops::Range<usize>) -> Vec<Item> {
    numbers.map(|number| Item(number, number)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_copied_is_what_would_be_computed() {
    let world = World::new().await;
    world.put_version("v1", &[&items(0..100), &items(100..150)]).await;
    world.embed("g1", "model", "v1", 150, 40, None).await;

    // Two new items in front, three new pictures, one damaged, two items gone, one item twice by its picture; in other parts.
    let mut second: Vec<Item> = items(0..150).into_iter().filter(|item| ![20, 77].contains(&item.0)).collect();
    for (place, number) in [(3, 500), (64, 501), (120, 502), (30, DAMAGED)] {
        second[place].1 = number;
    }
    second.push(Item(900, 5));
    let all = [vec![Item(901, 600), Item(902, 601)], second].concat();
    world.put_version("v2", &[&all[..60], &all[60..]]).await;
    let rows = all.len() as u64;
    let full = world.embed("full", "model", "v2", rows, 40, None).await;
    let after = world.embed("after", "model", "v2", rows, 40, Some("g1")).await;
    assert_eq!(digests(&after), digests(&full));
    assert_eq!(copied(&full), [0, 0, 0, 0]);
    assert_eq!(copied(&after), [36, 39, 40, 30], "all but what is new");
    assert_eq!(after.iter().map(|made| made.skipped).sum::<usize>(), 1);
    let shards = |manifest: &GenerationManifest| manifest.shards.iter().map(|s| s.object.digest).collect::<Vec<_>>();
    assert_eq!(shards(&world.manifest("after").await), shards(&world.manifest("full").await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_whole_is_copied_with_its_index() {
    let mut world = World::new().await;
    world.approximate_rows = NonZeroU32::new(4096);
    // Many items of few pictures: the pictures decide what is computed, the rows what an index takes.
    let cycled = |from: usize, count: usize| (from..from + count).map(|id| Item(id, id % 700)).collect::<Vec<_>>();
    let (first, more) = (cycled(0, 4_200), cycled(4_200, 30));
    world.put_version("v1", &[&first]).await;
    let g1 = world.embed("g1", "model", "v1", 4_200, 4_200, None).await;
    assert!(g1[0].approximate.is_some());
    world.put_version("v2", &[&first, &more]).await;
    let after = world.embed("after", "model", "v2", 4_230, 4_200, Some("g1")).await;
    assert_eq!((digests(&after)[0], copied(&after)), (g1[0].digests(), vec![4_200, 30]));
    for object in [&after[0].shard, &after[0].approximate] {
        let object = object.as_ref().unwrap();
        assert!(object.key.starts_with("galleries/faces/after/"), "the generation has its own: {}", object.key);
        assert!(world.store.read(object).await.is_ok());
    }
    // The earlier one has no index: the new one gets one all the same, of the same bytes.
    world.approximate_rows = None;
    world.embed("plain", "model", "v1", 4_200, 4_200, None).await;
    world.approximate_rows = NonZeroU32::new(4096);
    let indexed = world.embed("indexed", "model", "v1", 4_200, 4_200, Some("plain")).await;
    assert_eq!((digests(&indexed), copied(&indexed)), (digests(&g1), vec![4_200]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_damaged_or_of_other_weights_is_computed() {
    let world = World::new().await;
    let all = items(0..40);
    world.put_version("v1", &[&all]).await;
    let full = world.embed("g1", "model", "v1", 40, 20, None).await;
    let none = world.embed("a", "model", "v1", 40, 20, Some("nowhere")).await;
    assert_eq!((digests(&none), copied(&none)), (digests(&full), vec![0, 0]));

    world.put_model("other", 2).await;
    let other = world.embed("b", "other", "v1", 40, 20, None).await;
    let after_other = world.embed("c", "other", "v1", 40, 20, Some("g1")).await;
    assert_eq!((digests(&after_other), copied(&after_other)), (digests(&other), vec![0, 0]));

    // Its second shard is another file than the manifest says, its first one is gone.
    let mut manifest = world.manifest("g1").await;
    manifest.generation = generation("broken");
    manifest.shards[1].object.digest = Digest::of(b"something else");
    world.put_document(&keys::generation_manifest(&name("faces"), &job("broken")), &manifest).await;
    let broken = world.embed("d", "model", "v1", 40, 20, Some("broken")).await;
    assert_eq!((digests(&broken), copied(&broken)), (digests(&full), vec![20, 0]));
    manifest.generation = generation("gone");
    manifest.shards[0].object.key = "galleries/faces/g1/collected".into();
    world.put_document(&keys::generation_manifest(&name("faces"), &job("gone")), &manifest).await;
    let gone = world.embed("e", "model", "v1", 40, 20, Some("gone")).await;
    assert_eq!((digests(&gone), copied(&gone)), (digests(&full), vec![0, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_with_few_of_the_rows_is_not_read() {
    let world = World::new().await;
    world.put_version("v1", &[&items(0..600)]).await;
    world.embed("g1", "model", "v1", 600, 600, None).await;
    // Of 600 rows two are wanted, then three: more than one in 256.
    for (version, wanted, expected) in [("v2", 2, 0), ("v3", 3, 3)] {
        world.put_version(version, &[&[items(0..wanted), items(700..710)].concat()]).await;
        let made = world.embed(&format!("of-{version}"), "model", version, wanted as u64 + 10, 50, Some("g1")).await;
        assert_eq!(copied(&made), [expected]);
    }
}
