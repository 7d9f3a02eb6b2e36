//! Promotions: whether a release may be made, and whether the searchers are ready for it.
//!
//! A release is made once per job, and only while the release that it was compared with is the newest. It is made
//! when enough searchers can answer, so that the switch is never a gap.

use std::collections::HashMap;

use likeness_contract::documents::{GateDecision, Release};
use likeness_contract::ids::{JobId, Name, WorkerId};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::messages::{AliasState, Placement, Served};

/// Shards that an error message names at most.
const NAMED_SHARDS: usize = 5;

/// A release that somebody wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The alias.
    pub alias: Name,
    /// The job that made it; none by hand.
    pub job: Option<JobId>,
    /// What it must replace.
    pub replaces: Replaces,
    /// The older release that it brings back.
    pub rolls_back_to: Option<u64>,
    /// Embeds the queries.
    pub model: JobId,
    /// Answers them.
    pub generation: GenerationRef,
    /// The report.
    pub report: Option<JobId>,
    /// What the gate said.
    pub gate: Option<GateDecision>,
}

/// What a wanted release replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// Whatever is the newest.
    Newest,
    /// The one that it was compared with; none for the first.
    Compared(Option<u64>),
}

/// What becomes of a wanted release.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Its job made it before.
    AlreadyMade(Box<Release>),
    /// This one is to be made.
    Make(Box<Release>),
    /// The newest release is not the one that it was compared with.
    MovedOn {
        /// The newest.
        newest: Option<u64>,
        /// The one compared with.
        compared: Option<u64>,
    },
}

/// Decides from the releases of the alias, in any order. `created_ms` and `warnings` are filled in when it is made.
pub fn decide(releases: &[Release], wanted: &Wanted) -> Decision {
    let own = |release: &&Release| wanted.job.is_some() && release.job == wanted.job;
    if let Some(made) = releases.iter().find(own) {
        return Decision::AlreadyMade(Box::new(made.clone()));
    }
    let newest = releases.iter().map(|release| release.number).max();
    if let Replaces::Compared(compared) = wanted.replaces
        && compared != newest
    {
        return Decision::MovedOn { newest, compared };
    }
    let Wanted { alias, job, replaces: _, rolls_back_to, model, generation, report, gate } = wanted.clone();
    Decision::Make(Box::new(Release {
        alias,
        number: newest.unwrap_or(0) + 1,
        job,
        replaces: newest,
        rolls_back_to,
        model,
        generation,
        report,
        gate,
        created_ms: 0,
        warnings: Vec::new(),
    }))
}

/// What a release serves.
pub fn served(release: &Release) -> Served {
    Served { release: release.number, model: release.model.clone(), generation: release.generation.clone() }
}

/// The state of an alias whose newest release is this one, with nothing to load.
pub fn serving(newest: &Release) -> AliasState {
    AliasState { serving: Some(served(newest)), loading: None }
}

/// Whether searchers can answer for a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// Enough of them can.
    Ready,
    /// No searcher runs.
    NoSearchers,
    /// Not yet; what is missing, in words.
    Missing(String),
}

/// Every shard must be held by `min(replicas, live searchers)` searchers that have loaded the model too.
pub fn readiness(
    generation: &GenerationRef,
    shards: u32,
    replicas: usize,
    searchers: &[WorkerId],
    placements: &[Placement],
) -> Readiness {
    if searchers.is_empty() {
        return Readiness::NoSearchers;
    }
    let needed = replicas.clamp(1, searchers.len());
    let live = placements.iter().filter(|placement| searchers.contains(&placement.worker));
    let mut holders: HashMap<u32, usize> = HashMap::new();
    let mut models = 0;
    let mut troubles = Vec::new();
    for placement in live {
        troubles.extend(placement.troubles.iter().map(|trouble| format!("`{}`: {trouble}", placement.worker)));
        for held in placement.held.iter().filter(|held| held.generation == *generation && held.model_ready) {
            models += 1;
            for shard in &held.shards {
                *holders.entry(*shard).or_default() += 1;
            }
        }
    }
    let missing: Vec<u32> = (0..shards).filter(|shard| holders.get(shard).copied().unwrap_or(0) < needed).collect();
    if missing.is_empty() && models > 0 {
        return Readiness::Ready;
    }
    Readiness::Missing(describe_missing(&missing, shards, needed, models, &troubles))
}

/// What live searchers can't load of a generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// Its manifest or its model.
    Kit,
    /// A shard.
    Shard(u32),
}

/// What live searchers complain of, of shards `0..shards` and what belongs to all of them.
pub fn doubts(generation: &GenerationRef, shards: u32, searchers: &[WorkerId], placements: &[Placement]) -> Vec<Doubt> {
    let live = placements.iter().filter(|placement| searchers.contains(&placement.worker));
    let troubles: Vec<&String> = live.flat_map(|placement| &placement.troubles).collect();
    if troubles.is_empty() {
        return Vec::new();
    }
    let complained = |shard| {
        let begins = Placement::trouble_with(generation, shard);
        troubles.iter().any(|trouble| trouble.starts_with(&begins))
    };
    let kit = complained(None).then_some(Doubt::Kit);
    kit.into_iter().chain((0..shards).filter(|shard| complained(Some(*shard))).map(Doubt::Shard)).collect()
}

fn describe_missing(missing: &[u32], shards: u32, needed: usize, models: usize, troubles: &[String]) -> String {
    let mut text = if missing.is_empty() && models == 0 {
        "no searcher has loaded the model".to_string()
    } else {
        let named: Vec<String> = missing.iter().take(NAMED_SHARDS).map(u32::to_string).collect();
        let more = if missing.len() > NAMED_SHARDS { ", …" } else { "" };
        let searchers = if needed == 1 { "searcher" } else { "searchers" };
        let (n, of) = (missing.len(), named.join(", "));
        format!("{n} of {shards} shards ({of}{more}) are not held by {needed} {searchers}")
    };
    if !troubles.is_empty() {
        text.push_str("; ");
        text.push_str(&troubles.join("; "));
    }
    text
}

#[cfg(test)]
#[path = "promote_tests.rs"]
mod tests;
