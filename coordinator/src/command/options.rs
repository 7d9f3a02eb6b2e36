//! What can be set of a job, once for flags and config files alike: each struct is a group of flags and a
//! section of `job.toml`; a flag wins over the file, the file over the default.

mod filled;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use likeness::core::validate::{INPUT_PX, MAX_DEADLINE_S, MAX_EMBEDDING_DIM, MAX_SLOTS};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{
    self, DatasetSelector, DeviceClass, EmbedRequest, EvaluateStage, JobRequest, Priority, RequestedWork, TrainRequest,
};
use likeness_contract::settings::{
    AdamWSettings, Architecture, BackboneSettings, ColourJitter, Crop, EvaluateSettings, ImageEdit, InitWeights,
    InnerOptimizer, Keep, Loss, ModelSettings, NegativeMix, Optimizer, Preprocessing, QueryEncoding, ResizedCrop,
    RoundSettings, SgdSettings, Split, TrainSettings,
};
use likeness_link::client::Client;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::command::exit::{Failure, Outcome};
use crate::command::weights;

/// Rows of an ingest part and of a gallery shard unless said otherwise: 30–120 s of work on a processor.
pub const DEFAULT_ROWS: u32 = 8192;
/// Divides the cosines of InfoNCE unless said otherwise.
const DEFAULT_TEMPERATURE: f32 = 0.1;
/// Largest shard; a searcher loads and drops shards as a whole.
pub const MAX_SHARD_ROWS: u32 = 65_536;

/// A parser of words that serde knows, with the words for `--help` and for suggestions.
pub fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value::<T>(serde_json::Value::String(word)))
}

/// `self.field = self.field.or(file.field)` for every field: whatever a flag left open comes from the file. `KEYS` are the
/// keys of the section, in the order of the flags.
macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
        }

        impl $name {
            /// Its keys in a config file.
            pub const KEYS: &'static [&'static str] = &[$(stringify!($field),)*];

            /// These options, and those of `file` where they are open.
            pub fn or(self, file: Self) -> Self {
                Self { $($field: self.$field.or(file.$field),)* }
            }
        }
    };
}

/// An optimizer by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerName {
    /// AdamW.
    Adamw,
    /// SGD with Nesterov momentum.
    Sgd,
}

/// A way to train, as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// [`TrainSettings::joint`] with an encoding of log-probabilities.
    #[default]
    Joint,
    /// [`TrainSettings::default`] with two towers.
    Article,
}

impl Recipe {
    fn encoding(self) -> QueryEncoding {
        match self {
            Self::Joint => QueryEncoding::LogProbability,
            Self::Article => QueryEncoding::ThreeState,
        }
    }

    fn train(self) -> TrainSettings {
        match self {
            Self::Joint => TrainSettings::joint(),
            Self::Article => TrainSettings::default(),
        }
    }
}

/// A loss by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// [`Loss::Triplet`].
    Triplet,
    /// [`Loss::SemiHardTriplet`].
    SemiHardTriplet,
    /// [`Loss::AllTriplets`].
    AllTriplets,
    /// [`Loss::InfoNce`].
    InfoNce,
    /// [`Loss::BinaryCrossEntropy`].
    BinaryCrossEntropy,
}

impl LossName {
    /// Its name, and its temperature where it has one.
    pub fn of(loss: Loss) -> (Self, Option<f32>) {
        match loss {
            Loss::Triplet => (Self::Triplet, None),
            Loss::SemiHardTriplet => (Self::SemiHardTriplet, None),
            Loss::AllTriplets => (Self::AllTriplets, None),
            Loss::InfoNce { temperature } => (Self::InfoNce, Some(temperature)),
            Loss::BinaryCrossEntropy => (Self::BinaryCrossEntropy, None),
        }
    }
}

/// A part of a model that can be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All of the image tower but its head.
    Backbone,
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
        /// Most workers that are at the job at a time [default: as many as there are].
        #[arg(long, value_name = "N", help_heading = "Job")]
        max_workers: u32,
        /// Tell this http(s) URL when a run of the job ends; may be given several times. It is stored and shown with the job.
        #[arg(long, value_name = "URL", help_heading = "Job")]
        notify: Vec<String>,
    }
}

