//! What jobs use on devices, and are expected to.

use likeness_contract::usage::{Estimate, JobUsage};

use super::*;

/// Time on the device of every task of a worker that computes nothing.
const TASK_MS: u64 = 5;

async fn used(cluster: &Cluster, job: &JobId, in_full: bool) -> JobUsage {
    let mut used = cluster.client.usage(vec![job.clone()], in_full).await.unwrap();
    assert_eq!(used.len(), 1);
    used.remove(0)
}

/// What a job used is there for estimates.
async fn written_down(cluster: &Cluster, job: &JobId) {
    let key = keys::job_usage(job, RunNumber(1));
    eventually("what it used is written down", || async { cluster.store.get(&key).await.unwrap() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_used_is_told_by_every_leader() {
    let cluster = Cluster::start().await;
    let first = cluster.coordinator();
    // Without events nobody but the records knows.
    let _worker = cluster.worker_that(|_| Conduct::Mute);
    let job = cluster.submit(ingest("faces")).await.job;
    assert_eq!(cluster.outcome(&job, 1).await, DONE);
    cluster.state(&job, JobState::Done).await;
    let full = used(&cluster, &job, true).await;
    let phases: Vec<(&str, u64, u64, u64)> =
        full.phases.iter().map(|p| (p.name.as_str(), p.tasks, p.units, p.device_ms)).collect();
    assert_eq!(phases, [("ingest", 27, 25, 27 * TASK_MS)]);
    assert_eq!(full.device_ms, Some(27 * TASK_MS));
    first.stop().await;
    let _second = cluster.coordinator();
    cluster.state(&job, JobState::Done).await;
    assert_eq!(used(&cluster, &job, true).await, full);
    let line = used(&cluster, &job, false).await;
    assert_eq!((line.device_ms, line.phases.len(), line.estimate), (full.device_ms, 0, None));
    let unknown = cluster.client.usage(vec![JobId::new("nobody").unwrap()], true).await.unwrap();
    assert!(unknown.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_stores_nothing_and_the_estimate_of_an_accepted_job_stays() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    let dataset = cluster.dataset().await;
    written_down(&cluster, &dataset).await;
    let before = cluster.store.list(keys::JOBS).await.unwrap();
    let plan = cluster.client.plan(pipeline(1)).await.unwrap();
    assert_eq!(cluster.store.list(keys::JOBS).await.unwrap(), before);
    assert_eq!(plan.device_ms(), None, "there was no pipeline before");
    let names: Vec<&str> = plan.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["train", "embed", "evaluate"]);
    let job = cluster.submit(pipeline(1)).await.job;
    assert_eq!(job, plan.job);
    let kept: Estimate = cluster.store.require(&keys::job_estimate(&job)).await.unwrap();
    assert_eq!(kept, plan);
    cluster.outcome(&job, 1).await;
    cluster.state(&job, JobState::Done).await;
    written_down(&cluster, &job).await;
    // Another pipeline of the same shape: the first one tells how long that takes, and its own estimate stays.
    let next = cluster.client.plan(pipeline(2)).await.unwrap();
    assert_eq!(next.phases[0].basis.unwrap().jobs, 1);
    assert!(next.phases[0].device_ms.is_some() && next.phases[1].device_ms.is_some(), "{next:?}");
    assert_eq!(used(&cluster, &job, true).await.estimate, Some(kept));
    cluster.submit(pipeline(1)).await;
    let again: Estimate = cluster.store.require(&keys::job_estimate(&job)).await.unwrap();
    assert_eq!(again.device_ms(), None, "asked again after it ended, it is not estimated again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_in_a_plan_is_answered_as_in_a_job() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let mut request = pipeline(1);
    if let RequestedWork::Pipeline { train, .. } = &mut request.work {
        train.dataset.dataset = name("face");
    }
    match cluster.client.plan(request).await {
        Err(ClientError::Api(error)) => {
            assert_eq!((error.kind, error.nearest), (ApiErrorKind::NotFound, vec!["faces".into()]))
        }
        other => panic!("not refused: {other:?}"),
    }
}
