//! Gradient of the weights through the transforms: for each position of a tile, the product of the transformed input
//! and the transformed gradient of the output over all tiles.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::convolution::input_of_tile;
use super::tiles::{Tiles, even_blocks};
use super::transforms::{Sizes, kernel_gradient_tile, output_gradient_tile};
use crate::nhwc::avx2::microkernel::{COLUMNS, Factors, Place, panel};
use crate::nhwc::avx2::pack::store_taps;
use crate::nhwc::avx2::parallel::{Shared, for_tasks};
use crate::nhwc::buffer::{Slot, with_scratch};
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
#[derive(Clone, Debug)]
pub(in crate::nhwc) struct WinogradWeightGradient<S> {
    shape: ConvShape,
    sizes: PhantomData<S>,
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

impl<S: Sizes> WinogradWeightGradient<S> {
    /// Only where the processor has AVX2 and FMA.
    pub(in crate::nhwc) fn new(shape: ConvShape) -> Self {
        Self { shape, sizes: PhantomData }
    }

    fn positions() -> usize {
        S::TILE * S::TILE
    }

    fn input_ld(&self) -> usize {
        self.shape.c_in + COLUMNS
    }

    /// Writes `dw`; lengths are checked by the caller.
    pub(in crate::nhwc) fn run(&self, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
        let tiles = Tiles::new(self.shape.out(dims), S::OUT);
        let ConvShape { c_in, c_out, .. } = self.shape;
        let positions = Self::positions();
        let most = (WIDE / (positions * (self.input_ld() + c_out))).max(96);
        let (blocks, len) = even_blocks(tiles.count(), most, 1);
        with_scratch(Slot::Input, positions * len * self.input_ld(), |input| {
            with_scratch(Slot::Output, positions * len * c_out, |gradient| {
                with_scratch(Slot::Sums, positions * c_in * c_out, |products| {
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
                    input_of_tile::<S>(x, origin, (block.input.at(number * ld), block.tiles * ld));
                    let to = (block.gradient.at(number * COLUMNS), block.tiles);
                    gradient_of_tile::<S>(dy, (tile.y, tile.x), tiles.inside(tile), to);
                }
            }
        });
    }

    /// Adds a block's products to those before it.
    fn multiply(&self, tiles: usize, add: bool, block: Block) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        let (row_blocks, len) = even_blocks(c_in, ROWS, 1);
        let lda = self.input_ld();
        for_tasks(Self::positions() * row_blocks, |task| {
            let (position, first) = (task / row_blocks, task % row_blocks * len);
            let rows = len.min(c_in - first);
            for from in (0..tiles).step_by(DEPTH) {
                for j in 0..c_out / COLUMNS {
                    let a = block.input.at((position * block.tiles + from) * lda + first);
                    let panels = position * c_out / COLUMNS + j;
                    let b = block.gradient.at((panels * block.tiles + from) * COLUMNS);
                    let c = block.products.at((position * c_in + first) * c_out + j * COLUMNS);
                    let factors = Factors { depth: DEPTH.min(tiles - from), a, lda, b, ldb: COLUMNS };
                    let place = Place { c, ld: c_out, add: add || from > 0 };
                    // SAFETY: features and lengths; rows of a position are this task's own.
                    unsafe { panel::<true>(rows, COLUMNS, factors, place, None) };
                }
            }
        });
    }

    /// From products to `(C_out, C_in, 3, 3)`.
    fn write(&self, products: &[f32], dw: &mut [f32]) {
        let ConvShape { c_in, c_out, .. } = self.shape;
        let dw = Shared::new(dw);
        for_tasks(c_in, |i| {
            for o in (0..c_out).step_by(8) {
                // SAFETY: features and lengths; kernels of this input channel are this task's own.
                unsafe {
                    write_eight::<S>((products, c_in * c_out), i * c_out + o, dw.at((o * c_in + i) * 9), c_in * 9)
                };
            }
        });
    }
}

/// # Safety
/// The processor has AVX2 and FMA; eight values of every position, `step` apart, are at `at`, eight kernels at `dw`.
#[target_feature(enable = "avx2,fma")]
unsafe fn write_eight<S: Sizes>((products, step): (&[f32], usize), at: usize, dw: *mut f32, ld: usize) {
    // SAFETY: the caller's.
    unsafe {
        let taps = kernel_gradient_tile::<S>(|position| _mm256_loadu_ps(products[position * step + at..].as_ptr()));
        store_taps(taps, dw, ld);
    }
}

/// `A dy Aᵀ` of the outputs at `(y, x)`; those outside the picture are 0. To panels of 16 channels, `tiles` long.
///
/// # Safety
/// The processor has AVX2 and FMA; `to` holds all channels of every position.
#[target_feature(enable = "avx2,fma")]
unsafe fn gradient_of_tile<S: Sizes>(
    (picture, dims): (*const f32, Dims),
    (y, x): (usize, usize),
    (high, wide): (usize, usize),
    (to, tiles): (*mut f32, usize),
) {
    for at in (0..dims.c).step_by(8) {
        let mut dy = [[_mm256_setzero_ps(); 4]; 4];
        // SAFETY: rows and columns are those inside the picture; channels are a multiple of 16.
        unsafe {
            for (i, dy) in dy.iter_mut().enumerate().take(high) {
                for (j, dy) in dy.iter_mut().enumerate().take(wide) {
                    *dy = _mm256_loadu_ps(picture.add(((y + i) * dims.w + x + j) * dims.c + at));
                }
            }
            let to = to.add(at / COLUMNS * tiles * COLUMNS + at % COLUMNS);
            output_gradient_tile::<S>(&dy, |position, v| _mm256_storeu_ps(to.add(position * tiles * dims.c), v));
        }
    }
}
