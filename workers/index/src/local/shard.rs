//! The local form of a shard: a file that is ready to be searched as soon as it is read.
//!
//! The f32 rows, by far the most of it, are mapped and not read into memory: an exact search reads a few dozen of them.
//! Everything else (codes, labels, sources, digests, ids) is read into memory, codes on huge pages. So the memory
//! of a row that the system can't take back is what [`crate::Shard::memory`] tells without its embeddings.
//!
//! The header's numbers are D and A, its digest is that of the shard's Parquet file. Opening compares every checksum, of the
//! mapped rows too, and every length, and checks what a shard promises.

use std::path::Path;

use crc32c::crc32c;
use rayon::prelude::*;

use super::{Form, Head, Opened, bytes_of, combined};
use crate::buffer::{Embeddings, LINE, Memory};
use crate::codes::frame::Frame;
use crate::codes::{Codes, Stats};
use crate::error::{Error, Result};
use crate::file::Columns;
use crate::ids::{Ids, Order};
use crate::rows::{check_codes, check_embedding, check_shape, is_surely_unit};
use crate::shard::Shard;

/// Bytes of rows that a thread checks at once. They are not kept: they stay in the second cache.
const ROWS_PIECE: usize = 512 << 10;
/// Codes' flags, frame and statistics before the centre.
const META_BYTES: usize = 4 * 4 + 4 * 8;
/// Flags of the codes.
const HAS_CODES: u32 = 1;
const HAS_CENTRE: u32 = 2;
const TURNED: u32 = 4;

static FORM: Form = Form {
    magic: b"LKLOCAL\n",
    version: 2,
    of: "shard",
    sections: &[
        "Embeddings",
        "Four",
        "Seven",
        "Meta",
        "IdText",
        "IdEnds",
        "IdOrder",
        "Labels",
        "Split",
        "SourcePart",
        "SourceRow",
        "ImageDigest",
    ],
};

const EMBEDDINGS: usize = 0;
const FOUR: usize = 1;
const SEVEN: usize = 2;
const META: usize = 3;
const ID_TEXT: usize = 4;
const ID_ENDS: usize = 5;
const ID_ORDER: usize = 6;
const LABELS: usize = 7;
const SPLIT: usize = 8;
const SOURCE_PART: usize = 9;
const SOURCE_ROW: usize = 10;
const IMAGE_DIGEST: usize = 11;

