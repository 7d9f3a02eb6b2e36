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
    positives: Vec<f32>,
    negatives: Vec<f32>,
}

impl Batch {
    pub fn new(stage: &TrainStage, set: &Rows, triplets: TripletRows) -> Result<Self, TaskError> {
        let TripletRows { rows, positives, negatives, augment } = triplets;
        let px = stage.model.preprocessing.input_px as usize;
        let mut images = vec![0.0; rows.len() * 3 * px * px];
        set.images.fill(&rows, &augment, &mut images)?;
        Ok(Self { size: rows.len(), px, attributes: stage.vocabulary.len(), images, positives, negatives })
    }

    /// Images (B, 3, H, W), positives and negatives (B, A).
    pub fn on(self, device: &Device) -> Result<[Tensor; 3], TaskError> {
        let Self { size, px, attributes, images, positives, negatives } = self;
        Ok([
            Tensor::from_vec(images, (size, 3, px, px), device)?,
            Tensor::from_vec(positives, (size, attributes), device)?,
            Tensor::from_vec(negatives, (size, attributes), device)?,
        ])
    }
}
