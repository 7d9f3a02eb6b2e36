//! How a task is taken, kept, committed and given back, and how a worker begins and ends.
//!
//! One task at a time. The task's async part runs here, its computation on the device thread, its renewals on
//! an async task of their own; nothing but the lease connects them. Deliberately absent: any knowledge of what
//! a task computes.

mod attempt;
pub mod context;
pub mod device;
mod health;
pub mod lease;
mod measure;
mod presence;
mod pull;
mod renew;
mod report;
pub mod shutdown;
#[cfg(test)]
mod tests;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use candle_core::Device;
use likeness_contract::jobs::DeviceClass;
use likeness_contract::messages::Presence;
use likeness_link::Bus;
use likeness_link::Store;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::attempt::Perform;
use self::attempt::{Attempts, Ended};
use self::context::{SearchContext, Shared};
use self::device::DeviceThread;
use self::health::Health;
use self::presence::PresenceKeeper;
use self::pull::Pulls;
use self::report::now_ms;
use self::shutdown::Shutdown;
use crate::args::Settings;
use crate::cache::Cache;
use crate::error::TaskError;
use crate::{job, search};

/// Longest wait for threads that still compute when the process ends.
pub const LAST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait for giving a task back when the worker takes itself out.
const GIVE_BACK_WAIT: Duration = Duration::from_secs(5);

