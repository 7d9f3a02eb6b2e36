//! The figures of one ranking.
//!
//! All of them follow from the ranks (from 1) of the relevant items and from the number of judged items:
//!
//! - P@K = relevant items among the first K / K. K larger than the gallery still divides by K, so P@100 of a
//!   gallery of 50 items is at most 0.5.
//! - AP = Σ over relevant items of (relevant items up to its rank / its rank) / all relevant items. Without ties
//!   this is scikit-learn's `average_precision_score`; ties are broken by item id before it is computed.
//! - chance = relevant / judged: the expected P@K of a random order (for K within the gallery).
//! - [`random_ap`]: the expected AP of a random order. It is a little above chance, noticeably so where few
//!   items are relevant, so it is what a first release is held against.

/// The K of P@K.
pub const CUTOFFS: [u32; 4] = [1, 5, 10, 100];

/// P@K for every cutoff, from ascending ranks of the relevant items.
pub fn precision_at(ranks: &[u64]) -> [f64; 4] {
    CUTOFFS.map(|cutoff| {
        let hits = ranks.partition_point(|&rank| rank <= u64::from(cutoff));
        hits as f64 / f64::from(cutoff)
    })
}

/// AP from ascending ranks of all relevant items; 0 when nothing is relevant.
pub fn average_precision(ranks: &[u64]) -> f64 {
    if ranks.is_empty() {
        return 0.0;
    }
    let sum: f64 = (1u64..).zip(ranks).map(|(hits, &rank)| hits as f64 / rank as f64).sum();
    sum / ranks.len() as f64
}

/// Share of relevant items.
pub fn chance(relevant: u64, judged: u64) -> f64 {
    relevant as f64 / judged.max(1) as f64
}

/// Expected AP of a uniformly random order of `judged` items of which `relevant` > 0 are relevant.
///
/// A relevant item at rank k has in expectation 1 + (k − 1)(R − 1)/(N − 1) relevant items up to k, and every
/// rank is equally likely: E = (1/N) Σ over k of (1 + (k − 1)(R − 1)/(N − 1)) / k
/// = (H + (N − H)(R − 1)/(N − 1)) / N with H the N-th harmonic number.
pub fn random_ap(relevant: u64, judged: u64) -> f64 {
    if relevant >= judged {
        return if relevant == 0 { 0.0 } else { 1.0 };
    }
    if relevant == 0 {
        return 0.0;
    }
    let n = judged as f64;
    let h = harmonic(judged);
    (h + (n - h) * (relevant - 1) as f64 / (n - 1.0)) / n
}

/// Σ 1/k for k = 1..n; by Euler–Maclaurin from 256 on (error below 1e-13).
fn harmonic(n: u64) -> f64 {
    const EULER: f64 = 0.577_215_664_901_532_9;
    if n < 256 {
        return (1..=n).rev().map(|k| 1.0 / k as f64).sum();
    }
    let x = n as f64;
    x.ln() + EULER + 1.0 / (2.0 * x) - 1.0 / (12.0 * x * x) + 1.0 / (120.0 * x.powi(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks of the ones.
    fn ranks(order: &[u8]) -> Vec<u64> {
        (1u64..).zip(order).filter(|(_, relevant)| **relevant == 1).map(|(rank, _)| rank).collect()
    }

    #[test]
    fn average_precision_equals_scikit_learns() {
        // from sklearn.metrics import average_precision_score as ap
        // order = [...]; ap(order, -np.arange(len(order)))
        let cases: [(&[u8], f64); 5] = [
            (&[1, 0, 1, 0, 0, 1], 0.722_222_222_222_222_2),
            (&[0, 0, 0, 1], 0.25),
            (&[1, 1, 1, 1], 1.0),
            (&[0, 1, 1, 0, 0, 0, 1, 0, 1, 0], 0.509_920_634_920_634_9),
            (&[0, 1], 0.5),
        ];
        for (order, expected) in cases {
            let found = average_precision(&ranks(order));
            assert!((found - expected).abs() < 1e-15, "{order:?}: {found} instead of {expected}");
        }
        assert_eq!(average_precision(&[]), 0.0);
    }

    #[test]
    fn precision_divides_by_k_even_beyond_the_gallery() {
        let found = precision_at(&ranks(&[1, 0, 1, 0, 0, 1]));
        assert_eq!(found, [1.0, 2.0 / 5.0, 3.0 / 10.0, 3.0 / 100.0]);
    }

    #[test]
    fn expected_average_precision_is_the_mean_over_all_orders() {
        let orders: Vec<[u8; 6]> = (0u32..64).map(|bits| std::array::from_fn(|i| (bits >> i & 1) as u8)).collect();
        for relevant in 1..=6u64 {
            let of_size: Vec<f64> = orders
                .iter()
                .map(|order| ranks(order))
                .filter(|ranks| ranks.len() as u64 == relevant)
                .map(|ranks| average_precision(&ranks))
                .collect();
            let mean = of_size.iter().sum::<f64>() / of_size.len() as f64;
            assert!((random_ap(relevant, 6) - mean).abs() < 1e-12, "{relevant} of 6");
        }
        assert_eq!((random_ap(0, 5), random_ap(0, 0), random_ap(1, 1)), (0.0, 0.0, 1.0));
    }

    #[test]
    fn harmonic_numbers_join_where_the_series_begins() {
        let plain = |n: u64| (1..=n).rev().map(|k| 1.0 / k as f64).sum::<f64>();
        for n in [1, 255, 256, 257, 10_000] {
            assert!((harmonic(n) - plain(n)).abs() < 1e-12, "{n}");
        }
    }
}
