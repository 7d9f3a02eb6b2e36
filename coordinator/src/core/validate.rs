//! The ranges of all settings: what is checked before a job is accepted, so that no worker meets nonsense later.

use likeness_contract::jobs::{CsvColumns, EmbeddingSource, Import, IngestSource, JobOptions, ReadFrom, ReadSource};
use likeness_contract::keys;
use likeness_contract::searches::{MAX_PART_BYTES, MAX_PART_QUESTIONS, QuestionPart};
use likeness_contract::settings::{
    AdamWSettings, BackboneSettings, ColourJitter, EvaluateSettings, InitWeights, InnerOptimizer, Keep, Loss,
    ModelSettings, NegativeMix, Preprocessing, QueryEncoding, ResizedCrop, RoundSettings, SgdSettings, TrainSettings,
    Vocabulary, log_probability_dim,
};

/// Largest embedding dimension.
pub const MAX_EMBEDDING_DIM: u32 = 4096;
/// Sides of the input that the towers can take, pixels.
pub const INPUT_PX: std::ops::RangeInclusive<u32> = 32..=1024;
/// Most rows of a shard or part.
pub const MAX_ROWS: u32 = 65_536;
/// Largest share of flipped vectors: more teaches "real or made-up" instead of the attributes.
pub const MAX_FLIPPED: f32 = 1.0 / 3.0;
/// Most rounds, shards or parts of a job: their ids have five digits.
pub const MAX_NUMBERED: u64 = 100_000;
/// Most slots of a round: their numbers have three digits.
pub const MAX_SLOTS: u32 = 999;
/// Longest time that a round waits for more than its quorum, seconds: a day.
pub const MAX_DEADLINE_S: u32 = 86_400;
/// Most URLs that are told of a job's end, and bytes of each.
const MAX_URLS: usize = 8;
const MAX_URL_BYTES: usize = 2048;
/// Most queries of a set.
const MAX_QUERIES: u32 = 100_000;
/// How far shares that must sum to 1 may be off: they are written with two or three digits.
const SUM_TOLERANCE: f32 = 1e-3;

/// Says what is wrong, naming the setting.
pub type Checked = Result<(), String>;

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// How a job is carried out.
pub fn options(options: &JobOptions) -> Checked {
    let JobOptions { max_workers, notify } = options;
    max_workers.map_or(Ok(()), |most| at_least("max_workers", most, 1))?;
    ensure(notify.len() <= MAX_URLS, || format!("`notify` names {} URLs, expected at most {MAX_URLS}", notify.len()))?;
    notify.iter().try_for_each(|url| webhook(url))
}

/// A URL that is told of a job's end. Messages don't repeat it: it may hold a token.
fn webhook(url: &str) -> Checked {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let rest = rest.ok_or("a URL of `notify` is neither http:// nor https://")?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    ensure(!authority.is_empty() && !authority.starts_with(':'), || "a URL of `notify` names no host".into())?;
    ensure(!authority.contains('@'), || {
        "a URL of `notify` names a user: it would be stored with the job; messages are signed instead".into()
    })?;
    ensure(url.len() <= MAX_URL_BYTES, || {
        format!("a URL of `notify` has {} bytes, expected at most {MAX_URL_BYTES}", url.len())
    })?;
    let plain = url.chars().all(|c| c.is_ascii_graphic());
    ensure(plain, || "a URL of `notify` has blanks or letters that must be percent-encoded".into())
}

/// Where images come from.
pub fn source(source: &IngestSource) -> Checked {
    match source {
        IngestSource::Celeba { dir } => folder(dir),
        IngestSource::Parquet { files } => parquet_files(files),
        IngestSource::Csv(csv) => table(&csv.file, &csv.dir, &csv.columns),
        IngestSource::Read(read) => {
            let ReadSource { from, columns, labels: _ } = read.as_ref();
            match from {
                ReadFrom::Celeba { dir, split: _ } => folder(dir),
                ReadFrom::Csv { file, dir } => table(file, dir, columns),
                ReadFrom::Parquet { files } => parquet_files(files).and_then(|()| attributes(columns)),
                ReadFrom::Folder { dir } => folder(dir).and_then(|()| attributes(columns)),
            }
        }
        IngestSource::Append(append) => match &append.source {
            Some(IngestSource::Append(_)) => Err("what is appended must be a source of files".into()),
            Some(source) => self::source(source),
            None => Ok(()),
        },
    }
}

