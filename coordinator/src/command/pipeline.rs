//! `likeness pipeline`: train → embed → evaluate → gate → promote, as one job.

use std::path::{Path, PathBuf};

use clap::Args;
use likeness_contract::ids::Name;
use likeness_contract::jobs::{DatasetSelector, JobRequest, RequestedWork};
use likeness_contract::settings::{BroughtQueries, InitWeights};
use likeness_link::client::Client;

use crate::command::Global;
use crate::command::config::{JobFile, Target};
use crate::command::exit::{Failure, Outcome};
use crate::command::follow;
use crate::command::options::{
    self, EmbedOptions, EvaluateOptions, JobOptions, ModelOptions, TrainOptions, train_request,
};
use crate::command::own_queries;
use crate::command::selectors::dataset_or_only;

/// Alias without a name.
pub const DEFAULT_ALIAS: &str = "main";

/// Flags of `likeness pipeline`.
#[derive(Debug, Args)]
#[command(after_help = "\
The gate compares the new release with the one that serves, on the same queries, and refuses it (exit code 2) when \
it is worse; a first release must be better than chance. With --floor it also refuses whatever is below that mAP.

Examples:
  likeness pipeline                                     the only dataset, all defaults, alias main
  likeness pipeline --dataset celeba --architecture resnet50 --device cuda --alias faces
  likeness pipeline --config job.toml --epochs 30       flags win over the file
  likeness pipeline --init main --patience 5            go on from the model that serves, stop when its mAP stays
  likeness init && likeness pipeline --config job.toml  all options in a file")]
pub struct PipelineArgs {
    #[command(flatten)]
    target: Target,
    /// Read options from this file; flags win. `likeness init` writes one with every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the job's id and don't wait.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    options: PipelineOptions,
}

/// All options of a pipeline.
#[derive(Debug, Clone, Default, Args)]
pub struct PipelineOptions {
    /// Of the job.
    #[command(flatten)]
    pub job: JobOptions,
    /// Of the model.
    #[command(flatten)]
    pub model: ModelOptions,
    /// Of the training.
    #[command(flatten)]
    pub train: TrainOptions,
    /// Of the embedding.
    #[command(flatten)]
    pub embed: EmbedOptions,
    /// Of the evaluation.
    #[command(flatten)]
    pub evaluate: EvaluateOptions,
}

impl PipelineOptions {
    /// The job over a dataset, trained from `init`; mistakes in settings are errors.
    pub fn request(
        &self,
        dataset: DatasetSelector,
        alias: Name,
        init: Option<InitWeights>,
        own: Option<BroughtQueries>,
    ) -> Outcome<JobRequest> {
        let mut evaluate = self.evaluate.resolve()?;
        evaluate.settings.own = own;
        let work = RequestedWork::Pipeline {
            embed: self.embed.resolve(&dataset)?,
            train: train_request(dataset, &self.model, &self.train, init)?,
            evaluate,
            alias,
        };
        Ok(self.job.request(work))
    }

    /// These options, and those of `file` where they are open.
    pub fn or(self, file: &JobFile) -> Self {
        Self {
            job: self.job.or(file.job.clone()),
            model: self.model.or(file.model.clone()),
            train: self.train.or(file.train.clone()),
            embed: self.embed.or(file.embed.clone()),
            evaluate: self.evaluate.or(file.evaluate.clone()),
        }
    }
}

/// The alias asked for, or the default one.
pub fn alias_or_main(alias: Option<Name>) -> Outcome<Name> {
    alias.map_or_else(|| Name::new(DEFAULT_ALIAS).map_err(Failure::failed), Ok)
}

/// What becomes of the weights that a training starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// They are brought to the store.
    Bring,
    /// They change nothing in what a training takes, and nothing is to be stored.
    LeaveOut,
}

/// The job that flags and file ask for: mistakes in settings are said before anything is asked of the network.
pub async fn requested(
    global: &Global,
    config: Option<&Path>,
    target: Target,
    options: PipelineOptions,
    start: Start,
) -> Outcome<(Client, JobRequest)> {
    let file = JobFile::read(config)?;
    let options = options.or(&file);
    let alias = alias_or_main(target.alias.or(file.alias))?;
    options::resolved(&options.model, &options.train)?;
    options.evaluate.resolve()?;
    let client = global.connection.client().await?;
    let dataset = dataset_or_only(&client, target.dataset.or(file.dataset)).await?;
    let (mut init, mut own) = (None, None);
    if let Start::Bring = start {
        init = options::start(&client, &options.model, &options.train).await?;
        if let Some(file) = &options.evaluate.queries {
            own = own_queries::for_dataset(&client, file, &dataset).await?;
        }
    }
    let request = options.request(dataset, alias, init, own)?;
    Ok((client, request))
}

/// Submits the job.
pub async fn run(global: &Global, args: PipelineArgs) -> Outcome {
    let detach = args.detach;
    let (client, request) = job(global, args).await?;
    let job = client.submit(request).await?;
    follow::submitted(global, &client, job, detach).await
}

/// The job that flags and file ask for.
pub async fn job(global: &Global, args: PipelineArgs) -> Outcome<(Client, JobRequest)> {
    let PipelineArgs { target, config, detach: _, options } = args;
    requested(global, config.as_deref(), target, options, Start::Bring).await
}

#[cfg(test)]
mod tests {
    use likeness_contract::settings::Split;

    use super::*;

    fn dataset() -> DatasetSelector {
        DatasetSelector { dataset: Name::new("celeba").unwrap(), version: None }
    }

    #[test]
    fn by_default_the_gallery_is_all_images_and_the_report_the_test_rows() {
        let request = PipelineOptions::default().request(dataset(), alias_or_main(None).unwrap(), None, None).unwrap();
        let RequestedWork::Pipeline { train, embed, evaluate, alias } = request.work else { panic!("a pipeline") };
        assert_eq!((embed.rows, evaluate.rows), (Split::All, Split::Test));
        assert_eq!((embed.gallery.as_str(), alias.as_str()), ("celeba", "main"));
        assert_eq!((train.model.embedding_dim, train.train.epochs), (0, 15));
    }

    #[test]
    fn a_mistake_in_any_section_is_an_error() {
        let mut options = PipelineOptions::default();
        options.embed.shard_rows = Some(0);
        assert_eq!(options.request(dataset(), alias_or_main(None).unwrap(), None, None).unwrap_err().exit as u8, 64);
    }
}
