//! The local form of an index: ready at once, where its file form has the rows quantised again, which means to read all of them.
//!
//! Codes and lists are read into memory, codes on huge pages; the centroids as f32, which no search reads, stay in the file.
//! The header's numbers are D, the number of lists and that of the curve's points; its digest is that of the file form. `Meta`
//! has the SHA-256 of the shard's file, and what the centroids' codes have in common.

use std::path::Path;

use super::Approximate;
use super::file::{read_points, write_points};
use super::lists::{Lists, Parts};
use crate::buffer::Embeddings;
use crate::codes::Stats;
use crate::error::Result;
use crate::local::{Form, Head, Opened, bytes_of};
use crate::shard::Shard;

static FORM: Form = Form {
    magic: b"LKLOCALX",
    version: 2,
    of: "approximate index",
    sections: &["Centroids", "Coarse", "Heads", "Fine", "Starts", "Rows", "Curve", "Meta"],
};

const CENTROIDS: usize = 0;
const COARSE: usize = 1;
const HEADS: usize = 2;
const FINE: usize = 3;
const STARTS: usize = 4;
const ROWS: usize = 5;
const CURVE: usize = 6;
const META: usize = 7;

/// SHA-256 of the files of an index and of its shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digests<'a> {
    pub index: &'a [u8; 32],
    pub shard: &'a [u8; 32],
}

/// Writes an index.
pub(crate) fn write(index: &Approximate, shard: &Shard, digests: Digests, path: &Path) -> std::io::Result<()> {
    let Approximate { lists, curve, lease: _ } = index;
    let Parts { centroids, coarse, heads, fine, starts, rows } = lists.parts();
    let mut points = Vec::new();
    write_points(curve, &mut points);
    let mut meta = digests.shard.to_vec();
    for stats in [coarse.1, heads.1] {
        meta.extend_from_slice(&stats.hat.to_le_bytes());
        meta.extend_from_slice(&stats.lane_square.to_le_bytes());
    }
    let (starts, rows) = (bytes_of(starts), bytes_of(rows));
    let sections = [centroids.bytes_of(), coarse.0, heads.0, fine, &starts, &rows, &points, &meta];
    let numbers = [shard.dim() as u32, lists.len() as u32, curve.len() as u32];
    let head = Head { numbers, rows: shard.rows() as u64, digest: *digests.index };
    FORM.write(&head, &sections, path)
}

/// Opens a file for `shard`. Runs on the current rayon pool.
pub(crate) fn open(shard: &Shard, digests: Digests, path: &Path) -> Result<Approximate> {
    let file = FORM.open(path, digests.index)?;
    let Head { numbers: [dim, lists, points], rows, .. } = file.head;
    let meta = file.bytes(META, Some(32 + 2 * STATS_BYTES))?;
    let (own, stats) = meta.split_at(32);
    if own != digests.shard || (dim as usize, rows) != (shard.dim(), shard.rows() as u64) {
        return Err(FORM.wrong("is of another shard"));
    }
    // Only to compare them: nobody needs them soon.
    file.bytes(CENTROIDS, None)?;
    let centroids = Embeddings::of(file.mapped(CENTROIDS)?, shard.dim());
    let curve = read_points(&file.bytes(CURVE, None)?)?;
    if centroids.rows() != lists as usize || curve.len() != points as usize {
        return Err(FORM.damaged(META));
    }
    let lists = lists_of(&file, centroids, stats, shard.rows())?;
    Ok(Approximate { lists, curve, lease: None })
}

/// Bytes of [`Stats`].
const STATS_BYTES: usize = 12;

fn lists_of(file: &Opened, centroids: Embeddings, stats: &[u8], rows: usize) -> Result<Lists> {
    let stats = |at: usize| {
        let (hat, lane_square) = stats[at * STATS_BYTES..][..STATS_BYTES].split_at(8);
        let hat = f64::from_le_bytes(hat.try_into().expect("eight bytes"));
        // Of estimates nobody asks what they are wrong by.
        Stats { hat, lane_square: i32::from_le_bytes(lane_square.try_into().expect("four bytes")), along: 0.0 }
    };
    let parts = Parts {
        centroids,
        coarse: (file.memory(COARSE)?, stats(0)),
        heads: (file.memory(HEADS)?, stats(1)),
        fine: file.memory(FINE)?,
        starts: file.words(STARTS, None)?,
        rows: file.words(ROWS, None)?,
    };
    Lists::of(parts, rows).ok_or_else(|| FORM.damaged(STARTS))
}
