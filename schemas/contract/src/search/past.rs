//! Past versions of what root and leaf say, as they are still read.

use serde::{Deserialize, Serialize};

use super::{Detail, LeafAnswer, LeafAsk, LeafReply, LeafRequest};
use crate::ids::WorkerId;
use crate::jobs::GenerationRef;
use crate::ranking::Candidate;

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
            LeafAskV1::TopK { shards, query, k } => LeafAsk::TopK { shards, query, k, details: false },
            LeafAskV1::Details { rows } => LeafAsk::Details { rows },
            LeafAskV1::Embedding { shards, item } => LeafAsk::Embedding { shards, item },
        };
        Self { generation, deadline_ms, number: 0, ask }
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
                LeafAnswer::TopK { candidates, details: Vec::new(), searched, missing }
            }
            LeafAnswerV1::Details(details) => LeafAnswer::Details(details),
            LeafAnswerV1::Embedding(embedding) => LeafAnswer::Embedding(embedding),
            LeafAnswerV1::Refused(reason) => LeafAnswer::Refused(reason),
        };
        Self { worker, took_us: 0, answer }
    }
}
