//! A seeded world around the core: a store, a queue that hands out tasks late, twice or never, events that are
//! lost, doubled and reordered, workers that fail or vanish, and leaders that come and go, two at a time.
//!
//! Whatever happens, every run ends with exactly one outcome, that outcome is what the records say, and a release
//! is made once. A failing seed is printed and can be replayed alone.

use std::collections::{BTreeMap, HashMap, HashSet};

use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{
    JobSpec, JobWork, Outcome, Run, RunResult, TaskMessage, TaskOutput, TaskRecord, TaskWork,
};
use likeness_contract::messages::{TaskEvent, TaskNews};

use super::job::OpenedJob;
use super::outbox::Effect;
use super::planner;
use super::reactor::Reactor;
use super::testing::*;

/// Time that passes at one step, milliseconds.
const STEP_MS: u64 = 500;
const PATIENCE_MS: u64 = 10_000;
/// A run that is not over after so many steps hangs.
const MOST_STEPS: u64 = 200_000;
/// After so many steps the world becomes kind, so that it ends.
const UNKIND_STEPS: u64 = 3_000;

/// SplitMix64: small, seeded, good enough to shuffle a world.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }

    /// True once in `n` rolls.
    fn once_in(&mut self, n: u64) -> bool {
        self.roll().is_multiple_of(n)
    }
}

/// A coordinator that believes to lead.
struct Leader {
    core: Reactor,
    /// Effects that it will carry out, in any order.
    effects: Vec<Effect>,
    /// Events up to here were read.
    read: usize,
}

