//! The plots of the page.

use super::svg::{Plot, ticks};
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

/// AP of the query for each attribute alone, widest gain over chance first.
pub fn attributes(sorted: &[&AttributeFigures]) -> String {
    const ROW: f64 = 17.0;
    const NAME: f64 = 150.0;
    const WIDTH: f64 = 620.0;
    let asked: Vec<_> = sorted.iter().filter_map(|figures| Some((&figures.attribute, figures.with?))).collect();
    let scale = |value: f64| NAME + value * (WIDTH - NAME - 50.0);
    let height = 30.0 + ROW * asked.len() as f64;
    // The plot's own axes are not used: rows are placed in pixels.
    let mut svg =
        format!("<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n");
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let x = scale(tick);
        svg += &format!("<line class=\"grid\" x1=\"{x:.1}\" y1=\"18\" x2=\"{x:.1}\" y2=\"{height}\"/>\n");
        svg += &format!("<text class=\"tick mid\" x=\"{x:.1}\" y=\"12\">{tick:.2}</text>\n");
    }
    for (row, (name, single)) in asked.iter().enumerate() {
        let y = 22.0 + ROW * row as f64;
        let (ap, chance) = (scale(single.average_precision), scale(single.chance));
        let (text, name) = (y + 11.0, super::page::escape(name));
        let hint = format!("+{name}: AP {:.3}, chance {:.3}", single.average_precision, single.chance);
        svg += &format!("<text class=\"label end\" x=\"{}\" y=\"{text:.1}\">{name}</text>\n", NAME - 8.0);
        svg += &format!(
            "<rect class=\"set0\" x=\"{NAME}\" y=\"{:.1}\" width=\"{:.1}\" height=\"11\"><title>{hint}</title></rect>\n",
            y + 1.5,
            ap - NAME
        );
        svg += &format!(
            "<line class=\"chance solid\" x1=\"{chance:.1}\" y1=\"{y:.1}\" x2=\"{chance:.1}\" y2=\"{:.1}\"/>\n",
            y + 14.0
        );
        svg += &format!(
            "<text class=\"tick\" x=\"{:.1}\" y=\"{text:.1}\">{:.3}</text>\n",
            ap + 5.0,
            single.average_precision
        );
    }
    svg + "</svg>\n"
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
    }
}
