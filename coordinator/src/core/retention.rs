//! Which old things may be deleted: a pure decision over what the store holds.
//!
//! Held is
//! * what a release that serves, or one of the newest of its alias, refers to, and for an hour what served before: answers may go
//!   on from it;
//! * whatever the spec of a job names that is running, or may still be retried, and whatever has its id; and what a promotion
//!   that is under way needs;
//! * whatever a schedule's job names, which its next firing needs;
//! * the newest version of every dataset;
//! * the model and the dataset version of a held generation; objects that a held manifest refers to, wherever they lie;
//! * whatever is younger than the wanted age.
//!
//! A job names by its spec, of which every text is looked at: what a later version of the spec names is held too, at the worst by
//! accident. `likeness_contract::retention` says how deleting and beginning meet.

use std::collections::{BTreeMap, BTreeSet};

use likeness_contract::documents::Release;
use likeness_contract::ids::{JobId, Name};
use likeness_contract::keys;
use likeness_contract::retention::{Hold, generation_place, model_place, report_place};

/// A release that was replaced is held for so long: its cursors are good for ten minutes.
const AFTER_SERVING_MS: u64 = 3600 * 1000;
/// A hold of a promotion counts for so long.
const HOLD_MS: u64 = 24 * 3600 * 1000;
/// Brought files and orphans are collected when they are older: whoever brought them has submitted the job by then.
pub const ORPHAN_MS: u64 = 24 * 3600 * 1000;

/// Kinds of things that are deleted as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A dataset version.
    Dataset,
    /// A model.
    Model,
    /// A generation.
    Generation,
    /// A report.
    Report,
    /// The answers to a file of questions.
    Answers,
    /// A file of weights, queries or questions that a user brought.
    Brought,
    /// Objects that nothing refers to, in a folder.
    Orphans,
}

impl Kind {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Model => "model",
            Self::Generation => "generation",
            Self::Report => "report",
            Self::Answers => "answers",
            Self::Brought => "brought file",
            Self::Orphans => "orphans",
        }
    }
}

/// Something in the store that may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// What it is.
    pub kind: Kind,
    /// Its folder, or its key if it is one object.
    pub place: String,
    /// Its objects.
    pub objects: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// When its manifest, or its newest object where it has none, was written.
    pub modified_ms: u64,
}

/// Folders of files that users brought.
pub const BROUGHT: [&str; 3] = [keys::WEIGHTS, keys::QUERIES, keys::QUESTIONS];

/// What a spec calls what lies at a place: a brought file by its key, all else by its id.
pub fn name_of(place: &str) -> &str {
    let brought = BROUGHT.iter().any(|folder| place.split('/').next() == Some(folder));
    if brought { place } else { place.rsplit('/').next().unwrap_or_default() }
}

/// A job whose data may still be needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveJob {
    /// Its id.
    pub job: JobId,
    /// `is running`, `may be retried`, `can't be read`.
    pub why: &'static str,
    /// Every text in its spec; none when the spec can't be read: then it holds everything.
    pub texts: Option<BTreeSet<String>>,
}

/// Everything that may hold something.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Holders {
    /// All releases of all aliases.
    pub releases: Vec<Release>,
    /// Jobs that run or may be retried.
    pub jobs: Vec<LiveJob>,
    /// Schedules, with every text in them.
    pub schedules: Vec<(Name, BTreeSet<String>)>,
    /// Promotions under way.
    pub promotions: Vec<Hold>,
    /// Newest versions of datasets, as places.
    pub newest_versions: Vec<String>,
}

/// What manifests refer to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct References {
    /// Places that a place needs.
    needs: BTreeMap<String, BTreeSet<String>>,
}

impl References {
    /// Whatever lies elsewhere and is referred to by its key; of a generation also its model, which embeds its queries, and its
    /// images, which results are shown by. Reads the document as any version wrote it.
    pub fn add_manifest(&mut self, place: &str, document: &serde_json::Value) {
        let mut needs: BTreeSet<String> =
            texts(document).iter().filter_map(|key| place_of(key)).map(String::from).collect();
        let text = |pointer: &str| document.pointer(pointer).and_then(serde_json::Value::as_str);
        if place.starts_with(keys::GALLERIES) {
            let dataset = text("/body/dataset/dataset").zip(text("/body/dataset/version"));
            needs.extend(text("/body/model").map(|model| format!("{}/{model}", keys::MODELS)));
            needs.extend(dataset.map(|(dataset, version)| format!("{}/{dataset}/{version}", keys::DATASETS)));
        }
        needs.remove(place);
        self.needs.insert(place.into(), needs);
    }
}

