//! A seeded world around [`Keeper`]: leaders that come, go and sleep, also two at a time, with clocks that differ and are set back; a store that does
//! what it is asked and answers with an error; crashes at every named point.
//!
//! At every step: a scheduled time's record never changes, and there is a job only where a record says so. In the end every time from the
//! beginning on has exactly one record, and every record that says so has its job, once, or the reason why there is none.
//!
//! `LIKENESS_SEEDS=N` sets how many seeds are gone through, `LIKENESS_SEED=S` replays one.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::nightly;
use super::*;
use crate::core::simulation::dice::Dice;

const SECOND: u64 = 1000;
/// A step of the world.
const STEP_MS: u64 = 1500;
/// Times are ten seconds apart.
const EVERY_MS: u64 = 10 * SECOND;
const UNKIND_STEPS: u64 = 1500;
const KIND_STEPS: u64 = 400;

/// Where a leader may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    BeforeRecord,
    AfterRecord,
    AfterCancel,
    AfterSubmit,
}

/// What a leader is about to do.
#[derive(Debug)]
enum Doing {
    Look,
    Record(Vec<Firing>),
    Cancel(Firing),
    Submit(Firing),
}

struct Leader {
    keeper: Keeper,
    doing: Doing,
    /// How far its clock goes before the true one, milliseconds; may be negative.
    ahead_ms: i64,
    /// What it knows of jobs, which may be old.
    jobs: Vec<FiredJob>,
    asleep_until_ms: u64,
}

