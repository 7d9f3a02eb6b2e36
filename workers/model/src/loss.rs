//! Triplet loss and the figures that tell how training goes.

use candle_core::{D, Tensor};

use likeness_contract::tables::DISTANCE_BINS;

use crate::error::{Error, Result};

/// PyTorch's `TripletMarginLoss(eps=1e-6)`: added to every element of a difference before its norm is taken.
const DISTANCE_EPS: f64 = 1e-6;
/// The histograms span 0–2, all that unit vectors can be apart.
const LARGEST_DISTANCE: f64 = 2.0;

/// Distances of B triplets.
#[derive(Debug)]
pub struct Triplets {
    dp: Tensor,
    dn: Tensor,
}

impl Triplets {
    /// From anchors, positives and negatives, each `(B, D)`: `d(x, y) = ‖x − y + eps‖₂`.
    ///
    /// # Errors
    /// When shapes differ or the device fails.
    pub fn new(anchor: &Tensor, positive: &Tensor, negative: &Tensor) -> Result<Self> {
        Ok(Self { dp: distance(anchor, positive)?, dn: distance(anchor, negative)? })
    }

    /// d(anchor, positive), `(B)`
    pub fn positive_distances(&self) -> &Tensor {
        &self.dp
    }

    /// d(anchor, negative), `(B)`
    pub fn negative_distances(&self) -> &Tensor {
        &self.dn
    }

    /// Mean of `max(0, margin + dp − dn)`, a scalar; equals `TripletMarginLoss(margin)`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn loss(&self, margin: f64) -> Result<Tensor> {
        Ok(((&self.dp - &self.dn)? + margin)?.relu()?.mean_all()?)
    }

    /// What the batch looks like; `loss` is computed anew from the distances, in f64.
    ///
    /// # Errors
    /// When a distance is not finite, or the device fails.
    pub fn figures(&self, margin: f64, lr: f64) -> Result<StepFigures> {
        let (dp, dn) = (self.dp.to_vec1::<f32>()?, self.dn.to_vec1::<f32>()?);
        if let Some(d) = dp.iter().chain(&dn).find(|d| !d.is_finite()) {
            return Err(Error::not_finite(format!("a distance is {d}")));
        }
        Ok(StepFigures::of(&dp, &dn, margin, lr))
    }
}

/// `(B, D)`, `(B, D)` → `(B)`
fn distance(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok(((a - b)? + DISTANCE_EPS)?.sqr()?.sum(D::Minus1)?.sqrt()?)
}

/// The figures of one batch, or the mean over several.
#[derive(Debug, Clone, PartialEq)]
pub struct StepFigures {
    /// Triplets, B.
    pub rows: u64,
    /// Mean loss: of the figures of triplets alone the triplet loss, of a training what it makes small.
    pub loss: f64,
    /// Share with dn ≥ dp + m: no loss.
    pub easy: f64,
    /// Share with dp < dn < dp + m.
    pub semi_hard: f64,
    /// Share with dn ≤ dp.
    pub hard: f64,
    /// Share with dn > dp.
    pub correct: f64,
    /// Mean distance between anchor and positive.
    pub dp_mean: f64,
    /// Mean distance between anchor and negative.
    pub dn_mean: f64,
    /// Triplets by dp: equal bins over 0–2, what lies beyond in the last.
    pub dp_histogram: [u32; DISTANCE_BINS],
    /// Triplets by dn.
    pub dn_histogram: [u32; DISTANCE_BINS],
    /// Learning rate of the step.
    pub lr: f64,
}

