//! The report of an evaluation: one value ([`Report`]) that is written as JSON for programs and, with plots
//! and pictures, as one HTML file for people.
//!
//! Nothing in it depends on when or where it was made, so a repeated task gives the same bytes.

use likeness_contract::documents::HeadlineRow;
use likeness_contract::ids::{Digest, JobId};
use likeness_contract::jobs::{DatasetRef, GenerationRef};
use likeness_contract::settings::{EvaluateSettings, ModelSettings, Split, TrainSettings, Vocabulary};
use serde::{Deserialize, Serialize};

use crate::bootstrap;
use crate::estimates::{EstimateFigures, Estimates};
use crate::gallery::Block;
use crate::headline::{headline, mean_of, of_set};
use crate::metrics::{CUTOFFS, random_ap};
use crate::queries::{DrawnQueries, Query, QuerySet};
use crate::scores::{Further, QueryScore};
use crate::sheets::by_gain;

mod html;
mod page;
mod plots;
mod svg;

pub use html::{Sheet, Thumbnail, report_html};

/// Queries in the lists of best and worst.
const EXTREMES: usize = 12;
/// Name and version of the layout.
pub const FORMAT: &str = "likeness-report-1";
/// The same of embeddings that were made elsewhere: there is no [`Subject::embedder`].
pub const FORMAT_2: &str = "likeness-report-2";

/// What was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The job that evaluates.
    pub report: JobId,
    /// The generation.
    pub generation: GenerationRef,
    /// Its model; of embeddings from elsewhere the job that imported them.
    pub model: JobId,
    /// What embedded it; nothing of ours where that was elsewhere.
    #[serde(flatten)]
    pub embedder: Option<Embedder>,
    /// Rows of the dataset that were searched.
    pub rows: Split,
    /// How many.
    pub items: u64,
}

