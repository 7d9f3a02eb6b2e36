//! Settings of models, training and evaluation, as they stand in a job's spec and in `model.json`.
//!
//! All of them are fully resolved when a job is accepted: nothing here is an `Option` that a worker would
//! have to fill in by itself, so that a task computes the same wherever and whenever it runs.

mod past;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::documents::ObjectRef;
use crate::ids::JobId;

pub use past::{EvaluateSettingsV1, TrainSettingsV1, TrainSettingsV2};

/// The ordered attribute names. Position `i` is attribute `i` of every vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, JsonSchema)]
pub struct Vocabulary {
    /// Names in order, no duplicates.
    pub names: Vec<String>,
}

impl Vocabulary {
    /// Number of attributes, A.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no attribute.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Position of an attribute; `_`, `-` and blanks are the same and case does not matter.
    pub fn position(&self, name: &str) -> Option<usize> {
        let wanted = fold(name);
        self.names.iter().position(|n| n == name).or_else(|| self.names.iter().position(|n| fold(n) == wanted))
    }

    /// Positions of attributes in a list with commas; a list that is a name as a whole means that attribute. The
    /// error is the first name that is unknown.
    pub fn positions<'a>(&self, list: &'a str) -> Result<Vec<usize>, &'a str> {
        if let Some(whole) = self.position(list.trim()) {
            return Ok(vec![whole]);
        }
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(|name| self.position(name).ok_or(name)).collect()
    }
}

/// Upper case first: it makes `SS` of `ß`, which lower case alone would leave apart.
fn fold(name: &str) -> String {
    name.replace(['-', ' '], "_").to_uppercase().to_lowercase()
}

/// The network that turns an image into features. New ones come last: messages count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Architecture {
    /// ResNet-18 of base width 32, for small images (64 px by default).
    #[serde(rename = "cnn-s")]
    CnnS,
    /// ResNet-18 as torchvision.
    #[serde(rename = "resnet18")]
    ResNet18,
    /// ResNet-50 v1.5 as torchvision.
    #[serde(rename = "resnet50")]
    ResNet50,
    /// ResNet-34 as torchvision.
    #[serde(rename = "resnet34")]
    ResNet34,
    /// ResNet-101 v1.5 as torchvision.
    #[serde(rename = "resnet101")]
    ResNet101,
}

impl Architecture {
    /// Every architecture with its name, in the order of their declaration.
    pub const ALL: [(&'static str, Architecture); 5] = [
        ("cnn-s", Architecture::CnnS),
        ("resnet18", Architecture::ResNet18),
        ("resnet50", Architecture::ResNet50),
        ("resnet34", Architecture::ResNet34),
        ("resnet101", Architecture::ResNet101),
    ];

    /// The name users write.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    /// Usual side of the input in pixels.
    pub fn default_input_px(self) -> u32 {
        match self {
            Self::CnnS => 64,
            _ => 224,
        }
    }
}

/// How an attribute query becomes a vector of the space, and with it what the head of the image tower gives. New ones come
/// last: messages count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum QueryEncoding {
    /// Through the attribute tower: `+1` has, `-1` has not, `0` not said; masked at random in training.
    ThreeState,
    /// Through the attribute tower, the article's own: `1` has, `0` has not or not said; never masked.
    MultiHot,
    /// Without a tower: the head gives a logit per attribute, an image lies where its log-probabilities say, and a query is
    /// the normalised indicator of what it asks. D is [`log_probability_dim`].
    LogProbability,
}

/// D of a space of log-probabilities: those of A attributes with both signs, and what makes the length 1.
pub fn log_probability_dim(attributes: usize) -> u32 {
    u32::try_from(2 * attributes + 1).unwrap_or(u32::MAX)
}

/// Logits of a space of log-probabilities are bent softly to lie within ± this: c in `c tanh(z / c)`.
pub const LOGIT_LIMIT: f64 = 10.0;

/// γ of a space of log-probabilities of A attributes, by which they are shrunk: with every logit at its limit the length is 1.
pub fn log_probability_scale(attributes: usize) -> f64 {
    let (surely, hardly) = (LOGIT_LIMIT.exp().ln_1p(), (-LOGIT_LIMIT).exp().ln_1p());
    1.0 / (attributes as f64 * (surely * surely + hardly * hardly)).sqrt()
}

/// Which part of an image is looked at before it is resized to a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The largest centred square.
    CenterSquare,
    /// The whole image, stretched to a square.
    Stretch,
}

/// How an image becomes the `(3, input_px, input_px)` input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Preprocessing {
    /// Which part is kept.
    pub crop: Crop,
    /// Side of the square input, pixels.
    pub input_px: u32,
    /// Subtracted per channel (R, G, B), after scaling to 0–1.
    pub mean: [f32; 3],
    /// Divided by per channel.
    pub std: [f32; 3],
}

