//! A shard in memory, ready to be searched.

use std::fmt;

use bytes::Bytes;

use crate::buffer::{Embeddings, LINE, write_rows};
use crate::codes::Codes;
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

    /// Reads a file straight into aligned memory; the same checks as [`crate::decode_shard`].
    pub fn decode(number: u32, bytes: Bytes, dim: usize, attributes: usize) -> Result<Self> {
        let file = ShardFile::open(bytes, dim, attributes)?;
        let columns = file.columns()?;
        let mut embeddings = Embeddings::zeroed(file.rows(), dim)?;
        file.embeddings(|at, values| {
            write_rows(embeddings.values_mut(), dim, at, values);
            Ok(())
        })?;
        for (row, item) in columns.item_ids.iter().enumerate() {
            check_embedding(item, row, embeddings.row(row)).map_err(Error::in_file)?;
        }
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

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("number", &self.number)
            .field("rows", &self.rows())
            .field("dim", &self.dim())
            .finish_non_exhaustive()
    }
}
