//! How users name datasets and generations on the command line.

use std::fmt;
use std::str::FromStr;

use likeness_contract::ids::{IdError, JobId, Name};
use likeness_contract::jobs::{DatasetSelector, GenerationRef, JobWork};
use likeness_link::client::Client;
use serde::Deserialize;

use crate::command::exit::{Failure, Outcome};

/// `NAME`, or `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DatasetArg(pub DatasetSelector);

impl FromStr for DatasetArg {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(JobId::new(version)?)),
            None => (text, None),
        };
        Ok(Self(DatasetSelector { dataset: Name::new(name)?, version }))
    }
}

impl TryFrom<String> for DatasetArg {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl fmt::Display for DatasetArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.version {
            Some(version) => write!(f, "{}@{version}", self.0.dataset),
            None => self.0.dataset.fmt(f),
        }
    }
}

/// `GALLERY/GENERATION`, or the id of the job that made the generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationArg {
    /// Both names.
    Named(GenerationRef),
    /// The job alone.
    Job(JobId),
}

impl FromStr for GenerationArg {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let Some((gallery, generation)) = text.split_once('/') else { return Ok(Self::Job(JobId::new(text)?)) };
        let generation = GenerationRef { gallery: Name::new(gallery)?, generation: JobId::new(generation)? };
        Ok(Self::Named(generation))
    }
}

impl GenerationArg {
    /// The generation, asking the coordinator which gallery a job embedded.
    pub async fn resolve(&self, client: &Client) -> Outcome<GenerationRef> {
        let job = match self {
            Self::Named(generation) => return Ok(generation.clone()),
            Self::Job(job) => job,
        };
        let gallery = match client.show(job).await?.spec.work {
            JobWork::Embed { embed, .. } | JobWork::EmbedAnew { embed, .. } | JobWork::Pipeline { embed, .. } => {
                embed.gallery
            }
            JobWork::Import(import) => import.gallery,
            other => {
                let message = format!("job `{job}` is of kind {}: it embedded no gallery", other.kind());
                return Err(Failure::usage(message));
            }
        };
        Ok(GenerationRef { gallery, generation: job.clone() })
    }
}

/// The dataset asked for; without one the only one that there is.
pub async fn dataset_or_only(client: &Client, asked: Option<DatasetArg>) -> Outcome<DatasetSelector> {
    if let Some(DatasetArg(selector)) = asked {
        return Ok(selector);
    }
    let mut known: Vec<Name> = client.datasets().await?.into_iter().map(|d| d.dataset.dataset).collect();
    known.dedup();
    match <[Name; 1]>::try_from(known) {
        Ok([dataset]) => Ok(DatasetSelector { dataset, version: None }),
        Err(none) if none.is_empty() => Err(Failure::usage(
            "there is no dataset yet: make one with `likeness ingest celeba DIR` or `likeness ingest parquet FILES…`",
        )),
        Err(several) => {
            let names: Vec<&str> = several.iter().map(Name::as_str).collect();
            Err(Failure::usage(format!("which dataset? There are {}: say `--dataset NAME`", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_may_name_its_version() {
        let arg: DatasetArg = "celeba@ab12".parse().unwrap();
        assert_eq!(arg.0.version.as_ref().unwrap().as_str(), "ab12");
        assert_eq!(arg.to_string(), "celeba@ab12");
        assert_eq!("celeba".parse::<DatasetArg>().unwrap().0.version, None);
        assert!("a b".parse::<DatasetArg>().is_err());
        assert!("celeba@".parse::<DatasetArg>().is_err());
    }

    #[test]
    fn a_generation_is_named_by_its_job_or_in_full() {
        let named: GenerationArg = "faces/ab12".parse().unwrap();
        let GenerationArg::Named(generation) = named else { panic!("{named:?}") };
        assert_eq!((generation.gallery.as_str(), generation.generation.as_str()), ("faces", "ab12"));
        assert!(matches!("ab12".parse(), Ok(GenerationArg::Job(_))));
        assert!("faces/".parse::<GenerationArg>().is_err());
    }
}
