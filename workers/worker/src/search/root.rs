//! The root: pins the release, embeds the query, fans out, merges, adds labels and image references.
//!
//! A query is answered from the generation that its alias served when it came, to the end. Replies are honest
//! about what was searched (`coverage`); they never wait past the deadline.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use likeness_contract::ids::WorkerId;
use likeness_contract::messages::Served;
use likeness_contract::names;
use likeness_contract::ranking::Candidate;
use likeness_contract::search::{
    Coverage, Detail, Hit, ImageRef, LeafAnswer, LeafAsk, SearchError, SearchErrorKind, SearchReply, SearchRequest,
    SearchResults,
};
use tokio::time::{Instant, timeout_at};

use super::Searcher;
use super::embedded::Key;
use super::fan_out::{Leaves, Taken, patience_until};
use super::gather::{Asked, Gather, Partial};
use super::holdings::Kit;
use super::query::{self, Input, Question};
use crate::error::TaskError;

/// Longest time that a request may take, whatever it asks.
const LONGEST_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of details, about, up to which every leaf sends those of its candidates with them.
const DETAILS_BYTES: usize = 64 << 10;
/// Bytes of a detail beside its labels, about.
const DETAIL_BYTES: usize = 16;

/// Longest time that the fan-out leaves for the details of the hits.
const LONGEST_RESERVE: Duration = Duration::from_millis(500);

/// Answers a request; `received` starts its deadline.
pub async fn answer(searcher: &Searcher, request: SearchRequest, received: Instant) -> SearchReply {
    let deadline = received + Duration::from_millis(request.deadline_ms.into()).min(LONGEST_DEADLINE);
    let query = Query { searcher, request: &request, received, deadline };
    match query.run().await {
        Ok(results) => SearchReply::Found(Box::new(results)),
        Err(error) => SearchReply::Error(error),
    }
}

fn error(kind: SearchErrorKind, message: impl Into<String>) -> SearchError {
    SearchError { kind, message: message.into(), nearest: Vec::new() }
}

fn unavailable(message: impl Into<String>) -> SearchError {
    error(SearchErrorKind::Unavailable, message)
}

fn too_late() -> SearchError {
    error(SearchErrorKind::Deadline, "the deadline came before the answer")
}

/// Details by shard and row.
type Details = HashMap<(u32, u32), Detail>;

/// When what was done, and the slowest leaf's own time.
struct Times {
    gathered: Instant,
    leaf: Duration,
    merged: Instant,
}

/// What the leaves found.
struct Found {
    candidates: Vec<Candidate>,
    coverage: Coverage,
    gather: Gather,
    /// Details that came with the candidates.
    known: Details,
    times: Times,
}

/// One request on its way.
struct Query<'a> {
    searcher: &'a Searcher,
    request: &'a SearchRequest,
    received: Instant,
    deadline: Instant,
}

