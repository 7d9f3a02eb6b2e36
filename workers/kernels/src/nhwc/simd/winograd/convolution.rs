//! Forward, and the gradient of the input, which is the same with the kernels turned round.
//!
//! Each of the tile's positions is a matrix product of its own, tiles × channels by channels × outputs. With few
//! channels all transformed weights stay in the second cache, and a task takes a few tiles from input to output there.
//! With many it would read all weights for each handful of tiles; then the three steps go over all tiles one after
//! the other, and every weight is read once. Where besides the weights are used once and the tiles are few, as in a
//! training step at the end of a network, a task transforms the weights of some outputs, uses them, and forgets them:
//! they never leave its second cache.
#![allow(clippy::needless_range_loop, reason = "arrays of vectors are read by index: iterators have an address")]

use std::marker::PhantomData;
use std::ops::Range;

use super::tiles::{Tiles, even_blocks};
use super::transforms::{MOST, Sizes, input_tile, kernel_tile, output_tile};
use crate::nhwc::buffer::{Slot, with_scratch};
use crate::nhwc::simd::microkernel::{COLUMNS, Factors, Place, panel};
use crate::nhwc::simd::parallel::{Shared, for_tasks};
use crate::nhwc::simd::vector::Simd;
use crate::nhwc::simd::{ForwardKernel, InputKernel};
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
/// Outputs of a task that transforms its own weights.
const OUTPUTS: usize = 32;
/// Transformed weights of such a task at once: 600 KiB of a second cache of 1 MiB.
const OWN_WEIGHTS: usize = 150 * 1024;
/// Most tiles for which it is worth it: every task goes over all of their transformed inputs.
const FEW_TILES: usize = 192;
/// Most steps of the depth at once: twice what the plain product takes, for products are many and short.
const DEPTH: usize = 288;
/// Tasks wanted of a small batch.
const TASKS: usize = 12;

/// A convolution with transformed weights.
#[derive(Debug)]
pub(in crate::nhwc) struct Winograd<I, S> {
    c_in: usize,
    c_out: usize,
    padding: usize,
    /// Whether the kernels are turned round: the gradient of the input of the convolution that is meant.
    turned: bool,
    /// `(position, panel, C_in, 16)`
    weights: Buffer,
    how: PhantomData<(I, S)>,
}

/// Where the outputs go.
#[derive(Clone, Copy)]
struct Target<'a> {
    y: Shared,
    add: bool,
    epilogue: Epilogue<'a>,
    sums: Option<Shared>,
}

/// Transformed input and some channels of the transformed output of some tiles: `(position, tile, channels)`.
#[derive(Clone, Copy)]
struct Block {
    input: Shared,
    output: Shared,
    tiles: usize,
    /// First channel of the output.
    first: usize,
    /// Channels of the output.
    wide: usize,
}

/// Transformed weights of a block's outputs for some inputs: `(position, panel, inputs, 16)`.
#[derive(Clone, Copy)]
struct Weights {
    at: *const f32,
    /// Values from one position to the next.
    len: usize,
    /// First input.
    first: usize,
    /// Inputs.
    steps: usize,
}

impl<I: Simd, S: Sizes> Winograd<I, S> {
    /// Forward. Only where the processor has `I`.
    pub(in crate::nhwc) fn forward(shape: &ConvShape) -> Self {
        let ConvShape { c_in, c_out, padding, .. } = *shape;
        Self { c_in, c_out, padding, turned: false, weights: Buffer::default(), how: PhantomData }
    }

    /// The gradient of the input of `shape`. Only where the processor has `I`.
    pub(in crate::nhwc) fn input_gradient(shape: &ConvShape) -> Self {
        let (c_in, c_out, padding) = (shape.c_out, shape.c_in, 2 - shape.padding);
        Self { c_in, c_out, padding, turned: true, weights: Buffer::default(), how: PhantomData }
    }

