//! Gradient of the weights as the product of the gradient of the output, turned round, and gathered windows.
//!
//! The depth of this product is the pixels, of which there are many, and its result is small: tasks are cut over
//! the result and, where that gives too few, over the pixels into parts of their own sums, added up in order.

use std::marker::PhantomData;
use std::ops::Range;

use super::WeightKernel;
use super::gather::{Gather, Line};
use super::gemm::lines_of;
use super::microkernel::{COLUMNS, Factors, Place, panel};
use super::parallel::{Shared, for_tasks};
use super::vector::Simd;
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
#[derive(Debug)]
pub(super) struct GemmWeightGradient<I> {
    shape: ConvShape,
    /// The pixels of the gradient of the output, as they are.
    gradients: Gather,
    windows: Gather,
    how: PhantomData<I>,
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
    fn new<I: Simd>(pixels: usize, rows: usize, columns: usize) -> Self {
        let panels = columns.div_ceil(COLUMNS);
        let row_blocks = rows.div_ceil(ROWS);
        let rows = rows.div_ceil(row_blocks).next_multiple_of(I::ROWS);
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
struct Run<'a, I> {
    layer: &'a GemmWeightGradient<I>,
    x: &'a [f32],
    dims: Dims,
    dy: &'a [f32],
    out: Dims,
    /// `(part, C_out, window value)`
    sums: Shared,
    cut: Cut,
}

impl<I: Simd> GemmWeightGradient<I> {
    /// Only where the processor has `I`.
    pub(super) fn new(shape: ConvShape) -> Self {
        let gradients = Gather::new(vec![Line { y: 0, x: 0, taps: 1 }], shape.c_out, 1);
        let windows = Gather::new(lines_of(&shape), shape.c_in, shape.stride);
        Self { shape, gradients, windows, how: PhantomData }
    }

    /// Adds up the parts and turns each output channel's `(k, k, C_in)` to `(C_in, k, k)`.
    fn write(&self, sums: &[f32], parts: usize, dw: &mut [f32]) {
        let ConvShape { c_in, c_out, kernel, .. } = self.shape;
        let (depth, taps) = (self.shape.depth(), kernel * kernel);
        let target = Shared::new(dw);
        for_tasks(c_out, |channel| {
            let sum = |at: usize| (0..parts).map(|part| sums[(part * c_out + channel) * depth + at]).sum::<f32>();
            let to = target.at(channel * depth);
            let sums = Parts { first: sums[channel * depth..].as_ptr(), count: parts, step: c_out * depth };
            // SAFETY: features; this output channel is this task's own.
            unsafe {
                match taps {
                    1 => I::run(
                        #[inline(always)]
                        || sums.add_up::<I>(to, depth),
                    ),
                    9 => I::run(
                        #[inline(always)]
                        || sums.turn_nine::<I>(to, c_in),
                    ),
                    _ => (0..depth).for_each(|at| *to.add(at % c_in * taps + at / c_in) = sum(at)),
                }
            }
        });
    }
}

impl<I: Simd> WeightKernel for GemmWeightGradient<I> {
    fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let out = self.shape.out(dims);
        let cut = Cut::new::<I>(out.pixels(), out.c, self.shape.depth());
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
}

/// Sums of `count` parts, `step` values from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub(super) first: *const f32,
    pub(super) count: usize,
    pub(super) step: usize,
}

impl Parts {
    /// The values from `at` on of every part, added up.
    ///
    /// # Safety
    /// The processor has `I`; every part holds them.
    #[inline(always)]
    unsafe fn vector<I: Simd>(self, at: usize) -> I::V {
        // SAFETY: the caller's.
        unsafe {
            let mut total = I::zero();
            for part in 0..self.count {
                total = I::add(total, I::load(self.first.add(part * self.step + at)));
            }
            total
        }
    }

    /// # Safety
    /// As [`Self::vector`].
    #[inline(always)]
    unsafe fn value(self, at: usize) -> f32 {
        let mut total = 0.0;
        for part in 0..self.count {
            // SAFETY: the caller's.
            total += unsafe { *self.first.add(part * self.step + at) };
        }
        total
    }

    /// # Safety
    /// As [`Self::vector`]; `to` holds `len` values, as every part does.
    #[inline(always)]
    pub(super) unsafe fn add_up<I: Simd>(self, to: *mut f32, len: usize) {
        let whole = len / I::LANES * I::LANES;
        // SAFETY: all is below `len`.
        unsafe {
            for at in (0..whole).step_by(I::LANES) {
                I::store(to.add(at), self.vector::<I>(at));
            }
            for at in whole..len {
                *to.add(at) = self.value(at);
            }
        }
    }

    /// From nine taps of `c_in` channels to `c_in` kernels.
    ///
    /// # Safety
    /// As [`Self::vector`]; `to` holds nine values of `c_in` channels, as every part does.
    #[inline(always)]
    unsafe fn turn_nine<I: Simd>(self, to: *mut f32, c_in: usize) {
        let whole = c_in / I::LANES * I::LANES;
        // SAFETY: all channels are below `c_in`.
        unsafe {
            for i in (0..whole).step_by(I::LANES) {
                let mut taps = [I::zero(); 9];
                for (tap, v) in taps.iter_mut().enumerate() {
                    *v = self.vector::<I>(tap * c_in + i);
                }
                I::store_taps(taps, to.add(i * 9), 9);
            }
            for i in whole..c_in {
                for tap in 0..9 {
                    *to.add(i * 9 + tap) = self.value(tap * c_in + i);
                }
            }
        }
    }
}

/// Values from one row of a block to the next: an odd number of cache lines, so that pixels never fall on one set.
fn ld_of(len: usize) -> usize {
    len.next_multiple_of(2 * COLUMNS) + COLUMNS
}

impl<I: Simd> Run<'_, I> {
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
                        gradients.rows::<I>(dy, grid, pixels, (rows.start, rows.end), a);
                        let x = (self.x.as_ptr(), self.dims);
                        windows.rows::<I>(x, grid, pixels, (columns.start, columns.end), b);
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
        for column in columns.clone().step_by(I::WIDTH) {
            let c = self.sums.at((part * self.out.c + rows.start) * ld + column);
            let width = I::WIDTH.min(columns.end - column);
            // SAFETY: the caller's; rows of `b` reach to the end of a whole panel.
            unsafe {
                let factors = Factors { depth: pixels, a, lda, b: b.add(column - columns.start), ldb, panel: COLUMNS };
                panel::<I, true>(rows.len(), width, factors, Place { c, ld, add }, None);
            }
        }
    }
}
