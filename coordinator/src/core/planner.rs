//! Cuts a resolved spec into a plan: which tasks there are, and which stage waits for which.
//!
//! Everything here is a pure function of its arguments. A plan is stored when its job is accepted and never made
//! again; a stage whose size only a task can know (`parts`, `scores`) is expanded from that task's record, and
//! every coordinator that expands it gets the same tasks.

use likeness_contract::ids::{JobId, TaskId};
use likeness_contract::jobs::{
    Baseline, DeviceClass, EmbedStage, GenerationRef, JobSpec, JobWork, Plan, PlannedTask, Stage, TaskOutput,
    TaskRecord, TaskWork, TrainStage, task_ids,
};
use likeness_contract::searches::SearchStage;
use likeness_contract::subjects;

use super::validate::MAX_NUMBERED;

/// Name of the stage that a scan's record expands.
const PARTS: &str = "parts";
/// Name of the stage that a scan of embeddings from elsewhere expands.
const SHARDS: &str = "embed shards";
/// Name of the stage that the queries' record expands into ranges over the job's own generation.
const SCORES: &str = "scores";
/// Name of the stage that the queries' record expands into ranges over the generation compared with.
const BASELINE_SCORES: &str = "baseline scores";

/// When a stage may be left behind without some of its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// Fewest tasks with a record.
    pub least: usize,
    /// For so long after its first task was published it waits for the others, milliseconds.
    pub deadline_ms: u64,
}

/// Why a record tells no tasks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    /// There is nothing to do, which is a mistake in what was asked.
    #[error("{0}")]
    Empty(&'static str),
    /// More tasks than a job may have.
    #[error("{0} tasks, expected below {MAX_NUMBERED}: raise the rows or queries of a task")]
    TooMany(u64),
    /// The record is not the one that the stage waits for.
    #[error("the record of `{task}` does not tell the tasks of stage `{stage}`")]
    Mismatch {
        /// Task of the record.
        task: TaskId,
        /// Name of the stage.
        stage: String,
    },
}

/// The plan of a job.
pub fn plan(job: &JobId, spec: &JobSpec) -> Plan {
    let mut stages = Stages::default();
    match &spec.work {
        JobWork::Ingest { .. } => plan_ingest(&mut stages),
        JobWork::Train(train) => {
            plan_train(&mut stages, train);
        }
        JobWork::Embed { model, embed } | JobWork::EmbedAnew { model, embed } => {
            plan_embed(&mut stages, job, model, &own_generation(job, embed), embed, &[], "");
        }
        JobWork::Import(_) => plan_import(&mut stages, job),
        JobWork::Evaluate { generation, .. } => {
            plan_evaluate(&mut stages, generation, &[]);
        }
        JobWork::Pipeline { train, embed, baseline, .. } => {
            plan_pipeline(&mut stages, job, train, embed, baseline.as_ref());
        }
        JobWork::Search(search) => plan_search(&mut stages, search),
    }
    Plan { stages: stages.0 }
}

/// The plan with embeddings that copy: of `(target, earlier)` the shards of the generation `target` copy from `earlier`.
pub fn copy_from(mut plan: Plan, earlier: &[(GenerationRef, GenerationRef)]) -> Plan {
    for task in plan.stages.iter_mut().flat_map(|stage| &mut stage.tasks) {
        let TaskWork::EmbedShard { model, target, shard, from, rows } = &task.work else { continue };
        if let Some((_, earlier)) = earlier.iter().find(|(of, _)| of == target) {
            let (model, target, earlier) = (model.clone(), target.clone(), earlier.clone());
            task.work = TaskWork::EmbedShardAfter { model, target, shard: *shard, from: *from, rows: *rows, earlier };
        }
    }
    plan
}

