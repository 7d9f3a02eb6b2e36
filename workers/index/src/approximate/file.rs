//! The file form of an index, beside its shard's. Little-endian, in this order:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `LKAPPROX` |
//! | 4 | version, 2 |
//! | 4 | D |
//! | 8 | N |
//! | 4 | L, the number of lists |
//! | 4 | P, the number of points of the curve |
//! | 32 | SHA-256 of the shard's file |
//! | 4·L·D | centroids, f32 |
//! | 4·N | the list of each row, u32 |
//! | 28·P | points: K u32, weight f32, cut f32, lists u32, rerank u32, recall f32, cost f32 |
//! | 4 | CRC-32C of everything before |

use super::lists::Lists;
use super::probe::Effort;
use super::{Approximate, LARGEST_K, Point};
use crate::buffer::Embeddings;
use crate::error::{Error, Result};
use crate::shard::Shard;

const MAGIC: &[u8; 8] = b"LKAPPROX";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 64;
const POINT_BYTES: usize = 28;
const SUM_BYTES: usize = 4;
/// Bytes of a digest.
const DIGEST_BYTES: usize = 32;
/// Points that a file may have.
const MOST_POINTS: usize = 4096;
/// Largest norm of a centroid, a mean of unit rows.
const LARGEST_NORM: f64 = 1.01;
/// Largest weight of a centroid's norm.
const LARGEST_WEIGHT: f32 = 4.0;
/// Rows that an effort may rerank.
const MOST_RERANK: u32 = 1 << 20;

impl Approximate {
    /// The bytes of its file; `digest` is the SHA-256 of the shard's.
    pub fn encode(&self, shard: &Shard, digest: &[u8; DIGEST_BYTES]) -> Vec<u8> {
        encode(self.lists.centroids(), &self.lists.assigned(shard.rows()), &self.curve, digest)
    }

    /// Reads a file for the shard whose file has `digest`; quantises the rows again, on the current rayon pool.
    ///
    /// Fails with `Corrupt`, saying what is wrong. Takes no more memory than the sizes of file and shard allow.
    pub fn decode(bytes: &[u8], shard: &Shard, digest: &[u8; DIGEST_BYTES]) -> Result<Self> {
        let Parts { centroids, assigned, curve } = read(bytes, shard, digest)?;
        Ok(Self { lists: Lists::new(shard.padded(), centroids, assigned)?, curve, lease: None })
    }
}

/// The bytes of a file; `digest` is the SHA-256 of the shard's.
pub(super) fn encode(
    centroids: &Embeddings,
    assigned: &[u32],
    curve: &[Point],
    digest: &[u8; DIGEST_BYTES],
) -> Vec<u8> {
    let (lists, dim) = (centroids.rows(), centroids.dim());
    let mut bytes = Vec::with_capacity(lists * dim * 4 + assigned.len() * 4 + HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(dim as u32).to_le_bytes());
    bytes.extend_from_slice(&(assigned.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&(lists as u32).to_le_bytes());
    bytes.extend_from_slice(&(curve.len() as u32).to_le_bytes());
    bytes.extend_from_slice(digest);
    for list in 0..lists {
        bytes.extend(centroids.row(list).iter().flat_map(|v| v.to_le_bytes()));
    }
    bytes.extend(assigned.iter().flat_map(|list| list.to_le_bytes()));
    write_points(curve, &mut bytes);
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

fn read_centroids(bytes: &[u8], dim: usize) -> Result<Embeddings> {
    let mut held = Embeddings::zeroed(bytes.len() / (4 * dim), dim)?;
    for (list, values) in bytes.chunks_exact(4 * dim).enumerate() {
        let values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        held.row_mut(list).iter_mut().zip(values).for_each(|(slot, v)| *slot = v);
        let square: f64 = held.row(list).iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        if square.is_nan() || square > LARGEST_NORM * LARGEST_NORM {
            return Err(corrupt(&format!("has a centroid of norm {}", square.sqrt())));
        }
    }
    Ok(held)
}

fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("the approximate index {what}"))
}

/// What a file says.
pub(super) struct Parts {
    pub centroids: Embeddings,
    /// The list of each row.
    pub assigned: Vec<u32>,
    pub curve: Vec<Point>,
}

