//! What a training can make small: one function of an embedded batch.
//!
//! **Who satisfies what.** An image satisfies a query that it contradicts in nothing and of which nothing is unknown of it;
//! one that contradicts a query is a negative of it; what is unknown is neither. So within a batch an image that satisfies a
//! query is never its negative.

use candle_core::{Device, Tensor};
use candle_nn::ops::log_softmax;

use likeness_contract::settings::Loss;

use crate::error::Result;
use crate::joint;
use crate::loss::Triplets;

/// Keeps the slope of a distance finite where two vectors are one.
const LEAST_SQUARE: f64 = 1e-12;
/// Takes an image out of a softmax.
const OUT: f32 = -1e9;

/// A batch as a loss sees it: B images, their labels and their queries.
#[derive(Debug)]
pub(crate) struct Embedded<'a> {
    /// What the head gives `(B, A)` in a space of log-probabilities, its logits.
    pub logits: &'a Tensor,
    /// Images in the space `(B, D)`.
    pub anchors: &'a Tensor,
    /// Queries that their images satisfy `(B, D)`.
    pub positives: &'a Tensor,
    /// Queries that they contradict `(B, D)`.
    pub negatives: &'a Tensor,
    /// Of the images `(B, A)`: 1 has, −1 has not, 0 unknown.
    pub labels: &'a Tensor,
    /// What the positives say `(B, A)`.
    pub words: &'a Tensor,
}

/// The mean loss of a batch, a scalar on the tape.
pub(crate) fn of(loss: Loss, margin: f64, batch: &Embedded<'_>) -> Result<Tensor> {
    match loss {
        Loss::Triplet => Triplets::new(batch.anchors, batch.positives, batch.negatives)?.loss(margin),
        Loss::SemiHardTriplet => in_batch(margin, batch, semi_hard),
        Loss::AllTriplets => in_batch(margin, batch, all_active),
        Loss::InfoNce { temperature } => info_nce(f64::from(temperature), batch),
        Loss::BinaryCrossEntropy => binary_cross_entropy(batch.logits, batch.labels),
    }
}

/// Mean of `log(1 + e^(−y z))` over the known labels y.
fn binary_cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let known = labels.abs()?;
    let count = f64::from(known.sum_all()?.to_scalar::<f32>()?).max(1.0);
    let loss = (joint::softplus(&(logits * labels)?.neg()?)? * known)?;
    Ok((loss.sum_all()? / count)?)
}

/// Mean over queries and the images that satisfy each of `−log softmax` of their cosine, among all that satisfy or contradict.
fn info_nce(temperature: f64, batch: &Embedded<'_>) -> Result<Tensor> {
    let relations = Relations::of(batch)?;
    let cosines = (batch.positives.matmul(&batch.anchors.t()?)? / temperature)?;
    let out = |relation: &Relation| if *relation == Relation::Unknown { OUT } else { 0.0 };
    let share = |row: &[Relation]| {
        let positives = row.iter().filter(|relation| **relation == Relation::Satisfies).count().max(1);
        1.0 / (positives * relations.size) as f32
    };
    let rows = || relations.rows().map(|row| (row, share(row)));
    let weight = |(row, share): (&[Relation], f32)| -> Vec<f32> {
        row.iter().map(|relation| if *relation == Relation::Satisfies { share } else { 0.0 }).collect()
    };
    let out = relations.matrix(relations.all.iter().map(out).collect(), cosines.device())?;
    let weights = relations.matrix(rows().flat_map(weight).collect(), cosines.device())?;
    let likely = log_softmax(&(cosines + out)?, 1)?;
    Ok((likely * weights)?.sum_all()?.neg()?)
}

/// A sum of `margin + d(query, satisfying) − d(query, contradicting)` over chosen triplets, divided by `over`: how often each
/// distance is in it, and how many triplets there are.
struct Chosen {
    counts: Vec<f32>,
    triplets: usize,
    over: usize,
}

