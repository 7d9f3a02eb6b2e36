//! Sources with all that can be said about them, and sources that make a dataset grow.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CsvColumns, IngestSource, ZeroLabel};
use crate::ids::JobId;

/// Files with images and labels, and how they are understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadSource {
    /// The files.
    pub from: ReadFrom,
    /// Which column says what. Of Parquet, `path` is the column of the images themselves; of a folder, `attributes` is the
    /// whole vocabulary; of CelebA nothing is chosen.
    pub columns: CsvColumns,
    /// Which words are labels.
    pub labels: LabelWords,
}

/// Where the rows of a [`ReadSource`] come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReadFrom {
    /// CelebA as distributed.
    Celeba {
        /// The folder.
        dir: String,
        /// What tells the split.
        split: CelebaSplit,
    },
    /// A table as text.
    Csv {
        /// The file.
        file: String,
        /// The folder that the images' paths start from.
        dir: String,
    },
    /// Parquet files with the images in them.
    Parquet {
        /// Files, folders that stand for all `.parquet` files below them, and patterns with `*`, `?` and `[…]`, all of
        /// them as workers see them. A pattern's files come in the order of their names.
        files: Vec<String>,
    },
    /// A folder of images. The folder that an image lies in names the attribute that it has, and not the other ones that
    /// are folders' names; a folder named as a split on the way tells the split.
    Folder {
        /// The folder.
        dir: String,
    },
}

/// What tells the split of CelebA's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CelebaSplit {
    /// `list_eval_partition.txt`.
    #[default]
    Partition,
    /// A hash of the item id.
    Item,
    /// A hash of the person, by `identity_CelebA.txt`.
    Identity,
}

/// Words that are labels beside the usual ones, or against them; case and blanks around them make no difference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabelWords {
    /// Has.
    pub has: Vec<String>,
    /// Has not.
    pub has_not: Vec<String>,
    /// Not known.
    pub unknown: Vec<String>,
    /// What `0` means where no word says it.
    pub zero: ZeroLabel,
}

/// A dataset's version that grows: its parts are shared, all but those with removed items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AppendSource {
    /// The version that grows; the newest, when a job is asked for without one.
    pub base: Option<JobId>,
    /// Removals that are counted; how many there are when the job is accepted, whatever is asked for.
    pub removals: u64,
    /// The new rows; none when only removed items are to be dropped.
    pub source: Option<IngestSource>,
}
