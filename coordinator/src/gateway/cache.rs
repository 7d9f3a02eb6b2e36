//! A cache of bytes that holds so many of them and forgets what was not asked for longest.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// What one entry costs beside its bytes.
const OVERHEAD_BYTES: usize = 256;

/// Bytes by name.
#[derive(Debug)]
pub struct Cache {
    limit_bytes: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    entries: HashMap<String, (Bytes, u64)>,
    by_use: BTreeMap<u64, String>,
    bytes: usize,
    clock: u64,
}

impl Cache {
    /// One that holds so many bytes.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, held: Mutex::default() }
    }

    /// What is held under a name.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { entries, by_use, clock, .. } = &mut *held;
        let (bytes, used) = entries.get_mut(name)?;
        *clock += 1;
        if let Some(name) = by_use.remove(used) {
            by_use.insert(*clock, name);
        }
        *used = *clock;
        Some(bytes.clone())
    }

    /// Holds bytes under a name, in place of what was there.
    pub fn put(&self, name: String, bytes: Bytes) {
        let cost = bytes.len() + OVERHEAD_BYTES;
        if cost > self.limit_bytes / 4 {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.forget(&name);
        while held.bytes + cost > self.limit_bytes {
            let Some((_, oldest)) = held.by_use.pop_first() else { break };
            held.forget(&oldest);
        }
        held.clock += 1;
        let now = held.clock;
        held.by_use.insert(now, name.clone());
        held.bytes += cost;
        held.entries.insert(name, (bytes, now));
    }
}

impl Held {
    fn forget(&mut self, name: &str) {
        if let Some((bytes, used)) = self.entries.remove(name) {
            self.by_use.remove(&used);
            self.bytes -= bytes.len() + OVERHEAD_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let cache = Cache::new(5 * 1256);
        let bytes = || Bytes::from(vec![0u8; 1000]);
        for name in ["a", "b", "c", "d", "e"] {
            cache.put(name.into(), bytes());
        }
        assert!(cache.get("a").is_some());
        cache.put("f".into(), bytes());
        assert!(cache.get("b").is_none() && cache.get("a").is_some() && cache.get("f").is_some());
    }

    #[test]
    fn it_never_holds_more_than_its_limit() {
        let cache = Cache::new(10_000);
        for number in 0..100 {
            cache.put(format!("{}", number % 30), Bytes::from(vec![0u8; number * 10]));
        }
        let held = cache.held.lock().unwrap();
        let sum: usize = held.entries.values().map(|(bytes, _)| bytes.len() + OVERHEAD_BYTES).sum();
        assert!(held.bytes <= 10_000 && sum == held.bytes && held.by_use.len() == held.entries.len());
        drop(held);
        cache.put("large".into(), Bytes::from(vec![0u8; 9_000]));
        assert!(cache.get("large").is_none(), "one entry does not drive out all others");
    }
}
