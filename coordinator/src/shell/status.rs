//! The system at a glance, and mending by hand.

use async_nats::jetstream::consumer::pull;
use futures::StreamExt;
use likeness_contract::jobs::{DeviceClass, Priority, TaskKind, TaskRecord};
use likeness_contract::messages::{Queue, Status};
use likeness_contract::{keys, subjects};
use likeness_link::error::chain;
use likeness_link::{Bus, Published};

use super::api::{Answer, Api};
use super::leader::Input;
use super::promote::placements;
use super::releases;
use crate::core::reactor::Reactor;

/// Requests that are under way at once.
const AT_ONCE: usize = 16;

/// Workers, queues, placement.
pub(super) async fn status(api: &Api) -> Answer<Status> {
    let workers = api.cx.roster.live();
    let mut placement = placements(&api.cx).await?;
    placement.retain(|held| workers.iter().any(|worker| worker.worker == held.worker));
    let open_jobs = api.ask(|core: &Reactor| core.open_jobs().count() as u64).await?;
    let queues = queues(&api.cx.bus).await;
    Ok(Status { leader: api.cx.settings.id.clone(), workers, queues, placement, open_jobs })
}

/// Queues that are not empty.
pub(super) async fn queues(bus: &Bus) -> Vec<Queue> {
    let mut all = Vec::new();
    for kind in TaskKind::ALL {
        for device in DeviceClass::ALL {
            all.extend(Priority::ALL.map(|priority| queue(bus, kind, device, priority)));
        }
    }
    let read = futures::stream::iter(all).buffered(AT_ONCE);
    read.filter_map(std::future::ready).collect().await
}

async fn queue(bus: &Bus, kind: TaskKind, device: DeviceClass, priority: Priority) -> Option<Queue> {
    let name = subjects::task_consumer(kind, device, priority);
    let found = bus.jetstream().get_consumer_from_stream::<pull::Config, _, _>(&name, subjects::JOBS_STREAM).await;
    let consumer = match found {
        Ok(consumer) => consumer,
        Err(error) => {
            tracing::warn!(consumer = name, error = %chain(&error), "a queue can't be looked at");
            return None;
        }
    };
    let info = consumer.cached_info();
    let (waiting, running) = (info.num_pending, info.num_ack_pending as u64);
    (waiting + running > 0).then_some(Queue { kind, device, priority, waiting, running })
}

/// Compares store and broker now: aliases, outcomes and every task that should lie in the queue. Returns how many
/// tasks were published again.
pub(super) async fn reconcile(api: &Api) -> Answer<u64> {
    api.cx.bus.remake_topology().await?;
    releases::rebuild_aliases(&api.cx).await?;
    let messages = api.ask(Reactor::messages).await?;
    let mut republished = 0;
    for (subject, message) in messages {
        let key = keys::task_record(&message.job, &message.task);
        match api.cx.store.document::<TaskRecord>(&key).await {
            Ok(Some(record)) => api.tell(Input::Record(Box::new(record))).await?,
            Ok(None) => {
                let published = api.cx.bus.publish_task(subject, &message).await?;
                republished += u64::from(published == Published::New);
            }
            // The sweep fails its task by name.
            Err(error) => tracing::warn!(error = %chain(&error), "a record can't be read"),
        }
    }
    api.tell(Input::BrokerDoubted).await?;
    Ok(republished)
}