/// Writes a shard; `digest` is the SHA-256 of its Parquet file.
pub(crate) fn write(shard: &Shard, digest: &[u8; 32], path: &Path) -> std::io::Result<()> {
    let (columns, order) = shard.columns();
    let Columns { ids, labels, split, source_part, source_row, image_digest } = columns;
    let (text, ends) = ids.parts();
    let order = match order {
        Order::Rows => Vec::new(),
        Order::Listed(rows) => bytes_of(rows),
    };
    let labels: Vec<u8> = labels.iter().map(|label| *label as u8).collect();
    let (ends, parts, rows) = (bytes_of(ends), bytes_of(source_part), bytes_of(source_row));
    let codes = shard.codes();
    let meta = codes.map(meta).unwrap_or_default();
    let sections: [&[u8]; 12] = [
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
    let numbers = [shard.dim() as u32, shard.attributes() as u32, 0];
    FORM.write(&Head { numbers, rows: shard.rows() as u64, digest: *digest }, &sections, path)
}

fn meta(codes: &Codes) -> Vec<u8> {
    let (centre, turned) = codes.frame().parts();
    let (four, seven) = (codes.four().parts_of_all().1, codes.seven().parts_of_all().1);
    let flags = HAS_CODES | if centre.is_some() { HAS_CENTRE } else { 0 } | if turned { TURNED } else { 0 };
    let mut meta = Vec::with_capacity(META_BYTES);
    for value in [flags, four.lane_square as u32, seven.lane_square as u32, 0] {
        meta.extend_from_slice(&value.to_le_bytes());
    }
    for value in [codes.reach(), four.hat, four.along, seven.hat] {
        meta.extend_from_slice(&value.to_le_bytes());
    }
    meta.extend(centre.unwrap_or_default().iter().flat_map(|value| value.to_le_bytes()));
    meta
}

/// Opens a file as shard `number`; `digest` is the SHA-256 of the Parquet file that it was made from.
pub(crate) fn open(number: u32, path: &Path, digest: &[u8; 32]) -> Result<Shard> {
    let file = Reader::new(FORM.open(path, digest)?)?;
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

/// A file of a shape that a shard can have.
struct Reader {
    file: Opened,
    dim: usize,
    attributes: usize,
    rows: usize,
}

impl Reader {
    fn new(file: Opened) -> Result<Self> {
        let Head { numbers: [dim, attributes, _], rows, .. } = file.head;
        let (dim, attributes) = (dim as usize, attributes as usize);
        let rows = usize::try_from(rows).map_err(|_| FORM.wrong("has too many rows"))?;
        check_shape(dim, attributes, rows).map_err(Error::in_file)?;
        Ok(Self { file, dim, attributes, rows })
    }

    fn columns(&self) -> Result<(Columns, Order)> {
        let (file, rows) = (&self.file, self.rows);
        let ends = file.words(ID_ENDS, Some(rows))?;
        let ids = Ids::from_parts(file.bytes(ID_TEXT, None)?, ends).ok_or_else(|| FORM.damaged(ID_TEXT))?;
        let order = match file.len(ID_ORDER) {
            0 => Order::Rows,
            _ => Order::Listed(file.words(ID_ORDER, Some(rows))?),
        };
        if !ids.is_in(&order) {
            return Err(FORM.damaged(ID_ORDER));
        }
        let labels = file.bytes(LABELS, Some(rows * self.attributes))?;
        let digests = file.bytes(IMAGE_DIGEST, Some(rows * 32))?;
        let columns = Columns {
            ids,
            labels: labels.into_iter().map(|label| label as i8).collect(),
            split: file.bytes(SPLIT, Some(rows))?,
            source_part: file.words(SOURCE_PART, Some(rows))?,
            source_row: file.words(SOURCE_ROW, Some(rows))?,
            image_digest: digests.as_chunks::<32>().0.to_vec(),
        };
        Ok((columns, order))
    }

    fn codes(&self) -> Result<Option<Codes>> {
        let meta = self.file.bytes(META, None)?;
        if meta.is_empty() {
            return Ok(None);
        }
        let unsound = || FORM.damaged(META);
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
        let stats = |hat: f64, along: f64, lane_square: u32| Stats { hat, along, lane_square: lane_square as i32 };
        let four = (self.file.memory(FOUR)?, stats(float(1), float(2), word(1)));
        let seven = (self.file.memory(SEVEN)?, stats(float(3), 0.0, word(2)));
        let codes = Codes::of((self.rows, self.dim), frame, four, seven, float(0)).ok_or_else(unsound)?;
        Ok(Some(codes))
    }

    /// The mapped rows, and those that are perhaps not of unit norm.
    fn embeddings(&self) -> Result<(Embeddings, Vec<usize>)> {
        let (len, stride) = (self.file.len(EMBEDDINGS), self.dim.next_multiple_of(LINE));
        if Some(len) != self.rows.checked_mul(stride * 4) {
            return Err(FORM.damaged(EMBEDDINGS));
        }
        let memory = self.file.mapped(EMBEDDINGS)?;
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
        if combined(&parts) != self.file.sum(EMBEDDINGS) {
            return Err(FORM.damaged(EMBEDDINGS));
        }
        memory.expect_any_order();
        Ok((Embeddings::of(memory, self.dim), doubtful.concat()))
    }

    /// Checksum and length of some rows, and those that are perhaps not of unit norm.
    fn check_rows(&self, first: usize, count: usize, into: &mut Memory) -> Result<((u32, usize), Vec<usize>)> {
        let stride = self.dim.next_multiple_of(LINE);
        let count = count.min(self.rows - first);
        let bytes = &mut into.bytes_mut()[..count * stride * 4];
        self.file.read_part(EMBEDDINGS, first * stride * 4, bytes)?;
        let sum = (crc32c(bytes), bytes.len());
        let rows = into.floats()[..count * stride].chunks_exact(stride).enumerate();
        let doubtful = rows.filter(|(_, row)| !is_surely_unit(&row[..self.dim])).map(|(row, _)| first + row);
        Ok((sum, doubtful.collect()))
    }
}
