//! Local files: what a searcher keeps on its own disk in a layout of ours, ready as soon as it is read.
//!
//! *Layout.* Little-endian. A header of one page: magic, version, three numbers, N, a SHA-256, and for every section its
//! place, length and CRC-32C; then the CRC-32C of the header so far. Each section starts on a page, so that it can be mapped.
//!
//! *Trust.* Opening compares the header, and every section is compared with its checksum before it is used. So a file that was
//! torn by a crash, or is of another version, is an error that says so; the caller then goes back to what it was made from. No
//! file is synced: its checksums tell what a lost page would have.
//!
//! *Never changed.* A file is written under a name of its own and renamed when it is complete; nobody writes to it after
//! that, which is what makes mapping it sound. It may be removed while it is mapped: on Unix the pages stay.

pub(crate) mod shard;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crc32c::{crc32c, crc32c_combine};
use rayon::prelude::*;

use crate::buffer::Memory;
use crate::disk::Disk;
use crate::error::{Error, Result};

const PAGE: usize = 4096;
/// Bytes that a thread reads or checks at once.
const PIECE: usize = 4 << 20;
/// Header before the sections: magic, version, three numbers, N, digest.
const FIXED_BYTES: usize = 8 + 4 * 4 + 8 + 32;
/// Place, length and checksum of a section.
const ENTRY_BYTES: usize = 8 + 8 + 4;

/// A kind of local files.
#[derive(Debug)]
pub(crate) struct Form {
    pub magic: &'static [u8; 8],
    /// Changes with the layout of anything in the file, codes included.
    pub version: u32,
    /// What a file is of, for errors.
    pub of: &'static str,
    /// What it has, in its order, for errors.
    pub sections: &'static [&'static str],
}

/// What a header tells beside the sections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub numbers: [u32; 3],
    /// N.
    pub rows: u64,
    /// SHA-256 of what the file was made from.
    pub digest: [u8; 32],
}

impl Form {
    /// Writes a new file.
    pub fn write(&self, head: &Head, sections: &[&[u8]], path: &Path) -> std::io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
        let header = self.header(head, sections);
        out.write_all(&header)?;
        let mut at = header.len();
        for section in sections {
            pad(&mut out, &mut at)?;
            out.write_all(section)?;
            at += section.len();
        }
        out.flush()
    }

    fn header_bytes(&self) -> usize {
        FIXED_BYTES + self.sections.len() * ENTRY_BYTES
    }

    fn header(&self, head: &Head, sections: &[&[u8]]) -> Vec<u8> {
        let Head { numbers: [a, b, c], rows, digest } = head;
        let mut header = Vec::with_capacity(PAGE);
        header.extend_from_slice(self.magic);
        for value in [self.version, *a, *b, *c] {
            header.extend_from_slice(&value.to_le_bytes());
        }
        header.extend_from_slice(&rows.to_le_bytes());
        header.extend_from_slice(digest);
        let mut at = self.header_bytes() + 4;
        for section in sections {
            at = at.next_multiple_of(PAGE);
            header.extend_from_slice(&(at as u64).to_le_bytes());
            header.extend_from_slice(&(section.len() as u64).to_le_bytes());
            header.extend_from_slice(&sum_of(section).to_le_bytes());
            at += section.len();
        }
        let sum = crc32c(&header);
        header.extend_from_slice(&sum.to_le_bytes());
        header
    }

    /// Opens a file whose header must be sound and tell `digest`.
    pub fn open(&'static self, path: &Path, digest: &[u8; 32]) -> Result<Opened> {
        if cfg!(target_endian = "big") {
            return Err(self.wrong("is little-endian"));
        }
        let disk = Disk::open(path)?;
        let mut header = vec![0; self.header_bytes() + 4];
        disk.read_exactly(&mut header, 0).map_err(|source| self.wrong("is cut off").caused_by(source))?;
        let (header, sum) = header.split_at(self.header_bytes());
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if !header.starts_with(self.magic) || word(8) != self.version {
            return Err(self.wrong(&format!("is none of version {}", self.version)));
        }
        if crc32c(header).to_le_bytes() != *sum {
            return Err(self.wrong("has a damaged header"));
        }
        if header[32..64] != digest[..] {
            return Err(self.wrong(&format!("is of another {}", self.of)));
        }
        let len = disk.file().metadata().map_err(|source| self.wrong("can't be read").caused_by(source))?.len();
        let mut sections = Vec::with_capacity(self.sections.len());
        for entry in (FIXED_BYTES..).step_by(ENTRY_BYTES).take(self.sections.len()) {
            let (at, bytes) = (long(entry), long(entry + 8));
            if at.checked_add(bytes).is_none_or(|end| end > len) || !at.is_multiple_of(PAGE as u64) {
                return Err(self.wrong("is cut off"));
            }
            sections.push((at, bytes as usize, word(entry + 16)));
        }
        let head = Head { numbers: [word(12), word(16), word(20)], rows: long(24), digest: *digest };
        Ok(Opened { form: self, disk, head, sections })
    }

    pub fn wrong(&self, what: &str) -> Error {
        Error::corrupt(format!("the local file of the {} {what}", self.of))
    }

    pub fn damaged(&self, section: usize) -> Error {
        self.wrong(&format!("has a damaged section {}", self.sections[section]))
    }
}

