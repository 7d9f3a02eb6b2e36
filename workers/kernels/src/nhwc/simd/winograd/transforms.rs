//! The three linear maps of Winograd's convolution for 3×3 kernels, on a vector of channels at once.
//!
//! `y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
//! (arXiv:1509.09308), sections 4.1 and 4.2. The gradient of `g` is the transpose of the same:
//! `dg = Gᵀ [(Bᵀ d B) ⊙ (A dy Aᵀ)] G`.
//!
//! Arrays of vectors are read by index: an iterator would have an address, and what has one goes through memory.
#![allow(clippy::needless_range_loop, reason = "see above")]

use crate::nhwc::simd::vector::Simd;

/// Longest side of a tile; a smaller one leaves the rest unused.
pub(in crate::nhwc) const MOST: usize = 6;

/// One choice of sizes. Arrays are of the largest sizes; values beyond a method's own are unspecified.
///
/// # Safety
/// Every method needs the instruction set.
pub(in crate::nhwc) trait Sizes: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// Side of the outputs of a tile.
    const OUT: usize;
    /// Side of a tile: outputs and the kernel's overlap.
    const TILE: usize = Self::OUT + 2;
    /// Side of a transformed tile.
    const SIDE: usize = Self::TILE;
    /// Number of a transformed tile's values, and so of products.
    const POSITIONS: usize = Self::SIDE * Self::SIDE;
    /// `Bᵀ d`
    unsafe fn input<I: Simd>(d: [I::V; MOST]) -> [I::V; MOST];
    /// `G g`
    unsafe fn kernel<I: Simd>(g: [I::V; 3]) -> [I::V; MOST];
    /// `Gᵀ u`
    unsafe fn kernel_transposed<I: Simd>(u: [I::V; MOST]) -> [I::V; 3];
    /// `Aᵀ m`
    unsafe fn output<I: Simd>(m: [I::V; MOST]) -> [I::V; 4];
    /// `A y`
    unsafe fn output_transposed<I: Simd>(y: [I::V; 4]) -> [I::V; MOST];
}

/// F(4×4, 3×3): 36 products for 16 outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct F4;

/// F(2×2, 3×3): 16 products for 4 outputs.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct F2;

/// A picture of at most 2×2 pixels with padding 1 as one tile: 9 products for 4 outputs. All but the innermost values
/// of the tile are padding, so that in one dimension `y₀ = w₁ x₀ + w₂ x₁` and `y₁ = w₀ x₀ + w₁ x₁`: three products.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct Two;

/// `a · b + c`
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn fma<I: Simd>(a: f32, b: I::V, c: I::V) -> I::V {
    // SAFETY: the caller's.
    unsafe { I::fma(I::splat(a), b, c) }
}

/// `a · b`
///
/// # Safety
/// The processor has `I`.
#[inline(always)]
unsafe fn mul<I: Simd>(a: f32, b: I::V) -> I::V {
    // SAFETY: the caller's.
    unsafe { I::mul(I::splat(a), b) }
}

impl Sizes for F4 {
    const OUT: usize = 4;