struct World {
    dice: Dice,
    now_ms: u64,
    steps: u64,
    specs: BTreeMap<JobId, JobSpec>,
    // The store.
    records: HashMap<(JobId, TaskId), TaskRecord>,
    runs: BTreeMap<JobId, u32>,
    outcomes: BTreeMap<(JobId, u32), Outcome>,
    releases: Vec<JobId>,
    // The broker.
    queue: BTreeMap<String, TaskMessage>,
    events: Vec<TaskEvent>,
    leaders: Vec<Leader>,
    attempts: u64,
    /// Tasks whose every attempt fails.
    poisoned: HashSet<(JobId, TaskId)>,
    /// One leader stays, so that no new one makes up for what it forgets.
    steady: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: Dice(seed),
            now_ms: 0,
            steps: 0,
            specs: BTreeMap::new(),
            records: HashMap::new(),
            runs: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            releases: Vec::new(),
            queue: BTreeMap::new(),
            events: Vec::new(),
            leaders: Vec::new(),
            attempts: 0,
            poisoned: HashSet::new(),
            steady: false,
        };
        world.start_leader();
        world
    }

    fn unkind(&self) -> bool {
        self.steps < UNKIND_STEPS
    }

    fn accept(&mut self, id: &str, spec: JobSpec) {
        let id = job_id(id);
        self.specs.insert(id.clone(), spec);
        self.open_run(&id, 1);
    }

    /// Creates the run; the leaders hear of it from its event.
    fn open_run(&mut self, id: &JobId, number: u32) {
        self.runs.insert(id.clone(), number);
        for leader in 0..self.leaders.len() {
            let opened = self.found(id);
            let Leader { core, effects, .. } = &mut self.leaders[leader];
            core.on_opened(id, opened, self.now_ms, effects);
        }
    }

    /// What the store says of a job with an open run.
    fn found(&self, id: &JobId) -> OpenedJob {
        let spec = self.specs[id].clone();
        let plan = planner::plan(id, &spec);
        let run = Run { job: id.clone(), run: RunNumber(self.runs[id]), opened_ms: 0 };
        let own = |(job, task): &&(JobId, TaskId)| (job == id).then(|| task.clone());
        let records: HashSet<TaskId> = self.records.keys().filter_map(|key| own(&key)).collect();
        let tellers: HashSet<TaskId> = plan.stages.iter().filter_map(|stage| stage.expands.clone()).collect();
        let tellers = tellers.into_iter().filter_map(|task| self.records.get(&(id.clone(), task)).cloned()).collect();
        OpenedJob { spec, plan, accepted_ms: 0, run, records, tellers }
    }

    /// A new leader reads the store and then all events.
    fn start_leader(&mut self) {
        let mut leader = Leader { core: Reactor::new(PATIENCE_MS), effects: Vec::new(), read: 0 };
        for (id, number) in self.runs.clone() {
            if !self.outcomes.contains_key(&(id.clone(), number)) {
                leader.core.on_opened(&id, self.found(&id), self.now_ms, &mut leader.effects);
            }
        }
        for event in &self.events {
            leader.core.on_event(event, self.now_ms, &mut leader.effects);
        }
        leader.read = self.events.len();
        leader.core.on_replayed(self.now_ms, &mut leader.effects);
        self.leaders.push(leader);
    }

    fn step(&mut self) {
        self.steps += 1;
        self.now_ms += STEP_MS;
        match self.dice.below(12) {
            0..=3 => self.work(),
            4..=7 => self.act(),
            8 | 9 => self.hear(),
            10 => self.tick(),
            _ => self.disturb(),
        }
    }

    /// A worker takes a message, and may do its task, fail, drain or vanish.
    fn work(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let at = self.dice.below(self.queue.len());
        let (subject, message) = self.queue.iter().nth(at).map(|(s, m)| (s.clone(), m.clone())).unwrap();
        let TaskMessage { job, run, task, work } = message;
        if self.outcomes.contains_key(&(job.clone(), run.0)) || self.runs[&job] != run.0 {
            self.queue.remove(&subject);
            return;
        }
        self.attempts += 1;
        let attempt = format!("a{}", self.attempts);
        let say = |world: &mut Self, what| {
            let (job, task) = (job.clone(), task.clone());
            world.emit(TaskEvent { job, run, task, worker: worker_id("w"), attempt: attempt.clone(), at_ms: 0, what });
        };
        let key = (job.clone(), task.clone());
        if self.records.contains_key(&key) {
            say(self, TaskNews::Done { adopted: true, device_ms: 0 });
            self.queue.remove(&subject);
            return;
        }
        say(self, TaskNews::Started);
        if self.poisoned.contains(&key) {
            let retryable = !self.dice.once_in(4);
            say(self, TaskNews::Failed { error: "poison".into(), retryable });
            if !retryable {
                self.queue.remove(&subject);
            }
            return;
        }
        let fate = if self.unkind() { self.dice.below(12) } else { 11 };
        match fate {
            0 => {} // It vanishes.
            1 => say(self, TaskNews::Released),
            2 => say(self, TaskNews::Failed { error: "flaky".into(), retryable: true }),
            _ => {
                let record = TaskRecord { job: job.clone(), run, ..record(&job, task.as_str(), output(&work)) };
                self.records.insert(key, record);
                if fate != 3 {
                    say(self, TaskNews::Done { adopted: false, device_ms: 1 });
                    self.queue.remove(&subject);
                }
            }
        }
    }

    /// The stream of events: one may get lost or come twice.
    fn emit(&mut self, event: TaskEvent) {
        let copies = match self.unkind() {
            true if self.dice.once_in(6) => 0,
            true if self.dice.once_in(6) => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let at = self.events.len() - self.dice.below(3.min(self.events.len() + 1));
            let unread = self.leaders.iter().map(|leader| leader.read).max().unwrap_or(0);
            self.events.insert(at.max(unread), event.clone());
        }
    }

    /// A leader reads some events.
    fn hear(&mut self) {
        let at = self.dice.below(self.leaders.len());
        let Leader { core, effects, read } = &mut self.leaders[at];
        for event in self.events[*read..].iter().take(5) {
            core.on_event(event, self.now_ms, effects);
            *read += 1;
        }
    }

    fn tick(&mut self) {
        for Leader { core, effects, .. } in &mut self.leaders {
            core.on_tick(self.now_ms, effects);
        }
    }

    /// A leader carries out one of its effects.
    fn act(&mut self) {
        let at = self.dice.below(self.leaders.len());
        if self.leaders[at].effects.is_empty() {
            return;
        }
        // The broker's effects of a job keep their order in the shell; here any order must do.
        let which = self.dice.below(self.leaders[at].effects.len());
        let effect = self.leaders[at].effects.remove(which);
        self.carry_out(at, effect);
    }

    fn carry_out(&mut self, at: usize, effect: Effect) {
        let now_ms = self.now_ms;
        let Leader { core, effects, .. } = &mut self.leaders[at];
        match effect {
            Effect::Publish { subject, message } => {
                if core.is_open(&message.job, message.run) {
                    self.queue.entry(subject).or_insert(message);
                }
            }
            Effect::PurgeTask { subject, .. } => {
                self.queue.remove(&subject);
            }
            Effect::PurgeJob { job } => self.queue.retain(|_, message| message.job != job),
            Effect::DeadLetter(_) | Effect::Announce(_) => {}
            Effect::FindRecord { job, run, task } => match self.records.get(&(job.clone(), task.clone())) {
                Some(record) => core.on_record(record, now_ms, effects),
                None => core.on_no_record(&job, run, &task, now_ms, effects),
            },
            Effect::ListRecords { job, run } => {
                let own = self.records.keys().filter(|(owner, _)| *owner == job);
                let records = own.map(|(_, task)| task.clone()).collect();
                core.on_records(&job, run, &records, now_ms, effects);
            }
            Effect::FindOutcome { job, run } => {
                if let Some(outcome) = self.outcomes.get(&(job, run.0)) {
                    core.on_outcome(outcome.clone(), now_ms, effects);
                }
            }
            Effect::Close { job, run, result } => {
                let proposal = Outcome { job: job.clone(), run, closed_ms: now_ms, result };
                let outcome = self.outcomes.entry((job, run.0)).or_insert(proposal).clone();
                core.on_outcome(outcome, now_ms, effects);
            }
            Effect::Promote(promotion) => {
                if !self.releases.contains(&promotion.job) {
                    self.releases.push(promotion.job.clone());
                }
                let number = self.releases.iter().position(|job| *job == promotion.job).unwrap() as u64 + 1;
                core.on_promoted(&promotion.job, promotion.run, &promotion.gate, Ok(number), effects);
            }
        }
    }

    /// Leaders die and are born, the broker forgets, somebody cancels.
    fn disturb(&mut self) {
        if !self.unkind() {
            return;
        }
        match self.dice.below(40) {
            0..=12 if self.steady => self.queue.clear(),
            0..=4 if self.leaders.len() > 1 => {
                let at = self.dice.below(self.leaders.len());
                self.leaders.remove(at);
            }
            5..=9 if self.leaders.len() < 2 => self.start_leader(),
            10..=12 => {
                let at = self.dice.below(self.leaders.len());
                self.leaders.remove(at);
                if self.leaders.is_empty() {
                    self.start_leader();
                }
            }
            13 => self.queue.clear(),
            14 => {
                self.queue.clear();
                let now_ms = self.now_ms;
                for Leader { core, effects, .. } in &mut self.leaders {
                    core.on_broker_doubted(now_ms, effects);
                }
            }
            15 => self.lie(),
            _ => {}
        }
    }

    /// An event says that a task is done, which is not true.
    fn lie(&mut self) {
        let Some(message) = self.queue.values().next().cloned() else { return };
        let TaskMessage { job, run, task, .. } = message;
        let what = TaskNews::Done { adopted: false, device_ms: 0 };
        let event = TaskEvent { job, run, task, worker: worker_id("liar"), attempt: "lie".into(), at_ms: 0, what };
        self.events.push(event);
    }

    fn is_over(&self) -> bool {
        self.runs.iter().all(|(job, number)| self.outcomes.contains_key(&(job.clone(), *number)))
    }

    fn run_until_over(&mut self) {
        while !self.is_over() {
            self.step();
            assert!(self.steps < MOST_STEPS, "no end in sight: {:?}", self.runs);
        }
    }

    /// The outcome of a job's newest run, after checking it against the records.
    fn checked_outcome(&self, id: &str) -> &RunResult {
        let id = job_id(id);
        let outcome = &self.outcomes[&(id.clone(), self.runs[&id])];
        let (_, run) = self.found(&id).open();
        let (done, tasks) = run.counts();
        match &outcome.result {
            RunResult::Done { .. } => assert_eq!(done, tasks, "done without every record"),
            RunResult::Failed { failures } => {
                for failure in failures {
                    let key = (id.clone(), failure.task.clone());
                    let record = self.records.contains_key(&key);
                    // A record may have come after the outcome, of a worker that was given up.
                    assert!(!record || self.poisoned.is_empty(), "failed with a record: {failure:?}");
                }
            }
            RunResult::Cancelled => {}
        }
        &outcome.result
    }
}

