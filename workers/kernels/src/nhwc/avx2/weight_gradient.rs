//! Gradient of the weights as the product of gathered windows, turned round, and the gradient of the output.
//!
//! The depth of this product is the pixels, of which there are many, and its result is small: tasks are cut over
//! the result and, where that gives too few, over the pixels into parts of their own sums, added up in order.

use std::arch::x86_64::*;
use std::ops::Range;

use super::gather::{Gather, copy};
use super::gemm::lines_of;
use super::microkernel::{COLUMNS, Factors, Place, panel};
use super::pack::transpose;
use super::parallel::{Shared, for_tasks};
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::{ConvShape, Dims};

/// Pixels at once: windows and gradients of so many stay in a second cache of 512 KiB.
const PIXELS: usize = 128;
/// Most rows (window values) of a task.
const ROWS: usize = 288;
/// Most panels of 16 output channels of a task.
const PANELS: usize = 16;
/// Fewest pixels of a part: below, adding the parts up costs more than it gives.
const PART: usize = 512;
/// Tasks wanted.
const TASKS: usize = 12;

/// Makes `dw`.
#[derive(Clone, Debug)]
pub(in crate::nhwc) struct GemmWeightGradient {
    shape: ConvShape,
    gather: Gather,
}

/// How a product is cut, by its sizes alone.
#[derive(Clone, Copy, Debug)]
struct Cut {
    parts: usize,
    pixels_of_part: usize,
    row_blocks: usize,
    rows: usize,
    column_blocks: usize,
    panels: usize,
}

impl Cut {
    fn new(pixels: usize, depth: usize, panels: usize) -> Self {
        let column_blocks = panels.div_ceil(PANELS);
        let mut row_blocks = depth.div_ceil(ROWS);
        let wanted = TASKS.div_ceil(row_blocks * column_blocks).min(pixels.div_ceil(PART));
        let pixels_of_part = pixels.div_ceil(wanted).next_multiple_of(PIXELS);
        let parts = pixels.div_ceil(pixels_of_part);
        while parts * row_blocks * column_blocks < TASKS && depth.div_ceil(row_blocks + 1) >= 48 {
            row_blocks += 1;
        }
        let rows = depth.div_ceil(row_blocks).next_multiple_of(6);
        Self { parts, pixels_of_part, row_blocks: depth.div_ceil(rows), rows, column_blocks, panels }
    }
}

/// One call.
struct Run<'a> {
    gather: &'a Gather,
    x: &'a [f32],
    dims: Dims,
    dy: &'a [f32],
    out: Dims,
    /// `(part, window value, C_out in whole panels)`
    sums: Shared,
    cut: Cut,
}

impl GemmWeightGradient {
    /// Only where the processor has AVX2 and FMA.
    pub(in crate::nhwc) fn new(shape: ConvShape) -> Self {
        Self { shape, gather: Gather::new(lines_of(&shape), shape.c_in, shape.stride) }
    }

    /// Writes `dw`; lengths are checked by the caller.
    pub(in crate::nhwc) fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let out = self.shape.out(dims);
        let (depth, panels) = (self.shape.depth(), out.c.div_ceil(COLUMNS));
        let cut = Cut::new(out.pixels(), depth, panels);
        let len = depth * panels * COLUMNS;
        with_scratch(Slot::Sums, cut.parts * len, |sums| {
            let run = Run { gather: &self.gather, x, dims, dy, out, sums: Shared::new(sums), cut };
            let blocks = cut.row_blocks * cut.column_blocks;
            for_tasks(cut.parts * blocks, |task| {
                let (part, block) = (task / blocks, task % blocks);
                run.task(part, block / cut.column_blocks, block % cut.column_blocks);
            });
            self.write(sums, cut.parts, dw);
        });
    }

    /// Adds up the parts and turns the result to `(C_out, C_in, k, k)`.
    fn write(&self, sums: &[f32], parts: usize, dw: &mut [f32]) {
        let ConvShape { c_in, c_out, kernel, .. } = self.shape;
        let (depth, taps) = (self.shape.depth(), kernel * kernel);
        let ld = c_out.next_multiple_of(COLUMNS);
        let target = Shared::new(dw);
        for_tasks(c_out.div_ceil(8), |eight| {
            let channels = 8.min(c_out - eight * 8);
            for q in (0..depth).step_by(8) {
                let row = |q: usize| (q % taps * c_in + q / taps) * ld + eight * 8;
                let rows: [usize; 8] = std::array::from_fn(|i| row((q + i).min(depth - 1)));
                // SAFETY: features; the rows exist, and these output channels are this task's own.
                unsafe {
                    let block = sum_of_parts(sums, depth * ld, parts, rows);
                    for (channel, values) in block.iter().enumerate().take(channels) {
                        let to = target.at((eight * 8 + channel) * depth + q);
                        copy(values.as_ptr(), to, 8.min(depth - q));
                    }
                }
            }
        });
    }
}

