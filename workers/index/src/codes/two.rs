//! The 2-bit level of the approximate index: what a search reads of every row of the lists that it looks at.
//!
//! Rows lie in blocks of 16. A block has, for every 16 dimensions, four bytes of each row: their lowest two bits are the
//! first four dimensions, the highest two the last. Then the rows' scales, 16 f32. A code c stands for (c − 1.5) · scale.
//!
//! *Scale.* With two bits the codes' direction is well off the row's, and the scale that leaves the least over would
//! estimate near rows too low. A query that a row matters to lies in about the row's own direction x, so the scale is
//! the one with which what is left over has no part along x: the estimate is then right for q = x.

use super::{squared, sum_of};
use crate::buffer::Memory;
use crate::error::Result;
use crate::kernels::{BLOCK, TWO_STEP};

/// Bytes of a block for sixteen dimensions.
const STEP_BYTES: usize = 4 * BLOCK;
/// Bytes of a block after its codes.
const TAIL_BYTES: usize = 4 * BLOCK;
/// Widths of a step that are tried, in root mean squares of the values.
const WIDTHS: [f32; 5] = [0.8, 0.9, 1.0, 1.1, 1.2];
/// How far the scale may be from the one that leaves the least over.
const SCALES: (f64, f64) = (0.8, 1.4);
/// Least part that codes have along a row, of what they have along what they stand for, to decide about the scale.
const ALONG: f64 = 0.3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Two {
    dim: usize,
    memory: Memory,
}

impl Two {
    pub fn block_bytes(dim: usize) -> usize {
        dim.div_ceil(TWO_STEP) * STEP_BYTES + TAIL_BYTES
    }

    /// Memory for rows, not yet written.
    pub fn memory(rows: usize, dim: usize) -> Result<Memory> {
        Memory::zeroed(rows.div_ceil(BLOCK) * Self::block_bytes(dim))
    }

    pub fn new(dim: usize, memory: Memory) -> Self {
        Self { dim, memory }
    }

    /// All bytes of a block.
    #[inline(always)]
    pub fn block_memory(&self, block: usize) -> &[u8] {
        let bytes = Self::block_bytes(self.dim);
        &self.memory.bytes()[block * bytes..][..bytes]
    }

    /// Codes and scales of a block of 16 rows; in the places after the last row the scale is NaN.
    #[inline(always)]
    pub fn block(&self, block: usize) -> (&[u8], [f32; BLOCK]) {
        let bytes = self.block_memory(block);
        let (codes, tail) = bytes.split_at(bytes.len() - TAIL_BYTES);
        let mut scales = [0.0; BLOCK];
        scales.iter_mut().zip(tail.as_chunks::<4>().0).for_each(|(scale, bytes)| *scale = f32::from_le_bytes(*bytes));
        (codes, scales)
    }

    /// All codes.
    pub fn all(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }
}

/// A row's codes with their scale.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// (D), from 0 to 3.
    codes: Vec<i32>,
    scale: f32,
}

impl Fit {
    /// Quantises `rest` (D), which a centroid leaves of the row `whole` (D); `narrow` is `rest` in f32.
    #[inline(always)]
    pub fn fit(&mut self, rest: &[f64], narrow: &[f32], whole: &[f64]) {
        let square = squared(rest);
        let rms = (square / rest.len() as f64).sqrt().max(f64::from(f32::MIN_POSITIVE)) as f32;
        let inverse = best_inverse(narrow, rms);
        self.codes.clear();
        self.codes.extend(narrow.iter().map(|v| code(*v, inverse) as i32));
        let level = |c: f64| c - 1.5;
        let (own, norm) =
            (sum_of(rest, &self.codes, |v, c| v * level(c)), sum_of(rest, &self.codes, |_, c| level(c) * level(c)));
        let least = own / norm;
        let along = sum_of(whole, &self.codes, |v, c| v * level(c));
        let wanted: f64 = rest.iter().zip(whole).map(|(r, x)| r * x).sum();
        let scale =
            if along > ALONG * own { (wanted / along).clamp(SCALES.0 * least, SCALES.1 * least) } else { least };
        self.scale = scale as f32;
    }

    /// Makes row `row` of a block one that is in no answer.
    pub fn write_none(block: &mut [u8], row: usize) {
        let tail = block.len() - TAIL_BYTES;
        block[tail + 4 * row..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    }

    /// Writes the codes as row `row` of a block.
    pub fn write(&self, block: &mut [u8], row: usize) {
        let (codes, tail) = block.split_at_mut(block.len() - TAIL_BYTES);
        for (step, values) in self.codes.chunks(TWO_STEP).enumerate() {
            let bytes = &mut codes[step * STEP_BYTES + 4 * row..][..4];
            for (i, code) in values.iter().enumerate() {
                bytes[i % 4] |= (*code as u8) << (i / 4 * 2);
            }
        }
        tail[4 * row..][..4].copy_from_slice(&self.scale.to_le_bytes());
    }
}

#[inline(always)]
fn code(value: f32, inverse: f32) -> f32 {
    let code = (value * inverse + 2.0).floor();
    let code = if code > 0.0 { code } else { 0.0 };
    if code < 3.0 { code } else { 3.0 }
}

/// The reciprocal of a step's width that leaves the least over.
#[inline(always)]
fn best_inverse(row: &[f32], rms: f32) -> f32 {
    const LANES: usize = 16;
    let mut best = (f32::NEG_INFINITY, 0.0);
    for width in WIDTHS {
        let inverse = 1.0 / (rms * width);
        let (mut product, mut square) = ([0f32; LANES], [0f32; LANES]);
        let (whole, rest) = row.as_chunks::<LANES>();
        for values in whole {
            for i in 0..LANES {
                let level = code(values[i], inverse) - 1.5;
                product[i] += values[i] * level;
                square[i] += level * level;
            }
        }
        for (i, value) in rest.iter().enumerate() {
            let level = code(*value, inverse) - 1.5;
            product[i] += value * level;
            square[i] += level * level;
        }
        let (product, square): (f32, f32) = (product.iter().sum(), square.iter().sum());
        let kept = product * product / square;
        if kept > best.0 {
            best = (kept, inverse);
        }
    }
    best.1
}
