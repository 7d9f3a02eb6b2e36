//! The root: pins the release, embeds the query, fans out, merges, adds labels and image references.
//!
//! A query is answered from the generation that its alias served when it came, to the end. Replies are honest
//! about what was searched (`coverage`); they never wait past the deadline.

mod explained;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use likeness_contract::ids::{Name, WorkerId};
use likeness_contract::messages::Served;
use likeness_contract::names;
use likeness_contract::ranking::{Candidate, MAX_K, rank};
use likeness_contract::search::{
    Anchor, Coverage, Cursor, Detail, Hit, ImageRef, LeafAnswer, LeafAsk, SearchError, SearchErrorKind, SearchReply,
    SearchRequest, SearchResults, Searched,
};
use tokio::time::{Instant, timeout_at};

use super::embedded::Key;
use super::explain;
use super::fan_out::{Leaves, Taken, patience_until};
use super::gather::{Asked, Gather, Partial};
use super::holdings::Kit;
use super::measure;
use super::query::{self, Input, Question, Wanted};
use super::{Searcher, loader};
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
    let result = query.run().await;
    measure::on_answer(&result);
    match result {
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

fn expired(release: u64) -> SearchError {
    let message = format!("the cursor's release {release} is no longer loaded: ask the question again");
    error(SearchErrorKind::Expired, message)
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
    /// How many ranks were answered with this page, if there are more.
    more_after: Option<usize>,
    times: Times,
}

/// One request on its way.
struct Query<'a> {
    searcher: &'a Searcher,
    request: &'a SearchRequest,
    received: Instant,
    deadline: Instant,
}

/// From what a request is answered: pinned to the end.
struct Pinned {
    served: Served,
    kit: Arc<Kit>,
    wanted: Wanted,
}

