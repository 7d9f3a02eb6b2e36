//! Gradient of the weights through the transforms: for each position of a tile, the product of the transformed input
//! and the transformed gradient of the output over all tiles.
//!
//! With few channels the products of all positions stay in the second cache, and a task takes some of the tiles, a few at
//! a time; the gradients of these parts are added up in order. With many, all tiles are transformed first, and a task
//! takes some input channels through all positions and on to the gradient, so that the products never leave its cache.
#![allow(clippy::needless_range_loop, reason = "arrays of vectors are read by index: iterators have an address")]

use std::marker::PhantomData;
use std::ops::Range;

use super::convolution::input_of_tile;
use super::tiles::{Tiles, even_blocks};
use super::transforms::{Sizes, kernel_gradient_tile, output_gradient_tile};
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::simd::WeightKernel;
use crate::nhwc::simd::microkernel::{COLUMNS, Factors, Place, panel};
use crate::nhwc::simd::parallel::{Shared, for_tasks};
use crate::nhwc::simd::vector::Simd;
use crate::nhwc::simd::weight_gradient::Parts;
use crate::nhwc::{ConvShape, Dims};

/// Values of the transformed tensors of a block of tiles: 12 MiB.
const WIDE: usize = 3 * 1024 * 1024;
/// Tiles of a transformation task.
const STEP: usize = 6;
/// Most tiles at once in a product: a panel of them stays in the first cache.
const DEPTH: usize = 192;
/// Most products of all positions that a task with some of the tiles makes: 600 KiB of a second cache of 1 MiB.
const FEW_PRODUCTS: usize = 150 * 1024;
/// Tiles that such a task takes at a time.
const AT_A_TIME: usize = 24;
/// Fewest tiles of such a task.
const PART: usize = 96;
/// Products of a task with some of the inputs: 440 KiB of a second cache of 1 MiB.
const PRODUCTS: usize = 110 * 1024;
/// Tasks wanted.
const TASKS: usize = 8;

/// Makes `dw`.
#[derive(Debug)]
pub(in crate::nhwc) struct WinogradWeightGradient<I, S> {
    shape: ConvShape,
    how: PhantomData<(I, S)>,
}

/// Transformed tensors of some tiles: `(position, tile, C_in)` and `(position, panel, tile, 16)`.
#[derive(Clone, Copy)]
struct Block {
    input: Shared,
    gradient: Shared,
    tiles: usize,
}

impl<I: Simd, S: Sizes> WinogradWeightGradient<I, S> {
    /// Only where the processor has `I`.
    pub(in crate::nhwc) fn new(shape: ConvShape) -> Self {
        Self { shape, how: PhantomData }
    }

    fn input_ld(&self) -> usize {
        self.shape.c_in + COLUMNS
    }

    fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let tiles = Tiles::new(self.shape.out(dims), S::OUT);
        assert!(S::SIDE == S::TILE || tiles.count() == dims.n, "this way is for pictures of one tile");
        let run = Run { layer: self, x, dims, dy, tiles };
        if S::POSITIONS * self.shape.c_in * self.shape.c_out <= FEW_PRODUCTS {
            run.by_tiles(dw);
        } else {
            run.by_inputs(Shared::new(dw));
        }
    }

    /// From a block's tensors to the gradient, on top of that of other blocks where `add` is set.
    fn multiply(&self, tiles: usize, block: Block, dw: Shared, add: bool) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        let most = (PRODUCTS / (S::POSITIONS * c_out) / I::ROWS * I::ROWS).max(I::ROWS);
        let (tasks, rows) = even_blocks::<I>(c_in, most, TASKS);
        // Positions never fall on the same set.
        let len = rows * c_out + COLUMNS;
        for_tasks(tasks, |task| {
            let inputs = task * rows..((task + 1) * rows).min(c_in);
            with_scratch(Slot::Weights, S::POSITIONS * len, |products| {
                let products = Shared::new(products);
                // SAFETY: features and lengths; kernels of these inputs are this task's own.
                unsafe {
                    for position in 0..S::POSITIONS {
                        let to = (products.at(position * len), false);
                        self.products(position, inputs.clone(), tiles, block, to);
                    }
                    self.write(inputs, (products, len), dw.at(0), add);
                }
            });
        });
    }

    /// Products of one position, `(inputs, C_out)`, on top of what is there if asked for.
    ///
    /// # Safety
    /// The processor has `I`; `block` holds so many tiles, `to` the products.
    unsafe fn products(
        &self,
        position: usize,
        inputs: Range<usize>,
        tiles: usize,
        block: Block,
        (to, add): (*mut f32, bool),
    ) {
        let (c_out, lda) = (self.shape.c_out, self.input_ld());
        for column in (0..c_out).step_by(I::WIDTH) {
            for from in (0..tiles).step_by(DEPTH) {
                let a = block.input.at((position * block.tiles + from) * lda + inputs.start);
                let b = block.gradient.at((position * c_out + column) * block.tiles + from * COLUMNS);
                let depth = DEPTH.min(tiles - from);
                let factors = Factors { depth, a, lda, b, ldb: COLUMNS, panel: block.tiles * COLUMNS };
                // SAFETY: the caller's.
                unsafe {
                    let place = Place { c: to.add(column), ld: c_out, add: add || from > 0 };
                    panel::<I, true>(inputs.len(), I::WIDTH.min(c_out - column), factors, place, None);
                }
            }
        }
    }

    /// From products, positions `len` apart, to `(C_out, C_in, 3, 3)`.
    ///
    /// # Safety
    /// The processor has `I`; `products` holds those of these inputs, `dw` their kernels, which nobody else writes.
    unsafe fn write(&self, inputs: Range<usize>, (products, len): (Shared, usize), dw: *mut f32, add: bool) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        // SAFETY: the caller's.
        unsafe {
            I::run(
                #[inline(always)]
                || {
                    for o in (0..c_out).step_by(I::LANES) {
                        for i in inputs.clone() {
                            let from = products.at((i - inputs.start) * c_out + o);
                            let mut taps = kernel_gradient_tile::<I, S>((from, len));
                            let to = dw.add((o * c_in + i) * 9);
                            if add {
                                let before = I::load_taps(to, c_in * 9);
                                for tap in 0..9 {
                                    taps[tap] = I::add(before[tap], taps[tap]);
                                }
                            }
                            I::store_taps(taps, to, c_in * 9);
                        }
                    }
                },
            );
        }
    }
}

/// One call.
struct Run<'a, I, S> {
    layer: &'a WinogradWeightGradient<I, S>,
    x: &'a [f32],
    dims: Dims,
    dy: &'a [f32],
    tiles: Tiles,
}

