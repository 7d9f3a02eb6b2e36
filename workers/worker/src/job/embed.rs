//! Embed: images of a dataset become a gallery's shards, and the shards a generation.
//!
//! Images are decoded on all cores ahead of the device, which never waits for more than one batch. The same
//! rows, model and kind of device give the same bytes, however they are cut into batches. So rows whose images an earlier generation
//! of the same model has are copied from it ([`earlier`]).
//!
//! A shard that is large enough to gain by it gets an approximate index, as an object beside it. It follows from the shard's
//! rows alone, and without it every search is exact, so nothing is lost where it was not made.

pub mod earlier;
pub mod import;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use likeness_contract::documents::{
    DatasetManifest, Embedder, GenerationManifest, ObjectRef, Origin, PartEntry, ShardEntry, Skipped,
};
use likeness_contract::ids::{Digest, JobId, Name};
use likeness_contract::jobs::{EmbedStage, GenerationRef, JobSpec, JobWork, TaskOutput, TaskRecord, task_ids};
use likeness_contract::keys;
use likeness_contract::settings::Split;
use likeness_data::{Loader, Part};
use likeness_index::{Approximate, EarlierShard, Shard, ShardRows, encode_shard};
use likeness_link::error::ErrorKind;
use tokio::sync::mpsc;

use earlier::Known;

use crate::cache::LoadedModel;
use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// Images per forward pass: large enough for a full matrix product, small enough to stay in cache at 64 px.
const BATCH_ROWS: usize = 64;
/// Decoded batches that may wait for the device.
const BATCHES_AHEAD: usize = 2;
/// Largest distance of an embedding's norm from 1.
const NORM_TOLERANCE: f64 = 1e-3;

/// Embeds the rows `from..from + rows` of the selected rows of the dataset and writes them as one shard; copies what the
/// generation `after` has of them.
pub async fn shard(
    cx: &TaskContext,
    model: &JobId,
    target: &GenerationRef,
    shard: u32,
    from: u64,
    rows: u32,
    after: Option<&GenerationRef>,
) -> Result<TaskOutput, TaskError> {
    let stage = embed_stage(cx.spec())?;
    let dataset = cx.cache.dataset(&stage.dataset).await?;
    let loaded = cx.cache.model(model, &cx.device).await?;
    check_vocabulary(&loaded, &dataset)?;
    let selected = select(cx, &dataset, stage.rows, from, rows).await?;
    let (selected, removed) = without_removed(cx, &stage.dataset.dataset, selected).await?;
    let (dim, attributes) = (loaded.manifest.settings.embedding_dim as usize, dataset.vocabulary.len());
    let known = match after {
        Some(generation) => earlier::copy(cx, &loaded, generation, &selected).await?,
        None => Known::nothing(selected.len(), dim),
    };
    let copied = known.count() as u64;
    if let Some((entry, held)) = &known.whole
        && let Some(made) = copy_whole(cx, target, shard, entry, held).await?
    {
        return Ok(made.output(removed, copied));
    }
    let likest = earlier_index(cx, known.likest.clone()).await?;
    let (embedded, mut skipped) = embed(cx, &loaded, selected, known).await?;
    skipped.extend(removed);
    if embedded.is_empty() {
        return Ok(TaskOutput::Shard { object: None, rows: 0, skipped });
    }
    let made = store_shard(cx, target, shard, embedded, likest, (dim, attributes)).await?;
    Ok(made.output(skipped, copied))
}

/// A shard in the store.
struct Made {
    object: ObjectRef,
    rows: u64,
    approximate: Option<ObjectRef>,
}

impl Made {
    fn output(self, skipped: Vec<Skipped>, copied: u64) -> TaskOutput {
        let Self { object, rows, approximate } = self;
        match approximate {
            _ if copied > 0 => TaskOutput::CopiedShard { object, rows, skipped, approximate, copied },
            None => TaskOutput::Shard { object: Some(object), rows, skipped },
            Some(approximate) => TaskOutput::IndexedShard { object, rows, skipped, approximate },
        }
    }
}

