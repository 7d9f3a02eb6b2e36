use super::super::testing::*;
use super::*;
use likeness_contract::jobs::{EvaluateStage, Priority};

/// `name ← after: task task …`, one line a stage.
fn drawn(plan: &Plan) -> Vec<String> {
    let line = |stage: &Stage| {
        let tasks: Vec<&str> = stage.tasks.iter().map(|task| task.id.as_str()).collect();
        let told = stage.expands.as_ref().map(|teller| format!("({teller})")).unwrap_or_default();
        format!("{} {:?}: {}{told}", stage.name, stage.after, tasks.join(" "))
    };
    plan.stages.iter().map(line).collect()
}

fn pipeline(baseline: Option<Baseline>) -> JobSpec {
    spec(JobWork::Pipeline {
        train: train_stage(),
        embed: embed_stage(250, 100),
        evaluate: evaluate_stage(),
        alias: name("live"),
        baseline,
    })
}

fn baseline(embed: bool) -> Baseline {
    let generation = GenerationRef { gallery: name("all"), generation: job_id("old") };
    Baseline { release: 3, model: job_id("old"), generation, embed }
}

#[test]
fn an_ingest_scans_reads_parts_and_closes_the_dataset() {
    let plan = plan(&job_id("j"), &ingest(100));
    assert_eq!(drawn(&plan), ["scan []: scan", "parts [0]: (scan)", "dataset [1]: dataset"]);
}

#[test]
fn a_scan_tells_the_parts() {
    let (job, spec) = (job_id("j"), ingest(100));
    let stage = &plan(&job, &spec).stages[1];
    let tasks = expand(&spec, &job, stage, &record(&job, "scan", scan_output(250))).unwrap();
    let works: Vec<(&str, &TaskWork)> = tasks.iter().map(|task| (task.id.as_str(), &task.work)).collect();
    assert_eq!(
        works,
        [
            ("part-00000", &TaskWork::IngestPart { part: 0, from: 0, rows: 100 }),
            ("part-00001", &TaskWork::IngestPart { part: 1, from: 100, rows: 100 }),
            ("part-00002", &TaskWork::IngestPart { part: 2, from: 200, rows: 50 }),
        ]
    );
    let again = expand(&spec, &job, stage, &record(&job, "scan", scan_output(250))).unwrap();
    assert_eq!(again, tasks, "expanding is a pure function");
}

#[test]
fn a_source_without_rows_is_a_mistake() {
    let (job, spec) = (job_id("j"), ingest(100));
    let stage = &plan(&job, &spec).stages[1];
    let error = expand(&spec, &job, stage, &record(&job, "scan", scan_output(0))).unwrap_err();
    assert_eq!(error.to_string(), "the source lists no rows");
}

#[test]
fn a_record_that_tells_of_endless_rows_is_refused() {
    let (job, spec) = (job_id("j"), ingest(1));
    let stage = &plan(&job, &spec).stages[1];
    let error = expand(&spec, &job, stage, &record(&job, "scan", scan_output(u64::MAX))).unwrap_err();
    assert_eq!(error, ExpandError::TooMany(u64::MAX));
}

#[test]
fn a_record_of_another_kind_tells_nothing() {
    let (job, spec) = (job_id("j"), ingest(100));
    let stage = &plan(&job, &spec).stages[1];
    let error = expand(&spec, &job, stage, &record(&job, "scan", shard_output())).unwrap_err();
    assert_eq!(error.to_string(), "the record of `scan` does not tell the tasks of stage `parts`");
}

#[test]
fn a_training_goes_round_by_round_and_its_last_round_is_short() {
    let plan = plan(&job_id("j"), &spec(JobWork::Train(train_stage())));
    assert_eq!(
        drawn(&plan),
        [
            "init []: init",
            "round 0 [0]: round-00000-slot-000",
            "round 0 outer [1]: round-00000-outer",
            "round 1 [2]: round-00001-slot-000",
            "round 1 outer [3]: round-00001-outer",
            "round 2 [4]: round-00002-slot-000",
            "round 2 outer [5]: round-00002-outer",
            "model [6]: model",
        ]
    );
    let slot = |stage: usize| plan.stages[stage].tasks[0].work.clone();
    assert_eq!(slot(1), TaskWork::TrainSlot { round: 0, slot: 0, first_step: 0, steps: 4 });
    assert_eq!(slot(3), TaskWork::TrainSlot { round: 1, slot: 0, first_step: 4, steps: 4 });
    assert_eq!(slot(5), TaskWork::TrainSlot { round: 2, slot: 0, first_step: 8, steps: 2 });
}

