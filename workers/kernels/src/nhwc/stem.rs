//! Batch norm, ReLU and max pool behind the first convolution, whose output is the largest tensor of a network in
//! training: nothing else of its size is written on the way forward, and only its gradient on the way back.

use rayon::prelude::*;

use super::Dims;
use super::buffer::{Slot, with_scratch};
use super::norm::{self, PART};
use super::pool;

/// `z = max_pool(relu(y · scale + shift))`, 3×3 with stride 2 and padding 1; `index` takes which of the nine it was, the
/// first of equal ones.
///
/// # Panics
/// When a slice has another length.
pub fn norm_max_pool(y: &[f32], dims: Dims, scale: &[f32], shift: &[f32], z: &mut [f32], index: &mut [u8]) {
    let out = pool::pooled(dims);
    assert!(y.len() == dims.len() && z.len() == out.len() && index.len() == out.len(), "sizes of a max pool");
    assert!(scale.len() == dims.c && shift.len() == dims.c, "channels");
    let (line, out_line) = (dims.w * dims.c, out.w * out.c);
    let lines = z.par_chunks_mut(out_line).zip(index.par_chunks_mut(out_line)).enumerate();
    lines.for_each(|(row, (z, index))| {
        let (image, oy) = (row / out.h, row % out.h);
        // The lines that the windows read become a picture of their own, the windows its first line of them or, below
        // a line that none of them reads, its second.
        let (above, oy_there) = if oy == 0 { (0, 0) } else { (1, 1) };
        let (start, end) = ((2 * oy).saturating_sub(1), (2 * oy + 2).min(dims.h));
        with_scratch(Slot::Input, 4 * line, |picture| {
            let from = &y[(image * dims.h + start) * line..(image * dims.h + end) * line];
            norm::scale_part(from, scale, shift, None, true, &mut picture[above * line..][..from.len()]);
            let there = Dims { n: 1, h: above + end - start, ..dims };
            pool::max_with_index(picture, there, oy_there, z, index);
        });
    });
}

/// Gradient of [`norm_max_pool`] with the batch's statistics, from `dz`, 0 wherever `z` is: `dy` and those of the
/// norm's parameters.
///
/// # Panics
/// When a slice has another length.
#[allow(clippy::too_many_arguments)]
pub fn norm_max_pool_backward(
    y: &[f32],
    dz: &[f32],
    index: &[u8],
    dims: Dims,
    mean: &[f32],
    inv_std: &[f32],
    gamma: &[f32],
    dy: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let (out, c) = (pool::pooled(dims), dims.c);
    assert!(y.len() == dims.len() && dy.len() == y.len(), "sizes of a batch norm");
    assert!(dz.len() == out.len() && index.len() == out.len(), "sizes of a max pool");
    assert!([mean.len(), inv_std.len(), gamma.len(), dgamma.len(), dbeta.len()] == [c; 5], "channels");
    let line = dims.w * c;
    // Lines of a part: what it holds stays in the second cache.
    let len = (PART / line).max(1) * line;
    // The gradient of the norm's output, for a part.
    let before_pool = |part: usize, g: &mut [f32]| {
        for (i, g) in g.chunks_exact_mut(line).enumerate() {
            let row = part * len / line + i;
            let image = row / dims.h * out.h * out.w * c..(row / dims.h + 1) * out.h * out.w * c;
            pool::max_backward_line(&dz[image.clone()], &index[image], dims, row % dims.h, g);
        }
    };
    let parts = y.len().div_ceil(len);
    with_scratch(Slot::Sums, (parts * 2 + 3) * c, |scratch| {
        let (partial, coefficients) = scratch.split_at_mut(parts * 2 * c);
        partial.par_chunks_mut(2 * c).zip(y.par_chunks(len)).enumerate().for_each(|(part, (partial, y))| {
            with_scratch(Slot::Input, y.len(), |g| {
                before_pool(part, g);
                norm::mask_and_sum(y, None, g, mean, partial);
            });
        });
        let pixels = dims.pixels() as f64;
        norm::gradient_of_parameters(partial, pixels, inv_std, gamma, (dgamma, dbeta), coefficients);
        dy.par_chunks_mut(len).zip(y.par_chunks(len)).enumerate().for_each(|(part, (dy, y))| {
            before_pool(part, dy);
            norm::gradient_part_in_place(y, dy, mean, coefficients);
        });
    });
}