/// The tasks of a stage with `expands`, from the record of the task that it names.
pub fn expand(
    spec: &JobSpec,
    job: &JobId,
    stage: &Stage,
    record: &TaskRecord,
) -> Result<Vec<PlannedTask>, ExpandError> {
    match (stage.name.as_str(), &record.output, &spec.work) {
        (PARTS, TaskOutput::Scan { rows, .. }, JobWork::Ingest { part_rows, .. }) => parts(*rows, *part_rows),
        (SHARDS, TaskOutput::ImportScan { rows, .. }, JobWork::Import(import)) => {
            imported_shards(job, *rows, import.shard_rows)
        }
        (SCORES | BASELINE_SCORES, TaskOutput::Queries { .. } | TaskOutput::PooledQueries { .. }, work) => {
            let baseline = stage.name == BASELINE_SCORES;
            let asked = asked_generation(job, work, baseline);
            let (generation, per_task) = asked.ok_or_else(|| mismatch(stage, record))?;
            ranges(&generation, asked_queries(&record.output, baseline), per_task, baseline)
        }
        _ => Err(mismatch(stage, record)),
    }
}

/// Device class of a task: the job's for what computes on images or tensors, any for the rest.
pub fn device_of(spec: &JobSpec, work: &TaskWork) -> DeviceClass {
    match work {
        TaskWork::IngestScan
        | TaskWork::IngestFinish
        | TaskWork::EmbedFinish { .. }
        | TaskWork::ImportScan
        | TaskWork::ImportFinish
        | TaskWork::EvaluateQueries { .. }
        | TaskWork::SearchFinish
        | TaskWork::Gate => DeviceClass::Any,
        TaskWork::IngestPart { .. }
        | TaskWork::TrainInit
        | TaskWork::TrainSlot { .. }
        | TaskWork::TrainOuter { .. }
        | TaskWork::TrainFinish
        | TaskWork::EmbedShard { .. }
        | TaskWork::EmbedShardAfter { .. }
        | TaskWork::ImportShard { .. }
        | TaskWork::EvaluateRange { .. }
        | TaskWork::EvaluateFinish { .. }
        | TaskWork::SearchPart { .. } => spec.device,
    }
}

/// Subject of a task's message.
pub fn subject_of(spec: &JobSpec, job: &JobId, task: &TaskId, work: &TaskWork) -> String {
    subjects::task(work.kind(), device_of(spec, work), spec.priority, job, task)
}

fn mismatch(stage: &Stage, record: &TaskRecord) -> ExpandError {
    ExpandError::Mismatch { task: record.task.clone(), stage: stage.name.clone() }
}

/// Stages in the making; a stage is named by its position.
#[derive(Default)]
struct Stages(Vec<Stage>);

impl Stages {
    fn push(&mut self, name: impl Into<String>, after: &[u32], tasks: Vec<PlannedTask>) -> u32 {
        self.0.push(Stage { name: name.into(), after: after.to_vec(), tasks, expands: None });
        self.last()
    }

    fn push_one(&mut self, name: impl Into<String>, after: &[u32], id: TaskId, work: TaskWork) -> u32 {
        self.push(name, after, vec![PlannedTask { id, work }])
    }

    fn push_expanding(&mut self, name: &str, after: &[u32], teller: TaskId) -> u32 {
        self.0.push(Stage { name: name.into(), after: after.to_vec(), tasks: Vec::new(), expands: Some(teller) });
        self.last()
    }

    fn last(&self) -> u32 {
        u32::try_from(self.0.len() - 1).expect("a plan has fewer than 2³² stages")
    }
}

fn plan_ingest(stages: &mut Stages) {
    let scan = stages.push_one("scan", &[], task_ids::scan(), TaskWork::IngestScan);
    let parts = stages.push_expanding(PARTS, &[scan], task_ids::scan());
    stages.push_one("dataset", &[parts], task_ids::ingest_finish(), TaskWork::IngestFinish);
}

fn plan_import(stages: &mut Stages, job: &JobId) {
    let scan = stages.push_one("embed scan", &[], task_ids::import_scan(), TaskWork::ImportScan);
    let shards = stages.push_expanding(SHARDS, &[scan], task_ids::import_scan());
    stages.push_one("generation", &[shards], task_ids::embed_finish(job, job), TaskWork::ImportFinish);
}

fn imported_shards(job: &JobId, rows: u64, shard_rows: u32) -> Result<Vec<PlannedTask>, ExpandError> {
    if rows == 0 {
        return Err(ExpandError::Empty("the files hold no row"));
    }
    let shard_task = |(shard, (from, rows))| PlannedTask {
        id: task_ids::shard(job, job, shard),
        work: TaskWork::ImportShard { shard, from, rows },
    };
    Ok((0..).zip(few_slices(rows, shard_rows)?).map(shard_task).collect())
}

