//! The innermost product: a tile of 6 rows and 16 columns in registers.
//!
//! Twelve vectors of sums, two of `B` and one of `A` fill fifteen of the sixteen registers; every step along the depth
//! is twelve multiply-adds to eight loads, what two multiply-adds per cycle leave time for.

use std::arch::x86_64::*;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;
/// Columns of a tile: two vectors.
pub(super) const COLUMNS: usize = 16;
const LANES: usize = 8;

type Tile<const M: usize> = [[__m256; 2]; M];

/// Two factors. `B` lies with its steps along the depth `ldb` apart. `A` lies with its rows `lda` apart, or, where it is
/// "deep" (a constant of the functions that take it), with its steps along the depth `lda` apart and its rows side by
/// side. Where it is not, `ldb` is 16.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) lda: usize,
    pub(super) b: *const f32,
    pub(super) ldb: usize,
}

/// Where a tile goes: rows `ld` apart, instead of what is there or on top of it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) c: *mut f32,
    pub(super) ld: usize,
    pub(super) add: bool,
}

/// What is done to a finished tile. Pointers are to the tile's first row and column.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish {
    /// Added to every row.
    pub(super) bias: Option<*const f32>,
    /// Added value by value, rows as far apart as the tile's own.
    pub(super) residual: Option<*const f32>,
    /// Negative values become 0.
    pub(super) relu: bool,
    /// Take `Σ` and `Σ` of squares on top of what they hold.
    pub(super) sums: Option<(*mut f32, *mut f32)>,
}

/// `rows` rows by `columns ≤ 16` columns, however many tiles that is.
///
/// # Safety
/// The processor has AVX2 and FMA. All pointers cover what the sizes say; `b` holds 16 columns even where fewer are
/// wanted. Nobody else writes `c` or `sums` meanwhile.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn panel<const DEEP: bool>(
    rows: usize,
    columns: usize,
    factors: Factors,
    place: Place,
    finish: Option<Finish>,
) {
    let mut row = 0;
    while row < rows {
        let m = ROWS.min(rows - row);
        let shift = row * place.ld;
        // SAFETY: `row` is below `rows`, so all stays inside what the caller vouches for.
        unsafe {
            let a = factors.a.add(if DEEP { row } else { row * factors.lda });
            let factors = Factors { a, ..factors };
            let place = Place { c: place.c.add(shift), ..place };
            let finish = finish.map(|f| Finish { residual: f.residual.map(|r| r.add(shift)), ..f });
            if columns == COLUMNS {
                whole::<DEEP>(m, factors, place, finish.as_ref());
            } else {
                partial::<DEEP>(m, columns, factors, place, finish.as_ref());
            }
        }
        row += m;
    }
}

/// One tile of `m ≤ 6` rows.
///
/// # Safety
/// As [`panel`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn whole<const DEEP: bool>(m: usize, factors: Factors, place: Place, finish: Option<&Finish>) {
    // SAFETY: the caller's.
    unsafe {
        match m {
            6 => tile::<6, DEEP>(factors, place, finish),
            5 => tile::<5, DEEP>(factors, place, finish),
            4 => tile::<4, DEEP>(factors, place, finish),
            3 => tile::<3, DEEP>(factors, place, finish),
            2 => tile::<2, DEEP>(factors, place, finish),
            _ => tile::<1, DEEP>(factors, place, finish),
        }
    }
}

/// A tile of fewer than 16 columns, by way of a whole one beside it.
///
/// # Safety
/// As [`panel`].
#[target_feature(enable = "avx2,fma")]
unsafe fn partial<const DEEP: bool>(m: usize, columns: usize, factors: Factors, place: Place, finish: Option<&Finish>) {
    let mut block = [0.0f32; ROWS * COLUMNS];
    // SAFETY: the block is a whole tile; everything else is read and written by `columns` values a row.
    unsafe {
        whole::<DEEP>(m, factors, Place { c: block.as_mut_ptr(), ld: COLUMNS, add: false }, None);
        for (row, values) in block.chunks_exact(COLUMNS).take(m).enumerate() {
            for (column, value) in values.iter().take(columns).enumerate() {
                let c = place.c.add(row * place.ld + column);
                let value = if place.add { *value + *c } else { *value };
                *c = finish.map_or(value, |f| finish_value(f, value, row * place.ld + column, column));
            }
        }
    }
}

