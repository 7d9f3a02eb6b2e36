//! The rows of a shard in lists around centroids, as 4-bit codes of what the centroids leave over.

use rayon::prelude::*;

use crate::buffer::Embeddings;
use crate::codes::four::{Fit, Four};
use crate::codes::frame::Frame;
use crate::codes::query::{Shape, four_shape};
use crate::codes::{Stats, half_square};
use crate::error::Result;
use crate::kernels::{BLOCK, Dots, Isa, Work};

/// In the place of a row at the end of a list's last block.
pub(super) const NO_ROW: u32 = u32::MAX;

/// See the module.
#[derive(Debug)]
pub(super) struct Lists {
    centroids: Embeddings,
    frame: Frame,
    coarse: Four,
    fine: Four,
    /// The first block of each list, and the end of the last.
    starts: Vec<u32>,
    /// The row of every place in the blocks.
    rows: Vec<u32>,
    shape: Shape,
}

impl Lists {
    /// Quantises the rows on the current rayon pool. `assigned` is the list of each row.
    pub fn new(embeddings: &Embeddings, centroids: Embeddings, assigned: Vec<u32>) -> Result<Self> {
        let (dim, lists) = (embeddings.dim(), centroids.rows());
        let members = super::kmeans::members(&assigned, lists);
        let mut starts = vec![0u32];
        for members in &members {
            starts.push(starts.last().expect("a start") + members.len().div_ceil(BLOCK) as u32);
        }
        let mut rows = vec![NO_ROW; starts[lists] as usize * BLOCK];
        for (members, start) in members.iter().zip(&starts) {
            rows[*start as usize * BLOCK..][..members.len()].copy_from_slice(members);
        }
        let frame = Frame::new(dim, None, true);
        let origin = vec![0.0; dim];
        let every: Vec<u32> = (0..lists as u32).collect();
        let (coarse, coarse_stats) = quantise(&centroids, &frame, lists, &[(&origin, &every)])?;
        let around: Vec<(&[f32], &[u32])> =
            members.iter().enumerate().map(|(list, members)| (centroids.row(list), members.as_slice())).collect();
        let (fine, fine_stats) = quantise(embeddings, &frame, rows.len(), &around)?;
        let stats = coarse_stats.and(fine_stats);
        let shape = four_shape(dim, stats.lane_norm());
        let (coarse, fine) = (Four::new(dim, coarse, stats), Four::new(dim, fine, stats));
        Ok(Self { centroids, frame, coarse, fine, starts, rows, shape })
    }

    pub fn len(&self) -> usize {
        self.centroids.rows()
    }

    pub fn centroids(&self) -> &Embeddings {
        &self.centroids
    }

    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// 4-bit codes of the centroids.
    pub fn coarse(&self) -> &Four {
        &self.coarse
    }

    /// 4-bit codes of the rows, list after list.
    pub fn fine(&self) -> &Four {
        &self.fine
    }

    /// For the codes of a query, which meet both.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The blocks of a list.
    pub fn blocks(&self, list: u32) -> std::ops::Range<usize> {
        self.starts[list as usize] as usize..self.starts[list as usize + 1] as usize
    }

    /// The row at a place of the blocks.
    pub fn row(&self, place: u32) -> u32 {
        self.rows[place as usize]
    }

    /// The list of each of `count` rows.
    pub fn assigned(&self, count: usize) -> Vec<u32> {
        let mut assigned = vec![0; count];
        for list in 0..self.len() as u32 {
            let blocks = self.blocks(list);
            let places = &self.rows[blocks.start * BLOCK..blocks.end * BLOCK];
            places.iter().filter(|row| **row != NO_ROW).for_each(|row| assigned[*row as usize] = list);
        }
        assigned
    }

    pub fn bytes(&self) -> usize {
        let codes = self.coarse.bytes() + self.fine.bytes() + self.frame.bytes();
        self.centroids.bytes() + codes + (self.starts.len() + self.rows.len()) * 4
    }
}

/// Codes of the members of each list around its centre; every list starts a block.
fn quantise(
    rows: &Embeddings,
    frame: &Frame,
    places: usize,
    lists: &[(&[f32], &[u32])],
) -> Result<(crate::buffer::Memory, Stats)> {
    let block_bytes = Four::block_bytes(rows.dim());
    let mut memory = Four::memory(places, rows.dim())?;
    let (mut left, mut parts) = (memory.bytes_mut(), Vec::with_capacity(lists.len()));
    for (centre, members) in lists {
        let (blocks, rest) = left.split_at_mut(members.len().div_ceil(BLOCK) * block_bytes);
        parts.push(Quantise { rows, frame, centre, members, blocks });
        left = rest;
    }
    let isa = Isa::best();
    let stats = parts.into_par_iter().map(|part| isa.run(part)).reduce(Stats::default, Stats::and);
    Ok((memory, stats))
}

/// The rows of one list.
struct Quantise<'a> {
    rows: &'a Embeddings,
    frame: &'a Frame,
    centre: &'a [f32],
    members: &'a [u32],
    blocks: &'a mut [u8],
}

impl Work for Quantise<'_> {
    type Output = Stats;

    #[inline(always)]
    fn call<D: Dots>(self, _: D) -> Stats {
        let dim = self.rows.dim();
        let (mut turned, mut narrow) = (vec![0.0; dim], vec![0.0; dim]);
        let (mut fit, mut stats) = (Fit::default(), Stats::default());
        let block_bytes = Four::block_bytes(dim);
        for (at, member) in self.members.iter().enumerate() {
            let row = self.rows.row(*member as usize);
            narrow.iter_mut().zip(row).zip(self.centre).for_each(|((out, v), c)| *out = v - c);
            self.frame.apply(&narrow, &mut turned);
            narrow.iter_mut().zip(&turned).for_each(|(out, v)| *out = *v as f32);
            fit.fit(&turned, &narrow, &mut stats);
            let block = &mut self.blocks[at / BLOCK * block_bytes..][..block_bytes];
            fit.write(block, at % BLOCK, half_square(row));
        }
        for at in self.members.len()..self.members.len().next_multiple_of(BLOCK) {
            Fit::write_none(&mut self.blocks[at / BLOCK * block_bytes..][..block_bytes], at % BLOCK);
        }
        stats
    }
}