#[test]
fn slots_of_a_round_are_tasks_side_by_side_that_share_the_batches() {
    let spec = train_in_rounds(2, 30);
    let plan = plan(&job_id("j"), &spec);
    assert_eq!(
        drawn(&plan),
        [
            "init []: init",
            "round 0 [0]: round-00000-slot-000 round-00000-slot-001 round-00000-slot-002",
            "round 0 outer [1]: round-00000-outer",
            "round 1 [2]: round-00001-slot-000 round-00001-slot-001 round-00001-slot-002",
            "round 1 outer [3]: round-00001-outer",
            "model [4]: model",
        ]
    );
    let slot = |stage: usize| plan.stages[stage].tasks[2].work.clone();
    assert_eq!(slot(1), TaskWork::TrainSlot { round: 0, slot: 2, first_step: 0, steps: 2 });
    assert_eq!(slot(3), TaskWork::TrainSlot { round: 1, slot: 2, first_step: 2, steps: 1 });
    let quorums: Vec<_> = plan.stages.iter().map(|stage| quorum(&spec, stage)).collect();
    let of_slots = Some(Quorum { least: 2, deadline_ms: 30_000 });
    assert_eq!(quorums, [None, of_slots, None, of_slots, None, None]);
    assert!(plan.stages.iter().all(|stage| quorum(&train_in_rounds(3, 0), stage).is_none()));
}

#[test]
fn an_embedding_is_cut_into_shards_of_which_the_last_is_smaller() {
    let plan = plan(&job_id("j"), &embed(250, 100));
    assert_eq!(drawn(&plan), ["embed []: shard-00000 shard-00001 shard-00002", "generation [0]: generation"]);
    let TaskWork::EmbedShard { model, target, shard, from, rows } = &plan.stages[0].tasks[2].work else { panic!() };
    assert_eq!((model.as_str(), target.generation.as_str(), *shard, *from, *rows), ("model-1", "j", 2, 200, 50));
}

#[test]
fn embeddings_that_copy_name_what_they_copy_from() {
    let plan = plan(&job_id("j"), &pipeline(Some(baseline(true))));
    let target = |plan: &Plan| -> Vec<(String, Option<String>)> {
        let tasks = plan.stages.iter().flat_map(|stage| &stage.tasks);
        let of = |work: &TaskWork| match work {
            TaskWork::EmbedShard { target, .. } => Some((target.generation.to_string(), None)),
            TaskWork::EmbedShardAfter { target, earlier, .. } => {
                Some((target.generation.to_string(), Some(earlier.generation.to_string())))
            }
            _ => None,
        };
        let mut all: Vec<_> = tasks.filter_map(|task| of(&task.work)).collect();
        all.dedup();
        all
    };
    let made = target(&plan);
    let compared = made.iter().find(|(generation, _)| generation != "j").unwrap().0.clone();
    let of = |id: &str| GenerationRef { gallery: baseline(true).generation.gallery, generation: job_id(id) };
    let copying = copy_from(plan.clone(), &[(of(&compared), of("before"))]);
    assert_eq!(target(&copying), [("j".into(), None), (compared, Some("before".into()))]);
    assert_eq!(drawn(&copying), drawn(&plan), "ids and stages are the same");
    assert_eq!(copy_from(plan.clone(), &[]), plan);
}

#[test]
fn an_import_learns_its_shards_from_its_scan() {
    let (job, spec) = (job_id("j"), import(100));
    let plan = plan(&job, &spec);
    assert_eq!(
        drawn(&plan),
        ["embed scan []: shard-list", "embed shards [0]: (shard-list)", "generation [1]: generation"]
    );
    let scanned = |rows| record(&job, "shard-list", import_scan_output(rows));
    let shards = expand(&spec, &job, &plan.stages[1], &scanned(230)).unwrap();
    let ids: Vec<&str> = shards.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["shard-00000", "shard-00001", "shard-00002"]);
    assert_eq!(shards[2].work, TaskWork::ImportShard { shard: 2, from: 200, rows: 30 });
    assert!(matches!(expand(&spec, &job, &plan.stages[1], &scanned(0)), Err(ExpandError::Empty(_))));
    let other = record(&job, "shard-list", scan_output(5));
    assert!(matches!(expand(&spec, &job, &plan.stages[1], &other), Err(ExpandError::Mismatch { .. })));
}

#[test]
fn an_evaluation_learns_the_number_of_its_queries_from_the_first_task() {
    let job = job_id("j");
    let generation = GenerationRef { gallery: name("all"), generation: job_id("g") };
    let evaluate: EvaluateStage = evaluate_stage();
    let spec = spec(JobWork::Evaluate { generation: generation.clone(), evaluate });
    let plan = plan(&job, &spec);
    assert_eq!(drawn(&plan), ["queries []: queries", "scores [0]: (queries)", "report [1]: report"]);
    let drawn = record(&job, "queries", TaskOutput::Queries { object: object(), queries: 230 });
    let ranges = expand(&spec, &job, &plan.stages[1], &drawn).unwrap();
    let ids: Vec<&str> = ranges.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["scores-00000", "scores-00001", "scores-00002"]);
    assert_eq!(ranges[2].work, TaskWork::EvaluateRange { generation, from: 200, queries: 30 });
    let none = record(&job, "queries", TaskOutput::Queries { object: object(), queries: 0 });
    assert!(matches!(expand(&spec, &job, &plan.stages[1], &none), Err(ExpandError::Empty(_))));
}

