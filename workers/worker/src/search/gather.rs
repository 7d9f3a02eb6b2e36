//! The root's fan-out as pure decisions: whom to ask for which shard, what counts, what is missing.
//!
//! Every shard is asked of one replica. A replica that fails or refuses is followed by the next one; one that
//! is late is *joined* by the next one, and whichever answers first counts. A shard counts once, with the rows
//! that the manifest says, however many partials bring it. No clock and no network in here.

use std::collections::{BTreeMap, BTreeSet};

use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::ranking::{Candidate, merge_top_k};
use likeness_contract::search::{Coverage, How, Recall, Searched};

/// One request to one leaf; the number identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Identifies the request.
    pub number: usize,
    /// The leaf.
    pub worker: WorkerId,
    /// The shards that it is asked for.
    pub shards: Vec<u32>,
}

/// A leaf's partial answer.
#[derive(Debug, Clone)]
pub struct Partial {
    /// In ranking order.
    pub candidates: Vec<Candidate>,
    /// Shards that it searched.
    pub searched: Vec<Searched>,
    /// Shards that it did not search, with the reason.
    pub missing: Vec<(u32, String)>,
}

#[derive(Debug)]
struct Wanted {
    /// Rows, as the manifest says.
    rows: u64,
    /// Replicas that were not asked yet, the next one last.
    untried: Vec<WorkerId>,
    /// Requests under way that have not been late.
    patient: usize,
    /// Requests under way.
    in_flight: usize,
    /// Who answered for it.
    by: Option<WorkerId>,
    /// Rows that the filter let through, as they said.
    matching: u64,
    /// How they searched it, where an approximate answer was enough.
    how: Option<How>,
    /// The last reason why it is missing.
    reason: String,
    /// Why a live searcher does not hold it: says more than that those who held it are gone.
    trouble: Option<String>,
    /// Whether a leaf was asked that has too much to do.
    overloaded: bool,
}

/// One fan-out.
#[derive(Debug)]
pub struct Gather {
    shards: BTreeMap<u32, Wanted>,
    asked: Vec<Asked>,
    late: BTreeSet<usize>,
    partials: Vec<Vec<Candidate>>,
}

impl Gather {
    /// `shards` are (number, rows) of the whole generation, `holders` the replicas by shard in the order in which they
    /// are to be asked.
    pub fn new(
        generation: &GenerationRef,
        shards: impl IntoIterator<Item = (u32, u64)>,
        holders: &BTreeMap<u32, Vec<WorkerId>>,
    ) -> Self {
        let wanted = |(shard, rows)| {
            let untried = holders.get(&shard).into_iter().flatten().rev().cloned().collect();
            let reason = format!("no searcher holds it in generation `{}`", generation.generation);
            let (by, how, trouble, overloaded) = (None, None, None, false);
            let (patient, in_flight, matching) = (0, 0, 0);
            (shard, Wanted { rows, untried, patient, in_flight, by, matching, how, reason, trouble, overloaded })
        };
        let shards = shards.into_iter().map(wanted).collect();
        Self { shards, asked: Vec::new(), late: BTreeSet::new(), partials: Vec::new() }
    }

    /// A live searcher could not load a shard.
    pub fn note_trouble(&mut self, shard: u32, trouble: String) {
        if let Some(wanted) = self.shards.get_mut(&shard) {
            wanted.trouble = Some(trouble);
        }
    }

    /// A leaf is not to be asked: it was lost earlier in the same query.
    pub fn leave_out(&mut self, worker: &WorkerId, reason: &str) {
        for wanted in self.shards.values_mut() {
            let before = wanted.untried.len();
            wanted.untried.retain(|untried| untried != worker);
            if wanted.untried.len() < before {
                wanted.reason = format!("`{worker}`: {reason}");
            }
        }
    }

