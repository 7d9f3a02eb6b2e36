//! Gradient of the weights as the product of the gradient of the output, turned round, and gathered windows.
//!
//! The depth of this product is the pixels, of which there are many, and its result is small: tasks are cut over
//! the result and, where that gives too few, over the pixels into parts of their own sums, added up in order.

use std::arch::x86_64::*;
use std::ops::Range;

use super::gather::{Gather, Line};
use super::gemm::lines_of;
use super::microkernel::{COLUMNS, Factors, Place, panel};
use super::pack::store_taps;
use super::parallel::{Shared, for_tasks};
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::{ConvShape, Dims};

/// Pixels at once: gradients and windows of so many stay in a second cache of 512 KiB.
const PIXELS: usize = 128;
/// Most output channels of a task.
const ROWS: usize = 256;
/// Most panels of 16 window values of a task.
const PANELS: usize = 18;
/// Fewest pixels of a part: below, adding the parts up costs more than it gives.
const PART: usize = 512;
/// Tasks wanted.
const TASKS: usize = 12;

/// Makes `dw`.
#[derive(Clone, Debug)]
pub(in crate::nhwc) struct GemmWeightGradient {
    shape: ConvShape,
    /// The pixels of the gradient of the output, as they are.
    gradients: Gather,
    windows: Gather,
}

/// How a product is cut, by its sizes alone.
#[derive(Clone, Copy, Debug)]
struct Cut {
    parts: usize,
    pixels_of_part: usize,
    row_blocks: usize,
    rows: usize,
    column_blocks: usize,
    columns: usize,
}

impl Cut {
    fn new(pixels: usize, rows: usize, columns: usize) -> Self {
        let panels = columns.div_ceil(COLUMNS);
        let row_blocks = rows.div_ceil(ROWS);
        let rows = rows.div_ceil(row_blocks).next_multiple_of(6);
        let mut column_blocks = panels.div_ceil(PANELS);
        let wanted = TASKS.div_ceil(row_blocks * column_blocks).min(pixels.div_ceil(PART));
        let pixels_of_part = pixels.div_ceil(wanted).next_multiple_of(PIXELS);
        let parts = pixels.div_ceil(pixels_of_part);
        while parts * row_blocks * column_blocks < TASKS && panels >= 4 * (column_blocks + 1) {
            column_blocks += 1;
        }
        Self { parts, pixels_of_part, row_blocks, rows, column_blocks, columns }
    }
}

/// One call.
struct Run<'a> {
    layer: &'a GemmWeightGradient,
    x: &'a [f32],
    dims: Dims,
    dy: &'a [f32],
    out: Dims,
    /// `(part, C_out, window value)`
    sums: Shared,
    cut: Cut,
}

impl GemmWeightGradient {
    /// Only where the processor has AVX2 and FMA.
    pub(in crate::nhwc) fn new(shape: ConvShape) -> Self {
        let gradients = Gather::new(vec![Line { y: 0, x: 0, taps: 1 }], shape.c_out, 1);
        Self { shape, gradients, windows: Gather::new(lines_of(&shape), shape.c_in, shape.stride) }
    }

    /// Writes `dw`; lengths are checked by the caller.
    pub(in crate::nhwc) fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let out = self.shape.out(dims);
        let cut = Cut::new(out.pixels(), out.c, self.shape.depth());
        let run = |sums: &mut [f32]| {
            let run = Run { layer: self, x, dims, dy, out, sums: Shared::new(sums), cut };
            let blocks = cut.row_blocks * cut.column_blocks;
            for_tasks(cut.parts * blocks, |task| {
                let (part, block) = (task / blocks, task % blocks);
                run.task(part, block / cut.column_blocks, block % cut.column_blocks);
            });
        };
        if cut.parts == 1 && self.shape.kernel == 1 {
            return run(dw);
        }
        with_scratch(Slot::Sums, cut.parts * dw.len(), |sums| {
            run(sums);
            self.write(sums, cut.parts, dw);
        });
    }

    /// Adds up the parts and turns each output channel's `(k, k, C_in)` to `(C_in, k, k)`.
    fn write(&self, sums: &[f32], parts: usize, dw: &mut [f32]) {
        let ConvShape { c_in, c_out, kernel, .. } = self.shape;
        let (depth, taps) = (self.shape.depth(), kernel * kernel);
        let target = Shared::new(dw);
        for_tasks(c_out, |channel| {
            let sum = |at: usize| (0..parts).map(|part| sums[(part * c_out + channel) * depth + at]).sum::<f32>();
            let to = target.at(channel * depth);
            // SAFETY: features; this output channel is this task's own.
            unsafe {
                match taps {
                    1 => add_parts(&sums[channel * depth..], parts, c_out * depth, (to, depth)),
                    9 => turn_nine(&sums[channel * depth..], parts, c_out * depth, (to, c_in)),
                    _ => (0..depth).for_each(|at| *to.add(at % c_in * taps + at / c_in) = sum(at)),
                }
            }
        });
    }
}

