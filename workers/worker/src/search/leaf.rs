//! The leaf: answers for the shards that it holds.
//!
//! Scans run on a rayon pool of their own, beside the tasks ([`Scans`]); a bounded number of requests waits for them and
//! further ones are refused at once, so that the root can ask another replica. A request ends with its answer, at its
//! deadline, or when the root says that nobody waits for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use likeness_contract::ids::WorkerId;
use likeness_contract::ranking::MAX_K;
use likeness_contract::search::{Detail, LeafAnswer, LeafAsk, LeafReply, LeafRequest};
use likeness_index::{Filter, Label};
use likeness_link::error::{Error as LinkError, chain};
use rayon::ThreadPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::explain;
use super::holdings::{HeldShard, Holdings};
use super::query::MAX_TERMS;
use super::scans::{Found, NoScan, Scan, Scans};
use super::settings::SearchSettings;

/// Candidates that a root may ask for: one more for each item that it leaves out.
const MAX_LEAF_K: usize = MAX_K + MAX_TERMS;

/// See the module.
#[derive(Debug)]
pub struct Leaf {
    worker: WorkerId,
    holdings: Arc<Holdings>,
    scans: Arc<Scans>,
    /// Requests by number, to be cancelled.
    under_way: Mutex<HashMap<u64, CancellationToken>>,
}

/// Why a leaf can't answer.
#[derive(Debug)]
enum Refusal {
    /// In words for the root.
    Because(String),
    Overloaded,
}

impl From<String> for Refusal {
    fn from(words: String) -> Self {
        Self::Because(words)
    }
}

impl From<NoScan> for Refusal {
    fn from(why: NoScan) -> Self {
        match why {
            NoScan::Overloaded => Self::Overloaded,
            NoScan::TooLate => Self::Because("the deadline came first".into()),
            NoScan::Failed(why) => Self::Because(why),
        }
    }
}

impl From<Refusal> for LeafAnswer {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Because(words) => Self::Refused(words),
            Refusal::Overloaded => Self::Overloaded,
        }
    }
}

impl Leaf {
    /// A leaf over `holdings` that scans on `pool`.
    pub fn new(worker: WorkerId, holdings: Arc<Holdings>, pool: ThreadPool, settings: &SearchSettings) -> Self {
        Self { worker, holdings, scans: Scans::new(pool, settings.waiting), under_way: Mutex::default() }
    }

    /// Answers a request, at the latest at its deadline.
    pub async fn answer(&self, request: LeafRequest) -> LeafReply {
        let received = Instant::now();
        let entered = Entered::new(self, request.number);
        let answer = tokio::select! {
            answer = self.try_answer(request, received) => answer.unwrap_or_else(LeafAnswer::from),
            () = entered.cancelled.cancelled() => LeafAnswer::Refused("was cancelled".into()),
        };
        let took_us = u32::try_from(received.elapsed().as_micros()).unwrap_or(u32::MAX);
        LeafReply { worker: self.worker.clone(), took_us, answer }
    }

