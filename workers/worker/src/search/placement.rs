//! Carries the decisions of [`Keeper`] out: loads, drops, announces; and watches the buckets.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use likeness_contract::codec::Message;
use likeness_contract::ids::Name;
use likeness_contract::jobs::{DatasetRef, GenerationRef};
use likeness_contract::messages::{AliasState, Placement, Presence, Served};
use likeness_contract::subjects::{ALIASES_BUCKET, PLACEMENT_BUCKET, PRESENCE_BUCKET};
use likeness_link::error::chain;
use likeness_link::kv::{Change, Entry, Kv};
use rayon::ThreadPool;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::holdings::Kit;
use super::keeper::{Inventory, Keeper, Step};
use super::loader::{Loaded, Loader};
use super::measure;
use super::{Searcher, loader, memory};
use crate::error::TaskError;

/// Pause before a bucket that is not there is looked for again.
const BUCKET_PAUSE: Duration = Duration::from_millis(500);

/// Past a searcher's last moment, so that it does not count any more.
const TICK: Duration = Duration::from_millis(5);

/// The running watchers and keeper.
#[derive(Debug)]
pub struct Running {
    settled: watch::Receiver<bool>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
    watchers: JoinSet<()>,
}

/// Starts the watchers and the keeper, once the buckets are there. At shutdown the keeper withdraws the
/// announcement, while root and leaf still answer.
pub async fn start(searcher: &Arc<Searcher>) -> Result<Running, TaskError> {
    let [aliases, presence, placement] = [ALIASES_BUCKET, PRESENCE_BUCKET, PLACEMENT_BUCKET];
    let (aliases, presence) = (bucket(searcher, aliases).await, bucket(searcher, presence).await);
    let placement = bucket(searcher, placement).await;
    fill(searcher, &aliases, &presence, &placement).await;
    let mut watchers = JoinSet::new();
    watchers.spawn(follow(Arc::clone(searcher), aliases, on_alias));
    watchers.spawn(follow(Arc::clone(searcher), presence, on_presence));
    watchers.spawn(follow(Arc::clone(searcher), placement.clone(), on_placement));
    let (settled, settled_seen) = watch::channel(false);
    let stop = searcher.cx.shutdown.child_token();
    let pool = loader::pool(searcher.cx.settings.threads)?;
    let keeper = Keep { searcher: Arc::clone(searcher), bucket: placement, pool, announced: None, settled };
    let keeper = tokio::spawn(keeper.run(stop.clone()));
    Ok(Running { settled: settled_seen, stop, keeper, watchers })
}

impl Running {
    /// Returns when what was wanted at the start is loaded, or has failed to load.
    pub async fn settled(&self) {
        // An error means that the keeper has ended; then there is nothing to wait for.
        let _ = self.settled.clone().wait_for(|settled| *settled).await;
    }

    /// Ends watchers and keeper; returns when the announcement is withdrawn.
    pub async fn withdrawn(mut self) {
        self.stop.cancel();
        if let Err(panic) = self.keeper.await {
            tracing::error!(%panic, "the keeper of shards failed");
        }
        self.watchers.shutdown().await;
    }
}

/// A bucket, as soon as it is there.
async fn bucket(searcher: &Searcher, name: &str) -> Kv {
    loop {
        match searcher.cx.bus.kv(name).await {
            Ok(bucket) => return bucket,
            Err(error) => tracing::warn!(bucket = name, error = %chain(&error), "waiting for a bucket"),
        }
        tokio::time::sleep(BUCKET_PAUSE).await;
    }
}

/// Reads the buckets once, so that the first decisions know of everybody.
async fn fill(searcher: &Searcher, aliases: &Kv, presence: &Kv, placement: &Kv) {
    for entry in current(aliases).await {
        on_alias(searcher, Event::Put(entry));
    }
    for entry in current::<Presence>(presence).await {
        searcher.view().on_old_presence(&entry.value, entry.revision, Instant::now());
    }
    for entry in current(placement).await {
        on_placement(searcher, Event::Put(entry));
    }
}

async fn current<M: Message>(bucket: &Kv) -> Vec<Entry<M>> {
    bucket.entries().await.unwrap_or_else(|error| {
        tracing::warn!(?bucket, error = %chain(&error), "can't read a bucket yet");
        Vec::new()
    })
}

/// A change of an entry.
enum Event<M> {
    Put(Entry<M>),
    Gone(String),
}

async fn follow<M: Message>(searcher: Arc<Searcher>, bucket: Kv, on: fn(&Searcher, Event<M>)) {
    let mut changes = bucket.watch::<M>();
    loop {
        let event = match changes.next().await {
            Change::Put(entry) => Event::Put(entry),
            Change::Gone { key } => Event::Gone(key),
        };
        on(&searcher, event);
    }
}

