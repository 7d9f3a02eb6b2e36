//! A whole network as one operation on candle's tape.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, Var, bail};

use super::{NetworkShape, NormStatistics, TrainNetwork};
use crate::nhwc::Isa;
use crate::storage::{Lent, cpu_slice, slice, with_slice};

/// A training network between candle tensors.
///
/// An operation on the tape has at most three arguments and a network a hundred, so only the stem's weight is one:
/// it leads the tape here. The gradients of all others wait in buffers of their own until
/// [`TapeNetwork::insert_gradients`] hands them out.
#[derive(Debug)]
pub struct TapeNetwork {
    parameters: Vec<Var>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    network: TrainNetwork,
    /// Counts forward passes: backward is for the last one only.
    passes: u64,
    /// Gradients of all parameters; their storage lives from step to step.
    gradients: Vec<Tensor>,
    /// The pass that they belong to.
    gradients_of: u64,
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct OnTape {
    /// `(B, F)`, on the tape.
    pub features: Tensor,
    /// What every norm saw, in the order of parameters.
    pub statistics: Vec<NormStatistics>,
}

impl TapeNetwork {
    /// For `parameters` on the CPU in the network's order.
    ///
    /// # Errors
    /// When there is no memory for the gradients.
    pub fn new(shape: NetworkShape, winograd: bool, parameters: Vec<Var>) -> Result<Self> {
        let gradients = parameters.iter().map(|p| p.as_detached_tensor().zeros_like()).collect::<Result<_>>()?;
        let network = TrainNetwork::new(shape, Isa::detect(), winograd);
        let state = State { network, passes: 0, gradients, gradients_of: 0 };
        Ok(Self { parameters, state: Arc::new(Mutex::new(state)) })
    }

    /// `(B, 3, H, W)` → `(B, F)` with the batch's statistics.
    ///
    /// # Errors
    /// When `images` is no `f32` tensor of this shape on the CPU, or leaves the last norm a single value per channel.
    pub fn forward(&self, images: &Tensor) -> Result<OnTape> {
        let op =
            WholeNetwork { parameters: self.parameters.clone(), state: Arc::clone(&self.state), pass: self.next() };
        let features = images.contiguous()?.apply_op2(self.parameters[0].as_tensor(), op)?;
        let statistics = lock(&self.state).network.statistics().cloned().collect();
        Ok(OnTape { features, statistics })
    }

    fn next(&self) -> u64 {
        let mut state = lock(&self.state);
        state.passes += 1;
        state.passes
    }

    /// Puts the gradients of every parameter into `store`, once candle's backward pass has been through it. They
    /// share memory with the next step's: use them before.
    ///
    /// # Errors
    /// When the last forward pass was not followed by a backward pass.
    pub fn insert_gradients(&self, store: &mut GradStore) -> Result<()> {
        let state = lock(&self.state);
        if state.gradients_of != state.passes || state.passes == 0 {
            bail!("network: gradients are asked for without a backward pass");
        }
        for (parameter, gradient) in self.parameters.iter().zip(&state.gradients) {
            store.insert(parameter, gradient.clone());
        }
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct WholeNetwork {
    parameters: Vec<Var>,
    state: Arc<Mutex<State>>,
    pass: u64,
}

impl WholeNetwork {
    /// Calls `f` with the values of all parameters.
    fn with_parameters<R>(&self, f: impl FnOnce(&[&[f32]]) -> R) -> Result<R> {
        let guards: Vec<_> = self.parameters.iter().map(|p| p.storage_and_layout()).collect();
        let values = guards.iter().map(|(storage, layout)| cpu_slice(storage, layout));
        Ok(f(&values.collect::<Result<Vec<_>>>()?))
    }
}

impl CustomOp2 for WholeNetwork {
    fn name(&self) -> &'static str {
        "likeness-network"
    }

    fn cpu_fwd(
        &self,
        images: &CpuStorage,
        layout: &Layout,
        _stem: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, channels, h, w) = layout.shape().dims4()?;
        let mut state = lock(&self.state);
        let shape = *state.network.shape();
        if channels != 3 || n * h * w == 0 {
            bail!("network: images of shape {:?} instead of (B, 3, H, W)", layout.shape());
        }
        if !shape.can_train(n, h, w) {
            bail!("network: training needs more than one value per channel, got {:?}", layout.shape());
        }
        let mut features = vec![0.0; n * shape.features()];
        let images = slice(images, layout)?;
        self.with_parameters(|parameters| state.network.forward(images, (n, h, w), parameters, &mut features))?;
        Ok((CpuStorage::F32(features), (n, shape.features()).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut state = lock(&self.state);
        if state.passes != self.pass {
            bail!("network: backward after another forward pass");
        }
        let State { network, gradients, .. } = &mut *state;
        let mut lent = gradients.iter().map(Lent::of).collect::<Result<Vec<_>>>()?;
        let mut buffers: Vec<&mut [f32]> = lent.iter_mut().map(|lent| &mut lent.values[..]).collect();
        with_slice(dy, |dy| self.with_parameters(|parameters| network.backward(dy, parameters, &mut buffers)))?;
        drop(lent);
        state.gradients_of = self.pass;
        // The store adds what it gets to zeros of its own; the rest comes by `insert_gradients`.
        let stem = state.gradients[0].clone();
        Ok((None, Some(stem)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::network::BlockKind;

    const SHAPE: NetworkShape = NetworkShape { kind: BlockKind::Basic, depths: [1, 1, 1, 1], width: 4 };

    fn network() -> Result<TapeNetwork> {
        let var = |dims: &[usize]| Var::from_tensor(&(Tensor::ones(dims, DType::F32, &Device::Cpu)? * 0.1)?);
        let units = super::super::shape::units(&SHAPE).0;
        let unit = |u: &crate::nhwc::ConvShape| {
            [var(&[u.c_out, u.c_in, u.kernel, u.kernel]), var(&[u.c_out]), var(&[u.c_out])]
        };
        TapeNetwork::new(SHAPE, false, units.iter().flat_map(unit).collect::<Result<_>>()?)
    }

    fn images(n: usize, px: usize) -> Result<Tensor> {
        let values = (0..n * 3 * px * px).map(|i| (i as f32).sin()).collect();
        crate::storage::tensor(values, (n, 3, px, px))
    }

    #[test]
    fn gradients_belong_to_the_last_pass_only() -> Result<()> {
        let network = network()?;
        let first = network.forward(&images(2, 32)?)?.features.sum_all()?;
        let second = network.forward(&images(2, 32)?)?.features.sum_all()?;
        assert!(first.backward().is_err(), "the buffers are the second pass's");
        let mut store = second.backward()?;
        network.insert_gradients(&mut store)?;
        assert!(network.parameters.iter().all(|p| store.get(p).is_some_and(|g| g.shape() == p.shape())));
        network.forward(&images(2, 32)?)?;
        assert!(network.insert_gradients(&mut store).is_err(), "no backward pass yet");
        Ok(())
    }

    #[test]
    fn what_cannot_be_normalised_is_refused() -> Result<()> {
        let network = network()?;
        assert!(network.forward(&images(1, 32)?).is_err(), "one value per channel");
        assert!(network.forward(&images(1, 33)?).is_ok());
        assert!(network.forward(&Tensor::zeros((2, 1, 32, 32), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
