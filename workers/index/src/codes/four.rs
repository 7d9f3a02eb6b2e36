//! The 4-bit level: what a scan reads of every row.
//!
//! Rows lie in blocks of 16. A block has, for every eight dimensions, four bytes of each row: their low
//! halves are the first four dimensions, the high halves the next four. Then the rows' scales, residual norms and
//! halved squared norms, 16 f32 of each. So a scan reads one stream and nothing else.

use super::query::{Shape, four_shape, lane_square};
use super::{Stats, sum_of};
use crate::buffer::Memory;
use crate::error::Result;
use crate::kernels::{BLOCK, FOUR_SEGMENT, FOUR_STEP};

/// Bytes of a block for eight dimensions.
const STEP_BYTES: usize = 4 * BLOCK;
/// Bytes of a block after its codes.
const TAIL_BYTES: usize = 3 * 4 * BLOCK;
/// Largest values that are tried as the codes' end, as parts of the row's largest: the best one is taken.
const CLIPS: [f32; 7] = [1.0, 0.92, 0.85, 0.78, 0.72, 0.66, 0.60];

/// Sums that are added to in turn where a step's width is chosen.
const FIT_LANES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Four {
    dim: usize,
    memory: Memory,
    stats: Stats,
}

/// One block: its codes, and what belongs to its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block<'a> {
    pub codes: &'a [u8],
    tail: &'a [[u8; 4]; 3 * BLOCK],
}

impl Block<'_> {
    /// Scales, residual norms and halves of the squared norms of all rows.
    #[inline(always)]
    pub fn rows(&self) -> [[f32; BLOCK]; 3] {
        let mut rows = [[0.0; BLOCK]; 3];
        for (values, bytes) in rows.iter_mut().zip(self.tail.as_chunks::<BLOCK>().0) {
            for (value, bytes) in values.iter_mut().zip(bytes) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        rows
    }
}

impl Four {
    pub(crate) fn block_bytes(dim: usize) -> usize {
        dim.div_ceil(FOUR_STEP) * STEP_BYTES + TAIL_BYTES
    }

    /// Memory for rows, not yet written.
    pub(crate) fn memory(rows: usize, dim: usize) -> Result<Memory> {
        Memory::zeroed(rows.div_ceil(BLOCK) * Self::block_bytes(dim))
    }

    pub(crate) fn new(dim: usize, memory: Memory, stats: Stats) -> Self {
        Self { dim, memory, stats }
    }

    /// All bytes of a block.
    #[inline(always)]
    pub fn block_memory(&self, block: usize) -> &[u8] {
        let bytes = Self::block_bytes(self.dim);
        &self.memory.bytes()[block * bytes..][..bytes]
    }

    /// A block of 16 rows; those after the last have a score of −∞.
    #[inline(always)]
    pub fn block(&self, block: usize) -> Block<'_> {
        let bytes = self.block_memory(block);
        let (codes, tail) = bytes.split_at(bytes.len() - TAIL_BYTES);
        Block { codes, tail: tail.as_chunks::<4>().0.try_into().expect("the tail's size") }
    }

    pub fn shape(&self) -> Shape {
        four_shape(self.dim, self.stats.lane_norm())
    }

    /// Largest norm of what the codes stand for.
    pub fn hat(&self) -> f64 {
        self.stats.hat
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes().len()
    }

    /// All codes, and what they have in common.
    pub fn parts_of_all(&self) -> (&[u8], Stats) {
        (self.memory.bytes(), self.stats)
    }
}

/// A row's codes with their scale and residual norm.
#[derive(Debug, Default)]
pub(crate) struct Fit {
    /// (D), from 0 to 15; they stand for (code − 7.5) · scale.
    pub codes: Vec<i32>,
    pub scale: f32,
    /// Norm of what is left over, rounded up.
    pub epsilon: f32,
}

impl Fit {
    /// Quantises `row` (D); `narrow` is the same in f32.
    #[inline(always)]
    pub fn fit(&mut self, row: &[f64], narrow: &[f32], stats: &mut Stats) {
        let largest = narrow.iter().fold(0f32, |a, v| a.max(v.abs())).max(f32::MIN_POSITIVE);
        let inverse = best_inverse(narrow, largest);
        self.codes.clear();
        self.codes.extend(narrow.iter().map(|v| code(*v, inverse) as i32));
        let product = sum_of(row, &self.codes, |v, c| v * (c - 7.5));
        let square = sum_of(row, &self.codes, |_, c| (c - 7.5) * (c - 7.5));
        self.scale = (product / square) as f32;
        let scale = f64::from(self.scale);
        let left = sum_of(row, &self.codes, |v, c| (v - scale * (c - 7.5)) * (v - scale * (c - 7.5)));
        self.epsilon = super::rounded_up(left.sqrt());
        stats.hat = stats.hat.max(square.sqrt() * scale.abs());
        for code in &mut self.codes {
            *code -= 8;
        }
        stats.lane_square = stats.lane_square.max(lane_square(&self.codes, FOUR_SEGMENT * FOUR_STEP));
        for code in &mut self.codes {
            *code += 8;
        }
    }

    /// Makes row `row` of a block one that is in no answer.
    pub fn write_none(block: &mut [u8], row: usize) {
        let half = block.len() - TAIL_BYTES + (2 * BLOCK + row) * 4;
        block[half..half + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    }

    /// Writes the codes as row `row` of a block.
    pub fn write(&self, block: &mut [u8], row: usize, half: f32) {
        let tail = block.len() - TAIL_BYTES;
        let (codes, tail) = block.split_at_mut(tail);
        for (step, values) in self.codes.chunks(FOUR_STEP).enumerate() {
            let bytes = &mut codes[step * STEP_BYTES + 4 * row..][..4];
            for (i, code) in values.iter().enumerate() {
                bytes[i % 4] |= (*code as u8) << (i / 4 * 4);
            }
        }
        for (i, value) in [self.scale, self.epsilon, half].into_iter().enumerate() {
            tail[(i * BLOCK + row) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
}

#[inline(always)]
fn code(value: f32, inverse: f32) -> f32 {
    let code = (value * inverse + 8.0).floor();
    // Two plain comparisons, which become one instruction each; values are finite.
    let code = if code > 0.0 { code } else { 0.0 };
    if code < 15.0 { code } else { 15.0 }
}

/// The reciprocal of a step's width that leaves the least over.
#[inline(always)]
fn best_inverse(row: &[f32], largest: f32) -> f32 {
    let mut best = (f32::NEG_INFINITY, 0.0);
    for clip in CLIPS {
        let inverse = 7.5 / (largest * clip);
        let (mut product, mut square) = ([0f32; FIT_LANES], [0f32; FIT_LANES]);
        let (whole, rest) = row.as_chunks::<FIT_LANES>();
        for values in whole {
            let mut levels = [0f32; FIT_LANES];
            for i in 0..FIT_LANES {
                levels[i] = code(values[i], inverse) - 7.5;
            }
            for i in 0..FIT_LANES {
                product[i] += values[i] * levels[i];
            }
            for i in 0..FIT_LANES {
                square[i] += levels[i] * levels[i];
            }
        }
        for (i, value) in rest.iter().enumerate() {
            let level = code(*value, inverse) - 7.5;
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