/// Eight values at the start of `sums` and of every part behind, `step` apart, added up.
///
/// # Safety
/// The processor has AVX2.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn eight(sums: &[f32], parts: usize, step: usize) -> __m256 {
    (0..parts).fold(_mm256_setzero_ps(), |total, part| {
        // SAFETY: the slice holds eight values, or this panics.
        _mm256_add_ps(total, unsafe { _mm256_loadu_ps(sums[part * step..][..8].as_ptr()) })
    })
}

/// # Safety
/// The processor has AVX2; `to` holds `len` values.
#[target_feature(enable = "avx2,fma")]
unsafe fn add_parts(sums: &[f32], parts: usize, step: usize, (to, len): (*mut f32, usize)) {
    let whole = len / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: eight values from here on are below `len`.
        unsafe { _mm256_storeu_ps(to.add(at), eight(&sums[at..], parts, step)) };
    }
    for at in whole..len {
        // SAFETY: `at` is below `len`.
        unsafe { *to.add(at) = (0..parts).map(|part| sums[part * step + at]).sum() };
    }
}

/// # Safety
/// The processor has AVX2; `to` holds nine values of `c_in` channels.
#[target_feature(enable = "avx2,fma")]
unsafe fn turn_nine(sums: &[f32], parts: usize, step: usize, (to, c_in): (*mut f32, usize)) {
    let whole = c_in / 8 * 8;
    for i in (0..whole).step_by(8) {
        let taps = std::array::from_fn(|tap| eight(&sums[tap * c_in + i..], parts, step));
        // SAFETY: eight kernels from here on are below `c_in`.
        unsafe { store_taps(taps, to.add(i * 9), 9) };
    }
    for i in whole..c_in {
        for tap in 0..9 {
            // SAFETY: `i` is below `c_in`.
            unsafe { *to.add(i * 9 + tap) = (0..parts).map(|part| sums[part * step + tap * c_in + i]).sum() };
        }
    }
}

/// Values from one row of a block to the next: an odd number of cache lines, so that pixels never fall on one set.
fn ld_of(len: usize) -> usize {
    len.next_multiple_of(2 * COLUMNS) + COLUMNS
}

impl Run<'_> {
    fn task(&self, part: usize, row_block: usize, column_block: usize) {
        let Cut { pixels_of_part, rows, columns, column_blocks, .. } = self.cut;
        let rows = row_block * rows..((row_block + 1) * rows).min(self.out.c);
        let panels = columns.div_ceil(COLUMNS);
        let first = |block: usize| (block * panels / column_blocks * COLUMNS).min(columns);
        let columns = first(column_block)..first(column_block + 1);
        let start = part * pixels_of_part;
        let end = (start + pixels_of_part).min(self.out.pixels());
        let (lda, ldb) = (ld_of(rows.len()), ld_of(columns.len()));
        with_scratch(Slot::Input, PIXELS * lda, |a| {
            with_scratch(Slot::Output, PIXELS * ldb, |b| {
                for from in (start..end).step_by(PIXELS) {
                    let pixels = (from, PIXELS.min(end - from));
                    let grid = (self.out.h, self.out.w);
                    let (a, b) = ((a.as_mut_ptr(), lda), (b.as_mut_ptr(), ldb));
                    let GemmWeightGradient { gradients, windows, .. } = self.layer;
                    // SAFETY: features and lengths; rows and columns of a part are this task's own.
                    unsafe {
                        let dy = (self.dy.as_ptr(), self.out);
                        gradients.rows(dy, grid, pixels, (rows.start, rows.end), a);
                        let x = (self.x.as_ptr(), self.dims);
                        windows.rows(x, grid, pixels, (columns.start, columns.end), b);
                        let (a, b) = ((a.0.cast_const(), lda), (b.0.cast_const(), ldb));
                        self.multiply(part, a, b, pixels.1, rows.clone(), columns.clone(), from > start);
                    }
                }
            });
        });
    }

    /// # Safety
    /// Features and lengths; nobody else writes these rows and columns of the part.
    #[allow(clippy::too_many_arguments)]
    unsafe fn multiply(
        &self,
        part: usize,
        (a, lda): (*const f32, usize),
        (b, ldb): (*const f32, usize),
        pixels: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        add: bool,
    ) {
        let ld = self.cut.columns;
        for column in columns.clone().step_by(COLUMNS) {
            let c = self.sums.at((part * self.out.c + rows.start) * ld + column);
            let width = COLUMNS.min(columns.end - column);
            // SAFETY: the caller's; rows of `b` reach to the end of a whole panel.
            unsafe {
                let factors = Factors { depth: pixels, a, lda, b: b.add(column - columns.start), ldb };
                panel::<true>(rows.len(), width, factors, Place { c, ld, add }, None);
            }
        }
    }
}
