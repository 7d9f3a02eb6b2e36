//! Ingest: lists a source's rows, stores their images in parts, writes the dataset's manifest.
//!
//! The scan fixes everything that parts share: the list of rows is an object, and part `n` is the rows
//! `from..from + rows` of it. Parts read, decode and check images on all cores; a bad image costs its row, not the task.
//! A version that grows shares the parts of its base ([`grow`]); what is in a removal is left out of every version.
//! The manifest is written last, when every part has its record, so a dataset version is there whole or not at all.

mod grow;
mod notes;
pub(super) mod source_files;

use std::sync::{Arc, mpsc};
use std::time::Instant;

use bytes::Bytes;
use likeness_contract::datasets::DatasetAbout;
use likeness_contract::documents::{DatasetManifest, ObjectRef, PartEntry, Skipped};
use likeness_contract::ids::Name;
use likeness_contract::jobs::{
    AppendSource, DatasetRef, IngestSource, JobSpec, JobWork, TaskOutput, TaskRecord, task_ids,
};
use likeness_contract::keys;
use likeness_contract::settings::Vocabulary;
use likeness_data::{
    DigestedRow, EncodedPart, GROUP_ROWS, PartContent, PartWriter, Places, Scan, ScanRow, decode_rows, digested,
    encode_rows, read_rows_from,
};
use likeness_link::removals;

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

use grow::Base;
use notes::Notes;
use source_files::{SourceFiles, with_threads_for};

/// Rows between two looks at the lease, one row group: a fraction of a second of reading.
const ROWS_PER_STEP: usize = GROUP_ROWS;
/// Steps of read rows that may wait to be written. Those that wait at a part's end are written with nothing to read beside.
const STEPS_AHEAD: usize = 1;

/// Lists the source's rows and fixes the parts.
pub async fn scan(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let spec = ingest_spec(cx.spec())?;
    cx.progress(0, 1, "listing rows");
    let files = Arc::new(SourceFiles::new(cx.store.clone()));
    let (scan, notes) = match spec.source {
        IngestSource::Append(append) => scan_to_append(cx, spec.dataset, append, files).await?,
        source => {
            let removed = removals::removed(&cx.store, spec.dataset).await?;
            let source = source.clone();
            let mut scan = blocking(move || Ok(likeness_data::scan_from(&source, files, None)?)).await?;
            let count = grow::leave_out(&mut scan, &removed);
            if count > 0 {
                scan.warnings.push(format!("{count} rows were left out: their items were removed"));
            }
            let (places, labels, removals) = (scan.places.clone(), scan.labels(), removed.last());
            (scan, Notes { places, labels, removals, removed: count, ..Notes::default() })
        }
    };
    let rows = scan.rows.len() as u64;
    let Scan { vocabulary, warnings, .. } = &scan;
    let (vocabulary, warnings) = (vocabulary.clone(), warnings.clone());
    let bytes = blocking(move || Ok(encode_rows(&scan, notes.encode()))).await?;
    let rows_object = cx.create_object(|digest| keys::job_data(cx.job(), "rows", digest, "parquet"), bytes).await?;
    Ok(TaskOutput::Scan { rows_object, rows, vocabulary, warnings })
}

async fn scan_to_append(
    cx: &TaskContext,
    dataset: &Name,
    append: &AppendSource,
    files: Arc<SourceFiles>,
) -> Result<(Scan, Notes), TaskError> {
    let AppendSource { base: _, removals: count, source } = append;
    let manifest = cx.cache.dataset(&base_of(dataset, append)?).await?;
    let removed = removals::first_removed(&cx.store, dataset, *count).await?;
    let base = Base::read(cx, Arc::clone(&manifest), &files).await?;
    let source = source.clone();
    blocking(move || {
        let scan = |source| likeness_data::scan_from(&source, files, Some(&manifest.vocabulary));
        grow::grow(&base, &removed, source.map(scan).transpose()?)
    })
    .await
}

fn base_of(dataset: &Name, append: &AppendSource) -> Result<DatasetRef, TaskError> {
    let version = append.base.clone().ok_or_else(|| TaskError::invalid("the job names no version that grows"))?;
    Ok(DatasetRef { dataset: dataset.clone(), version })
}

/// Reads, checks and stores the images of the rows `from..from + rows` of the scan.
pub async fn part(cx: &TaskContext, part: u32, from: u64, rows: u32) -> Result<TaskOutput, TaskError> {
    let spec = ingest_spec(cx.spec())?;
    let Scanned { rows_object, vocabulary, .. } = scanned(cx.record(&task_ids::scan()).await?)?;
    let list = cx.store.read(&rows_object).await?;
    let (task, files) = (cx.clone(), Arc::new(SourceFiles::new(cx.store.clone())));
    let attributes = vocabulary.len();
    let read = move || -> Result<_, TaskError> {
        let Notes { places, .. } = Notes::of(list.clone())?;
        let listed = decode_rows(list, attributes, from, rows)?;
        let read = || read_part(&task, &places, &files, &listed, attributes);
        with_threads_for(&places, read).map_err(TaskError::transient)?
    };
    let Stored { bytes, rows, split_rows, skipped } = blocking(read).await?;
    let object = match bytes {
        Some(EncodedPart { bytes, digest }) => {
            cx.ensure_leased()?;
            let key = keys::dataset_part(spec.dataset, cx.job(), part, &digest);
            Some(cx.store.create_object(key, bytes.into(), digest).await?)
        }
        None => None,
    };
    Ok(TaskOutput::Part { object, rows, split_rows, skipped })
}

