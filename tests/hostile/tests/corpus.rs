//! What the fuzzer started from and what it found, fed again: nothing panics, and nothing takes memory out of proportion.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use likeness_contract::settings::Vocabulary;
use likeness_data::{PartRow, Place, Places, Scan, ScanRow, encode_part, encode_rows};
use likeness_hostile::{ATTRIBUTES, DIM, TARGETS};
use likeness_index::{ShardRows, encode_shard};

/// Counts what is held at once.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all the work, and its contract is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the layout is the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer is from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most memory that one input may take: an image of the largest size that is decoded has 3 bytes a pixel, and is held twice.
const MOST_BYTES: usize = 600 << 20;

#[test]
fn nothing_in_the_corpus_panics_or_takes_much_memory() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, read) in TARGETS {
        let mut inputs: Vec<_> =
            std::fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "no corpus of `{name}`");
        for path in inputs {
            let bytes = std::fs::read(&path).unwrap();
            let before = HELD.load(Ordering::Relaxed);
            MOST.store(before, Ordering::Relaxed);
            read(&bytes);
            let taken = MOST.load(Ordering::Relaxed).saturating_sub(before);
            assert!(taken < MOST_BYTES, "{}: {} MiB", path.display(), taken >> 20);
        }
    }
}

#[test]
fn no_beginning_of_a_good_file_panics() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, read) in TARGETS {
        for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for cut in 1..8 {
                read(&bytes[..bytes.len() * cut / 8]);
            }
        }
    }
}

/// Writes what fuzzing starts from, beside what lies there: `cargo test -p likeness-hostile -- --ignored`.
#[test]
#[ignore = "writes files"]
fn seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let folder = root.join("corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    for message in std::fs::read_dir(root.join("../../schemas/golden")).unwrap() {
        let message = message.unwrap();
        let name = message.file_name().into_string().unwrap();
        let mut files: Vec<_> = std::fs::read_dir(message.path()).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for (ending, target) in [("bin", "messages"), ("json", "documents")] {
            if let Some(newest) = files.iter().rfind(|file| file.extension().is_some_and(|found| found == ending)) {
                put(target, &format!("{name}.{ending}"), &std::fs::read(newest).unwrap());
            }
        }
    }
    let fixtures = root.join("../../workers/data/tests/fixtures");
    for name in
        ["rgb.jpg", "progressive.jpg", "cmyk.jpg", "half.jpg", "alpha.png", "palette.png", "bomb.png", "lossless.webp"]
    {
        put("image", name, &std::fs::read(fixtures.join(name)).unwrap());
    }
    let image = Bytes::from(std::fs::read(fixtures.join("rgb.jpg")).unwrap());
    let part_row = |n: u8| PartRow {
        item: format!("{n}.jpg"),
        image: image.clone(),
        width: 45,
        height: 32,
        attributes: vec![1, -1, 0],
        split: n % 3,
    };
    let rows: Vec<PartRow> = (0..3).map(part_row).collect();
    put("dataset_part", "three", &encode_part(&rows, ATTRIBUTES).unwrap());
    let scan_row = |n: u64| ScanRow {
        item: format!("{n}"),
        place: if n == 0 { Place::File { path: "0.jpg".into() } } else { Place::Parquet { file: 0, row: n } },
        attributes: vec![1, -1, 0],
        split: 0,
        problem: (n == 2).then(|| "no image".into()),
    };
    let vocabulary = Vocabulary { names: ["a", "b", "c"].map(str::to_string).to_vec() };
    let places = Places { dir: String::new(), files: vec![] };
    let zeros = vec![None; ATTRIBUTES];
    let scan = Scan { vocabulary, rows: (0..3).map(scan_row).collect(), warnings: vec![], places, zeros };
    put("scan", "three", &encode_rows(&scan, String::new()));
    let unit = |n: usize| (0..DIM).map(move |d| if d == n { 1.0 } else { 0.0 });
    let shard = ShardRows {
        item_ids: (0..3).map(|n| n.to_string()).collect(),
        embeddings: (0..3).flat_map(unit).collect(),
        labels: [1, -1, 0].repeat(3),
        split: vec![0, 1, 2],
        source_part: vec![0; 3],
        source_row: vec![0, 1, 2],
        image_digest: vec![[7; 32]; 3],
    };
    put("shard", "three", &encode_shard(&shard, DIM, ATTRIBUTES).unwrap());
    put("csv", "plain", b"path,split,Smiling,Male\na.jpg,train,1,-1\nb.jpg,test,0,1\n");
    put("csv", "words", b"image;smiling\r\n\"a;b.jpg\";yes\r\nc.jpg;no\r\n");
    let header = br#"{"conv1.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 24]].concat();
    put("weights", "one", &weights);
}
