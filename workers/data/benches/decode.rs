//! JPEGs in memory to a normalised batch, on one thread.
//!
//! `cargo bench -p likeness-data --bench decode -- WORK FOLDER [--repetitions N]` prints one line of JSON; `infra/bench kernels`
//! makes the folder (`178x218/*.jpg`, `500x500/*.jpg`) and puts the peers' lines beside it. `--list` names the works.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use likeness_contract::settings::Preprocessing;
use likeness_data::Loader;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Name, folder, side of the input in pixels.
const WORKS: [(&str, &str, u32); 2] = [("decode-178x218-64", "178x218", 64), ("decode-500x500-224", "500x500", 224)];
const WARM_UP: usize = 2;
const REPETITIONS: usize = 15;

fn main() {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--list"] => WORKS.iter().for_each(|(work, ..)| println!("{work}")),
        [work, folder] => run(work, Path::new(folder), REPETITIONS),
        [work, folder, "--repetitions", count] => run(work, Path::new(folder), count.parse().expect("a number")),
        _ => println!("usage: decode --list | WORK FOLDER [--repetitions N]"),
    }
}

fn run(work: &str, folder: &Path, repetitions: usize) {
    let (_, size, px) = WORKS.into_iter().find(|(name, ..)| *name == work).expect("`--list` names the works");
    let images = read(&folder.join(size));
    let loader = Loader::new(&Preprocessing::imagenet(px));
    let mut batch = vec![0.0; images.len() * loader.input_len()];
    let mut load = || {
        for (bytes, out) in images.iter().zip(batch.chunks_exact_mut(loader.input_len())) {
            loader.load(bytes, out).expect("a sound image");
        }
    };
    (0..WARM_UP).for_each(|_| load());
    let time = |_| {
        let started = Instant::now();
        load();
        1e3 * started.elapsed().as_secs_f64()
    };
    let mut times: Vec<f64> = (0..repetitions).map(time).collect();
    times.sort_by(f64::total_cmp);
    let (median, best, items) = (times[times.len() / 2], times[0], images.len());
    println!(
        r#"{{"engine": "Likeness", "work": "{work}", "median_ms": {median:.4}, "best_ms": {best:.4}, "peak_rss_mb": {:.1}, "repetitions": {repetitions}, "items": {items}}}"#,
        peak_rss_mb(),
    );
}

fn read(folder: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a readable file")).collect()
}

/// What Linux says; 0 elsewhere.
fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}
