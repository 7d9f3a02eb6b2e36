//! A shard in memory, ready to be searched.

use std::fmt;
use std::path::Path;

use bytes::Bytes;
use parquet::file::reader::ChunkReader;
use rayon::prelude::*;

use crate::buffer::{Embeddings, LINE, write_rows};
use crate::codes::Codes;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::file::ShardFile;
use crate::kernels::Isa;
use crate::rows::{ShardRows, check_embedding, order_of_ids};

/// N rows of one generation: aligned embeddings, columns, and an order of the ids for look-ups.
pub struct Shard {
    number: u32,
    embeddings: Embeddings,
    /// All columns but the embeddings, which are empty here.
    columns: ShardRows,
    attributes: usize,
    /// Rows in the order of their ids' bytes.
    by_id: Vec<u32>,
    /// What a fast search reads.
    codes: Option<Codes>,
}

impl Shard {
    /// Checks the rows (see [`ShardRows::check`]) and takes them. `number` names the shard in candidates.
    pub fn new(number: u32, mut rows: ShardRows, dim: usize, attributes: usize) -> Result<Self> {
        rows.check(dim, attributes)?;
        let mut embeddings = Embeddings::zeroed(rows.len(), dim)?;
        let values = std::mem::take(&mut rows.embeddings);
        for (padded, row) in
            embeddings.values_mut().chunks_exact_mut(dim.next_multiple_of(LINE)).zip(values.chunks_exact(dim))
        {
            padded[..dim].copy_from_slice(row);
        }
        let by_id = order_of_ids(&rows.item_ids)?;
        Ok(Self { number, embeddings, columns: rows, attributes, by_id, codes: None })
    }

    /// Reads a file straight into aligned memory, its row groups in parallel on the current rayon pool; the same checks
    /// as [`crate::decode_shard`].
    pub fn decode(number: u32, bytes: Bytes, dim: usize, attributes: usize) -> Result<Self> {
        Self::read(number, bytes, dim, attributes)
    }

    /// [`Self::decode`] without the bytes of the file in memory.
    pub fn open(number: u32, path: &Path, dim: usize, attributes: usize) -> Result<Self> {
        Self::read(number, Disk::open(path)?, dim, attributes)
    }

    fn read<R>(number: u32, file: R, dim: usize, attributes: usize) -> Result<Self>
    where
        R: ChunkReader + Clone + 'static,
    {
        let file = ShardFile::open(file, dim, attributes)?;
        let (columns, embeddings) = rayon::join(|| file.columns(), || read_embeddings(&file, dim));
        let (columns, embeddings) = (columns?, embeddings?);
        check_rows(&columns, &embeddings)?;
        columns.check_codes(attributes).map_err(Error::in_file)?;
        let by_id = order_of_ids(&columns.item_ids).map_err(Error::in_file)?;
        Ok(Self { number, embeddings, columns, attributes, by_id, codes: None })
    }

    /// Quantises the rows for fast searches, on the current rayon pool; without that a search reads all rows.
    pub fn with_codes(mut self) -> Result<Self> {
        self.codes = Codes::build(&self.embeddings, self.rows(), Isa::best())?;
        Ok(self)
    }

    /// Its number in the generation.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.columns.len()
    }

    /// D.
    pub fn dim(&self) -> usize {
        self.embeddings.dim()
    }

    /// A.
    pub fn attributes(&self) -> usize {
        self.attributes
    }

    /// A row's embedding, (D).
    ///
    /// Panics when there is no such row, as do the other accessors of rows.
    pub fn embedding(&self, row: u32) -> &[f32] {
        self.embeddings.row(row as usize)
    }

    /// A row's item id.
    pub fn item(&self, row: u32) -> &str {
        &self.columns.item_ids[row as usize]
    }

    /// A row's known labels, (A).
    pub fn labels(&self, row: u32) -> &[i8] {
        &self.columns.labels[row as usize * self.attributes..][..self.attributes]
    }

    /// A row's split: 0 train, 1 validation, 2 test.
    pub fn split(&self, row: u32) -> u8 {
        self.columns.split[row as usize]
    }

    /// Dataset part and row in it from which a row was made.
    pub fn source(&self, row: u32) -> (u32, u32) {
        (self.columns.source_part[row as usize], self.columns.source_row[row as usize])
    }

    /// Digest of a row's image.
    pub fn image_digest(&self, row: u32) -> &[u8; 32] {
        &self.columns.image_digest[row as usize]
    }

    /// The row of an item.
    pub fn find(&self, item: &str) -> Option<u32> {
        let ids = &self.columns.item_ids;
        let found = self.by_id.binary_search_by(|row| ids[*row as usize].as_bytes().cmp(item.as_bytes()));
        found.ok().map(|at| self.by_id[at])
    }

    /// Bytes of memory that the rows take with their codes, ids estimated by their lengths.
    pub fn bytes(&self) -> usize {
        let ids: usize = self.columns.item_ids.iter().map(|id| id.len() + size_of::<String>()).sum();
        self.rows() * (self.embeddings.stride() * 4 + self.attributes + 45) + ids + self.code_bytes()
    }

    /// Bytes of memory that the codes take, of [`Self::bytes`]; 0 without codes.
    pub fn code_bytes(&self) -> usize {
        self.codes.as_ref().map_or(0, Codes::bytes)
    }

    pub(crate) fn codes(&self) -> Option<&Codes> {
        self.codes.as_ref()
    }

    pub(crate) fn padded(&self) -> &Embeddings {
        &self.embeddings
    }
}

/// The embeddings of a file.
fn read_embeddings<R: ChunkReader + Clone + 'static>(file: &ShardFile<R>, dim: usize) -> Result<Embeddings> {
    let mut embeddings = Embeddings::zeroed(file.rows(), dim)?;
    let stride = embeddings.stride();
    let mut left = embeddings.values_mut();
    let mut groups = Vec::with_capacity(file.groups());
    for group in 0..file.groups() {
        let (rows, rest) = left.split_at_mut(file.group_rows(group) * stride);
        groups.push((group, rows));
        left = rest;
    }
    let read = |(group, rows): (usize, &mut [f32])| {
        file.embeddings(group, |at, values| {
            write_rows(rows, dim, at, values);
            Ok(())
        })
    };
    groups.into_par_iter().with_max_len(1).map(read).collect::<Result<()>>()?;
    Ok(embeddings)
}

/// Every embedding is finite and of norm 1; the error names the first item that is not.
fn check_rows(columns: &ShardRows, embeddings: &Embeddings) -> Result<()> {
    let bad = columns
        .item_ids
        .par_iter()
        .enumerate()
        .find_map_first(|(row, item)| check_embedding(item, row, embeddings.row(row)).err());
    bad.map_or(Ok(()), |error| Err(error.in_file()))
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("number", &self.number)
            .field("rows", &self.rows())
            .field("dim", &self.dim())
            .finish_non_exhaustive()
    }
}