/// Zeros up to the next page.
fn pad(out: &mut impl Write, at: &mut usize) -> std::io::Result<()> {
    let next = at.next_multiple_of(PAGE);
    out.write_all(&[0; PAGE][..next - *at])?;
    *at = next;
    Ok(())
}

/// The checksum, by all threads of the pool.
fn sum_of(bytes: &[u8]) -> u32 {
    let parts: Vec<(u32, usize)> = bytes.par_chunks(PIECE).map(|part| (crc32c(part), part.len())).collect();
    combined(&parts)
}

/// The checksum of parts that follow each other.
pub(crate) fn combined(parts: &[(u32, usize)]) -> u32 {
    parts.iter().fold(0, |sum, (part, len)| crc32c_combine(sum, *part, *len))
}

/// Words as a section has them.
pub(crate) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file whose header is sound.
#[derive(Debug)]
pub(crate) struct Opened {
    form: &'static Form,
    disk: Disk,
    pub head: Head,
    /// Place, length and checksum of each section, all inside the file.
    sections: Vec<(u64, usize, u32)>,
}

impl Opened {
    /// Bytes of a section.
    pub fn len(&self, section: usize) -> usize {
        self.sections[section].1
    }

    /// The checksum that a section must have.
    pub fn sum(&self, section: usize) -> u32 {
        self.sections[section].2
    }

    /// Reads a part of a section, of which nothing is compared.
    pub fn read_part(&self, section: usize, offset: usize, into: &mut [u8]) -> Result<()> {
        let at = self.sections[section].0 + offset as u64;
        self.disk.read_exactly(into, at).map_err(|source| self.form.wrong("can't be read").caused_by(source))
    }

    fn read(&self, section: usize, into: &mut [u8]) -> Result<()> {
        let pieces = into.par_chunks_mut(PIECE).enumerate().map(|(number, piece)| {
            self.read_part(section, number * PIECE, piece)?;
            Ok((crc32c(piece), piece.len()))
        });
        let parts: Vec<(u32, usize)> = pieces.collect::<Result<_>>()?;
        if combined(&parts) == self.sum(section) { Ok(()) } else { Err(self.form.damaged(section)) }
    }

    /// A section in memory, of `wanted` bytes if that is known.
    pub fn bytes(&self, section: usize, wanted: Option<usize>) -> Result<Vec<u8>> {
        let len = self.len(section);
        if wanted.is_some_and(|wanted| wanted != len) {
            return Err(self.form.damaged(section));
        }
        let mut bytes = vec![0; len];
        self.read(section, &mut bytes)?;
        Ok(bytes)
    }

    /// A section of numbers, as many as `wanted` if that is known.
    pub fn words(&self, section: usize, wanted: Option<usize>) -> Result<Vec<u32>> {
        let bytes = self.bytes(section, wanted.map(|words| words * 4))?;
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(self.form.damaged(section));
        }
        Ok(words.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// A section that scans will read, on huge pages.
    pub fn memory(&self, section: usize) -> Result<Memory> {
        let mut memory = Memory::zeroed(self.len(section))?;
        self.read(section, memory.bytes_mut())?;
        Ok(memory)
    }

    /// A section where it lies in the file, of which nothing is read or compared yet.
    pub fn mapped(&self, section: usize) -> Result<Memory> {
        let (at, len, _) = self.sections[section];
        if len == 0 {
            return Memory::zeroed(0);
        }
        // SAFETY: local files are written under names of their own, and never changed or shortened after that.
        unsafe { Memory::mapped(self.disk.file(), at, len) }
            .map_err(|source| self.form.wrong("can't be mapped").caused_by(source))
    }
}
