//! What a root has learned of the leaves: how much each has in hand, how long its answers take, who is gone.
//!
//! From that follow whom to ask first (of two replicas drawn by lot the one with less to do), when a leaf counts as slow
//! and whether another replica may be asked as well ([`Hedge`]). A leaf that is known to be gone loses all its requests at
//! once, not each at its deadline.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use likeness_contract::ids::WorkerId;
use likeness_link::hedge::Hedge;
use tokio_util::sync::CancellationToken;

use super::rendezvous::mixed;

/// Patience with a leaf as long as there were few answers.
const FIRST_PATIENCE: Duration = Duration::from_millis(50);
/// Least patience with a leaf.
const LEAST_PATIENCE: Duration = Duration::from_millis(10);
/// How much the newest answer counts in a leaf's average.
const NEWEST: f64 = 0.2;
/// Time in which half of a leaf's average is forgotten, so that one which was slow gets another chance.
const FORGET_HALF: Duration = Duration::from_secs(5);
/// How long one that is gone is asked last.
const SHUNNED: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Peers {
    /// Says when a leaf counts as slow and whether another may be asked as well.
    pub hedge: Hedge,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    leaves: HashMap<WorkerId, Leaf>,
    lot: u64,
}

#[derive(Debug)]
struct Leaf {
    in_hand: u32,
    /// Average of its answers, milliseconds, as of `at`.
    took_ms: f64,
    at: Instant,
    answered: Option<Instant>,
    /// Cancelled when it is found to be gone.
    gone: CancellationToken,
    shunned_until: Option<Instant>,
}

impl Leaf {
    fn new(now: Instant) -> Self {
        let gone = CancellationToken::new();
        Self { in_hand: 0, took_ms: 0.0, at: now, answered: None, gone, shunned_until: None }
    }

    fn average(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64() / FORGET_HALF.as_secs_f64();
        self.took_ms * 0.5f64.powf(age)
    }

    /// Takes an answer's time, or the least that a missing one would have taken.
    fn note(&mut self, took: Duration, answered: bool, now: Instant) {
        let (before, took) = (self.average(now), took.as_secs_f64() * 1e3);
        let mixed = if self.answered.is_none() { took } else { before + NEWEST * (took - before) };
        self.took_ms = if answered { mixed } else { before.max(took) };
        self.at = now;
    }
}

/// A request in a leaf's hands.
#[derive(Debug)]
pub struct InHand<'a> {
    peers: &'a Peers,
    worker: WorkerId,
    sent: Instant,
    answered: bool,
    /// Cancelled when the leaf is found to be gone.
    pub gone: CancellationToken,
}

impl InHand<'_> {
    /// It answered, whatever it said.
    pub fn on_answer(mut self) {
        self.answered = true;
    }

    /// Nobody listens on its subject any more.
    pub fn on_gone(self) {
        let mut state = self.peers.state();
        let leaf = state.leaf(&self.worker, Instant::now());
        leaf.shunned_until = Some(Instant::now() + SHUNNED);
        std::mem::take(&mut leaf.gone).cancel();
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.sent);
        self.peers.hedge.on_end(took);
        self.peers.state().on_end(&self.worker, took, self.answered, now);
    }
}

impl Default for Peers {
    fn default() -> Self {
        Self { hedge: Hedge::new(FIRST_PATIENCE, LEAST_PATIENCE), state: Mutex::default() }
    }
}