fn folder(dir: &str) -> Checked {
    ensure(!dir.trim().is_empty(), || "`dir` of the source is empty".into())?;
    source_path(dir)
}

fn parquet_files(files: &[String]) -> Checked {
    files.iter().try_for_each(|file| source_path(file))?;
    ensure(!files.is_empty(), || "`files` of the source names no file".into())?;
    ensure(files.iter().all(|file| !file.trim().is_empty()), || "`files` of the source has an empty name".into())?;
    let twice = files.iter().enumerate().find(|(i, file)| files[..*i].contains(file));
    twice.map_or(Ok(()), |(_, file)| Err(format!("`files` of the source names `{file}` twice")))
}

fn table(file: &str, dir: &str, columns: &CsvColumns) -> Checked {
    for (path, what) in [(file, "file"), (dir, "dir")] {
        ensure(!path.trim().is_empty(), || format!("`{what}` of the source is empty"))?;
        source_path(path)?;
    }
    attributes(columns)
}

fn attributes(columns: &CsvColumns) -> Checked {
    let attributes = &columns.attributes;
    let twice = attributes.iter().enumerate().find(|(i, name)| attributes[..*i].contains(name));
    twice.map_or(Ok(()), |(_, name)| Err(format!("`attributes` of the source names `{name}` twice")))
}

/// Embeddings from elsewhere.
pub fn import(import: &Import) -> Checked {
    let Import { gallery: _, source, columns, zero: _, normalize: _, shard_rows } = import;
    let named: Vec<&String> = match source {
        EmbeddingSource::Parquet { files } => files.iter().collect(),
        EmbeddingSource::Npy { file, table } => vec![file, table],
    };
    ensure(!named.is_empty(), || "`files` of the embeddings names no file".into())?;
    for (i, file) in named.iter().enumerate() {
        ensure(!file.trim().is_empty(), || "a file of embeddings has an empty name".into())?;
        ensure(!named[..i].contains(file), || format!("`{file}` is named twice"))?;
        source_path(file)?;
    }
    let attributes = &columns.attributes;
    let twice = attributes.iter().enumerate().find(|(i, name)| attributes[..*i].contains(name));
    ensure(twice.is_none(), || "`attributes` names a column twice".into())?;
    rows_per_file("shard_rows", *shard_rows)
}

/// A source is stored and shown, so a URL must hold no secret. Neither message repeats it.
fn source_path(path: &str) -> Checked {
    let Some((scheme, rest)) = path.split_once("://") else { return Ok(()) };
    let authority = rest.split('/').next().unwrap_or_default();
    // `abfss://container@account` names no user.
    ensure(scheme.starts_with("abfs") || !authority.contains('@'), || {
        "a source's URL names a user: workers take credentials from their environment, leave it out".into()
    })?;
    ensure(scheme == "file" || !rest.contains(['?', '#']), || {
        "a source's URL has a `?` or `#`: only plain addresses are read, and a token would be stored with the job"
            .into()
    })
}

/// Rows of a part or shard; `setting` is the name that the user knows.
pub fn rows_per_file(setting: &str, rows: u32) -> Checked {
    ensure((1..=MAX_ROWS).contains(&rows), || format!("`{setting}` is {rows}, expected 1 to {MAX_ROWS}"))
}

