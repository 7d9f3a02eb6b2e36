//! Carries the decisions of [`Gather`] out: sends its requests, waits for answers, hedges and stops in time.
//!
//! A leaf that is slower than 95 % of the answers is joined by another replica, as long as such extra requests stay within
//! 5 % of all; one that has been silent for a third of the time, towards everybody, is joined in any case. Who is not needed
//! any more is told.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::ids::{Digest, WorkerId};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::search::{LeafAnswer, LeafAsk, LeafCancel, LeafReply, LeafRequest};
use likeness_contract::subjects;
use likeness_link::bus::Bus;
use likeness_link::error::{ErrorKind, chain};
use likeness_link::telemetry::metrics::metrics;
use tokio::time::{Instant, sleep_until};

use super::gather::{Asked, Gather, Partial};
use super::leaf::Leaf;
use super::peers::{InHand, Peers};

/// Least time that a silent leaf gets before another replica is asked in any case.
const LEAST_PATIENCE: Duration = Duration::from_millis(20);

/// Numbers of requests that no other root gives at the same time.
#[derive(Debug)]
pub struct Numbers {
    next: AtomicU64,
}

impl Numbers {
    /// The numbers of a process: they start where no other's do.
    pub fn of(process: &str) -> Self {
        let digest = Digest::of(process.as_bytes());
        let start = u64::from_be_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"));
        Self { next: AtomicU64::new(start) }
    }

    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

/// Asks leaves: its own by a call, the others over NATS.
#[derive(Debug)]
pub struct Leaves<'a> {
    /// This process's own leaf.
    pub own: &'a Leaf,
    /// Its id.
    pub me: &'a WorkerId,
    /// The way to all others.
    pub bus: &'a Bus,
    /// What is known of them.
    pub peers: &'a Peers,
    /// Names requests.
    pub numbers: &'a Numbers,
    /// Of what they are asked.
    pub generation: &'a GenerationRef,
}

/// Why a leaf did not answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// It has too much to do.
    Overloaded,
    /// In words.
    Because(String),
}

/// A leaf's answer and the time that it says it took.
pub type Answered = Result<(LeafAnswer, Duration), NoAnswer>;

impl Leaves<'_> {
    /// One question to one leaf. Dropping the future tells the leaf.
    pub async fn ask(&self, worker: &WorkerId, ask: LeafAsk, deadline: Instant) -> Answered {
        let left = deadline.saturating_duration_since(Instant::now());
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let number = self.numbers.next();
        let request = LeafRequest { generation: self.generation.clone(), deadline_ms, number, ask };
        let in_hand = self.peers.send(worker);
        let reply = if worker == self.me {
            let reply = self.own.answer(request).await;
            in_hand.on_answer();
            reply
        } else {
            self.ask_other(worker, request, left, in_hand).await?
        };
        let took = Duration::from_micros(reply.took_us.into());
        match reply.answer {
            LeafAnswer::Refused(reason) => Err(NoAnswer::Because(reason)),
            LeafAnswer::Overloaded => Err(NoAnswer::Overloaded),
            answer => Ok((answer, took)),
        }
    }

    async fn ask_other(
        &self,
        worker: &WorkerId,
        request: LeafRequest,
        left: Duration,
        in_hand: InHand<'_>,
    ) -> Result<LeafReply, NoAnswer> {
        let mut recall = Recall { bus: self.bus, worker, number: Some(request.number) };
        let asked = tokio::select! {
            asked = self.bus.request(subjects::leaf(worker), &request, left) => asked,
            () = in_hand.gone.cancelled() => return Err(NoAnswer::Because("is gone".into())),
        };
        recall.number = None;
        match asked {
            Ok(reply) => {
                in_hand.on_answer();
                Ok(reply)
            }
            Err(error) if error.kind == ErrorKind::Unreachable => {
                in_hand.on_gone();
                Err(NoAnswer::Because("is gone".into()))
            }
            Err(error) if error.kind == ErrorKind::Transient => Err(NoAnswer::Because("did not answer in time".into())),
            Err(error) => Err(NoAnswer::Because(chain(&error))),
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
        mut take: impl FnMut(&Asked, LeafAnswer, Duration) -> Taken,
    ) {
        let mut answers = FuturesUnordered::new();
        let mut patience = FuturesUnordered::new();
        let mut extra = false;
        loop {
            let requests = gather.next_requests();
            metrics().leaf_requests.inc_by(requests.len() as u64);
            if std::mem::take(&mut extra) {
                metrics().hedges.inc_by(requests.len() as u64);
                self.peers.hedge.on_extra(requests.len());
            }
            for asked in requests {
                let sent = Sent { number: asked.number, worker: asked.worker.clone(), at: Instant::now() };
                let (until, how) = first_patience(self.peers.hedge.patience(), deadline);
                patience.push(sent.late(until, how));
                let ask = question(&asked.shards);
                answers.push(async move { (self.ask(&asked.worker, ask, deadline).await, asked) });
            }
            if gather.is_complete() {
                return;
            }
            tokio::select! {
                biased;
                Some((answer, asked)) = answers.next() => match answer.map(|(answer, took)| take(&asked, answer, took)) {
                    Ok(Taken::Partial(partial)) => gather.on_partial(asked.number, partial),
                    Ok(Taken::Enough) => return,
                    Ok(Taken::Nonsense) => gather.on_failure(asked.number, "answered something else"),
                    Err(NoAnswer::Overloaded) => gather.on_overload(asked.number),
                    Err(NoAnswer::Because(reason)) => gather.on_failure(asked.number, &reason),
                },
                () = sleep_until(deadline) => return gather.on_deadline(),
                Some((sent, how)) = patience.next() => {
                    if !gather.is_open(sent.number) {
                        continue;
                    }
                    let stuck = how == Late::Silent && self.peers.is_silent_since(&sent.worker, sent.at.into_std());
                    if stuck || self.peers.hedge.may_ask_more() {
                        extra = !stuck;
                        gather.on_late(sent.number);
                    } else {
                        patience.push(sent.late(patience_until(deadline), Late::Silent));
                    }
                }
            }
        }
    }
}

/// Tells a leaf that its answer is not needed, unless it came.
struct Recall<'a> {
    bus: &'a Bus,
    worker: &'a WorkerId,
    number: Option<u64>,
}

impl Drop for Recall<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let (client, subject) = (self.bus.client().clone(), subjects::leaf_cancel(self.worker));
        let Ok(payload) = codec::encode(&LeafCancel { number }, Encoding::Bincode) else { return };
        // A message that gets lost costs the leaf some work, no more.
        tokio::spawn(async move {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", Encoding::Bincode.content_type());
            client.publish_with_headers(subject, headers, payload.into()).await
        });
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

/// How late an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Late {
    /// Later than most.
    Slow,
    /// So late that the leaf may be stuck.
    Silent,
}

/// A request whose answer is waited for.
struct Sent {
    number: usize,
    worker: WorkerId,
    at: Instant,
}

impl Sent {
    /// Ends when its answer is so late.
    async fn late(self, until: Instant, how: Late) -> (Self, Late) {
        sleep_until(until).await;
        (self, how)
    }
}

/// What an answer is first when it does not come.
fn first_patience(patience: Duration, deadline: Instant) -> (Instant, Late) {
    let (slow, silent) = (Instant::now() + patience, patience_until(deadline));
    if slow < silent { (slow, Late::Slow) } else { (silent, Late::Silent) }
}

/// The end of a silent leaf's time: a third of what is left, so that two others can be asked after it.
pub fn patience_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 3).max(LEAST_PATIENCE)
}
