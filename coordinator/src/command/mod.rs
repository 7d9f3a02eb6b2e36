//! The `likeness` command line: one file per subcommand.
//!
//! Data goes to stdout, talk and progress to stderr; `--json` prints data as JSON. A command ends in one of
//! the exit codes of [`exit`]. Nothing here decides about jobs: that is the coordinator's core.

mod bench;
mod bounded;
mod config;
mod connect;
mod coordinator;
mod datasets;
mod embed;
mod evaluate;
pub mod exit;
mod follow;
mod gateway;
mod ingest;
mod init;
mod jobs;
pub mod models;
mod nkey;
mod options;
mod output;
mod own_queries;
mod pipeline;
mod plan;
mod progress;
mod quickstart;
mod reconcile;
mod releases;
pub mod report;
mod retention;
mod rounds;
mod schedule;
mod search;
mod selectors;
mod sheet;
pub mod shrink;
mod status;
mod summary;
mod train;
mod up;
mod weights;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use likeness_link::telemetry::{self, LogFormat};

pub use exit::Exit;

use crate::command::connect::Connection;
use crate::command::exit::Outcome;

const EXAMPLES: &str = "\
Examples:
  likeness up                                          everything on this machine, until Ctrl-C
  likeness ingest celeba ~/celeba                      images and labels become dataset `celeba`
  likeness plan --dataset celeba --epochs 15           what a pipeline would take
  likeness pipeline --dataset celeba --epochs 15       train, embed, evaluate, gate, promote
  likeness search --with Smiling,Eyeglasses --without Male --sheet faces.png
  likeness jobs watch JOB                              follow a job again after Ctrl-C
  likeness schedule add nightly --cron '0 3 * * *' -- pipeline --epochs 15    every night at three
  likeness releases rollback                           bring the release before the newest back

Commands find the `likeness up` that was started in the same folder by themselves; for other systems give --nats \
and --store, or set LIKENESS_NATS and LIKENESS_STORE.

Exit codes: 0 done · 1 failed or cancelled · 2 refused by the gate · 64 bad flags, settings or names · 69 NATS, \
store or coordinator unreachable, or the store can't be written to · 75 grace period ran out · 130 Ctrl-C, the job \
goes on";

/// Finds images by what they show.
#[derive(Debug, Parser)]
#[command(name = "likeness", version, about, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    #[command(flatten)]
    pub connection: Connection,
    /// Print data as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What is logged to stderr, such as `info` or `likeness=debug` [env: LIKENESS_LOG]
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run everything on this machine: NATS, coordinator, workers, searchers.
    Up(up::UpArgs),
    /// Run the control plane (several may run, one leads).
    Coordinator(coordinator::CoordinatorArgs),
    /// Answer HTTP, and serve the web page.
    Gateway(gateway::GatewayArgs),
    /// Read images and labels into a new dataset version.
    Ingest(ingest::IngestArgs),
    /// Train a model on a dataset.
    Train(train::TrainArgs),
    /// Embed a gallery with a model.
    Embed(embed::EmbedArgs),
    /// Evaluate an embedded gallery.
    Evaluate(evaluate::EvaluateArgs),
    /// Train, embed, evaluate, pass the gate, promote.
    Pipeline(pipeline::PipelineArgs),
    /// What a pipeline would take: tasks, images, bytes, device-hours, memory of searchers. Nothing is started.
    Plan(plan::PlanArgs),
    /// Write a config file with every option of a pipeline, its meaning and its default.
    Init(init::InitArgs),
    /// Show which options are in force and where they come from.
    #[command(subcommand)]
    Config(config::show::ConfigCommand),
    /// Find images by attributes, by an image, by an item.
    Search(search::SearchArgs),
    /// List, show, watch, cancel and retry jobs.
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// List and show models, and export their weights for PyTorch.
    #[command(subcommand)]
    Models(models::ModelsCommand),
    /// List, show, compare, promote and roll back releases.
    #[command(subcommand)]
    Releases(releases::ReleasesCommand),
    /// Let jobs begin by themselves at set times.
    #[command(subcommand)]
    Schedule(schedule::ScheduleCommand),
    /// Delete old datasets, models, generations and reports that nothing holds; tells which first.
    Retention(retention::RetentionArgs),
    /// Show a report and copy its files out.
    #[command(subcommand)]
    Report(report::ReportCommand),
    /// List and show datasets, take items out of them.
    #[command(subcommand)]
    Datasets(datasets::DatasetsCommand),
    /// Workers, queues and shard placement.
    Status,
    /// Put load on the searchers and measure how they bear it.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Compare store and broker now and mend what is missing (it also happens by itself).
    Reconcile,
    /// Make a key that a process proves itself to NATS with.
    Nkey(nkey::NkeyArgs),
    /// The whole pipeline on the demo or on CelebA, then serving.
    #[command(hide = true)]
    Quickstart(quickstart::QuickstartArgs),
}

