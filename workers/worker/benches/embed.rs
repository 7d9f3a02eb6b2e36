//! The embed task whole, from JPEG bytes in a dataset part to a shard in a store on disk, beside the bare forward passes
//! of the same network on as many images.
//!
//! `cargo bench -p likeness-worker --bench embed -- embed-resnet18-64 FOLDER [--repetitions N] [--threads N]` prints a line of
//! JSON for each; `infra/bench kernels` makes the folder (`178x218/*.jpg`). Task and forward passes take turns.

#![allow(clippy::print_stdout, reason = "its lines are its result")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use likeness_contract::codec::Message;
use likeness_contract::documents::{DatasetManifest, ModelManifest, ObjectRef, PartEntry};
use likeness_contract::ids::{Digest, JobId, Name, RunNumber, WorkerId};
use likeness_contract::jobs::{
    DatasetRef, DeviceClass, EmbedStage, GenerationRef, JobOptions, JobSpec, JobWork, Priority, TaskMessage,
    TaskOutput, TaskWork, task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::{
    Architecture, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings, Vocabulary,
};
use likeness_data::{PartRow, encode_part};
use likeness_link::Store;
use likeness_model::Model;
use likeness_worker::cache::LoadedModel;
use likeness_worker::runtime::context::TaskContext;
use likeness_worker::runtime::device::DeviceThread;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WORK: &str = "embed-resnet18-64";
const SIZE: (u32, u32) = (178, 218);
const PX: usize = 64;
const BATCH: usize = 64;
const ROWS: usize = 16 * BATCH;
const ATTRIBUTES: usize = 40;

struct Arguments {
    folder: PathBuf,
    repetitions: usize,
    threads: usize,
}

fn arguments() -> Result<Option<Arguments>> {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [WORK, folder, ref options @ ..] = words[..] else { return Ok(None) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments { folder: folder.into(), repetitions: 7, threads };
    for option in options.chunks(2) {
        match option {
            ["--repetitions", count] => arguments.repetitions = count.parse()?,
            ["--threads", count] => arguments.threads = count.parse()?,
            other => bail!("no option `{}`", other.join(" ")),
        }
    }
    Ok(Some(arguments))
}

fn main() -> Result<()> {
    let Some(arguments) = arguments()? else {
        println!("{WORK}");
        return Ok(());
    };
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    likeness_kernels::configure_threads(arguments.threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let folder = tempfile::TempDir::new()?;
    let world = World::new(folder.path(), &read(&arguments.folder)?).await?;
    let (mut embedding, mut forward) = (Vec::new(), Vec::new());
    // The first of each only warms up.
    for repetition in 0..=arguments.repetitions {
        let (task, bare) = world.repetition(repetition).await?;
        if repetition > 0 {
            embedding.push(task);
            forward.push(bare);
        }
    }
    print("Likeness", embedding);
    print("bare forward", forward);
    Ok(())
}

fn print(engine: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let (median, best, repetitions, peak) = (times[times.len() / 2], times[0], times.len(), peak_rss_mb());
    println!(
        r#"{{"engine": "{engine}", "work": "{WORK}", "median_ms": {median:.4}, "best_ms": {best:.4}, "peak_rss_mb": {peak:.1}, "repetitions": {repetitions}, "items": {ROWS}}}"#
    );
}

/// A store with a dataset and a model of random weights.
struct World {
    store: Store,
    device: DeviceThread,
    dataset: DatasetRef,
    model: JobId,
}

impl World {
    async fn new(folder: &Path, images: &[Vec<u8>]) -> Result<Self> {
        let url = format!("file://{}", folder.display());
        let world = Self {
            store: Store::open(&url).await?,
            device: DeviceThread::start(Device::Cpu)?,
            dataset: DatasetRef { dataset: Name::new("faces")?, version: JobId::new("ingest")? },
            model: JobId::new("train")?,
        };
        world.put_dataset(images).await?;
        world.put_model().await?;
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

    async fn put_dataset(&self, images: &[Vec<u8>]) -> Result<()> {
        let row = |row: usize| PartRow {
            item: format!("{row:06}.jpg"),
            image: images[row % images.len()].clone().into(),
            width: SIZE.0,
            height: SIZE.1,
            attributes: vec![1; ATTRIBUTES],
            split: 2,
        };
        let rows: Vec<PartRow> = (0..ROWS).map(row).collect();
        let object = self.put("datasets/part.parquet", encode_part(&rows, ATTRIBUTES)?).await?;
        let parts = vec![PartEntry { object, rows: ROWS as u64, split_rows: [0, 0, ROWS as u64] }];
        let (vocabulary, dataset) = (vocabulary(), self.dataset.clone());
        let manifest = DatasetManifest { dataset, vocabulary, parts, skipped: vec![], warnings: vec![] };
        let key = keys::dataset_manifest(&self.dataset.dataset, &self.dataset.version);
        self.put_document(&key, &manifest).await
    }

    async fn put_model(&self) -> Result<()> {
        let settings = ModelSettings {
            architecture: Architecture::ResNet18,
            embedding_dim: 300,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(PX as u32),
        };
        let model = Model::fresh(&settings, ATTRIBUTES, 1, &Device::Cpu)?;
        let weights = self.put("models/weights.safetensors", model.weights()?).await?;
        let manifest = ModelManifest {
            model: self.model.clone(),
            settings,
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: self.dataset.clone(),
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

    /// Milliseconds of the task and of the forward passes alone. The model is loaded before, the part is read in the task.
    async fn repetition(&self, number: usize) -> Result<(f64, f64)> {
        let cx = self.task(number)?;
        let model = cx.cache.model(&self.model, &self.device).await?;
        let started = Instant::now();
        let output = likeness_worker::job::run(&cx).await?;
        let task = started.elapsed();
        ensure!(
            matches!(output, TaskOutput::Shard { rows, .. } | TaskOutput::IndexedShard { rows, .. } if rows == ROWS as u64),
            "rows are missing: {output:?}"
        );
        let started = Instant::now();
        self.device.run(move |device| Ok(forward(&model, device)?)).await?;
        Ok((1e3 * task.as_secs_f64(), 1e3 * started.elapsed().as_secs_f64()))
    }

    /// A task of a generation of its own, so that its shard is really written.
    fn task(&self, number: usize) -> Result<TaskContext> {
        let job = JobId::new(format!("embed-{number}"))?;
        let gallery = Name::new("faces")?;
        let target = GenerationRef { gallery: gallery.clone(), generation: job.clone() };
        let embed = EmbedStage {
            gallery,
            dataset: self.dataset.clone(),
            rows: Split::All,
            gallery_rows: ROWS as u64,
            shard_rows: ROWS as u32,
        };
        let work = JobWork::Embed { model: self.model.clone(), embed };
        let spec = JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() };
        let task = task_ids::shard(&job, &target.generation, 0);
        let work = TaskWork::EmbedShard { model: self.model.clone(), target, shard: 0, from: 0, rows: ROWS as u32 };
        let message = TaskMessage { job, run: RunNumber(1), task, work };
        Ok(TaskContext::alone(self.store.clone(), self.device.clone(), WorkerId::new("bench")?, message, spec))
    }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: (0..ATTRIBUTES).map(|i| format!("A{i}")).collect() }
}

/// As many images as the task's, in batches of the same size.
fn forward(model: &Arc<LoadedModel>, device: &Device) -> candle_core::Result<()> {
    let count = BATCH * 3 * PX * PX;
    let values = (0..count).map(|i| ((i * 7_919) % 1_009) as f32 / 504.5 - 1.0).collect();
    let images = Tensor::from_vec(values, (BATCH, 3, PX, PX), device)?;
    for _ in 0..ROWS / BATCH {
        model.model.embed_images(&images).map_err(candle_core::Error::wrap)?;
    }
    Ok(())
}

fn read(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let folder = folder.join(format!("{}x{}", SIZE.0, SIZE.1));
    let entries = std::fs::read_dir(&folder).with_context(|| format!("`{}` holds the images", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    files.iter().map(|file| Ok(std::fs::read(file)?)).collect()
}

/// What Linux says; 0 elsewhere.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
