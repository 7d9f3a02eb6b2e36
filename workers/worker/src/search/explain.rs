//! What the space says about the attributes that were asked for: margins of rows, and the curves that judge them.
//!
//! `contract::search::explain` says what margins and estimates are. A curve belongs to a generation and an attribute. It is fitted to
//! the same rows whoever holds them and whoever asks, so that every root gives the same estimates; then it is remembered until items are
//! removed, which no curve is fitted to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use likeness_contract::jobs::GenerationRef;
use likeness_contract::search::{
    Anchor, Calibration, ExplainedAttribute, Explanation, Finding, Hit, HitExplanation, Sample, SearchError,
};
use likeness_index::{RowSet, Shard};

use super::holdings::HeldShard;
use super::query::invalid;

/// Rows of a generation that a curve is fitted to, about: a share of 5 % is then known to half a per cent.
const SAMPLE_ROWS: usize = 2048;
/// Rows below which no curve is fitted, and those of them that have the attribute, or have it not.
const LEAST_ROWS: [usize; 2] = [50, 10];
/// Most attributes that are explained.
const MAX_EXPLAINED: usize = 64;
/// Bytes of all places of attributes in a request to a leaf: it stays well below the broker's limit.
const ANCHOR_BYTES: usize = 512 << 10;
/// Margins of a sample that one leaf computes at most.
const MAX_SAMPLED: usize = 1 << 18;
/// Curves that are remembered.
const MAX_CURVES: usize = 4096;
/// Steps of a fit; a handful is enough.
const MAX_STEPS: usize = 100;

/// Refuses what can't be explained: nothing, or too much.
pub fn check(asked: usize, dim: usize) -> Result<(), SearchError> {
    let most = (ANCHOR_BYTES / (8 * dim.max(1))).clamp(1, MAX_EXPLAINED);
    match asked {
        0 => Err(invalid("there is nothing to explain: no term asks for attributes")),
        asked if asked > most => Err(invalid(format!("{asked} attributes are to be explained, at most {most} can be"))),
        _ => Ok(()),
    }
}

/// Rows of each of so many shards that a curve is fitted to.
pub fn sample_rows(shards: usize) -> u32 {
    SAMPLE_ROWS.div_ceil(shards.max(1)) as u32
}

type HeldShards = BTreeMap<u32, Arc<HeldShard>>;

/// The leaf's part: margins per row and anchor.
pub fn margins(held: &HeldShards, rows: &[(u32, u32)], anchors: &[Anchor]) -> Result<Vec<f64>, String> {
    let mut margins = Vec::with_capacity(rows.len() * anchors.len());
    for (number, row) in rows {
        let shard = checked(held, *number, anchors)?;
        if *row as usize >= shard.rows() {
            return Err(format!("shard {number} has no row {row}"));
        }
        margins.extend(anchors.iter().map(|anchor| anchor.margin(shard.embedding(*row))));
    }
    Ok(margins)
}

/// The leaf's part: labels and margins of at most so many rows of each shard.
pub fn sample(held: &HeldShards, shards: &[u32], anchors: &[Anchor], rows: u32) -> Result<Vec<Sample>, String> {
    let sampled = shards.len().saturating_mul(anchors.len()).saturating_mul(rows as usize);
    if sampled > MAX_SAMPLED {
        return Err(format!("{sampled} margins are over the limit of {MAX_SAMPLED}"));
    }
    let of = |number: &u32| {
        let shard = checked(held, *number, anchors)?;
        let removed = held.get(number).and_then(|held| held.taken_out());
        Ok(sample_of(shard, removed.as_deref(), anchors, rows))
    };
    shards.iter().map(of).collect()
}

fn checked<'a>(held: &'a HeldShards, number: u32, anchors: &[Anchor]) -> Result<&'a Shard, String> {
    let shard: &Shard = held.get(&number).ok_or_else(|| format!("does not hold shard {number}"))?;
    let fits = |anchor: &Anchor| {
        let dims = [Some(&anchor.toward), anchor.away.as_ref()];
        dims.into_iter().flatten().all(|vector| vector.len() == shard.dim())
            && (anchor.attribute as usize) < shard.attributes()
    };
    anchors.iter().all(fits).then_some(shard).ok_or_else(|| format!("the attributes are not those of shard {number}"))
}

