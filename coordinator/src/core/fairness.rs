//! Virtual workers around the core: how long jobs take beside others. A unit of time is what one task takes.
//!
//! The queues are as the broker's and the workers as ours: first come, first served in each queue, high priority
//! first, the queues of one priority in turn.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{
    DeviceClass, JobOptions, JobSpec, Outcome, Priority, Run, TaskKind, TaskMessage, TaskRecord,
};
use likeness_contract::messages::{Presence, TaskEvent, TaskNews};

use super::job::OpenedJob;
use super::outbox::Effect;
use super::planner;
use super::reactor::Reactor;
use super::testing::*;
use super::workers::Workers;

struct Shop {
    core: Reactor,
    effects: Vec<Effect>,
    queues: BTreeMap<(Priority, TaskKind, DeviceClass), VecDeque<TaskMessage>>,
    /// Queues of one priority, the one that was served longest ago first.
    turns: Vec<(Priority, TaskKind, DeviceClass)>,
    /// The task at hand of each worker.
    workers: Vec<Option<TaskMessage>>,
    specs: HashMap<JobId, JobSpec>,
    records: HashMap<JobId, HashSet<TaskId>>,
    ended: HashMap<JobId, u64>,
    /// Most workers that were at a job at once.
    most_at: HashMap<JobId, usize>,
    now: u64,
}

impl Shop {
    fn with_workers(workers: usize) -> Self {
        let mut core = Reactor::new(u64::MAX / 2);
        let mut effects = Vec::new();
        core.on_replayed(0, &mut effects);
        let presences: Vec<Presence> = (0..workers).map(presence).collect();
        core.on_workers(Workers::count(&presences), 0, &mut effects);
        let (queues, turns, specs, records, ended, most_at) = Default::default();
        let workers = vec![None; workers];
        Self { core, effects, queues, turns, workers, specs, records, ended, most_at, now: 0 }
    }

    fn submit(&mut self, id: &str, spec: JobSpec) {
        let id = job_id(id);
        let opened = OpenedJob {
            plan: planner::plan(&id, &spec),
            spec: spec.clone(),
            accepted_ms: self.now,
            run: Run { job: id.clone(), run: RunNumber(1), opened_ms: self.now },
            records: HashSet::new(),
            tellers: Vec::new(),
        };
        self.specs.insert(id.clone(), spec);
        self.core.on_opened(&id, opened, self.now, &mut self.effects);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out_one(effect);
            }
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Publish { message, .. } => {
                let spec = &self.specs[&message.job];
                let queue = (spec.priority, message.work.kind(), planner::device_of(spec, &message.work));
                if !self.turns.contains(&queue) {
                    self.turns.push(queue);
                    self.turns.sort_by_key(|queue| queue.0);
                }
                self.queues.entry(queue).or_default().push_back(message);
            }
            Effect::FindRecord { job, run: _, task } => {
                let record = record_of(&job, &task);
                self.core.on_record(&record, self.now, &mut self.effects);
            }
            Effect::ListRecords { job, run } => {
                let records = self.records[&job].clone();
                self.core.on_records(&job, run, &records, self.now, &mut self.effects);
            }
            Effect::Close { job, run, result } => {
                self.ended.insert(job.clone(), self.now);
                let outcome = Outcome { job, run, closed_ms: self.now, result };
                self.core.on_outcome(outcome, self.now, &mut self.effects);
            }
            _ => {}
        }
    }

    /// Free workers take tasks, all work for one unit of time, and all tasks at hand are done.
    fn turn(&mut self) {
        for worker in 0..self.workers.len() {
            self.workers[worker] = self.next_task();
        }
        for job in self.specs.keys() {
            let at = self.workers.iter().flatten().filter(|message| message.job == *job).count();
            let most = self.most_at.entry(job.clone()).or_default();
            *most = at.max(*most);
        }
        self.now += 1;
        for worker in 0..self.workers.len() {
            let Some(message) = self.workers[worker].take() else { continue };
            let TaskMessage { job, run, task, .. } = message;
            self.records.entry(job.clone()).or_default().insert(task.clone());
            let what = TaskNews::Done { adopted: false, device_ms: 1 };
            let event = TaskEvent { job, run, task, worker: worker_id("w"), attempt: "a".into(), at_ms: 0, what };
            self.core.on_event(&event, self.now, &mut self.effects);
            self.carry_out();
        }
    }

    fn next_task(&mut self) -> Option<TaskMessage> {
        let filled = |queue: &&(Priority, TaskKind, DeviceClass)| !self.queues[*queue].is_empty();
        let queue = *self.turns.iter().find(filled)?;
        self.turns.retain(|other| *other != queue);
        let behind = self.turns.iter().rposition(|other| other.0 <= queue.0).map_or(0, |position| position + 1);
        self.turns.insert(behind, queue);
        self.queues.get_mut(&queue)?.pop_front()
    }

    /// Turns until a job has ended; returns the time since `from`.
    fn until_ended(&mut self, id: &str, from: u64) -> u64 {
        let id = job_id(id);
        while !self.ended.contains_key(&id) {
            self.turn();
            assert!(self.now < 100_000, "`{id}` never ends");
        }
        self.ended[&id] - from
    }

    fn turns(&mut self, turns: u64) {
        for _ in 0..turns {
            self.turn();
        }
    }

    fn done(&self, id: &str) -> usize {
        self.records.get(&job_id(id)).map_or(0, HashSet::len)
    }

    fn in_queues(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }
}

