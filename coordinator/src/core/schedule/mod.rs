//! Schedules: what becomes of every scheduled time.
//!
//! A schedule is a document (`likeness_contract::schedules`), and so is what becomes of a scheduled time: a [`Firing`], keyed by that time,
//! created once. **The create decides.** Whoever leads proposes; if somebody was there before, his word counts and is carried out. What is to
//! be carried out is a job whose id follows from schedule and time, so doing it again, after a crash or beside another leader, is doing it
//! once.
//!
//! [`Keeper`] says what to do next, given the time, the jobs of earlier firings and the newest versions of datasets. Times are decided in
//! order; the next one not before the job of the last one is accepted, or never will be. So all that a new leader has to know is the newest
//! record: it goes on from there, and whatever is missing between that and now is due.
//!
//! **Due times.** One that begins within `late_after` of its time is on time. With the overlap policy `queue`, so is one that waited for a job of
//! the schedule. All others were missed, which is for the catch-up policy: `none` leaves them out, `last` lets the newest fire if nothing
//! later is due, `all` lets the newest few fire, one after another whatever the overlap policy is, since they would hinder each other. What
//! is left out is recorded as missed: each by itself, up to [`MOST_RECORDED`], older ones by one record for all.
//!
//! **Unchanged.** With "only if changed" a firing is left out when the job names the same newest dataset versions as the last one that was done
//! (the gate's refusal is an end, too: the same data would be refused again), or as one that runs and would be cancelled.
//!
//! A clock that is set back comes to times that are decided: they are not due. What is before a change of the schedule is not, either.

pub mod settings;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
pub mod timetable;

use likeness_contract::ids::JobId;
use likeness_contract::jobs::{DatasetRef, JobWork, RunResult};
use likeness_contract::schedules::{
    Became, CatchUp, Firing, Missed, Overlap, Schedule, ScheduleState, job_of, scheduled_ms_of,
};

use self::timetable::{Due, Timetable};
use super::job::{Job, Progress};

/// Missed times that get a record each.
pub const MOST_RECORDED: usize = 500;

/// The job of an earlier firing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiredJob {
    /// The job.
    pub job: JobId,
    /// Its scheduled time, milliseconds since 1970.
    pub scheduled_ms: u64,
    /// When its newest run was closed, milliseconds since 1970; none while it is open.
    pub closed_ms: Option<u64>,
    /// Whether it was done, whatever the gate said.
    pub succeeded: bool,
    /// Versions of the datasets that it names.
    pub datasets: Vec<DatasetRef>,
}

impl FiredJob {
    /// A job, if it is of a firing of this schedule.
    pub fn of(schedule: &Schedule, job: &Job) -> Option<Self> {
        let scheduled_ms = scheduled_ms_of(&schedule.name, &job.id)?;
        let (closed_ms, succeeded) = match &job.progress {
            Progress::Open(_) => (None, false),
            Progress::Closed { outcome, .. } => {
                (Some(outcome.closed_ms), matches!(outcome.result, RunResult::Done { .. }))
            }
        };
        let datasets = datasets_of(&job.spec.work);
        Some(Self { job: job.id.clone(), scheduled_ms, closed_ms, succeeded, datasets })
    }

    fn is_open(&self) -> bool {
        self.closed_ms.is_none()
    }
}

/// Versions that a job reads, in the order of `resolve::named_datasets`.
fn datasets_of(work: &JobWork) -> Vec<DatasetRef> {
    match work {
        JobWork::Train(train) => vec![train.dataset.clone()],
        JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } => vec![embed.dataset.clone()],
        JobWork::Pipeline { train, embed, .. } => vec![train.dataset.clone(), embed.dataset.clone()],
        JobWork::Ingest { .. } | JobWork::Evaluate { .. } | JobWork::Search(_) | JobWork::Import(_) => Vec::new(),
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing before this time, milliseconds since 1970; nothing ever without.
    Wait(Option<u64>),
    /// Nothing before a job of the schedule ends.
    WaitForJob,
    /// Create these, one after another, so that none is missing before the newest one that is there, and tell
    /// [`Keeper::on_recorded`] what is there then, as long as it says to go on.
    Record(Vec<Firing>),
    /// Cancel and submit what a firing says, then tell [`Keeper::on_carried_out`]; also when it can't be met.
    CarryOut(Firing),
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    schedule: Schedule,
    timetable: Timetable,
    /// Times up to here are decided, milliseconds since 1970.
    decided_ms: u64,
    /// A firing whose job may not be accepted yet.
    unfinished: Option<Firing>,
}

