//! One open run of a job: its tasks, stages, windows and failures.
//!
//! Invariants. A task is in the stream only while its stage is open and its window has room. A stage opens when
//! all stages before it are complete, and is complete when every one of its tasks has a record. What an event
//! costs does not depend on the number of tasks: states are found by index and everything else is a counter.
//!
//! A stage with a quorum (`quorum.rs`) may be left behind without some of its tasks.

mod quorum;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{
    DeviceClass, JobSpec, Plan, PlannedTask, Stage, TaskFailure, TaskKind, TaskMessage, TaskRecord, TaskWork,
};
use likeness_contract::messages::DeadLetter;

use super::attempts::{Attempts, Verdict};
use super::outbox::{Effect, Outbox};
use super::planner;
use super::shares::{Queue, Shares, Want};

/// Position of a task in [`OpenRun::tasks`].
type TaskIndex = usize;
/// Position of a stage in the plan.
type StageIndex = usize;

/// Where an open run stands between its last task and its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Tasks are to be done.
    Working,
    /// Every task has ended; the records are being listed.
    Listing,
    /// Every record is there; the gate's is being read.
    Gate,
    /// The gate was passed; the release is being made.
    Promoting,
    /// The outcome is being created.
    Closing,
}

#[derive(Debug)]
struct Task {
    id: TaskId,
    work: TaskWork,
    stage: StageIndex,
    state: State,
    /// Time on devices, once it was heard of, milliseconds.
    device_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its stage is not open.
    Blocked,
    /// It waits for room in its window.
    Ready,
    /// Its message was published.
    InStream,
    /// Its record exists.
    Done,
    /// It was given up.
    Failed,
    /// What came after its stage was done without it. It is not wanted any more.
    Late,
}

#[derive(Debug)]
struct StageState {
    plan: Stage,
    /// Stages before it that are not complete.
    waits_for: usize,
    dependents: Vec<StageIndex>,
    tasks: Vec<TaskIndex>,
    /// Tasks with a record.
    done: usize,
    /// Tasks that came too late.
    late: usize,
    /// Whether its tasks are known.
    known: bool,
    /// When it may be left behind without some of its tasks.
    quorum: Option<planner::Quorum>,
    /// When the first of its tasks was published, of a stage with a quorum.
    since_ms: Option<u64>,
    /// Whether it is left behind, all of its tasks done or not.
    left_behind: bool,
    complete: bool,
}

/// The part of a job that one kind of worker sees.
#[derive(Debug)]
struct Window {
    kind: TaskKind,
    device: DeviceClass,
    /// Ready tasks in order; may hold tasks that are no longer ready.
    queue: VecDeque<TaskIndex>,
    ready: usize,
    in_stream: usize,
}

/// See the module.
#[derive(Debug)]
pub struct OpenRun {
    /// Its number.
    pub number: RunNumber,
    /// Where it stands.
    pub phase: Phase,
    tasks: Vec<Task>,
    index: HashMap<TaskId, TaskIndex>,
    stages: Vec<StageState>,
    windows: Vec<Window>,
    /// Tasks in the stream with the time of the last news of each.
    in_stream: BTreeMap<TaskIndex, u64>,
    attempts: HashMap<TaskIndex, Attempts>,
    failures: BTreeMap<TaskIndex, TaskFailure>,
    /// Records of tasks that no known stage has yet.
    early: HashSet<TaskId>,
    /// The stages whose tasks a record tells, until they are told.
    tells: HashMap<TaskId, Vec<StageIndex>>,
    /// Tasks of `tells` whose record exists and was not read yet; whether it was asked for.
    untold: BTreeMap<TaskId, bool>,
    /// Tasks whose record exists and is of no use.
    unusable: HashSet<TaskIndex>,
    /// Open stages with a quorum that are not complete.
    waiting: BTreeSet<StageIndex>,
    /// Tasks in the stream that came too late: their messages are to be purged.
    dropped: Vec<TaskIndex>,
    done: usize,
    late: usize,
    /// Most tasks in the stream, so that no more workers are at them.
    most_in_stream: usize,
    /// Whether its windows want another share than when that was last asked.
    stirred: bool,
}