/// The folder of the unit that an object is part of; none of what is no part of one.
pub fn place_of(key: &str) -> Option<&str> {
    let folder = key.split('/').next()?;
    let depth = match folder {
        keys::DATASETS | keys::GALLERIES => 3,
        keys::MODELS | keys::REPORTS | keys::SEARCHES => 2,
        _ => return None,
    };
    let (end, _) = key.match_indices('/').nth(depth - 1)?;
    Some(&key[..end])
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Newest releases of every alias.
    pub keep: usize,
    /// Least age of what is deleted.
    pub older_than_ms: u64,
}

/// A unit and why it is held; none when it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The unit.
    pub unit: Unit,
    /// In words.
    pub held: Option<String>,
}

/// Says of every unit whether it may go.
pub fn judge(units: Vec<Unit>, holders: &Holders, references: &References, policy: Policy, now_ms: u64) -> Vec<Judged> {
    let mut held = Held { why: BTreeMap::new(), references };
    for (place, why) in of_releases(&holders.releases, policy.keep, now_ms) {
        held.hold(&place, &why);
    }
    for hold in holders.promotions.iter().filter(|hold| hold.at_ms.saturating_add(HOLD_MS) > now_ms) {
        hold.places.iter().for_each(|place| held.hold(place, "a promotion is under way"));
    }
    holders.newest_versions.iter().for_each(|place| held.hold(place, "it is the newest version of its dataset"));
    for unit in &units {
        if let Some(why) = of_jobs(unit, &holders.jobs).or_else(|| of_schedules(unit, &holders.schedules)) {
            held.hold(&unit.place, &why);
        }
    }
    // What is too young to go needs what it needs.
    for unit in &units {
        if let Some(why) = too_young(unit, policy, now_ms) {
            held.hold(&unit.place, &why);
        }
    }
    units.into_iter().map(|unit| Judged { held: held.why.get(&unit.place).cloned(), unit }).collect()
}

/// Places that are held, each with the first reason found.
struct Held<'a> {
    why: BTreeMap<String, String>,
    references: &'a References,
}

impl Held<'_> {
    fn hold(&mut self, place: &str, why: &str) {
        if self.why.contains_key(place) {
            return;
        }
        self.why.insert(place.into(), why.into());
        let references = self.references;
        for needed in references.needs.get(place).into_iter().flatten() {
            self.hold(needed, &format!("`{place}` needs it: {why}"));
        }
    }
}

fn of_releases(releases: &[Release], keep: usize, now_ms: u64) -> Vec<(String, String)> {
    let mut by_alias: BTreeMap<&str, Vec<&Release>> = BTreeMap::new();
    releases.iter().for_each(|release| by_alias.entry(release.alias.as_str()).or_default().push(release));
    let mut places = Vec::new();
    for of_alias in by_alias.values_mut() {
        of_alias.sort_by_key(|release| std::cmp::Reverse(release.number));
        for (age, release) in of_alias.iter().enumerate() {
            let replaced_ms = age.checked_sub(1).map(|newer| of_alias[newer].created_ms);
            let just_replaced = replaced_ms.is_some_and(|at| at.saturating_add(AFTER_SERVING_MS) > now_ms);
            if age < keep.max(1) || just_replaced {
                let Release { alias, number, model, generation, report, .. } = release;
                let why = format!("release {number} of `{alias}` is kept");
                let report = report.as_ref().map(report_place);
                let held = [model_place(model), generation_place(generation)].into_iter().chain(report);
                places.extend(held.map(|place| (place, why.clone())));
            }
        }
    }
    places
}

/// A job that runs or may be retried holds what it names, and what it makes.
fn of_jobs(unit: &Unit, jobs: &[LiveJob]) -> Option<String> {
    let name = name_of(&unit.place);
    let holds =
        |job: &&LiveJob| job.job.as_str() == name || job.texts.as_ref().is_none_or(|texts| texts.contains(name));
    jobs.iter().find(holds).map(|LiveJob { job, why, .. }| format!("job `{job}` {why}"))
}

fn of_schedules(unit: &Unit, schedules: &[(Name, BTreeSet<String>)]) -> Option<String> {
    let name = name_of(&unit.place);
    let names = schedules.iter().find(|(_, texts)| texts.contains(name));
    names.map(|(schedule, _)| format!("schedule `{schedule}` names it"))
}

fn too_young(unit: &Unit, policy: Policy, now_ms: u64) -> Option<String> {
    let least = match unit.kind {
        Kind::Brought | Kind::Orphans => ORPHAN_MS,
        _ => policy.older_than_ms,
    };
    (unit.modified_ms.saturating_add(least) > now_ms).then(|| "it is too young".into())
}

/// Every text in a JSON document, keys left out.
pub fn texts(document: &serde_json::Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![document];
    while let Some(value) = open.pop() {
        match value {
            serde_json::Value::String(text) => {
                found.insert(text.clone());
            }
            serde_json::Value::Array(values) => open.extend(values),
            serde_json::Value::Object(fields) => open.extend(fields.values()),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
