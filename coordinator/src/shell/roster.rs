//! Live workers, as their presence tells: an entry that is not renewed in time is not live.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::{DeviceClass, TaskKind};
use likeness_contract::messages::{Presence, Sighting};
use likeness_contract::subjects::PRESENCE_BUCKET;
use likeness_link::Bus;
use likeness_link::kv::Change;

use super::backoff::Backoff;

/// Kept up to date by [`Roster::follow`].
#[derive(Debug)]
pub(super) struct Roster {
    lifetime: Duration,
    seen: Mutex<HashMap<String, Seen>>,
}

#[derive(Debug)]
struct Seen {
    presence: Presence,
    at: Instant,
    /// Its entry was taken away: it said good-bye or was not renewed.
    gone: bool,
}

/// A worker that is gone is told of for so long.
const TOLD_FOR: Duration = Duration::from_secs(3600);

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
                let now = Seen { presence: entry.value.clone(), at: Instant::now(), gone: false };
                let before = seen.insert(entry.key, now);
                before.is_none_or(|before| !self.is_live(&before) || before.presence != entry.value)
            }
            Change::Gone { key } => seen.get_mut(&key).is_some_and(|seen| !std::mem::replace(&mut seen.gone, true)),
        }
    }

    fn is_live(&self, seen: &Seen) -> bool {
        !seen.gone && seen.at.elapsed() <= self.lifetime
    }

    /// Live workers, by id.
    pub(super) fn live(&self) -> Vec<Presence> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, seen| seen.at.elapsed() <= TOLD_FOR.max(self.lifetime));
        let mut live: Vec<Presence> =
            seen.values().filter(|seen| self.is_live(seen)).map(|seen| seen.presence.clone()).collect();
        live.sort_by(|a, b| a.worker.cmp(&b.worker));
        live
    }

    /// When every worker was last seen, also those that went in the last hour; by id.
    pub(super) fn sightings(&self) -> Vec<Sighting> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let sighting = |seen: &Seen| Sighting {
            worker: seen.presence.worker.clone(),
            host: seen.presence.host.clone(),
            ago_ms: u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX),
            live: self.is_live(seen),
        };
        let mut sightings: Vec<Sighting> = seen.values().map(sighting).collect();
        sightings.sort_by(|a, b| a.worker.cmp(&b.worker));
        sightings
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

#[cfg(test)]
mod tests {
    use likeness_contract::messages::Presence;
    use likeness_link::kv::Entry;

    use super::*;

    fn put(worker: &str) -> Change<Presence> {
        let value = Presence {
            worker: WorkerId::new(worker).unwrap(),
            roles: TaskKind::ALL.to_vec(),
            searches: true,
            device: "cpu".into(),
            device_class: DeviceClass::Cpu,
            host: "h".into(),
            version: "0".into(),
            task: None,
            draining: false,
        };
        Change::Put(Entry { key: worker.into(), value, revision: 1 })
    }

    #[test]
    fn who_is_gone_is_told_of_and_counts_no_more() {
        let roster = Roster::new(Duration::from_secs(60));
        assert!(roster.take(put("a")) && roster.take(put("b")));
        assert!(!roster.take(put("a")), "seen again it is the same");
        assert!(roster.take(Change::Gone { key: "b".into() }) && !roster.take(Change::Gone { key: "b".into() }));
        assert_eq!((roster.live().len(), roster.searchers().len()), (1, 1));
        let told: Vec<(String, bool)> =
            roster.sightings().into_iter().map(|seen| (seen.worker.to_string(), seen.live)).collect();
        assert_eq!(told, [("a".into(), true), ("b".into(), false)]);
        assert!(roster.take(put("b")), "it is back");
        assert_eq!(roster.live().len(), 2);
    }

    #[test]
    fn who_is_silent_too_long_is_not_live() {
        let roster = Roster::new(Duration::ZERO);
        roster.take(put("a"));
        std::thread::sleep(Duration::from_millis(2));
        assert!(roster.live().is_empty());
        assert!(!roster.sightings()[0].live);
    }
}