struct World {
    dice: Dice,
    now_ms: u64,
    steps: u64,
    schedule: Schedule,
    records: BTreeMap<u64, Firing>,
    unmet: BTreeSet<u64>,
    jobs: BTreeMap<u64, FiredJob>,
    leaders: Vec<Leader>,
    died: BTreeSet<Point>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let overlap = [Overlap::Skip, Overlap::Queue, Overlap::CancelOld][dice.below(3)];
        let catch_up = [CatchUp::None, CatchUp::Last, CatchUp::All { limit: 5 }][dice.below(3)];
        let mut schedule = nightly(overlap, catch_up);
        schedule.settings.cron = "*/10 * * * * *".into();
        schedule.settings.late_after_s = 25;
        let now_ms = schedule.changed_ms;
        let (records, unmet, jobs, leaders, died) = Default::default();
        Self { dice, now_ms, steps: 0, schedule, records, unmet, jobs, leaders, died }
    }

    fn misfortune(&mut self, once_in: u64) -> bool {
        self.steps < UNKIND_STEPS && self.dice.once_in(once_in)
    }

    fn step(&mut self) {
        self.steps += 1;
        self.now_ms += STEP_MS;
        if self.steps == UNKIND_STEPS {
            // One good leader makes up for everything.
            self.leaders.clear();
        }
        match self.dice.below(10) {
            0 => self.lead(),
            1 => self.jobs_end(),
            _ => self.act(),
        }
        let unsaid = self.jobs.keys().find(|time| !self.says_submitted(**time));
        assert_eq!(unsaid, None, "a job that no record tells of");
    }

    fn says_submitted(&self, time: u64) -> bool {
        self.records.get(&time).is_some_and(|firing| matches!(firing.became, Became::Submitted { .. }))
    }

    /// Leaders come and go, and stand still.
    fn lead(&mut self) {
        if self.misfortune(3) && !self.leaders.is_empty() {
            let gone = self.dice.below(self.leaders.len());
            self.leaders.swap_remove(gone);
        }
        let second = self.steps < UNKIND_STEPS && self.leaders.len() == 1 && self.dice.once_in(3);
        if self.leaders.is_empty() && !self.misfortune(2) || second {
            let ahead_ms = if self.misfortune(2) { self.dice.below(8000) as i64 - 4000 } else { 0 };
            let mut leader = Leader {
                keeper: Keeper::new(self.schedule.clone(), None, false).unwrap(),
                doing: Doing::Look,
                ahead_ms,
                jobs: Vec::new(),
                asleep_until_ms: 0,
            };
            let now_ms = self.clock(&leader);
            let newest = self.records.range(..=now_ms).next_back().map(|(_, firing)| firing.clone());
            let unfinished = newest.as_ref().is_some_and(|firing| !self.unmet.contains(&firing.scheduled_ms));
            leader.keeper = Keeper::new(self.schedule.clone(), newest, unfinished).unwrap();
            self.leaders.push(leader);
        }
        if !self.leaders.is_empty() {
            let at = self.dice.below(self.leaders.len());
            if self.misfortune(6) {
                self.leaders[at].asleep_until_ms = self.now_ms + self.dice.below(60_000) as u64;
            }
            if self.misfortune(15) {
                self.leaders[at].ahead_ms -= 3600 * SECOND as i64;
            }
        }
    }

    fn clock(&self, leader: &Leader) -> u64 {
        self.now_ms.saturating_add_signed(leader.ahead_ms)
    }

    fn jobs_end(&mut self) {
        let now_ms = self.now_ms;
        let ends = self.dice.below(3);
        for job in self.jobs.values_mut().filter(|job| job.closed_ms.is_none()).take(ends) {
            (job.closed_ms, job.succeeded) = (Some(now_ms), true);
        }
    }

    fn act(&mut self) {
        if self.leaders.is_empty() {
            return;
        }
        let at = self.dice.below(self.leaders.len());
        let mut leader = self.leaders.swap_remove(at);
        if leader.asleep_until_ms > self.now_ms || self.go_on(&mut leader) {
            self.leaders.push(leader);
        }
    }

    /// Whether the leader lives on.
    fn go_on(&mut self, leader: &mut Leader) -> bool {
        let doing = std::mem::replace(&mut leader.doing, Doing::Look);
        match doing {
            Doing::Look => self.look(leader),
            Doing::Record(firings) => return self.record(leader, firings),
            Doing::Cancel(firing) => {
                self.cancel(&firing);
                leader.doing = Doing::Submit(firing);
                return !self.dies(Point::AfterCancel);
            }
            Doing::Submit(firing) => return self.submit(leader, firing),
        }
        true
    }

    fn dies(&mut self, point: Point) -> bool {
        let dies = self.misfortune(12);
        if dies {
            self.died.insert(point);
        }
        dies
    }

    fn look(&mut self, leader: &mut Leader) {
        if !self.misfortune(3) {
            leader.jobs = self.jobs.values().cloned().collect();
        }
        match leader.keeper.step(self.clock(leader), &leader.jobs, None) {
            Step::Wait(_) | Step::WaitForJob => {}
            Step::Record(firings) => leader.doing = Doing::Record(firings),
            Step::CarryOut(firing) => leader.doing = Doing::Cancel(firing),
        }
    }

    /// In order; the store may do it and say that it did not: then it is looked at again.
    fn record(&mut self, leader: &mut Leader, firings: Vec<Firing>) -> bool {
        for firing in firings {
            if self.dies(Point::BeforeRecord) {
                return false;
            }
            if self.misfortune(10) {
                return true;
            }
            let there = self.records.entry(firing.scheduled_ms).or_insert(firing).clone();
            if self.misfortune(10) {
                return true;
            }
            let goes_on = leader.keeper.on_recorded(there);
            if self.dies(Point::AfterRecord) {
                return false;
            }
            if !goes_on {
                break;
            }
        }
        true
    }

    fn cancel(&mut self, firing: &Firing) {
        let Became::Submitted { cancels, .. } = &firing.became else { panic!("carried out: {firing:?}") };
        let now_ms = self.now_ms;
        for job in self.jobs.values_mut().filter(|job| cancels.contains(&job.job)) {
            assert!(job.scheduled_ms < firing.scheduled_ms, "only what is older is cancelled");
            job.closed_ms.get_or_insert(now_ms);
        }
    }

    fn submit(&mut self, leader: &mut Leader, firing: Firing) -> bool {
        let Became::Submitted { job, .. } = firing.became else { panic!("submits what is a job") };
        let scheduled_ms = firing.scheduled_ms;
        assert_eq!(job, job_of(&firing.schedule, scheduled_ms));
        let cannot = (scheduled_ms / EVERY_MS).is_multiple_of(17);
        if self.misfortune(8) {
            return true;
        }
        if cannot && !self.jobs.contains_key(&scheduled_ms) {
            self.unmet.insert(scheduled_ms);
        } else {
            let (closed_ms, succeeded, datasets) = Default::default();
            self.jobs.entry(scheduled_ms).or_insert(FiredJob { job, scheduled_ms, closed_ms, succeeded, datasets });
        }
        if self.dies(Point::AfterSubmit) {
            return false;
        }
        if !self.misfortune(8) {
            leader.keeper.on_carried_out();
        }
        true
    }

    fn live(&mut self) {
        while self.steps < UNKIND_STEPS + KIND_STEPS {
            let before = self.records.clone();
            (0..100).for_each(|_| self.step());
            assert!(before.iter().all(|(time, firing)| self.records.get(time) == Some(firing)), "a record changed");
        }
        self.check_end();
    }

    /// Every time has one record, and what it says is so.
    fn check_end(&self) {
        let first = self.schedule.changed_ms / EVERY_MS + 1;
        let newest = *self.records.keys().next_back().expect("it fired");
        assert!(newest + 20 * EVERY_MS > self.now_ms || self.waits(), "it goes on: {newest} of {}", self.now_ms);
        let times: Vec<u64> = (first..=newest / EVERY_MS).map(|n| n * EVERY_MS).collect();
        assert_eq!(self.records.keys().copied().collect::<Vec<_>>(), times, "each has its record");
        for (time, firing) in &self.records {
            let met = self.jobs.contains_key(time) || self.unmet.contains(time);
            assert!(!self.says_submitted(*time) || met || *time == newest, "carried out: {firing:?}");
        }
    }

    fn waits(&self) -> bool {
        self.schedule.settings.overlap != Overlap::Skip
            || matches!(self.schedule.settings.catch_up, CatchUp::All { .. })
    }
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    number("LIKENESS_SEED").map_or_else(|| (0..number("LIKENESS_SEEDS").unwrap_or(200)).collect(), |seed| vec![seed])
}

#[test]
fn a_schedule_fires_once_whoever_leads_and_wherever_leaders_die() {
    let (mut died, mut jobs, mut skipped) = (BTreeSet::new(), 0, 0);
    for seed in seeds() {
        let mut world = World::new(seed);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live()));
        if let Err(panic) = lived {
            println!("replay: LIKENESS_SEED={seed} cargo test -p likeness --lib schedule::simulation");
            std::panic::resume_unwind(panic);
        }
        died.extend(world.died.iter().copied());
        jobs += world.jobs.len();
        skipped += world.records.len() - world.jobs.len();
    }
    assert!(jobs > 0 && skipped > 0);
    if seeds().len() > 1 {
        let points = [Point::BeforeRecord, Point::AfterRecord, Point::AfterCancel, Point::AfterSubmit];
        assert_eq!(died.into_iter().collect::<Vec<_>>(), points, "leaders died at every point");
    }
}
