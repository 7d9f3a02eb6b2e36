//! An open loop: requests leave by a schedule, whatever became of those before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use likeness_contract::search::{SearchErrorKind, SearchResults};
use likeness_link::client::{Client, ClientError};
use likeness_link::error::ErrorKind;
use tokio::sync::{Semaphore, mpsc};

use super::questions::{Lot, Questions};

/// A load.
#[derive(Debug)]
pub struct Load {
    /// Requests a second.
    pub rate: f64,
    /// Time in which requests come and do not count.
    pub warmup: Duration,
    /// Time after that.
    pub duration: Duration,
    /// Most requests under way.
    pub concurrency: usize,
    /// Of the gaps between requests.
    pub seed: u64,
}

/// What became of a request.
#[derive(Debug)]
pub struct Asked {
    /// When it was due, from the end of the warm-up.
    pub due: Duration,
    /// From then to its answer.
    pub took: Duration,
    /// From the moment at which it left.
    pub took_outside: Duration,
    /// How much later than due it left: the generator's own fault.
    pub late: Duration,
    /// The answer, or the kind of error.
    pub answer: Result<Answer, String>,
}

/// What matters of an answer.
#[derive(Debug)]
pub struct Answer {
    /// Share of the gallery that was searched.
    pub coverage: f64,
    /// The release.
    pub release: u64,
    /// Milliseconds by stage.
    pub stages: Vec<(String, f64)>,
}

impl Load {
    /// Puts the load on and waits until everything is answered.
    pub async fn run(&self, client: &Client, questions: &Questions) -> Vec<Asked> {
        let (done, mut asked) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            client: client.clone(),
            questions: questions.clone(),
            places: Semaphore::new(self.concurrency),
        });
        let (due, warmup, runtime) = (self.schedule(), self.warmup, tokio::runtime::Handle::current());
        // A thread of its own: timers of the runtime go by the millisecond, and wait for its other work.
        let generator = std::thread::spawn(move || {
            let start = Instant::now();
            for (number, due) in due.into_iter().enumerate() {
                std::thread::sleep((start + due).saturating_duration_since(Instant::now()));
                let (shared, done) = (Arc::clone(&shared), done.clone());
                runtime.spawn(async move {
                    let asked = shared.ask(number, start + due).await;
                    if let Some(due) = due.checked_sub(warmup) {
                        // Nobody listens when the command is interrupted.
                        let _ = done.send(Asked { due, ..asked });
                    }
                });
            }
        });
        let mut all = Vec::new();
        while let Some(one) = asked.recv().await {
            all.push(one);
        }
        generator.join().expect("the generator does not panic");
        all
    }

    /// Times from the start, with exponential gaps: as many independent askers would come.
    fn schedule(&self) -> Vec<Duration> {
        let (mut lot, mut at, mut due) = (Lot::new(self.seed), 0.0, Vec::new());
        let end = (self.warmup + self.duration).as_secs_f64();
        loop {
            at += -(1.0 - lot.unit()).ln() / self.rate;
            if at >= end {
                return due;
            }
            due.push(Duration::from_secs_f64(at));
        }
    }
}

struct Shared {
    client: Client,
    questions: Questions,
    places: Semaphore,
}

impl Shared {
    async fn ask(&self, number: usize, due: Instant) -> Asked {
        let _place = self.places.acquire().await.expect("the semaphore is never closed");
        let left = Instant::now();
        let answer = self.client.search(self.questions.get(number)).await;
        let answered = Instant::now();
        Asked {
            due: Duration::ZERO,
            took: answered.saturating_duration_since(due),
            took_outside: answered.saturating_duration_since(left),
            late: left.saturating_duration_since(due),
            answer: answer.map(Answer::from).map_err(|error| kind_of(&error).to_string()),
        }
    }
}

impl From<SearchResults> for Answer {
    fn from(results: SearchResults) -> Self {
        let SearchResults { release, coverage, timings_ms, .. } = results;
        Self { coverage: coverage.share(), release, stages: timings_ms }
    }
}

fn kind_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Search(error) => match error.kind {
            SearchErrorKind::Invalid => "invalid",
            SearchErrorKind::NotFound => "not-found",
            SearchErrorKind::Coverage => "coverage",
            SearchErrorKind::Deadline => "deadline",
            SearchErrorKind::Unavailable => "unavailable",
            SearchErrorKind::Overloaded => "overloaded",
            SearchErrorKind::Expired => "expired",
        },
        ClientError::Link(error) if error.kind == ErrorKind::Transient => "no-answer",
        ClientError::Link(error) if error.kind == ErrorKind::Unreachable => "unreachable",
        ClientError::Link(_) | ClientError::Api(_) => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_at_the_rate_asked_for_and_from_the_seed() {
        let load = |seed| Load {
            rate: 200.0,
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(9),
            concurrency: 1,
            seed,
        };
        let due = load(7).schedule();
        assert!((1850..2150).contains(&due.len()), "{}", due.len());
        assert!(due.is_sorted() && due.last().unwrap().as_secs() == 9);
        assert_eq!(due, load(7).schedule());
        assert_ne!(due, load(8).schedule());
    }
}
