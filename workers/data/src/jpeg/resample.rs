//! Samples of components to the pixels of the resized picture.

use super::filter::Filter;
use super::idct::{Lanes, Transpose, byte};

/// Rows and columns are worked on in groups.
const GROUP: usize = 8;

/// Samples of one component, column by column, of the blocks that are needed.
#[derive(Debug, Default)]
pub(super) struct Plane {
    pub samples: Vec<u8>,
    /// The component's column and row that lie first.
    pub left: usize,
    pub top: usize,
    /// From one column to the next; a multiple of [`GROUP`].
    pub stride: usize,
}

impl Plane {
    /// Makes room. Samples that nobody writes keep what they were: none has a weight.
    pub fn set(&mut self, (left, top): (usize, usize), (columns, rows): (usize, usize)) {
        (self.left, self.top) = (left, top);
        self.stride = rows.next_multiple_of(GROUP);
        self.samples.resize(columns * self.stride, 0);
    }
}

/// A component resized across, row by row.
#[derive(Debug, Default)]
pub(super) struct Rows {
    values: Vec<f32>,
    stride: usize,
    top: usize,
}

impl Rows {
    /// Resizes a plane across: rows of `filter`'s pixels.
    #[inline(always)]
    pub fn set(&mut self, plane: &Plane, filter: &Filter, transpose: impl Transpose) {
        let out = filter.starts.len();
        self.top = plane.top;
        self.stride = out.next_multiple_of(GROUP);
        self.values.resize(plane.stride * self.stride, 0.0);
        for (group, starts) in filter.starts.chunks(GROUP).enumerate() {
            let weights = &filter.weights[group * GROUP * filter.taps..];
            for top in (0..plane.stride).step_by(GROUP) {
                let mut columns = [[0.0; GROUP]; GROUP];
                for ((column, start), weights) in columns.iter_mut().zip(starts).zip(weights.chunks_exact(filter.taps))
                {
                    *column =
                        weighed(&plane.samples[(start - plane.left) * plane.stride + top..], plane.stride, weights);
                }
                for (y, row) in transpose(&columns).iter().enumerate() {
                    let at = (top + y) * self.stride + group * GROUP;
                    self.values[at..at + GROUP].copy_from_slice(row);
                }
            }
        }
    }

    /// One row of the picture: resizes down. `row` has room for whole groups.
    #[inline(always)]
    pub fn down(&self, filter: &Filter, y: usize, row: &mut [f32]) {
        let first = (filter.starts[y] - self.top) * self.stride;
        let weights = &filter.weights[y * filter.taps..][..filter.taps];
        for (x, out) in row.chunks_exact_mut(GROUP).enumerate() {
            let mut sum = [0.0; GROUP];
            for (k, weight) in weights.iter().enumerate() {
                let values = &self.values[first + k * self.stride + x * GROUP..][..GROUP];
                for i in 0..GROUP {
                    sum[i] += weight * values[i];
                }
            }
            out.copy_from_slice(&sum);
        }
    }

    /// Length of a row, whole groups.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

/// Σ weights · columns, of eight rows.
#[inline(always)]
fn weighed(samples: &[u8], stride: usize, weights: &[f32]) -> Lanes {
    let mut sum = [0.0; GROUP];
    for (k, weight) in weights.iter().enumerate() {
        let column = &samples[k * stride..][..GROUP];
        for i in 0..GROUP {
            sum[i] += weight * f32::from(column[i]);
        }
    }
    sum
}

/// A row of Y, Cb, Cr as in JFIF to R, G, B.
#[inline(always)]
pub(super) fn colours([y, cb, cr]: [&[f32]; 3], [r, g, b]: [&mut [u8]; 3]) {
    let inputs = y.iter().zip(cb).zip(cr);
    for (((r, g), b), ((y, cb), cr)) in r.iter_mut().zip(g).zip(b).zip(inputs) {
        let (cb, cr) = (cb - 128.0, cr - 128.0);
        *r = byte(y + 1.402 * cr);
        *g = byte(y - 0.344_136 * cb - 0.714_136 * cr);
        *b = byte(y + 1.772 * cb);
    }
}

/// A row of grey.
#[inline(always)]
pub(super) fn grey(y: &[f32], out: &mut [u8]) {
    for (out, y) in out.iter_mut().zip(y) {
        *out = byte(*y);
    }
}
