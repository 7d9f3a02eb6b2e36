//! The model as it serves.

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use likeness_contract::settings::{ModelSettings, QueryEncoding, log_probability_dim};
use likeness_contract::weights::{Header, WholeParts, plan_start};

use crate::backbone::{self, CpuCompute, Mode};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::joint;
use crate::layers::BatchStatistics;
use crate::tensors::{Builder, Stored, Tensors};
use crate::towers::{AttributeTower, ImageTower, unit};

/// Smallest side of an input: below, the last stage of a ResNet has nothing to see.
const SMALLEST_INPUT_PX: u32 = 32;

/// Images and queries into one space, with the weights on one device.
#[derive(Debug)]
pub struct Model {
    attributes: usize,
    embedding_dim: usize,
    input_px: usize,
    image_tower: ImageTower,
    queries: Queries,
    mirrored: bool,
    tensors: Tensors,
    device: Device,
}

/// How a query gets into the space.
#[derive(Debug)]
enum Queries {
    /// Through the attribute tower; the head gives the image's place itself.
    Tower(AttributeTower),
    /// By a fixed map; the head gives logits.
    LogProbability,
}

/// B images with what is known of them and asked about them.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `(B, 3, H, W)`
    pub images: Tensor,
    /// `(B, A)`: 1 has, −1 has not, 0 unknown.
    pub labels: Tensor,
    /// `(B, A)`: queries that the images satisfy.
    pub positives: Tensor,
    /// `(B, A)`: queries that they contradict.
    pub negatives: Tensor,
}

/// A batch in the space.
#[derive(Debug)]
pub(crate) struct Placed {
    /// What the head gave; in a space of log-probabilities its logits `(B, A)`.
    pub logits: Tensor,
    /// `(B, D)`
    pub anchors: Tensor,
    /// `(B, D)`
    pub positives: Tensor,
    /// `(B, D)`
    pub negatives: Tensor,
}

impl Model {
    /// Fresh weights for a vocabulary of `attributes` names (A), drawn from `seed`.
    ///
    /// # Errors
    /// `Settings` when no model can have them, `Device` when it fails.
    pub fn fresh(settings: &ModelSettings, attributes: usize, seed: u64, device: &Device) -> Result<Self> {
        Self::build(settings, attributes, Builder::fresh(seed, device), device)
    }

    /// Weights to start a training from: the backbone of `safetensors`, torchvision's or our own, and what else of it
    /// `parts` allows; the others drawn from `seed`.
    ///
    /// # Errors
    /// `Mismatch` when the backbone is another one or the file no safetensors: what is missing, unexpected or of
    /// another shape is listed; `NotFinite` when a weight is NaN or infinite.
    pub fn started(
        settings: &ModelSettings,
        attributes: usize,
        seed: u64,
        safetensors: &[u8],
        parts: WholeParts,
        device: &Device,
    ) -> Result<Self> {
        let header = Header::parse(safetensors).map_err(Error::mismatch)?;
        let plan = plan_start(settings.architecture, parts, &header.shapes()).map_err(Error::mismatch)?;
        let mut stored = checkpoint::read(safetensors)?.tensors;
        let taken = plan.taken.into_iter().filter_map(|(name, from)| Some((name, stored.remove(&from)?))).collect();
        Self::build(settings, attributes, Builder::started(seed, taken, device), device)
    }

    /// Weights as [`Model::weights`] or PyTorch wrote them.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no intact safetensors; `Mismatch` when they are of another model: of another
    /// vocabulary or dimension, or with tensors missing, unexpected or of another shape (all are named);
    /// `NotFinite` when a weight is NaN or infinite.
    pub fn load(settings: &ModelSettings, attributes: usize, safetensors: &[u8], device: &Device) -> Result<Self> {
        Self::from_stored(settings, attributes, checkpoint::read(safetensors)?.tensors, device)
    }

    pub(crate) fn from_stored(
        settings: &ModelSettings,
        attributes: usize,
        stored: Stored,
        device: &Device,
    ) -> Result<Self> {
        check_size(settings, attributes, &stored)?;
        Self::build(settings, attributes, Builder::stored(stored, device), device)
    }