/// The shape and input of a model.
pub fn model(settings: &ModelSettings) -> Checked {
    let ModelSettings { architecture: _, embedding_dim: dim, encoding: _, preprocessing } = settings;
    // The dimension is fixed by now where the vocabulary decides it.
    let in_range = (1..=MAX_EMBEDDING_DIM).contains(dim);
    ensure(in_range, || format!("`embedding_dim` is {dim}, expected 1 to {MAX_EMBEDDING_DIM}"))?;
    let Preprocessing { crop: _, input_px: px, mean, std } = preprocessing;
    ensure(INPUT_PX.contains(px), || {
        format!("`input_px` is {px}, expected {} to {}", INPUT_PX.start(), INPUT_PX.end())
    })?;
    ensure(mean.iter().all(|m| m.is_finite()), || format!("`mean` is {mean:?}, expected finite numbers"))?;
    ensure(std.iter().all(|s| s.is_finite() && *s > 0.0), || format!("`std` is {std:?}, expected numbers above 0"))
}

/// A training on so many rows, measured on so many.
pub fn train(settings: &TrainSettings, train_rows: u64, validation_rows: u64) -> Checked {
    let TrainSettings {
        epochs,
        batch_size,
        inner_steps,
        margin,
        negatives,
        masked_share,
        optimizer,
        clip_norm,
        warmup_share,
        backbone,
        init,
        mirror: _,
        random_crop,
        resized_crop,
        colour,
        validate_every,
        keep,
        patience,
        seed: _,
        loss,
        average_decay,
        embed_mirrored: _,
    } = settings;
    ensure(train_rows > 0, || "the dataset has no rows in its training split".into())?;
    at_least("epochs", *epochs, 1)?;
    at_least("batch_size", *batch_size, 2)?;
    ensure(u64::from(*batch_size) <= train_rows, || {
        format!("`batch_size` is {batch_size}, but the training split has only {train_rows} rows")
    })?;
    at_least("inner_steps", *inner_steps, 1)?;
    at_least("validate_every", *validate_every, 1)?;
    ensure(margin.is_finite() && *margin > 0.0, || format!("`margin` is {margin}, expected a number above 0"))?;
    share("masked_share", *masked_share)?;
    share("warmup_share", *warmup_share)?;
    let half = (0.0..=0.5).contains(random_crop);
    ensure(half, || format!("`random_crop` is {random_crop}, expected 0 to 0.5"))?;
    mix(negatives)?;
    match &optimizer.inner() {
        InnerOptimizer::AdamW(settings) => adamw(settings)?,
        InnerOptimizer::Sgd(settings) => sgd(settings)?,
    }
    optimizer.rounds().map_or(Ok(()), |of| rounds(of, train_rows / u64::from(*batch_size)))?;
    not_negative("clip_norm", *clip_norm)?;
    made_small(*loss)?;
    let below_1 = (0.0..1.0).contains(average_decay);
    ensure(below_1, || format!("`average_decay` is {average_decay}, expected 0 or more and below 1"))?;
    learning_backbone(backbone)?;
    init.as_ref().map_or(Ok(()), start)?;
    resized_crop.as_ref().map_or(Ok(()), |crop| resized(crop, *random_crop))?;
    jitter(colour)?;
    ensure((*keep == Keep::Last && *patience == 0) || validation_rows > 0, || {
        "the dataset has no rows in its validation split: leave `keep` and `patience` out, or ingest it with one".into()
    })
}

/// Slots that are brought together, over so many batches an epoch.
fn rounds(rounds: &RoundSettings, batches: u64) -> Checked {
    let RoundSettings { slots, inner: _, outer_lr, outer_momentum, quorum, deadline_s } = *rounds;
    ensure((1..=MAX_SLOTS).contains(&slots), || format!("`slots` is {slots}, expected 1 to {MAX_SLOTS}"))?;
    ensure(u64::from(slots) <= batches, || {
        format!("`slots` is {slots}, but an epoch has only {batches} batches: lower it or `batch_size`")
    })?;
    let in_range = outer_lr.is_finite() && outer_lr > 0.0;
    ensure(in_range, || format!("`outer_lr` is {outer_lr}, expected a number above 0"))?;
    let below_1 = (0.0..1.0).contains(&outer_momentum);
    ensure(below_1, || format!("`outer_momentum` is {outer_momentum}, expected 0 or more and below 1"))?;
    ensure((1..=slots).contains(&quorum), || format!("`quorum` is {quorum}, expected 1 to the {slots} `slots`"))?;
    ensure(quorum < slots || deadline_s == 0, || {
        format!("`deadline_s` is {deadline_s}, but a quorum of all slots waits for all: lower `quorum`")
    })?;
    ensure(deadline_s <= MAX_DEADLINE_S, || format!("`deadline_s` is {deadline_s}, expected at most {MAX_DEADLINE_S}"))
}

