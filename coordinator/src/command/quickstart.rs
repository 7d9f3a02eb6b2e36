//! `likeness quickstart`: the main job on the demo or on the user's CelebA, then serving.
//!
//! Behind `infra/quickstart`, which fetches and builds what is needed first. Everything lies below one folder
//! and every job has an id made from what it does, so a second run finds what the first one did, and a run
//! that was stopped goes on where it was.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use likeness_contract::documents::{DatasetManifest, ReportManifest};
use likeness_contract::ids::{Digest, JobId, Name};
use likeness_contract::jobs::{
    DatasetRef, DatasetSelector, DeviceClass, IngestSource, JobOptions, JobRequest, Priority, RequestedWork,
};
use likeness_contract::keys;
use likeness_contract::messages::{ApiErrorKind, JobDetail, JobState, JobSummary};
use likeness_contract::search::{SearchErrorKind, SearchResults};
use likeness_contract::settings::{Split, Vocabulary};
use likeness_link::client::{Client, ClientError};
use likeness_link::settings::NatsSettings;
use tokio::time::Instant;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::ingest::{celeba_source, parquet_source};
use crate::command::output::{count, line, say};
use crate::command::pipeline::{PipelineOptions, alias_or_main};
use crate::command::progress::Display;
use crate::command::search::{self, SearchArgs};
use crate::command::up::state::{DirLock, path_token};
use crate::command::up::{Running, UpArgs, signals};
use crate::command::{follow, report, summary};

/// Training images over all epochs: about a minute of two cores.
const TRAINED_IMAGES: u64 = 36_000;
/// Epochs of a small set; more would learn it by heart.
const MAX_EPOCHS: u64 = 15;
/// The gallery is cut into at least so many shards, so that the merge of partial results is seen at work.
const SHARDS: u64 = 4;
/// Rows of an ingest part.
const PART_ROWS: u32 = 1000;
/// Results of the query.
const SHOWN: u32 = 12;
/// Searchers have loaded a release by then.
const SERVED_WITHIN: Duration = Duration::from_secs(60);
/// Earlier jobs that are looked through.
const JOBS_LOOKED_AT: u32 = 100;
/// Runs at once over one checkout.
const MAX_FOLDERS: u32 = 100;

/// Flags of `likeness quickstart`.
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// Run on CelebA in this folder instead of the demo.
    #[arg(long, value_name = "DIR")]
    celeba: Option<PathBuf>,
    /// Ask one query, stop everything and leave; so it is without a terminal, too.
    #[arg(long)]
    once: bool,
    /// Forget what earlier runs did.
    #[arg(long)]
    fresh: bool,
    /// Passes over the training images [default: what fits into minutes].
    #[arg(long)]
    epochs: Option<u32>,
    /// Where report.html, report.json, sheet.png and all data go.
    #[arg(long, value_name = "DIR", default_value = "target/quickstart")]
    out: PathBuf,
    /// Folder of the demo's Parquet files.
    #[arg(long, value_name = "DIR", default_value = "infra/demo")]
    demo: PathBuf,
}

/// What is ingested.
struct Source {
    dataset: Name,
    source: IngestSource,
    /// Folder of its data below the output folder.
    folder: String,
}

/// Runs everything.
pub async fn run(global: &Global, args: QuickstartArgs) -> Outcome {
    let source = source(&args)?;
    let claim = claim(&args.out)?;
    let data = claim.dir().join(&source.folder);
    let stop = signals::stop_requested();
    tokio::pin!(stop);
    let lock = if args.fresh { DirLock::take_fresh(&data)? } else { DirLock::take(&data)? };
    let up = UpArgs::over(data.clone());
    let running = tokio::select! {
        running = Running::start(&up, lock) => running?,
        () = &mut stop => return Ok(Exit::Failed),
    };
    let once = args.once || !has_terminal();
    let result = tokio::select! {
        result = work(&running, &args, source, claim.dir()) => result,
        () = &mut stop => {
            say("\nstopping; the next run goes on where this one was");
            running.stop_or_kill().await?;
            return Ok(Exit::Failed);
        }
    };
    match &result {
        Ok(answer) => answer.tell(global, once),
        Err(failure) => say(format!("error: {failure}\nlogs are in {}", data.join("logs").display())),
    }
    if result.is_ok() && !once {
        stop.await;
        say("stopping");
    }
    let stopped = running.stop_or_kill().await?;
    match result {
        Ok(answer) => Ok(if answer.exit == Exit::Done { stopped } else { answer.exit }),
        Err(failure) => Ok(failure.exit),
    }
}

fn has_terminal() -> bool {
    std::io::stdout().is_terminal() || std::io::stderr().is_terminal()
}

