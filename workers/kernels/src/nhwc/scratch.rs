//! Memory for intermediate values, kept per thread from call to call.

use std::cell::Cell;

/// Values of one cache line.
const LINE: usize = 16;

/// A buffer of the calling thread; nested uses name different ones.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// Sums of parts and the coefficients made from them, on the thread that starts an operation.
    Sums,
}

const SLOTS: usize = 1;

thread_local! {
    static BUFFERS: [Cell<Vec<f32>>; SLOTS] = const { [const { Cell::new(Vec::new()) }; SLOTS] };
}

/// Calls `f` with `len` values of unspecified contents that start on a cache line.
///
/// The buffer is out of its slot while `f` runs: a task of another operation that this thread picks up in between
/// finds the slot empty and makes its own.
pub(super) fn with_scratch<R>(slot: Slot, len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = BUFFERS.with(|buffers| buffers[slot as usize].take());
    if buffer.len() < len + LINE {
        buffer = vec![0.0; len + LINE];
    }
    let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
    let result = f(&mut buffer[start..start + len]);
    BUFFERS.with(|buffers| buffers[slot as usize].set(buffer));
    result
}
