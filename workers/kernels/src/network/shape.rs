//! What a network computes: its convolutions in order, and their sizes for an input.

use crate::nhwc::{ConvShape, Dims};

/// The two kinds of residual branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// 3×3, 3×3.
    Basic,
    /// 1×1, 3×3, 1×1 to four times the width.
    Bottleneck,
}

/// ResNet v1.5 (He et al. 2015; the stride of a bottleneck on its 3×3 convolution) without its classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkShape {
    /// Kind of all its blocks.
    pub kind: BlockKind,
    /// Blocks of each stage.
    pub depths: [usize; 4],
    /// Channels of the stem; every stage doubles its block's width.
    pub width: usize,
}

/// `ReLU(branch(x) + shortcut(x))`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Convolutions of the branch in order.
    pub branch: Vec<ConvShape>,
    /// Convolution of the shortcut where the shape changes.
    pub downsample: Option<ConvShape>,
}

impl NetworkShape {
    /// ResNet-18; torchvision's has base width 64.
    pub fn resnet18(width: usize) -> Self {
        Self { kind: BlockKind::Basic, depths: [2, 2, 2, 2], width }
    }

    /// ResNet-34; torchvision's has base width 64.
    pub fn resnet34(width: usize) -> Self {
        Self { kind: BlockKind::Basic, depths: [3, 4, 6, 3], width }
    }

    /// ResNet-50; torchvision's has base width 64.
    pub fn resnet50(width: usize) -> Self {
        Self { kind: BlockKind::Bottleneck, depths: [3, 4, 6, 3], width }
    }

    /// ResNet-101; torchvision's has base width 64.
    pub fn resnet101(width: usize) -> Self {
        Self { kind: BlockKind::Bottleneck, depths: [3, 4, 23, 3], width }
    }

    /// The first convolution, 7×7 with stride 2.
    pub fn stem(&self) -> ConvShape {
        convolution(3, self.width, 7, 2)
    }

    /// Its blocks by stage.
    pub fn stages(&self) -> Vec<Vec<BlockShape>> {
        let mut channels = self.width;
        let stage = |(stage, depth): (usize, &usize)| {
            let block = |i: usize| {
                let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                let block = self.block(channels, self.width << stage, stride);
                channels = (self.width << stage) * self.expansion();
                block
            };
            (0..*depth).map(block).collect()
        };
        self.depths.iter().enumerate().map(stage).collect()
    }

    /// F, length of a feature vector.
    pub fn features(&self) -> usize {
        (self.width << 3) * self.expansion()
    }

    /// Whether images `(n, 3, h, w)` leave every batch norm more than one value per channel.
    pub fn can_train(&self, n: usize, h: usize, w: usize) -> bool {
        Plan::new(self, n, h, w).last.pixels() > 1
    }

    fn expansion(&self) -> usize {
        match self.kind {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        }
    }

    fn block(&self, c_in: usize, width: usize, stride: usize) -> BlockShape {
        let c_out = width * self.expansion();
        let branch = match self.kind {
            BlockKind::Basic => vec![convolution(c_in, width, 3, stride), convolution(width, width, 3, 1)],
            BlockKind::Bottleneck => vec![
                convolution(c_in, width, 1, 1),
                convolution(width, width, 3, stride),
                convolution(width, c_out, 1, 1),
            ],
        };
        let same = stride == 1 && c_in == c_out;
        BlockShape { branch, downsample: (!same).then(|| convolution(c_in, c_out, 1, stride)) }
    }
}

fn convolution(c_in: usize, c_out: usize, kernel: usize, stride: usize) -> ConvShape {
    ConvShape { c_in, c_out, kernel, stride, padding: kernel / 2 }
}

/// One block by the positions of its convolutions in the list of all.
#[derive(Clone, Debug)]
pub(super) struct BlockUnits {
    /// Its branch.
    pub branch: std::ops::Range<usize>,
    /// Its shortcut's, if it has one.
    pub downsample: Option<usize>,
}

impl BlockUnits {
    /// The convolution whose output is the block's.
    pub fn last(&self) -> usize {
        self.branch.end - 1
    }
}

/// All convolutions in the order of their parameters, and which of them form a block.
pub(super) fn units(shape: &NetworkShape) -> (Vec<ConvShape>, Vec<BlockUnits>) {
    let (mut units, mut blocks) = (vec![shape.stem()], Vec::new());
    for BlockShape { branch, downsample } in shape.stages().into_iter().flatten() {
        let first = units.len();
        units.extend(branch);
        let branch = first..units.len();
        units.extend(downsample);
        blocks.push(BlockUnits { downsample: (units.len() > branch.end).then_some(branch.end), branch });
    }
    (units, blocks)
}

/// The sizes of everything between convolutions for one size of input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Of the images.
    pub images: Dims,
    /// What every convolution takes, in the order of [`units`].
    pub inputs: Vec<Dims>,
    /// What every convolution makes.
    pub outputs: Vec<Dims>,
    /// Of the max pooling's output.
    pub pooled: Dims,
    /// Of the last block's output.
    pub last: Dims,
}

impl Plan {
    pub fn new(shape: &NetworkShape, n: usize, h: usize, w: usize) -> Self {
        let (units, blocks) = units(shape);
        let images = Dims { n, h, w, c: 3 };
        let stem = units[0].out(images);
        let pooled = Dims { h: stem.h.div_ceil(2), w: stem.w.div_ceil(2), ..stem };
        let (mut inputs, mut outputs) = (vec![images], vec![stem]);
        let mut x = pooled;
        for block in &blocks {
            let mut y = x;
            for unit in block.branch.clone() {
                inputs.push(y);
                y = units[unit].out(y);
                outputs.push(y);
            }
            if block.downsample.is_some() {
                inputs.push(x);
                outputs.push(y);
            }
            x = y;
        }
        Self { images, inputs, outputs, pooled, last: x }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_have_as_many_convolutions_and_weights_as_torchvisions() {
        let sizes = |shape: NetworkShape| {
            let (units, blocks) = units(&shape);
            let weights: usize = units.iter().map(|u| u.c_out * u.c_in * u.kernel * u.kernel).sum();
            (units.len(), blocks.len(), weights)
        };
        assert_eq!(sizes(NetworkShape::resnet34(64)), (36, 16, 21_267_648));
        assert_eq!(sizes(NetworkShape::resnet50(64)), (53, 16, 23_454_912));
        assert_eq!(sizes(NetworkShape::resnet101(64)), (104, 33, 42_394_816));
        assert_eq!(NetworkShape::resnet50(64).features(), 2048);
    }

    #[test]
    fn odd_sizes_round_up_at_every_stride() {
        let plan = Plan::new(&NetworkShape::resnet18(8), 2, 45, 33);
        assert_eq!(plan.outputs[0], Dims { n: 2, h: 23, w: 17, c: 8 });
        assert_eq!(plan.pooled, Dims { n: 2, h: 12, w: 9, c: 8 });
        assert_eq!(plan.last, Dims { n: 2, h: 2, w: 2, c: 64 });
        assert!(plan.inputs.iter().zip(&plan.outputs).all(|(x, y)| x.n == 2 && x.h >= y.h));
    }
}
