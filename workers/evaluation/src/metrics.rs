//! The figures of one ranking.
//!
//! All of them follow from the ranks (from 1) of the relevant items and from the number of judged items:
//!
//! - P@K = relevant items among the first K / K. K larger than the gallery still divides by K, so P@100 of a
//!   gallery of 50 items is at most 0.5.
//! - AP = Σ over relevant items of (relevant items up to its rank / its rank) / all relevant items. Without ties
//!   this is scikit-learn's `average_precision_score`; ties are broken by item id before it is computed.
//! - R-precision = P@R, R = all relevant items.
//! - article's AP = mean of P@k for k = 1..R: the definition of the article that the model comes from. It looks at the
//!   first R places only, so it is not the AP of any library.
//! - chance = relevant / judged: the expected P@K of a random order (for K within the gallery).
//! - [`random_ap`]: the expected AP of a random order. It is a little above chance, noticeably so where few
//!   items are relevant, so it is what a first release is held against.
//!
//! nDCG@K looks at all judged items: the gain of one is the share of the query's terms that it fulfils, discounted by
//! log₂(rank + 1) and divided by what the best possible order reaches. This is scikit-learn's `ndcg_score` with `k`.

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

/// P@R from ascending ranks of all R relevant items; 0 when nothing is relevant.
pub fn r_precision(ranks: &[u64]) -> f64 {
    let hits = ranks.partition_point(|&rank| rank <= ranks.len() as u64);
    hits as f64 / ranks.len().max(1) as f64
}

/// Mean of P@k for k = 1..R from ascending ranks of all R relevant items; 0 when nothing is relevant.
pub fn article_ap(ranks: &[u64]) -> f64 {
    let mut hits = 0;
    let precisions = (1..=ranks.len()).map(|k| {
        hits += usize::from(ranks[hits..].first().is_some_and(|&rank| rank == k as u64));
        hits as f64 / k as f64
    });
    precisions.sum::<f64>() / ranks.len().max(1) as f64
}

/// nDCG@K. `first` are the terms that the items at ranks 1, 2, … fulfil (at least K of them, or all that are judged);
/// `levels[t]` is how many judged items fulfil exactly `t` terms. 0 when no item fulfils any.
pub fn ndcg_at(k: usize, first: impl IntoIterator<Item = u32>, levels: &[u64]) -> f64 {
    let best = levels.iter().enumerate().rev().flat_map(|(terms, items)| {
        let items = usize::try_from(*items).unwrap_or(usize::MAX);
        std::iter::repeat_n(terms as u32, items.min(k))
    });
    let ideal = discounted(k, best);
    if ideal == 0.0 { 0.0 } else { discounted(k, first) / ideal }
}

/// Σ gain / log₂(rank + 1) over the first K.
fn discounted(k: usize, gains: impl IntoIterator<Item = u32>) -> f64 {
    (2u32..).zip(gains.into_iter().take(k)).map(|(place, gain)| f64::from(gain) / f64::from(place).log2()).sum()
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
    fn precision_within_the_first_r_places() {
        // Relevant at 1, 3, 6: R = 3; P@1..3 = 1, 1/2, 2/3.
        let found = ranks(&[1, 0, 1, 0, 0, 1]);
        assert_eq!(r_precision(&found), 2.0 / 3.0);
        assert!((article_ap(&found) - (1.0 + 0.5 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
        assert_eq!((r_precision(&ranks(&[1, 1])), article_ap(&ranks(&[1, 1]))), (1.0, 1.0));
        assert_eq!((r_precision(&ranks(&[0, 0, 1])), article_ap(&ranks(&[0, 0, 1]))), (0.0, 0.0));
        assert_eq!((r_precision(&[]), article_ap(&[])), (0.0, 0.0));
    }

    #[test]
    fn discounted_gain_equals_scikit_learns() {
        // from sklearn.metrics import ndcg_score; y = [...]; ndcg_score([y], [-np.arange(len(y))], k=k)
        let cases: [(&[u32], usize, f64); 4] = [
            (&[3, 2, 3, 0, 1, 2], 6, 0.960_808_194_336_061_6),
            (&[3, 2, 3, 0, 1, 2], 3, 0.977_781_361_630_504_8),
            (&[0, 1, 0, 2, 1], 10, 0.600_184_553_744_539),
            (&[0, 0, 0], 2, 0.0),
        ];
        for (order, k, expected) in cases {
            let mut levels = [0; 4];
            order.iter().for_each(|&terms| levels[terms as usize] += 1);
            let found = ndcg_at(k, order.iter().copied(), &levels);
            assert!((found - expected).abs() < 1e-14, "{order:?} at {k}: {found} instead of {expected}");
        }
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
