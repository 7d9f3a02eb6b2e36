//! When to ask a second time: an answer that is later than 95 % of the last ones may be asked for elsewhere too, as long
//! as such extra requests stay within 5 % of all.
//!
//! The limit keeps a system that is slow because it is full from being asked twice as much.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Extra requests per request.
const EXTRA: f64 = 0.05;
/// Extra requests that may come together: at the start, and when somebody falls silent with many requests in hand.
const MOST_EXTRA: f64 = 20.0;
/// Answers of which the percentile is taken.
const REMEMBERED: usize = 256;
/// Answers after which the percentile is taken again.
const RENEWED: usize = 16;

/// See the module. Thread-safe.
#[derive(Debug)]
pub struct Hedge {
    least: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    took: Vec<Duration>,
    /// Answers so far.
    answers: usize,
    patience: Duration,
    /// Extra requests that may be sent.
    extra: f64,
}

impl Hedge {
    /// Has the patience `first` as long as there were few answers, and never less than `least`: below some time what a
    /// processor does meanwhile decides who is slow.
    pub fn new(first: Duration, least: Duration) -> Self {
        let state = State { took: Vec::new(), answers: 0, patience: first, extra: MOST_EXTRA };
        Self { least, state: Mutex::new(state) }
    }

    /// A request goes out.
    pub fn on_request(&self) {
        let mut state = self.state();
        state.extra = (state.extra + EXTRA).min(MOST_EXTRA);
    }

    /// A request was answered after so long, or was no longer waited for.
    pub fn on_end(&self, took: Duration) {
        let mut state = self.state();
        let at = state.answers % REMEMBERED;
        if at < state.took.len() {
            state.took[at] = took
        } else {
            state.took.push(took)
        }
        state.answers += 1;
        if state.answers.is_multiple_of(RENEWED) {
            let mut sorted = state.took.clone();
            sorted.sort_unstable();
            state.patience = sorted[sorted.len() * 95 / 100].max(self.least);
        }
    }

    /// After how long an answer is later than most.
    pub fn patience(&self) -> Duration {
        self.state().patience
    }

    /// Whether an extra request may be sent.
    pub fn may_ask_more(&self) -> bool {
        self.state().extra >= 1.0
    }

    /// So many extra requests were sent.
    pub fn on_extra(&self, requests: usize) {
        self.state().extra -= requests as f64;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn late_is_what_is_above_the_95th_percentile_of_the_last_answers() {
        let hedge = Hedge::new(50 * MS, 10 * MS);
        assert_eq!(hedge.patience(), 50 * MS);
        for i in 0..320u32 {
            hedge.on_end(if i.is_multiple_of(32) { 500 * MS } else { (15 + i % 10) * MS });
        }
        assert_eq!(hedge.patience(), 24 * MS);
        (0..REMEMBERED).for_each(|_| hedge.on_end(MS));
        assert_eq!(hedge.patience(), 10 * MS);
    }

    #[test]
    fn extra_requests_stay_within_five_per_cent() {
        let hedge = Hedge::new(MS, MS);
        let mut extra = 0;
        for _ in 0..1000 {
            hedge.on_request();
            if hedge.may_ask_more() {
                hedge.on_extra(1);
                extra += 1;
            }
        }
        assert!((60..=71).contains(&extra), "{extra}: 20 in advance and 50 of 1,000");
    }
}
