//! Past versions of what clients, roots and leaves say, as they are still read; and written, where they say all of it.

use serde::{Deserialize, Serialize};

use super::{
    Coverage, Detail, Hit, LabelFilter, LeafAnswer, LeafAsk, LeafReply, LeafRequest, Recall, SearchError,
    SearchErrorKind, SearchReply, SearchRequest, SearchResults, Searched, WeightedTerm,
};
use crate::codec::Message;
use crate::ids::{Name, WorkerId};
use crate::jobs::GenerationRef;
use crate::ranking::Candidate;

/// Version 1: exact, one page, without a filter.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchRequestV1 {
    alias: Name,
    terms: Vec<WeightedTerm>,
    k: u32,
    min_coverage: f64,
    deadline_ms: u32,
}

impl Message for SearchRequestV1 {
    const NAME: &'static str = SearchRequest::NAME;
    const VERSION: u16 = 1;
}

impl SearchRequestV1 {
    /// The same request, if it asks nothing that is new.
    pub fn of(request: &SearchRequest) -> Option<Self> {
        let SearchRequest { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor, explain } =
            request;
        let old = filter.is_empty() && recall.is_none() && !paged && cursor.is_none() && !explain;
        old.then(|| Self {
            alias: alias.clone(),
            terms: terms.clone(),
            k: *k,
            min_coverage: *min_coverage,
            deadline_ms: *deadline_ms,
        })
    }
}

impl From<SearchRequestV1> for SearchRequest {
    fn from(old: SearchRequestV1) -> Self {
        let SearchRequestV1 { alias, terms, k, min_coverage, deadline_ms } = old;
        Self { min_coverage, deadline_ms, ..Self::new(alias, terms, k) }
    }
}

/// Version 2: without an explanation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchRequestV2 {
    alias: Name,
    terms: Vec<WeightedTerm>,
    k: u32,
    min_coverage: f64,
    deadline_ms: u32,
    #[serde(default)]
    filter: LabelFilter,
    #[serde(default)]
    recall: Option<f64>,
    #[serde(default)]
    paged: bool,
    #[serde(default)]
    cursor: Option<String>,
}

impl Message for SearchRequestV2 {
    const NAME: &'static str = SearchRequest::NAME;
    const VERSION: u16 = 2;
}

impl SearchRequestV2 {
    /// The same request, if it asks nothing that is new.
    pub fn of(request: &SearchRequest) -> Option<Self> {
        let SearchRequest { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor, explain } =
            request.clone();
        (!explain).then_some(Self { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor })
    }
}

impl From<SearchRequestV2> for SearchRequest {
    fn from(old: SearchRequestV2) -> Self {
        let SearchRequestV2 { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor } = old;
        Self { alias, terms, k, min_coverage, deadline_ms, filter, recall, paged, cursor, explain: false }
    }
}

/// Versions 1 and 2: of an exact, unfiltered answer of one page. Version 2 has one more kind of error.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchReplyV2 {
    Found(Box<SearchResultsV2>),
    Error(SearchError),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SearchResultsV2 {
    release: u64,
    generation: GenerationRef,
    hits: Vec<Hit>,
    coverage: Coverage,
    vocabulary: Vec<String>,
    timings_ms: Vec<(String, f64)>,
}

impl Message for SearchReplyV2 {
    const NAME: &'static str = SearchReply::NAME;
    const VERSION: u16 = 2;
}

