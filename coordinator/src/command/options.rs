//! What can be set of a job, once for flags and config files alike: each struct is a group of flags and a
//! section of `job.toml`; a flag wins over the file, the file over the default.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use likeness::core::validate::{INPUT_PX, MAX_EMBEDDING_DIM};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{DatasetSelector, DeviceClass, EmbedRequest, EvaluateStage, Priority, TrainRequest};
use likeness_contract::settings::{
    Architecture, Crop, EvaluateSettings, ModelSettings, NegativeMix, Preprocessing, QueryEncoding, Split,
    TrainSettings,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::command::exit::{Failure, Outcome};

/// Rows of an ingest part and of a gallery shard unless said otherwise: 30–120 s of work on a processor.
pub const DEFAULT_ROWS: u32 = 8192;
/// Largest shard; a searcher loads and drops shards as a whole.
const MAX_SHARD_ROWS: u32 = 65_536;

/// A parser of words that serde knows, with the words for `--help` and for suggestions.
pub fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value::<T>(serde_json::Value::String(word)))
}

/// `self.field = self.field.or(file.field)` for every field: whatever a flag left open comes from the file.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
        }

        impl $name {
            /// These options, and those of `file` where they are open.
            pub fn or(self, file: Self) -> Self {
                Self { $($field: self.$field.or(file.$field),)* }
            }
        }
    };
}

options! {
    /// Options of every job.
    JobOptions {
        /// Id of the job; the digest of what it does without: the same job asked twice is one job.
        #[arg(long, value_name = "JOB", help_heading = "Job")]
        id: JobId,
        /// Class of device that computes: `cpu`, `cuda`, `metal`, or `any`.
        #[arg(long, value_parser = words::<DeviceClass>(&["any", "cpu", "cuda", "metal"]), help_heading = "Job")]
        device: DeviceClass,
        /// `hi` goes before every `lo` [default: lo].
        #[arg(long, value_parser = words::<Priority>(&["hi", "lo"]), help_heading = "Job")]
        priority: Priority,
    }
}

options! {
    /// Options of a model.
    ModelOptions {
        /// Backbone of the image tower [default: cnn-s].
        #[arg(long, value_parser = words::<Architecture>(&["cnn-s", "resnet18", "resnet34", "resnet50", "resnet101"]), help_heading = "Model")]
        architecture: Architecture,
        /// D, length of the embedding [default: 300].
        #[arg(long, value_name = "D", help_heading = "Model")]
        embedding_dim: u32,
        /// `three-state` knows "not said", `multi-hot` is the article's own [default: three-state].
        #[arg(long, value_parser = words::<QueryEncoding>(&["three-state", "multi-hot"]), help_heading = "Model")]
        encoding: QueryEncoding,
        /// Side of the square input in pixels [default: 64 for cnn-s, else 224].
        #[arg(long, value_name = "PX", help_heading = "Model")]
        input_px: u32,
        /// Part of an image that is looked at [default: center-square].
        #[arg(long, value_parser = words::<Crop>(&["center-square", "stretch"]), help_heading = "Model")]
        crop: Crop,
    }
}

options! {
    /// Options of a training.
    TrainOptions {
        /// Passes over the training images [default: 15].
        #[arg(long, help_heading = "Training")]
        epochs: u32,
        /// Triplets per step [default: 128].
        #[arg(long, value_name = "B", help_heading = "Training")]
        batch_size: u32,
        /// Steps per round; a killed training goes on from the last round [default: 50].
        #[arg(long, value_name = "H", help_heading = "Training")]
        inner_steps: u32,
        /// Margin of the triplet loss [default: 0.1].
        #[arg(long, help_heading = "Training")]
        margin: f32,
        /// Share of negatives that are random vectors [default: 0].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        negatives_random: f32,
        /// Share of negatives that are the vector of another image [default: what the others leave].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        negatives_other: f32,
        /// Share of negatives that are the positive with 1–3 attributes flipped, at most 1/3 [default: 1/3].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        negatives_flipped: f32,
        /// Share of training queries that keep only a few of their attributes [default: 0.9].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        masked_share: f32,
        /// Peak learning rate [default: 0.002].
        #[arg(long, help_heading = "Training")]
        lr: f64,
        /// Decoupled weight decay [default: 0.01].
        #[arg(long, help_heading = "Training")]
        weight_decay: f64,
        /// Share of all steps in which the learning rate rises [default: 0.1].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        warmup_share: f32,
        /// Mirror images at random [default: true].
        #[arg(long, value_name = "BOOL", help_heading = "Training")]
        mirror: bool,
        /// Largest random shift as a share of the side, 0 = off [default: 0.1].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        random_crop: f32,
        /// Validate after every so many rounds [default: 1].
        #[arg(long, value_name = "ROUNDS", help_heading = "Training")]
        validate_every: u32,
        /// Seed of weights, order, augmentation and negatives [default: 0].
        #[arg(long, help_heading = "Training")]
        seed: u64,
    }
}

