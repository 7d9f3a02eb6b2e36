//! Convolution on devices other than the CPU, composed of candle's own operations.
//!
//! Forward is candle's convolution: cuDNN's with that feature. Its gradients are not: the input's runs on one thread
//! per value and the weights' misses cuDNN, whatever the features. So both are made here of what is fast on any device:
//! the input's gradient of stride-1 convolutions of the output's, one for each residue of a position by the stride;
//! the weights' of one matrix product for each tap.
//!
//! Index arithmetic is tested on the CPU, where it computes the same.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, DType, IndexOp, Layout, MetalStorage, Result, Shape, Tensor};

use super::Geometry;

/// [`super::conv2d`] on the device that `x` and `weight` are on.
pub(super) fn conv2d(g: Geometry, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let y = x.detach().conv2d(&weight.detach().contiguous()?, g.padding, g.stride, 1, 1)?;
    x.apply_op3(weight, &y, Gradients(g))
}

/// Puts `y`, computed off the tape, back on it: what goes forward is `y` itself.
#[derive(Debug)]
struct Gradients(Geometry);

impl CustomOp3 for Gradients {
    fn name(&self) -> &'static str {
        "likeness-conv2d-gradients"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        y: &CpuStorage,
        l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        y: &CudaStorage,
        l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
        y: &MetalStorage,
        l: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Ok((y.try_clone(l)?, l.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (g, dy) = (&self.0, dy.detach().contiguous()?);
        let dx = x.track_op().then(|| input_gradient(g, &w.detach(), &dy)).transpose()?;
        let dw = w.track_op().then(|| weight_gradient(g, &x.detach(), &dy)).transpose()?;
        Ok((dx, dw, None))
    }
}

/// Input positions of one dimension that leave `start` when divided by the stride: the output positions that read
/// position `start + stride · m` are `m + first`, `m + first + 1`, … of the taps in this order.
struct Residue {
    taps: Vec<u32>,
    first: isize,
    /// Positions, so values of m.
    len: usize,
}

impl Residue {
    fn new(g: &Geometry, start: usize, side: usize) -> Self {
        let at = |tap: usize| start as isize + g.padding as isize - tap as isize;
        let taps: Vec<usize> = (0..g.kernel).rev().filter(|&tap| at(tap).rem_euclid(g.stride as isize) == 0).collect();
        Self {
            first: taps.first().map_or(0, |&tap| at(tap).div_euclid(g.stride as isize)),
            taps: taps.into_iter().map(|tap| tap as u32).collect(),
            len: side.saturating_sub(start).div_ceil(g.stride),
        }
    }

    /// `dy` with just the positions along `dim` that a convolution with these taps reads.
    fn window(&self, dy: &Tensor, dim: usize) -> Result<Tensor> {
        let (side, reach) = (dy.dim(dim)? as isize, (self.len + self.taps.len()) as isize - 1);
        let (from, to) = (self.first.clamp(0, side), (self.first + reach).clamp(0, side));
        let before = (-self.first).clamp(0, reach);
        dy.narrow(dim, from as usize, (to - from).max(0) as usize)?.pad_with_zeros(
            dim,
            before as usize,
            (reach - before - (to - from).max(0)) as usize,
        )
    }

    fn of_weights(&self, weight: &Tensor, dim: usize) -> Result<Tensor> {
        weight.index_select(&Tensor::new(&self.taps[..], weight.device())?, dim)
    }
}

/// `(B, C_in, H, W)` from the weights and the output's gradient.
fn input_gradient(g: &Geometry, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let rows = |start: usize| -> Result<Tensor> {
        let y = Residue::new(g, start, g.height);
        let parts: Vec<Tensor> = (0..g.stride)
            .map(|start| residue_gradient(g, &y, &Residue::new(g, start, g.width), weight, dy))
            .collect::<Result<_>>()?;
        interleave(&parts, 3, g.width)
    };
    interleave(&(0..g.stride).map(rows).collect::<Result<Vec<_>>>()?, 2, g.height)
}

/// The gradient at the positions of two residues.
fn residue_gradient(g: &Geometry, y: &Residue, x: &Residue, weight: &Tensor, dy: &Tensor) -> Result<Tensor> {
    if y.taps.is_empty() || x.taps.is_empty() || y.len == 0 || x.len == 0 {
        return Tensor::zeros((g.batch, g.c_in, y.len, x.len), DType::F32, dy.device());
    }
    let taps = x.of_weights(&y.of_weights(weight, 2)?, 3)?.transpose(0, 1)?.contiguous()?;
    x.window(&y.window(dy, 2)?, 3)?.contiguous()?.conv2d(&taps, 0, 1, 1, 1)
}

/// The `parts.len()` residues of `side` positions in turn.
fn interleave(parts: &[Tensor], dim: usize, side: usize) -> Result<Tensor> {
    let longest = side.div_ceil(parts.len());
    let even: Vec<Tensor> =
        parts.iter().map(|part| part.pad_with_zeros(dim, 0, longest - part.dim(dim)?)).collect::<Result<_>>()?;
    let mut dims = even[0].dims().to_vec();
    dims[dim] *= parts.len();
    Tensor::stack(&even, dim + 1)?.reshape(dims)?.narrow(dim, 0, side)?.contiguous()
}

/// `(C_out, C_in, k, k)` from the input and the output's gradient.
fn weight_gradient(g: &Geometry, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let pixels = g.batch * g.out_pixels();
    let dy = dy.transpose(0, 1)?.contiguous()?.reshape((g.c_out, pixels))?;
    // Whole strides behind every tap.
    let behind = |side: usize, out: usize| (g.kernel - 1 + out * g.stride).saturating_sub(side + g.padding);
    let x = x.transpose(0, 1)?.pad_with_zeros(2, g.padding, behind(g.height, g.out_height))?.pad_with_zeros(
        3,
        g.padding,
        behind(g.width, g.out_width),
    )?;
    let tap = |(ky, kx): (usize, usize)| -> Result<Tensor> {
        let rows = x.narrow(2, ky, g.out_height * g.stride)?.narrow(3, kx, g.out_width * g.stride)?.contiguous()?;
        let met = rows
            .reshape((g.c_in * g.batch, g.out_height, g.stride, g.out_width, g.stride))?
            .i((.., .., 0, .., 0))?
            .contiguous()?
            .reshape((g.c_in, pixels))?;
        dy.matmul(&met.t()?)
    };
    let taps = (0..g.kernel).flat_map(|ky| (0..g.kernel).map(move |kx| (ky, kx)));
    let gradients = taps.map(tap).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&gradients, 2)?.reshape((g.c_out, g.c_in, g.kernel, g.kernel))
}
