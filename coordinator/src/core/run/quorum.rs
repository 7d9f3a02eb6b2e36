//! Rounds that go on without their late slots.
//!
//! A stage with a quorum is left behind when its deadline is over and the quorum has records; what waits for it starts then. A task that
//! has failed for good holds it: a quorum forgives being late, nothing else. Until what comes after it is done, tasks of the
//! stage may still be done and are then taken: the task after it decides, once, by the records that it finds. When its
//! record is there, the others are late: their messages are purged and nobody asks for them again. A record that comes all the same is
//! kept and changes nothing.

use likeness_contract::ids::JobId;
use likeness_contract::jobs::JobSpec;

use super::super::outbox::{Effect, Outbox};
use super::super::planner;
use super::{OpenRun, StageIndex, State};

impl OpenRun {
    /// Whether a stage waits for more tasks than its quorum, or for its deadline.
    pub fn waits_for_slots(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Leaves stages behind whose time is over.
    pub fn leave_behind_due(&mut self, spec: &JobSpec, now_ms: u64) {
        let due: Vec<StageIndex> = self.waiting.iter().copied().filter(|stage| self.is_due(*stage, now_ms)).collect();
        for stage in due {
            self.leave_behind(spec, stage);
        }
    }

    fn is_due(&self, stage: StageIndex, now_ms: u64) -> bool {
        let state = &self.stages[stage];
        let (Some(quorum), Some(since_ms)) = (state.quorum, state.since_ms) else { return false };
        let over = now_ms >= since_ms + quorum.deadline_ms && state.done >= quorum.least;
        over && !state.tasks.iter().any(|task| self.tasks[*task].state == State::Failed)
    }

    fn leave_behind(&mut self, spec: &JobSpec, stage: StageIndex) {
        self.stages[stage].left_behind = true;
        let open = self.complete_stage(stage);
        self.open_stages(spec, open);
    }

    /// At the start: stages with a quorum whose followers have records.
    pub(super) fn leave_behind_what_is_past(&mut self, spec: &JobSpec) {
        for stage in 0..self.stages.len() {
            self.leave_behind_before(spec, stage);
        }
    }

    /// A stage whose tasks all have records waits for nothing: what is not done of the stages before it is late.
    pub(super) fn leave_behind_before(&mut self, spec: &JobSpec, stage: StageIndex) {
        let state = &self.stages[stage];
        if !state.known || state.done < state.tasks.len() {
            return;
        }
        for before in state.plan.after.clone().into_iter().map(|before| before as StageIndex) {
            if self.stages[before].quorum.is_some() {
                self.drop_late(spec, before);
                self.leave_behind(spec, before);
            }
        }
    }

    fn drop_late(&mut self, spec: &JobSpec, stage: StageIndex) {
        for task in self.stages[stage].tasks.clone() {
            let state = self.tasks[task].state;
            if matches!(state, State::Done | State::Late) {
                continue;
            }
            self.leave_state(spec, task);
            self.tasks[task].state = State::Late;
            self.stages[stage].late += 1;
            self.late += 1;
            self.settle_attempts(task);
            if state == State::InStream {
                self.dropped.push(task);
            }
        }
    }

    /// Purges the messages of what came too late.
    pub fn purge_late(&mut self, spec: &JobSpec, job: &JobId, out: &mut dyn Outbox) {
        for task in std::mem::take(&mut self.dropped) {
            let task = &self.tasks[task];
            let subject = planner::subject_of(spec, job, &task.id, &task.work);
            out.send(Effect::PurgeTask { job: job.clone(), subject });
        }
    }
}
