//! How far a training is whose rounds have several slots, for people.

use likeness_contract::jobs::{JobSpec, JobWork, TrainStage};
use likeness_contract::messages::JobDetail;

use crate::command::output::count;

/// `3 of 12 rounds done, 2 of 4 slots of the next`; none of a training whose rounds have one slot.
pub fn in_words(detail: &JobDetail) -> Option<String> {
    let train = training(&detail.spec)?;
    let slots = u64::from(train.train.optimizer.rounds()?.slots);
    // `round 3` and `round 3 (1 late)` are slots, `round 3 outer` is what follows them.
    let of_rounds = detail.stages.iter().filter(|stage| stage.name.starts_with("round "));
    let (outer, of_slots): (Vec<_>, Vec<_>) = of_rounds.partition(|stage| stage.name.ends_with(" outer"));
    let done = outer.iter().take_while(|stage| stage.done == stage.tasks).count();
    let mut text = format!("{done} of {} rounds done", train.rounds());
    if let Some(next) = of_slots.get(done).filter(|next| next.done > 0) {
        text.push_str(&format!(", {} of {slots} slots of the next", next.done));
    }
    let late: u64 = of_slots.iter().map(|stage| slots.saturating_sub(stage.tasks)).sum();
    if late > 0 {
        text.push_str(&format!(", {} late so far", count(late, "slot")));
    }
    Some(text)
}

fn training(spec: &JobSpec) -> Option<&TrainStage> {
    match &spec.work {
        JobWork::Train(train) | JobWork::Pipeline { train, .. } => Some(train),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, Name, RunNumber};
    use likeness_contract::jobs::{DatasetRef, DeviceClass, JobOptions, Priority};
    use likeness_contract::messages::{JobState, JobSummary, StageProgress};
    use likeness_contract::settings::{
        Architecture, ModelSettings, Optimizer, Preprocessing, QueryEncoding, RoundSettings, TrainSettings, Vocabulary,
    };

    use super::*;

    /// Three rounds of 4 slots; stages as (name, done, tasks).
    fn detail(optimizer: impl Fn(Optimizer) -> Optimizer, stages: &[(&str, u64, u64)]) -> JobDetail {
        let default = TrainSettings::default();
        let optimizer = optimizer(default.optimizer);
        let stage = TrainStage {
            dataset: DatasetRef { dataset: Name::new("faces").unwrap(), version: JobId::new("v").unwrap() },
            vocabulary: Vocabulary::default(),
            model: ModelSettings {
                architecture: Architecture::CnnS,
                embedding_dim: 8,
                encoding: QueryEncoding::ThreeState,
                preprocessing: Preprocessing::imagenet(64),
            },
            train: TrainSettings { epochs: 1, batch_size: 10, inner_steps: 1, optimizer, ..default },
            train_rows: 120,
            validation_rows: 0,
        };
        let (job, run) = (JobId::new("j").unwrap(), RunNumber(1));
        let (done, tasks, opened_ms, closed_ms) = (0, 0, 0, None);
        let (kind, state) = ("train".into(), JobState::Running);
        let stages =
            stages.iter().map(|(name, done, tasks)| StageProgress { name: (*name).into(), done: *done, tasks: *tasks });
        JobDetail {
            summary: JobSummary { job, kind, state, run, done, tasks, opened_ms, closed_ms },
            spec: JobSpec {
                work: JobWork::Train(stage),
                device: DeviceClass::Cpu,
                priority: Priority::Lo,
                options: JobOptions::default(),
            },
            stages: stages.collect(),
            active: Vec::new(),
            troubles: Vec::new(),
            device_ms: 0,
            result: None,
            gate: None,
        }
    }

    #[test]
    fn rounds_and_slots_are_told_of_trainings_that_have_several() {
        let four = |optimizer: Optimizer| Optimizer::Rounds(RoundSettings::averaging(4, optimizer.inner()));
        let stages = [
            ("init", 1, 1),
            ("round 0 (1 late)", 3, 3),
            ("round 0 outer", 1, 1),
            ("round 1", 2, 4),
            ("round 1 outer", 0, 1),
            ("round 2", 0, 4),
            ("round 2 outer", 0, 1),
            ("model", 0, 1),
        ];
        let words = in_words(&detail(four, &stages));
        assert_eq!(words.unwrap(), "1 of 3 rounds done, 2 of 4 slots of the next, 1 slot late so far");
        let words = in_words(&detail(four, &[("init", 0, 1), ("round 0", 0, 4), ("round 0 outer", 0, 1)]));
        assert_eq!(words.unwrap(), "0 of 3 rounds done");
        assert_eq!(in_words(&detail(|optimizer| optimizer, &stages)), None);
    }
}