options! {
    /// Options of an embedding.
    EmbedOptions {
        /// Name of the gallery [default: the dataset's name].
        #[arg(long, help_heading = "Gallery")]
        gallery: Name,
        /// Images of the dataset that become the gallery [default: all].
        #[arg(long, value_parser = words::<Split>(&["train", "validation", "test", "all"]), help_heading = "Gallery")]
        rows: Split,
        /// Rows per shard, at most 65536 [default: 8192].
        #[arg(long, value_name = "ROWS", help_heading = "Gallery")]
        shard_rows: u32,
    }
}

options! {
    /// Options of an evaluation.
    EvaluateOptions {
        /// Images that are searched and that queries are made from [default: test].
        #[serde(alias = "report_rows")]
        #[arg(long = "report-rows", id = "report_rows", value_parser = words::<Split>(&["train", "validation", "test", "all"]), help_heading = "Evaluation")]
        rows: Split,
        /// Queries of two attributes [default: 300].
        #[arg(long, help_heading = "Evaluation")]
        pairs: u32,
        /// Queries of three attributes [default: 300].
        #[arg(long, help_heading = "Evaluation")]
        triples: u32,
        /// Fewest relevant images of a query [default: 5].
        #[arg(long, value_name = "N", help_heading = "Evaluation")]
        min_relevant: u32,
        /// Queries per task [default: 170].
        #[arg(long, value_name = "N", help_heading = "Evaluation")]
        queries_per_task: u32,
        /// Seed of the queries and of the bootstrap [default: 0].
        #[serde(alias = "query_seed")]
        #[arg(long = "query-seed", id = "query_seed", value_name = "SEED", help_heading = "Evaluation")]
        seed: u64,
    }
}

impl JobOptions {
    /// The device class asked for.
    pub fn device(&self) -> DeviceClass {
        self.device.unwrap_or(DeviceClass::Any)
    }

    /// The priority asked for.
    pub fn priority(&self) -> Priority {
        self.priority.unwrap_or(Priority::Lo)
    }
}

impl ModelOptions {
    /// The settings with their defaults.
    pub fn resolve(&self) -> Outcome<ModelSettings> {
        let architecture = self.architecture.unwrap_or(Architecture::CnnS);
        let mut preprocessing = Preprocessing::imagenet(self.input_px.unwrap_or(architecture.default_input_px()));
        preprocessing.crop = self.crop.unwrap_or(preprocessing.crop);
        let settings = ModelSettings {
            architecture,
            embedding_dim: self.embedding_dim.unwrap_or(300),
            encoding: self.encoding.unwrap_or(QueryEncoding::ThreeState),
            preprocessing,
        };
        within("embedding-dim", settings.embedding_dim, 2, MAX_EMBEDDING_DIM)?;
        within("input-px", settings.preprocessing.input_px, *INPUT_PX.start(), *INPUT_PX.end())?;
        Ok(settings)
    }
}

