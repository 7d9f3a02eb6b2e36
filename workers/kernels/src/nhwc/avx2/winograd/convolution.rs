//! Forward, and the gradient of the input, which is the same with the kernels turned round.
//!
//! Each of the tile's positions is a matrix product of its own, tiles × channels by channels × outputs. With few
//! channels all transformed weights stay in the second cache, and a task takes a few tiles from input to output there.
//! With many it would read all weights for each handful of tiles; then the three steps go over all tiles one after
//! the other, and every weight is read once.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::tiles::{Tiles, even_blocks};
use super::transforms::{MOST, Sizes, input_tile, kernel_tile, output_tile};
use crate::nhwc::avx2::microkernel::{COLUMNS, Factors, Place, panel};
use crate::nhwc::avx2::pack::load_taps;
use crate::nhwc::avx2::parallel::{Shared, for_tasks};
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::{Buffer, ChannelSums, ConvShape, Dims, Epilogue};

/// Most transformed weights that a task goes over per handful of tiles: 1 MiB.
const FEW_WEIGHTS: usize = 256 * 1024;
/// Values of the transformed input and output of such a task: 400 KiB.
const NARROW: usize = 100 * 1024;
/// The same where all tiles take each step together: 12 MiB.
const WIDE: usize = 3 * 1024 * 1024;
/// Tiles of a product of a position, at most: their channels stay in the second cache.
const PRODUCT: usize = 96;
/// Tiles of a transformation task where all tiles take each step together.
const STEP: usize = 6;
/// Tasks wanted of a small batch.
const TASKS: usize = 12;
/// Most steps of the depth at once, as in the plain product.
const DEPTH: usize = 288;

/// A convolution with transformed weights.
#[derive(Clone, Debug)]
pub(in crate::nhwc) struct Winograd<S> {
    c_in: usize,
    c_out: usize,
    padding: usize,
    /// Whether the kernels are turned round: the gradient of the input of the convolution that is meant.
    turned: bool,
    /// `(position, panel, C_in, 16)`
    weights: Buffer,
    sizes: PhantomData<S>,
}

/// Where the outputs go.
#[derive(Clone, Copy)]
struct Target<'a> {
    y: Shared,
    add: bool,
    epilogue: Epilogue<'a>,
    sums: Option<Shared>,
}

/// Transformed input and output of some tiles: `(position, tile, channels)`.
#[derive(Clone, Copy)]
struct Block {
    input: Shared,
    output: Shared,
    tiles: usize,
}

impl<S: Sizes> Winograd<S> {
    /// Forward. Only where the processor has AVX2 and FMA.
    pub(in crate::nhwc) fn forward(shape: &ConvShape) -> Self {
        let ConvShape { c_in, c_out, padding, .. } = *shape;
        Self { c_in, c_out, padding, turned: false, weights: Buffer::default(), sizes: PhantomData }
    }

    /// The gradient of the input of `shape`. Only where the processor has AVX2 and FMA.
    pub(in crate::nhwc) fn input_gradient(shape: &ConvShape) -> Self {
        let (c_in, c_out, padding) = (shape.c_out, shape.c_in, 2 - shape.padding);
        Self { c_in, c_out, padding, turned: true, weights: Buffer::default(), sizes: PhantomData }
    }