/// Returns the stage after which the model is there.
fn plan_train(stages: &mut Stages, train: &TrainStage) -> u32 {
    let mut before = stages.push_one("init", &[], task_ids::train_init(), TaskWork::TrainInit);
    for round in 0..train.rounds() {
        let slots = stages.push(format!("round {round}"), &[before], slots(train, round));
        let outer = TaskWork::TrainOuter { round };
        before = stages.push_one(format!("round {round} outer"), &[slots], task_ids::outer(round), outer);
    }
    stages.push_one("model", &[before], task_ids::train_finish(), TaskWork::TrainFinish)
}

fn slots(train: &TrainStage, round: u32) -> Vec<PlannedTask> {
    let inner_steps = u64::from(train.train.inner_steps);
    let first_step = u64::from(round) * inner_steps;
    let steps = inner_steps.min(train.total_steps() - first_step);
    let steps = u32::try_from(steps).expect("at most `inner_steps`, a u32");
    let slot_task = |slot| PlannedTask {
        id: task_ids::slot(round, slot),
        work: TaskWork::TrainSlot { round, slot, first_step, steps },
    };
    (0..train.train.optimizer.slots()).map(slot_task).collect()
}

/// Of a stage that may be left behind before all of its tasks are done: the slots of a round.
pub fn quorum(spec: &JobSpec, stage: &Stage) -> Option<Quorum> {
    let (JobWork::Train(train) | JobWork::Pipeline { train, .. }) = &spec.work else { return None };
    let rounds = train.train.optimizer.rounds().filter(|rounds| rounds.may_leave_out())?;
    let of_slots = matches!(stage.tasks.first()?.work, TaskWork::TrainSlot { .. });
    let deadline_ms = u64::from(rounds.deadline_s) * 1_000;
    of_slots.then_some(Quorum { least: rounds.quorum as usize, deadline_ms })
}

fn own_generation(job: &JobId, embed: &EmbedStage) -> GenerationRef {
    GenerationRef { gallery: embed.gallery.clone(), generation: job.clone() }
}

/// Returns the stage after which the generation is there.
fn plan_embed(
    stages: &mut Stages,
    job: &JobId,
    model: &JobId,
    target: &GenerationRef,
    embed: &EmbedStage,
    after: &[u32],
    prefix: &str,
) -> u32 {
    let shard_rows = u64::from(embed.shard_rows.max(1));
    let shard_task = |(shard, (from, rows))| PlannedTask {
        id: task_ids::shard(job, &target.generation, shard),
        work: TaskWork::EmbedShard { model: model.clone(), target: target.clone(), shard, from, rows },
    };
    let tasks = (0..).zip(slices(embed.gallery_rows, shard_rows)).map(shard_task).collect();
    let shards = stages.push(format!("{prefix}embed"), after, tasks);
    let finish = TaskWork::EmbedFinish { model: model.clone(), target: target.clone() };
    let id = task_ids::embed_finish(job, &target.generation);
    stages.push_one(format!("{prefix}generation"), &[shards], id, finish)
}

/// Returns the stages `queries` and `report`.
fn plan_evaluate(stages: &mut Stages, generation: &GenerationRef, after: &[u32]) -> (u32, u32) {
    let draw = TaskWork::EvaluateQueries { generation: generation.clone() };
    let queries = stages.push_one("queries", after, task_ids::queries(), draw);
    let scores = stages.push_expanding(SCORES, &[queries], task_ids::queries());
    let finish = TaskWork::EvaluateFinish { generation: generation.clone() };
    let report = stages.push_one("report", &[scores], task_ids::evaluate_finish(), finish);
    (queries, report)
}