    /// Nobody waits for a request any more; one that is not known has been answered.
    pub fn cancel(&self, number: u64) {
        if let Some(request) = self.under_way().get(&number) {
            request.cancel();
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to what is no request, or whose answer is too large.
    pub fn refuse(error: &LinkError) -> LeafReply {
        let worker = WorkerId::new("leaf").expect("a well-formed id");
        LeafReply { worker, took_us: 0, answer: LeafAnswer::Refused(chain(error)) }
    }

    async fn try_answer(&self, request: LeafRequest, received: Instant) -> Result<LeafAnswer, Refusal> {
        let LeafRequest { generation, deadline_ms, number: _, ask } = request;
        let deadline = received + Duration::from_millis(deadline_ms.into());
        let held = self.holdings.shards(&generation);
        let held = held.ok_or_else(|| format!("does not hold generation `{}`", generation.generation))?;
        match ask {
            LeafAsk::TopK { shards: asked, query, k, details, filter, recall } => {
                let k = k as usize;
                let (shards, missing) = found(&held, asked);
                check(&shards, &query, k)?;
                let (filter, recall) = (known_labels(&shards, &filter)?, checked_recall(recall)?);
                let scan = Scan { generation, shards, query, k, filter, recall, deadline };
                self.top_k(&held, scan, missing, details).await
            }
            LeafAsk::Details { rows } => Ok(LeafAnswer::Details(details(&held, &rows)?)),
            LeafAsk::Embedding { shards, item } => Ok(LeafAnswer::Embedding(embedding(&held, &shards, &item)?)),
            LeafAsk::Margins { rows, anchors } => {
                few(&rows)?;
                let margins = computed(move || explain::margins(&held, &rows, &anchors)).await?;
                Ok(LeafAnswer::Margins(margins))
            }
            LeafAsk::Sample { shards, anchors, rows } => {
                let sample = computed(move || explain::sample(&held, &shards, &anchors, rows)).await?;
                Ok(LeafAnswer::Sample(sample))
            }
        }
    }

    async fn top_k(
        &self,
        held: &BTreeMap<u32, Arc<HeldShard>>,
        scan: Scan,
        missing: Vec<u32>,
        with_details: bool,
    ) -> Result<LeafAnswer, Refusal> {
        let missing = missing.into_iter().map(|shard| (shard, "is not held here".to_string())).collect();
        let Found { candidates, searched } = self.scans.scan(scan).await?;
        let rows: Vec<_> = candidates.iter().map(|candidate| (candidate.shard, candidate.row)).collect();
        let details = if with_details { details(held, &rows)? } else { Vec::new() };
        Ok(LeafAnswer::TopK { candidates, details, searched, missing })
    }
}

/// A request's entry among those under way.
struct Entered<'a> {
    leaf: &'a Leaf,
    number: u64,
    cancelled: CancellationToken,
}

impl<'a> Entered<'a> {
    fn new(leaf: &'a Leaf, number: u64) -> Self {
        let cancelled = CancellationToken::new();
        leaf.under_way().insert(number, cancelled.clone());
        Self { leaf, number, cancelled }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.leaf.under_way().remove(&self.number);
    }
}

/// The shards that are held of those asked for, and the numbers of those that are not.
fn found(held: &BTreeMap<u32, Arc<HeldShard>>, mut asked: Vec<u32>) -> (Vec<Arc<HeldShard>>, Vec<u32>) {
    asked.sort_unstable();
    asked.dedup();
    let (found, missing): (Vec<u32>, Vec<u32>) = asked.into_iter().partition(|shard| held.contains_key(shard));
    (found.iter().map(|shard| Arc::clone(&held[shard])).collect(), missing)
}

/// One query must not spoil a batch.
fn check(shards: &[Arc<HeldShard>], query: &[f32], k: usize) -> Result<(), Refusal> {
    if !(1..=MAX_LEAF_K).contains(&k) {
        return Err(format!("K = {k} is not within 1–{MAX_LEAF_K}").into());
    }
    if let Some(shard) = shards.iter().find(|shard| shard.dim() != query.len()) {
        return Err(format!("the query has dimension {}, the shards have {}", query.len(), shard.dim()).into());
    }
    if !query.iter().all(|value| value.is_finite()) {
        return Err("the query is not finite".to_string().into());
    }
    Ok(())
}

/// The filter on known labels, of attributes that the shards have; none when it lets everything through.
fn known_labels(shards: &[Arc<HeldShard>], conditions: &[(u32, bool)]) -> Result<Option<Filter>, Refusal> {
    let least = shards.iter().map(|shard| shard.attributes()).min().unwrap_or(usize::MAX);
    if let Some((attribute, _)) = conditions.iter().find(|(attribute, _)| *attribute as usize >= least) {
        return Err(format!("the filter asks for attribute {attribute}, the shards have {least}").into());
    }
    let label = |has: bool| if has { Label::Has } else { Label::HasNot };
    let and = |filter: Filter, (attribute, has): &(u32, bool)| filter.and(*attribute as usize, label(*has));
    Ok((!conditions.is_empty()).then(|| conditions.iter().fold(Filter::new(), and)))
}

fn checked_recall(recall: Option<f64>) -> Result<Option<f64>, Refusal> {
    match recall {
        Some(recall) if !(0.0..=1.0).contains(&recall) => Err(format!("the recall {recall} is not within 0–1").into()),
        recall => Ok(recall),
    }
}

fn few(rows: &[(u32, u32)]) -> Result<(), Refusal> {
    let few = rows.len() <= MAX_LEAF_K;
    few.then_some(()).ok_or_else(|| format!("{} rows are over the limit of {MAX_LEAF_K}", rows.len()).into())
}

/// Computes away from tokio's own threads.
async fn computed<T: Send + 'static>(
    compute: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Refusal> {
    let computed = tokio::task::spawn_blocking(compute).await;
    Ok(computed.map_err(|panic| format!("it can't be computed: {panic}"))??)
}

fn details(held: &BTreeMap<u32, Arc<HeldShard>>, rows: &[(u32, u32)]) -> Result<Vec<Detail>, Refusal> {
    few(rows)?;
    let detail = |(number, row): &(u32, u32)| {
        let shard = held.get(number).ok_or_else(|| format!("does not hold shard {number}"))?;
        if *row as usize >= shard.rows() {
            return Err(format!("shard {number} has no row {row}").into());
        }
        let (source_part, source_row) = shard.source(*row);
        Ok(Detail { labels: shard.labels(*row).to_vec(), source_part, source_row })
    };
    rows.iter().map(detail).collect()
}

fn embedding(held: &BTreeMap<u32, Arc<HeldShard>>, shards: &[u32], item: &str) -> Result<Option<Vec<f32>>, Refusal> {
    for number in shards {
        let shard = held.get(number).ok_or_else(|| format!("does not hold shard {number}"))?;
        if let Some(row) = shard.find(item) {
            if shard.taken_out().is_some_and(|removed| removed.contains(row)) {
                return Ok(None);
            }
            return Ok(Some(shard.embedding(row).to_vec()));
        }
    }
    Ok(None)
}