fn sample_of(shard: &Shard, removed: Option<&RowSet>, anchors: &[Anchor], most: u32) -> Sample {
    let mut rows = spread(shard, most);
    rows.retain(|row| !removed.is_some_and(|removed| removed.contains(*row)));
    let label = |row: u32, anchor: &Anchor| shard.labels(row)[anchor.attribute as usize];
    let cells = || rows.iter().flat_map(|row| anchors.iter().map(move |anchor| (*row, anchor)));
    Sample {
        shard: shard.number(),
        labels: cells().map(|(row, anchor)| label(row, anchor)).collect(),
        margins: cells().map(|(row, anchor)| anchor.margin(shard.embedding(row)) as f32).collect(),
    }
}

/// Rows outside of the training split, evenly spread: the training has seen the labels of all others.
fn spread(shard: &Shard, most: u32) -> Vec<u32> {
    let unseen: Vec<u32> = (0..shard.rows() as u32).filter(|row| shard.split(*row) != 0).collect();
    let count = unseen.len().min(most as usize);
    (0..count).map(|at| unseen[at * unseen.len() / count]).collect()
}

/// A curve, or why there is none.
pub type Curve = Result<Calibration, String>;

/// The curves of some attributes from the samples of all shards.
pub fn fit_all(anchors: usize, mut samples: Vec<Sample>) -> Vec<Curve> {
    samples.sort_unstable_by_key(|sample| sample.shard);
    let of = |anchor: usize| {
        let cells = samples.iter().flat_map(|sample| sample.labels.iter().zip(&sample.margins));
        let known = cells.skip(anchor).step_by(anchors).filter(|(label, _)| **label != 0);
        let points: Vec<(f64, bool)> = known.map(|(label, margin)| (f64::from(*margin), *label > 0)).collect();
        fit(&points)
    };
    (0..anchors).map(of).collect()
}

/// Fits the curve to margins and labels: logistic regression with Platt's targets, which keep it finite where the labels are
/// separated, by Newton's method with halved steps (H.-T. Lin, C.-J. Lin, R. Weng, "A note on Platt's probabilistic outputs", 2007).
fn fit(points: &[(f64, bool)]) -> Curve {
    let has = points.iter().filter(|(_, has)| *has).count();
    let (rows, rarer) = (points.len(), has.min(points.len() - has));
    if rows < LEAST_ROWS[0] || rarer < LEAST_ROWS[1] {
        let [least, least_rarer] = LEAST_ROWS;
        return Err(format!(
            "of the rows outside of the training split {rows} have a known label, {rarer} of them the rarer one; {least} and {least_rarer} are needed"
        ));
    }
    let targets = [1.0 / ((rows - has) as f64 + 2.0), (has as f64 + 1.0) / (has as f64 + 2.0)];
    let target = |has: bool| targets[usize::from(has)];
    // −log likelihood; written so that exp never overflows.
    let loss = |a: f64, b: f64| -> f64 {
        let of = |&(x, has): &(f64, bool)| {
            let z = a * x + b;
            z.max(0.0) - target(has) * z + (-z.abs()).exp().ln_1p()
        };
        points.iter().map(of).sum()
    };
    let (mut a, mut b) = (0.0, ((has as f64 + 1.0) / ((rows - has) as f64 + 1.0)).ln());
    let mut current = loss(a, b);
    for _ in 0..MAX_STEPS {
        let (gradient, hessian) = derivatives(points, target, a, b);
        let determinant = hessian[0] * hessian[2] - hessian[1] * hessian[1];
        let step = [
            -(hessian[2] * gradient[0] - hessian[1] * gradient[1]) / determinant,
            -(hessian[0] * gradient[1] - hessian[1] * gradient[0]) / determinant,
        ];
        let slope = gradient[0] * step[0] + gradient[1] * step[1];
        let halved = (0..40).map(|halvings| 0.5f64.powi(halvings));
        let better = halved.map(|t| (a + t * step[0], b + t * step[1], t)).find(|(a, b, t)| {
            // An infinite or undefined step is none.
            loss(*a, *b) <= current + 1e-4 * t * slope
        });
        let Some((next_a, next_b, _)) = better else { break };
        let next = loss(next_a, next_b);
        let gained = current - next;
        (a, b, current) = (next_a, next_b, next);
        if gained <= 1e-12 * (1.0 + current) {
            break;
        }
    }
    let mut curve = Calibration { rows: rows as u32, has: has as u32, right: 0.0, slope: a, intercept: b };
    let right = points.iter().filter(|(margin, has)| (curve.estimate(*margin) >= 0.5) == *has).count();
    curve.right = right as f64 / rows as f64;
    Ok(curve)
}

