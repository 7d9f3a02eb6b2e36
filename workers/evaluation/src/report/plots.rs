//! The plots of the page.

use super::svg::{Bars, Plot, ticks};
use super::{AttributeFigures, Report, SetFigures};
use crate::headline::of_set;
use crate::queries::QuerySet;
use crate::scores::QueryScore;
use crate::training::{CurvePoint, TrainingCurve};

/// Bars of the distribution of AP.
const BINS: usize = 20;
/// Most points of a training line.
const CURVE_POINTS: usize = 240;

/// How the APs of a set's queries are spread, with the mean and what a random order reaches.
pub fn ap_distribution(figures: &SetFigures, scores: &[QueryScore]) -> String {
    let mut bins = [0u32; BINS];
    for score in of_set(scores, figures.set) {
        bins[((score.average_precision * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let ticks = ticks(f64::from(bins.iter().copied().max().unwrap_or(1)).max(4.0));
    let top = *ticks.last().unwrap_or(&1.0);
    let title = format!("{}: AP of {} queries", figures.set.name(), figures.queries);
    let mut plot = Plot::new(340.0, 220.0, &title, (0.0, 1.0), (0.0, top));
    plot.y_ticks(&ticks, |tick| format!("{tick:.0}"));
    plot.x_ticks(&[0.0, 0.2, 0.4, 0.6, 0.8, 1.0], |tick| format!("{tick:.1}"));
    plot.x_name("average precision");
    for (bin, &count) in bins.iter().enumerate() {
        let (low, high) = (bin as f64 / BINS as f64, (bin + 1) as f64 / BINS as f64);
        let hint = format!("{count} queries with AP {low:.2} to {high:.2}");
        plot.bar(set_class(figures.set), (low + 0.003, high - 0.003), f64::from(count), &hint);
    }
    plot.upright("chance", figures.random_map, (0.0, top));
    plot.upright("mean", figures.map.mean, (0.0, top));
    plot.finish()
}

/// Mean P@K of every set; a dashed line over each group of bars is chance.
pub fn precision(report: &Report) -> String {
    let sets: Vec<&SetFigures> = report.sets.iter().filter(|figures| figures.queries > 0).collect();
    let groups = report.sets.first().map_or(0, |figures| figures.p_at.len());
    let mut plot = Plot::new(520.0, 240.0, "mean precision at K", (0.0, groups as f64), (0.0, 1.0));
    plot.y_ticks(&[0.0, 0.2, 0.4, 0.6, 0.8, 1.0], |tick| format!("{tick:.1}"));
    let width = 0.8 / sets.len().max(1) as f64;
    for group in 0..groups {
        for (place, figures) in sets.iter().enumerate() {
            let at = figures.p_at[group];
            let left = group as f64 + 0.1 + place as f64 * width;
            let (mean, [low, high]) = (at.precision.mean, at.precision.interval);
            let hint = format!("{} P@{}: {mean:.3} ({low:.3} to {high:.3})", figures.set.name(), at.k);
            plot.bar(set_class(figures.set), (left, left + width * 0.92), mean, &hint);
            plot.upright("whisker", left + width * 0.46, (low, high));
            plot.level("chance", (left, left + width * 0.92), figures.chance);
        }
        let k = sets.first().map_or(0, |figures| figures.p_at[group].k);
        plot.x_ticks(&[group as f64 + 0.5], |_| format!("P@{k}"));
    }
    plot.finish()
}

/// AP of the query for (or against) each attribute alone, in the order given; left out where it was not asked.
pub fn attributes(sorted: &[&AttributeFigures], positive: bool) -> String {
    const ROW: f64 = 17.0;
    let single = |figures: &AttributeFigures| if positive { figures.with } else { figures.without };
    let asked: Vec<_> =
        sorted.iter().filter_map(|figures| Some((figures.attribute.as_str(), single(figures)?))).collect();
    let sign = if positive { '+' } else { '−' };
    let height = 48.0 + ROW * asked.len() as f64;
    let mut bars = Bars::new(520.0, 150.0, height, if positive { "with the attribute" } else { "without it" });
    for (row, (name, single)) in asked.iter().enumerate() {
        bars.row(34.0 + ROW * row as f64, &format!("{sign}{name}"), single.average_precision, single.chance);
    }
    bars.finish()
}

/// Loss and share of correct triplets over the steps of the training.
pub fn training(curve: &TrainingCurve) -> String {
    let smooth = curve.smoothed(CURVE_POINTS);
    let last = smooth.iter().chain(&curve.validation).map(|point| point.step).max().unwrap_or(1).max(1) as f64;
    let top = smooth.iter().chain(&curve.validation).map(|point| point.loss).fold(0.0, f64::max);
    let loss_ticks = ticks(top.max(1e-3));
    let loss = one_curve("triplet loss", last, &loss_ticks, 3, &smooth, &curve.validation, |point| point.loss);
    let share_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
    let correct = one_curve("share of correct triplets", last, &share_ticks, 1, &smooth, &curve.validation, |point| {
        point.correct
    });
    loss + &correct
}

fn one_curve(
    title: &str,
    last: f64,
    levels: &[f64],
    decimals: usize,
    train: &[CurvePoint],
    validation: &[CurvePoint],
    value: impl Fn(&CurvePoint) -> f64,
) -> String {
    let top = levels.last().copied().unwrap_or(1.0);
    let mut plot = Plot::new(500.0, 230.0, title, (0.0, last), (0.0, top));
    plot.y_ticks(levels, |tick| format!("{tick:.decimals$}"));
    let steps: Vec<f64> = ticks(last).into_iter().filter(|tick| *tick <= last).collect();
    plot.x_ticks(&steps, |tick| format!("{tick:.0}"));
    plot.x_name("optimizer step");
    let points = |of: &[CurvePoint]| of.iter().map(|point| (point.step as f64, value(point))).collect::<Vec<_>>();
    plot.line("line0", &points(train));
    plot.line("line1", &points(validation));
    plot.dots("dot1", &points(validation));
    plot.finish()
}

fn set_class(set: QuerySet) -> &'static str {
    match set {
        QuerySet::Singles => "set0",
        QuerySet::Pairs => "set1",
        QuerySet::Triples => "set2",
        QuerySet::Full => "set3",
        QuerySet::Images => "set4",
        QuerySet::Own => "set5",
        QuerySet::Alike => "set6",
    }
}
