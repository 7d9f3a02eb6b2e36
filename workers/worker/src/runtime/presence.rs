//! The worker's entry in the presence bucket: what it is and what it does. It dies with its worker.

use std::time::Duration;

use likeness_contract::messages::Presence;
use likeness_contract::subjects::PRESENCE_BUCKET;
use likeness_link::Bus;
use likeness_link::Kv;
use likeness_link::error::{Result, chain};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest wait for taking the entry away when leaving.
const FAREWELL: Duration = Duration::from_secs(1);

/// Keeps the entry fresh until it is dropped or says farewell.
#[derive(Debug)]
pub(crate) struct PresenceKeeper {
    entry: watch::Sender<Presence>,
    bucket: Kv,
    renewals: JoinHandle<()>,
}

impl PresenceKeeper {
    /// Writes the entry, then renews it as often as the timings say and at every change.
    pub async fn start(bus: &Bus, presence: Presence) -> Result<Self> {
        let bucket = bus.kv(PRESENCE_BUCKET).await?;
        bucket.put(presence.worker.as_str(), &presence).await?;
        let (entry, changes) = watch::channel(presence);
        let renewals = tokio::spawn(renew(bucket.clone(), changes, bus.timings().presence_every));
        Ok(Self { entry, bucket, renewals })
    }

    /// The task at hand, `<job>/<task>`, or none.
    pub fn set_task(&self, task: Option<String>) {
        self.entry.send_modify(|entry| entry.task = task);
    }

    /// It takes no new tasks.
    pub fn set_draining(&self) {
        self.entry.send_modify(|entry| entry.draining = true);
    }

    /// Takes the entry away.
    pub async fn farewell(&self) {
        self.renewals.abort();
        let worker = self.entry.borrow().worker.clone();
        // Should this fail, the entry dies of its age.
        if let Ok(Err(error)) = timeout(FAREWELL, self.bucket.delete(worker.as_str())).await {
            tracing::debug!(error = %chain(&error), "the presence entry was left to its age");
        }
    }
}

impl Drop for PresenceKeeper {
    fn drop(&mut self) {
        self.renewals.abort();
    }
}

async fn renew(bucket: Kv, mut changes: watch::Receiver<Presence>, every: Duration) {
    let mut failing = false;
    loop {
        if let Ok(Err(_)) = timeout(every, changes.changed()).await {
            return;
        }
        let entry = changes.borrow_and_update().clone();
        let result = bucket.put(entry.worker.as_str(), &entry).await;
        match &result {
            Err(error) if !failing => tracing::warn!(error = %chain(error), "presence cannot be renewed; trying on"),
            Ok(_) if failing => tracing::info!("presence is renewed again"),
            _ => {}
        }
        failing = result.is_err();
    }
}
