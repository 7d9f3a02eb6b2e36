//! Scoring of many queries over a large gallery, streamed from shard files: time and peak memory.
//!
//! `cargo bench -p likeness-evaluation --bench evaluation -- [--rows N] [--dim D] [--queries N] [--threads N] [--write FOLDER]`
//! makes a gallery (seeded: 40 attributes, embeddings near those of their labels), stores it as shards of 65,536 rows (in a process
//! of its own, whose memory is not counted), scores the queries and prints a line of JSON. `--write` puts `base.npy`, `query.npy` and `relevant.npy` (queries × rows, bytes)
//! into a folder for other engines, with `ap.npy`, the APs found here, and measures nothing.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use likeness_contract::settings::{EvaluateSettings, Vocabulary};
use likeness_evaluation::bootstrap::stream;
use likeness_evaluation::gallery::{Judgement, judge};
use likeness_evaluation::{Block, Error, Query, QueryScore, draw_queries, score};
use likeness_index::{Shard, ShardRows, encode_shard};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ATTRIBUTES: usize = 40;
const SHARD_ROWS: usize = 65_536;

struct Settings {
    rows: usize,
    dim: usize,
    queries: usize,
    threads: usize,
    write: Option<PathBuf>,
    /// Where the shards are; made when they are not there, and left.
    gallery: Option<PathBuf>,
    /// Where to make the shards, of the process that does that alone.
    make: Option<PathBuf>,
}

fn main() {
    let mut settings =
        Settings { rows: 200_000, dim: 300, queries: 1_000, threads: 2, write: None, gallery: None, make: None };
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let (Some(name), Some(value)) = (args.next(), args.next()) {
        let number = || value.parse().expect("a number");
        match name.as_str() {
            "--rows" => settings.rows = number(),
            "--dim" => settings.dim = number(),
            "--queries" => settings.queries = number(),
            "--threads" => settings.threads = number(),
            "--write" => settings.write = Some(value.into()),
            "--gallery" => settings.gallery = Some(value.into()),
            "--make" => settings.make = Some(value.into()),
            other => panic!("there is no `{other}`"),
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(settings.threads).build_global().expect("the first pool");
    if let Some(folder) = &settings.make {
        return make(&settings, folder);
    }
    let of_this_run = tempfile::tempdir().expect("a folder");
    let folder = settings.gallery.as_deref().unwrap_or(of_this_run.path());
    if !shard_path(folder, 0).exists() {
        make_in_a_process(&settings, folder);
    }
    let gallery = Gallery::open(&settings, folder);
    match &settings.write {
        None => measure(&settings, &gallery),
        Some(folder) => write(&gallery, folder),
    }
}

fn make_in_a_process(settings: &Settings, folder: &Path) {
    let program = std::env::current_exe().expect("a path");
    let Settings { rows, dim, threads, .. } = settings;
    let words = [("--rows", rows), ("--dim", dim), ("--threads", threads)];
    let mut command = std::process::Command::new(program);
    words.iter().for_each(|(name, value)| {
        command.arg(name).arg(value.to_string());
    });
    let made = command.arg("--make").arg(folder).status().expect("this very program");
    assert!(made.success(), "the gallery was not made");
}

/// Shards named by their first rows.
fn make(settings: &Settings, folder: &Path) {
    let mut rng = stream(7, 1);
    let tower = tower(settings.dim);
    for first in (0..settings.rows).step_by(SHARD_ROWS) {
        let rows = random_rows(&mut rng, &tower, first, SHARD_ROWS.min(settings.rows - first), settings.dim);
        let bytes = encode_shard(&rows, settings.dim, ATTRIBUTES).expect("sound rows");
        std::fs::write(shard_path(folder, first), bytes).expect("a file");
    }
}

fn shard_path(folder: &Path, first: usize) -> PathBuf {
    folder.join(format!("{first}.parquet"))
}

/// What each attribute adds to an embedding.
fn tower(dim: usize) -> Vec<f32> {
    let mut rng = stream(7, 0);
    (0..ATTRIBUTES * dim).map(|_| normal(&mut rng)).collect()
}

fn measure(settings: &Settings, gallery: &Gallery) {
    reset_peak();
    let begin = Instant::now();
    let scores = gallery.score();
    let seconds = begin.elapsed().as_secs_f64();
    let peak = memory("VmHWM");
    let map = scores.iter().map(|score| score.average_precision).sum::<f64>() / scores.len() as f64;
    let Settings { rows, dim, threads, .. } = settings;
    println!(
        "{{\"work\": \"evaluation\", \"rows\": {rows}, \"dim\": {dim}, \"queries\": {}, \"threads\": {threads}, \
         \"seconds\": {seconds:.3}, \"peak_mib\": {peak:.0}, \"map\": {map}}}",
        scores.len(),
    );
}

/// Shard files and queries.
struct Gallery {
    shards: Vec<PathBuf>,
    dim: usize,
    queries: Vec<(Query, Vec<f32>)>,
}

impl Gallery {
    fn open(settings: &Settings, folder: &Path) -> Self {
        let tower = tower(settings.dim);
        let shards = (0..settings.rows).step_by(SHARD_ROWS).map(|first| shard_path(folder, first)).collect();
        let mut gallery = Self { shards, dim: settings.dim, queries: Vec::new() };
        let mut labels = Vec::with_capacity(settings.rows * ATTRIBUTES);
        for number in 0..gallery.shards.len() {
            let block = gallery.load(number).expect("a shard");
            (0..block.rows()).for_each(|row| labels.extend_from_slice(block.labels(row)));
        }
        let vocabulary = Vocabulary { names: (0..ATTRIBUTES).map(|i| format!("A{i}")).collect() };
        let combined = (settings.queries.saturating_sub(2 * ATTRIBUTES) / 2) as u32;
        let asked = EvaluateSettings { pairs: combined, triples: combined, ..EvaluateSettings::default() };
        let drawn = draw_queries(&vocabulary, &labels, &id, &asked).expect("labels that fit");
        let embed = |query: Query| {
            let mut wanted = [0f32; ATTRIBUTES];
            query.terms.iter().for_each(|t| wanted[t.attribute as usize] = if t.positive { 1.0 } else { -1.0 });
            let embedding = unit(&tower, &wanted, settings.dim, || 0.0);
            (query, embedding)
        };
        let pooled = drawn.queries.into_iter().filter(|query| query.set.is_pooled());
        gallery.queries = pooled.take(settings.queries).map(embed).collect();
        gallery
    }

    fn load(&self, number: usize) -> Result<Rows, Error> {
        Ok(Rows(Shard::open(number as u32, &self.shards[number], self.dim, ATTRIBUTES).expect("a shard of ours")))
    }

    fn score(&self) -> Vec<QueryScore> {
        score(&self.queries, self.shards.len(), |number| self.load(number), &mut |_, _| {}).expect("sound queries")
    }
}

struct Rows(Shard);

impl Block for Rows {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn dim(&self) -> usize {
        self.0.dim()
    }

    fn attributes(&self) -> usize {
        self.0.attributes()
    }

    fn item(&self, row: usize) -> &str {
        self.0.item(row as u32)
    }

    fn embedding(&self, row: usize) -> &[f32] {
        self.0.embedding(row as u32)
    }

    fn labels(&self, row: usize) -> &[i8] {
        self.0.labels(row as u32)
    }
}

fn id(item: usize) -> String {
    format!("{item:07}.jpg")
}

fn random_rows(rng: &mut ChaCha8Rng, tower: &[f32], first: usize, rows: usize, dim: usize) -> ShardRows {
    let mut of_shard = ShardRows::default();
    for row in first..first + rows {
        let labels: [f32; ATTRIBUTES] =
            std::array::from_fn(|a| if rng.next_u32() % 100 < 5 + 2 * (a as u32 % 25) { 1.0 } else { -1.0 });
        of_shard.embeddings.extend(unit(tower, &labels, dim, || 20.0 * normal(rng)));
        of_shard.labels.extend(labels.map(|label| label as i8));
        of_shard.item_ids.push(id(row));
        of_shard.split.push(2);
        of_shard.source_part.push(0);
        of_shard.source_row.push(row as u32);
        of_shard.image_digest.push([0; 32]);
    }
    of_shard
}

/// labels · tower + noise, at length 1.
fn unit(tower: &[f32], labels: &[f32], dim: usize, mut noise: impl FnMut() -> f32) -> Vec<f32> {
    let mut vector: Vec<f32> = (0..dim).map(|_| noise()).collect();
    for (label, row) in labels.iter().zip(tower.chunks_exact(dim)).filter(|(label, _)| **label != 0.0) {
        vector.iter_mut().zip(row).for_each(|(value, weight)| *value += label * weight);
    }
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= norm);
    vector
}

/// About standard normal: the sum of twelve even numbers.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    (0..12).map(|_| rng.next_u32() as f32 / u32::MAX as f32).sum::<f32>() - 6.0
}