    /// The requests to send now, one per leaf. Empty when nothing can be asked at the moment.
    pub fn next_requests(&mut self) -> Vec<Asked> {
        let mut by_leaf: BTreeMap<WorkerId, Vec<u32>> = BTreeMap::new();
        for (shard, wanted) in &mut self.shards {
            if wanted.by.is_some() || wanted.patient > 0 {
                continue;
            }
            let Some(worker) = wanted.untried.pop() else { continue };
            wanted.patient += 1;
            wanted.in_flight += 1;
            by_leaf.entry(worker).or_default().push(*shard);
        }
        let first = self.asked.len();
        let requests = by_leaf.into_iter().enumerate();
        let requests: Vec<Asked> =
            requests.map(|(i, (worker, shards))| Asked { number: first + i, worker, shards }).collect();
        self.asked.extend(requests.iter().cloned());
        requests
    }

    /// A leaf answered; also when it was late, or not the first.
    pub fn on_partial(&mut self, number: usize, partial: Partial) {
        let asked = self.settle(number);
        let Partial { candidates, searched, missing } = partial;
        if let Err(reason) = plausible(&asked, &candidates) {
            return self.give_reason(&asked, &reason);
        }
        for (shard, reason) in missing {
            self.reason(shard, format!("`{}`: {reason}", asked.worker));
        }
        let mut counted = BTreeSet::new();
        for Searched { shard, rows, matching, how } in searched {
            let Some(wanted) = self.shards.get_mut(&shard).filter(|_| asked.shards.contains(&shard)) else { continue };
            if rows == wanted.rows {
                if wanted.by.is_none() {
                    (wanted.by, wanted.matching, wanted.how) = (Some(asked.worker.clone()), matching, how);
                }
                counted.insert(shard);
            } else {
                wanted.reason = format!("`{}` has {rows} rows of it, the manifest says {}", asked.worker, wanted.rows);
            }
        }
        // Of a shard that another leaf answered already the same candidates come again; the merge drops them.
        self.partials.push(candidates.into_iter().filter(|candidate| counted.contains(&candidate.shard)).collect());
    }

    /// A leaf failed or refused.
    pub fn on_failure(&mut self, number: usize, reason: &str) {
        let asked = self.settle(number);
        self.give_reason(&asked, reason);
    }

    /// A leaf has too much to do.
    pub fn on_overload(&mut self, number: usize) {
        for shard in &self.asked[number].shards {
            if let Some(wanted) = self.shards.get_mut(shard) {
                wanted.overloaded = true;
            }
        }
        self.on_failure(number, "is busy: too many searches wait");
    }

    /// Whether a shard is missing because there is too much to do.
    pub fn is_overloaded(&self) -> bool {
        self.shards.values().any(|wanted| wanted.by.is_none() && wanted.overloaded)
    }

    /// Whether an answer to this request would still bring something.
    pub fn is_open(&self, number: usize) -> bool {
        self.asked[number].shards.iter().any(|shard| self.shards.get(shard).is_some_and(|wanted| wanted.by.is_none()))
    }

    /// A leaf has had its time: the next replica may be asked as well. Its answer still counts.
    pub fn on_late(&mut self, number: usize) {
        if self.asked[number].shards.is_empty() || !self.late.insert(number) {
            return;
        }
        let worker = self.asked[number].worker.clone();
        for shard in self.asked[number].shards.clone() {
            let Some(wanted) = self.shards.get_mut(&shard) else { continue };
            wanted.patient -= 1;
            wanted.reason = format!("`{worker}` did not answer in time");
        }
    }

    /// Time is over: whoever was asked and did not answer was too late.
    pub fn on_deadline(&mut self) {
        for number in 0..self.asked.len() {
            self.on_late(number);
        }
    }

    /// Whether waiting longer can't bring anything.
    pub fn is_complete(&self) -> bool {
        self.shards.values().all(|wanted| wanted.by.is_some() || (wanted.in_flight == 0 && wanted.untried.is_empty()))
    }

    /// Who answered for a shard.
    pub fn answered_by(&self, shard: u32) -> Option<&WorkerId> {
        self.shards.get(&shard)?.by.as_ref()
    }

    /// The best `k` of what was searched, and how much that was.
    pub fn finish(&mut self, k: usize) -> (Vec<Candidate>, Coverage) {
        let best = merge_top_k(std::mem::take(&mut self.partials), k);
        (best, self.coverage())
    }

    fn answered(&self) -> impl Iterator<Item = (&u32, &Wanted)> + Clone {
        self.shards.iter().filter(|(_, wanted)| wanted.by.is_some())
    }

