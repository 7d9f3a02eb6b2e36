//! One batch: made on the processor, moved to the device.

use candle_core::{Device, Tensor};
use likeness_contract::jobs::TrainStage;
use likeness_data::TripletRows;

use super::training_set::Rows;
use crate::error::TaskError;

/// One batch in memory.
pub(super) struct Batch {
    size: usize,
    px: usize,
    attributes: usize,
    images: Vec<f32>,
    labels: Vec<f32>,
    positives: Vec<f32>,
    negatives: Vec<f32>,
}

impl Batch {
    pub fn new(stage: &TrainStage, set: &Rows, triplets: TripletRows) -> Result<Self, TaskError> {
        let TripletRows { rows, positives, negatives, augment } = triplets;
        let px = stage.model.preprocessing.input_px as usize;
        let attributes = stage.vocabulary.len();
        let mut images = vec![0.0; rows.len() * 3 * px * px];
        set.images.fill(&rows, &augment, &mut images)?;
        let labels_of = |row: &u32| &set.labels[*row as usize * attributes..][..attributes];
        let labels = rows.iter().flat_map(labels_of).map(|label| f32::from(*label)).collect();
        Ok(Self { size: rows.len(), px, attributes, images, labels, positives, negatives })
    }

    /// As tensors of the device.
    pub fn on(self, device: &Device) -> Result<likeness_model::Batch, TaskError> {
        let Self { size, px, attributes, images, labels, positives, negatives } = self;
        Ok(likeness_model::Batch {
            images: Tensor::from_vec(images, (size, 3, px, px), device)?,
            labels: Tensor::from_vec(labels, (size, attributes), device)?,
            positives: Tensor::from_vec(positives, (size, attributes), device)?,
            negatives: Tensor::from_vec(negatives, (size, attributes), device)?,
        })
    }
}
