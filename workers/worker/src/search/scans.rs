//! Scans that wait for their turn, and how those that wait together are done together.
//!
//! One batch is scanned at a time, by all threads of the pool: a query that comes alone starts at once, those that come
//! while a scan runs are taken together after it, and share the reading of the rows. The queue is bounded. Who does not
//! wait any more (deadline, cancelled, gone) leaves it, and a scan that nobody waits for stops between two blocks.
//! What is answered never depends on who was in the batch.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use likeness_contract::jobs::GenerationRef;
use likeness_contract::ranking::{Candidate, merge_top_k};
use likeness_contract::search::{How, Searched};
use likeness_index::{Approximate, Approximation, Cancel, Filter, Query, RowSet, Shard, top_k_approximate_batch};
use rayon::ThreadPool;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::holdings::HeldShard;
use super::resident;

/// Most queries of a batch: more would make the first of them wait longer than they save together.
const MAX_BATCH: usize = 64;

/// What one query asks of some shards.
#[derive(Debug)]
pub struct Scan {
    /// Of what all shards are.
    pub generation: GenerationRef,
    /// The shards, each once.
    pub shards: Vec<Arc<HeldShard>>,
    /// Finite, of the shards' dimension.
    pub query: Vec<f32>,
    /// K, at least 1.
    pub k: usize,
    /// Only these rows, of attributes that the shards have.
    pub filter: Option<Filter>,
    /// An approximate answer of this recall is enough; 0–1.
    pub recall: Option<f64>,
    /// When nobody waits any more.
    pub deadline: Instant,
}

impl Scan {
    /// Whether a shard is asked by its approximate index.
    fn probes(&self, shard: &HeldShard) -> bool {
        self.recall.is_some() && self.why_exact(shard).is_none()
    }

    /// Why a shard is searched exactly although an approximate answer would do.
    fn why_exact(&self, shard: &HeldShard) -> Option<String> {
        if self.filter.is_some() {
            Some("an answer with a filter is exact".into())
        } else if self.k > Approximate::LARGEST_K {
            Some(format!("an answer of more than {} results is exact", Approximate::LARGEST_K))
        } else if self.k + shard.rows_taken_out() > Approximate::LARGEST_K {
            Some("many of its items were removed".into())
        } else {
            shard.approximate().is_none().then(|| "it has no approximate index".into())
        }
    }

    /// The rows of some shards that are searched; none where these are all.
    fn row_sets(&self, shards: &[&HeldShard]) -> likeness_index::Result<Option<Vec<RowSet>>> {
        let filter = self.filter.as_ref();
        if filter.is_none() && shards.iter().all(|shard| shard.taken_out().is_none()) {
            return Ok(None);
        }
        shards.iter().map(|shard| shard.searched(filter)).collect::<likeness_index::Result<_>>().map(Some)
    }

    /// What is told of a shard that was searched exactly.
    fn exactly(&self, shard: &HeldShard, within: Option<&RowSet>) -> Searched {
        let whole = Searched::whole(shard.number(), shard.rows() as u64);
        let because = self.recall.and_then(|_| self.why_exact(shard));
        let matching = within.map_or(whole.rows, |rows| rows.count() as u64);
        Searched { matching, how: because.map(|because| How::Exactly { because }), ..whole }
    }
}

/// What a scan found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Found {
    /// The best K in ranking order.
    pub candidates: Vec<Candidate>,
    /// Every shard that was asked.
    pub searched: Vec<Searched>,
}

/// Why a scan brought nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoScan {
    /// Too many wait already.
    Overloaded,
    /// The deadline came first.
    TooLate,
    /// In words.
    Failed(String),
}

type Answer = Result<Found, NoScan>;

#[derive(Debug)]
struct Waiting {
    scan: Scan,
    /// Set when nobody waits any more.
    gone: CancellationToken,
    answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Whether a thread of the pool takes batches.
    working: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Scans {
    pool: ThreadPool,
    runtime: Handle,
    most_waiting: usize,
    queue: Mutex<Queue>,
}

impl Scans {
    /// Scans on `pool`, of which at most `most_waiting` wait. Must be called on a tokio runtime.
    pub fn new(pool: ThreadPool, most_waiting: usize) -> Arc<Self> {
        Arc::new(Self { pool, runtime: Handle::current(), most_waiting, queue: Mutex::default() })
    }

