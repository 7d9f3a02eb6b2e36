//! How the jobs that want one queue share it.
//!
//! Tasks of one kind, device class and priority wait in one queue, first come, first served. If every job kept a
//! whole window of tasks in it, a new task would wait behind as many windows as there are jobs. So the window is
//! shared out: who wants little gets all of it, the others get equal parts of what is left, and nobody gets less
//! than one task. A new task then waits behind about one window, however many jobs there are; and because equal
//! parts are refilled as they are worked off, jobs of one priority go on at the same rate.
//!
//! A job that may have few workers keeps no task in the queue beside those that are worked on: the one that could be taken would be one
//! worker more. So each of its tasks is published when one before it ends, and then waits behind what the others keep there. Beside
//! such a job they keep little more than the workers are busy with, else the waiting would cost it half of the workers that it may
//! have.

use std::collections::HashMap;

use likeness_contract::jobs::{DeviceClass, Priority, TaskKind};

use super::workers::Workers;

/// What names a queue.
pub type Queue = (TaskKind, DeviceClass, Priority);

/// What one job wants of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Tasks.
    pub tasks: usize,
    /// Whether it has more that it may not keep there.
    pub capped: bool,
}

/// Most tasks that one job keeps in each queue.
#[derive(Debug, Default)]
pub struct Shares(HashMap<Queue, usize>);

impl Shares {
    /// Shares the windows out among jobs: each entry is what one job wants of one queue.
    pub fn of(wants: impl IntoIterator<Item = (Queue, Want)>, workers: &Workers) -> Self {
        let mut queues: HashMap<Queue, Vec<Want>> = HashMap::new();
        for (queue, want) in wants {
            queues.entry(queue).or_default().push(want);
        }
        let share = |(queue, wants): (Queue, Vec<Want>)| {
            let (kind, device, _) = queue;
            let (capped, alone) = (wants.iter().any(|want| want.capped), wants.len() == 1);
            let window = if capped && !alone { workers.narrow(kind, device) } else { workers.window(kind, device) };
            (queue, share(window, wants.iter().map(|want| want.tasks).collect()))
        };
        Self(queues.into_iter().map(share).collect())
    }

    /// Most tasks of one job in a queue; none of a queue that no job wanted.
    pub fn in_queue(&self, queue: Queue) -> usize {
        self.0.get(&queue).copied().unwrap_or(0)
    }
}

/// The largest part of `window` that everybody can have who wants that much.
fn share(window: usize, mut wants: Vec<usize>) -> usize {
    wants.sort_unstable();
    let mut left = window;
    for (satisfied, wanted) in wants.iter().enumerate() {
        let equal_part = left.div_ceil(wants.len() - satisfied).max(1);
        if *wanted > equal_part {
            return equal_part;
        }
        left = left.saturating_sub(*wanted);
    }
    window
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_alone_has_the_whole_window() {
        assert_eq!(share(16, vec![10_000]), 16);
        assert_eq!(share(16, vec![3]), 16);
    }

    #[test]
    fn who_wants_little_gets_it_and_the_others_share_the_rest() {
        assert_eq!(share(16, vec![10_000, 10_000]), 8);
        assert_eq!(share(16, vec![10_000, 1, 10_000, 3]), 6);
        assert_eq!(share(16, vec![4, 4, 4]), 16);
    }

    #[test]
    fn nobody_gets_nothing() {
        assert_eq!(share(16, vec![100; 500]), 1);
        assert_eq!(share(16, [vec![8, 8], vec![100; 20]].concat()), 1);
    }

    #[test]
    fn the_parts_fill_the_window() {
        for jobs in 1..100 {
            let part = share(64, vec![1000; jobs]);
            assert!(part * jobs >= 64 && (part - 1) * jobs < 64, "{jobs} jobs get {part} each");
        }
    }
}