    /// Takes the weights of the convolution that is meant.
    fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        let (c_in, len) = (self.c_in, self.position_len());
        let mut weights = std::mem::take(&mut self.weights);
        weights.set_len(S::POSITIONS * len);
        let to = Shared::new(&mut weights);
        for_tasks(self.c_out / COLUMNS, |panel| {
            let columns = panel * COLUMNS..(panel + 1) * COLUMNS;
            // SAFETY: features; these columns are this task's own.
            unsafe { self.transform(weight, scale, columns, 0..c_in, (to.at(panel * c_in * COLUMNS), len)) };
        });
        self.weights = weights;
    }

    /// Transforms the weights of some columns and inputs to panels of 16 columns, positions `len` apart.
    ///
    /// # Safety
    /// The processor has `I`; `to` holds them.
    unsafe fn transform(
        &self,
        weight: &[f32],
        scale: Option<&[f32]>,
        columns: Range<usize>,
        inputs: Range<usize>,
        (to, len): (*mut f32, usize),
    ) {
        // From one column of the panel to the next, and from one step of its depth to the next.
        let (column_step, step) = if self.turned { (9, self.c_out * 9) } else { (self.c_in * 9, 9) };
        for (number, first) in columns.step_by(I::LANES).enumerate() {
            let at = number * I::LANES;
            let scale = scale.map(|scale| scale[first..].as_ptr());
            let from = weight[first * column_step + inputs.start * step..].as_ptr();
            // SAFETY: a vector of kernels is there for every input.
            unsafe {
                let to = to.add(at / COLUMNS * inputs.len() * COLUMNS + at % COLUMNS);
                I::run(
                    #[inline(always)]
                    || {
                        let scale = scale.map(
                            #[inline(always)]
                            |scale| I::load(scale),
                        );
                        for input in 0..inputs.len() {
                            let from = (from.add(input * step), column_step);
                            pack_vector::<I, S>(from, self.turned, scale, (to.add(input * COLUMNS), len));
                        }
                    },
                );
            }
        }
    }

    /// The tiles of the output for an input of sizes `dims`.
    fn tiles(&self, dims: Dims) -> Tiles {
        let side = |side: usize| side + 2 * self.padding - 2;
        let tiles = Tiles::new(Dims { h: side(dims.h), w: side(dims.w), c: self.c_out, ..dims }, S::OUT);
        assert!(S::SIDE == S::TILE || tiles.count() == dims.n, "this way is for pictures of one tile");
        tiles
    }

    /// `y = epilogue(conv(x))`, on top of `y` where `add` is set; lengths are checked by the caller.
    fn run(
        &self,
        (x, dims): (&[f32], Dims),
        y: &mut [f32],
        add: bool,
        epilogue: &Epilogue<'_>,
        sums: Option<&mut ChannelSums>,
    ) {
        let tiles = self.tiles(dims);
        let narrow = self.weights.len() <= FEW_WEIGHTS;
        let (blocks, len) = self.cut(&tiles, narrow);
        let parts = if narrow { blocks } else { tiles.count().div_ceil(STEP) };
        let block = |number: usize| number * len..((number + 1) * len).min(tiles.count());
        with_partial(sums, parts, self.c_out, |sums| {
            let target = Target { y: Shared::new(y), add, epilogue: *epilogue, sums };
            let run = Run { layer: self, x, dims, tiles, target };
            if narrow {
                for_tasks(blocks, |number| run.narrow(number, block(number)));
            } else {
                (0..blocks).for_each(|number| run.wide(block(number)));
            }
        });
    }

    /// [`Self::pack`], then [`Self::run`] without an epilogue, where the weights are for this once.
    fn run_once(
        &mut self,
        weight: &[f32],
        (x, dims): (&[f32], Dims),
        y: &mut [f32],
        add: bool,
        sums: Option<&mut ChannelSums>,
    ) {
        let tiles = self.tiles(dims);
        if S::POSITIONS * self.position_len() <= FEW_WEIGHTS || tiles.count() > FEW_TILES {
            self.pack(weight, None);
            return self.run((x, dims), y, add, &Epilogue::default(), sums);
        }
        with_partial(sums, 1, self.c_out, |sums| {
            let target = Target { y: Shared::new(y), add, epilogue: Epilogue::default(), sums };
            Run { layer: self, x, dims, tiles, target }.by_outputs(weight);
        });
    }

    /// `(blocks, tiles of each)`, by the sizes alone.
    fn cut(&self, tiles: &Tiles, narrow: bool) -> (usize, usize) {
        let of_tile = S::POSITIONS * (self.c_in + COLUMNS + self.c_out);
        if narrow {
            return even_blocks::<I>(tiles.count(), (NARROW / of_tile).clamp(24, 48) / I::ROWS * I::ROWS, TASKS);
        }
        even_blocks::<I>(tiles.count(), (WIDE / of_tile).max(I::ROWS) / I::ROWS * I::ROWS, 1)
    }

    /// Sizes of the input for an output of sizes `dims`.
    fn before(&self, dims: Dims) -> Dims {
        let side = |side: usize| side + 2 - 2 * self.padding;
        Dims { h: side(dims.h), w: side(dims.w), c: self.c_in, ..dims }
    }

    /// Values from one position's weights to the next, and then some: positions never fall on the same set.
    fn position_len(&self) -> usize {
        self.c_in * self.c_out + COLUMNS
    }

    /// Channels of a tile's transformed input, and then some: positions of tiles never fall on the same set.
    fn input_ld(&self) -> usize {
        self.c_in + COLUMNS
    }
}

