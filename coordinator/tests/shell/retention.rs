//! Old things go while jobs and promotions begin.

use likeness::core::retention::{Policy, Unit};
use likeness::shell::retention::{Fate, apply, look};
use likeness_contract::retention::{Condemned, Hold};

use super::*;

/// As old as can be is not needed; at least what serves is kept.
const ALL: Policy = Policy { keep: 1, older_than_ms: 0 };

fn train(seed: u64) -> JobRequest {
    let RequestedWork::Pipeline { train, .. } = pipeline(seed).work else { panic!("a pipeline") };
    request(RequestedWork::Train(train))
}

fn embed(model: &JobId) -> JobRequest {
    let RequestedWork::Pipeline { embed, .. } = pipeline(1).work else { panic!("a pipeline") };
    request(RequestedWork::Embed { model: model.clone(), embed })
}

async fn done(cluster: &Cluster, request: JobRequest) -> JobId {
    let job = cluster.submit(request).await.job;
    assert!(matches!(cluster.outcome(&job, 1).await, RunResult::Done { .. }));
    job
}

async fn going(cluster: &Cluster) -> Vec<Unit> {
    let judged = look(&cluster.store, ALL).await.unwrap();
    judged.into_iter().filter(|judged| judged.held.is_none()).map(|judged| judged.unit).collect()
}

fn places(units: &[Unit]) -> Vec<&str> {
    units.iter().map(|unit| unit.place.as_str()).collect()
}

async fn mark(cluster: &Cluster, place: &str) {
    let mark = Condemned { place: place.into(), by: "somebody".into(), at_ms: now_ms() };
    cluster.store.create_document(&keys::condemned(place), &mark).await.unwrap();
}

fn now_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer {
        Err(ClientError::Api(error)) if error.kind == ApiErrorKind::Conflict => error.message,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_holds_is_deleted_and_all_else_stays() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    let (older, newest) = (cluster.dataset().await, done(&cluster, JobRequest { id: None, ..ingest_again() }).await);
    let serving = done(&cluster, pipeline(1)).await;
    let model = done(&cluster, train(2)).await;
    let checkpoint = format!("models/{model}/rounds/00000-aa.safetensors");
    cluster.store.create(&checkpoint, "weights".into()).await.unwrap();

    let found = going(&cluster).await;
    assert_eq!(places(&found), [format!("datasets/faces/{older}"), format!("models/{model}")]);
    assert!(found[1].bytes > 7 && found[1].objects == 2, "{:?}", found[1]);
    assert!(cluster.store.get(&checkpoint).await.unwrap().is_some(), "looking deletes nothing");
    let fates = apply(&cluster.store, found, ALL).await.unwrap();
    assert!(fates.iter().all(|(_, fate)| *fate == Fate::Deleted), "{fates:?}");

    for gone in [checkpoint, keys::model_manifest(&model), keys::dataset_manifest(&name("faces"), &older)] {
        assert_eq!(cluster.store.get(&gone).await.unwrap(), None, "{gone}");
    }
    let generation = keys::generation_manifest(&name("all"), &serving);
    let kept = [keys::model_manifest(&serving), generation, keys::dataset_manifest(&name("faces"), &newest)];
    for kept in kept.into_iter().chain([keys::job_spec(&model), keys::release(&name("live"), 1)]) {
        assert!(cluster.store.get(&kept).await.unwrap().is_some(), "{kept}");
    }
    assert!(cluster.store.list(keys::CONDEMNED).await.unwrap().is_empty(), "no mark is left behind");
    assert_eq!(going(&cluster).await, []);
    let again = refusal(cluster.client.submit(train(2)).await);
    assert!(again.contains("what it made was deleted") && again.contains("--id"), "{again}");
}

