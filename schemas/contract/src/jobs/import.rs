//! Embeddings that were made elsewhere and become a generation like any other.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ZeroLabel;
use crate::ids::Name;

/// Which embeddings are imported, and how; the generation is the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Import {
    /// Name of the gallery.
    pub gallery: Name,
    /// Where they are.
    pub source: EmbeddingSource,
    /// Which column says what.
    pub columns: ImportColumns,
    /// What a label `0` of a table as text means.
    pub zero: ZeroLabel,
    /// Whether vectors are divided by their norm; without, one that is not of norm 1 is refused.
    pub normalize: bool,
    /// Rows per shard.
    pub shard_rows: u32,
}

/// Files of embeddings, as every embedding worker sees them: paths or URLs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingSource {
    /// Tables with a column of ids, one of vectors and perhaps some of labels.
    Parquet {
        /// The files, in order.
        files: Vec<String>,
    },
    /// An array (N, D) of numpy's, and a table as text with a row for each of its rows, in the same order.
    Npy {
        /// The array.
        file: String,
        /// The table of ids and labels.
        table: String,
    },
}

/// Columns by name; where none is named, the one with a usual name, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImportColumns {
    /// The item id.
    pub item: Option<String>,
    /// The vector; of a Parquet file, the only column of lists of numbers.
    pub vector: Option<String>,
    /// The split; `test` without, since nothing of them was trained on here.
    pub split: Option<String>,
    /// The attributes; when empty, all other columns that hold labels.
    pub attributes: Vec<String>,
}
