//! What a schedule may say: every mistake is told when it is added, not when it should fire.

use likeness_contract::ids::Name;
use likeness_contract::jobs::{JobRequest, RequestedWork};
use likeness_contract::schedules::{CatchUp, MAX_NAME, ScheduleSettings};

use super::MOST_RECORDED;
use super::timetable::Timetable;
use crate::core::resolve;

/// Longest time after which a firing counts as missed: a week.
const MAX_LATE_AFTER_S: u32 = 7 * 24 * 3600;

/// The timetable of settings that can be met; that the job can be is for `resolve` to say.
pub fn check(name: &Name, settings: &ScheduleSettings, now_ms: u64) -> Result<Timetable, String> {
    let ScheduleSettings { cron, zone, overlap: _, catch_up, late_after_s, only_if_changed, job } = settings;
    if name.as_str().len() > MAX_NAME {
        return Err(format!("the name of a schedule begins the ids of its jobs: at most {MAX_NAME} letters"));
    }
    let timetable = Timetable::parse(cron, zone)?;
    if timetable.next_after(now_ms).is_none() {
        return Err(format!("`{cron}` never fires: there is no such day"));
    }
    if !(1..=MAX_LATE_AFTER_S).contains(late_after_s) {
        return Err(format!("`late_after_s` is {late_after_s}, expected 1–{MAX_LATE_AFTER_S}"));
    }
    if let CatchUp::All { limit } = catch_up
        && !(1..=MOST_RECORDED).contains(&(*limit as usize))
    {
        return Err(format!("the limit of catching up is {limit}, expected 1–{MOST_RECORDED}"));
    }
    check_job(job)?;
    if *only_if_changed { can_change(job).map(|()| timetable) } else { Ok(timetable) }
}

fn check_job(job: &JobRequest) -> Result<(), String> {
    match &job.id {
        None => Ok(()),
        Some(id) => Err(format!("every firing is a job of its own, with an id that tells its time: leave out `{id}`")),
    }
}

/// Whether it names a dataset whose newest version it takes.
fn can_change(job: &JobRequest) -> Result<(), String> {
    let reads = match &job.work {
        RequestedWork::Train(_)
        | RequestedWork::Embed { .. }
        | RequestedWork::EmbedAnew { .. }
        | RequestedWork::Pipeline { .. } => resolve::named_datasets(&job.work),
        RequestedWork::Ingest { .. }
        | RequestedWork::Evaluate { .. }
        | RequestedWork::Search(_)
        | RequestedWork::Import(_) => {
            return Err("only a job that reads a dataset can wait for a change of it".into());
        }
    };
    let newest = reads.iter().any(|dataset| dataset.version.is_none());
    newest.then_some(()).ok_or_else(|| "the job names a version of its dataset, which never changes".into())
}
