//! A seeded world around the core: broker, store, workers and leaders, in which everything that can go wrong does.
//!
//! Workers crash between any two steps, sleep past their lease and wake up believing in it, are cut off, and send answers that arrive
//! late and hit another's delivery, or another task's message after a wipe. Events are lost, doubled and reordered. The store carries a
//! write out and answers with an error, or does neither. Leaders sleep past their lease and then act once more, so that two lead at
//! a time; their effects are carried out in any order. The broker forgets everything.
//!
//! At every step: a record never changes; a run is closed once, `done` only with every record of its plan; a release is made once for
//! a pipeline, of a complete generation; no leader fills the queue with one job. In the end every run
//! is over. A failing seed is printed with the command that replays it alone.
//!
//! `LIKENESS_SEEDS=N` sets how many seeds each test goes through, `LIKENESS_SEED=S` replays one.

mod broker;
pub(in crate::core) mod dice;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};

use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{
    CheckpointOutput, JobSpec, JobWork, Outcome, Priority, Run, RunResult, SlotState, TaskFailure, TaskMessage,
    TaskOutput, TaskRecord, TaskWork, task_ids,
};
use likeness_contract::messages::{TaskEvent, TaskNews};
use likeness_contract::settings::RoundSettings;

use super::attempts::{REPORTED_LIMIT, SILENT_LIMIT};
use super::job::OpenedJob;
use super::outbox::Effect;
use super::planner;
use super::reactor::Reactor;
use super::testing::*;
use broker::{ACK_WAIT_MS, Answer, Broker, LEASE_MS};
use dice::Dice;
use worker::{Attempt, End, RENEW_MS, Step, Worker};

/// Time that passes at one step, milliseconds.
const STEP_MS: u64 = 250;
const PATIENCE_MS: u64 = 2 * ACK_WAIT_MS;
/// A leader takes its lease for good so long, less than it lives.
const LEASE_GOOD_MS: u64 = LEASE_MS - LEASE_MS / 5;
/// A run that is not over after so many steps hangs.
const MOST_STEPS: u64 = 200_000;
/// After so many steps the world becomes kind, so that it ends.
const UNKIND_STEPS: u64 = 3_000;
const WORKERS: usize = 4;
/// Most messages of one job that one leader keeps in the queue: all of one kind here.
const WINDOW: usize = 16;

/// A coordinator that believes to lead.
struct Leader {
    core: Reactor,
    /// Effects that it will carry out, in any order.
    effects: Vec<Effect>,
    /// Events up to here were read.
    read: usize,
    revision: u64,
    good_until_ms: u64,
    asleep_until_ms: u64,
}

/// An answer that is on its way.
struct Sent {
    arrives_ms: u64,
    sequence: u64,
    answer: Answer,
}

/// What happened, for the figures that a run tells.
#[derive(Debug, Default, Clone, Copy)]
struct Tallies {
    crashes: u64,
    redeliveries: u64,
    computed: u64,
    duplicates: u64,
    adopted: u64,
    lies_of_the_store: u64,
}

