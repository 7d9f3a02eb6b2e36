//! `likeness train`: a model from a dataset.

use std::path::PathBuf;

use clap::Args;
use likeness_contract::jobs::{JobRequest, RequestedWork};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::config::JobFile;
use crate::command::exit::Outcome;
use crate::command::follow;
use crate::command::options::{self, JobOptions, ModelOptions, TrainOptions, train_request};
use crate::command::selectors::{DatasetArg, dataset_or_only};

/// Flags of `likeness train`.
#[derive(Debug, Args)]
#[command(after_help = "\
The job's id is the model's name. A training that is killed goes on from its last round and ends in the same bytes.

Examples:
  likeness train --dataset celeba
  likeness train --dataset celeba --architecture resnet50 --device cuda --epochs 30
  likeness train --config job.toml --seed 7
  likeness train --slots 4 --inner-steps 50
  likeness train --architecture resnet18 --init resnet18.safetensors --warm-up-epochs 2 --backbone-lr 0.1 --patience 5

Pretrained weights are safetensors with torchvision's or timm's names; the classifier (`fc`) is left out. From a model of \
ours (its id, or an alias such as `main`) head and attribute tower are taken too where they fit. A .pth file is a pickle \
and is refused with the line that converts it.")]
pub struct TrainArgs {
    /// Dataset, or dataset@version [default: the only one that there is].
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
    model: ModelOptions,
    #[command(flatten)]
    train: TrainOptions,
}

/// Submits the job.
pub async fn run(global: &Global, args: TrainArgs) -> Outcome {
    let detach = args.detach;
    let (client, request) = job(global, args).await?;
    let summary = client.submit(request).await?;
    follow::submitted(global, &client, summary, detach).await
}

/// The job that flags and file ask for.
pub async fn job(global: &Global, args: TrainArgs) -> Outcome<(Client, JobRequest)> {
    let file = JobFile::read(args.config.as_deref())?;
    let job = args.job.or(file.job);
    let (model, train) = (args.model.or(file.model), args.train.or(file.train));
    // Mistakes in settings are said before anything is asked of the network.
    options::resolved(&model, &train)?;
    let client = global.connection.client().await?;
    let dataset = dataset_or_only(&client, args.dataset.or(file.dataset)).await?;
    let init = options::start(&client, &model, &train).await?;
    let work = RequestedWork::Train(train_request(dataset, &model, &train, init)?);
    let request = job.request(work);
    Ok((client, request))
}
