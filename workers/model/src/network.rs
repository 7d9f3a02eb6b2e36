//! A ResNet on the CPU as one operation, elsewhere layer by layer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use likeness_kernels::network::{FoldedNetwork, NetworkShape, TapeNetwork};

use crate::backbone::{Backbone, CpuCompute, Mode};
use crate::error::Result;
use crate::resnet::ResNet;
use crate::tensors::Builder;

/// The layers with their tensors, and the whole-network engines made of them when first used.
#[derive(Debug)]
pub(crate) struct Network {
    shape: NetworkShape,
    layers: ResNet,
    compute: CpuCompute,
    training: Mutex<Option<Arc<TapeNetwork>>>,
    /// Holds the weights packed: void once they change.
    inference: Mutex<Option<Arc<FoldedNetwork>>>,
}

impl Network {
    pub fn new(shape: NetworkShape, b: &mut Builder<'_>) -> Result<Self> {
        let layers = ResNet::new(&shape, b)?;
        Ok(Self {
            shape,
            layers,
            compute: CpuCompute::default(),
            training: Mutex::default(),
            inference: Mutex::default(),
        })
    }

    fn training(&self) -> Result<Arc<TapeNetwork>> {
        let mut engine = lock(&self.training);
        if let Some(engine) = &*engine {
            return Ok(Arc::clone(engine));
        }
        let parameters = self
            .layers
            .units()
            .flat_map(|unit| [&unit.conv.weight, &unit.norm.weight, &unit.norm.bias].map(Clone::clone));
        let new = TapeNetwork::new(self.shape, self.compute.winograd.in_training(), parameters.collect())?;
        Ok(Arc::clone(engine.insert(Arc::new(new))))
    }

    fn inference(&self, size: (usize, usize)) -> Result<Arc<FoldedNetwork>> {
        let mut engine = lock(&self.inference);
        if let Some(engine) = engine.as_ref().filter(|engine| engine.size() == size) {
            return Ok(Arc::clone(engine));
        }
        let tensors = self.layers.units().map(|unit| {
            let norm = &unit.norm;
            [&unit.conv.weight, &norm.weight, &norm.bias, &norm.running_mean, &norm.running_variance]
                .map(|var| var.as_detached_tensor())
        });
        let tensors: Vec<[Tensor; 5]> = tensors.collect();
        let new = FoldedNetwork::new(self.shape, self.compute.winograd.in_inference(), size, &tensors)?;
        Ok(Arc::clone(engine.insert(Arc::new(new))))
    }
}

impl Backbone for Network {
    fn features(&self) -> usize {
        self.shape.features()
    }

    fn forward(&self, images: &Tensor, mode: &mut Mode<'_>) -> Result<Tensor> {
        if !self.compute.whole_network || !images.device().is_cpu() {
            return self.layers.forward(images, mode);
        }
        let Mode::Train(statistics) = mode else {
            let (_, _, h, w) = images.dims4()?;
            return Ok(self.inference((h, w))?.forward(images)?);
        };
        let out = self.training()?.forward(images)?;
        for (unit, seen) in self.layers.units().zip(out.statistics) {
            let vector = |values: Vec<f32>| Tensor::from_vec(values, unit.norm.bias.dims(), &Device::Cpu);
            statistics.push(&unit.norm, vector(seen.mean)?, vector(seen.variance)?);
        }
        Ok(out.features)
    }

    fn insert_gradients(&self, store: &mut GradStore) -> Result<()> {
        match &*lock(&self.training) {
            Some(engine) => Ok(engine.insert_gradients(store)?),
            None => Ok(()),
        }
    }

    fn on_weights_changed(&self) {
        *lock(&self.inference) = None;
    }

    fn set_compute(&mut self, compute: CpuCompute) {
        self.compute = compute;
        *lock(&self.training) = None;
        *lock(&self.inference) = None;
    }
}

/// What a lock guards is replaced as a whole, so a panic elsewhere leaves nothing half done.
fn lock<T>(engine: &Mutex<T>) -> MutexGuard<'_, T> {
    engine.lock().unwrap_or_else(PoisonError::into_inner)
}