/// Stores rows as a shard, with an approximate index where there are enough of them.
async fn store_shard(
    cx: &TaskContext,
    target: &GenerationRef,
    shard: u32,
    rows: ShardRows,
    likest: Option<EarlierIndex>,
    (dim, attributes): (usize, usize),
) -> Result<Made, TaskError> {
    let count = rows.len() as u64;
    let indexed = is_indexed(count, cx.approximate_rows);
    let encode = move || {
        let bytes = encode_shard(&rows, dim, attributes)?;
        let index = match indexed {
            true => index(Shard::new(shard, rows, dim, attributes)?, likest, &Digest::of(&bytes))?,
            false => None,
        };
        Ok::<_, likeness_index::Error>((bytes, index))
    };
    let (bytes, index) = tokio::task::spawn_blocking(encode).await.map_err(TaskError::transient)??;
    create_shard(cx, target, shard, bytes, count, index).await
}

async fn create_shard(
    cx: &TaskContext,
    target: &GenerationRef,
    shard: u32,
    bytes: Vec<u8>,
    rows: u64,
    index: Option<Vec<u8>>,
) -> Result<Made, TaskError> {
    let key = |digest: &_| keys::shard(&target.gallery, &target.generation, shard, digest);
    let object = cx.create_object(key, bytes).await?;
    let key = |digest: &_| keys::approximate(&target.gallery, &target.generation, shard, digest);
    let approximate = match index {
        Some(index) => Some(cx.create_object(key, index).await?),
        None => None,
    };
    Ok(Made { object, rows, approximate })
}

/// Copies the objects of an earlier shard that has the very same rows; none where it lacks the approximate index that this one
/// is to have, or has one that is of no use. The generation is whole by itself: the earlier one may go.
async fn copy_whole(
    cx: &TaskContext,
    target: &GenerationRef,
    shard: u32,
    entry: &ShardEntry,
    held: &Arc<Shard>,
) -> Result<Option<Made>, TaskError> {
    let read = |object: ObjectRef| async move {
        match cx.store.read(&object).await {
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(None),
            read => read.map(Some),
        }
    };
    let ShardEntry { shard: _, object, rows, approximate } = entry.clone();
    let digest = object.digest;
    let index = match approximate {
        _ if !is_indexed(rows, cx.approximate_rows) => None,
        None => return Ok(None),
        Some(index) => {
            let Some(bytes) = read(index).await? else { return Ok(None) };
            let (held, bytes_there) = (Arc::clone(held), bytes.clone());
            let check = move || Approximate::decode(&bytes_there, &held, digest.as_bytes()).is_ok();
            if !tokio::task::spawn_blocking(check).await.map_err(TaskError::transient)? {
                return Ok(None);
            }
            Some(bytes.into())
        }
    };
    let Some(bytes) = read(object).await? else { return Ok(None) };
    create_shard(cx, target, shard, bytes.into(), rows, index).await.map(Some)
}

/// Whether a shard of so many rows is to have an approximate index.
fn is_indexed(rows: u64, least: Option<NonZeroU32>) -> bool {
    least.is_some_and(|least| rows >= u64::from(least.get()))
}

/// An earlier shard and the file of its approximate index.
struct EarlierIndex {
    entry: ShardEntry,
    shard: Arc<Shard>,
    index: Bytes,
}

/// Reads the index of the earlier shard, if it has one and a new one may be made from it.
async fn earlier_index(
    cx: &TaskContext,
    likest: Option<(ShardEntry, Arc<Shard>)>,
) -> Result<Option<EarlierIndex>, TaskError> {
    let Some((entry, shard)) = likest else { return Ok(None) };
    let Some(object) = entry.approximate.clone().filter(|_| cx.approximate_rows.is_some()) else { return Ok(None) };
    match cx.store.read(&object).await {
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(None),
        read => Ok(Some(EarlierIndex { entry, shard, index: read? })),
    }
}