/// Gradient, and the second derivatives aa, ab, bb with a trifle on the diagonal, so that they can be inverted.
fn derivatives(points: &[(f64, bool)], target: impl Fn(bool) -> f64, a: f64, b: f64) -> ([f64; 2], [f64; 3]) {
    let (mut gradient, mut hessian) = ([0.0; 2], [1e-12, 0.0, 1e-12]);
    for &(x, has) in points {
        let p = 1.0 / (1.0 + (-(a * x + b)).exp());
        let (off, spread) = (p - target(has), p * (1.0 - p));
        gradient[0] += off * x;
        gradient[1] += off;
        hessian[0] += spread * x * x;
        hessian[1] += spread * x;
        hessian[2] += spread;
    }
    (gradient, hessian)
}

/// Curves that a root has in memory.
#[derive(Debug, Default)]
pub struct Curves {
    known: Mutex<HashMap<(GenerationRef, u32), Curve>>,
}

impl Curves {
    /// The curve of an attribute.
    pub fn get(&self, generation: &GenerationRef, attribute: u32) -> Option<Curve> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(generation.clone(), attribute)).cloned()
    }

    /// A curve was fitted.
    pub fn put(&self, generation: &GenerationRef, attribute: u32, curve: Curve) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_CURVES {
            known.clear();
        }
        known.insert((generation.clone(), attribute), curve);
    }

    /// Items were removed, or shown again: curves are fitted to what is there now.
    pub fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Puts margins, curves and labels together. `margins` are per hit and attribute.
pub fn explanation(
    vocabulary: &[String],
    asked: &[(u32, bool)],
    curves: &[Curve],
    hits: &[Hit],
    margins: &[f64],
) -> Explanation {
    let wanted = |has: bool| if has { 1 } else { -1 };
    let attribute = |(&(attribute, has), curve): (&(u32, bool), &Curve)| ExplainedAttribute {
        name: vocabulary[attribute as usize].clone(),
        wanted: wanted(has),
        calibration: curve.as_ref().ok().copied(),
        uncalibrated: curve.as_ref().err().cloned(),
    };
    let hit = |(hit, margins): (&Hit, &[f64])| {
        let of = |((&(attribute, has), curve), margin): ((&(u32, bool), &Curve), &f64)| {
            let label = hit.labels.get(attribute as usize).copied().unwrap_or(0);
            Finding::of(label, *margin, curve.as_ref().ok(), wanted(has))
        };
        let attributes: Vec<Finding> = asked.iter().zip(curves).zip(margins).map(of).collect();
        let agrees = attributes.iter().filter(|finding| finding.agrees == Some(true)).count() as u32;
        HitExplanation { agrees, attributes }
    };
    Explanation {
        attributes: asked.iter().zip(curves).map(attribute).collect(),
        hits: hits.iter().zip(margins.chunks_exact(asked.len().max(1))).map(hit).collect(),
    }
}

#[cfg(test)]
mod tests {
    use likeness_contract::datasets::{Removal, RemovalChange, Removed};
    use likeness_contract::ids::Name;
    use likeness_index::ShardRows;

    use super::*;

    /// Margins −1…1, of which those above 0 have it, but for every fifth row.
    fn points(rows: usize) -> Vec<(f64, bool)> {
        let margin = |row: usize| row as f64 / (rows - 1) as f64 * 2.0 - 1.0;
        (0..rows).map(|row| (margin(row), (margin(row) > 0.0) != row.is_multiple_of(5))).collect()
    }

    #[test]
    fn a_curve_is_where_the_likelihood_is_greatest() {
        let points = points(400);
        let curve = fit(&points).unwrap();
        assert_eq!((curve.rows, curve.has, curve.right), (400, 200, 0.8));
        let has = points.iter().filter(|(_, has)| *has).count() as f64;
        let target = |is: bool| if is { (has + 1.0) / (has + 2.0) } else { 1.0 / (400.0 - has + 2.0) };
        let (gradient, _) = derivatives(&points, target, curve.slope, curve.intercept);
        assert!(gradient.iter().all(|part| part.abs() < 1e-6), "{gradient:?}");
        assert!(curve.slope > 1.0 && curve.estimate(1.0) > 0.8 && curve.estimate(-1.0) < 0.2, "{curve:?}");
        // The mean estimate is the share that has it, as Platt's targets count them.
        let mean = points.iter().map(|(margin, _)| curve.estimate(*margin)).sum::<f64>() / 400.0;
        assert!((mean - 0.5).abs() < 1e-6, "{mean}");
    }

