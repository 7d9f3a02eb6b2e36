//! A worker that fails task after task is itself the likely cause: it takes itself out.

use std::collections::BTreeSet;

use crate::error::TaskErrorKind;

/// Different tasks that may fail in a row before the worker leaves.
const TASKS_IN_A_ROW: usize = 3;

/// Counts failures that are not the input's fault.
///
/// Tasks are told apart, because one bad task that comes back must not take one worker after the other with it.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: BTreeSet<String>,
}

impl Health {
    /// A task that was computed here ended well.
    pub fn on_done(&mut self) {
        self.failed.clear();
    }

    /// A task failed; says why this worker should leave, when it should.
    pub fn on_failed(&mut self, task: &str, kind: TaskErrorKind, error: &str) -> Result<(), String> {
        if kind != TaskErrorKind::Transient {
            return Ok(());
        }
        self.failed.insert(task.to_string());
        if self.failed.len() < TASKS_IN_A_ROW {
            return Ok(());
        }
        Err(format!("{TASKS_IN_A_ROW} tasks in a row failed on this worker, the last with: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_different_tasks_in_a_row_take_the_worker_out() {
        let mut health = Health::default();
        assert!(health.on_failed("a", TaskErrorKind::Transient, "x").is_ok());
        assert!(health.on_failed("b", TaskErrorKind::Transient, "x").is_ok());
        let reason = health.on_failed("c", TaskErrorKind::Transient, "no memory").unwrap_err();
        assert!(reason.contains("no memory"));
    }

    #[test]
    fn one_task_that_comes_back_success_and_bad_input_do_not() {
        let mut health = Health::default();
        for _ in 0..5 {
            assert!(health.on_failed("a", TaskErrorKind::Transient, "x").is_ok());
        }
        health.on_done();
        for task in ["b", "c"] {
            assert!(health.on_failed(task, TaskErrorKind::Transient, "x").is_ok());
        }
        for task in ["d", "e"] {
            assert!(health.on_failed(task, TaskErrorKind::Invalid, "x").is_ok());
        }
    }
}
