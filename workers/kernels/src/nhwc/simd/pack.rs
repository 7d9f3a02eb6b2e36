//! Weights `(C_out, C_in, k, k)` to panels of 16 columns: `(panel, depth, 16)`.
//!
//! Columns that do not exist are 0. Whole blocks of 8 × 8 are turned round in registers.

use std::arch::x86_64::*;

use super::microkernel::COLUMNS;
use super::parallel::{Shared, for_tasks};
use crate::nhwc::{Buffer, ConvShape};

/// One source of a panel: the value of `column` at step `q` is `weights[column · column_step + q · q_step]` and goes
/// to depth `to(q)`.
struct Block<'a> {
    weights: &'a [f32],
    columns: usize,
    column_step: usize,
    steps: usize,
    q_step: usize,
}

/// For the output: columns are output channels, depth is (tap, input channel); each column times its scale.
pub(super) fn forward(shape: &ConvShape, weight: &[f32], scale: Option<&[f32]>, panels: &mut Buffer) {
    let (c_in, taps, depth) = (shape.c_in, shape.kernel * shape.kernel, shape.depth());
    panels.set_len(shape.c_out.div_ceil(COLUMNS) * depth * COLUMNS);
    let shared = Shared::new(panels);
    for_tasks(shape.c_out.div_ceil(COLUMNS), |panel| {
        let first = panel * COLUMNS;
        let columns = COLUMNS.min(shape.c_out - first);
        let block = Block { weights: &weight[first * depth..], columns, column_step: depth, steps: depth, q_step: 1 };
        // SAFETY: features; the panel is this task's own and holds every depth.
        unsafe {
            let to = shared.at(panel * depth * COLUMNS);
            block.pack(to, |q| q % taps * c_in + q / taps);
            if let Some(scale) = scale {
                scale_columns(to, depth, &scale[first..][..columns]);
            }
        }
    });
}

/// For the gradient of the input: columns are input channels, depth is (tap of `taps`, output channel).
pub(super) fn input_gradient(shape: &ConvShape, weight: &[f32], taps: &[usize], panels: &mut Buffer) {
    let all = shape.kernel * shape.kernel;
    let depth = taps.len() * shape.c_out;
    panels.set_len(shape.c_in.div_ceil(COLUMNS) * depth * COLUMNS);
    let shared = Shared::new(panels);
    for_tasks(shape.c_in.div_ceil(COLUMNS), |panel| {
        let first = panel * COLUMNS;
        let columns = COLUMNS.min(shape.c_in - first);
        for (place, tap) in taps.iter().enumerate() {
            let weights = &weight[first * all + tap..];
            let q_step = shape.c_in * all;
            let block = Block { weights, columns, column_step: all, steps: shape.c_out, q_step };
            // SAFETY: features; the panel is this task's own and holds every depth.
            unsafe { block.pack(shared.at((panel * depth + place * shape.c_out) * COLUMNS), |q| q) };
        }
    });
}

impl Block<'_> {
    /// # Safety
    /// The processor has AVX2; `to` holds 16 columns of every depth that `depth_of` names.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn pack(&self, to: *mut f32, depth_of: impl Fn(usize) -> usize) {
        let mut q = 0;
        if self.columns == COLUMNS && self.q_step == 1 {
            while q + 8 <= self.steps {
                for half in [0, 8] {
                    // SAFETY: eight columns of eight steps each, all below the last.
                    unsafe {
                        let from = self.weights[half * self.column_step + q..].as_ptr();
                        let block = transpose(load_rows(from, self.column_step));
                        for (i, v) in block.into_iter().enumerate() {
                            _mm256_storeu_ps(to.add(depth_of(q + i) * COLUMNS + half), v);
                        }
                    }
                }
                q += 8;
            }
        }
        for q in q..self.steps {
            for column in 0..COLUMNS {
                let there = column < self.columns;
                let value = if there { self.weights[column * self.column_step + q * self.q_step] } else { 0.0 };
                // SAFETY: the caller vouches for the depth.
                unsafe { *to.add(depth_of(q) * COLUMNS + column) = value };
            }
        }
    }
}

/// # Safety
/// `to` holds `depth` rows of 16.
unsafe fn scale_columns(to: *mut f32, depth: usize, scale: &[f32]) {
    for at in 0..depth {
        for (column, scale) in scale.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { *to.add(at * COLUMNS + column) *= scale };
        }
    }
}

/// Eight rows of eight, `ld` apart.
///
/// # Safety
/// The processor has AVX2 and `from` holds them.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_rows(from: *const f32, ld: usize) -> [__m256; 8] {
    // SAFETY: the caller's.
    std::array::from_fn(|r| unsafe { _mm256_loadu_ps(from.add(r * ld)) })
}

/// Rows to columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose(r: [__m256; 8]) -> [__m256; 8] {
    let low = |a: usize, b: usize| _mm256_unpacklo_ps(r[a], r[b]);
    let high = |a: usize, b: usize| _mm256_unpackhi_ps(r[a], r[b]);
    let pairs = [low(0, 1), high(0, 1), low(2, 3), high(2, 3), low(4, 5), high(4, 5), low(6, 7), high(6, 7)];
    let first = |a: usize, b: usize| _mm256_shuffle_ps::<0x44>(pairs[a], pairs[b]);
    let second = |a: usize, b: usize| _mm256_shuffle_ps::<0xee>(pairs[a], pairs[b]);
    let fours =
        [first(0, 2), second(0, 2), first(1, 3), second(1, 3), first(4, 6), second(4, 6), first(5, 7), second(5, 7)];
    std::array::from_fn(|i| match i {
        0..4 => _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]),
        _ => _mm256_permute2f128_ps::<0x31>(fours[i - 4], fours[i]),
    })
}

/// The nine taps of eight kernels that lie `step` apart.
///
/// # Safety
/// The processor has AVX2 and `from` holds them.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn load_taps(from: *const f32, step: usize) -> [__m256; 9] {
    // SAFETY: the caller's.
    unsafe {
        let first = transpose(load_rows(from, step));
        let last: [f32; 8] = std::array::from_fn(|i| *from.add(i * step + 8));
        let last = _mm256_loadu_ps(last.as_ptr());
        std::array::from_fn(|tap| if tap < 8 { first[tap] } else { last })
    }
}

/// The reverse of [`load_taps`].
///
/// # Safety
/// The processor has AVX2 and `to` holds the kernels.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn store_taps(taps: [__m256; 9], to: *mut f32, step: usize) {
    let mut last = [0.0f32; 8];
    // SAFETY: the caller's.
    unsafe {
        let rows = transpose(std::array::from_fn(|tap| taps[tap]));
        _mm256_storeu_ps(last.as_mut_ptr(), taps[8]);
        for (i, (row, last)) in rows.into_iter().zip(last).enumerate() {
            _mm256_storeu_ps(to.add(i * step), row);
            *to.add(i * step + 8) = last;
        }
    }
}
