//! Two reports query by query: which one answers better, by how much, and how sure that is.
//!
//! Queries are paired by set and text, and only where both galleries have the same number of relevant and of judged items
//! for them: else they are no answers to the same question. The interval is a bootstrap over the paired differences, which
//! is much narrower than that of two means, since easy and hard queries are so for both.
//!
//! Beside how good the answers are stands how alike they are ([`crate::agreement`]): two models can be equally good and
//! find other images.

use std::collections::HashMap;

use serde::Serialize;

use crate::agreement::{Agreement, agreement};
use crate::bootstrap::{interval, mean};
use crate::error::{Error, Result};
use crate::queries::QuerySet;
use crate::report::Figure;
use crate::scores::QueryScore;

/// First random stream of a comparison; every figure has its own.
const STREAM: u64 = 200;
/// First random stream of the measures of agreement.
const AGREEMENT_STREAM: u64 = 300;

/// What is compared of a query.
struct Metric {
    name: &'static str,
    /// None where a report of before does not have it.
    value: fn(&QueryScore) -> Option<f64>,
}

const METRICS: [Metric; 4] = [
    Metric { name: "map", value: |score| Some(score.average_precision) },
    Metric { name: "p_at_10", value: |score| Some(score.p_at[2]) },
    Metric { name: "r_precision", value: |score| score.further.map(|further| further.r_precision) },
    Metric { name: "ndcg_at_10", value: |score| score.further.map(|further| further.ndcg_at_10) },
];

/// A measure of how alike two rankings are.
struct Measure {
    name: &'static str,
    value: fn(&Agreement) -> f64,
}

const MEASURES: [Measure; 3] = [
    Measure { name: "overlap_at_10", value: |agreement| agreement.overlap_at_10 },
    Measure { name: "overlap_at_100", value: |agreement| agreement.overlap_at_100 },
    Measure { name: "rbo", value: |agreement| agreement.rbo },
];

/// Report `b` against report `a`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The pooled sets together, then set by set; sets without a pair are left out.
    pub groups: Vec<GroupComparison>,
    /// Queries of one report only: of `a`, of `b`.
    pub unpaired: [u32; 2],
    /// Queries of both whose relevant or judged items are not the same in number: the galleries differ. Left out.
    pub changed: u32,
    /// The pairs, in the order of `a`.
    pub queries: Vec<PairedQuery>,
}

/// Means over some pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupComparison {
    /// `pooled`, or the name of a set.
    pub group: String,
    /// Pairs.
    pub queries: u32,
    /// Pairs in which `b` has the higher AP, in which it has the lower.
    pub better: u32,
    /// See `better`.
    pub worse: u32,
    /// By metric.
    pub metrics: Vec<MetricComparison>,
    /// How alike the rankings are; none where a report of before does not have them.
    pub agreement: Vec<MeanAgreement>,
}

/// The mean of a measure of agreement over some pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeanAgreement {
    /// `overlap_at_10`, `overlap_at_100`, `rbo`.
    pub measure: String,
    /// Mean with its 95 % bootstrap interval.
    pub mean: Figure,
}

/// One metric over some pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricComparison {
    /// `map`, `p_at_10`, `r_precision`, `ndcg_at_10`.
    pub metric: String,
    /// Mean of `a`.
    pub a: f64,
    /// Mean of `b`.
    pub b: f64,
    /// Mean of b − a with its 95 % paired bootstrap interval.
    pub difference: Figure,
}

/// A query of both reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedQuery {
    /// Its set.
    pub set: QuerySet,
    /// For people.
    pub text: String,
    /// Relevant items.
    pub relevant: u64,
    /// AP of `a`.
    pub a: f64,
    /// AP of `b`.
    pub b: f64,
    /// How alike the two rankings are; none where a report of before does not have them.
    pub agreement: Option<Agreement>,
}

/// Compares the scores of two reports. Fails as invalid when no query is in both, or for other items in each.
pub fn compare(a: &[QueryScore], b: &[QueryScore], seed: u64) -> Result<Comparison> {
    let mut of_b: HashMap<(QuerySet, &str), &QueryScore> = b.iter().map(|score| (key(score), score)).collect();
    let (mut pairs, mut only_a, mut changed) = (Vec::new(), 0, 0);
    for ours in a {
        match of_b.remove(&key(ours)) {
            None => only_a += 1,
            Some(theirs) if (ours.relevant, ours.judged) != (theirs.relevant, theirs.judged) => changed += 1,
            Some(theirs) => pairs.push((ours, theirs)),
        }
    }
    let only_b = of_b.len() as u32;
    if pairs.is_empty() {
        return Err(Error::invalid(format!(
            "the reports have no query to compare by: {only_a} and {only_b} are in one of them only, \
             {changed} are of other items"
        )));
    }
    let pooled: Vec<_> = pairs.iter().copied().filter(|(ours, _)| ours.set.is_pooled()).collect();
    let mut groups = vec![group("pooled", &pooled, seed, 0)];
    for (place, set) in (1u64..).zip(QuerySet::ALL) {
        let of_set: Vec<_> = pairs.iter().copied().filter(|(ours, _)| ours.set == set).collect();
        groups.push(group(set.name(), &of_set, seed, place));
    }
    groups.retain(|group| group.queries > 0);
    let paired = |(ours, theirs): &(&QueryScore, &QueryScore)| PairedQuery {
        set: ours.set,
        text: ours.text.clone(),
        relevant: ours.relevant,
        a: ours.average_precision,
        b: theirs.average_precision,
        agreement: agreement_of(ours, theirs),
    };
    Ok(Comparison { groups, unpaired: [only_a, only_b], changed, queries: pairs.iter().map(paired).collect() })
}

fn key(score: &QueryScore) -> (QuerySet, &str) {
    (score.set, &score.text)
}

