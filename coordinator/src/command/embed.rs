//! `likeness embed`: a gallery's images into shards, by one model.

use std::path::PathBuf;

use clap::Args;
use likeness_contract::documents::ModelManifest;
use likeness_contract::ids::JobId;
use likeness_contract::jobs::{DatasetSelector, JobWork, RequestedWork};
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
#[command(after_help = "\
Examples:
  likeness embed --model train-ac1c409f4bdf6613         all images of the dataset that it was trained on
  likeness embed --model train-ac1c409f4bdf6613 --dataset new --gallery faces --rows all")]
pub struct EmbedArgs {
    /// The model: the id of the job that trained it.
    #[arg(long, value_name = "JOB")]
    model: JobId,
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

/// Submits the job.
pub async fn run(global: &Global, args: EmbedArgs) -> Outcome {
    let file = JobFile::read(args.config.as_deref())?;
    let (job, embed) = (args.job.or(file.job), args.embed.or(file.embed));
    let client = global.connection.client().await?;
    let dataset = match args.dataset.or(file.dataset) {
        Some(DatasetArg(selector)) => selector,
        None => trained_on(&client, &args.model).await?,
    };
    let work = RequestedWork::Embed { model: args.model, embed: embed.resolve(&dataset)? };
    let summary = client.submit(job.request(work)).await?;
    follow::submitted(global, &client, summary, args.detach).await
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
