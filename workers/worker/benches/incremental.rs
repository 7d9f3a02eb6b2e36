//! Embedding a dataset version in full, and after an earlier one of which all but a few images are the same: both as all tasks of a
//! job in one process, from parts in a store on disk to the generation's manifest.
//!
//! `cargo bench -p likeness-worker --bench incremental -- FOLDER [--rows N] [--changed SHARE] [--architecture cnn-s|resnet18]
//! [--repetitions N] [--threads N]` prints a line of JSON; FOLDER holds JPEGs. Changed rows are spread evenly over all shards;
//! then as many rows are appended instead. Both ways take turns, and must give the same shards. `infra/bench embedding` runs it.

#![allow(clippy::print_stdout, reason = "its lines are its result")]

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device;
use likeness_contract::codec::Message;
use likeness_contract::documents::{DatasetManifest, GenerationManifest, ModelManifest, ObjectRef, PartEntry};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, TaskId, WorkerId};
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
use likeness_worker::cache::Cache;
use likeness_worker::runtime::context::TaskContext;
use likeness_worker::runtime::device::DeviceThread;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As `likeness ingest` and `likeness embed` have them unless told.
const PART_ROWS: usize = 8192;
const SHARD_ROWS: u64 = 8192;
const APPROXIMATE_ROWS: Option<NonZeroU32> = NonZeroU32::new(4096);
const ATTRIBUTES: usize = 40;
/// What a worker's cache holds of parts and shards unless told.
const CACHE_BYTES: u64 = 1 << 30;

struct Arguments {
    folder: PathBuf,
    rows: usize,
    changed: f64,
    architecture: Architecture,
    repetitions: usize,
    threads: usize,
}

