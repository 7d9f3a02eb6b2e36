//! Galleries of made-up embeddings, put into the store as an embedding job would leave them: as large as a scenario of
//! search wants, in seconds.

use bytes::Bytes;
use candle_core::Device;
use likeness_contract::documents::{
    DatasetManifest, Embedder, GenerationManifest, ModelManifest, ObjectRef, Origin, PartEntry, ShardEntry,
};
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{DatasetRef, GenerationRef};
use likeness_contract::keys;
use likeness_contract::settings::{
    Architecture, ModelSettings, Preprocessing, QueryEncoding, Split, TrainSettings, Vocabulary,
};
use likeness_index::{ShardRows, encode_shard};
use likeness_link::Store;
use likeness_model::Model;

use crate::faces::ATTRIBUTES;
use crate::jobs::{id, name};

/// Centres around which rows lie.
const CENTRES: u64 = 64;

/// What a gallery is made of.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Of generation and model; item ids begin with it.
    pub name: &'static str,
    /// Rows in all.
    pub rows: usize,
    /// D.
    pub dim: usize,
    /// Shards, of about the same size.
    pub shards: usize,
}

impl Made {
    /// Its generation.
    pub fn generation(&self) -> GenerationRef {
        GenerationRef { gallery: name("made"), generation: id(self.name) }
    }

    /// Stores dataset, model and generation.
    pub async fn store(&self, store: &Store) -> GenerationRef {
        let dataset = self.dataset(store).await;
        let weights = self.model(store, &dataset).await;
        let GenerationRef { gallery, generation } = self.generation();
        let mut shards = Vec::new();
        for (number, rows) in self.slices().enumerate() {
            let shard = self.rows(rows);
            let bytes = Bytes::from(encode_shard(&shard, self.dim, ATTRIBUTES.len()).expect("rows of a shard"));
            let digest = Digest::of(&bytes);
            let key = keys::shard(&gallery, &generation, number as u32, &digest);
            let object = store.create_object(key, bytes, digest).await.expect("the store takes a shard");
            let (shard, rows, approximate) = (number as u32, shard.len() as u64, None);
            shards.push(ShardEntry { shard, object, rows, approximate });
        }
        let manifest = GenerationManifest {
            generation: self.generation(),
            origin: Origin::Model(Embedder { model: id(self.name), weights, dataset }),
            rows: Split::All,
            embedding_dim: self.dim as u32,
            vocabulary: vocabulary(),
            shards,
            skipped: vec![],
        };
        let key = keys::generation_manifest(&gallery, &generation);
        store.create_document(&key, &manifest).await.expect("the store takes a manifest");
        self.generation()
    }

    fn slices(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let Self { rows, shards, .. } = *self;
        (0..shards).map(move |shard| shard * rows / shards..(shard + 1) * rows / shards)
    }

    fn rows(&self, rows: std::ops::Range<usize>) -> ShardRows {
        let count = rows.len();
        ShardRows {
            item_ids: rows.clone().map(|row| format!("{}-{row:07}", self.name)).collect(),
            embeddings: rows.clone().flat_map(|row| embedding(row as u64, self.dim)).collect(),
            labels: rows.clone().flat_map(|row| [1, -1, 0, if row % 2 == 0 { 1 } else { -1 }]).collect(),
            split: vec![0; count],
            source_part: vec![0; count],
            source_row: rows.map(|row| row as u32).collect(),
            image_digest: vec![[0; 32]; count],
        }
    }

    async fn dataset(&self, store: &Store) -> DatasetRef {
        let dataset = DatasetRef { dataset: name("made"), version: id(self.name) };
        let rows = self.rows as u64;
        let part = PartEntry { object: nothing("made/part"), rows, split_rows: [rows, 0, 0] };
        let manifest = DatasetManifest {
            dataset: dataset.clone(),
            vocabulary: vocabulary(),
            parts: vec![part],
            skipped: vec![],
            warnings: vec![],
        };
        let key = keys::dataset_manifest(&dataset.dataset, &dataset.version);
        store.create_document(&key, &manifest).await.expect("the store takes a manifest");
        dataset
    }

    async fn model(&self, store: &Store, dataset: &DatasetRef) -> Digest {
        let job = id(self.name);
        let settings = ModelSettings {
            architecture: Architecture::CnnS,
            embedding_dim: self.dim as u32,
            encoding: QueryEncoding::ThreeState,
            preprocessing: Preprocessing::imagenet(32),
        };
        let model = Model::fresh(&settings, ATTRIBUTES.len(), 1, &Device::Cpu).expect("a model");
        let bytes = Bytes::from(model.weights().expect("its weights"));
        let digest = Digest::of(&bytes);
        let weights =
            store.create_object(keys::weights(&job, &digest), bytes, digest).await.expect("the store takes it");
        let manifest = ModelManifest {
            model: job.clone(),
            settings,
            train: TrainSettings::default(),
            vocabulary: vocabulary(),
            dataset: dataset.clone(),
            checkpoint: weights.clone(),
            weights,
            distance: "euclidean".into(),
            steps: 0,
            validation_loss: None,
            training: nothing("training"),
            tensorboard: nothing("events"),
            round: None,
            validation_map: None,
            stopped_early: false,
            rounds: Vec::new(),
        };
        store.create_document(&keys::model_manifest(&job), &manifest).await.expect("the store takes a manifest");
        digest
    }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: ATTRIBUTES.map(String::from).to_vec() }
}

fn nothing(key: &str) -> ObjectRef {
    ObjectRef { key: key.into(), digest: Digest::of(b""), bytes: 0 }
}

/// A row near one of the centres, of norm 1.
fn embedding(row: u64, dim: usize) -> Vec<f32> {
    let values: Vec<f64> =
        (0..dim as u64).map(|at| unit(row % CENTRES, at) + 0.4 * unit(1_000_000 + row, at)).collect();
    let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
    values.into_iter().map(|value| (value / norm) as f32).collect()
}

/// A number in [-1, 1) from two (splitmix64).
fn unit(a: u64, b: u64) -> f64 {
    let mixed = (a << 20 ^ b).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}
