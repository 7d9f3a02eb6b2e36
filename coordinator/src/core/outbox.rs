//! What the core wants done. The shell does it, retrying until it is done or its lease is lost, and answers with
//! the `on_*` call named at each variant.

use likeness_contract::documents::GateDecision;
use likeness_contract::ids::{JobId, Name, RunNumber, TaskId};
use likeness_contract::jobs::{GenerationRef, RunResult, TaskMessage};
use likeness_contract::messages::{DeadLetter, JobEvent};

/// One thing to do. Those of one job are done in order where they concern the broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put a message into the work queue; that one lies there already is as good.
    Publish {
        /// Its subject.
        subject: String,
        /// The message.
        message: TaskMessage,
    },
    /// Remove a task's message from the work queue.
    PurgeTask {
        /// The job, whose earlier effects come first.
        job: JobId,
        /// Its subject.
        subject: String,
    },
    /// Remove all messages of a job from the work queue.
    PurgeJob {
        /// The job.
        job: JobId,
    },
    /// Keep a message that was given up, with its last error; once per run and task.
    DeadLetter(DeadLetter),
    /// Tell the world.
    Announce(JobEvent),
    /// Look for a task's record → `on_record`, `on_no_record` or `on_unreadable`.
    FindRecord {
        /// The job.
        job: JobId,
        /// The run that asks.
        run: RunNumber,
        /// The task.
        task: TaskId,
    },
    /// List the records of a job → `on_records`.
    ListRecords {
        /// The job.
        job: JobId,
        /// The run that asks.
        run: RunNumber,
    },
    /// Look whether somebody else closed a run → `on_outcome` if so.
    FindOutcome {
        /// The job.
        job: JobId,
        /// The run.
        run: RunNumber,
    },
    /// Create the outcome of a run, or adopt the one that is there → `on_outcome`.
    Close {
        /// The job.
        job: JobId,
        /// The run.
        run: RunNumber,
        /// How it ends unless somebody ended it before.
        result: RunResult,
    },
    /// Promote what a pipeline made → `on_promoted`.
    Promote(Promotion),
}

/// A promotion at the end of a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    /// The pipeline; also its model, generation and report.
    pub job: JobId,
    /// Its run.
    pub run: RunNumber,
    /// The alias.
    pub alias: Name,
    /// The generation that answers.
    pub generation: GenerationRef,
    /// The release that the gate compared with; it must still be the newest.
    pub replaces: Option<u64>,
    /// What the gate said.
    pub gate: GateDecision,
}

/// Takes effects, in order.
pub trait Outbox {
    /// Takes one.
    fn send(&mut self, effect: Effect);
}

/// Keeps them.
impl Outbox for Vec<Effect> {
    fn send(&mut self, effect: Effect) {
        self.push(effect);
    }
}
