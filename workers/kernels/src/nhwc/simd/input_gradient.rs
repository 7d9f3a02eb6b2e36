//! Gradient of the input as products, one for each residue of a position by the stride.
//!
//! An input pixel `p` is read by the windows `(p + padding − tap) / stride` of those taps that leave no remainder: the
//! same taps for all pixels of one residue. At stride 1 that is one product, a convolution with the taps turned round.

use super::InputKernel;
use super::gather::{Gather, Line};
use super::gemm::{Call, Gemm, Rows};
use super::pack;
use super::parallel::{Shared, for_tasks};
use super::vector::Simd;
use crate::nhwc::{ConvShape, Dims, Epilogue};

/// The products of a convolution's input gradient.
#[derive(Debug)]
pub(super) struct GemmInputGradient<I> {
    shape: ConvShape,
    residues: Vec<Residue<I>>,
}

/// Input pixels whose position leaves `start` when divided by the stride.
#[derive(Debug)]
struct Residue<I> {
    start: (usize, usize),
    /// Kernel positions in the order of the product's depth.
    taps: Vec<usize>,
    gemm: Gemm<I>,
}

/// `(tap, window relative to position / stride)` of one dimension, windows ascending.
fn taps_of(shape: &ConvShape, start: usize) -> Vec<(usize, isize)> {
    let ConvShape { kernel, stride, padding, .. } = *shape;
    let meets = |tap: &usize| (start + padding + (kernel - 1) * stride - tap).is_multiple_of(stride);
    let window = |tap: usize| (start as isize + padding as isize - tap as isize).div_euclid(stride as isize);
    (0..kernel).rev().filter(meets).map(|tap| (tap, window(tap))).collect()
}

impl<I: Simd> Residue<I> {
    fn new(shape: &ConvShape, start: (usize, usize)) -> Self {
        let (ys, xs) = (taps_of(shape, start.0), taps_of(shape, start.1));
        let taps = ys.iter().flat_map(|y| xs.iter().map(|x| y.0 * shape.kernel + x.0)).collect();
        // Taps of one residue are a stride apart, so their windows are neighbours.
        let lines = xs
            .first()
            .map_or_else(Vec::new, |&(_, x)| ys.iter().map(|&(_, y)| Line { y, x, taps: xs.len() }).collect());
        let gather = Gather::new(lines, shape.c_out, 1);
        Self { start, taps, gemm: Gemm::new(gather, shape.c_in) }
    }
}

impl<I: Simd> GemmInputGradient<I> {
    /// Only where the processor has `I`.
    pub(super) fn new(shape: ConvShape) -> Self {
        let starts = (0..shape.stride).flat_map(|y| (0..shape.stride).map(move |x| (y, x)));
        Self { shape, residues: starts.map(|start| Residue::new(&shape, start)).collect() }
    }
}

impl<I: Simd> InputKernel for GemmInputGradient<I> {
    fn pack(&mut self, weight: &[f32]) {
        for Residue { taps, gemm, .. } in &mut self.residues {
            pack::input_gradient(&self.shape, weight, taps, &mut gemm.panels);
        }
    }

    fn run(&self, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
        let out = self.shape.out(dims);
        let dx = Shared::new(dx);
        for Residue { start, taps, gemm } in &self.residues {
            let step = self.shape.stride;
            let side = |side: usize, start: usize| side.saturating_sub(start).div_ceil(step);
            let grid = (side(dims.h, start.0), side(dims.w, start.1));
            let rows = if step == 1 { Rows::InOrder } else { Rows::Spread { dims, start: *start, step } };
            if taps.is_empty() && !add {
                clear(dx, dims, *start, step);
            }
            if taps.is_empty() || grid.0 * grid.1 == 0 {
                continue;
            }
            let epilogue = Epilogue::default();
            let call = Call { x: dy, dims: out, grid, y: dx, rows, add, epilogue, sums: None };
            // SAFETY: features and lengths; the grid's pixels exist by the division above.
            unsafe { gemm.run(&call) };
        }
    }
}

/// Zeros where no window looks.
fn clear(dx: Shared, dims: Dims, start: (usize, usize), step: usize) {
    for_tasks(dims.n, |picture| {
        for y in (start.0..dims.h).step_by(step) {
            for x in (start.1..dims.w).step_by(step) {
                let at = dx.at(((picture * dims.h + y) * dims.w + x) * dims.c);
                // SAFETY: the pixel exists, and its picture is this task's own.
                unsafe { std::slice::from_raw_parts_mut(at, dims.c).fill(0.0) };
            }
        }
    });
}