fn made_small(loss: Loss) -> Checked {
    let Loss::InfoNce { temperature } = loss else { return Ok(()) };
    ensure(temperature.is_finite() && temperature > 0.0, || {
        format!("`loss.temperature` is {temperature}, expected a number above 0")
    })
}

/// A model and the loss that it is trained with: logits are what binary cross-entropy and log-probabilities are both about.
pub fn trainable(model: &ModelSettings, train: &TrainSettings, attributes: usize) -> Checked {
    let (by_logits, has_logits) =
        (train.loss == Loss::BinaryCrossEntropy, model.encoding == QueryEncoding::LogProbability);
    ensure(has_logits || !by_logits, || {
        "the loss `binary-cross-entropy` needs the encoding `log-probability`: a model with two towers has no logits"
            .into()
    })?;
    ensure(by_logits || !has_logits, || {
        "the encoding `log-probability` is trained with the loss `binary-cross-entropy` alone".into()
    })?;
    let (dim, needed) = (model.embedding_dim, log_probability_dim(attributes));
    ensure(!has_logits || dim == needed, || {
        format!("`embedding_dim` is {dim}: log-probabilities of {attributes} attributes have {needed}, leave it out")
    })
}

/// A source is shown in the job, so that it must hold no secret.
fn start(init: &InitWeights) -> Checked {
    let InitWeights { source, model: _, weights: _ } = init;
    ensure(!source.trim().is_empty(), || "`source` of the weights to start from is empty".into())?;
    source_path(source)
}

fn learning_backbone(backbone: &BackboneSettings) -> Checked {
    let BackboneSettings { lr_factor, frozen_epochs: _ } = *backbone;
    ensure(lr_factor.is_finite() && lr_factor > 0.0, || {
        format!("`backbone.lr_factor` is {lr_factor}, expected a number above 0: to hold the backbone, freeze it")
    })
}

fn resized(crop: &ResizedCrop, random_crop: f32) -> Checked {
    let ResizedCrop { scale, ratio } = *crop;
    ensure(0.0 < scale[0] && scale[0] <= scale[1] && scale[1] <= 1.0, || {
        format!("`resized_crop.scale` is {scale:?}, expected two ascending shares above 0 and at most 1")
    })?;
    ensure(0.0 < ratio[0] && ratio[0] <= ratio[1] && ratio[1] <= 100.0, || {
        format!("`resized_crop.ratio` is {ratio:?}, expected two ascending numbers above 0 and at most 100")
    })?;
    ensure(random_crop == 0.0, || format!("`resized_crop` takes the place of `random_crop`, which is {random_crop}"))
}

fn jitter(colour: &ColourJitter) -> Checked {
    let ColourJitter { brightness, contrast, saturation, hue } = *colour;
    for (name, value) in [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)] {
        ensure((0.0..=10.0).contains(&value), || format!("`colour.{name}` is {value}, expected 0 to 10"))?;
    }
    ensure((0.0..=0.5).contains(&hue), || format!("`colour.hue` is {hue}, expected 0 to 0.5"))
}

fn mix(negatives: &NegativeMix) -> Checked {
    let NegativeMix { random, other, flipped } = *negatives;
    share("negatives.random", random)?;
    share("negatives.other", other)?;
    share("negatives.flipped", flipped)?;
    let sum = random + other + flipped;
    ensure((sum - 1.0).abs() <= SUM_TOLERANCE, || format!("the shares of `negatives` sum to {sum}, expected 1"))?;
    ensure(flipped <= MAX_FLIPPED + SUM_TOLERANCE, || {
        format!("`negatives.flipped` is {flipped}, expected at most 1/3: more teaches real or made-up, not attributes")
    })
}

