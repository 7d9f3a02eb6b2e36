//! The rows of a shard in lists around centroids, as 2-bit codes of what the centroids leave over.

use rayon::prelude::*;

use crate::buffer::{Embeddings, LINE, Memory};
use crate::codes::four::{self, Four};
use crate::codes::frame::Frame;
use crate::codes::query::{Shape, four_shape};
use crate::codes::two::{self, Two};
use crate::codes::{Seven, SevenFit, Stats, half_square};
use crate::error::Result;
use crate::kernels::{BLOCK, Dots, Isa, Work};

/// In the place of a row at the end of a list's last block.
pub(super) const NO_ROW: u32 = u32::MAX;

/// What lists are made of, owned or borrowed.
pub(super) struct Parts<Rows, Bytes, Words> {
    pub centroids: Rows,
    pub coarse: (Bytes, Stats),
    pub heads: (Bytes, Stats),
    pub fine: Bytes,
    pub starts: Words,
    pub rows: Words,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lists {
    centroids: Embeddings,
    frame: Frame,
    coarse: Four,
    heads: Seven,
    fine: Two,
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
        let (coarse, heads, stats) = quantise_centroids(&centroids, &frame)?;
        let fine = quantise_rows(embeddings, &centroids, &frame, &members, rows.len())?;
        let shape = four_shape(dim, stats.lane_norm());
        Ok(Self { centroids, frame, coarse, heads, fine, starts, rows, shape })
    }

    /// From what [`Self::parts`] told, of a shard of `count` rows; `None` for what does not fit together.
    pub fn of(parts: Parts<Embeddings, Memory, Vec<u32>>, count: usize) -> Option<Self> {
        let Parts { centroids, coarse, heads, fine, starts, rows } = parts;
        let (dim, lists, blocks) = (centroids.dim(), centroids.rows(), *starts.last()? as usize);
        let sizes = (
            lists.div_ceil(BLOCK) * Four::block_bytes(dim),
            lists * Seven::row_bytes(dim),
            blocks * Two::block_bytes(dim),
            (lists + 1, blocks * BLOCK),
        );
        let found = (coarse.0.bytes().len(), heads.0.bytes().len(), fine.bytes().len(), (starts.len(), rows.len()));
        let sound = starts[0] == 0
            && starts.is_sorted()
            && rows.iter().all(|row| (*row as usize) < count || *row == NO_ROW)
            && rows.iter().filter(|row| **row != NO_ROW).count() == count;
        let shape = four_shape(dim, coarse.1.lane_norm());
        (found == sizes && sound).then(|| Self {
            frame: Frame::new(dim, None, true),
            coarse: Four::new(dim, coarse.0, coarse.1),
            heads: Seven::new(dim, heads.0, heads.1),
            fine: Two::new(dim, fine),
            centroids,
            starts,
            rows,
            shape,
        })
    }

    /// What a file keeps of them.
    pub fn parts(&self) -> Parts<&Embeddings, &[u8], &[u32]> {
        let Self { centroids, frame: _, coarse, heads, fine, starts, rows, shape: _ } = self;
        let (coarse, heads) = (coarse.parts_of_all(), heads.parts_of_all());
        Parts { centroids, coarse, heads, fine: fine.all(), starts, rows }
    }

    /// Bytes of memory of `lists` lists of `rows` rows, at most: every list has a block that is nearly empty.
    pub fn most_bytes(lists: usize, rows: usize, dim: usize) -> usize {
        let blocks = rows.div_ceil(BLOCK) + lists;
        let centroids = lists * dim.next_multiple_of(LINE) * 4;
        let codes = lists.div_ceil(BLOCK) * Four::block_bytes(dim) + lists * Seven::row_bytes(dim);
        let fine = blocks * (Two::block_bytes(dim) + BLOCK * 4);
        centroids + codes + fine + (lists + 1) * 4 + Frame::most_bytes(dim)
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

    /// 4-bit codes of the centroids: which lists to look at.
    pub fn coarse(&self) -> &Four {
        &self.coarse
    }

    /// 7-bit codes of the centroids: what the rows of a list have in common.
    pub fn heads(&self) -> &Seven {
        &self.heads
    }

    /// 2-bit codes of the rows, list after list.
    pub fn fine(&self) -> &Two {
        &self.fine
    }

    /// For the codes of a query that meet the coarse and the fine ones.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The blocks of a list.
    pub fn blocks(&self, list: u32) -> std::ops::Range<u32> {
        self.starts[list as usize]..self.starts[list as usize + 1]
    }

    /// Rows that a list surely has: its last block may be nearly empty.
    pub fn least_rows(&self, list: u32) -> usize {
        (self.blocks(list).len() * BLOCK).saturating_sub(BLOCK - 1)
    }

    /// The row at a place of the blocks.
    pub fn row(&self, place: u32) -> u32 {
        self.rows[place as usize]
    }

    /// All places of the blocks with the rows that lie there.
    pub fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        self.rows.iter().enumerate().filter(|(_, row)| **row != NO_ROW).map(|(place, row)| (place as u32, *row))
    }