impl Command {
    /// Long-running services log what they do; commands speak for themselves.
    fn default_filter(&self) -> &'static str {
        match self {
            Self::Coordinator(_) | Self::Gateway(_) => "info",
            _ => "error",
        }
    }
}

/// Parses the arguments and runs the command.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match parse(arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    match start_logging(&cli).and_then(|()| start(cli)) {
        Ok(exit) => exit,
        Err(failure) => {
            output::say(format!("error: {failure}"));
            failure.exit
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut command = with_negative_numbers(Cli::command());
    Cli::from_arg_matches(&command.try_get_matches_from_mut(arguments)?).map_err(|error| error.format(&mut command))
}

/// `-1` is a value and no flag, so that whoever checks the value may say what is wrong with it.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let named = |arg: &clap::Arg| !arg.is_positional() && arg.get_action().takes_values();
    let command = command.mut_args(|arg| if named(&arg) { arg.allow_negative_numbers(true) } else { arg });
    command.mut_subcommands(with_negative_numbers)
}

fn start_logging(cli: &Cli) -> Outcome<()> {
    let filter = cli.global.log.clone();
    let filter = filter.unwrap_or_else(|| telemetry::filter_from_env(cli.command.default_filter()));
    Ok(telemetry::init(&filter, LogFormat::from_env()?)?)
}

/// Prints help or a mistake as clap words it.
fn refuse(error: &clap::Error) -> Exit {
    // A closed stream can't be told about it.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    }
}

fn start(cli: Cli) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let exit = runtime.block_on(dispatch(cli));
    // A read from a stalled disk must not keep the program alive.
    runtime.shutdown_background();
    exit
}

