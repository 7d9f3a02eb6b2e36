//! Which earlier generation an embedding copies rows from.
//!
//! Chosen once, when the job is accepted, and stored with its plan (`planner::copy_from`): every task of the job looks into the
//! same one, however often it is done. Any choice gives the same shards, since workers copy by the digest of an image; a good one
//! leaves them less to compute. It may be collected meanwhile: then they compute.

use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{DeviceClass, EmbedStage, GenerationRef, JobSpec, JobWork};
use likeness_contract::settings::Split;

use super::job::Job;

/// Most generations that are looked for before everything is computed.
pub const MOST_TRIED: usize = 8;

/// A generation that a job makes: whether it is there, the store tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// The generation.
    pub generation: GenerationRef,
    /// Its model.
    pub model: JobId,
    dataset: Name,
    rows: Split,
    device: DeviceClass,
    accepted_ms: u64,
}

/// What a job embeds.
pub fn embedded(job: &Job) -> Vec<Embedded> {
    generations(&job.id, &job.spec).into_iter().map(|of| Embedded { accepted_ms: job.accepted_ms, ..of }).collect()
}

/// The same of a spec, of which it is not said when it was accepted.
fn generations(job: &JobId, spec: &JobSpec) -> Vec<Embedded> {
    let of = |generation: GenerationRef, model: &JobId, embed: &EmbedStage| Embedded {
        generation,
        model: model.clone(),
        dataset: embed.dataset.dataset.clone(),
        rows: embed.rows,
        device: spec.device,
        accepted_ms: 0,
    };
    let own = |embed: &EmbedStage| GenerationRef { gallery: embed.gallery.clone(), generation: job.clone() };
    match &spec.work {
        JobWork::Embed { model, embed } | JobWork::EmbedAnew { model, embed } => vec![of(own(embed), model, embed)],
        JobWork::Pipeline { embed, baseline, .. } => {
            let compared = baseline.as_ref().filter(|baseline| baseline.embed);
            let compared = compared.map(|baseline| of(baseline.generation.clone(), &baseline.model, embed));
            compared.into_iter().chain([of(own(embed), job, embed)]).collect()
        }
        JobWork::Ingest { .. }
        | JobWork::Train(_)
        | JobWork::Evaluate { .. }
        | JobWork::Import(_)
        | JobWork::Search(_) => Vec::new(),
    }
}

/// The generations of a job that may copy from earlier ones. The model of a pipeline is new, so no earlier generation is by
/// it; the one that it makes by the model compared with is another matter.
pub fn copying(job: &JobId, spec: &JobSpec) -> Vec<Embedded> {
    match &spec.work {
        JobWork::EmbedAnew { .. } => Vec::new(),
        _ => generations(job, spec).into_iter().filter(|wanted| wanted.model != *job).collect(),
    }
}

/// Generations that `wanted` may copy from, the best first: by the same model from the same dataset on a class of device that
/// it may be computed on; rather one that has its rows, rather a newer one.
pub fn candidates(all: impl IntoIterator<Item = Embedded>, wanted: &Embedded) -> Vec<GenerationRef> {
    let fits = |other: &Embedded| {
        other.model == wanted.model
            && other.dataset == wanted.dataset
            && (wanted.device == DeviceClass::Any || wanted.device == other.device)
            && other.generation != wanted.generation
    };
    let mut fitting: Vec<Embedded> = all.into_iter().filter(fits).collect();
    let covers = |other: &Embedded| other.rows == wanted.rows || other.rows == Split::All;
    fitting.sort_by(|a, b| (covers(b), b.accepted_ms, &b.generation).cmp(&(covers(a), a.accepted_ms, &a.generation)));
    let mut best: Vec<GenerationRef> = Vec::new();
    for other in fitting {
        if best.len() < MOST_TRIED && !best.contains(&other.generation) {
            best.push(other.generation);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use likeness_contract::jobs::{JobOptions, Priority};

    use super::*;
    use crate::core::testing::{embed, embed_stage, job_id, name};

    fn made(id: &str, accepted_ms: u64) -> Embedded {
        let [made] = &generations(&job_id(id), &embed(100, 10))[..] else { panic!("one") };
        Embedded { accepted_ms, ..made.clone() }
    }

    #[test]
    fn the_newest_that_has_the_rows_is_taken() {
        let [wanted] = &copying(&job_id("new"), &embed(120, 10))[..] else { panic!("one") };
        let some_rows = Embedded { rows: Split::Train, ..made("train-rows", 90) };
        let of = |generations: &[GenerationRef]| -> Vec<String> {
            generations.iter().map(|g| g.generation.to_string()).collect()
        };
        let all = [made("old", 10), some_rows, made("newer", 20), made("new", 99), made("newer", 20)];
        assert_eq!(of(&candidates(all, wanted)), ["newer", "old", "train-rows"]);
        let others = [
            Embedded { model: job_id("other"), ..made("a", 1) },
            Embedded { dataset: name("other"), ..made("b", 1) },
            Embedded { device: DeviceClass::Cuda, ..made("c", 1) },
        ];
        let on_cpu = Embedded { device: DeviceClass::Cpu, ..wanted.clone() };
        assert_eq!(of(&candidates(others.clone(), &on_cpu)), Vec::<String>::new());
        let anywhere = Embedded { device: DeviceClass::Any, ..wanted.clone() };
        assert_eq!(of(&candidates(others, &anywhere)), ["c"], "who asks for any device takes any");
        let many = (0..20).map(|n| made(&format!("g-{n:02}"), n));
        assert_eq!(candidates(many, wanted).len(), MOST_TRIED);
    }

    #[test]
    fn who_wants_all_computed_copies_nothing() {
        let work = JobWork::EmbedAnew { model: job_id("model-1"), embed: embed_stage(10, 5) };
        let (device, priority, options) = (DeviceClass::Cpu, Priority::Lo, JobOptions::default());
        let spec = JobSpec { work, device, priority, options };
        assert_eq!(copying(&job_id("new"), &spec), []);
        assert_eq!(generations(&job_id("new"), &spec).len(), 1, "others may copy from it");
    }
}