    fn build(settings: &ModelSettings, attributes: usize, mut b: Builder<'_>, device: &Device) -> Result<Self> {
        let ModelSettings { architecture, embedding_dim, encoding, preprocessing } = settings;
        check_dim(*encoding, *embedding_dim, attributes)?;
        let embedding_dim = *embedding_dim as usize;
        if preprocessing.input_px < SMALLEST_INPUT_PX {
            let px = preprocessing.input_px;
            return Err(Error::settings(format!("an input of {px} px is smaller than {SMALLEST_INPUT_PX} px")));
        }
        let backbone = backbone::build(*architecture, &mut b)?;
        let (image_tower, queries) = match encoding {
            QueryEncoding::ThreeState | QueryEncoding::MultiHot => {
                let images = ImageTower::new(&mut b, backbone, embedding_dim)?;
                (images, Queries::Tower(AttributeTower::new(&mut b, attributes, embedding_dim)?))
            }
            QueryEncoding::LogProbability => (ImageTower::new(&mut b, backbone, attributes)?, Queries::LogProbability),
        };
        Ok(Self {
            attributes,
            embedding_dim,
            input_px: preprocessing.input_px as usize,
            image_tower,
            queries,
            mirrored: false,
            tensors: b.finish()?,
            device: device.clone(),
        })
    }

    /// The same model, computed on the CPU as `compute` says.
    #[must_use]
    pub fn with_compute(mut self, compute: CpuCompute) -> Self {
        self.image_tower.backbone_mut().set_compute(compute);
        self
    }

    /// The same model, for which an image is itself and its mirror image: the mean of what the head gives for both.
    #[must_use]
    pub fn with_mirrored(self, mirrored: bool) -> Self {
        Self { mirrored, ..self }
    }

    /// D, length of an embedding.
    pub fn embedding_dim(&self) -> usize {
        self.embedding_dim
    }

    /// Whether the head gives a logit per attribute.
    pub(crate) fn has_logits(&self) -> bool {
        matches!(self.queries, Queries::LogProbability)
    }

    /// A, length of an attribute vector.
    pub fn attributes(&self) -> usize {
        self.attributes
    }

    /// Where the weights are, and where inputs must be.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `(B, 3, H, W)` → `(B, D)`, rows of unit length. Inference mode.
    ///
    /// # Errors
    /// `Input` for another shape, `Device` when it fails.
    pub fn embed_images(&self, images: &Tensor) -> Result<Tensor> {
        Ok(self.place_images(&self.outputs(images)?)?.1)
    }

    /// `(B, A)` → `(B, D)`, rows of unit length. Inference mode.
    ///
    /// # Errors
    /// `Input` for another shape, `Device` when it fails.
    pub fn embed_attributes(&self, vectors: &Tensor) -> Result<Tensor> {
        self.place_queries(vectors, &mut Mode::Eval)
    }

    /// Weights and running statistics as safetensors: a function of their values alone.
    ///
    /// # Errors
    /// `NotFinite` when one is NaN or infinite.
    pub fn weights(&self) -> Result<Vec<u8>> {
        checkpoint::write_weights(&self.tensors)
    }

    /// A batch in training mode, on the tape. The attribute tower sees the positives, then the negatives; so do its
    /// statistics. A frozen backbone stays off the tape and leaves no statistics.
    pub(crate) fn place_in_training(
        &self,
        batch: &Batch,
        frozen: bool,
        statistics: &mut BatchStatistics,
    ) -> Result<Placed> {
        self.check_images(&batch.images)?;
        let mut mode = Mode::Train(statistics);
        let outputs = if frozen {
            self.image_tower.forward_frozen(&batch.images, &mut mode)?
        } else {
            self.image_tower.forward(&batch.images, &mut mode)?
        };
        self.place(&outputs, batch, &mut mode)
    }

    /// A batch in inference mode.
    pub(crate) fn place_in_inference(&self, batch: &Batch) -> Result<Placed> {
        self.place(&self.outputs(&batch.images)?, batch, &mut Mode::Eval)
    }

