//! What a load showed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::load::{Answer, Asked};
use crate::command::output::Table;

/// Share of the requests that must be answered within the time in which they came.
const KEEPS_UP: f64 = 0.95;
/// Longest time that is told apart from longer ones: an hour, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;
/// The generator is the limit when every hundredth request left later than this, milliseconds.
const GENERATOR_LATE_MS: f64 = 5.0;

/// Latencies in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latency {
    /// To a thousandth of their value, in microseconds.
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_US, 3).expect("bounds in order");
        for time in times {
            histogram.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: histogram.max() as f64 / 1e3 }
    }

    fn of_ms(times: impl Iterator<Item = f64>) -> Self {
        Self::of(times.map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1e3)))
    }
}

/// One second of a load, by when requests were due.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Second {
    pub second: u64,
    pub due: usize,
    pub failed: usize,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// A load's figures.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// Requests a second that were to come.
    pub rate: f64,
    /// Full answers a second.
    pub achieved: f64,
    pub due: usize,
    pub answered: usize,
    /// Errors by kind.
    pub errors: BTreeMap<String, usize>,
    /// The least share of the gallery in any answer.
    pub least_coverage: f64,
    /// Releases that answered.
    pub releases: Vec<u64>,
    /// From when a request was due to its answer.
    pub latency: Latency,
    /// What an answer took beyond the slowest leaf's own time.
    pub beyond_leaf: Latency,
    /// Inside the root.
    pub stages: BTreeMap<String, Latency>,
    /// How much later than due requests left here.
    pub generator_late: Latency,
    pub seconds: Vec<Second>,
}

impl Figures {
    /// Of a load of so long.
    pub fn of(rate: f64, duration: Duration, asked: &[Asked]) -> Self {
        let answers: Vec<(&Asked, &Answer)> =
            asked.iter().filter_map(|asked| Some((asked, asked.answer.as_ref().ok()?))).collect();
        let mut errors = BTreeMap::new();
        for kind in asked.iter().filter_map(|asked| asked.answer.as_ref().err()) {
            *errors.entry(kind.clone()).or_default() += 1;
        }
        let last = asked.iter().map(|asked| asked.due + asked.took).max().unwrap_or_default();
        Self {
            rate,
            achieved: answers.len() as f64 / last.max(duration).as_secs_f64(),
            due: asked.len(),
            answered: answers.len(),
            errors,
            least_coverage: answers.iter().map(|(_, answer)| answer.coverage).fold(1.0, f64::min),
            releases: answers.iter().map(|(_, a)| a.release).collect::<BTreeSet<_>>().into_iter().collect(),
            latency: Latency::of(asked.iter().map(|asked| asked.took)),
            beyond_leaf: Latency::of_ms(answers.iter().filter_map(|(asked, answer)| beyond_leaf(asked, answer))),
            stages: stages(&answers),
            generator_late: Latency::of(asked.iter().map(|asked| asked.late)),
            seconds: seconds(asked),
        }
    }

    /// Requests without an answer.
    pub fn failed(&self) -> usize {
        self.due - self.answered
    }

    /// Whether the searchers bear this rate.
    pub fn is_borne(&self, p99_ms: f64) -> bool {
        let keeps_up = self.achieved >= KEEPS_UP * self.due as f64 / self.duration_s();
        self.failed() == 0 && keeps_up && self.latency.p99 <= p99_ms
    }

    fn duration_s(&self) -> f64 {
        (self.seconds.last().map_or(0, |last| last.second) + 1) as f64
    }

    fn generator_is_the_limit(&self) -> bool {
        self.generator_late.p99 > GENERATOR_LATE_MS
    }

    /// One line.
    pub fn summary(&self, p99_ms: f64) -> String {
        let verdict = if self.is_borne(p99_ms) { "borne" } else { "too much" };
        let Self { rate, achieved, latency, .. } = self;
        let words = format!(
            "{rate:.0} a second: {achieved:.0} answered, p50 {:.1} ms, p99 {:.1} ms, {} failed: {verdict}",
            latency.p50,
            latency.p99,
            self.failed()
        );
        match self.generator_is_the_limit() {
            true => format!("{words} ({})", self.generator_warning()),
            false => words,
        }
    }

    fn generator_warning(&self) -> String {
        format!("THE GENERATOR IS THE LIMIT: every hundredth request left {:.1} ms late", self.generator_late.p99)
    }

    /// All that people want to know.
    pub fn render(&self) -> String {
        let mut lines = vec![table(std::slice::from_ref(self)).render(), String::new()];
        let mut stages = Table::new(["stage", "p50 ms", "p95 ms", "p99 ms"]);
        let named = self.stages.iter().map(|(name, latency)| (name.as_str(), latency));
        for (name, latency) in named.chain([("beyond leaf", &self.beyond_leaf)]) {
            stages.row([name.into(), ms(latency.p50), ms(latency.p95), ms(latency.p99)]);
        }
        lines.push(stages.render());
        if self.least_coverage < 1.0 {
            lines.push(format!("\nthe least of the gallery that was searched: {:.1} %", self.least_coverage * 100.0));
        }
        lines.extend(self.errors.iter().map(|(kind, count)| format!("\n{count} failed: {kind}")));
        if self.generator_is_the_limit() {
            lines.push(format!("\n{}", self.generator_warning()));
        }
        lines.join("\n")
    }
}