/// The file of a shard's approximate index: from the earlier one, where that will do, else built; none for so few rows
/// that it would be of no use.
fn index(shard: Shard, earlier: Option<EarlierIndex>, digest: &Digest) -> likeness_index::Result<Option<Vec<u8>>> {
    if let Some(EarlierIndex { entry, shard: before, index }) = earlier {
        let earlier = EarlierShard { shard: &before, digest: entry.object.digest.as_bytes(), index: &index };
        match Approximate::adapt(earlier, &shard, digest.as_bytes()) {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "an earlier approximate index is of no use: it is built anew"),
        }
    }
    let shard = shard.with_codes()?;
    let index = Approximate::build(&shard)?;
    Ok(index.map(|index| index.encode(&shard, digest.as_bytes())))
}

/// Writes the generation's manifest, once every shard has its record.
pub async fn finish(cx: &TaskContext, model: &JobId, target: &GenerationRef) -> Result<TaskOutput, TaskError> {
    let stage = embed_stage(cx.spec())?;
    let dataset = cx.cache.dataset(&stage.dataset).await?;
    let loaded = cx.cache.model(model, &cx.device).await?;
    let (mut shards, mut skipped, mut copied) = (Vec::new(), Vec::new(), 0);
    let planned = shard_count(stage)?;
    for number in 0..planned {
        let record = cx.record(&task_ids::shard(cx.job(), &target.generation, number)).await?;
        copied += copied_rows(&record);
        let (entry, left_out) = entry(number, record)?;
        shards.extend(entry);
        skipped.extend(left_out);
        cx.progress(u64::from(number) + 1, u64::from(planned), "shards");
    }
    if shards.is_empty() {
        let total = stage.gallery_rows;
        return Err(TaskError::invalid(format!("gallery `{}` is empty: none of {total} rows is left", stage.gallery)));
    }
    let manifest = GenerationManifest {
        generation: target.clone(),
        origin: Origin::Model(Embedder {
            model: model.clone(),
            weights: loaded.manifest.weights.digest,
            dataset: stage.dataset.clone(),
        }),
        rows: stage.rows,
        embedding_dim: loaded.manifest.settings.embedding_dim,
        vocabulary: dataset.vocabulary.clone(),
        shards,
        skipped,
    };
    let key = keys::generation_manifest(&target.gallery, &target.generation);
    cx.ensure_leased()?;
    cx.store.create_document(&key, &manifest).await?;
    let rows = manifest.total_rows();
    Ok(if copied > 0 { TaskOutput::Generation { key, rows, copied } } else { TaskOutput::Manifest { key } })
}

fn copied_rows(record: &TaskRecord) -> u64 {
    match record.output {
        TaskOutput::CopiedShard { copied, .. } => copied,
        _ => 0,
    }
}

/// What the manifest says of a shard; nothing of one whose rows were all left out.
fn entry(shard: u32, record: TaskRecord) -> Result<(Option<ShardEntry>, Vec<Skipped>), TaskError> {
    let (object, rows, skipped, approximate) = match record.output {
        TaskOutput::Shard { object, rows, skipped } => (object, rows, skipped, None),
        TaskOutput::IndexedShard { object, rows, skipped, approximate } => {
            (Some(object), rows, skipped, Some(approximate))
        }
        TaskOutput::CopiedShard { object, rows, skipped, approximate, copied: _ } => {
            (Some(object), rows, skipped, approximate)
        }
        _ => return Err(TaskError::invalid(format!("the record of `{}` is not of a shard", record.task))),
    };
    Ok((object.map(|object| ShardEntry { shard, object, rows, approximate }), skipped))
}

fn embed_stage(spec: &JobSpec) -> Result<&EmbedStage, TaskError> {
    match &spec.work {
        JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } | JobWork::Pipeline { embed, .. } => Ok(embed),
        other => Err(TaskError::invalid(format!("a job of kind `{}` embeds nothing", other.kind()))),
    }
}

fn shard_count(stage: &EmbedStage) -> Result<u32, TaskError> {
    let count = stage.gallery_rows.div_ceil(u64::from(stage.shard_rows.max(1)));
    u32::try_from(count).map_err(|_| TaskError::invalid(format!("{count} shards are too many")))
}

