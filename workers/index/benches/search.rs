//! Search over one shard, exact and approximate, and loading it.
//!
//! `cargo bench -p likeness-index --bench search -- DATA [--threads 1,2] [--only PART] [--repetitions N] [--write FOLDER]`
//! prints one line of JSON for every work. DATA is `clustered` (1,000,000 × 300, made here, the same each time),
//! `clustered-300k`, `clustered-small`, `hostile` (rows that no code of few bits can tell apart), or a folder with `base.npy` and `query.npy` (f32, unit rows), where other engines find the same vectors
//! after `--write`. PART is a part of a work's name: `exact`, `filtered`, `load`, `approximate`, `together` (approximate queries
//! alone and in batches), `survivors` (rows that each level lets through), or `crossover` (batches of all sizes). `read-bytes` is the file read into memory that is allocated
//! then, as a shard's is, by as many threads. Answers are compared with those of the plain scan before anything is timed.

#![allow(clippy::print_stdout, reason = "a bench prints its figures")]

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use likeness_contract::ranking::Candidate;
use likeness_index::{
    Approximate, Approximation, Cache, Cancel, Query, RowSet, Shard, ShardRows, Survivors, encode_shard, survivors,
    top_k_approximate, top_k_approximate_batch, top_k_batch,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Queries at once and K.
const WORKS: [(usize, usize); 6] = [(1, 10), (1, 100), (16, 10), (16, 100), (256, 10), (256, 100)];
/// Batches around the change from one way to the other, measured with `--only crossover`.
const CROSSOVER: [usize; 8] = [1, 2, 4, 8, 15, 17, 24, 32];
/// Parts of the rows that a filtered query is about, of 1,000.
const SHARES: [u32; 5] = [900, 500, 200, 50, 5];
/// Recalls that are asked of the approximate index.
const TARGETS: [f64; 16] =
    [0.88, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96, 0.965, 0.97, 0.975, 0.98, 0.983, 0.986, 0.99, 0.993, 0.996];
/// Batches and recalls of approximate queries that arrive together.
const TOGETHER: [usize; 4] = [1, 4, 16, 64];
const TOGETHER_TARGETS: [f64; 3] = [0.9, 0.95, 0.98];
const QUERIES: usize = 256;
const CHECKED: usize = 6;

struct Settings {
    data: String,
    threads: Vec<usize>,
    only: String,
    repetitions: usize,
    write: Option<String>,
}

fn main() {
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(data) = args.next() else {
        println!("usage: search DATA [--threads 1,2] [--only PART] [--repetitions N] [--write FOLDER]");
        return;
    };
    let mut settings = Settings { data, threads: vec![1, 2], only: String::new(), repetitions: 9, write: None };
    while let (Some(name), Some(value)) = (args.next(), args.next()) {
        match name.as_str() {
            "--threads" => settings.threads = value.split(',').map(|n| n.parse().expect("a number")).collect(),
            "--only" => settings.only = value,
            "--repetitions" => settings.repetitions = value.parse().expect("a number"),
            "--write" => settings.write = Some(value),
            other => panic!("unknown option `{other}`"),
        }
    }
    run(&settings);
}

fn run(settings: &Settings) {
    let (base, queries) = match settings.data.as_str() {
        "clustered" => (Matrix::clustered(1_000_000, 300, 1), Matrix::clustered(QUERIES, 300, 2)),
        "clustered-300k" => (Matrix::clustered(300_000, 300, 1), Matrix::clustered(QUERIES, 300, 2)),
        "clustered-small" => (Matrix::clustered(100_000, 300, 1), Matrix::clustered(QUERIES, 300, 2)),
        "hostile" => (Matrix::hostile(1_000_000, 300, 1), Matrix::hostile(QUERIES, 300, 2)),
        folder => {
            (Matrix::read(&Path::new(folder).join("base.npy")), Matrix::read(&Path::new(folder).join("query.npy")))
        }
    };
    if let Some(folder) = &settings.write {
        base.write(&Path::new(folder).join("base.npy"));
        queries.write(&Path::new(folder).join("query.npy"));
    }
    let name = Path::new(&settings.data).file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let shape = format!("{name}-{}x{}", base.rows(), base.dim);
    if "load".contains(&settings.only) || settings.only.is_empty() {
        load(&base, &shape, settings.repetitions.min(5));
    }
    let queries: Vec<&[f32]> = queries.values.chunks_exact(queries.dim).take(QUERIES).collect();
    search(settings, base, &queries, &shape);
}

/// All searches, on every number of threads.
fn search(settings: &Settings, base: Matrix, queries: &[&[f32]], shape: &str) {
    let plain = Shard::new(0, base.into_rows(), queries[0].len(), 1).expect("unit rows");
    let checked = &queries[..CHECKED.min(queries.len())];
    let answer = |shard: &Shard, queries: &[&[f32]]| {
        top_k_batch(&[shard], &asked(queries, 100), &Cancel::new()).expect("an answer")
    };
    let expected = answer(&plain, checked);
    all_works(settings, "Likeness plain scan", &plain, queries, shape, &WORKS[..1]);
    let started = Instant::now();
    let shard = plain.with_codes().expect("memory");
    let (build_ms, rows) = (1e3 * started.elapsed().as_secs_f64(), shard.rows() as f64);
    println!(
        r#"{{"engine": "Likeness", "work": "build-{shape}", "median_ms": {build_ms:.1}, "code_bytes_per_vector": {:.1}, "bytes_per_vector": {:.1}, "threads": {}}}"#,
        shard.memory().codes as f64 / rows,
        shard.memory().total() as f64 / rows,
        rayon::current_num_threads(),
    );
    assert_eq!(answer(&shard, checked), expected, "the answers of the plain scan");
    assert_eq!(answer(&shard, queries)[..checked.len()], expected, "the answers of the plain scan");
    all_works(settings, "Likeness", &shard, queries, shape, &WORKS);
    if settings.only == "crossover" {
        let everything = Settings {
            only: String::new(),
            data: String::new(),
            threads: settings.threads.clone(),
            write: None,
            ..*settings
        };
        all_works(&everything, "Likeness", &shard, queries, shape, &CROSSOVER.map(|batch| (batch, 10)));
    }
    filtered(settings, &shard, queries, shape);
    if "survivors".contains(&settings.only) {
        count_survivors(&shard, queries, shape);
    }
    if "approximate".contains(&settings.only) || ["approximate", "together"].contains(&settings.only.as_str()) {
        approximate(settings, shard, queries, shape);
    }
}

/// Medians of what each level lets through.
fn count_survivors(shard: &Shard, queries: &[&[f32]], shape: &str) {
    for k in [10, 100] {
        let count = |vector: &&[f32]| {
            let query = Query { vector, k, within: None };
            survivors(&[shard], &query, &Cancel::new()).expect("an answer")
        };
        let counts: Vec<Survivors> = queries.iter().filter_map(count).collect();
        let median = |mut values: Vec<usize>| {
            values.sort_unstable();
            values.get(values.len() / 2).copied()
        };
        let four = median(counts.iter().filter_map(|count| count.four).collect());
        let seven = median(counts.iter().filter(|count| count.four.is_some()).map(|count| count.seven).collect());
        println!(
            r#"{{"engine": "Likeness", "work": "survivors-{shape}-k{k}", "rows": {}, "four": {}, "seven": {}, "guarded": {}, "queries": {}, "median_ms": 0}}"#,
            shard.rows(),
            four.unwrap_or(0),
            seven.unwrap_or(0),
            counts.iter().filter(|count| count.four.is_none()).count(),
            counts.len(),
        );
    }
}

/// One query about a part of the rows, on one thread.
fn filtered(settings: &Settings, shard: &Shard, queries: &[&[f32]], shape: &str) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads");
    for per_mille in SHARES {
        let work = format!("filtered-{shape}-{per_mille}-of-1000");
        if !work.contains(&settings.only) {
            continue;
        }
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut set = RowSet::none(shard.rows());
        (0..shard.rows() as u32).filter(|_| random.random_range(0..1000) < per_mille).for_each(|row| set.insert(row));
        let search = |queries: &[&[f32]]| {
            let query = Query { vector: queries[0], k: 10, within: Some(&[&set]) };
            pool.install(|| top_k_batch(&[shard], &[query], &Cancel::new())).expect("an answer");
        };
        measure(("Likeness", work.as_str()), 1, 1, settings.repetitions, queries, search);
    }
}

