//! Search: the public request and reply, and what root and leaf say to each other.

mod cursor;
mod explain;
mod past;

pub use cursor::Cursor;
pub use explain::{Anchor, Calibration, ExplainedAttribute, Explanation, Finding, HitExplanation, Sample};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{CodecError, Message, OldBody, Writer, raw_bytes};
use crate::ids::{Name, WorkerId};
use crate::jobs::GenerationRef;
use crate::ranking::Candidate;

/// Largest image in a request, bytes: clients shrink before they send.
pub const MAX_QUERY_IMAGE_BYTES: usize = 256 << 10;
/// Longest side that clients leave to an image.
pub const MAX_QUERY_IMAGE_PX: u32 = 512;

/// A question: a weighted sum of terms, each a unit vector; the sum is normalised.
///
/// In JSON whatever is not known is refused: a filter with a slip in its name must not be passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// The alias that is asked.
    #[serde(default = "usual::alias")]
    pub alias: Name,
    /// 1–64; none with a cursor.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub terms: Vec<WeightedTerm>,
    /// K, results wanted: 1–10,000. Where a reply of so many does not fit into a message, the error says how many do.
    #[serde(default = "usual::k")]
    #[schemars(range(min = 1, max = 10_000))]
    pub k: u32,
    /// Fail below this share of the gallery's rows.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_coverage: f64,
    /// Time after which the answer is of no use; at most a minute counts.
    #[serde(default = "usual::deadline_ms")]
    #[schemars(range(min = 1))]
    pub deadline_ms: u32,
    /// Only items whose known labels are so are results; none is said with a cursor.
    #[serde(default)]
    pub filter: LabelFilter,
    /// An approximate answer that has this part of the true one, on average, is enough: 0–1. Exact without. Not said with a
    /// cursor.
    #[serde(default)]
    pub recall: Option<f64>,
    /// Whether the answer is to bring a cursor for the results that follow.
    #[serde(default)]
    pub paged: bool,
    /// The results that follow an answer that brought this cursor. It stands for that answer's question: terms, filter and
    /// recall are not said again.
    #[serde(default)]
    pub cursor: Option<String>,
    /// Whether the answer is to tell, for every attribute that a term asks for, what is known and estimated of each hit. Not
    /// said with a cursor: what follows an explained answer is explained.
    #[serde(default)]
    pub explain: bool,
}

impl SearchRequest {
    /// An exact answer of one page, of whatever can be searched, within five seconds.
    pub fn new(alias: Name, terms: Vec<WeightedTerm>, k: u32) -> Self {
        let filter = LabelFilter::default();
        let (min_coverage, deadline_ms, recall, paged, cursor, explain) = (0.0, 5_000, None, false, None, false);
        Self { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor, explain }
    }

    /// The results that follow an answer whose `next` is given; the rest as in this request.
    pub fn after(&self, next: String) -> Self {
        let Self { alias, k, min_coverage, deadline_ms, .. } = self.clone();
        Self { min_coverage, deadline_ms, cursor: Some(next), ..Self::new(alias, Vec::new(), k) }
    }
}

impl Message for SearchRequest {
    const NAME: &'static str = "search-request";
    const VERSION: u16 = 3;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(first) = past::SearchRequestV1::of(self) {
            return writer.newest(&first);
        }
        match past::SearchRequestV2::of(self) {
            Some(second) => writer.newest(&second),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::SearchRequestV1>(Self::NAME).map(Self::from),
            _ => body.read::<past::SearchRequestV2>(Self::NAME).map(Self::from),
        }
    }
}

/// What a question in JSON need not say.
mod usual {
    use crate::ids::Name;

    pub fn alias() -> Name {
        Name::new("main").expect("a name")
    }

    pub fn k() -> u32 {
        20
    }

    pub fn deadline_ms() -> u32 {
        5_000
    }

    pub fn weight() -> f32 {
        1.0
    }
}

/// Known labels that a result must have. An item of which a label is not known fits neither side.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelFilter {
    /// Attributes that it has. An entry is a name, or several with commas.
    #[serde(default)]
    pub with: Vec<String>,
    /// Attributes that it has not.
    #[serde(default)]
    pub without: Vec<String>,
}

impl LabelFilter {
    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        let Self { with, without } = self;
        with.is_empty() && without.is_empty()
    }
}

/// A term with its weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WeightedTerm {
    /// Its weight; not 0.
    #[serde(default = "usual::weight")]
    pub weight: f32,
    /// The term.
    pub term: Term,
}