impl OpenRun {
    /// A run of `plan` for which `records` exist.
    pub fn new(number: RunNumber, spec: &JobSpec, plan: Plan, records: HashSet<TaskId>) -> Self {
        let mut run = Self {
            number,
            phase: Phase::Working,
            tasks: Vec::new(),
            index: HashMap::new(),
            stages: Vec::new(),
            windows: Vec::new(),
            in_stream: BTreeMap::new(),
            attempts: HashMap::new(),
            failures: BTreeMap::new(),
            early: records,
            tells: HashMap::new(),
            untold: BTreeMap::new(),
            unusable: HashSet::new(),
            waiting: BTreeSet::new(),
            dropped: Vec::new(),
            done: 0,
            late: 0,
            most_in_stream: most_in_stream(spec),
            stirred: true,
        };
        for stage in plan.stages {
            run.add_stage(spec, stage);
        }
        run.leave_behind_what_is_past(spec);
        let open: Vec<StageIndex> = (0..run.stages.len()).filter(|s| run.stages[*s].waits_for == 0).collect();
        run.open_stages(spec, open);
        run
    }

    fn add_stage(&mut self, spec: &JobSpec, mut plan: Stage) {
        let stage = self.stages.len();
        let before: HashSet<StageIndex> = plan.after.iter().map(|s| *s as usize).filter(|s| *s < stage).collect();
        for earlier in &before {
            self.stages[*earlier].dependents.push(stage);
        }
        let quorum = planner::quorum(spec, &plan);
        let tasks = std::mem::take(&mut plan.tasks);
        let teller = plan.expands.clone();
        self.stages.push(StageState {
            plan,
            waits_for: before.len(),
            dependents: Vec::new(),
            tasks: Vec::new(),
            done: 0,
            late: 0,
            known: teller.is_none(),
            quorum,
            since_ms: None,
            left_behind: false,
            complete: false,
        });
        self.add_tasks(spec, stage, tasks);
        if let Some(teller) = teller {
            if self.is_done(&teller) {
                self.untold.insert(teller.clone(), false);
            }
            self.tells.entry(teller).or_default().push(stage);
        }
    }

    fn add_tasks(&mut self, spec: &JobSpec, stage: StageIndex, tasks: Vec<PlannedTask>) {
        for PlannedTask { id, work } in tasks {
            let task = self.tasks.len();
            self.window_mut(work.kind(), planner::device_of(spec, &work));
            let state = if self.early.remove(&id) { State::Done } else { State::Blocked };
            if state == State::Done {
                self.stages[stage].done += 1;
                self.done += 1;
            }
            self.stages[stage].tasks.push(task);
            self.index.insert(id.clone(), task);
            self.tasks.push(Task { id, work, stage, state, device_ms: None });
        }
    }

    fn window_mut(&mut self, kind: TaskKind, device: DeviceClass) -> &mut Window {
        let found = self.windows.iter().position(|w| w.kind == kind && w.device == device);
        let position = found.unwrap_or_else(|| {
            self.windows.push(Window { kind, device, queue: VecDeque::new(), ready: 0, in_stream: 0 });
            self.windows.len() - 1
        });
        &mut self.windows[position]
    }

    fn window_of(&mut self, spec: &JobSpec, task: TaskIndex) -> &mut Window {
        let work = &self.tasks[task].work;
        let (kind, device) = (work.kind(), planner::device_of(spec, work));
        self.window_mut(kind, device)
    }

    fn is_done(&self, task: &TaskId) -> bool {
        self.index.get(task).is_some_and(|task| self.tasks[*task].state == State::Done)
    }