impl Preprocessing {
    /// Centre square with ImageNet's mean and standard deviation.
    pub fn imagenet(input_px: u32) -> Self {
        Self { crop: Crop::CenterSquare, input_px, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] }
    }
}

/// Everything that decides a model's shape and how it is used. Part of `model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelSettings {
    /// The image tower's backbone.
    pub architecture: Architecture,
    /// D, length of the embedding. In a request 0 leaves it to the vocabulary, where the encoding does.
    pub embedding_dim: u32,
    /// How attribute queries get into the space.
    pub encoding: QueryEncoding,
    /// Input of the image tower.
    pub preprocessing: Preprocessing,
}

/// Shares of the three ways to choose a negative; they sum to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NegativeMix {
    /// A random multi-hot vector: mostly easy and implausible, kept to show that.
    pub random: f32,
    /// The vector of another training image, different from the positive.
    pub other: f32,
    /// The positive with 1–3 attributes flipped; at most 1/3.
    pub flipped: f32,
}

impl NegativeMix {
    /// The article's mix: two of another image to one flipped.
    pub const ARTICLE: Self = Self { random: 0.0, other: 2.0 / 3.0, flipped: 1.0 / 3.0 };
}

/// AdamW as in PyTorch (decoupled weight decay).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdamWSettings {
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay per step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { lr: 2e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// SGD with Nesterov momentum as in PyTorch (no dampening; the decay is added to the gradient).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SgdSettings {
    /// Peak learning rate.
    pub lr: f64,
    /// Momentum; 0 is plain SGD.
    pub momentum: f64,
    /// Share of the weights that is added to their gradient.
    pub weight_decay: f64,
}

impl Default for SgdSettings {
    fn default() -> Self {
        Self { lr: 0.1, momentum: 0.9, weight_decay: 1e-4 }
    }
}

/// What turns gradients into steps. New ones come last: messages count them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum Optimizer {
    /// AdamW.
    #[serde(rename = "adamw")]
    AdamW(AdamWSettings),
    /// SGD with Nesterov momentum.
    #[serde(rename = "sgd")]
    Sgd(SgdSettings),
    /// Several of them apart, brought together after every round.
    #[serde(rename = "rounds")]
    Rounds(RoundSettings),
}

impl Optimizer {
    /// What turns a batch's gradients into a step.
    pub fn inner(&self) -> InnerOptimizer {
        match *self {
            Self::AdamW(settings) => InnerOptimizer::AdamW(settings),
            Self::Sgd(settings) => InnerOptimizer::Sgd(settings),
            Self::Rounds(RoundSettings { inner, .. }) => inner,
        }
    }

    /// Peak learning rate.
    pub fn lr(&self) -> f64 {
        match self.inner() {
            InnerOptimizer::AdamW(settings) => settings.lr,
            InnerOptimizer::Sgd(settings) => settings.lr,
        }
    }

    /// How slots are brought together; none of a training whose rounds have one slot, which hands its checkpoint on as it is.
    pub fn rounds(&self) -> Option<&RoundSettings> {
        match self {
            Self::AdamW(_) | Self::Sgd(_) => None,
            Self::Rounds(rounds) => Some(rounds),
        }
    }

    /// K, slots of a round.
    pub fn slots(&self) -> u32 {
        self.rounds().map_or(1, |rounds| rounds.slots.max(1))
    }
}

/// What turns the gradients of one slot into steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub enum InnerOptimizer {
    /// AdamW.
    #[serde(rename = "adamw")]
    AdamW(AdamWSettings),
    /// SGD with Nesterov momentum.
    #[serde(rename = "sgd")]
    Sgd(SgdSettings),
}

impl From<InnerOptimizer> for Optimizer {
    fn from(inner: InnerOptimizer) -> Self {
        match inner {
            InnerOptimizer::AdamW(settings) => Self::AdamW(settings),
            InnerOptimizer::Sgd(settings) => Self::Sgd(settings),
        }
    }
}

/// Training by several workers: K slots a round start from one checkpoint, learn apart from samples of their own, and an outer step
/// makes the next checkpoint of what they learned: Δ = mean(θ′) − θ, v ← μ v + Δ, θ ← θ + lr (Δ + μ v).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RoundSettings {
    /// K, slots of a round.
    pub slots: u32,
    /// The optimizer of each slot, whose state the slot keeps from round to round.
    pub inner: InnerOptimizer,
    /// Learning rate of the outer step; 1 without momentum takes the mean as it is.
    pub outer_lr: f64,
    /// Nesterov momentum μ of the outer step; 0 = none.
    pub outer_momentum: f64,
    /// Fewest slots that an outer step takes. Below K a late slot is left out.
    pub quorum: u32,
    /// For so long after its start a round waits for more slots than the quorum, seconds.
    pub deadline_s: u32,
}