impl<I: Simd, S: Sizes> ForwardKernel for Winograd<I, S> {
    fn pack(&mut self, weight: &[f32], scale: Option<&[f32]>) {
        self.pack(weight, scale);
    }

    fn run(&self, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>, sums: Option<&mut ChannelSums>) {
        self.run((x, dims), y, false, epilogue, sums);
    }

    fn run_once(&mut self, weight: &[f32], x: &[f32], dims: Dims, y: &mut [f32], sums: &mut ChannelSums) {
        self.run_once(weight, (x, dims), y, false, Some(sums));
    }
}

impl<I: Simd, S: Sizes> InputKernel for Winograd<I, S> {
    fn pack(&mut self, weight: &[f32]) {
        self.pack(weight, None);
    }

    fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        self.run((dy, self.before(dims)), dx, add, &Epilogue::default(), None);
    }

    fn run_once(&mut self, weight: &[f32], dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        self.run_once(weight, (dy, self.before(dims)), dx, add, None);
    }
}

/// Calls `f` with room for the sums of so many parts, all 0, if any are asked for, and adds them up.
fn with_partial(sums: Option<&mut ChannelSums>, parts: usize, c: usize, f: impl FnOnce(Option<Shared>)) {
    let Some(sums) = sums else {
        return f(None);
    };
    let partial = sums.partial(parts, c);
    partial.fill(0.0);
    f(Some(Shared::new(partial)));
    sums.reduce(parts, c);
}

/// # Safety
/// The processor has `I`; a vector of kernels lie `step` apart at `from`, and `to` holds their columns of every
/// position, `len` apart.
#[inline(always)]
unsafe fn pack_vector<I: Simd, S: Sizes>(
    (from, step): (*const f32, usize),
    turned: bool,
    scale: Option<I::V>,
    (to, len): (*mut f32, usize),
) {
    // SAFETY: the caller's.
    unsafe {
        let mut taps = I::load_taps(from, step);
        if turned {
            for i in 0..4 {
                (taps[i], taps[8 - i]) = (taps[8 - i], taps[i]);
            }
        }
        if let Some(scale) = scale {
            for i in 0..9 {
                taps[i] = I::mul(taps[i], scale);
            }
        }
        kernel_tile::<I, S>(&taps, (to, len));
    }
}

/// One call.
struct Run<'a, I, S> {
    layer: &'a Winograd<I, S>,
    x: &'a [f32],
    dims: Dims,
    tiles: Tiles,
    target: Target<'a>,
}