impl Keeper {
    /// Goes on after the newest firing that is recorded: `unfinished` unless it is known that its job can't be accepted.
    pub fn new(schedule: Schedule, newest: Option<Firing>, unfinished: bool) -> Result<Self, String> {
        let timetable = Timetable::parse(&schedule.settings.cron, &schedule.settings.zone)?;
        let mut keeper = Self { decided_ms: schedule.changed_ms, schedule, timetable, unfinished: None };
        if let Some(newest) = newest {
            keeper.on_recorded(newest);
        }
        if !unfinished {
            keeper.unfinished = None;
        }
        Ok(keeper)
    }

    /// The schedule.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Its timetable.
    pub fn timetable(&self) -> &Timetable {
        &self.timetable
    }

    /// Times that are past and not decided, milliseconds since 1970.
    pub fn waiting(&self, now_ms: u64) -> Vec<u64> {
        if self.is_active() { self.due(now_ms).times } else { Vec::new() }
    }

    /// When there may be something to do, milliseconds since 1970, if it is not now.
    pub fn sleeps_until(&self, now_ms: u64) -> Option<Step> {
        if self.unfinished.is_some() {
            return None;
        }
        if !self.is_active() {
            return Some(Step::Wait(None));
        }
        let next = self.timetable.next_after(self.decided_ms);
        next.is_none_or(|next| next > now_ms).then_some(Step::Wait(next))
    }

    /// What to do next. `jobs` are those of this schedule; `newest` are the newest versions of the datasets that its job names, as far as
    /// they are known and matter.
    pub fn step(&mut self, now_ms: u64, jobs: &[FiredJob], newest: Option<&[DatasetRef]>) -> Step {
        if let Some(firing) = &self.unfinished {
            if !is_accepted(firing, jobs) {
                return Step::CarryOut(firing.clone());
            }
            self.unfinished = None;
        }
        if let Some(wait) = self.sleeps_until(now_ms) {
            return wait;
        }
        let due = self.due(now_ms);
        let missed = self.missed(&due, now_ms, jobs);
        if missed > 0 {
            return Step::Record(self.as_missed(&due.times[..missed], due.more, Missed::Late, now_ms));
        }
        let Some(&next) = due.times.first() else { return Step::Wait(self.timetable.next_after(now_ms)) };
        match self.decide(next, now_ms, jobs, newest) {
            Some(became) => Step::Record(vec![self.firing(next, became, now_ms)]),
            None => Step::WaitForJob,
        }
    }

    /// What the store says of a time, whoever wrote it. Returns whether to go on recording: not when somebody else had decided for a job, which is
    /// to be carried out before anything later is recorded.
    pub fn on_recorded(&mut self, firing: Firing) -> bool {
        self.decided_ms = self.decided_ms.max(firing.scheduled_ms);
        if let Became::Submitted { .. } = firing.became {
            self.unfinished = Some(firing);
        }
        self.unfinished.is_none()
    }

    /// The job of the unfinished firing is accepted, or never will be.
    pub fn on_carried_out(&mut self) {
        self.unfinished = None;
    }

    /// Records of what waits, for when the schedule is changed.
    pub fn given_up(&self, now_ms: u64) -> Vec<Firing> {
        let due = if self.is_active() { self.due(now_ms) } else { Due { times: Vec::new(), more: false } };
        self.as_missed(&due.times, due.more, Missed::Changed, now_ms)
    }

    fn is_active(&self) -> bool {
        self.schedule.state == ScheduleState::Active
    }