options! {
    /// Options of a model.
    ModelOptions {
        /// Backbone of the image tower [default: cnn-s].
        #[arg(long, value_parser = words::<Architecture>(&["cnn-s", "resnet18", "resnet34", "resnet50", "resnet101"]), help_heading = "Model")]
        architecture: Architecture,
        /// What decides all that is left open: `joint` finds by log-probabilities of attributes and is trained with binary cross-entropy, `article` has two towers and is trained with triplets [default: joint].
        #[arg(long, value_parser = words::<Recipe>(&["joint", "article"]), help_heading = "Model")]
        recipe: Recipe,
        /// D, length of the embedding [default: 300; with log-probabilities always twice the attributes and one].
        #[arg(long, value_name = "D", help_heading = "Model")]
        embedding_dim: u32,
        /// `log-probability` needs no query tower; with one, `three-state` knows "not said", `multi-hot` is the article's own [default: log-probability; of the recipe article three-state].
        #[arg(long, value_parser = words::<QueryEncoding>(&["three-state", "multi-hot", "log-probability"]), help_heading = "Model")]
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
        /// Workers that train at a time: slots of a round, each learning from batches of its own, brought together after --inner-steps [default: 1].
        #[arg(long, value_name = "K", help_heading = "Rounds")]
        slots: u32,
        /// Learning rate of the outer step, which brings the slots of a round together; 1 without momentum takes their mean [default: 1].
        #[arg(long, value_name = "LR", help_heading = "Rounds")]
        outer_lr: f64,
        /// Nesterov momentum of the outer step, 0 = none [default: 0].
        #[arg(long, value_name = "MOMENTUM", help_heading = "Rounds")]
        outer_momentum: f64,
        /// Fewest slots that a round goes on with; slots that are late are left out of it [default: all].
        #[arg(long, value_name = "Q", help_heading = "Rounds")]
        quorum: u32,
        /// Wait so long for more slots than --quorum, counted from the start of the round [default: 0].
        #[arg(long, value_name = "SECONDS", help_heading = "Rounds")]
        round_deadline: u32,
        /// What the training makes small: `triplet` is the article's; `semi-hard-triplet`, `all-triplets` and `info-nce` compare within the batch; `binary-cross-entropy` is of log-probabilities [default: binary-cross-entropy; of the recipe article triplet].
        #[arg(long, value_parser = words::<LossName>(&["triplet", "semi-hard-triplet", "all-triplets", "info-nce", "binary-cross-entropy"]), help_heading = "Training")]
        loss: LossName,
        /// Temperature of `info-nce` [default: 0.1].
        #[arg(long, help_heading = "Training")]
        temperature: f32,
        /// Serve an exponential moving average of the weights with this decay per step, 0 = off [default: 0].
        #[arg(long, value_name = "DECAY", help_heading = "Training")]
        average_decay: f64,
        /// Embed an image together with its mirror image, at twice the cost [default: false].
        #[arg(long, value_name = "BOOL", help_heading = "Training")]
        embed_mirrored: bool,
        /// Margin of the triplet losses [default: 0.1].
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
        /// `adamw`, or `sgd` with Nesterov momentum [default: adamw].
        #[arg(long, value_parser = words::<OptimizerName>(&["adamw", "sgd"]), help_heading = "Training")]
        optimizer: OptimizerName,
        /// Peak learning rate [default: 0.002; with sgd 0.1].
        #[arg(long, help_heading = "Training")]
        lr: f64,
        /// Weight decay, decoupled with adamw [default: 0.01; with sgd 0.0001].
        #[arg(long, help_heading = "Training")]
        weight_decay: f64,
        /// Momentum of sgd, 0 = none [default: 0.9].
        #[arg(long, help_heading = "Training")]
        momentum: f64,
        /// Shrink all gradients together to at most this norm, 0 = off [default: 0].
        #[arg(long, value_name = "NORM", help_heading = "Training")]
        clip_norm: f64,
        /// Share of all steps in which the learning rate rises [default: 0.1].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        warmup_share: f32,
        /// Mirror images at random [default: true].
        #[arg(long, value_name = "BOOL", help_heading = "Training")]
        mirror: bool,
        /// Largest random shift as a share of the side, 0 = off [default: 0.1].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        random_crop: f32,
        /// Crop a random part of at least this share of the image and resize it, instead of --random-crop; torchvision's RandomResizedCrop [default: off].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        resized_crop: f32,
        /// Change brightness by a random factor of 1 ± this, 0 = off; this and the next three are torchvision's ColorJitter [default: 0].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        brightness: f32,
        /// Change contrast by a random factor of 1 ± this [default: 0].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        contrast: f32,
        /// Change saturation by a random factor of 1 ± this [default: 0].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        saturation: f32,
        /// Turn the hue by up to this share of the circle, at most 0.5 [default: 0].
        #[arg(long, value_name = "SHARE", help_heading = "Training")]
        hue: f32,
        /// Measure loss and mAP on the validation images after every so many rounds [default: 1].
        #[arg(long, value_name = "ROUNDS", help_heading = "Training")]
        validate_every: u32,
        /// Stop after so many validations in a row without a better mAP, and keep the best round, 0 = never [default: 0].
        #[arg(long, value_name = "VALIDATIONS", help_heading = "Training")]
        patience: u32,
        /// The model is the `last` round, or the `best` by mAP on the validation images [default: last; with --patience best].
        #[arg(long, value_parser = words::<Keep>(&["last", "best"]), help_heading = "Training")]
        keep: Keep,
        /// Start from these weights: a safetensors file or URL with torchvision's or timm's names, a model of ours, or an alias [default: fresh weights].
        #[arg(long, value_name = "FILE|URL|MODEL", help_heading = "Start")]
        init: String,
        /// Learning rate of the backbone as a multiple of the others' [default: 1].
        #[arg(long, value_name = "FACTOR", help_heading = "Start")]
        backbone_lr: f64,
        /// Train only head and attribute tower in the first epochs [default: 0].
        #[arg(long, value_name = "EPOCHS", help_heading = "Start")]
        warm_up_epochs: u32,
        /// Never train this part: `backbone` [default: none].
        #[arg(long, value_parser = words::<Part>(&["backbone"]), help_heading = "Start")]
        freeze: Part,
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
        /// Queries of everything known of one image [default: 300].
        #[arg(long, value_name = "N", help_heading = "Evaluation")]
        full: u32,
        /// Queries of an image with one attribute changed; where embeddings were imported, of an image as it is [default: 300].
        #[arg(long, value_name = "N", help_heading = "Evaluation")]
        images: u32,
        /// `held-out`: such an image leaves the gallery and gets an attribute that it has not, or loses one; `author`: it stays, and may be asked for what it has [default: held-out].
        #[arg(long, value_parser = words::<ImageEdit>(&["held-out", "author"]), help_heading = "Evaluation")]
        image_edit: ImageEdit,
        /// Queries of your own beside these, as set `own`: a .csv, .jsonl or .parquet file with the columns with, without, item, name.
        #[arg(long, value_name = "FILE", help_heading = "Evaluation")]
        queries: String,
        /// Of a pipeline: least mAP over singles, pairs and triples together; the gate refuses what is below, whatever the comparison says [default: none].
        #[arg(long, value_name = "MAP", help_heading = "Evaluation")]
        floor: f64,
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
    /// The request for a job of this work.
    pub fn request(&self, work: RequestedWork) -> JobRequest {
        JobRequest {
            id: self.id.clone(),
            work,
            device: self.device.unwrap_or(DeviceClass::Any),
            priority: self.priority.unwrap_or(Priority::Lo),
            options: jobs::JobOptions {
                max_workers: self.max_workers,
                notify: self.notify.clone().unwrap_or_default(),
            },
        }
    }
}

impl ModelOptions {
    /// The recipe in force.
    pub fn recipe(&self) -> Recipe {
        self.recipe.unwrap_or_default()
    }

    /// The settings with their defaults.
    pub fn resolve(&self) -> Outcome<ModelSettings> {
        let architecture = self.architecture.unwrap_or(Architecture::CnnS);
        let mut preprocessing = Preprocessing::imagenet(self.input_px.unwrap_or(architecture.default_input_px()));
        preprocessing.crop = self.crop.unwrap_or(preprocessing.crop);
        let encoding = self.encoding.unwrap_or(self.recipe().encoding());
        let by_vocabulary = encoding == QueryEncoding::LogProbability;
        let embedding_dim = self.embedding_dim.unwrap_or(if by_vocabulary { 0 } else { 300 });
        let settings = ModelSettings { architecture, embedding_dim, encoding, preprocessing };
        if !(by_vocabulary && self.embedding_dim.is_none()) {
            within("embedding-dim", embedding_dim, 2, MAX_EMBEDDING_DIM)?;
        }
        within("input-px", settings.preprocessing.input_px, *INPUT_PX.start(), *INPUT_PX.end())?;
        Ok(settings)
    }
}

impl TrainOptions {
    /// The settings with the defaults of a recipe.
    pub fn resolve(&self, recipe: Recipe) -> Outcome<TrainSettings> {
        let default = recipe.train();
        let settings = TrainSettings {
            epochs: self.epochs.unwrap_or(default.epochs),
            batch_size: self.batch_size.unwrap_or(default.batch_size),
            inner_steps: self.inner_steps.unwrap_or(default.inner_steps),
            margin: self.margin.unwrap_or(default.margin),
            negatives: self.negatives()?,
            masked_share: self.masked_share.unwrap_or(default.masked_share),
            optimizer: self.in_rounds()?,
            clip_norm: self.clip_norm.unwrap_or(default.clip_norm),
            warmup_share: self.warmup_share.unwrap_or(default.warmup_share),
            backbone: self.backbone(self.epochs.unwrap_or(default.epochs))?,
            init: None,
            mirror: self.mirror.unwrap_or(default.mirror),
            random_crop: self.random_crop(default.random_crop)?,
            resized_crop: self.resized_crop.map(ResizedCrop::from_scale),
            colour: self.colour(),
            validate_every: self.validate_every.unwrap_or(default.validate_every),
            keep: self.keep(),
            patience: self.patience.unwrap_or(default.patience),
            seed: self.seed.unwrap_or(default.seed),
            loss: self.loss(default.loss)?,
            average_decay: self.average_decay.unwrap_or(default.average_decay),
            embed_mirrored: self.embed_mirrored.unwrap_or(default.embed_mirrored),
        };
        check_train(&settings)?;
        Ok(settings)
    }

    fn loss(&self, default: Loss) -> Outcome<Loss> {
        let name = self.loss.unwrap_or(LossName::of(default).0);
        if name != LossName::InfoNce && self.temperature.is_some() {
            return Err(Failure::usage("`temperature` is a setting of info-nce: give `--loss info-nce` too"));
        }
        let temperature = self.temperature.unwrap_or(DEFAULT_TEMPERATURE);
        above_0("temperature", temperature, 100.0)?;
        Ok(match name {
            LossName::Triplet => Loss::Triplet,
            LossName::SemiHardTriplet => Loss::SemiHardTriplet,
            LossName::AllTriplets => Loss::AllTriplets,
            LossName::InfoNce => Loss::InfoNce { temperature },
            LossName::BinaryCrossEntropy => Loss::BinaryCrossEntropy,
        })
    }

    /// One slot without an outer step is the plain optimizer: the same training has the same id.
    fn in_rounds(&self) -> Outcome<Optimizer> {
        let inner = self.optimizer()?;
        let slots = self.slots.unwrap_or(1);
        within("slots", slots, 1, MAX_SLOTS)?;
        let averaging = RoundSettings::averaging(slots, inner);
        let rounds = RoundSettings {
            outer_lr: self.outer_lr.unwrap_or(averaging.outer_lr),
            outer_momentum: self.outer_momentum.unwrap_or(averaging.outer_momentum),
            quorum: self.quorum.unwrap_or(averaging.quorum),
            deadline_s: self.round_deadline.unwrap_or(averaging.deadline_s),
            ..averaging
        };
        above_0("outer-lr", rounds.outer_lr, 10.0)?;
        within("outer-momentum", rounds.outer_momentum, 0.0, 0.9999)?;
        within("quorum", rounds.quorum, 1, slots)?;
        within("round-deadline", rounds.deadline_s, 0, MAX_DEADLINE_S)?;
        if rounds.deadline_s > 0 && !rounds.may_leave_out() {
            return Err(Failure::usage(
                "`round-deadline` is for rounds that may go on without a slot: give `--quorum` below `--slots` too",
            ));
        }
        Ok(if rounds.is_plain() { inner.into() } else { Optimizer::Rounds(rounds) })
    }

    fn optimizer(&self) -> Outcome<InnerOptimizer> {
        if self.optimizer == Some(OptimizerName::Sgd) {
            let default = SgdSettings::default();
            return Ok(InnerOptimizer::Sgd(SgdSettings {
                lr: self.lr.unwrap_or(default.lr),
                momentum: self.momentum.unwrap_or(default.momentum),
                weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            }));
        }
        if self.momentum.is_some() {
            return Err(Failure::usage("`momentum` is a setting of sgd: give `--optimizer sgd` too"));
        }
        let default = AdamWSettings::default();
        Ok(InnerOptimizer::AdamW(AdamWSettings {
            lr: self.lr.unwrap_or(default.lr),
            weight_decay: self.weight_decay.unwrap_or(default.weight_decay),
            ..default
        }))
    }

    fn backbone(&self, epochs: u32) -> Outcome<BackboneSettings> {
        let default = BackboneSettings::default();
        let warm_up = self.warm_up_epochs.unwrap_or(0);
        if self.init.is_none() && (warm_up > 0 || self.freeze.is_some()) {
            let option = if self.freeze.is_some() { "freeze" } else { "warm-up-epochs" };
            return Err(Failure::usage(format!("`{option}` holds a backbone of fresh weights: give `--init` too")));
        }
        let lr_factor = self.backbone_lr.unwrap_or(default.lr_factor);
        match self.freeze {
            Some(Part::Backbone) if warm_up > 0 || self.backbone_lr.is_some() => Err(Failure::usage(
                "`freeze` holds the backbone in every epoch: leave `warm-up-epochs` and `backbone-lr` out",
            )),
            Some(Part::Backbone) => Ok(BackboneSettings { lr_factor, frozen_epochs: epochs }),
            None if warm_up > 0 && warm_up >= epochs => Err(Failure::usage(format!(
                "`warm-up-epochs` is {warm_up} of {epochs} epochs: to hold the backbone in all of them, give `--freeze backbone`"
            ))),
            None => Ok(BackboneSettings { lr_factor, frozen_epochs: warm_up }),
        }
    }

    /// A resized crop takes the place of the shift.
    fn random_crop(&self, default: f32) -> Outcome<f32> {
        match (self.random_crop, self.resized_crop) {
            (shift, None) => Ok(shift.unwrap_or(default)),
            (None | Some(0.0), Some(_)) => Ok(0.0),
            (Some(_), Some(_)) => {
                Err(Failure::usage("`resized-crop` takes the place of `random-crop`: leave one of them out"))
            }
        }
    }

    fn colour(&self) -> ColourJitter {
        let Self { brightness, contrast, saturation, hue, .. } = self;
        let [brightness, contrast, saturation, hue] =
            [brightness, contrast, saturation, hue].map(|jitter| jitter.unwrap_or(0.0));
        ColourJitter { brightness, contrast, saturation, hue }
    }

    /// Who stops early wants what was best.
    fn keep(&self) -> Keep {
        let stops = self.patience.is_some_and(|patience| patience > 0);
        self.keep.unwrap_or(if stops { Keep::Best } else { Keep::Last })
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
    above_0("lr", settings.optimizer.lr(), 10.0)?;
    let weight_decay = match settings.optimizer.inner() {
        InnerOptimizer::AdamW(optimizer) => optimizer.weight_decay,
        InnerOptimizer::Sgd(optimizer) => {
            within("momentum", optimizer.momentum, 0.0, 0.9999)?;
            optimizer.weight_decay
        }
    };
    within("weight-decay", weight_decay, 0.0, 10.0)?;
    within("clip-norm", settings.clip_norm, 0.0, 1e6)?;
    within("average-decay", settings.average_decay, 0.0, 0.999_999)?;
    above_0("backbone-lr", settings.backbone.lr_factor, 100.0)?;
    if let Some(crop) = settings.resized_crop {
        above_0("resized-crop", crop.scale[0], 1.0)?;
    }
    let ColourJitter { brightness, contrast, saturation, hue } = settings.colour;
    for (option, jitter) in [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)] {
        within(option, jitter, 0.0, 10.0)?;
    }
    within("hue", hue, 0.0, 0.5)?;
    within("patience", settings.patience, 0, 1_000_000)
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
            full: self.full.unwrap_or(default.full),
            images: self.images.unwrap_or(default.images),
            image_edit: self.image_edit.unwrap_or(default.image_edit),
            own: None,
            floor: self.floor.unwrap_or(default.floor),
        };
        within("pairs", settings.pairs, 0, 100_000)?;
        within("triples", settings.triples, 0, 100_000)?;
        within("full", settings.full, 0, 100_000)?;
        within("images", settings.images, 0, 100_000)?;
        within("floor", settings.floor, 0.0, 1.0)?;
        within("min-relevant", settings.min_relevant, 1, 1_000_000)?;
        within("queries-per-task", settings.queries_per_task, 1, 100_000)?;
        Ok(EvaluateStage { rows: self.rows.unwrap_or(Split::Test), settings })
    }
}

