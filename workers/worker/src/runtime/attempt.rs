//! One attempt at one message, from its delivery to its acknowledgement.
//!
//! The order is what makes a crash at any point harmless: look for the record → `started` → compute → data →
//! record → event → ack. Before the record nothing counts; after it the task is done, whoever hears of it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use likeness_contract::jobs::{TaskMessage, TaskOutput, TaskRecord};
use likeness_contract::keys;
use likeness_contract::messages::TaskNews;
use likeness_link::error::{Error as LinkError, ErrorKind, chain};
use likeness_link::{Bus, Delivery};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::context::{Shared, TaskContext};
use super::device::panicked;
use super::lease::{Interrupt, Lease};
use super::measure;
use super::renew;
use super::report::{Reporter, now_ms};
use super::verdict::{Answer, Done, check_output, verdict};
use crate::error::{TaskError, TaskErrorKind};

/// Computes a task: [`crate::job::run`], or a test's stand-in.
pub type Perform = for<'a> fn(&'a TaskContext) -> BoxFuture<'a, Result<TaskOutput, TaskError>>;

/// How an attempt ended, for the worker's own books.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was computed here.
    Done,
    /// Somebody else had done it, or the message could not be read.
    Nothing,
    /// It failed or was interrupted.
    Failed {
        /// Which task.
        task: String,
        /// How.
        kind: TaskErrorKind,
        /// The error with its causes.
        error: String,
    },
}

/// What attempts need of their worker.
#[derive(Debug, Clone)]
pub(crate) struct Attempts {
    pub bus: Bus,
    pub shared: Shared,
    /// Unlike any other process's, also of one that had the same worker id before.
    pub process: String,
    pub perform: Perform,
    /// Cancelled when the task at hand must be given back.
    pub give_back: CancellationToken,
}

