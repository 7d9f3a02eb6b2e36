//! What every part of the shell needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use likeness_contract::ids::Name;
use likeness_link::{Bus, Store};

use super::CoordinatorSettings;
use super::roster::Roster;

/// Connections, settings and what is shared between tasks.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) settings: CoordinatorSettings,
    pub(super) bus: Bus,
    pub(super) store: Store,
    /// Live workers.
    pub(super) roster: Roster,
    promotions: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
}

impl Context {
    pub(super) fn new(settings: CoordinatorSettings, bus: Bus, store: Store) -> Self {
        let roster = Roster::new(bus.timings().presence_ttl);
        Self { settings, bus, store, roster, promotions: Mutex::default() }
    }

    /// One promotion of an alias at a time.
    pub(super) fn promotion_lock(&self, alias: &Name) -> Arc<tokio::sync::Mutex<()>> {
        let mut promotions = self.promotions.lock().unwrap_or_else(PoisonError::into_inner);
        promotions.entry(alias.clone()).or_default().clone()
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
