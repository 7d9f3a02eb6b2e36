//! How alike two rankings of the same items are, from their first items.
//!
//! - overlap@K = items that are among the first K of both / K; of a gallery of fewer items, / their number.
//! - RBO, rank-biased overlap of Webber, Moffat and Zobel (ACM TOIS 28(4), 2010), extrapolated from the known head of length
//!   k as their equation 30 for lists of one length: `X_k/k · pᵏ + (1 − p)/p · Σ_{d=1..k} X_d/d · pᵈ`, where `X_d` is the number
//!   of items among the first d of both. It is 1 for equal rankings and 0 for rankings that share nothing, looks at
//!   order as well as membership, needs no ranking to its end, and the first ranks weigh most: with p = 0.9 the first ten carry 86 %.

use std::collections::HashMap;

use serde::Serialize;

use crate::scores::Found;

/// Weight of a rank is proportional to its power: the share of readers who go on to the next rank.
pub const PERSISTENCE: f64 = 0.9;

/// How alike two rankings are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Agreement {
    /// Share of the first 10 of each that the other has among its first 10.
    pub overlap_at_10: f64,
    /// Of the first 100.
    pub overlap_at_100: f64,
    /// Rank-biased overlap.
    pub rbo: f64,
}

/// Of two heads; items behind the length of the shorter are not looked at.
pub fn agreement(a: &[Found], b: &[Found]) -> Agreement {
    let shared = shared(a, b);
    Agreement { overlap_at_10: overlap(&shared, 10), overlap_at_100: overlap(&shared, 100), rbo: rbo(&shared) }
}

/// `X_d` for d = 1, 2, …: items among the first d of both. An item joins at the worse of its two ranks.
fn shared(a: &[Found], b: &[Found]) -> Vec<u32> {
    let depth = a.len().min(b.len());
    let of_a: HashMap<&str, usize> = a[..depth].iter().enumerate().map(|(rank, found)| (&*found.item, rank)).collect();
    let mut joins = vec![0; depth];
    for (rank, found) in b[..depth].iter().enumerate() {
        if let Some(other) = of_a.get(&*found.item) {
            joins[rank.max(*other)] += 1;
        }
    }
    let mut sum = 0;
    joins.iter_mut().for_each(|join| {
        sum += *join;
        *join = sum;
    });
    joins
}

/// Nothing to rank is the same answer.
fn overlap(shared: &[u32], k: usize) -> f64 {
    let depth = k.min(shared.len());
    depth.checked_sub(1).map_or(1.0, |last| f64::from(shared[last]) / depth as f64)
}

fn rbo(shared: &[u32]) -> f64 {
    let Some(last) = shared.last() else { return 1.0 };
    let (mut power, mut sum) = (1.0, 0.0);
    for (shared, d) in shared.iter().zip(1u32..) {
        power *= PERSISTENCE;
        sum += f64::from(*shared) / f64::from(d) * power;
    }
    f64::from(*last) / shared.len() as f64 * power + (1.0 - PERSISTENCE) / PERSISTENCE * sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranking(items: &str) -> Vec<Found> {
        items.chars().zip(0u32..).map(|(item, i)| Found { item: item.into(), distance: f64::from(i) }).collect()
    }

    fn of(a: &str, b: &str) -> Agreement {
        agreement(&ranking(a), &ranking(b))
    }

    #[test]
    fn equal_rankings_agree_and_rankings_of_other_items_do_not() {
        let same = of("abcdefghijklm", "abcdefghijklm");
        assert_eq!((same.overlap_at_10, same.overlap_at_100), (1.0, 1.0));
        assert!((same.rbo - 1.0).abs() < 1e-12, "{same:?}");
        let other = of("abc", "xyz");
        assert_eq!((other.overlap_at_10, other.overlap_at_100, other.rbo), (0.0, 0.0, 0.0));
        assert_eq!(of("", "").rbo, 1.0);
    }

    #[test]
    fn overlap_counts_what_is_among_the_first_of_both() {
        let found = of("abcdefghijklmn", "bacdxfghijnmlk");
        assert_eq!(found.overlap_at_10, 0.9);
        assert!((found.overlap_at_100 - 13.0 / 14.0).abs() < 1e-15);
        assert_eq!(of("ab", "ba").overlap_at_10, 1.0);
    }

    #[test]
    fn rank_biased_overlap_equals_numbers_of_the_definition() {
        // import rbo  # pip install rbo==0.1.3
        // rbo.RankingSimilarity(list(a), list(b)).rbo_ext(p=0.9)
        let cases = [
            ("abcde", "abced", 0.981_775),
            ("abcdefghij", "jihgfedcba", 0.511_607_565_642_857_1),
            ("abcdefg", "axbycdz", 0.617_862_571_428_571_3),
        ];
        for (a, b, expected) in cases {
            let found = of(a, b).rbo;
            assert!((found - expected).abs() < 1e-12, "{a} {b}: {found} instead of {expected}");
            assert_eq!(found, of(b, a).rbo);
        }
    }
}
