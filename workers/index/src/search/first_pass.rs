//! The first pass of a scan: d² in f32, with a proved bound, to leave most rows without the canonical distance.
//!
//! Let u = 2⁻²⁴ and m = stride / 16. The pass computes s = Σ (a − b)² with 16 lanes of m additions and four
//! levels of pairwise additions. All terms are non-negative, so every rounding is a factor within 1 ± u: one
//! in the difference (counted twice by the square), one in the square, at most m + 4 in the sums. A square
//! that underflows adds at most 2⁻¹⁵⁰. Hence s ≤ d²·(1 + u)^(m + 7) + D·2⁻¹⁴⁹, and the f64 roundings of
//! `canonical_d2` are smaller than one more u. So if s exceeds t·(1 + 2(m + 8)u) + 10⁻³⁷ then the canonical
//! d² exceeds t, strictly, and a row can be left out whose d² would have to be ≤ t to matter. Where s
//! overflows, the same holds as if the exponent were unbounded; where the limit does, no row is left out.

use crate::buffer::LINE;

/// Above it, a first-pass value proves that the canonical d² is above `threshold`.
pub(crate) fn limit(threshold: f64, stride: usize) -> f32 {
    let roundings = (stride / LINE + 8) as f64;
    let unit = f64::from(f32::EPSILON) / 2.0;
    let limit = threshold * (1.0 + 2.0 * roundings * unit) + 1e-37;
    (limit as f32).next_up()
}

/// d² in f32 of a padded query (stride) and padded rows (count × stride) → (count).
pub(crate) fn distances(query: &[f32], rows: &[f32], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { distances_avx2(query, rows, out) };
    }
    plain(query, rows, out);
}

/// The same loop, compiled for wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn distances_avx2(query: &[f32], rows: &[f32], out: &mut [f32]) {
    plain(query, rows, out);
}

#[inline(always)]
fn plain(query: &[f32], rows: &[f32], out: &mut [f32]) {
    let query = query.as_chunks::<LINE>().0;
    let rows = rows.as_chunks::<LINE>().0;
    for (row, out) in rows.chunks_exact(query.len()).zip(out) {
        let mut lanes = [0f32; LINE];
        for (a, b) in query.iter().zip(row) {
            for i in 0..LINE {
                let d = a[i] - b[i];
                lanes[i] += d * d;
            }
        }
        *out = pairwise(lanes);
    }
}

#[inline(always)]
fn pairwise(mut lanes: [f32; LINE]) -> f32 {
    let mut half = LINE / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use likeness_contract::ranking::canonical_d2;
    use proptest::prelude::*;

    use super::*;

    fn padded(values: &[f32]) -> Vec<f32> {
        let mut padded = values.to_vec();
        padded.resize(values.len().next_multiple_of(LINE), 0.0);
        padded
    }

    proptest! {
        #[test]
        fn a_row_within_the_threshold_is_never_above_the_limit(
            pairs in proptest::collection::vec((any::<f32>(), -60i32..30, any::<f32>()), 1..400),
        ) {
            // All magnitudes from underflow to far beyond unit vectors, and near-equal pairs.
            let finite = |v: f32| if v.is_finite() { v } else { 1.0 };
            let a: Vec<f32> = pairs.iter().map(|(x, e, _)| finite(*x).signum() * 2f32.powi(*e)).collect();
            let b: Vec<f32> = pairs.iter().zip(&a).map(|((.., y), a)| if y.is_sign_negative() { finite(*y) } else { a.next_up() }).collect();
            let exact = canonical_d2(&a, &b);
            let mut first = [0.0];
            distances(&padded(&a), &padded(&b), &mut first);
            prop_assert!(first[0] <= limit(exact, padded(&a).len()), "{} {exact}", first[0]);
        }
    }

    #[test]
    fn the_limit_is_tight_enough_to_be_of_use() {
        assert!(limit(1.0, 304) < 1.000_01);
        assert!(limit(f64::INFINITY, 304).is_infinite());
        assert!(limit(0.0, 304) > 0.0);
    }
}