#[test]
fn a_first_pipeline_is_compared_with_chance() {
    let stages = drawn(&plan(&job_id("j"), &pipeline(None)));
    assert_eq!(
        stages[7..],
        [
            "model [6]: model",
            "embed [7]: shard-00000 shard-00001 shard-00002",
            "generation [8]: generation",
            "queries [9]: queries",
            "scores [10]: (queries)",
            "report [11]: report",
            "gate [12]: gate",
        ]
    );
}

fn asked_of(work: &TaskWork) -> u32 {
    let TaskWork::EvaluateRange { queries, .. } = work else { panic!("no range: {work:?}") };
    *queries
}

#[test]
fn a_pipeline_ranks_the_release_before_with_the_same_queries() {
    let (job, spec) = (job_id("j"), pipeline(Some(baseline(false))));
    let plan = plan(&job, &spec);
    assert_eq!(drawn(&plan)[13..], ["baseline scores [10]: (queries)", "gate [12, 13]: gate"]);
    let drawn = record(&job, "queries", TaskOutput::Queries { object: object(), queries: 130 });
    let ranges = expand(&spec, &job, &plan.stages[13], &drawn).unwrap();
    let ids: Vec<&str> = ranges.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(ids, ["baseline-scores-00000", "baseline-scores-00001"]);
    let pooled = TaskOutput::PooledQueries { object: object(), queries: 130, pooled: 60 };
    let pooled = record(&job, "queries", pooled);
    let asked = |stage: usize| {
        let ranges = expand(&spec, &job, &plan.stages[stage], &pooled).unwrap();
        ranges.iter().map(|task| asked_of(&task.work)).sum::<u32>()
    };
    assert_eq!((asked(11), asked(13)), (130, 60), "of the release before only what the gate compares by is asked");
    let TaskWork::EvaluateRange { generation, .. } = &ranges[0].work else { panic!() };
    assert_eq!(generation.generation.as_str(), "old");
    let own = expand(&spec, &job, &plan.stages[11], &drawn).unwrap();
    let TaskWork::EvaluateRange { generation, .. } = &own[0].work else { panic!() };
    assert_eq!(generation.generation.as_str(), "j");
}

#[test]
fn a_pipeline_embeds_the_gallery_with_the_model_before_where_nobody_did() {
    let plan = plan(&job_id("j"), &pipeline(Some(baseline(true))));
    assert_eq!(
        drawn(&plan)[8..],
        [
            "embed [7]: shard-00000 shard-00001 shard-00002",
            "generation [8]: generation",
            "baseline embed [7]: baseline-shard-00000 baseline-shard-00001 baseline-shard-00002",
            "baseline generation [10]: baseline-generation",
            "queries [9]: queries",
            "scores [12]: (queries)",
            "report [13]: report",
            "baseline scores [12, 11]: (queries)",
            "gate [14, 15]: gate",
        ]
    );
    let TaskWork::EmbedShard { model, .. } = &plan.stages[10].tasks[0].work else { panic!() };
    assert_eq!(model.as_str(), "old");
}

#[test]
fn light_tasks_go_to_any_device_and_heavy_ones_to_the_one_asked_for() {
    let job = job_id("j");
    let spec = JobSpec { device: DeviceClass::Cuda, priority: Priority::Hi, ..pipeline(None) };
    let subjects: Vec<String> = plan(&job, &spec)
        .stages
        .iter()
        .flat_map(|stage| &stage.tasks)
        .map(|task| subject_of(&spec, &job, &task.id, &task.work))
        .collect();
    assert_eq!(subjects[0], "likeness.v1.job.train.cuda.hi.j.init");
    assert!(subjects.contains(&"likeness.v1.job.embed.cuda.hi.j.shard-00000".into()));
    assert!(subjects.contains(&"likeness.v1.job.embed.any.hi.j.generation".into()));
    assert!(subjects.contains(&"likeness.v1.job.evaluate.any.hi.j.gate".into()));
}

#[test]
fn every_task_id_of_a_plan_is_its_own() {
    let plan = plan(&job_id("j"), &pipeline(Some(baseline(true))));
    let mut ids: Vec<&TaskId> = plan.stages.iter().flat_map(|stage| &stage.tasks).map(|task| &task.id).collect();
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all);
}

#[test]
fn a_file_of_questions_is_a_task_a_part_and_one_that_joins_them() {
    let part = |from| {
        let digest = likeness_contract::ids::Digest::of(b"");
        let object = likeness_contract::documents::ObjectRef { key: "k".into(), digest, bytes: 1 };
        likeness_contract::searches::QuestionPart { object, from, questions: 5 }
    };
    let generation = GenerationRef { gallery: name("all"), generation: job_id("g") };
    let (alias, model, parts) = (name("live"), job_id("m"), vec![part(0), part(5)]);
    let search = spec(JobWork::Search(SearchStage { alias, release: 1, model, generation, parts }));
    let plan = plan(&job_id("j"), &search);
    assert_eq!(drawn(&plan), ["answers []: answers-00000 answers-00001", "search [0]: search"]);
    assert_eq!(device_of(&search, &plan.stages[1].tasks[0].work), DeviceClass::Any);
}
