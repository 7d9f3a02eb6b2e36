//! Batch norm over images and pixels: sums, application, gradient.

use rayon::prelude::*;

use super::ChannelSums;
use super::buffer::{Slot, with_scratch};
use super::isa::vectorised;

/// Values of one part of a tensor: it stays in a core's second cache between the loops over its channels.
pub(super) const PART: usize = 32 * 1024;
/// Channels whose sums stay in registers while a part is read.
const LANES: usize = 32;

/// Values of one part: whole pixels, cut by the number of channels alone.
fn part_len(c: usize) -> usize {
    (PART / c).max(16) * c
}

/// `Σ y` and `Σ y²` per channel.
///
/// # Panics
/// When `y` is not whole pixels of `c` channels.
pub fn channel_sums(y: &[f32], c: usize, sums: &mut ChannelSums) {
    assert!(y.len().is_multiple_of(c), "{} values are not whole pixels of {c}", y.len());
    let len = part_len(c);
    let parts = y.len().div_ceil(len);
    let partial = sums.partial(parts, c);
    partial.par_chunks_mut(2 * c).zip(y.par_chunks(len)).for_each(|(partial, y)| sums_of_part(y, c, partial));
    sums.reduce(parts, c);
}

vectorised! {
    /// `partial = (Σ y, Σ y²)` of a few pixels, each `(C)`.
    fn sums_of_part(y: &[f32], c: usize, partial: &mut [f32]) {
        let (sums, squares) = partial.split_at_mut(c);
        for (block, (sum, square)) in sums.chunks_mut(LANES).zip(squares.chunks_mut(LANES)).enumerate() {
            let (mut s, mut q) = ([0.0f32; LANES], [0.0f32; LANES]);
            for pixel in y.chunks_exact(c) {
                each_lane(&pixel[block * LANES..], sum.len(), |i, v| {
                    s[i] += v;
                    q[i] += v * v;
                });
            }
            sum.copy_from_slice(&s[..sum.len()]);
            square.copy_from_slice(&q[..square.len()]);
        }
    }
}

/// `f(i, values[i])` for the first `lanes`; a whole block has its length known to the compiler.
#[inline(always)]
fn each_lane(values: &[f32], lanes: usize, mut f: impl FnMut(usize, f32)) {
    if lanes == LANES {
        let values: &[f32; LANES] = values[..LANES].try_into().expect("a whole block");
        (0..LANES).for_each(|i| f(i, values[i]));
    } else {
        (0..lanes).for_each(|i| f(i, values[i]));
    }
}