/// Queries and labels speak of attributes by position, so model and gallery must number them alike.
fn check_vocabulary(loaded: &LoadedModel, dataset: &DatasetManifest) -> Result<(), TaskError> {
    if loaded.manifest.vocabulary == dataset.vocabulary {
        return Ok(());
    }
    Err(TaskError::invalid(format!(
        "model `{}` knows {} attributes that are not those of dataset `{}` version `{}` ({}): embed a dataset with the \
         model's vocabulary",
        loaded.manifest.model,
        loaded.manifest.vocabulary.len(),
        dataset.dataset.dataset,
        dataset.dataset.version,
        dataset.vocabulary.len(),
    )))
}

/// A row that is to be embedded.
struct Selected {
    part: Arc<Part>,
    part_number: u32,
    row: u32,
}

impl Selected {
    fn image_digest(&self) -> [u8; 32] {
        self.part.image_digest(self.row as usize)
    }
}

/// Some of the selected rows of one part.
#[derive(Debug, PartialEq, Eq)]
struct Slice {
    part: usize,
    skip: usize,
    take: usize,
}

/// Where the rows `from..from + rows` of a split lie. Rows past the end are not there.
fn slices(parts: &[PartEntry], split: Split, from: u64, rows: u32) -> Vec<Slice> {
    let end = from + u64::from(rows);
    let mut first = 0;
    let mut slices = Vec::new();
    for (part, entry) in parts.iter().enumerate() {
        let next = first + entry.rows_of(split);
        let (start, stop) = (from.max(first), end.min(next));
        if start < stop {
            slices.push(Slice { part, skip: (start - first) as usize, take: (stop - start) as usize });
        }
        first = next;
    }
    slices
}

async fn select(
    cx: &TaskContext,
    dataset: &DatasetManifest,
    split: Split,
    from: u64,
    rows: u32,
) -> Result<Vec<Selected>, TaskError> {
    let mut selected = Vec::with_capacity(rows as usize);
    for Slice { part: number, skip, take } in slices(&dataset.parts, split, from, rows) {
        let part = cx.cache.part(&dataset.parts[number], dataset.vocabulary.len()).await?;
        let matching = (0..part.rows()).filter(|row| split.contains(part.split(*row)));
        let before = selected.len();
        for row in matching.skip(skip).take(take) {
            selected.push(Selected { part: Arc::clone(&part), part_number: number as u32, row: row as u32 });
        }
        if selected.len() - before != take {
            let key = &dataset.parts[number].object.key;
            return Err(TaskError::invalid(format!("`{key}` has fewer rows of the split than its manifest says")));
        }
    }
    if selected.len() != rows as usize {
        let have = dataset.rows(split);
        return Err(TaskError::invalid(format!("rows {from}+{rows} are asked of a gallery of {have} rows")));
    }
    Ok(selected)
}

/// Leaves out the rows whose items were removed since the version was made.
async fn without_removed(
    cx: &TaskContext,
    dataset: &Name,
    selected: Vec<Selected>,
) -> Result<(Vec<Selected>, Vec<Skipped>), TaskError> {
    let removed = likeness_link::removals::removed(&cx.store, dataset).await?;
    let (mut kept, mut left_out) = (Vec::with_capacity(selected.len()), Vec::new());
    for row in selected {
        let item = row.part.item(row.row as usize);
        match removed.reason(item) {
            Some(reason) => left_out.push(Skipped { item: item.to_string(), reason }),
            None => kept.push(row),
        }
    }
    Ok((kept, left_out))
}

/// Decoded images of consecutive selected rows.
struct Batch {
    /// Positions in the selection of the images that could be decoded.
    kept: Vec<usize>,
    /// `(kept, 3, px, px)`.
    pixels: Vec<f32>,
    skipped: Vec<Skipped>,
}

