use likeness_contract::ids::Name;
use likeness_contract::jobs::{DatasetSelector, DeviceClass, JobOptions, JobRequest, Priority, RequestedWork};
use likeness_contract::jobs::{EmbedRequest, EvaluateStage, TrainRequest};
use likeness_contract::schedules::ScheduleSettings;
use likeness_contract::settings::{EvaluateSettings, Split, TrainSettings};

use super::*;
use crate::core::testing::{dataset_ref, job_id, model_settings, name};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// 2026-11-28 00:00 UTC.
const MIDNIGHT: u64 = 1_795_824_000_000;

pub(super) fn request() -> JobRequest {
    let dataset = DatasetSelector { dataset: name("faces"), version: None };
    let work = RequestedWork::Pipeline {
        train: TrainRequest { dataset: dataset.clone(), model: model_settings(), train: TrainSettings::default() },
        embed: EmbedRequest { gallery: name("all"), dataset, rows: Split::All, shard_rows: 64 },
        evaluate: EvaluateStage { rows: Split::Test, settings: EvaluateSettings::default() },
        alias: name("main"),
    };
    JobRequest { id: None, work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
}

/// Fires at three, of whatever day.
pub(super) fn nightly(overlap: Overlap, catch_up: CatchUp) -> Schedule {
    let settings = ScheduleSettings {
        cron: "0 3 * * *".into(),
        zone: "UTC".into(),
        overlap,
        catch_up,
        late_after_s: 300,
        only_if_changed: false,
        job: request(),
    };
    Schedule { name: name("nightly"), number: 1, changed_ms: MIDNIGHT, state: ScheduleState::Active, settings }
}

fn keeper(schedule: Schedule) -> Keeper {
    Keeper::new(schedule, None, false).unwrap()
}

/// Three o'clock, `day` days after the schedule was made.
fn three(day: u64) -> u64 {
    MIDNIGHT + day * DAY + 3 * HOUR
}

fn fired(day: u64, closed_ms: Option<u64>) -> FiredJob {
    let job = job_of(&name("nightly"), three(day));
    let datasets = vec![dataset_ref(), dataset_ref()];
    FiredJob { job, scheduled_ms: three(day), closed_ms, succeeded: closed_ms.is_some(), datasets }
}

fn submitted(day: u64, cancels: &[u64]) -> Became {
    let of = |day: u64| job_of(&name("nightly"), three(day));
    Became::Submitted { job: of(day), cancels: cancels.iter().map(|day| of(*day)).collect() }
}

/// What is recorded, as `(day, became)`; the store is empty.
fn recorded(keeper: &mut Keeper, now_ms: u64, jobs: &[FiredJob]) -> Vec<(u64, Became)> {
    let Step::Record(firings) = keeper.step(now_ms, jobs, None) else { return Vec::new() };
    assert!(firings.iter().all(|f| keeper.on_recorded(f.clone()) || matches!(f.became, Became::Submitted { .. })));
    firings.into_iter().map(|firing| ((firing.scheduled_ms - MIDNIGHT) / DAY, firing.became)).collect()
}

fn missed(day: u64) -> (u64, Became) {
    (day, Became::Missed { how: Missed::Late, all_since_ms: None })
}

#[test]
fn a_firing_is_recorded_then_carried_out_then_waits_for_the_next() {
    let mut keeper = keeper(nightly(Overlap::Skip, CatchUp::Last));
    assert_eq!(keeper.step(MIDNIGHT, &[], None), Step::Wait(Some(three(0))));
    assert_eq!(keeper.step(three(0) - 1, &[], None), Step::Wait(Some(three(0))));
    assert_eq!(recorded(&mut keeper, three(0) + 20, &[]), [(0, submitted(0, &[]))]);
    let Step::CarryOut(firing) = keeper.step(three(0) + 30, &[], None) else { panic!("carried out") };
    assert_eq!(firing.became, submitted(0, &[]));
    // Until the job is accepted, by whomever, it is asked for again.
    assert!(matches!(keeper.step(three(0) + 40, &[], None), Step::CarryOut(_)));
    assert_eq!(keeper.step(three(0) + 50, &[fired(0, None)], None), Step::Wait(Some(three(1))));
}

#[test]
fn what_somebody_else_recorded_counts() {
    let mut keeper = keeper(nightly(Overlap::Skip, CatchUp::Last));
    let Step::Record(proposed) = keeper.step(three(0), &[], None) else { panic!("recorded") };
    let running = job_id("nightly-old");
    keeper.on_recorded(Firing { became: Became::Overlapped { running }, ..proposed[0].clone() });
    assert_eq!(keeper.step(three(0), &[], None), Step::Wait(Some(three(1))));
}

#[test]
fn a_new_leader_goes_on_after_the_newest_record() {
    let mut first = keeper(nightly(Overlap::Skip, CatchUp::Last));
    let Step::Record(firings) = first.step(three(0), &[], None) else { panic!("recorded") };
    let again =
        |unfinished| Keeper::new(nightly(Overlap::Skip, CatchUp::Last), Some(firings[0].clone()), unfinished).unwrap();
    assert!(matches!(again(true).step(three(0) + 9, &[], None), Step::CarryOut(_)), "its job may not be accepted");
    assert_eq!(again(false).step(three(0) + 9, &[], None), Step::Wait(Some(three(1))), "its job can't be");
    assert_eq!(again(true).step(three(0) + 9, &[fired(0, None)], None), Step::Wait(Some(three(1))));
}

#[test]
fn a_clock_that_is_set_back_fires_nothing_twice() {
    let mut keeper = keeper(nightly(Overlap::Skip, CatchUp::Last));
    recorded(&mut keeper, three(0), &[]);
    keeper.on_carried_out();
    for now in [three(0) - HOUR, three(0), three(0) + HOUR] {
        assert_eq!(keeper.step(now, &[fired(0, Some(three(0)))], None), Step::Wait(Some(three(1))), "{now}");
    }
}

#[test]
fn three_days_down_are_made_up_for_as_the_policy_says() {
    let (up, on_time) = (three(3) - HOUR, three(3) + 1);
    let after = |catch_up, now| recorded(&mut keeper(nightly(Overlap::Skip, catch_up)), now, &[]);
    assert_eq!(after(CatchUp::None, up), [missed(0), missed(1), missed(2)]);
    assert_eq!(after(CatchUp::None, on_time), [missed(0), missed(1), missed(2)]);
    assert_eq!(after(CatchUp::Last, up), [missed(0), missed(1)]);
    // The one that is due now makes up for all of them.
    assert_eq!(after(CatchUp::Last, on_time), [missed(0), missed(1), missed(2)]);
    assert_eq!(after(CatchUp::All { limit: 2 }, up), [missed(0)]);
    assert_eq!(after(CatchUp::All { limit: 9 }, up), [(0, submitted(0, &[]))]);

    let mut last = keeper(nightly(Overlap::Skip, CatchUp::Last));
    recorded(&mut last, up, &[]);
    assert_eq!(recorded(&mut last, up, &[]), [(2, submitted(2, &[]))]);
    let mut none = keeper(nightly(Overlap::Skip, CatchUp::None));
    recorded(&mut none, up, &[]);
    assert_eq!(none.step(up, &[], None), Step::Wait(Some(three(3))));
}

#[test]
fn what_is_made_up_for_comes_one_after_another_whatever_overlap_says() {
    for overlap in [Overlap::Skip, Overlap::Queue, Overlap::CancelOld] {
        let mut keeper = keeper(nightly(overlap, CatchUp::All { limit: 2 }));
        let up = three(3) - HOUR;
        assert_eq!(recorded(&mut keeper, up, &[]), [missed(0)]);
        assert_eq!(recorded(&mut keeper, up, &[]), [(1, submitted(1, &[]))]);
        assert_eq!(keeper.step(up, &[fired(1, None)], None), Step::WaitForJob, "{overlap:?}");
        assert_eq!(recorded(&mut keeper, up + 9, &[fired(1, Some(up))]), [(2, submitted(2, &[]))]);
    }
}

#[test]
fn overlap_says_what_happens_while_the_job_before_runs() {
    let second = |overlap| recorded(&mut keeper(nightly(overlap, CatchUp::Last)), three(1), &[fired(0, None)]);
    // The first day was missed here; what matters is the second.
    let decided = |overlap| {
        let mut keeper = Keeper::new(nightly(overlap, CatchUp::Last), None, false).unwrap();
        keeper.decided_ms = three(0);
        (recorded(&mut keeper, three(1), &[fired(0, None)]), keeper)
    };
    let running = fired(0, None).job;
    assert_eq!(decided(Overlap::Skip).0, [(1, Became::Overlapped { running })]);
    assert_eq!(decided(Overlap::CancelOld).0, [(1, submitted(1, &[0]))]);
    let (waits, mut queue) = decided(Overlap::Queue);
    assert_eq!(waits, []);
    assert_eq!(queue.waiting(three(1)), [three(1)]);
    // It waited, so it is not late; nor is what comes meanwhile.
    let end = three(2) + HOUR;
    assert_eq!(queue.step(end, &[fired(0, None)], None), Step::WaitForJob);
    assert_eq!(recorded(&mut queue, end + 1, &[fired(0, Some(end))]), [(1, submitted(1, &[]))]);
    let jobs = [fired(0, Some(end)), fired(1, Some(end + HOUR))];
    assert_eq!(recorded(&mut queue, end + HOUR + 1, &jobs), [(2, submitted(2, &[]))]);
    assert_eq!(second(Overlap::Skip).len(), 1, "a missed time is recorded beside a running job");
}

#[test]
fn only_a_changed_dataset_fires_if_so_asked() {
    let v2 = DatasetRef { version: job_id("ingest-2"), ..dataset_ref() };
    let (same, newer) = (vec![dataset_ref(), dataset_ref()], vec![v2.clone(), v2]);
    let decide = |overlap, jobs: &[FiredJob], newest: Option<&[DatasetRef]>| {
        let mut schedule = nightly(overlap, CatchUp::Last);
        schedule.settings.only_if_changed = true;
        let mut keeper = keeper(schedule);
        keeper.decided_ms = three(1);
        match keeper.step(three(2), jobs, newest) {
            Step::Record(mut firings) => Some(firings.remove(0).became),
            _ => None,
        }
    };
    let done = fired(0, Some(three(0) + 5));
    let failed = FiredJob { succeeded: false, ..fired(1, Some(three(1) + 5)) };
    let unchanged = |job: &FiredJob| Some(Became::Unchanged { datasets: same.clone(), since: job.job.clone() });
    assert_eq!(decide(Overlap::Skip, std::slice::from_ref(&done), Some(&same)), unchanged(&done));
    assert_eq!(decide(Overlap::Skip, &[], Some(&same)), Some(submitted(2, &[])), "the first one");
    assert_eq!(decide(Overlap::Skip, std::slice::from_ref(&failed), Some(&same)), Some(submitted(2, &[])), "it failed");
    assert_eq!(decide(Overlap::Skip, &[done.clone(), failed], Some(&newer)), Some(submitted(2, &[])));
    assert_eq!(
        decide(Overlap::Skip, std::slice::from_ref(&done), None),
        Some(submitted(2, &[])),
        "a name is wrong: say so"
    );
    // What runs with the same data is not cancelled for the same data.
    let running = fired(1, None);
    assert_eq!(decide(Overlap::CancelOld, std::slice::from_ref(&running), Some(&same)), unchanged(&running));
    assert_eq!(decide(Overlap::CancelOld, std::slice::from_ref(&running), Some(&newer)), Some(submitted(2, &[1])));
    assert_eq!(decide(Overlap::Queue, std::slice::from_ref(&running), Some(&same)), None);
    // The newest success counts, not one before.
    let later = FiredJob { datasets: newer.clone(), ..fired(1, Some(three(1) + 5)) };
    assert_eq!(decide(Overlap::Skip, &[done, later], Some(&same)), Some(submitted(2, &[])));
}

#[test]
fn too_many_missed_times_are_one_record_and_the_newest_ones() {
    let mut schedule = nightly(Overlap::Skip, CatchUp::None);
    schedule.settings.cron = "* * * * * *".into();
    let mut keeper = keeper(schedule.clone());
    let now = MIDNIGHT + 3 * DAY;
    let Step::Record(firings) = keeper.step(now, &[], None) else { panic!("recorded") };
    // The last five minutes are on time.
    assert_eq!(firings.len(), MOST_RECORDED - 301);
    let all_since = |firing: &Firing| match firing.became {
        Became::Missed { all_since_ms, .. } => all_since_ms,
        _ => panic!("missed"),
    };
    assert_eq!(all_since(&firings[0]), Some(MIDNIGHT));
    assert!(firings[1..].iter().all(|firing| all_since(firing).is_none()));
    assert!(firings.into_iter().all(|firing| keeper.on_recorded(firing)));
    let Step::Record(next) = keeper.step(now, &[], None) else { panic!("recorded") };
    assert_eq!((next.len(), next[0].scheduled_ms), (1, now - 300_000));
}

#[test]
fn what_is_paused_or_removed_does_nothing_and_what_waited_is_told() {
    let mut schedule = nightly(Overlap::Queue, CatchUp::Last);
    let mut active = keeper(schedule.clone());
    active.decided_ms = three(0);
    let given_up = active.given_up(three(1));
    assert_eq!(given_up.len(), 1);
    assert_eq!(given_up[0].became, Became::Missed { how: Missed::Changed, all_since_ms: None });
    for state in [ScheduleState::Paused, ScheduleState::Removed] {
        schedule.state = state;
        let mut keeper = keeper(schedule.clone());
        assert_eq!(keeper.step(three(1), &[], None), Step::Wait(None));
        assert_eq!((keeper.given_up(three(1)), keeper.waiting(three(1))), (vec![], vec![]));
    }
    // After a pause only later times fire.
    schedule.changed_ms = three(4) + 1;
    schedule.state = ScheduleState::Active;
    assert_eq!(keeper(schedule).step(three(4) + 2, &[], None), Step::Wait(Some(three(5))));
}

#[test]
fn mistakes_are_told_when_a_schedule_is_added() {
    let good = nightly(Overlap::Skip, CatchUp::Last).settings;
    let wrong = |change: &dyn Fn(&mut ScheduleSettings)| {
        let mut settings = good.clone();
        change(&mut settings);
        settings::check(&name("nightly"), &settings, MIDNIGHT).unwrap_err()
    };
    assert!(settings::check(&name("nightly"), &good, MIDNIGHT).is_ok());
    assert!(wrong(&|s| s.cron = "0 0 31 4 *".into()).contains("never fires"));
    assert!(wrong(&|s| s.late_after_s = 0).contains("`late_after_s`"));
    assert!(wrong(&|s| s.catch_up = CatchUp::All { limit: 0 }).contains("catching up"));
    assert!(wrong(&|s| s.job.id = Some(job_id("mine"))).contains("leave out `mine`"));
    let long = Name::new("n".repeat(65)).unwrap();
    assert!(settings::check(&long, &good, MIDNIGHT).unwrap_err().contains("at most 64"));
    let pinned = |settings: &mut ScheduleSettings| {
        settings.only_if_changed = true;
        let RequestedWork::Pipeline { train, embed, .. } = &mut settings.job.work else { panic!("a pipeline") };
        for dataset in [&mut train.dataset, &mut embed.dataset] {
            dataset.version = Some(job_id("ingest-1"));
        }
    };
    assert!(wrong(&pinned).contains("never changes"));
    let import = |settings: &mut ScheduleSettings| {
        settings.only_if_changed = true;
        let source = likeness_contract::jobs::IngestSource::Celeba { dir: "/d".into() };
        settings.job.work = RequestedWork::Ingest { dataset: name("faces"), source, part_rows: 10 };
    };
    assert!(wrong(&import).contains("reads a dataset"));
}
