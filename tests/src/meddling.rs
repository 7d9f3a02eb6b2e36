//! Faults of [`crate::s3::S3`]: what a rule says becomes of each request.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is answered.
    None,
    /// Nothing is done, and this is the answer: `503 Service Unavailable`.
    Refused(&'static str),
    /// It is done, and this is the answer all the same.
    Done(&'static str),
    /// Nothing is done, and there never is an answer.
    Swallowed,
}

type Rule = Box<dyn FnMut(&str, &str) -> Fault + Send>;

/// The rule of a server, and how often it struck.
#[derive(Default)]
pub struct Meddling {
    rule: Mutex<Option<Rule>>,
    struck: AtomicU64,
}

impl fmt::Debug for Meddling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meddling").field("struck", &self.struck).finish_non_exhaustive()
    }
}

impl Meddling {
    /// Decides about every request by its method and key from now on.
    pub fn rule(&self, rule: impl FnMut(&str, &str) -> Fault + Send + 'static) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
    }

    /// Every request is answered again.
    pub fn stop(&self) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Faults so far.
    pub fn struck(&self) -> u64 {
        self.struck.load(Ordering::Relaxed)
    }

    pub(crate) fn fault(&self, method: &str, key: &str) -> Fault {
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = rule.as_mut().map_or(Fault::None, |rule| rule(method, key));
        self.struck.fetch_add(u64::from(fault != Fault::None), Ordering::Relaxed);
        fault
    }
}