fn source(args: &QuickstartArgs) -> Outcome<Source> {
    let name = |text: &str| Name::new(text).map_err(Failure::failed);
    let Some(dir) = &args.celeba else {
        let files = demo_files(&args.demo)?;
        return Ok(Source { dataset: name("demo")?, source: parquet_source(&files)?, folder: "demo".into() });
    };
    for part in ["img_align_celeba", "list_attr_celeba.txt", "list_eval_partition.txt"] {
        if !dir.join(part).exists() {
            return Err(Failure::usage(format!(
                "`{}` is no CelebA folder: `{part}` is missing (it needs img_align_celeba/, list_attr_celeba.txt and list_eval_partition.txt)",
                dir.display()
            )));
        }
    }
    let folder = format!("celeba-{}", path_token(&dir.canonicalize()?));
    Ok(Source { dataset: name("celeba")?, source: celeba_source(dir)?, folder })
}

fn demo_files(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)
        .map_err(|error| Failure::usage(format!("no demo in `{}`: {error}; name it with --demo", dir.display())))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .collect();
    files.sort();
    if files.is_empty() {
        return Err(Failure::usage(format!("there is no Parquet file in `{}`", dir.display())));
    }
    Ok(files)
}

/// The output folder, or one beside it while another run uses it.
fn claim(out: &Path) -> Outcome<DirLock> {
    for number in 1..=MAX_FOLDERS {
        let mut folder = out.as_os_str().to_owned();
        if number > 1 {
            folder.push(format!("-{number}"));
        }
        if let Some(lock) = DirLock::try_take(Path::new(&folder))? {
            if number > 1 {
                say(format!("another run uses {}: this one works in {}", out.display(), lock.dir().display()));
            }
            return Ok(lock);
        }
    }
    Err(Failure::failed(format!("{MAX_FOLDERS} runs use {} already", out.display())))
}

/// What the run came to.
struct Answer {
    exit: Exit,
    args: SearchArgs,
    results: Option<SearchResults>,
    out: PathBuf,
    data: PathBuf,
    http: Option<String>,
}

impl Answer {
    fn tell(&self, global: &Global, once: bool) {
        if let Some(results) = &self.results {
            line(format!("\nWhat `{}` finds:", self.command_line()));
            search::print(&self.args, 0, results);
        }
        line(format!("\nLeft in {}: report.html, report.json, sheet.png", shown(&self.out)));
        if !once && !global.json {
            if let Some(http) = &self.http {
                line(format!("\nServing until Ctrl-C: {http} in a browser. Or ask it in another terminal:"));
            } else {
                line("\nServing until Ctrl-C. Ask it in another terminal:");
            }
            line(format!("  {}", self.command_line()));
            line(format!(
                "  {} --sheet found.png   (and --image FILE, --like ITEM, -k 50, --json)",
                self.command_line()
            ));
        }
    }

    fn command_line(&self) -> String {
        let program = std::env::current_exe().map_or_else(|_| "likeness".into(), |path| shown(&path));
        let mut words = vec![program, "--up".into(), shown(&self.data), "search".into()];
        for (flag, names) in [("--with", &self.args.with), ("--without", &self.args.without)] {
            if !names.is_empty() {
                words.extend([flag.to_string(), names.join(",")]);
            }
        }
        words.join(" ")
    }
}

/// The path, relative where it is below the folder that we stand in.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

async fn work(running: &Running, args: &QuickstartArgs, source: Source, out: &Path) -> Outcome<Answer> {
    let state = running.state();
    let data = Path::new(&state.store).parent().unwrap_or(Path::new(".")).to_path_buf();
    say(format!("running: NATS at {}, store, logs and streams in {}", state.nats, shown(&data)));
    let client = Client::connect(&NatsSettings::new(state.nats.as_str())?, &state.store).await?;
    let manifest = ingest(&client, source).await?;
    let detail = pipeline(&client, &manifest, args.epochs).await?;
    let report = copy_report(&client, &detail, out).await?;
    say("");
    summary::print(&client, &detail).await?;
    let exit = Exit::of_job(detail.summary.state);
    let args = question(&manifest.vocabulary);
    let mut answer = Answer { exit, args, results: None, out: out.to_path_buf(), data, http: running.state().http };
    if exit == Exit::Done {
        let results = ask(&client, &answer.args, &report).await?;
        let sheet = search::draw(&client, &answer.args, &results).await?;
        let file = out.join("sheet.png");
        sheet
            .save_with_format(&file, image::ImageFormat::Png)
            .map_err(|error| Failure::failed(format!("can't write `{}`: {error}", file.display())))?;
        answer.results = Some(results);
    }
    Ok(answer)
}