impl RoundSettings {
    /// Slots whose mean is the next checkpoint, all of them waited for.
    pub fn averaging(slots: u32, inner: InnerOptimizer) -> Self {
        Self { slots, inner, outer_lr: 1.0, outer_momentum: 0.0, quorum: slots, deadline_s: 0 }
    }

    /// Whether a round may do without some of its slots.
    pub fn may_leave_out(&self) -> bool {
        self.quorum < self.slots
    }

    /// Whether nothing is brought together: one slot, taken as it is.
    pub fn is_plain(&self) -> bool {
        *self == Self::averaging(1, self.inner)
    }
}

/// How the backbone learns beside the head and the attribute tower.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackboneSettings {
    /// Its learning rate as a multiple of the others'.
    pub lr_factor: f64,
    /// Epochs at the start in which it does not learn; its batch norms use their running statistics then.
    pub frozen_epochs: u32,
}

impl Default for BackboneSettings {
    fn default() -> Self {
        Self { lr_factor: 1.0, frozen_epochs: 0 }
    }
}

/// Weights that a training starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InitWeights {
    /// Where they came from, for people: a file, a URL, a model. No part of what names a job.
    pub source: String,
    /// The model of ours that they belong to; its head and its attribute tower are taken too where they fit.
    pub model: Option<JobId>,
    /// The weights as safetensors, in the store.
    pub weights: ObjectRef,
}

/// torchvision's `RandomResizedCrop`: a part of the image of random area and shape becomes the input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResizedCrop {
    /// Smallest and largest area as a share of the image's.
    pub scale: [f32; 2],
    /// Smallest and largest width through height.
    pub ratio: [f32; 2],
}

impl ResizedCrop {
    /// torchvision's ratios, with areas from `scale` to all of the image.
    pub fn from_scale(scale: f32) -> Self {
        Self { scale: [scale, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

/// torchvision's `ColorJitter`: each factor is drawn from 1 ± its setting, the hue's shift from ± its setting; 0 = off.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ColourJitter {
    /// Towards black or beyond.
    pub brightness: f32,
    /// Towards the mean grey or away from it.
    pub contrast: f32,
    /// Towards grey or away from it.
    pub saturation: f32,
    /// Shift of the hue as a share of the circle, at most 0.5.
    pub hue: f32,
}

impl ColourJitter {
    /// Whether nothing changes.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

/// Which round's weights become the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The last one's.
    Last,
    /// Those with the best mAP on the validation split; the earlier of two that are equal.
    Best,
}

/// What a training makes small.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// The article's: an image, a query that it satisfies and one that it contradicts.
    Triplet,
    /// Triplets within the batch, for every image that satisfies a query the nearest one behind it that does not.
    SemiHardTriplet,
    /// All triplets within the batch that are inside the margin.
    AllTriplets,
    /// InfoNCE of each query over the images of the batch, each that satisfies it a positive.
    InfoNce {
        /// Divides the cosines.
        temperature: f32,
    },
    /// Binary cross-entropy on the logits, unknown labels left out; with [`QueryEncoding::LogProbability`] and only there.
    BinaryCrossEntropy,
}

/// Everything that decides a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TrainSettings {
    /// Passes over the training split.
    pub epochs: u32,
    /// Triplets per step, B.
    pub batch_size: u32,
    /// H, optimizer steps of one round.
    pub inner_steps: u32,
    /// Margin m of the triplet loss.
    pub margin: f32,
    /// How negatives are chosen.
    pub negatives: NegativeMix,
    /// Share of training queries that keep only a random few of their attributes (three-state only).
    pub masked_share: f32,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Largest norm of all gradients together, as PyTorch's `clip_grad_norm_`; 0 = off.
    pub clip_norm: f64,
    /// Share of all steps in which the learning rate rises linearly from 0.
    pub warmup_share: f32,
    /// How the backbone learns.
    pub backbone: BackboneSettings,
    /// Weights to start from; fresh ones without.
    pub init: Option<InitWeights>,
    /// Mirror at random.
    pub mirror: bool,
    /// Crop at random: largest shift as a share of the side (0 = off).
    pub random_crop: f32,
    /// Crop at random and resize, instead of `random_crop`.
    pub resized_crop: Option<ResizedCrop>,
    /// Change colours at random.
    pub colour: ColourJitter,
    /// Measure loss and mAP on the validation split after every so many rounds.
    pub validate_every: u32,
    /// Which round becomes the model.
    pub keep: Keep,
    /// Stop after so many validations in a row without a better mAP; 0 = never.
    pub patience: u32,
    /// Seed of weights, order, augmentation and negatives.
    pub seed: u64,
    /// What it makes small.
    pub loss: Loss,
    /// Decay per step of an exponential moving average of the weights, which is then what is measured and served; 0 = off.
    pub average_decay: f64,
    /// Whether an image's embedding is that of itself and its mirror image together, at twice the cost.
    pub embed_mirrored: bool,
}

impl TrainSettings {
    /// The recipe `joint`: a log-probability head trained with binary cross-entropy.
    pub fn joint() -> Self {
        Self { loss: Loss::BinaryCrossEntropy, ..Self::default() }
    }
}

/// The recipe `article`, as trainings were before there were recipes.
impl Default for TrainSettings {
    fn default() -> Self {
        Self {
            epochs: 15,
            batch_size: 128,
            inner_steps: 50,
            margin: 0.1,
            negatives: NegativeMix::ARTICLE,
            masked_share: 0.9,
            optimizer: Optimizer::AdamW(AdamWSettings::default()),
            clip_norm: 0.0,
            warmup_share: 0.1,
            backbone: BackboneSettings::default(),
            init: None,
            mirror: true,
            random_crop: 0.1,
            resized_crop: None,
            colour: ColourJitter::default(),
            validate_every: 1,
            keep: Keep::Last,
            patience: 0,
            seed: 0,
            loss: Loss::Triplet,
            average_decay: 0.0,
            embed_mirrored: false,
        }
    }
}

/// Which queries an evaluation asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EvaluateSettings {
    /// Pairs of attributes, signs at random.
    pub pairs: u32,
    /// Triples of attributes, signs at random.
    pub triples: u32,
    /// Fewest relevant items of a query.
    pub min_relevant: u32,
    /// Seed of the query sets and of the bootstrap.
    pub seed: u64,
    /// Queries per task.
    pub queries_per_task: u32,
    /// Items whose every known label is asked for.
    pub full: u32,
    /// Images that are changed by one attribute.
    pub images: u32,
    /// How such a query treats its own image.
    pub image_edit: ImageEdit,
    /// Queries of the user's own.
    pub own: Option<BroughtQueries>,
    /// Of a pipeline: the mAP over the pooled singles, pairs and triples below which the gate refuses, whatever the comparison
    /// says; 0 = none.
    pub floor: f64,
}