    /// Rows that the filter let through in what was searched.
    pub fn matching(&self) -> u64 {
        self.answered().map(|(_, wanted)| wanted.matching).sum()
    }

    /// What is expected of an approximate answer. The shards' recalls are of their own rows, and nobody knows how the true
    /// answer is spread over them: so it is the least of them.
    pub fn recall(&self) -> Recall {
        let (mut estimate, mut approximately, mut exactly) = (1f64, 0, Vec::new());
        for (shard, wanted) in self.answered() {
            match &wanted.how {
                Some(How::Approximately { recall }) => {
                    estimate = estimate.min(*recall);
                    approximately += 1;
                }
                Some(How::Exactly { because }) => exactly.push((*shard, because.as_str())),
                None => exactly.push((*shard, "its searcher knows no approximate answers")),
            }
        }
        Recall { estimate, shards: approximately, exact: by_reason(exactly) }
    }

    fn coverage(&self) -> Coverage {
        let answered = self.answered().map(|(_, wanted)| wanted);
        Coverage {
            rows: answered.clone().map(|wanted| wanted.rows).sum(),
            total_rows: self.shards.values().map(|wanted| wanted.rows).sum(),
            shards: answered.count() as u32,
            total_shards: self.shards.len() as u32,
            reasons: self.reasons(),
        }
    }

    /// Why shards are missing.
    fn reasons(&self) -> Vec<String> {
        let missing = self.shards.iter().filter(|(_, wanted)| wanted.by.is_none());
        by_reason(missing.map(|(shard, wanted)| (*shard, wanted.trouble.as_ref().unwrap_or(&wanted.reason).as_str())))
    }

    /// The request is no longer under way.
    fn settle(&mut self, number: usize) -> Asked {
        let was_late = self.late.contains(&number);
        let asked = self.asked[number].clone();
        for shard in &asked.shards {
            let Some(wanted) = self.shards.get_mut(shard) else { continue };
            wanted.in_flight -= 1;
            wanted.patient -= usize::from(!was_late);
        }
        self.asked[number].shards.clear();
        asked
    }

    fn give_reason(&mut self, asked: &Asked, reason: &str) {
        for shard in &asked.shards {
            self.reason(*shard, format!("`{}`: {reason}", asked.worker));
        }
    }

    fn reason(&mut self, shard: u32, reason: String) {
        if let Some(wanted) = self.shards.get_mut(&shard) {
            wanted.reason = reason;
        }
    }
}

/// One line per reason, with the shards that it concerns.
fn by_reason<'a>(reasons: impl IntoIterator<Item = (u32, &'a str)>) -> Vec<String> {
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (shard, reason) in reasons {
        by_reason.entry(reason).or_default().push(shard.to_string());
    }
    let line = |(reason, shards): (&str, Vec<String>)| match shards.as_slice() {
        [shard] => format!("shard {shard}: {reason}"),
        shards => format!("shards {}: {reason}", shards.join(", ")),
    };
    by_reason.into_iter().map(line).collect()
}

