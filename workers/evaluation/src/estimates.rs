//! How far the estimates of a head of logits can be trusted: held against the labels of the items that are searched.
//!
//! In a space of log-probabilities an embedding says of every attribute how likely the image has it: the exponential of its
//! coordinate, to scale. Of all items with an estimate of about 0.7, seven of ten should have the attribute.

use likeness_contract::settings::{Vocabulary, log_probability_dim, log_probability_scale};
use serde::{Deserialize, Serialize};

use crate::gallery::Block;

/// Equal bins of estimates over 0–1.
const BINS: usize = 10;
/// An attribute that fewer of the searched items have, or have not, is rare: its figures say little.
const RARE: u64 = 30;
/// Two-sided 95 % quantile of the normal distribution.
const NORMAL_95: f64 = 1.959_964;

/// Counts over the blocks of a gallery.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    scale: f64,
    attributes: Vec<[Count; BINS]>,
    right: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Count {
    items: u64,
    has: u64,
    estimates: f64,
}

/// The reliability table, over all attributes and for each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EstimateFigures {
    /// Estimates against labels, all attributes together; bins without an item are left out.
    pub reliability: Vec<ReliabilityBin>,
    /// Mean over all of |mean estimate − share that has it| of their bins.
    pub calibration_error: f64,
    /// Per attribute, in the order of the vocabulary.
    pub attributes: Vec<AttributeEstimates>,
}

/// Estimates of a tenth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReliabilityBin {
    /// From, and below (the last bin: up to) a tenth more.
    pub from: f64,
    /// Combinations of item and attribute.
    pub items: u64,
    /// Mean estimate.
    pub estimate: f64,
    /// Share that has the attribute.
    pub share: f64,
    /// Its 95 % interval (Wilson's).
    pub interval: [f64; 2],
}

/// Estimates of one attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttributeEstimates {
    /// Its name.
    pub attribute: String,
    /// Items with a known label.
    pub items: u64,
    /// Share whose estimate is on the side of the label; 0 without items.
    pub right: f64,
    /// Its 95 % interval (Wilson's).
    pub interval: [f64; 2],
    /// As over all attributes.
    pub calibration_error: f64,
    /// Whether fewer than 30 of the items have it, or have it not.
    pub rare: bool,
}

impl Estimates {
    /// Of no item.
    pub fn new(attributes: usize) -> Self {
        Self {
            scale: log_probability_scale(attributes),
            attributes: vec![[Count::default(); BINS]; attributes],
            right: vec![0; attributes],
        }
    }

    /// Counts a block of a space of log-probabilities too.
    ///
    /// # Panics
    /// When it is of another dimension.
    pub fn add(&mut self, block: &impl Block) {
        assert_eq!(block.dim(), log_probability_dim(self.attributes.len()) as usize, "no log-probabilities");
        for row in 0..block.rows() {
            for (attribute, (label, log)) in block.labels(row).iter().zip(block.embedding(row)).enumerate() {
                if *label != 0 {
                    self.count(attribute, *label > 0, (f64::from(*log) / self.scale).exp());
                }
            }
        }
    }

    fn count(&mut self, attribute: usize, has: bool, estimate: f64) {
        let count = &mut self.attributes[attribute][((estimate * BINS as f64) as usize).min(BINS - 1)];
        count.items += 1;
        count.has += u64::from(has);
        count.estimates += estimate;
        self.right[attribute] += u64::from((estimate >= 0.5) == has);
    }

    /// The figures.
    pub fn figures(&self, vocabulary: &Vocabulary) -> EstimateFigures {
        let mut all = [Count::default(); BINS];
        for bins in &self.attributes {
            for (sum, count) in all.iter_mut().zip(bins) {
                sum.items += count.items;
                sum.has += count.has;
                sum.estimates += count.estimates;
            }
        }
        let attribute = |((name, bins), right): ((&String, &[Count; BINS]), &u64)| {
            let (items, has) = (bins.iter().map(|bin| bin.items).sum(), bins.iter().map(|bin| bin.has).sum::<u64>());
            AttributeEstimates {
                attribute: name.clone(),
                items,
                right: share(*right, items),
                interval: wilson(*right, items),
                calibration_error: calibration_error(bins),
                rare: has.min(items - has) < RARE,
            }
        };
        EstimateFigures {
            reliability: all
                .iter()
                .enumerate()
                .filter(|(_, bin)| bin.items > 0)
                .map(|(at, bin)| reliability(at, bin))
                .collect(),
            calibration_error: calibration_error(&all),
            attributes: vocabulary.names.iter().zip(&self.attributes).zip(&self.right).map(attribute).collect(),
        }
    }
}