/// Eight values of each of eight rows, added up over the parts, rows turned to columns.
///
/// # Safety
/// The processor has AVX2; eight values at each of the rows lie in every part.
#[target_feature(enable = "avx2,fma")]
unsafe fn sum_of_parts(sums: &[f32], len: usize, parts: usize, rows: [usize; 8]) -> [[f32; 8]; 8] {
    let total = rows.map(|row| {
        let first = _mm256_setzero_ps();
        (0..parts).fold(first, |total, part| {
            // SAFETY: the slice below holds eight values, or this panics.
            _mm256_add_ps(total, unsafe { _mm256_loadu_ps(sums[part * len + row..][..8].as_ptr()) })
        })
    });
    transpose(total).map(|column| {
        let mut values = [0.0; 8];
        // SAFETY: eight values.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), column) };
        values
    })
}

impl Run<'_> {
    fn task(&self, part: usize, row_block: usize, column_block: usize) {
        let Cut { pixels_of_part, rows, column_blocks, panels, .. } = self.cut;
        let first = row_block * rows;
        let rows = first..(first + rows).min(self.gather.depth());
        let panels = column_block * panels / column_blocks..(column_block + 1) * panels / column_blocks;
        let start = part * pixels_of_part;
        let end = (start + pixels_of_part).min(self.out.pixels());
        // An odd number of cache lines, so that pixels do not fall on the same set.
        let lda = rows.len().next_multiple_of(2 * COLUMNS) + COLUMNS;
        with_scratch(Slot::Input, PIXELS * lda, |a| {
            with_scratch(Slot::Output, PIXELS * panels.len() * COLUMNS, |b| {
                for from in (start..end).step_by(PIXELS) {
                    let count = PIXELS.min(end - from);
                    // SAFETY: features and lengths; rows and panels of a part are this task's own.
                    unsafe {
                        self.pack((from, count), panels.clone(), b.as_mut_ptr());
                        let (source, grid) = ((self.x.as_ptr(), self.dims), (self.out.h, self.out.w));
                        let to = (a.as_mut_ptr(), lda);
                        self.gather.rows(source, grid, (from, count), (rows.start, rows.end), to);
                        self.multiply(part, (a, lda), b, count, rows.clone(), panels.clone(), from > start);
                    }
                }
            });
        });
    }

    /// Gradients of some pixels to panels, `PIXELS` long.
    ///
    /// # Safety
    /// Features and lengths; `to` holds the panels.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn pack(&self, (from, count): (usize, usize), panels: Range<usize>, to: *mut f32) {
        let c = self.out.c;
        for pixel in 0..count {
            for (place, j) in panels.clone().enumerate() {
                let width = COLUMNS.min(c - j * COLUMNS);
                let source = self.dy[(from + pixel) * c + j * COLUMNS..][..width].as_ptr();
                // SAFETY: the caller's.
                unsafe {
                    let to = to.add((place * PIXELS + pixel) * COLUMNS);
                    if width == COLUMNS {
                        _mm256_storeu_ps(to, _mm256_loadu_ps(source));
                        _mm256_storeu_ps(to.add(8), _mm256_loadu_ps(source.add(8)));
                    } else {
                        std::slice::from_raw_parts_mut(to, COLUMNS).fill(0.0);
                        copy(source, to, width);
                    }
                }
            }
        }
    }

    /// # Safety
    /// Features and lengths; nobody else writes these rows and panels of the part.
    #[allow(clippy::too_many_arguments)]
    unsafe fn multiply(
        &self,
        part: usize,
        (a, lda): (&[f32], usize),
        b: &[f32],
        pixels: usize,
        rows: Range<usize>,
        panels: Range<usize>,
        add: bool,
    ) {
        let ld = self.cut.panels * COLUMNS;
        for (place, j) in panels.enumerate() {
            let b = b[place * PIXELS * COLUMNS..].as_ptr();
            let c = self.sums.at((part * self.gather.depth() + rows.start) * ld + j * COLUMNS);
            let factors = Factors { depth: pixels, a: a.as_ptr(), lda, b };
            // SAFETY: the caller's.
            unsafe { panel::<true>(rows.len(), COLUMNS, factors, Place { c, ld, add }, None) };
        }
    }
}
