//! The async shell: a coordinator process around the pure core.
//!
//! Several coordinators may run; one leads by a lease, the others stand by. The leader reads its state from the
//! store, follows the events from the opening of its oldest open run, and from then on does what the core decides.
//! Two leaders at once are harmless: everything a leader does is a publish that is unique by subject or a create
//! that one of them wins. So the lease only keeps the noise down, and nothing here has to be fenced.
//!
//! | module | does |
//! |---|---|
//! | [`lease`] | who leads |
//! | [`recover`] | jobs, as the store knows them |
//! | [`leader`] | one loop that owns the core and feeds it news in order |
//! | [`executor`] | what the core wants done, retried until it is done |
//! | [`events`], [`watchdog`], [`roster`] | where news comes from: events, time and a mended broker, live workers |
//! | [`api`], [`accept`], [`facts`], [`status`] | the API |
//! | [`usage`], [`notify`] | what jobs use on devices, who is told that they ended |
//! | [`promote`], [`releases`] | releases, and the bucket that tells searchers of them |
//! | [`schedules`] | jobs that are submitted by themselves |
//! | [`measure`] | what Prometheus is told of queues and workers |
//! | [`retention`] | what is old goes, unless something holds it |

mod accept;
mod api;
mod backoff;
mod context;
mod events;
mod executor;
mod facts;
mod leader;
mod lease;
mod measure;
mod notify;
mod promote;
mod recover;
mod releases;
pub mod retention;
mod roster;
mod schedules;
mod status;
mod usage;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

use likeness_contract::ids::WorkerId;
use likeness_link::telemetry::metrics::metrics;
use likeness_link::{Bus, Error, ErrorKind, NatsSettings, Result, Store, WebhookSecrets};
use tokio_util::sync::CancellationToken;

use self::backoff::Backoff;
use self::context::Context;
use self::lease::Lease;

/// Pause after a failure to take over.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How a coordinator works.
#[derive(Debug, Clone)]
pub struct CoordinatorSettings {
    /// Its id; new at every start.
    pub id: WorkerId,
    /// Where NATS is.
    pub nats: NatsSettings,
    /// Where durable things lie: a folder or a URL.
    pub store: String,
    /// Searchers that must hold every shard before a release is switched to, if so many are live (R).
    pub replicas: usize,
    /// Longest wait for searchers to load a release.
    pub promotion_limit: Duration,
    /// What webhooks are signed with.
    pub webhook_secrets: WebhookSecrets,
    /// Copies of every stream and bucket on a cluster of brokers; as the cluster looks without.
    pub stream_replicas: Option<usize>,
}

impl CoordinatorSettings {
    /// With an id of its own, two replicas, two minutes for a promotion and unsigned webhooks.
    pub fn new(nats: NatsSettings, store: impl Into<String>) -> Self {
        let (id, store) = (new_id(), store.into());
        let promotion_limit = Duration::from_secs(120);
        let (webhook_secrets, stream_replicas) = Default::default();
        Self { id, nats, store, replicas: 2, promotion_limit, webhook_secrets, stream_replicas }
    }
}

/// Process ids repeat, also across containers; the clock tells such processes apart.
fn new_id() -> WorkerId {
    let id = format!("coordinator-{}-{:x}", std::process::id(), context::now_ms());
    WorkerId::new(id).expect("made of letters, digits and `-`")
}

/// Runs a coordinator until `shutdown`. Fails when NATS or the store can't be reached at the start (`Unreachable`) or
/// are of no use (`Refused`); later losses are waited out.
pub async fn run(settings: CoordinatorSettings, shutdown: CancellationToken) -> Result<()> {
    let store = Store::open(&settings.store).await?;
    run_over(settings, store, shutdown).await
}

/// The same over a store that is open already.
pub async fn run_over(settings: CoordinatorSettings, store: Store, shutdown: CancellationToken) -> Result<()> {
    let name = format!("likeness-{}", settings.id);
    let bus = Bus::connect(&settings.nats, &name).await?;
    settings.stream_replicas.into_iter().for_each(|replicas| bus.set_stream_replicas(replicas));
    store.probe().await?;
    tracing::info!(id = %settings.id, nats = %bus.address(), store = %store.url(), "coordinator started");
    let cx = Arc::new(Context::new(settings, bus, store));
    while !shutdown.is_cancelled() {
        let lease = tokio::select! {
            lease = stand_by(&cx) => lease?,
            () = shutdown.cancelled() => break,
        };
        lead(&cx, lease, &shutdown).await?;
    }
    tracing::info!(id = %cx.settings.id, "coordinator stopped");
    Ok(())
}

/// Waits for the lease. Only what a person must mend is an error.
async fn stand_by(cx: &Context) -> Result<Lease> {
    let mut backoff = Backoff::default();
    loop {
        match try_stand_by(cx).await {
            Err(error) if may_pass(&error) => backoff.wait("can't stand for the lease", &error).await,
            done => return done,
        }
    }
}

async fn try_stand_by(cx: &Context) -> Result<Lease> {
    cx.bus.ensure_topology().await?;
    Lease::acquire(&cx.bus, &cx.settings.id).await
}

/// Leads until the lease is lost or the process shuts down.
async fn lead(cx: &Arc<Context>, lease: Lease, shutdown: &CancellationToken) -> Result<()> {
    tracing::info!(id = %cx.settings.id, fence = lease.fence().0, "this coordinator leads");
    let stop = shutdown.child_token();
    let _whoever_drops_this = stop.clone().drop_guard();
    let holding = tokio::spawn(lease.hold(stop.clone()));
    metrics().leading.set(1);
    let ended = leader::lead(cx.clone(), stop.clone()).await;
    metrics().leading.set(0);
    stop.cancel();
    if let Err(panicked) = holding.await {
        tracing::error!(error = %panicked, "the renewal of the lease broke");
    }
    match ended {
        Err(error) if may_pass(&error) => {
            tracing::warn!(error = %likeness_link::error::chain(&error), "leading broke, standing for the lease again");
            // Another coordinator may have more luck with the store.
            tokio::time::sleep(AFTER_FAILURE).await;
            Ok(())
        }
        ended => ended,
    }
}

/// Whether waiting may mend it: what is missing is made again by whoever leads.
fn may_pass(error: &Error) -> bool {
    error.is_transient() || error.kind == ErrorKind::NotFound
}
