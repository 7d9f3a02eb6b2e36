//! The events of one attempt: who, which task, which attempt, when, what.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::TaskMessage;
use likeness_contract::messages::{TaskEvent, TaskNews};
use likeness_contract::subjects;
use likeness_link::Bus;
use likeness_link::error::chain;
use tokio::sync::watch;

use super::context::Progress;
use super::lease::Lease;

/// Shortest time between two progress events of a task.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Publishes the events of one attempt.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    pub bus: Bus,
    pub worker: WorkerId,
    pub message: Arc<TaskMessage>,
    /// Names the attempt.
    pub attempt: String,
}

impl Reporter {
    /// Publishes and waits until the broker has stored it.
    pub async fn publish(&self, what: TaskNews) -> likeness_link::error::Result<()> {
        let TaskMessage { job, run, task, work: _ } = self.message.as_ref();
        let subject = subjects::task_event(job, task, what.name());
        let event = TaskEvent {
            job: job.clone(),
            run: *run,
            task: task.clone(),
            worker: self.worker.clone(),
            attempt: self.attempt.clone(),
            at_ms: now_ms(),
            what,
        };
        self.bus.publish_event(subject, &event).await
    }

    /// Publishes the newest progress at most every [`PROGRESS_EVERY`], as long as the lease holds.
    pub async fn follow(self, mut progress: watch::Receiver<Option<Progress>>, lease: Arc<Lease>) {
        while progress.changed().await.is_ok() {
            let Some(Progress { done, of, note }) = progress.borrow_and_update().clone() else { continue };
            if lease.stopped() {
                return;
            }
            if let Err(error) = self.publish(TaskNews::Progress { done, of, note }).await {
                tracing::debug!(error = %chain(&error), "a progress event was lost");
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