fn arguments() -> Result<Option<Arguments>> {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [folder, ref options @ ..] = words[..] else { return Ok(None) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (architecture, repetitions) = (Architecture::CnnS, 3);
    let mut arguments =
        Arguments { folder: folder.into(), rows: usize::MAX, changed: 0.01, architecture, repetitions, threads };
    for option in options.chunks(2) {
        match option {
            ["--rows", rows] => arguments.rows = rows.parse()?,
            ["--changed", share] => arguments.changed = share.parse()?,
            ["--architecture", "cnn-s"] => arguments.architecture = Architecture::CnnS,
            ["--architecture", "resnet18"] => arguments.architecture = Architecture::ResNet18,
            ["--repetitions", count] => arguments.repetitions = count.parse()?,
            ["--threads", count] => arguments.threads = count.parse()?,
            other => bail!("no option `{}`", other.join(" ")),
        }
    }
    Ok(Some(arguments))
}

fn main() -> Result<()> {
    let Some(arguments) = arguments()? else { return Ok(()) };
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    likeness_kernels::configure_threads(arguments.threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let images = read(&arguments.folder, arguments.rows)?;
    let folder = tempfile::TempDir::new()?;
    let world = World::new(folder.path(), arguments.architecture).await?;
    let rows = images.len();
    let few = ((rows as f64 * arguments.changed).round() as usize).max(1);
    let spread = rows / few;
    let changed =
        images.iter().enumerate().map(|(row, image)| if row % spread == 0 { other(image) } else { image.clone() });
    let appended = images.iter().cloned().chain(images.iter().take(few).map(|image| other(image)));
    world.put_version("v1", images.clone()).await?;
    world.put_version("changed", changed.collect()).await?;
    world.put_version("appended", appended.collect()).await?;
    world.embed("first", "v1", rows as u64, None).await?;
    let (mut full, mut after, mut grown, mut copied) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for repetition in 0..arguments.repetitions {
        let id = |what: &str| format!("{what}-{repetition}");
        let (seconds, shards, _) = world.embed(&id("full"), "changed", rows as u64, None).await?;
        full.push(seconds);
        let (seconds, same, of_these) = world.embed(&id("after"), "changed", rows as u64, Some("first")).await?;
        after.push(seconds);
        ensure!(shards == same, "the copied shards are not those that were computed");
        copied = of_these;
        grown.push(world.embed(&id("grown"), "appended", (rows + few) as u64, Some("first")).await?.0);
    }
    let [full, after, grown] = [full, after, grown].map(median);
    println!(
        r#"{{"engine": "Likeness", "work": "embed-incremental", "architecture": "{}", "rows": {rows}, "changed": {}, "copied": {copied}, "full_s": {full:.3}, "changed_s": {after:.3}, "changed_share": {:.4}, "appended_s": {grown:.3}, "appended_share": {:.4}, "repetitions": {}}}"#,
        arguments.architecture.name(),
        rows as u64 - copied,
        after / full,
        grown / full,
        arguments.repetitions,
    );
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Other bytes of the same picture: decoders stop at the end of a JPEG.
fn other(image: &[u8]) -> Vec<u8> {
    [image, b"changed"].concat()
}

/// A store with a model of random weights.
struct World {
    store: Store,
    device: DeviceThread,
    model: JobId,
}

impl World {
    async fn new(folder: &Path, architecture: Architecture) -> Result<Self> {
        let url = format!("file://{}", folder.display());
        let device = DeviceThread::start(Device::Cpu)?;
        let world = Self { store: Store::open(&url).await?, device, model: JobId::new("train")? };
        world.put_model(architecture).await?;
        Ok(world)
    }

    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<ObjectRef> {
        let digest = Digest::of(&bytes);
        Ok(self.store.create_object(key.into(), bytes.into(), digest).await?)
    }

    async fn put_document<M: Message>(&self, key: &str, document: &M) -> Result<()> {
        self.store.create_document(key, document).await?;
        Ok(())
    }

    async fn put_version(&self, version: &str, images: Vec<Vec<u8>>) -> Result<()> {
        let mut parts = Vec::new();
        for (number, images) in images.chunks(PART_ROWS).enumerate() {
            let row = |(row, image): (usize, &Vec<u8>)| PartRow {
                item: format!("{:06}.jpg", number * PART_ROWS + row),
                image: image.clone().into(),
                width: 1,
                height: 1,
                attributes: vec![1; ATTRIBUTES],
                split: 2,
            };
            let rows: Vec<PartRow> = images.iter().enumerate().map(row).collect();
            let object = self.put(&format!("datasets/{version}/{number}"), encode_part(&rows, ATTRIBUTES)?).await?;
            let count = rows.len() as u64;
            parts.push(PartEntry { object, rows: count, split_rows: [0, 0, count] });
        }
        let (dataset, vocabulary) = (dataset(version)?, vocabulary());
        let key = keys::dataset_manifest(&dataset.dataset, &dataset.version);
        let manifest = DatasetManifest { dataset, vocabulary, parts, skipped: vec![], warnings: vec![] };
        self.put_document(&key, &manifest).await
    }

    async fn put_model(&self, architecture: Architecture) -> Result<()> {
        let settings = ModelSettings {
            architecture,
            embedding_dim: 300,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(64),
        };
        let model = Model::fresh(&settings, ATTRIBUTES, 1, &Device::Cpu)?;
        let weights = self.put("models/weights.safetensors", model.weights()?).await?;
        let manifest = ModelManifest {
            model: self.model.clone(),
            settings,
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: dataset("v1")?,
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
        self.put_document(&keys::model_manifest(&self.model), &manifest).await
    }

    /// Seconds of all tasks of a job; the digests of its shards and indexes; how many rows were copied.
    async fn embed(&self, id: &str, version: &str, rows: u64, after: Option<&str>) -> Result<Embedded> {
        let (job, gallery) = (JobId::new(id)?, Name::new("faces")?);
        let target = GenerationRef { gallery: gallery.clone(), generation: job.clone() };
        let earlier = |id: &str| -> Result<GenerationRef> {
            Ok(GenerationRef { gallery: gallery.clone(), generation: JobId::new(id)? })
        };
        // A process of its own, which has the model already.
        let cache = Arc::new(Cache::new(self.store.clone(), CACHE_BYTES));
        cache.model(&self.model, &self.device).await?;
        let spec = self.spec(version, rows)?;
        let started = Instant::now();
        for (shard, from) in (0..).zip((0..rows).step_by(SHARD_ROWS as usize)) {
            let (model, target, rows) = (self.model.clone(), target.clone(), SHARD_ROWS.min(rows - from) as u32);
            let work = match after {
                None => TaskWork::EmbedShard { model, target, shard, from, rows },
                Some(id) => TaskWork::EmbedShardAfter { model, target, shard, from, rows, earlier: earlier(id)? },
            };
            self.done(&job, task_ids::shard(&job, &job, shard), work, &spec, &cache).await?;
        }
        let (model, finish) = (self.model.clone(), task_ids::embed_finish(&job, &job));
        let work = TaskWork::EmbedFinish { model, target: target.clone() };
        let output = self.done(&job, finish, work, &spec, &cache).await?;
        let seconds = started.elapsed().as_secs_f64();
        let key = keys::generation_manifest(&target.gallery, &target.generation);
        let manifest: GenerationManifest = self.store.require(&key).await?;
        // An index that is taken over from an earlier one is another than one that is built.
        let digests = manifest.shards.iter().map(|shard| (shard.object.digest, shard.approximate.is_some()));
        let copied = if let TaskOutput::Generation { copied, .. } = output { copied } else { 0 };
        Ok((seconds, digests.collect(), copied))
    }

    fn spec(&self, version: &str, gallery_rows: u64) -> Result<JobSpec> {
        let (gallery, dataset, shard_rows) = (Name::new("faces")?, dataset(version)?, SHARD_ROWS as u32);
        let embed = EmbedStage { gallery, dataset, rows: Split::All, gallery_rows, shard_rows };
        let work = JobWork::Embed { model: self.model.clone(), embed };
        Ok(JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() })
    }

    /// Does a task and makes its record.
    async fn done(
        &self,
        job: &JobId,
        task: TaskId,
        work: TaskWork,
        spec: &JobSpec,
        cache: &Arc<Cache>,
    ) -> Result<TaskOutput> {
        let message = TaskMessage { job: job.clone(), run: RunNumber(1), task: task.clone(), work };
        let worker = WorkerId::new("bench")?;
        let mut cx = TaskContext::alone(self.store.clone(), self.device.clone(), worker.clone(), message, spec.clone());
        cx.cache = Arc::clone(cache);
        cx.approximate_rows = APPROXIMATE_ROWS;
        let output = likeness_worker::job::run(&cx).await?;
        let (run, attempt, started_ms, finished_ms, device_ms) = (RunNumber(1), 1, 0, 0, 0);
        let (job, output_copy) = (job.clone(), output.clone());
        let key = keys::task_record(&job, &task);
        let record =
            TaskRecord { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output: output_copy };
        self.put_document(&key, &record).await?;
        Ok(output)
    }
}

type Embedded = (f64, Vec<(Digest, bool)>, u64);

fn dataset(version: &str) -> Result<DatasetRef> {
    Ok(DatasetRef { dataset: Name::new("faces")?, version: JobId::new(version)? })
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: (0..ATTRIBUTES).map(|i| format!("A{i}")).collect() }
}

fn read(folder: &Path, most: usize) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("`{}` holds the images", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    files.iter().take(most).map(|file| Ok(std::fs::read(file)?)).collect()
}