fn plan_pipeline(
    stages: &mut Stages,
    job: &JobId,
    train: &TrainStage,
    embed: &EmbedStage,
    baseline: Option<&Baseline>,
) {
    let model = plan_train(stages, train);
    let own = own_generation(job, embed);
    let generation = plan_embed(stages, job, job, &own, embed, &[model], "");
    let to_make = baseline.filter(|baseline| baseline.embed);
    let baseline_generation =
        to_make.map(|b| plan_embed(stages, job, &b.model, &b.generation, embed, &[model], "baseline "));
    let (queries, report) = plan_evaluate(stages, &own, &[generation]);
    let mut before_gate = vec![report];
    if baseline.is_some() {
        let after: Vec<u32> = [queries].into_iter().chain(baseline_generation).collect();
        before_gate.push(stages.push_expanding(BASELINE_SCORES, &after, task_ids::queries()));
    }
    stages.push_one("gate", &before_gate, task_ids::gate(), TaskWork::Gate);
}

fn plan_search(stages: &mut Stages, search: &SearchStage) {
    let parts = u32::try_from(search.parts.len()).expect("fewer parts than a job may have tasks");
    let task = |part| PlannedTask { id: task_ids::answers(part), work: TaskWork::SearchPart { part } };
    let answers = stages.push("answers", &[], (0..parts).map(task).collect());
    stages.push_one("search", &[answers], task_ids::search_finish(), TaskWork::SearchFinish);
}

fn parts(rows: u64, part_rows: u32) -> Result<Vec<PlannedTask>, ExpandError> {
    if rows == 0 {
        return Err(ExpandError::Empty("the source lists no rows"));
    }
    let part_task = |(part, (from, rows))| PlannedTask {
        id: task_ids::part(part),
        work: TaskWork::IngestPart { part, from, rows },
    };
    Ok((0..).zip(few_slices(rows, part_rows)?).map(part_task).collect())
}

fn ranges(
    generation: &GenerationRef,
    queries: u32,
    per_task: u32,
    baseline: bool,
) -> Result<Vec<PlannedTask>, ExpandError> {
    if queries == 0 {
        return Err(ExpandError::Empty("no query has enough relevant items: lower `min_relevant` or use more rows"));
    }
    let range_task = |(range, (from, queries))| PlannedTask {
        id: task_ids::range(baseline, range),
        work: TaskWork::EvaluateRange {
            generation: generation.clone(),
            from: u32::try_from(from).expect("below the number of queries, a u32"),
            queries,
        },
    };
    Ok((0..).zip(few_slices(u64::from(queries), per_task)?).map(range_task).collect())
}

/// The generation that is ranked, and the queries per task.
fn asked_generation(job: &JobId, work: &JobWork, baseline: bool) -> Option<(GenerationRef, u32)> {
    match work {
        JobWork::Evaluate { generation, evaluate } if !baseline => {
            Some((generation.clone(), evaluate.settings.queries_per_task))
        }
        JobWork::Pipeline { embed, evaluate, .. } if !baseline => {
            Some((own_generation(job, embed), evaluate.settings.queries_per_task))
        }
        JobWork::Pipeline { baseline: Some(compared), evaluate, .. } => {
            Some((compared.generation.clone(), evaluate.settings.queries_per_task))
        }
        _ => None,
    }
}

/// How many of the drawn queries are asked: the generation compared with answers those that the gate compares by alone.
fn asked_queries(drawn: &TaskOutput, baseline: bool) -> u32 {
    match drawn {
        TaskOutput::PooledQueries { pooled, .. } if baseline => *pooled,
        TaskOutput::PooledQueries { queries, .. } | TaskOutput::Queries { queries, .. } => *queries,
        _ => 0,
    }
}

/// A record may say anything: it must not cost unbounded memory.
fn few_slices(total: u64, size: u32) -> Result<impl Iterator<Item = (u64, u32)>, ExpandError> {
    let size = u64::from(size.max(1));
    let tasks = total.div_ceil(size);
    if tasks >= MAX_NUMBERED { Err(ExpandError::TooMany(tasks)) } else { Ok(slices(total, size)) }
}

/// `0..total` in slices of `size`, the last one shorter: (first, how many).
fn slices(total: u64, size: u64) -> impl Iterator<Item = (u64, u32)> {
    (0..total.div_ceil(size)).map(move |i| {
        let from = i * size;
        (from, u32::try_from(size.min(total - from)).expect("a slice is at most its size, a u32"))
    })
}

#[cfg(test)]
#[path = "planner_tests.rs"]
mod tests;