fn reliability(at: usize, bin: &Count) -> ReliabilityBin {
    ReliabilityBin {
        from: at as f64 / BINS as f64,
        items: bin.items,
        estimate: bin.estimates / bin.items as f64,
        share: share(bin.has, bin.items),
        interval: wilson(bin.has, bin.items),
    }
}

fn calibration_error(bins: &[Count; BINS]) -> f64 {
    let items: u64 = bins.iter().map(|bin| bin.items).sum();
    bins.iter().map(|bin| (bin.estimates - bin.has as f64).abs()).sum::<f64>() / items.max(1) as f64
}

fn share(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

/// The 95 % interval of a share (E. B. Wilson, 1927).
fn wilson(part: u64, of: u64) -> [f64; 2] {
    if of == 0 {
        return [0.0, 1.0];
    }
    let (n, p, z2) = (of as f64, share(part, of), NORMAL_95 * NORMAL_95);
    let centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = NORMAL_95 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(centre - half).max(0.0), (centre + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gallery::PlainBlock;

    /// Items with one estimate each of two attributes, as a space of log-probabilities has them.
    fn block(estimates: &[[f64; 2]], labels: Vec<i8>) -> PlainBlock {
        let scale = log_probability_scale(2);
        let place = |[a, b]: &[f64; 2]| [a, b].map(|p| (scale * p.ln()) as f32).into_iter().chain([0.0; 3]);
        let items = (0..estimates.len()).map(|row| row.to_string()).collect();
        PlainBlock::new(items, estimates.iter().flat_map(place).collect(), labels, 5, 2).unwrap()
    }

    #[test]
    fn estimates_are_held_against_labels_and_what_is_unknown_is_left_out() {
        let mut estimates = Estimates::new(2);
        estimates.add(&block(&[[0.75, 0.2], [0.75, 0.2]], vec![1, -1, 1, 0]));
        estimates.add(&block(&[[0.75, 0.2], [0.75, 0.95]], vec![-1, 1, 1, 1]));
        let figures = estimates.figures(&Vocabulary { names: vec!["a".into(), "b".into()] });
        let [low, middle, high] = figures.reliability[..] else { panic!("{figures:?}") };
        assert_eq!((low.items, low.share, high.items, high.share), (2, 0.5, 1, 1.0));
        assert_eq!((middle.from, middle.items, middle.share), (0.7, 4, 0.75));
        assert!((middle.estimate - 0.75).abs() < 1e-5 && (low.estimate - 0.2).abs() < 1e-5);
        let [a, b] = &figures.attributes[..] else { panic!("{figures:?}") };
        assert_eq!((a.items, a.right, b.items, b.rare), (4, 0.75, 3, true));
        assert!(a.calibration_error < 1e-5 && (b.calibration_error - 0.65 / 3.0).abs() < 1e-5, "{figures:?}");
        assert!((figures.calibration_error - 0.65 / 7.0).abs() < 1e-5);
    }

    #[test]
    fn intervals_are_wilsons() {
        // statsmodels.stats.proportion.proportion_confint(7, 10, method="wilson")
        let [low, high] = wilson(7, 10);
        assert!((low - 0.396_779).abs() < 1e-4 && (high - 0.892_208).abs() < 1e-4, "{low} {high}");
        assert_eq!(wilson(0, 0), [0.0, 1.0]);
        assert!(wilson(0, 5)[0] < 1e-12 && wilson(5, 5)[1] > 1.0 - 1e-12);
    }
}
