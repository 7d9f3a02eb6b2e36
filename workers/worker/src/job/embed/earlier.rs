//! Rows that an earlier generation of the same model has already: copied instead of decoded and computed.
//!
//! What always holds.
//! * *Which* generation is looked into stands in the task: the coordinator chose it when the job was accepted and stored it
//!   with the plan, so a task that is done again looks into the same one.
//! * An embedding is copied where the digest of the image's bytes is the same, and the generation is by the same model with
//!   the same digest of its weights, which fixes preprocessing and dimension. An embedding depends on nothing else: a network
//!   embeds each image of a batch by itself, with the same additions in the same order whatever is beside it. So a shard has
//!   the bytes that it would have if all of it were computed anew, by a worker like the one that made the earlier generation:
//!   of the same class of device and, of CPUs, of one instruction set and one `--winograd`.
//! * Its approximate index may be taken over from the earlier shard that most rows come from: then it is another than one that
//!   is built, and promises less.
//! * Everything else of a row – id, labels, split, where its image lies – is of the new dataset version.
//! * Nothing needs the earlier generation. What of it is gone by now, damaged, or written by a newer program, is computed.
//!
//! A process holds 32 bytes for every image of the earlier generation, gathered in one pass over its shards for all tasks of
//! the job, and beside that what the cache of shards holds anyway.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use likeness_contract::documents::{Embedder, GenerationManifest, ShardEntry};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::keys;
use likeness_index::{Shard, decode_image_digests};
use likeness_link::error::{ErrorKind, chain};

use super::Selected;
use crate::cache::LoadedModel;
use crate::error::{TaskError, TaskErrorKind};
use crate::runtime::context::TaskContext;

/// A shard is read for the sake of one row in so many of it at least: reading all of it costs as much as computing fewer.
const WORTH_READING: u64 = 256;

/// Bytes of an image's digest.
const DIGEST_BYTES: usize = 32;

/// Where the images of a generation lie: the first half of the digest, the position of the shard in the manifest, the row. By
/// digest, each once.
#[derive(Debug, Default)]
pub struct Images(Vec<(u128, u32, u32)>);

impl Images {
    fn of(mut all: Vec<(u128, u32, u32)>) -> Self {
        all.sort_unstable();
        all.dedup_by_key(|(half, ..)| *half);
        Self(all)
    }

    fn find(&self, digest: &[u8; DIGEST_BYTES]) -> Option<(u32, u32)> {
        let at = self.0.binary_search_by_key(&half(digest), |(half, ..)| *half).ok()?;
        let (_, shard, row) = self.0[at];
        Some((shard, row))
    }
}

fn half(digest: &[u8; DIGEST_BYTES]) -> u128 {
    u128::from_be_bytes(*digest.first_chunk().expect("16 are fewer than 32"))
}

/// The images of the generation that the process looked into last: the next task wants the same.
#[derive(Debug, Default)]
pub struct LastImages(Mutex<Option<(GenerationRef, Arc<Images>)>>);

impl LastImages {
    fn get(&self, generation: &GenerationRef) -> Option<Arc<Images>> {
        self.lock().as_ref().filter(|(of, _)| of == generation).map(|(_, images)| Arc::clone(images))
    }

    fn put(&self, generation: &GenerationRef, images: &Arc<Images>) {
        *self.lock() = Some((generation.clone(), Arc::clone(images)));
    }

    fn lock(&self) -> MutexGuard<'_, Option<(GenerationRef, Arc<Images>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Embeddings of the selected rows, as far as they are there.
#[derive(Debug)]
pub struct Known {
    /// (N, D), with zeros where there is none.
    pub embeddings: Vec<f32>,
    /// Whether a row's is there.
    pub there: Vec<bool>,
    /// The earlier shard that has just these rows, with everything that is stored of them.
    pub whole: Option<(ShardEntry, Arc<Shard>)>,
    /// The earlier shard that most of them come from: its index may do for these rows.
    pub likest: Option<(ShardEntry, Arc<Shard>)>,
}

impl Known {
    /// None of `rows` embeddings of dimension `dim`.
    pub fn nothing(rows: usize, dim: usize) -> Self {
        Self { embeddings: vec![0.0; rows * dim], there: vec![false; rows], whole: None, likest: None }
    }