fn agreement_of(a: &QueryScore, b: &QueryScore) -> Option<Agreement> {
    Some(agreement(a.first.as_ref()?, b.first.as_ref()?))
}

fn group(name: &str, pairs: &[(&QueryScore, &QueryScore)], seed: u64, place: u64) -> GroupComparison {
    let count = |holds: fn(f64) -> bool| {
        pairs.iter().filter(|(a, b)| holds(b.average_precision - a.average_precision)).count() as u32
    };
    let stream = STREAM + place * METRICS.len() as u64;
    GroupComparison {
        group: name.into(),
        queries: pairs.len() as u32,
        better: count(|difference| difference > 0.0),
        worse: count(|difference| difference < 0.0),
        metrics: (stream..).zip(&METRICS).filter_map(|(stream, of)| metric(of, pairs, seed, stream)).collect(),
        agreement: mean_agreement(pairs, seed, AGREEMENT_STREAM + place * MEASURES.len() as u64),
    }
}

/// Empty where some query lacks its ranking.
fn mean_agreement(pairs: &[(&QueryScore, &QueryScore)], seed: u64, stream: u64) -> Vec<MeanAgreement> {
    let Some(all) = pairs.iter().map(|(a, b)| agreement_of(a, b)).collect::<Option<Vec<Agreement>>>() else {
        return Vec::new();
    };
    let of_measure = |(stream, measure): (u64, &Measure)| {
        let values: Vec<f64> = all.iter().map(measure.value).collect();
        let mean = Figure { mean: mean(&values), interval: interval(&values, seed, stream) };
        MeanAgreement { measure: measure.name.into(), mean }
    };
    (stream..).zip(&MEASURES).map(of_measure).collect()
}

/// None where some query lacks it.
fn metric(of: &Metric, pairs: &[(&QueryScore, &QueryScore)], seed: u64, stream: u64) -> Option<MetricComparison> {
    let values: Vec<(f64, f64)> =
        pairs.iter().map(|(a, b)| Some(((of.value)(a)?, (of.value)(b)?))).collect::<Option<_>>()?;
    let differences: Vec<f64> = values.iter().map(|(a, b)| b - a).collect();
    Some(MetricComparison {
        metric: of.name.into(),
        a: mean(&values.iter().map(|(a, _)| *a).collect::<Vec<_>>()),
        b: mean(&values.iter().map(|(_, b)| *b).collect::<Vec<_>>()),
        difference: Figure { mean: mean(&differences), interval: interval(&differences, seed, stream) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::tests::scores;

    fn shifted(by: f64) -> Vec<QueryScore> {
        let mut all = scores();
        all.iter_mut().for_each(|score| score.average_precision = (score.average_precision * 0.5 + by).min(1.0));
        all
    }

    #[test]
    fn pairs_are_by_set_and_text_in_any_order() {
        let (a, mut b) = (shifted(0.0), shifted(0.01));
        b.reverse();
        let found = compare(&a, &b, 0).unwrap();
        assert_eq!((found.unpaired, found.changed, found.queries.len()), ([0, 0], 0, a.len()));
        let pooled = &found.groups[0];
        assert_eq!((pooled.group.as_str(), pooled.better, pooled.worse), ("pooled", pooled.queries, 0));
        let map = &pooled.metrics[0];
        assert!((map.difference.mean - 0.01).abs() < 1e-12 && map.metric == "map");
        assert!(map.difference.interval[1] - map.difference.interval[0] < 1e-9, "paired, so nearly without spread");
        assert_eq!(pooled.metrics.iter().map(|m| m.metric.as_str()).collect::<Vec<_>>(), METRICS.map(|m| m.name));
        assert_eq!(compare(&a, &b, 0).unwrap(), found);
    }

    #[test]
    fn equal_rankings_agree_wholly_and_a_report_without_them_tells_none() {
        let (mut a, mut b) = (shifted(0.0), shifted(0.1));
        for score in a.iter_mut().chain(&mut b) {
            score.first.get_or_insert_default();
        }
        let same = compare(&a, &b, 0).unwrap();
        assert!(
            same.groups.iter().flat_map(|group| &group.agreement).all(|of| (of.mean.interval[0] - 1.0).abs() < 1e-12)
        );
        assert_eq!(
            same.groups[0].agreement.iter().map(|of| &*of.measure).collect::<Vec<_>>(),
            MEASURES.map(|m| m.name)
        );
        let longest = b[6].first.as_mut().unwrap();
        longest.iter_mut().for_each(|found| found.item.push('x'));
        let other = compare(&a, &b, 0).unwrap();
        assert_eq!(other.queries[6].agreement.unwrap().overlap_at_10, 0.0);
        assert!(other.groups[0].agreement[0].mean.mean < 1.0);
        a[0].first = None;
        let without = compare(&a, &b, 0).unwrap();
        assert!(without.groups[0].agreement.is_empty() && without.queries[0].agreement.is_none());
    }

    #[test]
    fn what_is_not_the_same_question_is_left_out_and_counted() {
        let (a, mut b) = (shifted(0.0), shifted(0.0));
        b[0].text = "+Hat".into();
        b[1].judged += 1;
        b[2].further = None;
        let found = compare(&a, &b, 0).unwrap();
        assert_eq!((found.unpaired, found.changed, found.queries.len()), ([1, 1], 1, a.len() - 2));
        assert_eq!(found.groups[0].metrics.len(), 2, "one query has no further figures");
        assert_eq!((found.groups[0].better, found.groups[0].worse), (0, 0));
        let error = compare(&a[..1], &b[1..], 0).unwrap_err().to_string();
        assert!(error.contains("no query to compare by: 1 and 6 are in one of them only"), "{error}");
    }
}
