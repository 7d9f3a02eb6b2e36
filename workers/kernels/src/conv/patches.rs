//! Images to patch matrices and back.

use super::Geometry;

/// Some output rows of one image, or all rows of several images.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub images: usize,
    pub first_row: usize,
    pub rows: usize,
    pub width: usize,
}

impl Tile {
    /// Columns of the patch matrix.
    pub fn pixels(&self) -> usize {
        self.images * self.rows * self.width
    }
}

/// One row of the patch matrix within one image: which input element each output pixel of the tile meets.
struct Tap {
    ky: usize,
    /// Output columns whose input column lies inside the image.
    inside: std::ops::Range<usize>,
    /// Input column of output column `inside.start`.
    first_x: usize,
}

impl Tap {
    fn new(g: &Geometry, ky: usize, kx: usize) -> Self {
        let first = g.padding.saturating_sub(kx).div_ceil(g.stride).min(g.out_width);
        let end = (g.width + g.padding).saturating_sub(kx).div_ceil(g.stride).clamp(first, g.out_width);
        let first_x = if first < end { first * g.stride + kx - g.padding } else { 0 };
        Self { ky, inside: first..end, first_x }
    }

    /// Input row of an output row, if inside the image.
    fn input_row(&self, g: &Geometry, row: usize) -> Option<usize> {
        (row * g.stride + self.ky).checked_sub(g.padding).filter(|&y| y < g.height)
    }
}

fn taps(g: &Geometry) -> Vec<Tap> {
    (0..g.kernel).flat_map(|ky| (0..g.kernel).map(move |kx| Tap::new(g, ky, kx))).collect()
}

/// Fills `out (K, pixels)`: row `(c, ky, kx)`, column `(image, row, column)`.
pub(super) fn patches(g: &Geometry, tile: &Tile, x: &[f32], out: &mut [f32]) {
    let taps = taps(g);
    let image_pixels = tile.rows * tile.width;
    for (k, out) in out.chunks_exact_mut(tile.pixels()).enumerate() {
        let (channel, tap) = (k / taps.len(), &taps[k % taps.len()]);
        for (image, out) in out.chunks_exact_mut(image_pixels).enumerate() {
            let plane = &x[image * g.in_len() + channel * g.in_pixels()..][..g.in_pixels()];
            for (i, out) in out.chunks_exact_mut(tile.width).enumerate() {
                match tap.input_row(g, tile.first_row + i) {
                    Some(y) => copy_row(g, tap, &plane[y * g.width..][..g.width], out),
                    None => out.fill(0.0),
                }
            }
        }
    }
}

#[inline(always)]
fn copy_row(g: &Geometry, tap: &Tap, input: &[f32], out: &mut [f32]) {
    let (start, end) = (tap.inside.start, tap.inside.end);
    out[..start].fill(0.0);
    out[end..].fill(0.0);
    let out = &mut out[start..end];
    if g.stride == 1 {
        out.copy_from_slice(&input[tap.first_x..][..out.len()]);
    } else {
        let input = input.get(tap.first_x..).unwrap_or_default();
        out.iter_mut().zip(input.iter().step_by(g.stride)).for_each(|(o, x)| *o = *x);
    }
}

/// Adds patch gradients `(K, pixels)` to the input's gradient: the transpose of [`patches`].
pub(super) fn add_patches(g: &Geometry, tile: &Tile, columns: &[f32], dx: &mut [f32]) {
    let taps = taps(g);
    let image_pixels = tile.rows * tile.width;
    for (k, columns) in columns.chunks_exact(tile.pixels()).enumerate() {
        let (channel, tap) = (k / taps.len(), &taps[k % taps.len()]);
        for (image, columns) in columns.chunks_exact(image_pixels).enumerate() {
            let plane = &mut dx[image * g.in_len() + channel * g.in_pixels()..][..g.in_pixels()];
            for (i, columns) in columns.chunks_exact(tile.width).enumerate() {
                if let Some(y) = tap.input_row(g, tile.first_row + i) {
                    add_row(g, tap, columns, &mut plane[y * g.width..][..g.width]);
                }
            }
        }
    }
}

#[inline(always)]
fn add_row(g: &Geometry, tap: &Tap, columns: &[f32], dx: &mut [f32]) {
    let columns = &columns[tap.inside.clone()];
    if g.stride == 1 {
        dx[tap.first_x..][..columns.len()].iter_mut().zip(columns).for_each(|(d, c)| *d += c);
    } else {
        let dx = dx.get_mut(tap.first_x..).unwrap_or_default();
        dx.iter_mut().step_by(g.stride).zip(columns).for_each(|(d, c)| *d += c);
    }
}

/// `(C, images · pixels)` → `(images, C, pixels)`.
pub(super) fn scatter(product: &[f32], count: usize, pixels: usize, images: &mut [f32]) {
    let channels = images.len() / (count * pixels);
    for (image, out) in images.chunks_exact_mut(channels * pixels).enumerate() {
        for (channel, out) in out.chunks_exact_mut(pixels).enumerate() {
            out.copy_from_slice(&product[(channel * count + image) * pixels..][..pixels]);
        }
    }
}

/// `(images, C, pixels)` → `(C, images · pixels)`.
pub(super) fn gather(images: &[f32], count: usize, pixels: usize, out: &mut [f32]) {
    let channels = images.len() / (count * pixels);
    for (image, values) in images.chunks_exact(channels * pixels).enumerate() {
        for (channel, values) in values.chunks_exact(pixels).enumerate() {
            out[(channel * count + image) * pixels..][..pixels].copy_from_slice(values);
        }
    }
}