impl<I: Simd, S: Sizes> Run<'_, I, S> {
    /// Each task some of the tiles.
    fn by_tiles(&self, dw: &mut [f32]) {
        let (count, len) = (self.tiles.count(), dw.len());
        let (parts, tiles) = even_blocks::<I>(count, count, TASKS.min(count.div_ceil(PART)));
        with_scratch(Slot::Sums, parts * len, |sums| {
            let sums = Shared::new(sums);
            for_tasks(parts, |part| self.part(part * tiles..((part + 1) * tiles).min(count), sums.at(part * len)));
            let (to, channel) = (Shared::new(dw), self.layer.shape.depth());
            for_tasks(self.layer.shape.c_out, |o| {
                let parts = Parts { first: sums.at(o * channel), count: parts, step: len };
                // SAFETY: features; this output channel is this task's own.
                unsafe {
                    I::run(
                        #[inline(always)]
                        || parts.add_up::<I>(to.at(o * channel), channel),
                    );
                }
            });
        });
    }

    /// The gradient that some tiles give.
    fn part(&self, tiles: Range<usize>, dw: *mut f32) {
        let WinogradWeightGradient { shape: ConvShape { c_in, c_out, .. }, .. } = *self.layer;
        let len = c_in * c_out + COLUMNS;
        with_scratch(Slot::Weights, S::POSITIONS * len, |products| {
            let products = Shared::new(products);
            self.with_block(AT_A_TIME, |block| {
                for first in tiles.clone().step_by(AT_A_TIME) {
                    let range = first..(first + AT_A_TIME).min(tiles.end);
                    // SAFETY: features and lengths; the block and the products are this task's own.
                    unsafe {
                        self.transform(range.clone(), first, block);
                        for position in 0..S::POSITIONS {
                            let to = (products.at(position * len), first > tiles.start);
                            self.layer.products(position, 0..c_in, range.len(), block, to);
                        }
                    }
                }
            });
            // SAFETY: features; `dw` is this task's own.
            unsafe { self.layer.write(0..c_in, (products, len), dw, false) };
        });
    }

    /// Each task some of the inputs.
    fn by_inputs(&self, dw: Shared) {
        let (count, of_tile) = (self.tiles.count(), S::POSITIONS * (self.layer.input_ld() + self.layer.shape.c_out));
        let (blocks, len) = even_blocks::<I>(count, (WIDE / of_tile).max(96), 1);
        self.with_block(len, |block| {
            for number in 0..blocks {
                let first = number * len;
                let tiles = len.min(count - first);
                for_tasks(tiles.div_ceil(STEP), |step| {
                    let range = first + step * STEP..first + ((step + 1) * STEP).min(tiles);
                    // SAFETY: features and lengths; these tiles are this task's own.
                    unsafe { self.transform(range, first, block) };
                });
                self.layer.multiply(tiles, block, dw, number > 0);
            }
        });
    }

    /// Calls `f` with room for the transformed tensors of so many tiles.
    fn with_block(&self, tiles: usize, f: impl FnOnce(Block)) {
        with_scratch(Slot::Input, S::POSITIONS * tiles * self.layer.input_ld(), |input| {
            with_scratch(Slot::Output, S::POSITIONS * tiles * self.layer.shape.c_out, |gradient| {
                f(Block { input: Shared::new(input), gradient: Shared::new(gradient), tiles });
            });
        });
    }

    /// Transforms both tensors' tiles.
    ///
    /// # Safety
    /// Features and lengths; `block` holds the tiles, counted from `base`, and nobody else writes them.
    unsafe fn transform(&self, tiles: Range<usize>, base: usize, block: Block) {
        let (ld, padding) = (self.layer.input_ld(), self.layer.shape.padding as isize);
        let (dims, out) = (self.dims, self.tiles.dims);
        for number in tiles {
            let (tile, at) = (self.tiles.at(number), number - base);
            let picture = |d: Dims| tile.picture * d.h * d.w * d.c..(tile.picture + 1) * d.h * d.w * d.c;
            let x = (self.x[picture(dims)].as_ptr(), dims);
            let dy = (self.dy[picture(out)].as_ptr(), out);
            let origin = (tile.y as isize - padding, tile.x as isize - padding);
            // SAFETY: the caller's.
            unsafe {
                input_of_tile::<I, S>(x, origin, (block.input.at(at * ld), block.tiles * ld));
                let to = (block.gradient.at(at * COLUMNS), block.tiles);
                gradient_of_tile::<I, S>(dy, (tile.y, tile.x), self.tiles.inside(tile), to);
            }
        }
    }
}

impl<I: Simd, S: Sizes> WeightKernel for WinogradWeightGradient<I, S> {
    fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        self.run(x, dims, dy, dw);
    }
}

/// `A dy Aᵀ` of the outputs at `(y, x)`; those outside the picture are 0. To panels of 16 channels, `tiles` long.
///
/// # Safety
/// The processor has `I`; `to` holds all channels of every position.
unsafe fn gradient_of_tile<I: Simd, S: Sizes>(
    picture: (*const f32, Dims),
    origin: (usize, usize),
    inside: (usize, usize),
    to: (*mut f32, usize),
) {
    // SAFETY: the caller's.
    unsafe {
        I::run(
            #[inline(always)]
            || gradient_of_channels::<I, S>(picture, origin, inside, to),
        )
    }
}

/// # Safety
/// As [`gradient_of_tile`].
#[inline(always)]
unsafe fn gradient_of_channels<I: Simd, S: Sizes>(
    (picture, dims): (*const f32, Dims),
    (y, x): (usize, usize),
    (high, wide): (usize, usize),
    (to, tiles): (*mut f32, usize),
) {
    for at in (0..dims.c).step_by(I::LANES) {
        // SAFETY: rows and columns are those inside the picture; channels are a multiple of the lanes.
        unsafe {
            let mut dy = [[I::zero(); 4]; 4];
            for i in 0..S::OUT {
                for j in 0..S::OUT {
                    if i < high && j < wide {
                        dy[i][j] = I::load(picture.add(((y + i) * dims.w + x + j) * dims.c + at));
                    }
                }
            }
            let to = to.add(at / COLUMNS * tiles * COLUMNS + at % COLUMNS);
            output_gradient_tile::<I, S>(&dy, (to, tiles * dims.c));
        }
    }
}
