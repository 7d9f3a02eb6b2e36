//! 2-D convolution by patches (im2col) and matrix products, forward and backward.
//!
//! A *task* is a run of whole images, so that its input and output are contiguous; a task works through *tiles*
//! whose patch matrix `(K, pixels)` stays in the second-level cache, K = C_in · kernel². A tile is some rows of
//! one image, or several small images at once. Tasks and tiles depend on shapes alone.

mod device;
mod patches;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::matmul::{Mat, matmul};
use crate::storage::{on_cpu, slice, tensor, with_slice};
use patches::{Tile, add_patches, gather, patches, scatter};

/// Patch matrices are kept to about this many elements (1 MiB), to stay in the second-level cache.
const TILE_ELEMENTS: usize = 256 * 1024;
/// Fewest pixels of a tile: below, the matrix product spends its time on the weights alone.
const TILE_PIXELS: usize = 64;
/// Most parts that the sum over images of the weight gradient is cut into.
const REDUCTION_PARTS: usize = 8;
/// Fewest pixels of such a part.
const PART_PIXELS: usize = 256;

/// Convolution without bias: `x (B, C_in, H, W)`, `weight (C_out, C_in, k, k)` → `(B, C_out, H', W')` with
/// `H' = (H + 2·padding − k) / stride + 1`.
///
/// # Errors
/// When shapes do not match, the kernel is larger than the padded image, or a tensor is not `f32`.
pub fn conv2d(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Tensor> {
    let geometry = Geometry::new(x, weight, stride, padding)?;
    if on_cpu(x) {
        x.contiguous()?.apply_op2(&weight.contiguous()?, Conv2d(geometry))
    } else {
        device::conv2d(geometry, x, weight)
    }
}

/// Every size of one convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub batch: usize,
    pub c_in: usize,
    pub height: usize,
    pub width: usize,
    pub c_out: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Geometry {
    fn new(x: &Tensor, weight: &Tensor, stride: usize, padding: usize) -> Result<Self> {
        let (batch, c_in, height, width) = x.dims4()?;
        let (c_out, w_in, kernel, kernel_w) = weight.dims4()?;
        if w_in != c_in || kernel != kernel_w {
            bail!("conv2d: input {:?} does not match weight {:?}", x.shape(), weight.shape());
        }
        let fits = |side: usize| side + 2 * padding >= kernel;
        if batch == 0 || c_in == 0 || c_out == 0 || kernel == 0 || stride == 0 || !fits(height) || !fits(width) {
            bail!("conv2d: empty result from {:?}, kernel {kernel}, stride {stride}", x.shape());
        }
        let out = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (out_height, out_width) = (out(height), out(width));
        Ok(Self { batch, c_in, height, width, c_out, kernel, stride, padding, out_height, out_width })
    }

    /// K: rows of the patch matrix.
    pub fn depth(&self) -> usize {
        self.c_in * self.kernel * self.kernel
    }

    pub fn in_pixels(&self) -> usize {
        self.height * self.width
    }

    pub fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Elements of one input image.
    pub fn in_len(&self) -> usize {
        self.c_in * self.in_pixels()
    }

    /// Elements of one output image.
    pub fn out_len(&self) -> usize {
        self.c_out * self.out_pixels()
    }

    /// Whether the image itself is its patch matrix.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// Pixels of a tile that keep its patches in the cache.
    fn tile_pixels(&self) -> usize {
        (TILE_ELEMENTS / self.depth()).max(TILE_PIXELS)
    }

    /// Images of one task.
    fn task_images(&self) -> usize {
        (self.tile_pixels() / self.out_pixels()).clamp(1, self.batch)
    }

    /// The tiles of a task of `images` images.
    fn tiles(self, images: usize) -> impl Iterator<Item = Tile> {
        let rows = if images > 1 || self.is_pointwise() {
            self.out_height
        } else {
            (self.tile_pixels() / self.out_width).clamp(1, self.out_height)
        };
        (0..self.out_height).step_by(rows).map(move |first| Tile {
            images,
            first_row: first,
            rows: rows.min(self.out_height - first),
            width: self.out_width,
        })
    }
}

/// Buffers of one thread, kept from call to call: fresh pages are a large part of a small convolution's cost.
#[derive(Default)]
struct Scratch {
    patches: Vec<f32>,
    product: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| f(&mut scratch.borrow_mut()))
}

/// The first `len` elements of a buffer that only grows; their values are left over from earlier use.
fn at_least(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// `(B, C_out, H', W')` from `x` and the weights.
pub(crate) fn forward(g: &Geometry, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; g.batch * g.out_len()];
    let images = g.task_images();
    y.par_chunks_mut(images * g.out_len()).zip(x.par_chunks(images * g.in_len())).for_each(|(y, x)| {
        with_scratch(|scratch| g.tiles(y.len() / g.out_len()).for_each(|t| forward_tile(g, &t, x, weight, y, scratch)));
    });
    y
}

