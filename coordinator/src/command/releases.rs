//! `likeness releases`: what served when, and how to change what serves.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use clap::Subcommand;
use likeness_contract::documents::{HeadlineRow, Release, ReportManifest};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::{keys, names};
use likeness_evaluation::QuerySet;
use likeness_link::client::{Client, ClientResult};

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, Table, line, moment, say};
use crate::command::pipeline::{DEFAULT_ALIAS, alias_or_main};
use crate::command::selectors::GenerationArg;
use crate::command::summary::gate_words;

mod compare;
mod history;

use compare::ReleaseArg;

/// A promotion that takes longer tells what it waits for, and so often.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Subcommands of `likeness releases`.
#[derive(Debug, Subcommand)]
pub enum ReleasesCommand {
    /// All releases, oldest first; the last one of an alias serves.
    List {
        /// Of this alias alone.
        alias: Option<Name>,
    },
    /// One release in full, or all that happened to an alias.
    Show {
        /// Its number; the newest without.
        number: Option<u64>,
        /// Its alias.
        #[arg(long, default_value = DEFAULT_ALIAS)]
        alias: Name,
        /// The audit trail of an alias instead: when what was promoted, refused or brought back, by which job, with the gate's numbers.
        #[arg(long, value_name = "ALIAS", num_args = 0..=1, default_missing_value = DEFAULT_ALIAS, conflicts_with_all = ["number", "alias"])]
        history: Option<Name>,
    },
    /// Two releases on the same queries: figures with paired intervals, overlap of their results, rank correlation.
    #[command(after_help = "\
A release is ALIAS@N, ALIAS for its newest one, or N of alias main. The reports of the two are compared, query by query, where both asked \
the same of the same number of images; --evaluate has workers evaluate both generations by the same settings first (once: the same \
evaluation asked again is the same job).

Overlap@K is the share of the first K images that both found. RBO is the rank-biased overlap of the first 100 (Webber and others 2010, \
extrapolated, p = 0.9): 1 for the same images in the same order, 0 for none in common; the first ten carry 86 % of it.

Examples:
  likeness releases compare 3 4
  likeness releases compare main@3 candidate --evaluate --top 20")]
    Compare {
        /// The first release.
        a: ReleaseArg,
        /// The second; differences are its figures less the first's.
        b: ReleaseArg,
        /// Evaluate both generations by the same settings, and compare these reports.
        #[arg(long)]
        evaluate: bool,
        /// Show so many of the queries that gained and lost most, and that are answered most differently.
        #[arg(long, value_name = "N", default_value_t = 5)]
        top: usize,
        /// Seed of the bootstrap.
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u64,
    },
    /// Serve a finished generation, without a gate.
    Promote {
        /// The generation: GALLERY/JOB, or the id of the job that embedded it.
        generation: GenerationArg,
        /// The alias that shall serve it.
        #[arg(long, default_value = DEFAULT_ALIAS)]
        alias: Name,
        /// The report that belongs to it.
        #[arg(long, value_name = "JOB")]
        report: Option<JobId>,
    },
    /// Serve an older release again: it becomes the newest one.
    Rollback {
        /// Number of the older release; the one before what serves without, so twice goes two back.
        #[arg(long, value_name = "NUMBER")]
        to: Option<u64>,
        /// The alias.
        #[arg(long, default_value = DEFAULT_ALIAS)]
        alias: Name,
    },
}

/// Runs one of them.
pub async fn run(global: &Global, command: ReleasesCommand) -> Outcome {
    let client = global.connection.client().await?;
    match command {
        ReleasesCommand::List { alias } => list(global, &client, alias).await,
        ReleasesCommand::Show { history: Some(alias), .. } => history::run(global, &client, &alias).await,
        ReleasesCommand::Compare { a, b, evaluate, top, seed } => {
            compare::run(global, &client, [&a, &b], evaluate, (top, seed)).await
        }
        ReleasesCommand::Show { number, alias, history: None } => {
            let releases = client.releases(Some(alias.clone())).await?;
            print_one(global, &find(releases, &alias, number)?)
        }
        ReleasesCommand::Promote { generation, alias, report } => {
            let generation = generation.resolve(&client).await?;
            print_new(global, &told(&client, client.promote(alias, generation, report)).await?)
        }
        ReleasesCommand::Rollback { to, alias } => print_new(global, &told(&client, client.rollback(alias, to)).await?),
    }
}

