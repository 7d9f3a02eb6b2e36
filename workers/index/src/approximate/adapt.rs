//! The index of a shard that is nearly an earlier one, made from that one's in the time of reading it.
//!
//! Rows that both shards have stay in their lists; every other row goes to the list of its nearest centroid, as it would at
//! a build. What a search finds was measured on the earlier rows: it is told as if the new rows were never found, though
//! they are as others. So an index that is adapted again and again promises less each time, until a build is due.

use std::collections::HashMap;

use super::file::{Parts, encode, read};
use super::{Approximate, Point, kmeans};
use crate::error::Result;
use crate::shard::Shard;

/// The largest part of a shard's rows that may be new, and of the earlier one's that may be gone.
const MOST_DIFFERENT: f64 = 0.02;
/// What the most thorough search must still promise to find.
const LEAST_RECALL: f32 = 0.97;

/// An earlier shard with its index.
#[derive(Debug, Clone, Copy)]
pub struct EarlierShard<'a> {
    /// Its rows.
    pub shard: &'a Shard,
    /// SHA-256 of its file.
    pub digest: &'a [u8; 32],
    /// The file of its index.
    pub index: &'a [u8],
}

impl Approximate {
    /// The file of an index for `shard`, whose file has `digest`, from that of an `earlier` shard; `None` where too much
    /// is different, or too little would be promised, so that one is to be built. A row is the same if it has the same
    /// image digest and the same embedding.
    ///
    /// Fails with `Corrupt` if the earlier index is damaged or of another shard.
    pub fn adapt(earlier: EarlierShard, shard: &Shard, digest: &[u8; 32]) -> Result<Option<Vec<u8>>> {
        let Parts { centroids, assigned, mut curve } = read(earlier.index, earlier.shard, earlier.digest)?;
        let Some((from, new)) = compared(earlier.shard, shard) else { return Ok(None) };
        lower(&mut curve, new.len() as f32 / shard.rows().max(1) as f32);
        if curve.iter().all(|point| point.recall < LEAST_RECALL) {
            return Ok(None);
        }
        let mut lists: Vec<u32> = from.iter().map(|row| row.map_or(0, |row| assigned[row as usize])).collect();
        let nearest = kmeans::assign(shard.padded(), &new, &centroids);
        new.iter().zip(nearest).for_each(|(row, list)| lists[*row as usize] = list);
        Ok(Some(encode(&centroids, &lists, &curve, digest)))
    }
}

/// The earlier row of every row, and those that have none; `None` for shards too different.
fn compared(earlier: &Shard, shard: &Shard) -> Option<(Vec<Option<u32>>, Vec<u32>)> {
    if earlier.dim() != shard.dim() {
        return None;
    }
    let there: HashMap<&[u8; 32], u32> =
        (0..earlier.rows() as u32).map(|row| (earlier.image_digest(row), row)).collect();
    let same = |row: u32| {
        let before = *there.get(shard.image_digest(row))?;
        (earlier.embedding(before) == shard.embedding(row)).then_some(before)
    };
    let from: Vec<Option<u32>> = (0..shard.rows() as u32).map(same).collect();
    let new: Vec<u32> = (0..shard.rows() as u32).filter(|row| from[*row as usize].is_none()).collect();
    let most = |rows: usize| (rows as f64 * MOST_DIFFERENT) as usize;
    let gone = earlier.rows().saturating_sub(shard.rows() - new.len());
    (new.len() <= most(shard.rows()) && gone <= most(earlier.rows())).then_some((from, new))
}

/// As if a `share` of the rows were never found.
fn lower(curve: &mut [Point], share: f32) {
    curve.iter_mut().for_each(|point| point.recall = (point.recall - share).max(0.0));
}
