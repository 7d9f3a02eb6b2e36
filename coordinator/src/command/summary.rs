//! What came of a job, in the words of its kind.

use likeness_contract::datasets::{DatasetAbout, LabelCounts};
use likeness_contract::documents::{DatasetManifest, GateDecision, GenerationManifest, HeadlineRow, ReportManifest};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{
    Baseline, Import, JobWork, RunResult, TaskFailure, TaskOutput, TaskRecord, ZeroLabel, task_ids,
};
use likeness_contract::keys;
use likeness_contract::messages::{JobDetail, JobState};
use likeness_contract::searches::SearchManifest;
use likeness_contract::settings::Split;
use likeness_link::client::Client;
use serde::Deserialize;

use crate::command::exit::{Failure, Outcome};
use crate::command::output::{Table, count, line, say, span, thousands};

/// Skipped images that are named; the manifest has them all.
const NAMED_SKIPS: usize = 5;

/// Prints it.
pub async fn print(client: &Client, detail: &JobDetail) -> Outcome<()> {
    match &detail.result {
        Some(RunResult::Done { gate, release }) => {
            print_done(client, detail).await?;
            print_gate(detail, gate.as_ref().or(detail.gate.as_ref()), *release);
        }
        Some(RunResult::Failed { failures }) => print_failures(&detail.summary.job, failures),
        Some(RunResult::Cancelled) => line(format!("job {} was cancelled", detail.summary.job)),
        None => line(format!("job {} is {}", detail.summary.job, detail.summary.state.name())),
    }
    Ok(())
}

async fn print_done(client: &Client, detail: &JobDetail) -> Outcome<()> {
    let job = &detail.summary.job;
    match &detail.spec.work {
        JobWork::Ingest { dataset, .. } => {
            let about = client.store().document(&keys::dataset_about(dataset, job)).await?;
            print_dataset(&client.store().require(&keys::dataset_manifest(dataset, job)).await?, about.as_ref());
        }
        JobWork::Train(_) => {
            line(format!("model {job} is trained ({})", took(detail)));
            line(format!("  likeness embed --model {job}"));
        }
        JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } => {
            let rows = count(embed.gallery_rows, "image");
            line(format!("generation {}/{job}: {rows} embedded ({})", embed.gallery, took(detail)));
            if let Some(words) = copied(client, detail).await? {
                line(format!("  {words}"));
            }
            line(format!("  likeness evaluate {}/{job}", embed.gallery));
        }
        JobWork::Search(_) => {
            let answered: SearchManifest = client.store().require(&keys::search_manifest(job)).await?;
            let SearchManifest { alias, release, questions, failed, .. } = answered;
            let (questions, failed) = (count(questions, "question"), thousands(failed));
            line(format!("{questions} asked of {alias} release {release}, {failed} failed ({})", took(detail)));
            say(format!("  likeness search --answers {job} --out answers.parquet"));
        }
        JobWork::Import(import) => print_import(client, job, import).await?,
        JobWork::Evaluate { .. } | JobWork::Pipeline { .. } => {
            let report: ReportManifest = client.store().require(&keys::report_manifest(job)).await?;
            print_report(&report);
            print_left_out(client, &report).await?;
            line(format!("({}; `likeness report show {job} --html report.html` copies it out)", took(detail)));
        }
    }
    Ok(())
}

/// How many rows an embedding copied from an earlier generation instead of computing them; none where it did not, or is not done.
pub async fn copied(client: &Client, detail: &JobDetail) -> Outcome<Option<String>> {
    let (JobWork::Embed { .. }, JobState::Done) = (&detail.spec.work, detail.summary.state) else { return Ok(None) };
    let job = &detail.summary.job;
    let key = keys::task_record(job, &task_ids::embed_finish(job, job));
    let record: Option<TaskRecord> = client.store().document(&key).await?;
    Ok(match record.map(|record| record.output) {
        Some(TaskOutput::Generation { rows, copied, .. }) => Some(copied_words(rows, copied)),
        _ => None,
    })
}

fn copied_words(rows: u64, copied: u64) -> String {
    let (copied, of) = (thousands(copied), thousands(rows));
    format!("{copied} of {of} rows copied from an earlier generation (`--full` computes all)")
}

async fn print_import(client: &Client, job: &JobId, import: &Import) -> Outcome<()> {
    let gallery = &import.gallery;
    let manifest: GenerationManifest = client.store().require(&keys::generation_manifest(gallery, job)).await?;
    let (rows, dim) = (count(manifest.total_rows(), "embedding"), manifest.embedding_dim);
    line(format!("generation {gallery}/{job}: {rows} of {dim} numbers, {} attributes", manifest.vocabulary.len()));
    let record: Option<TaskRecord> = client.store().document(&keys::task_record(job, &task_ids::import_scan())).await?;
    if let Some(TaskOutput::ImportScan { warnings, .. }) = record.map(|record| record.output) {
        warnings.iter().for_each(|warning| line(format!("  warning: {warning}")));
    }
    line(format!("  likeness releases promote NAME {gallery}/{job}"));
    Ok(())
}

