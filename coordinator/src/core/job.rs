//! One job as the leader knows it: its spec, its newest run, and how far that is.

use std::collections::HashSet;
use std::sync::Arc;

use likeness_contract::ids::{JobId, RunNumber, TaskId};
use likeness_contract::jobs::RunResult;
use likeness_contract::jobs::{JobSpec, Outcome, Plan, Run, TaskFailure, TaskRecord};
use likeness_contract::messages::{JobDetail, JobState, JobSummary, StageProgress};

use super::run::OpenRun;

/// What the store says of a job with an open run.
#[derive(Debug, Clone)]
pub struct OpenedJob {
    /// What was accepted.
    pub spec: JobSpec,
    /// Its plan.
    pub plan: Plan,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_ms: u64,
    /// The newest run.
    pub run: Run,
    /// Tasks with a record.
    pub records: HashSet<TaskId>,
    /// Records that tell the tasks of a stage, as far as they exist.
    pub tellers: Vec<TaskRecord>,
}

/// What the store says of a job whose newest run is closed.
#[derive(Debug, Clone)]
pub struct ClosedJob {
    /// What was accepted.
    pub spec: JobSpec,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_ms: u64,
    /// The newest run.
    pub run: Run,
    /// How it ended.
    pub outcome: Outcome,
}

/// See the module.
#[derive(Debug)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was accepted.
    pub spec: Arc<JobSpec>,
    /// When it was accepted, milliseconds since 1970.
    pub accepted_ms: u64,
    /// The newest run.
    pub run: RunNumber,
    /// When that was opened, milliseconds since 1970.
    pub opened_ms: u64,
    /// How far that is.
    pub progress: Progress,
    /// Time on devices in earlier runs as far as this leader heard of it, milliseconds.
    pub before_ms: u64,
}

/// How far the newest run of a job is.
#[derive(Debug)]
pub enum Progress {
    /// It is open.
    Open(Box<OpenRun>),
    /// It is closed.
    Closed {
        /// How it ended.
        outcome: Outcome,
        /// What was done; none until somebody asks about a job that ended before this leader began.
        tally: Option<Tally>,
    },
}

/// What was done in a job.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    /// By stage.
    pub stages: Vec<StageProgress>,
    /// Tasks that failed at least once.
    pub troubles: Vec<TaskFailure>,
    /// Time on devices, milliseconds; none where nobody asked for it yet.
    pub device_ms: Option<u64>,
}

impl Tally {
    /// Of a run.
    pub fn of(run: &OpenRun, device_ms: Option<u64>) -> Self {
        Self { stages: run.stages(), troubles: run.troubles(), device_ms }
    }

    fn counts(&self) -> (u64, u64) {
        self.stages.iter().fold((0, 0), |(done, tasks), stage| (done + stage.done, tasks + stage.tasks))
    }
}

impl OpenedJob {
    /// The state of its run, with nothing in the stream.
    pub fn open(self) -> (Arc<JobSpec>, OpenRun) {
        let Self { spec, plan, run, records, tellers, .. } = self;
        let mut open = OpenRun::new(run.run, &spec, plan, records);
        for record in &tellers {
            open.on_record(&spec, record);
        }
        (Arc::new(spec), open)
    }
}

impl Job {
    /// What the store must be asked before the job can be told: of one that ended before this leader began, its
    /// counts, and in full also the time on devices.
    pub fn untold(&self, in_full: bool) -> Option<ClosedJob> {
        let Progress::Closed { outcome, tally } = &self.progress else { return None };
        if tally.as_ref().is_some_and(|tally| !in_full || tally.device_ms.is_some()) {
            return None;
        }
        let run = Run { job: self.id.clone(), run: self.run, opened_ms: self.opened_ms };
        let (spec, accepted_ms, outcome) = ((*self.spec).clone(), self.accepted_ms, outcome.clone());
        Some(ClosedJob { spec, accepted_ms, run, outcome })
    }

    /// Where it stands.
    pub fn state(&self) -> JobState {
        match &self.progress {
            Progress::Open(_) => JobState::Running,
            Progress::Closed { outcome, .. } => JobState::after(&outcome.result),
        }
    }

    /// Time on devices as far as it is known, milliseconds.
    pub fn device_ms(&self) -> u64 {
        match &self.progress {
            Progress::Open(run) => self.before_ms + run.device_ms(),
            Progress::Closed { tally, .. } => tally.as_ref().and_then(|tally| tally.device_ms).unwrap_or(0),
        }
    }

    /// In one line.
    pub fn summary(&self) -> JobSummary {
        let (counts, closed_ms) = match &self.progress {
            Progress::Open(run) => (run.counts(), None),
            Progress::Closed { outcome, tally } => {
                (tally.as_ref().map_or((0, 0), Tally::counts), Some(outcome.closed_ms))
            }
        };
        JobSummary {
            job: self.id.clone(),
            kind: self.spec.work.kind().into(),
            state: self.state(),
            run: self.run,
            done: counts.0,
            tasks: counts.1,
            opened_ms: self.opened_ms,
            closed_ms,
        }
    }

    /// In full.
    pub fn detail(&self) -> JobDetail {
        let (tally, active, result) = match &self.progress {
            Progress::Open(run) => (Tally::of(run, Some(self.device_ms())), run.active(), None),
            Progress::Closed { outcome, tally } => {
                (tally.clone().unwrap_or_default(), Vec::new(), Some(outcome.result.clone()))
            }
        };
        let gate = match &result {
            Some(RunResult::Done { gate, .. }) => gate.clone(),
            _ => None,
        };
        JobDetail {
            summary: self.summary(),
            spec: (*self.spec).clone(),
            stages: tally.stages,
            active,
            troubles: tally.troubles,
            device_ms: tally.device_ms.unwrap_or(0),
            result,
            gate,
        }
    }
}
