//! How many live workers there are, by kind of task and device class: what windows are sized from.

use std::collections::HashMap;

use likeness_contract::jobs::{DeviceClass, TaskKind};
use likeness_contract::messages::Presence;

/// Fewest tasks of a window, so that a queue is seen even while no worker runs.
const MIN_WINDOW: usize = 16;

/// Of so many workers one finds its next task waiting in a narrow window; the others' are published while they work.
const NARROW_PART: usize = 4;

/// Counts of live workers that take tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workers {
    counts: HashMap<(TaskKind, DeviceClass), usize>,
}

impl Workers {
    /// Counts presence entries; a draining worker takes no tasks.
    pub fn count<'a>(presences: impl IntoIterator<Item = &'a Presence>) -> Self {
        let mut counts = HashMap::new();
        for presence in presences.into_iter().filter(|presence| !presence.draining) {
            for kind in &presence.roles {
                *counts.entry((*kind, presence.device_class)).or_default() += 1;
                *counts.entry((*kind, DeviceClass::Any)).or_default() += 1;
            }
        }
        Self { counts }
    }

    /// Live workers of a kind whose device is of a class; of whatever class for `any`.
    pub fn of(&self, kind: TaskKind, device: DeviceClass) -> usize {
        self.counts.get(&(kind, device)).copied().unwrap_or(0)
    }

    /// Most tasks of one job, one kind and one device class in the stream.
    pub fn window(&self, kind: TaskKind, device: DeviceClass) -> usize {
        MIN_WINDOW.max(2 * self.of(kind, device))
    }

    /// A window that keeps the workers busy and little more, so that a new task is soon at hand.
    pub fn narrow(&self, kind: TaskKind, device: DeviceClass) -> usize {
        match self.of(kind, device) {
            0 => MIN_WINDOW,
            workers => workers + workers.div_ceil(NARROW_PART),
        }
    }
}
