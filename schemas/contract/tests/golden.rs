//! Every message as it is written today equals its golden file, and every golden file ever written decodes.
//!
//! `schemas/golden/<message>/v<version>-<case>.{json,bin}`. After a version was raised, `LIKENESS_GOLDEN=write
//! cargo test -p likeness-contract --test golden` adds the new version's files; it never touches one that exists.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use likeness_contract::codec::{Encoding, Message, decode, decode_document, encode, encode_document};
use likeness_contract::datasets::*;
use likeness_contract::documents::*;
use likeness_contract::ids::*;
use likeness_contract::jobs::*;
use likeness_contract::messages::*;
use likeness_contract::ranking::Candidate;
use likeness_contract::retention::{Condemned, Hold};
use likeness_contract::schedules::*;
use likeness_contract::search::*;
use likeness_contract::searches::*;
use likeness_contract::settings::*;
use likeness_contract::tables;
use likeness_contract::usage::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden")
}

fn writing() -> bool {
    std::env::var("LIKENESS_GOLDEN").is_ok_and(|v| v == "write")
}

/// Compares `bytes` with the file, or writes the file if asked and not there.
fn compare(path: &Path, bytes: &[u8]) {
    if writing() && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let golden = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(
        golden == bytes,
        "{} differs from what is written today: raise the version and keep the old form readable\n{}",
        path.display(),
        String::from_utf8_lossy(bytes)
    );
}

/// The version that a document says it has.
fn version_of(json: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(json).unwrap()["version"].as_u64().unwrap()
}

fn check<M: Message + Debug + PartialEq>(case: &str, message: &M) {
    let json = encode_document(message);
    // What says nothing new is written as older programs read it.
    let stem = folder().join(M::NAME).join(format!("v{}-{case}", version_of(&json)));
    compare(&stem.with_extension("json"), &json);
    assert_eq!(&decode_document::<M>(&json).unwrap(), message);
    let compact = encode(message, Encoding::Json).unwrap();
    assert_eq!(&decode::<M>(&compact, Encoding::Json).unwrap(), message);
    let binary = encode(message, Encoding::Bincode).unwrap();
    compare(&stem.with_extension("bin"), &binary);
    assert_eq!(&decode::<M>(&binary, Encoding::Bincode).unwrap(), message);
    every_past_version_decodes::<M>();
}

