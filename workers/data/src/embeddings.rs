//! Embeddings that were made elsewhere: a scan lists their rows with ids, labels and splits, reading takes the vectors of some
//! of these rows and checks every one.
//!
//! Parquet files hold everything ([`parquet`]); an array of numpy's goes with a table of ids ([`npy`]). What is wrong is an error that
//! names file and row: of vectors nothing is skipped, since whoever made them can make them again.

mod labels;
mod npy;
mod parquet;

use std::collections::HashMap;
use std::sync::Arc;

use likeness_contract::jobs::{EmbeddingSource, Import};
use likeness_contract::settings::Vocabulary;

use crate::error::{Error, Result};
use crate::rows::{Place, Scan, ScanRow};
use crate::source::{Files, Places};
use labels::Column;

/// Largest D.
const MAX_DIM: usize = 4096;
/// Largest distance of a vector's norm from 1, where it is not to be normalised: what shards allow.
const NORM_TOLERANCE: f64 = 1e-3;
/// The attribute of rows that have none: a shard has at least one.
const NO_LABELS: &str = "imported";
/// The split of rows of which none is told.
const TEST: u8 = 2;

/// What a scan found.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingList {
    /// The rows; their places are rows of the files, or of the array.
    pub scan: Scan,
    /// D.
    pub dim: u32,
}

/// Lists the rows; of the vectors only their length is looked at.
pub fn scan_embeddings(import: &Import, files: Arc<dyn Files>) -> Result<EmbeddingList> {
    match &import.source {
        EmbeddingSource::Parquet { files: paths } => parquet::scan(import, paths, files),
        EmbeddingSource::Npy { file, table } => npy::scan(import, file, table, files.as_ref()),
    }
}

/// The vectors of rows of a scan, which are in its order: (N, D), each finite and of norm 1.
pub fn read_embeddings(import: &Import, dim: u32, rows: &[ScanRow], files: Arc<dyn Files>) -> Result<Vec<f32>> {
    let mut vectors = Vectors { dim: dim as usize, normalize: import.normalize, values: Vec::new() };
    vectors.values.reserve_exact(rows.len() * vectors.dim);
    match &import.source {
        EmbeddingSource::Parquet { files: paths } => parquet::read(import, paths, rows, files, &mut vectors)?,
        EmbeddingSource::Npy { file, .. } => npy::read(file, rows, files.as_ref(), &mut vectors)?,
    }
    Ok(vectors.values)
}

/// Vectors as they are read.
struct Vectors {
    dim: usize,
    normalize: bool,
    values: Vec<f32>,
}

impl Vectors {
    /// Takes the next row's; `place` tells where it is from.
    fn push(&mut self, vector: &[f32], item: &str, place: impl Fn() -> String) -> Result<()> {
        let refused = |what: String| Err(Error::invalid(format!("{}: the vector of `{item}` {what}", place())));
        if vector.len() != self.dim {
            return refused(format!("has {} numbers, expected {}", vector.len(), self.dim));
        }
        let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return refused("is not finite".into());
        }
        if self.normalize {
            if norm < f64::from(f32::MIN_POSITIVE) {
                return refused("is zero: it has no direction".into());
            }
            self.values.extend(vector.iter().map(|value| (f64::from(*value) / norm) as f32));
            return Ok(());
        }
        if (norm - 1.0).abs() > NORM_TOLERANCE {
            return refused(format!("has norm {norm:.4} instead of 1: import it with `--normalize`"));
        }
        self.values.extend_from_slice(vector);
        Ok(())
    }
}

fn check_dim(place: &str, dim: usize) -> Result<u32> {
    if (1..=MAX_DIM).contains(&dim) {
        return Ok(dim as u32);
    }
    Err(Error::invalid(format!("{place}: vectors of {dim} numbers, expected 1 to {MAX_DIM}")))
}

/// Ids, splits and label columns of all rows, as they are gathered.
#[derive(Default)]
struct Listing {
    items: Vec<String>,
    splits: Vec<u8>,
    places: Vec<Place>,
    columns: Vec<Column>,
}

impl Listing {
    /// The scan, if ids are unique; `place` tells in words where a row is.
    fn finish(self, import: &Import, place: impl Fn(&Place) -> String) -> Result<Scan> {
        let Self { items, splits, places, columns } = self;
        if items.is_empty() {
            return Err(Error::invalid("the files hold no row"));
        }
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(items.len());
        for (row, item) in items.iter().enumerate() {
            if let Some(first) = first.insert(item, row) {
                let (here, there) = (place(&places[row]), place(&places[first]));
                return Err(Error::invalid(format!("{here}: item `{item}` is there already in {there}")));
            }
        }
        let (mut names, mut labels, mut warnings) = labels::chosen(columns, import)?;
        if names.is_empty() {
            names.push(NO_LABELS.into());
            labels.push(vec![1; items.len()]);
            warnings.push(format!("no column holds labels: every row has the one attribute `{NO_LABELS}`"));
        }
        let attributes = |row: usize| labels.iter().map(|labels| labels[row]).collect();
        let rows = items.into_iter().zip(splits).zip(places).enumerate();
        let row = |(row, ((item, split), place))| {
            let (attributes, problem) = (attributes(row), None);
            ScanRow { item, place, attributes, split, problem }
        };
        let (places, zeros) = (Places { dir: String::new(), files: Vec::new() }, vec![None; names.len()]);
        Ok(Scan { vocabulary: Vocabulary { names }, rows: rows.map(row).collect(), warnings, places, zeros })
    }
}

/// The row of the file that a place means.
fn row_of(place: &Place) -> Result<(u32, u64)> {
    match place {
        Place::Parquet { file, row } => Ok((*file, *row)),
        _ => Err(Error::corrupt("list of rows: an image's file instead of a row of vectors")),
    }
}

#[cfg(test)]
mod tests;