/// A task that ends when its handle is dropped.
struct Beside(JoinHandle<()>);

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Attempts {
    /// Makes one attempt at a message that was received at `received`.
    pub async fn attempt(&self, delivery: Delivery, received: Instant, number: u64) -> Ended {
        match delivery.task() {
            Ok(message) => {
                let attempt = format!("{}-{number}", self.process);
                let span = tracing::info_span!("task", job = %message.job, id = %message.task, %attempt);
                self.attempt_task(delivery, received, message, attempt).instrument(span).await
            }
            Err(error) => {
                self.refuse(&delivery, &error).await;
                Ended::Nothing
            }
        }
    }

    /// A message of a newer schema waits for an upgraded worker; one that is none is removed.
    async fn refuse(&self, delivery: &Delivery, error: &LinkError) {
        let (subject, text) = (&delivery.subject, chain(error));
        if error.kind != ErrorKind::Newer {
            tracing::error!(%subject, error = %text, "removed: it is no task");
            return send(delivery, Answer::Term).await;
        }
        tracing::warn!(%subject, error = %text, "given back for an upgraded worker");
        let ack_wait = self.bus.timings().ack_wait;
        send(delivery, Answer::Nak(ack_wait / 2)).await;
        self.stand_aside().await;
    }

    /// While a message comes again that is for an upgraded worker this one does not wait for it: else it might be the first in the
    /// queue every time.
    async fn stand_aside(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.bus.timings().ack_wait) => {}
            () = self.give_back.cancelled() => {}
        }
    }

    async fn attempt_task(
        &self,
        delivery: Delivery,
        received: Instant,
        message: TaskMessage,
        attempt: String,
    ) -> Ended {
        measure::on_delivery(delivery.deliveries);
        let timings = self.bus.timings();
        let (lease, delivery) = (Arc::new(Lease::new(received, timings.ack_wait)), Arc::new(delivery));
        let message = Arc::new(message);
        let reporter = Reporter {
            bus: self.bus.clone(),
            worker: self.shared.worker.clone(),
            message: Arc::clone(&message),
            attempt,
        };
        let end = {
            let renewals = renew::keep(Arc::clone(&lease), Arc::clone(&delivery), timings.clone());
            let watch =
                renew::watch_run(Arc::clone(&lease), self.shared.store.clone(), Arc::clone(&message), timings.clone());
            let _renewals = Beside(tokio::spawn(renewals.in_current_span()));
            let _watch = Beside(tokio::spawn(watch.in_current_span()));
            self.until_interrupted(&lease, self.work(&reporter, &lease, delivery.deliveries)).await
        };
        measure::on_end(message.work.kind(), &end);
        self.conclude(&reporter, &lease, &delivery, &end).await;
        if matches!(&end, Err(error) if error.kind == TaskErrorKind::Newer) {
            self.stand_aside().await;
        }
        let task = format!("{}/{}", message.job, message.task);
        match end {
            Ok(Done { adopted: true, .. }) => Ended::Nothing,
            Ok(Done { .. }) => Ended::Done,
            Err(error) => Ended::Failed { task, kind: error.kind, error: error.chain() },
        }
    }

    /// Races the work against cancel, drain and the loss of the lease; a panic becomes an error.
    async fn until_interrupted(
        &self,
        lease: &Lease,
        work: impl Future<Output = Result<Done, TaskError>>,
    ) -> Result<Done, TaskError> {
        let work = AssertUnwindSafe(work).catch_unwind();
        let drain = async {
            self.give_back.cancelled().await;
            lease.stop(Interrupt::Drain);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            interrupt = lease.interrupted() => Err(interrupt.into()),
            result = work => result.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))),
            () = drain => Err(TaskError::drain()),
        }
    }

    async fn work(&self, reporter: &Reporter, lease: &Arc<Lease>, deliveries: u64) -> Result<Done, TaskError> {
        let (store, message) = (&self.shared.store, &reporter.message);
        let record_key = keys::task_record(&message.job, &message.task);
        if store.document::<TaskRecord>(&record_key).await?.is_some() {
            return Ok(Done { adopted: true, device_ms: 0 });
        }
        if renew::is_unwanted(store, message).await? {
            return Err(TaskError::cancelled());
        }
        let spec = self.shared.cache.spec(&message.job).await?;
        reporter.publish(TaskNews::Started).await?;

        let (progress, changes) = watch::channel(None);
        let _progress = Beside(tokio::spawn(reporter.clone().follow(changes, Arc::clone(lease))));
        let cx = TaskContext::new(&self.shared, Arc::clone(message), spec, Arc::clone(lease), progress);
        let started_ms = now_ms();
        let output = (self.perform)(&cx).await?;
        check_output(&output)?;

        let device_ms = cx.device.device_ms();
        let record = TaskRecord {
            job: message.job.clone(),
            run: message.run,
            task: message.task.clone(),
            worker: self.shared.worker.clone(),
            attempt: deliveries,
            started_ms,
            finished_ms: now_ms(),
            device_ms,
            output,
        };
        cx.ensure_leased()?;
        let created = store.create_document(&record_key, &record).await?.created;
        if created {
            measure::on_record(message.work.kind(), &record.output);
        }
        Ok(Done { adopted: !created, device_ms })
    }

    /// Publishes the event and answers the message; says nothing once the lease is lost. The event may take half of what is left of
    /// it: one that can't be stored must not cost the answer too, or the message would come again and again before all others.
    async fn conclude(&self, reporter: &Reporter, lease: &Lease, delivery: &Delivery, end: &Result<Done, TaskError>) {
        log(end);
        let (news, answer) = verdict(end, delivery.deliveries);
        if let Some(news) = news.filter(|_| lease.holds(Instant::now())) {
            let now = Instant::now();
            let half = now + lease.expires().saturating_duration_since(now) / 2;
            // Whoever sweeps finds the record, or delivers the message again.
            match timeout_at(half.into(), reporter.publish(news)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %chain(&error), "the attempt's last event was lost"),
                Err(_) => tracing::warn!("the attempt's last event was lost: the broker did not take it in time"),
            }
        }
        if lease.holds(Instant::now()) {
            send(delivery, answer).await;
        }
    }
}

fn log(end: &Result<Done, TaskError>) {
    match end {
        Ok(Done { adopted: true, .. }) => tracing::info!("record found: adopted"),
        Ok(Done { device_ms, .. }) => tracing::info!(device_ms, "done"),
        Err(error) => match error.kind {
            TaskErrorKind::Invalid => tracing::error!(error = %error.chain(), "failed for good"),
            TaskErrorKind::Transient => tracing::warn!(error = %error.chain(), "failed; to be tried again"),
            TaskErrorKind::LeaseLost => tracing::warn!("lease lost: silent"),
            TaskErrorKind::Cancelled => tracing::info!("stopped: the run was closed"),
            TaskErrorKind::Drain => tracing::info!("given back"),
            TaskErrorKind::Newer => tracing::warn!(error = %error.chain(), "given back for an upgraded worker"),
        },
    }
}

/// Sends an answer and waits for its confirmation. One that is lost costs a delivery and no more.
async fn send(delivery: &Delivery, answer: Answer) {
    let sent = match answer {
        Answer::Ack => delivery.ack().await,
        Answer::Nak(Duration::ZERO) => delivery.nak(None).await,
        Answer::Nak(delay) => delivery.nak(Some(delay)).await,
        Answer::Term => delivery.term().await,
        Answer::Silence => Ok(()),
    };
    if let Err(error) = sent {
        tracing::warn!(error = %chain(&error), "an answer was lost; the message comes again");
    }
}
