//! The tensors of a model by name: drawn from a seed or read from safetensors.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};

use crate::error::{Error, Result};
use crate::init::Init;

/// Suffix of PyTorch's count of batches, which a fixed momentum does not need: skipped when read.
const BATCH_COUNT: &str = "num_batches_tracked";
/// Most names that an error lists of each kind.
const LISTED: usize = 8;

/// Everything that a model consists of.
#[derive(Debug)]
pub(crate) struct Tensors {
    /// What the optimizer changes, in the order of the layers.
    pub parameters: Vec<(String, Var)>,
    /// Running statistics of the batch norms.
    pub statistics: Vec<(String, Var)>,
}

impl Tensors {
    /// All of them with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().chain(&self.statistics).map(|(name, var)| (name.as_str(), var.as_tensor()))
    }
}

/// A tensor as it stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors of a file by name.
pub(crate) type Stored = BTreeMap<String, StoredTensor>;

enum Source {
    Seed(u64),
    /// Every tensor.
    Stored(Stored),
    /// Some tensors; the others from the seed.
    Started(u64, Stored),
}

/// Hands layers their tensors, and keeps a list of them.
pub(crate) struct Builder<'a> {
    source: Source,
    device: &'a Device,
    tensors: Tensors,
    missing: Vec<String>,
    wrong: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Draws every tensor.
    pub fn fresh(seed: u64, device: &'a Device) -> Self {
        Self::new(Source::Seed(seed), device)
    }

    /// Takes every tensor out of `stored`.
    pub fn stored(stored: Stored, device: &'a Device) -> Self {
        Self::new(Source::Stored(stored), device)
    }

    /// Takes what `stored` has and draws the others.
    pub fn started(seed: u64, stored: Stored, device: &'a Device) -> Self {
        Self::new(Source::Started(seed, stored), device)
    }

    fn new(source: Source, device: &'a Device) -> Self {
        let tensors = Tensors { parameters: Vec::new(), statistics: Vec::new() };
        Self { source, device, tensors, missing: Vec::new(), wrong: Vec::new() }
    }

    /// A tensor that is trained.
    pub fn parameter(&mut self, name: String, shape: &[usize], init: Init) -> Result<Var> {
        let var = self.var(&name, shape, init)?;
        self.tensors.parameters.push((name, var.clone()));
        Ok(var)
    }

    /// A running statistic of a batch norm.
    pub fn statistic(&mut self, name: String, channels: usize, value: f32) -> Result<Var> {
        let var = self.var(&name, &[channels], Init::Constant(value))?;
        self.tensors.statistics.push((name, var.clone()));
        Ok(var)
    }

    fn var(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Var> {
        let values = match &mut self.source {
            Source::Seed(seed) => init.values(*seed, name, shape),
            Source::Started(seed, stored) if !stored.contains_key(name) => init.values(*seed, name, shape),
            Source::Stored(stored) | Source::Started(_, stored) => match stored.remove(name) {
                Some(tensor) if tensor.shape == shape => tensor.values,
                other => {
                    self.note(name, shape, other);
                    vec![0.0; shape.iter().product()]
                }
            },
        };
        Ok(Var::from_vec(values, shape, self.device)?)
    }

    /// Remembers what is wrong; [`Builder::finish`] says all of it at once.
    fn note(&mut self, name: &str, shape: &[usize], found: Option<StoredTensor>) {
        match found {
            Some(found) => self.wrong.push(format!("`{name}` is {:?} instead of {shape:?}", found.shape)),
            None => self.missing.push(format!("`{name}`")),
        }
    }

    /// The list, once every layer has its tensors.
    ///
    /// # Errors
    /// Names what is missing, of another shape, or of no use.
    pub fn finish(self) -> Result<Tensors> {
        let unexpected = match self.source {
            Source::Seed(_) => Vec::new(),
            Source::Stored(rest) | Source::Started(_, rest) => {
                rest.into_keys().filter(|name| !name.ends_with(BATCH_COUNT)).collect()
            }
        };
        let unexpected: Vec<_> = unexpected.iter().map(|name| format!("`{name}`")).collect();
        let complaints = [("missing", self.missing), ("of another shape", self.wrong), ("unexpected", unexpected)];
        let complaints: Vec<_> = complaints.iter().filter_map(|(what, names)| complaint(what, names)).collect();
        if complaints.is_empty() {
            return Ok(self.tensors);
        }
        Err(Error::mismatch(format!("the weights are not those of this model: {}", complaints.join("; "))))
    }
}

fn complaint(what: &str, names: &[String]) -> Option<String> {
    let more = names.len().saturating_sub(LISTED);
    let listed = names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
    match (names.len(), more) {
        (0, _) => None,
        (n, 0) => Some(format!("{n} {what}: {listed}")),
        (n, more) => Some(format!("{n} {what}: {listed} and {more} more")),
    }
}
