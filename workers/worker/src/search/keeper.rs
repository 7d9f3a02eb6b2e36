//! What a searcher does next about its memory: pure decisions from the view, the holdings and the time.
//!
//! Generations that an alias serves or loads are held: the kit by every searcher (all of them are roots), each
//! shard by those whom rendezvous hashing names. A shard that moved to another searcher is let go only when
//! enough others announce it, and a generation that no alias names stays for a while, so that nothing that
//! answered a moment ago stops answering.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use likeness_contract::ids::WorkerId;
use likeness_contract::jobs::GenerationRef;
use likeness_contract::messages::{Placement, Served};

use super::rendezvous::Ring;
use super::view::View;

/// Longest pause before another attempt to load something.
const RETRY_LAST: Duration = Duration::from_secs(60);
/// Shards that are loaded at once.
const LOADS: usize = 4;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Load manifests and model of a generation.
    LoadKit(Served),
    /// Load some shards of a generation whose kit is there.
    LoadShards(GenerationRef, Vec<u32>),
    /// Let a shard go.
    DropShard(GenerationRef, u32),
    /// Let a generation go.
    DropGeneration(GenerationRef),
    /// Nothing until something changes or this moment has come.
    Rest(Option<Instant>),
}

/// What is in memory, as far as decisions need it: all shards of the generation, and those held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Every shard of the generation.
    pub all: Vec<u32>,
    /// Those in memory.
    pub held: BTreeSet<u32>,
}

/// Something that can fail to load: a generation's kit or one of its shards.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Thing(GenerationRef, Option<u32>);

#[derive(Debug)]
struct Failure {
    attempts: u32,
    again_at: Instant,
    error: String,
}

/// Remembers failures and farewells.
#[derive(Debug)]
pub struct Keeper {
    me: WorkerId,
    replicas: usize,
    keep_generation: Duration,
    retry_first: Duration,
    failures: BTreeMap<Thing, Failure>,
    unwanted_since: BTreeMap<GenerationRef, Instant>,
}

impl Keeper {
    /// A keeper that remembers nothing.
    pub fn new(me: WorkerId, replicas: usize, keep_generation: Duration, retry_first: Duration) -> Self {
        let (failures, unwanted_since) = (BTreeMap::new(), BTreeMap::new());
        Self { me, replicas, keep_generation, retry_first, failures, unwanted_since }
    }

    /// The next thing to do.
    pub fn next(&mut self, view: &View, held: &BTreeMap<GenerationRef, Inventory>, now: Instant) -> Step {
        let wanted = view.wanted();
        let names: BTreeSet<&GenerationRef> = wanted.iter().map(|served| &served.generation).collect();
        self.note_unwanted(&names, held, now);
        if let Some(generation) = self.expired(now) {
            return Step::DropGeneration(generation);
        }
        for served in &wanted {
            if !held.contains_key(&served.generation) && self.may_load(&served.generation, None, now) {
                return Step::LoadKit((*served).clone());
            }
        }
        let ready = names.iter().filter_map(|generation| Some((*generation, held.get(*generation)?)));
        for (generation, inventory) in ready {
            if let Some(step) = self.shards_step(view, generation, inventory, now) {
                return step;
            }
        }
        Step::Rest(self.next_moment())
    }

    /// Something was loaded.
    pub fn on_loaded(&mut self, generation: &GenerationRef, shard: Option<u32>) {
        self.failures.remove(&Thing(generation.clone(), shard));
    }

    /// Something could not be loaded; it is tried again later.
    pub fn on_failure(&mut self, generation: &GenerationRef, shard: Option<u32>, error: String, now: Instant) {
        let attempts = self.failures.get(&Thing(generation.clone(), shard)).map_or(0, |failure| failure.attempts);
        let pause = self.retry_first.saturating_mul(1 << attempts.min(16)).min(RETRY_LAST);
        let failure = Failure { attempts: attempts + 1, again_at: now + pause, error };
        self.failures.insert(Thing(generation.clone(), shard), failure);
    }

    /// What could not be loaded, in words.
    pub fn troubles(&self) -> Vec<String> {
        let words = |(Thing(generation, shard), failure): (&Thing, &Failure)| {
            format!("{}{}", Placement::trouble_with(generation, *shard), failure.error)
        };
        self.failures.iter().map(words).collect()
    }