async fn ingest(client: &Client, source: Source) -> Outcome<DatasetManifest> {
    let Source { dataset, source, .. } = source;
    let work = RequestedWork::Ingest { dataset: dataset.clone(), source, part_rows: PART_ROWS };
    let job = once_only(client, id_of(&work)?, work).await?;
    let detail = finished(client, &job).await?;
    if detail.summary.state != JobState::Done {
        return Err(failed(&detail));
    }
    Ok(client.store().require(&keys::dataset_manifest(&dataset, &job.job)).await?)
}

async fn pipeline(client: &Client, manifest: &DatasetManifest, epochs: Option<u32>) -> Outcome<JobDetail> {
    let DatasetRef { dataset, version } = manifest.dataset.clone();
    let train_rows = manifest.rows(Split::Train);
    let mut options = PipelineOptions::default();
    options.train.epochs = Some(epochs.unwrap_or_else(|| fitting_epochs(train_rows)));
    options.embed.shard_rows = Some(shard_rows(manifest.rows(Split::All)));
    let dataset = DatasetSelector { dataset, version: Some(version) };
    let request = options.request(dataset, alias_or_main(None)?, None, None)?;
    let id = id_of(&request.work)?;
    end_others(client, &id).await?;
    say(format!(
        "training cnn-s at 64 px: {} over {}",
        count(options.train.epochs.unwrap_or_default().into(), "epoch"),
        count(train_rows, "image")
    ));
    let job = once_only(client, id, request.work).await?;
    let detail = finished(client, &job).await?;
    match detail.summary.state {
        JobState::Done | JobState::Refused => Ok(detail),
        JobState::Failed | JobState::Cancelled | JobState::Running => Err(failed(&detail)),
    }
}

fn fitting_epochs(train_rows: u64) -> u32 {
    let epochs = (TRAINED_IMAGES.div_ceil(train_rows.max(1))).clamp(1, MAX_EPOCHS);
    u32::try_from(epochs).unwrap_or(1)
}

fn shard_rows(rows: u64) -> u32 {
    u32::try_from(rows.div_ceil(SHARDS)).unwrap_or(u32::MAX).clamp(1, crate::command::options::DEFAULT_ROWS)
}

/// An id made from what is asked: the same question finds the same job.
fn id_of(work: &RequestedWork) -> Outcome<JobId> {
    let kind = if matches!(work, RequestedWork::Pipeline { .. }) { "pipeline" } else { "ingest" };
    let digest = Digest::of(&serde_json::to_vec(work)?);
    JobId::new(format!("{kind}-{}", digest.short())).map_err(Failure::failed)
}

/// Ends pipelines with other settings that an earlier run left open: they would share the one worker with ours.
async fn end_others(client: &Client, ours: &JobId) -> Outcome<()> {
    for job in client.list(JOBS_LOOKED_AT).await? {
        if job.state == JobState::Running && job.kind == "pipeline" && job.job != *ours {
            say(format!("ending pipeline {} of an earlier run with other settings", job.job));
            client.cancel(&job.job).await?;
        }
    }
    Ok(())
}

/// Submits a job under its id; one that is there already goes on as it is, and one that failed is tried again.
async fn once_only(client: &Client, id: JobId, work: RequestedWork) -> Outcome<JobSummary> {
    let known = match client.show(&id).await {
        Ok(detail) => detail.summary,
        Err(ClientError::Api(error)) if error.kind == ApiErrorKind::NotFound => {
            let request = JobRequest {
                id: Some(id),
                work,
                device: DeviceClass::Any,
                priority: Priority::Lo,
                options: JobOptions::default(),
            };
            return Ok(client.submit(request).await?);
        }
        Err(error) => return Err(error.into()),
    };
    match known.state {
        JobState::Failed | JobState::Cancelled => {
            say(format!("trying job {id} again; what was done is kept"));
            return Ok(client.retry(&id).await?);
        }
        JobState::Running => say(format!("going on with job {id}")),
        JobState::Done | JobState::Refused => {
            say(format!("job {id} was done by an earlier run (--fresh forgets it)"));
        }
    }
    Ok(known)
}

async fn finished(client: &Client, job: &JobSummary) -> Outcome<JobDetail> {
    let mut display = Display::new();
    let detail = follow::until_ended(client, &job.job, &mut display).await;
    display.close();
    detail
}

fn failed(detail: &JobDetail) -> Failure {
    let mut text = format!("{} job {} is {}", detail.summary.kind, detail.summary.job, detail.summary.state.name());
    if let Some(likeness_contract::jobs::RunResult::Failed { failures }) = &detail.result {
        for failure in failures {
            text.push_str(&format!("\n  {}", summary::failure_words(failure)));
        }
    }
    Failure::failed(text)
}