    #[test]
    fn labels_that_a_margin_separates_give_a_finite_curve() {
        let points: Vec<_> = (0..100).map(|row| (f64::from(row) * 1e3 - 49.5e3, row >= 50)).collect();
        let curve = fit(&points).unwrap();
        assert!(curve.slope.is_finite() && curve.slope > 0.0 && curve.right == 1.0, "{curve:?}");
        let same: Vec<_> = (0..100).map(|row| (0.25, row % 4 == 0)).collect();
        let curve = fit(&same).unwrap();
        assert!((curve.estimate(0.25) - 0.25).abs() < 0.02, "a margin that says nothing leaves the share: {curve:?}");
    }

    #[test]
    fn too_few_rows_give_no_curve() {
        assert!(fit(&points(49)).unwrap_err().starts_with("of the rows outside of the training split 49 have"));
        let one_sided: Vec<_> = (0..100).map(|row| (f64::from(row), row < 9)).collect();
        assert!(fit(&one_sided).unwrap_err().contains("9 of them the rarer one"));
    }

    fn held(rows: usize) -> HeldShards {
        let angle = |row: usize| row as f32 / rows as f32 * std::f32::consts::PI;
        let rows = ShardRows {
            item_ids: (0..rows).map(|row| format!("{row:04}")).collect(),
            embeddings: (0..rows).flat_map(|row| [angle(row).cos(), angle(row).sin()]).collect(),
            labels: (0..rows).flat_map(|row| [if row < rows / 2 { 1 } else { -1 }, 0]).collect(),
            split: (0..rows).map(|row| (row % 3) as u8).collect(),
            source_part: vec![0; rows],
            source_row: vec![0; rows],
            image_digest: vec![[0; 32]; rows],
        };
        let shard = Shard::new(7, rows, 2, 2).unwrap();
        BTreeMap::from([(7, Arc::new(HeldShard::new(shard, None)))])
    }

    fn anchors() -> Vec<Anchor> {
        let anchor = |attribute| Anchor { attribute, toward: vec![1.0, 0.0], away: Some(vec![-1.0, 0.0]) };
        vec![anchor(0), anchor(1)]
    }

    #[test]
    fn a_sample_is_of_rows_that_the_training_has_not_seen() {
        let held = held(300);
        assert_eq!(spread(&held[&7], 4), [1, 76, 151, 226]);
        let [sample] = sample(&held, &[7], &anchors(), 1000).unwrap().try_into().unwrap();
        assert_eq!((sample.labels.len(), sample.margins.len()), (400, 400));
        let curves = fit_all(2, vec![sample]);
        assert_eq!(curves[0].as_ref().unwrap().rows, 200);
        assert!(curves[0].as_ref().unwrap().right > 0.99);
        assert!(curves[1].as_ref().unwrap_err().contains(" 0 have a known label"));
        assert_eq!(margins(&held, &[(7, 0)], &anchors()).unwrap(), [2.0, 2.0]);
    }

    #[test]
    fn what_was_removed_is_in_no_sample() {
        let held = held(300);
        let mut removed = Removed::default();
        let (dataset, change) = (Name::new("faces").unwrap(), RemovalChange::Remove);
        let items = vec!["0001".to_string(), "0226".to_string(), "0299".to_string()];
        removed.apply(&Removal { dataset, number: 1, change, items, created_ms: 0 });
        held[&7].take_out(&removed);
        let [few] = sample(&held, &[7], &anchors()[..1], 4).unwrap().try_into().unwrap();
        assert_eq!(few.labels, [1, -1], "of the rows 1, 76, 151 and 226 two are left");
        let [all] = sample(&held, &[7], &anchors()[..1], 1000).unwrap().try_into().unwrap();
        assert_eq!(all.labels.len(), 197);
    }

    #[test]
    fn what_a_leaf_cannot_tell_is_refused() {
        let held = held(9);
        assert_eq!(margins(&held, &[(6, 0)], &anchors()).unwrap_err(), "does not hold shard 6");
        assert_eq!(margins(&held, &[(7, 9)], &anchors()).unwrap_err(), "shard 7 has no row 9");
        let other = [Anchor { attribute: 2, toward: vec![1.0, 0.0], away: None }];
        assert!(margins(&held, &[(7, 0)], &other).unwrap_err().contains("not those of shard 7"));
        let long = [Anchor { attribute: 0, toward: vec![1.0, 0.0, 0.0], away: None }];
        assert!(sample(&held, &[7], &long, 1).unwrap_err().contains("not those of shard 7"));
        assert!(sample(&held, &[7], &anchors(), u32::MAX).unwrap_err().contains("over the limit"));
        assert!(check(0, 300).unwrap_err().message.contains("nothing to explain"));
        assert!(check(17, 4096).unwrap_err().message.contains("at most 16"));
        assert!(check(64, 300).is_ok());
    }
}