    /// Opens stages that wait for none, and those that follow when one of them is complete already.
    fn open_stages(&mut self, spec: &JobSpec, mut open: Vec<StageIndex>) {
        while let Some(stage) = open.pop() {
            for task in self.stages[stage].tasks.clone() {
                if self.tasks[task].state == State::Blocked {
                    self.make_ready(spec, task);
                }
            }
            open.extend(self.complete_stage(stage));
            if self.stages[stage].quorum.is_some() && !self.stages[stage].complete {
                self.waiting.insert(stage);
            }
        }
    }

    /// Returns the stages that open because this one is complete now.
    fn complete_stage(&mut self, stage: StageIndex) -> Vec<StageIndex> {
        let state = &mut self.stages[stage];
        let all_done = state.known && state.done == state.tasks.len();
        if state.complete || state.waits_for > 0 || !(all_done || state.left_behind) {
            return Vec::new();
        }
        state.complete = true;
        self.waiting.remove(&stage);
        let state = &self.stages[stage];
        let dependents = state.dependents.clone();
        let opens = |dependent: &StageIndex| {
            self.stages[*dependent].waits_for -= 1;
            self.stages[*dependent].waits_for == 0
        };
        dependents.into_iter().filter(opens).collect()
    }

    fn make_ready(&mut self, spec: &JobSpec, task: TaskIndex) {
        self.tasks[task].state = State::Ready;
        self.stirred = true;
        let window = self.window_of(spec, task);
        window.queue.push_back(task);
        window.ready += 1;
    }

    /// Takes a task out of whatever state it is in, so that it can enter another.
    fn leave_state(&mut self, spec: &JobSpec, task: TaskIndex) {
        self.stirred = true;
        match self.tasks[task].state {
            State::Blocked => {}
            State::Ready => self.window_of(spec, task).ready -= 1,
            State::InStream => {
                self.window_of(spec, task).in_stream -= 1;
                self.in_stream.remove(&task);
            }
            State::Done => {
                self.stages[self.tasks[task].stage].done -= 1;
                self.done -= 1;
                self.untold.remove(&self.tasks[task].id);
            }
            State::Failed => {
                self.failures.remove(&task);
            }
            State::Late => {
                self.stages[self.tasks[task].stage].late -= 1;
                self.late -= 1;
            }
        }
    }

    /// A record exists. Returns whether that is news.
    pub fn complete(&mut self, spec: &JobSpec, id: &TaskId) -> bool {
        let Some(&task) = self.index.get(id) else {
            // Only a stage that is not told yet can have it; anything else is noise.
            if !self.tells.is_empty() {
                self.early.insert(id.clone());
            }
            return false;
        };
        if self.tasks[task].state == State::Done || self.unusable.contains(&task) {
            return false;
        }
        self.leave_state(spec, task);
        self.tasks[task].state = State::Done;
        self.settle_attempts(task);
        let stage = self.tasks[task].stage;
        self.stages[stage].done += 1;
        self.done += 1;
        if self.tells.contains_key(id) {
            self.untold.insert(id.clone(), false);
        }
        let open = self.complete_stage(stage);
        self.open_stages(spec, open);
        self.leave_behind_before(spec, stage);
        true
    }

    /// Hears how long a task was on a device; of what is heard of one task the first counts.
    pub fn measure(&mut self, id: &TaskId, device_ms: u64) {
        if let Some(&task) = self.index.get(id) {
            self.tasks[task].device_ms.get_or_insert(device_ms);
        }
    }

    fn settle_attempts(&mut self, task: TaskIndex) {
        if let Some(attempts) = self.attempts.get_mut(&task) {
            attempts.settle();
            if !attempts.is_troubled() {
                self.attempts.remove(&task);
            }
        }
    }

    /// Tasks whose records must be read because they tell the tasks of a stage, and were not asked for yet.
    pub fn take_untold(&mut self) -> Vec<TaskId> {
        let unasked = self.untold.iter_mut().filter(|(_, asked)| !**asked);
        unasked
            .map(|(task, asked)| {
                *asked = true;
                task.clone()
            })
            .collect()
    }

