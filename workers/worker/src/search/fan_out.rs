//! Carries the decisions of [`Gather`] out: sends its requests, waits for answers, hedges and stops in time.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::search::{LeafAnswer, LeafAsk, LeafReply, LeafRequest};
use likeness_contract::subjects;
use likeness_link::bus::Bus;
use likeness_link::error::ErrorKind;
use tokio::time::{Instant, sleep_until};

use super::gather::{Asked, Gather, Partial};
use super::leaf::Leaf;

/// Least time that a leaf gets before another replica is asked as well.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// Asks leaves: its own by a call, the others over NATS.
#[derive(Debug)]
pub struct Leaves<'a> {
    /// This process's own leaf.
    pub own: &'a Leaf,
    /// Its id.
    pub me: &'a WorkerId,
    /// The way to all others.
    pub bus: &'a Bus,
    /// Of what they are asked.
    pub generation: &'a GenerationRef,
}

impl Leaves<'_> {
    /// One question to one leaf; an error is the reason in words.
    pub async fn ask(&self, worker: &WorkerId, ask: LeafAsk, deadline: Instant) -> Result<LeafAnswer, String> {
        let left = deadline.saturating_duration_since(Instant::now());
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = LeafRequest { generation: self.generation.clone(), deadline_ms, ask };
        let reply: LeafReply = if worker == self.me {
            self.own.answer(request).await
        } else {
            let asked = self.bus.request(subjects::leaf(worker), &request, left).await;
            asked.map_err(|error| match error.kind {
                ErrorKind::Unreachable => "is gone".to_string(),
                ErrorKind::Transient => "did not answer in time".to_string(),
                _ => likeness_link::error::chain(&error),
            })?
        };
        match reply.answer {
            LeafAnswer::Refused(reason) => Err(reason),
            answer => Ok(answer),
        }
    }

    /// Asks until every shard is answered, nobody is left to be asked, `take` has enough or the deadline came.
    ///
    /// `question` makes the request for some shards; `take` turns an answer into a partial, or says why it is none.
    pub async fn gather(
        &self,
        gather: &mut Gather,
        deadline: Instant,
        question: impl Fn(&[u32]) -> LeafAsk,
        mut take: impl FnMut(&Asked, LeafAnswer) -> Taken,
    ) {
        let mut answers = FuturesUnordered::new();
        let mut patience = FuturesUnordered::new();
        loop {
            for asked in gather.next_requests() {
                patience.push(late(asked.number, deadline));
                let ask = question(&asked.shards);
                answers.push(async move { (self.ask(&asked.worker, ask, deadline).await, asked) });
            }
            if gather.is_complete() {
                return;
            }
            tokio::select! {
                biased;
                Some((answer, asked)) = answers.next() => match answer.map(|answer| take(&asked, answer)) {
                    Ok(Taken::Partial(partial)) => gather.on_partial(asked.number, partial),
                    Ok(Taken::Enough) => return,
                    Ok(Taken::Nonsense) => gather.on_failure(asked.number, "answered something else"),
                    Err(reason) => gather.on_failure(asked.number, &reason),
                },
                () = sleep_until(deadline) => return gather.on_deadline(),
                Some(number) = patience.next() => gather.on_late(number),
            }
        }
    }
}

/// What an answer is worth.
#[derive(Debug)]
pub enum Taken {
    /// It counts for its shards.
    Partial(Partial),
    /// Nothing more is needed.
    Enough,
    /// It is no answer to what was asked.
    Nonsense,
}

async fn late(number: usize, deadline: Instant) -> usize {
    sleep_until(patience_until(deadline)).await;
    number
}

/// The end of a leaf's time: a third of what is left, so that two others can be asked after it.
pub fn patience_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 3).max(LEAST_PATIENCE)
}