fn forward_tile(g: &Geometry, tile: &Tile, x: &[f32], weight: &[f32], y: &mut [f32], scratch: &mut Scratch) {
    let (depth, pixels) = (g.depth(), tile.pixels());
    let weight = Mat::new(weight, g.c_out, depth);
    let columns = if g.is_pointwise() && tile.images == 1 {
        Mat::new(x, depth, pixels)
    } else {
        let buffer = at_least(&mut scratch.patches, depth * pixels);
        patches(g, tile, x, buffer);
        Mat::new(buffer, depth, pixels)
    };
    if tile.images == 1 {
        matmul(&mut y[tile.first_row * g.out_width..], g.out_pixels(), weight, columns, false);
    } else {
        let product = at_least(&mut scratch.product, g.c_out * pixels);
        matmul(product, pixels, weight, columns, false);
        scatter(product, tile.images, g.out_pixels(), y);
    }
}

/// Gradient with respect to the input, `(B, C_in, H, W)`.
pub(crate) fn data_gradient(g: &Geometry, weight: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dx = vec![0.0; g.batch * g.in_len()];
    let images = g.task_images();
    dx.par_chunks_mut(images * g.in_len()).zip(dy.par_chunks(images * g.out_len())).for_each(|(dx, dy)| {
        with_scratch(|scratch| {
            g.tiles(dy.len() / g.out_len()).for_each(|t| data_gradient_tile(g, &t, weight, dy, dx, scratch));
        });
    });
    dx
}

fn data_gradient_tile(g: &Geometry, tile: &Tile, weight: &[f32], dy: &[f32], dx: &mut [f32], scratch: &mut Scratch) {
    let (depth, pixels) = (g.depth(), tile.pixels());
    let weight = Mat::new(weight, g.c_out, depth).t();
    let Scratch { patches, product } = scratch;
    let dy = output_matrix(g, tile, dy, product);
    if g.is_pointwise() && tile.images == 1 {
        matmul(dx, pixels, weight, dy, false);
        return;
    }
    let columns = at_least(patches, depth * pixels);
    matmul(columns, pixels, weight, dy, false);
    add_patches(g, tile, columns, dx);
}

/// The output's gradient as `(C_out, pixels of the tile)`.
fn output_matrix<'a>(g: &Geometry, tile: &Tile, dy: &'a [f32], buffer: &'a mut Vec<f32>) -> Mat<'a> {
    if tile.images == 1 {
        return Mat::strided(&dy[tile.first_row * g.out_width..], g.c_out, tile.pixels(), g.out_pixels());
    }
    let buffer = at_least(buffer, g.c_out * tile.pixels());
    gather(dy, tile.images, g.out_pixels(), buffer);
    Mat::new(buffer, g.c_out, tile.pixels())
}

/// Gradient with respect to the weights, `(C_out, C_in, k, k)`: a fixed number of partial sums over images,
/// added in order.
pub(crate) fn weight_gradient(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let parts = (g.batch * g.out_pixels() / PART_PIXELS).clamp(1, REDUCTION_PARTS);
    let part_images = g.batch.div_ceil(parts);
    let partial = x.par_chunks(part_images * g.in_len()).zip(dy.par_chunks(part_images * g.out_len()));
    let sums: Vec<Vec<f32>> = partial.map(|(x, dy)| weight_gradient_part(g, x, dy)).collect();
    sum_in_order(sums)
}

fn weight_gradient_part(g: &Geometry, x: &[f32], dy: &[f32]) -> Vec<f32> {
    let mut dw = vec![0.0; g.c_out * g.depth()];
    let images = g.task_images();
    let mut add = false;
    with_scratch(|scratch| {
        for (x, dy) in x.chunks(images * g.in_len()).zip(dy.chunks(images * g.out_len())) {
            for tile in g.tiles(dy.len() / g.out_len()) {
                weight_gradient_tile(g, &tile, x, dy, &mut dw, add, scratch);
                add = true;
            }
        }
    });
    dw
}

fn weight_gradient_tile(
    g: &Geometry,
    tile: &Tile,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    add: bool,
    scratch: &mut Scratch,
) {
    let (depth, pixels) = (g.depth(), tile.pixels());
    let Scratch { patches: patch_buffer, product } = scratch;
    let dy = output_matrix(g, tile, dy, product);
    let columns = if g.is_pointwise() && tile.images == 1 {
        Mat::new(x, depth, pixels)
    } else {
        let buffer = at_least(patch_buffer, depth * pixels);
        patches(g, tile, x, buffer);
        Mat::new(buffer, depth, pixels)
    };
    matmul(dw, depth, dy, columns.t(), add);
}

fn sum_in_order(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut total = parts.remove(0);
    const CHUNK: usize = 16 * 1024;
    total.par_chunks_mut(CHUNK).enumerate().for_each(|(i, total)| {
        for part in &parts {
            let part = &part[i * CHUNK..][..total.len()];
            total.iter_mut().zip(part).for_each(|(t, p)| *t += p);
        }
    });
    total
}

#[derive(Debug)]
struct Conv2d(Geometry);

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "likeness-conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let g = &self.0;
        let y = forward(g, slice(x, xl)?, slice(w, wl)?);
        Ok((CpuStorage::F32(y), (g.batch, g.c_out, g.out_height, g.out_width).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = &self.0;
        with_slice(dy, |dy| {
            let dx = if x.track_op() {
                let dx = with_slice(w, |w| Ok(data_gradient(g, w, dy)))?;
                Some(tensor(dx, x.shape())?)
            } else {
                None
            };
            let dw = if w.track_op() {
                let dw = with_slice(x, |x| Ok(weight_gradient(g, x, dy)))?;
                Some(tensor(dw, w.shape())?)
            } else {
                None
            };
            Ok((dx, dw))
        })
    }
}
