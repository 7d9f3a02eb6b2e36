//! `likeness releases show --history`: the audit trail of an alias.
//!
//! Releases are created once and never changed, and so are the specs and outcomes of the jobs that made them; this only puts them
//! beside each other. What was refused by its gate is told too: nothing came of it, but somebody wanted it.

use likeness_contract::documents::{GateDecision, Release};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{GenerationRef, JobSpec, JobWork, RunResult};
use likeness_contract::keys;
use likeness_contract::messages::JobState;
use likeness_link::client::Client;
use serde::Serialize;

use crate::command::Global;
use crate::command::exit::{Exit, Outcome};
use crate::command::output::{Table, json, line, moment};

/// Newest jobs among which refused ones are looked for.
const JOBS: u32 = 1000;

/// Something that happened to an alias, or was refused.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Entry {
    /// When, milliseconds since 1970.
    at_ms: u64,
    /// The release that was made; none when the gate refused.
    release: Option<u64>,
    /// The job that made it; none when it was made by hand.
    job: Option<JobId>,
    /// The release that it replaced, or was compared with.
    replaces: Option<u64>,
    /// The older release that it brought back.
    rolls_back_to: Option<u64>,
    /// The generation that it serves.
    generation: GenerationRef,
    /// Its report.
    report: Option<JobId>,
    /// What the gate said.
    gate: Option<GateDecision>,
    /// The gate's floor; 0 without one.
    floor: f64,
    /// For instance that no searcher was running.
    warnings: Vec<String>,
}

/// Prints everything that happened to an alias, oldest first.
pub async fn run(global: &Global, client: &Client, alias: &Name) -> Outcome {
    let mut entries = Vec::new();
    for release in client.releases(Some(alias.clone())).await? {
        let floor = match &release.job {
            Some(job) => floor(client, job).await,
            None => 0.0,
        };
        entries.push(Entry::of_release(release, floor));
    }
    entries.extend(refused(client, alias).await?);
    entries.sort_by_key(|entry| (entry.at_ms, entry.release));
    if global.json {
        json(&entries)?;
    } else {
        line(table(&entries).render());
    }
    Ok(Exit::Done)
}

/// A job whose spec can't be read hides nothing else; `jobs show` says what is wrong.
async fn floor(client: &Client, job: &JobId) -> f64 {
    let spec = client.store().document::<JobSpec>(&keys::job_spec(job)).await;
    match spec.ok().flatten().map(|spec| spec.work) {
        Some(JobWork::Pipeline { evaluate, .. }) => evaluate.settings.floor,
        _ => 0.0,
    }
}

async fn refused(client: &Client, alias: &Name) -> Outcome<Vec<Entry>> {
    let mut entries = Vec::new();
    for job in client.list(JOBS).await? {
        if job.state != JobState::Refused {
            continue;
        }
        let detail = client.show(&job.job).await?;
        let JobWork::Pipeline { alias: wanted, embed, evaluate, baseline, .. } = detail.spec.work else { continue };
        if wanted != *alias {
            continue;
        }
        let gate = match detail.result {
            Some(RunResult::Done { gate, .. }) => gate,
            _ => detail.gate,
        };
        entries.push(Entry {
            at_ms: job.closed_ms.unwrap_or(job.opened_ms),
            release: None,
            replaces: baseline.map(|baseline| baseline.release),
            rolls_back_to: None,
            generation: GenerationRef { gallery: embed.gallery, generation: job.job.clone() },
            report: Some(job.job.clone()),
            job: Some(job.job),
            gate,
            floor: evaluate.settings.floor,
            warnings: Vec::new(),
        });
    }
    Ok(entries)
}

impl Entry {
    fn of_release(release: Release, floor: f64) -> Self {
        let Release {
            alias: _,
            number,
            job,
            replaces,
            rolls_back_to,
            model: _,
            generation,
            report,
            gate,
            created_ms: at_ms,
            warnings,
        } = release;
        let release = Some(number);
        Self { at_ms, release, job, replaces, rolls_back_to, generation, report, gate, floor, warnings }
    }

    fn who(&self) -> String {
        self.job.as_ref().map_or("by hand".into(), JobId::to_string)
    }

    fn what(&self) -> String {
        match (self.release, self.rolls_back_to) {
            (None, _) => "refused".into(),
            (Some(number), Some(older)) => format!("release {number}, back to {older}"),
            (Some(number), None) => format!("release {number}"),
        }
    }
}

fn table(entries: &[Entry]) -> Table {
    let mut table =
        Table::new(["at (UTC)", "what", "who", "generation", "mAP", "difference", "from", "to", "against", "floor"]);
    for entry in entries {
        let gate = entry.gate.as_ref();
        let figure = |value: Option<String>| value.unwrap_or_else(|| "–".into());
        let signed = |of: fn(&GateDecision) -> f64| figure(gate.map(|gate| format!("{:+.3}", of(gate))));
        let against = gate.map(|gate| gate.baseline.map_or("chance".into(), |number| format!("release {number}")));
        table.row([
            moment(entry.at_ms),
            entry.what(),
            entry.who(),
            format!("{}/{}", entry.generation.gallery, entry.generation.generation),
            figure(gate.map(|gate| format!("{:.3}", gate.candidate_map))),
            signed(|gate| gate.difference),
            signed(|gate| gate.interval[0]),
            signed(|gate| gate.interval[1]),
            figure(against),
            figure((entry.floor > 0.0).then(|| entry.floor.to_string())),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trail_tells_promotions_rollbacks_and_refusals() {
        let job = JobId::new("j1").unwrap();
        let gate = GateDecision {
            passed: true,
            baseline: None,
            candidate_map: 0.4,
            baseline_map: 0.3,
            difference: 0.1,
            interval: [0.08, 0.12],
            queries: 680,
        };
        let first = Entry {
            at_ms: 0,
            release: Some(1),
            job: Some(job.clone()),
            replaces: None,
            rolls_back_to: None,
            generation: GenerationRef { gallery: Name::new("faces").unwrap(), generation: job },
            report: None,
            gate: Some(gate.clone()),
            floor: 0.2,
            warnings: Vec::new(),
        };
        let back =
            Entry { release: Some(3), job: None, rolls_back_to: Some(1), gate: None, floor: 0.0, ..first.clone() };
        let worse = GateDecision { passed: false, baseline: Some(1), difference: -0.1, ..gate };
        let refused = Entry { release: None, gate: Some(worse), ..first.clone() };
        let text = table(&[first, back, refused]).render();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("release 1") && lines[1].contains("+0.100") && lines[1].ends_with("0.2"), "{text}");
        assert!(lines[2].contains("release 3, back to 1") && lines[2].contains("by hand"), "{text}");
        assert!(lines[3].contains("refused") && lines[3].contains("-0.100  +0.080"), "{text}");
        assert!(lines[3].contains("release 1"), "{text}");
    }
}