fn presence(n: usize) -> Presence {
    Presence {
        worker: worker_id(&format!("w{n}")),
        roles: TaskKind::ALL.to_vec(),
        searches: false,
        device: "cpu".into(),
        device_class: DeviceClass::Cpu,
        host: "h".into(),
        version: "0".into(),
        task: None,
        draining: false,
    }
}

fn record_of(job: &JobId, task: &TaskId) -> TaskRecord {
    let output = if task.as_str() == "scan" { scan_output(1000) } else { shard_output() };
    record(job, task.as_str(), output)
}

fn capped(most: u32, spec: JobSpec) -> JobSpec {
    JobSpec { options: JobOptions { max_workers: Some(most), ..spec.options.clone() }, ..spec }
}

fn alone(workers: usize, spec: &JobSpec) -> u64 {
    let mut shop = Shop::with_workers(workers);
    shop.submit("alone", spec.clone());
    shop.until_ended("alone", 0)
}

/// Ten tasks, and the one that closes the generation.
fn small() -> JobSpec {
    embed(10, 1)
}

fn large() -> JobSpec {
    embed(10_000, 1)
}

#[test]
fn a_small_job_beside_a_large_one_ends_soon() {
    for workers in [1, 2, 4, 16, 64, 500] {
        let alone = alone(workers, &small());
        let mut shop = Shop::with_workers(workers);
        shop.submit("large", large());
        shop.turns(5);
        let from = shop.now;
        shop.submit("small", small());
        let beside = shop.until_ended("small", from);
        assert!(beside <= 4 * alone, "{workers} workers: {beside} beside a large job, {alone} alone");
        assert!(shop.done("large") < 10_000, "it was not beside a large job");
    }
}

#[test]
fn a_small_job_of_several_stages_beside_a_large_one_ends_soon() {
    // A scan, ten parts, the manifest: each stage waits behind what lies in the queue.
    let (small, large) = (ingest(100), ingest(1));
    for workers in [2, 4, 16] {
        let alone = alone(workers, &small);
        let mut shop = Shop::with_workers(workers);
        shop.submit("large", large.clone());
        shop.turns(5);
        let from = shop.now;
        shop.submit("small", small.clone());
        let beside = shop.until_ended("small", from);
        assert!(beside <= 5 * alone, "{workers} workers: {beside} beside a large job, {alone} alone");
    }
}

#[test]
fn a_small_job_waits_for_its_part_however_many_users_there_are() {
    for (workers, users) in [(4, 10), (16, 10), (16, 40), (64, 100)] {
        let alone = alone(workers, &small());
        let mut shop = Shop::with_workers(workers);
        // Large enough that none of them ends.
        (0..users).for_each(|user| shop.submit(&format!("large-{user}"), embed(1000, 1)));
        shop.turns(users);
        let from = shop.now;
        shop.submit("small", small());
        let beside = shop.until_ended("small", from);
        // An equal part of the workers would make it `users + 1` times as long.
        let equal_part = alone.max(11 * (users + 1) / workers as u64 + 1);
        assert!(shop.ended.len() == 1, "the others had not ended");
        assert!(beside <= 3 * equal_part, "{workers} workers, {users} users: {beside}, an equal part is {equal_part}");
    }
}