    /// A record was read: it completes its task and tells the stages that wait for it. A record that cannot tell
    /// them fails its task.
    pub fn on_record(&mut self, spec: &JobSpec, record: &TaskRecord) {
        self.complete(spec, &record.task);
        if !self.untold.contains_key(&record.task) {
            return;
        }
        let expand = |stage: &StageIndex| {
            let tasks = planner::expand(spec, &record.job, &self.stages[*stage].plan, record)?;
            Ok((*stage, tasks))
        };
        let told: Result<Vec<_>, planner::ExpandError> = self.tells[&record.task].iter().map(expand).collect();
        match told {
            Ok(told) => self.tell(spec, &record.task, told),
            Err(error) => self.on_unusable(spec, &record.task, error.to_string()),
        }
    }

    fn tell(&mut self, spec: &JobSpec, teller: &TaskId, told: Vec<(StageIndex, Vec<PlannedTask>)>) {
        self.tells.remove(teller);
        self.untold.remove(teller);
        for (stage, tasks) in told {
            self.stages[stage].known = true;
            self.add_tasks(spec, stage, tasks);
            if self.stages[stage].waits_for == 0 {
                self.open_stages(spec, vec![stage]);
            }
        }
    }

    /// A record that was believed to exist does not: its task is to be done again.
    fn undo(&mut self, spec: &JobSpec, task: TaskIndex) {
        self.leave_state(spec, task);
        if self.stages[self.tasks[task].stage].waits_for == 0 {
            self.make_ready(spec, task);
        } else {
            self.tasks[task].state = State::Blocked;
        }
    }

    /// A record exists and is of no use: no attempt can mend that.
    pub fn on_unusable(&mut self, spec: &JobSpec, id: &TaskId, error: String) {
        self.fail(spec, id, error);
        self.unusable.extend(self.index.get(id));
    }

    fn fail(&mut self, spec: &JobSpec, id: &TaskId, error: String) {
        let Some(&task) = self.index.get(id) else { return };
        self.leave_state(spec, task);
        self.tasks[task].state = State::Failed;
        let (reported, silent) = self.attempts.get(&task).map_or((0, 0), |a| (a.reported(), a.silent()));
        self.failures.insert(task, TaskFailure { task: id.clone(), error, reported, silent });
    }

    /// Hears of an attempt of a task that has not ended. `hear` tells whether it may go on.
    pub fn on_attempt(
        &mut self,
        spec: &JobSpec,
        job: &JobId,
        id: &TaskId,
        now_ms: u64,
        out: &mut dyn Outbox,
        hear: impl FnOnce(&mut Attempts) -> Verdict,
    ) {
        let Some(&task) = self.index.get(id) else { return };
        if matches!(self.tasks[task].state, State::Done | State::Failed | State::Late) {
            return;
        }
        if let Some(last_news_ms) = self.in_stream.get_mut(&task) {
            *last_news_ms = now_ms;
        }
        if hear(self.attempts.entry(task).or_default()) == Verdict::GiveUp {
            self.give_up(spec, job, task, now_ms, out);
        }
    }

    fn give_up(&mut self, spec: &JobSpec, job: &JobId, task: TaskIndex, now_ms: u64, out: &mut dyn Outbox) {
        let id = self.tasks[task].id.clone();
        self.settle_attempts(task);
        let error = self.attempts.get(&task).map(|a| a.last_error().to_string()).unwrap_or_default();
        self.fail(spec, &id, error);
        let subject = planner::subject_of(spec, job, &id, &self.tasks[task].work);
        out.send(Effect::PurgeTask { job: job.clone(), subject });
        let failure = self.failures[&task].clone();
        out.send(Effect::DeadLetter(DeadLetter { job: job.clone(), run: self.number, failure, at_ms: now_ms }));
    }

