//! The three linear maps of Winograd's convolution for 3×3 kernels, on eight channels at once.
//!
//! `y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
//! (arXiv:1509.09308), sections 4.1 and 4.2. The gradient of `g` is the transpose of the same:
//! `dg = Gᵀ [(Bᵀ d B) ⊙ (A dy Aᵀ)] G`.

use std::arch::x86_64::*;

pub(in crate::nhwc) type V = __m256;

/// Longest side of a tile; a smaller one leaves the rest unused.
pub(in crate::nhwc) const MOST: usize = 6;

/// One choice of sizes. Arrays are of the largest sizes; values beyond a method's own are unspecified.
///
/// # Safety
/// Every method needs AVX2 and FMA.
pub(in crate::nhwc) trait Sizes: Copy + Send + Sync + 'static {
    /// Side of the outputs of a tile.
    const OUT: usize;
    /// Side of a tile: outputs and the kernel's overlap.
    const TILE: usize;
    /// `G`
    const G: [[f32; 3]; MOST];
    /// `Bᵀ d`
    unsafe fn input(d: [V; MOST]) -> [V; MOST];
    /// `Aᵀ m`
    unsafe fn output(m: [V; MOST]) -> [V; 4];
    /// `A y`
    unsafe fn output_transposed(y: [V; 4]) -> [V; MOST];
}

/// F(4×4, 3×3): 36 products for 16 outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct F4;

/// F(2×2, 3×3): 16 products for 4 outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct F2;