/// `z = relu(y · scale + shift + residual)`, the last two parts if asked for.
///
/// # Panics
/// When a slice has another length.
pub fn scale_shift(y: &[f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool, z: &mut [f32]) {
    let c = scale.len();
    assert!(shift.len() == c && y.len() == z.len() && y.len().is_multiple_of(c), "sizes of a batch norm");
    assert!(residual.is_none_or(|r| r.len() == y.len()), "residual");
    let len = part_len(c);
    z.par_chunks_mut(len).zip(y.par_chunks(len)).enumerate().for_each(|(part, (z, y))| {
        let residual = residual.map(|r| &r[part * len..][..y.len()]);
        scale_part(y, scale, shift, residual, relu, z);
    });
}

vectorised! {
    pub(super) fn scale_part(y: &[f32], scale: &[f32], shift: &[f32], residual: Option<&[f32]>, relu: bool, z: &mut [f32]) {
        let c = scale.len();
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        for (pixel, (z, y)) in z.chunks_exact_mut(c).zip(y.chunks_exact(c)).enumerate() {
            let (scale, shift) = (&scale[..c], &shift[..c]);
            match residual {
                Some(residual) => {
                    let residual = &residual[pixel * c..][..c];
                    (0..c).for_each(|i| z[i] = above(y[i] * scale[i] + shift[i] + residual[i], floor));
                }
                None => (0..c).for_each(|i| z[i] = above(y[i] * scale[i] + shift[i], floor)),
            }
        }
    }
}

/// `max(v, floor)`, NaN kept.
#[inline(always)]
fn above(v: f32, floor: f32) -> f32 {
    if v < floor { floor } else { v }
}

/// Gradient of batch norm, from `g = dL/dz`.
///
/// Where `z`, the output of the ReLU behind the norm, is given, `g` is first set to 0 where `z` is not positive, and
/// stays so: a shortcut that joins before the ReLU needs it. `mean` and `inv_std` are the batch's. `dy` takes the
/// gradient of the norm's input, `g` itself where there is none.
///
/// # Panics
/// When a slice has another length.
#[allow(clippy::too_many_arguments)]
pub fn norm_backward(
    y: &[f32],
    z: Option<&[f32]>,
    g: &mut [f32],
    mean: &[f32],
    inv_std: &[f32],
    gamma: &[f32],
    dy: Option<&mut [f32]>,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let c = gamma.len();
    assert!(y.len() == g.len() && y.len().is_multiple_of(c), "sizes of a batch norm");
    assert!(z.is_none_or(|z| z.len() == y.len()) && dy.as_ref().is_none_or(|d| d.len() == y.len()), "sizes");
    assert!([mean.len(), inv_std.len(), dgamma.len(), dbeta.len()] == [c; 4], "channels");
    let len = part_len(c);
    let parts = y.len().div_ceil(len);
    with_scratch(Slot::Sums, (parts * 2 + 3) * c, |scratch| {
        let (partial, coefficients) = scratch.split_at_mut(parts * 2 * c);
        partial.par_chunks_mut(2 * c).zip(g.par_chunks_mut(len)).enumerate().for_each(|(part, (partial, g))| {
            let at = part * len..part * len + g.len();
            mask_and_sum(&y[at.clone()], z.map(|z| &z[at]), g, mean, partial);
        });
        gradient_of_parameters(partial, (y.len() / c) as f64, inv_std, gamma, (dgamma, dbeta), coefficients);
        apply_gradient(y, g, mean, coefficients, dy);
    });
}

vectorised! {
    /// Masks `g` by `z > 0`, then `partial = (Σ g, Σ g · (y − mean))`.
    pub(super) fn mask_and_sum(y: &[f32], z: Option<&[f32]>, g: &mut [f32], mean: &[f32], partial: &mut [f32]) {
        let c = mean.len();
        if let Some(z) = z {
            g.iter_mut().zip(z).for_each(|(g, z)| *g = if *z > 0.0 { *g } else { 0.0 });
        }
        let (sums, products) = partial.split_at_mut(c);
        for (block, (sum, product)) in sums.chunks_mut(LANES).zip(products.chunks_mut(LANES)).enumerate() {
            let (mut s, mut p, mut m) = ([0.0f32; LANES], [0.0f32; LANES], [0.0f32; LANES]);
            let lanes = sum.len();
            m[..lanes].copy_from_slice(&mean[block * LANES..][..lanes]);
            for (y, g) in y.chunks_exact(c).zip(g.chunks_exact(c)) {
                let y = &y[block * LANES..][..lanes];
                each_lane(&g[block * LANES..], lanes, |i, g| {
                    s[i] += g;
                    p[i] += g * (y[i] - m[i]);
                });
            }
            sum.copy_from_slice(&s[..lanes]);
            product.copy_from_slice(&p[..lanes]);
        }
    }
}

/// `dβ = Σ g`, `dγ = Σ g · x̂`, and as `coefficients` what [`apply_gradient`] needs of them:
/// `(γ · inv_std, mean of g, inv_std · mean of g · x̂)`, means over `pixels`.
pub(super) fn gradient_of_parameters(
    partial: &[f32],
    pixels: f64,
    inv_std: &[f32],
    gamma: &[f32],
    (dgamma, dbeta): (&mut [f32], &mut [f32]),
    coefficients: &mut [f32],
) {
    let c = gamma.len();
    let total = |at: usize| partial.chunks_exact(2 * c).map(|part| f64::from(part[at])).sum::<f64>();
    for i in 0..c {
        let inv = f64::from(inv_std[i]);
        let (sum, product) = (total(i), total(c + i) * inv);
        (dbeta[i], dgamma[i]) = (sum as f32, product as f32);
        coefficients[i] = gamma[i] * inv_std[i];
        coefficients[c + i] = (sum / pixels) as f32;
        coefficients[2 * c + i] = (inv * product / pixels) as f32;
    }
}

/// `dy = γ · inv_std · (g − mean of g − x̂ · mean of g · x̂)`
fn apply_gradient(y: &[f32], g: &mut [f32], mean: &[f32], coefficients: &[f32], dy: Option<&mut [f32]>) {
    let len = part_len(mean.len());
    match dy {
        Some(dy) => dy
            .par_chunks_mut(len)
            .zip(g.par_chunks(len).zip(y.par_chunks(len)))
            .for_each(|(dy, (g, y))| gradient_part(y, g, mean, coefficients, dy)),
        None => {
            let parts = g.par_chunks_mut(len).zip(y.par_chunks(len));
            parts.for_each(|(g, y)| gradient_part_in_place(y, g, mean, coefficients));
        }
    }
}

vectorised! {
    fn gradient_part(y: &[f32], g: &[f32], mean: &[f32], coefficients: &[f32], dy: &mut [f32]) {
        let c = mean.len();
        let (scale, mean_g, slope) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        for (dy, (y, g)) in dy.chunks_exact_mut(c).zip(y.chunks_exact(c).zip(g.chunks_exact(c))) {
            // A loop and no closure: those are compiled apart, without the wider registers.
            for i in 0..c {
                dy[i] = scale[i] * (g[i] - mean_g[i] - (y[i] - mean[i]) * slope[i]);
            }
        }
    }
}

vectorised! {
    pub(super) fn gradient_part_in_place(y: &[f32], g: &mut [f32], mean: &[f32], coefficients: &[f32]) {
        let c = mean.len();
        let (scale, mean_g, slope) = (&coefficients[..c], &coefficients[c..2 * c], &coefficients[2 * c..3 * c]);
        for (g, y) in g.chunks_exact_mut(c).zip(y.chunks_exact(c)) {
            for i in 0..c {
                g[i] = scale[i] * (g[i] - mean_g[i] - (y[i] - mean[i]) * slope[i]);
            }
        }
    }
}