/// One thing that results should be like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Term {
    /// Attributes that it has and has not; all others are not said. An entry is a name, or several with commas.
    Attributes {
        /// Has.
        #[serde(default)]
        with: Vec<String>,
        /// Has not.
        #[serde(default)]
        without: Vec<String>,
    },
    /// An image's bytes (JPEG, PNG or WebP).
    Image {
        /// The file.
        #[serde(with = "raw_bytes")]
        #[schemars(with = "String", extend("contentEncoding" = "base64"))]
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
    const VERSION: u16 = 4;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(second) = past::SearchReplyV2::of(self) {
            return writer.newest(&second);
        }
        match past::SearchReplyV3::of(self) {
            Some(third) => writer.newest(&third),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            // Version 2 has one more kind of error than version 1.
            0..=2 => body.read::<past::SearchReplyV2>(Self::NAME).map(Self::from),
            _ => body.read::<past::SearchReplyV3>(Self::NAME).map(Self::from),
        }
    }
}

/// Results of a search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Rows that the filter let through, of those that were searched; none without a filter.
    pub matching: Option<u64>,
    /// How much of the true answer is expected in this one; none where an exact answer was asked for.
    pub recall: Option<Recall>,
    /// Stands for the results that follow; none when there are none, or when it was not asked for.
    pub next: Option<String>,
    /// What is known and estimated of the attributes that were asked for; none where it was not asked.
    pub explanation: Option<Explanation>,
}

/// What is expected of an approximate answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Recall {
    /// The part of the true answer that is expected in it: the least of the estimates of the shards that were searched, which
    /// were made with a sample of their rows. 1 is exact.
    pub estimate: f64,
    /// Shards that were searched approximately.
    pub shards: u32,
    /// Why others were searched exactly.
    pub exact: Vec<String>,
}

/// One result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageRef {
    /// Key of the part.
    pub part: String,
    /// Row in it.
    pub row: u32,
}

/// How much of the gallery was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The cursor's release is no longer loaded: ask the question again.
    Expired,
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
    const VERSION: u16 = 4;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(second) = past::LeafRequestV2::of(self) {
            return writer.newest(&second);
        }
        match past::LeafRequestV3::of(self) {
            Some(third) => writer.newest(&third),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::LeafRequestV1>(Self::NAME).map(Self::from),
            2 => body.read::<past::LeafRequestV2>(Self::NAME).map(Self::from),
            _ => body.read::<past::LeafRequestV3>(Self::NAME).map(Self::from),
        }
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
        /// Known labels that candidates must have: an attribute's position, and whether it is to be there.
        filter: Vec<(u32, bool)>,
        /// See [`SearchRequest::recall`].
        recall: Option<f64>,
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
    /// How rows lie to some attributes.
    Margins {
        /// (shard, row), all held by this leaf.
        rows: Vec<(u32, u32)>,
        /// The attributes.
        anchors: Vec<Anchor>,
    },
    /// The same of rows with known labels, to judge margins by.
    Sample {
        /// The shards.
        shards: Vec<u32>,
        /// The attributes.
        anchors: Vec<Anchor>,
        /// Rows of each shard, at most: spread evenly over those outside of the training split.
        rows: u32,
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
    const VERSION: u16 = 4;

    fn write<W: Writer>(&self, writer: W) -> W::Output {
        if let Some(second) = past::LeafReplyV2::of(self) {
            return writer.newest(&second);
        }
        match past::LeafReplyV3::of(self) {
            Some(third) => writer.newest(&third),
            None => writer.newest(self),
        }
    }

    fn upgrade(version: u16, body: OldBody<'_>) -> Result<Self, CodecError> {
        match version {
            0 | 1 => body.read::<past::LeafReplyV1>(Self::NAME).map(Self::from),
            2 => body.read::<past::LeafReplyV2>(Self::NAME).map(Self::from),
            _ => body.read::<past::LeafReplyV3>(Self::NAME).map(Self::from),
        }
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
        /// The shards that were searched.
        searched: Vec<Searched>,
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
    /// Of [`LeafAsk::Margins`]: [`Anchor::margin`] per row and anchor, the anchors of a row together.
    Margins(Vec<f64>),
    /// Of [`LeafAsk::Sample`]: one of every shard.
    Sample(Vec<Sample>),
}

/// A shard that was searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Searched {
    /// Its number.
    pub shard: u32,
    /// Its rows.
    pub rows: u64,
    /// Those that the filter let through: all without one.
    pub matching: u64,
    /// How, where an approximate answer was enough.
    pub how: Option<How>,
}

impl Searched {
    /// All rows, exactly.
    pub fn whole(shard: u32, rows: u64) -> Self {
        Self { shard, rows, matching: rows, how: None }
    }
}

/// How a shard was searched where an approximate answer was enough.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// By its approximate index.
    Approximately {
        /// The part of the shard's true answer that its sample found.
        recall: f64,
    },
    /// Exactly.
    Exactly {
        /// Why.
        because: String,
    },
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