    /// Keeps account of since when a generation is not wanted; forgets the failures of such.
    fn note_unwanted(
        &mut self,
        wanted: &BTreeSet<&GenerationRef>,
        held: &BTreeMap<GenerationRef, Inventory>,
        now: Instant,
    ) {
        self.failures.retain(|Thing(generation, _), _| wanted.contains(generation));
        self.unwanted_since.retain(|generation, _| held.contains_key(generation) && !wanted.contains(generation));
        for generation in held.keys().filter(|generation| !wanted.contains(generation)) {
            self.unwanted_since.entry(generation.clone()).or_insert(now);
        }
    }

    fn expired(&self, now: Instant) -> Option<GenerationRef> {
        let mut unwanted = self.unwanted_since.iter();
        let expired = unwanted.find(|(_, since)| now.saturating_duration_since(**since) >= self.keep_generation);
        expired.map(|(generation, _)| generation.clone())
    }

    fn may_load(&self, generation: &GenerationRef, shard: Option<u32>, now: Instant) -> bool {
        self.failures.get(&Thing(generation.clone(), shard)).is_none_or(|failure| failure.again_at <= now)
    }

    fn shards_step(
        &self,
        view: &View,
        generation: &GenerationRef,
        inventory: &Inventory,
        now: Instant,
    ) -> Option<Step> {
        let ring = Ring::new(view.takers(&self.me, now));
        let holders = |shard: u32| ring.holders(generation, shard, self.replicas);
        let (mine, others): (Vec<u32>, Vec<u32>) =
            inventory.all.iter().partition(|shard| holders(**shard).contains(&&self.me));
        let missing = mine.into_iter().filter(|shard| !inventory.held.contains(shard));
        let missing: Vec<u32> =
            missing.filter(|shard| self.may_load(generation, Some(*shard), now)).take(LOADS).collect();
        if !missing.is_empty() {
            return Some(Step::LoadShards(generation.clone(), missing));
        }
        let moved = others.into_iter().find(|shard| {
            inventory.held.contains(shard) && {
                let announced = view.holders_of(generation, *shard, now);
                holders(*shard).iter().all(|holder| announced.contains(holder))
            }
        });
        moved.map(|shard| Step::DropShard(generation.clone(), shard))
    }

