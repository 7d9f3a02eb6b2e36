//! Schedules: every time has one record and at most one job, whoever leads.

use std::collections::BTreeMap;

use likeness_contract::codec;
use likeness_contract::messages::ApiErrorKind;
use likeness_contract::schedules::{
    Became, CatchUp, Fired, Firing, Overlap, Schedule, ScheduleDetail, ScheduleRequest, ScheduleSettings,
    ScheduleState, ScheduleStatus, job_of, scheduled_ms_of,
};

use super::*;

const EVERY_SECOND: &str = "* * * * * *";
const DAY_MS: u64 = 24 * 3600 * 1000;

/// One part: three tasks.
fn small(dataset: &str) -> JobRequest {
    let source = IngestSource::Celeba { dir: "/data".into() };
    request(RequestedWork::Ingest { dataset: name(dataset), source, part_rows: 1000 })
}

fn training() -> JobRequest {
    let RequestedWork::Pipeline { train, .. } = pipeline(1).work else { panic!("a pipeline") };
    request(RequestedWork::Train(train))
}

fn set(cron: &str, overlap: Overlap, job: JobRequest) -> ScheduleSettings {
    let (zone, catch_up) = ("UTC".into(), CatchUp::Last);
    ScheduleSettings { cron: cron.into(), zone, overlap, catch_up, late_after_s: 300, only_if_changed: false, job }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

impl Cluster {
    async fn schedule(&self, text: &str, settings: ScheduleSettings) -> ScheduleStatus {
        let add = ScheduleRequest::Add { name: name(text), settings: Box::new(settings), replace: false };
        eventually("the schedule is added", || async {
            match self.client.change_schedule(add.clone()).await {
                Ok(status) => Some(status),
                Err(ClientError::Api(error)) if error.kind != ApiErrorKind::Unavailable => panic!("{error}"),
                Err(_) => None,
            }
        })
        .await
    }

    /// A schedule as if it had been there for so long.
    async fn schedule_since(&self, text: &str, since_ms: u64, settings: ScheduleSettings) {
        let (name, state) = (name(text), ScheduleState::Active);
        let schedule = Schedule { name, number: 1, changed_ms: now_ms() - since_ms, state, settings };
        self.store.create_document(&keys::schedule(&schedule.name, 1), &schedule).await.unwrap();
    }

    async fn detail(&self, text: &str) -> Option<ScheduleDetail> {
        self.client.schedule(&name(text), 500).await.ok()
    }

    /// Waits until what became of the schedule's times is as wanted; newest first.
    async fn history(&self, text: &str, what: &str, wanted: impl Fn(&[Fired]) -> bool) -> Vec<Fired> {
        let look = || async { self.detail(text).await.map(|detail| detail.firings).filter(|firings| wanted(firings)) };
        eventually(what, look).await
    }

    /// How many records a schedule has.
    async fn firings_of(&self, text: &str) -> usize {
        self.store.list(&keys::firings(&name(text))).await.unwrap().len()
    }

    /// All records of a schedule, by time.
    async fn firings(&self, text: &str) -> BTreeMap<u64, Firing> {
        let mut firings = BTreeMap::new();
        for key in self.store.list(&keys::firings(&name(text))).await.unwrap() {
            let firing: Firing = self.store.require(&key).await.unwrap();
            assert_eq!(keys::scheduled_ms_of(&key), Some(firing.scheduled_ms), "keyed by its time");
            assert!(firings.insert(firing.scheduled_ms, firing).is_none(), "one record each");
        }
        firings
    }
}

fn submitted(firings: &[Fired]) -> usize {
    firings.iter().filter(|fired| matches!(fired.firing.became, Became::Submitted { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_of_every_second_fires_each_time_once_while_leaders_come_and_go() {
    let cluster = Cluster::start().await;
    let mut leader = cluster.coordinator();
    let _worker = cluster.worker();
    let settings = ScheduleSettings { late_after_s: 60, ..set(EVERY_SECOND, Overlap::Queue, small("faces")) };
    let added = cluster.schedule("often", settings).await;
    for round in 1..=3 {
        let records = || async { Some(cluster.firings("often").await.len()).filter(|count| *count >= 3 * round) };
        eventually("it fires", records).await;
        // The next one stands by while the first is killed, wherever it is.
        let next = cluster.coordinator();
        drop(std::mem::replace(&mut leader, next));
    }
    let end = now_ms() / 1000 * 1000;
    let caught_up =
        || async { cluster.firings("often").await.keys().next_back().filter(|time| **time >= end).copied() };
    eventually("what was due meanwhile is decided", caught_up).await;
    let pause = || async { cluster.client.change_schedule(ScheduleRequest::Pause { name: name("often") }).await.ok() };
    eventually("it is paused", pause).await;
    let all_there = |firings: &[Fired]| {
        firings.iter().all(|fired| fired.job.as_ref().is_some() || submitted(std::slice::from_ref(fired)) == 0)
    };
    cluster.history("often", "every job is accepted", all_there).await;

    let firings = cluster.firings("often").await;
    let first = added.schedule.changed_ms / 1000 + 1;
    let last = firings.keys().next_back().unwrap() / 1000;
    let times: Vec<u64> = (first..=last).map(|second| second * 1000).collect();
    assert_eq!(firings.keys().copied().collect::<Vec<_>>(), times, "no time is left out");
    for (time, firing) in &firings {
        let job = job_of(&name("often"), *time);
        let runs = cluster.store.list(&keys::job_runs(&job)).await.unwrap().len();
        let says_so = matches!(&firing.became, Became::Submitted { job: said, .. } if *said == job);
        assert_eq!(runs, usize::from(says_so), "{firing:?}");
    }
    for folder in cluster.store.children(keys::JOBS).await.unwrap() {
        let time = scheduled_ms_of(&name("often"), &JobId::new(folder).unwrap()).expect("only its jobs are there");
        assert!(firings.contains_key(&time), "a job that no record tells of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn overlap_skips_queues_or_cancels_what_runs() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    // Nobody works: jobs go on for ever.
    cluster.schedule("skips", set(EVERY_SECOND, Overlap::Skip, small("a"))).await;
    cluster.schedule("waits", set(EVERY_SECOND, Overlap::Queue, small("b"))).await;
    cluster.schedule("cancels", set(EVERY_SECOND, Overlap::CancelOld, small("c"))).await;
    let skips = cluster.history("skips", "three times are decided", |firings| firings.len() >= 3).await;
    let first = &skips.last().unwrap().firing.became;
    let Became::Submitted { job: running, .. } = first else { panic!("the first one fires: {first:?}") };
    assert!(skips.iter().rev().skip(1).all(|f| f.firing.became == Became::Overlapped { running: running.clone() }));

    let cancels = cluster.history("cancels", "two jobs", |firings| {
        submitted(firings) >= 2 && firings.iter().all(|fired| fired.job.is_some())
    });
    let jobs: Vec<JobSummary> = cancels.await.into_iter().rev().filter_map(|fired| fired.job).collect();
    assert!(jobs[..jobs.len() - 1].iter().all(|job| job.state == JobState::Cancelled), "{jobs:?}");

    let waiting = || async { cluster.detail("waits").await.filter(|detail| detail.status.waiting_ms.len() >= 2) };
    let waits = eventually("times wait", waiting).await;
    assert_eq!(submitted(&waits.firings), 1);
    let _worker = cluster.worker();
    let done = |firings: &[Fired]| submitted(firings) >= 3;
    let later = cluster.history("waits", "those that waited fire", done).await;
    let times: Vec<u64> = later.iter().rev().map(|fired| fired.firing.scheduled_ms).collect();
    assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 1000), "in order, none left out: {times:?}");
    let opened: Vec<u64> = later.iter().rev().filter_map(|fired| fired.job.as_ref()).map(|job| job.opened_ms).collect();
    assert!(opened.is_sorted(), "{opened:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn missed_times_are_made_up_for_once_and_shown() {
    let cluster = Cluster::start().await;
    let _worker = cluster.worker();
    for (text, catch_up) in [("none", CatchUp::None), ("last", CatchUp::Last), ("some", CatchUp::All { limit: 2 })] {
        let settings = ScheduleSettings { catch_up, late_after_s: 1, ..set("0 3 * * *", Overlap::Skip, small(text)) };
        cluster.schedule_since(text, 3 * DAY_MS, settings).await;
    }
    let first = cluster.coordinator();
    let became = |firings: &[Fired]| firings.iter().map(|fired| fired.firing.became.name()).collect::<Vec<_>>();
    let (missed, job) = ("missed", "submitted");
    for (text, expected) in
        [("none", [missed, missed, missed]), ("last", [job, missed, missed]), ("some", [job, job, missed])]
    {
        let all = |firings: &[Fired]| firings.len() == 3;
        let firings = cluster.history(text, "three nights are decided", all).await;
        // At three o'clock itself a night may have begun since.
        assert_eq!(became(&firings), expected, "{text}");
    }
    let before = [cluster.firings("none").await, cluster.firings("last").await, cluster.firings("some").await];
    first.stop().await;
    let _second = cluster.coordinator();
    eventually("the next one leads", || async { cluster.client.schedules().await.ok() }).await;
    cluster.schedule("later", set(EVERY_SECOND, Overlap::Skip, small("later"))).await;
    cluster.history("later", "it keeps schedules", |firings| !firings.is_empty()).await;
    let after = [cluster.firings("none").await, cluster.firings("last").await, cluster.firings("some").await];
    assert_eq!(before, after, "nothing is decided again");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_only_if_changed_the_same_data_fires_once() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let settings = ScheduleSettings { only_if_changed: true, ..set(EVERY_SECOND, Overlap::Skip, training()) };
    cluster.schedule("trains", settings).await;
    let unchanged =
        |firings: &[Fired]| matches!(firings.first(), Some(newest) if newest.firing.became.name() == "unchanged");
    let firings = cluster.history("trains", "nothing new is left out", unchanged).await;
    assert_eq!(submitted(&firings), 1);
    let Became::Unchanged { since, datasets } = &firings[0].firing.became else { panic!("unchanged") };
    assert_eq!((scheduled_ms_of(&name("trains"), since).is_some(), datasets.len()), (true, 1));

    let more = IngestSource::Celeba { dir: "/more".into() };
    let more = request(RequestedWork::Ingest { dataset: name("faces"), source: more, part_rows: 1000 });
    let version = cluster.submit(more).await.job;
    assert_eq!(cluster.outcome(&version, 1).await, DONE);
    let again = |firings: &[Fired]| submitted(firings) == 2 && unchanged(firings);
    let firings = cluster.history("trains", "the new version fires, once", again).await;
    let Became::Unchanged { datasets, .. } = &firings[0].firing.became else { panic!("unchanged") };
    assert_eq!(datasets[0].version, version);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_accepted_is_told_and_the_next_time_comes() {
    let cluster = Cluster::start().await;
    // Its dataset is gone.
    cluster.schedule_since("lost", 1, set(EVERY_SECOND, Overlap::Skip, training())).await;
    let _coordinator = cluster.coordinator();
    let told = |firings: &[Fired]| firings.iter().filter(|fired| fired.unmet.is_some()).count() >= 2;
    let firings = cluster.history("lost", "two times can't be met", told).await;
    assert!(firings.iter().filter_map(|fired| fired.unmet.as_ref()).all(|error| error.contains("no dataset `faces`")));
    assert_eq!(cluster.client.list(10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_are_added_paused_replaced_and_removed_once() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let settings = set("0 0 1 1 *", Overlap::Skip, small("faces"));
    let added = cluster.schedule("yearly", settings.clone()).await;
    assert_eq!((added.next.len(), added.schedule.number, &added.last), (5, 1, &None));
    assert!(added.next[0].ends_with("-01-01T00:00:00+00:00[UTC]"), "{:?}", added.next);
    assert_eq!(cluster.schedule("yearly", settings.clone()).await.schedule.number, 1, "the same again");

    let change = |request| async { cluster.client.change_schedule(request).await };
    let refused = async |request, kind, word: &str| match change(request).await {
        Err(ClientError::Api(error)) => assert!(error.kind == kind && error.message.contains(word), "{error}"),
        other => panic!("not refused: {other:?}"),
    };
    let add = |settings: &ScheduleSettings, replace| ScheduleRequest::Add {
        name: name("yearly"),
        settings: Box::new(settings.clone()),
        replace,
    };
    let monthly = ScheduleSettings { cron: "@monthly".into(), ..settings.clone() };
    refused(add(&monthly, false), ApiErrorKind::Conflict, "`--replace`").await;
    assert_eq!(change(add(&monthly, true)).await.unwrap().schedule.number, 2);
    let wrong = |change: fn(&mut ScheduleSettings)| {
        let mut wrong = settings.clone();
        change(&mut wrong);
        add(&wrong, true)
    };
    refused(wrong(|s| s.zone = "Europe/Berln".into()), ApiErrorKind::Invalid, "`Europe/Berlin`").await;
    refused(wrong(|s| s.job = training()), ApiErrorKind::NotFound, "no dataset `faces`").await;
    refused(wrong(|s| s.job.id = Some(JobId::new("x").unwrap())), ApiErrorKind::Invalid, "leave out").await;
    refused(ScheduleRequest::Pause { name: name("yearl") }, ApiErrorKind::NotFound, "did you mean `yearly`?").await;

    let paused = change(ScheduleRequest::Pause { name: name("yearly") }).await.unwrap();
    assert_eq!((paused.schedule.state, paused.next.len()), (ScheduleState::Paused, 0));
    assert_eq!(change(ScheduleRequest::Pause { name: name("yearly") }).await.unwrap().schedule.number, 3);
    assert_eq!(change(ScheduleRequest::Resume { name: name("yearly") }).await.unwrap().schedule.number, 4);
    change(ScheduleRequest::Remove { name: name("yearly") }).await.unwrap();
    assert_eq!(cluster.client.schedules().await.unwrap(), []);
    refused(ScheduleRequest::Resume { name: name("yearly") }, ApiErrorKind::Conflict, "add it again").await;
    let detail = cluster.client.schedule(&name("yearly"), 5).await.unwrap();
    assert_eq!((detail.status.schedule.state, detail.status.schedule.number), (ScheduleState::Removed, 5));
    assert_eq!(cluster.schedule("yearly", settings).await.schedule.number, 6);
    let changes = cluster.store.list(&keys::schedule_changes(&name("yearly"))).await.unwrap();
    assert_eq!(changes.len(), 6, "every change is kept");
    let first: Schedule = codec::decode_document(&cluster.store.get(&changes[0]).await.unwrap().unwrap()).unwrap();
    assert_eq!(first.settings.cron, "0 0 1 1 *");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_holds_up_its_own_schedule_alone() {
    let cluster = Cluster::start().await;
    cluster.schedule_since("damaged", 10_000, set(EVERY_SECOND, Overlap::Skip, small("a"))).await;
    let key = keys::firing(&name("damaged"), now_ms() - 2000);
    cluster.store.create(&key, "{".into()).await.unwrap();
    let _coordinator = cluster.coordinator();
    cluster.schedule("sound", set(EVERY_SECOND, Overlap::Skip, small("b"))).await;
    cluster.history("sound", "the other one fires", |firings| firings.len() >= 2).await;
    let listed = cluster.client.schedules().await.unwrap();
    let [damaged, sound] = &listed[..] else { panic!("both: {listed:?}") };
    assert!(damaged.next[0].starts_with("never: ") && damaged.next[0].contains(&key), "{:?}", damaged.next);
    assert_eq!((sound.next.len(), cluster.firings_of("damaged").await), (5, 1));
}
