//! Triplets: an anchor image, an attribute query that it satisfies, and one that it contradicts.
//!
//! **Invariants.** A batch is a pure function of (settings, labels, step): any worker, any attempt, the same
//! bytes. Every labelled row is an anchor once per epoch, in an order of that epoch's own. The anchor has
//! every attribute that its positive says. The negative speaks about the very same attributes as the positive and
//! contradicts the anchor in at least one of them.
//!
//! **Negatives**, one strategy per triplet by the shares of `NegativeMix`:
//! * `random`: each asked attribute + or − by a coin; mostly easy and implausible, kept to show that;
//! * `other`: what another training image has of the asked attributes; where it is not known of the other, the
//!   positive's word stays;
//! * `flipped`: the positive with 1–3 of the attributes turned round in which another training image differs.
//!   Where [`TRIES`] draws find no image that differs, any 1–3 of the asked ones are turned.
//!
//! **Masks** (all but multi-hot). People ask one to three attributes, now and then more, so `masked_share` of the
//! queries keep only a few of the anchor's attributes: one 30 %, two 30 %, three 25 %, and 15 % any number from four
//! to all; the rest keep everything. Which ones are kept is drawn evenly and *together with the other image, until the
//! two differ*. So a pair is as likely to come the other way round, with the roles of the two images exchanged:
//! neither a sign nor an attribute tells a positive from an `other` negative without a look at the image. (Drawing the
//! mask first, or by sign, gives the word of the majority to positives and that of the minority to negatives, and
//! a network learns just that.) It also asks balanced attributes more often than constant ones.

use std::sync::{Arc, Mutex};

use likeness_contract::settings::{NegativeMix, QueryEncoding, TrainSettings};
use rand_chacha::ChaCha8Rng;

use crate::augment::{Augment, Augmentation};
use crate::error::{Error, Result};
use crate::random::{Purpose, below, coin, shuffle, stream, unit};

/// Draws for a contradicting negative before the positive is flipped instead.
const TRIES: usize = 32;
/// Most attributes that a flipped negative turns round.
const MAX_FLIPS: usize = 3;
/// Validation is the same for every training of the same rows.
const VALIDATION_SEED: u64 = 0;

/// One batch of B triplets over A attributes.
#[derive(Debug, Clone, PartialEq)]
pub struct TripletRows {
    /// Anchors: rows of the split.
    pub rows: Vec<u32>,
    /// (B, A): what each anchor satisfies, encoded for the attribute tower.
    pub positives: Vec<f32>,
    /// (B, A): what each anchor contradicts.
    pub negatives: Vec<f32>,
    /// How each anchor's image is changed.
    pub augment: Vec<Augment>,
}

/// Draws the triplets of one split.
#[derive(Debug)]
pub struct TripletSampler {
    encoding: QueryEncoding,
    negatives: NegativeMix,
    masked_share: f32,
    augmentation: Augmentation,
    seed: u64,
    batch: usize,
    attributes: usize,
    /// N × A.
    labels: Vec<i8>,
    /// Rows with at least one known label.
    usable: Vec<u32>,
    /// The order of the epoch that was asked for last.
    order: Mutex<Option<(u64, Arc<[u32]>)>>,
}