fn on_alias(searcher: &Searcher, event: Event<AliasState>) {
    match event {
        Event::Put(entry) => match Name::new(entry.key) {
            Ok(alias) => searcher.view().on_alias(alias, entry.value),
            Err(error) => return tracing::warn!(%error, "an alias is left out"),
        },
        Event::Gone(key) => searcher.view().on_alias_gone(&key),
    }
    searcher.tell_change();
}

fn on_presence(searcher: &Searcher, event: Event<Presence>) {
    let changed = match event {
        Event::Put(entry) => searcher.view().on_presence(&entry.value, entry.revision, Instant::now()),
        Event::Gone(key) => {
            searcher.view().on_presence_gone(&key);
            true
        }
    };
    if changed {
        searcher.tell_change();
    }
}

fn on_placement(searcher: &Searcher, event: Event<Placement>) {
    match event {
        Event::Put(entry) => searcher.view().on_placement(entry.value),
        Event::Gone(key) => searcher.view().on_placement_gone(&key),
    }
    searcher.tell_change();
}

/// The loop that keeps memory as it should be.
struct Keep {
    searcher: Arc<Searcher>,
    bucket: Kv,
    /// Decodes shards.
    pool: ThreadPool,
    /// The last announcement that the bucket took, and when.
    announced: Option<(Placement, Instant)>,
    settled: watch::Sender<bool>,
}

impl Keep {
    async fn run(mut self, stop: CancellationToken) {
        let searcher = Arc::clone(&self.searcher);
        let settings = &searcher.settings;
        let me = searcher.cx.worker.clone();
        let mut keeper = Keeper::new(me, settings.replicas, settings.keep_generation, settings.retry_first);
        let mut changed = searcher.changes();
        while !stop.is_cancelled() {
            changed.borrow_and_update();
            let step = keeper.next(&searcher.view(), &self.inventory(), Instant::now());
            let rest = matches!(step, Step::Rest(_));
            until(&stop, self.take(&mut keeper, step, &mut changed)).await;
            until(&stop, self.announce(&keeper, rest)).await;
        }
        self.withdraw().await;
    }

    /// Does one step. Resting ends with a change, at the moment that the keeper named, or when a searcher may
    /// have died, which no change reports.
    async fn take(&self, keeper: &mut Keeper, step: Step, changed: &mut watch::Receiver<()>) {
        let searcher = &self.searcher;
        match step {
            Step::LoadKit(served) => self.load_kit(keeper, served).await,
            Step::LoadShards(generation, shards) => self.load_shards(keeper, generation, shards).await,
            Step::DropShard(generation, shard) => {
                tracing::info!(generation = %generation.generation, shard, "a shard moved to other searchers");
                searcher.holdings.drop_shard(&generation, shard);
            }
            Step::DropGeneration(generation) => {
                tracing::info!(generation = %generation.generation, "a generation is no longer wanted");
                searcher.holdings.drop_generation(&generation);
            }
            Step::Rest(moment) => {
                self.settled.send_replace(true);
                let now = Instant::now();
                let look_again = now + searcher.cx.bus.timings().presence_ttl;
                let expiry = searcher.view().next_expiry(now).map(|expiry| expiry + TICK);
                let moment = [moment, expiry].into_iter().flatten().fold(look_again, Instant::min);
                let _ = tokio::time::timeout_at(moment.into(), changed.changed()).await;
            }
        }
    }

    async fn load_kit(&self, keeper: &mut Keeper, served: Served) {
        let started = Instant::now();
        match self.kit_and_removals(&served).await {
            Ok(kit) => {
                let (shards, rows) = (kit.generation.shards.len(), kit.generation.total_rows());
                tracing::info!(
                    release = served.release, generation = %served.generation.generation, shards, rows,
                    ms = started.elapsed().as_millis() as u64, "model loaded"
                );
                keeper.on_loaded(&served.generation, None);
                self.searcher.holdings.add_kit(served.generation, kit);
                self.searcher.tell_change();
            }
            Err(error) => {
                failed(keeper, &served.generation, None, &error);
                self.searcher.holdings.on_trouble(served.generation, error.chain());
                self.searcher.tell_change();
            }
        }
    }

    /// A generation whose removals are not known is not answered for.
    async fn kit_and_removals(&self, served: &Served) -> Result<Kit, TaskError> {
        let kit = loader::load_kit(&self.searcher.cx, served).await?;
        if let Some(dataset) = kit.generation.dataset() {
            self.searcher.removals.refresh(&self.searcher.cx.store, &dataset.dataset).await?;
        }
        Ok(kit)
    }