impl Default for EvaluateSettings {
    fn default() -> Self {
        Self {
            pairs: 300,
            triples: 300,
            min_relevant: 5,
            seed: 0,
            queries_per_task: 170,
            full: 300,
            images: 300,
            image_edit: ImageEdit::HeldOut,
            own: None,
            floor: 0.0,
        }
    }
}

/// How a query "this image with one attribute changed" treats its own image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageEdit {
    /// The image leaves the gallery, and only an attribute that it has not is added, or one that it has removed.
    #[default]
    HeldOut,
    /// As the seed article's author did: the image stays in the gallery, and an attribute may be asked for that it has already.
    Author,
}

/// Queries that a user brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BroughtQueries {
    /// Where they came from, for people. No part of what names a job.
    pub source: String,
    /// The queries, in the store.
    pub object: ObjectRef,
}

/// Which rows of a dataset are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// For training.
    Train,
    /// For choosing between models.
    Validation,
    /// For the report.
    Test,
    /// All of them.
    All,
}

impl Split {
    /// Whether a row whose split column says `code` (0 train, 1 validation, 2 test) is meant.
    pub fn contains(self, code: u8) -> bool {
        match self {
            Self::Train => code == 0,
            Self::Validation => code == 1,
            Self::Test => code == 2,
            Self::All => code <= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(names: &[&str]) -> Vocabulary {
        Vocabulary { names: names.iter().map(|name| name.to_string()).collect() }
    }

    #[test]
    fn a_name_with_a_comma_wins_over_a_list() {
        let vocabulary = vocabulary(&["A", "A,B", "B", "C"]);
        assert_eq!(vocabulary.positions("A,B"), Ok(vec![1]));
        assert_eq!(vocabulary.positions(" b, A,"), Ok(vec![2, 0]));
        assert_eq!(vocabulary.positions("C,Zzzz"), Err("Zzzz"));
        assert_eq!(vocabulary.positions(" , "), Ok(vec![]));
    }

    #[test]
    fn case_does_not_matter_in_any_script() {
        let vocabulary = vocabulary(&["Größe", "Wavy_Hair", "ΟΔΟΣ"]);
        for (asked, position) in [("GRÖSSE", 0), ("größe", 0), ("wavy-hair", 1), ("Wavy hair", 1), ("οδος", 2)] {
            assert_eq!(vocabulary.position(asked), Some(position), "{asked}");
        }
    }
}