    /// Takes the weights of the convolution that is meant.
    pub(in crate::nhwc) fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        let (c_in, positions, turned) = (self.c_in, S::TILE * S::TILE, self.turned);
        let len = self.c_in * self.c_out;
        self.weights.set_len(positions * len);
        let to = Shared::new(&mut self.weights);
        // From one column of the panel to the next, and from one step of its depth to the next.
        let (column_step, depth_step) = if turned { (9, self.c_out * 9) } else { (c_in * 9, 9) };
        for_tasks(self.c_out / 8, |eight| {
            let at = eight / 2 * c_in * COLUMNS + eight % 2 * 8;
            let scale: [f32; 8] = std::array::from_fn(|i| scale.map_or(1.0, |s| s[eight * 8 + i]));
            for depth in 0..c_in {
                let from = weight[eight * 8 * column_step + depth * depth_step..].as_ptr();
                let to = to.at(at + depth * COLUMNS);
                // SAFETY: features; eight kernels are there, and these columns are this task's own.
                unsafe { pack_eight::<S>((from, column_step), turned, &scale, (to, len)) };
            }
        });
    }

    /// `y = epilogue(conv(x))`, on top of `y` where `add` is set; lengths are checked by the caller.
    pub(in crate::nhwc) fn run(
        &self,
        (x, dims): (&[f32], Dims),
        y: &mut [f32],
        add: bool,
        epilogue: &Epilogue<'_>,
        sums: Option<&mut ChannelSums>,
    ) {
        let side = |side: usize| side + 2 * self.padding - 2;
        let tiles = Tiles::new(Dims { h: side(dims.h), w: side(dims.w), c: self.c_out, ..dims }, S::OUT);
        let narrow = self.weights.len() <= FEW_WEIGHTS;
        let (blocks, len) = self.cut(&tiles, narrow);
        let parts = if narrow { blocks } else { tiles.count().div_ceil(STEP) };
        let mut sums = sums;
        let partial = sums.as_mut().map(|sums| {
            let partial = sums.partial(parts, self.c_out);
            partial.fill(0.0);
            Shared::new(partial)
        });
        let target = Target { y: Shared::new(y), add, epilogue: *epilogue, sums: partial };
        let run = Run { layer: self, x, dims, tiles, target };
        let block = |number: usize| number * len..((number + 1) * len).min(tiles.count());
        if narrow {
            for_tasks(blocks, |number| run.narrow(number, block(number)));
        } else {
            (0..blocks).for_each(|number| run.wide(block(number)));
        }
        if let Some(sums) = sums {
            sums.reduce(parts, self.c_out);
        }
    }

    /// `(blocks, tiles of each)`, by the sizes alone.
    fn cut(&self, tiles: &Tiles, narrow: bool) -> (usize, usize) {
        let of_tile = S::TILE * S::TILE * (self.c_in + COLUMNS + self.c_out);
        if narrow {
            return even_blocks(tiles.count(), (NARROW / of_tile).clamp(24, 48) / 6 * 6, TASKS);
        }
        let most = (WIDE / of_tile).max(STEP) / STEP * STEP;
        even_blocks(tiles.count(), most, 1)
    }

    /// Channels of a tile's transformed input, and then some: positions of tiles never fall on the same set.
    fn input_ld(&self) -> usize {
        self.c_in + COLUMNS
    }
}

/// # Safety
/// The processor has AVX2 and FMA; eight kernels lie `step` apart at `from`, and `to` holds eight columns of every
/// position, `len` apart.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_eight<S: Sizes>(
    (from, step): (*const f32, usize),
    turned: bool,
    scale: &[f32; 8],
    (to, len): (*mut f32, usize),
) {
    // SAFETY: the caller's.
    unsafe {
        let mut taps = load_taps(from, step);
        if turned {
            taps.reverse();
        }
        let scale = _mm256_loadu_ps(scale.as_ptr());
        let taps = taps.map(|tap| _mm256_mul_ps(tap, scale));
        kernel_tile::<S>(&taps, |position, v| _mm256_storeu_ps(to.add(position * len), v));
    }
}

/// One call.
struct Run<'a, S> {
    layer: &'a Winograd<S>,
    x: &'a [f32],
    dims: Dims,
    tiles: Tiles,
    target: Target<'a>,
}

