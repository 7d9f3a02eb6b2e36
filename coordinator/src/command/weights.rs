//! `--init`: weights that a training starts from, checked here and put into the store under their digest, so that
//! workers anywhere see the same bytes.

use std::path::Path;

use bytes::Bytes;
use likeness_contract::ids::Digest;
use likeness_contract::keys;
use likeness_contract::names;
use likeness_contract::settings::{Architecture, InitWeights};
use likeness_contract::weights::{Header, WholeParts, plan_start};
use likeness_link::client::Client;
use likeness_link::remote::{RemoteFiles, is_remote};

use crate::command::bounded;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::models;
use crate::command::output::say;

/// Largest file of weights: a ResNet-101 has 180 MB.
const MAX_BYTES: u64 = 1 << 30;
/// What a file of weights is called.
const EXTENSION: &str = "safetensors";

/// Finds weights by what the user wrote, says what of them is taken, and stores what came from outside.
pub async fn resolve(client: &Client, text: &str, architecture: Architecture) -> Outcome<InitWeights> {
    if is_remote(text) {
        return bring(client, text, download(text).await?, architecture).await;
    }
    if Path::new(text).is_file() {
        return bring(client, text, read(text)?, architecture).await;
    }
    if is_path(text) {
        return Err(no_file(text));
    }
    let model = match models::find(client.store(), text).await {
        Err(failure) if failure.exit == Exit::Usage && !neighbours(text).is_empty() => return Err(no_file(text)),
        found => found?,
    };
    let bytes = client.store().read(&model.weights).await?;
    check(text, &bytes, architecture)?;
    say(format!(
        "start from model `{}`: head and attribute tower too, where dimension and attributes are the same",
        model.model
    ));
    Ok(InitWeights { source: text.into(), model: Some(model.model), weights: model.weights })
}

fn is_path(text: &str) -> bool {
    let extension = Path::new(text).extension().and_then(|extension| extension.to_str());
    text.contains(['/', '\\']) || extension.is_some_and(|e| [EXTENSION, "pth", "pt", "bin", "ckpt"].contains(&e))
}

fn no_file(text: &str) -> Failure {
    Failure::usage(format!("there is no file, model or alias `{text}`{}", names::hint(&neighbours(text))))
}

/// Files beside it with nearly that name.
fn neighbours(text: &str) -> Vec<String> {
    let path = Path::new(text);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let there: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    names::nearest(name, there.iter().map(String::as_str))
}

fn too_large(text: &str, bytes: u64) -> Failure {
    Failure::usage(format!("`{text}` has {bytes} bytes: no ResNet's weights have more than {MAX_BYTES}"))
}

fn read(text: &str) -> Outcome<Bytes> {
    let unreadable = |e: std::io::Error| Failure::usage(format!("can't read `{text}`: {e}"));
    let size = std::fs::metadata(text).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(too_large(text, size));
    }
    Ok(bounded::bytes(Path::new(text), MAX_BYTES)?.into())
}

async fn download(url: &str) -> Outcome<Bytes> {
    let files = RemoteFiles::default();
    let size = files.size(url).await?;
    if size > MAX_BYTES {
        return Err(too_large(url, size));
    }
    Ok(files.read(url, 0..size).await?)
}

async fn bring(client: &Client, text: &str, bytes: Bytes, architecture: Architecture) -> Outcome<InitWeights> {
    let words = check(text, &bytes, architecture)?;
    say(format!("start from `{text}`: {words}"));
    let digest = Digest::of(&bytes);
    let weights = client.store().create_object(keys::brought_weights(&digest), bytes, digest).await?;
    Ok(InitWeights { source: text.into(), model: None, weights })
}

/// What of the file is taken, in words.
fn check(text: &str, bytes: &[u8], architecture: Architecture) -> Outcome<String> {
    let plan = Header::parse(bytes).and_then(|header| {
        header.check_types()?;
        plan_start(architecture, WholeParts::default(), &header.shapes())
    });
    let plan = plan.map_err(|reason| Failure::usage(format!("`{text}` is no start for this training: {reason}")))?;
    Ok(plan.words(architecture))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickle_is_refused_with_the_way_to_convert_it() {
        let error = check("r.pth", b"PK\x03\x04", Architecture::ResNet18).unwrap_err();
        assert_eq!(error.exit as u8, 64);
        let text = error.to_string();
        assert!(text.contains("`r.pth`") && text.contains("save_file"), "{text}");
    }

    #[test]
    fn files_and_names_are_told_apart() {
        for path in ["a/b", "./w", "w.safetensors", "w.pth", "C:\\w"] {
            assert!(is_path(path), "{path}");
        }
        for name in ["main", "train-0a1b", "nightly.7"] {
            assert!(!is_path(name), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_answered_with_its_neighbours() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("resnet18.safetensors"), b"").unwrap();
        let text = no_file(dir.path().join("resnet81.safetensors").to_str().unwrap()).to_string();
        assert!(text.ends_with("did you mean `resnet18.safetensors`?"), "{text}");
    }
}
