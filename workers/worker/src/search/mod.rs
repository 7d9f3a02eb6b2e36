//! Search: leaves answer for their shards, roots embed the query, ask the leaves and merge.
//!
//! Every searcher is both. Four parts run side by side: watchers keep the [`view::View`] of the buckets, the
//! keeper loads and drops what [`keeper::Keeper`] decides and announces it, the [`leaf`] answers for shards,
//! and the root ([`root`], behind [`service`]) answers the public subject. What they share is a [`Searcher`].
//!
//! Invariants. An announced shard is in memory and was checked against its digest. A query sticks to the
//! generation it started with. What was not searched is said.

mod embedded;
mod explain;
mod fan_out;
mod gather;
mod holdings;
mod keeper;
mod leaf;
mod loader;
mod measure;
mod memory;
mod peers;
mod placement;
pub(crate) mod query;
mod removals;
mod rendezvous;
mod resident;
mod root;
mod scans;
mod service;
pub mod settings;
mod view;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use likeness_contract::codec::{self, Encoding};
use likeness_contract::search::{LeafCancel, LeafRequest};
use likeness_contract::subjects;
use likeness_index::Cache;
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::embedded::Embedded;
use self::explain::Curves;
use self::fan_out::Numbers;
use self::holdings::Holdings;
use self::leaf::Leaf;
use self::peers::Peers;
use self::removals::Removals;
use self::settings::SearchSettings;
use self::view::View;
use crate::error::TaskError;
use crate::runtime::context::SearchContext;

/// Requests that the leaf's subject takes in at once; the leaf itself refuses what it can't do.
const LEAF_REQUESTS: usize = 4096;

/// How long a leaf answers on after it withdrew its announcement: until every root has heard of that.
const LINGER: Duration = Duration::from_millis(300);

/// What the parts of a searcher share.
#[derive(Debug)]
struct Searcher {
    cx: SearchContext,
    settings: SearchSettings,
    holdings: Arc<Holdings>,
    /// Shards on this machine's disk.
    disk: Option<Arc<Cache>>,
    leaf: Leaf,
    view: Mutex<View>,
    /// Sees every change of view or holdings.
    changed: watch::Sender<()>,
    peers: Peers,
    numbers: Numbers,
    embedded: Embedded,
    curves: Curves,
    removals: Removals,
}

impl Searcher {
    fn new(cx: SearchContext) -> Result<Self, TaskError> {
        let settings = cx.settings.search.clone();
        let threads = rayon::ThreadPoolBuilder::new().num_threads(cx.settings.threads);
        let pool = threads.thread_name(|i| format!("scan-{i}")).build().map_err(TaskError::transient)?;
        let holdings = Arc::new(Holdings::default());
        let open = |(folder, limit): &(PathBuf, u64)| Cache::open(folder, *limit).map(Arc::new);
        let disk = settings.cache.as_ref().map(open).transpose().map_err(TaskError::invalid)?;
        let leaf = Leaf::new(cx.worker.clone(), Arc::clone(&holdings), pool, &settings);
        let view = Mutex::new(View::new(cx.bus.timings().presence_ttl));
        let (changed, _) = watch::channel(());
        let numbers = Numbers::of(cx.worker.as_str());
        let (peers, embedded) = (Peers::default(), Embedded::default());
        let (curves, removals) = (Curves::default(), Removals::default());
        Ok(Self { cx, settings, holdings, disk, leaf, view, changed, peers, numbers, embedded, curves, removals })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn tell_change(&self) {
        self.changed.send_replace(());
    }
}

/// Serves searches until `cx.shutdown` is cancelled, then withdraws the announcement and answers what is
/// under way.
pub async fn serve(cx: SearchContext) -> Result<(), TaskError> {
    let shutdown = cx.shutdown.clone();
    let searcher = Arc::new(Searcher::new(cx)?);
    let _hears_of_removed = removals::follow(&searcher).await?;
    let placement = tokio::select! {
        placement = placement::start(&searcher) => placement?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let answering = Arc::clone(&searcher);
    let answer = move |request: LeafRequest| {
        let searcher = Arc::clone(&answering);
        async move { searcher.leaf.answer(request).await }
    };
    let subject = subjects::leaf(&searcher.cx.worker);
    let leaf = searcher.cx.bus.serve(subject, None, LEAF_REQUESTS, Leaf::refuse, answer).await?;
    let _hears_of_cancelled = hear_of_cancelled(&searcher).await?;
    placement.settled().await;
    let served = service::serve(Arc::clone(&searcher)).await;
    placement.withdrawn().await;
    tokio::time::sleep(LINGER).await;
    leaf.stop().await;
    served
}

/// Requests that nobody waits for any more are taken back, until the returned set is dropped.
async fn hear_of_cancelled(searcher: &Arc<Searcher>) -> Result<JoinSet<()>, TaskError> {
    let subject = subjects::leaf_cancel(&searcher.cx.worker);
    let mut messages = searcher.cx.bus.client().subscribe(subject).await.map_err(TaskError::transient)?;
    let (mut tasks, searcher) = (JoinSet::new(), Arc::clone(searcher));
    tasks.spawn(async move {
        while let Some(message) = messages.next().await {
            match codec::decode::<LeafCancel>(&message.payload, Encoding::Bincode) {
                Ok(LeafCancel { number }) => searcher.leaf.cancel(number),
                Err(error) => tracing::debug!(%error, "no cancelled request"),
            }
        }
    });
    Ok(tasks)
}