/// The selected rows with their embeddings: those that are known, and the others computed.
async fn embed(
    cx: &TaskContext,
    loaded: &Arc<LoadedModel>,
    selected: Vec<Selected>,
    known: Known,
) -> Result<(ShardRows, Vec<Skipped>), TaskError> {
    let preprocessing = loaded.manifest.settings.preprocessing.clone();
    let (px, dim) = (preprocessing.input_px as usize, loaded.manifest.settings.embedding_dim as usize);
    let Known { mut embeddings, mut there, whole: _, likest: _ } = known;
    let missing: Vec<usize> = (0..selected.len()).filter(|position| !there[*position]).collect();
    let (done, of) = ((selected.len() - missing.len()) as u64, selected.len() as u64);
    let selected = Arc::new(selected);
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let source = Arc::clone(&selected);
    let decode = move || decode_all(&Loader::new(&preprocessing), px, &source, &missing, &sender);
    let decoder = tokio::task::spawn_blocking(decode);

    let (started, mut computed) = (Instant::now(), 0);
    let mut skipped = Vec::new();
    while let Some(Batch { kept, pixels, skipped: left_out }) = batches.recv().await {
        computed += (kept.len() + left_out.len()) as u64;
        skipped.extend(left_out);
        if !kept.is_empty() {
            let (model, count) = (Arc::clone(loaded), kept.len());
            let embed = move |device: &Device| embed_batch(&model, pixels, count, px, device);
            let values = cx.device.run(embed).await?;
            check_unit_rows(&values, count, dim)?;
            for (position, embedding) in kept.iter().zip(values.chunks_exact(dim)) {
                embeddings[position * dim..][..dim].copy_from_slice(embedding);
                there[*position] = true;
            }
        }
        let rate = computed as f64 / started.elapsed().as_secs_f64().max(1e-9);
        cx.progress(done + computed, of, format!("{rate:.0} images/s"));
    }
    // The channel also closes when the decoder panics; its rows must not go missing in silence.
    decoder.await.map_err(TaskError::transient)?;
    Ok((rows_of(&selected, embeddings, &there, dim), skipped))
}

/// Sends the images of the positions `missing` batch by batch, in order; ends early when nobody listens any more.
fn decode_all(loader: &Loader, px: usize, selected: &[Selected], missing: &[usize], sender: &mpsc::Sender<Batch>) {
    for positions in missing.chunks(BATCH_ROWS) {
        if sender.blocking_send(decode_batch(loader, px, selected, positions)).is_err() {
            return;
        }
    }
}

fn decode_batch(loader: &Loader, px: usize, selected: &[Selected], positions: &[usize]) -> Batch {
    let image_len = 3 * px * px;
    let rows = positions.iter().map(|position| &selected[*position]);
    let images: Vec<&[u8]> = rows.map(|row| row.part.image(row.row as usize)).collect();
    let mut pixels = vec![0f32; positions.len() * image_len];
    let results = loader.load_batch(&images, &mut pixels);
    let (mut kept, mut skipped) = (Vec::with_capacity(positions.len()), Vec::new());
    for (place, (result, position)) in results.into_iter().zip(positions).enumerate() {
        match result {
            Ok(()) => {
                pixels.copy_within(place * image_len..(place + 1) * image_len, kept.len() * image_len);
                kept.push(*position);
            }
            Err(error) => {
                let row = &selected[*position];
                let item = row.part.item(row.row as usize).to_string();
                skipped.push(Skipped { item, reason: error.to_string() });
            }
        }
    }
    pixels.truncate(kept.len() * image_len);
    Batch { kept, pixels, skipped }
}

/// Pixels `(B, 3, px, px)` → embeddings `(B, D)`, row by row.
fn embed_batch(
    loaded: &LoadedModel,
    pixels: Vec<f32>,
    count: usize,
    px: usize,
    device: &Device,
) -> Result<Vec<f32>, TaskError> {
    let images = Tensor::from_vec(pixels, (count, 3, px, px), device)?;
    let embeddings = loaded.model.embed_images(&images)?;
    Ok(embeddings.flatten_all()?.to_vec1::<f32>()?)
}

/// The rows whose embeddings `(N, D)` are there.
fn rows_of(selected: &[Selected], mut embeddings: Vec<f32>, there: &[bool], dim: usize) -> ShardRows {
    let mut rows = ShardRows::default();
    for (position, row) in selected.iter().enumerate().filter(|(position, _)| there[*position]) {
        embeddings.copy_within(position * dim..(position + 1) * dim, rows.len() * dim);
        push_row(&mut rows, row);
    }
    embeddings.truncate(rows.len() * dim);
    rows.embeddings = embeddings;
    rows
}