impl Query<'_> {
    async fn run(&self) -> Result<SearchResults, SearchError> {
        let served = self.served()?;
        let kit = self.kit(&served).await?;
        let model = &kit.model.manifest;
        let question = query::check(self.request, &model.vocabulary, &model.settings)?;
        let vector = self.embed(&kit, &question).await?;
        let embedded = Instant::now();
        let (found, coverage, times) = self.search(&kit, &question, vector).await?;
        let Times { gathered, leaf, merged } = times;
        let finished = Instant::now();
        let between = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        Ok(SearchResults {
            release: served.release,
            generation: served.generation,
            hits: found
                .into_iter()
                .map(|(candidate, detail)| hit(&kit, candidate, detail))
                .collect::<Result<_, _>>()?,
            coverage,
            vocabulary: kit.generation.vocabulary.names.clone(),
            timings_ms: vec![
                ("embed".into(), between(self.received, embedded)),
                ("fan_out".into(), between(embedded, gathered)),
                ("leaf".into(), leaf.as_secs_f64() * 1e3),
                ("merge".into(), between(gathered, merged)),
                ("details".into(), between(merged, finished)),
                ("total".into(), between(self.received, finished)),
            ],
        })
    }

    /// What the alias serves at this moment.
    fn served(&self) -> Result<Served, SearchError> {
        let view = self.searcher.view();
        let alias = &self.request.alias;
        match view.alias(alias) {
            Some(state) => {
                state.serving.clone().ok_or_else(|| unavailable(format!("alias `{alias}` serves no release yet")))
            }
            None => {
                let nearest = names::nearest(alias.as_str(), view.aliases().map(|name| name.as_str()));
                let message = format!("unknown alias `{alias}`{}", names::hint(&nearest));
                Err(SearchError { kind: SearchErrorKind::NotFound, message, nearest })
            }
        }
    }

    /// Manifests and model; waits for them when they are being loaded.
    async fn kit(&self, served: &Served) -> Result<Arc<Kit>, SearchError> {
        let mut changed = self.searcher.changes();
        loop {
            if let Some(kit) = self.searcher.holdings.kit(&served.generation) {
                return Ok(kit);
            }
            if let Some(trouble) = self.searcher.holdings.trouble(&served.generation) {
                return Err(unavailable(format!("release {} can't be loaded: {trouble}", served.release)));
            }
            if timeout_at(self.deadline, changed.changed()).await.is_err() {
                return Err(unavailable(format!("release {} is not loaded yet", served.release)));
            }
        }
    }

    async fn embed(&self, kit: &Arc<Kit>, question: &Question) -> Result<Vec<f32>, SearchError> {
        let mut terms = Vec::with_capacity(question.terms.len());
        for (weight, input) in &question.terms {
            let embedded = timeout_at(self.deadline, self.embed_term(kit, input)).await;
            terms.push((*weight, embedded.map_err(|_| too_late())??));
        }
        query::combine(&terms)
    }

    /// From memory, if it was embedded before.
    async fn embed_term(&self, kit: &Arc<Kit>, input: &Input) -> Result<Arc<[f32]>, SearchError> {
        let Some(key) = Key::of(kit, input) else { return self.embed_anew(kit, input).await.map(Arc::from) };
        let remembered = &self.searcher.embedded;
        if let Some(vector) = remembered.get(&key) {
            return Ok(vector);
        }
        let vector: Arc<[f32]> = self.embed_anew(kit, input).await?.into();
        remembered.put(key, Arc::clone(&vector));
        Ok(vector)
    }

    async fn embed_anew(&self, kit: &Arc<Kit>, input: &Input) -> Result<Vec<f32>, SearchError> {
        let device = &self.searcher.cx.device;
        let failed = |e: TaskError| unavailable(format!("the query can't be embedded: {}", e.chain()));
        let model = Arc::clone(&kit.model);
        match input {
            Input::Attributes(vector) => query::embed_attributes(device, model, vector.clone()).await.map_err(failed),
            Input::Image(bytes) => {
                let (bytes, of) = (bytes.clone(), Arc::clone(&model));
                let decoded = tokio::task::spawn_blocking(move || query::pixels(&of, &bytes)).await;
                let pixels = decoded.map_err(|panic| unavailable(format!("the image can't be decoded: {panic}")))??;
                query::embed_pixels(device, model, pixels).await.map_err(failed)
            }
            Input::Item(item) => self.stored_embedding(kit, item).await,
            Input::Vector(values) => Ok(values.clone()),
        }
    }

    /// The embedding of an item, from whichever leaf has it.
    async fn stored_embedding(&self, kit: &Kit, item: &str) -> Result<Vec<f32>, SearchError> {
        let rows: BTreeMap<u32, u64> = kit.generation.shards.iter().map(|entry| (entry.shard, entry.rows)).collect();
        let mut gather = self.gather(kit, &BTreeSet::new());
        let mut found = None;
        let question = |shards: &[u32]| LeafAsk::Embedding { shards: shards.to_vec(), item: item.to_string() };
        let dim = kit.generation.embedding_dim as usize;
        let take = |asked: &Asked, answer, _| match answer {
            LeafAnswer::Embedding(Some(embedding)) if embedding.len() == dim => {
                found = Some(embedding);
                Taken::Enough
            }
            LeafAnswer::Embedding(None) => {
                let searched = asked.shards.iter().map(|shard| (*shard, rows[shard])).collect();
                Taken::Partial(Partial { candidates: Vec::new(), searched, missing: Vec::new() })
            }
            _ => Taken::Nonsense,
        };
        self.leaves(kit).gather(&mut gather, self.deadline, question, take).await;
        let (_, coverage) = gather.finish(0);
        match found {
            Some(embedding) => Ok(embedding),
            None if coverage.shards == coverage.total_shards => {
                let gallery = &kit.generation.generation.gallery;
                Err(error(SearchErrorKind::NotFound, format!("gallery `{gallery}` has no item `{item}`")))
            }
            None => {
                let reasons = coverage.reasons.join("; ");
                Err(unavailable(format!("item `{item}` can't be looked up everywhere: {reasons}")))
            }
        }
    }

    /// The best rows with their details. A leaf that is lost between the two is left out of another attempt.
    async fn search(
        &self,
        kit: &Kit,
        question: &Question,
        vector: Vec<f32>,
    ) -> Result<(Vec<(Candidate, Detail)>, Coverage, Times), SearchError> {
        let mut lost = BTreeSet::new();
        loop {
            let Found { candidates, coverage, gather, known, times } =
                self.candidates(kit, question, &vector, &lost).await?;
            match self.details(kit, candidates, known, &gather).await {
                Ok(found) => return Ok((found, coverage, times)),
                Err(_) if Instant::now() >= self.deadline => return Err(too_late()),
                Err(worker) => lost.insert(worker),
            };
        }
    }

    async fn candidates(
        &self,
        kit: &Kit,
        question: &Question,
        vector: &[f32],
        lost: &BTreeSet<WorkerId>,
    ) -> Result<Found, SearchError> {
        let left_out = question.items();
        let k = question.k + left_out.len();
        let details = k * (kit.generation.vocabulary.len() + DETAIL_BYTES) <= DETAILS_BYTES;
        let mut gather = self.gather(kit, lost);
        let ask =
            |shards: &[u32]| LeafAsk::TopK { shards: shards.to_vec(), query: vector.to_vec(), k: k as u32, details };
        let (mut known, mut leaf) = (Details::new(), Duration::ZERO);
        let take = |_: &Asked, answer, took| match answer {
            LeafAnswer::TopK { candidates, details, searched, missing } => {
                leaf = leaf.max(took);
                let rows = candidates.iter().map(|candidate| (candidate.shard, candidate.row));
                known.extend(rows.zip(details));
                Taken::Partial(Partial { candidates, searched, missing })
            }
            _ => Taken::Nonsense,
        };
        self.leaves(kit).gather(&mut gather, self.fan_out_until(), ask, take).await;
        let gathered = Instant::now();
        let (mut candidates, coverage) = gather.finish(k);
        self.enough(&coverage, gather.is_overloaded())?;
        candidates.retain(|candidate| !left_out.contains(candidate.item.as_str()));
        candidates.truncate(question.k);
        let times = Times { gathered, leaf, merged: Instant::now() };
        Ok(Found { candidates, coverage, gather, known, times })
    }

    /// When the fan-out must end, so that what was found can still be given its details.
    fn fan_out_until(&self) -> Instant {
        let whole = self.deadline.saturating_duration_since(self.received);
        self.deadline - (whole / 8).min(LONGEST_RESERVE)
    }

    /// Whether what was searched is an answer.
    fn enough(&self, coverage: &Coverage, overloaded: bool) -> Result<(), SearchError> {
        let reasons = coverage.reasons.join("; ");
        if coverage.shards == 0 && coverage.total_rows > 0 {
            let kind = match Instant::now() >= self.fan_out_until() {
                _ if overloaded => SearchErrorKind::Overloaded,
                true => SearchErrorKind::Deadline,
                false => SearchErrorKind::Unavailable,
            };
            return Err(error(kind, format!("no shard could be searched: {reasons}")));
        }
        let (share, least) = (coverage.share(), self.request.min_coverage);
        if share < least {
            let (share, least) = (share * 100.0, least * 100.0);
            let message = format!("{share:.1} % of the rows could be searched, {least:.1} % are asked for: {reasons}");
            let kind = if overloaded { SearchErrorKind::Overloaded } else { SearchErrorKind::Coverage };
            return Err(error(kind, message));
        }
        Ok(())
    }

    /// Labels and image references, each from the leaf that found the row, unless they are `known`; an error names a
    /// leaf that failed.
    async fn details(
        &self,
        kit: &Kit,
        candidates: Vec<Candidate>,
        mut known: Details,
        gather: &Gather,
    ) -> Result<Vec<(Candidate, Detail)>, WorkerId> {
        let mut by_leaf: BTreeMap<&WorkerId, Vec<(u32, u32)>> = BTreeMap::new();
        let unknown = candidates.iter().filter(|candidate| !known.contains_key(&(candidate.shard, candidate.row)));
        for candidate in unknown {
            let worker = gather.answered_by(candidate.shard).expect("candidates come from answered shards");
            by_leaf.entry(worker).or_default().push((candidate.shard, candidate.row));
        }
        let leaves = self.leaves(kit);
        let until = patience_until(self.deadline).min(self.deadline);
        let asks = by_leaf.into_iter().map(|(worker, rows)| {
            let ask = leaves.ask(worker, LeafAsk::Details { rows: rows.clone() }, until);
            async move {
                match timeout_at(until, ask).await {
                    Ok(Ok((LeafAnswer::Details(details), _))) if details.len() == rows.len() => {
                        Ok(rows.into_iter().zip(details))
                    }
                    _ => Err(worker.clone()),
                }
            }
        });
        for details in join_all(asks).await {
            known.extend(details?);
        }
        let with_detail = |candidate: Candidate| {
            let detail = known.remove(&(candidate.shard, candidate.row)).expect("every row was asked for");
            (candidate, detail)
        };
        Ok(candidates.into_iter().map(with_detail).collect())
    }

    fn gather(&self, kit: &Kit, lost: &BTreeSet<WorkerId>) -> Gather {
        let generation = &kit.generation.generation;
        let now = std::time::Instant::now();
        let mut holders = self.searcher.view().holders(generation, now);
        // Its own shards count whether or not they are announced: at shutdown they are no more.
        let Searcher { cx, holdings, .. } = self.searcher;
        for shard in holdings.shards(generation).unwrap_or_default().into_keys() {
            let workers = holders.entry(shard).or_default();
            if !workers.contains(&cx.worker) {
                workers.push(cx.worker.clone());
            }
        }
        self.searcher.peers.order(&mut holders);
        let shards = kit.generation.shards.iter().map(|entry| (entry.shard, entry.rows));
        let mut gather = Gather::new(generation, shards, &holders);
        let numbers = kit.generation.shards.iter().map(|entry| entry.shard);
        for (shard, trouble) in self.searcher.view().troubles(generation, numbers, now) {
            gather.note_trouble(shard, trouble);
        }
        for worker in lost {
            gather.leave_out(worker, "was lost while it answered");
        }
        gather
    }

    fn leaves<'a>(&'a self, kit: &'a Kit) -> Leaves<'a> {
        let Searcher { cx, leaf, peers, numbers, .. } = self.searcher;
        let generation = &kit.generation.generation;
        Leaves { own: leaf, me: &cx.worker, bus: &cx.bus, peers, numbers, generation }
    }
}

fn hit(kit: &Kit, candidate: Candidate, detail: Detail) -> Result<Hit, SearchError> {
    let Candidate { d2, item, shard, row: _ } = candidate;
    let Detail { labels, source_part, source_row } = detail;
    let part = kit.dataset.parts.get(source_part as usize).ok_or_else(|| {
        unavailable(format!("shard {shard} refers to part {source_part}, which the dataset does not have"))
    })?;
    let image = ImageRef { part: part.object.key.clone(), row: source_row };
    Ok(Hit { item, distance: d2.sqrt(), labels, image })
}
