//! Images of results by item id, whole or as thumbnails: one row of a dataset part, read from the store.
//!
//! A hit says where its image lies, and whoever asks with that is answered at once. By its id alone an item is found through an
//! index of the dataset version, 16 bytes a row, that is made when it is first needed. What was removed is not shown.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use image::imageops::FilterType;
use likeness_contract::datasets::Removed;
use likeness_contract::documents::DatasetManifest;
use likeness_contract::ids::{Digest, Name};
use likeness_contract::jobs::DatasetRef;
use likeness_contract::search::ImageRef;
use likeness_link::{Error, ErrorKind, Store, images, removals};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::Gateway;
use super::cache::Cache;
use super::extract::{Asked, At};
use super::problem::{Answer, Problem};
use crate::command::shrink;

/// Images and thumbnails that are kept.
const CACHE_BYTES: usize = 64 << 20;
/// Indexes that are kept.
const MAX_INDEXES: usize = 4;
/// Largest dataset that is looked through for an id: its index takes 16 bytes a row.
const MAX_INDEXED_ROWS: u64 = 20_000_000;
/// A removal is honoured within this time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Quality of thumbnails.
const THUMBNAIL_QUALITY: u8 = 82;

/// Which image.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhichImage {
    /// The alias whose dataset is looked through; `main` without. It has no meaning beside `part`.
    alias: Option<Name>,
    /// Where a hit says that the image lies: its `image.part`. With it nothing needs to be looked for.
    part: Option<String>,
    /// Its `image.row`.
    row: Option<u32>,
}

/// Which thumbnail.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhichThumbnail {
    /// See the image itself.
    alias: Option<Name>,
    /// See the image itself.
    part: Option<String>,
    /// See the image itself.
    row: Option<u32>,
    /// Longest side, pixels; 160 without.
    #[serde(default = "usual_size")]
    #[schemars(range(min = 16, max = 512))]
    size: u32,
}

fn usual_size() -> u32 {
    160
}

/// The file of an item's image, as it was ingested.
pub async fn image(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    At(item): At<String>,
    Asked(which): Asked<WhichImage>,
) -> Answer<Response> {
    let bytes = picture(&gateway, &item, which).await?;
    let media_type = media_type(&bytes);
    Ok(with_tag(&headers, bytes, media_type))
}

/// A small JPEG of it.
pub async fn thumbnail(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    At(item): At<String>,
    Asked(WhichThumbnail { alias, part, row, size }): Asked<WhichThumbnail>,
) -> Answer<Response> {
    if !(16..=512).contains(&size) {
        return Err(Problem::invalid(format!("size {size} is not in 16–512")));
    }
    let bytes = picture(&gateway, &item, WhichImage { alias, part, row }).await?;
    let name = format!("{size} {}", String::from(Digest::of(&bytes)));
    let small = match gateway.pictures.cache.get(&name) {
        Some(small) => small,
        None => {
            let small = shrink_to(&gateway, bytes, size).await?;
            gateway.pictures.cache.put(name, small.clone());
            small
        }
    };
    Ok(with_tag(&headers, small, "image/jpeg"))
}

async fn shrink_to(gateway: &Gateway, bytes: Bytes, size: u32) -> Answer<Bytes> {
    let permit = gateway.decoding.clone().acquire_owned().await;
    let made = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        small_jpeg(&bytes, size)
    });
    let made = made.await.map_err(|_| Problem::internal("an image could not be decoded"))?;
    made.map_err(|error| Problem::invalid(format!("there is no thumbnail of it: {error}")))
}

fn small_jpeg(bytes: &[u8], size: u32) -> Result<Bytes, String> {
    let image = shrink::decode(bytes)?;
    let image =
        if image.width().max(image.height()) > size { image.resize(size, size, FilterType::Triangle) } else { image };
    let mut small = Cursor::new(Vec::new());
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut small, THUMBNAIL_QUALITY);
    image.to_rgb8().write_with_encoder(encoder).map_err(|error| error.to_string())?;
    Ok(small.into_inner().into())
}