/// A figure of the process, MiB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}

/// Lets the peak begin at what is held now.
fn reset_peak() {
    let _only_where_linux_allows = std::fs::write("/proc/self/clear_refs", "5");
}

fn write(gallery: &Gallery, folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    let blocks: Vec<Rows> = (0..gallery.shards.len()).map(|number| gallery.load(number).expect("a shard")).collect();
    let rows: usize = blocks.iter().map(Block::rows).sum();
    let queries = &gallery.queries;
    let embeddings = blocks.iter().flat_map(|block| (0..block.rows()).flat_map(|row| block.embedding(row)));
    npy(&folder.join("base.npy"), "<f4", (rows, gallery.dim), embeddings.map(|value| value.to_le_bytes()));
    let embeddings = queries.iter().flat_map(|(_, embedding)| embedding);
    npy(&folder.join("query.npy"), "<f4", (queries.len(), gallery.dim), embeddings.map(|value| value.to_le_bytes()));
    let relevant = queries.iter().flat_map(|(query, _)| {
        let judge = |block: &Rows, row| judge(query, block, row) == Judgement::Relevant;
        blocks.iter().flat_map(move |block| (0..block.rows()).map(move |row| [u8::from(judge(block, row))]))
    });
    npy(&folder.join("relevant.npy"), "|u1", (queries.len(), rows), relevant);
    let scores = gallery.score();
    let found = scores.iter().map(|score| score.average_precision.to_le_bytes());
    npy(&folder.join("ap.npy"), "<f8", (queries.len(), 1), found);
}

/// An array of NumPy: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>, version 1.
fn npy<const N: usize>(path: &Path, kind: &str, shape: (usize, usize), values: impl Iterator<Item = [u8; N]>) {
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}, {}), }}", shape.0, shape.1);
    header.extend(std::iter::repeat_n(' ', 63 - (10 + header.len()) % 64));
    header.push('\n');
    let mut file = BufWriter::new(File::create(path).expect("a file"));
    let mut put = |bytes: &[u8]| file.write_all(bytes).expect("room on the disk");
    put(b"\x93NUMPY\x01\x00");
    put(&(header.len() as u16).to_le_bytes());
    put(header.as_bytes());
    values.for_each(|value| put(&value));
}
