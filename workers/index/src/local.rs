//! The local form of a shard: a file of our own layout that is ready to be searched as soon as it is read.
//!
//! The f32 rows, by far the most of it, are mapped and not read into memory: an exact search reads a few dozen of them.
//! Everything else (codes, labels, sources, digests, ids) is read into memory, codes on huge pages. So the memory
//! of a row that the system can't take back is what [`crate::Shard::memory`] tells without its embeddings.
//!
//! *Layout.* Little-endian. A header of one page: magic, version, D, A, N, the SHA-256 of the shard's Parquet file, and for
//! every section its place, length and CRC-32C; then the CRC-32C of the header so far. Each section starts on a page.
//!
//! *Trust.* Opening compares every checksum, of the mapped rows too, and every length, and checks what a shard promises. So
//! a file that was torn by a crash, or is of another shard or version, is an error that says so; the caller then loads the
//! Parquet. No file is synced: its checksums tell what a lost page would have.
//!
//! *Never changed.* A file is written under a name of its own and renamed when it is complete; nobody writes to it after
//! that, which is what makes mapping it sound. It may be removed while it is mapped: on Unix the pages stay.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crc32c::{crc32c, crc32c_combine};
use rayon::prelude::*;

use crate::buffer::{Embeddings, LINE, Memory};
use crate::codes::frame::Frame;
use crate::codes::{Codes, Stats};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::file::Columns;
use crate::ids::{Ids, Order};
use crate::rows::{check_codes, check_embedding, check_shape, is_surely_unit};
use crate::shard::Shard;

const MAGIC: &[u8; 8] = b"LKLOCAL\n";
/// Changes with the layout of anything in the file, codes included.
const VERSION: u32 = 1;
const PAGE: usize = 4096;
/// Bytes that a thread reads or checks at once.
const PIECE: usize = 4 << 20;
/// The same for rows, which are not kept: they stay in the second cache.
const ROWS_PIECE: usize = 512 << 10;
/// Header before the sections: magic, version, D, A, 0, N, digest.
const FIXED_BYTES: usize = 8 + 4 * 4 + 8 + 32;
/// Place, length and checksum of a section.
const ENTRY_BYTES: usize = 8 + 8 + 4;
const SECTIONS: usize = 12;
const HEADER_BYTES: usize = FIXED_BYTES + SECTIONS * ENTRY_BYTES;
/// Codes' flags, frame and statistics before the centre.
const META_BYTES: usize = 4 * 4 + 3 * 8;
/// Flags of the codes.
const HAS_CODES: u32 = 1;
const HAS_CENTRE: u32 = 2;
const TURNED: u32 = 4;

/// What a file has, in its order.
#[derive(Debug, Clone, Copy)]
enum Section {
    Embeddings,
    Four,
    Seven,
    Meta,
    IdText,
    IdEnds,
    IdOrder,
    Labels,
    Split,
    SourcePart,
    SourceRow,
    ImageDigest,
}

/// Writes a shard; `digest` is the SHA-256 of its Parquet file.
pub(crate) fn write(shard: &Shard, digest: &[u8; 32], path: &Path) -> std::io::Result<()> {
    let (columns, order) = shard.columns();
    let Columns { ids, labels, split, source_part, source_row, image_digest } = columns;
    let words = |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|value| value.to_le_bytes()).collect() };
    let (text, ends) = ids.parts();
    let order = match order {
        Order::Rows => Vec::new(),
        Order::Listed(rows) => words(rows),
    };
    let labels: Vec<u8> = labels.iter().map(|label| *label as u8).collect();
    let (ends, parts, rows) = (words(ends), words(source_part), words(source_row));
    let codes = shard.codes();
    let meta = codes.map(meta).unwrap_or_default();
    let sections: [&[u8]; SECTIONS] = [
        shard.padded().bytes_of(),
        codes.map_or(&[], |codes| codes.four().parts_of_all().0),
        codes.map_or(&[], |codes| codes.seven().parts_of_all().0),
        &meta,
        text,
        &ends,
        &order,
        &labels,
        split,
        &parts,
        &rows,
        image_digest.as_flattened(),
    ];
    let mut out = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
    let header = header(shard, digest, &sections);
    out.write_all(&header)?;
    let mut at = header.len();
    for section in sections {
        pad(&mut out, &mut at)?;
        out.write_all(section)?;
        at += section.len();
    }
    out.flush()
}