/// What embedded a generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedder {
    /// Digest of the model's weights.
    pub weights: Digest,
    /// Shape and input of the model.
    pub model_settings: ModelSettings,
    /// How it was trained.
    pub train_settings: TrainSettings,
    /// Images.
    pub dataset: DatasetRef,
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`], or [`FORMAT_2`].
    pub format: String,
    /// Version of the program that made it.
    pub software: String,
    /// What was evaluated.
    pub subject: Subject,
    /// Query sets asked for.
    pub settings: EvaluateSettings,
    /// The headline table.
    pub headline: Vec<HeadlineRow>,
    /// Per set, with intervals.
    pub sets: Vec<SetFigures>,
    /// Singles, pairs and triples pooled: what the gate compares.
    pub pooled: PooledFigures,
    /// Per attribute, in the order of the vocabulary.
    pub attributes: Vec<AttributeFigures>,
    /// Numbers of the pooled queries (of all, where none is pooled) furthest above chance, best first.
    pub best: Vec<u32>,
    /// Numbers of the same queries least above chance, worst first.
    pub worst: Vec<u32>,
    /// Why some of the user's own queries were not asked, by line; the first of them.
    #[serde(default)]
    pub own_left_out: Vec<String>,
    /// How far the estimates of the model's head can be trusted; none of a model that has no logits.
    #[serde(default)]
    pub estimates: Option<EstimateFigures>,
}

/// A mean over queries with its 95 % bootstrap interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The mean.
    pub mean: f64,
    /// Percentile interval over resampled queries.
    pub interval: [f64; 2],
}

/// Figures of a query set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetFigures {
    /// The set.
    pub set: QuerySet,
    /// Queries wanted.
    pub wanted: u32,
    /// Queries asked; the rest had too few (or too many) relevant items.
    pub queries: u32,
    /// wanted − queries.
    pub left_out: u32,
    /// Mean average precision.
    pub map: Figure,
    /// Mean share of relevant items.
    pub chance: f64,
    /// Mean expected AP of a random order.
    pub random_map: f64,
    /// Mean P@K.
    pub p_at: Vec<PrecisionAt>,
    /// Figures by other definitions; none when some range was scored by a program that did not know them.
    pub further: Option<FurtherFigures>,
    /// Queries for which some item was left out, since its label is not known.
    pub queries_with_unjudged: u32,
    /// Left-out (query, item) combinations.
    pub unjudged: u64,
}

/// Mean P@K.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PrecisionAt {
    /// K.
    pub k: u32,
    /// Mean with interval.
    pub precision: Figure,
}

/// Means of a set by other definitions than P@K and AP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FurtherFigures {
    /// P@R, R = all relevant items.
    pub r_precision: Figure,
    /// The article's own AP: mean of P@k for k = 1..R.
    pub article_map: Figure,
    /// nDCG@10 by the share of terms fulfilled.
    pub ndcg_at_10: Figure,
    /// nDCG@100.
    pub ndcg_at_100: Figure,
    /// CS-P@10, of the queries by image.
    pub cs_p_at_10: Option<Figure>,
}

/// Figures of the pooled sets ([`QuerySet::POOLED`]) together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PooledFigures {
    /// Queries.
    pub queries: u32,
    /// Mean average precision.
    pub map: Figure,
    /// Mean share of relevant items.
    pub chance: f64,
    /// Mean expected AP of a random order.
    pub random_map: f64,
}

/// Figures of an attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttributeFigures {
    /// Its name.
    pub attribute: String,
    /// Items that have it.
    pub has: u64,
    /// Items that have it not.
    pub has_not: u64,
    /// Items of which it is not known.
    pub unknown: u64,
    /// The query for it alone; none when it was left out.
    pub with: Option<SingleFigures>,
    /// The query for its absence alone; none when it was left out.
    pub without: Option<SingleFigures>,
    /// mAP of the pairs and triples that ask for it (either sign), and how many there are.
    pub combined_map: Option<f64>,
    /// How many pairs and triples that is.
    pub combined_queries: u32,
}

/// Figures of one single.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SingleFigures {
    /// Number of the query.
    pub query: u32,
    /// AP.
    pub average_precision: f64,
    /// Share of relevant items.
    pub chance: f64,
    /// P@10.
    pub p_at_10: f64,
}

/// Counts of labels over the blocks of a gallery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelCounts {
    /// Per attribute: has, has not, unknown.
    counts: Vec<[u64; 3]>,
    items: u64,
}

impl LabelCounts {
    /// Of no item.
    pub fn new(attributes: usize) -> Self {
        Self { counts: vec![[0; 3]; attributes], items: 0 }
    }

    /// Counts a block too.
    pub fn add(&mut self, block: &impl Block) {
        self.items += block.rows() as u64;
        for row in 0..block.rows() {
            for (counts, label) in self.counts.iter_mut().zip(block.labels(row)) {
                counts[match label {
                    1 => 0,
                    -1 => 1,
                    _ => 2,
                }] += 1;
            }
        }
    }

    /// Items counted.
    pub fn items(&self) -> u64 {
        self.items
    }
}

impl Report {
    /// Puts the figures together. `scores` are of exactly the drawn queries, in their order.
    pub fn new(
        subject: Subject,
        settings: EvaluateSettings,
        drawn: &DrawnQueries,
        labels: &LabelCounts,
        estimates: Option<&Estimates>,
        scores: &[QueryScore],
    ) -> Self {
        let sorted = by_gain(scores);
        let numbers = |scores: &[&QueryScore]| scores.iter().map(|score| score.query).collect::<Vec<u32>>();
        let extremes = EXTREMES.min(sorted.len() / 2);
        let mut worst = numbers(&sorted[sorted.len() - extremes..]);
        worst.reverse();
        Self {
            format: if subject.embedder.is_some() { FORMAT } else { FORMAT_2 }.into(),
            software: format!("likeness-evaluation {}", env!("CARGO_PKG_VERSION")),
            headline: headline(scores),
            sets: QuerySet::ALL
                .into_iter()
                .filter(|set| is_told(*set, &settings, subject.embedder.is_some()))
                .map(|set| set_figures(set, drawn, &subject, scores, settings.seed))
                .collect(),
            pooled: pooled(scores, settings.seed),
            attributes: attributes(&drawn.vocabulary, &drawn.queries, labels, scores),
            best: numbers(&sorted[..extremes]),
            worst,
            own_left_out: drawn.left_out.clone(),
            estimates: estimates.map(|estimates| estimates.figures(&drawn.vocabulary)),
            subject,
            settings,
        }
    }

    /// The figures of a set.
    pub fn set(&self, set: QuerySet) -> Option<&SetFigures> {
        self.sets.iter().find(|figures| figures.set == set && figures.queries > 0)
    }
}

/// Whether a set is part of a report: what attributes ask needs a model, and images that ask alone stand for them where there is none.
fn is_told(set: QuerySet, settings: &EvaluateSettings, has_model: bool) -> bool {
    match set {
        QuerySet::Own => settings.own.is_some(),
        QuerySet::Alike => !has_model,
        _ => has_model,
    }
}

/// The report as indented JSON.
pub fn report_json(report: &Report) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(report).expect("figures serialise to JSON");
    bytes.push(b'\n');
    bytes
}

fn set_figures(set: QuerySet, drawn: &DrawnQueries, subject: &Subject, scores: &[QueryScore], seed: u64) -> SetFigures {
    let of_set = of_set(scores, set);
    let wanted = drawn.sets.iter().find(|count| count.set == set).map_or(0, |count| count.wanted);
    // Streams of random numbers: 10 per set, one per figure.
    let purpose = 1_000 + 10 * set as u64;
    let unjudged = |score: &&QueryScore| subject.items.saturating_sub(score.judged);
    SetFigures {
        set,
        wanted,
        queries: of_set.len() as u32,
        left_out: wanted.saturating_sub(of_set.len() as u32),
        map: figure(&of_set, |score| score.average_precision, seed, purpose),
        chance: mean_of(&of_set, |score| score.chance),
        random_map: mean_of(&of_set, |score| random_ap(score.relevant, score.judged)),
        p_at: (0..CUTOFFS.len())
            .map(|at| PrecisionAt {
                k: CUTOFFS[at],
                precision: figure(&of_set, |score| score.p_at[at], seed, purpose + 1 + at as u64),
            })
            .collect(),
        further: further_figures(&of_set, seed, purpose + 1 + CUTOFFS.len() as u64),
        queries_with_unjudged: of_set.iter().filter(|score| unjudged(score) > 0).count() as u32,
        unjudged: of_set.iter().map(unjudged).sum(),
    }
}

/// None where a score lacks them; a set without queries has zeros, as elsewhere.
fn further_figures(scores: &[&QueryScore], seed: u64, purpose: u64) -> Option<FurtherFigures> {
    let all: Vec<Further> = scores.iter().map(|score| score.further).collect::<Option<_>>()?;
    let figure = |at: u64, value: &dyn Fn(&Further) -> f64| {
        let values: Vec<f64> = all.iter().map(value).collect();
        Figure { mean: bootstrap::mean(&values), interval: bootstrap::interval(&values, seed, purpose + at) }
    };
    let of_images = !all.is_empty() && all.iter().all(|further| further.cs_p_at_10.is_some());
    Some(FurtherFigures {
        r_precision: figure(0, &|further| further.r_precision),
        article_map: figure(1, &|further| further.article_ap),
        ndcg_at_10: figure(2, &|further| further.ndcg_at_10),
        ndcg_at_100: figure(3, &|further| further.ndcg_at_100),
        cs_p_at_10: of_images.then(|| figure(4, &|further| further.cs_p_at_10.unwrap_or(0.0))),
    })
}

fn pooled(scores: &[QueryScore], seed: u64) -> PooledFigures {
    let all: Vec<&QueryScore> = scores.iter().filter(|score| score.set.is_pooled()).collect();
    PooledFigures {
        queries: all.len() as u32,
        map: figure(&all, |score| score.average_precision, seed, 1_100),
        chance: mean_of(&all, |score| score.chance),
        random_map: mean_of(&all, |score| random_ap(score.relevant, score.judged)),
    }
}

fn figure(scores: &[&QueryScore], value: impl Fn(&QueryScore) -> f64, seed: u64, purpose: u64) -> Figure {
    let values: Vec<f64> = scores.iter().map(|score| value(score)).collect();
    Figure { mean: bootstrap::mean(&values), interval: bootstrap::interval(&values, seed, purpose) }
}

fn attributes(
    vocabulary: &Vocabulary,
    queries: &[Query],
    labels: &LabelCounts,
    scores: &[QueryScore],
) -> Vec<AttributeFigures> {
    let asked: Vec<(&Query, &QueryScore)> = queries.iter().zip(scores).collect();
    let single = |attribute: usize, positive: bool| {
        let is_it = |query: &Query| {
            query.set == QuerySet::Singles
                && query.terms[0].attribute as usize == attribute
                && query.terms[0].positive == positive
        };
        asked.iter().find(|(query, _)| is_it(query)).map(|(_, score)| SingleFigures {
            query: score.query,
            average_precision: score.average_precision,
            chance: score.chance,
            p_at_10: score.p_at[2],
        })
    };
    let figures = vocabulary.names.iter().zip(&labels.counts).enumerate().map(|(attribute, (name, counts))| {
        let asks = |query: &Query| query.terms.iter().any(|term| term.attribute as usize == attribute);
        let is_combined = |set: QuerySet| matches!(set, QuerySet::Pairs | QuerySet::Triples);
        let combined: Vec<&QueryScore> =
            asked.iter().filter(|(query, _)| is_combined(query.set) && asks(query)).map(|(_, s)| *s).collect();
        AttributeFigures {
            attribute: name.clone(),
            has: counts[0],
            has_not: counts[1],
            unknown: counts[2],
            with: single(attribute, true),
            without: single(attribute, false),
            combined_map: (!combined.is_empty()).then(|| mean_of(&combined, |score| score.average_precision)),
            combined_queries: combined.len() as u32,
        }
    });
    figures.collect()
}

#[cfg(test)]
mod tests;
