//! The tiles of a batch of pictures.

use crate::nhwc::Dims;
use crate::nhwc::simd::vector::Simd;

/// Tiles of `out · out` outputs over pictures of sizes `dims`, numbered by picture, then line by line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Sizes of the outputs.
    pub(super) dims: Dims,
    out: usize,
    high: usize,
    wide: usize,
}

/// One tile: its picture and its first output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub(super) picture: usize,
    pub(super) y: usize,
    pub(super) x: usize,
}

impl Tiles {
    pub(super) fn new(dims: Dims, out: usize) -> Self {
        Self { dims, out, high: dims.h.div_ceil(out), wide: dims.w.div_ceil(out) }
    }

    pub(super) fn count(&self) -> usize {
        self.dims.n * self.high * self.wide
    }

    pub(super) fn at(&self, number: usize) -> Tile {
        let (y, x) = (number / self.wide % self.high, number % self.wide);
        Tile { picture: number / (self.high * self.wide), y: y * self.out, x: x * self.out }
    }

    /// Rows and columns of a tile's outputs that exist.
    pub(super) fn inside(&self, tile: Tile) -> (usize, usize) {
        (self.out.min(self.dims.h - tile.y), self.out.min(self.dims.w - tile.x))
    }
}

/// `count` rows in even blocks of whole tiles of the product, at most `most` each and about `wanted` blocks where that
/// leaves at least a dozen to each: `(blocks, length of a block)`.
pub(super) fn even_blocks<I: Simd>(count: usize, most: usize, wanted: usize) -> (usize, usize) {
    let blocks = count.div_ceil(most).max(wanted.min(count.div_ceil(12))).max(1);
    let len = count.div_ceil(blocks).next_multiple_of(I::ROWS);
    (count.div_ceil(len), len)
}
