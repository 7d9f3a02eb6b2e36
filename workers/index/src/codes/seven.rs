//! The 7-bit level: what is read of the rows that the 4-bit level lets through, and of all rows for a large batch.
//!
//! Rows lie one after the other, each with its scale, residual norm and halved squared norm at its end.

use super::query::{Shape, lane_square, seven_shape};
use super::{Stats, sum_of};
use crate::buffer::Memory;
use crate::error::Result;
use crate::kernels::{Dots, SEVEN_SEGMENT, SEVEN_STEP};

/// Dimensions to whose multiples a row's codes are padded.
const PAD: usize = 16;
/// Bytes to whose multiples a row is padded.
const ALIGN: usize = 32;
/// Bytes of a row after its codes.
const TAIL_BYTES: usize = 3 * 4;
/// Largest code; 0 is stored as 64.
const LARGEST: f32 = 63.0;

/// See the module.
#[derive(Debug)]
pub(crate) struct Seven {
    dim: usize,
    memory: Memory,
    stats: Stats,
}

impl Seven {
    pub(crate) fn row_bytes(dim: usize) -> usize {
        (dim.next_multiple_of(PAD) + TAIL_BYTES).next_multiple_of(ALIGN)
    }

    /// Memory for rows, not yet written.
    pub(crate) fn memory(rows: usize, dim: usize) -> Result<Memory> {
        Memory::zeroed(rows * Self::row_bytes(dim))
    }

    pub(crate) fn new(dim: usize, memory: Memory, stats: Stats) -> Self {
        Self { dim, memory, stats }
    }

    /// Bytes of a row's codes.
    pub fn code_bytes(&self) -> usize {
        self.dim.next_multiple_of(PAD)
    }

    /// All of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = Self::row_bytes(self.dim);
        &self.memory.bytes()[row * bytes..][..bytes]
    }

    /// All of several rows.
    #[inline(always)]
    pub fn rows(&self, rows: std::ops::Range<usize>) -> &[u8] {
        let bytes = Self::row_bytes(self.dim);
        &self.memory.bytes()[rows.start * bytes..rows.end * bytes]
    }

    /// Codes, scale, residual norm and half the squared norm of a row.
    #[inline(always)]
    pub fn parts(&self, row: usize) -> (&[u8], f32, f32, f32) {
        let row = self.row(row);
        let (codes, rest) = row.split_at(self.code_bytes());
        let value = |at: usize| f32::from_le_bytes(rest.as_chunks::<4>().0[at]);
        (codes, value(0), value(1), value(2))
    }

    /// Steps of a tile's group.
    pub fn steps(&self) -> usize {
        self.dim.div_ceil(SEVEN_STEP)
    }

    /// Writes up to eight rows from `first` as a group of a tile: per step four bytes of each row.
    #[inline(always)]
    pub fn group<D: Dots>(&self, dots: D, first: usize, rows: usize, group: &mut [u8]) {
        if rows > 0 {
            dots.group(self.rows(first..first + rows), Self::row_bytes(self.dim), group);
        }
    }

    pub fn shape(&self) -> Shape {
        seven_shape(self.dim, self.stats.lane_norm())
    }

    /// What all rows have in common.
    pub fn stats(&self) -> Stats {
        self.stats
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
    /// (D), from −63 to 63.
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
        let inverse = LARGEST / largest;
        self.codes.clear();
        self.codes.extend(narrow.iter().map(|v| ((v * inverse + 64.5).floor().clamp(1.0, 127.0)) as i32 - 64));
        let product = sum_of(row, &self.codes, |v, c| v * c);
        let square = sum_of(row, &self.codes, |_, c| c * c);
        self.scale = if square > 0.0 { (product / square) as f32 } else { 0.0 };
        let scale = f64::from(self.scale);
        let left = sum_of(row, &self.codes, |v, c| (v - scale * c) * (v - scale * c));
        self.epsilon = super::rounded_up(left.sqrt());
        stats.hat = stats.hat.max(square.sqrt() * scale.abs());
        stats.lane_square = stats.lane_square.max(lane_square(&self.codes, SEVEN_SEGMENT * SEVEN_STEP));
    }

    /// Writes the codes as a row.
    pub fn write(&self, row: &mut [u8], half: f32) {
        let (codes, tail) = row.split_at_mut(self.codes.len().next_multiple_of(PAD));
        codes.fill(64);
        for (byte, code) in codes.iter_mut().zip(&self.codes) {
            *byte = (code + 64) as u8;
        }
        for (i, value) in [self.scale, self.epsilon, half].into_iter().enumerate() {
            tail[i * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
}