fn sgd(optimizer: &SgdSettings) -> Checked {
    let SgdSettings { lr, momentum, weight_decay } = *optimizer;
    learning_rate(lr)?;
    let below_1 = (0.0..1.0).contains(&momentum);
    ensure(below_1, || format!("`momentum` is {momentum}, expected 0 or more and below 1"))?;
    not_negative("weight_decay", weight_decay)
}

fn learning_rate(lr: f64) -> Checked {
    ensure(lr.is_finite() && lr > 0.0, || format!("`lr` is {lr}, expected a number above 0"))
}

fn not_negative(name: &str, value: f64) -> Checked {
    ensure(value.is_finite() && value >= 0.0, || format!("`{name}` is {value}, expected 0 or more"))
}

fn adamw(optimizer: &AdamWSettings) -> Checked {
    let AdamWSettings { lr, beta1, beta2, eps, weight_decay } = *optimizer;
    learning_rate(lr)?;
    for (name, beta) in [("beta1", beta1), ("beta2", beta2)] {
        ensure((0.0..1.0).contains(&beta), || format!("`{name}` is {beta}, expected 0 or more and below 1"))?;
    }
    ensure(eps.is_finite() && eps > 0.0, || format!("`eps` is {eps}, expected a number above 0"))?;
    not_negative("weight_decay", weight_decay)
}

/// Which queries are asked.
pub fn evaluate(settings: &EvaluateSettings) -> Checked {
    let EvaluateSettings { pairs, triples, min_relevant, queries_per_task, full, images, floor, .. } = *settings;
    for (name, queries) in [("pairs", pairs), ("triples", triples), ("full", full), ("images", images)] {
        ensure(queries <= MAX_QUERIES, || format!("`{name}` is {queries}, expected at most {MAX_QUERIES}"))?;
    }
    settings.own.as_ref().map_or(Ok(()), |own| {
        ensure(!own.source.trim().is_empty(), || "`source` of the queries is empty".into())?;
        source_path(&own.source)
    })?;
    ensure((0.0..=1.0).contains(&floor), || format!("`floor` is {floor}, expected 0 to 1"))?;
    at_least("min_relevant", min_relevant, 1)?;
    at_least("queries_per_task", queries_per_task, 1)
}

/// Parts of a file of questions: stored where such files are, and of a size that a task can hold.
pub fn questions(parts: &[QuestionPart]) -> Checked {
    ensure(!parts.is_empty(), || "the file has no questions".into())?;
    let few = (parts.len() as u64) < MAX_NUMBERED;
    ensure(few, || format!("{} parts of questions, expected below {MAX_NUMBERED}: make them larger", parts.len()))?;
    let mut next = 0;
    for QuestionPart { object, from, questions } in parts {
        let key = &object.key;
        ensure(*key == keys::questions(&object.digest), || format!("`{key}` is no part of a file of questions"))?;
        ensure(object.bytes <= MAX_PART_BYTES, || {
            format!("part `{key}` has {} bytes, expected at most {MAX_PART_BYTES}", object.bytes)
        })?;
        ensure((1..=MAX_PART_QUESTIONS).contains(questions), || {
            format!("part `{key}` has {questions} questions, expected 1 to {MAX_PART_QUESTIONS}")
        })?;
        ensure(*from == next, || format!("part `{key}` begins with question {from}, expected {next}"))?;
        next += u64::from(*questions);
    }
    Ok(())
}

/// Attributes that a model can learn.
pub fn vocabulary(vocabulary: &Vocabulary) -> Checked {
    ensure(!vocabulary.is_empty(), || "the dataset has no attributes".into())
}

fn at_least(name: &str, value: u32, least: u32) -> Checked {
    ensure(value >= least, || format!("`{name}` is {value}, expected at least {least}"))
}

fn share(name: &str, value: f32) -> Checked {
    ensure((0.0..=1.0).contains(&value), || format!("`{name}` is {value}, expected 0 to 1"))
}