    fn place(&self, outputs: &Tensor, batch: &Batch, mode: &mut Mode<'_>) -> Result<Placed> {
        let (logits, anchors) = self.place_images(outputs)?;
        let positives = self.place_queries(&batch.positives, mode)?;
        let negatives = self.place_queries(&batch.negatives, mode)?;
        Ok(Placed { logits, anchors, positives, negatives })
    }

    /// What the head gives for images in inference mode.
    fn outputs(&self, images: &Tensor) -> Result<Tensor> {
        self.check_images(images)?;
        let outputs = self.image_tower.forward(images, &mut Mode::Eval)?;
        if !self.mirrored {
            return Ok(outputs);
        }
        let width = self.input_px as u32;
        let backwards = Tensor::from_vec((0..width).rev().collect::<Vec<u32>>(), self.input_px, images.device())?;
        let mirrored = self.image_tower.forward(&images.index_select(&backwards, 3)?, &mut Mode::Eval)?;
        Ok(((outputs + mirrored)? * 0.5)?)
    }

    /// Outputs of the head, or logits, and images in the space `(B, D)`, rows of unit length.
    fn place_images(&self, outputs: &Tensor) -> Result<(Tensor, Tensor)> {
        match &self.queries {
            Queries::Tower(_) => Ok((outputs.clone(), unit(outputs)?)),
            Queries::LogProbability => {
                let logits = joint::logits(outputs)?;
                let images = joint::embed(&logits)?;
                Ok((logits, images))
            }
        }
    }

    fn place_queries(&self, words: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        self.check_vectors(words)?;
        match &self.queries {
            Queries::Tower(tower) => tower.forward(words, mode),
            Queries::LogProbability => joint::embed_queries(words),
        }
    }

    /// Gradients of a `loss` of [`Model::place_in_training`] with respect to every parameter that is not frozen,
    /// valid until the next call.
    pub(crate) fn gradients(&self, loss: &Tensor, frozen: bool) -> Result<GradStore> {
        let mut gradients = loss.backward()?;
        if !frozen {
            self.image_tower.backbone().insert_gradients(&mut gradients)?;
        }
        Ok(gradients)
    }

    pub(crate) fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// To be called whenever a tensor has changed.
    pub(crate) fn on_weights_changed(&self) {
        self.image_tower.backbone().on_weights_changed();
    }

    fn check_images(&self, images: &Tensor) -> Result<()> {
        let px = self.input_px;
        match images.dims() {
            [batch, 3, h, w] if *batch > 0 && (*h, *w) == (px, px) => Ok(()),
            other => Err(Error::input(format!("images of shape {other:?} instead of [B, 3, {px}, {px}]"))),
        }
    }

    fn check_vectors(&self, vectors: &Tensor) -> Result<()> {
        match vectors.dims() {
            [batch, attributes] if *batch > 0 && *attributes == self.attributes => Ok(()),
            other => {
                Err(Error::input(format!("attribute vectors of shape {other:?} instead of [B, {}]", self.attributes)))
            }
        }
    }
}

fn check_dim(encoding: QueryEncoding, embedding_dim: u32, attributes: usize) -> Result<()> {
    if embedding_dim == 0 || attributes == 0 {
        return Err(Error::settings(format!("a model of {embedding_dim} dimensions and {attributes} attributes")));
    }
    let needed = log_probability_dim(attributes);
    if encoding == QueryEncoding::LogProbability && embedding_dim != needed {
        return Err(Error::settings(format!(
            "log-probabilities of {attributes} attributes need {needed} dimensions, {embedding_dim} were asked for"
        )));
    }
    Ok(())
}

/// Says it plainly when the weights are of another vocabulary or dimension.
fn check_size(settings: &ModelSettings, attributes: usize, stored: &Stored) -> Result<()> {
    let Some([dim, names]) = stored.get("attributes.linear1.weight").map(|t| t.shape.as_slice()) else {
        return Ok(());
    };
    if *names != attributes {
        return Err(Error::mismatch(format!("the weights know {names} attributes, the vocabulary has {attributes}")));
    }
    if *dim != settings.embedding_dim as usize {
        let asked = settings.embedding_dim;
        return Err(Error::mismatch(format!("the weights embed into {dim} dimensions, {asked} were asked for")));
    }
    Ok(())
}
