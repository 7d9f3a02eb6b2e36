//! A shard in memory, ready to be searched.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::file::reader::ChunkReader;
use rayon::prelude::*;

use crate::approximate::Approximate;
use crate::buffer::{Embeddings, LINE, write_rows};
use crate::codes::Codes;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::file::{Columns, ShardFile};
use crate::filter::{Filter, LabelColumns, RowSet};
use crate::ids::Order;
use crate::kernels::{Dots, Isa, Work};
use crate::pages::Values;
use crate::rows::{ShardRows, check_codes, check_embedding, is_surely_one, is_surely_unit};

/// Bytes of memory of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// f32 rows with their padding; 0 where they lie in a local file, which the system caches as it likes.
    pub embeddings: usize,
    /// Quantised copies of the rows.
    pub codes: usize,
    /// Labels, splits, sources and digests.
    pub columns: usize,
    /// Item ids and their order.
    pub ids: usize,
    /// The approximate index.
    pub approximate: usize,
}

impl Memory {
    /// What a shard will take, with its codes, before any of it is read: `rows` rows of dimension `dim` with
    /// `attributes` labels, of whose ids `id_bytes` are in all.
    ///
    /// Ids in their own order take no order list; this counts one. So it is at least what [`Shard::memory`] tells later.
    pub fn estimate(rows: usize, dim: usize, attributes: usize, id_bytes: usize) -> Self {
        Self {
            embeddings: rows * dim.next_multiple_of(LINE) * 4,
            codes: Codes::bytes_for(rows, dim),
            columns: rows * (attributes + 1 + 4 + 4 + 32) + LabelColumns::bytes_for(rows, attributes),
            ids: id_bytes + 8 * rows,
            approximate: 0,
        }
    }

    /// All of them.
    pub fn total(&self) -> usize {
        let Self { embeddings, codes, columns, ids, approximate } = self;
        embeddings + codes + columns + ids + approximate
    }
}

/// N rows of one generation: aligned embeddings, columns, and an order of the ids for look-ups.
pub struct Shard {
    number: u32,
    embeddings: Embeddings,
    columns: Columns,
    attributes: usize,
    by_id: Order,
    label_columns: LabelColumns,
    /// What a fast search reads.
    codes: Option<Codes>,
    approximate: Option<Approximate>,
    /// Keeps its local file from being thrown away.
    lease: Option<Arc<()>>,
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
        let ids = rows.ids()?;
        let by_id = ids.order()?;
        let ShardRows { labels, split, source_part, source_row, image_digest, .. } = rows;
        let columns = Columns { ids, labels, split, source_part, source_row, image_digest };
        Ok(Self::of(number, embeddings, columns, attributes, by_id))
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
        // All that is done with the columns is done beside the reading of the embeddings, so that no thread waits.
        let columns = || {
            let columns = file.columns()?;
            let Columns { ids, labels, split, .. } = &columns;
            check_codes(labels, split, attributes, |row| ids.get(row)).map_err(Error::in_file)?;
            let by_id = ids.order().map_err(Error::in_file)?;
            let label_columns = LabelColumns::new(labels, attributes);
            Ok::<_, Error>((columns, by_id, label_columns))
        };
        let (columns, embeddings) = rayon::join(columns, || read_embeddings(&file, dim));
        let (embeddings, doubtful) = embeddings?;
        let (columns, by_id, label_columns) = columns?;
        for row in doubtful.map_or(0..0, |first| first..columns.ids.len()) {
            check_embedding(columns.ids.get(row), row, embeddings.row(row)).map_err(Error::in_file)?;
        }
        Ok(Self::with(number, embeddings, columns, attributes, by_id, label_columns))
    }

    pub(crate) fn of(number: u32, embeddings: Embeddings, columns: Columns, attributes: usize, by_id: Order) -> Self {
        let label_columns = LabelColumns::new(&columns.labels, attributes);
        Self::with(number, embeddings, columns, attributes, by_id, label_columns)
    }

    fn with(
        number: u32,
        embeddings: Embeddings,
        columns: Columns,
        attributes: usize,
        by_id: Order,
        label_columns: LabelColumns,
    ) -> Self {
        Self {
            number,
            embeddings,
            columns,
            attributes,
            by_id,
            label_columns,
            codes: None,
            approximate: None,
            lease: None,
        }
    }

    /// Quantises the rows for fast searches, on the current rayon pool; without that a search reads all rows.
    pub fn with_codes(mut self) -> Result<Self> {
        self.codes = Codes::build(&self.embeddings, self.rows(), Isa::best())?;
        Ok(self)
    }

    /// Takes its approximate index, for [`crate::top_k_approximate`]. Exact searches are as before.
    #[must_use]
    pub fn with_approximate(mut self, index: Approximate) -> Self {
        self.approximate = Some(index);
        self
    }

    /// The approximate index, if it was given one.
    pub fn approximate(&self) -> Option<&Approximate> {
        self.approximate.as_ref()
    }

    /// Its number in the generation.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.columns.ids.len()
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
        self.columns.ids.get(row as usize)
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
        self.columns.ids.find(&self.by_id, item)
    }

    /// The rows whose known labels satisfy a filter; refuses an attribute that is not there.
    pub fn matching(&self, filter: &Filter) -> Result<RowSet> {
        self.label_columns.matching(filter)
    }

    /// Bytes of memory, by what they are for.
    pub fn memory(&self) -> Memory {
        let Columns { ids, labels, split, source_part, source_row, image_digest } = &self.columns;
        let numbers = (source_part.capacity() + source_row.capacity()) * 4;
        let columns = labels.capacity() + split.capacity() + numbers + image_digest.capacity() * 32;
        Memory {
            embeddings: self.embeddings.bytes(),
            codes: self.codes.as_ref().map_or(0, Codes::bytes),
            columns: columns + self.label_columns.bytes(),
            ids: ids.bytes() + self.by_id.bytes(),
            approximate: self.approximate.as_ref().map_or(0, Approximate::bytes),
        }
    }

    pub(crate) fn set_codes(&mut self, codes: Option<Codes>) {
        self.codes = codes;
    }

    pub(crate) fn set_lease(&mut self, lease: Arc<()>) {
        self.lease = Some(lease);
    }

    /// Whether the f32 rows lie in a local file, so that the system can take their memory back at any time.
    pub fn is_mapped(&self) -> bool {
        self.embeddings.is_mapped()
    }

    pub(crate) fn columns(&self) -> (&Columns, &Order) {
        (&self.columns, &self.by_id)
    }

    pub(crate) fn codes(&self) -> Option<&Codes> {
        self.codes.as_ref()
    }

    pub(crate) fn padded(&self) -> &Embeddings {
        &self.embeddings
    }
}

