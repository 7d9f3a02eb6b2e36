//! The state of all jobs and what every piece of news does to it: one `on_<news>` per kind of news.
//!
//! Each takes the state as it is, changes it, and sends what must happen to the outbox. News may come twice, late,
//! in any order or not at all; nothing here may panic or end wrongly because of that. What decides is always a
//! record or an outcome in the store: events only tell where to look first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use likeness_contract::documents::GateDecision;
use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::{
    GenerationRef, JobSpec, JobWork, Outcome, RunResult, TaskFailure, TaskMessage, TaskOutput, TaskRecord, task_ids,
};
use likeness_contract::messages::{JobEvent, JobNews, TaskEvent, TaskNews};

use super::job::{ClosedJob, Job, OpenedJob, Progress, Tally};
use super::outbox::{Effect, Outbox, Promotion};
use super::run::{OpenRun, Phase};
use super::shares::Shares;
use super::workers::Workers;

/// Id under which a failed promotion stands among the failures of a run.
const PROMOTE: &str = "promote";

/// The leader's memory; rebuilt from the store and the events by every new leader.
#[derive(Debug)]
pub struct Reactor {
    jobs: HashMap<JobId, Job>,
    open: BTreeSet<JobId>,
    workers: Workers,
    /// Nothing is published while past events are being read.
    replaying: bool,
    /// A task of the window without news for so long is looked after, milliseconds.
    patience_ms: u64,
}

impl Reactor {
    /// Knows nothing and publishes nothing until [`Reactor::on_replayed`].
    pub fn new(patience_ms: u64) -> Self {
        let (jobs, open, workers) = Default::default();
        Self { jobs, open, workers, replaying: true, patience_ms }
    }

    /// A job has an open run: it was submitted, retried, or found in the store. An older or equal run that is
    /// known already stays as it is.
    pub fn on_opened(&mut self, id: &JobId, opened: OpenedJob, now_ms: u64, out: &mut dyn Outbox) {
        let number = opened.run.run;
        let known = self.jobs.get(id);
        if known.is_some_and(|job| job.run >= number) {
            return;
        }
        let before_ms = known.map_or(0, Job::device_ms);
        if known.is_some() {
            // What the run before left behind would keep the messages of this one out.
            out.send(Effect::PurgeJob { job: id.clone() });
        }
        let (accepted_ms, opened_ms) = (opened.accepted_ms, opened.run.opened_ms);
        let (spec, run) = opened.open();
        let progress = Progress::Open(Box::new(run));
        let job = Job { id: id.clone(), spec, accepted_ms, run: number, opened_ms, progress, before_ms };
        self.jobs.insert(id.clone(), job);
        self.open.insert(id.clone());
        self.advance(id, now_ms, out);
    }

    /// A job whose newest run is closed was found in the store.
    pub fn on_found_closed(&mut self, id: &JobId, closed: ClosedJob) {
        let ClosedJob { spec, accepted_ms, run, outcome } = closed;
        if self.jobs.get(id).is_some_and(|job| job.run >= run.run) {
            return;
        }
        let (spec, progress) = (Arc::new(spec), Progress::Closed { outcome, tally: None });
        let (number, opened_ms) = (run.run, run.opened_ms);
        let job = Job { id: id.clone(), spec, accepted_ms, run: number, opened_ms, progress, before_ms: 0 };
        self.jobs.insert(id.clone(), job);
    }

