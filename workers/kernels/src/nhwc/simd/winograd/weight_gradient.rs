//! Gradient of the weights through the transforms: for each position of a tile, the product of the transformed input
//! and the transformed gradient of the output over all tiles.
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
/// Most input channels of a product task.
const ROWS: usize = 96;

/// Makes `dw`.
#[derive(Debug)]
pub(in crate::nhwc) struct WinogradWeightGradient<I, S> {
    shape: ConvShape,
    how: PhantomData<(I, S)>,
}

/// Transformed tensors of some tiles, and the products: `(position, tile, C_in)`, `(position, panel, tile, 16)`,
/// `(position, C_in, C_out)`.
#[derive(Clone, Copy)]
struct Block {
    input: Shared,
    gradient: Shared,
    products: Shared,
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

    /// Values from one position's products to the next, and then some: positions never fall on the same set.
    fn products_len(&self) -> usize {
        self.shape.c_in * self.shape.c_out + COLUMNS
    }

    fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let tiles = Tiles::new(self.shape.out(dims), S::OUT);
        let (positions, c_out) = (S::POSITIONS, self.shape.c_out);
        let most = (WIDE / (positions * (self.input_ld() + c_out))).max(96);
        let (blocks, len) = even_blocks::<I>(tiles.count(), most, 1);
        with_scratch(Slot::Input, positions * len * self.input_ld(), |input| {
            with_scratch(Slot::Output, positions * len * c_out, |gradient| {
                with_scratch(Slot::Sums, positions * self.products_len(), |products| {
                    let (input, gradient) = (Shared::new(input), Shared::new(gradient));
                    let block = Block { input, gradient, products: Shared::new(products), tiles: len };
                    for number in 0..blocks {
                        let range = number * len..((number + 1) * len).min(tiles.count());
                        self.transform(x, dims, dy, &tiles, range.clone(), block);
                        self.multiply(range.len(), number > 0, block);
                    }
                    self.write(products, dw);
                });
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

    /// Adds a block's products to those before it.
    fn multiply(&self, tiles: usize, add: bool, block: Block) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        let (row_blocks, len) = even_blocks::<I>(c_in, ROWS, 1);
        let lda = self.input_ld();
        for_tasks(S::POSITIONS * row_blocks, |task| {
            let (position, first) = (task / row_blocks, task % row_blocks * len);
            let rows = len.min(c_in - first);
            for from in (0..tiles).step_by(DEPTH) {
                for column in (0..c_out).step_by(I::WIDTH) {
                    let a = block.input.at((position * block.tiles + from) * lda + first);
                    let b = block.gradient.at((position * c_out + column) * block.tiles + from * COLUMNS);
                    let c = block.products.at(position * self.products_len() + first * c_out + column);
                    let panel_step = block.tiles * COLUMNS;
                    let depth = DEPTH.min(tiles - from);
                    let factors = Factors { depth, a, lda, b, ldb: COLUMNS, panel: panel_step };
                    let place = Place { c, ld: c_out, add: add || from > 0 };
                    // SAFETY: features and lengths; rows of a position are this task's own.
                    unsafe { panel::<I, true>(rows, I::WIDTH.min(c_out - column), factors, place, None) };
                }
            }
        });
    }

    /// From products to `(C_out, C_in, 3, 3)`.
    fn write(&self, products: &[f32], dw: &mut [f32]) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        let (products, len) = (Shared::reading(products), self.products_len());
        let dw = Shared::new(dw);
        for_tasks(c_in, |i| {
            // SAFETY: features and lengths; kernels of this input channel are this task's own.
            unsafe {
                I::run(
                    #[inline(always)]
                    || {
                        for o in (0..c_out).step_by(I::LANES) {
                            let taps = kernel_gradient_tile::<I, S>((products.at(i * c_out + o), len));
                            I::store_taps(taps, dw.at((o * c_in + i) * 9), c_in * 9);
                        }
                    },
                );
            }
        });
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
