//! Schedules with real processes: whoever is killed when, every time has one record and at most one job.

use std::collections::BTreeMap;

use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_contract::messages::JobState;
use likeness_contract::schedules::{Became, Firing, job_of, scheduled_ms_of};
use likeness_link::Client;
use likeness_tests::{Cluster, faces, jobs, until};
use serde_json::Value;

/// Times that are decided before the next leader is killed.
const AT_LEAST: usize = 3;

/// All records of the schedule, by time.
async fn firings(client: &Client) -> BTreeMap<u64, Firing> {
    let mut firings = BTreeMap::new();
    for key in client.store().list(&keys::firings(&jobs::name("often"))).await.expect("the store answers") {
        let firing: Firing = client.store().require(&key).await.expect("a record");
        assert_eq!(keys::scheduled_ms_of(&key), Some(firing.scheduled_ms));
        firings.insert(firing.scheduled_ms, firing);
    }
    firings
}

async fn more(client: &Client) {
    let before = firings(client).await.len();
    let enough = async || (firings(client).await.len() >= before + AT_LEAST).then_some(());
    until("the schedule fires", enough).await;
}

#[tokio::test]
async fn a_schedule_of_every_second_fires_each_time_once_while_leaders_are_killed() {
    let cluster = Cluster::start().await;
    let first = cluster.coordinator("first");
    let client = cluster.client().await;
    let photos = faces::write(cluster.dir(), 20);
    let photos = photos.to_str().expect("a plain path");
    // Nobody works, so the job of every time is there until the next one cancels it.
    let every_second = ["schedule", "add", "often", "--cron", "* * * * * *", "--overlap", "cancel-old"];
    let job = ["--", "ingest", "celeba", photos, "--dataset", "faces"];
    let added = cluster.cli(&[&every_second[..], &job[..]].concat()).await;
    assert_eq!(added.code, 0, "{}", added.err);
    assert_eq!(added.out.lines().filter(|line| line.ends_with("+00:00[UTC]")).count(), 5, "{}", added.out);

    more(&client).await;
    let second = cluster.coordinator("second");
    first.kill();
    more(&client).await;
    second.kill();
    let third = cluster.coordinator("third");
    more(&client).await;
    // Frozen past its lease, it wakes up as a second leader.
    third.freeze();
    let _fourth = cluster.coordinator("fourth");
    more(&client).await;
    third.thaw();
    more(&client).await;
    let pause = async || (cluster.cli(&["schedule", "pause", "often"]).await.code == 0).then_some(());
    until("it is paused", pause).await;
    let settled = async || {
        let shown = cluster.cli(&["schedule", "show", "often", "--limit", "500", "--json"]).await;
        let shown: Value = serde_json::from_str(&shown.out).ok()?;
        let all = shown["firings"].as_array()?.clone();
        let has_job = |fired: &Value| fired["firing"]["became"]["submitted"].is_null() || fired["job"].is_object();
        all.iter().all(has_job).then_some(all)
    };
    let shown = until("every job is accepted", settled).await;

    let firings = firings(&client).await;
    assert_eq!(shown.len(), firings.len());
    let times: Vec<u64> = firings.keys().copied().collect();
    assert!(times.windows(2).all(|pair| pair[1] == pair[0] + 1000), "no time is left out: {times:?}");
    let name = jobs::name("often");
    for (time, firing) in &firings {
        let runs = client.store().list(&keys::job_runs(&job_of(&name, *time))).await.expect("the store answers");
        assert_eq!(runs.len(), usize::from(matches!(firing.became, Became::Submitted { .. })), "{firing:?}");
    }
    for folder in client.store().children(keys::JOBS).await.expect("the store answers") {
        let time = scheduled_ms_of(&name, &JobId::new(folder).expect("an id")).expect("a job of the schedule");
        assert!(firings.contains_key(&time), "a job that no record tells of");
    }
    let running = async || {
        let jobs = client.list(1000).await.ok()?;
        let running: Vec<JobId> =
            jobs.into_iter().filter(|job| job.state == JobState::Running).map(|job| job.job).collect();
        (running.len() <= 1).then_some(running)
    };
    until("all but the newest job are cancelled", running).await;
    let status = cluster.cli(&["status"]).await;
    assert!(status.out.contains("1 schedule (1 paused)"), "{}", status.out);
    let removed = cluster.cli(&["schedule", "remove", "often"]).await;
    assert_eq!(removed.code, 0, "{}", removed.err);
    let wrong = cluster.cli(&["schedule", "resume", "oftn"]).await;
    assert!(wrong.code == 64 && wrong.err.contains("did you mean `often`?"), "{}", wrong.err);
}