impl StepFigures {
    fn of(dp: &[f32], dn: &[f32], margin: f64, lr: f64) -> Self {
        let rows = dp.len().max(1) as f64;
        let pairs = || dp.iter().zip(dn).map(|(dp, dn)| (f64::from(*dp), f64::from(*dn)));
        let mean = |f: &dyn Fn(f64, f64) -> f64| pairs().map(|(dp, dn)| f(dp, dn)).sum::<f64>() / rows;
        let share = |f: &dyn Fn(f64, f64) -> bool| pairs().filter(|(dp, dn)| f(*dp, *dn)).count() as f64 / rows;
        Self {
            rows: dp.len() as u64,
            loss: mean(&|dp, dn| (margin + dp - dn).max(0.0)),
            easy: share(&|dp, dn| dn >= dp + margin),
            semi_hard: share(&|dp, dn| dn > dp && dn < dp + margin),
            hard: share(&|dp, dn| dn <= dp),
            correct: share(&|dp, dn| dn > dp),
            dp_mean: mean(&|dp, _| dp),
            dn_mean: mean(&|_, dn| dn),
            dp_histogram: histogram(dp),
            dn_histogram: histogram(dn),
            lr,
        }
    }

    /// Figures over all the rows of several batches; none without a batch. The rate is that of the last.
    pub fn mean_of(batches: &[Self]) -> Option<Self> {
        let rows: u64 = batches.iter().map(|b| b.rows).sum();
        let mean = |f: fn(&Self) -> f64| batches.iter().map(|b| f(b) * b.rows as f64).sum::<f64>() / rows.max(1) as f64;
        let sum =
            |f: fn(&Self) -> &[u32; DISTANCE_BINS]| std::array::from_fn(|i| batches.iter().map(|b| f(b)[i]).sum());
        Some(Self {
            rows,
            loss: mean(|b| b.loss),
            easy: mean(|b| b.easy),
            semi_hard: mean(|b| b.semi_hard),
            hard: mean(|b| b.hard),
            correct: mean(|b| b.correct),
            dp_mean: mean(|b| b.dp_mean),
            dn_mean: mean(|b| b.dn_mean),
            dp_histogram: sum(|b| &b.dp_histogram),
            dn_histogram: sum(|b| &b.dn_histogram),
            lr: batches.last()?.lr,
        })
    }
}