    #[inline(always)]
    unsafe fn input<I: Simd>(d: [I::V; MOST]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (fma::<I>(-4.0, d[2], d[4]), fma::<I>(-4.0, d[1], d[3]));
            let (even2, odd2) = (I::sub(d[4], d[2]), I::sub(d[3], d[1]));
            [
                fma::<I>(-5.0, d[2], fma::<I>(4.0, d[0], d[4])),
                I::add(even, odd),
                I::sub(even, odd),
                fma::<I>(2.0, odd2, even2),
                fma::<I>(-2.0, odd2, even2),
                fma::<I>(-5.0, d[3], fma::<I>(4.0, d[1], d[5])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn kernel<I: Simd>(g: [I::V; 3]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (mul::<I>(-1.0 / 6.0, I::add(g[0], g[2])), mul::<I>(-1.0 / 6.0, g[1]));
            let even2 = fma::<I>(1.0 / 24.0, g[0], mul::<I>(1.0 / 6.0, g[2]));
            let odd2 = mul::<I>(1.0 / 12.0, g[1]);
            [
                mul::<I>(1.0 / 4.0, g[0]),
                I::add(even, odd),
                I::sub(even, odd),
                I::add(even2, odd2),
                I::sub(even2, odd2),
                g[2],
            ]
        }
    }

    #[inline(always)]
    unsafe fn kernel_transposed<I: Simd>(u: [I::V; MOST]) -> [I::V; 3] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (I::add(u[1], u[2]), I::sub(u[1], u[2]));
            let (even2, odd2) = (I::add(u[3], u[4]), I::sub(u[3], u[4]));
            let sixth = mul::<I>(-1.0 / 6.0, even);
            [
                fma::<I>(1.0 / 4.0, u[0], fma::<I>(1.0 / 24.0, even2, sixth)),
                fma::<I>(1.0 / 12.0, odd2, mul::<I>(-1.0 / 6.0, odd)),
                I::add(u[5], fma::<I>(1.0 / 6.0, even2, sixth)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<I: Simd>(m: [I::V; MOST]) -> [I::V; 4] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (I::add(m[1], m[2]), I::sub(m[1], m[2]));
            let (even2, odd2) = (I::add(m[3], m[4]), I::sub(m[3], m[4]));
            [
                I::add(m[0], I::add(even, even2)),
                fma::<I>(2.0, odd2, odd),
                fma::<I>(4.0, even2, even),
                I::add(m[5], fma::<I>(8.0, odd2, odd)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output_transposed<I: Simd>(y: [I::V; 4]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (I::add(y[0], y[2]), I::add(y[1], y[3]));
            let (even2, odd2) = (fma::<I>(4.0, y[2], y[0]), fma::<I>(8.0, y[3], I::add(y[1], y[1])));
            [y[0], I::add(even, odd), I::sub(even, odd), I::add(even2, odd2), I::sub(even2, odd2), y[3]]
        }
    }
}

impl Sizes for F2 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn input<I: Simd>(d: [I::V; MOST]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe { [I::sub(d[0], d[2]), I::add(d[1], d[2]), I::sub(d[2], d[1]), I::sub(d[1], d[3]), d[0], d[0]] }
    }

    #[inline(always)]
    unsafe fn kernel<I: Simd>(g: [I::V; 3]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (mul::<I>(0.5, I::add(g[0], g[2])), mul::<I>(0.5, g[1]));
            [g[0], I::add(even, odd), I::sub(even, odd), g[2], g[0], g[0]]
        }
    }

    #[inline(always)]
    unsafe fn kernel_transposed<I: Simd>(u: [I::V; MOST]) -> [I::V; 3] {
        // SAFETY: the caller's.
        unsafe {
            let (even, odd) = (mul::<I>(0.5, I::add(u[1], u[2])), mul::<I>(0.5, I::sub(u[1], u[2])));
            [I::add(u[0], even), odd, I::add(u[3], even)]
        }
    }

    #[inline(always)]
    unsafe fn output<I: Simd>(m: [I::V; MOST]) -> [I::V; 4] {
        // SAFETY: the caller's.
        unsafe { [I::add(m[0], I::add(m[1], m[2])), I::sub(I::sub(m[1], m[2]), m[3]), m[0], m[0]] }
    }

    #[inline(always)]
    unsafe fn output_transposed<I: Simd>(y: [I::V; 4]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe { [y[0], I::add(y[0], y[1]), I::sub(y[0], y[1]), I::sub(I::zero(), y[1]), y[0], y[0]] }
    }
}

impl Sizes for Two {
    const OUT: usize = 2;
    const SIDE: usize = 3;

    #[inline(always)]
    unsafe fn input<I: Simd>(d: [I::V; MOST]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe { [I::add(d[1], d[2]), d[2], d[1], d[0], d[0], d[0]] }
    }

    #[inline(always)]
    unsafe fn kernel<I: Simd>(g: [I::V; 3]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe { [g[1], I::sub(g[2], g[1]), I::sub(g[0], g[1]), g[0], g[0], g[0]] }
    }

    #[inline(always)]
    unsafe fn kernel_transposed<I: Simd>(u: [I::V; MOST]) -> [I::V; 3] {
        // SAFETY: the caller's.
        unsafe { [u[2], I::sub(u[0], I::add(u[1], u[2])), u[1]] }
    }

    #[inline(always)]
    unsafe fn output<I: Simd>(m: [I::V; MOST]) -> [I::V; 4] {
        // SAFETY: the caller's.
        unsafe { [I::add(m[0], m[1]), I::add(m[0], m[2]), m[0], m[0]] }
    }

    #[inline(always)]
    unsafe fn output_transposed<I: Simd>(y: [I::V; 4]) -> [I::V; MOST] {
        // SAFETY: the caller's.
        unsafe { [I::add(y[0], y[1]), y[0], y[1], y[0], y[0], y[0]] }
    }
}

/// `Bᵀ d B` of one tile.
///
/// # Safety
/// As the methods of [`Sizes`]; `to` holds a vector of every position, `step` apart.
#[inline(always)]
pub(super) unsafe fn input_tile<I: Simd, S: Sizes>(d: &[[I::V; MOST]; MOST], (to, step): (*mut f32, usize)) {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [[I::zero(); MOST]; MOST];
        for j in 0..S::TILE {
            let mut column = [I::zero(); MOST];
            for i in 0..S::TILE {
                column[i] = d[i][j];
            }
            let column = S::input::<I>(column);
            for i in 0..S::SIDE {
                t[i][j] = column[i];
            }
        }
        for i in 0..S::SIDE {
            let row = S::input::<I>(t[i]);
            for j in 0..S::SIDE {
                I::store(to.add((i * S::SIDE + j) * step), row[j]);
            }
        }
    }
}

/// The outputs of one tile.
///
/// # Safety
/// As the methods of [`Sizes`]; `from` holds a vector of every position, `step` apart.
#[inline(always)]
pub(super) unsafe fn output_tile<I: Simd, S: Sizes>((from, step): (*const f32, usize)) -> [[I::V; 4]; 4] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [[I::zero(); MOST]; 4];
        for j in 0..S::SIDE {
            let mut column = [I::zero(); MOST];
            for i in 0..S::SIDE {
                column[i] = I::load(from.add((i * S::SIDE + j) * step));
            }
            let column = S::output::<I>(column);
            for i in 0..S::OUT {
                t[i][j] = column[i];
            }
        }
        let mut y = [[I::zero(); 4]; 4];
        for i in 0..S::OUT {
            y[i] = S::output::<I>(t[i]);
        }
        y
    }
}

