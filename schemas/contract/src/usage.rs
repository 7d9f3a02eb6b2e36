//! What a job is expected to take, and what it took.
//!
//! A job's tasks are put together in phases: `ingest`, `train`, `embed`, `baseline embed`, `evaluate`. The time on
//! devices that earlier jobs used for the same shape of work is what an estimate is made from; it is stored before
//! the job's first run opens and never changed, so that it can be compared with what the job used.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::ids::{JobId, RunNumber};
use crate::jobs::{DeviceClass, TaskKind};

/// Tasks of one phase of a job and the time that they used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseUsage {
    /// `train`, `embed`.
    pub name: String,
    /// The role of its workers.
    pub kind: TaskKind,
    /// The class of device that its tasks ask for.
    pub device: DeviceClass,
    /// What else its time per unit depends on: `cnn-s at 64 px`.
    pub shape: String,
    /// Tasks.
    pub tasks: u64,
    /// Units of work in them.
    pub units: u64,
    /// What a unit is: `images`, `triplets`, `queries`.
    pub unit: String,
    /// What its time grows with: units, or units times the rows that each of them looks at.
    pub weight: u64,
    /// Time on devices, milliseconds.
    pub device_ms: u64,
}

/// `jobs/<job>/usage/N.json`: what a job had used when its run N was closed, runs before it included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: RunNumber,
    /// By phase, in the order of the plan.
    pub phases: Vec<PhaseUsage>,
}

impl Message for Usage {
    const NAME: &'static str = "usage";
    const VERSION: u16 = 1;
}

impl Usage {
    /// Time on devices, milliseconds.
    pub fn device_ms(&self) -> u64 {
        self.phases.iter().map(|phase| phase.device_ms).sum()
    }
}

/// `jobs/<job>/estimate.json`: what a job is expected to take, as far as that could be known before it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Estimate {
    /// The job.
    pub job: JobId,
    /// `ingest`, `train`, `embed`, `evaluate`, `pipeline`.
    pub kind: String,
    /// By phase.
    pub phases: Vec<PhaseEstimate>,
    /// What searchers will hold of what it makes.
    pub serving: Option<ServingEstimate>,
}

impl Message for Estimate {
    const NAME: &'static str = "estimate";
    const VERSION: u16 = 1;
}

impl Estimate {
    /// Time on devices, milliseconds; none when that of any phase is not known.
    pub fn device_ms(&self) -> Option<u64> {
        self.phases.iter().map(|phase| phase.device_ms).sum()
    }
}

/// One phase of an estimate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseEstimate {
    /// `train`, `embed`.
    pub name: String,
    /// The role of its workers.
    pub kind: TaskKind,
    /// The class of device that its tasks ask for.
    pub device: DeviceClass,
    /// See [`PhaseUsage::shape`].
    pub shape: String,
    /// Tasks; none while only one of them can tell how many there are.
    pub tasks: Option<u64>,
    /// Units of work, at most; none as for `tasks`.
    pub units: Option<u64>,
    /// What a unit is.
    pub unit: String,
    /// Optimizer steps, of a training.
    pub steps: Option<u64>,
    /// Bytes that are read from the store, caches left aside.
    pub bytes_read: Option<u64>,
    /// Bytes that are written to the store.
    pub bytes_written: Option<u64>,
    /// Time on devices, milliseconds; none without earlier jobs of the same shape.
    pub device_ms: Option<u64>,
    /// What the time is made from.
    pub basis: Option<Basis>,
}

/// Earlier work of the same shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Basis {
    /// Jobs.
    pub jobs: u32,
    /// Weight of what they did, see [`PhaseUsage::weight`].
    pub weight: u64,
    /// Time on devices, milliseconds.
    pub device_ms: u64,
}

/// What searchers hold in memory of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServingEstimate {
    /// Rows of the gallery, at most.
    pub rows: u64,
    /// Bytes of one row: its embedding, its id, its labels.
    pub row_bytes: u64,
    /// Bytes of the model, which every searcher holds.
    pub model_bytes: u64,
    /// Searchers that hold every row (R).
    pub replicas: u32,
}

impl ServingEstimate {
    /// Bytes in all searchers together, when R of them hold everything.
    pub fn bytes(&self) -> u64 {
        let Self { rows, row_bytes, model_bytes, replicas } = *self;
        u64::from(replicas).saturating_mul(rows.saturating_mul(row_bytes).saturating_add(model_bytes))
    }
}

/// What one job used so far, beside what it was expected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobUsage {
    /// The job.
    pub job: JobId,
    /// Time on devices, milliseconds; none when that is not known yet.
    pub device_ms: Option<u64>,
    /// What the estimate said of that.
    pub planned_ms: Option<u64>,
    /// By phase, where that was asked for.
    pub phases: Vec<PhaseUsage>,
    /// The estimate, where that was asked for and there is one.
    pub estimate: Option<Estimate>,
}

/// `jobs/<job>/notified/<run>-<n>.json`: a URL was told of the end of a run, or will not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Notified {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: RunNumber,
    /// Position among the URLs of the job, from 0.
    pub url: u32,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
    /// Why it was given up; none when it was delivered.
    pub given_up: Option<String>,
}

impl Message for Notified {
    const NAME: &'static str = "notified";
    const VERSION: u16 = 1;
}