/// [`finish_tile`] for one value.
///
/// # Safety
/// As [`panel`].
unsafe fn finish_value(finish: &Finish, value: f32, at: usize, column: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let value = value + finish.bias.map_or(0.0, |bias| *bias.add(column));
        let value = value + finish.residual.map_or(0.0, |residual| *residual.add(at));
        let value = if finish.relu && value < 0.0 { 0.0 } else { value };
        if let Some((sum, square)) = finish.sums {
            *sum.add(column) += value;
            *square.add(column) += value * value;
        }
        value
    }
}

/// # Safety
/// As [`panel`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const DEEP: bool>(factors: Factors, place: Place, finish: Option<&Finish>) {
    // SAFETY: the caller's.
    unsafe {
        (0..M).for_each(|r| _mm_prefetch::<_MM_HINT_T0>(place.c.add(r * place.ld).cast()));
        let mut t = product::<M, DEEP>(factors);
        if place.add {
            t = add_rows(t, place.c, place.ld);
        }
        // No deep product has anything to finish: one caller per size, so that this is inlined.
        if let (Some(finish), false) = (finish, DEEP) {
            t = finish_tile(t, place.ld, finish);
        }
        for (r, t) in t.iter().enumerate() {
            let c = place.c.add(r * place.ld);
            _mm256_storeu_ps(c, t[0]);
            _mm256_storeu_ps(c.add(LANES), t[1]);
        }
    }
}

/// The loop that everything is for. Its sums have no address, so that they stay in registers.
///
/// # Safety
/// As [`panel`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const M: usize, const DEEP: bool>(factors: Factors) -> Tile<M> {
    let Factors { depth, a, lda, b, ldb } = factors;
    let ldb = if DEEP { ldb } else { COLUMNS };
    let mut t: Tile<M> = [[_mm256_setzero_ps(); 2]; M];
    for p in 0..depth {
        // SAFETY: `b` holds 16 columns of `depth` steps, `a` holds `M` rows of `depth`.
        unsafe {
            let b = b.add(p * ldb);
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES)));
            for (r, t) in t.iter_mut().enumerate() {
                let v = _mm256_broadcast_ss(&*if DEEP { a.add(p * lda + r) } else { a.add(r * lda + p) });
                t[0] = _mm256_fmadd_ps(v, b0, t[0]);
                t[1] = _mm256_fmadd_ps(v, b1, t[1]);
            }
        }
    }
    t
}

/// `t + rows`, `ld` apart.
///
/// # Safety
/// As [`panel`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_rows<const M: usize>(mut t: Tile<M>, rows: *const f32, ld: usize) -> Tile<M> {
    for (r, t) in t.iter_mut().enumerate() {
        // SAFETY: the caller vouches for `M` rows of 16.
        let (c0, c1) = unsafe {
            let c = rows.add(r * ld);
            (_mm256_loadu_ps(c), _mm256_loadu_ps(c.add(LANES)))
        };
        *t = [_mm256_add_ps(t[0], c0), _mm256_add_ps(t[1], c1)];
    }
    t
}

/// Bias, residual, ReLU and sums while the tile is in registers.
///
/// # Safety
/// As [`panel`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish_tile<const M: usize>(mut t: Tile<M>, ld: usize, finish: &Finish) -> Tile<M> {
    // SAFETY: the bias holds 16 columns, the residual `M` rows of them, the sums 16 each.
    unsafe {
        if let Some(bias) = finish.bias {
            let (b0, b1) = (_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(LANES)));
            t = t.map(|t| [_mm256_add_ps(t[0], b0), _mm256_add_ps(t[1], b1)]);
        }
        if let Some(residual) = finish.residual {
            t = add_rows(t, residual, ld);
        }
        if finish.relu {
            let zero = _mm256_setzero_ps();
            // The second operand is what a NaN leaves.
            t = t.map(|t| [_mm256_max_ps(zero, t[0]), _mm256_max_ps(zero, t[1])]);
        }
        if let Some((sum, square)) = finish.sums {
            for half in 0..2 {
                let (mut s, mut q) = (_mm256_setzero_ps(), _mm256_setzero_ps());
                for t in &t {
                    s = _mm256_add_ps(s, t[half]);
                    q = _mm256_fmadd_ps(t[half], t[half], q);
                }
                add_to(sum.add(half * LANES), s);
                add_to(square.add(half * LANES), q);
            }
        }
    }
    t
}

/// # Safety
/// `at` holds eight values that nobody else touches.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_to(at: *mut f32, v: __m256) {
    // SAFETY: the caller's.
    unsafe { _mm256_storeu_ps(at, _mm256_add_ps(_mm256_loadu_ps(at), v)) }
}