/// The embeddings of a file, and the first row that is perhaps not of unit norm.
fn read_embeddings<R: ChunkReader + Clone + 'static>(
    file: &ShardFile<R>,
    dim: usize,
) -> Result<(Embeddings, Option<usize>)> {
    let mut embeddings = Embeddings::zeroed(file.rows(), dim)?;
    let (stride, isa) = (embeddings.stride(), Isa::best());
    let (mut left, mut first) = (embeddings.values_mut(), 0);
    let mut groups = Vec::with_capacity(file.groups());
    for group in 0..file.groups() {
        let (rows, rest) = left.split_at_mut(file.group_rows(group) * stride);
        groups.push((group, first, rows));
        first += file.group_rows(group);
        left = rest;
    }
    let read = |(group, first, rows): (usize, usize, &mut [f32])| {
        let mut doubtful = None;
        file.embeddings(group, |values| {
            let found = isa.run(Copy { rows: &mut *rows, dim, values });
            doubtful = doubtful.or(found.map(|row| first + row));
            Ok(())
        })?;
        Ok(doubtful)
    };
    let doubtful = groups.into_par_iter().with_max_len(1).map(read).collect::<Result<Vec<_>>>()?;
    Ok((embeddings, doubtful.into_iter().flatten().next()))
}

/// Copies some values into padded rows; tells the first row that is then complete and perhaps not of unit norm.
struct Copy<'a> {
    rows: &'a mut [f32],
    dim: usize,
    values: Values<'a>,
}

impl Work for Copy<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn call<D: Dots>(self, dots: D) -> Option<usize> {
        let Self { rows, dim, values: Values { first, bytes, .. } } = self;
        let mut doubtful = None;
        let mut check = |row: usize, sound: bool| {
            if doubtful.is_none() && !sound {
                doubtful = Some(row);
            }
        };
        // A page may start and end within a row.
        let row_bytes = 4 * dim;
        let (head, rest) = bytes.split_at((first.next_multiple_of(dim) - first).saturating_mul(4).min(bytes.len()));
        let (whole, tail) = rest.split_at(rest.len() / row_bytes * row_bytes);
        let (row, stride) = (first.div_ceil(dim), dim.next_multiple_of(LINE));
        write_rows(rows, dim, first, head, |row, embedding| check(row, is_surely_unit(embedding)));
        let (mut next, start) = (row, (row * stride).min(rows.len()));
        dots.copy_rows(whole, &mut rows[start..], dim, stride, |square| {
            check(next, is_surely_one(square));
            next += 1;
        });
        write_rows(rows, dim, next * dim, tail, |row, embedding| check(row, is_surely_unit(embedding)));
        doubtful
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