impl SearchReplyV2 {
    /// The same reply, if it says nothing that is new.
    pub fn of(reply: &SearchReply) -> Option<Self> {
        let results = match reply {
            SearchReply::Error(error) if error.kind == SearchErrorKind::Expired => return None,
            SearchReply::Error(error) => return Some(Self::Error(error.clone())),
            SearchReply::Found(results) => results,
        };
        let SearchResults {
            release,
            generation,
            hits,
            coverage,
            vocabulary,
            timings_ms,
            matching,
            recall,
            next,
            explanation,
        } = results.as_ref();
        let old = matching.is_none() && recall.is_none() && next.is_none() && explanation.is_none();
        old.then(|| {
            Self::Found(Box::new(SearchResultsV2 {
                release: *release,
                generation: generation.clone(),
                hits: hits.clone(),
                coverage: coverage.clone(),
                vocabulary: vocabulary.clone(),
                timings_ms: timings_ms.clone(),
            }))
        })
    }
}

impl From<SearchReplyV2> for SearchReply {
    fn from(old: SearchReplyV2) -> Self {
        let results = match old {
            SearchReplyV2::Found(results) => *results,
            SearchReplyV2::Error(error) => return Self::Error(error),
        };
        let SearchResultsV2 { release, generation, hits, coverage, vocabulary, timings_ms } = results;
        let (matching, recall, next, explanation) = (None, None, None, None);
        Self::Found(Box::new(SearchResults {
            release,
            generation,
            hits,
            coverage,
            vocabulary,
            timings_ms,
            matching,
            recall,
            next,
            explanation,
        }))
    }
}

/// Version 3: without an explanation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchReplyV3 {
    Found(Box<SearchResultsV3>),
    Error(SearchError),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SearchResultsV3 {
    release: u64,
    generation: GenerationRef,
    hits: Vec<Hit>,
    coverage: Coverage,
    vocabulary: Vec<String>,
    timings_ms: Vec<(String, f64)>,
    matching: Option<u64>,
    recall: Option<Recall>,
    next: Option<String>,
}

impl Message for SearchReplyV3 {
    const NAME: &'static str = SearchReply::NAME;
    const VERSION: u16 = 3;
}

impl SearchReplyV3 {
    /// The same reply, if it explains nothing.
    pub fn of(reply: &SearchReply) -> Option<Self> {
        let results = match reply.clone() {
            SearchReply::Error(error) => return Some(Self::Error(error)),
            SearchReply::Found(results) => *results,
        };
        let SearchResults {
            release,
            generation,
            hits,
            coverage,
            vocabulary,
            timings_ms,
            matching,
            recall,
            next,
            explanation,
        } = results;
        explanation.is_none().then(|| {
            Self::Found(Box::new(SearchResultsV3 {
                release,
                generation,
                hits,
                coverage,
                vocabulary,
                timings_ms,
                matching,
                recall,
                next,
            }))
        })
    }
}

impl From<SearchReplyV3> for SearchReply {
    fn from(old: SearchReplyV3) -> Self {
        let results = match old {
            SearchReplyV3::Found(results) => *results,
            SearchReplyV3::Error(error) => return Self::Error(error),
        };
        let SearchResultsV3 { release, generation, hits, coverage, vocabulary, timings_ms, matching, recall, next } =
            results;
        let explanation = None;
        Self::Found(Box::new(SearchResults {
            release,
            generation,
            hits,
            coverage,
            vocabulary,
            timings_ms,
            matching,
            recall,
            next,
            explanation,
        }))
    }
}

/// Version 1: could not be cancelled.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeafRequestV1 {
    generation: GenerationRef,
    deadline_ms: u32,
    ask: LeafAskV1,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LeafAskV1 {
    TopK { shards: Vec<u32>, query: Vec<f32>, k: u32 },
    Details { rows: Vec<(u32, u32)> },
    Embedding { shards: Vec<u32>, item: String },
}

impl From<LeafRequestV1> for LeafRequest {
    fn from(old: LeafRequestV1) -> Self {
        let LeafRequestV1 { generation, deadline_ms, ask } = old;
        let ask = match ask {
            LeafAskV1::TopK { shards, query, k } => {
                LeafAsk::TopK { shards, query, k, details: false, filter: Vec::new(), recall: None }
            }
            LeafAskV1::Details { rows } => LeafAsk::Details { rows },
            LeafAskV1::Embedding { shards, item } => LeafAsk::Embedding { shards, item },
        };
        Self { generation, deadline_ms, number: 0, ask }
    }
}

