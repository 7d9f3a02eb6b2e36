//! Explanations: what the space itself says about an attribute of an image, beside what is known of it.
//!
//! The query tower puts `+a` ("has it") and `−a` ("has it not"), each asked alone, at two places. The *margin* of an image is
//! how much nearer it lies to the first: no figure of a classifier, but of the distances that rank. A logistic curve, fitted to
//! the margins of rows of the same gallery with known labels that the training has not seen, turns it into an *estimate*: of
//! images of this gallery with such a margin, that part has the attribute. Where there are too few such rows there is no
//! estimate, only the margin.

use std::f64::consts::SQRT_2;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ranking::canonical_d2;

/// Where the query tower puts one attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anchor {
    /// Its position in the vocabulary.
    pub attribute: u32,
    /// `+a` alone: a unit vector of dimension D.
    pub toward: Vec<f32>,
    /// `−a` alone; none of a model whose queries can't say it.
    pub away: Option<Vec<f32>>,
}

impl Anchor {
    /// d(x, −a) − d(x, +a) of a unit vector x: above 0 it leans to "has". Without −a the distance to it is that of vectors
    /// that have nothing to do with each other, √2.
    pub fn margin(&self, x: &[f32]) -> f64 {
        let away = self.away.as_ref().map_or(SQRT_2, |away| canonical_d2(x, away).sqrt());
        away - canonical_d2(x, &self.toward).sqrt()
    }
}

/// Rows of one shard whose labels and margins are known.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The shard.
    pub shard: u32,
    /// Per row and anchor, the anchors of a row together: +1 has, −1 has not, 0 not known.
    pub labels: Vec<i8>,
    /// In the same order.
    pub margins: Vec<f32>,
}

/// Why the hits of an answer were found, attribute by attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// The attributes that the question's terms ask for.
    pub attributes: Vec<ExplainedAttribute>,
    /// Of every hit, in the order of the hits.
    pub hits: Vec<HitExplanation>,
}

/// An attribute that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainedAttribute {
    /// Its name.
    pub name: String,
    /// +1 asked to be there, −1 not to be; where terms disagree, what their weights sum to.
    pub wanted: i8,
    /// What turns margins into estimates.
    pub calibration: Option<Calibration>,
    /// Why nothing does.
    pub uncalibrated: Option<String>,
}

/// estimate = 1 / (1 + exp(−(slope · margin + intercept))), fitted by maximum likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Calibration {
    /// Rows that it was fitted to: a sample of those with a known label outside of the training split.
    pub rows: u32,
    /// How many of them have the attribute.
    pub has: u32,
    /// Share of them whose estimate is on the right side of one half.
    pub right: f64,
    /// See above.
    pub slope: f64,
    /// See above.
    pub intercept: f64,
}

impl Calibration {
    /// The part of the images with this margin that has the attribute.
    pub fn estimate(&self, margin: f64) -> f64 {
        1.0 / (1.0 + (-(self.slope * margin + self.intercept)).exp())
    }
}

/// What is known and estimated of a hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HitExplanation {
    /// Attributes that agree with the question.
    pub agrees: u32,
    /// Of every attribute, in the order of [`Explanation::attributes`].
    pub attributes: Vec<Finding>,
}

/// What is known and estimated of one attribute of a hit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The stored label: +1 has, −1 has not, 0 not known.
    pub label: i8,
    /// See [`Anchor::margin`].
    pub margin: f64,
    /// How likely it is that it has the attribute, by its margin alone.
    pub estimate: Option<f64>,
    /// Whether the attribute is as asked: by the label, or by the estimate where no label is known.
    pub agrees: Option<bool>,
}

impl Finding {
    /// Judges a hit's label and margin by what is `wanted`: +1 or −1.
    pub fn of(label: i8, margin: f64, calibration: Option<&Calibration>, wanted: i8) -> Self {
        let estimate = calibration.map(|calibration| calibration.estimate(margin));
        let has = match label {
            0 => estimate.map(|estimate| estimate >= 0.5),
            label => Some(label > 0),
        };
        Self { label, margin, estimate, agrees: has.map(|has| has == (wanted > 0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_margin_tells_which_place_is_nearer() {
        let anchor = Anchor { attribute: 0, toward: vec![1.0, 0.0], away: Some(vec![-1.0, 0.0]) };
        assert_eq!((anchor.margin(&[1.0, 0.0]), anchor.margin(&[-1.0, 0.0])), (2.0, -2.0));
        assert!(anchor.margin(&[0.0, 1.0]).abs() < 1e-12);
        let alone = Anchor { away: None, ..anchor };
        assert_eq!((alone.margin(&[1.0, 0.0]), alone.margin(&[0.0, 1.0])), (SQRT_2, 0.0));
    }

    #[test]
    fn a_label_decides_and_an_estimate_where_there_is_none() {
        let calibration = Calibration { rows: 100, has: 50, right: 0.9, slope: 2.0, intercept: -1.0 };
        let agrees = |label, margin, wanted| Finding::of(label, margin, Some(&calibration), wanted).agrees;
        assert_eq!((agrees(1, -5.0, 1), agrees(1, -5.0, -1)), (Some(true), Some(false)));
        assert_eq!((agrees(0, 0.6, 1), agrees(0, 0.4, 1), agrees(0, 0.4, -1)), (Some(true), Some(false), Some(true)));
        assert_eq!(Finding::of(0, 0.6, None, 1), Finding { label: 0, margin: 0.6, estimate: None, agrees: None });
        assert_eq!(Finding::of(-1, 0.5, Some(&calibration), 1).estimate, Some(0.5));
    }
}