impl<S: Sizes> Run<'_, S> {
    fn positions() -> usize {
        S::TILE * S::TILE
    }

    /// Calls `f` with room for the tiles of a block.
    fn with_block(&self, tiles: usize, f: impl FnOnce(Block)) {
        let positions = Self::positions();
        with_scratch(Slot::Input, positions * tiles * self.layer.input_ld(), |input| {
            with_scratch(Slot::Output, positions * tiles * self.layer.c_out, |output| {
                f(Block { input: Shared::new(input), output: Shared::new(output), tiles });
            });
        });
    }

    /// One task's tiles from input to output.
    fn narrow(&self, part: usize, tiles: Range<usize>) {
        let panels = self.layer.c_out / COLUMNS;
        self.with_block(tiles.len(), |block| {
            // SAFETY: features and lengths; the block and the tiles are this task's own.
            unsafe {
                self.transform_input(tiles.clone(), tiles.start, block);
                for position in 0..Self::positions() {
                    self.multiply(position, 0..tiles.len(), 0..panels, block);
                }
                self.transform_output(tiles.clone(), tiles.start, block, part);
            }
        });
    }

    /// All tiles of a block, each step by many tasks.
    fn wide(&self, tiles: Range<usize>) {
        let panels = self.layer.c_out / COLUMNS;
        let steps = tiles.len().div_ceil(STEP);
        let step = |number: usize| {
            let first = tiles.start + number * STEP;
            first..(first + STEP).min(tiles.end)
        };
        let (products, len) = even_blocks(tiles.len(), PRODUCT, 1);
        self.with_block(tiles.len(), |block| {
            // SAFETY: features and lengths; tasks have tiles, or tiles of a position, of their own.
            for_tasks(steps, |number| unsafe { self.transform_input(step(number), tiles.start, block) });
            for_tasks(Self::positions() * products, |task| {
                let (position, product) = (task / products, task % products);
                let rows = product * len..((product + 1) * len).min(tiles.len());
                // SAFETY: as above.
                unsafe { self.multiply(position, rows, 0..panels, block) };
            });
            for_tasks(steps, |number| {
                let part = tiles.start / STEP + number;
                // SAFETY: as above.
                unsafe { self.transform_output(step(number), tiles.start, block, part) };
            });
        });
    }

    /// # Safety
    /// Features and lengths; `block` holds the tiles, counted from `base`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn transform_input(&self, tiles: Range<usize>, base: usize, block: Block) {
        let (ld, padding) = (self.layer.input_ld(), self.layer.padding as isize);
        for number in tiles {
            let tile = self.tiles.at(number);
            let picture = self.dims.h * self.dims.w * self.dims.c;
            let picture = self.x[tile.picture * picture..][..picture].as_ptr();
            let origin = (tile.y as isize - padding, tile.x as isize - padding);
            // SAFETY: the caller's.
            unsafe {
                let to = block.input.at((number - base) * ld);
                input_of_tile::<S>((picture, self.dims), origin, (to, block.tiles * ld));
            }
        }
    }

    /// Products of one position.
    ///
    /// # Safety
    /// As [`Self::transform_input`]; nobody else writes these rows and panels.
    unsafe fn multiply(&self, position: usize, rows: Range<usize>, panels: Range<usize>, block: Block) {
        let Winograd { c_in, c_out, ref weights, .. } = *self.layer;
        let lda = self.layer.input_ld();
        let step = c_in.div_ceil(c_in.div_ceil(DEPTH)).next_multiple_of(8);
        for j in panels {
            for from in (0..c_in).step_by(step) {
                let b = weights[((position * c_out / COLUMNS + j) * c_in + from) * COLUMNS..].as_ptr();
                let a = block.input.at((position * block.tiles + rows.start) * lda + from);
                let c = block.output.at((position * block.tiles + rows.start) * c_out + j * COLUMNS);
                let factors = Factors { depth: step.min(c_in - from), a, lda, b, ldb: COLUMNS };
                let place = Place { c, ld: c_out, add: from > 0 };
                // SAFETY: the caller's.
                unsafe { panel::<false>(rows.len(), COLUMNS, factors, place, None) };
            }
        }
    }

    /// # Safety
    /// As [`Self::transform_input`]; nobody else writes these tiles or this part of the sums.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn transform_output(&self, tiles: Range<usize>, base: usize, block: Block, part: usize) {
        let c = self.layer.c_out;
        for number in tiles {
            let from = block.output.at((number - base) * c);
            // SAFETY: the caller's.
            unsafe { self.output_of_tile(number, (from, block.tiles * c), part) };
        }
    }

    /// # Safety
    /// As [`Self::transform_output`]; `from` holds every position of the tile.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn output_of_tile(&self, number: usize, (from, step): (*mut f32, usize), part: usize) {
        let (tiles, tile, c) = (&self.tiles, self.tiles.at(number), self.layer.c_out);
        let (high, wide) = tiles.inside(tile);
        let Target { y, add, epilogue: Epilogue { bias, residual, relu }, sums } = self.target;
        let first = (tile.picture * tiles.dims.h + tile.y) * tiles.dims.w + tile.x;
        let zero = _mm256_setzero_ps();
        for at in (0..c).step_by(8) {
            let (mut sum, mut square) = (zero, zero);
            // SAFETY: channels are a multiple of 8, and outputs beyond the picture are left out.
            unsafe {
                let bias = bias.map_or(zero, |b| _mm256_loadu_ps(b[at..].as_ptr()));
                let put = |i: usize, j: usize, v: V8| {
                    if i >= high || j >= wide {
                        return;
                    }
                    let value = (first + i * tiles.dims.w + j) * c + at;
                    let mut v = _mm256_add_ps(v, bias);
                    if add {
                        v = _mm256_add_ps(v, _mm256_loadu_ps(y.at(value)));
                    }
                    if let Some(residual) = residual {
                        v = _mm256_add_ps(v, _mm256_loadu_ps(residual[value..].as_ptr()));
                    }
                    if relu {
                        v = _mm256_max_ps(zero, v);
                    }
                    sum = _mm256_add_ps(sum, v);
                    square = _mm256_fmadd_ps(v, v, square);
                    _mm256_storeu_ps(y.at(value), v);
                };
                output_tile::<S>(|position| _mm256_loadu_ps(from.add(position * step + at)), put);
                if let Some(sums) = sums {
                    for (v, to) in [(sum, sums.at(part * 2 * c + at)), (square, sums.at((part * 2 + 1) * c + at))] {
                        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), v));
                    }
                }
            }
        }
    }
}

