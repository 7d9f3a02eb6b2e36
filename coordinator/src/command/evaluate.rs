//! `likeness evaluate`: P@K and mAP of an embedded gallery.

use std::path::PathBuf;

use clap::Args;
use likeness_contract::jobs::{JobRequest, RequestedWork};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::config::JobFile;
use crate::command::exit::{Failure, Outcome};
use crate::command::follow;
use crate::command::options::{EvaluateOptions, JobOptions};
use crate::command::own_queries;
use crate::command::selectors::GenerationArg;

/// Flags of `likeness evaluate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Queries of one, two and three attributes, of everything known of 300 images, and of 300 images with one attribute changed \
are drawn from the labels and asked of the gallery; the report puts their \
mean average precision beside what a random order would reach.

--queries adds your own as set `own`: a .csv or .tsv (its first line names the columns), .jsonl (an object a line) or .parquet file with the \
columns `with` and `without` (attributes, several between commas or as a list), `item` (an image of the gallery that they change; \
needs at least one attribute), `vector` (what asks instead, as a list of numbers; the attributes judge alone; not in CSV) and `name`.

Embeddings that were imported have no model that attributes could ask: images ask as they are, each judged by one attribute that is \
known of it (set `alike`, as many as --images), and your own queries ask by their `item` as it is or by their `vector`.

Examples:
  likeness evaluate embed-9b1d77c03e5a2f48              the gallery that this job embedded
  likeness evaluate faces/embed-9b1d77c03e5a2f48 --report-rows all --pairs 1000
  likeness evaluate embed-9b1d77c03e5a2f48 --queries mine.csv --pairs 0 --triples 0 --full 0 --images 0
  likeness evaluate embed-9b1d77c03e5a2f48 --image-edit author")]
pub struct EvaluateArgs {
    /// The generation: GALLERY/JOB, or the id of the job that embedded it.
    generation: GenerationArg,
    /// Read options from this file; flags win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the job's id and don't wait.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    job: JobOptions,
    #[command(flatten)]
    evaluate: EvaluateOptions,
}

/// Submits the job.
pub async fn run(global: &Global, args: EvaluateArgs) -> Outcome {
    let detach = args.detach;
    let (client, request) = job(global, args).await?;
    let summary = client.submit(request).await?;
    follow::submitted(global, &client, summary, detach).await
}

/// The job that flags and file ask for.
pub async fn job(global: &Global, args: EvaluateArgs) -> Outcome<(Client, JobRequest)> {
    let file = JobFile::read(args.config.as_deref())?;
    let job = args.job.or(file.job);
    let options = args.evaluate.or(file.evaluate);
    let mut evaluate = options.resolve()?;
    if evaluate.settings.floor > 0.0 {
        return Err(Failure::usage("`floor` is of a pipeline's gate: an evaluation alone promotes nothing"));
    }
    let client = global.connection.client().await?;
    let generation = args.generation.resolve(&client).await?;
    if let Some(file) = &options.queries {
        evaluate.settings.own = own_queries::for_generation(&client, file, &generation).await?;
    }
    let work = RequestedWork::Evaluate { generation, evaluate };
    let request = job.request(work);
    Ok((client, request))
}
