//! Tasks over rayon's current pool, and the pointer that they share.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// Calls `task` with every number below `count`, in that order but at the same time.
///
/// Whoever is free takes the next one, so a thread that the machine holds up holds nobody else up.
pub(super) fn for_tasks(count: usize, task: impl Fn(usize) + Sync) {
    let threads = rayon::current_num_threads().min(count);
    if threads <= 1 {
        return (0..count).for_each(task);
    }
    let next = AtomicUsize::new(0);
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            task(number);
        }
    });
}

/// Start of a tensor that several tasks write, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32);

// SAFETY: tasks write disjoint parts; whoever makes the tasks sees to it.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// Pointer to the value at `index`, which must lie inside.
    pub(super) fn at(self, index: usize) -> *mut f32 {
        self.0.wrapping_add(index)
    }
}