    /// How many are there.
    pub fn count(&self) -> usize {
        self.there.iter().filter(|there| **there).count()
    }
}

/// Copies what an earlier generation has of the selected rows.
pub(super) async fn copy(
    cx: &TaskContext,
    loaded: &LoadedModel,
    generation: &GenerationRef,
    selected: &[Selected],
) -> Result<Known, TaskError> {
    let dim = loaded.manifest.settings.embedding_dim as usize;
    let mut known = Known::nothing(selected.len(), dim);
    let Some(manifest) = usable(cx, loaded, generation).await? else { return Ok(known) };
    let images = images(cx, &manifest).await?;
    let places = places(&images, &manifest, selected);
    let mut most = 0;
    for (number, rows) in &places {
        let entry = &manifest.shards[*number as usize];
        let Some(shard) = there(cx.cache.shard(&manifest, entry).await, &entry.object.key)? else { continue };
        for (position, row) in rows {
            let same = selected[*position].image_digest() == *shard.image_digest(*row);
            if same && shard.dim() == dim {
                known.embeddings[position * dim..][..dim].copy_from_slice(shard.embedding(*row));
                known.there[*position] = true;
            }
        }
        if places.len() == 1 && is_whole(&shard, selected) {
            known.whole = Some((entry.clone(), Arc::clone(&shard)));
        }
        if rows.len() > most {
            (most, known.likest) = (rows.len(), Some((entry.clone(), shard)));
        }
    }
    Ok(known)
}

/// The manifest of an earlier generation, if it is there and by the very same model.
async fn usable(
    cx: &TaskContext,
    loaded: &LoadedModel,
    generation: &GenerationRef,
) -> Result<Option<Arc<GenerationManifest>>, TaskError> {
    let key = keys::generation_manifest(&generation.gallery, &generation.generation);
    let Some(manifest) = there(cx.cache.generation(generation).await, &key)? else { return Ok(None) };
    let model = &loaded.manifest;
    let by_it = |embedder: &Embedder| embedder.model == model.model && embedder.weights == model.weights.digest;
    let same = manifest.embedder().is_some_and(by_it) && manifest.embedding_dim == model.settings.embedding_dim;
    if !same {
        tracing::warn!(%key, "the earlier generation is not by the same weights: everything is computed");
    }
    Ok(same.then_some(manifest))
}

/// What was read, or nothing where no later attempt would read it either.
fn there<T>(read: Result<T, TaskError>, key: &str) -> Result<Option<T>, TaskError> {
    match read {
        Err(error) if error.kind == TaskErrorKind::Invalid => {
            tracing::warn!(%key, error = %error.chain(), "of no use any more: its rows are computed");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Where the images of a generation lie, of the shards that can be read.
async fn images(cx: &TaskContext, manifest: &GenerationManifest) -> Result<Arc<Images>, TaskError> {
    if let Some(images) = cx.cache.embedded_images.get(&manifest.generation) {
        return Ok(images);
    }
    let (dim, attributes) = (manifest.embedding_dim as usize, manifest.vocabulary.len());
    let mut all = Vec::with_capacity(usize::try_from(manifest.total_rows()).unwrap_or(0));
    for (number, entry) in (0u32..).zip(&manifest.shards) {
        cx.ensure_leased()?;
        cx.progress(0, 0, format!("looking into shard {} of {}", number + 1, manifest.shards.len()));
        let key = &entry.object.key;
        let bytes = match cx.store.read(&entry.object).await {
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => {
                tracing::warn!(%key, error = %chain(&error), "of no use any more: its rows are computed");
                continue;
            }
            read => read?,
        };
        let decode = move || decode_image_digests(bytes, dim, attributes).map_err(TaskError::from);
        let decoded = tokio::task::spawn_blocking(decode).await.map_err(TaskError::transient)?;
        let Some(digests) = there(decoded, key)? else { continue };
        all.extend((0u32..).zip(&digests).map(|(row, digest)| (half(digest), number, row)));
    }
    let images = tokio::task::spawn_blocking(move || Arc::new(Images::of(all))).await.map_err(TaskError::transient)?;
    cx.cache.embedded_images.put(&manifest.generation, &images);
    Ok(images)
}

/// Selected rows and the rows that have their images, by shard; none of shards that are not worth reading.
fn places(images: &Images, manifest: &GenerationManifest, selected: &[Selected]) -> BTreeMap<u32, Vec<(usize, u32)>> {
    let mut places: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
    for (position, row) in selected.iter().enumerate() {
        if let Some((shard, row)) = images.find(&row.image_digest()) {
            places.entry(shard).or_default().push((position, row));
        }
    }
    places.retain(|shard, rows| rows.len() as u64 * WORTH_READING >= manifest.shards[*shard as usize].rows);
    places
}

/// Whether a shard has just the selected rows, with everything that is stored of them.
fn is_whole(shard: &Shard, selected: &[Selected]) -> bool {
    let same = |(row, selected): (u32, &Selected)| {
        let (part, at) = (&selected.part, selected.row as usize);
        shard.item(row) == part.item(at)
            && shard.labels(row) == part.attributes(at)
            && shard.split(row) == part.split(at)
            && shard.source(row) == (selected.part_number, selected.row)
            && *shard.image_digest(row) == selected.image_digest()
    };
    shard.rows() == selected.len() && (0u32..).zip(selected).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> [u8; DIGEST_BYTES] {
        let mut digest = [number; DIGEST_BYTES];
        digest[31] = 7;
        digest
    }

    #[test]
    fn an_image_is_found_where_it_is_first() {
        let at = |number, shard, row| (half(&digest(number)), shard, row);
        let images = Images::of(vec![at(9, 1, 0), at(3, 0, 4), at(9, 0, 2), at(1, 2, 2), at(9, 0, 3)]);
        assert_eq!(images.0.len(), 3);
        assert_eq!(images.find(&digest(9)), Some((0, 2)));
        assert_eq!(images.find(&digest(1)), Some((2, 2)));
        assert_eq!(images.find(&digest(2)), None);
        assert_eq!(Images::default().find(&digest(1)), None);
    }

    #[test]
    fn an_image_of_a_million_takes_32_bytes() {
        assert_eq!(size_of::<(u128, u32, u32)>(), 32);
    }
}