/// A partial must be in ranking order and only of shards that were asked, or the merge would be wrong.
fn plausible(asked: &Asked, candidates: &[Candidate]) -> Result<(), String> {
    if !candidates.is_sorted_by(|a, b| a.rank(b).is_le()) {
        return Err("answered out of order".into());
    }
    match candidates.iter().find(|candidate| !asked.shards.contains(&candidate.shard)) {
        Some(stray) => Err(format!("answered for shard {}, which it was not asked for", stray.shard)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, Name};

    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).unwrap()
    }

    /// Two shards of 10 rows on `a` and `b`, a third on `b` alone.
    fn gather() -> Gather {
        let generation = GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("j").unwrap() };
        let both = vec![worker("a"), worker("b")];
        let holders = BTreeMap::from([(0, both.clone()), (1, both), (2, vec![worker("b")])]);
        Gather::new(&generation, [(0, 10), (1, 10), (2, 10)], &holders)
    }

    fn row(shard: u32, d2: f64) -> Candidate {
        Candidate { d2, item: format!("{shard}-{d2}"), shard, row: 0 }
    }

    fn partial(candidates: Vec<Candidate>, shards: &[u32]) -> Partial {
        let searched = shards.iter().map(|shard| Searched::whole(*shard, 10)).collect();
        Partial { candidates, searched, missing: Vec::new() }
    }

    fn asked(requests: &[Asked]) -> Vec<(&str, Vec<u32>)> {
        requests.iter().map(|asked| (asked.worker.as_str(), asked.shards.clone())).collect()
    }

    #[test]
    fn every_shard_is_asked_once_grouped_by_leaf() {
        let mut gather = gather();
        let requests = gather.next_requests();
        assert_eq!(asked(&requests), [("a", vec![0, 1]), ("b", vec![2])]);
        assert!(gather.next_requests().is_empty());
        gather.on_partial(0, partial(vec![row(1, 0.1), row(0, 0.4)], &[0, 1]));
        assert!(!gather.is_complete());
        gather.on_partial(1, partial(vec![row(2, 0.2)], &[2]));
        assert!(gather.is_complete());
        let (hits, coverage) = gather.finish(2);
        assert_eq!(hits, [row(1, 0.1), row(2, 0.2)]);
        assert_eq!((coverage.rows, coverage.shards, coverage.share()), (30, 3, 1.0));
        assert!(coverage.reasons.is_empty());
        assert_eq!(gather.answered_by(1), Some(&worker("a")));
    }

    #[test]
    fn a_failed_leaf_is_followed_by_the_other_replica() {
        let mut gather = gather();
        gather.next_requests();
        gather.on_failure(0, "no responders");
        let second = gather.next_requests();
        assert_eq!(asked(&second), [("b", vec![0, 1])]);
        gather.on_partial(second[0].number, partial(vec![row(0, 0.4)], &[0, 1]));
        gather.on_failure(1, "busy");
        assert!(gather.is_complete());
        let (hits, coverage) = gather.finish(9);
        assert_eq!(hits, [row(0, 0.4)]);
        assert_eq!((coverage.rows, coverage.total_rows, coverage.shards, coverage.total_shards), (20, 30, 2, 3));
        assert_eq!(coverage.reasons, ["shard 2: `b`: busy"]);
    }

    #[test]
    fn a_busy_leaf_is_followed_by_the_other_and_told_apart() {
        let mut gather = gather();
        gather.next_requests();
        gather.on_overload(0);
        let second = gather.next_requests();
        assert_eq!(asked(&second), [("b", vec![0, 1])]);
        assert!(gather.is_overloaded() && gather.is_open(second[0].number));
        gather.on_partial(second[0].number, partial(vec![], &[0, 1]));
        gather.on_failure(1, "is gone");
        assert!(!gather.is_overloaded(), "what is missing is so for another reason");
        assert!(!gather.is_open(second[0].number));
    }

    #[test]
    fn a_late_leaf_is_joined_by_the_other_and_counts_once() {
        let mut gather = gather();
        gather.next_requests();
        gather.on_partial(1, partial(vec![], &[2]));
        gather.on_late(0);
        gather.on_late(0);
        let hedge = gather.next_requests();
        assert_eq!(asked(&hedge), [("b", vec![0, 1])]);
        gather.on_partial(hedge[0].number, partial(vec![row(0, 0.4), row(1, 0.5)], &[0, 1]));
        assert!(gather.is_complete());
        gather.on_partial(0, partial(vec![row(0, 0.4), row(1, 0.5)], &[0, 1]));
        let (hits, coverage) = gather.finish(9);
        assert_eq!(hits, [row(0, 0.4), row(1, 0.5)]);
        assert_eq!((coverage.rows, coverage.shards), (30, 3));
    }

    #[test]
    fn a_late_answer_counts_where_no_other_came() {
        let mut gather = gather();
        gather.next_requests();
        gather.on_late(1);
        assert!(gather.next_requests().is_empty(), "shard 2 has no other replica");
        assert!(!gather.is_complete(), "the late one may still come");
        gather.on_partial(1, partial(vec![row(2, 0.1)], &[2]));
        gather.on_partial(0, partial(vec![], &[0, 1]));
        assert_eq!(gather.finish(1).1.share(), 1.0);
    }

    #[test]
    fn a_deadline_leaves_an_honest_coverage() {
        let mut gather = gather();
        gather.next_requests();
        gather.on_partial(1, partial(vec![row(2, 0.3)], &[2]));
        gather.on_deadline();
        let (hits, coverage) = gather.finish(5);
        assert_eq!((hits.len(), coverage.rows), (1, 10));
        assert_eq!(coverage.reasons, ["shards 0, 1: `a` did not answer in time"]);
    }

    #[test]
    fn an_implausible_partial_is_a_failure() {
        let out_of_order = partial(vec![row(0, 0.4), row(0, 0.1)], &[0, 1]);
        let stray = partial(vec![row(2, 0.4)], &[0, 1]);
        for bad in [out_of_order, stray] {
            let mut gather = gather();
            gather.next_requests();
            gather.on_partial(0, bad);
            assert_eq!(asked(&gather.next_requests()), [("b", vec![0, 1])]);
            assert!(gather.finish(9).0.is_empty());
        }
    }

    #[test]
    fn a_shard_of_another_size_does_not_count() {
        let mut gather = gather();
        gather.next_requests();
        let searched = vec![Searched::whole(2, 9)];
        let partial = Partial { candidates: vec![row(2, 0.1)], searched, missing: vec![] };
        gather.on_partial(1, partial);
        let (hits, coverage) = gather.finish(5);
        assert!(hits.is_empty());
        assert!(coverage.reasons.iter().any(|reason| reason == "shard 2: `b` has 9 rows of it, the manifest says 10"));
    }

    #[test]
    fn shards_that_a_leaf_lacks_are_asked_elsewhere() {
        let mut gather = gather();
        gather.next_requests();
        let mut answer = partial(vec![row(0, 0.1)], &[0]);
        answer.missing = vec![(1, "not held here".into())];
        gather.on_partial(0, answer);
        assert_eq!(asked(&gather.next_requests()), [("b", vec![1])]);
    }

    #[test]
    fn a_leaf_that_is_left_out_is_not_asked_and_named() {
        let mut gather = gather();
        gather.leave_out(&worker("b"), "was lost");
        let requests = gather.next_requests();
        assert_eq!(asked(&requests), [("a", vec![0, 1])]);
        gather.on_partial(0, partial(vec![], &[0, 1]));
        assert!(gather.is_complete());
        assert_eq!(gather.finish(1).1.reasons, ["shard 2: `b`: was lost"]);
    }

    #[test]
    fn why_a_live_searcher_lacks_a_shard_says_more_than_who_is_gone() {
        let mut gather = gather();
        gather.note_trouble(2, "`c`: it is not in the store".into());
        gather.next_requests();
        gather.on_failure(1, "is gone");
        gather.on_partial(0, partial(vec![], &[0, 1]));
        assert_eq!(gather.finish(1).1.reasons, ["shard 2: `c`: it is not in the store"]);
    }

    #[test]
    fn an_approximate_answer_is_as_good_as_its_worst_shard() {
        let mut gather = gather();
        gather.next_requests();
        let how = |shard, how| Searched { matching: 4, how: Some(how), ..Searched::whole(shard, 10) };
        let searched = vec![
            how(0, How::Approximately { recall: 0.99 }),
            how(1, How::Exactly { because: "it has no approximate index".into() }),
        ];
        gather.on_partial(0, Partial { candidates: vec![], searched, missing: vec![] });
        // The first who answers for a shard is believed; one of an older version says nothing of it.
        let again = vec![how(2, How::Approximately { recall: 0.96 }), how(0, How::Approximately { recall: 0.5 })];
        gather.on_partial(1, Partial { candidates: vec![], searched: again, missing: vec![] });
        let Recall { estimate, shards, exact } = gather.recall();
        assert_eq!((estimate, shards, gather.matching()), (0.96, 2, 12));
        assert_eq!(exact, ["shard 1: it has no approximate index"]);
    }

    #[test]
    fn no_replica_is_said_as_such() {
        let generation = GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("j").unwrap() };
        let mut gather = Gather::new(&generation, [(0, 5)], &BTreeMap::new());
        assert!(gather.next_requests().is_empty() && gather.is_complete());
        assert_eq!(gather.finish(1).1.reasons, ["shard 0: no searcher holds it in generation `j`"]);
    }
}
