//! The images and labels that a training reads: decoded once, kept from round to round.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use likeness_contract::jobs::{DatasetRef, TrainStage};
use likeness_contract::settings::{Preprocessing, Split};
use likeness_data::{Crops, Part, TrainImages};

use crate::error::TaskError;
use crate::runtime::context::TaskContext;

/// The training and validation rows of one dataset version, ready for one kind of input.
#[derive(Debug)]
pub struct TrainingSet {
    /// Learned from; its images are ready for the random crop.
    pub train: Rows,
    /// Measured on; may be empty.
    pub validation: Rows,
}

/// Rows of one split in the order of the dataset.
#[derive(Debug)]
pub struct Rows {
    /// N images.
    pub images: TrainImages,
    /// N × A labels.
    pub labels: Vec<i8>,
    split: Split,
}

impl Rows {
    fn empty(preprocessing: &Preprocessing, crops: Crops, split: Split) -> Result<Self, TaskError> {
        let images = TrainImages::new(preprocessing, crops, std::iter::empty::<&[u8]>())?;
        Ok(Self { images, labels: Vec::new(), split })
    }

    fn add(&mut self, part: &Part) -> Result<(), TaskError> {
        let rows: Vec<usize> = (0..part.rows()).filter(|row| self.split.contains(part.split(*row))).collect();
        rows.iter().for_each(|row| self.labels.extend(part.attributes(*row)));
        let images: Vec<&[u8]> = rows.iter().map(|row| part.image(*row)).collect();
        Ok(self.images.extend(&images)?)
    }
}

/// The set that the process used last: the next round asks for the same.
#[derive(Debug, Default)]
pub struct LastTrainingSet(Mutex<Option<(Key, Arc<TrainingSet>)>>);

/// What decides the content of a set.
#[derive(Debug, Clone, PartialEq)]
struct Key {
    dataset: DatasetRef,
    preprocessing: Preprocessing,
    crops: Crops,
}

impl LastTrainingSet {
    fn get(&self, key: &Key) -> Option<Arc<TrainingSet>> {
        self.lock().as_ref().filter(|(of, _)| of == key).map(|(_, set)| Arc::clone(set))
    }

    fn put(&self, key: Key, set: Arc<TrainingSet>) {
        *self.lock() = Some((key, set));
    }

    /// Frees the memory of another set before a new one is read.
    pub(super) fn clear(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Key, Arc<TrainingSet>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The set of a training, read from the store unless the last round left it here.
pub(super) async fn load(cx: &TaskContext, stage: &TrainStage) -> Result<Arc<TrainingSet>, TaskError> {
    let preprocessing = &stage.model.preprocessing;
    let crops = Crops { shift: stage.train.random_crop, resized: stage.train.resized_crop };
    let key = Key { dataset: stage.dataset.clone(), preprocessing: preprocessing.clone(), crops };
    if let Some(set) = cx.cache.training_set.get(&key) {
        return Ok(set);
    }
    cx.cache.training_set.clear();
    let mut set = TrainingSet {
        train: Rows::empty(preprocessing, crops, Split::Train)?,
        validation: Rows::empty(preprocessing, Crops::NONE, Split::Validation)?,
    };
    let manifest = cx.cache.dataset(&stage.dataset).await?;
    for (i, entry) in manifest.parts.iter().enumerate() {
        cx.progress(0, 0, format!("reading part {} of {}", i + 1, manifest.parts.len()));
        let part = cx.cache.part(entry, stage.vocabulary.len()).await?;
        set = add(set, part).await?;
    }
    let found = (set.train.images.len() as u64, set.validation.images.len() as u64);
    if found != (stage.train_rows, stage.validation_rows) {
        let planned = (stage.train_rows, stage.validation_rows);
        return Err(TaskError::invalid(format!(
            "the dataset has {found:?} training and validation rows, not {planned:?}"
        )));
    }
    let set = Arc::new(set);
    cx.cache.training_set.put(key, Arc::clone(&set));
    Ok(set)
}

/// Decodes a part's images away from tokio's own threads.
async fn add(mut set: TrainingSet, part: Arc<Part>) -> Result<TrainingSet, TaskError> {
    let add = move || {
        set.train.add(&part)?;
        set.validation.add(&part)?;
        Ok(set)
    };
    tokio::task::spawn_blocking(add).await.map_err(TaskError::transient)?
}
