//! Files of questions and their answers: what `likeness search --queries` and `--batch` read and write.
//!
//! A file is asked of the searchers, one question after another, or as a job. A job's file travels in *parts*: JSON lines, each a
//! [`FileQuestion`] in its envelope, stored under the digest of its bytes. A task answers one part from the release that was
//! pinned when the job was accepted, and the last one writes the [`SearchManifest`]. What can't be answered is an answer too: it says
//! why.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::documents::ObjectRef;
use crate::ids::{JobId, Name};
use crate::jobs::GenerationRef;
use crate::search::SearchRequest;

/// Most questions of a part.
pub const MAX_PART_QUESTIONS: u32 = 65_536;
/// Most results that the questions of a part may ask for together: it bounds what a task holds in memory.
pub const MAX_PART_RESULTS: u64 = 1_000_000;
/// Largest part, bytes.
pub const MAX_PART_BYTES: u64 = 64 << 20;

/// A file of questions, as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchFile {
    /// The alias that is asked.
    pub alias: Name,
    /// Its parts, in order.
    pub parts: Vec<QuestionPart>,
}

/// A file of questions with the release that answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SearchStage {
    /// The alias that was asked.
    pub alias: Name,
    /// Its newest release when the job was accepted.
    pub release: u64,
    /// The model of that release: it embeds the questions.
    pub model: JobId,
    /// Its generation: it answers.
    pub generation: GenerationRef,
    /// The questions.
    pub parts: Vec<QuestionPart>,
}

/// Some questions of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QuestionPart {
    /// Their JSON lines.
    pub object: ObjectRef,
    /// Number of the first one in the file, from 0.
    pub from: u64,
    /// How many there are.
    pub questions: u32,
}

/// One question of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileQuestion {
    /// Its number in the file, from 0.
    pub query: u64,
    /// How the user calls it.
    pub id: Option<String>,
    /// What is asked; the alias is the job's.
    pub request: Option<SearchRequest>,
    /// Why nothing is asked: what stood in the file is no question.
    pub error: Option<String>,
}

impl Message for FileQuestion {
    const NAME: &'static str = "file-question";
    const VERSION: u16 = 1;
}

/// The answer to one question of a file: a row of `tables::answer_schema`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FileAnswer {
    /// The question's number, from 0.
    pub query: u64,
    /// How the user calls it.
    pub id: Option<String>,
    /// The release that answered.
    pub release: Option<u64>,
    /// Share of the gallery's rows that was searched.
    pub coverage: Option<f64>,
    /// Rows that the filter let through; none without a filter.
    pub matching: Option<u64>,
    /// Nearest first.
    pub hits: Vec<FileHit>,
    /// Why there is no answer.
    pub error: Option<String>,
}

impl FileAnswer {
    /// No answer, and why.
    pub fn failed(query: u64, id: Option<String>, error: String) -> Self {
        Self { query, id, error: Some(error), ..Self::default() }
    }
}

/// A result of a [`FileAnswer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileHit {
    /// Its item.
    pub item: String,
    /// Euclidean distance to the query, 0–2.
    pub distance: f64,
}

/// `searches/<job>/manifest.json`: all questions are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchManifest {
    /// The job.
    pub search: JobId,
    /// The alias that was asked.
    pub alias: Name,
    /// The release that answered.
    pub release: u64,
    /// Its model.
    pub model: JobId,
    /// Its generation.
    pub generation: GenerationRef,
    /// Questions in all.
    pub questions: u64,
    /// Those without an answer; their rows say why.
    pub failed: u64,
    /// The answers, in the order of the questions.
    pub answers: Vec<AnswerPart>,
}

impl Message for SearchManifest {
    const NAME: &'static str = "search-manifest";
    const VERSION: u16 = 1;
}

/// Answers to the questions of one part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerPart {
    /// Parquet of `tables::answer_schema`.
    pub object: ObjectRef,
    /// Number of the first question.
    pub from: u64,
    /// How many there are.
    pub questions: u32,
    /// Those without an answer.
    pub failed: u32,
}