    /// When the next failure is tried again or the next generation expires.
    fn next_moment(&self) -> Option<Instant> {
        let retries = self.failures.values().map(|failure| failure.again_at);
        let farewells = self.unwanted_since.values().map(|since| *since + self.keep_generation);
        retries.chain(farewells).min()
    }
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, Name};
    use likeness_contract::jobs::DeviceClass;
    use likeness_contract::messages::{AliasState, HeldShards, Presence};

    use super::*;

    const TTL: Duration = Duration::from_secs(15);
    const KEEP: Duration = Duration::from_secs(600);
    const RETRY: Duration = Duration::from_secs(1);

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).unwrap()
    }

    fn served(name: &str) -> Served {
        let job = JobId::new(name).unwrap();
        let generation = GenerationRef { gallery: Name::new("faces").unwrap(), generation: job.clone() };
        Served { release: 1, model: job, generation }
    }

    fn serving(view: &mut View, serving: &str, loading: Option<&str>) {
        let state = AliasState { serving: Some(served(serving)), loading: loading.map(served) };
        view.on_alias(Name::new("production").unwrap(), state);
    }

    fn appear(view: &mut View, name: &str, now: Instant) {
        let presence = Presence {
            worker: worker(name),
            roles: vec![],
            searches: true,
            device: "cpu".into(),
            device_class: DeviceClass::Cpu,
            host: "h".into(),
            version: "0".into(),
            task: None,
            draining: false,
        };
        view.on_presence(&presence, 1, now);
    }

    fn keeper() -> Keeper {
        Keeper::new(worker("me"), 2, KEEP, RETRY)
    }

    fn inventory(all: u32, held: &[u32]) -> Inventory {
        Inventory { all: (0..all).collect(), held: held.iter().copied().collect() }
    }

    #[test]
    fn a_lone_searcher_loads_kit_then_shards_a_few_at_a_time_then_rests() {
        let (mut keeper, mut view, now) = (keeper(), View::new(TTL), Instant::now());
        serving(&mut view, "g1", None);
        let mut held = BTreeMap::new();
        assert_eq!(keeper.next(&view, &held, now), Step::LoadKit(served("g1")));
        held.insert(served("g1").generation, inventory(6, &[]));
        assert_eq!(keeper.next(&view, &held, now), Step::LoadShards(served("g1").generation, vec![0, 1, 2, 3]));
        held.insert(served("g1").generation, inventory(6, &[0, 1, 2, 3]));
        assert_eq!(keeper.next(&view, &held, now), Step::LoadShards(served("g1").generation, vec![4, 5]));
        held.insert(served("g1").generation, inventory(6, &[0, 1, 2, 3, 4, 5]));
        assert_eq!(keeper.next(&view, &held, now), Step::Rest(None));
    }

    #[test]
    fn the_next_generation_is_loaded_beside_and_the_old_one_stays_for_a_while() {
        let (mut keeper, mut view, now) = (keeper(), View::new(TTL), Instant::now());
        serving(&mut view, "g1", Some("g2"));
        let mut held = BTreeMap::from([(served("g1").generation, inventory(1, &[0]))]);
        assert_eq!(keeper.next(&view, &held, now), Step::LoadKit(served("g2")));
        held.insert(served("g2").generation, inventory(1, &[0]));
        serving(&mut view, "g2", None);
        assert_eq!(keeper.next(&view, &held, now), Step::Rest(Some(now + KEEP)));
        let later = now + KEEP;
        assert_eq!(keeper.next(&view, &held, later), Step::DropGeneration(served("g1").generation));
        // A rollback in time keeps it.
        serving(&mut view, "g1", None);
        assert_eq!(keeper.next(&view, &held, later), Step::Rest(Some(later + KEEP)));
    }

    #[test]
    fn a_shard_that_does_not_load_is_named_and_tried_again_later_and_later() {
        let (mut keeper, mut view, now) = (keeper(), View::new(TTL), Instant::now());
        serving(&mut view, "g1", None);
        let generation = served("g1").generation;
        let held = BTreeMap::from([(generation.clone(), inventory(2, &[0]))]);
        keeper.on_failure(&generation, Some(1), "digest is wrong".into(), now);
        assert_eq!(keeper.next(&view, &held, now), Step::Rest(Some(now + RETRY)));
        assert_eq!(keeper.troubles(), ["shard 1 of generation `g1`: digest is wrong"]);
        assert_eq!(keeper.next(&view, &held, now + RETRY), Step::LoadShards(generation.clone(), vec![1]));
        keeper.on_failure(&generation, Some(1), "digest is wrong".into(), now + RETRY);
        assert_eq!(keeper.next(&view, &held, now + RETRY), Step::Rest(Some(now + 3 * RETRY)));
        keeper.on_loaded(&generation, Some(1));
        assert!(keeper.troubles().is_empty());
    }

    #[test]
    fn a_moved_shard_is_dropped_only_when_the_others_announce_it() {
        let (mut keeper, mut view, now) = (keeper(), View::new(TTL), Instant::now());
        serving(&mut view, "g1", None);
        for name in ["a", "b", "c", "d"] {
            appear(&mut view, name, now);
        }
        let generation = served("g1").generation;
        let me = worker("me");
        let ring = Ring::new(view.takers(&me, now));
        let holders = |shard| ring.holders(&generation, shard, 2);
        let foreign = (0..100).find(|shard| !holders(*shard).contains(&&me)).unwrap();
        let owners: Vec<WorkerId> = holders(foreign).into_iter().cloned().collect();
        let only = Inventory { all: vec![foreign], held: BTreeSet::from([foreign]) };
        let held = BTreeMap::from([(generation.clone(), only)]);
        let announce = |view: &mut View, name: &WorkerId| {
            let shards = HeldShards { generation: generation.clone(), shards: vec![foreign], model_ready: true };
            view.on_placement(Placement { worker: name.clone(), held: vec![shards], troubles: vec![] });
        };
        assert_eq!(keeper.next(&view, &held, now), Step::Rest(None));
        announce(&mut view, &owners[0]);
        assert_eq!(keeper.next(&view, &held, now), Step::Rest(None));
        announce(&mut view, &owners[1]);
        assert_eq!(keeper.next(&view, &held, now), Step::DropShard(generation, foreign));
    }
}
