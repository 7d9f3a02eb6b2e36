//! Weights and checkpoints as safetensors.
//!
//! A file of weights holds every tensor of the model under its PyTorch name. A checkpoint holds the same, and per
//! parameter the optimizer's state (`adamw.first.<name>` and `adamw.second.<name>`, or `sgd.momentum.<name>`),
//! where an average of the weights is kept that (`average.<name>`), and `step` (one U64): how many optimizer steps are behind it. The bytes are a function of the values alone: tensors are sorted, the only metadata is
//! `format: pt`, and reading and writing again gives the same bytes.
//!
//! Where slots are brought together, a checkpoint is cut in two: weights, average and `step`, which all slots of a round
//! start from, and the optimizer's state with the `step` that it has come to, which each slot keeps.

use std::collections::HashMap;

use candle_core::Tensor;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::average;
use crate::error::{Error, Result};
use crate::optimizer::{self, Optimizer};
use crate::tensors::{Stored, StoredTensor, Tensors};

const STEP: &str = "step";

/// What a file holds.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Its tensors.
    pub tensors: Stored,
    /// Optimizer steps behind it; none of a file of weights.
    pub step: Option<u64>,
}

/// Bytes of a file of weights.
pub(crate) fn write_weights(tensors: &Tensors) -> Result<Vec<u8>> {
    let mut file = File::default();
    tensors.iter().try_for_each(|(name, tensor)| file.add(name.to_owned(), tensor))?;
    file.write()
}

/// Bytes of a checkpoint.
pub(crate) fn write_checkpoint(
    tensors: &Tensors,
    optimizer: &Optimizer,
    average: &[(String, Tensor)],
    step: u64,
) -> Result<Vec<u8>> {
    let mut file = File::default();
    tensors.iter().try_for_each(|(name, tensor)| file.add(name.to_owned(), tensor))?;
    optimizer.state(tensors)?.iter().chain(average).try_for_each(|(name, tensor)| file.add(name.clone(), tensor))?;
    file.add_step(step);
    file.write()
}

/// Bytes of what all slots of a round start from.
pub(crate) fn write_theta(tensors: &Tensors, average: &[(String, Tensor)], step: u64) -> Result<Vec<u8>> {
    let mut file = File::default();
    tensors.iter().try_for_each(|(name, tensor)| file.add(name.to_owned(), tensor))?;
    average.iter().try_for_each(|(name, tensor)| file.add(name.clone(), tensor))?;
    file.add_step(step);
    file.write()
}

/// Bytes of what a slot's optimizer remembers after so many steps of its own.
pub(crate) fn write_state(tensors: &Tensors, optimizer: &Optimizer, learned: u64) -> Result<Vec<u8>> {
    let mut file = File::default();
    optimizer.state(tensors)?.iter().try_for_each(|(name, tensor)| file.add(name.clone(), tensor))?;
    file.add_step(learned);
    file.write()
}

/// Reads what either of them wrote, or PyTorch. Numbers of 16 bits are widened, which changes none of them.
///
/// # Errors
/// `Corrupt` for what is no safetensors, is cut short or holds other than `f32`, `f16` or `bf16`; `NotFinite` names the
/// tensor.
pub(crate) fn read(bytes: &[u8]) -> Result<Contents> {
    let corrupt = |e| Error::corrupt("the weights are no intact safetensors").because(e);
    let file = SafeTensors::deserialize(bytes).map_err(corrupt)?;
    let mut contents = Contents { tensors: Stored::new(), step: None };
    for (name, view) in file.tensors() {
        match view.dtype() {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => {
                contents.tensors.insert(name.clone(), stored(&name, &view)?);
            }
            Dtype::U64 if name == STEP => contents.step = Some(step(&view)?),
            Dtype::I64 if name.ends_with("num_batches_tracked") => {}
            other => return Err(Error::corrupt(format!("tensor `{name}` is {other:?} instead of F32, F16 or BF16"))),
        }
    }
    Ok(contents)
}

fn stored(name: &str, view: &TensorView<'_>) -> Result<StoredTensor> {
    let (data, halves) = (view.data(), view.data().as_chunks::<2>().0);
    let values: Vec<f32> = match view.dtype() {
        Dtype::F16 => halves.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => halves.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    };
    check_finite(name, &values)?;
    Ok(StoredTensor { shape: view.shape().to_vec(), values })
}

fn step(view: &TensorView<'_>) -> Result<u64> {
    let bytes = view.data().try_into().map_err(|_| Error::corrupt(format!("`{STEP}` is not one number")))?;
    Ok(u64::from_le_bytes(bytes))
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(value) => Err(Error::not_finite(format!("tensor `{name}` holds {value}"))),
        None => Ok(()),
    }
}

/// Splits the names that only a checkpoint has from those of the model.
pub(crate) fn split_state(stored: Stored) -> (Stored, Stored) {
    stored.into_iter().partition(|(name, _)| !optimizer::is_state(name) && !average::is_state(name))
}

/// Bytes of a file of the given tensors, and of a count of steps.
pub(crate) fn write_stored(stored: &Stored, step: Option<u64>) -> Result<Vec<u8>> {
    let mut file = File::default();
    stored.iter().try_for_each(|(name, tensor)| file.add_values(name.clone(), &tensor.shape, &tensor.values))?;
    if let Some(step) = step {
        file.add_step(step);
    }
    file.write()
}

#[derive(Default)]
struct File {
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl File {
    fn add(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        self.add_values(name, tensor.dims(), &tensor.flatten_all()?.to_vec1::<f32>()?)
    }

    fn add_values(&mut self, name: String, shape: &[usize], values: &[f32]) -> Result<()> {
        check_finite(&name, values)?;
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.entries.push(Entry { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes });
        Ok(())
    }

    fn add_step(&mut self, step: u64) {
        let bytes = step.to_le_bytes().to_vec();
        self.entries.push(Entry { name: STEP.into(), dtype: Dtype::U64, shape: Vec::new(), bytes });
    }

    fn write(&self) -> Result<Vec<u8>> {
        let invalid = |e| Error::corrupt("the tensors can't be written as safetensors").because(e);
        let mut views = Vec::new();
        for Entry { name, dtype, shape, bytes } in &self.entries {
            views.push((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(invalid)?));
        }
        // One entry only: the order of more would differ from run to run.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata)).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dtype: Dtype, bytes: &[u8]) -> Vec<u8> {
        let view = TensorView::new(dtype, vec![3], bytes).unwrap();
        safetensors::serialize([("w", view)], None).unwrap()
    }

    #[test]
    fn numbers_of_16_bits_are_widened() {
        let values = [1.5f32, -0.25, 65_504.0];
        let f16: Vec<u8> = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(read(&file(Dtype::F16, &f16)).unwrap().tensors["w"].values, values);
        let values = [1.5f32, -0.25, 3.0e38];
        let bf16: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        let read_back = read(&file(Dtype::BF16, &bf16)).unwrap().tensors["w"].values.clone();
        assert_eq!(read_back[..2], values[..2]);
        assert_eq!(read_back[2], half::bf16::from_f32(values[2]).to_f32());
    }

    #[test]
    fn infinities_and_other_types_are_refused_by_name() {
        let infinite: Vec<u8> = [f32::INFINITY; 3].iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        assert!(read(&file(Dtype::F16, &infinite)).unwrap_err().to_string().contains("`w`"));
        let error = read(&file(Dtype::F64, &[0; 24])).unwrap_err().to_string();
        assert!(error.contains("`w` is F64 instead of F32, F16 or BF16"), "{error}");
    }
}
