//! ResNet v1.5 (He et al. 2015; the stride of a bottleneck on its 3×3 convolution), names as torchvision's.

use candle_core::Tensor;

use likeness_kernels::{add_relu, global_avg_pool2d, max_pool2d_3x3};

use crate::backbone::{Backbone, Mode};
use crate::error::Result;
use crate::layers::{BatchNorm, Conv};
use crate::tensors::Builder;

const PREFIX: &str = "image";

/// Residual network of four stages.
#[derive(Debug)]
pub struct ResNet {
    stem: ConvNorm,
    blocks: Vec<Block>,
    features: usize,
}

/// The two kinds of residual branches.
#[derive(Debug, Clone, Copy)]
enum BlockKind {
    /// 3×3, 3×3.
    Basic,
    /// 1×1, 3×3, 1×1 to four times the width.
    Bottleneck,
}

impl BlockKind {
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }

    /// `(C_out, C_in, k)` and stride of every convolution.
    fn convolutions(self, c_in: usize, width: usize, stride: usize) -> Vec<((usize, usize, usize), usize)> {
        match self {
            Self::Basic => vec![((width, c_in, 3), stride), ((width, width, 3), 1)],
            Self::Bottleneck => {
                vec![((width, c_in, 1), 1), ((width, width, 3), stride), ((4 * width, width, 1), 1)]
            }
        }
    }
}

impl ResNet {
    /// ResNet-18; torchvision's has base width 64.
    pub(crate) fn resnet18(width: usize, builder: &mut Builder<'_>) -> Result<Self> {
        Self::new(BlockKind::Basic, [2, 2, 2, 2], width, builder)
    }

    /// ResNet-50; torchvision's has base width 64.
    pub(crate) fn resnet50(width: usize, builder: &mut Builder<'_>) -> Result<Self> {
        Self::new(BlockKind::Bottleneck, [3, 4, 6, 3], width, builder)
    }

    fn new(kind: BlockKind, depths: [usize; 4], width: usize, b: &mut Builder<'_>) -> Result<Self> {
        let stem = ConvNorm {
            conv: Conv::new(b, &format!("{PREFIX}.conv1"), (width, 3, 7), 2)?,
            norm: BatchNorm::new(b, &format!("{PREFIX}.bn1"), width)?,
        };
        let mut blocks = Vec::new();
        let mut channels = width;
        for (stage, depth) in depths.into_iter().enumerate() {
            let stage_width = width << stage;
            for i in 0..depth {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                let name = format!("{PREFIX}.layer{}.{i}", stage + 1);
                blocks.push(Block::new(b, &name, kind, channels, stage_width, stride)?);
                channels = stage_width * kind.expansion();
            }
        }
        Ok(Self { stem, blocks, features: channels })
    }
}

impl Backbone for ResNet {
    fn features(&self) -> usize {
        self.features
    }

    fn forward(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        let x = self.stem.forward(images, true, mode)?; // (B, w, H/2, W/2)
        let mut x = max_pool2d_3x3(&x)?; // (B, w, H/4, W/4)
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        Ok(global_avg_pool2d(&x)?) // (B, F) from (B, F, H/32, W/32)
    }
}

#[derive(Debug)]
struct ConvNorm {
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
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
    fn new(b: &mut Builder<'_>, name: &str, kind: BlockKind, c_in: usize, width: usize, stride: usize) -> Result<Self> {
        let mut branch = Vec::new();
        for (i, (shape, stride)) in kind.convolutions(c_in, width, stride).into_iter().enumerate() {
            branch.push(ConvNorm {
                conv: Conv::new(b, &format!("{name}.conv{}", i + 1), shape, stride)?,
                norm: BatchNorm::new(b, &format!("{name}.bn{}", i + 1), shape.0)?,
            });
        }
        let c_out = width * kind.expansion();
        let downsample = if stride == 1 && c_in == c_out {
            None
        } else {
            Some(ConvNorm {
                conv: Conv::new(b, &format!("{name}.downsample.0"), (c_out, c_in, 1), stride)?,
                norm: BatchNorm::new(b, &format!("{name}.downsample.1"), c_out)?,
            })
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
