//! Memory that starts on a cache line, and intermediate values kept per thread from call to call.

use std::cell::Cell;

/// Values of one cache line.
const LINE: usize = 16;

/// Values that start on a cache line: a vector load of them never touches two.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self { memory: vec![0.0; len + LINE], len }
    }

    /// Sets the length; what the values then are is unspecified. Memory is only ever gained.
    pub fn set_len(&mut self, len: usize) {
        if self.memory.len() < len + LINE {
            self.memory = vec![0.0; len + LINE];
        }
        self.len = len;
    }

    fn start(&self) -> usize {
        self.memory.as_ptr().align_offset(LINE * size_of::<f32>())
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        if self.len == 0 { &[] } else { &self.memory[self.start()..][..self.len] }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let start = self.start();
        if self.len == 0 { &mut [] } else { &mut self.memory[start..][..self.len] }
    }
}

/// A buffer of the calling thread; nested uses name different ones.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// Sums of parts and the coefficients made from them, on the thread that starts an operation.
    Sums,
    /// Input of a block of products, in the order in which they are made.
    Input,
    /// Second input, or output of a block of products.
    Output,
    /// Weights of a task that transforms its own.
    Weights,
}

const SLOTS: usize = 4;

thread_local! {
    static BUFFERS: [Cell<Buffer>; SLOTS] = const {
        [const { Cell::new(Buffer { memory: Vec::new(), len: 0 }) }; SLOTS]
    };
}

/// Calls `f` with `len` values of unspecified contents.
///
/// The buffer is out of its slot while `f` runs: a task of another operation that this thread picks up in between
/// finds the slot empty and makes its own.
pub(super) fn with_scratch<R>(slot: Slot, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFERS.with(|buffers| buffers[slot as usize].take());
    buffer.set_len(len);
    let result = f(&mut buffer);
    BUFFERS.with(|buffers| buffers[slot as usize].set(buffer));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_cache_line_and_copies_hold_the_same() {
        for len in [0, 1, 15, 16, 1000] {
            let mut buffer = Buffer::zeros(len);
            buffer.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
            let copy = buffer.clone();
            assert_eq!(buffer[..], copy[..]);
            assert!(len == 0 || (buffer.as_ptr().addr() | copy.as_ptr().addr()).is_multiple_of(64));
        }
    }

    #[test]
    fn nested_uses_of_a_slot_have_memory_of_their_own() {
        with_scratch(Slot::Sums, 8, |outer| {
            outer.fill(1.0);
            with_scratch(Slot::Sums, 8, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 8]);
        });
    }
}