fn every_past_version_decodes<M: Message>() {
    for entry in std::fs::read_dir(folder().join(M::NAME)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let result = match path.extension().and_then(|e| e.to_str()) {
            Some("json") => decode_document::<M>(&bytes).map(drop),
            Some("bin") => decode::<M>(&bytes, Encoding::Bincode).map(drop),
            _ => panic!("{}: neither .json nor .bin", path.display()),
        };
        result.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

fn job(id: &str) -> JobId {
    JobId::new(id).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn worker() -> WorkerId {
    WorkerId::new("worker-1").unwrap()
}

fn task(id: &str) -> TaskId {
    TaskId::new(id).unwrap()
}

fn object(key: &str) -> ObjectRef {
    ObjectRef { key: key.into(), digest: Digest::of(key.as_bytes()), bytes: 123_456 }
}

fn vocabulary() -> Vocabulary {
    Vocabulary { names: vec!["Smiling".into(), "Male".into()] }
}

fn dataset() -> DatasetRef {
    DatasetRef { dataset: name("celeba"), version: job("ingest-1") }
}

fn generation() -> GenerationRef {
    GenerationRef { gallery: name("faces"), generation: job("pipeline-1") }
}

fn model() -> ModelSettings {
    ModelSettings {
        architecture: Architecture::CnnS,
        embedding_dim: 300,
        encoding: QueryEncoding::ThreeState,
        preprocessing: Preprocessing::imagenet(64),
    }
}

fn train_stage() -> TrainStage {
    TrainStage {
        dataset: dataset(),
        vocabulary: vocabulary(),
        model: model(),
        train: TrainSettings::default(),
        train_rows: 7_338,
        validation_rows: 879,
    }
}

/// Every setting that version 1 did not have.
fn every_setting() -> TrainSettings {
    TrainSettings {
        optimizer: Optimizer::Sgd(SgdSettings::default()),
        clip_norm: 1.0,
        backbone: BackboneSettings { lr_factor: 0.125, frozen_epochs: 2 },
        init: Some(InitWeights {
            source: "resnet18.safetensors".into(),
            model: Some(job("train-0")),
            weights: object("weights/0.safetensors"),
        }),
        random_crop: 0.0,
        resized_crop: Some(ResizedCrop::from_scale(0.5)),
        colour: ColourJitter { brightness: 0.25, contrast: 0.25, saturation: 0.25, hue: 0.0625 },
        keep: Keep::Best,
        patience: 3,
        ..TrainSettings::default()
    }
}

/// Every setting of a training that version 3 did not have.
fn joint_stage() -> TrainStage {
    let train = TrainSettings { average_decay: 0.5, embed_mirrored: true, ..TrainSettings::joint() };
    TrainStage { train, model: joint_model(), ..train_stage() }
}

/// A training whose rounds have several slots, which version 4 did not have.
fn stage_in_rounds() -> TrainStage {
    let TrainStage { train, .. } = joint_stage();
    let inner = InnerOptimizer::AdamW(AdamWSettings { lr: 0.001, ..AdamWSettings::default() });
    let rounds = RoundSettings { slots: 4, inner, outer_lr: 0.75, outer_momentum: 0.5, quorum: 3, deadline_s: 90 };
    TrainStage { train: TrainSettings { optimizer: Optimizer::Rounds(rounds), ..train }, ..joint_stage() }
}

fn joint_model() -> ModelSettings {
    ModelSettings { encoding: QueryEncoding::LogProbability, embedding_dim: log_probability_dim(2), ..model() }
}

/// Every setting that version 2 did not have.
fn every_query_setting() -> EvaluateSettings {
    let own = BroughtQueries { source: "queries.csv".into(), object: object("queries/0.parquet") };
    EvaluateSettings {
        full: 100,
        images: 50,
        image_edit: ImageEdit::Author,
        own: Some(own),
        floor: 0.25,
        ..EvaluateSettings::default()
    }
}

fn options() -> JobOptions {
    JobOptions { max_workers: Some(8), notify: vec!["https://example.org/done".into()] }
}

fn embed_stage() -> EmbedStage {
    EmbedStage { gallery: name("faces"), dataset: dataset(), rows: Split::All, gallery_rows: 9_032, shard_rows: 2_048 }
}

fn evaluate_stage() -> EvaluateStage {
    EvaluateStage { rows: Split::Test, settings: EvaluateSettings::default() }
}

fn pipeline(baseline: Option<Baseline>) -> JobSpec {
    let work = JobWork::Pipeline {
        train: train_stage(),
        embed: embed_stage(),
        evaluate: evaluate_stage(),
        alias: name("main"),
        baseline,
    };
    JobSpec { work, device: DeviceClass::Cuda, priority: Priority::Lo, options: JobOptions::default() }
}

fn gate(passed: bool) -> GateDecision {
    GateDecision {
        passed,
        baseline: passed.then_some(3),
        candidate_map: 0.6125,
        baseline_map: 0.6,
        difference: 0.0125,
        interval: [0.004, 0.02],
        queries: 680,
    }
}

fn headline() -> Vec<HeadlineRow> {
    vec![HeadlineRow { set: "singles".into(), queries: 80, map: 0.66, chance: 0.5, p_at: [1.0, 0.9, 0.85, 0.7] }]
}

fn skipped() -> Vec<Skipped> {
    vec![Skipped { item: "000007.jpg".into(), reason: "truncated".into() }]
}

fn read_parquet() -> IngestSource {
    let columns = CsvColumns { group: Some("person".into()), ..Default::default() };
    let words = |word: &str| vec![word.to_string()];
    let labels = LabelWords { has: words("ja"), has_not: words("nein"), unknown: words("?"), zero: ZeroLabel::Auto };
    let from = ReadFrom::Parquet { files: vec!["s3://raw/faces/*.parquet".into()] };
    IngestSource::Read(Box::new(ReadSource { from, columns, labels }))
}

fn failure() -> TaskFailure {
    TaskFailure { task: task("shard-00002"), error: "weights `…` are gone".into(), reported: 5, silent: 1 }
}

#[test]
fn specs_and_plans() {
    let baseline = Baseline { release: 3, model: job("pipeline-0"), generation: generation(), embed: true };
    check("pipeline", &pipeline(Some(baseline)));
    check("first-pipeline", &pipeline(None));
    let source = IngestSource::Celeba { dir: "/data/celeba".into() };
    let ingest = JobWork::Ingest { dataset: name("celeba"), source, part_rows: 4_096 };
    check(
        "ingest",
        &JobSpec { work: ingest, device: DeviceClass::Any, priority: Priority::Hi, options: JobOptions::default() },
    );
    let source = IngestSource::Parquet { files: vec!["a.parquet".into()] };
    let ingest = JobWork::Ingest { dataset: name("celeba"), source, part_rows: 4_096 };
    check(
        "ingest-parquet",
        &JobSpec { work: ingest, device: DeviceClass::Any, priority: Priority::Hi, options: JobOptions::default() },
    );
    let columns = CsvColumns { split: Some("fold".into()), attributes: vec!["smiling".into()], ..Default::default() };
    let csv =
        CsvSource { file: "/data/faces.csv".into(), dir: "/data/faces".into(), columns, zero: ZeroLabel::Unknown };
    let ingest = JobWork::Ingest { dataset: name("faces"), source: IngestSource::Csv(csv), part_rows: 4_096 };
    check(
        "ingest-csv",
        &JobSpec { work: ingest, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() },
    );
    let ingest = |source| {
        let work = JobWork::Ingest { dataset: name("faces"), source, part_rows: 4_096 };
        JobSpec { work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
    };
    check("ingest-read", &ingest(read_parquet()));
    let of = |from| {
        IngestSource::Read(Box::new(ReadSource { from, columns: CsvColumns::default(), labels: LabelWords::default() }))
    };
    check("ingest-folder", &ingest(of(ReadFrom::Folder { dir: "/photos".into() })));
    let celeba = ReadFrom::Celeba { dir: "/data/celeba".into(), split: CelebaSplit::Identity };
    check("ingest-celeba-identity", &ingest(of(celeba)));
    let append = AppendSource { base: Some(job("ingest-1")), removals: 2, source: Some(read_parquet()) };
    check("ingest-append", &ingest(IngestSource::Append(Box::new(append))));
    let work = JobWork::Train(train_stage());
    check("train", &JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() });
    let work = JobWork::Train(TrainStage { train: every_setting(), ..train_stage() });
    check(
        "train-tuned",
        &JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() },
    );
    let cpu = |work| JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() };
    check("train-joint", &cpu(JobWork::Train(joint_stage())));
    check("train-rounds", &cpu(JobWork::Train(stage_in_rounds())));
    let train = TrainSettings { loss: Loss::InfoNce { temperature: 0.0625 }, ..TrainSettings::default() };
    check("train-info-nce", &cpu(JobWork::Train(TrainStage { train, ..train_stage() })));
    let work = JobWork::Embed { model: job("train-1"), embed: embed_stage() };
    check(
        "embed",
        &JobSpec { work, device: DeviceClass::Metal, priority: Priority::Lo, options: JobOptions::default() },
    );
    let work = JobWork::Evaluate { generation: generation(), evaluate: evaluate_stage() };
    check(
        "evaluate",
        &JobSpec { work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() },
    );

    let evaluate = EvaluateStage { rows: Split::Test, settings: every_query_setting() };
    let work = JobWork::Evaluate { generation: generation(), evaluate };
    let spec = JobSpec { work, device: DeviceClass::Any, priority: Priority::Lo, options: options() };
    check("evaluate-own", &spec);

    imports();
    let planned = |id: TaskId, work| PlannedTask { id, work };
    let scan = planned(task_ids::scan(), TaskWork::IngestScan);
    let stages = vec![
        Stage { name: "scan".into(), after: vec![], tasks: vec![scan], expands: None },
        Stage { name: "parts".into(), after: vec![0], tasks: vec![], expands: Some(task_ids::scan()) },
    ];
    check("ingest", &Plan { stages });
    let (model, target, earlier) = (job("m"), generation(), generation());
    let work = TaskWork::EmbedShardAfter { model, target, shard: 0, from: 0, rows: 10, earlier };
    let tasks = vec![planned(task_ids::shard(&job("j"), &job("j"), 0), work)];
    let stages = vec![Stage { name: "embed".into(), after: vec![], tasks, expands: None }];
    check("embed-after", &Plan { stages });
}

/// Embeddings that are all computed, or were made elsewhere.
fn imports() {
    let spec =
        |work| JobSpec { work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() };
    check("embed-anew", &spec(JobWork::EmbedAnew { model: job("train-1"), embed: embed_stage() }));
    let (file, table) = ("s3://b/vectors.npy".into(), "s3://b/ids.csv".into());
    let import = Import {
        gallery: name("mine"),
        source: EmbeddingSource::Npy { file, table },
        columns: ImportColumns { item: Some("who".into()), attributes: vec!["hat".into()], ..Default::default() },
        zero: ZeroLabel::No,
        normalize: true,
        shard_rows: 8_192,
    };
    check("import", &spec(JobWork::Import(import)));
}

#[test]
fn task_messages() {
    let target = generation();
    let works = [
        ("scan", TaskWork::IngestScan),
        ("part", TaskWork::IngestPart { part: 1, from: 4_096, rows: 4_096 }),
        ("dataset", TaskWork::IngestFinish),
        ("init", TaskWork::TrainInit),
        ("slot", TaskWork::TrainSlot { round: 3, slot: 0, first_step: 150, steps: 50 }),
        ("outer", TaskWork::TrainOuter { round: 3 }),
        ("model", TaskWork::TrainFinish),
        ("shard", TaskWork::EmbedShard { model: job("m"), target: target.clone(), shard: 2, from: 4_096, rows: 10 }),
        ("generation", TaskWork::EmbedFinish { model: job("m"), target: target.clone() }),
        ("queries", TaskWork::EvaluateQueries { generation: target.clone() }),
        ("range", TaskWork::EvaluateRange { generation: target.clone(), from: 170, queries: 170 }),
        ("report", TaskWork::EvaluateFinish { generation: target }),
        ("gate", TaskWork::Gate),
        (
            "shard-after",
            TaskWork::EmbedShardAfter {
                model: job("m"),
                target: generation(),
                shard: 2,
                from: 4_096,
                rows: 10,
                earlier: generation(),
            },
        ),
        ("import-scan", TaskWork::ImportScan),
        ("import-shard", TaskWork::ImportShard { shard: 2, from: 4_096, rows: 10 }),
        ("import-finish", TaskWork::ImportFinish),
    ];
    for (case, work) in works {
        check(case, &TaskMessage { job: job("pipeline-1"), run: RunNumber(2), task: task(case), work });
    }
}

#[test]
fn records_runs_and_outcomes() {
    let outputs = [
        (
            "scan",
            TaskOutput::Scan {
                rows_object: object("jobs/i/data/rows-0.parquet"),
                rows: 9_032,
                vocabulary: vocabulary(),
                warnings: vec!["column `x` is no label".into()],
            },
        ),
        (
            "part",
            TaskOutput::Part {
                object: Some(object("datasets/d/v/part-00000-0.parquet")),
                rows: 4_095,
                split_rows: [3_000, 595, 500],
                skipped: skipped(),
            },
        ),
        (
            "checkpoint",
            TaskOutput::Checkpoint(CheckpointOutput {
                metrics: Some(object("models/m/rounds/figures-0.parquet")),
                loss: Some(0.081),
                images_per_second: Some(412.5),
                wait_share: Some(0.01),
                validation_map: Some(0.5625),
                best: Some(BestRound { round: 2, map: 0.59, since: 1 }),
                ..CheckpointOutput::of(200, object("models/m/rounds/00004-0.safetensors"))
            }),
        ),
        (
            "slot",
            TaskOutput::Slot {
                checkpoint: CheckpointOutput {
                    loss: Some(0.25),
                    ..CheckpointOutput::of(200, object("jobs/m/data/slot-0.safetensors"))
                },
                state: object("jobs/m/data/state-0.safetensors"),
            },
        ),
        (
            "round",
            TaskOutput::Round {
                checkpoint: CheckpointOutput::of(200, object("models/m/rounds/00004-0.safetensors")),
                momentum: Some(object("jobs/m/data/momentum-0.safetensors")),
                slots: vec![
                    SlotState { taken: true, state: Some(object("jobs/m/data/state-0.safetensors")) },
                    SlotState { taken: false, state: None },
                ],
            },
        ),
        ("manifest", TaskOutput::Manifest { key: "datasets/d/v/manifest.json".into() }),
        (
            "shard",
            TaskOutput::Shard { object: Some(object("galleries/g/n/shard-0.parquet")), rows: 9, skipped: vec![] },
        ),
        (
            "indexed-shard",
            TaskOutput::IndexedShard {
                object: object("galleries/g/n/shard-0.parquet"),
                rows: 8_192,
                skipped: skipped(),
                approximate: object("galleries/g/n/approximate-0.bin"),
            },
        ),
        ("queries", TaskOutput::Queries { object: object("jobs/e/data/queries-0.json"), queries: 680 }),
        ("scores", TaskOutput::Scores { object: object("jobs/e/data/scores-0.parquet"), from: 0, queries: 170 }),
        ("report", TaskOutput::Report { key: "reports/r/manifest.json".into(), headline: headline() }),
        ("gate", TaskOutput::Gate(gate(true))),
        (
            "pooled-queries",
            TaskOutput::PooledQueries { object: object("jobs/e/data/queries-0.json"), queries: 1280, pooled: 680 },
        ),
        ("floored-gate", TaskOutput::FlooredGate { decision: gate(false), floor: 0.2 }),
        (
            "copied-shard",
            TaskOutput::CopiedShard {
                object: object("galleries/g/n/shard-0.parquet"),
                rows: 8_192,
                skipped: skipped(),
                approximate: Some(object("galleries/g/n/approximate-0.bin")),
                copied: 8_110,
            },
        ),
        (
            "generation",
            TaskOutput::Generation { key: "galleries/g/n/manifest.json".into(), rows: 9_032, copied: 8_942 },
        ),
        (
            "import-scan",
            TaskOutput::ImportScan {
                rows_object: object("jobs/i/data/rows-0.parquet"),
                rows: 9_032,
                embedding_dim: 300,
                vocabulary: vocabulary(),
                warnings: vec!["column `x` is no label".into()],
            },
        ),
    ];
    for (case, output) in outputs {
        let record = TaskRecord {
            job: job("j"),
            run: RunNumber(1),
            task: task(case),
            worker: worker(),
            attempt: 2,
            started_ms: 1_700_000_000_000,
            finished_ms: 1_700_000_060_000,
            device_ms: 55_000,
            output,
        };
        check(case, &record);
    }
    check("first", &Run { job: job("j"), run: RunNumber(1), opened_ms: 1_700_000_000_000 });
    let results = [
        ("done", RunResult::Done { gate: None, release: None }),
        ("promoted", RunResult::Done { gate: Some(gate(true)), release: Some(4) }),
        ("refused", RunResult::Done { gate: Some(gate(false)), release: None }),
        ("failed", RunResult::Failed { failures: vec![failure()] }),
        ("cancelled", RunResult::Cancelled),
    ];
    for (case, result) in results {
        check(case, &Outcome { job: job("j"), run: RunNumber(1), closed_ms: 1_700_000_100_000, result });
    }
}

#[test]
fn events_and_dead_letters() {
    let news = [
        TaskNews::Started,
        TaskNews::Progress { done: 12, of: 50, note: "loss 0.093".into() },
        TaskNews::Done { adopted: false, device_ms: 55_000 },
        TaskNews::Failed { error: "no space left".into(), retryable: true },
        TaskNews::Released,
    ];
    for what in news {
        let case = what.name();
        let event = TaskEvent {
            job: job("j"),
            run: RunNumber(1),
            task: task("init"),
            worker: worker(),
            attempt: "worker-1-17".into(),
            at_ms: 1_700_000_000_000,
            what,
        };
        check(case, &event);
    }
    for what in [JobNews::Submitted, JobNews::Closed(RunResult::Cancelled)] {
        check(what.name(), &JobEvent { job: job("j"), run: RunNumber(1), at_ms: 5, what: what.clone() });
    }
    check("failed", &DeadLetter { job: job("j"), run: RunNumber(1), failure: failure(), at_ms: 5 });
}

#[test]
fn coordinator_api() {
    let selector = DatasetSelector { dataset: name("celeba"), version: None };
    let work = RequestedWork::Pipeline {
        train: TrainRequest { dataset: selector.clone(), model: model(), train: TrainSettings::default() },
        embed: EmbedRequest { gallery: name("faces"), dataset: selector, rows: Split::All, shard_rows: 2_048 },
        evaluate: evaluate_stage(),
        alias: name("main"),
    };
    let submit = JobRequest {
        id: Some(job("nightly-7")),
        work,
        device: DeviceClass::Any,
        priority: Priority::Hi,
        options: JobOptions::default(),
    };
    check("submit", &ApiRequest::Submit(submit.clone()));
    let RequestedWork::Pipeline { train, .. } = &submit.work else { unreachable!("just made") };
    let work = RequestedWork::Train(TrainRequest { train: every_setting(), ..train.clone() });
    check("submit-tuned", &ApiRequest::Submit(JobRequest { work, ..submit.clone() }));
    let TrainStage { model, train: joint, .. } = joint_stage();
    let work = RequestedWork::Train(TrainRequest { train: joint, model, ..train.clone() });
    check("submit-joint", &ApiRequest::Submit(JobRequest { work, ..submit.clone() }));
    let TrainStage { model, train: in_rounds, .. } = stage_in_rounds();
    let work = RequestedWork::Train(TrainRequest { train: in_rounds, model, ..train.clone() });
    check("submit-rounds", &ApiRequest::Submit(JobRequest { work, ..submit.clone() }));
    check("submit-capped", &ApiRequest::Submit(JobRequest { options: options(), ..submit }));
    check("cancel", &ApiRequest::Cancel { job: job("j") });
    check("rollback", &ApiRequest::Rollback { alias: name("main"), to: Some(2) });
    check("promote", &ApiRequest::Promote { alias: name("main"), generation: generation(), report: None });
    check("status", &ApiRequest::Status);

    let summary = JobSummary {
        job: job("j"),
        kind: "pipeline".into(),
        state: JobState::Running,
        run: RunNumber(1),
        done: 7,
        tasks: 40,
        opened_ms: 1_700_000_000_000,
        closed_ms: None,
    };
    check("job", &ApiReply::Job(summary.clone()));
    let detail = JobDetail {
        summary,
        spec: pipeline(None),
        stages: vec![StageProgress { name: "embed".into(), done: 3, tasks: 5 }],
        active: vec![ActiveTask { task: task("shard-00003"), worker: worker(), progress: 5, of: 9, note: "x".into() }],
        troubles: vec![failure()],
        device_ms: 1_234,
        result: None,
        gate: None,
    };
    check("detail", &ApiReply::JobDetail(Box::new(detail.clone())));
    let work = JobWork::Train(TrainStage { train: every_setting(), ..train_stage() });
    let spec = JobSpec { work, device: DeviceClass::Cpu, priority: Priority::Lo, options: JobOptions::default() };
    check("detail-tuned", &ApiReply::JobDetail(Box::new(JobDetail { spec, ..detail.clone() })));
    let spec = JobSpec { work: JobWork::Train(joint_stage()), ..pipeline(None) };
    check("detail-joint", &ApiReply::JobDetail(Box::new(JobDetail { spec, ..detail.clone() })));
    let spec = JobSpec { work: JobWork::Train(stage_in_rounds()), ..pipeline(None) };
    check("detail-rounds", &ApiReply::JobDetail(Box::new(JobDetail { spec, ..detail.clone() })));
    let spec = JobSpec { options: options(), ..pipeline(None) };
    check("detail-capped", &ApiReply::JobDetail(Box::new(JobDetail { spec, ..detail })));
    let status = Status {
        leader: worker(),
        workers: vec![presence()],
        queues: vec![Queue {
            kind: TaskKind::Embed,
            device: DeviceClass::Any,
            priority: Priority::Lo,
            waiting: 9,
            running: 2,
        }],
        placement: vec![placement()],
        open_jobs: 1,
    };
    check("status", &ApiReply::Status(status));
    let error = ApiError { kind: ApiErrorKind::NotFound, message: "no job `x`".into(), nearest: vec!["y".into()] };
    check("error", &ApiReply::Error(error));
}

fn scheduled_request() -> JobRequest {
    let dataset = DatasetSelector { dataset: name("celeba"), version: None };
    let embed = EmbedRequest { gallery: name("faces"), dataset, rows: Split::All, shard_rows: 2_048 };
    let work = RequestedWork::Embed { model: job("train-1"), embed };
    JobRequest { id: None, work, device: DeviceClass::Any, priority: Priority::Lo, options: JobOptions::default() }
}

fn schedule(overlap: Overlap, catch_up: CatchUp, state: ScheduleState) -> Schedule {
    let settings = ScheduleSettings {
        cron: "0 3 * * *".into(),
        zone: "Europe/Berlin".into(),
        overlap,
        catch_up,
        late_after_s: DEFAULT_LATE_AFTER_S,
        only_if_changed: state == ScheduleState::Active,
        job: scheduled_request(),
    };
    Schedule { name: name("nightly"), number: 2, changed_ms: 1_795_824_000_000, state, settings }
}

#[test]
fn schedules_and_firings() {
    check("active", &schedule(Overlap::Skip, CatchUp::Last, ScheduleState::Active));
    check("paused", &schedule(Overlap::Queue, CatchUp::None, ScheduleState::Paused));
    check("removed", &schedule(Overlap::CancelOld, CatchUp::All { limit: 7 }, ScheduleState::Removed));
    let mut in_rounds = schedule(Overlap::Skip, CatchUp::Last, ScheduleState::Active);
    let TrainStage { model, train, .. } = stage_in_rounds();
    let selector = DatasetSelector { dataset: name("celeba"), version: None };
    in_rounds.settings.job.work = RequestedWork::Train(TrainRequest { dataset: selector, model, train });
    check("rounds", &in_rounds);
    let scheduled_ms = 1_795_834_800_000;
    let submitted =
        Became::Submitted { job: job_of(&name("nightly"), scheduled_ms), cancels: vec![job("nightly-old")] };
    let of =
        |became| Firing { schedule: name("nightly"), scheduled_ms, change: 2, decided_ms: scheduled_ms + 12, became };
    check("submitted", &of(submitted.clone()));
    check("overlapped", &of(Became::Overlapped { running: job("nightly-old") }));
    check("unchanged", &of(Became::Unchanged { datasets: vec![dataset()], since: job("nightly-old") }));
    check("missed", &of(Became::Missed { how: Missed::Late, all_since_ms: Some(1) }));
    check("given-up", &of(Became::Missed { how: Missed::Changed, all_since_ms: None }));
    let (schedule_name, at_ms) = (name("nightly"), scheduled_ms + 15);
    let error = "no dataset `celeba`".into();
    check("unmet", &Unmet { schedule: schedule_name, scheduled_ms, at_ms, error });

    let active = schedule(Overlap::Skip, CatchUp::Last, ScheduleState::Active);
    let settings = Box::new(active.settings.clone());
    check(
        "schedule-add",
        &ApiRequest::Schedule(ScheduleRequest::Add { name: name("nightly"), settings, replace: true }),
    );
    check("schedule-list", &ApiRequest::Schedule(ScheduleRequest::List));
    check("schedule-show", &ApiRequest::Schedule(ScheduleRequest::Show { name: name("nightly"), limit: 20 }));
    check("schedule-pause", &ApiRequest::Schedule(ScheduleRequest::Pause { name: name("nightly") }));
    check("schedule-resume", &ApiRequest::Schedule(ScheduleRequest::Resume { name: name("nightly") }));
    check("schedule-remove", &ApiRequest::Schedule(ScheduleRequest::Remove { name: name("nightly") }));
    let fired = Fired { firing: of(submitted), unmet: Some("no dataset `celeba`".into()), job: None };
    let status = ScheduleStatus {
        schedule: active,
        next_ms: vec![scheduled_ms],
        next: vec!["2026-11-28T04:00:00+01:00[Europe/Berlin]".into()],
        waiting_ms: vec![5],
        last: Some(fired.clone()),
    };
    check("schedules", &ApiReply::Schedules(vec![status.clone()]));
    check("schedule", &ApiReply::Schedule(Box::new(ScheduleDetail { status, firings: vec![fired] })));
}

fn estimate() -> Estimate {
    let phase = PhaseEstimate {
        name: "train".into(),
        kind: TaskKind::Train,
        device: DeviceClass::Cuda,
        shape: "resnet50 at 224 px".into(),
        tasks: Some(37),
        units: Some(110_080),
        unit: "triplets".into(),
        steps: Some(860),
        bytes_read: Some(1 << 30),
        bytes_written: Some(300 << 20),
        device_ms: Some(2_880_000),
        basis: Some(Basis { jobs: 3, weight: 330_240, device_ms: 8_640_000 }),
    };
    let unknown = PhaseEstimate {
        name: "ingest".into(),
        kind: TaskKind::Ingest,
        shape: String::new(),
        tasks: None,
        units: None,
        unit: "images".into(),
        steps: None,
        bytes_read: None,
        bytes_written: None,
        device_ms: None,
        basis: None,
        ..phase.clone()
    };
    let serving = ServingEstimate { rows: 9_032, row_bytes: 1_248, model_bytes: 98 << 20, replicas: 2 };
    Estimate { job: job("pipeline-1"), kind: "pipeline".into(), phases: vec![phase, unknown], serving: Some(serving) }
}

#[test]
fn usage_and_estimates() {
    let phase = PhaseUsage {
        name: "train".into(),
        kind: TaskKind::Train,
        device: DeviceClass::Cuda,
        shape: "resnet50 at 224 px".into(),
        tasks: 37,
        units: 110_080,
        unit: "triplets".into(),
        weight: 110_080,
        device_ms: 2_900_000,
    };
    check("closed", &Usage { job: job("pipeline-1"), run: RunNumber(2), phases: vec![phase.clone()] });
    check("pipeline", &estimate());
    let notified =
        Notified { job: job("pipeline-1"), run: RunNumber(1), url: 0, at_ms: 1_700_000_000_000, given_up: None };
    check("delivered", &notified);
    check("given-up", &Notified { given_up: Some("`host` answered 500".into()), ..notified });
    let used = JobUsage {
        job: job("pipeline-1"),
        device_ms: Some(2_900_000),
        planned_ms: Some(2_880_000),
        phases: vec![phase],
        estimate: Some(estimate()),
    };
    check("usage", &ApiReply::Usage(vec![used]));
    check("estimate", &ApiReply::Estimate(Box::new(estimate())));
    let sighting = Sighting { worker: worker(), host: "host-a".into(), ago_ms: 1_500, live: true };
    check("sightings", &ApiReply::Sightings(vec![sighting]));
    check("sightings", &ApiRequest::Sightings);
    check("usage", &ApiRequest::Usage { jobs: vec![job("pipeline-1")], in_full: true });
}

fn presence() -> Presence {
    Presence {
        worker: worker(),
        roles: TaskKind::ALL.to_vec(),
        searches: true,
        device: "cuda:0".into(),
        device_class: DeviceClass::Cuda,
        host: "host-a".into(),
        version: "0.1.0".into(),
        task: Some("j/init".into()),
        draining: false,
    }
}

fn placement() -> Placement {
    let held = HeldShards { generation: generation(), shards: vec![0, 2], model_ready: true };
    Placement { worker: worker(), held: vec![held], troubles: vec!["shard 1: digest differs".into()] }
}

#[test]
fn presence_placement_aliases_and_the_lease() {
    check("leader", &Leader { coordinator: worker() });
    check("worker", &presence());
    check("searcher", &placement());
    let served = |release| Served { release, model: job("pipeline-1"), generation: generation() };
    check("switching", &AliasState { serving: Some(served(3)), loading: Some(served(4)) });
}

#[test]
fn manifests_and_releases() {
    let part = PartEntry { object: object("datasets/d/v/part-0.parquet"), rows: 4_095, split_rows: [3_000, 595, 500] };
    let manifest = DatasetManifest {
        dataset: dataset(),
        vocabulary: vocabulary(),
        parts: vec![part],
        skipped: skipped(),
        warnings: vec![],
    };
    check("celeba", &manifest);
    let labels = LabelCounts {
        attribute: "Smiling".into(),
        has: 2_000,
        has_not: 2_090,
        unknown: 5,
        zero: Some(ZeroLabel::Unknown),
    };
    let about = DatasetAbout {
        dataset: dataset(),
        base: Some(job("ingest-0")),
        shared_parts: 1,
        removals: 2,
        removed: 3,
        already_there: 4,
        labels: vec![labels],
    };
    check("grown", &about);
    let removal = |number, change| {
        let items = vec!["000007.jpg".into(), "a b.png".into()];
        Removal { dataset: name("faces"), number, change, items, created_ms: 1_760_000_000_000 }
    };
    check("removed", &removal(1, RemovalChange::Remove));
    check("restored", &removal(2, RemovalChange::Restore));
    let manifest = ModelManifest {
        model: job("train-1"),
        settings: model(),
        train: TrainSettings::default(),
        vocabulary: vocabulary(),
        dataset: dataset(),
        weights: object("models/m/weights-0.safetensors"),
        checkpoint: object("models/m/rounds/00017-0.safetensors"),
        distance: "euclidean".into(),
        steps: 855,
        validation_loss: Some(0.08),
        training: object("models/m/training-0.parquet"),
        tensorboard: object("models/m/events.out.tfevents.0"),
        round: Some(16),
        validation_map: Some(0.5625),
        stopped_early: true,
        rounds: Vec::new(),
    };
    check("trained", &manifest);
    let TrainStage { model, train, .. } = joint_stage();
    check("trained-joint", &ModelManifest { settings: model.clone(), train, ..manifest.clone() });
    let train = stage_in_rounds().train;
    let (barrier_ms, outer_ms, bytes) = (2_310, 840, 61_417_088);
    let rounds = vec![RoundFigures { round: 0, step: 50, loss: 0.25, late: vec![3], barrier_ms, outer_ms, bytes }];
    check("trained-rounds", &ModelManifest { settings: model, train, rounds, ..manifest });
    let manifest = GenerationManifest {
        generation: generation(),
        origin: Origin::Model(Embedder { model: job("train-1"), weights: Digest::of(b"weights"), dataset: dataset() }),
        rows: Split::All,
        embedding_dim: 300,
        vocabulary: vocabulary(),
        shards: vec![ShardEntry {
            shard: 0,
            object: object("galleries/g/n/shard-0.parquet"),
            rows: 2_048,
            approximate: None,
        }],
        skipped: skipped(),
    };
    check("embedded", &manifest);
    let shards = manifest.shards.iter().cloned();
    let indexed = |entry| ShardEntry { approximate: Some(object("galleries/g/n/approximate-0.bin")), ..entry };
    check("indexed", &GenerationManifest { shards: shards.map(indexed).collect(), ..manifest.clone() });
    check("imported", &GenerationManifest { origin: Origin::Elsewhere, ..manifest });
    let manifest = ReportManifest {
        report: job("evaluate-1"),
        generation: generation(),
        model: job("train-1"),
        rows: Split::Test,
        items: 815,
        settings: EvaluateSettings::default(),
        json: object("reports/r/report-0.json"),
        queries: object("reports/r/queries-0.parquet"),
        html: object("reports/r/report-0.html"),
        headline: headline(),
        trec: Some(TrecFiles {
            queries: 306,
            run: object("reports/r/run-0.trec"),
            qrels: object("reports/r/qrels-0.trec"),
            graded_qrels: object("reports/r/qrels-graded-0.trec"),
        }),
    };
    check("evaluated", &manifest);
    check("evaluated-own", &ReportManifest { settings: every_query_setting(), ..manifest });
    let release = Release {
        alias: name("main"),
        number: 4,
        job: Some(job("pipeline-1")),
        replaces: Some(3),
        rolls_back_to: None,
        model: job("pipeline-1"),
        generation: generation(),
        report: Some(job("pipeline-1")),
        gate: Some(gate(true)),
        created_ms: 1_700_000_000_000,
        warnings: vec!["no searcher was running".into()],
    };
    check("promoted", &release);
}

#[test]
fn searches() {
    let terms = vec![
        Term::Attributes { with: vec!["Smiling".into()], without: vec!["Male".into()] },
        Term::Image { bytes: vec![0xff, 0xd8, 0xff] },
        Term::Item { item: "000001.jpg".into() },
        Term::Vector { values: vec![0.5, -0.25] },
    ];
    let request = SearchRequest {
        alias: name("main"),
        terms: terms.into_iter().map(|term| WeightedTerm { weight: 1.0, term }).collect(),
        k: 20,
        min_coverage: 0.5,
        deadline_ms: 2_000,
        filter: LabelFilter::default(),
        recall: None,
        paged: false,
        cursor: None,
        explain: false,
    };
    check("mixed", &request);
    check("explained", &SearchRequest { explain: true, ..request.clone() });
    let filter = LabelFilter { with: vec!["Smiling".into()], without: vec!["Male".into()] };
    check("filtered", &SearchRequest { filter, recall: Some(0.95), paged: true, ..request.clone() });
    check("next", &SearchRequest { terms: vec![], cursor: Some("bmV4dA".into()), ..request });
    let cursor = Cursor {
        alias: name("main"),
        release: 4,
        model: job("pipeline-1"),
        generation: generation(),
        vector: vec![0.6, 0.8],
        left_out: vec!["000001.jpg".into()],
        filter: vec![(1, false)],
        recall: Some(0.95),
        answered: 20,
        d2: 0.3,
        item: "000002.jpg".into(),
        explain: vec![],
    };
    check("page", &cursor);
    check("explained", &Cursor { explain: vec![(0, true), (1, false)], ..cursor });
    let results = SearchResults {
        release: 4,
        generation: generation(),
        hits: vec![Hit {
            item: "000001.jpg".into(),
            distance: 0.1 + 0.2,
            labels: vec![1, -1],
            image: ImageRef { part: "datasets/d/v/part-0.parquet".into(), row: 17 },
        }],
        coverage: Coverage {
            rows: 5,
            total_rows: 9,
            shards: 1,
            total_shards: 2,
            reasons: vec!["shard 1: nobody holds it".into()],
        },
        vocabulary: vocabulary().names,
        timings_ms: vec![("total".into(), 3.25)],
        matching: None,
        recall: None,
        next: None,
        explanation: None,
    };
    check("found", &SearchReply::Found(Box::new(results.clone())));
    let recall = Recall { estimate: 0.97, shards: 1, exact: vec!["shard 0: it has no approximate index".into()] };
    let results = SearchResults { matching: Some(3), recall: Some(recall), next: Some("bmV4dA".into()), ..results };
    check("page", &SearchReply::Found(Box::new(results.clone())));
    let calibration = Calibration { rows: 2_048, has: 900, right: 0.875, slope: 3.5, intercept: -0.25 };
    let smiling =
        ExplainedAttribute { name: "Smiling".into(), wanted: 1, calibration: Some(calibration), uncalibrated: None };
    let male =
        ExplainedAttribute { name: "Male".into(), wanted: -1, calibration: None, uncalibrated: Some("3 rows".into()) };
    let explained = HitExplanation {
        agrees: 1,
        attributes: vec![
            Finding { label: 1, margin: 0.25, estimate: Some(0.75), agrees: Some(true) },
            Finding { label: 0, margin: -0.5, estimate: None, agrees: None },
        ],
    };
    let explanation = Explanation { attributes: vec![smiling, male], hits: vec![explained] };
    let results = SearchResults { explanation: Some(explanation), ..results };
    check("explained", &SearchReply::Found(Box::new(results)));
    let error = SearchError { kind: SearchErrorKind::Coverage, message: "half is missing".into(), nearest: vec![] };
    check("error", &SearchReply::Error(error));
    let error = SearchError { kind: SearchErrorKind::Overloaded, message: "too many".into(), nearest: vec![] };
    check("overloaded", &SearchReply::Error(error));
    let error = SearchError { kind: SearchErrorKind::Expired, message: "is gone".into(), nearest: vec![] };
    check("expired", &SearchReply::Error(error));

    let top_k = |filter, recall| LeafAsk::TopK {
        shards: vec![0, 2],
        query: vec![0.6, 0.8],
        k: 20,
        details: true,
        filter,
        recall,
    };
    let anchors = vec![
        Anchor { attribute: 0, toward: vec![0.6, 0.8], away: Some(vec![0.8, -0.6]) },
        Anchor { attribute: 1, toward: vec![1.0, 0.0], away: None },
    ];
    let asks = [
        ("top-k", top_k(vec![], None)),
        ("filtered", top_k(vec![(0, true), (1, false)], None)),
        ("approximate", top_k(vec![], Some(0.95))),
        ("details", LeafAsk::Details { rows: vec![(0, 17)] }),
        ("embedding", LeafAsk::Embedding { shards: vec![0], item: "000001.jpg".into() }),
        ("margins", LeafAsk::Margins { rows: vec![(0, 17)], anchors: anchors.clone() }),
        ("sample", LeafAsk::Sample { shards: vec![0], anchors, rows: 2_048 }),
    ];
    for (case, ask) in asks {
        check(case, &LeafRequest { generation: generation(), deadline_ms: 900, number: 77, ask });
    }
    check("cancel", &LeafCancel { number: 77 });
    let candidate = Candidate { d2: 0.3, item: "000001.jpg".into(), shard: 0, row: 17 };
    let top_k = |searched| LeafAnswer::TopK {
        candidates: vec![candidate.clone()],
        details: vec![Detail { labels: vec![1, 0], source_part: 0, source_row: 5 }],
        searched,
        missing: vec![(2, "not held".into())],
    };
    let whole = Searched::whole(0, 2_048);
    let how = |how| Searched { how: Some(how), ..whole.clone() };
    let approximate = [
        how(How::Approximately { recall: 0.97 }),
        Searched { shard: 1, ..how(How::Exactly { because: "it has no approximate index".into() }) },
    ];
    let answers = [
        ("top-k", top_k(vec![whole.clone()])),
        ("filtered", top_k(vec![Searched { matching: 12, ..whole.clone() }])),
        ("approximate", top_k(approximate.to_vec())),
        ("details", LeafAnswer::Details(vec![Detail { labels: vec![1, 0], source_part: 0, source_row: 5 }])),
        ("embedding", LeafAnswer::Embedding(Some(vec![0.6, 0.8]))),
        ("refused", LeafAnswer::Refused("generation `x` is not loaded".into())),
        ("overloaded", LeafAnswer::Overloaded),
        ("margins", LeafAnswer::Margins(vec![0.25, -0.5])),
        ("sample", LeafAnswer::Sample(vec![Sample { shard: 0, labels: vec![1, 0], margins: vec![0.25, -0.5] }])),
    ];
    for (case, answer) in answers {
        check(case, &LeafReply { worker: worker(), took_us: 850, answer });
    }
}

#[test]
fn retention() {
    check("model", &Condemned { place: "models/train-1".into(), by: "3f".into(), at_ms: 1_700_000_000_000 });
    let places = ["galleries/faces/embed-1", "models/train-1"].map(String::from).to_vec();
    check("promotion", &Hold { places, at_ms: 1_700_000_000_000 });
}

#[test]
fn table_schemas() {
    let schemas = [
        ("dataset-part-v1", tables::dataset_part_schema(2)),
        ("shard-v1", tables::shard_schema(3, 2)),
        ("training-v1", tables::training_schema()),
        ("query-report-v3", tables::query_report_schema()),
        ("answers-v1", tables::answer_schema()),
    ];
    for (name, schema) in schemas {
        compare(&folder().join("tables").join(format!("{name}.txt")), lines(&schema.fields).concat().as_bytes());
    }
}

#[test]
fn query_reports_of_earlier_versions_begin_the_later_ones() {
    let first = std::fs::read_to_string(folder().join("tables/query-report-v1.txt")).unwrap();
    let schema = tables::query_report_schema();
    assert_eq!(lines(&schema.fields[..tables::QUERY_REPORT_COLUMNS_V1]).concat(), first);
    let second = std::fs::read_to_string(folder().join("tables/query-report-v2.txt")).unwrap();
    assert_eq!(lines(&schema.fields[..tables::QUERY_REPORT_COLUMNS_V2]).concat(), second);
}

fn lines(fields: &[std::sync::Arc<arrow_schema::Field>]) -> Vec<String> {
    fields.iter().map(|field| format!("{}: {}\n", field.name(), field.data_type())).collect()
}

fn question_part() -> QuestionPart {
    QuestionPart { object: object("questions/part.jsonl"), from: 0, questions: 2 }
}

#[test]
fn files_of_questions() {
    let file = SearchFile { alias: name("main"), parts: vec![question_part()] };
    let request = JobRequest {
        id: None,
        work: RequestedWork::Search(file),
        device: DeviceClass::Any,
        priority: Priority::Lo,
        options: JobOptions::default(),
    };
    check("submit-search", &ApiRequest::Submit(request));
    let stage = SearchStage {
        alias: name("main"),
        release: 4,
        model: job("pipeline-1"),
        generation: generation(),
        parts: vec![question_part()],
    };
    let (device, priority, options) = (DeviceClass::Any, Priority::Lo, JobOptions::default());
    check("search", &JobSpec { work: JobWork::Search(stage), device, priority, options });
    for (case, id, work) in [
        ("search-part", "answers-00000", TaskWork::SearchPart { part: 0 }),
        ("search-finish", "search", TaskWork::SearchFinish),
    ] {
        check(case, &TaskMessage { job: job("search-1"), run: RunNumber(1), task: task(id), work });
    }
    let planned = PlannedTask { id: task("answers-00000"), work: TaskWork::SearchPart { part: 0 } };
    let stage = Stage { name: "answers".into(), after: vec![], tasks: vec![planned], expands: None };
    check("search", &Plan { stages: vec![stage] });
    let record = TaskRecord {
        job: job("search-1"),
        run: RunNumber(1),
        task: task("answers-00000"),
        worker: worker(),
        attempt: 1,
        started_ms: 1_700_000_000_000,
        finished_ms: 1_700_000_060_000,
        device_ms: 50_000,
        output: TaskOutput::Answers { object: object("searches/search-1/answers.parquet"), questions: 2, failed: 1 },
    };
    check("answers", &record);
    let term = WeightedTerm { weight: 1.0, term: Term::Item { item: "000001.jpg".into() } };
    let request = SearchRequest::new(name("main"), vec![term], 20);
    let question = FileQuestion { query: 0, id: Some("q1".into()), request: Some(request), error: None };
    check("asked", &question);
    let error = Some("unknown field `wiht`".into());
    check("wrong", &FileQuestion { query: 1, id: None, request: None, error });
    let manifest = SearchManifest {
        search: job("search-1"),
        alias: name("main"),
        release: 4,
        model: job("pipeline-1"),
        generation: generation(),
        questions: 2,
        failed: 1,
        answers: vec![AnswerPart {
            object: object("searches/search-1/answers.parquet"),
            from: 0,
            questions: 2,
            failed: 1,
        }],
    };
    check("answered", &manifest);
}
