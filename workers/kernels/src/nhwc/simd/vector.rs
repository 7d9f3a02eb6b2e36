//! Vectors of an instruction set, for kernels that are written once.
//!
//! A kernel is a chain of `#[inline(always)]` functions that end in the methods here, and it starts in a closure that
//! is given to [`Simd::run`]: there, and only there, the compiler may use the instructions. Everything of a kernel has
//! to be inlined into that closure, so what it calls on the way has no closures of its own that stay calls.

use std::arch::x86_64::*;

use super::pack;

/// Values that a kernel works on at once.
///
/// # Safety
/// Every method needs the instruction set; pointers cover the lanes that are read or written.
pub(in crate::nhwc) trait Simd: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// [`Self::LANES`] values.
    type V: Copy;
    /// Values of a vector: 8 or 16.
    const LANES: usize;
    /// Rows of a tile of the innermost product.
    const ROWS: usize;
    /// Columns of such a tile.
    const WIDTH: usize = 2 * Self::LANES;
    /// Most steps of the depth at once: 18 KiB of `B` beside 7 KiB of `A` in a first cache of 32 KiB.
    const DEPTH: usize = 288 * 16 / Self::WIDTH;

    /// Calls `f`, compiled for the instruction set.
    unsafe fn run<R>(f: impl FnOnce() -> R) -> R;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    /// The first `lanes` of a vector; the others are 0.
    unsafe fn load_first(from: *const f32, lanes: usize) -> Self::V;
    unsafe fn store_first(to: *mut f32, lanes: usize, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger one; `b` where one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The nine taps of a vector of 3×3 kernels that lie `step` apart.
    unsafe fn load_taps(from: *const f32, step: usize) -> [Self::V; 9];
    /// The reverse of [`Self::load_taps`].
    unsafe fn store_taps(taps: [Self::V; 9], to: *mut f32, step: usize);
}

/// AVX2 and FMA. Twelve vectors of sums, two of `B` and one of `A` fill fifteen of the sixteen registers; every step
/// along the depth is twelve multiply-adds to eight loads, what two multiply-adds per cycle leave time for.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct Avx2;

/// AVX-512. Of 32 registers 24 hold sums; a step along the depth is 24 multiply-adds to 14 loads.
#[derive(Clone, Copy, Debug)]
pub(in crate::nhwc) struct Avx512;

/// The methods that differ between instruction sets by their names only.
macro_rules! methods {
    ($features:literal, $vector:ty, $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
     $mul:ident, $fma:ident, $max:ident) => {
        type V = $vector;

        #[target_feature(enable = $features)]
        unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }

        #[inline(always)]
        unsafe fn zero() -> $vector {
            // SAFETY: the caller's.
            unsafe { $zero() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> $vector {
            // SAFETY: the caller's.
            unsafe { $splat(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> $vector {
            // SAFETY: the caller's.
            unsafe { $load(from) }
        }

        #[inline(always)]
        unsafe fn store(to: *mut f32, v: $vector) {
            // SAFETY: the caller's.
            unsafe { $store(to, v) }
        }

        #[inline(always)]
        unsafe fn add(a: $vector, b: $vector) -> $vector {
            // SAFETY: the caller's.
            unsafe { $add(a, b) }
        }

        #[inline(always)]
        unsafe fn sub(a: $vector, b: $vector) -> $vector {
            // SAFETY: the caller's.
            unsafe { $sub(a, b) }
        }

        #[inline(always)]
        unsafe fn mul(a: $vector, b: $vector) -> $vector {
            // SAFETY: the caller's.
            unsafe { $mul(a, b) }
        }

        #[inline(always)]
        unsafe fn fma(a: $vector, b: $vector, c: $vector) -> $vector {
            // SAFETY: the caller's.
            unsafe { $fma(a, b, c) }
        }

        #[inline(always)]
        unsafe fn max(a: $vector, b: $vector) -> $vector {
            // SAFETY: the caller's.
            unsafe { $max(a, b) }
        }
    };
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;

    methods!(
        "avx2,fma",
        __m256,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_mul_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps
    );

    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> __m256 {
        // SAFETY: the caller's.
        unsafe { _mm256_maskload_ps(from, first_of_eight(lanes)) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, lanes: usize, v: __m256) {
        // SAFETY: the caller's.
        unsafe { _mm256_maskstore_ps(to, first_of_eight(lanes), v) }
    }

    #[inline(always)]
    unsafe fn load_taps(from: *const f32, step: usize) -> [__m256; 9] {
        // SAFETY: the caller's.
        unsafe { pack::load_taps(from, step) }
    }

    #[inline(always)]
    unsafe fn store_taps(taps: [__m256; 9], to: *mut f32, step: usize) {
        // SAFETY: the caller's.
        unsafe { pack::store_taps(taps, to, step) }
    }
}

/// All bits of the first `lanes ≤ 8` lanes.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn first_of_eight(lanes: usize) -> __m256i {
    const MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: the slice holds eight values, or this panics.
    unsafe { _mm256_loadu_si256(MASK[8 - lanes..][..8].as_ptr().cast()) }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 12;

    methods!(
        "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma",
        __m512,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_mul_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps
    );

    #[inline(always)]
    unsafe fn load_first(from: *const f32, lanes: usize) -> __m512 {
        // SAFETY: the caller's.
        unsafe { _mm512_maskz_loadu_ps(first_of_sixteen(lanes), from) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, lanes: usize, v: __m512) {
        // SAFETY: the caller's.
        unsafe { _mm512_mask_storeu_ps(to, first_of_sixteen(lanes), v) }
    }

    #[inline(always)]
    unsafe fn load_taps(from: *const f32, step: usize) -> [__m512; 9] {
        // SAFETY: the caller's.
        unsafe {
            let (low, high) = (pack::load_taps(from, step), pack::load_taps(from.add(8 * step), step));
            let mut taps = [_mm512_setzero_ps(); 9];
            for (tap, v) in taps.iter_mut().enumerate() {
                *v = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low[tap]), high[tap]);
            }
            taps
        }
    }

    #[inline(always)]
    unsafe fn store_taps(taps: [__m512; 9], to: *mut f32, step: usize) {
        // SAFETY: the caller's.
        unsafe {
            let (mut low, mut high) = ([_mm256_setzero_ps(); 9], [_mm256_setzero_ps(); 9]);
            for (tap, v) in taps.into_iter().enumerate() {
                (low[tap], high[tap]) = (_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            }
            pack::store_taps(low, to, step);
            pack::store_taps(high, to.add(8 * step), step);
        }
    }
}

/// The first `lanes ≤ 16` lanes.
#[inline(always)]
fn first_of_sixteen(lanes: usize) -> __mmask16 {
    ((1u32 << lanes) - 1) as __mmask16
}