async fn copy_report(client: &Client, detail: &JobDetail, out: &Path) -> Outcome<ReportManifest> {
    let manifest = report::manifest(client, &detail.summary.job).await?;
    report::copy(client, &manifest.html, &out.join("report.html")).await?;
    report::copy(client, &manifest.json, &out.join("report.json")).await?;
    Ok(manifest)
}

/// A question that the vocabulary knows: who smiles, and is no man or wears no glasses, where it can.
fn question(vocabulary: &Vocabulary) -> SearchArgs {
    let known = |name: &str| vocabulary.position(name).map(|at| vocabulary.names[at].clone());
    let with = known("Smiling").or_else(|| vocabulary.names.first().cloned());
    let without = known("Male").or_else(|| known("Eyeglasses")).filter(|name| Some(name) != with.as_ref());
    SearchArgs {
        with: with.into_iter().collect(),
        without: without.into_iter().collect(),
        attributes_weight: None,
        image: Vec::new(),
        image_weight: Vec::new(),
        like: Vec::new(),
        like_weight: Vec::new(),
        vector: Vec::new(),
        vector_weight: Vec::new(),
        only_with: Vec::new(),
        only_without: Vec::new(),
        recall: None,
        k: SHOWN,
        page: None,
        cursor: None,
        explain: false,
        sheet: None,
        min_coverage: 1.0,
        deadline_ms: 10_000,
        alias: Name::new(crate::command::pipeline::DEFAULT_ALIAS).unwrap_or_else(|_| unreachable!("a constant name")),
        queries: None,
        batch: None,
        answers: None,
        out: None,
        at_once: 1,
        queries_per_task: 1,
        detach: false,
        job: crate::command::options::JobOptions::default(),
    }
}

/// Asks until the searchers serve the generation that was reported on.
async fn ask(client: &Client, args: &SearchArgs, report: &ReportManifest) -> Outcome<SearchResults> {
    let request = search::request(args)?;
    let deadline = Instant::now() + SERVED_WITHIN;
    loop {
        let error = match client.search(&request).await {
            Ok(results) if results.generation == report.generation => return Ok(results),
            Ok(results) => Failure::failed(format!("release {} serves still", results.release)),
            Err(ClientError::Search(error)) if error.kind == SearchErrorKind::Invalid => return Err(error.into()),
            Err(error) => error.into(),
        };
        if Instant::now() > deadline {
            return Err(error.context("the searchers did not load the release in time"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_makes_four_shards_and_big_sets_stay_within_bounds() {
        assert_eq!(shard_rows(3000), 750);
        assert_eq!(shard_rows(202_599), 8192);
        assert_eq!(shard_rows(0), 1);
    }

    #[test]
    fn big_sets_get_fewer_epochs() {
        assert_eq!(fitting_epochs(2400), 15);
        assert_eq!(fitting_epochs(162_770), 1);
        assert_eq!(fitting_epochs(0), 15);
    }

    #[test]
    fn the_question_fits_the_vocabulary() {
        let ask = |names: &[&str]| question(&Vocabulary { names: names.iter().map(|name| name.to_string()).collect() });
        let args = ask(&["Bald", "Male", "Smiling"]);
        assert_eq!((args.with, args.without), (vec!["Smiling".to_string()], vec!["Male".to_string()]));
        let args = ask(&["Eyeglasses", "Smiling"]);
        assert_eq!((args.with, args.without), (vec!["Smiling".to_string()], vec!["Eyeglasses".to_string()]));
        let args = ask(&["Male"]);
        assert_eq!((args.with, args.without), (vec!["Male".to_string()], vec![]));
    }

    #[test]
    fn two_runs_at_once_work_in_two_folders() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("quickstart");
        let first = claim(&out).unwrap();
        let second = claim(&out).unwrap();
        assert!(first.dir().ends_with("quickstart") && second.dir().ends_with("quickstart-2"));
        drop(first);
        assert!(claim(&out).unwrap().dir().ends_with("quickstart"));
    }

    #[test]
    fn a_folder_that_is_no_celeba_is_told_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let args = QuickstartArgs {
            celeba: Some(folder.path().into()),
            once: true,
            fresh: false,
            epochs: None,
            out: "out".into(),
            demo: "demo".into(),
        };
        let Err(failure) = source(&args) else { panic!("it is empty") };
        assert_eq!(failure.exit as u8, 64);
        assert!(failure.to_string().contains("`img_align_celeba` is missing"), "{failure}");
    }
}
