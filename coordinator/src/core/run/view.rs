//! What an open run shows of itself.

use std::collections::BTreeMap;

use likeness_contract::ids::{JobId, TaskId};
use likeness_contract::jobs::{JobSpec, TaskFailure, TaskMessage, TaskWork};
use likeness_contract::messages::{ActiveTask, StageProgress};

use super::super::planner;
use super::{OpenRun, StageState, State, Task, TaskIndex, message};

impl OpenRun {
    /// Each failed task with its last error; of a plan that can't be finished although nothing failed, the tasks
    /// that never could start.
    pub fn failures(&self) -> Vec<TaskFailure> {
        if !self.failures.is_empty() || self.stages.iter().all(|stage| stage.complete) {
            return self.failures.values().cloned().collect();
        }
        let is_stuck = |task: &&Task| !matches!(task.state, State::Done | State::Late);
        let stuck = self.tasks.iter().filter(is_stuck).map(|task| &task.id);
        let failure = |task: &TaskId| TaskFailure {
            task: task.clone(),
            error: "the plan never lets it start".into(),
            reported: 0,
            silent: 0,
        };
        stuck.chain(self.tells.keys()).map(failure).collect()
    }

    /// Tasks in the stream as messages with their subjects.
    pub fn messages(&self, spec: &JobSpec, job: &JobId) -> Vec<(String, TaskMessage)> {
        let message = |task: &TaskIndex| {
            let Task { id, work, .. } = &self.tasks[*task];
            let subject = planner::subject_of(spec, job, id, work);
            (subject, message(self.number, job, id, work))
        };
        self.in_stream.keys().map(message).collect()
    }

    /// Tasks with a record, and tasks known so far; those that came too late are none.
    pub fn counts(&self) -> (u64, u64) {
        (self.done as u64, (self.tasks.len() - self.late) as u64)
    }

    /// Time on devices as far as it was heard of, milliseconds.
    pub fn device_ms(&self) -> u64 {
        self.tasks.iter().filter_map(|task| task.device_ms).sum()
    }

    /// Every task with its work, and the time on devices of those that are done, as far as it was heard of.
    pub fn works(&self) -> impl Iterator<Item = (&TaskId, &TaskWork, Option<u64>)> {
        let done = |task: &Task| task.device_ms.filter(|_| task.state == State::Done);
        self.tasks.iter().map(move |task| (&task.id, &task.work, done(task)))
    }

    /// Progress by stage.
    pub fn stages(&self) -> Vec<StageProgress> {
        let name = |stage: &StageState| match stage.late {
            0 => stage.plan.name.clone(),
            late => format!("{} ({late} late)", stage.plan.name),
        };
        let progress = |stage: &StageState| StageProgress {
            name: name(stage),
            done: stage.done as u64,
            tasks: (stage.tasks.len() - stage.late) as u64,
        };
        self.stages.iter().map(progress).collect()
    }

    /// Tasks that are being worked on.
    pub fn active(&self) -> Vec<ActiveTask> {
        let active = |task: &TaskIndex| {
            let current = self.attempts.get(task)?.current()?;
            Some(ActiveTask {
                task: self.tasks[*task].id.clone(),
                worker: current.worker.clone(),
                progress: current.done,
                of: current.of,
                note: current.note.clone(),
            })
        };
        self.in_stream.keys().filter_map(active).collect()
    }

    /// Tasks that failed at least once, with their last error.
    pub fn troubles(&self) -> Vec<TaskFailure> {
        let mut troubles: BTreeMap<TaskIndex, TaskFailure> = self.failures.clone();
        for (task, attempts) in self.attempts.iter().filter(|(_, attempts)| attempts.is_troubled()) {
            troubles.entry(*task).or_insert_with(|| TaskFailure {
                task: self.tasks[*task].id.clone(),
                error: attempts.last_error().to_string(),
                reported: attempts.reported(),
                silent: attempts.silent(),
            });
        }
        troubles.into_values().collect()
    }
}
