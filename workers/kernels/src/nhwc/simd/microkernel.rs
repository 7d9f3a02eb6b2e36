//! The innermost product: a tile of a few rows and two vectors of columns in registers.
//!
//! Tiles go from function to function by value and are read by index: what has an address, as an iterator's has, goes
//! through memory.
#![allow(clippy::needless_range_loop, reason = "see above")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::vector::Simd;

/// Columns of a panel of weights, whatever the instruction set.
pub(super) const COLUMNS: usize = 16;

/// Values of a cache line.
const LINE: usize = 16;

type Tile<V, const M: usize, const VECTORS: usize> = [[V; VECTORS]; M];

/// Two factors. `B` lies with its steps along the depth `ldb` apart, in panels of 16 columns that are `panel` apart.
/// `A` lies with its rows `lda` apart, or, where it is "deep" (a constant of the functions that take it), with its
/// steps along the depth `lda` apart and its rows side by side. Where it is not, `ldb` is 16.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) lda: usize,
    pub(super) b: *const f32,
    pub(super) ldb: usize,
    pub(super) panel: usize,
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

/// `rows` rows by `columns ≤ I::WIDTH` columns, however many tiles that is.
///
/// # Safety
/// The processor has `I`. All pointers cover what the sizes say; `b` holds whole panels even where fewer columns are
/// wanted. Nobody else writes `c` or `sums` meanwhile.
pub(super) unsafe fn panel<I: Simd, const DEEP: bool>(
    rows: usize,
    columns: usize,
    factors: Factors,
    place: Place,
    finish: Option<Finish>,
) {
    // SAFETY: the caller's.
    unsafe {
        I::run(
            #[inline(always)]
            || all_rows::<I, DEEP>(rows, columns, factors, place, finish),
        )
    }
}

/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn all_rows<I: Simd, const DEEP: bool>(
    rows: usize,
    columns: usize,
    factors: Factors,
    place: Place,
    finish: Option<Finish>,
) {
    let mut row = 0;
    while row < rows {
        let shift = row * place.ld;
        // SAFETY: `row` is below `rows`, so all stays inside what the caller vouches for.
        unsafe {
            let a = factors.a.add(if DEEP { row } else { row * factors.lda });
            let factors = Factors { a, ..factors };
            let place = Place { c: place.c.add(shift), ..place };
            let finish = finish.map(|f| Finish { residual: f.residual.map(|r| r.add(shift)), ..f });
            row += if columns == I::WIDTH {
                whole::<I, DEEP>(I::ROWS.min(rows - row), factors, place, finish.as_ref())
            } else {
                edge::<I, DEEP>(rows - row, columns, factors, place, finish.as_ref())
            };
        }
    }
}

/// One tile of `m ≤ I::ROWS` rows and all columns; returns `m`.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn whole<I: Simd, const DEEP: bool>(m: usize, factors: Factors, place: Place, finish: Option<&Finish>) -> usize {
    macro_rules! tile_of {
        ($($m:literal)*) => {
            match m {
                // SAFETY: the caller's.
                $($m if I::ROWS >= $m => unsafe { tile::<I, $m, 2, DEEP, true>(I::LANES, factors, place, finish) },)*
                _ => unreachable!("a tile has at most `ROWS` rows"),
            }
        };
    }
    tile_of!(1 2 3 4 5 6 7 8 9 10 11 12);
    m
}

/// A tile of fewer columns, of three rows or one; returns how many.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn edge<I: Simd, const DEEP: bool>(
    rows: usize,
    columns: usize,
    factors: Factors,
    place: Place,
    finish: Option<&Finish>,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        match (rows >= 3, columns.checked_sub(I::LANES)) {
            (true, Some(lanes @ 1..)) => tile::<I, 3, 2, DEEP, false>(lanes, factors, place, finish),
            (true, _) => tile::<I, 3, 1, DEEP, false>(columns, factors, place, finish),
            (false, Some(lanes @ 1..)) => tile::<I, 1, 2, DEEP, false>(lanes, factors, place, finish),
            (false, _) => tile::<I, 1, 1, DEEP, false>(columns, factors, place, finish),
        }
    }
    if rows >= 3 { 3 } else { 1 }
}

/// `M` rows of as many vectors, the last of `lanes` values where it is not `WHOLE`.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn tile<I: Simd, const M: usize, const VECTORS: usize, const DEEP: bool, const WHOLE: bool>(
    lanes: usize,
    factors: Factors,
    place: Place,
    finish: Option<&Finish>,
) {
    let row = Row::<VECTORS, WHOLE> { lanes };
    // SAFETY: the caller's.
    unsafe {
        for r in 0..M {
            for line in (0..VECTORS * I::LANES).step_by(16) {
                _mm_prefetch::<_MM_HINT_T0>(place.c.add(r * place.ld + line).cast());
            }
        }
        let mut t = product::<I, M, VECTORS, DEEP>(factors);
        if place.add {
            t = row.add_rows::<I, M>(t, place.c, place.ld);
        }
        // No deep product has anything to finish.
        if let (Some(finish), false) = (finish, DEEP) {
            t = row.finish::<I, M>(t, place.ld, finish);
        }
        for r in 0..M {
            row.store::<I>(place.c.add(r * place.ld), t[r]);
        }
    }
}

