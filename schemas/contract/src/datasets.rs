//! What is known of a dataset beside its versions' manifests: items that were taken down, and what a version grew from.
//!
//! Removals are an append-only list of one dataset, numbered from 1 without gaps, each created once. An item that the
//! list removes is shown nowhere, whichever version or generation holds it: searchers leave it out as soon as they hear
//! of it, and whatever is made afterwards does not have it. Only another entry of the list brings it back.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::ids::{JobId, Name};
use crate::jobs::{DatasetRef, ZeroLabel};

/// `removals/<dataset>/NNNNNNNN.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Removal {
    /// The dataset, in all its versions.
    pub dataset: Name,
    /// From 1, without gaps.
    pub number: u64,
    /// Down or back.
    pub change: RemovalChange,
    /// The items, each once.
    pub items: Vec<String>,
    /// When, milliseconds since 1970.
    pub created_ms: u64,
}

impl Message for Removal {
    const NAME: &'static str = "removal";
    const VERSION: u16 = 1;
}

/// What a removal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RemovalChange {
    /// The items are taken down.
    Remove,
    /// The items may be shown again.
    Restore,
}

/// What some first removals of a dataset add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Number of the last one counted; 0 of none.
    last: u64,
    /// The items that are down, with the removal that took them.
    items: BTreeMap<String, u64>,
}

impl Removed {
    /// Counts the next removal; one that is counted already, or not yet due, changes nothing.
    pub fn apply(&mut self, removal: &Removal) {
        let Removal { dataset: _, number, change, items, created_ms: _ } = removal;
        if *number != self.last + 1 {
            return;
        }
        self.last = *number;
        for item in items {
            match change {
                RemovalChange::Remove => {
                    self.items.entry(item.clone()).or_insert(*number);
                }
                RemovalChange::Restore => {
                    self.items.remove(item);
                }
            }
        }
    }

    /// Number of the last removal counted; 0 of none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether an item is down.
    pub fn contains(&self, item: &str) -> bool {
        self.items.contains_key(item)
    }

    /// Why an item is left out, if it is down.
    pub fn reason(&self, item: &str) -> Option<String> {
        self.items.get(item).map(|number| format!("was removed from the dataset (removal {number})"))
    }

    /// The items that are down, in order.
    pub fn items(&self) -> impl ExactSizeIterator<Item = &str> {
        self.items.keys().map(String::as_str)
    }
}

/// `datasets/<dataset>/<version>/about.json`: how a version came to be. None of versions from before there were any.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetAbout {
    /// Name and version.
    pub dataset: DatasetRef,
    /// The version that it grew from.
    pub base: Option<JobId>,
    /// Its first parts, which are those of the base and lie there.
    pub shared_parts: u32,
    /// Number of the last removal that it counts; 0 of none.
    pub removals: u64,
    /// Rows of the base or of the source that are not in it for a removal.
    pub removed: u64,
    /// Rows of the source that are not in it because the base has their items.
    pub already_there: u64,
    /// How labels were understood, by attribute, over the rows of the shared parts and all that were listed.
    pub labels: Vec<LabelCounts>,
}

impl Message for DatasetAbout {
    const NAME: &'static str = "dataset-about";
    const VERSION: u16 = 1;
}

/// How the labels of an attribute were understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelCounts {
    /// The attribute.
    pub attribute: String,
    /// Rows that have it.
    pub has: u64,
    /// Rows that have it not.
    pub has_not: u64,
    /// Rows of which it is not known.
    pub unknown: u64,
    /// What `0` was taken for, where the source has one.
    pub zero: Option<ZeroLabel>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal(number: u64, change: RemovalChange, items: &[&str]) -> Removal {
        let items = items.iter().map(ToString::to_string).collect();
        Removal { dataset: Name::new("faces").unwrap(), number, change, items, created_ms: 0 }
    }

    #[test]
    fn removals_add_up_in_their_order_and_each_counts_once() {
        let mut removed = Removed::default();
        removed.apply(&removal(2, RemovalChange::Remove, &["z"]));
        assert_eq!((removed.last(), removed.contains("z")), (0, false), "the first is missing");
        removed.apply(&removal(1, RemovalChange::Remove, &["a", "b"]));
        removed.apply(&removal(2, RemovalChange::Remove, &["b", "c"]));
        removed.apply(&removal(3, RemovalChange::Restore, &["a", "never there"]));
        removed.apply(&removal(1, RemovalChange::Remove, &["a"]));
        assert_eq!((removed.last(), removed.items().collect::<Vec<_>>()), (3, vec!["b", "c"]));
        assert_eq!(removed.reason("b").as_deref(), Some("was removed from the dataset (removal 1)"));
        assert_eq!(removed.reason("a"), None);
    }
}