/// Builds the approximate index, and asks it for several recalls.
fn approximate(settings: &Settings, shard: Shard, queries: &[&[f32]], shape: &str) {
    let exact = top_k_batch(&[&shard], &asked(queries, 10), &Cancel::new()).expect("an answer");
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let mut index = None;
    for &threads in &settings.threads {
        let started = Instant::now();
        index = pool(threads).install(|| Approximate::build(&shard)).expect("memory");
        let (took, rows) = (1e3 * started.elapsed().as_secs_f64(), shard.rows() as f64);
        let index = index.as_ref().expect("many rows");
        println!(
            r#"{{"engine": "Likeness", "work": "approximate-build-{shape}", "median_ms": {took:.1}, "best_ms": {took:.1}, "lists": {}, "bytes_per_vector": {:.1}, "threads": {threads}, "repetitions": 1}}"#,
            index.lists(),
            index.bytes() as f64 / rows,
        );
    }
    let shard = shard.with_approximate(index.expect("many rows"));
    together(settings, &shard, queries, shape);
    if !"approximate".contains(&settings.only) {
        return;
    }
    for &threads in &settings.threads {
        for target in TARGETS {
            let ask = |vector: &&[f32]| {
                let query = Query { vector, k: 10, within: None };
                top_k_approximate(&[&shard], &query, target, &Cancel::new()).expect("an answer")
            };
            let (mut best, mut answers) = (f64::INFINITY, Vec::new());
            let mut times = Vec::new();
            for _ in 0..settings.repetitions.max(3) {
                let started = Instant::now();
                answers = pool(threads).install(|| match threads {
                    1 => queries.iter().map(ask).collect(),
                    _ => queries.par_iter().map(ask).collect(),
                });
                times.push(started.elapsed().as_secs_f64());
                best = best.min(started.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            let hits = |(answer, exact): (&Approximation, &Vec<Candidate>)| {
                exact.iter().filter(|candidate| answer.candidates.contains(candidate)).count()
            };
            let found: usize = answers.iter().zip(&exact).map(hits).sum();
            let (recall, median) = (found as f64 / (10 * queries.len()) as f64, times[times.len() / 2]);
            let (said, qps) = (answers[0].recall, queries.len() as f64 / median);
            println!(
                r#"{{"engine": "Likeness", "work": "approximate-{shape}", "target": {target}, "said": {said:.4}, "recall": {recall:.4}, "median_ms": {:.4}, "best_ms": {:.4}, "qps": {qps:.0}, "threads": {threads}, "repetitions": {}}}"#,
                1e3 * median / queries.len() as f64,
                1e3 * best / queries.len() as f64,
                times.len(),
            );
        }
    }
}

/// Approximate queries that arrive together, beside the same ones that the threads take one by one.
fn together(settings: &Settings, shard: &Shard, queries: &[&[f32]], shape: &str) {
    for &threads in &settings.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        for (target, batch) in TOGETHER_TARGETS.iter().flat_map(|target| TOGETHER.map(|batch| (*target, batch))) {
            let asked: Vec<(Query, f64)> =
                queries.iter().map(|vector| (Query { vector, k: 10, within: None }, target)).collect();
            let one = |(query, recall): &(Query, f64)| top_k_approximate(&[shard], query, *recall, &Cancel::new());
            let alone = |asked: &[(Query, f64)]| {
                pool.install(|| asked.par_iter().map(one).collect::<Result<Vec<_>, _>>()).expect("an answer")
            };
            let shared = |asked: &[(Query, f64)]| {
                pool.install(|| top_k_approximate_batch(&[shard], asked, &Cancel::new())).expect("an answer")
            };
            assert_eq!(alone(&asked[..batch]), shared(&asked[..batch]), "the answers of queries alone");
            // In turn, so that both meet the same noise; with other queries, whose rows are not in the caches.
            let mut times = [Vec::new(), Vec::new()];
            let batches: Vec<&[(Query, f64)]> = asked.chunks_exact(batch).collect();
            for turn in 0..(512 / batch).max(16) {
                for (way, times) in times.iter_mut().enumerate() {
                    let asked = batches[(turn + way * batches.len() / 2) % batches.len()];
                    let started = Instant::now();
                    assert_eq!(if way == 0 { alone(asked) } else { shared(asked) }.len(), batch);
                    times.push(1e3 * started.elapsed().as_secs_f64() / batch as f64);
                }
            }
            for (work, times) in ["alone", "together"].iter().zip(&mut times) {
                times.sort_by(f64::total_cmp);
                let (median, best) = (times[times.len() / 2], times[0]);
                println!(
                    r#"{{"engine": "Likeness", "work": "{work}-b{batch}-{shape}", "target": {target}, "median_ms": {median:.4}, "best_ms": {best:.4}, "qps": {:.0}, "threads": {threads}, "repetitions": {}}}"#,
                    1e3 / median,
                    times.len(),
                );
            }
        }
    }
}

fn asked<'a>(queries: &[&'a [f32]], k: usize) -> Vec<Query<'a>> {
    queries.iter().map(|vector| Query { vector, k, within: None }).collect()
}

