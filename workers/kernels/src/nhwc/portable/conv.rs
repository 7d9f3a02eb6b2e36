//! Convolutions without any blocking: one output pixel after the other.

use rayon::prelude::*;

use crate::nhwc::{ConvShape, Dims, Epilogue};

/// Weights in the order in which the loops read them.
#[derive(Clone, Debug, Default)]
pub struct Packed(Vec<f32>);

impl Packed {
    /// `(C_out, C_in, k, k)` → `(k, k, C_in, C_out)`, each output channel times its `scale`.
    pub fn forward(shape: &ConvShape, weight: &[f32], scale: Option<&[f32]>) -> Self {
        let at = |tap: usize, i: usize, o: usize| (tap * shape.c_in + i) * shape.c_out + o;
        Self::ordered(shape, weight, at, |o| scale.map_or(1.0, |s| s[o]))
    }

    /// `(C_out, C_in, k, k)` → `(k, k, C_out, C_in)`.
    pub fn input_gradient(shape: &ConvShape, weight: &[f32]) -> Self {
        let at = |tap: usize, i: usize, o: usize| (tap * shape.c_out + o) * shape.c_in + i;
        Self::ordered(shape, weight, at, |_| 1.0)
    }

    fn ordered(
        shape: &ConvShape,
        weight: &[f32],
        at: impl Fn(usize, usize, usize) -> usize,
        scale: impl Fn(usize) -> f32,
    ) -> Self {
        let taps = shape.kernel * shape.kernel;
        let mut packed = vec![0.0; weight.len()];
        for (row, taps) in weight.chunks_exact(taps).enumerate() {
            let (o, i) = (row / shape.c_in, row % shape.c_in);
            taps.iter().enumerate().for_each(|(tap, w)| packed[at(tap, i, o)] = w * scale(o));
        }
        Self(packed)
    }
}

/// The pixel `position · stride + tap − padding` of a side of `side` pixels, unless it is padding.
fn source(shape: &ConvShape, position: usize, tap: usize, side: usize) -> Option<usize> {
    (position * shape.stride + tap).checked_sub(shape.padding).filter(|&at| at < side)
}

/// The window that reads `position` through `tap`, if one of the `side` windows does.
fn window(shape: &ConvShape, position: usize, tap: usize, side: usize) -> Option<usize> {
    let start = (position + shape.padding).checked_sub(tap)?;
    (start.is_multiple_of(shape.stride) && start / shape.stride < side).then(|| start / shape.stride)
}

/// `sums += value · row`
fn add_scaled(sums: &mut [f64], value: f32, row: &[f32]) {
    sums.iter_mut().zip(row).for_each(|(s, w)| *s += f64::from(value) * f64::from(*w));
}

/// `y = epilogue(conv(x))`, the weights as [`Packed::forward`] leaves them.
pub fn conv_forward(shape: &ConvShape, packed: &Packed, x: &[f32], dims: Dims, y: &mut [f32], epilogue: &Epilogue<'_>) {
    let out = shape.out(dims);
    let Epilogue { bias, residual, relu } = *epilogue;
    y.par_chunks_mut(out.w * out.c).enumerate().for_each(|(row, y)| {
        let (image, oy) = (row / out.h, row % out.h);
        let mut sums = vec![0.0; out.c];
        for (ox, y) in y.chunks_exact_mut(out.c).enumerate() {
            match bias {
                Some(bias) => sums.iter_mut().zip(bias).for_each(|(s, b)| *s = f64::from(*b)),
                None => sums.fill(0.0),
            }
            for (tap, pixel) in taps_of(shape, dims, oy, ox) {
                let x = &x[(image * dims.h * dims.w + pixel) * dims.c..][..dims.c];
                let weights = packed.0[tap * dims.c * out.c..].chunks_exact(out.c);
                x.iter().zip(weights).for_each(|(v, w)| add_scaled(&mut sums, *v, w));
            }
            if let Some(residual) = residual {
                add_scaled(&mut sums, 1.0, &residual[(row * out.w + ox) * out.c..][..out.c]);
            }
            y.iter_mut().zip(&sums).for_each(|(y, s)| *y = if relu && *s < 0.0 { 0.0 } else { *s as f32 });
        }
    });
}

