//! A network that serves, between candle tensors.

use candle_core::{Result, Tensor, bail};

use super::{Folded, InferNetwork, NetworkShape};
use crate::nhwc::Isa;
use crate::storage::{cpu_slice, tensor, with_slice};

/// An [`InferNetwork`] that takes and returns tensors on the CPU, off the tape.
#[derive(Debug)]
pub struct FoldedNetwork {
    shape: NetworkShape,
    network: InferNetwork,
}

impl FoldedNetwork {
    /// For images of `(h, w)`. Every convolution comes with its norm, in the order of parameters: its weight, then
    /// the norm's weight, bias, running mean and running variance.
    ///
    /// # Errors
    /// When a tensor is not on the CPU, contiguous and `f32`.
    ///
    /// # Panics
    /// When a tensor has another shape than the network's.
    pub fn new(shape: NetworkShape, winograd: bool, size: (usize, usize), units: &[[Tensor; 5]]) -> Result<Self> {
        let guards: Vec<_> = units.iter().flatten().map(|t| t.storage_and_layout()).collect();
        let values = guards.iter().map(|(storage, layout)| cpu_slice(storage, layout)).collect::<Result<Vec<_>>>()?;
        let (units, _) = values.as_chunks();
        let folded: Vec<_> = units.iter().map(|unit| Folded::of(*unit)).collect();
        Ok(Self { shape, network: InferNetwork::new(shape, size, &folded, Isa::detect(), winograd) })
    }

    /// Height and width of the images that it takes.
    pub fn size(&self) -> (usize, usize) {
        self.network.size()
    }

    /// `(B, 3, H, W)` → `(B, F)`
    ///
    /// # Errors
    /// When `images` is no `f32` tensor of this shape on the CPU.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let (n, channels, h, w) = images.dims4()?;
        if (channels, h, w) != (3, self.size().0, self.size().1) {
            bail!(
                "network: images of shape {:?} instead of (B, 3, {}, {})",
                images.shape(),
                self.size().0,
                self.size().1
            );
        }
        let mut features = vec![0.0; n * self.shape.features()];
        with_slice(images, |images| {
            self.network.forward(images, &mut features);
            Ok(())
        })?;
        tensor(features, (n, self.shape.features()))
    }
}
