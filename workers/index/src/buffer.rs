//! Memory of shards: zeroed, aligned to cache lines, on huge pages where the system has them; or a part of a file that
//! is mapped and only read.
//!
//! A scan reads all of it, and candidates are read in any order: with small pages the translation of addresses
//! would cost more than the reading.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::ptr::NonNull;

use memmap2::{Mmap, MmapOptions};

use crate::error::{Error, Result};

/// f32 values of one cache line of 64 bytes.
pub(crate) const LINE: usize = 16;
const LINE_BYTES: usize = 64;
/// Bytes from which huge pages are asked for, and to whose multiples such memory is aligned.
#[cfg(target_os = "linux")]
const HUGE_BYTES: usize = 2 << 20;

/// Bytes that start on a cache line; those that are allocated begin as zeros.
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
    owner: Owner,
}

/// What the bytes lie in.
enum Owner {
    Allocated(NonNull<u8>, Layout),
    Mapped(Mmap),
}

// SAFETY: a `Memory` owns its bytes, like a `Vec<u8>`; those of a map are only read.
unsafe impl Send for Memory {}
// SAFETY: as above; shared borrows only read.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Result<Self> {
        // A small alignment lets the allocator hand out fresh pages, which are zero before anybody touches them.
        let too_large = || Error::memory(len);
        let align = alignment(len);
        let padded = len.checked_add(align).ok_or_else(too_large)?;
        let layout = Layout::from_size_align(padded, 16).map_err(|_| too_large())?;
        // SAFETY: the layout has at least `align` bytes, so it is not empty.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(too_large)?;
        let offset = at.as_ptr().addr().next_multiple_of(align) - at.as_ptr().addr();
        // SAFETY: at most `align - 1` of the `len + align` bytes are left out.
        let start = unsafe { at.add(offset) };
        let memory = Self { start, len, owner: Owner::Allocated(at, layout) };
        memory.ask_for_huge_pages();
        Ok(memory)
    }

    /// A part of a file that starts on a page, without reading it.
    ///
    /// # Safety
    /// Nobody changes or shortens the file as long as the result lives.
    pub unsafe fn mapped(file: &File, offset: u64, len: usize) -> std::io::Result<Self> {
        // SAFETY: the caller's promise.
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file)? };
        let start = NonNull::new(map.as_ptr().cast_mut()).expect("a map has an address");
        if !start.as_ptr().addr().is_multiple_of(LINE_BYTES) {
            return Err(std::io::Error::other("a map that does not start on a cache line"));
        }
        Ok(Self { start, len, owner: Owner::Mapped(map) })
    }

    /// Whether the bytes lie in a file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }

    /// Says that single rows will be read, in any order; a hint.
    #[cfg(unix)]
    pub fn expect_any_order(&self) {
        if let Owner::Mapped(map) = &self.owner {
            let _ = map.advise(memmap2::Advice::Random);
        }
    }

    #[cfg(not(unix))]
    pub fn expect_any_order(&self) {}

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` were allocated and zeroed, or mapped, and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Panics for bytes of a file.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(!self.is_mapped(), "a map is only read");
        // SAFETY: as in `bytes`, allocated; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    pub fn floats(&self) -> &[f32] {
        // SAFETY: as in `bytes`; the start is aligned to 64 bytes, and every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.len / 4) }
    }

    /// Panics for bytes of a file.
    pub fn floats_mut(&mut self) -> &mut [f32] {
        assert!(!self.is_mapped(), "a map is only read");
        // SAFETY: as in `floats`, allocated; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.len / 4) }
    }

    /// A hint: without it everything works, only slower.
    #[cfg(target_os = "linux")]
    fn ask_for_huge_pages(&self) {
        let whole = self.len / HUGE_BYTES * HUGE_BYTES;
        if whole > 0 {
            // SAFETY: the range is inside the allocation and starts on a huge page; the advice changes no content.
            unsafe {
                libc::madvise(self.start.as_ptr().cast(), whole, libc::MADV_HUGEPAGE);
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn ask_for_huge_pages(&self) {}
}

#[cfg(target_os = "linux")]
fn alignment(len: usize) -> usize {
    if len >= HUGE_BYTES { HUGE_BYTES } else { LINE_BYTES }
}

#[cfg(not(target_os = "linux"))]
fn alignment(_: usize) -> usize {
    LINE_BYTES
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Owner::Allocated(at, layout) = &self.owner {
            // SAFETY: `at` was allocated with `layout`, and nothing borrows it any more.
            unsafe { dealloc(at.as_ptr(), *layout) };
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("bytes", &self.len).finish_non_exhaustive()
    }
}

/// N rows of D values: they start on a cache line and are padded with zeros to whole lines.
///
/// The padding lets kernels run without tails: a padded query has zeros at the same places, so that a padded
/// d² is the d² of the rows.
#[derive(Debug)]
pub(crate) struct Embeddings {
    memory: Memory,
    dim: usize,
    stride: usize,
}

impl Embeddings {
    /// Rows of `dim` values with their padding, as [`Self::bytes_of`] has them.
    pub fn of(memory: Memory, dim: usize) -> Self {
        Self { memory, dim, stride: dim.next_multiple_of(LINE) }
    }

    /// All rows with their padding.
    pub fn bytes_of(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Whether the rows lie in a file.
    pub fn is_mapped(&self) -> bool {
        self.memory.is_mapped()
    }

    /// N rows of zeros.
    pub fn zeroed(rows: usize, dim: usize) -> Result<Self> {
        let stride = dim.next_multiple_of(LINE);
        let bytes = rows.checked_mul(stride * 4).ok_or_else(|| Error::memory(usize::MAX))?;
        Ok(Self { memory: Memory::zeroed(bytes)?, dim, stride })
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Values from one row's start to the next's.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// One row, (D).
    pub fn row(&self, row: usize) -> &[f32] {
        &self.padded(row, 1)[..self.dim]
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.memory.bytes().len() / (4 * self.stride)
    }

    /// One row, (D), to be written.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        let (start, dim) = (row * self.stride, self.dim);
        &mut self.values_mut()[start..start + dim]
    }

    /// `count` rows from `first` with their padding, (count × stride).
    pub fn padded(&self, first: usize, count: usize) -> &[f32] {
        &self.memory.floats()[first * self.stride..(first + count) * self.stride]
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        if self.is_mapped() { 0 } else { self.memory.bytes().len() }
    }

    /// All rows with their padding, (N × stride).
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.memory.floats_mut()
    }
}

/// Writes little-endian f32 values in row order into padded rows; `at` counts unpadded values. Calls `complete(row,
/// values)` for every row of which that were the last ones, while they are in the cache.
#[inline(always)]
pub(crate) fn write_rows(
    rows: &mut [f32],
    dim: usize,
    mut at: usize,
    mut values: &[u8],
    mut complete: impl FnMut(usize, &[f32]),
) {
    let stride = dim.next_multiple_of(LINE);
    while !values.is_empty() {
        let (row, column) = (at / dim, at % dim);
        let count = (values.len() / 4).min(dim - column);
        let (now, later) = values.split_at(count * 4);
        let padded = &mut rows[row * stride..][..dim];
        for (slot, bytes) in padded[column..column + count].iter_mut().zip(now.as_chunks::<4>().0) {
            *slot = f32::from_le_bytes(*bytes);
        }
        if column + count == dim {
            complete(row, padded);
        }
        (at, values) = (at + count, later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_aligned_padded_with_zeros_and_written_in_pieces() {
        let mut buffer = Embeddings::zeroed(3, 20).unwrap();
        let values: Vec<f32> = (0..60).map(|v| v as f32).collect();
        let mut complete = Vec::new();
        for (piece, chunk) in values.chunks(7).enumerate() {
            let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
            write_rows(buffer.values_mut(), 20, piece * 7, &bytes, |row, values| complete.push((row, values[19])));
        }
        assert_eq!(complete, [(0, 19.0), (1, 39.0), (2, 59.0)]);
        assert_eq!(buffer.stride(), 32);
        for row in 0..3 {
            assert_eq!(buffer.row(row), &values[row * 20..][..20]);
            assert_eq!(buffer.row(row).as_ptr() as usize % 64, 0);
            assert!(buffer.padded(row, 1)[20..].iter().all(|v| *v == 0.0));
        }
    }

    #[test]
    fn memory_of_any_size_is_zero_and_aligned() {
        for len in [0, 1, 63, 4096, 3 << 20] {
            let mut memory = Memory::zeroed(len).unwrap();
            assert!(memory.bytes().iter().all(|byte| *byte == 0));
            assert_eq!((memory.bytes().len(), memory.bytes().as_ptr() as usize % 64), (len, 0));
            memory.bytes_mut().fill(7);
            assert_eq!(memory.floats().len(), len / 4);
        }
    }

    #[test]
    fn a_shard_that_cannot_fit_is_an_error() {
        assert!(Embeddings::zeroed(usize::MAX / 8, 300).is_err());
        assert!(Embeddings::zeroed(usize::MAX / 4096, 300).is_err());
    }
}