/// Says what searchers have trouble with while a promotion waits for them.
async fn told(client: &Client, promotion: impl Future<Output = ClientResult<Release>>) -> Outcome<Release> {
    let mut promotion = pin!(promotion);
    let mut said = BTreeSet::new();
    loop {
        tokio::select! {
            release = &mut promotion => return Ok(release?),
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
        if said.insert(String::new()) {
            say("waiting until the searchers have loaded it");
        }
        // Whether the coordinator answers is the promotion's affair.
        let Ok(status) = client.status().await else { continue };
        let troubles = status.placement.into_iter().flat_map(|searcher| searcher.troubles);
        for trouble in troubles.filter(|trouble| said.insert(trouble.clone())) {
            say(format!("  {trouble}"));
        }
    }
}

/// The newest release of an alias, if it has one.
pub async fn newest(client: &Client, alias: Option<Name>) -> Outcome<Release> {
    let alias = alias_or_main(alias)?;
    find(client.releases(Some(alias.clone())).await?, &alias, None)
}

fn find(mut releases: Vec<Release>, alias: &Name, number: Option<u64>) -> Outcome<Release> {
    let Some(number) = number else {
        let newest = releases.pop();
        return newest.ok_or_else(|| Failure::usage(format!("alias `{alias}` has no release yet")));
    };
    let known: Vec<String> = releases.iter().map(|release| release.number.to_string()).collect();
    let found = releases.into_iter().find(|release| release.number == number);
    found.ok_or_else(|| {
        let nearest = names::nearest(&number.to_string(), known.iter().rev().map(String::as_str));
        Failure::usage(format!("alias `{alias}` has no release {number}{}", names::hint(&nearest)))
    })
}

async fn list(global: &Global, client: &Client, alias: Option<Name>) -> Outcome {
    let releases = client.releases(alias).await?;
    if global.json {
        output::json(&releases)?;
    } else if releases.is_empty() {
        say("no releases yet: `likeness pipeline` makes one");
    } else {
        line(table(&releases, &reported(client, &releases).await).render());
    }
    Ok(Exit::Done)
}

/// mAP of the reports of releases that passed no gate: rollbacks, and those promoted by hand.
async fn reported(client: &Client, releases: &[Release]) -> BTreeMap<JobId, f64> {
    let mut figures = BTreeMap::new();
    for report in releases.iter().filter(|release| release.gate.is_none()).filter_map(|release| release.report.clone())
    {
        if figures.contains_key(&report) {
            continue;
        }
        // One that can't be read is left out here; `report show` says why.
        if let Ok(Some(manifest)) = client.store().document::<ReportManifest>(&keys::report_manifest(&report)).await {
            figures.insert(report, mean_ap(&manifest.headline));
        }
    }
    figures
}

/// Over the queries that the gate compares by.
fn mean_ap(headline: &[HeadlineRow]) -> f64 {
    let is_pooled = |row: &&HeadlineRow| QuerySet::from_name(&row.set).is_some_and(QuerySet::is_pooled);
    let pooled: Vec<&HeadlineRow> = headline.iter().filter(is_pooled).collect();
    let queries: f64 = pooled.iter().map(|row| f64::from(row.queries)).sum();
    pooled.iter().map(|row| f64::from(row.queries) * row.map).sum::<f64>() / queries.max(1.0)
}

fn table(releases: &[Release], reported: &BTreeMap<JobId, f64>) -> Table {
    let mut table = Table::new(["alias", "release", "serves", "generation", "mAP", "made (UTC)", "how"]);
    for (i, release) in releases.iter().enumerate() {
        let newest = releases.get(i + 1).is_none_or(|next| next.alias != release.alias);
        let gate = release.gate.as_ref().map(|gate| gate.candidate_map);
        let map = gate.or_else(|| reported.get(release.report.as_ref()?).copied());
        table.row([
            release.alias.to_string(),
            release.number.to_string(),
            if newest { "yes".into() } else { String::new() },
            format!("{}/{}", release.generation.gallery, release.generation.generation),
            map.map_or("–".into(), |map| format!("{map:.3}")),
            moment(release.created_ms),
            how(release),
        ]);
    }
    table
}

fn how(release: &Release) -> String {
    match (release.rolls_back_to, &release.job) {
        (Some(number), _) => format!("rollback to {number}"),
        (None, Some(job)) => format!("job {job}"),
        (None, None) => "by hand".into(),
    }
}

fn print_one(global: &Global, release: &Release) -> Outcome {
    if global.json {
        output::json(release)?;
        return Ok(Exit::Done);
    }
    line(format!("{} release {} ({})", release.alias, release.number, how(release)));
    line(format!("  made        {} UTC", moment(release.created_ms)));
    line(format!("  model       {}", release.model));
    line(format!("  generation  {}/{}", release.generation.gallery, release.generation.generation));
    if let Some(report) = &release.report {
        line(format!("  report      {report}"));
    }
    if let Some(replaced) = release.replaces {
        line(format!("  replaces    {replaced}"));
    }
    if let Some(gate) = &release.gate {
        line(format!("  {}", gate_words(gate)));
    }
    for warning in &release.warnings {
        line(format!("  warning: {warning}"));
    }
    Ok(Exit::Done)
}

fn print_new(global: &Global, release: &Release) -> Outcome {
    if global.json {
        output::json(release)?;
        return Ok(Exit::Done);
    }
    let generation = &release.generation;
    line(format!(
        "{} is now release {}: {}/{}",
        release.alias, release.number, generation.gallery, generation.generation
    ));
    for warning in &release.warnings {
        say(format!("warning: {warning}"));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use likeness_contract::jobs::GenerationRef;

    use super::*;

    fn release(number: u64, rolls_back_to: Option<u64>) -> Release {
        let job = JobId::new("j1").unwrap();
        Release {
            alias: Name::new("main").unwrap(),
            number,
            job: rolls_back_to.is_none().then(|| job.clone()),
            replaces: number.checked_sub(1).filter(|n| *n > 0),
            rolls_back_to,
            model: job.clone(),
            generation: GenerationRef { gallery: Name::new("faces").unwrap(), generation: job },
            report: None,
            gate: None,
            created_ms: 0,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn the_newest_release_serves() {
        let text = table(&[release(1, None), release(2, None), release(3, Some(1))], &BTreeMap::new()).render();
        let serving: Vec<&str> = text.lines().filter(|line| line.contains("yes")).collect();
        assert_eq!(serving.len(), 1);
        assert!(serving[0].contains("rollback to 1"), "{text}");
    }

    #[test]
    fn a_rollback_has_the_figure_of_its_report() {
        let report = JobId::new("r1").unwrap();
        let rollback = Release { report: Some(report.clone()), ..release(3, Some(1)) };
        let row = |set: &str, queries, map| HeadlineRow { set: set.into(), queries, map, chance: 0.1, p_at: [0.0; 4] };
        let figure = mean_ap(&[row("singles", 1, 0.9), row("pairs", 3, 0.5), row("images", 9, 0.1)]);
        assert!((figure - 0.6).abs() < 1e-12, "{figure}");
        let text = table(&[rollback], &BTreeMap::from([(report, figure)])).render();
        assert!(text.contains("0.600"), "{text}");
    }

    #[test]
    fn a_release_is_found_by_number_or_is_the_newest() {
        let alias = Name::new("main").unwrap();
        let all = || vec![release(1, None), release(2, None)];
        assert_eq!(find(all(), &alias, None).unwrap().number, 2);
        assert_eq!(find(all(), &alias, Some(1)).unwrap().number, 1);
        assert_eq!(find(all(), &alias, Some(9)).unwrap_err().exit as u8, 64);
        assert!(find(Vec::new(), &alias, None).unwrap_err().to_string().contains("no release yet"));
    }
}
