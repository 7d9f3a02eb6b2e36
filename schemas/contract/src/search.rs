//! Search: the public request and reply, and what root and leaf say to each other.

mod past;

use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, raw_bytes};
use crate::ids::{Name, WorkerId};
use crate::jobs::GenerationRef;
use crate::ranking::Candidate;

/// Largest image in a request, bytes: clients shrink before they send.
pub const MAX_QUERY_IMAGE_BYTES: usize = 256 << 10;
/// Longest side that clients leave to an image.
pub const MAX_QUERY_IMAGE_PX: u32 = 512;

/// A question: a weighted sum of terms, each a unit vector; the sum is normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchRequest {
    /// The alias that is asked.
    pub alias: Name,
    /// 1–64.
    pub terms: Vec<WeightedTerm>,
    /// K, results wanted: 1–10,000. Where a reply of so many does not fit into a message, the error says how many do.
    pub k: u32,
    /// Fail below this share of the gallery's rows.
    pub min_coverage: f64,
    /// Time after which the answer is of no use; at most a minute counts.
    pub deadline_ms: u32,
}

impl Message for SearchRequest {
    const NAME: &'static str = "search-request";
    const VERSION: u16 = 1;
}

/// A term with its weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightedTerm {
    /// Its weight; not 0.
    pub weight: f32,
    /// The term.
    pub term: Term,
}

/// One thing that results should be like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Term {
    /// Attributes that it has and has not; all others are not said. An entry is a name, or several with commas.
    Attributes {
        /// Has.
        with: Vec<String>,
        /// Has not.
        without: Vec<String>,
    },
    /// An image's bytes (JPEG, PNG or WebP).
    Image {
        /// The file.
        #[serde(with = "raw_bytes")]
        bytes: Vec<u8>,
    },
    /// An item of the gallery. The answer leaves it out: "more like this" is not this one.
    Item {
        /// Its id.
        item: String,
    },
    /// A vector of the model's dimension.
    Vector {
        /// D values.
        values: Vec<f32>,
    },
}

/// The answer to a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchReply {
    /// Results.
    Found(Box<SearchResults>),
    /// None, and why.
    Error(SearchError),
}

impl Message for SearchReply {
    const NAME: &'static str = "search-reply";
    const VERSION: u16 = 2;

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        // Version 2 has one more kind of error.
        body.read(Self::NAME)
    }
}

/// Results of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchResults {
    /// Release that answered.
    pub release: u64,
    /// Its generation.
    pub generation: GenerationRef,
    /// Nearest first.
    pub hits: Vec<Hit>,
    /// How much of the gallery was asked.
    pub coverage: Coverage,
    /// Names of the hits' labels.
    pub vocabulary: Vec<String>,
    /// Milliseconds by stage: `embed`, `fan_out`, `leaf` (the slowest leaf's own time, part of `fan_out`), `merge`,
    /// `details`, `total`.
    pub timings_ms: Vec<(String, f64)>,
}

/// One result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Its id.
    pub item: String,
    /// Euclidean distance to the query, 0–2.
    pub distance: f64,
    /// Known labels: +1 has, −1 has not, 0 not known.
    pub labels: Vec<i8>,
    /// Where its image lies.
    pub image: ImageRef,
}

/// A row of a dataset part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Key of the part.
    pub part: String,
    /// Row in it.
    pub row: u32,
}

/// How much of the gallery was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// Rows that were searched.
    pub rows: u64,
    /// Rows of the generation.
    pub total_rows: u64,
    /// Shards that were searched.
    pub shards: u32,
    /// Shards of the generation.
    pub total_shards: u32,
    /// Why shards are missing.
    pub reasons: Vec<String>,
}

impl Coverage {
    /// Share of rows that were searched; 1 for an empty generation.
    pub fn share(&self) -> f64 {
        if self.total_rows == 0 { 1.0 } else { self.rows as f64 / self.total_rows as f64 }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct SearchError {
    /// What the caller can do about it.
    pub kind: SearchErrorKind,
    /// For people.
    pub message: String,
    /// The nearest names, when a name was wrong.
    pub nearest: Vec<String>,
}

/// Kinds of [`SearchError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchErrorKind {
    /// The request can't be met as it is.
    Invalid,
    /// A name is wrong.
    NotFound,
    /// Less than `min_coverage` of the gallery could be asked.
    Coverage,
    /// The deadline came first.
    Deadline,
    /// Try again later.
    Unavailable,
    /// Too many searches at once: try again after a pause (HTTP's 429).
    Overloaded,
}

/// Root → leaf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeafRequest {
    /// The generation; a leaf that does not hold it says so.
    pub generation: GenerationRef,
    /// Time left.
    pub deadline_ms: u32,
    /// Names the request in a [`LeafCancel`]: unlike any other's at the same time.
    pub number: u64,
    /// What is asked.
    pub ask: LeafAsk,
}

impl Message for LeafRequest {
    const NAME: &'static str = "leaf-request";
    const VERSION: u16 = 2;

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        body.read::<past::LeafRequestV1>(Self::NAME).map(Self::from)
    }
}

/// What a root asks of a leaf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeafAsk {
    /// The nearest rows of some shards.
    TopK {
        /// The shards.
        shards: Vec<u32>,
        /// Unit vector of dimension D.
        query: Vec<f32>,
        /// K.
        k: u32,
        /// Whether labels and image references are to come with the candidates: it saves another request.
        details: bool,
    },
    /// Labels and image references of rows.
    Details {
        /// (shard, row), all held by this leaf.
        rows: Vec<(u32, u32)>,
    },
    /// The embedding of an item, if one of these shards has it.
    Embedding {
        /// The shards.
        shards: Vec<u32>,
        /// The item.
        item: String,
    },
}

/// Root → leaf, without an answer: nobody waits for this request any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafCancel {
    /// [`LeafRequest::number`].
    pub number: u64,
}

impl Message for LeafCancel {
    const NAME: &'static str = "leaf-cancel";
    const VERSION: u16 = 1;
}

/// Leaf → root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeafReply {
    /// Who answers.
    pub worker: WorkerId,
    /// Microseconds between request and answer in the leaf: waiting and computing.
    pub took_us: u32,
    /// The answer.
    pub answer: LeafAnswer,
}

impl Message for LeafReply {
    const NAME: &'static str = "leaf-reply";
    const VERSION: u16 = 2;

    fn upgrade(_version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        body.read::<past::LeafReplyV1>(Self::NAME).map(Self::from)
    }
}

/// What a leaf answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeafAnswer {
    /// Of [`LeafAsk::TopK`].
    TopK {
        /// Best K over the shards that were searched, in ranking order.
        candidates: Vec<Candidate>,
        /// Of every candidate, in their order; empty when they were not asked for.
        details: Vec<Detail>,
        /// The shards that were searched, with their rows.
        searched: Vec<(u32, u64)>,
        /// The shards that were not, with the reason.
        missing: Vec<(u32, String)>,
    },
    /// Of [`LeafAsk::Details`], in the order asked.
    Details(Vec<Detail>),
    /// Of [`LeafAsk::Embedding`].
    Embedding(Option<Vec<f32>>),
    /// The leaf can't answer.
    Refused(String),
    /// The leaf has too much to do at the moment; said at once.
    Overloaded,
}

/// What a leaf knows of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Known labels.
    pub labels: Vec<i8>,
    /// Number of the dataset part.
    pub source_part: u32,
    /// Row in it.
    pub source_row: u32,
}