/// Writes the dataset's manifest.
pub async fn finish(cx: &TaskContext) -> Result<TaskOutput, TaskError> {
    let spec = ingest_spec(cx.spec())?;
    let Scanned { rows_object, rows, vocabulary, warnings } = scanned(cx.record(&task_ids::scan()).await?)?;
    let planned = part_count(rows, spec.part_rows)?;
    let list: Bytes = cx.store.read(&rows_object).await?;
    let notes = blocking(move || Notes::of(list)).await?;
    let (mut parts, mut skipped) = (shared(cx, &spec, &notes).await?, Vec::new());
    for number in 0..planned {
        let (entry, left_out) = stored(cx.record(&task_ids::part(number)).await?)?;
        parts.extend(entry);
        skipped.extend(left_out);
        cx.progress(u64::from(number) + 1, u64::from(planned), "parts");
    }
    let dataset = DatasetRef { dataset: spec.dataset.clone(), version: cx.job().clone() };
    let about = about(&spec, dataset.clone(), notes);
    let manifest = manifest_of(dataset, vocabulary, parts, skipped, warnings)?;
    let key = keys::dataset_manifest(spec.dataset, cx.job());
    cx.ensure_leased()?;
    // First what belongs to the manifest: it makes the version visible.
    cx.store.create_document(&keys::dataset_about(spec.dataset, cx.job()), &about).await?;
    cx.store.create_document(&key, &manifest).await?;
    Ok(TaskOutput::Manifest { key })
}

/// The parts of the base that a growing version shares.
async fn shared(cx: &TaskContext, spec: &IngestSpec<'_>, notes: &Notes) -> Result<Vec<PartEntry>, TaskError> {
    let IngestSource::Append(append) = spec.source else { return Ok(Vec::new()) };
    let base = cx.cache.dataset(&base_of(spec.dataset, append)?).await?;
    let part = |number: &u32| base.parts.get(*number as usize).cloned();
    let parts: Option<Vec<PartEntry>> = notes.shared.iter().map(part).collect();
    parts.ok_or_else(|| TaskError::invalid("the list of rows names parts that the version that grows does not have"))
}

fn about(spec: &IngestSpec<'_>, dataset: DatasetRef, notes: Notes) -> DatasetAbout {
    let Notes { places: _, labels, removals, removed, already_there, shared } = notes;
    let base = match spec.source {
        IngestSource::Append(append) => append.base.clone(),
        _ => None,
    };
    DatasetAbout { dataset, base, shared_parts: shared.len() as u32, removals, removed, already_there, labels }
}

struct IngestSpec<'a> {
    dataset: &'a Name,
    source: &'a IngestSource,
    part_rows: u32,
}

fn ingest_spec(spec: &JobSpec) -> Result<IngestSpec<'_>, TaskError> {
    match &spec.work {
        JobWork::Ingest { dataset, source, part_rows } => Ok(IngestSpec { dataset, source, part_rows: *part_rows }),
        other => Err(TaskError::invalid(format!("a job of kind `{}` ingests nothing", other.kind()))),
    }
}

/// What the scan's record says.
struct Scanned {
    rows_object: ObjectRef,
    rows: u64,
    vocabulary: Vocabulary,
    warnings: Vec<String>,
}

fn scanned(record: TaskRecord) -> Result<Scanned, TaskError> {
    match record.output {
        TaskOutput::Scan { rows_object, rows, vocabulary, warnings } => {
            Ok(Scanned { rows_object, rows, vocabulary, warnings })
        }
        _ => Err(TaskError::invalid(format!("the record of `{}` is not of a scan", record.task))),
    }
}

/// The entry of a part, none when all its rows were skipped; and these.
fn stored(record: TaskRecord) -> Result<(Option<PartEntry>, Vec<Skipped>), TaskError> {
    match record.output {
        TaskOutput::Part { object, rows, split_rows, skipped } => {
            Ok((object.map(|object| PartEntry { object, rows, split_rows }), skipped))
        }
        _ => Err(TaskError::invalid(format!("the record of `{}` is not of a part", record.task))),
    }
}

fn part_count(rows: u64, part_rows: u32) -> Result<u32, TaskError> {
    let count = rows.div_ceil(u64::from(part_rows.max(1)));
    u32::try_from(count).map_err(|_| TaskError::invalid(format!("{count} parts are too many")))
}

/// A part that is ready to be stored.
struct Stored {
    /// None when every row was skipped.
    bytes: Option<EncodedPart>,
    rows: u64,
    split_rows: [u64; 3],
    skipped: Vec<Skipped>,
}