/// One row per rate.
pub fn table(steps: &[Figures]) -> Table {
    let mut table =
        Table::new(["rate", "answered/s", "requests", "failed", "p50 ms", "p90 ms", "p99 ms", "max ms", "late ms"]);
    for figures in steps {
        let Figures { rate, achieved, due, latency, generator_late, .. } = figures;
        let Latency { p50, p90, p99, max, .. } = latency;
        table.row([
            format!("{rate:.1}"),
            format!("{achieved:.1}"),
            due.to_string(),
            figures.failed().to_string(),
            ms(*p50),
            ms(*p90),
            ms(*p99),
            ms(*max),
            ms(generator_late.p99),
        ]);
    }
    table
}

fn ms(value: f64) -> String {
    format!("{value:.2}")
}

fn beyond_leaf(asked: &Asked, answer: &Answer) -> Option<f64> {
    let leaf = answer.stages.iter().find(|(name, _)| name == "leaf")?.1;
    Some(asked.took_outside.as_secs_f64() * 1e3 - leaf)
}

fn stages(answers: &[(&Asked, &Answer)]) -> BTreeMap<String, Latency> {
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, ms) in answers.iter().flat_map(|(_, answer)| &answer.stages) {
        times.entry(name).or_default().push(*ms);
    }
    times.into_iter().map(|(name, times)| (name.to_string(), Latency::of_ms(times.into_iter()))).collect()
}

fn seconds(asked: &[Asked]) -> Vec<Second> {
    let mut by_second: BTreeMap<u64, Vec<&Asked>> = BTreeMap::new();
    for one in asked {
        by_second.entry(one.due.as_secs()).or_default().push(one);
    }
    let figures = |(second, asked): (u64, Vec<&Asked>)| {
        let Latency { p50, p99, max, .. } = Latency::of(asked.iter().map(|asked| asked.took));
        let failed = asked.iter().filter(|asked| asked.answer.is_err()).count();
        Second { second, due: asked.len(), failed, p50, p99, max }
    };
    by_second.into_iter().map(figures).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn asked(due_ms: u32, took_ms: u32, late_ms: u32, answer: Result<(), &str>) -> Asked {
        let stages = vec![("leaf".to_string(), 2.0), ("total".to_string(), 4.0)];
        let answer = answer.map(|()| Answer { coverage: 1.0, release: 1, stages }).map_err(String::from);
        Asked {
            due: due_ms * MS,
            took: took_ms * MS,
            took_outside: (took_ms - late_ms) * MS,
            late: late_ms * MS,
            answer,
        }
    }

    fn load(took_ms: u32, late_ms: u32) -> Vec<Asked> {
        (0..200).map(|i| asked(i * 10, took_ms, late_ms, Ok(()))).collect()
    }

    #[test]
    fn a_rate_is_borne_when_all_is_answered_in_time() {
        let figures = Figures::of(100.0, 2000 * MS, &load(7, 1));
        assert!(figures.is_borne(10.0) && !figures.is_borne(5.0));
        assert!((figures.achieved - 100.0).abs() < 1.0, "{}", figures.achieved);
        assert!((figures.beyond_leaf.p50 - 4.0).abs() < 0.01, "6 ms on the way, 2 of them in the leaf");
        assert_eq!(figures.seconds.iter().map(|second| second.due).collect::<Vec<_>>(), [100, 100]);
        assert!(!figures.render().contains("GENERATOR"));
    }

    #[test]
    fn failures_are_told_by_kind_and_second() {
        let mut all = load(7, 0);
        all.push(asked(1500, 3, 0, Err("overloaded")));
        let figures = Figures::of(100.0, 2000 * MS, &all);
        assert!(!figures.is_borne(10.0) && figures.failed() == 1);
        assert_eq!(figures.errors["overloaded"], 1);
        assert_eq!(figures.seconds[1].failed, 1);
        assert!(figures.render().contains("1 failed: overloaded"));
    }

    #[test]
    fn answers_that_fall_behind_are_not_borne() {
        let late: Vec<Asked> = (0..200).map(|i| asked(i * 10, i * 10 + 1, 0, Ok(()))).collect();
        assert!(!Figures::of(100.0, 2000 * MS, &late).is_borne(1e9));
    }

    #[test]
    fn a_generator_that_is_late_says_so() {
        assert!(Figures::of(100.0, 2000 * MS, &load(20, 9)).summary(50.0).contains("THE GENERATOR IS THE LIMIT"));
    }
}
