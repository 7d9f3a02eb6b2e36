//! Coefficients of a block to its samples, whole or as means of 2 × 2, 4 × 4 or 8 × 8 samples.
//!
//! Results are columns: `[x][y]`, which is what the resampling that follows reads.

use std::f32::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

/// Eight numbers that are computed side by side.
pub(super) type Lanes = [f32; 8];

/// Turns rows into columns; an instruction set may have a better one than [`transpose`].
pub(super) trait Transpose: Fn(&[Lanes; 8]) -> [Lanes; 8] {}
impl<T: Fn(&[Lanes; 8]) -> [Lanes; 8]> Transpose for T {}

// Plain loops below: closures over arrays are not compiled for the instructions of their caller.

/// Rows to columns, anywhere.
#[inline(always)]
pub(super) fn transpose(rows: &[Lanes; 8]) -> [Lanes; 8] {
    let mut columns = [[0.0; 8]; 8];
    for (y, row) in rows.iter().enumerate() {
        for x in 0..8 {
            columns[x][y] = row[x];
        }
    }
    columns
}

#[inline(always)]
fn add(mut a: Lanes, b: Lanes) -> Lanes {
    for i in 0..8 {
        a[i] += b[i];
    }
    a
}

#[inline(always)]
fn sub(mut a: Lanes, b: Lanes) -> Lanes {
    for i in 0..8 {
        a[i] -= b[i];
    }
    a
}

#[inline(always)]
fn times(mut a: Lanes, by: f32) -> Lanes {
    for value in &mut a {
        *value *= by;
    }
    a
}

/// What the coefficients are multiplied with before a transform: the file's quantisation and the transform's own factors.
#[derive(Debug, Clone)]
pub(super) struct Factors {
    said: [u8; 64],
    side: usize,
    rows: [Lanes; 8],
    /// For means: how much of coefficient `k` is in mean `n`, `[n][k]`.
    means: [Lanes; 4],
}

impl Factors {
    pub fn new() -> Self {
        Self { said: [0; 64], side: 0, rows: [[0.0; 8]; 8], means: [[0.0; 8]; 4] }
    }

    /// For blocks that become `side × side` samples, 8, 4, 2 or 1; `said` is row by row.
    pub fn set(&mut self, said: &[u8; 64], side: usize) {
        if (&self.said, self.side) == (said, side) {
            return;
        }
        (self.said, self.side) = (*said, side);
        // Arai, Agui and Nakajima's transform leaves these factors to the quantisation.
        let factor = |k: usize| if k == 0 || side < 8 { 1.0 } else { (k as f32 * PI / 16.0).cos() * SQRT_2 };
        let row = |y: usize| std::array::from_fn(|x| f32::from(said[8 * y + x]) * factor(x) * factor(y) / 8.0);
        self.rows = std::array::from_fn(row);
        self.means = std::array::from_fn(|n| std::array::from_fn(|k| if n < side { mean(n, k, side) } else { 0.0 }));
    }

    #[inline(always)]
    fn apply(&self, block: &[i16; 64]) -> [Lanes; 8] {
        let mut rows = self.rows;
        for (y, row) in rows.iter_mut().enumerate() {
            for x in 0..8 {
                row[x] *= f32::from(block[8 * y + x]);
            }
        }
        rows
    }

    /// The one value of a block that has its first coefficient alone.
    pub fn flat(&self, first: i16) -> u8 {
        sample(f32::from(first) * self.rows[0][0])
    }
}

/// Basis function `k` averaged over the `n`th part of the block's eight samples; √2 more than the orthonormal one twice makes
/// the 8 in [`Factors::set`].
fn mean(n: usize, k: usize, side: usize) -> f32 {
    let part = 8 / side;
    let wave = |x: usize| ((2 * x + 1) as f32 * k as f32 * PI / 16.0).cos();
    let scale = if k == 0 { FRAC_1_SQRT_2 } else { 1.0 };
    SQRT_2 * scale * (n * part..(n + 1) * part).map(wave).sum::<f32>() / part as f32
}

/// Samples lie around 0 in the file.
#[inline(always)]
fn sample(value: f32) -> u8 {
    byte(value + 128.0)
}

/// 1.5 · 2²³: a small number added to it leaves its nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// The nearest of 0–255.
#[inline(always)]
pub(super) fn byte(value: f32) -> u8 {
    let integer = (value + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
    integer.clamp(0, 255) as u8
}

/// A whole block, `[x][y]`.
#[inline(always)]
pub(super) fn whole(block: &[i16; 64], factors: &Factors, transpose: impl Transpose) -> [[u8; 8]; 8] {
    let values = pass(&transpose(&pass(&factors.apply(block))));
    let mut columns = [[0; 8]; 8];
    for (column, values) in columns.iter_mut().zip(&values) {
        for y in 0..8 {
            column[y] = sample(values[y]);
        }
    }
    columns
}

/// Means over a block's `SIDE × SIDE` parts, `[x][y]`.
#[inline(always)]
pub(super) fn means<const SIDE: usize>(
    block: &[i16; 64],
    factors: &Factors,
    transpose: impl Transpose,
) -> [[u8; SIDE]; SIDE] {
    let rows = averaged::<SIDE>(&factors.apply(block), factors);
    let values = averaged::<SIDE>(&transpose(&rows), factors);
    let mut columns = [[0; SIDE]; SIDE];
    for (column, values) in columns.iter_mut().zip(&values) {
        for y in 0..SIDE {
            column[y] = sample(values[y]);
        }
    }
    columns
}

/// The first `SIDE` are what was asked for.
#[inline(always)]
fn averaged<const SIDE: usize>(rows: &[Lanes; 8], factors: &Factors) -> [Lanes; 8] {
    let mut means = [[0.0; 8]; 8];
    for (mean, shares) in means.iter_mut().zip(&factors.means).take(SIDE) {
        for (row, share) in rows.iter().zip(shares) {
            *mean = add(*mean, times(*row, *share));
        }
    }
    means
}

/// Eight inverse transforms of length 8, side by side (Arai, Agui and Nakajima 1988).
#[inline(always)]
fn pass(x: &[Lanes; 8]) -> [Lanes; 8] {
    let (sum, difference) = (add(x[0], x[4]), sub(x[0], x[4]));
    let inner = add(x[2], x[6]);
    let outer = sub(times(sub(x[2], x[6]), SQRT_2), inner);
    let (e0, e1, e2, e3) = (add(sum, inner), add(difference, outer), sub(difference, outer), sub(sum, inner));

    let (z13, z10) = (add(x[5], x[3]), sub(x[5], x[3]));
    let (z11, z12) = (add(x[1], x[7]), sub(x[1], x[7]));
    let z5 = times(add(z10, z12), 1.847_759_1);
    let o0 = add(z11, z13);
    let o1 = sub(sub(z5, times(z10, 2.613_126)), o0);
    let o2 = sub(times(sub(z11, z13), SQRT_2), o1);
    let o3 = sub(sub(z5, times(z12, 1.082_392_2)), o2);
    [add(e0, o0), add(e1, o1), add(e2, o2), add(e3, o3), sub(e3, o3), sub(e2, o2), sub(e1, o1), sub(e0, o0)]
}
