//! What a searcher knows of the others: the alias, presence and placement buckets as it last saw them.
//!
//! An entry of the presence bucket that dies of its age is not reported, so a searcher counts as live for as
//! long as its last renewal is younger than `presence_ttl`. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use likeness_contract::ids::{Name, WorkerId};
use likeness_contract::jobs::GenerationRef;
use likeness_contract::messages::{AliasState, HeldShards, Placement, Presence, Served};

/// See the module.
#[derive(Debug)]
pub struct View {
    presence_ttl: Duration,
    aliases: BTreeMap<Name, AliasState>,
    searchers: BTreeMap<WorkerId, Seen>,
    placements: BTreeMap<WorkerId, Placement>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
    /// Of the last renewal.
    revision: u64,
    /// Whether it takes shards; one that drains still answers for those that it announces.
    takes_shards: bool,
}

impl View {
    /// A view of nothing.
    pub fn new(presence_ttl: Duration) -> Self {
        Self { presence_ttl, aliases: BTreeMap::new(), searchers: BTreeMap::new(), placements: BTreeMap::new() }
    }

    /// An alias was changed.
    pub fn on_alias(&mut self, alias: Name, state: AliasState) {
        self.aliases.insert(alias, state);
    }

    /// An alias was deleted.
    pub fn on_alias_gone(&mut self, alias: &str) {
        self.aliases.retain(|name, _| name.as_str() != alias);
    }

    /// A worker renewed its presence at `now`, with the entry of this revision; the one known already says
    /// nothing new, a lower one comes from a bucket that was made anew. Tells whether that changes who holds what.
    pub fn on_presence(&mut self, presence: &Presence, revision: u64, now: Instant) -> bool {
        let Presence { worker, searches, draining, .. } = presence;
        if !searches {
            return self.searchers.remove(worker).is_some();
        }
        let known = self.searchers.get(worker);
        if known.is_some_and(|seen| seen.revision == revision) {
            return false;
        }
        let takes_shards = !draining;
        let changed = known.is_none_or(|seen| !self.is_fresh(seen, now) || seen.takes_shards != takes_shards);
        self.searchers.insert(worker.clone(), Seen { at: now, revision, takes_shards });
        changed
    }

    /// A presence that was there before we looked: nobody knows since when. It counts for half the time, in which
    /// a live worker renews it.
    pub fn on_old_presence(&mut self, presence: &Presence, revision: u64, now: Instant) {
        let at = now.checked_sub(self.presence_ttl / 2).unwrap_or(now);
        self.on_presence(presence, revision, at);
    }

    /// A worker withdrew its presence.
    pub fn on_presence_gone(&mut self, worker: &str) {
        self.searchers.retain(|searcher, _| searcher.as_str() != worker);
    }

    /// A searcher announced what it holds.
    pub fn on_placement(&mut self, placement: Placement) {
        self.placements.insert(placement.worker.clone(), placement);
    }

    /// A searcher withdrew its announcement.
    pub fn on_placement_gone(&mut self, worker: &str) {
        self.placements.retain(|searcher, _| searcher.as_str() != worker);
    }

    /// What an alias serves; none when there is no such alias.
    pub fn alias(&self, alias: &Name) -> Option<&AliasState> {
        self.aliases.get(alias)
    }

    /// Every alias.
    pub fn aliases(&self) -> impl Iterator<Item = &Name> {
        self.aliases.keys()
    }

    /// What is served or is to be loaded beside it, each generation once.
    pub fn wanted(&self) -> Vec<&Served> {
        let served = self.aliases.values().flat_map(|alias| alias.serving.iter().chain(&alias.loading));
        let by_generation: BTreeMap<&GenerationRef, &Served> =
            served.map(|served| (&served.generation, served)).collect();
        by_generation.into_values().collect()
    }

    /// Whether an alias serves or loads a generation.
    pub fn is_wanted(&self, generation: &GenerationRef) -> bool {
        self.wanted().iter().any(|served| served.generation == *generation)
    }

