//! `likeness models`: what was trained, and its weights for other programs.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use futures::{StreamExt, TryStreamExt, stream};
use likeness_contract::documents::{ModelManifest, Release, RoundFigures};
use likeness_contract::ids::JobId;
use likeness_contract::keys;
use likeness_contract::names;
use likeness_contract::settings::{
    Architecture, Crop, InnerOptimizer, Keep, Loss, QueryEncoding, RoundSettings, TrainSettings,
};
use likeness_contract::weights::export;
use likeness_link::Store;
use serde_json::{Value, json};

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::output::{self, Table, line, say, thousands};

/// Documents that are read at once.
const AT_ONCE: usize = 16;

/// Subcommands of `likeness models`.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// All models, those that serve with their alias.
    List,
    /// One model: how it was trained, and on what.
    Show {
        /// A model, or an alias for the model that serves there.
        model: String,
    },
    /// Write a model's weights as safetensors that PyTorch opens, and a description beside them.
    #[command(after_help = "\
The tensors have torchvision's names (`conv1.weight` … `fc.bias`) with D outputs; the attribute tower follows as \
`attributes.linear1.weight` … (Linear, BatchNorm, ReLU, Linear). Both end in unit vectors. The JSON beside the file, and \
its metadata under `likeness`, says how an image becomes the input and what the attributes are called.

Examples:
  likeness models export main                              writes main.safetensors and main.json
  likeness models export train-0a1b --out faces.safetensors

In Python:
  from safetensors.torch import load_file
  weights = load_file('main.safetensors')
  image = {k: v for k, v in weights.items() if not k.startswith('attributes.')}
  net = torchvision.models.resnet50(num_classes=image['fc.bias'].numel()); net.load_state_dict(image)
  embeddings = torch.nn.functional.normalize(net.eval()(images))")]
    Export {
        /// A model, or an alias for the model that serves there.
        model: String,
        /// The file [default: NAME.safetensors].
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Write over files that exist.
        #[arg(long)]
        force: bool,
    },
}

/// Runs it.
pub async fn run(global: &Global, command: ModelsCommand) -> Outcome {
    let store = Store::open_existing(&global.connection.resolve()?.store).await?;
    match command {
        ModelsCommand::List => list(global, &store).await,
        ModelsCommand::Show { model } => show(global, &find(&store, &model).await?),
        ModelsCommand::Export { model, out, force } => write(global, &store, &model, out, force).await,
    }
}

/// The model of an id or of the newest release of an alias; nothing found is answered with the nearest names.
pub async fn find(store: &Store, name: &str) -> Outcome<ModelManifest> {
    if let Ok(id) = JobId::new(name)
        && let Some(manifest) = store.document(&keys::model_manifest(&id)).await?
    {
        return Ok(manifest);
    }
    let aliases = store.children(keys::RELEASES).await?;
    if aliases.iter().any(|alias| alias == name)
        && let Some(release) = newest(store, name).await?
    {
        return Ok(store.require(&keys::model_manifest(&release.model)).await?);
    }
    let models = store.children(keys::MODELS).await?;
    let known = models.iter().chain(&aliases).map(String::as_str);
    let nearest = names::nearest(name, known);
    let text = if models.is_empty() { "; none was trained yet".into() } else { names::hint(&nearest) };
    Err(Failure::usage(format!("there is no model or alias `{name}`{text}")))
}

async fn newest(store: &Store, alias: &str) -> Outcome<Option<Release>> {
    let keys = store.list(&format!("{}/{alias}", keys::RELEASES)).await?;
    match keys.iter().filter_map(|key| Some((keys::number_of(key)?, key))).max() {
        Some((_, key)) => Ok(store.document(key).await?),
        None => Ok(None),
    }
}

/// A model with the aliases that serve it.
pub struct Listed {
    /// The model.
    pub manifest: ModelManifest,
    /// The aliases.
    pub serves: Vec<String>,
}

async fn list(global: &Global, store: &Store) -> Outcome {
    let models = all(store).await?;
    if global.json {
        let manifests: Vec<&ModelManifest> = models.iter().map(|model| &model.manifest).collect();
        output::json(&manifests)?;
    } else if models.is_empty() {
        say("no models yet: make one with `likeness train` or `likeness pipeline`");
    } else {
        line(table(&models).render());
    }
    Ok(Exit::Done)
}

/// Finished models by id.
pub async fn all(store: &Store) -> Outcome<Vec<Listed>> {
    let ids = store.children(keys::MODELS).await?.into_iter().filter_map(|id| JobId::new(id).ok());
    let read = |id: JobId| async move { store.document::<ModelManifest>(&keys::model_manifest(&id)).await };
    let found: Vec<_> = stream::iter(ids).map(read).buffered(AT_ONCE).try_collect().await?;
    let mut models: Vec<Listed> =
        found.into_iter().flatten().map(|manifest| Listed { manifest, serves: Vec::new() }).collect();
    for alias in store.children(keys::RELEASES).await? {
        let Some(release) = newest(store, &alias).await? else { continue };
        let served = models.iter_mut().filter(|model| model.manifest.model == release.model);
        served.for_each(|model| model.serves.push(alias.clone()));
    }
    Ok(models)
}

