//! Gradient of the weights through the transforms: for each position of a tile, the product of the transformed input
//! and the transformed gradient of the output over all tiles.
//!
//! Both are transformed for all tiles first. A task then takes some input channels through all positions and on to the
//! gradient itself, so that the products never leave its second cache.
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
use crate::nhwc::{ConvShape, Dims};

/// Values of the transformed tensors of a block of tiles: 12 MiB.
const WIDE: usize = 3 * 1024 * 1024;
/// Tiles of a transformation task.
const STEP: usize = 6;
/// Most tiles at once in a product: a panel of them stays in the first cache.
const DEPTH: usize = 192;
/// Products of a task: 440 KiB of a second cache of 1 MiB.
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
        let (positions, c_out) = (S::POSITIONS, self.shape.c_out);
        let most = (WIDE / (positions * (self.input_ld() + c_out))).max(96);
        let (blocks, len) = even_blocks::<I>(tiles.count(), most, 1);
        let dw = Shared::new(dw);
        with_scratch(Slot::Input, positions * len * self.input_ld(), |input| {
            with_scratch(Slot::Output, positions * len * c_out, |gradient| {
                let block = Block { input: Shared::new(input), gradient: Shared::new(gradient), tiles: len };
                for number in 0..blocks {
                    let range = number * len..((number + 1) * len).min(tiles.count());
                    self.transform(x, dims, dy, &tiles, range.clone(), block);
                    self.multiply(range.len(), block, dw, number > 0);
                }
            });
        });
    }

    /// Transforms both tensors' tiles of a block.
    fn transform(&self, x: &[f32], dims: Dims, dy: &[f32], tiles: &Tiles, range: Range<usize>, block: Block) {
        let (ld, padding) = (self.input_ld(), self.shape.padding as isize);
        let out = tiles.dims;
        for_tasks(range.len().div_ceil(STEP), |step| {
            for number in step * STEP..((step + 1) * STEP).min(range.len()) {
                let tile = tiles.at(range.start + number);
                let picture = |d: Dims| tile.picture * d.h * d.w * d.c..(tile.picture + 1) * d.h * d.w * d.c;
                let x = (x[picture(dims)].as_ptr(), dims);
                let dy = (dy[picture(out)].as_ptr(), out);
                let origin = (tile.y as isize - padding, tile.x as isize - padding);
                // SAFETY: features and lengths; tiles are this task's own.
                unsafe {
                    input_of_tile::<I, S>(x, origin, (block.input.at(number * ld), block.tiles * ld));
                    let to = (block.gradient.at(number * COLUMNS), block.tiles);
                    gradient_of_tile::<I, S>(dy, (tile.y, tile.x), tiles.inside(tile), to);
                }
            }
        });
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
                        self.products(position, inputs.clone(), tiles, block, products.at(position * len));
                    }
                    self.write(inputs, (products, len), dw, add);
                }
            });
        });
    }

    /// Products of one position, `(inputs, C_out)`.
    ///
    /// # Safety
    /// The processor has `I`; `block` holds so many tiles, `to` the products.
    unsafe fn products(&self, position: usize, inputs: Range<usize>, tiles: usize, block: Block, to: *mut f32) {
        let (c_out, lda) = (self.shape.c_out, self.input_ld());
        for column in (0..c_out).step_by(I::WIDTH) {
            for from in (0..tiles).step_by(DEPTH) {
                let a = block.input.at((position * block.tiles + from) * lda + inputs.start);
                let b = block.gradient.at((position * c_out + column) * block.tiles + from * COLUMNS);
                let depth = DEPTH.min(tiles - from);
                let factors = Factors { depth, a, lda, b, ldb: COLUMNS, panel: block.tiles * COLUMNS };
                // SAFETY: the caller's.
                unsafe {
                    let place = Place { c: to.add(column), ld: c_out, add: from > 0 };
                    panel::<I, true>(inputs.len(), I::WIDTH.min(c_out - column), factors, place, None);
                }
            }
        }
    }

    /// From products, positions `len` apart, to `(C_out, C_in, 3, 3)`.
    ///
    /// # Safety
    /// The processor has `I`; `products` holds those of these inputs, `dw` their kernels, which nobody else writes.
    unsafe fn write(&self, inputs: Range<usize>, (products, len): (Shared, usize), dw: Shared, add: bool) {
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
                            let to = dw.at((o * c_in + i) * 9);
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