/// What a browser is to take it for; nothing that could be a page or a script.
fn media_type(bytes: &[u8]) -> &'static str {
    match image::guess_format(bytes) {
        Ok(image::ImageFormat::Jpeg) => "image/jpeg",
        Ok(image::ImageFormat::Png) => "image/png",
        Ok(image::ImageFormat::WebP) => "image/webp",
        _ => "application/octet-stream",
    }
}

/// Browsers keep it and ask whether it is still so: what was removed is not shown from a cache.
fn with_tag(headers: &HeaderMap, bytes: Bytes, media_type: &'static str) -> Response {
    let tag = format!("\"{}\"", Digest::of(&bytes).short());
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let head = [(CACHE_CONTROL, "private, no-cache".to_string()), (ETAG, tag.clone())];
    if known.is_some_and(|known| known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, head).into_response();
    }
    (head, [(CONTENT_TYPE, media_type)], bytes).into_response()
}

async fn picture(gateway: &Gateway, item: &str, which: WhichImage) -> Answer<Bytes> {
    let pictures = &gateway.pictures;
    let at = match which {
        WhichImage { part: Some(part), row, alias: _ } => {
            let row = row.ok_or_else(|| Problem::malformed("`part` comes with `row`"))?;
            ImageRef { part, row }
        }
        WhichImage { part: None, row: Some(_), .. } => return Err(Problem::malformed("`row` comes with `part`")),
        WhichImage { part: None, row: None, alias } => {
            let alias =
                alias.map_or_else(|| Name::new("main"), Ok).map_err(|error| Problem::malformed(error.to_string()))?;
            let served = gateway.served.of(&alias).await?;
            let Some(dataset) = &served.dataset else {
                return Err(Problem::not_found("its embedding was made elsewhere: there is no image of it"));
            };
            pictures.find(dataset, item).await?
        }
    };
    let Some(dataset) = dataset_of(&at.part) else {
        return Err(Problem::not_found(format!("`{}` is no part of a dataset", at.part)));
    };
    if let Some(why) = pictures.removal_of(&dataset, item).await? {
        return Err(Problem::gone(format!("item `{item}` was taken out of dataset `{dataset}`: {why}")));
    }
    pictures.read(&at, item).await
}

/// The dataset of a part: the second word of its key.
fn dataset_of(part: &str) -> Option<Name> {
    let mut words = part.split('/');
    let name = (words.next() == Some("datasets")).then(|| words.next()).flatten()?;
    let rest: Vec<&str> = words.collect();
    let plain =
        rest.len() == 2 && rest.iter().all(|word| !word.is_empty() && *word != "..") && part.ends_with(".parquet");
    plain.then(|| Name::new(name).ok()).flatten()
}

/// Images in the store, and what is remembered of them.
#[derive(Debug)]
pub struct Pictures {
    store: Store,
    cache: Cache,
    removed: Mutex<HashMap<Name, (Instant, Arc<Removed>)>>,
    indexes: Mutex<Vec<(DatasetRef, Arc<OnceCell<Index>>)>>,
}

impl Pictures {
    /// Of a store.
    pub fn new(store: Store) -> Self {
        Self { store, cache: Cache::new(CACHE_BYTES), removed: Mutex::default(), indexes: Mutex::default() }
    }

    async fn read(&self, at: &ImageRef, item: &str) -> Answer<Bytes> {
        let name = format!("{} {} {item}", at.part, at.row);
        if let Some(bytes) = self.cache.get(&name) {
            return Ok(bytes);
        }
        let found = images::item_image(&self.store, at).await?;
        if found.item != item {
            return Err(Problem::not_found(format!("row {} of `{}` is not item `{item}`", at.row, at.part)));
        }
        self.cache.put(name, found.bytes.clone());
        Ok(found.bytes)
    }

    async fn removal_of(&self, dataset: &Name, item: &str) -> Answer<Option<String>> {
        let known = self.removed.lock().unwrap_or_else(PoisonError::into_inner).get(dataset).cloned();
        let removed = match known {
            Some((at, removed)) if at.elapsed() < LOOK_EVERY => removed,
            known => {
                let known = known.map(|(_, removed)| removed).unwrap_or_default();
                let newer = removals::removed_since(&self.store, dataset, &known).await?;
                let removed = newer.map_or(known, Arc::new);
                let entry = (Instant::now(), removed.clone());
                self.removed.lock().unwrap_or_else(PoisonError::into_inner).insert(dataset.clone(), entry);
                removed
            }
        };
        Ok(removed.contains(item).then(|| removed.reason(item).unwrap_or_default()))
    }