/// Times the works on every number of threads.
fn all_works(
    settings: &Settings,
    engine: &str,
    shard: &Shard,
    queries: &[&[f32]],
    shape: &str,
    works: &[(usize, usize)],
) {
    for &threads in &settings.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        for &(batch, k) in works {
            let work = format!("exact-{shape}-b{batch}-k{k}");
            if batch <= queries.len() && work.contains(&settings.only) {
                let search = |queries: &[&[f32]]| {
                    pool.install(|| top_k_batch(&[shard], &asked(queries, k), &Cancel::new())).expect("an answer");
                };
                measure((engine, work.as_str()), batch, threads, settings.repetitions, queries, search);
            }
        }
    }
}

/// Other queries each time.
fn measure(
    (engine, work): (&str, &str),
    batch: usize,
    threads: usize,
    repetitions: usize,
    queries: &[&[f32]],
    search: impl Fn(&[&[f32]]),
) {
    let repetitions = if batch == 1 { repetitions.max(QUERIES / 8) } else { repetitions };
    let mut batches = queries.chunks_exact(batch).cycle();
    let mut time = || {
        let queries = batches.next().expect("a cycle");
        let started = Instant::now();
        search(queries);
        1e3 * started.elapsed().as_secs_f64()
    };
    time();
    let mut times: Vec<f64> = (0..repetitions).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let qps = 1e3 * batch as f64 / median;
    println!(
        r#"{{"engine": "{engine}", "work": "{work}", "queries": {batch}, "median_ms": {median:.3}, "best_ms": {best:.3}, "qps": {qps:.1}, "threads": {threads}, "repetitions": {repetitions}}}"#
    );
}

