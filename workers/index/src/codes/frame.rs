//! The frame in which a shard's rows are quantised: moved by their mean, turned, both, or neither.
//!
//! d² does not change when query and rows move and turn together. A common part of all rows costs code levels and tells
//! nothing, and a row that has most of its length in few coordinates is rounded badly in all the others: the mean
//! takes away the first, a rotation the second. Which of the four frames is best is tried on a sample of the rows.
//!
//! The rotation is made of sign changes and Hadamard matrices over the first and the last 2ⁿ coordinates, exactly
//! orthogonal but for its f64 roundings, of which a number takes part in fewer than 100: their error is below
//! 10⁻¹³ of a vector's norm, which the slack of `codes::query` covers many times over.

/// Matrices, each after random signs: the first and the last coordinates in turn, each of them twice.
const MATRICES: usize = 4;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    dim: usize,
    /// What is taken away, (D), or nothing.
    centre: Option<Vec<f32>>,
    /// Signs before each matrix, (matrices × D), or no rotation.
    signs: Option<Vec<f64>>,
}

impl Frame {
    /// Moves by `centre`, if one is given, then turns, if so wished.
    pub fn new(dim: usize, centre: Option<Vec<f32>>, turned: bool) -> Self {
        let signs = turned.then(|| (0..MATRICES * dim).map(sign).collect());
        Self { dim, centre, signs }
    }

    /// `vector` (D) in the frame, into `out` (D).
    #[inline(always)]
    pub fn apply(&self, vector: &[f32], out: &mut [f64]) {
        match &self.centre {
            None => out.iter_mut().zip(vector).for_each(|(out, v)| *out = f64::from(*v)),
            Some(centre) => {
                for ((out, v), c) in out.iter_mut().zip(vector).zip(centre) {
                    *out = f64::from(*v) - f64::from(*c);
                }
            }
        }
        if let Some(signs) = &self.signs {
            let width = 1 << self.dim.ilog2();
            for (matrix, signs) in signs.chunks_exact(self.dim).enumerate() {
                out.iter_mut().zip(signs).for_each(|(v, sign)| *v *= sign);
                let first = if matrix.is_multiple_of(2) { 0 } else { self.dim - width };
                hadamard(&mut out[first..first + width]);
            }
        }
    }

    /// What is taken away, if anything, and whether it turns.
    pub fn parts(&self) -> (Option<&[f32]>, bool) {
        (self.centre.as_deref(), self.signs.is_some())
    }

    /// Bytes of memory, at most.
    pub fn most_bytes(dim: usize) -> usize {
        dim * 4 + MATRICES * dim * 8
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        self.centre.as_ref().map_or(0, |c| c.len() * 4) + self.signs.as_ref().map_or(0, |s| s.len() * 8)
    }
}

/// ±1, the same for ever: shards of one generation are quantised alike everywhere.
fn sign(i: usize) -> f64 {
    let mut hash = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    if (hash ^ hash >> 31) & 1 == 0 { 1.0 } else { -1.0 }
}

/// The normalised Walsh–Hadamard transform of 2ⁿ values, in place.
#[inline(always)]
fn hadamard(values: &mut [f64]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (values.len() as f64).sqrt();
    values.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_the_same_in_every_frame() {
        for dim in [1, 2, 3, 7, 64, 100, 300, 1023] {
            let vector =
                |seed: usize| -> Vec<f32> { (0..dim).map(|i| ((i * 37 + seed * 101) % 211) as f32 / 211.0).collect() };
            let (a, b, centre) = (vector(1), vector(2), vector(3));
            let plain: f64 = a.iter().zip(&b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            for centre in [None, Some(centre)] {
                for turned in [false, true] {
                    let frame = Frame::new(dim, centre.clone(), turned);
                    let (mut x, mut y) = (vec![0.0; dim], vec![0.0; dim]);
                    frame.apply(&a, &mut x);
                    frame.apply(&b, &mut y);
                    let d2: f64 = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum();
                    assert!((d2 - plain).abs() < 1e-12 * plain.max(1.0), "{dim}: {d2} {plain}");
                }
            }
        }
    }

    #[test]
    fn a_rotation_spreads_a_single_coordinate() {
        for dim in [64, 100, 300] {
            for at in [0, 1, dim / 2, dim - 1] {
                let mut one = vec![0f32; dim];
                one[at] = 1.0;
                let mut out = vec![0.0; dim];
                Frame::new(dim, None, true).apply(&one, &mut out);
                let largest = out.iter().fold(0f64, |a, v| a.max(v.abs()));
                assert!(largest < 6.0 / (dim as f64).sqrt(), "{dim} {at}: {largest}");
            }
        }
    }
}
