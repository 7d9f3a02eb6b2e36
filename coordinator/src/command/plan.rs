//! `likeness plan`: what a pipeline would take, before it starts.

use std::path::PathBuf;

use clap::Args;
use likeness_contract::usage::{Basis, Estimate, PhaseEstimate, ServingEstimate};

use crate::command::Global;
use crate::command::config::Target;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{self, Table, bytes, count, device_time, line, thousands};
use crate::command::pipeline::{self, PipelineOptions, Start};

/// Flags of `likeness plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is submitted and nothing is stored. The time on devices comes from earlier jobs of the same architecture, input \
size and class of device, in proportion to the work; where there were none, none is told. The same estimate is kept \
beside the job when it is accepted, and `likeness jobs show` tells what it used beside it. Queries are an upper bound: \
only the drawing finds out which of them have enough relevant images.

Examples:
  likeness plan                                         a pipeline with all defaults
  likeness plan job.toml --epochs 30
  likeness plan --dataset celeba --architecture resnet50 --device cuda --json")]
pub struct PlanArgs {
    /// The config file; only defaults and flags without.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    options: PipelineOptions,
}

/// Asks and prints.
pub async fn run(global: &Global, args: PlanArgs) -> Outcome {
    let PlanArgs { file, target, options } = args;
    let (client, request) = pipeline::requested(global, file.as_deref(), target, options, Start::LeaveOut).await?;
    let estimate = client.plan(request).await?;
    if global.json {
        output::json(&estimate)?;
    } else {
        line(render(&estimate));
    }
    Ok(Exit::Done)
}

fn render(estimate: &Estimate) -> String {
    let Estimate { job: _, kind, phases, serving } = estimate;
    let mut lines = vec![table(phases).render(), String::new()];
    let unknown: Vec<&str> =
        phases.iter().filter(|phase| phase.device_ms.is_none()).map(|phase| phase.name.as_str()).collect();
    let told: u64 = phases.iter().filter_map(|phase| phase.device_ms).sum();
    lines.push(match unknown.as_slice() {
        [] => format!("{kind}: {} in all", device_time(told)),
        _ if told == 0 => format!("{kind}: time on devices not known, there is no earlier job of this shape"),
        some => {
            format!("{kind}: {} without {}, of which there is no earlier job", device_time(told), some.join(" and "))
        }
    });
    lines.extend(serving.as_ref().map(searchers));
    lines.join("\n")
}

fn table(phases: &[PhaseEstimate]) -> Table {
    let mut table = Table::new(["phase", "device", "tasks", "work", "reads", "writes", "on devices", "from"]);
    for phase in phases {
        table.row([
            phase.name.clone(),
            phase.device.name().into(),
            phase.tasks.map_or("?".into(), thousands),
            work(phase),
            phase.bytes_read.map_or("–".into(), bytes),
            phase.bytes_written.map_or("–".into(), bytes),
            phase.device_ms.map_or("?".into(), device_time),
            phase.basis.map_or("no earlier job".into(), |Basis { jobs, .. }| count(u64::from(jobs), "earlier job")),
        ]);
    }
    table
}

fn work(phase: &PhaseEstimate) -> String {
    let Some(units) = phase.units else { return format!("{} as the source lists", phase.unit) };
    let units = format!("{} {}", thousands(units), phase.unit);
    phase.steps.map_or(units.clone(), |steps| format!("{units} in {}", count(steps, "step")))
}

fn searchers(serving: &ServingEstimate) -> String {
    let ServingEstimate { rows, row_bytes, model_bytes, replicas } = serving;
    format!(
        "searchers: about {} in memory with {} ({} of {} each, and the model of {})",
        bytes(serving.bytes()),
        count(u64::from(*replicas), "replica"),
        count(*rows, "row"),
        bytes(*row_bytes),
        bytes(*model_bytes)
    )
}

#[cfg(test)]
pub mod tests {
    use likeness_contract::ids::JobId;
    use likeness_contract::jobs::{DeviceClass, TaskKind};

    use super::*;

    /// One phase that is known and one that is not.
    pub fn estimate() -> Estimate {
        let phase = PhaseEstimate {
            name: "train".into(),
            kind: TaskKind::Train,
            device: DeviceClass::Cpu,
            shape: "cnn-s at 64 px".into(),
            tasks: Some(37),
            units: Some(110_080),
            unit: "triplets".into(),
            steps: Some(860),
            bytes_read: Some(3 << 30),
            bytes_written: Some(0),
            device_ms: Some(2_880_000),
            basis: Some(Basis { jobs: 3, weight: 1, device_ms: 1 }),
        };
        let embed = PhaseEstimate {
            name: "embed".into(),
            kind: TaskKind::Embed,
            unit: "images".into(),
            steps: None,
            device_ms: None,
            basis: None,
            ..phase.clone()
        };
        let serving = ServingEstimate { rows: 1000, row_bytes: 1024, model_bytes: 1 << 20, replicas: 2 };
        Estimate {
            job: JobId::new("pipeline-1").unwrap(),
            kind: "pipeline".into(),
            phases: vec![phase, embed],
            serving: Some(serving),
        }
    }

    #[test]
    fn what_is_known_is_told_and_what_is_not_is_said() {
        let text = render(&estimate());
        assert!(text.contains("110,080 triplets in 860 steps") && text.contains("3 earlier jobs"), "{text}");
        assert!(text.contains("0.80 device-hours without embed, of which there is no earlier job"), "{text}");
        assert!(text.contains("about 4.0 MiB in memory with 2 replicas"), "{text}");
    }

    #[test]
    fn a_first_job_has_no_time() {
        let mut first = estimate();
        first.phases[0].device_ms = None;
        assert!(render(&first).contains("time on devices not known"), "{}", render(&first));
    }
}
