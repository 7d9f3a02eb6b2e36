//! What an image tower needs of a network: the interface behind which whole-network kernels stand.

use candle_core::Tensor;
use candle_core::backprop::GradStore;

use likeness_contract::settings::Architecture;
use likeness_kernels::network::NetworkShape;

use crate::error::Result;
use crate::layers::BatchStatistics;
use crate::network::Network;
use crate::tensors::Builder;

/// Whether a network learns or serves.
#[derive(Debug)]
pub enum Mode<'a> {
    /// On candle's tape; batch norms use the batch's own statistics and leave them here.
    Train(&'a mut BatchStatistics),
    /// Off the tape; batch norms use their running statistics.
    Eval,
}

/// Where 3×3 convolutions on the CPU go by Winograd's way: faster, its error ten times that of the matrix product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Winograd {
    /// Nowhere.
    Off,
    /// Where the model serves.
    Inference,
    /// In training too.
    #[default]
    On,
}

impl std::str::FromStr for Winograd {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "inference" => Ok(Self::Inference),
            "on" => Ok(Self::On),
            _ => Err(format!("`{text}` is neither off, inference nor on")),
        }
    }
}

impl Winograd {
    pub(crate) fn in_training(self) -> bool {
        self == Self::On
    }

    pub(crate) fn in_inference(self) -> bool {
        self != Self::Off
    }
}

/// How an image tower is computed on the CPU; elsewhere it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuCompute {
    /// As one operation; layer by layer otherwise.
    pub whole_network: bool,
    /// Of a whole network.
    pub winograd: Winograd,
}

impl Default for CpuCompute {
    fn default() -> Self {
        Self { whole_network: true, winograd: Winograd::default() }
    }
}

/// Images into features.
pub trait Backbone: std::fmt::Debug + Send + Sync {
    /// F, length of a feature vector.
    fn features(&self) -> usize;

    /// `(B, 3, H, W)` → `(B, F)`.
    ///
    /// In training mode the result stands on candle's tape, so that a loss computed from it reaches the
    /// backbone's parameters. Running statistics do not change here: whoever trains applies the ones that are
    /// left in the mode, in the order of the forward passes, once the loss is known to be finite.
    ///
    /// # Errors
    /// When the input has another shape or the device fails.
    fn forward(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor>;

    /// Adds to `store` the gradients that the tape could not carry. Call it after each backward pass; what it adds
    /// is valid until the next one.
    ///
    /// # Errors
    /// When no backward pass followed the last forward pass in training mode.
    fn insert_gradients(&self, store: &mut GradStore) -> Result<()>;

    /// Forgets what was made of the tensors as they were. Call it whenever one has changed.
    fn on_weights_changed(&self);

    /// Chooses how to compute.
    fn set_compute(&mut self, compute: CpuCompute);
}

/// The backbone of an architecture, its tensors named `image.…`.
pub(crate) fn build(architecture: Architecture, builder: &mut Builder<'_>) -> Result<Box<dyn Backbone>> {
    let shape = match architecture {
        Architecture::CnnS => NetworkShape::resnet18(32),
        Architecture::ResNet18 => NetworkShape::resnet18(64),
        Architecture::ResNet34 => NetworkShape::resnet34(64),
        Architecture::ResNet50 => NetworkShape::resnet50(64),
        Architecture::ResNet101 => NetworkShape::resnet101(64),
    };
    Ok(Box::new(Network::new(shape, builder)?))
}