    fn due(&self, now_ms: u64) -> Due {
        self.timetable.due(self.decided_ms, now_ms, MOST_RECORDED)
    }

    /// How many of the due times, from the first, are left out because they were missed.
    fn missed(&self, due: &Due, now_ms: u64, jobs: &[FiredJob]) -> usize {
        let late = due.times.iter().take_while(|time| self.is_late(**time, now_ms, jobs)).count();
        let left_out = match self.schedule.settings.catch_up {
            CatchUp::None => late,
            CatchUp::Last => late.min(due.times.len().saturating_sub(1)),
            CatchUp::All { limit } => late.saturating_sub(limit as usize),
        };
        // Somebody must stand for those that are too many.
        if due.more { left_out.max(1) } else { left_out }
    }

    fn is_late(&self, time: u64, now_ms: u64, jobs: &[FiredJob]) -> bool {
        let settings = &self.schedule.settings;
        let after_ms = u64::from(settings.late_after_s) * 1000;
        let waited_for = |job: &FiredJob| job.scheduled_ms < time && job.closed_ms.is_none_or(|closed| closed > time);
        let waited = settings.overlap == Overlap::Queue && jobs.iter().any(waited_for);
        now_ms.saturating_sub(time) > after_ms && !waited
    }

    /// What becomes of a time; none while it waits.
    fn decide(&self, time: u64, now_ms: u64, jobs: &[FiredJob], newest: Option<&[DatasetRef]>) -> Option<Became> {
        let settings = &self.schedule.settings;
        let open: Vec<&FiredJob> = jobs.iter().filter(|job| job.is_open()).collect();
        let made_up_for = self.is_late(time, now_ms, jobs) && matches!(settings.catch_up, CatchUp::All { .. });
        let overlap = if made_up_for { Overlap::Queue } else { settings.overlap };
        match (overlap, open.first()) {
            (Overlap::Skip, Some(running)) => return Some(Became::Overlapped { running: running.job.clone() }),
            (Overlap::Queue, Some(_)) => return None,
            (Overlap::CancelOld, _) | (_, None) => {}
        }
        if let Some(newest) = newest.filter(|newest| settings.only_if_changed && !newest.is_empty())
            && let Some(same) = uses_the_same(jobs, newest)
        {
            return Some(Became::Unchanged { datasets: newest.to_vec(), since: same.job.clone() });
        }
        let cancels = open.into_iter().map(|job| job.job.clone()).collect();
        Some(Became::Submitted { job: job_of(&self.schedule.name, time), cancels })
    }

    fn as_missed(&self, times: &[u64], more: bool, how: Missed, now_ms: u64) -> Vec<Firing> {
        let oldest = times.first().copied();
        let missed = |time: &u64| {
            let all_since_ms = (more && Some(*time) == oldest).then_some(self.decided_ms);
            self.firing(*time, Became::Missed { how, all_since_ms }, now_ms)
        };
        times.iter().map(missed).collect()
    }

    fn firing(&self, scheduled_ms: u64, became: Became, decided_ms: u64) -> Firing {
        let Schedule { name, number, .. } = &self.schedule;
        Firing { schedule: name.clone(), scheduled_ms, change: *number, decided_ms, became }
    }
}

fn is_accepted(firing: &Firing, jobs: &[FiredJob]) -> bool {
    match &firing.became {
        Became::Submitted { job, .. } => jobs.iter().any(|known| known.job == *job),
        Became::Overlapped { .. } | Became::Unchanged { .. } | Became::Missed { .. } => true,
    }
}

/// The last job that was done, or one that runs, if it has these versions.
fn uses_the_same<'a>(jobs: &'a [FiredJob], newest: &[DatasetRef]) -> Option<&'a FiredJob> {
    let same = |job: &&FiredJob| job.datasets == newest;
    let last = jobs.iter().filter(|job| job.succeeded).max_by_key(|job| job.scheduled_ms);
    last.filter(same).or_else(|| jobs.iter().filter(|job| job.is_open()).find(same))
}