/// Reading a shard's file beside reading and decoding it, in turn; the file is in the page cache, and on the disk, which is
/// not written to meanwhile.
fn load(base: &Matrix, shape: &str, repetitions: usize) {
    let (dim, file) = (base.dim, std::env::temp_dir().join(format!("likeness-{shape}.parquet")));
    let encoded = encode_shard(&base.clone().into_rows(), dim, 1).expect("unit rows");
    std::fs::write(&file, &encoded).expect("a writable folder");
    drop(encoded);
    settle(&file);
    let [read, decoded, opened, quantised] = in_turn(
        repetitions,
        [
            &|| read_fresh(&file, rayon::current_num_threads()),
            &|| {
                let bytes = Bytes::from(std::fs::read(&file).expect("a readable file"));
                Shard::decode(0, bytes, dim, 1).expect("a sound file").rows()
            },
            &|| Shard::open(0, &file, dim, 1).expect("a sound file").rows(),
            &|| Shard::open(0, &file, dim, 1).and_then(Shard::with_codes).expect("a sound file").rows(),
        ],
    );
    let local = load_local(&file, dim, repetitions);
    let parts = [
        ("read-bytes", read),
        ("load-from-bytes", decoded),
        ("load", opened),
        ("load-with-codes", quantised),
        ("load-local", local),
    ];
    for (part, median) in parts {
        println!(
            r#"{{"engine": "Likeness", "work": "{part}-{shape}", "median_ms": {median:.1}, "threads": {}, "repetitions": {repetitions}}}"#,
            rayon::current_num_threads()
        );
    }
    std::fs::remove_file(&file).expect("a writable folder");
}