impl TripletSampler {
    /// A sampler over `labels` (N × A, each −1, 0, 1) of a split. Rows without any known label are never
    /// anchors; a split without a labelled row, or settings that make no sense, are refused (`Invalid`).
    pub fn new(settings: &TrainSettings, encoding: QueryEncoding, labels: Vec<i8>, attributes: usize) -> Result<Self> {
        check_settings(settings)?;
        if attributes == 0 || !labels.len().is_multiple_of(attributes) {
            return Err(Error::invalid(format!("{} labels are no rows of {attributes} attributes", labels.len())));
        }
        if let Some(label) = labels.iter().find(|label| !(-1..=1).contains(*label)) {
            return Err(Error::invalid(format!("label {label} is not −1, 0 or 1")));
        }
        let rows = u32::try_from(labels.len() / attributes).map_err(|_| Error::invalid("more than 2³² rows"))?;
        let row = |row: u32| &labels[row as usize * attributes..][..attributes];
        let usable: Vec<u32> = (0..rows).filter(|r| row(*r).iter().any(|label| *label != 0)).collect();
        if usable.is_empty() {
            return Err(Error::invalid(format!("none of {rows} rows has a known attribute: nothing to train on")));
        }
        Ok(Self {
            encoding,
            negatives: settings.negatives,
            masked_share: match encoding {
                QueryEncoding::ThreeState | QueryEncoding::LogProbability => settings.masked_share,
                QueryEncoding::MultiHot => 0.0,
            },
            augmentation: Augmentation::of(settings),
            seed: settings.seed,
            batch: (settings.batch_size as usize).min(usable.len()),
            attributes,
            labels,
            usable,
            order: Mutex::new(None),
        })
    }

    /// Batches of one epoch; an incomplete last one is left out.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.usable.len() / self.batch) as u64
    }

    /// The batch of optimizer step `step`, counted from 0 through all epochs. A split smaller than one batch
    /// is one batch.
    pub fn batch(&self, step: u64) -> TripletRows {
        let order = self.order(step / self.steps_per_epoch());
        let from = (step % self.steps_per_epoch()) as usize * self.batch;
        let mut rng = stream(self.seed, Purpose::Batch, step);
        self.draw(&order[from..from + self.batch], true, &mut rng)
    }

    /// All labelled rows in batches, in their own order, without augmentation; every call, and every seed of the
    /// settings, gives the same. The last batch may be smaller.
    pub fn validation(&self) -> Vec<TripletRows> {
        let batches = self.usable.chunks(self.batch).zip(0u64..);
        batches.map(|(rows, i)| self.draw(rows, false, &mut stream(VALIDATION_SEED, Purpose::Validation, i))).collect()
    }

    fn order(&self, epoch: u64) -> Arc<[u32]> {
        let mut kept = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((_, order)) = kept.as_ref().filter(|(of, _)| *of == epoch) {
            return order.clone();
        }
        let mut order = self.usable.clone();
        shuffle(&mut stream(self.seed, Purpose::Order, epoch), &mut order);
        let order: Arc<[u32]> = order.into();
        *kept = Some((epoch, order.clone()));
        order
    }

    fn draw(&self, rows: &[u32], augmented: bool, rng: &mut ChaCha8Rng) -> TripletRows {
        let numbers = rows.len() * self.attributes;
        let mut batch = TripletRows {
            rows: rows.to_vec(),
            positives: Vec::with_capacity(numbers),
            negatives: Vec::with_capacity(numbers),
            augment: Vec::with_capacity(rows.len()),
        };
        for row in rows {
            let (positive, negative) = self.pair(*row, rng);
            batch.positives.extend(positive.iter().map(|word| self.encode(*word)));
            batch.negatives.extend(negative.iter().map(|word| self.encode(*word)));
            batch.augment.push(if augmented { self.augmentation.draw(rng) } else { Augment::NONE });
        }
        batch
    }

    fn encode(&self, word: i8) -> f32 {
        match self.encoding {
            QueryEncoding::ThreeState | QueryEncoding::LogProbability => f32::from(word),
            QueryEncoding::MultiHot => f32::from(word.max(0)),
        }
    }

    fn labels_of(&self, row: u32) -> &[i8] {
        &self.labels[row as usize * self.attributes..][..self.attributes]
    }

    /// A positive and a negative of an anchor.
    fn pair(&self, row: u32, rng: &mut ChaCha8Rng) -> (Vec<i8>, Vec<i8>) {
        let labels = self.labels_of(row);
        let masked = unit(rng) < self.masked_share;
        let kept =
            if masked { how_many(labels.iter().filter(|label| **label != 0).count(), rng) } else { labels.len() };
        let choice = unit(rng);
        if choice < self.negatives.random {
            let positive = keep(labels, kept, rng);
            let drawn =
                (0..TRIES).map(|_| random_words(&positive, rng)).find(|words| !differing(&positive, words).is_empty());
            let negative = drawn.unwrap_or_else(|| turned(&positive, asked(&positive), rng));
            return (positive, negative);
        }
        for _ in 0..TRIES {
            let positive = keep(labels, kept, rng);
            let other = self.words_of_another(&positive, rng);
            let differing = differing(&positive, &other);
            if differing.is_empty() {
                continue;
            }
            let is_other = choice < self.negatives.random + self.negatives.other;
            let negative = if is_other { other } else { turned(&positive, differing, rng) };
            return (positive, negative);
        }
        let positive = keep(labels, kept, rng);
        let negative = turned(&positive, asked(&positive), rng);
        (positive, negative)
    }

    /// What some training image says about the attributes asked.
    fn words_of_another(&self, positive: &[i8], rng: &mut ChaCha8Rng) -> Vec<i8> {
        let other = self.labels_of(self.usable[below(rng, self.usable.len())]);
        positive.iter().zip(other).map(|(word, label)| if *word == 0 || *label == 0 { *word } else { *label }).collect()
    }
}