    /// The best K rows in ranking order, at the latest at the deadline. Dropping the future stops the scan.
    pub async fn scan(self: &Arc<Self>, scan: Scan) -> Answer {
        let (deadline, gone) = (scan.deadline, CancellationToken::new());
        let _leaves_when_dropped = gone.clone().drop_guard();
        let (answer, answered) = oneshot::channel();
        self.enter(Waiting { scan, gone, answer })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(NoScan::Failed("the scan broke off".into())),
            Err(_) => Err(NoScan::TooLate),
        }
    }

    fn enter(self: &Arc<Self>, waiting: Waiting) -> Result<(), NoScan> {
        let mut queue = self.queue();
        if queue.waiting.len() >= self.most_waiting {
            queue.waiting.retain(|waiting| !waiting.gone.is_cancelled());
        }
        if queue.waiting.len() >= self.most_waiting {
            return Err(NoScan::Overloaded);
        }
        queue.waiting.push_back(waiting);
        if !queue.working {
            queue.working = true;
            let this = Arc::clone(self);
            self.pool.spawn(move || this.work());
        }
        Ok(())
    }

    /// Takes batches until nobody waits. Runs on a thread of the pool.
    fn work(&self) {
        while let Some(batch) = self.next_batch() {
            // Those who wait hear of a panic by the end of their channels.
            if catch_unwind(AssertUnwindSafe(|| self.scan_batch(batch))).is_err() {
                tracing::error!("a scan panicked");
            }
        }
    }

    fn next_batch(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        queue.waiting.retain(|waiting| !waiting.gone.is_cancelled());
        let batch = take_batch(&mut queue.waiting);
        queue.working = !batch.is_empty();
        queue.working.then_some(batch)
    }