fn table(models: &[Listed]) -> Table {
    let mut table = Table::new(["model", "architecture", "D", "px", "dataset", "steps", "loss", "mAP", "serves"]);
    let figure = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
    for Listed { manifest, serves } in models {
        table.row([
            manifest.model.to_string(),
            manifest.settings.architecture.name().into(),
            manifest.settings.embedding_dim.to_string(),
            manifest.settings.preprocessing.input_px.to_string(),
            manifest.dataset.dataset.to_string(),
            thousands(manifest.steps),
            figure(manifest.validation_loss),
            figure(manifest.validation_map),
            serves.join(", "),
        ]);
    }
    table
}

fn show(global: &Global, manifest: &ModelManifest) -> Outcome {
    if global.json {
        output::json(manifest)?;
        return Ok(Exit::Done);
    }
    for (what, text) in facts(manifest) {
        line(format!("{what:<13} {text}"));
    }
    Ok(Exit::Done)
}

fn facts(manifest: &ModelManifest) -> Vec<(&'static str, String)> {
    let ModelManifest { model, settings, train, vocabulary, dataset, weights, steps, .. } = manifest;
    let encoding = match settings.encoding {
        QueryEncoding::ThreeState => "three-state",
        QueryEncoding::MultiHot => "multi-hot",
        QueryEncoding::LogProbability => "log-probability",
    };
    let px = settings.preprocessing.input_px;
    let mut facts = vec![
        ("model", model.to_string()),
        ("architecture", format!("{} at {px} px, D = {}", settings.architecture.name(), settings.embedding_dim)),
        ("attributes", format!("{}, {encoding}: {}", vocabulary.len(), vocabulary.names.join(", "))),
        ("dataset", format!("{}@{}", dataset.dataset, dataset.version)),
        ("trained", trained(train, *steps)),
    ];
    if let Some(init) = &train.init {
        facts.push(("start", format!("`{}` (sha256 {})", init.source, init.weights.digest.short())));
    }
    facts.extend(manifest.train.optimizer.rounds().map(|rounds| ("rounds", rounds_in_words(manifest, rounds))));
    facts.extend(manifest.round.map(|round| ("round", round_in_words(manifest, round))));
    let figure = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
    let (loss, map) = (figure(manifest.validation_loss), figure(manifest.validation_map));
    facts.push(("validation", format!("loss {loss}, mAP of single attributes {map}")));
    facts.push(("weights", format!("{} ({} bytes, sha256 {})", weights.key, thousands(weights.bytes), weights.digest)));
    facts
}

fn trained(train: &TrainSettings, steps: u64) -> String {
    let optimizer = match train.optimizer.inner() {
        InnerOptimizer::AdamW(settings) => format!("adamw, lr {}, weight decay {}", settings.lr, settings.weight_decay),
        InnerOptimizer::Sgd(settings) => {
            format!("sgd, lr {}, momentum {}, weight decay {}", settings.lr, settings.momentum, settings.weight_decay)
        }
    };
    let loss = match train.loss {
        Loss::Triplet => format!("triplets, margin {}", train.margin),
        Loss::SemiHardTriplet => format!("images, semi-hard triplets, margin {}", train.margin),
        Loss::AllTriplets => format!("images, all triplets, margin {}", train.margin),
        Loss::InfoNce { temperature } => format!("images, InfoNCE at temperature {temperature}"),
        Loss::BinaryCrossEntropy => "images, binary cross-entropy".to_string(),
    };
    let mut text = format!("{} steps of {} {loss}; {optimizer}", thousands(steps), train.batch_size);
    if train.average_decay > 0.0 {
        text.push_str(&format!("; weights averaged with decay {}", train.average_decay));
    }
    if train.embed_mirrored {
        text.push_str("; images embedded with their mirror images");
    }
    text
}

/// Slots, and what bringing them together took.
fn rounds_in_words(manifest: &ModelManifest, settings: &RoundSettings) -> String {
    let RoundSettings { slots, inner: _, outer_lr, outer_momentum, quorum: _, deadline_s: _ } = settings;
    let rounds = &manifest.rounds;
    let sum = |f: fn(&RoundFigures) -> u64| rounds.iter().map(f).sum::<u64>();
    let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1_000.0);
    let late = sum(|round| round.late.len() as u64);
    let late = if late == 0 { "no slot was late".into() } else { format!("{} slots were late", thousands(late)) };
    format!(
        "{} of {slots} slots, outer lr {outer_lr}, outer momentum {outer_momentum}; {late}; {} lost waiting for the last slots, \
         {} in outer steps, {} moved",
        thousands(rounds.len() as u64),
        seconds(sum(|round| round.barrier_ms)),
        seconds(sum(|round| round.outer_ms)),
        output::bytes(sum(|round| round.bytes)),
    )
}

