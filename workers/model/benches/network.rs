//! Whole networks as the embed job and the trainer run them: median and best time of named works, as JSON lines.
//!
//! ```text
//! cargo bench -p likeness-model --bench network -- --list
//! cargo bench -p likeness-model --bench network -- WORK [--repetitions N] [--threads N] [--winograd off|inference|on]
//! ```
//!
//! One work a process, so that other engines can take turns with it and that the peak of memory is its own.

#![allow(clippy::print_stdout, reason = "its lines are its result")]

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};

use likeness_contract::settings::{Architecture, ModelSettings, Preprocessing, QueryEncoding, TrainSettings};
use likeness_model::{Batch, CpuCompute, Model, Trainer, Winograd};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ATTRIBUTES: usize = 40;
const DEFAULT_REPETITIONS: usize = 15;

/// One thing to measure.
struct Work {
    name: &'static str,
    architecture: Architecture,
    px: usize,
    batch: usize,
    trains: bool,
}

const fn work(name: &'static str, architecture: Architecture, px: usize, batch: usize, trains: bool) -> Work {
    Work { name, architecture, px, batch, trains }
}

const WORKS: [Work; 10] = [
    work("resnet18-64-forward-b64", Architecture::ResNet18, 64, 64, false),
    work("resnet18-64-forward-b8", Architecture::ResNet18, 64, 8, false),
    work("resnet18-64-forward-b1", Architecture::ResNet18, 64, 1, false),
    work("resnet18-224-forward-b8", Architecture::ResNet18, 224, 8, false),
    work("resnet50-224-forward-b1", Architecture::ResNet50, 224, 1, false),
    work("resnet50-224-forward-b8", Architecture::ResNet50, 224, 8, false),
    work("resnet50-224-forward-b32", Architecture::ResNet50, 224, 32, false),
    work("resnet18-64-train-b64", Architecture::ResNet18, 64, 64, true),
    work("resnet50-224-train-b8", Architecture::ResNet50, 224, 8, true),
    work("cnn-s-64-train-b128", Architecture::CnnS, 64, 128, true),
];

struct Arguments {
    work: &'static Work,
    repetitions: usize,
    threads: usize,
    winograd: Winograd,
}

fn arguments() -> Result<Option<Arguments>, String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut work, mut repetitions, mut threads, mut winograd) =
        (None, DEFAULT_REPETITIONS, cores, Winograd::default());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |value: String| value.parse().map_err(|_| format!("`{value}` is no number"));
        match word.as_str() {
            // What cargo passes to every bench.
            "--bench" => {}
            "--list" => return Ok(None),
            "--repetitions" => repetitions = number(value()?)?,
            "--threads" => threads = number(value()?)?,
            "--winograd" => winograd = value()?.parse()?,
            name => work = Some(WORKS.iter().find(|w| w.name == name).ok_or(format!("no work is called `{name}`"))?),
        }
    }
    let work = work.ok_or("name a work; --list shows them")?;
    Ok(Some(Arguments { work, repetitions, threads, winograd }))
}

fn noise(dims: &[usize]) -> Tensor {
    let count: usize = dims.iter().product();
    let values = (0..count).map(|i| ((i * 7_919) % 1_009) as f32 / 504.5 - 1.0).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).expect("the count is the shape's")
}

fn settings(work: &Work) -> ModelSettings {
    let preprocessing = Preprocessing::imagenet(work.px as u32);
    ModelSettings {
        architecture: work.architecture,
        embedding_dim: 300,
        encoding: QueryEncoding::ThreeState,
        preprocessing,
    }
}

/// The work as something to repeat.
fn prepare(work: &Work, winograd: Winograd) -> Box<dyn FnMut()> {
    let compute = CpuCompute { winograd, ..CpuCompute::default() };
    let images = noise(&[work.batch, 3, work.px, work.px]);
    if !work.trains {
        let model = Model::fresh(&settings(work), ATTRIBUTES, 1, &Device::Cpu).expect("valid settings");
        let model = model.with_compute(compute);
        return Box::new(move || drop(black_box(model.embed_images(&images).expect("a valid batch"))));
    }
    let train = TrainSettings::default();
    let trainer = Trainer::fresh(&settings(work), &train, ATTRIBUTES, 1_000_000, &Device::Cpu).expect("valid settings");
    let mut trainer = trainer.with_compute(compute);
    let queries = noise(&[2 * work.batch, ATTRIBUTES]).round().expect("on the cpu");
    let part = |from| queries.narrow(0, from, work.batch).expect("within");
    let batch = Batch { images, labels: part(0), positives: part(0), negatives: part(work.batch) };
    Box::new(move || {
        black_box(trainer.step(&batch).expect("a finite loss"));
    })
}

/// Largest resident memory so far, MiB.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

fn measure(Arguments { work, repetitions, threads, winograd }: Arguments) -> serde_json::Value {
    likeness_kernels::configure_threads(threads).expect("no pool was started before");
    let mut repeat = prepare(work, winograd);
    let mut time_ms = || {
        let started = Instant::now();
        repeat();
        started.elapsed().as_secs_f64() * 1e3
    };
    // Twice to warm up: buffers are made in the first, pages settle in the second.
    for _ in 0..2 {
        time_ms();
    }
    let mut times: Vec<f64> = (0..repetitions.max(1)).map(|_| time_ms()).collect();
    times.sort_by(f64::total_cmp);
    serde_json::json!({
        "engine": "Likeness",
        "work": work.name,
        "winograd": format!("{winograd:?}").to_lowercase(),
        "median_ms": times[times.len() / 2],
        "best_ms": times[0],
        "peak_rss_mb": peak_rss_mb(),
        "repetitions": times.len(),
        "threads": threads,
    })
}

fn main() -> Result<(), String> {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    match arguments()? {
        Some(arguments) => println!("{}", measure(arguments)),
        None => WORKS.iter().for_each(|work| println!("{}", work.name)),
    }
    Ok(())
}
