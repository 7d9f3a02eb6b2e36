//! What a scan tells later tasks besides its rows: kept with the list of rows, so that all of them read the same.

use bytes::Bytes;
use likeness_contract::datasets::LabelCounts;
use likeness_data::{Places, decode_notes};
use serde::{Deserialize, Serialize};

use crate::error::TaskError;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    /// Where images are.
    pub places: Places,
    /// How labels were understood, over everything that the version lists.
    pub labels: Vec<LabelCounts>,
    /// Number of the last removal that was counted.
    pub removals: u64,
    /// Rows that are left out for a removal.
    pub removed: u64,
    /// Rows that are left out because their items are there.
    pub already_there: u64,
    /// Parts of the version that grows which are shared, by position.
    pub shared: Vec<u32>,
}

impl Notes {
    /// As text.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("plain values")
    }

    /// Those of a list of rows.
    pub fn of(rows: Bytes) -> Result<Self, TaskError> {
        let text = decode_notes(rows)?;
        let text =
            text.ok_or_else(|| TaskError::invalid("the list of rows was written by an older program: ingest again"))?;
        serde_json::from_str(&text)
            .map_err(|error| TaskError::invalid(format!("the list of rows has odd notes: {error}")))
    }
}
