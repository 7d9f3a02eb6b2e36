//! A whole ingest as one worker does it: lists a CelebA folder, reads and checks its images, writes parts and manifest to a
//! store on disk.
//!
//! `cargo bench -p likeness-worker --bench ingest -- ingest FOLDER STORE [--threads N] [--part-rows N]` prints a line of JSON;
//! `infra/bench ingest` makes the folder and runs a plain copy beside it.

#![allow(clippy::print_stdout, reason = "its lines are its result")]

use std::time::Instant;

use anyhow::{Result, bail};
use candle_core::Device;
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{JobId, Name, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    DeviceClass, IngestSource, JobOptions, JobSpec, JobWork, Priority, TaskMessage, TaskOutput, TaskRecord, TaskWork,
    task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_link::Store;
use likeness_worker::runtime::context::TaskContext;
use likeness_worker::runtime::device::DeviceThread;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WORK: &str = "ingest";

struct Arguments {
    folder: String,
    store: String,
    threads: usize,
    part_rows: u32,
}

fn arguments() -> Result<Option<Arguments>> {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [WORK, folder, store, ref options @ ..] = words[..] else { return Ok(None) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut arguments = Arguments { folder: folder.into(), store: store.into(), threads, part_rows: 8192 };
    for option in options.chunks(2) {
        match option {
            ["--threads", count] => arguments.threads = count.parse()?,
            ["--part-rows", count] => arguments.part_rows = count.parse()?,
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
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let Arguments { folder, store, threads, part_rows } = arguments;
    let source = IngestSource::Celeba { dir: folder.clone() };
    let dataset = Name::new("faces")?;
    let work = JobWork::Ingest { dataset: dataset.clone(), source, part_rows: *part_rows };
    let spec = JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() };
    let job = JobId::new("ingest")?;
    let bench = Bench { store: Store::open(store).await?, device: DeviceThread::start(Device::Cpu)?, job, spec };
    let started = Instant::now();
    let TaskOutput::Scan { rows, .. } = bench.task(task_ids::scan(), TaskWork::IngestScan).await? else {
        bail!("a scan tells its rows")
    };
    let scanned = started.elapsed().as_secs_f64();
    let parts = u32::try_from(rows.div_ceil(u64::from(*part_rows)))?;
    for part in 0..parts {
        let from = u64::from(part) * u64::from(*part_rows);
        let rows = u32::try_from((rows - from).min(u64::from(*part_rows)))?;
        bench.task(task_ids::part(part), TaskWork::IngestPart { part, from, rows }).await?;
    }
    bench.task(task_ids::ingest_finish(), TaskWork::IngestFinish).await?;
    let seconds = started.elapsed().as_secs_f64();
    let manifest: DatasetManifest = bench.store.require(&keys::dataset_manifest(&dataset, &bench.job)).await?;
    let (images, peak) = (manifest.rows(Split::All), peak_rss_mib());
    let bytes: u64 = manifest.parts.iter().map(|part| part.object.bytes).sum();
    println!(
        r#"{{"work": "{WORK}", "images": {images}, "written_bytes": {bytes}, "threads": {threads}, "seconds": {seconds:.4}, "scan_seconds": {scanned:.4}, "peak_mib": {peak:.1}}}"#
    );
    Ok(())
}

/// One job, whose tasks are done one after the other as a worker does them.
struct Bench {
    store: Store,
    device: DeviceThread,
    job: JobId,
    spec: JobSpec,
}

impl Bench {
    async fn task(&self, task: TaskId, work: TaskWork) -> Result<TaskOutput> {
        let Self { store, device, job, spec } = self;
        let (worker, run) = (WorkerId::new("bench")?, RunNumber(1));
        let message = TaskMessage { job: job.clone(), run, task: task.clone(), work };
        let cx = TaskContext::alone(store.clone(), device.clone(), worker.clone(), message, spec.clone());
        let output = likeness_worker::job::run(&cx).await?;
        let (attempt, started_ms, finished_ms, device_ms) = (1, 0, 0, 0);
        let key = keys::task_record(job, &task);
        let job = job.clone();
        let record = TaskRecord { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output };
        Ok(store.create_document(&key, &record).await?.document.output)
    }
}

/// What Linux says; 0 elsewhere.
fn peak_rss_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
