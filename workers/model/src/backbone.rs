//! What an image tower needs of a network: the interface behind which faster whole-network kernels can stand.

use candle_core::Tensor;

use likeness_contract::settings::Architecture;

use crate::error::Result;
use crate::layers::BatchStatistics;
use crate::resnet::ResNet;
use crate::tensors::Builder;

/// Whether a network learns or serves.
#[derive(Debug)]
pub enum Mode<'a> {
    /// On candle's tape; batch norms use the batch's own statistics and leave them here.
    Train(&'a mut BatchStatistics),
    /// Off the tape; batch norms use their running statistics.
    Eval,
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
}

/// The backbone of an architecture, its tensors named `image.…`.
pub(crate) fn build(architecture: Architecture, builder: &mut Builder<'_>) -> Result<Box<dyn Backbone>> {
    let backbone = match architecture {
        Architecture::CnnS => ResNet::resnet18(32, builder)?,
        Architecture::ResNet18 => ResNet::resnet18(64, builder)?,
        Architecture::ResNet50 => ResNet::resnet50(64, builder)?,
    };
    Ok(Box::new(backbone))
}