fn histogram(distances: &[f32]) -> [u32; DISTANCE_BINS] {
    let mut bins = [0; DISTANCE_BINS];
    for d in distances {
        let bin = (f64::from(*d) / LARGEST_DISTANCE * DISTANCE_BINS as f64) as usize;
        bins[bin.min(DISTANCE_BINS - 1)] += 1;
    }
    bins
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    const ANCHORS: [[f32; 3]; 4] = [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8], [1.0, 0.0, 0.0], [0.8, 0.0, -0.6]];
    const POSITIVES: [[f32; 3]; 4] = [[0.8, 0.6, 0.0], [0.0, 0.8, 0.6], [0.0, 1.0, 0.0], [0.8, 0.0, -0.6]];
    const NEGATIVES: [[f32; 3]; 4] = [[0.0, 0.6, 0.8], [0.0, 0.6, 0.8], [0.6, 0.8, 0.0], [0.6, 0.0, -0.8]];

    fn triplets(anchors: &Tensor) -> Triplets {
        let tensor = |rows: &[[f32; 3]; 4]| Tensor::new(rows, &Device::Cpu).unwrap();
        Triplets::new(anchors, &tensor(&POSITIVES), &tensor(&NEGATIVES)).unwrap()
    }

    // import torch; a, p, n = (torch.tensor(rows) for rows in (ANCHORS, POSITIVES, NEGATIVES)); a.requires_grad_()
    // loss = torch.nn.TripletMarginLoss(margin=0.1)(a, p, n); loss.backward(); print(loss, a.grad)
    // print(torch.nn.functional.pairwise_distance(a, p), torch.nn.functional.pairwise_distance(a, n))
    const PYTORCH_LOSS: f64 = 0.250656962;
    const PYTORCH_GRADIENT: [[f32; 3]; 4] = [
        [0.0; 3],
        [-1.443366855e-1, -3.211133778e-1, 3.244000673e-2],
        [6.497313827e-2, 4.683013260e-2, -1.027319456e-7],
        [0.0; 3],
    ];

    #[test]
    fn loss_and_gradient_are_pytorchs() {
        let anchors = Var::new(&ANCHORS, &Device::Cpu).unwrap();
        let loss = triplets(anchors.as_tensor()).loss(0.1).unwrap();
        assert!((f64::from(loss.to_scalar::<f32>().unwrap()) - PYTORCH_LOSS).abs() < 1e-6, "{loss}");
        let gradient = loss.backward().unwrap().get(anchors.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        for (got, want) in gradient.iter().flatten().zip(PYTORCH_GRADIENT.iter().flatten()) {
            assert!((got - want).abs() < 1e-5, "{gradient:?}");
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        const H: f32 = 1e-2;
        let at = |rows: &[[f32; 3]; 4]| {
            let anchors = Tensor::new(rows, &Device::Cpu).unwrap();
            triplets(&anchors).figures(0.1, 0.0).unwrap().loss
        };
        let anchors = Var::new(&ANCHORS, &Device::Cpu).unwrap();
        let loss = triplets(anchors.as_tensor()).loss(0.1).unwrap();
        let gradient = loss.backward().unwrap().get(anchors.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        // A row whose distances are not at a kink, where a slope has two values.
        for (row, column) in [(2, 0), (2, 1), (2, 2)] {
            let (mut up, mut down) = (ANCHORS, ANCHORS);
            up[row][column] += H;
            down[row][column] -= H;
            let slope = (at(&up) - at(&down)) / (2.0 * f64::from(H));
            assert!((slope - f64::from(gradient[row][column])).abs() < 1e-3, "{slope} at {row}, {column}");
        }
    }

    #[test]
    fn triplets_are_told_apart_as_easy_semi_hard_and_hard() {
        let (dp, dn) = ([0.5, 0.5, 0.5, 0.5, 1.95], [0.75, 0.55, 0.5, 0.25, 2.4]);
        let figures = StepFigures::of(&dp, &dn, 0.1, 1e-3);
        assert_eq!((figures.easy, figures.semi_hard, figures.hard, figures.correct), (0.4, 0.2, 0.4, 0.6));
        assert!((figures.loss - (0.05 + 0.1 + 0.35) / 5.0).abs() < 1e-7, "{figures:?}");
        assert_eq!((figures.dp_histogram[5], figures.dp_histogram[19]), (4, 1));
        assert_eq!((figures.dn_histogram[7], figures.dn_histogram[19]), (1, 1), "beyond 2 is in the last bin");
        assert!((figures.dp_mean - 0.79).abs() < 1e-6 && figures.rows == 5);
    }

    #[test]
    fn figures_of_several_batches_weigh_every_row_alike() {
        let (dp, dn) = ([0.5f32, 0.6, 0.7, 0.8, 0.9], [0.9f32, 0.2, 0.75, 1.5, 0.1]);
        let whole = StepFigures::of(&dp, &dn, 0.1, 1e-3);
        let parts = [StepFigures::of(&dp[..2], &dn[..2], 0.1, 1e-3), StepFigures::of(&dp[2..], &dn[2..], 0.1, 1e-3)];
        let mean = StepFigures::mean_of(&parts).unwrap();
        assert!((mean.loss - whole.loss).abs() < 1e-12 && (mean.correct - whole.correct).abs() < 1e-12);
        assert_eq!((mean.rows, mean.dp_histogram, mean.dn_histogram), (5, whole.dp_histogram, whole.dn_histogram));
        assert_eq!(StepFigures::mean_of(&[]), None);
    }

    #[test]
    fn a_distance_that_is_no_number_is_an_error() {
        let mut rows = ANCHORS;
        rows[1][1] = f32::NAN;
        let error = triplets(&Tensor::new(&rows, &Device::Cpu).unwrap()).figures(0.1, 0.0).unwrap_err();
        assert!(matches!(error.kind, crate::ErrorKind::NotFinite(_)), "{error}");
    }
}