    /// The list of each of `count` rows.
    pub fn assigned(&self, count: usize) -> Vec<u32> {
        let mut assigned = vec![0; count];
        for list in 0..self.len() as u32 {
            let blocks = self.blocks(list);
            let places = &self.rows[blocks.start as usize * BLOCK..blocks.end as usize * BLOCK];
            places.iter().filter(|row| **row != NO_ROW).for_each(|row| assigned[*row as usize] = list);
        }
        assigned
    }

    pub fn bytes(&self) -> usize {
        let codes = self.coarse.bytes() + self.heads.bytes() + self.fine.bytes() + self.frame.bytes();
        self.centroids.bytes() + codes + (self.starts.len() + self.rows.len()) * 4
    }
}

/// Both kinds of codes of the centroids.
fn quantise_centroids(centroids: &Embeddings, frame: &Frame) -> Result<(Four, Seven, Stats)> {
    let (dim, lists) = (centroids.dim(), centroids.rows());
    let (mut coarse, mut heads) = (Four::memory(lists, dim)?, Seven::memory(lists, dim)?);
    let blocks = coarse.bytes_mut().par_chunks_exact_mut(Four::block_bytes(dim));
    let tasks = blocks.zip(heads.bytes_mut().par_chunks_mut(BLOCK * Seven::row_bytes(dim))).enumerate();
    let isa = Isa::best();
    let stats = tasks
        .map(|(block, (coarse, heads))| isa.run(QuantiseCentroids { centroids, frame, block, coarse, heads }))
        .reduce(<(Stats, Stats)>::default, |a, b| (a.0.and(b.0), a.1.and(b.1)));
    Ok((Four::new(dim, coarse, stats.0), Seven::new(dim, heads, stats.1), stats.0))
}

/// The centroids of one block.
struct QuantiseCentroids<'a> {
    centroids: &'a Embeddings,
    frame: &'a Frame,
    block: usize,
    coarse: &'a mut [u8],
    heads: &'a mut [u8],
}

impl Work for QuantiseCentroids<'_> {
    type Output = (Stats, Stats);

    #[inline(always)]
    fn call<D: Dots>(self, _: D) -> (Stats, Stats) {
        let Self { centroids, frame, block, coarse, heads } = self;
        let dim = centroids.dim();
        let (mut turned, mut narrow) = (vec![0.0; dim], vec![0.0; dim]);
        let (mut four, mut seven) = (four::Fit::default(), SevenFit::default());
        let mut stats = <(Stats, Stats)>::default();
        let mut writer = four::Writer::default();
        for (at, head) in heads.chunks_exact_mut(Seven::row_bytes(dim)).enumerate() {
            let centroid = centroids.row(block * BLOCK + at);
            frame.apply(centroid, &mut turned);
            narrow.iter_mut().zip(&turned).for_each(|(out, v)| *out = *v as f32);
            four.fit(&turned, &narrow, &mut stats.0);
            writer.add(&four, half_square(centroid), coarse);
            seven.fit(&turned, &narrow, &mut stats.1);
            seven.write(head, half_square(centroid));
        }
        writer.finish(coarse, &mut stats.0);
        stats
    }
}

/// Codes of the members of each list around its centroid; every list starts a block.
fn quantise_rows(
    rows: &Embeddings,
    centroids: &Embeddings,
    frame: &Frame,
    members: &[Vec<u32>],
    places: usize,
) -> Result<Two> {
    let mut memory: Memory = Two::memory(places, rows.dim())?;
    let (mut left, mut parts) = (memory.bytes_mut(), Vec::with_capacity(members.len()));
    for (list, members) in members.iter().enumerate() {
        let (blocks, rest) = left.split_at_mut(members.len().div_ceil(BLOCK) * Two::block_bytes(rows.dim()));
        parts.push(QuantiseRows { rows, frame, centroid: centroids.row(list), members, blocks });
        left = rest;
    }
    let isa = Isa::best();
    parts.into_par_iter().for_each(|part| isa.run(part));
    Ok(Two::new(rows.dim(), memory))
}

/// The rows of one list.
struct QuantiseRows<'a> {
    rows: &'a Embeddings,
    frame: &'a Frame,
    centroid: &'a [f32],
    members: &'a [u32],
    blocks: &'a mut [u8],
}

impl Work for QuantiseRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call<D: Dots>(self, _: D) {
        let Self { rows, frame, centroid, members, blocks } = self;
        let dim = rows.dim();
        let (mut centre, mut whole, mut rest) = (vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]);
        let mut narrow = vec![0.0; dim];
        frame.apply(centroid, &mut centre);
        let mut fit = two::Fit::default();
        let mut blocks = blocks.chunks_exact_mut(Two::block_bytes(dim));
        for members in members.chunks(BLOCK) {
            let block = blocks.next().expect("a block for every 16 members");
            for (at, member) in members.iter().enumerate() {
                frame.apply(rows.row(*member as usize), &mut whole);
                rest.iter_mut().zip(whole.iter().zip(&centre)).for_each(|(out, (v, c))| *out = v - c);
                narrow.iter_mut().zip(&rest).for_each(|(out, v)| *out = *v as f32);
                fit.fit(&rest, &narrow, &whole);
                fit.write(block, at);
            }
            (members.len()..BLOCK).for_each(|at| two::Fit::write_none(block, at));
        }
    }
}