/// The loop that everything is for. Its sums have no address, so that they stay in registers.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn product<I: Simd, const M: usize, const VECTORS: usize, const DEEP: bool>(
    factors: Factors,
) -> Tile<I::V, M, VECTORS> {
    let Factors { depth, a, lda, b, ldb, panel } = factors;
    let ldb = if DEEP { ldb } else { COLUMNS };
    let second = if I::LANES == COLUMNS { panel } else { I::LANES };
    // SAFETY: `b` holds whole panels of `depth` steps, `a` holds `M` rows of `depth`; no prefetch faults.
    unsafe {
        let mut t = [[I::zero(); VECTORS]; M];
        for chunk in (0..depth).step_by(LINE) {
            // Each step fetches a line of the rows of the next tile, or of the steps to come where `A` is deep.
            let mut ahead = if DEEP { a.wrapping_add((chunk + LINE) * lda) } else { a.wrapping_add(M * lda + chunk) };
            for p in chunk..depth.min(chunk + LINE) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(lda);
                let mut row = [I::zero(); VECTORS];
                for v in 0..VECTORS {
                    row[v] = I::load(b.add(p * ldb + v * second));
                }
                for r in 0..M {
                    let a = I::splat(*if DEEP { a.add(p * lda + r) } else { a.add(r * lda + p) });
                    for v in 0..VECTORS {
                        t[r][v] = I::fma(a, row[v], t[r][v]);
                    }
                }
            }
        }
        t
    }
}

/// How a row of a tile is read and written.
#[derive(Clone, Copy)]
struct Row<const VECTORS: usize, const WHOLE: bool> {
    /// Values of the last vector where it is not whole.
    lanes: usize,
}

impl<const VECTORS: usize, const WHOLE: bool> Row<VECTORS, WHOLE> {
    /// # Safety
    /// As [`panel`].
    #[inline(always)]
    unsafe fn load<I: Simd>(self, from: *const f32) -> [I::V; VECTORS] {
        // SAFETY: the caller's.
        unsafe {
            let mut row = [I::zero(); VECTORS];
            for v in 0..VECTORS {
                let from = from.add(v * I::LANES);
                row[v] = if WHOLE || v + 1 < VECTORS { I::load(from) } else { I::load_first(from, self.lanes) };
            }
            row
        }
    }

    /// # Safety
    /// As [`panel`].
    #[inline(always)]
    unsafe fn store<I: Simd>(self, to: *mut f32, row: [I::V; VECTORS]) {
        for v in 0..VECTORS {
            // SAFETY: the caller's.
            unsafe {
                let to = to.add(v * I::LANES);
                if WHOLE || v + 1 < VECTORS { I::store(to, row[v]) } else { I::store_first(to, self.lanes, row[v]) }
            }
        }
    }

    /// `t + rows`, `ld` apart.
    ///
    /// # Safety
    /// As [`panel`].
    #[inline(always)]
    unsafe fn add_rows<I: Simd, const M: usize>(
        self,
        mut t: Tile<I::V, M, VECTORS>,
        rows: *const f32,
        ld: usize,
    ) -> Tile<I::V, M, VECTORS> {
        for r in 0..M {
            // SAFETY: the caller vouches for `M` rows.
            unsafe {
                let row = self.load::<I>(rows.add(r * ld));
                for v in 0..VECTORS {
                    t[r][v] = I::add(t[r][v], row[v]);
                }
            }
        }
        t
    }

    /// Bias, residual, ReLU and sums while the tile is in registers.
    ///
    /// # Safety
    /// As [`panel`].
    #[inline(always)]
    unsafe fn finish<I: Simd, const M: usize>(
        self,
        mut t: Tile<I::V, M, VECTORS>,
        ld: usize,
        finish: &Finish,
    ) -> Tile<I::V, M, VECTORS> {
        // SAFETY: bias and sums hold the columns, the residual `M` rows of them.
        unsafe {
            if let Some(bias) = finish.bias {
                t = self.add_rows::<I, M>(t, bias, 0);
            }
            if let Some(residual) = finish.residual {
                t = self.add_rows::<I, M>(t, residual, ld);
            }
            if finish.relu {
                for r in 0..M {
                    for v in 0..VECTORS {
                        // The second operand is what a NaN leaves.
                        t[r][v] = I::max(I::zero(), t[r][v]);
                    }
                }
            }
            if let Some((sum, square)) = finish.sums {
                let (mut s, mut q) = (self.load::<I>(sum), self.load::<I>(square));
                for r in 0..M {
                    for v in 0..VECTORS {
                        (s[v], q[v]) = (I::add(s[v], t[r][v]), I::fma(t[r][v], t[r][v], q[v]));
                    }
                }
                self.store::<I>(sum, s);
                self.store::<I>(square, q);
            }
        }
        t
    }
}