/// Images are read and checked on all cores while those before them are written into the part.
fn read_part(
    cx: &TaskContext,
    places: &Places,
    files: &Arc<SourceFiles>,
    listed: &[ScanRow],
    attributes: usize,
) -> Result<Stored, TaskError> {
    let (sender, receiver) = mpsc::sync_channel(STEPS_AHEAD);
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_part(receiver, attributes));
        let skipped = read_images(cx, places, files, listed, &sender);
        drop(sender);
        // Why the writer ended says more than that nobody listened to the reader.
        let (bytes, split_rows) =
            writer.join().map_err(|_| TaskError::transient("the writing of a part panicked"))??;
        let rows = split_rows.iter().sum();
        Ok(Stored { bytes: (rows > 0).then_some(bytes), rows, split_rows, skipped: skipped? })
    })
}

/// Makes the part of the rows that come, until no more do.
fn write_part(rows: mpsc::Receiver<Vec<DigestedRow>>, attributes: usize) -> Result<(EncodedPart, [u64; 3]), TaskError> {
    let mut part = PartWriter::new(attributes)?;
    let mut split_rows = [0; 3];
    for rows in rows {
        rows.iter().for_each(|row| split_rows[usize::from(row.split())] += 1);
        part.push(rows)?;
    }
    Ok((part.finish()?, split_rows))
}

/// Reads in steps, so that a lost lease or a closed run is noticed between them. Returns the rows left out.
fn read_images(
    cx: &TaskContext,
    places: &Places,
    files: &Arc<SourceFiles>,
    listed: &[ScanRow],
    part: &mpsc::SyncSender<Vec<DigestedRow>>,
) -> Result<Vec<Skipped>, TaskError> {
    let (started, of) = (Instant::now(), listed.len() as u64);
    let mut left_out = Vec::new();
    for (step, rows) in listed.chunks(ROWS_PER_STEP).enumerate() {
        cx.ensure_leased()?;
        let before = (step * ROWS_PER_STEP) as u64;
        let progress = |read: u64| {
            let done = before + read;
            let rate = done as f64 / started.elapsed().as_secs_f64().max(1e-9);
            cx.progress(done, of, format!("{rate:.0} images/s"));
        };
        let PartContent { rows, skipped } = read_rows_from(places, rows, files.clone(), &progress)?;
        left_out.extend(skipped);
        if part.send(digested(rows)).is_err() {
            return Err(TaskError::transient("the part is no longer written"));
        }
    }
    Ok(left_out)
}

/// The manifest; a dataset without a usable row is none.
fn manifest_of(
    dataset: DatasetRef,
    vocabulary: Vocabulary,
    parts: Vec<PartEntry>,
    skipped: Vec<Skipped>,
    mut warnings: Vec<String>,
) -> Result<DatasetManifest, TaskError> {
    if parts.is_empty() {
        let first = skipped.first().map_or(String::new(), |s| format!(", the first (`{}`): {}", s.item, s.reason));
        return Err(TaskError::invalid(format!(
            "dataset `{}`: no usable row, {} were skipped{first}",
            dataset.dataset,
            skipped.len()
        )));
    }
    for (split, name) in ["training", "validation", "test"].into_iter().enumerate() {
        if parts.iter().all(|part| part.split_rows[split] == 0) {
            warnings.push(format!("the {name} split has no row"));
        }
    }
    Ok(DatasetManifest { dataset, vocabulary, parts, skipped, warnings })
}

/// Works away from tokio's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work).await.map_err(TaskError::transient)?
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{Digest, JobId};

    use super::*;

    fn dataset() -> DatasetRef {
        DatasetRef { dataset: Name::new("faces").unwrap(), version: JobId::new("ingest-1").unwrap() }
    }

    fn entry(split_rows: [u64; 3]) -> PartEntry {
        let object = ObjectRef { key: "k".into(), digest: Digest::of(b""), bytes: 0 };
        PartEntry { object, rows: split_rows.iter().sum(), split_rows }
    }

    #[test]
    fn a_dataset_without_a_usable_row_is_refused_with_the_first_reason() {
        let skipped = vec![Skipped { item: "a.jpg".into(), reason: "empty file".into() }];
        let error = manifest_of(dataset(), Vocabulary::default(), vec![], skipped, vec![]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dataset `faces`: no usable row, 1 were skipped, the first (`a.jpg`): empty file"
        );
    }

    #[test]
    fn empty_splits_are_warned_of() {
        let parts = vec![entry([3, 0, 0]), entry([0, 0, 2])];
        let manifest = manifest_of(dataset(), Vocabulary::default(), parts, vec![], vec!["w".into()]).unwrap();
        assert_eq!(manifest.warnings, ["w", "the validation split has no row"]);
    }

    #[test]
    fn parts_cover_all_rows() {
        assert_eq!([0, 1, 10, 11].map(|rows| part_count(rows, 10).unwrap()), [0, 1, 1, 2]);
        assert!(part_count(u64::MAX, 1).is_err());
    }
}