    /// Searchers that share the shards, and `me` whatever the bucket says: in id order.
    pub fn takers<'a>(&'a self, me: &'a WorkerId, now: Instant) -> BTreeSet<&'a WorkerId> {
        let takers = self.searchers.iter().filter(|(_, seen)| seen.takes_shards && self.is_fresh(seen, now));
        takers.map(|(worker, _)| worker).chain([me]).collect()
    }

    /// How many searchers live.
    pub fn live(&self, now: Instant) -> usize {
        self.searchers.values().filter(|seen| self.is_fresh(seen, now)).count()
    }

    /// Who announces each shard of a generation; only of live searchers.
    pub fn holders(&self, generation: &GenerationRef, now: Instant) -> BTreeMap<u32, Vec<WorkerId>> {
        let mut holders: BTreeMap<u32, Vec<WorkerId>> = BTreeMap::new();
        for (worker, held) in self.announced(generation, now) {
            for shard in &held.shards {
                holders.entry(*shard).or_default().push(worker.clone());
            }
        }
        holders
    }

    /// The same for one shard.
    pub fn holders_of(&self, generation: &GenerationRef, shard: u32, now: Instant) -> BTreeSet<&WorkerId> {
        let announced = self.announced(generation, now).filter(|(_, held)| held.shards.contains(&shard));
        announced.map(|(worker, _)| worker).collect()
    }

    fn announced(&self, generation: &GenerationRef, now: Instant) -> impl Iterator<Item = (&WorkerId, &HeldShards)> {
        let live = self.placements.iter().filter(move |(worker, _)| self.is_live(worker, now));
        live.flat_map(|(worker, placement)| placement.held.iter().map(move |held| (worker, held)))
            .filter(move |(_, held)| held.generation == *generation)
    }

    /// Why live searchers could not load some of these shards.
    pub fn troubles(
        &self,
        generation: &GenerationRef,
        shards: impl Iterator<Item = u32>,
        now: Instant,
    ) -> Vec<(u32, String)> {
        let live = self.placements.iter().filter(|(worker, _)| self.is_live(worker, now));
        let told: Vec<(&WorkerId, &String)> =
            live.flat_map(|(worker, placement)| placement.troubles.iter().map(move |text| (worker, text))).collect();
        if told.is_empty() {
            return Vec::new();
        }
        let of_shard = |shard: u32| {
            let begins = Placement::trouble_with(generation, Some(shard));
            told.iter().find_map(|(worker, text)| Some((shard, format!("`{worker}`: {}", text.strip_prefix(&begins)?))))
        };
        shards.filter_map(of_shard).collect()
    }

    /// Announcements of searchers that are gone: left behind by processes that were killed.
    pub fn abandoned(&self, now: Instant) -> Vec<WorkerId> {
        self.placements.keys().filter(|worker| !self.is_live(worker, now)).cloned().collect()
    }

