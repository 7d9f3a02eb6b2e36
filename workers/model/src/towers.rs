//! The two towers of the siamese network.

use candle_core::Tensor;

use crate::backbone::{Backbone, Mode};
use crate::error::Result;
use crate::layers::{BatchNorm, Linear};
use crate::tensors::Builder;

/// As PyTorch's `F.normalize`: a vector shorter than this is not blown up to unit length.
const NORM_EPS: f64 = 1e-12;
/// Rows of a product with the head in inference. One of another shape may add in another order.
const HEAD_ROWS: usize = 64;

/// Backbone and `fc`.
#[derive(Debug)]
pub(crate) struct ImageTower {
    backbone: Box<dyn Backbone>,
    head: Linear,
}

impl ImageTower {
    pub fn new(b: &mut Builder<'_>, backbone: Box<dyn Backbone>, outputs: usize) -> Result<Self> {
        let head = Linear::new(b, "image.fc", backbone.features(), outputs)?;
        Ok(Self { backbone, head })
    }

    /// `(B, 3, H, W)` → `(B, outputs)`
    pub fn forward(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let features = self.backbone.forward(images, mode)?;
        if matches!(mode, Mode::Eval) { self.serve_head(&features) } else { self.head.forward(&features, mode) }
    }

    /// The head in inference: always on [`HEAD_ROWS`] rows, some of them zeros, so that an image's embedding has the same bits
    /// whatever is beside it.
    fn serve_head(&self, features: &Tensor) -> Result<Tensor> {
        let rows = features.dim(0)?;
        let mut outputs = Vec::with_capacity(rows.div_ceil(HEAD_ROWS));
        for from in (0..rows).step_by(HEAD_ROWS) {
            let some = HEAD_ROWS.min(rows - from);
            let padded = features.narrow(0, from, some)?.pad_with_zeros(0, 0, HEAD_ROWS - some)?;
            outputs.push(self.head.forward(&padded.contiguous()?, &Mode::Eval)?.narrow(0, 0, some)?);
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// The same with a backbone that serves while the head learns.
    pub fn forward_frozen(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let features = self.backbone.forward(images, &mut Mode::Eval)?;
        self.head.forward(&features, mode)
    }

    pub fn backbone(&self) -> &dyn Backbone {
        &*self.backbone
    }

    pub fn backbone_mut(&mut self) -> &mut dyn Backbone {
        &mut *self.backbone
    }
}

/// `linear1`, `bn1`, ReLU, `linear2`, L2.
#[derive(Debug)]
pub(crate) struct AttributeTower {
    linear1: Linear,
    bn1: BatchNorm,
    linear2: Linear,
}

impl AttributeTower {
    pub fn new(b: &mut Builder<'_>, attributes: usize, embedding_dim: usize) -> Result<Self> {
        Ok(Self {
            linear1: Linear::new(b, "attributes.linear1", attributes, embedding_dim)?,
            bn1: BatchNorm::new(b, "attributes.bn1", embedding_dim)?,
            linear2: Linear::new(b, "attributes.linear2", embedding_dim, embedding_dim)?,
        })
    }

    /// `(B, A)` → `(B, D)`, rows of unit length
    pub fn forward(&self, vectors: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let x = self.linear1.forward(vectors, mode)?;
        let x = self.bn1.forward(&x, true, mode)?;
        unit(&self.linear2.forward(&x, mode)?)
    }
}

/// Rows of `x (B, D)` divided by `√(‖x‖² + eps²)`: `F.normalize` to rounding, and its gradient stays finite at 0.
pub(crate) fn unit(x: &Tensor) -> Result<Tensor> {
    let norm = (x.sqr()?.sum_keepdim(1)? + NORM_EPS * NORM_EPS)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn rows_get_unit_length_and_zero_stays_zero_with_a_finite_gradient() -> Result<()> {
        let x = Var::new(&[[3.0f32, 4.0], [0.0, 0.0]], &Device::Cpu)?;
        let y = unit(x.as_tensor())?;
        assert_eq!(y.to_vec2::<f32>()?, [[0.6, 0.8], [0.0, 0.0]]);
        let grads = y.sum_all()?.backward()?;
        let grad = grads.get(x.as_tensor()).expect("on the tape").flatten_all()?.to_vec1::<f32>()?;
        assert!(grad.iter().all(|v| v.is_finite()), "{grad:?}");
        Ok(())
    }
}