/// How a worker ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Leaving {
    /// It was asked to, and everything had ended in time.
    Asked,
    /// It was asked to, and the grace period ran out.
    GraceRanOut,
    /// It does not trust itself any more, and says why.
    TookItselfOut(String),
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Store or broker.
    #[error(transparent)]
    Link(#[from] likeness_link::error::Error),
    /// The device.
    #[error("device `{device}` failed its self-test")]
    Device {
        /// Its name.
        device: String,
        /// What went wrong.
        #[source]
        source: TaskError,
    },
    /// The system has no more threads or refuses signal handlers.
    #[error("the system refuses a thread or a signal handler")]
    System(#[from] std::io::Error),
}

/// Starts a worker and runs it until it is asked to leave, or takes itself out.
pub async fn run(settings: Settings, device: Device, shutdown: Shutdown) -> Result<Leaving, StartError> {
    run_performing(settings, device, shutdown, |cx| Box::pin(job::run(cx))).await
}

/// The same of a worker that computes otherwise: what a bench of the protocol wants.
pub async fn run_performing(
    settings: Settings,
    device: Device,
    shutdown: Shutdown,
    perform: Perform,
) -> Result<Leaving, StartError> {
    Worker::start(Arc::new(settings), device, shutdown, perform).await?.run().await
}

struct Worker {
    settings: Arc<Settings>,
    attempts: Attempts,
    presence: PresenceKeeper,
    pulls: Pulls,
    search: Option<JoinHandle<Result<(), TaskError>>>,
    shutdown: Shutdown,
}

impl Worker {
    async fn start(
        settings: Arc<Settings>,
        device: Device,
        shutdown: Shutdown,
        perform: Perform,
    ) -> Result<Self, StartError> {
        let store = Store::open(&settings.store).await?;
        store.probe().await?;
        let bus = Bus::connect(&settings.nats, settings.worker.as_str()).await?;
        bus.join_topology().await?;
        let class = device::class_of(&device);
        let thread = DeviceThread::start(device.clone())?.computing(settings.compute());
        let failed = |source| StartError::Device { device: settings.device.to_string(), source };
        thread.run(device::self_test).await.map_err(failed)?;

        let cache = Arc::new(Cache::new(store.clone(), settings.cache_bytes));
        let (worker, approximate_rows) = (settings.worker.clone(), settings.approximate_rows);
        let shared = Shared { store, device: thread, cache, worker, approximate_rows };
        let pulls = Pulls::bind(&bus, &settings.kinds, class).await?;
        let presence = PresenceKeeper::start(&bus, presence_of(&settings, class)).await?;
        let search = start_search(&settings, &bus, &shared, device, &shutdown)?;
        let process = format!("{}-{:x}", settings.worker, now_ms());
        let attempts = Attempts { bus, shared, process, perform, give_back: shutdown.give_back.clone() };
        Ok(Self { settings, attempts, presence, pulls, search, shutdown })
    }

    async fn run(mut self) -> Result<Leaving, StartError> {
        let Settings { worker, device, store, .. } = self.settings.as_ref();
        tracing::info!(%worker, %device, %store, nats = self.attempts.bus.address(), "ready");
        let over = self.shutdown.over.clone();
        let leaving = tokio::select! {
            leaving = self.serve() => leaving,
            () = over.cancelled() => Leaving::GraceRanOut,
        };
        self.shutdown.leaving.cancel();
        self.presence.farewell().await;
        Ok(leaving)
    }

    /// Works until it is asked to leave and nothing is at hand any more.
    async fn serve(&mut self) -> Leaving {
        let mut search = self.search.take();
        let Shutdown { leaving, give_back, .. } = self.shutdown.clone();
        let mut work = std::pin::pin!(self.work());
        let result = tokio::select! {
            result = &mut work => result,
            why = search_failed(&mut search) => {
                leaving.cancel();
                give_back.cancel();
                // A task that cannot be given back in time is redone after ack_wait.
                let _ = timeout(GIVE_BACK_WAIT, work).await;
                return Leaving::TookItselfOut(why);
            }
        };
        leaving.cancel();
        if let Some(search) = search {
            // A searcher that fails while it leaves has nothing left to lose.
            let _ = search.await;
        }
        result
    }

    async fn work(&mut self) -> Leaving {
        let mut health = Health::default();
        let leaving = self.shutdown.leaving.clone();
        for number in 1u64.. {
            let (delivery, received) = tokio::select! {
                biased;
                () = leaving.cancelled() => break,
                next = self.pulls.next() => next,
            };
            let task = delivery.task().map(|message| format!("{}/{}", message.job, message.task)).ok();
            self.presence.set_task(task);
            let ended = tokio::select! {
                ended = self.attempts.attempt(delivery, received, number) => ended,
                never = self.pulls.give_back() => never,
                never = say_draining(&self.presence, &leaving) => never,
            };
            self.presence.set_task(None);
            match ended {
                Ended::Done => health.on_done(),
                Ended::Nothing => {}
                Ended::Failed { task, kind, error } => {
                    if let Err(why) = health.on_failed(&task, kind, &error) {
                        return Leaving::TookItselfOut(why);
                    }
                }
            }
        }
        self.pulls.close().await;
        Leaving::Asked
    }
}

/// Shows that the worker is leaving while its last task goes on; never ends.
async fn say_draining<T>(presence: &PresenceKeeper, leaving: &CancellationToken) -> T {
    leaving.cancelled().await;
    presence.set_draining();
    std::future::pending().await
}

fn presence_of(settings: &Settings, class: DeviceClass) -> Presence {
    Presence {
        worker: settings.worker.clone(),
        roles: settings.kinds.clone(),
        searches: settings.searches,
        device: settings.device.to_string(),
        device_class: class,
        host: settings.host.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        task: None,
        draining: false,
    }
}

fn start_search(
    settings: &Arc<Settings>,
    bus: &Bus,
    shared: &Shared,
    device: Device,
    shutdown: &Shutdown,
) -> Result<Option<JoinHandle<Result<(), TaskError>>>, StartError> {
    if !settings.searches {
        return Ok(None);
    }
    let cx = SearchContext {
        store: shared.store.clone(),
        bus: bus.clone(),
        worker: settings.worker.clone(),
        device: DeviceThread::start(device)?.computing(settings.compute()),
        cache: Arc::clone(&shared.cache),
        settings: Arc::clone(settings),
        shutdown: shutdown.leaving.child_token(),
    };
    Ok(Some(tokio::spawn(search::serve(cx))))
}

/// Waits until the search service ends by itself, and says why; for ever without one, or when it was asked to end.
async fn search_failed(search: &mut Option<JoinHandle<Result<(), TaskError>>>) -> String {
    let Some(service) = search else { return std::future::pending().await };
    let ended = service.await;
    *search = None;
    match ended {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => format!("search failed: {}", error.chain()),
        Err(error) => format!("search failed: {error}"),
    }
}