    /// Whether its windows want another share than at the last call.
    pub fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    /// The tasks that it would have in each queue if there were room.
    pub fn wants(&self, spec: &JobSpec) -> impl Iterator<Item = (Queue, Want)> {
        let (priority, most) = (spec.priority, self.most_in_stream);
        let wants = move |w: &Window| {
            let all = w.ready + w.in_stream;
            ((w.kind, w.device, priority), Want { tasks: most.min(all), capped: all > most })
        };
        self.windows.iter().map(wants).filter(|(_, want)| want.tasks > 0)
    }

    /// Publishes ready tasks into the room that their windows have.
    pub fn fill(&mut self, spec: &JobSpec, job: &JobId, shares: &Shares, now_ms: u64, out: &mut dyn Outbox) {
        for window in &mut self.windows {
            let room = shares.in_queue((window.kind, window.device, spec.priority));
            while window.ready > 0 && window.in_stream < room && self.in_stream.len() < self.most_in_stream {
                let task = window.queue.pop_front().expect("every ready task is in its window's queue");
                if self.tasks[task].state != State::Ready {
                    continue;
                }
                self.tasks[task].state = State::InStream;
                self.in_stream.insert(task, now_ms);
                let stage = &mut self.stages[self.tasks[task].stage];
                if stage.quorum.is_some() {
                    stage.since_ms.get_or_insert(now_ms);
                }
                window.ready -= 1;
                window.in_stream += 1;
                let Task { id, work, .. } = &self.tasks[task];
                out.send(publish(self.number, spec, job, id, work));
            }
        }
    }

    /// Tasks of the window without news since `before_ms`, and those whose record is still to be read. Asked about
    /// now, they count as heard of.
    pub fn take_silent(&mut self, before_ms: u64, now_ms: u64) -> Vec<TaskId> {
        let mut silent: Vec<TaskId> = self.untold.keys().cloned().collect();
        for (task, last_news_ms) in &mut self.in_stream {
            if *last_news_ms <= before_ms {
                *last_news_ms = now_ms;
                silent.push(self.tasks[*task].id.clone());
            }
        }
        silent
    }

    /// There is no record: a task that should have a message gets one, a task that was believed to be done is
    /// done again.
    pub fn on_no_record(&mut self, spec: &JobSpec, job: &JobId, id: &TaskId, out: &mut dyn Outbox) {
        let Some(&task) = self.index.get(id) else { return };
        match self.tasks[task].state {
            State::InStream => out.send(publish(self.number, spec, job, id, &self.tasks[task].work)),
            State::Done => self.undo(spec, task),
            State::Blocked | State::Ready | State::Failed | State::Late => {}
        }
    }

    /// The records decide: tasks are what the list says. Returns whether the run is complete as it was believed.
    pub fn reconcile(&mut self, spec: &JobSpec, records: &HashSet<TaskId>) -> bool {
        let mut as_believed = true;
        for task in 0..self.tasks.len() {
            let id = self.tasks[task].id.clone();
            match (self.tasks[task].state == State::Done, records.contains(&id)) {
                (true, false) => self.undo(spec, task),
                (false, true) if self.complete(spec, &id) => {}
                _ => continue,
            }
            as_believed = false;
        }
        as_believed
    }

    /// Whether nothing is to be done or waited for.
    pub fn is_idle(&self) -> bool {
        self.in_stream.is_empty() && self.untold.is_empty() && self.windows.iter().all(|w| w.ready == 0)
    }
}

/// As many as the job may have workers: a worker is at one task at a time.
fn most_in_stream(spec: &JobSpec) -> usize {
    spec.options.max_workers.map_or(usize::MAX, |most| most.max(1) as usize)
}

fn message(run: RunNumber, job: &JobId, id: &TaskId, work: &TaskWork) -> TaskMessage {
    TaskMessage { job: job.clone(), run, task: id.clone(), work: work.clone() }
}

fn publish(run: RunNumber, spec: &JobSpec, job: &JobId, id: &TaskId, work: &TaskWork) -> Effect {
    let subject = planner::subject_of(spec, job, id, work);
    Effect::Publish { subject, message: message(run, job, id, work) }
}