impl Query<'_> {
    async fn run(&self) -> Result<SearchResults, SearchError> {
        let pinned = match &self.request.cursor {
            None => self.question().await?,
            Some(text) => self.page(text).await?,
        };
        let anchors = self.anchors(&pinned.kit, &pinned.wanted.explain).await?;
        let embedded = Instant::now();
        let (found, curves) = tokio::join!(self.search(&pinned, &anchors), self.curves(&pinned.kit, &anchors));
        let (found, details, margins) = found?;
        let finished = Instant::now();
        let Pinned { served, kit, wanted } = pinned;
        let Found { candidates, coverage, gather, known: _, more_after, times } = found;
        let Times { gathered, leaf, merged } = times;
        let next = match (more_after, candidates.last()) {
            (Some(answered), last) => Some(next_cursor(&self.request.alias, &served, &wanted, answered, last)?),
            _ => None,
        };
        let between = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        let hits = candidates.into_iter().zip(details).map(|(candidate, detail)| hit(&kit, candidate, detail));
        let hits = hits.collect::<Result<Vec<_>, _>>()?;
        let vocabulary = kit.generation.vocabulary.names.clone();
        let explained = !wanted.explain.is_empty();
        let explanation =
            explained.then(|| explain::explanation(&vocabulary, &wanted.explain, &curves, &hits, &margins));
        Ok(SearchResults {
            release: served.release,
            generation: served.generation,
            hits,
            coverage,
            vocabulary,
            timings_ms: vec![
                ("embed".into(), between(self.received, embedded)),
                ("fan_out".into(), between(embedded, gathered)),
                ("leaf".into(), leaf.as_secs_f64() * 1e3),
                ("merge".into(), between(gathered, merged)),
                ("details".into(), between(merged, finished)),
                ("total".into(), between(self.received, finished)),
            ],
            matching: (!wanted.filter.is_empty()).then(|| gather.matching()),
            recall: wanted.recall.map(|_| gather.recall()),
            next,
            explanation,
        })
    }

    /// A question of what the alias serves at this moment.
    async fn question(&self) -> Result<Pinned, SearchError> {
        let served = self.served()?;
        let kit = self.kit(&served).await?;
        query::check_kinds(self.request, kit.model.is_some())?;
        let question = query::check(self.request, &kit.generation.vocabulary, &kit.settings())?;
        let vector = self.embed(&kit, &question).await?;
        let left_out = question.items();
        let Question { terms: _, k, filter, recall, explain } = question;
        Ok(Pinned { served, kit, wanted: Wanted { vector, k, filter, recall, left_out, explain, after: None } })
    }

    /// The page that a cursor stands for, of the release that began it.
    async fn page(&self, text: &str) -> Result<Pinned, SearchError> {
        let cursor = query::cursor(self.request, text)?;
        let Cursor { release, model, generation, .. } = cursor.clone();
        let served = Served { release, model, generation };
        let kit = self.pinned_kit(&served).await?;
        let dim = kit.generation.embedding_dim as usize;
        let wanted = Wanted::of_cursor(&cursor, self.request.k, kit.generation.vocabulary.len(), dim)?;
        Ok(Pinned { served, kit, wanted })
    }

    /// As long as anybody holds a generation its pages are answered, also by a root that never served it.
    async fn pinned_kit(&self, served: &Served) -> Result<Arc<Kit>, SearchError> {
        if let Some(kit) = self.searcher.holdings.kit(&served.generation) {
            return Ok(kit);
        }
        if self.searcher.view().is_wanted(&served.generation) {
            return self.kit(served).await;
        }
        let held = self.searcher.view().holders(&served.generation, std::time::Instant::now());
        if held.is_empty() {
            return Err(expired(served.release));
        }
        let loaded = timeout_at(self.deadline, loader::load_kit(&self.searcher.cx, served)).await;
        let failed = |e: TaskError| unavailable(format!("release {} can't be loaded: {}", served.release, e.chain()));
        loaded.map_err(|_| too_late())?.map(Arc::new).map_err(failed)
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
        if let Input::Item(item) = input {
            self.is_shown(kit, item)?;
        }
        let Some(key) = Key::of(kit, input) else { return self.embed_anew(kit, input).await.map(Arc::from) };
        let remembered = &self.searcher.embedded;
        if let Some(vector) = remembered.get(&key) {
            return Ok(vector);
        }
        let vector: Arc<[f32]> = self.embed_anew(kit, input).await?.into();
        remembered.put(key, Arc::clone(&vector));
        Ok(vector)
    }

    /// An item that was removed is none, also where its embedding is still known.
    fn is_shown(&self, kit: &Kit, item: &str) -> Result<(), SearchError> {
        let Some(dataset) = kit.generation.dataset() else { return Ok(()) };
        let gone = |reason| error(SearchErrorKind::NotFound, format!("item `{item}` {reason}"));
        self.searcher.removals.of(&dataset.dataset).reason(item).map_or(Ok(()), |reason| Err(gone(reason)))
    }

    async fn embed_anew(&self, kit: &Arc<Kit>, input: &Input) -> Result<Vec<f32>, SearchError> {
        let device = &self.searcher.cx.device;
        let failed = |e: TaskError| unavailable(format!("the query can't be embedded: {}", e.chain()));
        let model = || kit.model.clone().ok_or_else(query::no_model);
        match input {
            Input::Attributes(vector) => {
                query::embed_attributes(device, model()?, vector.clone()).await.map_err(failed)
            }
            Input::Image(bytes) => {
                let model = model()?;
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
                let searched = asked.shards.iter().map(|shard| Searched::whole(*shard, rows[shard])).collect();
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

    /// The best rows with their details and margins. A leaf that is lost in between is left out of another attempt.
    async fn search(&self, pinned: &Pinned, anchors: &[Anchor]) -> Result<(Found, Vec<Detail>, Vec<f64>), SearchError> {
        let mut lost = BTreeSet::new();
        loop {
            let mut found = self.candidates(pinned, &lost).await?;
            let known = std::mem::take(&mut found.known);
            let details = self.details(&pinned.kit, &found.candidates, known, &found.gather);
            let margins = self.margins(&pinned.kit, &found.candidates, anchors, &found.gather);
            match tokio::try_join!(details, margins) {
                Ok((details, margins)) => return Ok((found, details, margins)),
                Err(_) if Instant::now() >= self.deadline => return Err(too_late()),
                Err(worker) => lost.insert(worker),
            };
        }
    }

    async fn candidates(&self, pinned: &Pinned, lost: &BTreeSet<WorkerId>) -> Result<Found, SearchError> {
        let Pinned { served, kit, wanted } = pinned;
        let k = wanted.depth() + wanted.left_out.len();
        let details = k * (kit.generation.vocabulary.len() + DETAIL_BYTES) <= DETAILS_BYTES;
        let mut gather = self.gather(kit, lost);
        let ask = |shards: &[u32]| LeafAsk::TopK {
            shards: shards.to_vec(),
            query: wanted.vector.clone(),
            k: k as u32,
            details,
            filter: wanted.filter.clone(),
            recall: wanted.recall,
        };
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
        if coverage.shards == 0 && wanted.after.is_some() && !self.searcher.view().is_wanted(&served.generation) {
            return Err(expired(served.release));
        }
        self.enough(&coverage, gather.is_overloaded())?;
        candidates.retain(|candidate| !wanted.left_out.contains(&candidate.item));
        let answered = turn_to_page(&mut candidates, wanted, gather.matching());
        let more_after = answered.filter(|_| self.request.paged || self.request.cursor.is_some());
        let times = Times { gathered, leaf, merged: Instant::now() };
        Ok(Found { candidates, coverage, gather, known, more_after, times })
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
        candidates: &[Candidate],
        mut known: Details,
        gather: &Gather,
    ) -> Result<Vec<Detail>, WorkerId> {
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
        let detail =
            |candidate: &Candidate| known.remove(&(candidate.shard, candidate.row)).expect("every row was asked for");
        Ok(candidates.iter().map(detail).collect())
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

/// Leaves the candidates of the page that is wanted; how many ranks are then answered, if more follow. `matching` rows of
/// those that were searched can be results.
///
/// A page begins after the last result of the one before, wherever that stands now: when more or less can be searched than
/// before, nothing comes twice.
fn turn_to_page(candidates: &mut Vec<Candidate>, wanted: &Wanted, matching: u64) -> Option<usize> {
    let depth = wanted.depth();
    candidates.truncate(depth);
    let known = candidates.len();
    let before = match &wanted.after {
        Some((_, d2, item)) => {
            candidates.partition_point(|candidate| rank((candidate.d2, &candidate.item), (*d2, item)).is_le())
        }
        None => 0,
    };
    candidates.drain(..before);
    candidates.truncate(wanted.k);
    let answered = before + candidates.len();
    let deeper = known == depth && depth < MAX_K && (depth as u64) < matching;
    (answered < MAX_K && (answered < known || deeper)).then_some(answered)
}

/// The cursor after `answered` ranks, of which `last` is the last one, if the page has any.
fn next_cursor(
    alias: &Name,
    served: &Served,
    wanted: &Wanted,
    answered: usize,
    last: Option<&Candidate>,
) -> Result<String, SearchError> {
    let Wanted { vector, k: _, filter, recall, left_out, explain, after } = wanted.clone();
    let here = last.map(|last| (last.d2, last.item.clone())).or(after.map(|(_, d2, item)| (d2, item)));
    let (d2, item) = here.unwrap_or_default();
    let Served { release, model, generation } = served.clone();
    let answered = answered as u32;
    let left_out = left_out.into_iter().collect();
    let cursor = Cursor {
        alias: alias.clone(),
        release,
        model,
        generation,
        vector,
        left_out,
        filter,
        recall,
        answered,
        d2,
        item,
        explain,
    };
    cursor.to_text().map_err(|error| unavailable(format!("the next page can't be named: {error}")))
}

fn hit(kit: &Kit, candidate: Candidate, detail: Detail) -> Result<Hit, SearchError> {
    let Candidate { d2, item, shard, row: _ } = candidate;
    let Detail { labels, source_part, source_row } = detail;
    let part = match &kit.dataset {
        Some(dataset) => {
            dataset.parts.get(source_part as usize).map(|part| part.object.key.clone()).ok_or_else(|| {
                unavailable(format!("shard {shard} refers to part {source_part}, which the dataset does not have"))
            })?
        }
        // Embeddings from elsewhere have no images.
        None => String::new(),
    };
    let image = ImageRef { part, row: source_row };
    Ok(Hit { item, distance: d2.sqrt(), labels, image })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(ranks: std::ops::Range<usize>) -> Vec<Candidate> {
        // Every distance twice: the item decides.
        ranks.map(|at| Candidate { d2: (at / 2) as f64, item: format!("{at:03}"), shard: 0, row: at as u32 }).collect()
    }

    fn wanted(k: usize, after: Option<usize>) -> Wanted {
        let after = after.map(|rank| (rank, ((rank - 1) / 2) as f64, format!("{:03}", rank - 1)));
        Wanted { vector: vec![], k, filter: vec![], recall: None, left_out: BTreeSet::new(), explain: vec![], after }
    }

    #[test]
    fn pages_end_to_end_are_the_one_answer() {
        for k in [1, 3, 4, 7, 20] {
            let (mut pages, mut after) = (Vec::new(), None);
            loop {
                let wanted = wanted(k, after);
                let mut page = candidates(0..wanted.depth().min(11));
                after = turn_to_page(&mut page, &wanted, 11);
                pages.extend(page);
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(pages, candidates(0..11), "in pages of {k}");
        }
    }

    #[test]
    fn nothing_comes_twice_when_other_rows_can_be_searched_than_before() {
        // Ten ranks were answered; now only those from the fifth on are there, then ten new ones before.
        let mut page = candidates(5..17);
        assert_eq!(turn_to_page(&mut page, &wanted(2, Some(10)), 100), Some(7));
        assert_eq!(page, candidates(10..12));
        let mut page = candidates(0..10);
        assert_eq!(
            turn_to_page(&mut page, &Wanted { after: Some((5, 40.0, "z".into())), ..wanted(5, None) }, 100),
            Some(10)
        );
        assert!(page.is_empty(), "the next page looks deeper");
    }

    #[test]
    fn pages_end_with_what_matches_and_with_the_largest_k() {
        let mut page = candidates(0..4);
        assert_eq!(turn_to_page(&mut page, &wanted(4, None), 4), None);
        let mut page = candidates(0..MAX_K);
        assert_eq!(turn_to_page(&mut page, &wanted(10, Some(MAX_K - 5)), 100_000), None);
        assert_eq!(page.len(), 5);
    }
}
