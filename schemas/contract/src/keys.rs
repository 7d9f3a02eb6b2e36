//! Object keys: where every durable thing lies in the store.
//!
//! Fixed keys (specs, plans, runs, records, manifests, outcomes, releases, removals) are created once by whoever comes
//! first. All other keys carry the digest of their content, so that two attempts never overwrite each other.

use crate::ids::{Digest, JobId, Name, RunNumber, TaskId};
use crate::schedules::Stamp;

/// `jobs/`: every job lies below it.
pub const JOBS: &str = "jobs";
/// `datasets/`: every dataset lies below it.
pub const DATASETS: &str = "datasets";
/// `models/`: every model lies below it.
pub const MODELS: &str = "models";
/// `releases/`: every alias lies below it.
pub const RELEASES: &str = "releases";
/// `removals/`: every dataset that had items removed lies below it.
pub const REMOVALS: &str = "removals";

/// The job's resolved spec.
pub fn job_spec(job: &JobId) -> String {
    format!("jobs/{job}/spec.json")
}

/// The job's plan.
pub fn job_plan(job: &JobId) -> String {
    format!("jobs/{job}/plan.json")
}

/// One run of a job: its existence opens the run.
pub fn job_run(job: &JobId, run: RunNumber) -> String {
    format!("jobs/{job}/runs/{:05}.json", run.0)
}

/// All runs of a job lie below it.
pub fn job_runs(job: &JobId) -> String {
    format!("jobs/{job}/runs")
}

/// The record of a task: its existence means success.
pub fn task_record(job: &JobId, task: &TaskId) -> String {
    format!("jobs/{job}/tasks/{task}.json")
}

/// All records of a job lie below it.
pub fn task_records(job: &JobId) -> String {
    format!("jobs/{job}/tasks")
}

/// The outcome of a run: its existence closes the run.
pub fn job_outcome(job: &JobId, run: RunNumber) -> String {
    format!("jobs/{job}/outcomes/{:05}.json", run.0)
}

/// All outcomes of a job lie below it.
pub fn job_outcomes(job: &JobId) -> String {
    format!("jobs/{job}/outcomes")
}

/// What a job is expected to take.
pub fn job_estimate(job: &JobId) -> String {
    format!("jobs/{job}/estimate.json")
}

/// What a job had used when a run was closed.
pub fn job_usage(job: &JobId, run: RunNumber) -> String {
    format!("jobs/{job}/usage/{:05}.json", run.0)
}

/// That the URL number `url` of a job was told of the end of a run.
pub fn job_notified(job: &JobId, run: RunNumber, url: u32) -> String {
    format!("jobs/{job}/notified/{:05}-{url:03}.json", run.0)
}

/// Data that tasks of a job hand to later tasks: `what` names it.
pub fn job_data(job: &JobId, what: &str, digest: &Digest, extension: &str) -> String {
    format!("jobs/{job}/data/{what}-{}.{extension}", digest.short())
}

/// One part of a dataset version.
pub fn dataset_part(dataset: &Name, version: &JobId, part: u32, digest: &Digest) -> String {
    format!("datasets/{dataset}/{version}/part-{part:05}-{}.parquet", digest.short())
}

/// The manifest of a dataset version.
pub fn dataset_manifest(dataset: &Name, version: &JobId) -> String {
    format!("datasets/{dataset}/{version}/manifest.json")
}

/// How a dataset version came to be.
pub fn dataset_about(dataset: &Name, version: &JobId) -> String {
    format!("datasets/{dataset}/{version}/about.json")
}

/// One removal of items from a dataset.
pub fn removal(dataset: &Name, number: u64) -> String {
    format!("removals/{dataset}/{number:08}.json")
}

/// All removals of a dataset lie below it.
pub fn removals(dataset: &Name) -> String {
    format!("removals/{dataset}")
}

/// One checkpoint: `round` rounds are behind it.
pub fn checkpoint(model: &JobId, round: u32, digest: &Digest) -> String {
    format!("models/{model}/rounds/{round:05}-{}.safetensors", digest.short())
}

/// What a slot of several leaves of round `round - 1`: `what` is `weights` or `optimizer`. It goes with the model's checkpoints.
pub fn slot(model: &JobId, round: u32, slot: u32, what: &str, digest: &Digest) -> String {
    format!("models/{model}/rounds/{round:05}-slot-{slot:03}-{what}-{}.safetensors", digest.short())
}

/// The momentum of the outer step that made checkpoint `round`.
pub fn outer_momentum(model: &JobId, round: u32, digest: &Digest) -> String {
    format!("models/{model}/rounds/{round:05}-momentum-{}.safetensors", digest.short())
}

/// The weights of a finished model, without optimizer state.
pub fn weights(model: &JobId, digest: &Digest) -> String {
    format!("models/{model}/weights-{}.safetensors", digest.short())
}

/// Weights that a training starts from, as a user brought them.
pub fn brought_weights(digest: &Digest) -> String {
    format!("weights/{digest}.safetensors")
}

/// Questions of a file that a job answers, as they were handed in.
pub fn questions(digest: &Digest) -> String {
    format!("questions/{digest}.jsonl")
}