/// `(tap, pixel of the image)` that the window at `(oy, ox)` reads.
fn taps_of(shape: &ConvShape, x: Dims, oy: usize, ox: usize) -> impl Iterator<Item = (usize, usize)> {
    let ConvShape { kernel, .. } = *shape;
    (0..kernel * kernel).filter_map(move |tap| {
        let iy = source(shape, oy, tap / kernel, x.h)?;
        let ix = source(shape, ox, tap % kernel, x.w)?;
        Some((tap, iy * x.w + ix))
    })
}

/// `dx (+)= convᵀ(dy)`, the weights as [`Packed::input_gradient`] leaves them.
pub fn conv_input_gradient(shape: &ConvShape, packed: &Packed, dy: &[f32], dims: Dims, dx: &mut [f32], add: bool) {
    let out = shape.out(dims);
    dx.par_chunks_mut(dims.w * dims.c).enumerate().for_each(|(row, dx)| {
        let (image, iy) = (row / dims.h, row % dims.h);
        let mut sums = vec![0.0; dims.c];
        for (ix, dx) in dx.chunks_exact_mut(dims.c).enumerate() {
            sums.iter_mut().zip(&*dx).for_each(|(s, d)| *s = if add { f64::from(*d) } else { 0.0 });
            for tap in 0..shape.kernel * shape.kernel {
                let Some(oy) = window(shape, iy, tap / shape.kernel, out.h) else { continue };
                let Some(ox) = window(shape, ix, tap % shape.kernel, out.w) else { continue };
                let dy = &dy[((image * out.h + oy) * out.w + ox) * out.c..][..out.c];
                let weights = packed.0[tap * dims.c * out.c..].chunks_exact(dims.c);
                dy.iter().zip(weights).for_each(|(v, w)| add_scaled(&mut sums, *v, w));
            }
            dx.iter_mut().zip(&sums).for_each(|(d, s)| *d = *s as f32);
        }
    });
}

/// `dw (C_out, C_in, k, k)` of `<dy, conv(x)>`.
pub fn conv_weight_gradient(shape: &ConvShape, x: &[f32], dims: Dims, dy: &[f32], dw: &mut [f32]) {
    let taps = shape.kernel * shape.kernel;
    let of_taps: Vec<Vec<f64>> =
        (0..taps).into_par_iter().map(|tap| weight_gradient_of_tap(shape, x, dims, dy, tap)).collect();
    for (row, dw) in dw.chunks_exact_mut(taps).enumerate() {
        let (o, i) = (row / shape.c_in, row % shape.c_in);
        dw.iter_mut().zip(&of_taps).for_each(|(dw, sums)| *dw = sums[i * shape.c_out + o] as f32);
    }
}

/// `(C_in, C_out)` of one tap.
fn weight_gradient_of_tap(shape: &ConvShape, x: &[f32], dims: Dims, dy: &[f32], tap: usize) -> Vec<f64> {
    let out = shape.out(dims);
    let mut sums = vec![0.0; shape.c_in * shape.c_out];
    for (pixel, dy) in dy.chunks_exact(out.c).enumerate() {
        let (image, oy, ox) = (pixel / (out.h * out.w), pixel / out.w % out.h, pixel % out.w);
        let Some(iy) = source(shape, oy, tap / shape.kernel, dims.h) else { continue };
        let Some(ix) = source(shape, ox, tap % shape.kernel, dims.w) else { continue };
        let x = &x[((image * dims.h + iy) * dims.w + ix) * dims.c..][..dims.c];
        x.iter().zip(sums.chunks_exact_mut(out.c)).for_each(|(v, sums)| add_scaled(sums, *v, dy));
    }
    sums
}
