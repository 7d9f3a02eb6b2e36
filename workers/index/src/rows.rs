//! The rows of a shard as plain columns, and the rules that every row obeys.

use crate::error::{Error, Result};
use crate::ids::Ids;

/// Largest deviation of an embedding's norm from 1.
const NORM_TOLERANCE: f64 = 1e-3;

/// The columns of a shard of N rows, embedding dimension D, A attributes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ShardRows {
    /// N item ids, unique.
    pub item_ids: Vec<String>,
    /// N×D, row by row; each row finite and of norm 1.
    pub embeddings: Vec<f32>,
    /// N×A known labels: +1 has, −1 has not, 0 not known.
    pub labels: Vec<i8>,
    /// N codes of the split: 0 train, 1 validation, 2 test.
    pub split: Vec<u8>,
    /// N numbers of dataset parts.
    pub source_part: Vec<u32>,
    /// N rows in those parts.
    pub source_row: Vec<u32>,
    /// N SHA-256 digests of the images' bytes.
    pub image_digest: Vec<[u8; 32]>,
}

impl ShardRows {
    /// N.
    pub fn len(&self) -> usize {
        self.item_ids.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.item_ids.is_empty()
    }

    /// Checks every rule of the type's documentation; the error names the column or the item.
    pub fn check(&self, dim: usize, attributes: usize) -> Result<()> {
        check_shape(dim, attributes, self.len())?;
        let n = self.len();
        let lengths = [
            ("embedding", self.embeddings.len(), n * dim),
            ("attributes", self.labels.len(), n * attributes),
            ("split", self.split.len(), n),
            ("source_part", self.source_part.len(), n),
            ("source_row", self.source_row.len(), n),
            ("image_digest", self.image_digest.len(), n),
        ];
        for (column, found, expected) in lengths {
            if found != expected {
                return Err(Error::invalid(format!("column `{column}` has {found} values, {n} rows need {expected}")));
            }
        }
        for (row, embedding) in self.embeddings.chunks_exact(dim).enumerate() {
            check_embedding(&self.item_ids[row], row, embedding)?;
        }
        check_codes(&self.labels, &self.split, attributes, |row| &self.item_ids[row])?;
        self.ids()?.order().map(|_| ())
    }

    pub(crate) fn ids(&self) -> Result<Ids> {
        Ids::of(self.item_ids.iter().map(String::as_str))
    }
}

/// Labels and split codes are ones that exist.
pub(crate) fn check_codes<'a>(
    labels: &[i8],
    split: &[u8],
    attributes: usize,
    item: impl Fn(usize) -> &'a str,
) -> Result<()> {
    if let Some(at) = labels.iter().position(|label| !(-1..=1).contains(label)) {
        let (row, value) = (at / attributes, labels[at]);
        let item = item(row);
        return Err(Error::invalid(format!("item `{item}` (row {row}) has the label {value}, expected −1, 0 or 1")));
    }
    if let Some(row) = split.iter().position(|split| *split > 2) {
        let (item, value) = (item(row), split[row]);
        return Err(Error::invalid(format!("item `{item}` (row {row}) has the split {value}, expected 0, 1 or 2")));
    }
    Ok(())
}

/// D and A are at least 1 and N fits the row numbers.
pub(crate) fn check_shape(dim: usize, attributes: usize, rows: usize) -> Result<()> {
    let limit = 1 << 16;
    if !(1..=limit).contains(&dim) || !(1..=limit).contains(&attributes) {
        let message = format!("dimension {dim} and {attributes} attributes: both must be 1–{limit}");
        return Err(Error::invalid(message));
    }
    if u32::try_from(rows).is_err() {
        return Err(Error::invalid(format!("{rows} rows are more than a shard's row numbers can tell")));
    }
    Ok(())
}

/// Finite and of norm 1.
pub(crate) fn check_embedding(item: &str, row: usize, embedding: &[f32]) -> Result<()> {
    if is_surely_unit(embedding) {
        return Ok(());
    }
    let norm = embedding.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if !norm.is_finite() {
        return Err(Error::invalid(format!("the embedding of item `{item}` (row {row}) is not finite")));
    }
    if (norm - 1.0).abs() > NORM_TOLERANCE {
        return Err(Error::invalid(format!("the embedding of item `{item}` (row {row}) has norm {norm:.6}, not 1")));
    }
    Ok(())
}

/// A quick test that says yes for nearly all unit vectors and for no others: the f32 sum of D ≤ 2¹⁶ squares in lanes
/// is within 3·10⁻⁴ of the real one, relatively, so that the norm is well within the tolerance. It says no to NaN.
#[inline(always)]
pub(crate) fn is_surely_unit(embedding: &[f32]) -> bool {
    let mut lanes = [0f32; 16];
    let (whole, rest) = embedding.as_chunks::<16>();
    for values in whole {
        for (lane, v) in lanes.iter_mut().zip(values) {
            *lane += v * v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += v * v;
    }
    is_surely_one(lanes.iter().sum())
}

/// The same of an f32 sum of squares that was made in at least 16 lanes, with or without fused additions.
#[inline(always)]
pub(crate) fn is_surely_one(square: f32) -> bool {
    (square - 1.0).abs() < NORM_TOLERANCE as f32 / 2.0
}