/// Version 2: exact, without a filter.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeafRequestV2 {
    generation: GenerationRef,
    deadline_ms: u32,
    number: u64,
    ask: LeafAskV2,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LeafAskV2 {
    TopK { shards: Vec<u32>, query: Vec<f32>, k: u32, details: bool },
    Details { rows: Vec<(u32, u32)> },
    Embedding { shards: Vec<u32>, item: String },
}

impl Message for LeafRequestV2 {
    const NAME: &'static str = LeafRequest::NAME;
    const VERSION: u16 = 2;
}

impl LeafRequestV2 {
    /// The same request, if it asks nothing that is new.
    pub fn of(request: &LeafRequest) -> Option<Self> {
        let LeafRequest { generation, deadline_ms, number, ask } = request;
        let ask = match ask.clone() {
            LeafAsk::TopK { filter, recall, .. } if !filter.is_empty() || recall.is_some() => return None,
            LeafAsk::TopK { shards, query, k, details, .. } => LeafAskV2::TopK { shards, query, k, details },
            LeafAsk::Details { rows } => LeafAskV2::Details { rows },
            LeafAsk::Embedding { shards, item } => LeafAskV2::Embedding { shards, item },
            LeafAsk::Margins { .. } | LeafAsk::Sample { .. } => return None,
        };
        Some(Self { generation: generation.clone(), deadline_ms: *deadline_ms, number: *number, ask })
    }
}

impl From<LeafRequestV2> for LeafRequest {
    fn from(old: LeafRequestV2) -> Self {
        let LeafRequestV2 { generation, deadline_ms, number, ask } = old;
        let ask = match ask {
            LeafAskV2::TopK { shards, query, k, details } => {
                LeafAsk::TopK { shards, query, k, details, filter: Vec::new(), recall: None }
            }
            LeafAskV2::Details { rows } => LeafAsk::Details { rows },
            LeafAskV2::Embedding { shards, item } => LeafAsk::Embedding { shards, item },
        };
        Self { generation, deadline_ms, number, ask }
    }
}

/// Version 1: no times, and details in a second answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeafReplyV1 {
    worker: WorkerId,
    answer: LeafAnswerV1,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LeafAnswerV1 {
    TopK { candidates: Vec<Candidate>, searched: Vec<(u32, u64)>, missing: Vec<(u32, String)> },
    Details(Vec<Detail>),
    Embedding(Option<Vec<f32>>),
    Refused(String),
}

impl From<LeafReplyV1> for LeafReply {
    fn from(old: LeafReplyV1) -> Self {
        let LeafReplyV1 { worker, answer } = old;
        let answer = match answer {
            LeafAnswerV1::TopK { candidates, searched, missing } => {
                LeafAnswer::TopK { candidates, details: Vec::new(), searched: whole(searched), missing }
            }
            LeafAnswerV1::Details(details) => LeafAnswer::Details(details),
            LeafAnswerV1::Embedding(embedding) => LeafAnswer::Embedding(embedding),
            LeafAnswerV1::Refused(reason) => LeafAnswer::Refused(reason),
        };
        Self { worker, took_us: 0, answer }
    }
}

/// Version 2: of an exact answer over all rows.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeafReplyV2 {
    worker: WorkerId,
    took_us: u32,
    answer: LeafAnswerV2,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LeafAnswerV2 {
    TopK { candidates: Vec<Candidate>, details: Vec<Detail>, searched: Vec<(u32, u64)>, missing: Vec<(u32, String)> },
    Details(Vec<Detail>),
    Embedding(Option<Vec<f32>>),
    Refused(String),
    Overloaded,
}

impl Message for LeafReplyV2 {
    const NAME: &'static str = LeafReply::NAME;
    const VERSION: u16 = 2;
}