impl Peers {
    /// A request goes out.
    pub fn send(&self, worker: &WorkerId) -> InHand<'_> {
        let now = Instant::now();
        self.hedge.on_request();
        let mut state = self.state();
        let leaf = state.leaf(worker, now);
        leaf.in_hand += 1;
        InHand { peers: self, worker: worker.clone(), sent: now, answered: false, gone: leaf.gone.clone() }
    }

    /// Whether a leaf has answered nobody since then: it is not slow but stuck.
    pub fn is_silent_since(&self, worker: &WorkerId, then: Instant) -> bool {
        self.state().leaves.get(worker).is_none_or(|leaf| leaf.answered.is_none_or(|at| at < then))
    }

    /// Puts the replicas of every shard into the order in which they are to be asked. Shards with the same replicas are
    /// asked of the same one: fewer requests, and batches of the same shards in the leaves.
    pub fn order(&self, holders: &mut BTreeMap<u32, Vec<WorkerId>>) {
        let now = Instant::now();
        let mut state = self.state();
        let mut orders: BTreeMap<Vec<WorkerId>, Vec<WorkerId>> = BTreeMap::new();
        let mut given: HashMap<WorkerId, u32> = HashMap::new();
        for replicas in holders.values_mut() {
            replicas.sort_unstable();
            let order = orders.entry(replicas.clone()).or_insert_with(|| {
                let order = state.order_of(replicas, &given, now);
                if let Some(first) = order.first() {
                    *given.entry(first.clone()).or_default() += 1;
                }
                order
            });
            replicas.clone_from(order);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn leaf(&mut self, worker: &WorkerId, now: Instant) -> &mut Leaf {
        self.leaves.entry(worker.clone()).or_insert_with(|| Leaf::new(now))
    }

    fn on_end(&mut self, worker: &WorkerId, took: Duration, answered: bool, now: Instant) {
        let leaf = self.leaf(worker, now);
        leaf.in_hand = leaf.in_hand.saturating_sub(1);
        leaf.note(took, answered, now);
        if answered {
            leaf.answered = Some(now);
            leaf.shunned_until = None;
        }
    }

    /// One of two drawn by lot first, the better one; then the others, the best first.
    fn order_of(&mut self, replicas: &[WorkerId], given: &HashMap<WorkerId, u32>, now: Instant) -> Vec<WorkerId> {
        let mut drawn = replicas.to_vec();
        for last in (1..drawn.len()).rev() {
            self.lot += 1;
            drawn.swap(last, (mixed(self.lot) % (last as u64 + 1)) as usize);
        }
        let cost = |worker: &WorkerId| self.cost(worker, given.get(worker).copied().unwrap_or(0), now);
        let by_cost = |a: &WorkerId, b: &WorkerId| cost(a).partial_cmp(&cost(b)).unwrap_or(Ordering::Equal);
        let others = drawn.split_off(drawn.len().min(2));
        drawn.sort_by(by_cost);
        let first = drawn.drain(..drawn.len().min(1)).collect::<Vec<_>>();
        drawn.extend(others);
        drawn.sort_by(by_cost);
        first.into_iter().chain(drawn).collect()
    }

    /// (whether it is shunned, expected time of one more request).
    fn cost(&self, worker: &WorkerId, given: u32, now: Instant) -> (bool, f64) {
        let Some(leaf) = self.leaves.get(worker) else { return (false, f64::from(given)) };
        let shunned = leaf.shunned_until.is_some_and(|until| now < until);
        // Differences below 0.1 ms say nothing.
        (shunned, leaf.average(now).max(0.1) * f64::from(leaf.in_hand + given + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).unwrap()
    }

    fn firsts(peers: &Peers, replicas: &[&str], times: usize) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for _ in 0..times {
            let mut holders = BTreeMap::from([(0, replicas.iter().map(|name| worker(name)).collect())]);
            peers.order(&mut holders);
            assert_eq!(holders[&0].len(), replicas.len());
            *counts.entry(holders[&0][0].to_string()).or_default() += 1;
        }
        counts
    }

    #[test]
    fn of_two_the_one_with_less_in_hand_is_asked() {
        let peers = Peers::default();
        let both = firsts(&peers, &["a", "b"], 200);
        assert!(both["a"] > 60 && both["b"] > 60, "without a difference the lot decides: {both:?}");
        for name in ["a", "b"] {
            peers.send(&worker(name)).on_answer();
        }
        let _in_hand = [peers.send(&worker("a")), peers.send(&worker("a"))];
        assert_eq!(firsts(&peers, &["a", "b"], 20).keys().collect::<Vec<_>>(), ["b"]);
        let three = firsts(&peers, &["a", "b", "c"], 300);
        assert!(!three.contains_key("a") && three.len() == 2, "the busiest loses against either: {three:?}");
    }

    #[test]
    fn shards_of_the_same_replicas_are_asked_of_the_same_leaf() {
        let peers = Peers::default();
        let mut holders: BTreeMap<u32, Vec<WorkerId>> =
            (0..16).map(|shard| (shard, vec![worker("a"), worker(if shard < 8 { "b" } else { "c" })])).collect();
        peers.order(&mut holders);
        assert!(
            (0..8).all(|shard| holders[&shard] == holders[&0]) && (8..16).all(|shard| holders[&shard] == holders[&8])
        );
    }

    #[test]
    fn one_that_is_gone_loses_what_it_has_in_hand_and_is_asked_last() {
        let peers = Peers::default();
        let waiting = peers.send(&worker("a"));
        peers.send(&worker("a")).on_gone();
        assert!(waiting.gone.is_cancelled());
        assert!(!peers.send(&worker("a")).gone.is_cancelled(), "it may come back");
        assert_eq!(firsts(&peers, &["a", "b"], 20).keys().collect::<Vec<_>>(), ["b"]);
        peers.send(&worker("a")).on_answer();
        assert!(peers.state().leaves[&worker("a")].shunned_until.is_none());
    }

    #[test]
    fn a_leaf_that_answers_others_is_not_stuck() {
        let (peers, before) = (Peers::default(), Instant::now());
        assert!(peers.is_silent_since(&worker("a"), before));
        peers.send(&worker("a")).on_answer();
        assert!(!peers.is_silent_since(&worker("a"), before));
        assert!(peers.is_silent_since(&worker("a"), Instant::now() + Duration::from_secs(1)));
    }

    #[test]
    fn a_missing_answer_counts_as_long_as_it_was_waited_for_and_is_forgotten_slowly() {
        let now = Instant::now();
        let mut leaf = Leaf::new(now);
        leaf.note(Duration::from_millis(2), true, now);
        leaf.answered = Some(now);
        leaf.note(Duration::from_millis(300), false, now);
        assert!((leaf.average(now) - 300.0).abs() < 1e-9);
        assert!((leaf.average(now + FORGET_HALF) - 150.0).abs() < 1e-9);
        leaf.note(Duration::from_millis(50), true, now + FORGET_HALF);
        assert!((leaf.average(now + FORGET_HALF) - 130.0).abs() < 1e-9);
    }
}