struct World {
    dice: Dice,
    now_ms: u64,
    steps: u64,
    specs: BTreeMap<JobId, JobSpec>,
    // The store.
    records: HashMap<(JobId, TaskId), TaskRecord>,
    /// Data that no record named when it was written.
    data: HashSet<String>,
    runs: BTreeMap<JobId, u32>,
    outcomes: BTreeMap<(JobId, u32), Outcome>,
    releases: Vec<JobId>,
    broker: Broker,
    on_the_way: Vec<Sent>,
    workers: Vec<Worker>,
    leaders: Vec<Leader>,
    attempts: u64,
    /// Tasks whose every attempt fails.
    poisoned: HashSet<(JobId, TaskId)>,
    /// One leader stays, so that no new one makes up for what it forgets.
    steady: bool,
    /// No event lies: what follows a task is then never asked for before its record is there.
    honest: bool,
    tallies: Tallies,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed),
            now_ms: 0,
            steps: 0,
            specs: BTreeMap::new(),
            records: HashMap::new(),
            data: HashSet::new(),
            runs: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            releases: Vec::new(),
            broker: Broker::default(),
            on_the_way: Vec::new(),
            workers: (0..WORKERS).map(|n| Worker::new(worker_id(&format!("worker-{n}")))).collect(),
            leaders: Vec::new(),
            attempts: 0,
            poisoned: HashSet::new(),
            steady: false,
            honest: false,
            tallies: Tallies::default(),
        };
        world.stand_by();
        world
    }

    fn unkind(&self) -> bool {
        self.steps < UNKIND_STEPS
    }

    fn misfortune(&mut self, once_in: u64) -> bool {
        self.unkind() && self.dice.once_in(once_in)
    }

    fn accept(&mut self, id: &str, spec: JobSpec) {
        let id = job_id(id);
        self.specs.insert(id.clone(), spec);
        self.open_run(&id, 1);
    }

    /// Creates the run; the leaders hear of it from its event.
    fn open_run(&mut self, id: &JobId, number: u32) {
        self.runs.insert(id.clone(), number);
        let opened = self.found(id);
        for Leader { core, effects, .. } in &mut self.leaders {
            core.on_opened(id, opened.clone(), self.now_ms, effects);
        }
    }

    /// What the store says of a job with an open run.
    fn found(&self, id: &JobId) -> OpenedJob {
        let spec = self.specs[id].clone();
        let plan = planner::plan(id, &spec);
        let run = Run { job: id.clone(), run: RunNumber(self.runs[id]), opened_ms: 0 };
        let records: HashSet<TaskId> = self.records_of(id);
        let tellers: HashSet<TaskId> = plan.stages.iter().filter_map(|stage| stage.expands.clone()).collect();
        let tellers = tellers.into_iter().filter_map(|task| self.records.get(&(id.clone(), task)).cloned()).collect();
        OpenedJob { spec, plan, accepted_ms: 0, run, records, tellers }
    }

    fn records_of(&self, id: &JobId) -> HashSet<TaskId> {
        self.records.keys().filter(|(job, _)| job == id).map(|(_, task)| task.clone()).collect()
    }

    fn step(&mut self) {
        self.steps += 1;
        self.now_ms += STEP_MS;
        self.arrive();
        match self.dice.below(12) {
            0..=4 => self.work(),
            5..=7 => self.act(),
            8 => self.hear(),
            9 => self.tick(),
            10 => self.lead(),
            _ => self.disturb(),
        }
        self.check_windows();
    }

    // Workers.

    /// Answers reach the broker, some of them late.
    fn arrive(&mut self) {
        let now_ms = self.now_ms;
        let (arrived, rest) =
            std::mem::take(&mut self.on_the_way).into_iter().partition(|sent| sent.arrives_ms <= now_ms);
        self.on_the_way = rest;
        let arrived: Vec<Sent> = arrived;
        for Sent { sequence, answer, .. } in arrived {
            self.broker.answer(sequence, answer, now_ms);
        }
    }

    fn send(&mut self, worker: usize, sequence: u64, answer: Answer) {
        if self.now_ms < self.workers[worker].cut_off_until_ms || self.misfortune(12) {
            return;
        }
        let delay = if self.misfortune(8) { self.dice.below(2 * ACK_WAIT_MS as usize) as u64 } else { 0 };
        self.on_the_way.push(Sent { arrives_ms: self.now_ms + delay, sequence, answer });
        self.arrive();
    }

    /// A worker takes its next step, unless it sleeps; or something befalls it.
    fn work(&mut self) {
        let at = self.dice.below(self.workers.len());
        let now_ms = self.now_ms;
        if now_ms < self.workers[at].asleep_until_ms {
            return;
        }
        if self.misfortune(40) {
            // A new process takes its place.
            self.tallies.crashes += 1;
            self.workers[at] = Worker::new(self.workers[at].id.clone());
            return;
        }
        if self.misfortune(40) {
            self.workers[at].asleep_until_ms = now_ms + self.dice.below(3 * ACK_WAIT_MS as usize) as u64;
            return;
        }
        if self.misfortune(60) {
            self.workers[at].cut_off_until_ms = now_ms + self.dice.below(2 * ACK_WAIT_MS as usize) as u64;
        }
        match self.workers[at].attempt.take() {
            None => self.pull(at),
            Some(mut attempt) => {
                self.renew(at, &mut attempt);
                self.workers[at].attempt = self.go_on(at, attempt);
            }
        }
    }

    fn pull(&mut self, at: usize) {
        if self.now_ms < self.workers[at].cut_off_until_ms {
            return;
        }
        let Some(delivery) = self.broker.deliver(self.now_ms) else { return };
        self.tallies.redeliveries += u64::from(delivery.deliveries > 1);
        self.attempts += 1;
        let name = format!("a{}", self.attempts);
        self.workers[at].attempt = Some(Attempt::new(delivery, name, self.now_ms));
    }

    /// A renewal counts from when it was sent, once the broker has confirmed it.
    fn renew(&mut self, at: usize, attempt: &mut Attempt) {
        let due = self.now_ms >= attempt.confirmed_ms + RENEW_MS;
        if !due || !attempt.is_leased(self.now_ms) || self.now_ms < self.workers[at].cut_off_until_ms {
            return;
        }
        if !self.misfortune(6) {
            self.broker.answer(attempt.delivery.sequence, Answer::Progress, self.now_ms);
            attempt.confirmed_ms = self.now_ms;
        }
    }

    /// The attempt after its next step; none when it is over.
    fn go_on(&mut self, at: usize, mut attempt: Attempt) -> Option<Attempt> {
        let TaskMessage { job, run, task, .. } = attempt.delivery.message.clone();
        let key = (job.clone(), task);
        attempt.step = match attempt.step {
            Step::Look if self.misfortune(20) => Step::Tell(End::Transient),
            Step::Look if self.records.contains_key(&key) => Step::Tell(End::Done { adopted: true }),
            Step::Look if self.outcomes.contains_key(&(job.clone(), run.0)) => Step::Tell(End::Cancelled),
            Step::Look if self.is_late(&attempt.delivery.message) => Step::Tell(End::Cancelled),
            Step::Look => Step::Started,
            Step::Started => {
                if self.now_ms < self.workers[at].cut_off_until_ms {
                    return self.end(attempt, End::Transient);
                }
                self.tell(at, &attempt, TaskNews::Started);
                Step::Compute(self.dice.below(4))
            }
            Step::Compute(_) if self.misfortune(30) => Step::Tell(End::Drain),
            Step::Compute(_) if self.misfortune(20) => Step::Tell(End::Transient),
            Step::Compute(0) if self.poisoned.contains(&key) => {
                Step::Tell(if self.dice.once_in(4) { End::Invalid } else { End::Transient })
            }
            Step::Compute(0) => Step::Data,
            Step::Compute(left) => Step::Compute(left - 1),
            Step::Data => {
                self.data.insert(format!("{}/{}/{}", key.0, key.1, attempt.name));
                Step::Ensure
            }
            Step::Ensure if attempt.is_leased(self.now_ms) => Step::Record,
            // Silent: the message comes again, or another has it.
            Step::Ensure => return None,
            Step::Record => self.create_record(at, &attempt, key),
            Step::Tell(end) => {
                if attempt.is_leased(self.now_ms) {
                    self.tell_end(at, &attempt, end);
                }
                Step::Answer(end)
            }
            Step::Answer(end) => {
                if attempt.is_leased(self.now_ms) {
                    self.answer(at, &attempt, end);
                }
                return None;
            }
        };
        Some(attempt)
    }

    fn end(&mut self, mut attempt: Attempt, end: End) -> Option<Attempt> {
        attempt.step = Step::Tell(end);
        Some(attempt)
    }

    /// The create that decides. The store may do it and answer with an error all the same.
    fn create_record(&mut self, at: usize, attempt: &Attempt, key: (JobId, TaskId)) -> Step {
        if self.misfortune(25) {
            return Step::Tell(End::Transient);
        }
        let TaskMessage { run, work, .. } = &attempt.delivery.message;
        if !self.may_follow(&key.0, work) {
            assert!(!self.honest, "`{}` was asked for too early", key.1);
            return Step::Tell(End::Transient);
        }
        let worker = self.workers[at].id.clone();
        let made = record(&key.0, key.1.as_str(), self.output(&key.0, work));
        let made = TaskRecord { run: *run, worker, attempt: attempt.delivery.deliveries, ..made };
        self.tallies.computed += 1;
        let there = self.records.contains_key(&key);
        self.tallies.duplicates += u64::from(there);
        self.records.entry(key).or_insert(made);
        if self.misfortune(15) {
            self.tallies.lies_of_the_store += 1;
            return Step::Tell(End::Transient);
        }
        self.tallies.adopted += u64::from(there);
        Step::Tell(End::Done { adopted: there })
    }

    /// Whether the round of a slot went on without it.
    fn is_late(&self, message: &TaskMessage) -> bool {
        let TaskWork::TrainSlot { round, .. } = message.work else { return false };
        self.records.contains_key(&(message.job.clone(), task_ids::outer(round)))
    }

    /// Whether the records are there that a task of a training starts from.
    fn may_follow(&self, job: &JobId, work: &TaskWork) -> bool {
        let there = |task: TaskId| self.records.contains_key(&(job.clone(), task));
        match *work {
            TaskWork::TrainSlot { round: 0, .. } => there(task_ids::train_init()),
            TaskWork::TrainSlot { round, .. } => there(task_ids::outer(round - 1)),
            TaskWork::TrainOuter { round } => {
                let rounds = rounds_of(&self.specs[job]);
                let found = (0..rounds.slots).filter(|slot| there(task_ids::slot(round, *slot))).count();
                found >= rounds.quorum as usize
            }
            _ => true,
        }
    }

    /// What a task makes; an outer step takes the slots that have records now.
    fn output(&self, job: &JobId, work: &TaskWork) -> TaskOutput {
        let TaskWork::TrainOuter { round } = *work else { return output(work) };
        let there = |slot| self.records.contains_key(&(job.clone(), task_ids::slot(round, slot)));
        let slots = (0..rounds_of(&self.specs[job]).slots).map(|slot| SlotState { taken: there(slot), state: None });
        TaskOutput::Round { checkpoint: CheckpointOutput::of(1, object()), momentum: None, slots: slots.collect() }
    }

    fn tell_end(&mut self, at: usize, attempt: &Attempt, end: End) {
        let failed = |retryable| TaskNews::Failed { error: "flaky".into(), retryable };
        let news = match end {
            End::Done { adopted } => TaskNews::Done { adopted, device_ms: 1 },
            End::Transient => failed(true),
            End::Invalid => failed(false),
            End::Drain => TaskNews::Released,
            End::Cancelled => return,
        };
        self.tell(at, attempt, news);
    }

    fn answer(&mut self, at: usize, attempt: &Attempt, end: End) {
        let answer = match end {
            End::Done { .. } | End::Invalid | End::Cancelled => Answer::Remove,
            End::Transient => Answer::Again(1_000 << attempt.delivery.deliveries.min(6)),
            End::Drain => Answer::Again(0),
        };
        self.send(at, attempt.delivery.sequence, answer);
    }

    /// An event of an attempt: it may get lost, come twice, or after later ones.
    fn tell(&mut self, at: usize, attempt: &Attempt, what: TaskNews) {
        let TaskMessage { job, run, task, .. } = attempt.delivery.message.clone();
        let worker = self.workers[at].id.clone();
        let event = TaskEvent { job, run, task, worker, attempt: attempt.name.clone(), at_ms: 0, what };
        let cut_off = self.now_ms < self.workers[at].cut_off_until_ms;
        let copies = if cut_off || self.misfortune(6) { 0 } else { 1 + usize::from(self.misfortune(6)) };
        let events = &mut self.broker.events;
        for _ in 0..copies {
            let at = events.len() - self.dice.below(3.min(events.len() + 1));
            let unread = self.leaders.iter().map(|leader| leader.read).max().unwrap_or(0);
            events.insert(at.max(unread), event.clone());
        }
    }

    // Leaders.

    /// A new leader, if the lease can be had, reads the store and then all events.
    fn stand_by(&mut self) {
        let Some(revision) = self.broker.take_lease(self.now_ms) else { return };
        let (core, effects) = (Reactor::new(PATIENCE_MS), Vec::new());
        let good_until_ms = self.now_ms + LEASE_GOOD_MS;
        let mut leader = Leader { core, effects, read: 0, revision, good_until_ms, asleep_until_ms: 0 };
        for (id, number) in self.runs.clone() {
            if !self.outcomes.contains_key(&(id.clone(), number)) {
                leader.core.on_opened(&id, self.found(&id), self.now_ms, &mut leader.effects);
            }
        }
        for event in &self.broker.events {
            leader.core.on_event(event, self.now_ms, &mut leader.effects);
        }
        leader.read = self.broker.events.len();
        leader.core.on_replayed(self.now_ms, &mut leader.effects);
        self.leaders.push(leader);
    }

    /// Leaders renew their leases, or stop leading; another stands by.
    fn lead(&mut self) {
        let now_ms = self.now_ms;
        let mut over = Vec::new();
        for (at, leader) in self.leaders.iter_mut().enumerate() {
            if now_ms < leader.asleep_until_ms {
                continue;
            }
            if now_ms >= leader.good_until_ms {
                over.push(at);
                continue;
            }
            match self.broker.renew_lease(leader.revision, now_ms) {
                Some(revision) => {
                    leader.revision = revision;
                    leader.good_until_ms = now_ms + LEASE_GOOD_MS;
                }
                None => over.push(at),
            }
        }
        for at in over.into_iter().rev() {
            // What it was about to do when its lease ended is done all the same.
            if !self.leaders[at].effects.is_empty() {
                let which = self.dice.below(self.leaders[at].effects.len());
                let effect = self.leaders[at].effects.remove(which);
                self.carry_out(at, effect);
            }
            self.leaders.remove(at);
        }
        self.stand_by();
    }

    fn awake_leader(&mut self) -> Option<usize> {
        if self.leaders.is_empty() {
            return None;
        }
        let at = self.dice.below(self.leaders.len());
        (self.now_ms >= self.leaders[at].asleep_until_ms).then_some(at)
    }

    /// A leader reads some events.
    fn hear(&mut self) {
        let Some(at) = self.awake_leader() else { return };
        let Leader { core, effects, read, .. } = &mut self.leaders[at];
        for event in self.broker.events[*read..].iter().take(5) {
            core.on_event(event, self.now_ms, effects);
            *read += 1;
        }
    }

    fn tick(&mut self) {
        for Leader { core, effects, asleep_until_ms, .. } in &mut self.leaders {
            if self.now_ms >= *asleep_until_ms {
                core.on_tick(self.now_ms, effects);
                core.on_deadlines(self.now_ms, effects);
            }
        }
    }

    /// A leader carries out one of its effects, if it believes in its lease.
    fn act(&mut self) {
        let Some(at) = self.awake_leader() else { return };
        let Leader { effects, good_until_ms, .. } = &mut self.leaders[at];
        if effects.is_empty() || self.now_ms >= *good_until_ms {
            return;
        }
        // The broker's effects of a job keep their order in the shell; here any order must do.
        let which = self.dice.below(effects.len());
        let effect = effects.remove(which);
        self.carry_out(at, effect);
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        let now_ms = self.now_ms;
        if let Effect::Promote(promotion) = &effect {
            self.check_complete(&promotion.job);
        }
        if let Effect::Close { job, run, result } = &effect {
            self.close(job, *run, result);
        }
        let Leader { core, effects, .. } = &mut self.leaders[at];
        match effect {
            Effect::Publish { subject, message } if core.is_open(&message.job, message.run) => {
                self.broker.publish(subject, message);
            }
            Effect::PurgeTask { subject, .. } => self.broker.purge_subject(&subject),
            Effect::PurgeJob { job } => self.broker.purge_job(&job),
            Effect::FindRecord { job, run, task } => match self.records.get(&(job.clone(), task.clone())) {
                Some(record) => core.on_record(record, now_ms, effects),
                None => core.on_no_record(&job, run, &task, now_ms, effects),
            },
            Effect::ListRecords { job, run } => {
                let own = self.records.keys().filter(|(owner, _)| *owner == job);
                let records = own.map(|(_, task)| task.clone()).collect();
                core.on_records(&job, run, &records, now_ms, effects);
            }
            Effect::FindOutcome { job, run } | Effect::Close { job, run, .. } => {
                if let Some(outcome) = self.outcomes.get(&(job, run.0)) {
                    core.on_outcome(outcome.clone(), now_ms, effects);
                }
            }
            Effect::Promote(promotion) => {
                if !self.releases.contains(&promotion.job) {
                    self.releases.push(promotion.job.clone());
                }
                let number = self.releases.iter().position(|job| *job == promotion.job).unwrap() as u64 + 1;
                core.on_promoted(&promotion.job, promotion.run, &promotion.gate, Ok(number), effects);
            }
            _ => {}
        }
    }

    /// Creates the outcome; whoever comes first.
    fn close(&mut self, job: &JobId, run: RunNumber, result: &RunResult) {
        let key = (job.clone(), run.0);
        if self.outcomes.contains_key(&key) {
            return;
        }
        if let RunResult::Done { .. } = result {
            self.check_complete(job);
        }
        let outcome = Outcome { job: job.clone(), run, closed_ms: self.now_ms, result: result.clone() };
        self.outcomes.insert(key, outcome);
    }

    /// Sleep, death, oblivion, lies.
    fn disturb(&mut self) {
        if !self.unkind() {
            return;
        }
        match self.dice.below(40) {
            0..=8 if self.steady => self.lose_everything(),
            0..=5 if !self.steady => {
                if let Some(at) = self.awake_leader() {
                    self.leaders[at].asleep_until_ms = self.now_ms + self.dice.below(3 * LEASE_MS as usize) as u64;
                }
            }
            6..=8 if !self.steady => {
                if let Some(at) = self.awake_leader() {
                    self.leaders.remove(at);
                }
            }
            9 => self.lose_everything(),
            10 => {
                self.lose_everything();
                let now_ms = self.now_ms;
                for Leader { core, effects, .. } in &mut self.leaders {
                    core.on_broker_doubted(now_ms, effects);
                }
            }
            11 => self.lie(),
            _ => {}
        }
    }

    fn lose_everything(&mut self) {
        // A leader that stays must keep its lease: nobody else would be there.
        let lease = self.steady.then(|| self.leaders.iter().map(|leader| leader.revision).max()).flatten();
        self.broker.wipe();
        if lease.is_some() {
            for leader in &mut self.leaders {
                leader.revision = self.broker.take_lease(self.now_ms).unwrap_or(leader.revision);
            }
        }
    }

    /// An event says that a task is done, which is not true.
    fn lie(&mut self) {
        if self.honest {
            return;
        }
        let Some(message) = self.broker.messages().next().cloned() else { return };
        let TaskMessage { job, run, task, .. } = message;
        let what = TaskNews::Done { adopted: false, device_ms: 0 };
        let event = TaskEvent { job, run, task, worker: worker_id("liar"), attempt: "lie".into(), at_ms: 0, what };
        self.broker.events.push(event);
    }

    // What must be so.

    /// Every task of the job's plan has a record.
    fn check_complete(&self, id: &JobId) {
        let (_, run) = self.found(id).open();
        let (done, tasks) = run.counts();
        assert_eq!(done, tasks, "`{id}` is used without every record");
    }

    /// A leader keeps no more of a job in the queue than its window; each that still acts has one of its own.
    fn check_windows(&self) {
        let mut counts: HashMap<&JobId, usize> = HashMap::new();
        for message in self.broker.messages() {
            *counts.entry(&message.job).or_default() += 1;
        }
        for (job, count) in counts {
            assert!(count <= 3 * WINDOW, "{count} messages of `{job}` in the queue");
        }
    }

    fn is_over(&self) -> bool {
        self.runs.iter().all(|(job, number)| self.outcomes.contains_key(&(job.clone(), *number)))
    }

    /// Steps until every run is over; a record that is there stays as it is.
    fn run_until_over(&mut self) {
        let mut before = self.records.clone();
        while !self.is_over() {
            self.step();
            assert!(self.steps < MOST_STEPS, "no end in sight: {:?}", self.runs);
            if self.steps.is_multiple_of(1_000) || self.is_over() {
                for (key, record) in &before {
                    assert_eq!(self.records.get(key), Some(record), "a record changed");
                }
                before = self.records.clone();
            }
        }
    }

    /// The outcome of a job's newest run, after checking it against the records.
    fn checked_outcome(&self, id: &str) -> &RunResult {
        let id = job_id(id);
        let outcome = &self.outcomes[&(id.clone(), self.runs[&id])];
        match &outcome.result {
            RunResult::Done { .. } => self.check_complete(&id),
            RunResult::Failed { failures } => {
                let has_cause = |failure: &TaskFailure| {
                    let poisoned = self.poisoned.contains(&(id.clone(), failure.task.clone()));
                    poisoned || failure.reported >= REPORTED_LIMIT || failure.silent + 1 >= SILENT_LIMIT
                };
                assert!(failures.iter().any(has_cause), "failed for no reason: {failures:?}");
            }
            RunResult::Cancelled => {}
        }
        // Whatever a record names was written before it.
        for (job, task) in self.records.keys() {
            let of_task = format!("{job}/{task}/");
            assert!(self.data.iter().any(|data| data.starts_with(&of_task)), "a record of nothing: {of_task}");
        }
        &outcome.result
    }
}