impl LeafReplyV2 {
    /// The same reply, if it says nothing that is new.
    pub fn of(reply: &LeafReply) -> Option<Self> {
        let LeafReply { worker, took_us, answer } = reply;
        let answer = match answer.clone() {
            LeafAnswer::TopK { candidates, details, searched, missing } => {
                let rows = |of: &Searched| (*of == Searched::whole(of.shard, of.rows)).then_some((of.shard, of.rows));
                let searched = searched.iter().map(rows).collect::<Option<_>>()?;
                LeafAnswerV2::TopK { candidates, details, searched, missing }
            }
            LeafAnswer::Details(details) => LeafAnswerV2::Details(details),
            LeafAnswer::Embedding(embedding) => LeafAnswerV2::Embedding(embedding),
            LeafAnswer::Refused(reason) => LeafAnswerV2::Refused(reason),
            LeafAnswer::Overloaded => LeafAnswerV2::Overloaded,
            LeafAnswer::Margins(_) | LeafAnswer::Sample(_) => return None,
        };
        Some(Self { worker: worker.clone(), took_us: *took_us, answer })
    }
}

impl From<LeafReplyV2> for LeafReply {
    fn from(old: LeafReplyV2) -> Self {
        let LeafReplyV2 { worker, took_us, answer } = old;
        let answer = match answer {
            LeafAnswerV2::TopK { candidates, details, searched, missing } => {
                LeafAnswer::TopK { candidates, details, searched: whole(searched), missing }
            }
            LeafAnswerV2::Details(details) => LeafAnswer::Details(details),
            LeafAnswerV2::Embedding(embedding) => LeafAnswer::Embedding(embedding),
            LeafAnswerV2::Refused(reason) => LeafAnswer::Refused(reason),
            LeafAnswerV2::Overloaded => LeafAnswer::Overloaded,
        };
        Self { worker, took_us, answer }
    }
}

fn whole(searched: Vec<(u32, u64)>) -> Vec<Searched> {
    searched.into_iter().map(|(shard, rows)| Searched::whole(shard, rows)).collect()
}

/// Version 3: of a leaf that knows no margins. What it asks is written as it is now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeafRequestV3(LeafRequest);

impl Message for LeafRequestV3 {
    const NAME: &'static str = LeafRequest::NAME;
    const VERSION: u16 = 3;
}

impl LeafRequestV3 {
    /// The same request, if it asks nothing that is new.
    pub fn of(request: &LeafRequest) -> Option<Self> {
        match request.ask {
            LeafAsk::Margins { .. } | LeafAsk::Sample { .. } => None,
            LeafAsk::TopK { .. } | LeafAsk::Details { .. } | LeafAsk::Embedding { .. } => Some(Self(request.clone())),
        }
    }
}

impl From<LeafRequestV3> for LeafRequest {
    fn from(LeafRequestV3(request): LeafRequestV3) -> Self {
        request
    }
}

/// Version 3: of a leaf that knows no margins. What it answers is written as it is now.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeafReplyV3(LeafReply);

impl Message for LeafReplyV3 {
    const NAME: &'static str = LeafReply::NAME;
    const VERSION: u16 = 3;
}

impl LeafReplyV3 {
    /// The same reply, if it says nothing that is new.
    pub fn of(reply: &LeafReply) -> Option<Self> {
        match reply.answer {
            LeafAnswer::Margins(_) | LeafAnswer::Sample(_) => None,
            LeafAnswer::TopK { .. }
            | LeafAnswer::Details(_)
            | LeafAnswer::Embedding(_)
            | LeafAnswer::Refused(_)
            | LeafAnswer::Overloaded => Some(Self(reply.clone())),
        }
    }
}

impl From<LeafReplyV3> for LeafReply {
    fn from(LeafReplyV3(reply): LeafReplyV3) -> Self {
        reply
    }
}