    /// What was done in a job that ended before this leader began.
    pub fn on_tally(&mut self, id: &JobId, of_run: RunNumber, found: Tally) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.run == of_run) else { return };
        if let Progress::Closed { tally, .. } = &mut job.progress
            && tally.as_ref().is_none_or(|known| known.device_ms.is_none())
        {
            *tally = Some(found);
        }
    }

    /// All past events of the open runs were read: from now on tasks are published.
    pub fn on_replayed(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        self.replaying = false;
        self.advance_all(now_ms, out);
    }

    /// The live workers changed.
    pub fn on_workers(&mut self, workers: Workers, now_ms: u64, out: &mut dyn Outbox) {
        if self.workers != workers {
            self.workers = workers;
            self.advance_all(now_ms, out);
        }
    }

    /// Something happened to a task.
    pub fn on_event(&mut self, event: &TaskEvent, now_ms: u64, out: &mut dyn Outbox) {
        let TaskEvent { job: id, run: number, task, worker, attempt, at_ms: _, what } = event;
        let Some((spec, run)) = open_run(&mut self.jobs, id, *number) else { return };
        match what {
            TaskNews::Started => run.on_attempt(spec, id, task, now_ms, out, |a| a.on_started(attempt, worker)),
            TaskNews::Progress { done, of, note } => {
                run.on_attempt(spec, id, task, now_ms, out, |a| a.on_progress(attempt, worker, *done, *of, note));
            }
            TaskNews::Failed { error, retryable } => {
                run.on_attempt(spec, id, task, now_ms, out, |a| a.on_failed(attempt, error, *retryable));
            }
            TaskNews::Released => run.on_attempt(spec, id, task, now_ms, out, |a| a.on_ended(attempt)),
            TaskNews::Done { adopted: _, device_ms } => {
                run.on_attempt(spec, id, task, now_ms, out, |a| a.on_ended(attempt));
                run.complete(spec, task);
                // A leader that found the record before it heard of it counts it too.
                run.measure(task, *device_ms);
            }
        }
        self.advance(id, now_ms, out);
    }

    /// A record was read.
    pub fn on_record(&mut self, record: &TaskRecord, now_ms: u64, out: &mut dyn Outbox) {
        let id = &record.job;
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Progress::Open(run) = &mut job.progress else { return };
        run.on_record(&job.spec, record);
        if run.phase == Phase::Gate && record.task == task_ids::gate() {
            after_gate(id, &job.spec, run, &record.output, out);
        }
        self.advance(id, now_ms, out);
    }

    /// There is no record of a task.
    pub fn on_no_record(&mut self, id: &JobId, number: RunNumber, task: &TaskId, now_ms: u64, out: &mut dyn Outbox) {
        let Some((spec, run)) = open_run(&mut self.jobs, id, number) else { return };
        run.on_no_record(spec, id, task, out);
        if run.phase == Phase::Gate {
            run.phase = Phase::Working;
        }
        self.advance(id, now_ms, out);
    }

    /// There is a record of a task that can't be read, and never will be.
    pub fn on_unreadable(
        &mut self,
        id: &JobId,
        number: RunNumber,
        task: &TaskId,
        error: String,
        now_ms: u64,
        out: &mut dyn Outbox,
    ) {
        let Some((spec, run)) = open_run(&mut self.jobs, id, number) else { return };
        run.on_unusable(spec, task, error);
        if run.phase == Phase::Gate {
            run.phase = Phase::Working;
        }
        self.advance(id, now_ms, out);
    }

    /// The records that a job has. They decide: a run is closed by what they say and not by what events said.
    pub fn on_records(
        &mut self,
        id: &JobId,
        number: RunNumber,
        records: &HashSet<TaskId>,
        now_ms: u64,
        out: &mut dyn Outbox,
    ) {
        let Some((spec, run)) = open_run(&mut self.jobs, id, number) else { return };
        if run.phase != Phase::Listing {
            return;
        }
        if run.reconcile(spec, records) && run.is_idle() {
            conclude(id, spec, run, out);
        } else {
            run.phase = Phase::Working;
        }
        self.advance(id, now_ms, out);
    }

    /// The promotion of a pipeline ended: the number of its release, or why there is none.
    pub fn on_promoted(
        &mut self,
        id: &JobId,
        number: RunNumber,
        gate: &GateDecision,
        result: Result<u64, String>,
        out: &mut dyn Outbox,
    ) {
        let Some((_, run)) = open_run(&mut self.jobs, id, number) else { return };
        if run.phase != Phase::Promoting {
            return;
        }
        let result = match result {
            Ok(release) => RunResult::Done { gate: Some(gate.clone()), release: Some(release) },
            Err(error) => RunResult::Failed { failures: vec![promotion_failure(error)] },
        };
        close(id, run, result, out);
    }

    /// A run is closed, by whomever.
    pub fn on_outcome(&mut self, outcome: Outcome, now_ms: u64, out: &mut dyn Outbox) {
        let id = outcome.job.clone();
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.run == outcome.run) else { return };
        let Progress::Open(run) = &job.progress else { return };
        let tally = Some(Tally::of(run, Some(job.device_ms())));
        out.send(Effect::PurgeJob { job: id.clone() });
        let what = JobNews::Closed(outcome.result.clone());
        out.send(Effect::Announce(JobEvent { job: id.clone(), run: outcome.run, at_ms: now_ms, what }));
        job.progress = Progress::Closed { outcome, tally };
        self.open.remove(&id);
        self.fill(now_ms, out);
    }

    /// Time passed: tasks of the windows without news are looked after, and runs that somebody else closed.
    pub fn on_tick(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        if !self.replaying {
            self.look_after(now_ms.saturating_sub(self.patience_ms), now_ms, out);
        }
    }

    /// Some more time passed: rounds whose deadline is over go on without their late slots.
    pub fn on_deadlines(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        let waits = |job: &Job| matches!(&job.progress, Progress::Open(run) if run.waits_for_slots());
        let waiting: Vec<JobId> = self.open_jobs().filter(|job| waits(job)).map(|job| job.id.clone()).collect();
        for id in waiting {
            self.advance(&id, now_ms, out);
        }
    }

    /// The broker may have lost everything: all tasks of the windows are looked after.
    pub fn on_broker_doubted(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        if !self.replaying {
            self.look_after(now_ms, now_ms, out);
        }
    }

    fn look_after(&mut self, before_ms: u64, now_ms: u64, out: &mut dyn Outbox) {
        for id in &self.open {
            let Some(Job { progress: Progress::Open(run), .. }) = self.jobs.get_mut(id) else { continue };
            for task in run.take_silent(before_ms, now_ms) {
                out.send(Effect::FindRecord { job: id.clone(), run: run.number, task });
            }
            out.send(Effect::FindOutcome { job: id.clone(), run: run.number });
        }
    }

    fn advance_all(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        self.fill(now_ms, out);
        for id in self.open.clone() {
            self.advance(&id, now_ms, out);
        }
    }

    /// Whatever a job can do next.
    fn advance(&mut self, id: &JobId, now_ms: u64, out: &mut dyn Outbox) {
        let Some(Job { spec, progress: Progress::Open(run), .. }) = self.jobs.get_mut(id) else { return };
        if self.replaying || run.phase != Phase::Working {
            return;
        }
        run.leave_behind_due(spec, now_ms);
        run.purge_late(spec, id, out);
        for task in run.take_untold() {
            out.send(Effect::FindRecord { job: id.clone(), run: run.number, task });
        }
        if run.take_stirred() {
            self.fill(now_ms, out);
        }
        let Some(Job { progress: Progress::Open(run), .. }) = self.jobs.get_mut(id) else { return };
        if run.is_idle() {
            run.phase = Phase::Listing;
            out.send(Effect::ListRecords { job: id.clone(), run: run.number });
        }
    }

    /// Publishes tasks of all jobs into the room that they have. What one job no longer wants is the others' room.
    fn fill(&mut self, now_ms: u64, out: &mut dyn Outbox) {
        if self.replaying {
            return;
        }
        let working = self.open_jobs().filter_map(|job| match &job.progress {
            Progress::Open(run) if run.phase == Phase::Working => Some((&job.spec, run)),
            _ => None,
        });
        let shares = Shares::of(working.flat_map(|(spec, run)| run.wants(spec)), &self.workers);
        for id in &self.open {
            let Some(Job { spec, progress: Progress::Open(run), .. }) = self.jobs.get_mut(id) else { continue };
            if run.phase == Phase::Working {
                run.fill(spec, id, &shares, now_ms, out);
            }
        }
    }

    /// A job.
    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// All jobs, in no order.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs with an open run.
    pub fn open_jobs(&self) -> impl Iterator<Item = &Job> {
        self.open.iter().filter_map(|id| self.jobs.get(id))
    }

    /// Whether a run is open.
    pub fn is_open(&self, id: &JobId, number: RunNumber) -> bool {
        self.open.contains(id) && self.jobs.get(id).is_some_and(|job| job.run == number)
    }

    /// What should lie in the work queue, with its subjects.
    pub fn messages(&self) -> Vec<(String, TaskMessage)> {
        let mut messages = Vec::new();
        for job in self.open_jobs() {
            if let Progress::Open(run) = &job.progress {
                messages.extend(run.messages(&job.spec, &job.id));
            }
        }
        messages
    }
}