fn took(detail: &JobDetail) -> String {
    let ended = detail.summary.closed_ms.unwrap_or(detail.summary.opened_ms);
    let wall = span(ended.saturating_sub(detail.summary.opened_ms));
    format!("{wall}, {} on devices", span(detail.device_ms))
}

fn print_dataset(manifest: &DatasetManifest, about: Option<&DatasetAbout>) {
    let rows = |split| thousands(manifest.rows(split));
    line(format!(
        "dataset {}@{}: {} ({} train, {} validation, {} test), {} attributes",
        manifest.dataset.dataset,
        manifest.dataset.version,
        count(manifest.rows(Split::All), "image"),
        rows(Split::Train),
        rows(Split::Validation),
        rows(Split::Test),
        manifest.vocabulary.len(),
    ));
    if let Some(about) = about {
        print_growth(about, manifest.parts.len());
        line(labels(&about.labels).render());
    }
    for warning in &manifest.warnings {
        line(format!("  warning: {warning}"));
    }
    if !manifest.skipped.is_empty() {
        line(format!("  {} left out:", count(manifest.skipped.len() as u64, "image")));
    }
    for skipped in manifest.skipped.iter().take(NAMED_SKIPS) {
        line(format!("    {}: {}", skipped.item, skipped.reason));
    }
    if manifest.skipped.len() > NAMED_SKIPS {
        line("    … (`likeness datasets show` names them all)");
    }
}

fn print_growth(about: &DatasetAbout, parts: usize) {
    if let Some(base) = &about.base {
        line(format!("  grew from {base}: {} of {} shared", about.shared_parts, count(parts as u64, "part")));
    }
}

/// What labels were understood as, by attribute.
pub fn labels(labels: &[LabelCounts]) -> Table {
    let mut table = Table::new(["attribute", "has", "has not", "not known", "0 means"]);
    for LabelCounts { attribute, has, has_not, unknown, zero } in labels {
        let zero = match zero {
            Some(ZeroLabel::No) => "has not",
            Some(ZeroLabel::Unknown) => "not known",
            Some(ZeroLabel::Auto) | None => "",
        };
        table.row([attribute.clone(), thousands(*has), thousands(*has_not), thousands(*unknown), zero.into()]);
    }
    table
}

/// The headline table of a report.
pub fn print_report(report: &ReportManifest) {
    line(format!(
        "report {}: {} of gallery {}",
        report.report,
        count(report.items, "image"),
        report.generation.gallery
    ));
    line(headline(&report.headline).render());
}

/// Which of the user's own queries were not asked, and why.
pub async fn print_left_out(client: &Client, report: &ReportManifest) -> Outcome<()> {
    if report.settings.own.is_none() {
        return Ok(());
    }
    let bytes = client.store().read(&report.json).await?;
    let figures: LeftOut = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::failed(format!("`{}` is no report: {error}", report.json.key)))?;
    let Some(left_out) = figures.sets.iter().find(|set| set.set == "own").map(|set| set.left_out) else {
        return Ok(());
    };
    if left_out > 0 {
        say(format!("{left_out} of the own queries were not asked:"));
        figures.own_left_out.iter().take(NAMED_SKIPS).for_each(|why| say(format!("  {why}")));
    }
    if left_out as usize > NAMED_SKIPS {
        say("  … (`likeness report show --json` names them)");
    }
    Ok(())
}

/// What of a report's JSON is looked at here.
#[derive(Deserialize)]
struct LeftOut {
    sets: Vec<SetLeftOut>,
    #[serde(default)]
    own_left_out: Vec<String>,
}

#[derive(Deserialize)]
struct SetLeftOut {
    set: String,
    left_out: u32,
}

/// mAP beside chance and P@K, per query set.
pub fn headline(rows: &[HeadlineRow]) -> Table {
    let mut table = Table::new(["queries", "number", "mAP", "chance", "P@1", "P@5", "P@10", "P@100"]);
    for row in rows {
        let figures = [row.map, row.chance].into_iter().chain(row.p_at).map(|figure| format!("{figure:.3}"));
        table.row([row.set.clone(), row.queries.to_string()].into_iter().chain(figures));
    }
    table
}

fn print_gate(detail: &JobDetail, gate: Option<&GateDecision>, release: Option<u64>) {
    let JobWork::Pipeline { alias, baseline, evaluate, .. } = &detail.spec.work else { return };
    if let Some(gate) = gate {
        line(gate_words(gate));
        floor_words(gate, evaluate.settings.floor).into_iter().for_each(line);
    }
    match release {
        Some(number) => line(format!("promoted: {alias} is now release {number}")),
        None if detail.summary.state == JobState::Refused => line(not_promoted(alias, baseline.as_ref())),
        None => {}
    }
}

fn not_promoted(alias: &Name, baseline: Option<&Baseline>) -> String {
    match baseline {
        Some(_) => format!("not promoted: {alias} stays what it was"),
        None => format!("not promoted: {alias} has no release"),
    }
}

