//! ResNet layer by layer, names as torchvision's.
//!
//! What runs on GPUs; on the CPU it holds the tensors of [`crate::network`], and is its oracle.

use candle_core::Tensor;

use likeness_kernels::network::{BlockShape, NetworkShape};
use likeness_kernels::nhwc::ConvShape;
use likeness_kernels::{add_relu, global_avg_pool2d, max_pool2d_3x3};

use crate::backbone::Mode;
use crate::error::Result;
use crate::layers::{BatchNorm, Conv};
use crate::tensors::Builder;

const PREFIX: &str = "image";

/// Residual network of four stages.
#[derive(Debug)]
pub(crate) struct ResNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
}

impl ResNet {
    pub fn new(shape: &NetworkShape, b: &mut Builder<'_>) -> Result<Self> {
        let stem = ConvNorm::new(b, shape.stem(), &format!("{PREFIX}.conv1"), &format!("{PREFIX}.bn1"))?;
        let mut blocks = Vec::new();
        for (stage, shapes) in shape.stages().iter().enumerate() {
            for (i, shape) in shapes.iter().enumerate() {
                blocks.push(Block::new(b, &format!("{PREFIX}.layer{}.{i}", stage + 1), shape)?);
            }
        }
        Ok(Self { stem, blocks })
    }

    /// `(B, 3, H, W)` → `(B, F)`
    pub fn forward(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let x = self.stem.forward(images, true, mode)?; // (B, w, H/2, W/2)
        let mut x = max_pool2d_3x3(&x)?; // (B, w, H/4, W/4)
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        Ok(global_avg_pool2d(&x)?) // (B, F) from (B, F, H/32, W/32)
    }

    /// Every convolution with its norm, in the order of their parameters.
    pub fn units(&self) -> impl Iterator<Item = &ConvNorm> {
        let of_blocks = self.blocks.iter().flat_map(|block| block.branch.iter().chain(&block.downsample));
        std::iter::once(&self.stem).chain(of_blocks)
    }
}

/// A convolution and the batch norm behind it.
#[derive(Debug)]
pub(crate) struct ConvNorm {
    pub conv: Conv,
    pub norm: BatchNorm,
}

impl ConvNorm {
    fn new(b: &mut Builder<'_>, shape: ConvShape, conv: &str, norm: &str) -> Result<Self> {
        let ConvShape { c_in, c_out, kernel, stride, padding: _ } = shape;
        let conv = Conv::new(b, conv, (c_out, c_in, kernel), stride)?;
        Ok(Self { conv, norm: BatchNorm::new(b, norm, c_out)? })
    }

    fn forward(&self, x: &Tensor, with_relu: bool, mode: &mut Mode<'_>) -> Result<Tensor> {
        let x = self.conv.forward(x, mode)?;
        self.norm.forward(&x, with_relu, mode)
    }
}

/// `ReLU(branch(x) + shortcut(x))`
#[derive(Debug)]
struct Block {
    branch: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl Block {
    fn new(b: &mut Builder<'_>, name: &str, shape: &BlockShape) -> Result<Self> {
        let mut branch = Vec::new();
        for (i, shape) in (1..).zip(&shape.branch) {
            branch.push(ConvNorm::new(b, *shape, &format!("{name}.conv{i}"), &format!("{name}.bn{i}"))?);
        }
        let downsample = match shape.downsample {
            Some(shape) => {
                Some(ConvNorm::new(b, shape, &format!("{name}.downsample.0"), &format!("{name}.downsample.1"))?)
            }
            None => None,
        };
        Ok(Self { branch, downsample })
    }

    fn forward(&self, x: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let last = self.branch.len() - 1;
        let mut y = x.clone();
        for (i, layer) in self.branch.iter().enumerate() {
            y = layer.forward(&y, i != last, mode)?;
        }
        let shortcut = match &self.downsample {
            Some(layer) => layer.forward(x, false, mode)?,
            None => x.clone(),
        };
        Ok(add_relu(&y, &shortcut)?)
    }
}