impl<I: Simd, S: Sizes> Run<'_, I, S> {
    /// Calls `f` with room for the tiles of a block.
    fn with_block(&self, tiles: usize, f: impl FnOnce(Block)) {
        let wide = self.layer.c_out;
        with_scratch(Slot::Input, S::POSITIONS * tiles * self.layer.input_ld(), |input| {
            with_scratch(Slot::Output, S::POSITIONS * tiles * wide, |output| {
                f(Block { input: Shared::new(input), output: Shared::new(output), tiles, first: 0, wide });
            });
        });
    }

    /// The weights as they were packed.
    fn packed(&self) -> Weights {
        let Winograd { c_in, ref weights, .. } = *self.layer;
        Weights { at: weights.as_ptr(), len: self.layer.position_len(), first: 0, steps: c_in }
    }

    /// One task's tiles from input to output.
    fn narrow(&self, part: usize, tiles: Range<usize>) {
        self.with_block(tiles.len(), |block| {
            // SAFETY: features and lengths; the block and the tiles are this task's own.
            unsafe {
                self.transform_input(tiles.clone(), tiles.start, block);
                for position in 0..S::POSITIONS {
                    self.multiply(position, 0..tiles.len(), self.packed(), block);
                }
                self.transform_output(tiles.clone(), tiles.start, block, part);
            }
        });
    }

    /// All tiles of a block, each step by many tasks.
    fn wide(&self, tiles: Range<usize>) {
        let steps = tiles.len().div_ceil(STEP);
        let step = |number: usize| {
            let first = tiles.start + number * STEP;
            first..(first + STEP).min(tiles.end)
        };
        let (products, len) = even_blocks::<I>(tiles.len(), PRODUCT, 1);
        self.with_block(tiles.len(), |block| {
            // SAFETY: features and lengths; tasks have tiles, or tiles of a position, of their own.
            for_tasks(steps, |number| unsafe { self.transform_input(step(number), tiles.start, block) });
            for_tasks(S::POSITIONS * products, |task| {
                let (position, product) = (task / products, task % products);
                let rows = product * len..((product + 1) * len).min(tiles.len());
                // SAFETY: as above.
                unsafe { self.multiply(position, rows, self.packed(), block) };
            });
            for_tasks(steps, |number| {
                let part = tiles.start / STEP + number;
                // SAFETY: as above.
                unsafe { self.transform_output(step(number), tiles.start, block, part) };
            });
        });
    }

    /// All tiles, each task some outputs.
    fn by_outputs(&self, weight: &[f32]) {
        let (layer, tiles) = (self.layer, self.tiles.count());
        with_scratch(Slot::Input, S::POSITIONS * tiles * layer.input_ld(), |input| {
            let input = Shared::new(input);
            for_tasks(tiles.div_ceil(STEP), |step| {
                let tiles_of_step = step * STEP..((step + 1) * STEP).min(tiles);
                let block = Block { input, output: input, tiles, first: 0, wide: 0 };
                // SAFETY: features and lengths; tiles are this task's own.
                unsafe { self.transform_input(tiles_of_step, 0, block) };
            });
            for_tasks(layer.c_out.div_ceil(OUTPUTS), |task| {
                let first = task * OUTPUTS;
                self.some_outputs(weight, input, first..(first + OUTPUTS).min(layer.c_out));
            });
        });
    }

    /// Some outputs of all tiles.
    fn some_outputs(&self, weight: &[f32], input: Shared, outputs: Range<usize>) {
        let (layer, tiles, wide) = (self.layer, self.tiles.count(), outputs.len());
        let most = (OWN_WEIGHTS / (S::POSITIONS * wide)).max(1);
        let steps = layer.c_in.div_ceil(layer.c_in.div_ceil(most)).next_multiple_of(COLUMNS);
        let len = steps * wide + COLUMNS;
        with_scratch(Slot::Weights, S::POSITIONS * len, |weights| {
            with_scratch(Slot::Output, S::POSITIONS * tiles * wide, |output| {
                let block = Block { input, output: Shared::new(output), tiles, first: outputs.start, wide };
                for first in (0..layer.c_in).step_by(steps) {
                    let inputs = first..(first + steps).min(layer.c_in);
                    // SAFETY: features and lengths; weights and output are this task's own.
                    unsafe {
                        layer.transform(weight, None, outputs.clone(), inputs.clone(), (weights.as_mut_ptr(), len));
                        let weights = Weights { at: weights.as_ptr(), len, first, steps: inputs.len() };
                        (0..S::POSITIONS).for_each(|position| self.multiply(position, 0..tiles, weights, block));
                    }
                }
                // SAFETY: features and lengths; these channels are this task's own.
                unsafe { self.transform_output(0..tiles, 0, block, 0) };
            });
        });
    }

    /// # Safety
    /// Features and lengths; `block` holds the tiles, counted from `base`.
    unsafe fn transform_input(&self, tiles: Range<usize>, base: usize, block: Block) {
        let (ld, padding) = (self.layer.input_ld(), self.layer.padding as isize);
        let len = self.dims.h * self.dims.w * self.dims.c;
        for number in tiles {
            let tile = self.tiles.at(number);
            let picture = self.x[tile.picture * len..][..len].as_ptr();
            let origin = (tile.y as isize - padding, tile.x as isize - padding);
            let to = (block.input.at((number - base) * ld), block.tiles * ld);
            // SAFETY: the caller's.
            unsafe { input_of_tile::<I, S>((picture, self.dims), origin, to) };
        }
    }

    /// Products of one position, on top of those of inputs before these.
    ///
    /// # Safety
    /// As [`Self::transform_input`]; nobody else writes these rows and channels.
    unsafe fn multiply(&self, position: usize, rows: Range<usize>, weights: Weights, block: Block) {
        let lda = self.layer.input_ld();
        let Weights { at, len, first, steps } = weights;
        let step = steps.div_ceil(steps.div_ceil(DEPTH)).next_multiple_of(8);
        for column in (0..block.wide).step_by(I::WIDTH) {
            for from in (0..steps).step_by(step) {
                let b = at.wrapping_add(position * len + column * steps + from * COLUMNS);
                let a = block.input.at((position * block.tiles + rows.start) * lda + first + from);
                let c = block.output.at((position * block.tiles + rows.start) * block.wide + column);
                let depth = step.min(steps - from);
                let factors = Factors { depth, a, lda, b, ldb: COLUMNS, panel: steps * COLUMNS };
                let place = Place { c, ld: block.wide, add: first + from > 0 };
                // SAFETY: the caller's.
                unsafe { panel::<I, false>(rows.len(), I::WIDTH.min(block.wide - column), factors, place, None) };
            }
        }
    }

    /// # Safety
    /// As [`Self::transform_input`]; nobody else writes these tiles or this part of the sums.
    unsafe fn transform_output(&self, tiles: Range<usize>, base: usize, block: Block, part: usize) {
        // SAFETY: the caller's.
        unsafe {
            I::run(
                #[inline(always)]
                || {
                    for number in tiles {
                        self.output_of_tile(number, number - base, block, part);
                    }
                },
            );
        }
    }

    /// # Safety
    /// As [`Self::transform_output`]; the tile is the `index`-th of the block.
    #[inline(always)]
    unsafe fn output_of_tile(&self, number: usize, index: usize, block: Block, part: usize) {
        let (tiles, tile, c) = (&self.tiles, self.tiles.at(number), self.layer.c_out);
        let (high, wide) = tiles.inside(tile);
        let first = (tile.picture * tiles.dims.h + tile.y) * tiles.dims.w + tile.x;
        for at in (0..block.wide).step_by(I::LANES) {
            // SAFETY: channels are a multiple of the lanes, and outputs beyond the picture are left out.
            unsafe {
                let from = block.output.at(index * block.wide + at);
                let y = output_tile::<I, S>((from, block.tiles * block.wide));
                let at = block.first + at;
                // Sums of lines, so that one does not wait for the other.
                let (mut sum, mut square) = ([I::zero(); 4], [I::zero(); 4]);
                for i in 0..S::OUT {
                    for j in 0..S::OUT {
                        if i < high && j < wide {
                            let v = self.put(y[i][j], first + i * tiles.dims.w + j, at);
                            (sum[i], square[i]) = (I::add(sum[i], v), I::fma(v, v, square[i]));
                        }
                    }
                }
                if let Some(sums) = self.target.sums {
                    add_lines::<I>(sums.at(part * 2 * c + at), sum);
                    add_lines::<I>(sums.at((part * 2 + 1) * c + at), square);
                }
            }
        }
    }

    /// Finishes and writes channels `at` and following of a pixel; returns what it wrote.
    ///
    /// # Safety
    /// As [`Self::transform_output`]; the pixel exists.
    #[inline(always)]
    unsafe fn put(&self, v: I::V, pixel: usize, at: usize) -> I::V {
        let Target { y, add, epilogue: Epilogue { bias, residual, relu }, .. } = self.target;
        let value = pixel * self.layer.c_out + at;
        let mut v = v;
        // SAFETY: the caller's.
        unsafe {
            if let Some(bias) = bias {
                v = I::add(v, I::load(bias.as_ptr().add(at)));
            }
            if add {
                v = I::add(v, I::load(y.at(value)));
            }
            if let Some(residual) = residual {
                v = I::add(v, I::load(residual.as_ptr().add(value)));
            }
            if relu {
                v = I::max(I::zero(), v);
            }
            I::store(y.at(value), v);
        }
        v
    }
}