fn round_in_words(manifest: &ModelManifest, round: u32) -> String {
    let which = match manifest.train.keep {
        Keep::Best => "the best by mAP",
        Keep::Last => "the last",
    };
    let stopped = if manifest.stopped_early { "; the training stopped early" } else { "" };
    format!("{round}, counted from 0: {which}{stopped}")
}

/// How outputs of the head become an embedding, for who computes it elsewhere (`workers/model/src/joint.rs`).
const LOG_PROBABILITY_SPACE: &str = "fc gives an output per attribute; z = 10 tanh(fc / 10), \
    image = [g log sigmoid(z), g log sigmoid(-z), sqrt(1 - squared length of the others)] with g = 1 / sqrt(attributes * \
    (log(1 + e^10)^2 + log(1 + e^-10)^2)); query = [1 where asked for, 1 where asked against, 0] / sqrt(number asked)";

async fn write(global: &Global, store: &Store, name: &str, out: Option<PathBuf>, force: bool) -> Outcome {
    let manifest = find(store, name).await?;
    let file = out.unwrap_or_else(|| format!("{name}.safetensors").into());
    let beside = file.with_extension("json");
    if beside == file {
        return Err(Failure::usage(format!(
            "`{}` is the name of the description: call it `.safetensors`",
            file.display()
        )));
    }
    for path in [&file, &beside] {
        refuse_existing(path, force)?;
    }
    let description = describe(&manifest);
    let weights = store.read(&manifest.weights).await?;
    let unusable = |e| Failure::failed(format!("`{}` can't be exported: {e}", manifest.weights.key));
    let exported = export(&weights, &description.to_string()).map_err(unusable)?;
    save(&file, &exported)?;
    save(&beside, format!("{description:#}\n").as_bytes())?;
    if global.json {
        output::json(&json!({ "weights": file, "description": beside, "model": manifest.model }))?;
    } else {
        line(format!("{} and {}", file.display(), beside.display()));
    }
    Ok(Exit::Done)
}

fn refuse_existing(path: &Path, force: bool) -> Outcome<()> {
    if force || !path.exists() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{}` exists: give --force to write over it, or --out for another name",
        path.display()
    )))
}

fn save(path: &Path, bytes: &[u8]) -> Outcome<()> {
    std::fs::write(path, bytes).map_err(|e| Failure::failed(format!("can't write `{}`: {e}", path.display())))
}

/// The few digits that somebody wrote, not the many that `f32` makes of them.
fn as_written(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// All that another program needs to use the weights.
fn describe(manifest: &ModelManifest) -> Value {
    let ModelManifest { model, settings, vocabulary, distance, .. } = manifest;
    let preprocessing = &settings.preprocessing;
    let torchvision = match settings.architecture {
        Architecture::CnnS => "ResNet(BasicBlock, [2, 2, 2, 2]) of base width 32".to_string(),
        other => other.name().to_string(),
    };
    let crop = match preprocessing.crop {
        Crop::CenterSquare => "center-square",
        Crop::Stretch => "stretch",
    };
    let (tower, normalise) = match settings.encoding {
        QueryEncoding::ThreeState | QueryEncoding::MultiHot => {
            (Some("attributes.linear1, attributes.bn1, ReLU, attributes.linear2"), "both towers end in unit vectors")
        }
        QueryEncoding::LogProbability => (None, LOG_PROBABILITY_SPACE),
    };
    json!({
        "model": model,
        "architecture": settings.architecture.name(),
        "torchvision": torchvision,
        "embedding_dim": settings.embedding_dim,
        "preprocessing": {
            "crop": crop,
            "resize": "bilinear, antialiased",
            "input_px": preprocessing.input_px,
            "mean": preprocessing.mean.map(as_written),
            "std": preprocessing.std.map(as_written),
        },
        "query": {
            "encoding": settings.encoding,
            "attributes": vocabulary.names,
            "tower": tower,
        },
        "normalise": normalise,
        "embed_mirrored": manifest.train.embed_mirrored,
        "distance": distance,
        "dataset": manifest.dataset,
        "weights_sha256": manifest.weights.digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_the_digits_that_were_written() {
        assert_eq!([0.485f32, 0.229].map(as_written), [0.485, 0.229]);
    }

    #[tokio::test]
    async fn a_name_that_is_no_model_is_answered_with_the_nearest() {
        let store = Store::open("memory:").await.unwrap();
        assert!(find(&store, "main").await.unwrap_err().to_string().contains("none was trained yet"));
        store.create("models/train-1/model.json", bytes::Bytes::from_static(b"{}")).await.unwrap();
        let failure = find(&store, "train-2").await.unwrap_err();
        assert_eq!(failure.exit as u8, 64);
        assert!(failure.to_string().contains("did you mean `train-1`?"), "{failure}");
    }
}