/// A training of `dataset` from `init`.
pub fn train_request(
    dataset: DatasetSelector,
    model: &ModelOptions,
    train: &TrainOptions,
    init: Option<InitWeights>,
) -> Outcome<TrainRequest> {
    let (model, train) = resolved(model, train)?;
    Ok(TrainRequest { dataset, model, train: TrainSettings { init, ..train } })
}

/// Model and training with their defaults, if they fit each other.
pub fn resolved(model: &ModelOptions, train: &TrainOptions) -> Outcome<(ModelSettings, TrainSettings)> {
    let train = train.resolve(model.recipe())?;
    let model = model.resolve()?;
    let by_logits = train.loss == Loss::BinaryCrossEntropy;
    match (by_logits, model.encoding == QueryEncoding::LogProbability) {
        (true, false) => Err(Failure::usage(
            "a model with two towers has no logits for `binary-cross-entropy`: give another `--loss`, or a recipe as it is",
        )),
        (false, true) => Err(Failure::usage(
            "log-probabilities are trained with `--loss binary-cross-entropy` alone: for other losses give `--recipe article`, or `--encoding three-state`",
        )),
        _ => Ok((model, train)),
    }
}

/// The weights that a training starts from, in the store.
pub async fn start(client: &Client, model: &ModelOptions, train: &TrainOptions) -> Outcome<Option<InitWeights>> {
    match &train.init {
        Some(text) => Ok(Some(weights::resolve(client, text, model.resolve()?.architecture).await?)),
        None => Ok(None),
    }
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
        let train = TrainOptions::default();
        assert_eq!(train.resolve(Recipe::Article).unwrap(), TrainSettings::default());
        assert_eq!(train.resolve(Recipe::Joint).unwrap(), TrainSettings::joint());
        let evaluate = EvaluateOptions::default().resolve().unwrap();
        assert_eq!(evaluate.settings, EvaluateSettings::default());
        assert_eq!(evaluate.rows, Split::Test);
    }

    #[test]
    fn sets_of_queries_have_numbers_within_bounds() {
        let options = EvaluateOptions {
            full: Some(0),
            images: Some(7),
            image_edit: Some(ImageEdit::Author),
            floor: Some(0.25),
            ..Default::default()
        };
        let EvaluateSettings { full, images, image_edit, floor, .. } = options.resolve().unwrap().settings;
        assert_eq!((full, images, image_edit, floor), (0, 7, ImageEdit::Author, 0.25));
        for floor in [-0.1, 1.1, f64::NAN] {
            let error = EvaluateOptions { floor: Some(floor), ..Default::default() }.resolve().unwrap_err().to_string();
            assert!(error.contains("`floor` is"), "{error}");
        }
        assert!(EvaluateOptions { images: Some(200_000), ..Default::default() }.resolve().is_err());
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
        assert_eq!(options.resolve(Recipe::Joint).unwrap().negatives.other, 0.75);
        for (random, flipped) in [(0.0, 0.5), (0.9, 0.3), (-0.1, 0.3)] {
            let options =
                TrainOptions { negatives_random: Some(random), negatives_flipped: Some(flipped), ..Default::default() };
            assert!(options.resolve(Recipe::Joint).is_err(), "{random} {flipped}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        let error =
            TrainOptions { epochs: Some(0), ..Default::default() }.resolve(Recipe::Joint).unwrap_err().to_string();
        assert!(error.contains("`epochs` is 0"), "{error}");
        for lr in [0.0, f64::NAN] {
            let error =
                TrainOptions { lr: Some(lr), ..Default::default() }.resolve(Recipe::Joint).unwrap_err().to_string();
            assert!(error.ends_with("it must be above 0 and at most 10"), "{error}");
        }
        let error = TrainOptions { margin: Some(f32::NAN), ..Default::default() }
            .resolve(Recipe::Joint)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`margin` is NaN"), "{error}");
        let error = ModelOptions { input_px: Some(20), ..Default::default() }.resolve().unwrap_err().to_string();
        assert!(error.contains("`input-px` is 20"), "{error}");
    }

    #[test]
    fn sgd_has_defaults_of_its_own_and_momentum_is_its_alone() {
        let sgd = TrainOptions { optimizer: Some(OptimizerName::Sgd), lr: Some(0.5), ..Default::default() };
        let expected = SgdSettings { lr: 0.5, ..SgdSettings::default() };
        assert_eq!(sgd.resolve(Recipe::Joint).unwrap().optimizer, Optimizer::Sgd(expected));
        let error =
            TrainOptions { momentum: Some(0.5), ..Default::default() }.resolve(Recipe::Joint).unwrap_err().to_string();
        assert!(error.contains("--optimizer sgd"), "{error}");
    }

    #[test]
    fn one_slot_is_the_plain_optimizer_and_several_are_averaged_unless_told_otherwise() {
        let resolve = |options: &TrainOptions| options.resolve(Recipe::Joint).map(|settings| settings.optimizer);
        let plain = resolve(&TrainOptions::default()).unwrap();
        assert_eq!(resolve(&TrainOptions { slots: Some(1), ..Default::default() }).unwrap(), plain);
        let four = TrainOptions { slots: Some(4), ..Default::default() };
        assert_eq!(resolve(&four).unwrap(), Optimizer::Rounds(RoundSettings::averaging(4, plain.inner())));
        let all = TrainOptions {
            outer_lr: Some(0.7),
            outer_momentum: Some(0.9),
            quorum: Some(3),
            round_deadline: Some(60),
            ..four.clone()
        };
        let Optimizer::Rounds(rounds) = resolve(&all).unwrap() else { panic!("four slots are no plain optimizer") };
        let said = (rounds.outer_lr, rounds.outer_momentum, rounds.quorum, rounds.deadline_s);
        assert_eq!(said, (0.7, 0.9, 3, 60));
        let refused = |options: TrainOptions, word: &str| {
            let error = resolve(&options).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(TrainOptions { quorum: Some(5), ..four.clone() }, "`quorum` is 5");
        refused(TrainOptions { round_deadline: Some(5), ..four.clone() }, "--quorum");
        refused(TrainOptions { outer_lr: Some(f64::NAN), ..four.clone() }, "`outer-lr`");
        refused(TrainOptions { outer_momentum: Some(1.0), ..four }, "`outer-momentum`");
        refused(TrainOptions { slots: Some(0), ..Default::default() }, "`slots` is 0");
    }

    #[test]
    fn patience_keeps_the_best_unless_told_otherwise() {
        let keep =
            |patience, keep| TrainOptions { patience, keep, ..Default::default() }.resolve(Recipe::Joint).unwrap().keep;
        assert_eq!(keep(Some(3), None), Keep::Best);
        assert_eq!(keep(Some(3), Some(Keep::Last)), Keep::Last);
        assert_eq!(keep(Some(0), None), Keep::Last);
    }

    #[test]
    fn a_resized_crop_takes_the_place_of_the_shift() {
        let options = TrainOptions { resized_crop: Some(0.3), ..Default::default() };
        let settings = options.resolve(Recipe::Joint).unwrap();
        assert_eq!((settings.random_crop, settings.resized_crop.unwrap().scale), (0.0, [0.3, 1.0]));
        assert!(TrainOptions { random_crop: Some(0.1), ..options }.resolve(Recipe::Joint).is_err());
        assert!(TrainOptions { resized_crop: Some(0.0), ..Default::default() }.resolve(Recipe::Joint).is_err());
    }

    #[test]
    fn a_backbone_is_held_for_some_epochs_or_for_all_and_only_with_weights() {
        let with = TrainOptions { init: Some("w.safetensors".into()), epochs: Some(5), ..Default::default() };
        let frozen =
            |options: TrainOptions| options.resolve(Recipe::Joint).map(|settings| settings.backbone.frozen_epochs);
        assert_eq!(frozen(TrainOptions { warm_up_epochs: Some(2), ..with.clone() }).unwrap(), 2);
        assert_eq!(frozen(TrainOptions { freeze: Some(Part::Backbone), ..with.clone() }).unwrap(), 5);
        let refused = |options: TrainOptions, word: &str| {
            let error = frozen(options).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(TrainOptions { warm_up_epochs: Some(5), ..with.clone() }, "--freeze backbone");
        refused(TrainOptions { warm_up_epochs: Some(2), init: None, ..with.clone() }, "--init");
        refused(TrainOptions { freeze: Some(Part::Backbone), backbone_lr: Some(0.1), ..with }, "backbone-lr");
    }

    #[test]
    fn shares_are_told_as_they_were_written() {
        let (random, flipped) = (Some(0.9), Some(0.3));
        let options = TrainOptions { negatives_random: random, negatives_flipped: flipped, ..Default::default() };
        let error = options.resolve(Recipe::Joint).unwrap_err().to_string();
        assert!(error.ends_with("random 0.9, other -0.2, flipped 0.3"), "{error}");
    }

    #[test]
    fn the_gallery_is_named_after_the_dataset() {
        let dataset = DatasetSelector { dataset: Name::new("faces").unwrap(), version: None };
        assert_eq!(EmbedOptions::default().resolve(&dataset).unwrap().gallery.as_str(), "faces");
    }

    #[test]
    fn a_recipe_decides_what_is_left_open_and_wrong_mixtures_are_refused() {
        let joint = resolved(&ModelOptions::default(), &TrainOptions::default()).unwrap();
        assert_eq!((joint.0.encoding, joint.0.embedding_dim), (QueryEncoding::LogProbability, 0));
        assert_eq!(joint.1.loss, Loss::BinaryCrossEntropy);
        let article = ModelOptions { recipe: Some(Recipe::Article), ..Default::default() };
        let (model, train) = resolved(&article, &TrainOptions::default()).unwrap();
        assert_eq!(
            (model.encoding, model.embedding_dim, train),
            (QueryEncoding::ThreeState, 300, TrainSettings::default())
        );
        let info_nce = TrainOptions { loss: Some(LossName::InfoNce), temperature: Some(0.2), ..Default::default() };
        assert_eq!(resolved(&article, &info_nce).unwrap().1.loss, Loss::InfoNce { temperature: 0.2 });
        let refused = |model: &ModelOptions, train: &TrainOptions, word: &str| {
            let error = resolved(model, train).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        };
        refused(&ModelOptions::default(), &info_nce, "--recipe article");
        let bce = TrainOptions { loss: Some(LossName::BinaryCrossEntropy), ..Default::default() };
        refused(&article, &bce, "no logits");
        refused(&article, &TrainOptions { temperature: Some(0.2), ..Default::default() }, "--loss info-nce");
        let averaged = TrainOptions { average_decay: Some(1.0), ..Default::default() };
        refused(&article, &averaged, "`average-decay`");
    }
}