/// Zeros up to the next page.
fn pad(out: &mut impl Write, at: &mut usize) -> std::io::Result<()> {
    let next = at.next_multiple_of(PAGE);
    out.write_all(&[0; PAGE][..next - *at])?;
    *at = next;
    Ok(())
}

fn header(shard: &Shard, digest: &[u8; 32], sections: &[&[u8]; SECTIONS]) -> Vec<u8> {
    let mut header = Vec::with_capacity(PAGE);
    header.extend_from_slice(MAGIC);
    for value in [VERSION, shard.dim() as u32, shard.attributes() as u32, 0] {
        header.extend_from_slice(&value.to_le_bytes());
    }
    header.extend_from_slice(&(shard.rows() as u64).to_le_bytes());
    header.extend_from_slice(digest);
    let mut at = HEADER_BYTES + 4;
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

/// The checksum, by all threads of the pool.
fn sum_of(bytes: &[u8]) -> u32 {
    let parts: Vec<(u32, usize)> = bytes.par_chunks(PIECE).map(|part| (crc32c(part), part.len())).collect();
    combined(&parts)
}

fn combined(parts: &[(u32, usize)]) -> u32 {
    parts.iter().fold(0, |sum, (part, len)| crc32c_combine(sum, *part, *len))
}

fn meta(codes: &Codes) -> Vec<u8> {
    let (centre, turned) = codes.frame().parts();
    let (four, seven) = (codes.four().parts_of_all().1, codes.seven().parts_of_all().1);
    let flags = HAS_CODES | if centre.is_some() { HAS_CENTRE } else { 0 } | if turned { TURNED } else { 0 };
    let mut meta = Vec::with_capacity(META_BYTES);
    for value in [flags, four.lane_square as u32, seven.lane_square as u32, 0] {
        meta.extend_from_slice(&value.to_le_bytes());
    }
    for value in [codes.reach(), four.hat, seven.hat] {
        meta.extend_from_slice(&value.to_le_bytes());
    }
    meta.extend(centre.unwrap_or_default().iter().flat_map(|value| value.to_le_bytes()));
    meta
}

/// Opens a file as shard `number`; `digest` is the SHA-256 of the Parquet file that it was made from.
pub(crate) fn open(number: u32, path: &Path, digest: &[u8; 32]) -> Result<Shard> {
    if cfg!(target_endian = "big") {
        return Err(wrong("is little-endian"));
    }
    let file = Opened::new(path, digest)?;
    let (columns, rest) = rayon::join(|| file.columns(), || rayon::join(|| file.codes(), || file.embeddings()));
    let ((columns, by_id), codes, embeddings) = (columns?, rest.0?, rest.1?);
    for row in embeddings.1 {
        check_embedding(columns.ids.get(row), row, embeddings.0.row(row)).map_err(Error::in_file)?;
    }
    check_codes(&columns.labels, &columns.split, file.attributes, |row| columns.ids.get(row))
        .map_err(Error::in_file)?;
    let mut shard = Shard::of(number, embeddings.0, columns, file.attributes, by_id);
    shard.set_codes(codes);
    Ok(shard)
}

fn wrong(what: &str) -> Error {
    Error::corrupt(format!("the local file of the shard {what}"))
}

/// A file whose header is sound.
struct Opened {
    disk: Disk,
    dim: usize,
    attributes: usize,
    rows: usize,
    /// Place, length and checksum of each section, all inside the file.
    sections: [(u64, usize, u32); SECTIONS],
}

impl Opened {
    fn new(path: &Path, digest: &[u8; 32]) -> Result<Self> {
        let disk = Disk::open(path)?;
        let mut header = [0; HEADER_BYTES + 4];
        disk.read_exactly(&mut header, 0).map_err(|source| wrong("is cut off").caused_by(source))?;
        let (header, sum) = header.split_at(HEADER_BYTES);
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        if !header.starts_with(MAGIC) || word(8) != VERSION {
            return Err(wrong(&format!("is none of version {VERSION}")));
        }
        if crc32c(header).to_le_bytes() != *sum {
            return Err(wrong("has a damaged header"));
        }
        if header[32..64] != digest[..] {
            return Err(wrong("is of another shard"));
        }
        let (dim, attributes) = (word(12) as usize, word(16) as usize);
        let rows = usize::try_from(long(24)).map_err(|_| wrong("has too many rows"))?;
        check_shape(dim, attributes, rows).map_err(Error::in_file)?;
        let len = disk.file().metadata().map_err(|source| wrong("can't be read").caused_by(source))?.len();
        let mut sections = [(0, 0, 0); SECTIONS];
        for (section, entry) in sections.iter_mut().zip((FIXED_BYTES..).step_by(ENTRY_BYTES)) {
            let (at, bytes) = (long(entry), long(entry + 8));
            if at.checked_add(bytes).is_none_or(|end| end > len) || !at.is_multiple_of(PAGE as u64) {
                return Err(wrong("is cut off"));
            }
            *section = (at, bytes as usize, word(entry + 16));
        }
        Ok(Self { disk, dim, attributes, rows, sections })
    }

    fn read(&self, section: Section, into: &mut [u8]) -> Result<()> {
        let (at, _, expected) = self.sections[section as usize];
        let pieces = into.par_chunks_mut(PIECE).enumerate().map(|(number, piece)| {
            self.disk.read_exactly(piece, at + (number * PIECE) as u64)?;
            Ok((crc32c(piece), piece.len()))
        });
        let parts: std::io::Result<Vec<(u32, usize)>> = pieces.collect();
        let parts = parts.map_err(|source| wrong("can't be read").caused_by(source))?;
        if combined(&parts) == expected { Ok(()) } else { Err(damaged(section)) }
    }

    /// A section in memory, of `wanted` bytes if that is known.
    fn bytes(&self, section: Section, wanted: Option<usize>) -> Result<Vec<u8>> {
        let (_, len, _) = self.sections[section as usize];
        if wanted.is_some_and(|wanted| wanted != len) {
            return Err(damaged(section));
        }
        let mut bytes = vec![0; len];
        self.read(section, &mut bytes)?;
        Ok(bytes)
    }

    fn words(&self, section: Section, wanted: usize) -> Result<Vec<u32>> {
        let bytes = self.bytes(section, Some(wanted * 4))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    fn columns(&self) -> Result<(Columns, Order)> {
        let rows = self.rows;
        let ends = self.words(Section::IdEnds, rows)?;
        let ids = Ids::from_parts(self.bytes(Section::IdText, None)?, ends).ok_or_else(|| damaged(Section::IdText))?;
        let order = match self.sections[Section::IdOrder as usize].1 {
            0 => Order::Rows,
            _ => Order::Listed(self.words(Section::IdOrder, rows)?),
        };
        if !ids.is_in(&order) {
            return Err(damaged(Section::IdOrder));
        }
        let labels = self.bytes(Section::Labels, Some(rows * self.attributes))?;
        let digests = self.bytes(Section::ImageDigest, Some(rows * 32))?;
        let columns = Columns {
            ids,
            labels: labels.into_iter().map(|label| label as i8).collect(),
            split: self.bytes(Section::Split, Some(rows))?,
            source_part: self.words(Section::SourcePart, rows)?,
            source_row: self.words(Section::SourceRow, rows)?,
            image_digest: digests.as_chunks::<32>().0.to_vec(),
        };
        Ok((columns, order))
    }

    fn codes(&self) -> Result<Option<Codes>> {
        let meta = self.bytes(Section::Meta, None)?;
        if meta.is_empty() {
            return Ok(None);
        }
        let unsound = || damaged(Section::Meta);
        let (fixed, centre) = meta.split_first_chunk::<META_BYTES>().ok_or_else(unsound)?;
        let (words, longs) = fixed.split_at(16);
        let word = |at: usize| u32::from_le_bytes(words.as_chunks::<4>().0[at]);
        let float = |at: usize| f64::from_le_bytes(longs.as_chunks::<8>().0[at]);
        let centre = match word(0) & HAS_CENTRE {
            0 => None,
            _ => Some(centre.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()),
        };
        if centre.as_ref().is_some_and(|centre| centre.len() != self.dim) {
            return Err(unsound());
        }
        let frame = Frame::new(self.dim, centre, word(0) & TURNED != 0);
        let level = |section: Section| {
            let mut memory = Memory::zeroed(self.sections[section as usize].1)?;
            self.read(section, memory.bytes_mut())?;
            Ok(memory)
        };
        let stats = |hat: f64, lane_square: u32| Stats { hat, lane_square: lane_square as i32 };
        let four = (level(Section::Four)?, stats(float(1), word(1)));
        let seven = (level(Section::Seven)?, stats(float(2), word(2)));
        let codes = Codes::of((self.rows, self.dim), frame, four, seven, float(0)).ok_or_else(unsound)?;
        Ok(Some(codes))
    }

    /// The mapped rows, and those that are perhaps not of unit norm.
    fn embeddings(&self) -> Result<(Embeddings, Vec<usize>)> {
        let (at, len, expected) = self.sections[Section::Embeddings as usize];
        let stride = self.dim.next_multiple_of(LINE);
        if Some(len) != self.rows.checked_mul(stride * 4) {
            return Err(damaged(Section::Embeddings));
        }
        let memory = if len == 0 {
            Memory::zeroed(0)?
        } else {
            // SAFETY: local files are written under names of their own, and never changed or shortened after that.
            unsafe { Memory::mapped(self.disk.file(), at, len) }
                .map_err(|source| wrong("can't be mapped").caused_by(source))?
        };
        // Read beside the map: faults of all its pages would take longer than the copies.
        let piece_rows = (ROWS_PIECE / (4 * stride)).max(1);
        let pieces = (0..self.rows.div_ceil(piece_rows)).into_par_iter().map_init(
            || Memory::zeroed(piece_rows * stride * 4),
            |piece, number| {
                self.check_rows(number * piece_rows, piece_rows, piece.as_mut().map_err(|_| Error::memory(len))?)
            },
        );
        let pieces: Vec<((u32, usize), Vec<usize>)> = pieces.collect::<Result<_>>()?;
        let (parts, doubtful): (Vec<(u32, usize)>, Vec<Vec<usize>>) = pieces.into_iter().unzip();
        if combined(&parts) != expected {
            return Err(damaged(Section::Embeddings));
        }
        memory.expect_any_order();
        Ok((Embeddings::of(memory, self.dim), doubtful.concat()))
    }

    /// Checksum and length of some rows, and those that are perhaps not of unit norm.
    fn check_rows(&self, first: usize, count: usize, into: &mut Memory) -> Result<((u32, usize), Vec<usize>)> {
        let stride = self.dim.next_multiple_of(LINE);
        let count = count.min(self.rows - first);
        let bytes = &mut into.bytes_mut()[..count * stride * 4];
        let at = self.sections[Section::Embeddings as usize].0 + (first * stride * 4) as u64;
        self.disk.read_exactly(bytes, at).map_err(|source| wrong("can't be read").caused_by(source))?;
        let sum = (crc32c(bytes), bytes.len());
        let rows = into.floats()[..count * stride].chunks_exact(stride).enumerate();
        let doubtful = rows.filter(|(_, row)| !is_surely_unit(&row[..self.dim])).map(|(row, _)| first + row);
        Ok((sum, doubtful.collect()))
    }
}

fn damaged(section: Section) -> Error {
    wrong(&format!("has a damaged section {section:?}"))
}
