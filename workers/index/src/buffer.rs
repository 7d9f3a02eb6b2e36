//! Embeddings in memory: rows that start on a cache line and are padded with zeros to whole lines.
//!
//! The padding lets kernels run without tails: a padded query has zeros at the same places, so that a padded
//! d² is the d² of the rows.

use crate::error::{Error, Result};

/// f32 values of one cache line of 64 bytes.
pub(crate) const LINE: usize = 16;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// N rows of D values.
#[derive(Debug)]
pub(crate) struct Embeddings {
    lines: Vec<Line>,
    dim: usize,
    stride: usize,
}

impl Embeddings {
    /// N rows of zeros.
    pub fn zeroed(rows: usize, dim: usize) -> Result<Self> {
        let lines_per_row = dim.div_ceil(LINE);
        let count = rows.checked_mul(lines_per_row).ok_or_else(|| Error::memory(usize::MAX))?;
        let mut lines = Vec::new();
        lines.try_reserve_exact(count).map_err(|source| Error::memory(count.saturating_mul(64)).caused_by(source))?;
        lines.resize(count, Line([0.0; LINE]));
        Ok(Self { lines, dim, stride: lines_per_row * LINE })
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Values from one row's start to the next's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// One row, (D).
    pub fn row(&self, row: usize) -> &[f32] {
        &self.padded(row, 1)[..self.dim]
    }

    /// `count` rows from `first` with their padding, (count × stride).
    pub fn padded(&self, first: usize, count: usize) -> &[f32] {
        &self.values()[first * self.stride..(first + count) * self.stride]
    }

    /// Writes values in row order; `at` counts unpadded values.
    pub fn write(&mut self, mut at: usize, mut values: impl ExactSizeIterator<Item = f32>) {
        while values.len() > 0 {
            let (row, column) = (at / self.dim, at % self.dim);
            let count = values.len().min(self.dim - column);
            let start = row * self.stride + column;
            let target = &mut self.values_mut()[start..start + count];
            for slot in target {
                *slot = values.next().expect("`count` values are left");
            }
            at += count;
        }
    }

    fn values(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` around `[f32; LINE]` without padding (16 × 4 bytes = its alignment), so
        // the lines are `len × LINE` initialised f32 in a row.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `values`; the borrow is exclusive, and every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_padded_with_zeros_and_written_in_pieces() {
        let mut buffer = Embeddings::zeroed(3, 20).unwrap();
        let values: Vec<f32> = (0..60).map(|v| v as f32).collect();
        for (piece, chunk) in values.chunks(7).enumerate() {
            buffer.write(piece * 7, chunk.iter().copied());
        }
        assert_eq!(buffer.stride(), 32);
        for row in 0..3 {
            assert_eq!(buffer.row(row), &values[row * 20..][..20]);
            assert_eq!(buffer.row(row).as_ptr() as usize % 64, 0);
            assert!(buffer.padded(row, 1)[20..].iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn a_shard_that_cannot_fit_is_an_error() {
        assert!(Embeddings::zeroed(usize::MAX / 8, 300).is_err());
    }
}
