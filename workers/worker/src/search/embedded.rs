//! Embeddings of query terms that a root has in memory.
//!
//! A term's embedding depends on the weights and on what is asked, a stored item's on the generation; both are part of
//! the key, so nothing here can be stale. Two halves of bounded size: what is used moves to the young one; when that is
//! full it becomes the old one, and what was not used for so long is forgotten.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use likeness_contract::ids::Digest;
use likeness_contract::jobs::GenerationRef;

use super::holdings::Kit;
use super::query::Input;

/// Terms in each half: with 300 dimensions 1,200 bytes each.
const HALF: usize = 4096;

/// What a term's embedding depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// Weights, and what goes into one of their towers.
    Computed(Digest, Digest),
    /// An item of a generation.
    Stored(GenerationRef, String),
}

impl Key {
    /// None for a term that is its own embedding, and for one that nothing can embed.
    pub fn of(kit: &Kit, input: &Input) -> Option<Self> {
        let computed = |input: Digest| Some(Self::Computed(kit.model.as_ref()?.manifest.weights.digest, input));
        match input {
            Input::Attributes(values) => {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                computed(Digest::of(&[b"attributes ".as_slice(), &bytes].concat()))
            }
            Input::Image(bytes) => computed(Digest::of(&[b"image ".as_slice(), bytes].concat())),
            Input::Item(item) => Some(Self::Stored(kit.generation.generation.clone(), item.clone())),
            Input::Vector(_) => None,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Embedded {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<Key, Arc<[f32]>>,
    old: HashMap<Key, Arc<[f32]>>,
}

impl Embedded {
    /// The embedding of a term.
    pub fn get(&self, key: &Key) -> Option<Arc<[f32]>> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = halves.young.get(key) {
            return Some(Arc::clone(found));
        }
        let (key, found) = halves.old.remove_entry(key)?;
        halves.put(key, Arc::clone(&found));
        Some(found)
    }

    /// A term was embedded.
    pub fn put(&self, key: Key, embedding: Arc<[f32]>) {
        self.halves.lock().unwrap_or_else(PoisonError::into_inner).put(key, embedding);
    }
}

impl Halves {
    fn put(&mut self, key: Key, embedding: Arc<[f32]>) {
        if self.young.len() >= HALF {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, embedding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        let digest = Digest::of(&number.to_le_bytes());
        Key::Computed(Digest::of(b"weights"), digest)
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let embedded = Embedded::default();
        let put = |number: usize| embedded.put(key(number), Arc::from([number as f32]));
        put(0);
        put(1);
        for number in 2..3 * HALF {
            put(number);
            assert_eq!(embedded.get(&key(0)).as_deref(), Some([0.0].as_slice()));
        }
        assert!(embedded.get(&key(1)).is_none());
        let halves = embedded.halves.lock().unwrap();
        assert!(halves.young.len() <= HALF && halves.old.len() <= HALF);
    }
}