/// `a · b + c`
#[inline]
#[target_feature(enable = "avx2,fma")]
fn fma(a: f32, b: V, c: V) -> V {
    _mm256_fmadd_ps(_mm256_set1_ps(a), b, c)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add(a: V, b: V) -> V {
    _mm256_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn sub(a: V, b: V) -> V {
    _mm256_sub_ps(a, b)
}

impl Sizes for F4 {
    const OUT: usize = 4;
    const TILE: usize = 6;
    const G: [[f32; 3]; MOST] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn input(d: [V; MOST]) -> [V; MOST] {
        let (even, odd) = (fma(-4.0, d[2], d[4]), fma(-4.0, d[1], d[3]));
        let (even2, odd2) = (sub(d[4], d[2]), sub(d[3], d[1]));
        [
            fma(-5.0, d[2], fma(4.0, d[0], d[4])),
            add(even, odd),
            sub(even, odd),
            fma(2.0, odd2, even2),
            fma(-2.0, odd2, even2),
            fma(-5.0, d[3], fma(4.0, d[1], d[5])),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn output(m: [V; MOST]) -> [V; 4] {
        let (even, odd) = (add(m[1], m[2]), sub(m[1], m[2]));
        let (even2, odd2) = (add(m[3], m[4]), sub(m[3], m[4]));
        [add(m[0], add(even, even2)), fma(2.0, odd2, odd), fma(4.0, even2, even), add(m[5], fma(8.0, odd2, odd))]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn output_transposed(y: [V; 4]) -> [V; MOST] {
        let (even, odd) = (add(y[0], y[2]), add(y[1], y[3]));
        let (even2, odd2) = (fma(4.0, y[2], y[0]), fma(8.0, y[3], add(y[1], y[1])));
        [y[0], add(even, odd), sub(even, odd), add(even2, odd2), sub(even2, odd2), y[3]]
    }
}

impl Sizes for F2 {
    const OUT: usize = 2;
    const TILE: usize = 4;
    const G: [[f32; 3]; MOST] =
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0], [0.0; 3], [0.0; 3]];

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn input(d: [V; MOST]) -> [V; MOST] {
        [sub(d[0], d[2]), add(d[1], d[2]), sub(d[2], d[1]), sub(d[1], d[3]), d[0], d[0]]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn output(m: [V; MOST]) -> [V; 4] {
        [add(m[0], add(m[1], m[2])), sub(sub(m[1], m[2]), m[3]), m[0], m[0]]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn output_transposed(y: [V; 4]) -> [V; MOST] {
        [y[0], add(y[0], y[1]), sub(y[0], y[1]), sub(_mm256_setzero_ps(), y[1]), y[0], y[0]]
    }
}

/// Rows to columns.
#[inline(always)]
fn columns<const ROWS: usize, const COLUMNS: usize>(t: [[V; COLUMNS]; ROWS]) -> [[V; ROWS]; COLUMNS] {
    std::array::from_fn(|j| std::array::from_fn(|i| t[i][j]))
}

/// `Bᵀ d B` of one tile.
///
/// # Safety
/// As the methods of [`Sizes`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn input_tile<S: Sizes>(d: &[[V; MOST]; MOST], mut put: impl FnMut(usize, V)) {
    let mut t = [[_mm256_setzero_ps(); MOST]; MOST];
    // SAFETY: the caller's.
    unsafe {
        (0..S::TILE).for_each(|i| t[i] = S::input(d[i]));
        for (j, column) in columns(t).into_iter().enumerate().take(S::TILE) {
            let column = S::input(column);
            (0..S::TILE).for_each(|i| put(i * S::TILE + j, column[i]));
        }
    }
}

/// The outputs of one tile, `put(row, column, value)`.
///
/// # Safety
/// As the methods of [`Sizes`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn output_tile<S: Sizes>(get: impl Fn(usize) -> V, mut put: impl FnMut(usize, usize, V)) {
    let mut t = [[_mm256_setzero_ps(); 4]; MOST];
    // SAFETY: the caller's.
    unsafe {
        for (i, t) in t.iter_mut().enumerate().take(S::TILE) {
            *t = S::output(std::array::from_fn(|j| get(i * S::TILE + j.min(S::TILE - 1))));
        }
        for (j, column) in columns(t).into_iter().enumerate().take(S::OUT) {
            let column = S::output(column);
            (0..S::OUT).for_each(|i| put(i, j, column[i]));
        }
    }
}

/// `A y Aᵀ` of one tile.
///
/// # Safety
/// As the methods of [`Sizes`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn output_gradient_tile<S: Sizes>(y: &[[V; 4]; 4], mut put: impl FnMut(usize, V)) {
    let mut t = [[_mm256_setzero_ps(); MOST]; 4];
    // SAFETY: the caller's.
    unsafe {
        (0..S::OUT).for_each(|i| t[i] = S::output_transposed(y[i]));
        for (j, column) in columns(t).into_iter().enumerate().take(S::TILE) {
            let column = S::output_transposed(column);
            (0..S::TILE).for_each(|i| put(i * S::TILE + j, column[i]));
        }
    }
}

/// `G g Gᵀ` of eight kernels.
///
/// # Safety
/// As the methods of [`Sizes`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn kernel_tile<S: Sizes>(g: &[V; 9], mut put: impl FnMut(usize, V)) {
    let mut t = [[_mm256_setzero_ps(); 3]; MOST];
    for (t, row) in t.iter_mut().zip(&S::G).take(S::TILE) {
        *t = std::array::from_fn(|x| weighted(row, [g[x], g[3 + x], g[6 + x]]));
    }
    for (i, t) in t.iter().enumerate().take(S::TILE) {
        for (j, row) in S::G.iter().enumerate().take(S::TILE) {
            put(i * S::TILE + j, weighted(row, *t));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn weighted(row: &[f32; 3], v: [V; 3]) -> V {
    fma(row[2], v[2], fma(row[1], v[1], _mm256_mul_ps(_mm256_set1_ps(row[0]), v[0])))
}

/// `Gᵀ u G` of eight kernels: the nine taps.
///
/// # Safety
/// As the methods of [`Sizes`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn kernel_gradient_tile<S: Sizes>(get: impl Fn(usize) -> V) -> [V; 9] {
    let zero = _mm256_setzero_ps();
    let mut t = [[zero; 3]; MOST];
    for (i, t) in t.iter_mut().enumerate().take(S::TILE) {
        for (j, row) in S::G.iter().enumerate().take(S::TILE) {
            let u = get(i * S::TILE + j);
            (0..3).for_each(|x| t[x] = fma(row[x], u, t[x]));
        }
    }
    let mut g = [zero; 9];
    for (t, row) in t.iter().zip(&S::G).take(S::TILE) {
        (0..9).for_each(|tap| g[tap] = fma(row[tap / 3], t[tap % 3], g[tap]));
    }
    g
}
