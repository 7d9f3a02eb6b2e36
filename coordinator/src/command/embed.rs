//! `likeness embed`: a gallery's images into shards, by one model; or embeddings that were made elsewhere.

mod import;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use likeness_contract::documents::ModelManifest;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{DatasetSelector, JobRequest, JobWork, RequestedWork};
use likeness_contract::keys;
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::config::JobFile;
use crate::command::exit::{Failure, Outcome};
use crate::command::follow;
use crate::command::options::{EmbedOptions, JobOptions};
use crate::command::selectors::DatasetArg;

/// Flags of `likeness embed`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Rows whose images an earlier generation by the same model has are copied from it, which gives the same shards as computing them: \
after a new version of a dataset only what is new is computed. The newest such generation is taken that embeds the dataset's \
images; `likeness jobs show` tells how many rows were copied.

Examples:
  likeness embed --model train-ac1c409f4bdf6613         all images of the dataset that it was trained on
  likeness embed --model train-ac1c409f4bdf6613 --dataset new --gallery faces --rows all
  likeness embed --model train-ac1c409f4bdf6613 --full  copy nothing, compute all of it
  likeness embed import vectors.parquet --gallery mine  embeddings that were made elsewhere"
)]
pub struct EmbedArgs {
    #[command(subcommand)]
    command: Option<EmbedCommand>,
    /// The model: the id of the job that trained it.
    #[arg(long, value_name = "JOB", required = true)]
    model: Option<JobId>,
    /// Compute every row, also those that an earlier generation by this model has.
    #[arg(long)]
    full: bool,
    /// Dataset, or dataset@version [default: the version that the model was trained on].
    #[arg(long)]
    dataset: Option<DatasetArg>,
    /// Read options from this file; flags win.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the job's id and don't wait.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    job: JobOptions,
    #[command(flatten)]
    embed: EmbedOptions,
}

#[derive(Debug, Subcommand)]
enum EmbedCommand {
    /// Make a generation of embeddings from elsewhere: Parquet files, or a .npy array with a table of ids.
    Import(import::ImportArgs),
}

/// Submits the job.
pub async fn run(global: &Global, args: EmbedArgs) -> Outcome {
    let detach = match &args.command {
        Some(EmbedCommand::Import(import)) => import.detach,
        None => args.detach,
    };
    let (client, request) = job(global, args).await?;
    let summary = client.submit(request).await?;
    follow::submitted(global, &client, summary, detach).await
}

/// The job that flags and file ask for.
pub async fn job(global: &Global, args: EmbedArgs) -> Outcome<(Client, JobRequest)> {
    if let Some(EmbedCommand::Import(import)) = args.command {
        return import::job(global, import).await;
    }
    let model = args.model.ok_or_else(|| Failure::usage("say `--model JOB`"))?;
    let file = JobFile::read(args.config.as_deref())?;
    let (job, embed) = (args.job.or(file.job), args.embed.or(file.embed));
    let client = global.connection.client().await?;
    let dataset = match args.dataset.or(file.dataset) {
        Some(DatasetArg(selector)) => selector,
        None => trained_on(&client, &model).await?,
    };
    let embed = embed.resolve(&dataset)?;
    let work =
        if args.full { RequestedWork::EmbedAnew { model, embed } } else { RequestedWork::Embed { model, embed } };
    let request = job.request(work);
    Ok((client, request))
}

/// The dataset version that a model was trained on.
async fn trained_on(client: &Client, model: &JobId) -> Outcome<DatasetSelector> {
    let found: Option<ModelManifest> = client.store().document(&keys::model_manifest(model)).await?;
    if let Some(manifest) = found {
        return Ok(DatasetSelector { dataset: manifest.dataset.dataset, version: Some(manifest.dataset.version) });
    }
    // The coordinator knows the nearest ids, and whether the job is only not finished.
    let detail = client.show(model).await?;
    Err(Failure::usage(match detail.spec.work {
        JobWork::Train(_) | JobWork::Pipeline { .. } => {
            format!("model `{model}` is not finished: its job is {}", detail.summary.state.name())
        }
        other => format!("job `{model}` is of kind {}: it trained no model", other.kind()),
    }))
}
