//! From the order of images to the order of the kernels.

use rayon::prelude::*;

/// Images `(n, c, h, w)` → `(n, h, w, c)`.
///
/// # Panics
/// When a slice has another length.
pub fn from_nchw(x: &[f32], n: usize, c: usize, h: usize, w: usize, out: &mut [f32]) {
    assert_eq!(x.len(), n * c * h * w, "images");
    assert_eq!(out.len(), x.len(), "output");
    out.par_chunks_mut(w * c).enumerate().for_each(|(row, out)| {
        let (image, y) = (row / h, row % h);
        for channel in 0..c {
            let line = &x[((image * c + channel) * h + y) * w..][..w];
            out[channel..].iter_mut().step_by(c).zip(line).for_each(|(o, v)| *o = *v);
        }
    });
}
