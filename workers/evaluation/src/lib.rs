//! Evaluation of a gallery: which queries are asked, how well the ranking answers them, whether a new
//! generation may replace the old one, and the report that says all this to people and to programs.
//!
//! Pure: no clock, no I/O, no tensors. The worker's evaluate job loads shards and embeds queries; whatever
//! decides a number is here, so that another tool can reproduce it.
//!
//! What always holds: a figure is a function of (labels, embeddings, settings). It does not depend on the
//! number of threads, on how the gallery is cut into blocks, or on the order in which blocks come.

pub mod agreement;
pub mod bootstrap;
pub mod brought;
pub mod compare;
mod distance;
pub mod error;
pub mod estimates;
pub mod gallery;
pub mod gate;
pub mod headline;
mod labels;
pub mod metrics;
pub mod queries;
pub mod report;
pub mod score;
pub mod scores;
pub mod sheets;
pub mod training;
pub mod trec;

pub use compare::{Comparison, compare};
pub use error::{Error, ErrorKind, Result};
pub use gallery::{Block, PlainBlock};
pub use gate::gate;
pub use headline::headline;
pub use queries::{DrawnQueries, Query, QueryImage, QuerySet, Term, draw_alike, draw_queries};
pub use score::{Progress, score};
pub use scores::{Found, Further, QueryScore, decode_scores, encode_scores};