/// Everything about a row but its embedding.
fn push_row(rows: &mut ShardRows, selected: &Selected) {
    let (part, row) = (&selected.part, selected.row as usize);
    rows.item_ids.push(part.item(row).to_string());
    rows.labels.extend_from_slice(part.attributes(row));
    rows.split.push(part.split(row));
    rows.source_part.push(selected.part_number);
    rows.source_row.push(selected.row);
    rows.image_digest.push(part.image_digest(row));
}

/// The worker's check of its own result: what is wrong here is the device's doing, not the input's.
fn check_unit_rows(embeddings: &[f32], rows: usize, dim: usize) -> Result<(), TaskError> {
    if embeddings.len() != rows * dim {
        let text = format!("{} values were computed for {rows} embeddings of {dim}", embeddings.len());
        return Err(TaskError::transient(text));
    }
    for (row, embedding) in embeddings.chunks_exact(dim).enumerate() {
        let norm = embedding.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        if norm.is_nan() || (norm - 1.0).abs() > NORM_TOLERANCE {
            return Err(TaskError::transient(format!("the embedding of row {row} has norm {norm} instead of 1")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "embed/tests.rs"]
mod copy_tests;

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{RunNumber, TaskId, WorkerId};

    use super::*;

    fn parts(split_rows: &[[u64; 3]]) -> Vec<PartEntry> {
        let object = ObjectRef { key: "k".into(), digest: Digest::of(b""), bytes: 0 };
        let entry = |rows: &[u64; 3]| PartEntry { object: object.clone(), rows: rows.iter().sum(), split_rows: *rows };
        split_rows.iter().map(entry).collect()
    }

    #[test]
    fn rows_of_a_split_are_found_across_parts() {
        let parts = parts(&[[10, 0, 2], [0, 5, 0], [1, 0, 9]]);
        let slice = |part, skip, take| Slice { part, skip, take };
        assert_eq!(slices(&parts, Split::All, 0, 27), [slice(0, 0, 12), slice(1, 0, 5), slice(2, 0, 10)]);
        assert_eq!(slices(&parts, Split::All, 11, 7), [slice(0, 11, 1), slice(1, 0, 5), slice(2, 0, 1)]);
        assert_eq!(slices(&parts, Split::Test, 1, 4), [slice(0, 1, 1), slice(2, 0, 3)]);
        assert_eq!(slices(&parts, Split::Test, 11, 4), []);
    }

    #[test]
    fn consecutive_tasks_take_every_row_once() {
        let parts = parts(&[[3, 1, 2], [0, 0, 0], [5, 5, 1], [0, 4, 0]]);
        let total: u64 = parts.iter().map(|part| part.rows).sum();
        let taken = (0..total.div_ceil(4)).flat_map(|task| {
            let rows = 4.min(total - task * 4) as u32;
            slices(&parts, Split::All, task * 4, rows)
        });
        let rows = taken.flat_map(|Slice { part, skip, take }| (skip..skip + take).map(move |row| (part, row)));
        let every = parts.iter().enumerate().flat_map(|(part, entry)| (0..entry.rows as usize).map(move |r| (part, r)));
        assert!(rows.eq(every));
    }

    #[test]
    fn a_result_that_is_not_finite_or_not_unit_is_refused() {
        assert!(check_unit_rows(&[0.6, 0.8, 1.0, 0.0], 2, 2).is_ok());
        for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [0.6, 0.7], [0.0, 0.0]] {
            assert!(check_unit_rows(&bad, 1, 2).is_err(), "{bad:?}");
        }
        assert!(check_unit_rows(&[1.0, 0.0, 1.0], 2, 2).is_err());
    }

    #[test]
    fn a_manifest_names_what_the_records_name() {
        let object = |key: &str| ObjectRef { key: key.into(), digest: Digest::of(b""), bytes: 0 };
        let entry_of = |output: TaskOutput| {
            let (run, task) = (RunNumber(1), TaskId::new("shard-00002").unwrap());
            let (job, worker) = (JobId::new("j").unwrap(), WorkerId::new("w").unwrap());
            let (attempt, started_ms, finished_ms, device_ms) = (1, 0, 0, 0);
            entry(2, TaskRecord { job, run, task, worker, attempt, started_ms, finished_ms, device_ms, output })
        };
        let skipped = vec![Skipped { item: "a".into(), reason: "it is no image".into() }];
        let plain = TaskOutput::Shard { object: Some(object("s")), rows: 9, skipped: skipped.clone() };
        let shard = ShardEntry { shard: 2, object: object("s"), rows: 9, approximate: None };
        assert_eq!(entry_of(plain).unwrap(), (Some(shard.clone()), skipped.clone()));
        let (rows, approximate) = (9, object("i"));
        let indexed = TaskOutput::IndexedShard { object: object("s"), rows, skipped: vec![], approximate };
        let with_index = ShardEntry { approximate: Some(object("i")), ..shard };
        assert_eq!(entry_of(indexed).unwrap(), (Some(with_index), vec![]));
        let none = TaskOutput::Shard { object: None, rows: 0, skipped: skipped.clone() };
        assert_eq!(entry_of(none).unwrap(), (None, skipped));
        let other = TaskOutput::Manifest { key: "m".into() };
        assert_eq!(entry_of(other).unwrap_err().to_string(), "the record of `shard-00002` is not of a shard");
    }

    #[test]
    fn a_large_shard_gets_an_index_that_fits_it_and_a_small_one_none() {
        let dim = 12;
        let rows = |count: usize| {
            let unit = |row: usize| {
                let values: Vec<f32> = (0..dim).map(|at| (row as f32 * 0.37 + at as f32 * 1.3).sin() + 0.1).collect();
                let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
                values.into_iter().map(move |v| v / norm)
            };
            ShardRows {
                item_ids: (0..count).map(|row| format!("{row}.jpg")).collect(),
                embeddings: (0..count).flat_map(unit).collect(),
                labels: vec![1; count],
                split: vec![0; count],
                source_part: vec![0; count],
                source_row: vec![0; count],
                image_digest: (0..count).map(|row| *Digest::of(&row.to_le_bytes()).as_bytes()).collect(),
            }
        };
        let digest = Digest::of(b"the shard's file");
        let of = |count: usize| index(Shard::new(3, rows(count), dim, 1).unwrap(), None, &digest).unwrap();
        assert_eq!(of(300), None);
        let bytes = of(4_500).expect("it is large");
        assert_eq!(of(4_500).as_ref(), Some(&bytes), "equal rows give equal bytes");
        let asked = |rows, least| is_indexed(rows, NonZeroU32::new(least));
        assert_eq!((asked(4_500, 0), asked(4_500, 5_000), asked(4_500, 4_500)), (false, false, true));
        let shard = Shard::new(3, rows(4_500), dim, 1).unwrap();
        assert!(Approximate::decode(&bytes, &shard, digest.as_bytes()).is_ok());
        assert!(Approximate::decode(&bytes, &shard, Digest::of(b"another").as_bytes()).is_err());

        let one_new = || {
            let mut rows = rows(4_500);
            rows.embeddings.copy_within(dim..2 * dim, 0);
            rows.image_digest[0] = [9; 32];
            Shard::new(3, rows, dim, 1).unwrap()
        };
        let shard = Arc::new(shard);
        let after = |bytes: &[u8]| {
            let object = ObjectRef { key: "k".into(), digest, bytes: 1 };
            let entry = ShardEntry { shard: 3, object, rows: 4_500, approximate: None };
            let earlier = EarlierIndex { entry, shard: Arc::clone(&shard), index: Bytes::copy_from_slice(bytes) };
            index(one_new(), Some(earlier), &Digest::of(b"the next file")).unwrap().unwrap()
        };
        let (built, taken_over) =
            (index(one_new(), None, &Digest::of(b"the next file")).unwrap().unwrap(), after(&bytes));
        assert!(taken_over != built, "it tells less");
        assert!(Approximate::decode(&taken_over, &one_new(), Digest::of(b"the next file").as_bytes()).is_ok());
        assert!(after(&bytes[1..]) == built, "one that is damaged is of no use");
    }
}