async fn dispatch(cli: Cli) -> Outcome {
    let Cli { global, command } = cli;
    match command {
        Command::Up(args) => {
            global.connection.none_for("up")?;
            up::run(&global, args).await
        }
        Command::Coordinator(args) => coordinator::run(&global, args).await,
        Command::Gateway(args) => gateway::run(&global, args).await,
        Command::Ingest(args) => ingest::run(&global, args).await,
        Command::Train(args) => train::run(&global, args).await,
        Command::Embed(args) => embed::run(&global, args).await,
        Command::Evaluate(args) => evaluate::run(&global, args).await,
        Command::Pipeline(args) => pipeline::run(&global, args).await,
        Command::Plan(args) => plan::run(&global, args).await,
        Command::Init(args) => init::run(&args),
        Command::Config(command) => config::show::run(&global, command),
        Command::Search(args) => search::run(&global, args).await,
        Command::Schedule(command) => schedule::run(&global, command).await,
        Command::Jobs(command) => jobs::run(&global, command).await,
        Command::Models(command) => models::run(&global, command).await,
        Command::Releases(command) => releases::run(&global, command).await,
        Command::Retention(args) => retention::run(&global, args).await,
        Command::Report(command) => report::run(&global, command).await,
        Command::Datasets(command) => datasets::run(&global, command).await,
        Command::Bench(command) => bench::run(&global, command).await,
        Command::Status => status::run(&global).await,
        Command::Reconcile => reconcile::run(&global).await,
        Command::Nkey(args) => nkey::run(&global, &args),
        Command::Quickstart(args) => {
            global.connection.none_for("quickstart")?;
            quickstart::run(&global, args).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        super::parse(std::iter::once("likeness").chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_command_line_is_well_formed() {
        with_negative_numbers(Cli::command()).debug_assert();
    }

    #[test]
    fn a_negative_number_is_a_value_wherever_it_stands() {
        for line in ["train --dataset d --margin -1", "search --with a --min-coverage -1"] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
        for line in ["search --with a -k -1", "up --grace-period -1", "jobs list --limit -1"] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains("invalid value '-1'") || error.contains("-1 is not in"), "{line}: {error}");
        }
    }

    #[test]
    fn help_has_no_line_that_is_broken_twice() {
        // Every paragraph is one line in the source, so that only the terminal's width breaks it.
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().collect();
            for pair in lines.windows(2) {
                let prose = |line: &str| !line.is_empty() && !line.starts_with([' ', '[']) && !line.ends_with(':');
                let broken = prose(pair[0]) && prose(pair[1]);
                assert!(!broken, "{}: `{}` goes on in the next line", command.get_name(), pair[0]);
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn every_command_of_the_design_parses() {
        for line in [
            "up",
            "up ./data --port 4333",
            "coordinator",
            "gateway --http 127.0.0.1:0 --keys k --rate 5 --allow-origin https://a.example",
            "gateway key keys.txt alice --role operator --rate 2",
            "ingest celeba ~/celeba",
            "ingest parquet a.parquet b.parquet",
            "train --dataset d",
            "embed --model m",
            "evaluate g/h",
            "evaluate g/h --queries q.csv --full 0 --images 10 --image-edit author",
            "pipeline --floor 0.2 --queries q.jsonl",
            "pipeline --config job.toml --epochs 3 --detach",
            "pipeline --max-workers 8 --notify https://a.example/x --notify https://b.example/y",
            "plan job.toml --epochs 3 --json",
            "init",
            "init other.toml",
            "config show job.toml --epochs 3",
            "search --with Smiling,Eyeglasses --without Male --image a.jpg -k 20 --json --sheet out.png",
            "search --like 000001.jpg --min-coverage 0.9 --deadline-ms 500 --alias main",
            "jobs list",
            "jobs show j",
            "jobs watch j",
            "jobs cancel j",
            "jobs retry j",
            "train --init w.safetensors --warm-up-epochs 2 --backbone-lr 0.1 --optimizer sgd --momentum 0.9 --clip-norm 1",
            "train --init main --freeze backbone --patience 3 --keep best --resized-crop 0.3 --brightness 0.4 --hue 0.1",
            "models list",
            "models show main",
            "models export main --out m.safetensors --force",
            "releases list",
            "releases show",
            "releases show --history",
            "releases show --history faces",
            "releases compare 3 faces@4 --evaluate --top 3 --json",
            "releases promote g/h",
            "releases rollback --to 1",
            "report show r --html out.html",
            "datasets list",
            "datasets remove 1.jpg 2.jpg --dataset d",
            "datasets remove --from items.txt --dataset d --force",
            "datasets restore 1.jpg --dataset d",
            "datasets compact d --detach",
            "ingest folder photos --vocabulary-of d",
            "ingest parquet faces/*.parquet --append",
            "status --json",
            "nkey worker.nk",
            "reconcile --nats nats://h:1",
            "quickstart --once --celeba d",
            "schedule add nightly --cron @daily --zone Europe/Berlin --overlap queue --catch-up all:3 --only-if-changed -- pipeline --epochs 3",
            "schedule list",
            "schedule show nightly --limit 5 --json",
            "schedule pause nightly",
            "schedule resume nightly",
            "schedule remove nightly",
            "retention --keep 2 --older-than 14 --held",
            "retention --apply --json",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn a_mistyped_flag_or_command_is_answered_with_the_nearest() {
        let error = parse("search --wiht Smiling").unwrap_err().to_string();
        assert!(error.contains("--with"), "{error}");
        let error = parse("serach").unwrap_err().to_string();
        assert!(error.contains("search"), "{error}");
        let error = parse("train --architecture resnet5").unwrap_err().to_string();
        assert!(error.contains("resnet50"), "{error}");
    }

    #[test]
    fn mistakes_end_in_64_and_help_in_0() {
        assert_eq!(refuse(&parse("search --wiht x").unwrap_err()), Exit::Usage);
        assert_eq!(refuse(&parse("train --epochs many").unwrap_err()), Exit::Usage);
        assert_eq!(refuse(&parse("").unwrap_err()), Exit::Usage);
        assert_eq!(refuse(&parse("jobs list --limit 0").unwrap_err()), Exit::Usage);
        assert_eq!(refuse(&parse("train --help").unwrap_err()), Exit::Done);
        assert_eq!(refuse(&parse("--version").unwrap_err()), Exit::Done);
    }
}
