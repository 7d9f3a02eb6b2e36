//! What a job takes: its tasks put together in phases, with units of work and time on devices; and what a job that
//! has not begun is expected to take, from what earlier jobs took for work of the same shape.

use likeness_contract::documents::{DatasetManifest, ObjectRef};
use likeness_contract::ids::{Digest, JobId, RunNumber, TaskId, WorkerId};
use likeness_contract::jobs::{
    DatasetRef, DeviceClass, EmbedStage, EvaluateStage, JobSpec, JobWork, Plan, PlannedTask, TaskKind, TaskOutput,
    TaskRecord, TaskWork, TrainStage,
};
use likeness_contract::settings::{Architecture, InnerOptimizer, ModelSettings, QueryEncoding, Split};
use likeness_contract::usage::{Basis, Estimate, PhaseEstimate, PhaseUsage, ServingEstimate, Usage};

use super::planner;

/// What a job's spec names and does not say itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Known {
    /// The model that embeds, or that made the generation that is evaluated.
    pub model: Option<ModelSettings>,
    /// Rows of the generation that is evaluated.
    pub gallery_rows: Option<u64>,
    /// Attributes of its vocabulary.
    pub attributes: Option<u64>,
}

/// Tasks with the time that each took, by phase, in the order in which phases first come.
pub fn by_phase<'a>(
    job: &JobId,
    spec: &JobSpec,
    known: &Known,
    tasks: impl IntoIterator<Item = (&'a TaskWork, u64)>,
) -> Vec<PhaseUsage> {
    let mut phases: Vec<PhaseUsage> = Vec::new();
    for (work, device_ms) in tasks {
        let name = phase_name(job, work);
        let position = phases.iter().position(|phase| phase.name == name).unwrap_or_else(|| {
            phases.push(empty_phase(name, work.kind(), spec, known));
            phases.len() - 1
        });
        let phase = &mut phases[position];
        let units = units(spec, work);
        phase.tasks += 1;
        phase.units += units;
        phase.weight = phase.weight.saturating_add(units.saturating_mul(weight_of_unit(work.kind(), spec, known)));
        phase.device_ms += device_ms;
    }
    phases
}

/// `train`, `embed`; what is embedded for the release that is compared with stands apart.
fn phase_name(job: &JobId, work: &TaskWork) -> &'static str {
    match work {
        TaskWork::EmbedShard { target, .. } | TaskWork::EmbedFinish { target, .. } if target.generation != *job => {
            "baseline embed"
        }
        work => work.kind().name(),
    }
}

fn empty_phase(name: &str, kind: TaskKind, spec: &JobSpec, known: &Known) -> PhaseUsage {
    let (tasks, units, weight, device_ms) = (0, 0, 0, 0);
    let (name, unit, shape) = (name.to_string(), unit_name(kind).to_string(), shape(kind, spec, known));
    PhaseUsage { name, kind, device: spec.device, shape, tasks, units, unit, weight, device_ms }
}

fn unit_name(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Ingest | TaskKind::Embed => "images",
        TaskKind::Train => "triplets",
        TaskKind::Evaluate => "queries",
    }
}

/// Units of a task; one that starts, closes or averages something has none, its time is spread over the others'.
fn units(spec: &JobSpec, work: &TaskWork) -> u64 {
    match work {
        TaskWork::IngestPart { rows, .. }
        | TaskWork::EmbedShard { rows, .. }
        | TaskWork::EmbedShardAfter { rows, .. }
        | TaskWork::ImportShard { rows, .. } => u64::from(*rows),
        TaskWork::TrainSlot { steps, .. } => {
            u64::from(*steps) * training(spec).map_or(1, |train| u64::from(train.train.batch_size))
        }
        TaskWork::EvaluateRange { queries, .. } => u64::from(*queries),
        _ => 0,
    }
}

fn weight_of_unit(kind: TaskKind, spec: &JobSpec, known: &Known) -> u64 {
    match kind {
        TaskKind::Evaluate => gallery_rows(spec, known).unwrap_or(1).max(1),
        TaskKind::Ingest | TaskKind::Train | TaskKind::Embed => 1,
    }
}

fn shape(kind: TaskKind, spec: &JobSpec, known: &Known) -> String {
    let Some(model) = model(spec, known) else { return String::new() };
    match kind {
        TaskKind::Ingest => String::new(),
        TaskKind::Train | TaskKind::Embed => {
            format!("{} at {} px", model.architecture.name(), model.preprocessing.input_px)
        }
        TaskKind::Evaluate => format!("D = {}", model.embedding_dim),
    }
}

