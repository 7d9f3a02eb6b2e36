//! `--queries`: a user's own queries for an evaluation, checked here and put into the store under their digest, so that
//! workers anywhere see the same ones.

use std::path::Path;

use likeness_contract::documents::{DatasetManifest, GenerationManifest};
use likeness_contract::ids::Digest;
use likeness_contract::jobs::{DatasetSelector, GenerationRef};
use likeness_contract::keys;
use likeness_contract::settings::{BroughtQueries, Vocabulary};
use likeness_evaluation::brought::{BroughtFile, MAX_BYTES};
use likeness_link::client::Client;

use crate::command::bounded;
use crate::command::exit::{Failure, Outcome};
use crate::command::output::say;

/// Brings the file for a generation. None when there is no such generation, which the coordinator has better words for.
pub async fn for_generation(
    client: &Client,
    file: &str,
    generation: &GenerationRef,
) -> Outcome<Option<BroughtQueries>> {
    let key = keys::generation_manifest(&generation.gallery, &generation.generation);
    match client.store().document::<GenerationManifest>(&key).await? {
        Some(manifest) => {
            let brought = read(file, &manifest.vocabulary)?;
            let dim = manifest.embedding_dim as usize;
            let fit = brought.queries.iter().try_for_each(|query| query.fits(dim));
            fit.map_err(|error| Failure::usage(format!("`{file}`: {error}")))?;
            bring(client, file, &brought).await.map(Some)
        }
        None => Ok(None),
    }
}

/// Brings the file for what is made of a dataset. None when there is no such dataset.
pub async fn for_dataset(client: &Client, file: &str, dataset: &DatasetSelector) -> Outcome<Option<BroughtQueries>> {
    let DatasetSelector { dataset, version } = dataset;
    let manifest: Option<DatasetManifest> = match version {
        Some(version) => client.store().document(&keys::dataset_manifest(dataset, version)).await?,
        None => client.datasets().await?.into_iter().find(|manifest| manifest.dataset.dataset == *dataset),
    };
    match manifest {
        Some(manifest) => {
            let brought = read(file, &manifest.vocabulary)?;
            if brought.has_vectors() {
                let why = "a vector asks in the space of a model, and this one is not trained yet: bring it to `likeness evaluate`";
                return Err(Failure::usage(format!("`{file}`: {why}")));
            }
            bring(client, file, &brought).await.map(Some)
        }
        None => Ok(None),
    }
}

async fn bring(client: &Client, file: &str, brought: &BroughtFile) -> Outcome<BroughtQueries> {
    let bytes = brought.encode();
    let digest = Digest::of(&bytes);
    let object = client.store().create_object(keys::brought_queries(&digest), bytes.into(), digest).await?;
    say(format!("own queries: {} of `{file}`", brought.queries.len()));
    Ok(BroughtQueries { source: file.into(), object })
}

fn read(file: &str, vocabulary: &Vocabulary) -> Outcome<BroughtFile> {
    let bytes = bounded::bytes(Path::new(file), MAX_BYTES)?;
    BroughtFile::read(file, bytes.into(), vocabulary).map_err(|error| {
        let place = if error.to_string().contains(file) { String::new() } else { format!("`{file}`: ") };
        Failure::usage(format!("{place}{error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_names_file_and_line_and_is_one_of_usage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.csv");
        std::fs::write(&path, "name,with\na,Smiling\nb,Smilng\n").unwrap();
        let file = path.to_str().unwrap();
        let vocabulary = Vocabulary { names: vec!["Smiling".into()] };
        let error = read(file, &vocabulary).unwrap_err();
        assert_eq!(error.exit as u8, 64);
        let expected = format!("`{file}`: line 3: there is no attribute `Smilng`; did you mean `Smiling`?");
        assert_eq!(error.to_string(), expected);
        let missing = read("/nowhere/q.csv", &vocabulary).unwrap_err();
        assert!(missing.to_string().starts_with("can't read `/nowhere/q.csv`"), "{missing}");
    }
}