/// `A y Aᵀ` of one tile.
///
/// # Safety
/// As the methods of [`Sizes`]; `to` holds a vector of every position, `step` apart.
#[inline(always)]
pub(super) unsafe fn output_gradient_tile<I: Simd, S: Sizes>(y: &[[I::V; 4]; 4], (to, step): (*mut f32, usize)) {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [[I::zero(); 4]; MOST];
        for j in 0..S::OUT {
            let mut column = [I::zero(); 4];
            for i in 0..S::OUT {
                column[i] = y[i][j];
            }
            let column = S::output_transposed::<I>(column);
            for i in 0..S::SIDE {
                t[i][j] = column[i];
            }
        }
        for i in 0..S::SIDE {
            let row = S::output_transposed::<I>(t[i]);
            for j in 0..S::SIDE {
                I::store(to.add((i * S::SIDE + j) * step), row[j]);
            }
        }
    }
}

/// `G g Gᵀ` of a vector of kernels.
///
/// # Safety
/// As the methods of [`Sizes`]; `to` holds a vector of every position, `step` apart.
#[inline(always)]
pub(super) unsafe fn kernel_tile<I: Simd, S: Sizes>(g: &[I::V; 9], (to, step): (*mut f32, usize)) {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [[I::zero(); 3]; MOST];
        for x in 0..3 {
            let column = S::kernel::<I>([g[x], g[3 + x], g[6 + x]]);
            for i in 0..S::SIDE {
                t[i][x] = column[i];
            }
        }
        for i in 0..S::SIDE {
            let row = S::kernel::<I>(t[i]);
            for j in 0..S::SIDE {
                I::store(to.add((i * S::SIDE + j) * step), row[j]);
            }
        }
    }
}

/// `Gᵀ u G` of a vector of kernels: the nine taps.
///
/// # Safety
/// As the methods of [`Sizes`]; `from` holds a vector of every position, `step` apart.
#[inline(always)]
pub(super) unsafe fn kernel_gradient_tile<I: Simd, S: Sizes>((from, step): (*const f32, usize)) -> [I::V; 9] {
    // SAFETY: the caller's.
    unsafe {
        let mut t = [[I::zero(); MOST]; 3];
        for j in 0..S::SIDE {
            let mut column = [I::zero(); MOST];
            for i in 0..S::SIDE {
                column[i] = I::load(from.add((i * S::SIDE + j) * step));
            }
            let column = S::kernel_transposed::<I>(column);
            for x in 0..3 {
                t[x][j] = column[x];
            }
        }
        let mut g = [I::zero(); 9];
        for y in 0..3 {
            let row = S::kernel_transposed::<I>(t[y]);
            for x in 0..3 {
                g[y * 3 + x] = row[x];
            }
        }
        g
    }
}