fn training(spec: &JobSpec) -> Option<&TrainStage> {
    match &spec.work {
        JobWork::Train(train) | JobWork::Pipeline { train, .. } => Some(train),
        _ => None,
    }
}

fn embedding(spec: &JobSpec) -> Option<&EmbedStage> {
    match &spec.work {
        JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } | JobWork::Pipeline { embed, .. } => {
            Some(embed)
        }
        _ => None,
    }
}

fn evaluation(spec: &JobSpec) -> Option<&EvaluateStage> {
    match &spec.work {
        JobWork::Evaluate { evaluate, .. } | JobWork::Pipeline { evaluate, .. } => Some(evaluate),
        _ => None,
    }
}

fn model<'a>(spec: &'a JobSpec, known: &'a Known) -> Option<&'a ModelSettings> {
    training(spec).map(|train| &train.model).or(known.model.as_ref())
}

fn gallery_rows(spec: &JobSpec, known: &Known) -> Option<u64> {
    embedding(spec).map(|embed| embed.gallery_rows).or(known.gallery_rows)
}

fn attributes(spec: &JobSpec, known: &Known) -> Option<u64> {
    training(spec).map(|train| train.vocabulary.len() as u64).or(known.attributes)
}

/// What an estimate is made from.
#[derive(Debug, Clone, Copy)]
pub struct Grounds<'a> {
    /// What the spec names.
    pub known: &'a Known,
    /// Datasets that it names.
    pub datasets: &'a [DatasetManifest],
    /// What earlier jobs used.
    pub history: &'a [Usage],
    /// Searchers that hold every row (R).
    pub replicas: u32,
}

/// What a job is expected to take.
pub fn estimate(job: &JobId, spec: &JobSpec, plan: &Plan, grounds: Grounds<'_>) -> Estimate {
    let Planned { tasks, open_ended } = planned(job, spec, plan, grounds.known);
    let phases = by_phase(job, spec, grounds.known, tasks.iter().map(|task| (&task.work, 0)));
    let phases = phases.into_iter().map(|phase| {
        let known = !open_ended.contains(&phase.kind);
        phase_estimate(phase, known, spec, grounds)
    });
    Estimate {
        job: job.clone(),
        kind: spec.work.kind().into(),
        phases: phases.collect(),
        serving: serving(spec, grounds),
    }
}

/// The tasks of a plan, and the kinds of which there will be more than anybody can know yet.
struct Planned {
    tasks: Vec<PlannedTask>,
    open_ended: Vec<TaskKind>,
}

fn planned(job: &JobId, spec: &JobSpec, plan: &Plan, known: &Known) -> Planned {
    let mut planned = Planned { tasks: Vec::new(), open_ended: Vec::new() };
    for stage in &plan.stages {
        planned.tasks.extend(stage.tasks.iter().cloned());
        let Some(teller) = &stage.expands else { continue };
        let told = told(job, teller, spec, known).and_then(|record| planner::expand(spec, job, stage, &record).ok());
        match told {
            Some(tasks) => planned.tasks.extend(tasks),
            None => {
                let by = plan.stages.iter().flat_map(|stage| &stage.tasks).find(|task| task.id == *teller);
                planned.open_ended.extend(by.map(|task| task.work.kind()));
            }
        }
    }
    planned
}

/// The record that the drawing of the queries will leave if all can be drawn that are asked for.
fn told(job: &JobId, teller: &TaskId, spec: &JobSpec, known: &Known) -> Option<TaskRecord> {
    let settings = &evaluation(spec)?.settings;
    let singles = 2 * u32::try_from(attributes(spec, known)?).ok()?;
    let sets = [singles, settings.pairs, settings.triples, settings.full, settings.images];
    let queries = sets.into_iter().fold(0u32, u32::saturating_add);
    let object = ObjectRef { key: String::new(), digest: Digest::of(b""), bytes: 0 };
    Some(TaskRecord {
        job: job.clone(),
        run: RunNumber(1),
        task: teller.clone(),
        worker: WorkerId::new("nobody").expect("a constant that is an id"),
        attempt: 0,
        started_ms: 0,
        finished_ms: 0,
        device_ms: 0,
        output: TaskOutput::Queries { object, queries },
    })
}

fn phase_estimate(phase: PhaseUsage, known: bool, spec: &JobSpec, grounds: Grounds<'_>) -> PhaseEstimate {
    let PhaseUsage { name, kind, device, shape, tasks, units, unit, weight, device_ms: _ } = phase;
    let basis = basis(grounds.history, kind, device, &shape);
    let device_ms = basis.filter(|_| known).map(|basis| scaled(basis.device_ms, weight, basis.weight));
    let (bytes_read, bytes_written) = bytes(kind, tasks, spec, grounds);
    let steps = training(spec).filter(|_| kind == TaskKind::Train).map(TrainStage::total_steps);
    let (tasks, units) = (known.then_some(tasks), known.then_some(units));
    PhaseEstimate { name, kind, device, shape, tasks, units, unit, steps, bytes_read, bytes_written, device_ms, basis }
}

