//! The accounting of one task's attempts: failures that workers reported, and starts without an end.
//!
//! The two are limited apart. A reported failure is the task's own doing; an attempt that ends without a word may
//! be a spot machine that vanished, so many more of those are forgiven. Events may be lost, doubled or out of
//! order: an attempt is counted once, by its name, in the worst state that was heard of it.

use std::collections::HashMap;

use likeness_contract::ids::WorkerId;

/// Failures that workers may report of one task in one run.
pub const REPORTED_LIMIT: u32 = 5;
/// Attempts of one task that may end without a word in one run.
pub const SILENT_LIMIT: u32 = 20;

/// What is known of a task's attempts in the open run.
#[derive(Debug, Clone, Default)]
pub struct Attempts {
    /// Attempts by name; whether each has ended.
    ended: HashMap<String, bool>,
    /// Attempts that have not.
    open: u32,
    /// Failures that were reported.
    reported: u32,
    /// The last of them, or why the task was given up.
    last_error: String,
    /// The attempt at hand.
    current: Option<Current>,
}

/// The attempt that gave the latest sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// Its name.
    pub attempt: String,
    /// Who makes it.
    pub worker: WorkerId,
    /// Units done.
    pub done: u64,
    /// Units in all, 0 when not known.
    pub of: u64,
    /// For people.
    pub note: String,
}

/// Whether a task may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    GoOn,
    /// A limit is reached.
    GiveUp,
}

impl Attempts {
    /// An attempt starts.
    pub fn on_started(&mut self, attempt: &str, worker: &WorkerId) -> Verdict {
        if self.ended.contains_key(attempt) {
            return Verdict::GoOn;
        }
        if self.open >= SILENT_LIMIT {
            self.last_error = self.silent_error(worker);
            self.current = None;
            return Verdict::GiveUp;
        }
        self.ended.insert(attempt.into(), false);
        self.open += 1;
        let (attempt, worker) = (attempt.into(), worker.clone());
        self.current = Some(Current { attempt, worker, done: 0, of: 0, note: String::new() });
        Verdict::GoOn
    }

    /// An attempt goes on; its start is taken as heard.
    pub fn on_progress(&mut self, attempt: &str, worker: &WorkerId, done: u64, of: u64, note: &str) -> Verdict {
        let verdict = self.on_started(attempt, worker);
        if let Some(current) = self.current.as_mut().filter(|current| current.attempt == attempt) {
            (current.done, current.of, current.note) = (done, of, note.into());
        }
        verdict
    }

    /// An attempt failed.
    pub fn on_failed(&mut self, attempt: &str, error: &str, retryable: bool) -> Verdict {
        if self.end(attempt) {
            self.reported += 1;
            self.last_error = error.into();
        }
        if !retryable || self.reported >= REPORTED_LIMIT { Verdict::GiveUp } else { Verdict::GoOn }
    }

    /// An attempt succeeded, or gave its message back.
    pub fn on_ended(&mut self, attempt: &str) -> Verdict {
        self.end(attempt);
        Verdict::GoOn
    }

    /// Returns whether this is news.
    fn end(&mut self, attempt: &str) -> bool {
        match self.ended.insert(attempt.into(), true) {
            Some(true) => return false,
            Some(false) => self.open -= 1,
            None => {}
        }
        self.current = self.current.take().filter(|current| current.attempt != attempt);
        true
    }

    /// The attempt at hand.
    pub fn current(&self) -> Option<&Current> {
        self.current.as_ref()
    }

    /// Failures that were reported.
    pub fn reported(&self) -> u32 {
        self.reported
    }

    /// Attempts that ended without a word: those without an end, but for the one at hand.
    pub fn silent(&self) -> u32 {
        self.open - u32::from(self.current.is_some())
    }

    /// The last error.
    pub fn last_error(&self) -> &str {
        &self.last_error
    }

    /// Whether there is anything that a user should see.
    pub fn is_troubled(&self) -> bool {
        self.reported > 0 || self.silent() > 0
    }

    /// Forgets names and the attempt at hand, once no further event matters.
    pub fn settle(&mut self) {
        self.open = self.silent();
        self.ended = HashMap::new();
        self.current = None;
    }

    fn silent_error(&self, worker: &WorkerId) -> String {
        let last =
            if self.last_error.is_empty() { String::new() } else { format!("; before that: {}", self.last_error) };
        format!(
            "{} attempts ended without a word, the task may be killing its workers (the next one was `{worker}`){last}",
            self.open
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerId {
        WorkerId::new("w1").unwrap()
    }

    #[test]
    fn the_fifth_reported_failure_is_one_too_many() {
        let mut attempts = Attempts::default();
        for n in 0..4 {
            assert_eq!(attempts.on_started(&format!("a{n}"), &worker()), Verdict::GoOn);
            assert_eq!(attempts.on_failed(&format!("a{n}"), "out of memory", true), Verdict::GoOn);
        }
        assert_eq!(attempts.on_failed("a4", "disk", true), Verdict::GiveUp);
        assert_eq!((attempts.reported(), attempts.silent(), attempts.last_error()), (5, 0, "disk"));
    }

    #[test]
    fn a_failure_that_no_attempt_can_mend_ends_it_at_once() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.on_failed("a", "no such column", false), Verdict::GiveUp);
    }

    #[test]
    fn events_that_come_twice_or_late_count_once() {
        let mut attempts = Attempts::default();
        for _ in 0..50 {
            attempts.on_failed("a", "x", true);
            attempts.on_started("a", &worker());
            attempts.on_progress("a", &worker(), 1, 2, "");
        }
        assert_eq!((attempts.reported(), attempts.silent()), (1, 0));
        assert_eq!(attempts.current(), None);
    }

    #[test]
    fn twenty_silent_ends_are_forgiven_and_the_next_start_is_not() {
        let mut attempts = Attempts::default();
        for n in 0..20 {
            assert_eq!(attempts.on_started(&format!("a{n}"), &worker()), Verdict::GoOn);
        }
        assert_eq!(attempts.silent(), 19);
        assert_eq!(attempts.on_started("a20", &worker()), Verdict::GiveUp);
        assert!(attempts.last_error().starts_with("20 attempts ended without a word"));
    }

    #[test]
    fn a_worker_that_drains_uses_up_nothing() {
        let mut attempts = Attempts::default();
        for n in 0..1000 {
            assert_eq!(attempts.on_started(&format!("a{n}"), &worker()), Verdict::GoOn);
            attempts.on_ended(&format!("a{n}"));
        }
        assert!(!attempts.is_troubled());
    }
}
