//! A convolution as the product of gathered windows and packed weights.
//!
//! A task takes a block of windows small enough that its rows stay in a core's second cache, goes over the panels of
//! weights, and for each over blocks of the depth whose part of the panel stays in the first cache. An output value
//! is the sum of its products in the order of the depth, whatever the cut.

use std::marker::PhantomData;

use super::ForwardKernel;
use super::gather::{Gather, Line, Origin, add, copy};
use super::microkernel::{COLUMNS, Factors, Finish, Place, panel};
use super::pack;
use super::parallel::{Shared, for_tasks};
use super::vector::Simd;
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::{Buffer, ChannelSums, ConvShape, Dims, Epilogue};

/// Most values of a task's rows: 288 KiB of a second cache of 512 KiB.
const BLOCK: usize = 72 * 1024;
/// Most rows of a task.
const MOST_ROWS: usize = 192;
/// Values of a row of the tensor up to which its rows are read where they lie, however many panels go over them.
const NEAR: usize = 288;
/// Tasks that every product is cut into where it is large enough: an even share for a few threads.
const TASKS: usize = 24;

/// Windows times weights.
#[derive(Debug)]
pub(super) struct Gemm<I> {
    gather: Gather,
    /// Columns of the product.
    columns: usize,
    pub(super) panels: Buffer,
    how: PhantomData<I>,
}

/// Where the rows of a product go.
#[derive(Clone, Copy)]
pub(super) enum Rows {
    /// One after the other.
    InOrder,
    /// To the pixels `start + step · position` of a tensor of these sizes.
    Spread { dims: Dims, start: (usize, usize), step: usize },
}

/// One call of a product: from where, to where.
pub(super) struct Call<'a> {
    pub(super) x: &'a [f32],
    pub(super) dims: Dims,
    /// Height and width of the grid of windows.
    pub(super) grid: (usize, usize),
    pub(super) y: Shared,
    pub(super) rows: Rows,
    /// On top of what `y` holds.
    pub(super) add: bool,
    pub(super) epilogue: Epilogue<'a>,
    /// `(row block, 2, columns)`, as many as [`Cut::row_blocks`].
    pub(super) sums: Option<Shared>,
}

/// How a product is cut into tasks: by its sizes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) row_blocks: usize,
    column_blocks: usize,
    rows: usize,
    panels: usize,
}

impl Cut {
    fn new<I: Simd>(rows: usize, depth: usize, columns: usize) -> Self {
        let panels = columns.div_ceil(COLUMNS);
        let most = (BLOCK / depth.max(1) / 24 * 24).clamp(24, MOST_ROWS);
        let wanted = rows.div_ceil(most).max(TASKS.min(rows.div_ceil(48)));
        // Even blocks of whole tiles.
        let block = rows.div_ceil(wanted).next_multiple_of(I::ROWS);
        let row_blocks = rows.div_ceil(block);
        let column_blocks = (TASKS / row_blocks).clamp(1, panels.div_ceil(4));
        Self { row_blocks, column_blocks, rows: block, panels }
    }

    /// Where column block `part` begins: with a whole tile.
    fn first_panel<I: Simd>(&self, part: usize) -> usize {
        let of_tile = I::WIDTH / COLUMNS;
        (part * self.panels.div_ceil(of_tile) / self.column_blocks * of_tile).min(self.panels)
    }
}

impl<I: Simd> Gemm<I> {
    /// Only where the processor has `I`. Weights are missing until `panels` are packed.
    pub(super) fn new(gather: Gather, columns: usize) -> Self {
        Self { gather, columns, panels: Buffer::default(), how: PhantomData }
    }

    fn cut(&self, n: usize, (h, w): (usize, usize)) -> Cut {
        Cut::new::<I>(n * h * w, self.gather.depth(), self.columns)
    }

    /// Runs the product.
    ///
    /// # Safety
    /// Features and lengths: see the module above.
    pub(super) unsafe fn run(&self, call: &Call<'_>) {
        let cut = self.cut(call.dims.n, call.grid);
        let rows = call.dims.n * call.grid.0 * call.grid.1;
        for_tasks(cut.row_blocks * cut.column_blocks, |task| {
            let (block, part) = (task / cut.column_blocks, task % cut.column_blocks);
            let first = block * cut.rows;
            let count = cut.rows.min(rows - first);
            let panels = cut.first_panel::<I>(part)..cut.first_panel::<I>(part + 1);
            let task = Task { gemm: self, call, block, first, count, panels };
            // SAFETY: the caller's; tasks have rows or columns of their own.
            unsafe { task.run() };
        });
    }
}

/// A block of rows and some panels.
struct Task<'a, I> {
    gemm: &'a Gemm<I>,
    call: &'a Call<'a>,
    block: usize,
    first: usize,
    count: usize,
    panels: std::ops::Range<usize>,
}