/// What earlier jobs did of the same kind, shape and class of device; a job that takes any device is compared with
/// all of them.
fn basis(history: &[Usage], kind: TaskKind, device: DeviceClass, shape: &str) -> Option<Basis> {
    let alike = |phase: &&PhaseUsage| {
        let on_it = device == DeviceClass::Any || phase.device == device;
        on_it && phase.kind == kind && phase.shape == shape && phase.weight > 0 && phase.device_ms > 0
    };
    let mut basis = Basis { jobs: 0, weight: 0, device_ms: 0 };
    for usage in history {
        let phases: Vec<&PhaseUsage> = usage.phases.iter().filter(alike).collect();
        basis.jobs += u32::from(!phases.is_empty());
        for phase in phases {
            basis.weight = basis.weight.saturating_add(phase.weight);
            basis.device_ms = basis.device_ms.saturating_add(phase.device_ms);
        }
    }
    (basis.jobs > 0).then_some(basis)
}

/// `amount · of / whole`.
fn scaled(amount: u64, of: u64, whole: u64) -> u64 {
    let scaled = u128::from(amount) * u128::from(of) / u128::from(whole.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

/// Bytes that a phase reads from the store and writes to it, where that follows from the spec.
fn bytes(kind: TaskKind, tasks: u64, spec: &JobSpec, grounds: Grounds<'_>) -> (Option<u64>, Option<u64>) {
    match kind {
        TaskKind::Ingest => (None, None),
        TaskKind::Train => {
            let Some(train) = training(spec) else { return (None, None) };
            let read = image_bytes(grounds.datasets, &train.dataset, train.train_rows + train.validation_rows);
            // What slots leave behind and what the outer step makes of it, and the finished weights.
            let checkpoints = (u64::from(train.train.optimizer.slots()) + 1) * u64::from(train.rounds()) + 1;
            (read, Some(checkpoints.saturating_mul(checkpoint_bytes(train))))
        }
        TaskKind::Embed => {
            let Some(embed) = embedding(spec) else { return (None, None) };
            let read = image_bytes(grounds.datasets, &embed.dataset, embed.gallery_rows);
            (read, shard_row_bytes(spec, grounds.known).map(|row| embed.gallery_rows.saturating_mul(row)))
        }
        TaskKind::Evaluate => {
            let gallery = gallery_rows(spec, grounds.known).zip(model(spec, grounds.known));
            // Every task reads the embeddings once.
            let once = gallery.map(|(rows, model)| rows.saturating_mul(4 * u64::from(model.embedding_dim)));
            (once.map(|once| once.saturating_mul(tasks)), None)
        }
    }
}

/// Bytes of the images of so many rows of a dataset.
fn image_bytes(datasets: &[DatasetManifest], dataset: &DatasetRef, rows: u64) -> Option<u64> {
    let manifest = datasets.iter().find(|manifest| manifest.dataset == *dataset)?;
    let bytes = manifest.parts.iter().map(|part| part.object.bytes).sum();
    Some(scaled(bytes, rows, manifest.rows(Split::All)))
}

/// Weights and what the optimizer keeps of each.
fn checkpoint_bytes(train: &TrainStage) -> u64 {
    let moments = match train.train.optimizer.inner() {
        InnerOptimizer::AdamW(_) => 2,
        InnerOptimizer::Sgd(_) => 1,
    };
    weight_bytes(&train.model, train.vocabulary.len() as u64) * (1 + moments)
}

/// Bytes of a model's weights in f32: backbone, head, attribute tower.
fn weight_bytes(model: &ModelSettings, attributes: u64) -> u64 {
    // Parameters without the classifier, and features, as torchvision counts them.
    let (backbone, features) = match model.architecture {
        Architecture::CnnS => (2_798_000, 256),
        Architecture::ResNet18 => (11_176_512, 512),
        Architecture::ResNet34 => (21_284_672, 512),
        Architecture::ResNet50 => (23_508_032, 2_048),
        Architecture::ResNet101 => (42_500_160, 2_048),
    };
    let dim = u64::from(model.embedding_dim);
    let (outputs, tower) = match model.encoding {
        QueryEncoding::LogProbability => (attributes, 0),
        QueryEncoding::ThreeState | QueryEncoding::MultiHot => (dim, attributes * dim + dim * dim + 4 * dim),
    };
    let head = features * outputs + outputs;
    4 * (backbone + head + tower)
}

/// Bytes of a row in a shard's file: embedding, labels, item id, digest of the image and where it lies.
fn shard_row_bytes(spec: &JobSpec, known: &Known) -> Option<u64> {
    let (model, attributes) = (model(spec, known)?, attributes(spec, known)?);
    Some(4 * u64::from(model.embedding_dim) + attributes + 100)
}

fn serving(spec: &JobSpec, grounds: Grounds<'_>) -> Option<ServingEstimate> {
    let rows = embedding(spec)?.gallery_rows;
    let model = model(spec, grounds.known)?;
    let attributes = attributes(spec, grounds.known)?;
    // The embedding, two bits a label for filters, the item id.
    let row_bytes = 4 * u64::from(model.embedding_dim) + attributes.div_ceil(4) + 24;
    Some(ServingEstimate { rows, row_bytes, model_bytes: weight_bytes(model, attributes), replicas: grounds.replicas })
}

#[cfg(test)]
mod tests {
    use likeness_contract::documents::PartEntry;
    use likeness_contract::jobs::GenerationRef;

    use super::super::testing::*;
    use super::*;

    fn pipeline() -> JobSpec {
        spec(JobWork::Pipeline {
            train: train_stage(),
            embed: embed_stage(250, 100),
            evaluate: evaluate_stage(),
            alias: name("live"),
            baseline: None,
        })
    }

    fn datasets() -> Vec<DatasetManifest> {
        let part = PartEntry { object: ObjectRef { bytes: 500_000, ..object() }, rows: 500, split_rows: [400, 50, 50] };
        vec![DatasetManifest {
            dataset: dataset_ref(),
            vocabulary: vocabulary(),
            parts: vec![part],
            skipped: Vec::new(),
            warnings: Vec::new(),
        }]
    }

    fn estimated(spec: &JobSpec, known: &Known, history: &[Usage]) -> Estimate {
        let (id, datasets) = (job_id("j"), datasets());
        let plan = planner::plan(&id, spec);
        estimate(&id, spec, &plan, Grounds { known, datasets: &datasets, history, replicas: 2 })
    }

    fn phase<'a>(estimate: &'a Estimate, name: &str) -> &'a PhaseEstimate {
        estimate.phases.iter().find(|phase| phase.name == name).unwrap()
    }

    /// What a pipeline used of which every task took so long.
    fn used(id: &str, spec: &JobSpec, task_ms: u64) -> Usage {
        let (id, known) = (job_id(id), Known::default());
        let tasks = planned(&id, spec, &planner::plan(&id, spec), &known).tasks;
        let phases = by_phase(&id, spec, &known, tasks.iter().map(|task| (&task.work, task_ms)));
        Usage { job: id, run: RunNumber(1), phases }
    }

    #[test]
    fn a_pipeline_is_told_in_units_and_tasks() {
        let estimate = estimated(&pipeline(), &Known::default(), &[]);
        let names: Vec<&str> = estimate.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["train", "embed", "evaluate"]);
        let train = phase(&estimate, "train");
        // Ten steps of ten in rounds of four: three slots, three outer steps, the start and the end.
        assert_eq!((train.tasks, train.units, train.steps), (Some(8), Some(100), Some(10)));
        let embed = phase(&estimate, "embed");
        assert_eq!((embed.tasks, embed.units, embed.unit.as_str()), (Some(4), Some(250), "images"));
        // Three attributes: 6 singles, and the sets; a hundred a task; draw, report and gate.
        let settings = evaluate_stage().settings;
        let queries = u64::from(6 + settings.pairs + settings.triples + settings.full + settings.images);
        let evaluate = phase(&estimate, "evaluate");
        assert_eq!((evaluate.units, evaluate.tasks), (Some(queries), Some(queries.div_ceil(100) + 3)));
    }

    #[test]
    fn without_earlier_jobs_no_time_is_told() {
        let estimate = estimated(&pipeline(), &Known::default(), &[]);
        assert!(estimate.phases.iter().all(|phase| phase.device_ms.is_none() && phase.basis.is_none()));
        assert_eq!(estimate.device_ms(), None);
    }

    #[test]
    fn the_same_job_again_takes_as_long_as_before() {
        let before = used("a", &pipeline(), 1_000);
        let estimate = estimated(&pipeline(), &Known::default(), &[before.clone(), used("b", &pipeline(), 3_000)]);
        assert_eq!(estimate.device_ms(), Some(2 * before.device_ms()), "the mean of both");
        assert_eq!(phase(&estimate, "train").basis.unwrap().jobs, 2);
    }

    #[test]
    fn twice_the_work_takes_twice_as_long() {
        let large = spec(match pipeline().work {
            JobWork::Pipeline { train, evaluate, alias, baseline, .. } => {
                JobWork::Pipeline { train, embed: embed_stage(500, 100), evaluate, alias, baseline }
            }
            other => other,
        });
        let history = [used("a", &pipeline(), 1_000)];
        let (small, large) =
            (estimated(&pipeline(), &Known::default(), &history), estimated(&large, &Known::default(), &history));
        for name in ["embed", "evaluate"] {
            let (small, large) = (phase(&small, name).device_ms.unwrap(), phase(&large, name).device_ms.unwrap());
            assert_eq!(large, 2 * small, "{name}");
        }
        assert_eq!(phase(&small, "train").device_ms, phase(&large, "train").device_ms);
    }

    #[test]
    fn work_of_another_shape_or_on_another_device_says_nothing() {
        let mut other = pipeline();
        if let JobWork::Pipeline { train, .. } = &mut other.work {
            train.model.architecture = Architecture::ResNet50;
        }
        let estimate = estimated(&other, &Known::default(), &[used("a", &pipeline(), 1_000)]);
        assert_eq!(phase(&estimate, "train").device_ms, None);
        assert!(phase(&estimate, "evaluate").device_ms.is_some(), "its embeddings are as long");
        let on_cuda = JobSpec { device: DeviceClass::Cuda, ..pipeline() };
        let estimate = estimated(&pipeline(), &Known::default(), &[used("a", &on_cuda, 1_000)]);
        assert_eq!(estimate.device_ms(), None);
        let on_any = JobSpec { device: DeviceClass::Any, ..pipeline() };
        assert!(estimated(&on_any, &Known::default(), &[used("a", &on_cuda, 1_000)]).device_ms().is_some());
    }

    #[test]
    fn the_parts_of_an_ingest_are_known_to_its_scan_alone() {
        let estimate = estimated(&ingest(100), &Known::default(), &[used("a", &ingest(100), 1_000)]);
        let phase = phase(&estimate, "ingest");
        assert_eq!((phase.tasks, phase.units, phase.device_ms), (None, None, None));
        assert_eq!(estimate.device_ms(), None);
    }

    #[test]
    fn an_evaluation_grows_with_queries_and_rows() {
        let generation = GenerationRef { gallery: name("all"), generation: job_id("embed-1") };
        let evaluate = spec(JobWork::Evaluate { generation, evaluate: evaluate_stage() });
        let known = |rows| Known { model: Some(model_settings()), gallery_rows: Some(rows), attributes: Some(3) };
        let history = [used("a", &pipeline(), 1_000)];
        let (few, many) = (estimated(&evaluate, &known(250), &history), estimated(&evaluate, &known(25_000), &history));
        assert_eq!(many.device_ms().unwrap(), 100 * few.device_ms().unwrap());
        assert_eq!(estimated(&evaluate, &Known::default(), &history).device_ms(), None, "its queries are not known");
    }

    #[test]
    fn bytes_follow_from_images_weights_and_rows() {
        let estimate = estimated(&pipeline(), &Known::default(), &[]);
        assert_eq!(phase(&estimate, "embed").bytes_read, Some(250_000), "half of the images");
        assert_eq!(phase(&estimate, "embed").bytes_written, Some(250 * (4 * 64 + 3 + 100)));
        let weights = weight_bytes(&model_settings(), 3);
        assert_eq!(phase(&estimate, "train").bytes_written, Some(7 * 3 * weights));
        let serving = estimate.serving.unwrap();
        assert_eq!(serving.bytes(), 2 * (250 * (4 * 64 + 1 + 24) + weights));
    }

    #[test]
    fn what_the_baseline_needs_stands_apart() {
        let target = GenerationRef { gallery: name("all"), generation: job_id("other") };
        let own = GenerationRef { gallery: name("all"), generation: job_id("j") };
        let shard = |target: &GenerationRef| TaskWork::EmbedShard {
            model: job_id("m"),
            target: target.clone(),
            shard: 0,
            from: 0,
            rows: 7,
        };
        let tasks = [shard(&own), shard(&target), shard(&target)];
        let phases = by_phase(&job_id("j"), &pipeline(), &Known::default(), tasks.iter().map(|work| (work, 10)));
        let told: Vec<_> = phases.iter().map(|phase| (phase.name.as_str(), phase.units, phase.device_ms)).collect();
        assert_eq!(told, [("embed", 7, 10), ("baseline embed", 14, 20)]);
    }
}
