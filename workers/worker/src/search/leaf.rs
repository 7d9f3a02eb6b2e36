//! The leaf: answers for the shards that it holds.
//!
//! Scans run on a rayon pool of their own, beside the tasks; a bounded number of requests waits for them and
//! further ones are refused at once, so that the root can ask another replica. A scan stops at its deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use likeness_contract::ids::WorkerId;
use likeness_contract::ranking::MAX_K;
use likeness_contract::search::{Detail, LeafAnswer, LeafAsk, LeafReply, LeafRequest};
use likeness_index::{Cancel, Shard, top_k};
use likeness_link::error::{Error as LinkError, chain};
use rayon::ThreadPool;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::holdings::Holdings;
use super::query::MAX_TERMS;
use super::settings::SearchSettings;

/// Candidates that a root may ask for: one more for each item that it leaves out.
const MAX_LEAF_K: usize = MAX_K + MAX_TERMS;

/// See the module.
#[derive(Debug)]
pub struct Leaf {
    worker: WorkerId,
    holdings: Arc<Holdings>,
    pool: Arc<ThreadPool>,
    scans: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Why a leaf can't answer, in words for the root.
type Refusal = String;

impl Leaf {
    /// A leaf over `holdings` that scans on `pool`.
    pub fn new(worker: WorkerId, holdings: Arc<Holdings>, pool: ThreadPool, settings: &SearchSettings) -> Self {
        let scans = Arc::new(Semaphore::new(settings.scans));
        let waiting = Arc::new(Semaphore::new(settings.scans + settings.waiting));
        Self { worker, holdings, pool: Arc::new(pool), scans, waiting }
    }

    /// Answers a request, at the latest at its deadline.
    pub async fn answer(&self, request: LeafRequest) -> LeafReply {
        let answer = self.try_answer(request).await.unwrap_or_else(LeafAnswer::Refused);
        LeafReply { worker: self.worker.clone(), answer }
    }

    /// The answer to what is no request, or whose answer is too large.
    pub fn refuse(error: &LinkError) -> LeafReply {
        let worker = WorkerId::new("leaf").expect("a well-formed id");
        LeafReply { worker, answer: LeafAnswer::Refused(chain(error)) }
    }

    async fn try_answer(&self, request: LeafRequest) -> Result<LeafAnswer, Refusal> {
        let LeafRequest { generation, deadline_ms, ask } = request;
        let deadline = Instant::now() + Duration::from_millis(deadline_ms.into());
        let held = self.holdings.shards(&generation);
        let held = held.ok_or_else(|| format!("does not hold generation `{}`", generation.generation))?;
        match ask {
            LeafAsk::TopK { shards, query, k } => self.top_k(held, shards, query, k as usize, deadline).await,
            LeafAsk::Details { rows } => details(&held, &rows),
            LeafAsk::Embedding { shards, item } => embedding(&held, &shards, &item),
        }
    }

    async fn top_k(
        &self,
        held: BTreeMap<u32, Arc<Shard>>,
        mut asked: Vec<u32>,
        query: Vec<f32>,
        k: usize,
        deadline: Instant,
    ) -> Result<LeafAnswer, Refusal> {
        if !(1..=MAX_LEAF_K).contains(&k) {
            return Err(format!("K = {k} is not within 1–{MAX_LEAF_K}"));
        }
        asked.sort_unstable();
        asked.dedup();
        let (found, missing): (Vec<u32>, Vec<u32>) = asked.into_iter().partition(|shard| held.contains_key(shard));
        let shards: Vec<Arc<Shard>> = found.iter().map(|shard| Arc::clone(&held[shard])).collect();
        let searched = shards.iter().map(|shard| (shard.number(), shard.rows() as u64)).collect();
        let missing = missing.into_iter().map(|shard| (shard, "is not held here".to_string())).collect();
        let candidates = self.scan(shards, query, k, deadline).await?;
        Ok(LeafAnswer::TopK { candidates, searched, missing })
    }

    async fn scan(
        &self,
        shards: Vec<Arc<Shard>>,
        query: Vec<f32>,
        k: usize,
        deadline: Instant,
    ) -> Result<Vec<likeness_contract::ranking::Candidate>, Refusal> {
        let too_late = |_| "the deadline came first".to_string();
        let _place = self.waiting.try_acquire().map_err(|_| "is busy: too many searches wait".to_string())?;
        let permit = timeout_at(deadline, Arc::clone(&self.scans).acquire_owned()).await.map_err(too_late)?;
        let permit = permit.map_err(|_| "is stopping".to_string())?;
        let (cancel, pool) = (CancelOnDrop::default(), Arc::clone(&self.pool));
        let flag = cancel.0.clone();
        let work = tokio::task::spawn_blocking(move || {
            let shards: Vec<&Shard> = shards.iter().map(Arc::as_ref).collect();
            let found = pool.install(|| top_k(&shards, &query, k, &flag));
            drop(permit);
            found
        });
        let found = timeout_at(deadline, work).await.map_err(too_late)?;
        found.map_err(|panic| format!("failed: {panic}"))?.map_err(|error| error.to_string())
    }
}

/// Stops a scan whose answer nobody waits for.
#[derive(Debug, Default)]
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn details(held: &BTreeMap<u32, Arc<Shard>>, rows: &[(u32, u32)]) -> Result<LeafAnswer, Refusal> {
    if rows.len() > MAX_LEAF_K {
        return Err(format!("{} rows are over the limit of {MAX_LEAF_K}", rows.len()));
    }
    let detail = |(number, row): &(u32, u32)| {
        let shard = held.get(number).ok_or_else(|| format!("does not hold shard {number}"))?;
        if *row as usize >= shard.rows() {
            return Err(format!("shard {number} has no row {row}"));
        }
        let (source_part, source_row) = shard.source(*row);
        Ok(Detail { labels: shard.labels(*row).to_vec(), source_part, source_row })
    };
    rows.iter().map(detail).collect::<Result<_, _>>().map(LeafAnswer::Details)
}

fn embedding(held: &BTreeMap<u32, Arc<Shard>>, shards: &[u32], item: &str) -> Result<LeafAnswer, Refusal> {
    for number in shards {
        let shard = held.get(number).ok_or_else(|| format!("does not hold shard {number}"))?;
        if let Some(row) = shard.find(item) {
            return Ok(LeafAnswer::Embedding(Some(shard.embedding(row).to_vec())));
        }
    }
    Ok(LeafAnswer::Embedding(None))
}
