//! NATS subjects, stream, consumer and bucket names.

use crate::ids::{JobId, Name, TaskId, WorkerId};
use crate::jobs::{DeviceClass, Priority, TaskKind};

/// Stream of task messages (work queue).
pub const JOBS_STREAM: &str = "LIKENESS_JOBS";
/// Stream of events.
pub const EVENTS_STREAM: &str = "LIKENESS_EVENTS";
/// Stream of dead letters.
pub const DEAD_STREAM: &str = "LIKENESS_DEAD";

/// Everything in [`JOBS_STREAM`].
pub const JOBS_ALL: &str = "likeness.v1.job.>";
/// Everything in [`EVENTS_STREAM`].
pub const EVENTS_ALL: &str = "likeness.v1.event.>";
/// Everything in [`DEAD_STREAM`].
pub const DEAD_ALL: &str = "likeness.v1.dead.>";

/// Bucket of leases.
pub const LEASES_BUCKET: &str = "likeness-leases";
/// Bucket of what every alias serves and loads.
pub const ALIASES_BUCKET: &str = "likeness-aliases";
/// Bucket of what every searcher holds.
pub const PLACEMENT_BUCKET: &str = "likeness-placement";
/// Bucket of live workers.
pub const PRESENCE_BUCKET: &str = "likeness-presence";
/// Key of the coordinator's lease.
pub const LEADER_KEY: &str = "coordinator";

/// Subject of a task's message: at most one message lies there.
pub fn task(kind: TaskKind, device: DeviceClass, priority: Priority, job: &JobId, task: &TaskId) -> String {
    format!("likeness.v1.job.{}.{}.{}.{job}.{task}", kind.name(), device.name(), priority.name())
}

/// Filter of a consumer: one per kind, device class and priority.
pub fn task_filter(kind: TaskKind, device: DeviceClass, priority: Priority) -> String {
    format!("likeness.v1.job.{}.{}.{}.>", kind.name(), device.name(), priority.name())
}

/// Filter of all messages of a job.
pub fn job_tasks(job: &JobId) -> String {
    format!("likeness.v1.job.*.*.*.{job}.>")
}

/// Durable name of the consumer of [`task_filter`].
pub fn task_consumer(kind: TaskKind, device: DeviceClass, priority: Priority) -> String {
    format!("{}-{}-{}", kind.name(), device.name(), priority.name())
}

/// Subject of an event of a task.
pub fn task_event(job: &JobId, task: &TaskId, what: &str) -> String {
    format!("likeness.v1.event.{job}.{task}.{what}")
}

/// Subject of an event of a job as a whole.
pub fn job_event(job: &JobId, what: &str) -> String {
    format!("likeness.v1.event.{job}._.{what}")
}

/// Subject of a dead letter.
pub fn dead(job: &JobId, task: &TaskId) -> String {
    format!("likeness.v1.dead.{job}.{task}")
}

/// Subject of a verb of the coordinator's API.
pub fn api(verb: &str) -> String {
    format!("likeness.v1.api.{verb}")
}

/// Filter of the whole API.
pub const API_ALL: &str = "likeness.v1.api.*";
/// Subject of the search service: any searcher answers as a root.
pub const SEARCH: &str = "likeness.v1.search";
/// What the search service tells of itself under this name, as NATS micro does: the searcher's id.
pub const SEARCH_WORKER: &str = "worker";
/// Queue group of the search service.
pub const SEARCH_GROUP: &str = "roots";

/// Subject of one searcher's leaf.
pub fn leaf(worker: &WorkerId) -> String {
    format!("likeness.v1.leaf.{worker}")
}

/// Subject on which one searcher's leaf hears that nobody waits for an answer any more.
pub fn leaf_cancel(worker: &WorkerId) -> String {
    format!("likeness.v1.leaf.{worker}.cancel")
}

/// Subject on which searchers hear that the removals of a dataset grew; the message is empty.
pub fn removed(dataset: &Name) -> String {
    format!("likeness.v1.removed.{dataset}")
}

/// Filter of the same of every dataset.
pub const REMOVED_ALL: &str = "likeness.v1.removed.*";

/// Searches that this searcher is to answer as root, and no other.
pub fn search_by(worker: &WorkerId) -> String {
    format!("{SEARCH}.{worker}")
}