    async fn load_shards(&self, keeper: &mut Keeper, generation: GenerationRef, shards: Vec<u32>) {
        let loader = Loader { cx: &self.searcher.cx, pool: &self.pool, disk: self.searcher.disk.as_ref() };
        let Some(kit) = self.searcher.holdings.kit(&generation) else { return };
        let (dim, attributes) = (kit.generation.embedding_dim as usize, kit.generation.vocabulary.len());
        let entries = kit.generation.shards.iter().filter(|entry| shards.contains(&entry.shard));
        let sizes = entries.map(|entry| (entry.shard, memory::needed(entry, dim, attributes))).collect();
        let (taken, refused) =
            memory::admit(self.searcher.settings.memory, self.searcher.holdings.shard_bytes(), sizes);
        for (number, why) in refused {
            failed(keeper, &generation, Some(number), &TaskError::transient(why));
        }
        let entries = kit.generation.shards.iter().filter(|entry| taken.contains(&entry.shard));
        let loads = entries.map(|entry| async { (entry.shard, measure::load(loader.load(&kit, entry)).await) });
        for (number, loaded) in join_all(loads).await {
            match loaded {
                Ok(loaded) => {
                    let (rows, approximate) = (loaded.shard.rows(), loaded.shard.approximate().is_some());
                    tracing::info!(generation = %generation.generation, shard = number, rows, approximate, "shard loaded");
                    if let Some(trouble) = &loaded.trouble {
                        tracing::warn!(generation = %generation.generation, shard = number, trouble, "no approximate index");
                    }
                    keeper.on_loaded(&generation, Some(number));
                    self.add_shard(&generation, kit.generation.dataset(), loaded);
                }
                Err(error) => failed(keeper, &generation, Some(number), &error),
            }
        }
        self.searcher.tell_change();
    }

    /// Adds a shard without its removed rows; looks again afterwards, for those who heard of more meanwhile did not see it.
    fn add_shard(&self, generation: &GenerationRef, dataset: Option<&DatasetRef>, loaded: Loaded) {
        let (number, removals) = (loaded.shard.number(), &self.searcher.removals);
        let removed = || dataset.map(|dataset| removals.of(&dataset.dataset)).unwrap_or_default();
        loaded.shard.take_out(&removed());
        self.searcher.holdings.add_shard(generation, loaded);
        let held = self.searcher.holdings.shards(generation).and_then(|shards| shards.get(&number).cloned());
        held.into_iter().for_each(|shard| shard.take_out(&removed()));
    }

    fn inventory(&self) -> BTreeMap<GenerationRef, Inventory> {
        let held = self.searcher.holdings.snapshot().into_iter();
        held.map(|(generation, held)| {
            let all = held.kit.generation.shards.iter().map(|entry| entry.shard).collect();
            (generation, Inventory { all, held: held.shards.keys().copied().collect() })
        })
        .collect()
    }

    /// Tells the others what is held, when it changed; and now and then anyway, should the broker have
    /// forgotten it.
    async fn announce(&mut self, keeper: &Keeper, at_rest: bool) {
        let searcher = &self.searcher;
        let placement = Placement {
            worker: searcher.cx.worker.clone(),
            held: searcher.holdings.announcement(),
            troubles: [keeper.troubles(), searcher.holdings.index_troubles()].concat(),
        };
        let again = searcher.cx.bus.timings().presence_ttl * 2;
        let known = self.announced.as_ref().is_some_and(|(last, at)| *last == placement && at.elapsed() < again);
        if !known {
            match self.bucket.put(placement.worker.as_str(), &placement).await {
                Ok(_) => {
                    // Known at once here, whenever the watch brings it.
                    searcher.view().on_placement(placement.clone());
                    self.announced = Some((placement, Instant::now()));
                }
                Err(error) => tracing::warn!(error = %chain(&error), "can't announce the shards held"),
            }
        }
        if at_rest {
            self.remove_abandoned().await;
        }
    }

    /// Announcements of searchers that were killed; removing one twice is harmless, and one that is alive
    /// after all announces itself again.
    async fn remove_abandoned(&self) {
        let abandoned = self.searcher.view().abandoned(Instant::now());
        for worker in abandoned.into_iter().filter(|worker| *worker != self.searcher.cx.worker) {
            tracing::info!(searcher = %worker, "removing the announcement of a searcher that is gone");
            match self.bucket.delete(worker.as_str()).await {
                Ok(()) => self.searcher.view().on_placement_gone(worker.as_str()),
                Err(error) => tracing::warn!(error = %chain(&error), "can't remove an announcement"),
            }
        }
    }

    async fn withdraw(&self) {
        let me = self.searcher.cx.worker.as_str();
        if let Err(error) = self.bucket.delete(me).await {
            tracing::warn!(error = %chain(&error), "can't withdraw the announcement");
        }
    }
}

/// Ends early when told to stop.
async fn until(stop: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn failed(keeper: &mut Keeper, generation: &GenerationRef, shard: Option<u32>, error: &TaskError) {
    let error = error.chain();
    measure::on_load_failure();
    tracing::error!(generation = %generation.generation, shard, %error, "can't load");
    keeper.on_failure(generation, shard, error, Instant::now());
}
