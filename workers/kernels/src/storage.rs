//! From candle's storage to plain slices and back.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// The elements of a contiguous `f32` tensor on the CPU.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("expected f32, got {:?}", storage_dtype(storage)) };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// The elements of a contiguous `f32` tensor, which must be on the CPU.
pub(crate) fn cpu_slice<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(cpu) => slice(cpu, layout),
        _ => bail!("expected a tensor on the cpu"),
    }
}

/// Calls `f` with the elements of `tensor`, copied first only if it is not contiguous.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    f(cpu_slice(&storage, layout)?)
}

/// A CPU tensor that owns `values`.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// Whether the fast path applies.
pub(crate) fn on_cpu(tensor: &Tensor) -> bool {
    tensor.device().is_cpu()
}

/// The values of a tensor, out of its storage for as long as this lives, so that many can be written at once. The
/// tensor is empty meanwhile.
#[derive(Debug)]
pub(crate) struct Lent<'a> {
    tensor: &'a Tensor,
    pub values: Vec<f32>,
}

impl<'a> Lent<'a> {
    /// # Errors
    /// When it is no whole `f32` tensor on the CPU.
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let swap = Swap::default();
        tensor.inplace_op1(&swap)?;
        Ok(Self { tensor, values: swap.into_inner() })
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let back = Swap { values: Mutex::new(std::mem::take(&mut self.values)), is_return: true };
        // The same exchange went well in the other direction.
        let _ = self.tensor.inplace_op1(&back);
    }
}

/// Exchanges the values of a tensor and of a vector.
#[derive(Default)]
struct Swap {
    values: Mutex<Vec<f32>>,
    is_return: bool,
}

impl Swap {
    fn into_inner(self) -> Vec<f32> {
        self.values.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InplaceOp1 for Swap {
    fn name(&self) -> &'static str {
        "likeness-swap"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { bail!("expected f32, got {:?}", storage_dtype(storage)) };
        let whole = layout.contiguous_offsets() == Some((0, values.len()));
        if !whole && !self.is_return {
            bail!("expected a tensor with a storage of its own, got {layout:?}");
        }
        std::mem::swap(values, &mut *self.values.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_values_come_back_changed() -> Result<()> {
        let t = tensor(vec![1.0, 2.0], 2)?;
        Lent::of(&t)?.values[1] = 5.0;
        assert_eq!(t.to_vec1::<f32>()?, [1.0, 5.0]);
        assert!(Lent::of(&t.narrow(0, 1, 1)?).is_err(), "part of a storage");
        assert_eq!(t.to_vec1::<f32>()?, [1.0, 5.0]);
        Ok(())
    }
}