impl<I: Simd> Task<'_, I> {
    /// # Safety
    /// As [`Gemm::run`].
    unsafe fn run(&self) {
        let (gather, call) = (&self.gemm.gather, self.call);
        let depth = gather.depth();
        if gather.is_identity(call.dims, call.grid) && (self.gemm.columns <= 128 || depth <= NEAR) {
            let a = call.x[self.first * depth..].as_ptr();
            // SAFETY: the rows are the tensor's own.
            return unsafe { self.multiply(a, depth) };
        }
        // An odd number of cache lines from row to row: six rows never fall on the same set.
        let lda = depth.next_multiple_of(2 * COLUMNS) + COLUMNS;
        with_scratch(Slot::Input, self.count * lda, |rows| {
            // SAFETY: `rows` holds the block's rows; the origins are the grid's.
            unsafe {
                let to = (rows.as_mut_ptr(), lda);
                gather.rows::<I>((call.x.as_ptr(), call.dims), call.grid, (self.first, self.count), (0, depth), to);
                self.multiply(rows.as_ptr(), lda);
            }
        });
    }

    /// # Safety
    /// As [`Gemm::run`]; `a` holds the block's rows.
    unsafe fn multiply(&self, a: *const f32, lda: usize) {
        let columns = self.gemm.columns;
        match self.call.rows {
            Rows::InOrder => {
                let place = Place { c: self.call.y.at(self.first * columns), ld: columns, add: self.call.add };
                // SAFETY: the output holds every row.
                unsafe { self.into(a, lda, place, true) };
            }
            Rows::Spread { dims, start, step } => with_scratch(Slot::Output, self.count * columns, |rows| {
                // SAFETY: the scratch rows hold the product, the tensor every pixel that a row goes to.
                unsafe {
                    self.into(a, lda, Place { c: rows.as_mut_ptr(), ld: columns, add: false }, false);
                    self.spread(rows.as_ptr(), dims, start, step);
                }
            }),
        }
    }

    /// # Safety
    /// As [`Gemm::run`]; `place` holds the block's rows.
    unsafe fn into(&self, a: *const f32, lda: usize, place: Place, finish: bool) {
        let Gemm { gather, columns, panels, .. } = self.gemm;
        let depth = gather.depth();
        let step = depth.div_ceil(depth.div_ceil(I::DEPTH)).next_multiple_of(8);
        for j in self.panels.clone().step_by(I::WIDTH / COLUMNS) {
            let last = (*columns).min(self.panels.end * COLUMNS);
            let width = I::WIDTH.min(last - j * COLUMNS);
            let mut from = 0;
            while from < depth {
                let part = step.min(depth - from);
                // SAFETY: the panel holds the depth; columns and rows are the product's.
                unsafe {
                    let b = panels[(j * depth + from) * COLUMNS..].as_ptr();
                    let factors = Factors { depth: part, a: a.add(from), lda, b, ldb: COLUMNS, panel: depth * COLUMNS };
                    let place = Place { c: place.c.add(j * COLUMNS), add: place.add || from > 0, ..place };
                    let last = finish && from + part == depth;
                    panel::<I, false>(self.count, width, factors, place, last.then(|| self.finish(j * COLUMNS)));
                }
                from += part;
            }
        }
    }

    /// What is done to the tiles of a panel that starts at `column`.
    fn finish(&self, column: usize) -> Finish {
        let columns = self.gemm.columns;
        let Epilogue { bias, residual, relu } = self.call.epilogue;
        let sums = self.call.sums.map(|sums| {
            let at = self.block * 2 * columns + column;
            (sums.at(at), sums.at(at + columns))
        });
        let residual = residual.map(|r| r[self.first * columns + column..].as_ptr());
        Finish { bias: bias.map(|b| b[column..].as_ptr()), residual, relu, sums }
    }

    /// # Safety
    /// As [`Gemm::run`]; `rows` holds the block's rows.
    unsafe fn spread(&self, rows: *const f32, dims: Dims, start: (usize, usize), step: usize) {
        let columns = self.gemm.columns;
        let from = self.panels.start * COLUMNS;
        let width = columns.min(self.panels.end * COLUMNS) - from;
        let mut at = Origin::new(self.first, self.call.grid);
        // SAFETY: the grid is cut so that every pixel exists.
        unsafe {
            I::run(
                #[inline(always)]
                || {
                    for row in 0..self.count {
                        let (y, x) = (start.0 + step * at.y, start.1 + step * at.x);
                        let pixel = (at.picture * dims.h + y) * dims.w + x;
                        let (from, to) = (rows.add(row * columns + from), self.call.y.at(pixel * columns + from));
                        if self.call.add {
                            add::<I>(from, to, width)
                        } else {
                            copy::<I>(from, to, width)
                        }
                        at.advance(self.call.grid);
                    }
                },
            );
        }
    }
}

/// What a window of a convolution reads: its taps line by line.
pub(super) fn lines_of(shape: &ConvShape) -> Vec<Line> {
    let padding = shape.padding as isize;
    (0..shape.kernel).map(|y| Line { y: y as isize - padding, x: -padding, taps: shape.kernel }).collect()
}

/// A convolution forward as one product.
#[derive(Debug)]
pub(super) struct GemmForward<I> {
    shape: ConvShape,
    gemm: Gemm<I>,
}

impl<I: Simd> GemmForward<I> {
    /// Only where the processor has `I`.
    pub(super) fn new(shape: ConvShape) -> Self {
        let gather = Gather::new(lines_of(&shape), shape.c_in, shape.stride);
        Self { shape, gemm: Gemm::new(gather, shape.c_out) }
    }
}

impl<I: Simd> ForwardKernel for GemmForward<I> {
    fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        pack::forward(&self.shape, weight, scale, &mut self.gemm.panels);
    }

    fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>, sums: Option<&mut ChannelSums>) {
        let out = self.shape.out(dims);
        let parts = self.gemm.cut(out.n, (out.h, out.w)).row_blocks;
        let mut sums = sums;
        let partial = sums.as_mut().map(|sums| {
            let partial = sums.partial(parts, out.c);
            partial.fill(0.0);
            Shared::new(partial)
        });
        let call = Call {
            x,
            dims,
            grid: (out.h, out.w),
            y: Shared::new(y),
            rows: Rows::InOrder,
            add: false,
            epilogue: *epilogue,
            sums: partial,
        };
        // SAFETY: features and lengths; the grid is the output.
        unsafe { self.gemm.run(&call) };
        if let Some(sums) = sums {
            sums.reduce(parts, out.c);
        }
    }
}