/// Another version of the dataset.
fn ingest_again() -> JobRequest {
    let source = IngestSource::Celeba { dir: "/data/more".into() };
    request(RequestedWork::Ingest { dataset: name("faces"), source, part_rows: 1 })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_that_began_after_the_look_keeps_what_it_names() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let worker = cluster.worker();
    cluster.dataset().await;
    let model = done(&cluster, train(1)).await;
    drop(worker);
    let found = going(&cluster).await;
    assert_eq!(places(&found), [format!("models/{model}")]);
    let running = cluster.submit(embed(&model)).await.job;
    let fates = apply(&cluster.store, found, ALL).await.unwrap();
    assert_eq!(fates[0].1, Fate::Kept(format!("job `{running}` is running")));
    assert!(cluster.store.get(&keys::model_manifest(&model)).await.unwrap().is_some());
    assert!(cluster.store.list(keys::CONDEMNED).await.unwrap().is_empty(), "the mark is taken away again");
    cluster.client.cancel(&running).await.unwrap();
    assert_eq!(going(&cluster).await, [], "a cancelled job may be retried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_needs_what_is_being_deleted_does_not_begin() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let worker = cluster.worker();
    cluster.dataset().await;
    let model = done(&cluster, train(1)).await;
    drop(worker);
    let place = format!("models/{model}");
    mark(&cluster, &place).await;
    let why = refusal(cluster.client.submit(embed(&model)).await);
    assert!(why.contains(&place), "{why}");
    let listed = cluster.client.list(1).await.unwrap();
    assert_eq!((listed[0].kind.as_str(), listed[0].state), ("embed", JobState::Cancelled));
    let why = refusal(cluster.client.retry(&listed[0].job).await);
    assert!(why.contains(&place), "{why}");
    // Somebody else is at it: this run leaves it to them.
    let unit = look(&cluster.store, ALL).await.unwrap().remove(0).unit;
    let fates = apply(&cluster.store, vec![Unit { place: place.clone(), ..unit }], ALL).await.unwrap();
    assert!(matches!(&fates[0].1, Fate::Kept(why) if why.contains("somebody else")), "{fates:?}");
    cluster.store.delete(&keys::condemned(&place)).await.unwrap();
    let again = cluster.client.retry(&listed[0].job).await.unwrap();
    assert_eq!(again.state, JobState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_by_hand_holds_what_it_needs_or_is_refused() {
    let cluster = Cluster::start().await;
    let _coordinator = cluster.coordinator();
    let _worker = cluster.worker();
    cluster.dataset().await;
    let job = done(&cluster, pipeline(1)).await;
    let generation = GenerationRef { gallery: name("all"), generation: job.clone() };
    mark(&cluster, &format!("galleries/all/{job}")).await;
    let why = refusal(cluster.client.promote(name("other"), generation.clone(), None).await);
    assert!(why.contains("is being deleted"), "{why}");
    assert!(cluster.store.list(keys::HOLDS).await.unwrap().is_empty(), "a refused promotion holds nothing");
    cluster.store.delete(&keys::condemned(&format!("galleries/all/{job}"))).await.unwrap();
    assert_eq!(cluster.client.promote(name("other"), generation, None).await.unwrap().number, 1);
    assert!(cluster.store.list(keys::HOLDS).await.unwrap().is_empty(), "the release holds it now");

    let model = done(&cluster, train(2)).await;
    let hold = |at_ms| Hold { places: vec![format!("models/{model}")], at_ms };
    cluster.store.create_document(&keys::hold("under-way"), &hold(now_ms())).await.unwrap();
    assert_eq!(going(&cluster).await, []);
    cluster.store.delete(&keys::hold("under-way")).await.unwrap();
    cluster.store.create_document(&keys::hold("died"), &hold(1)).await.unwrap();
    assert_eq!(places(&going(&cluster).await), [format!("models/{model}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_can_t_be_read_ends_retention() {
    let cluster = Cluster::start().await;
    cluster.store.create("galleries/all/odd/manifest.json", "{ garbage".into()).await.unwrap();
    let error = look(&cluster.store, ALL).await.unwrap_err();
    assert!(error.to_string().contains("galleries/all/odd/manifest.json"), "{error}");
}