/// The open run of a job, with the job's spec.
fn open_run<'a>(
    jobs: &'a mut HashMap<JobId, Job>,
    id: &JobId,
    number: RunNumber,
) -> Option<(&'a JobSpec, &'a mut OpenRun)> {
    let Job { spec, progress, run, .. } = jobs.get_mut(id)?;
    match progress {
        Progress::Open(open) if *run == number => Some((&**spec, open)),
        _ => None,
    }
}

/// Every task of a run has ended and the records agree.
fn conclude(id: &JobId, spec: &JobSpec, run: &mut OpenRun, out: &mut dyn Outbox) {
    let failures = run.failures();
    if !failures.is_empty() {
        return close(id, run, RunResult::Failed { failures }, out);
    }
    match &spec.work {
        JobWork::Pipeline { .. } => {
            run.phase = Phase::Gate;
            out.send(Effect::FindRecord { job: id.clone(), run: run.number, task: task_ids::gate() });
        }
        JobWork::Ingest { .. }
        | JobWork::Train(_)
        | JobWork::Embed { .. }
        | JobWork::EmbedAnew { .. }
        | JobWork::Import(_)
        | JobWork::Evaluate { .. }
        | JobWork::Search(_) => {
            close(id, run, RunResult::Done { gate: None, release: None }, out);
        }
    }
}