#[test]
fn jobs_of_one_priority_go_on_at_the_same_rate() {
    let mut shop = Shop::with_workers(8);
    (0..5).for_each(|user| shop.submit(&format!("large-{user}"), large()));
    shop.turns(200);
    let done: Vec<usize> = (0..5).map(|user| shop.done(&format!("large-{user}"))).collect();
    let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
    assert!(most - least <= 32, "{done:?}");
    assert_eq!(done.iter().sum::<usize>(), 1600, "no worker was ever idle");
}

#[test]
fn high_priority_goes_before_everything_else() {
    let mut shop = Shop::with_workers(4);
    (0..6).for_each(|user| shop.submit(&format!("large-{user}"), large()));
    shop.turns(10);
    let hi = JobSpec { priority: Priority::Hi, ..embed(400, 1) };
    let (from, before) = (shop.now, done_of_all(&shop));
    shop.submit("hi", hi.clone());
    let beside = shop.until_ended("hi", from);
    assert_eq!(beside, alone(4, &hi));
    let done_meanwhile = done_of_all(&shop) - before;
    assert!(done_meanwhile <= 4, "only where a stage left workers free: {done_meanwhile}");
}

fn done_of_all(shop: &Shop) -> usize {
    (0..6).map(|user| shop.done(&format!("large-{user}"))).sum()
}

#[test]
fn a_job_has_no_more_workers_than_it_may_and_the_others_have_the_rest() {
    let mut shop = Shop::with_workers(16);
    shop.submit("capped", capped(3, embed(300, 1)));
    shop.submit("large", large());
    let took = shop.until_ended("capped", 0);
    assert_eq!(shop.most_at[&job_id("capped")], 3);
    assert!(shop.most_at[&job_id("large")] >= 13);
    // Each of its tasks waits behind what the other keeps in the queue: a quarter of a task's time.
    assert!(took <= 100 + 40, "it took {took}, 100 alone");
    assert_eq!(shop.done("large") + 301, 16 * took as usize, "no worker was ever idle");
}

#[test]
fn a_job_of_few_workers_has_about_so_many_beside_several_large_ones() {
    let mut shop = Shop::with_workers(64);
    (0..3).for_each(|user| shop.submit(&format!("large-{user}"), large()));
    shop.turns(5);
    let from = shop.now;
    shop.submit("capped", capped(10, embed(400, 1)));
    let took = shop.until_ended("capped", from);
    assert_eq!(shop.most_at[&job_id("capped")], 10);
    assert!(took <= 40 + 20, "it took {took}, 40 alone");
}

#[test]
fn a_job_of_one_worker_does_one_task_at_a_time() {
    let mut shop = Shop::with_workers(8);
    shop.submit("capped", capped(1, ingest(100)));
    // A scan, ten parts, the manifest.
    assert_eq!(shop.until_ended("capped", 0), 12);
    assert_eq!(shop.most_at[&job_id("capped")], 1);
}

#[test]
fn what_lies_in_the_queue_grows_with_the_workers_and_not_with_the_jobs() {
    let mut shop = Shop::with_workers(8);
    (0..12).for_each(|user| shop.submit(&format!("large-{user}"), large()));
    shop.turns(100);
    let window = Workers::default().window(TaskKind::Embed, DeviceClass::Cpu);
    assert!(shop.in_queues() <= window + 12, "{} messages", shop.in_queues());
}

#[test]
fn room_that_a_job_leaves_is_filled_by_the_others_at_once() {
    let mut shop = Shop::with_workers(16);
    shop.submit("large", large());
    shop.submit("short", embed(40, 1));
    shop.until_ended("short", 0);
    let (before, from) = (shop.done("large"), shop.now);
    shop.turns(50);
    assert_eq!(shop.done("large") - before, 16 * (shop.now - from) as usize);
}