/// # Safety
/// The processor has `I`; `to` holds a vector that nobody else touches.
#[inline(always)]
unsafe fn add_lines<I: Simd>(to: *mut f32, v: [I::V; 4]) {
    // SAFETY: the caller's.
    unsafe { I::store(to, I::add(I::load(to), I::add(I::add(v[0], v[1]), I::add(v[2], v[3])))) }
}

/// Transforms the tile at `(y, x)` of a picture; what lies outside is 0.
///
/// # Safety
/// The processor has `I`; `to` holds all channels of every position, `step` apart.
pub(super) unsafe fn input_of_tile<I: Simd, S: Sizes>(
    picture: (*const f32, Dims),
    origin: (isize, isize),
    to: (*mut f32, usize),
) {
    // SAFETY: the caller's.
    unsafe {
        I::run(
            #[inline(always)]
            || input_of_channels::<I, S>(picture, origin, to),
        )
    }
}

/// # Safety
/// As [`input_of_tile`].
#[inline(always)]
unsafe fn input_of_channels<I: Simd, S: Sizes>(
    (picture, dims): (*const f32, Dims),
    (y, x): (isize, isize),
    (to, step): (*mut f32, usize),
) {
    let first = |at: isize| (-at).max(0) as usize;
    let end = |at: isize, end: usize| (end as isize - at).clamp(0, S::TILE as isize) as usize;
    let (top, bottom, left, right) = (first(y), end(y, dims.h), first(x), end(x, dims.w));
    let whole = (top, bottom, left, right) == (0, S::TILE, 0, S::TILE);
    for at in (0..dims.c).step_by(I::LANES) {
        // SAFETY: rows and columns are those inside the picture; channels are a multiple of the lanes.
        unsafe {
            let origin = picture.wrapping_offset((y * dims.w as isize + x) * dims.c as isize + at as isize);
            let mut d = [[I::zero(); MOST]; MOST];
            for i in 0..S::TILE {
                for j in 0..S::TILE {
                    if whole || (top <= i && i < bottom && left <= j && j < right) {
                        d[i][j] = I::load(origin.wrapping_add((i * dims.w + j) * dims.c));
                    }
                }
            }
            input_tile::<I, S>(&d, (to.add(at), step));
        }
    }
}