    async fn find(&self, dataset: &DatasetManifest, item: &str) -> Answer<ImageRef> {
        let index = self.index(&dataset.dataset);
        let index = index.get_or_try_init(|| Index::of(&self.store, dataset)).await?;
        for (part, row) in index.candidates(item) {
            let Some(part) = dataset.parts.get(part as usize) else { continue };
            let at = ImageRef { part: part.object.key.clone(), row };
            match images::item_image(&self.store, &at).await {
                Ok(found) if found.item == item => return Ok(at),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let name = &dataset.dataset.dataset;
        // A dataset that was made after the removal does not have the item any more.
        if let Some(why) = self.removal_of(name, item).await? {
            return Err(Problem::gone(format!("item `{item}` was taken out of dataset `{name}`: {why}")));
        }
        Err(Problem::not_found(format!("dataset `{name}` has no item `{item}`")))
    }

    fn index(&self, dataset: &DatasetRef) -> Arc<OnceCell<Index>> {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = indexes.iter().position(|(of, _)| of == dataset) {
            return indexes[at].1.clone();
        }
        if indexes.len() == MAX_INDEXES {
            indexes.remove(0);
        }
        let index = Arc::<OnceCell<Index>>::default();
        indexes.push((dataset.clone(), index.clone()));
        index
    }
}

/// Where items lie, by the first 8 bytes of the digests of their ids.
#[derive(Debug)]
struct Index(Vec<(u64, u32, u32)>);

impl Index {
    async fn of(store: &Store, dataset: &DatasetManifest) -> Result<Self, Error> {
        let rows: u64 = dataset.parts.iter().map(|part| part.rows).sum();
        if rows > MAX_INDEXED_ROWS {
            let text = format!("{rows} rows are too many to look for an id: ask with `part` and `row` of a hit");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        let mut places = Vec::new();
        for (number, part) in (0u32..).zip(&dataset.parts) {
            let items = images::part_items(store, &part.object.key).await?;
            places.extend((0u32..).zip(&items).map(|(row, item)| (token(item), number, row)));
        }
        places.sort_unstable();
        Ok(Self(places))
    }

    fn candidates(&self, item: &str) -> impl Iterator<Item = (u32, u32)> {
        let wanted = token(item);
        let from = self.0.partition_point(|(token, ..)| *token < wanted);
        self.0[from..].iter().take_while(move |(token, ..)| *token == wanted).map(|(_, part, row)| (*part, *row))
    }
}

fn token(item: &str) -> u64 {
    let digest = Digest::of(item.as_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_datasets_are_read() {
        assert_eq!(dataset_of("datasets/faces/v1/part-00000-ab.parquet").unwrap().as_str(), "faces");
        for other in [
            "models/m/training-1.parquet",
            "datasets/faces/v1/manifest.json",
            "datasets/../v/x.parquet",
            "datasets/a/../b/x.parquet",
            "",
        ] {
            assert_eq!(dataset_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_item_is_found_by_its_token() {
        let mut places: Vec<_> = (0..1000u32).map(|row| (token(&format!("{row}.jpg")), row / 300, row % 300)).collect();
        places.sort_unstable();
        let index = Index(places);
        assert_eq!(index.candidates("642.jpg").collect::<Vec<_>>(), [(2, 42)]);
        assert_eq!(index.candidates("1000.jpg").count(), 0);
    }

    #[test]
    fn what_a_browser_knows_is_not_sent_again_and_nothing_is_taken_for_a_page() {
        let bytes = Bytes::from_static(b"<html>");
        assert_eq!(media_type(&bytes), "application/octet-stream");
        let first = with_tag(&HeaderMap::new(), bytes.clone(), media_type(&bytes));
        let tag = first.headers()[ETAG].clone();
        let again = with_tag(&HeaderMap::from_iter([(IF_NONE_MATCH, tag)]), bytes, "image/png");
        assert_eq!((first.status(), again.status()), (StatusCode::OK, StatusCode::NOT_MODIFIED));
    }
}