type V8 = __m256;

/// Transforms the tile at `(y, x)` of a picture; what lies outside is 0.
///
/// # Safety
/// The processor has AVX2 and FMA; `to` holds all channels of every position, `step` apart.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn input_of_tile<S: Sizes>(
    (picture, dims): (*const f32, Dims),
    (y, x): (isize, isize),
    (to, step): (*mut f32, usize),
) {
    let side = |at: isize, end: usize| (-at).max(0) as usize..(end as isize - at).clamp(0, S::TILE as isize) as usize;
    let (rows, columns) = (side(y, dims.h), side(x, dims.w));
    let whole = rows == (0..S::TILE) && columns == (0..S::TILE);
    for at in (0..dims.c).step_by(8) {
        let mut d = [[_mm256_setzero_ps(); MOST]; MOST];
        // SAFETY: rows and columns are those inside the picture; channels are a multiple of 8.
        unsafe {
            let pixel = |i: usize, j: usize| {
                let pixel = (y + i as isize) * dims.w as isize + x + j as isize;
                _mm256_loadu_ps(picture.offset(pixel * dims.c as isize + at as isize))
            };
            if whole {
                (0..S::TILE).for_each(|i| (0..S::TILE).for_each(|j| d[i][j] = pixel(i, j)));
            } else {
                rows.clone().for_each(|i| columns.clone().for_each(|j| d[i][j] = pixel(i, j)));
            }
            input_tile::<S>(&d, |position, v| _mm256_storeu_ps(to.add(position * step + at), v));
        }
    }
}