    fn scan_batch(&self, batch: Vec<Waiting>) {
        let cancel = Cancel::new();
        let (flag, all) = (cancel.clone(), batch.iter().map(|waiting| waiting.gone.clone()).collect::<Vec<_>>());
        let watch = self.runtime.spawn(async move {
            for gone in all {
                gone.cancelled().await;
            }
            flag.cancel();
        });
        let (scans, answers): (Vec<Scan>, Vec<_>) = batch.into_iter().map(|w| (w.scan, w.answer)).unzip();
        let found = together(&scans, &cancel);
        watch.abort();
        match found {
            // A closed channel is a query that nobody waits for.
            Ok(found) => found.into_iter().zip(answers).for_each(|(found, answer)| drop(answer.send(Ok(found)))),
            Err(error) => {
                let failed = NoScan::Failed(error.to_string());
                answers.into_iter().for_each(|answer| drop(answer.send(Err(failed.clone()))));
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The longest waiting and those of the same generation.
fn take_batch(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let Some(first) = waiting.pop_front() else { return Vec::new() };
    let mut batch = vec![first];
    let mut others = VecDeque::with_capacity(waiting.len());
    while let Some(next) = waiting.pop_front() {
        let fits = next.scan.generation == batch[0].scan.generation;
        if fits && batch.len() < MAX_BATCH { batch.push(next) } else { others.push_back(next) }
    }
    *waiting = others;
    batch
}

/// The answers to all. Shards that the same queries ask for are scanned together for these.
fn together(scans: &[Scan], cancel: &Cancel) -> likeness_index::Result<Vec<Found>> {
    let mut partials: Vec<Partials> = scans.iter().map(|_| Partials::default()).collect();
    for approximate in [false, true] {
        for (asking, shards) in by_askers(scans, |scan, shard| scan.probes(shard) == approximate) {
            let asked: Vec<&Scan> = asking.iter().map(|at| &scans[*at]).collect();
            let search = if approximate { approximately } else { exactly };
            for (at, (candidates, searched)) in asking.iter().zip(search(&asked, &shards, cancel)?) {
                partials[*at].candidates.push(candidates);
                partials[*at].searched.extend(searched);
            }
        }
    }
    Ok(partials.into_iter().zip(scans).map(|(partials, scan)| partials.merge(scan.k)).collect())
}

/// What a query found in some shards, and what is told of each.
type Part = (Vec<Candidate>, Vec<Searched>);

/// Exact answers to queries that ask for the same shards.
fn exactly(scans: &[&Scan], shards: &[&HeldShard], cancel: &Cancel) -> likeness_index::Result<Vec<Part>> {
    let sets = scans.iter().map(|scan| scan.row_sets(shards)).collect::<likeness_index::Result<Vec<_>>>()?;
    let within: Vec<Option<Vec<&RowSet>>> =
        sets.iter().map(|sets| sets.as_ref().map(|sets| sets.iter().collect())).collect();
    let asked = scans.iter().zip(&within);
    let queries: Vec<Query> =
        asked.map(|(scan, within)| Query { vector: &scan.query, k: scan.k, within: within.as_deref() }).collect();
    let answers = resident::top_k_batch(shards, &queries, cancel)?;
    let searched = scans.iter().zip(&within).map(|(scan, within)| {
        let rows = |place: usize| within.as_ref().map(|sets| sets[place]);
        shards.iter().enumerate().map(|(place, shard)| scan.exactly(shard, rows(place))).collect()
    });
    Ok(answers.into_iter().zip(searched).collect())
}

/// What was found for one query in some shards after others.
#[derive(Debug, Default)]
struct Partials {
    candidates: Vec<Vec<Candidate>>,
    searched: Vec<Searched>,
}

impl Partials {
    fn merge(self, k: usize) -> Found {
        let Self { candidates, mut searched } = self;
        searched.sort_unstable_by_key(|searched| searched.shard);
        Found { candidates: merge_top_k(candidates, k), searched }
    }
}

/// What approximate indexes answer to queries that ask for the same shards.
fn approximately(scans: &[&Scan], shards: &[&HeldShard], cancel: &Cancel) -> likeness_index::Result<Vec<Part>> {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    for shard in shards {
        match shard.taken_out() {
            None => whole.push(&***shard),
            Some(removed) => cut.push((&***shard, removed)),
        }
    }
    let mut parts = probe(scans, &whole, 0, cancel)?;
    for (shard, removed) in cut {
        // As many more as there are rows that are not to be found, so that K are left.
        let more = probe(scans, &[shard], removed.count(), cancel)?;
        for ((part, scan), (mut candidates, mut searched)) in parts.iter_mut().zip(scans).zip(more) {
            candidates.retain(|candidate| !removed.contains(candidate.row));
            searched.iter_mut().for_each(|searched| searched.matching -= removed.count() as u64);
            part.0 = merge_top_k(vec![std::mem::take(&mut part.0), candidates], scan.k);
            part.1.append(&mut searched);
        }
    }
    Ok(parts)
}

/// The best K and `more` for every query, by the indexes of these shards.
fn probe(scans: &[&Scan], shards: &[&Shard], more: usize, cancel: &Cancel) -> likeness_index::Result<Vec<Part>> {
    if shards.is_empty() {
        return Ok(vec![Part::default(); scans.len()]);
    }
    let asked = scans.iter().map(|scan| {
        let query = Query { vector: &scan.query, k: scan.k + more, within: None };
        (query, scan.recall.unwrap_or(1.0))
    });
    let answers = top_k_approximate_batch(shards, &asked.collect::<Vec<_>>(), cancel)?;
    let searched = |(shard, recall): (&&Shard, f64)| {
        let how = Some(How::Approximately { recall });
        Searched { how, ..Searched::whole(shard.number(), shard.rows() as u64) }
    };
    let part =
        |Approximation { candidates, recalls, .. }| (candidates, shards.iter().zip(recalls).map(searched).collect());
    Ok(answers.into_iter().map(part).collect())
}

/// The shards that the queries ask for and that are `wanted`, by the queries that ask for them.
fn by_askers(scans: &[Scan], wanted: impl Fn(&Scan, &HeldShard) -> bool) -> BTreeMap<Vec<usize>, Vec<&HeldShard>> {
    let mut askers: BTreeMap<u32, (Vec<usize>, &HeldShard)> = BTreeMap::new();
    for (at, scan) in scans.iter().enumerate() {
        for shard in scan.shards.iter().filter(|shard| wanted(scan, shard)) {
            askers.entry(shard.number()).or_insert_with(|| (Vec::new(), shard)).0.push(at);
        }
    }
    let mut groups: BTreeMap<Vec<usize>, Vec<&HeldShard>> = BTreeMap::new();
    for (asking, shard) in askers.into_values() {
        groups.entry(asking).or_default().push(shard);
    }
    groups
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use likeness_contract::datasets::{Removal, RemovalChange, Removed};
    use likeness_contract::ids::{JobId, Name};
    use likeness_index::{Shard, ShardRows, top_k};

    use super::*;

    const DIM: usize = 4;

    fn shard(number: u32, rows: usize) -> Arc<HeldShard> {
        let angle = |row: usize| (row as f32 + 1.0) * (number as f32 + 0.7);
        let embeddings = (0..rows).flat_map(|row| [angle(row).sin(), angle(row).cos(), 0.0, 0.0]).collect();
        let rows = ShardRows {
            item_ids: (0..rows).map(|row| format!("{number}-{row}")).collect(),
            embeddings,
            labels: vec![0; rows],
            split: vec![0; rows],
            source_part: vec![0; rows],
            source_row: vec![0; rows],
            image_digest: vec![[0; 32]; rows],
        };
        Arc::new(HeldShard::new(Shard::new(number, rows, DIM, 1).unwrap(), None))
    }

    fn generation(name: &str) -> GenerationRef {
        GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new(name).unwrap() }
    }

    fn scan(shards: &[Arc<HeldShard>], angle: f32, k: usize) -> Scan {
        let deadline = Instant::now() + Duration::from_secs(60);
        let query = vec![angle.sin(), angle.cos(), 0.0, 0.0];
        Scan { generation: generation("j"), shards: shards.to_vec(), query, k, filter: None, recall: None, deadline }
    }

    fn waiting(scan: Scan) -> Waiting {
        Waiting { scan, gone: CancellationToken::new(), answer: oneshot::channel().0 }
    }

    /// A pool of one thread that does nothing until the sender is used or dropped.
    fn blocked(most_waiting: usize) -> (Arc<Scans>, mpsc::Sender<()>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (go, wait) = mpsc::channel();
        pool.spawn(move || {
            let _dropped = wait.recv();
        });
        (Scans::new(pool, most_waiting), go)
    }

    async fn waits(scans: &Scans, count: usize) {
        while scans.queue().waiting.len() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn queries_that_wait_together_are_answered_as_if_each_were_alone() {
        let shards: Vec<_> = (0..4).map(|number| shard(number, 50)).collect();
        let (scans, go) = blocked(100);
        // Different shards, different K.
        let asked = |i: usize| (&shards[i % 3..=i % 3 + i % 2], i as f32, 1 + i % 7);
        let tasks: Vec<_> = (0..20)
            .map(|i| {
                let (scans, (shards, angle, k)) = (Arc::clone(&scans), asked(i));
                let scan = scan(shards, angle, k);
                tokio::spawn(async move { scans.scan(scan).await })
            })
            .collect();
        waits(&scans, 20).await;
        drop(go);
        for (i, task) in tasks.into_iter().enumerate() {
            let (shards, angle, k) = asked(i);
            let alone = scan(shards, angle, k);
            let plain: Vec<&Shard> = alone.shards.iter().map(|shard| &***shard).collect();
            let expected = top_k(&plain, &alone.query, k, &Cancel::new()).unwrap();
            assert_eq!(task.await.unwrap().unwrap().candidates, expected);
        }
    }

    #[test]
    fn rows_that_were_taken_out_are_not_found_and_k_others_are() {
        let shards: Vec<_> = (0..3).map(|number| shard(number, 50)).collect();
        let all = |k| together(&[scan(&shards, 0.3, k)], &Cancel::new()).unwrap().remove(0);
        let before = all(150).candidates;
        let mut removed = Removed::default();
        let items: Vec<String> = before[..20].iter().map(|candidate| candidate.item.clone()).collect();
        let change = |number, change, items: &[String]| Removal {
            dataset: Name::new("d").unwrap(),
            number,
            change,
            items: items.to_vec(),
            created_ms: 0,
        };
        removed.apply(&change(1, RemovalChange::Remove, &items));
        shards.iter().for_each(|shard| shard.take_out(&removed));
        let after = all(30);
        assert_eq!(after.candidates, before[20..50]);
        let (rows, matching) = after.searched.iter().fold((0, 0), |(r, m), s| (r + s.rows, m + s.matching));
        assert_eq!((rows, matching), (150, 130));

        let mut restored = removed.clone();
        restored.apply(&change(2, RemovalChange::Restore, &items[..5]));
        shards.iter().for_each(|shard| shard.take_out(&restored));
        shards.iter().for_each(|shard| shard.take_out(&removed));
        assert_eq!(all(5).candidates, before[..5], "an older list changes nothing");
        let filter = Some(Filter::new().and(0, likeness_index::Label::Has));
        let none = together(&[Scan { filter, ..scan(&shards, 0.3, 5) }], &Cancel::new()).unwrap().remove(0);
        assert!(none.candidates.is_empty());
    }

    #[test]
    fn an_approximate_answer_leaves_them_out_too_and_has_k_others() {
        let count = 5_000;
        let angle = |row: usize| row as f32 * 0.001;
        let rows = ShardRows {
            item_ids: (0..count).map(|row| format!("{row}")).collect(),
            embeddings: (0..count).flat_map(|row| [angle(row).sin(), angle(row).cos(), 0.0, 0.0]).collect(),
            labels: vec![0; count],
            split: vec![0; count],
            source_part: vec![0; count],
            source_row: vec![0; count],
            image_digest: vec![[0; 32]; count],
        };
        let shard = Shard::new(0, rows, DIM, 1).unwrap().with_codes().unwrap();
        let index = Approximate::build(&shard).unwrap().expect("it is large");
        let shard = [Arc::new(HeldShard::new(shard.with_approximate(index), None))];
        let ask = |k| {
            let scan = Scan { recall: Some(0.99), ..scan(&shard, 1.0, k) };
            together(&[scan], &Cancel::new()).unwrap().remove(0)
        };
        let approximately = |found: &Found| matches!(found.searched[0].how, Some(How::Approximately { .. }));
        let take_out = |number, items: Vec<String>| {
            let (dataset, change, created_ms) = (Name::new("d").unwrap(), RemovalChange::Remove, 0);
            let mut removed = Removed::default();
            (1..=number).for_each(|number| {
                let (dataset, items) = (dataset.clone(), items.clone());
                removed.apply(&Removal { dataset, number, change, items, created_ms });
            });
            shard[0].take_out(&removed);
        };
        let before = ask(10);
        let gone: Vec<String> = before.candidates.iter().map(|candidate| candidate.item.clone()).collect();
        take_out(1, gone.clone());
        let after = ask(10);
        assert!(approximately(&before) && approximately(&after));
        assert_eq!((after.candidates.len(), after.searched[0].matching), (10, 4_990));
        assert!(after.candidates.iter().all(|candidate| !gone.contains(&candidate.item)));
        take_out(2, (500..1500).map(|row| row.to_string()).collect());
        let exact = ask(10);
        let why = Some(How::Exactly { because: "many of its items were removed".into() });
        assert_eq!((exact.candidates.len(), &exact.searched[0].how), (10, &why));
    }

    #[tokio::test]
    async fn approximate_queries_that_wait_together_are_answered_as_if_each_were_alone() {
        let indexed = |number: u32| {
            let shard = Arc::into_inner(shard(number, 4_200)).expect("nobody else's").into_shard();
            let index = Approximate::build(&shard).unwrap().expect("an index");
            Arc::new(HeldShard::new(shard.with_approximate(index), None))
        };
        let shards = [indexed(0), shard(1, 50), indexed(2)];
        // Different shards and targets, exact ones among them, and a K that no index answers.
        let asked = |i: usize| {
            let recall = [Some(0.8), None, Some(0.95), Some(1.0)][i % 4];
            Scan { recall, ..scan(&shards[i % 2..], i as f32, if i == 6 { 101 } else { 1 + i % 7 }) }
        };
        let (scans, go) = blocked(100);
        let ask = |i: usize| {
            let (scans, scan) = (Arc::clone(&scans), asked(i));
            tokio::spawn(async move { scans.scan(scan).await })
        };
        let tasks: Vec<_> = (0..20).map(ask).collect();
        waits(&scans, 20).await;
        drop(go);
        let mut approximate = 0;
        for (i, task) in tasks.into_iter().enumerate() {
            let found = task.await.unwrap().unwrap();
            let alone = together(&[asked(i)], &Cancel::new()).unwrap().pop().expect("an answer");
            assert_eq!(found, alone);
            assert_eq!(found.candidates.len(), asked(i).k);
            assert!(found.searched.is_sorted_by_key(|searched| searched.shard));
            let how = found.searched.iter().filter(|searched| matches!(searched.how, Some(How::Approximately { .. })));
            approximate += how.count();
        }
        assert_eq!(approximate, 9 * 2 + 5, "indexes were asked");
    }

    #[tokio::test]
    async fn one_too_many_is_refused_at_once_and_who_leaves_makes_room() {
        let shards = [shard(0, 5)];
        let (scans, go) = blocked(2);
        let ask = || {
            let (scans, scan) = (Arc::clone(&scans), scan(&shards, 1.0, 1));
            tokio::spawn(async move { scans.scan(scan).await })
        };
        let (first, second) = (ask(), ask());
        waits(&scans, 2).await;
        assert_eq!(ask().await.unwrap(), Err(NoScan::Overloaded));
        first.abort();
        assert!(first.await.is_err(), "it was cancelled");
        let third = ask();
        // The one that left is dropped only when there is need of its place.
        while !scans.queue().waiting.iter().all(|waiting| !waiting.gone.is_cancelled()) {
            tokio::task::yield_now().await;
        }
        drop(go);
        let rows = |answer: Result<Answer, _>| answer.expect("it ends").expect("it is answered").candidates.len();
        assert_eq!((rows(second.await), rows(third.await)), (1, 1));
    }

    #[tokio::test]
    async fn who_waits_too_long_hears_so() {
        let (scans, _go) = blocked(2);
        let deadline = Instant::now() + Duration::from_millis(5);
        let scan = Scan { deadline, ..scan(&[shard(0, 5)], 1.0, 1) };
        assert_eq!(scans.scan(scan).await, Err(NoScan::TooLate));
    }

    #[tokio::test]
    async fn a_scan_that_nobody_waits_for_stops() {
        let (scans, _go) = blocked(2);
        let all = [waiting(scan(&[shard(0, 5)], 1.0, 1)), waiting(scan(&[shard(0, 5)], 1.0, 1))];
        let gone: Vec<_> = all.iter().map(|waiting| waiting.gone.clone()).collect();
        gone.iter().for_each(CancellationToken::cancel);
        let cancel = Cancel::new();
        assert!(together(&[], &cancel).unwrap().is_empty());
        cancel.cancel();
        let scan = scan(&[shard(0, 5)], 1.0, 1);
        assert_eq!(together(&[scan], &cancel).unwrap_err().kind, likeness_index::ErrorKind::Cancelled);
        scans.queue().waiting.extend(all);
        assert!(scans.next_batch().is_none(), "nobody of them waits");
    }

    #[test]
    fn a_batch_is_of_one_generation_and_bounded() {
        let shards = [shard(0, 5)];
        let mut queue = VecDeque::from([waiting(scan(&shards, 1.0, 10)), waiting(scan(&shards, 2.0, 5000))]);
        let other = || waiting(Scan { generation: generation("other"), ..scan(&shards, 3.0, 10) });
        queue.extend([other(), other()]);
        queue.extend((0..MAX_BATCH).map(|_| waiting(scan(&shards, 4.0, 12))));
        let sizes: Vec<usize> = std::iter::from_fn(|| Some(take_batch(&mut queue).len()).filter(|n| *n > 0)).collect();
        assert_eq!(sizes, [MAX_BATCH, 2, 2]);
    }
}