fn rounds_of(spec: &JobSpec) -> RoundSettings {
    let (JobWork::Train(train) | JobWork::Pipeline { train, .. }) = &spec.work else { panic!("no training") };
    let optimizer = train.train.optimizer;
    optimizer.rounds().copied().unwrap_or(RoundSettings::averaging(1, optimizer.inner()))
}

fn output(work: &TaskWork) -> TaskOutput {
    match work {
        TaskWork::IngestScan => scan_output(300),
        TaskWork::ImportScan => import_scan_output(300),
        TaskWork::EvaluateQueries { .. } => TaskOutput::Queries { object: object(), queries: 450 },
        TaskWork::Gate => TaskOutput::Gate(gate_decision(true)),
        _ => shard_output(),
    }
}

fn pipeline() -> JobSpec {
    spec(JobWork::Pipeline {
        train: train_stage(),
        embed: embed_stage(60, 10),
        evaluate: evaluate_stage(),
        alias: name("live"),
        baseline: None,
    })
}

/// Runs `check` in a world of every seed; `share` of ten is this test's part of them.
fn simulate(test: &str, share: u64, check: impl Fn(&mut World, u64) + std::panic::RefUnwindSafe) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("LIKENESS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LIKENESS_SEEDS").unwrap_or(10_000) * share / 10,
    };
    let mut sum = Tallies::default();
    for seed in seeds {
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut world, seed)));
        if let Err(panic) = outcome {
            println!("replay: LIKENESS_SEED={seed} cargo test -p likeness --lib simulation::tests::{test}");
            std::panic::resume_unwind(panic);
        }
        let Tallies { crashes, redeliveries, computed, duplicates, adopted, lies_of_the_store } = world.tallies;
        sum.crashes += crashes;
        sum.redeliveries += redeliveries;
        sum.computed += computed;
        sum.duplicates += duplicates;
        sum.adopted += adopted;
        sum.lies_of_the_store += lies_of_the_store;
    }
    println!("{test}: {sum:?}");
}

mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_run_ends_with_one_outcome_that_the_records_bear_out() {
        simulate("every_run_ends_with_one_outcome_that_the_records_bear_out", 4, |world, _| {
            world.accept("ingest", ingest(20));
            world.accept("embed", JobSpec { priority: Priority::Hi, ..embed(40, 2) });
            world.accept("pipeline", pipeline());
            world.run_until_over();
            for job in ["ingest", "embed", "pipeline"] {
                if let RunResult::Cancelled = world.checked_outcome(job) {
                    panic!("nobody cancelled `{job}`");
                }
            }
            let released = world.releases.iter().filter(|job| job.as_str() == "pipeline").count();
            match world.checked_outcome("pipeline") {
                RunResult::Done { release, .. } => assert_eq!((released, *release), (1, Some(1))),
                _ => assert_eq!(released, 0),
            }
        });
    }

    /// Slots that each outer step of a job took, and slots of all of its rounds.
    fn taken(world: &World, job: &str) -> Vec<(usize, usize)> {
        let outputs = world.records.iter().filter(|((of, _), _)| of.as_str() == job).map(|(_, record)| &record.output);
        let of = |output: &TaskOutput| match output {
            TaskOutput::Round { slots, .. } => Some((slots.iter().filter(|slot| slot.taken).count(), slots.len())),
            _ => None,
        };
        outputs.filter_map(of).collect()
    }

    #[test]
    fn rounds_go_on_with_their_quorum_and_without_one_take_every_slot() {
        let late = AtomicU64::new(0);
        simulate("rounds_go_on_with_their_quorum_and_without_one_take_every_slot", 2, |world, seed| {
            world.honest = true;
            world.accept("all", train_in_rounds(3, 0));
            world.accept("quorum", train_in_rounds(2, 5 * (seed % 3) as u32));
            world.run_until_over();
            for (job, least) in [("all", 3), ("quorum", 2)] {
                let RunResult::Done { .. } = world.checked_outcome(job) else { continue };
                let taken = taken(world, job);
                assert_eq!(taken.len(), 2, "`{job}` has two rounds");
                assert!(taken.iter().all(|(taken, slots)| *taken >= least && *slots == 3), "{job}: {taken:?}");
                late.fetch_add(taken.iter().map(|(taken, slots)| (slots - taken) as u64).sum(), Ordering::Relaxed);
            }
        });
        assert!(late.into_inner() > 0 || std::env::var("LIKENESS_SEED").is_ok(), "no slot was ever late");
    }

    #[test]
    fn a_leader_that_stays_fills_a_queue_that_was_emptied() {
        simulate("a_leader_that_stays_fills_a_queue_that_was_emptied", 2, |world, _| {
            world.steady = true;
            world.accept("ingest", ingest(20));
            world.accept("embed", embed(40, 2));
            world.run_until_over();
            assert!(matches!(world.checked_outcome("ingest"), RunResult::Done { .. } | RunResult::Failed { .. }));
        });
    }

    #[test]
    fn a_poisoned_task_fails_its_run_alone_and_a_retry_keeps_every_record() {
        simulate("a_poisoned_task_fails_its_run_alone_and_a_retry_keeps_every_record", 2, |world, _| {
            let key = (job_id("embed"), task_id("shard-00007"));
            world.poisoned.insert(key.clone());
            world.accept("embed", embed(40, 2));
            world.accept("ingest", ingest(20));
            world.run_until_over();
            let RunResult::Failed { failures } = world.checked_outcome("embed") else { panic!("not failed") };
            assert!(failures.iter().any(|failure| failure.task == key.1), "{failures:?}");
            let kept = world.records.clone();
            world.poisoned.clear();
            // The world has become kind: what comes now must work.
            world.steps = world.steps.max(UNKIND_STEPS);
            world.open_run(&key.0, 2);
            world.run_until_over();
            assert!(matches!(world.checked_outcome("embed"), RunResult::Done { .. }));
            for (key, record) in kept {
                assert_eq!(world.records[&key], record, "a record changed");
            }
        });
    }

    #[test]
    fn a_cancel_ends_the_run_whenever_it_comes() {
        simulate("a_cancel_ends_the_run_whenever_it_comes", 2, |world, seed| {
            world.accept("embed", embed(200, 1));
            for _ in 0..seed % 400 * 5 {
                world.step();
            }
            let key = (job_id("embed"), 1);
            world.close(&key.0, RunNumber(1), &RunResult::Cancelled);
            world.run_until_over();
            // Every leader hears of it, and lets go of the queue.
            world.steps = world.steps.max(UNKIND_STEPS);
            for _ in 0..2_000 {
                world.step();
            }
            assert!(world.leaders.iter().all(|leader| !leader.core.is_open(&key.0, RunNumber(1))));
            assert_eq!(world.broker.messages().count(), 0);
        });
    }

    #[test]
    fn the_world_is_as_bad_as_it_means_to_be() {
        let mut sum = Tallies::default();
        let mut wipes = 0;
        for seed in 0..60 {
            let mut world = World::new(seed);
            world.accept("embed", embed(200, 2));
            world.run_until_over();
            let Tallies { crashes, redeliveries, duplicates, lies_of_the_store, .. } = world.tallies;
            sum.crashes += crashes;
            sum.redeliveries += redeliveries;
            sum.duplicates += duplicates;
            sum.lies_of_the_store += lies_of_the_store;
            wipes += world.broker.wipes;
        }
        let happened = [sum.crashes, sum.redeliveries, sum.duplicates, sum.lies_of_the_store, wipes];
        assert!(happened.iter().all(|count| *count > 20), "{sum:?}, {wipes} wipes");
    }
}