/// Waits until a file is on the disk.
fn settle(file: &Path) {
    File::open(file).and_then(|file| file.sync_all()).expect("a file that can be synced");
}

/// Medians in ms of works that take turns, so that all meet the same noise.
fn in_turn<const N: usize>(repetitions: usize, works: [&dyn Fn() -> usize; N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..repetitions {
        for (work, times) in works.iter().zip(&mut times) {
            let started = Instant::now();
            assert!(work() > 0);
            times.push(1e3 * started.elapsed().as_secs_f64());
        }
    }
    times.map(|mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

/// From the local cache, with codes and with all checks; the rows stay in the file.
fn load_local(file: &Path, dim: usize, repetitions: usize) -> f64 {
    let folder = file.with_extension("cache");
    let cache = Cache::open(&folder, u64::MAX).expect("a writable folder");
    let held = Shard::open(0, file, dim, 1).and_then(Shard::with_codes).expect("a sound file");
    let started = Instant::now();
    assert!(cache.put(&[0; 32], &held).expect("room"));
    eprintln!("written to the local cache in {:.0} ms", 1e3 * started.elapsed().as_secs_f64());
    drop(held);
    let get = || cache.get(0, &[0; 32]).expect("a sound file").expect("what was put");
    settle(&folder.join("00".repeat(32) + ".shard"));
    let [took] = in_turn(repetitions, [&|| get().rows()]);
    let shard = get();
    let (memory, rows) = (shard.memory(), shard.rows() as f64);
    eprintln!("memory a vector beside the file: {:.1} bytes", memory.total() as f64 / rows);
    std::fs::remove_dir_all(&folder).expect("a writable folder");
    took
}

/// Reads a file by several threads into memory that is allocated now, as a shard's is.
fn read_fresh(file: &Path, threads: usize) -> usize {
    let (file, len) = (File::open(file).expect("a readable file"), file.metadata().expect("a file").len() as usize);
    let mut bytes = vec![0u8; len];
    std::thread::scope(|scope| {
        for (part, bytes) in bytes.chunks_mut(len.div_ceil(threads)).enumerate() {
            let (file, start) = (&file, (part * len.div_ceil(threads)) as u64);
            scope.spawn(move || file.read_exact_at(bytes, start).expect("a readable file"));
        }
    });
    bytes.len()
}

/// Rows of f32.
#[derive(Clone)]
struct Matrix {
    values: Vec<f32>,
    dim: usize,
}

/// Rows that are made from one seed.
const SEED_ROWS: usize = 4096;
const TOPICS: usize = 64;
const CLUSTERS: usize = 10_000;

impl Matrix {
    fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    /// Unit rows around the centres of clusters, which are near the centres of topics: near neighbours as embeddings
    /// have them (cosine .5–.8), and many rows that are somewhat alike.
    fn clustered(rows: usize, dim: usize, seed: u64) -> Self {
        let topics = normal(TOPICS * dim, 1000);
        let mut centres = normal(CLUSTERS * dim, 1001);
        for (cluster, centre) in centres.chunks_exact_mut(dim).enumerate() {
            let topic = &topics[cluster % TOPICS * dim..][..dim];
            centre.iter_mut().zip(topic).for_each(|(c, t)| *c += 0.7 * t);
            to_unit(centre);
        }
        let mut values = vec![0.0; rows * dim];
        values.par_chunks_mut(SEED_ROWS * dim).enumerate().for_each(|(part, values)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed << 32 | part as u64);
            for row in values.chunks_exact_mut(dim) {
                let centre = &centres[random.random_range(0..CLUSTERS) * dim..][..dim];
                let spread = random.random_range(0.5f32..1.0) / (dim as f32).sqrt();
                fill_normal(row, &mut random);
                row.iter_mut().zip(centre).for_each(|(v, c)| *v = *v * spread + c);
                to_unit(row);
            }
        });
        Self { values, dim }
    }

    /// Two points, each a million times with a little noise: every row is as near as half of all.
    fn hostile(rows: usize, dim: usize, seed: u64) -> Self {
        let mut point = normal(dim, 1002);
        to_unit(&mut point);
        let mut values = vec![0.0; rows * dim];
        values.par_chunks_mut(SEED_ROWS * dim).enumerate().for_each(|(part, values)| {
            let mut random = ChaCha8Rng::seed_from_u64(seed << 32 | part as u64);
            for (number, row) in values.chunks_exact_mut(dim).enumerate() {
                fill_normal(row, &mut random);
                let side = if number.is_multiple_of(2) { 1.0 } else { -1.0 };
                row.iter_mut().zip(&point).for_each(|(v, p)| *v = *v * 1e-4 + side * p);
                to_unit(row);
            }
        });
        Self { values, dim }
    }

    fn into_rows(self) -> ShardRows {
        let n = self.rows();
        ShardRows {
            item_ids: (0..n).map(|row| format!("{row:08}")).collect(),
            embeddings: self.values,
            labels: vec![0; n],
            split: vec![0; n],
            source_part: vec![0; n],
            source_row: (0..n as u32).collect(),
            image_digest: vec![[0; 32]; n],
        }
    }

    /// NumPy's format, version 1: f32, little-endian, in C order.
    fn read(file: &Path) -> Self {
        let mut reader = BufReader::new(File::open(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
        let mut start = [0; 10];
        reader.read_exact(&mut start).expect("a header");
        let mut header = vec![0; usize::from(u16::from_le_bytes([start[8], start[9]]))];
        reader.read_exact(&mut header).expect("a header");
        let header = String::from_utf8_lossy(&header).into_owned();
        assert!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "{header}");
        let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')')).expect("a shape").0;
        let dim = shape.split(',').nth(1).and_then(|dim| dim.trim().parse().ok()).expect("two dimensions");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("a readable file");
        let values = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Self { values, dim }
    }

    fn write(&self, file: &Path) {
        let mut writer = BufWriter::new(File::create(file).unwrap_or_else(|e| panic!("{}: {e}", file.display())));
        let shape = (self.rows(), self.dim);
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape:?}, }}");
        // The values start at a multiple of 64 bytes, after a line end.
        header.extend(std::iter::repeat_n(' ', 63 - (10 + header.len()) % 64));
        header.push('\n');
        writer.write_all(b"\x93NUMPY\x01\x00").expect("a writable file");
        writer.write_all(&(header.len() as u16).to_le_bytes()).expect("a writable file");
        writer.write_all(header.as_bytes()).expect("a writable file");
        self.values.iter().for_each(|v| writer.write_all(&v.to_le_bytes()).expect("a writable file"));
        writer.flush().expect("a writable file");
    }
}

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    fill_normal(&mut values, &mut ChaCha8Rng::seed_from_u64(seed));
    values
}

/// Sums of four uniform numbers of variance 1: near enough to a normal distribution.
fn fill_normal(values: &mut [f32], random: &mut impl Rng) {
    for value in values {
        let bits = random.next_u64();
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        *value = (sum as f32 / 65_536.0 - 2.0) * 3f32.sqrt();
    }
}

fn to_unit(row: &mut [f32]) {
    let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt() as f32;
    row.iter_mut().for_each(|v| *v /= norm);
}