fn after_gate(id: &JobId, spec: &JobSpec, run: &mut OpenRun, output: &TaskOutput, out: &mut dyn Outbox) {
    let JobWork::Pipeline { embed, alias, baseline, .. } = &spec.work else { return };
    let Some(gate) = output.gate() else {
        run.on_unusable(spec, &task_ids::gate(), "its record holds no decision of a gate".into());
        run.phase = Phase::Working;
        return;
    };
    if !gate.passed {
        return close(id, run, RunResult::Done { gate: Some(gate.clone()), release: None }, out);
    }
    run.phase = Phase::Promoting;
    out.send(Effect::Promote(Promotion {
        job: id.clone(),
        run: run.number,
        alias: alias.clone(),
        generation: GenerationRef { gallery: embed.gallery.clone(), generation: id.clone() },
        replaces: baseline.as_ref().map(|baseline| baseline.release),
        gate: gate.clone(),
    }));
}

fn close(id: &JobId, run: &mut OpenRun, result: RunResult, out: &mut dyn Outbox) {
    run.phase = Phase::Closing;
    out.send(Effect::Close { job: id.clone(), run: run.number, result });
}

fn promotion_failure(error: String) -> TaskFailure {
    let task = TaskId::new(PROMOTE).expect("a constant that is an id");
    TaskFailure { task, error, reported: 0, silent: 0 }
}

#[cfg(test)]
#[path = "reactor_tests.rs"]
mod tests;