fn output(work: &TaskWork) -> TaskOutput {
    match work {
        TaskWork::IngestScan => scan_output(700),
        TaskWork::ImportScan => import_scan_output(700),
        TaskWork::EvaluateQueries { .. } => TaskOutput::Queries { object: object(), queries: 450 },
        TaskWork::Gate => TaskOutput::Gate(gate_decision(true)),
        _ => shard_output(),
    }
}

fn pipeline() -> JobSpec {
    spec(JobWork::Pipeline {
        train: train_stage(),
        embed: embed_stage(250, 10),
        evaluate: evaluate_stage(),
        alias: name("live"),
        baseline: None,
    })
}

fn simulate(seed: u64, check: impl Fn(&mut World) + std::panic::RefUnwindSafe) {
    let outcome = std::panic::catch_unwind(|| check(&mut World::new(seed)));
    if let Err(panic) = outcome {
        println!("replay with seed {seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_run_ends_with_one_outcome_that_the_records_bear_out() {
    for seed in 0..60 {
        simulate(seed, |world| {
            world.accept("ingest", ingest(20));
            world.accept("embed", embed(60, 2));
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
}

#[test]
fn a_world_without_poison_fails_nothing_for_good() {
    for seed in 100..140 {
        simulate(seed, |world| {
            world.accept("ingest", ingest(20));
            world.run_until_over();
            assert!(matches!(world.checked_outcome("ingest"), RunResult::Done { .. }));
        });
    }
}

#[test]
fn a_leader_that_stays_fills_a_queue_that_was_emptied() {
    for seed in 400..420 {
        simulate(seed, |world| {
            world.steady = true;
            world.accept("ingest", ingest(20));
            world.accept("embed", embed(60, 2));
            world.run_until_over();
            assert!(matches!(world.checked_outcome("ingest"), RunResult::Done { .. }));
        });
    }
}

#[test]
fn a_poisoned_task_fails_its_run_alone_and_a_retry_keeps_every_record() {
    for seed in 200..230 {
        simulate(seed, |world| {
            let key = (job_id("embed"), task_id("shard-00007"));
            world.poisoned.insert(key.clone());
            world.accept("embed", embed(60, 2));
            world.accept("ingest", ingest(20));
            world.run_until_over();
            let RunResult::Failed { failures } = world.checked_outcome("embed") else { panic!("not failed") };
            assert!(failures.iter().any(|failure| failure.task == key.1), "{failures:?}");
            let kept = world.records.clone();
            world.poisoned.clear();
            world.open_run(&key.0, 2);
            world.run_until_over();
            assert!(matches!(world.checked_outcome("embed"), RunResult::Done { .. }));
            for (key, record) in kept {
                assert_eq!(world.records[&key], record, "a record changed");
            }
        });
    }
}

#[test]
fn a_cancel_ends_the_run_whenever_it_comes() {
    for seed in 300..340 {
        simulate(seed, |world| {
            world.accept("embed", embed(200, 1));
            for _ in 0..seed * 3 {
                world.step();
            }
            let key = (job_id("embed"), 1);
            let result = RunResult::Cancelled;
            let cancel = Outcome { job: key.0.clone(), run: RunNumber(1), closed_ms: world.now_ms, result };
            world.outcomes.entry(key.clone()).or_insert(cancel);
            world.run_until_over();
            // Every leader hears of it, and lets go of the queue.
            world.steps = UNKIND_STEPS;
            for _ in 0..2_000 {
                world.step();
            }
            assert!(world.leaders.iter().all(|leader| !leader.core.is_open(&key.0, RunNumber(1))));
            assert!(world.queue.is_empty(), "{:?}", world.queue.keys());
        });
    }
}