/// Reads a file for the shard whose file has `digest`.
pub(super) fn read(bytes: &[u8], shard: &Shard, digest: &[u8; DIGEST_BYTES]) -> Result<Parts> {
    let Sections { centroids, assigned, points } = sections(bytes, shard, digest)?;
    let centroids = read_centroids(centroids, shard.dim())?;
    let assigned: Vec<u32> = assigned.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    if let Some(list) = assigned.iter().find(|list| **list as usize >= centroids.rows()) {
        return Err(corrupt(&format!("has a row in list {list} of {}", centroids.rows())));
    }
    Ok(Parts { centroids, assigned, curve: read_points(points)? })
}

/// The variable parts of a file, whose sizes fit the shard.
struct Sections<'a> {
    centroids: &'a [u8],
    assigned: &'a [u8],
    points: &'a [u8],
}

fn sections<'a>(bytes: &'a [u8], shard: &Shard, digest: &[u8; DIGEST_BYTES]) -> Result<Sections<'a>> {
    let cut_off = || corrupt("is cut off");
    let (bytes, sum) = bytes.split_last_chunk::<SUM_BYTES>().ok_or_else(cut_off)?;
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(cut_off)?;
    let word = |at: usize| u32::from_le_bytes(header.as_chunks::<4>().0[at]);
    if !header.starts_with(MAGIC) || word(2) != VERSION {
        return Err(corrupt(&format!("is none of version {VERSION}")));
    }
    if crc32c::crc32c(bytes) != u32::from_le_bytes(*sum) {
        return Err(corrupt("does not have the checksum that was written"));
    }
    if header[DIGEST_BYTES..] != digest[..] {
        return Err(corrupt("is of another shard"));
    }
    let (dim, rows) = (word(3) as usize, u64::from(word(4)) | u64::from(word(5)) << 32);
    if (dim, rows) != (shard.dim(), shard.rows() as u64) {
        return Err(corrupt(&format!("is of {rows} rows of dimension {dim}, not of the shard's")));
    }
    let (lists, points) = (word(6) as usize, word(7) as usize);
    if !(1..=shard.rows().max(1) * 2).contains(&lists) || points > MOST_POINTS {
        return Err(corrupt(&format!("has {lists} lists and {points} points")));
    }
    let (centroids, rest) = rest.split_at_checked(lists * dim * 4).ok_or_else(cut_off)?;
    let (assigned, points_bytes) = rest.split_at_checked(shard.rows() * 4).ok_or_else(cut_off)?;
    if points_bytes.len() != points * POINT_BYTES {
        return Err(corrupt("has another size than its header says"));
    }
    Ok(Sections { centroids, assigned, points: points_bytes })
}

/// A curve as files have it.
pub(super) fn write_points(curve: &[Point], bytes: &mut Vec<u8>) {
    for Point { k, effort: Effort { weight, cut, lists, rerank }, recall, cost } in curve {
        for value in [
            k.to_le_bytes(),
            weight.to_le_bytes(),
            cut.to_le_bytes(),
            lists.to_le_bytes(),
            rerank.to_le_bytes(),
            recall.to_le_bytes(),
            cost.to_le_bytes(),
        ] {
            bytes.extend_from_slice(&value);
        }
    }
}

/// A curve of whole points, each of which must be sound.
pub(super) fn read_points(bytes: &[u8]) -> Result<Vec<Point>> {
    bytes.chunks_exact(POINT_BYTES).map(point).collect()
}

fn point(bytes: &[u8]) -> Result<Point> {
    let words = bytes.as_chunks::<4>().0;
    let (number, float) = (|at: usize| u32::from_le_bytes(words[at]), |at: usize| f32::from_le_bytes(words[at]));
    let point = Point {
        k: number(0),
        effort: Effort { weight: float(1), cut: float(2), lists: number(3), rerank: number(4) },
        recall: float(5),
        cost: float(6),
    };
    let sound = (1..=LARGEST_K as u32).contains(&point.k)
        && (point.k..=MOST_RERANK).contains(&point.effort.rerank)
        && (0.0..=LARGEST_WEIGHT).contains(&point.effort.weight)
        && point.effort.cut.is_finite()
        && (0.0..=1.0).contains(&point.recall)
        && point.cost.is_finite();
    if sound { Ok(point) } else { Err(corrupt(&format!("has the point {point:?}"))) }
}