/// The choice is made by numbers; a distance's share in the loss is then a constant, and the slope that of the hinges.
fn in_batch(margin: f64, batch: &Embedded<'_>, choose: fn(&Relations, &[f32], f32) -> Chosen) -> Result<Tensor> {
    let relations = Relations::of(batch)?;
    let cosines = batch.positives.matmul(&batch.anchors.t()?)?;
    let distances = (((cosines * -2.0)? + 2.0)?.relu()? + LEAST_SQUARE)?.sqrt()?;
    let known: Vec<f32> = distances.detach().flatten_all()?.to_vec1()?;
    let Chosen { counts, triplets, over } = choose(&relations, &known, margin as f32);
    let over = over.max(1) as f64;
    let counts = relations.matrix(counts, distances.device())?;
    Ok((((distances * counts)?.sum_all()? / over)? + margin * triplets as f64 / over)?)
}

/// Every triplet inside the margin, the mean over them.
fn all_active(relations: &Relations, distances: &[f32], margin: f32) -> Chosen {
    let mut chosen = Chosen { counts: vec![0.0; distances.len()], triplets: 0, over: 0 };
    for (query, row) in relations.rows().enumerate() {
        let from = query * relations.size;
        for p in places(row, Relation::Satisfies) {
            for n in places(row, Relation::Contradicts) {
                if margin + distances[from + p] - distances[from + n] > 0.0 {
                    chosen.add(from + p, from + n);
                }
            }
        }
    }
    chosen.over = chosen.triplets;
    chosen
}

/// Per query and image that satisfies it one triplet: with the nearest negative behind it, or the farthest of all where none
/// is behind it; the mean over all of them, as FaceNet's.
fn semi_hard(relations: &Relations, distances: &[f32], margin: f32) -> Chosen {
    let mut chosen = Chosen { counts: vec![0.0; distances.len()], triplets: 0, over: 0 };
    for (query, row) in relations.rows().enumerate() {
        let from = query * relations.size;
        let mut negatives: Vec<usize> = places(row, Relation::Contradicts).collect();
        negatives.sort_by(|a, b| distances[from + a].total_cmp(&distances[from + b]));
        let Some(farthest) = negatives.last() else { continue };
        for p in places(row, Relation::Satisfies) {
            let dp = distances[from + p];
            let behind = negatives.partition_point(|n| distances[from + n] <= dp);
            let n = *negatives.get(behind).unwrap_or(farthest);
            chosen.over += 1;
            if margin + dp - distances[from + n] > 0.0 {
                chosen.add(from + p, from + n);
            }
        }
    }
    chosen
}

impl Chosen {
    fn add(&mut self, positive: usize, negative: usize) {
        self.counts[positive] += 1.0;
        self.counts[negative] -= 1.0;
        self.triplets += 1;
    }
}

fn places(row: &[Relation], wanted: Relation) -> impl Iterator<Item = usize> {
    row.iter().enumerate().filter(move |(_, relation)| **relation == wanted).map(|(at, _)| at)
}

/// What an image is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Satisfies,
    Contradicts,
    /// Something that is asked is not known of it.
    Unknown,
}

/// Of B queries, and of each B images.
#[derive(Debug)]
struct Relations {
    size: usize,
    all: Vec<Relation>,
}

impl Relations {
    fn of(batch: &Embedded<'_>) -> Result<Self> {
        let (words, labels) = (batch.words.to_vec2::<f32>()?, batch.labels.to_vec2::<f32>()?);
        let all = words.iter().flat_map(|words| labels.iter().map(|labels| relation(words, labels))).collect();
        Ok(Self { size: words.len(), all })
    }

    fn rows(&self) -> impl Iterator<Item = &[Relation]> {
        self.all.chunks_exact(self.size)
    }

    /// Numbers per query and image as a tensor `(B, B)`.
    fn matrix(&self, values: Vec<f32>, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(values, (self.size, self.size), device)?)
    }
}

fn relation(words: &[f32], labels: &[f32]) -> Relation {
    let asked = || words.iter().zip(labels).filter(|(word, _)| **word != 0.0);
    if asked().any(|(word, label)| word * label < 0.0) {
        Relation::Contradicts
    } else if asked().any(|(_, label)| *label == 0.0) {
        Relation::Unknown
    } else {
        Relation::Satisfies
    }
}

#[cfg(test)]
mod tests;
