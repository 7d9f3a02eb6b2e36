//! Retention: how what is old is deleted while jobs and promotions go on.
//!
//! **Invariant.** Whoever wants to use a model, generation, report, dataset version or brought file first writes that it does (an
//! open run, whose spec names it; the [`Hold`] of a promotion; a release) and then looks for a [`Condemned`] mark of it, and gives up
//! when there is one. Whoever wants to delete it first writes the mark and then looks for runs, holds and releases, and gives up
//! when there is one that names it. Reads of the store follow its writes, so of two that meet at least one sees the other, and
//! nothing that is in use is deleted. Both giving up is harmless.

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::ids::JobId;
use crate::jobs::GenerationRef;
use crate::keys;

/// `retention/condemned/<place>.json`: what lies there is about to be deleted, or is being deleted. It goes when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Folder or key.
    pub place: String,
    /// Who will delete it: unique, so that of two who want to only one does.
    pub by: String,
    /// When it was marked, milliseconds since 1970.
    pub at_ms: u64,
}

impl Message for Condemned {
    const NAME: &'static str = "condemned";
    const VERSION: u16 = 1;
}

/// `retention/holds/<name>.json`: a promotion needs these. It goes when the release is made; one that is older than a day is of a
/// coordinator that died, and holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Folders.
    pub places: Vec<String>,
    /// When it began, milliseconds since 1970.
    pub at_ms: u64,
}

impl Message for Hold {
    const NAME: &'static str = "hold";
    const VERSION: u16 = 1;
}

/// Folder of a model.
pub fn model_place(model: &JobId) -> String {
    format!("{}/{model}", keys::MODELS)
}

/// Folder of a generation.
pub fn generation_place(generation: &GenerationRef) -> String {
    format!("{}/{}/{}", keys::GALLERIES, generation.gallery, generation.generation)
}

/// Folder of a report.
pub fn report_place(report: &JobId) -> String {
    format!("{}/{report}", keys::REPORTS)
}