impl TrainOptions {
    /// The settings with their defaults.
    pub fn resolve(&self) -> Outcome<TrainSettings> {
        let default = TrainSettings::default();
        let mut optimizer = default.optimizer;
        optimizer.lr = self.lr.unwrap_or(optimizer.lr);
        optimizer.weight_decay = self.weight_decay.unwrap_or(optimizer.weight_decay);
        let settings = TrainSettings {
            epochs: self.epochs.unwrap_or(default.epochs),
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            inner_steps: self.inner_steps.unwrap_or(default.inner_steps),
            margin: self.margin.unwrap_or(default.margin),
            negatives: self.negatives()?,
            masked_share: self.masked_share.unwrap_or(default.masked_share),
            optimizer,
            warmup_share: self.warmup_share.unwrap_or(default.warmup_share),
            mirror: self.mirror.unwrap_or(default.mirror),
            random_crop: self.random_crop.unwrap_or(default.random_crop),
            validate_every: self.validate_every.unwrap_or(default.validate_every),
            seed: self.seed.unwrap_or(default.seed),
        };
        check_train(&settings)?;
        Ok(settings)
    }

    fn negatives(&self) -> Outcome<NegativeMix> {
        let article = NegativeMix::ARTICLE;
        if (self.negatives_random, self.negatives_other, self.negatives_flipped) == (None, None, None) {
            return Ok(article);
        }
        let random = self.negatives_random.unwrap_or(article.random);
        let flipped = self.negatives_flipped.unwrap_or(article.flipped);
        let other = self.negatives_other.unwrap_or(1.0 - random - flipped);
        let sum = random + other + flipped;
        if [random, other, flipped].iter().any(|share| !(0.0..=1.0).contains(share)) || (sum - 1.0).abs() > 1e-3 {
            // What is left of 1 has digits that nobody wrote.
            let [random, other, flipped] = [random, other, flipped].map(|share| (share * 1e4).round() / 1e4);
            return Err(Failure::usage(format!(
                "the shares of negatives must lie in 0–1 and sum to 1: random {random}, other {other}, flipped {flipped}"
            )));
        }
        if flipped > article.flipped + 1e-3 {
            return Err(Failure::usage(format!(
                "`negatives-flipped` is {flipped}: above 1/3 the model learns to tell made-up vectors from real ones"
            )));
        }
        Ok(NegativeMix { random, other, flipped })
    }
}

fn check_train(settings: &TrainSettings) -> Outcome<()> {
    within("epochs", settings.epochs, 1, 100_000)?;
    within("batch-size", settings.batch_size, 2, 65_536)?;
    within("inner-steps", settings.inner_steps, 1, 1_000_000)?;
    within("validate-every", settings.validate_every, 1, 1_000_000)?;
    within("masked-share", settings.masked_share, 0.0, 1.0)?;
    within("warmup-share", settings.warmup_share, 0.0, 1.0)?;
    within("random-crop", settings.random_crop, 0.0, 0.5)?;
    above_0("margin", settings.margin, 2.0)?;
    above_0("lr", settings.optimizer.lr, 10.0)?;
    within("weight-decay", settings.optimizer.weight_decay, 0.0, 10.0)
}

impl EmbedOptions {
    /// The request with its defaults.
    pub fn resolve(&self, dataset: &DatasetSelector) -> Outcome<EmbedRequest> {
        let shard_rows = self.shard_rows.unwrap_or(DEFAULT_ROWS);
        within("shard-rows", shard_rows, 1, MAX_SHARD_ROWS)?;
        Ok(EmbedRequest {
            gallery: self.gallery.clone().unwrap_or_else(|| dataset.dataset.clone()),
            dataset: dataset.clone(),
            rows: self.rows.unwrap_or(Split::All),
            shard_rows,
        })
    }
}

impl EvaluateOptions {
    /// The stage with its defaults.
    pub fn resolve(&self) -> Outcome<EvaluateStage> {
        let default = EvaluateSettings::default();
        let settings = EvaluateSettings {
            pairs: self.pairs.unwrap_or(default.pairs),
            triples: self.triples.unwrap_or(default.triples),
            min_relevant: self.min_relevant.unwrap_or(default.min_relevant),
            seed: self.seed.unwrap_or(default.seed),
            queries_per_task: self.queries_per_task.unwrap_or(default.queries_per_task),
        };
        within("pairs", settings.pairs, 0, 100_000)?;
        within("triples", settings.triples, 0, 100_000)?;
        within("min-relevant", settings.min_relevant, 1, 1_000_000)?;
        within("queries-per-task", settings.queries_per_task, 1, 100_000)?;
        Ok(EvaluateStage { rows: self.rows.unwrap_or(Split::Test), settings })
    }
}

