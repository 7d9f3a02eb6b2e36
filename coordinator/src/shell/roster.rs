//! Live workers, as their presence tells: an entry that is not renewed in time is not live.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::{DeviceClass, TaskKind};
use likeness_contract::messages::Presence;
use likeness_contract::subjects::PRESENCE_BUCKET;
use likeness_link::Bus;
use likeness_link::kv::Change;

use super::backoff::Backoff;

/// Kept up to date by [`Roster::follow`].
#[derive(Debug)]
pub(super) struct Roster {
    lifetime: Duration,
    seen: Mutex<HashMap<String, (Presence, Instant)>>,
}

impl Roster {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self { lifetime, seen: Mutex::default() }
    }

    /// Follows the presence bucket for ever; `on_change` is called when somebody came or went.
    pub(super) async fn follow(&self, bus: &Bus, on_change: impl Fn()) {
        let mut backoff = Backoff::default();
        loop {
            match bus.kv(PRESENCE_BUCKET).await {
                Ok(kv) => {
                    let mut changes = kv.watch::<Presence>();
                    loop {
                        if self.take(changes.next().await) {
                            on_change();
                        }
                    }
                }
                Err(error) => backoff.wait("can't follow the presence of workers", &error).await,
            }
        }
    }

    /// Returns whether that changes the picture.
    fn take(&self, change: Change<Presence>) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Put(entry) => {
                let before = seen.insert(entry.key, (entry.value.clone(), Instant::now()));
                before.is_none_or(|(before, at)| at.elapsed() > self.lifetime || before != entry.value)
            }
            Change::Gone { key } => seen.remove(&key).is_some(),
        }
    }

    /// Live workers, by id.
    pub(super) fn live(&self) -> Vec<Presence> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, (_, at)| at.elapsed() <= self.lifetime);
        let mut live: Vec<Presence> = seen.values().map(|(presence, _)| presence.clone()).collect();
        live.sort_by(|a, b| a.worker.cmp(&b.worker));
        live
    }

    /// Live searchers.
    pub(super) fn searchers(&self) -> Vec<WorkerId> {
        let searches = self.live().into_iter().filter(|presence| presence.searches && !presence.draining);
        searches.map(|presence| presence.worker).collect()
    }

    /// Classes of the live devices that train.
    pub(super) fn trainers(&self) -> Vec<DeviceClass> {
        let trains = |presence: &Presence| presence.roles.contains(&TaskKind::Train) && !presence.draining;
        let mut classes: Vec<DeviceClass> =
            self.live().into_iter().filter(trains).map(|presence| presence.device_class).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }
}