/// Answers to a part of a file of questions.
pub fn answers(search: &JobId, part: u32, digest: &Digest) -> String {
    format!("searches/{search}/answers-{part:05}-{}.parquet", digest.short())
}

/// The manifest of an answered file of questions.
pub fn search_manifest(search: &JobId) -> String {
    format!("searches/{search}/manifest.json")
}

/// Queries of an evaluation, as a user brought them.
pub fn brought_queries(digest: &Digest) -> String {
    format!("queries/{digest}.json")
}

/// The training figures of all steps.
pub fn training_metrics(model: &JobId, digest: &Digest) -> String {
    format!("models/{model}/training-{}.parquet", digest.short())
}

/// The same figures for TensorBoard; the name is one that TensorBoard recognises.
pub fn tensorboard_events(model: &JobId, digest: &Digest) -> String {
    format!("models/{model}/events.out.tfevents.{}", digest.short())
}

/// The description of a finished model.
pub fn model_manifest(model: &JobId) -> String {
    format!("models/{model}/model.json")
}

/// One gallery shard.
pub fn shard(gallery: &Name, generation: &JobId, shard: u32, digest: &Digest) -> String {
    format!("galleries/{gallery}/{generation}/shard-{shard:05}-{}.parquet", digest.short())
}

/// The approximate index of a gallery shard.
pub fn approximate(gallery: &Name, generation: &JobId, shard: u32, digest: &Digest) -> String {
    format!("galleries/{gallery}/{generation}/approximate-{shard:05}-{}.bin", digest.short())
}

/// The manifest of a generation.
pub fn generation_manifest(gallery: &Name, generation: &JobId) -> String {
    format!("galleries/{gallery}/{generation}/manifest.json")
}

/// A file of a report: `report-<digest>.json`, `queries-<digest>.parquet`, `report-<digest>.html`.
pub fn report_file(report: &JobId, what: &str, digest: &Digest, extension: &str) -> String {
    format!("reports/{report}/{what}-{}.{extension}", digest.short())
}

/// The manifest of a report.
pub fn report_manifest(report: &JobId) -> String {
    format!("reports/{report}/manifest.json")
}

/// One release of an alias.
pub fn release(alias: &Name, number: u64) -> String {
    format!("releases/{alias}/{number:08}.json")
}

/// All releases of an alias lie below it.
pub fn releases(alias: &Name) -> String {
    format!("releases/{alias}")
}

/// `schedules/`: every schedule lies below it.
pub const SCHEDULES: &str = "schedules";

/// One change of a schedule.
pub fn schedule(name: &Name, number: u64) -> String {
    format!("{SCHEDULES}/{name}/{number:08}.json")
}

/// All changes of a schedule lie below it.
pub fn schedule_changes(name: &Name) -> String {
    format!("{SCHEDULES}/{name}")
}

/// What became of a scheduled time.
pub fn firing(schedule: &Name, scheduled_ms: u64) -> String {
    let stamp = Stamp::of(scheduled_ms);
    format!("firings/{schedule}/{}/{}.json", stamp.day(), stamp.time())
}

/// Why its job could not be accepted.
pub fn unmet(schedule: &Name, scheduled_ms: u64) -> String {
    let stamp = Stamp::of(scheduled_ms);
    format!("firings/{schedule}/{}/{}-unmet.json", stamp.day(), stamp.time())
}

/// All days of the firings of a schedule lie below it.
pub fn firings(schedule: &Name) -> String {
    format!("firings/{schedule}")
}

/// The scheduled time, in milliseconds since 1970, of the key of a firing.
pub fn scheduled_ms_of(key: &str) -> Option<u64> {
    let (folder, file) = key.rsplit_once('/')?;
    let day = folder.rsplit('/').next()?;
    Stamp::parse(day, file.strip_suffix(".json")?).map(Stamp::ms)
}

/// `galleries/`: every gallery lies below it.
pub const GALLERIES: &str = "galleries";
/// `reports/`: every report lies below it.
pub const REPORTS: &str = "reports";
/// `weights/`: weights that users brought lie below it.
pub const WEIGHTS: &str = "weights";
/// `queries/`: queries that users brought lie below it.
pub const QUERIES: &str = "queries";
/// `questions/`: files of questions that users handed in lie below it.
pub const QUESTIONS: &str = "questions";
/// `searches/`: all answers to files of questions lie below it.
pub const SEARCHES: &str = "searches";
/// All marks of what is about to be deleted lie below it.
pub const CONDEMNED: &str = "retention/condemned";
/// All holds of promotions lie below it.
pub const HOLDS: &str = "retention/holds";

/// The mark of what lies at `place` (a folder, or the key of a brought file) and is about to be deleted.
pub fn condemned(place: &str) -> String {
    format!("{CONDEMNED}/{place}.json")
}

/// The hold of a promotion.
pub fn hold(name: &str) -> String {
    format!("{HOLDS}/{name}.json")
}

/// The number in the last part of a fixed key such as `…/runs/00002.json`.
pub fn number_of(key: &str) -> Option<u64> {
    key.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()
}