fn check_settings(settings: &TrainSettings) -> Result<()> {
    let NegativeMix { random, other, flipped } = settings.negatives;
    let shares = [random, other, flipped];
    if shares.iter().any(|share| !(0.0..=1.0).contains(share)) || (shares.iter().sum::<f32>() - 1.0).abs() > 1e-3 {
        return Err(Error::invalid(format!("shares of negatives {shares:?} are not within 0–1 with the sum 1")));
    }
    if !(0.0..=1.0).contains(&settings.masked_share) {
        return Err(Error::invalid(format!("masked share {} is not within 0–1", settings.masked_share)));
    }
    if settings.batch_size == 0 {
        return Err(Error::invalid("batch size 0"));
    }
    Ok(())
}

/// Keeps so many of the known labels, drawn evenly.
fn keep(labels: &[i8], count: usize, rng: &mut ChaCha8Rng) -> Vec<i8> {
    let mut known = asked(labels);
    if count >= known.len() {
        return labels.to_vec();
    }
    let mut kept = vec![0; labels.len()];
    for _ in 0..count {
        let attribute = known.swap_remove(below(rng, known.len()));
        kept[attribute] = labels[attribute];
    }
    kept
}

/// The attributes that a query says something about.
fn asked(words: &[i8]) -> Vec<usize> {
    (0..words.len()).filter(|a| words[*a] != 0).collect()
}

/// The attributes about which two queries say the opposite.
fn differing(a: &[i8], b: &[i8]) -> Vec<usize> {
    (0..a.len()).filter(|i| a[*i] * b[*i] == -1).collect()
}

/// How many attributes a masked query keeps of `known`.
fn how_many(known: usize, rng: &mut ChaCha8Rng) -> usize {
    let wanted = match unit(rng) {
        u if u < 0.30 => 1,
        u if u < 0.60 => 2,
        u if u < 0.85 => 3,
        _ if known > 4 => 4 + below(rng, known - 3),
        _ => 4,
    };
    wanted.min(known)
}

fn random_words(positive: &[i8], rng: &mut ChaCha8Rng) -> Vec<i8> {
    positive.iter().map(|word| if *word != 0 && coin(rng) { -word } else { *word }).collect()
}

/// The positive with 1–3 of some of its attributes turned round.
fn turned(positive: &[i8], mut some: Vec<usize>, rng: &mut ChaCha8Rng) -> Vec<i8> {
    let mut words = positive.to_vec();
    let flips = 1 + below(rng, MAX_FLIPS.min(some.len()));
    for _ in 0..flips {
        let attribute = some.swap_remove(below(rng, some.len()));
        words[attribute] = -words[attribute];
    }
    words
}

#[cfg(test)]
mod tests;
