//! What every part of the shell needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use likeness_contract::ids::Name;
use likeness_link::{Bus, Result, Store, WebhookSender};
use tokio::sync::{Notify, Semaphore};

use super::CoordinatorSettings;
use super::roster::Roster;
use super::usage::Found;

/// Webhooks that are under way at once.
const WEBHOOKS_AT_ONCE: usize = 32;

/// Connections, settings and what is shared between tasks.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) settings: CoordinatorSettings,
    pub(super) bus: Bus,
    pub(super) store: Store,
    /// Live workers.
    pub(super) roster: Roster,
    /// What closed jobs used.
    pub(super) used: Found,
    /// A schedule was changed here.
    pub(super) schedules_changed: Notify,
    /// Webhooks that are under way at once.
    pub(super) webhook_permits: Semaphore,
    webhooks: OnceLock<WebhookSender>,
    promotions: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
}

impl Context {
    pub(super) fn new(settings: CoordinatorSettings, bus: Bus, store: Store) -> Self {
        let roster = Roster::new(bus.timings().presence_ttl);
        let webhook_permits = Semaphore::new(WEBHOOKS_AT_ONCE);
        let (used, schedules_changed, webhooks, promotions) = Default::default();
        Self { settings, bus, store, roster, used, schedules_changed, webhook_permits, webhooks, promotions }
    }

    /// Made when it is first needed: a machine without certificates can do all the rest.
    pub(super) fn webhooks(&self) -> Result<&WebhookSender> {
        if let Some(sender) = self.webhooks.get() {
            return Ok(sender);
        }
        let sender = WebhookSender::new(self.settings.webhook_secrets.clone())?;
        Ok(self.webhooks.get_or_init(|| sender))
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
