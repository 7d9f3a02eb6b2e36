//! Max pool 3×3 with stride 2 and padding 1, and the mean over all pixels.

use rayon::prelude::*;

use super::Dims;
use super::isa::vectorised;

/// Sizes after the max pool.
pub(super) fn pooled(x: Dims) -> Dims {
    Dims { h: x.h.div_ceil(2), w: x.w.div_ceil(2), ..x }
}

/// The input position that window `position` reads through `tap`, unless it is padding.
#[inline(always)]
fn source(position: usize, tap: usize, side: usize) -> Option<usize> {
    (2 * position + tap).checked_sub(1).filter(|&at| at < side)
}

/// Largest value of every 3×3 window; `index` takes which of the nine it was, for the gradient.
///
/// The first of equal values wins, a NaN wins over numbers.
///
/// # Panics
/// When a slice has another length.
pub fn max_pool_3x3_s2(x: &[f32], dims: Dims, y: &mut [f32], index: Option<&mut [u8]>) {
    let out = pooled(dims);
    assert_eq!(x.len(), dims.len(), "input");
    assert_eq!(y.len(), out.len(), "output");
    let line = out.w * out.c;
    let image = |row: usize| &x[row / out.h * dims.h * dims.w * dims.c..][..dims.h * dims.w * dims.c];
    match index {
        Some(index) => {
            assert_eq!(index.len(), out.len(), "index");
            let lines = y.par_chunks_mut(line).zip(index.par_chunks_mut(line)).enumerate();
            lines.for_each(|(row, (y, index))| max_with_index(image(row), dims, row % out.h, y, index));
        }
        None => {
            let lines = y.par_chunks_mut(line).enumerate();
            lines.for_each(|(row, y)| max_of_line(image(row), dims, row % out.h, y));
        }
    }
}

/// `(tap, offset of its pixel)` of the window at `(oy, ox)` in an image.
#[inline(always)]
fn taps_of(dims: Dims, oy: usize, ox: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..9).filter_map(move |tap| {
        let (iy, ix) = (source(oy, tap / 3, dims.h)?, source(ox, tap % 3, dims.w)?);
        Some((tap, (iy * dims.w + ix) * dims.c))
    })
}

/// Whether `v` takes the place of the largest so far.
#[inline(always)]
fn wins(v: f32, best: f32) -> bool {
    v > best || (v.is_nan() & !best.is_nan())
}

vectorised! {
    fn max_of_line(image: &[f32], dims: Dims, oy: usize, y: &mut [f32]) {
        for (ox, best) in y.chunks_exact_mut(dims.c).enumerate() {
            best.fill(f32::NEG_INFINITY);
            for (_, at) in taps_of(dims, oy, ox) {
                let x = &image[at..][..dims.c];
                best.iter_mut().zip(x).for_each(|(best, v)| *best = if wins(*v, *best) { *v } else { *best });
            }
        }
    }
}

vectorised! {
    pub(super) fn max_with_index(image: &[f32], dims: Dims, oy: usize, y: &mut [f32], index: &mut [u8]) {
        let pixels = y.chunks_exact_mut(dims.c).zip(index.chunks_exact_mut(dims.c));
        for (ox, (best, index)) in pixels.enumerate() {
            let mut taps = taps_of(dims, oy, ox);
            let (first, at) = taps.next().expect("every window has its centre");
            best.copy_from_slice(&image[at..][..dims.c]);
            index.fill(first as u8);
            for (tap, at) in taps {
                let x = &image[at..][..dims.c];
                for ((best, index), v) in best.iter_mut().zip(index.iter_mut()).zip(x) {
                    let take = wins(*v, *best);
                    *best = if take { *v } else { *best };
                    *index = if take { tap as u8 } else { *index };
                }
            }
        }
    }
}

/// Gradient of the max pool for an input of sizes `dims`.
///
/// # Panics
/// When a slice has another length.
pub fn max_pool_backward(dy: &[f32], index: &[u8], dims: Dims, dx: &mut [f32]) {
    let out = pooled(dims);
    assert_eq!(dy.len(), out.len(), "gradient of the output");
    assert_eq!(index.len(), out.len(), "index");
    assert_eq!(dx.len(), dims.len(), "gradient of the input");
    let len = out.h * out.w * out.c;
    dx.par_chunks_mut(dims.w * dims.c).enumerate().for_each(|(row, dx)| {
        let image = row / dims.h * len..(row / dims.h + 1) * len;
        max_backward_line(&dy[image.clone()], &index[image], dims, row % dims.h, dx);
    });
}

/// `(window, tap)` pairs that read `position`: one where it is even, two where it is odd.
#[inline(always)]
fn windows_of(position: usize, side: usize) -> impl Iterator<Item = (usize, usize)> {
    (position / 2..=position.div_ceil(2)).filter(move |&at| at < side).map(move |at| (at, position + 1 - 2 * at))
}

vectorised! {
    pub(super) fn max_backward_line(dy: &[f32], index: &[u8], dims: Dims, iy: usize, dx: &mut [f32]) {
        let out = pooled(dims);
        dx.fill(0.0);
        for (ix, dx) in dx.chunks_exact_mut(dims.c).enumerate() {
            for (oy, ky) in windows_of(iy, out.h) {
                for (ox, kx) in windows_of(ix, out.w) {
                    let at = (oy * out.w + ox) * out.c;
                    let taps = dy[at..][..out.c].iter().zip(&index[at..][..out.c]);
                    let tap = (ky * 3 + kx) as u8;
                    dx.iter_mut().zip(taps).for_each(|(dx, (dy, at))| *dx += if *at == tap { *dy } else { 0.0 });
                }
            }
        }
    }
}

/// Mean over the pixels of every image: `y (n, c)`.
///
/// # Panics
/// When a slice has another length or the images are empty.
pub fn average_pool(x: &[f32], dims: Dims, y: &mut [f32]) {
    let pixels = dims.h * dims.w;
    assert!(pixels > 0, "mean of no pixels");
    assert_eq!(x.len(), dims.len(), "input");
    assert_eq!(y.len(), dims.n * dims.c, "output");
    y.par_chunks_mut(dims.c).zip(x.par_chunks(pixels * dims.c)).for_each(|(y, x)| mean_of_image(x, y));
}

vectorised! {
    fn mean_of_image(x: &[f32], y: &mut [f32]) {
        let factor = (y.len() as f32) / (x.len() as f32);
        y.fill(0.0);
        for pixel in x.chunks_exact(y.len()) {
            y.iter_mut().zip(pixel).for_each(|(y, v)| *y += v);
        }
        y.iter_mut().for_each(|y| *y *= factor);
    }
}

/// Gradient of the mean for an input of sizes `dims`.
///
/// # Panics
/// When a slice has another length.
pub fn average_pool_backward(dy: &[f32], dims: Dims, dx: &mut [f32]) {
    let pixels = dims.h * dims.w;
    assert_eq!(dy.len(), dims.n * dims.c, "gradient of the output");
    assert_eq!(dx.len(), dims.len(), "gradient of the input");
    let factor = 1.0 / pixels as f32;
    dx.par_chunks_mut(pixels * dims.c).zip(dy.par_chunks(dims.c)).for_each(|(dx, dy)| {
        for pixel in dx.chunks_exact_mut(dims.c) {
            pixel.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy * factor);
        }
    });
}