/// A training of `dataset`.
pub fn train_request(dataset: DatasetSelector, model: &ModelOptions, train: &TrainOptions) -> Outcome<TrainRequest> {
    Ok(TrainRequest { dataset, model: model.resolve()?, train: train.resolve()? })
}

/// Refuses a value outside `least..=most`, NaN too.
pub fn within<T: PartialOrd + std::fmt::Display>(option: &str, value: T, least: T, most: T) -> Outcome<()> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Failure::usage(format!("`{option}` is {value}: it must lie between {least} and {most}")))
}

/// Refuses a value that is not above 0 and at most `most`, NaN too.
fn above_0<T: PartialOrd + Default + std::fmt::Display>(option: &str, value: T, most: T) -> Outcome<()> {
    if value > T::default() && value <= most {
        return Ok(());
    }
    Err(Failure::usage(format!("`{option}` is {value}: it must be above 0 and at most {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_contracts() {
        assert_eq!(TrainOptions::default().resolve().unwrap(), TrainSettings::default());
        let evaluate = EvaluateOptions::default().resolve().unwrap();
        assert_eq!(evaluate.settings, EvaluateSettings::default());
        assert_eq!(evaluate.rows, Split::Test);
    }

    #[test]
    fn input_size_follows_the_architecture() {
        let options = ModelOptions { architecture: Some(Architecture::ResNet50), ..Default::default() };
        assert_eq!(options.resolve().unwrap().preprocessing.input_px, 224);
        assert_eq!(ModelOptions::default().resolve().unwrap().preprocessing.input_px, 64);
    }

    #[test]
    fn flags_win_over_the_file() {
        let flags = TrainOptions { epochs: Some(2), ..Default::default() };
        let file = TrainOptions { epochs: Some(9), seed: Some(7), ..Default::default() };
        let merged = flags.or(file);
        assert_eq!((merged.epochs, merged.seed), (Some(2), Some(7)));
    }

    #[test]
    fn other_negatives_take_what_is_left() {
        let options = TrainOptions { negatives_flipped: Some(0.25), ..Default::default() };
        assert_eq!(options.resolve().unwrap().negatives.other, 0.75);
        for (random, flipped) in [(0.0, 0.5), (0.9, 0.3), (-0.1, 0.3)] {
            let options =
                TrainOptions { negatives_random: Some(random), negatives_flipped: Some(flipped), ..Default::default() };
            assert!(options.resolve().is_err(), "{random} {flipped}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let error = TrainOptions { epochs: Some(0), ..Default::default() }.resolve().unwrap_err().to_string();
        assert!(error.contains("`epochs` is 0"), "{error}");
        for lr in [0.0, f64::NAN] {
            let error = TrainOptions { lr: Some(lr), ..Default::default() }.resolve().unwrap_err().to_string();
            assert!(error.ends_with("it must be above 0 and at most 10"), "{error}");
        }
        let error = TrainOptions { margin: Some(f32::NAN), ..Default::default() }.resolve().unwrap_err().to_string();
        assert!(error.contains("`margin` is NaN"), "{error}");
        let error = ModelOptions { input_px: Some(20), ..Default::default() }.resolve().unwrap_err().to_string();
        assert!(error.contains("`input-px` is 20"), "{error}");
    }

    #[test]
    fn shares_are_told_as_they_were_written() {
        let (random, flipped) = (Some(0.9), Some(0.3));
        let options = TrainOptions { negatives_random: random, negatives_flipped: flipped, ..Default::default() };
        let error = options.resolve().unwrap_err().to_string();
        assert!(error.ends_with("random 0.9, other -0.2, flipped 0.3"), "{error}");
    }

    #[test]
    fn the_gallery_is_named_after_the_dataset() {
        let dataset = DatasetSelector { dataset: Name::new("faces").unwrap(), version: None };
        assert_eq!(EmbedOptions::default().resolve(&dataset).unwrap().gallery.as_str(), "faces");
    }
}