/// `gate passed: mAP 0.412 against 0.243 of chance, difference 0.169 [0.160, 0.178] over 680 queries`
pub fn gate_words(gate: &GateDecision) -> String {
    let verdict = if gate.passed { "passed" } else { "refused" };
    let baseline = gate.baseline.map_or("of chance".into(), |number| format!("of release {number}"));
    format!(
        "gate {verdict}: mAP {:.3} against {:.3} {baseline}, difference {:+.3} [{:+.3}, {:+.3}] over {}",
        gate.candidate_map,
        gate.baseline_map,
        gate.difference,
        gate.interval[0],
        gate.interval[1],
        count_queries(gate.queries),
    )
}

/// What a floor says to a gate's figures; nothing without a floor.
pub fn floor_words(gate: &GateDecision, floor: f64) -> Option<String> {
    let verdict = if gate.candidate_map < floor { "below" } else { "not below" };
    (floor > 0.0).then(|| format!("mAP {:.3} is {verdict} the floor of {floor}", gate.candidate_map))
}

fn count_queries(queries: u32) -> String {
    if queries == 1 { "1 query".into() } else { format!("{queries} queries") }
}

fn print_failures(job: &JobId, failures: &[TaskFailure]) {
    say(format!("job {job} failed:"));
    for failure in failures {
        say(format!("  {}", failure_words(failure)));
    }
    say(format!("`likeness jobs retry {job}` tries what failed again and keeps what was done"));
}

/// `given up: …` of a task whose dead letter ended the run, `tried again: …` of one that went on; why.
pub fn trouble_words(job: &JobDetail, task: &TaskFailure) -> String {
    let given_up =
        matches!(&job.result, Some(RunResult::Failed { failures }) if failures.iter().any(|f| f.task == task.task));
    let attempts = task.reported + task.silent;
    match (given_up, attempts) {
        (true, _) => format!("given up: {}", failure_words(task)),
        (false, 0) => format!("tried again: {}", failure_words(task)),
        (false, attempts) => format!("tried again, attempt {}: {}", attempts + 1, failure_words(task)),
    }
}

/// `part-00003: can't read …  (5 failures reported, 1 attempt vanished)`
pub fn failure_words(failure: &TaskFailure) -> String {
    let mut counts = Vec::new();
    if failure.reported > 1 {
        counts.push(count(failure.reported.into(), "failure"));
    }
    if failure.silent > 0 {
        counts.push(format!("{} without a word", count(failure.silent.into(), "attempt")));
    }
    if failure.error.is_empty() {
        return format!("{}: {}", failure.task, counts.join(", "));
    }
    let counts = if counts.is_empty() { String::new() } else { format!(" ({})", counts.join(", ")) };
    format!("{}: {}{counts}", failure.task, failure.error)
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::TaskId;

    use super::*;

    #[test]
    fn the_headline_puts_chance_beside_map() {
        let row =
            HeadlineRow { set: "pairs".into(), queries: 300, map: 0.5604, chance: 0.146, p_at: [0.7, 0.65, 0.6, 0.4] };
        assert_eq!(
            headline(&[row]).render(),
            "queries  number    mAP  chance    P@1    P@5   P@10  P@100\n\
             pairs       300  0.560   0.146  0.700  0.650  0.600  0.400"
        );
    }

    #[test]
    fn a_gate_tells_its_numbers() {
        let gate = GateDecision {
            passed: false,
            baseline: Some(3),
            candidate_map: 0.5,
            baseline_map: 0.55,
            difference: -0.05,
            interval: [-0.06, -0.04],
            queries: 680,
        };
        let expected =
            "gate refused: mAP 0.500 against 0.550 of release 3, difference -0.050 [-0.060, -0.040] over 680 queries";
        assert_eq!(gate_words(&gate), expected);
        assert_eq!(floor_words(&gate, 0.0), None);
        assert_eq!(floor_words(&gate, 0.55).unwrap(), "mAP 0.500 is below the floor of 0.55");
        assert_eq!(floor_words(&gate, 0.5).unwrap(), "mAP 0.500 is not below the floor of 0.5");
    }

    #[test]
    fn a_first_release_that_was_refused_leaves_none() {
        assert_eq!(not_promoted(&Name::new("uni").unwrap(), None), "not promoted: uni has no release");
    }

    #[test]
    fn a_failure_names_its_task_and_how_often() {
        let failure = TaskFailure {
            task: TaskId::new("part-00003").unwrap(),
            error: "no such file".into(),
            reported: 5,
            silent: 1,
        };
        assert_eq!(failure_words(&failure), "part-00003: no such file (5 failures, 1 attempt without a word)");
        let vanished = TaskFailure { error: String::new(), reported: 0, ..failure.clone() };
        assert_eq!(failure_words(&vanished), "part-00003: 1 attempt without a word");
        let once = TaskFailure { reported: 1, silent: 0, ..failure };
        assert_eq!(failure_words(&once), "part-00003: no such file");
    }
}