    /// When the next live searcher stops counting, unless it renews its presence.
    pub fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let fresh = self.searchers.values().filter(|seen| self.is_fresh(seen, now));
        fresh.map(|seen| seen.at + self.presence_ttl).min()
    }

    fn is_live(&self, worker: &WorkerId, now: Instant) -> bool {
        self.searchers.get(worker).is_some_and(|seen| self.is_fresh(seen, now))
    }

    fn is_fresh(&self, seen: &Seen, now: Instant) -> bool {
        now.saturating_duration_since(seen.at) <= self.presence_ttl
    }
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::JobId;
    use likeness_contract::jobs::DeviceClass;

    use super::*;

    fn worker(name: &str) -> WorkerId {
        WorkerId::new(name).unwrap()
    }

    fn generation(name: &str) -> GenerationRef {
        GenerationRef { gallery: Name::new("faces").unwrap(), generation: JobId::new(name).unwrap() }
    }

    fn served(release: u64, name: &str) -> Served {
        Served { release, model: JobId::new(name).unwrap(), generation: generation(name) }
    }

    fn presence(name: &str, draining: bool) -> Presence {
        Presence {
            worker: worker(name),
            roles: vec![],
            searches: true,
            device: "cpu".into(),
            device_class: DeviceClass::Cpu,
            host: "h".into(),
            version: "0".into(),
            task: None,
            draining,
        }
    }

    fn placement(name: &str, shards: &[u32]) -> Placement {
        let held = HeldShards { generation: generation("g1"), shards: shards.to_vec(), model_ready: true };
        Placement { worker: worker(name), held: vec![held], troubles: vec![] }
    }

    const TTL: Duration = Duration::from_secs(15);

    #[test]
    fn a_silent_searcher_stops_counting_after_the_ttl() {
        let start = Instant::now();
        let mut view = View::new(TTL);
        assert!(view.on_presence(&presence("a", false), 1, start));
        view.on_placement(placement("a", &[0, 1]));
        let (me, later) = (worker("me"), start + TTL + Duration::from_secs(1));
        assert_eq!((view.next_expiry(start), view.next_expiry(later)), (Some(start + TTL), None));
        assert_eq!(view.takers(&me, start).len(), 2);
        assert_eq!((view.live(start), view.live(later)), (1, 0));
        assert_eq!(view.holders(&generation("g1"), start)[&1], [worker("a")]);
        assert_eq!(view.takers(&me, later).len(), 1);
        assert!(view.holders(&generation("g1"), later).is_empty());
        assert_eq!(view.abandoned(later), [worker("a")]);
        assert!(!view.on_presence(&presence("a", false), 1, later), "an old entry, reported again");
        assert!(view.on_presence(&presence("a", false), 2, later), "it came back");
    }

    #[test]
    fn troubles_of_live_searchers_are_told_by_shard() {
        let start = Instant::now();
        let mut view = View::new(TTL);
        view.on_presence(&presence("a", false), 1, start);
        let trouble = format!("{}it is gone", Placement::trouble_with(&generation("g1"), Some(12)));
        view.on_placement(Placement { troubles: vec![trouble.clone()], ..placement("a", &[0]) });
        view.on_placement(Placement { troubles: vec![trouble], ..placement("dead", &[]) });
        let troubles = |name, now| view.troubles(&generation(name), 0..20, now);
        assert_eq!(troubles("g1", start), [(12, "`a`: it is gone".to_string())]);
        assert!(troubles("g2", start).is_empty());
        assert!(troubles("g1", start + TTL * 2).is_empty());
    }

    #[test]
    fn a_presence_found_at_the_start_must_be_renewed_soon() {
        let start = Instant::now() + TTL;
        let mut view = View::new(TTL);
        view.on_old_presence(&presence("dead", false), 1, start);
        view.on_old_presence(&presence("live", false), 2, start);
        view.on_presence(&presence("live", false), 3, start + TTL / 3);
        let (me, live, dead) = (worker("me"), worker("live"), worker("dead"));
        assert!(view.takers(&me, start).contains(&dead));
        let later = view.takers(&me, start + TTL * 3 / 4);
        assert!(later.contains(&live) && !later.contains(&dead));
    }

    #[test]
    fn a_draining_searcher_answers_but_takes_no_shards() {
        let now = Instant::now();
        let mut view = View::new(TTL);
        view.on_presence(&presence("a", false), 1, now);
        view.on_placement(placement("a", &[3]));
        assert!(!view.on_presence(&presence("a", false), 2, now), "a renewal changes nothing");
        assert!(view.on_presence(&presence("a", true), 3, now));
        assert_eq!(view.takers(&worker("me"), now).len(), 1);
        assert_eq!(view.holders(&generation("g1"), now)[&3], [worker("a")]);
        view.on_placement_gone("a");
        assert!(view.holders(&generation("g1"), now).is_empty());
    }

    #[test]
    fn wanted_is_what_any_alias_serves_or_loads_once() {
        let mut view = View::new(TTL);
        let state = |serving, loading| AliasState { serving, loading };
        view.on_alias(Name::new("a").unwrap(), state(Some(served(1, "g1")), Some(served(2, "g2"))));
        view.on_alias(Name::new("b").unwrap(), state(Some(served(7, "g1")), None));
        let wanted =
            |view: &View| view.wanted().iter().map(|s| s.generation.generation.to_string()).collect::<Vec<_>>();
        assert_eq!(wanted(&view), ["g1", "g2"]);
        view.on_alias(Name::new("a").unwrap(), state(Some(served(2, "g2")), None));
        view.on_alias_gone("b");
        assert_eq!(wanted(&view), ["g2"]);
    }
}
