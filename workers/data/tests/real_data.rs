//! The sources on real images, when `LIKENESS_DATA` names the folder that holds `celeba/` and `avatars/`.
//!
//! Prints what ingest costs beside a plain copy of the same files.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that fails says where, one that is skipped says so"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use likeness_contract::jobs::IngestSource;
use likeness_contract::settings::{Preprocessing, QueryEncoding, TrainSettings};
use likeness_data::{Augment, Crops, Part, TrainImages, TripletSampler, encode_part, read_rows, scan};

fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("LIKENESS_DATA").map(PathBuf::from)?.join(name);
    if !folder.is_dir() {
        println!("skipped: {} is no folder", folder.display());
        return None;
    }
    Some(folder)
}

fn copy(images: &Path) -> (u64, Duration) {
    let target = tempfile::TempDir::new().unwrap();
    let started = Instant::now();
    let mut bytes = 0;
    for entry in std::fs::read_dir(images).unwrap() {
        let entry = entry.unwrap();
        bytes += std::fs::copy(entry.path(), target.path().join(entry.file_name())).unwrap();
    }
    (bytes, started.elapsed())
}

fn rate(what: &str, rows: usize, bytes: u64, time: Duration) {
    let seconds = time.as_secs_f64();
    println!(
        "{what}: {:.0} images/s, {:.1} MB/s ({seconds:.2} s)",
        rows as f64 / seconds,
        bytes as f64 / 1e6 / seconds
    );
}

fn ingest(name: &str, expected: [usize; 3]) {
    let Some(folder) = data(name) else {
        println!("skipped: LIKENESS_DATA is not set or holds no {name}");
        return;
    };
    let source = IngestSource::Celeba { dir: folder.to_str().unwrap().into() };
    let started = Instant::now();
    let scan = scan(&source).unwrap();
    println!("{name}: scan of {} rows in {:.2} s", scan.rows.len(), started.elapsed().as_secs_f64());
    assert_eq!(scan.vocabulary.len(), 40);

    let (bytes, copied) = copy(&folder.join("img_align_celeba"));
    rate(&format!("{name}: copy"), scan.rows.len(), bytes, copied);
    let started = Instant::now();
    let content = read_rows(&scan.places, &scan.rows, &|_| ()).unwrap();
    let encoded = encode_part(&content.rows, 40).unwrap();
    rate(&format!("{name}: ingest"), scan.rows.len(), bytes, started.elapsed());
    assert!(content.skipped.is_empty(), "{:?}", content.skipped);

    let started = Instant::now();
    let part = Part::decode(encoded.into(), 40).unwrap();
    println!("{name}: part decoded in {:.2} s", started.elapsed().as_secs_f64());
    let of_split = |split| (0..part.rows()).filter(|i| part.split(*i) == split).count();
    assert_eq!([0, 1, 2].map(of_split), expected);
    train(name, &part);
}

/// One epoch of batches from the training rows.
fn train(name: &str, part: &Part) {
    let rows: Vec<usize> = (0..part.rows()).filter(|i| part.split(*i) == 0).collect();
    let settings = TrainSettings::default();
    let p = Preprocessing::imagenet(64);
    let started = Instant::now();
    let crops = Crops { shift: settings.random_crop, resized: settings.resized_crop };
    let images = TrainImages::new(&p, crops, rows.iter().map(|i| part.image(*i))).unwrap();
    rate(&format!("{name}: load for training"), rows.len(), 0, started.elapsed());

    let labels = rows.iter().flat_map(|i| part.attributes(*i).to_vec()).collect();
    let sampler = TripletSampler::new(&settings, QueryEncoding::ThreeState, labels, 40).unwrap();
    let mut out = vec![0.0; settings.batch_size as usize * 3 * 64 * 64];
    let started = Instant::now();
    for step in 0..sampler.steps_per_epoch() {
        let batch = sampler.batch(step);
        images.fill(&batch.rows, &batch.augment, &mut out).unwrap();
    }
    let drawn = (sampler.steps_per_epoch() * u64::from(settings.batch_size)) as usize;
    rate(&format!("{name}: batches"), drawn, 0, started.elapsed());
    assert!(out.iter().all(|value| value.is_finite() && value.abs() < 4.0));
    images.fill(&[0], &[Augment::NONE], &mut out[..3 * 64 * 64]).unwrap();
}

#[test]
fn celeba_is_ingested_whole() {
    ingest("celeba", [7338, 879, 815]);
}

#[test]
fn avatars_are_ingested_whole() {
    ingest("avatars", [4800, 600, 600]);
}
