//! The typed client: what the command line and other services use.

mod watch;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use likeness_contract::datasets::{Removal, RemovalChange};
use likeness_contract::documents::{DatasetManifest, Release};
use likeness_contract::ids::{JobId, Name, WorkerId};
use likeness_contract::jobs::{GenerationRef, JobRequest};
use likeness_contract::messages::{ApiError, ApiReply, ApiRequest, JobDetail, JobSummary, Sighting, Status};
use likeness_contract::schedules::{ScheduleDetail, ScheduleRequest, ScheduleStatus};
use likeness_contract::search::{SearchError, SearchReply, SearchRequest, SearchResults};
use likeness_contract::subjects;
use likeness_contract::usage::{Estimate, JobUsage};

use crate::bus::Bus;
use crate::error::{Error, ErrorKind};
use crate::hedge::Hedge;
use crate::removals;
use crate::settings::NatsSettings;
use crate::store::Store;

pub use watch::WatchEvent;

/// Promotions wait for searchers to load a generation.
const PROMOTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Reconciling lists the whole store.
const RECONCILE_TIMEOUT: Duration = Duration::from_secs(120);
/// What an answer may take beyond the deadline that the searcher keeps to.
const SEARCH_SLACK: Duration = Duration::from_secs(1);
/// How long it may last that nobody takes searches.
const NOBODY_THERE: Duration = Duration::from_secs(1);

/// How long a searcher gets before another one is asked as well: as long as there were few answers, and at least.
const SEARCH_PATIENCE: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(50)];

/// Where every instance of the search service says that it is there, as NATS micro has it.
const SEARCH_PING: &str = "$SRV.PING.likeness-search";

/// A connection to the coordinator, the searchers and the store.
#[derive(Debug, Clone)]
pub struct Client {
    bus: Bus,
    store: Store,
    searches: Arc<Hedge>,
}

/// Why a call had no success.
#[derive(Debug)]
pub enum ClientError {
    /// NATS or the store.
    Link(Error),
    /// The coordinator did nothing, and says why.
    Api(ApiError),
    /// The searcher has no answer, and says why.
    Search(SearchError),
}

/// Result of this module.
pub type ClientResult<T> = Result<T, ClientError>;

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(error) => error.fmt(f),
            Self::Api(error) => error.fmt(f),
            Self::Search(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Link(error) => error.source(),
            Self::Api(_) | Self::Search(_) => None,
        }
    }
}

impl From<Error> for ClientError {
    fn from(error: Error) -> Self {
        Self::Link(error)
    }
}

impl Client {
    /// Connects to NATS and opens the store.
    pub async fn connect(nats: &NatsSettings, store: &str) -> ClientResult<Self> {
        let (bus, store) = tokio::join!(Bus::connect(nats, "likeness-client"), Store::open(store));
        Ok(Self::over(bus?, store?))
    }

    /// A client over connections that exist already.
    pub fn over(bus: Bus, store: Store) -> Self {
        let [first, least] = SEARCH_PATIENCE;
        Self { bus, store, searches: Arc::new(Hedge::new(first, least)) }
    }

    /// The connection to NATS.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Asks the coordinator. [`ApiReply::Error`] comes back as an error.
    pub async fn api(&self, request: ApiRequest) -> ClientResult<ApiReply> {
        let timeout = match request {
            ApiRequest::Promote { .. } | ApiRequest::Rollback { .. } => PROMOTION_TIMEOUT,
            ApiRequest::Reconcile => RECONCILE_TIMEOUT,
            _ => self.bus.timings().request * 2,
        };
        match self.bus.request(subjects::api(request.verb()), &request, timeout).await {
            Ok(ApiReply::Error(error)) => Err(ClientError::Api(error)),
            Ok(reply) => Ok(reply),
            Err(error) if error.kind == ErrorKind::Unreachable && self.bus.is_connected() => {
                let what = format!("no coordinator is running at `{}`", self.bus.address());
                Err(Error::new(ErrorKind::Unreachable, what).because(error).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Submits a job.
    pub async fn submit(&self, job: JobRequest) -> ClientResult<JobSummary> {
        self.job(ApiRequest::Submit(job)).await
    }

    /// Closes a job's open run as cancelled.
    pub async fn cancel(&self, job: &JobId) -> ClientResult<JobSummary> {
        self.job(ApiRequest::Cancel { job: job.clone() }).await
    }

    /// Opens a new run of a job that failed or was cancelled.
    pub async fn retry(&self, job: &JobId) -> ClientResult<JobSummary> {
        self.job(ApiRequest::Retry { job: job.clone() }).await
    }

    async fn job(&self, request: ApiRequest) -> ClientResult<JobSummary> {
        match self.api(request).await? {
            ApiReply::Job(summary) => Ok(summary),
            other => Err(unexpected(&other)),
        }
    }

    /// Jobs, newest first.
    pub async fn list(&self, limit: u32) -> ClientResult<Vec<JobSummary>> {
        match self.api(ApiRequest::List { limit }).await? {
            ApiReply::Jobs(jobs) => Ok(jobs),
            other => Err(unexpected(&other)),
        }
    }

    /// One job in full.
    pub async fn show(&self, job: &JobId) -> ClientResult<JobDetail> {
        match self.api(ApiRequest::Show { job: job.clone() }).await? {
            ApiReply::JobDetail(detail) => Ok(*detail),
            other => Err(unexpected(&other)),
        }
    }

    /// What a job would take; nothing is done.
    pub async fn plan(&self, job: JobRequest) -> ClientResult<Estimate> {
        match self.api(ApiRequest::Plan(job)).await? {
            ApiReply::Estimate(estimate) => Ok(*estimate),
            other => Err(unexpected(&other)),
        }
    }

    /// What jobs used on devices; in full also by phase and beside their estimates.
    pub async fn usage(&self, jobs: Vec<JobId>, in_full: bool) -> ClientResult<Vec<JobUsage>> {
        match self.api(ApiRequest::Usage { jobs, in_full }).await? {
            ApiReply::Usage(usage) => Ok(usage),
            other => Err(unexpected(&other)),
        }
    }

    /// When workers were last seen.
    pub async fn sightings(&self) -> ClientResult<Vec<Sighting>> {
        match self.api(ApiRequest::Sightings).await? {
            ApiReply::Sightings(sightings) => Ok(sightings),
            other => Err(unexpected(&other)),
        }
    }

    /// All schedules, by name.
    pub async fn schedules(&self) -> ClientResult<Vec<ScheduleStatus>> {
        match self.api(ApiRequest::Schedule(ScheduleRequest::List)).await? {
            ApiReply::Schedules(schedules) => Ok(schedules),
            other => Err(unexpected(&other)),
        }
    }

    /// One schedule with its newest firings.
    pub async fn schedule(&self, name: &Name, limit: u32) -> ClientResult<ScheduleDetail> {
        let name = name.clone();
        match self.api(ApiRequest::Schedule(ScheduleRequest::Show { name, limit })).await? {
            ApiReply::Schedule(detail) => Ok(*detail),
            other => Err(unexpected(&other)),
        }
    }

    /// Adds, pauses, resumes or removes a schedule.
    pub async fn change_schedule(&self, change: ScheduleRequest) -> ClientResult<ScheduleStatus> {
        match self.api(ApiRequest::Schedule(change)).await? {
            ApiReply::Schedules(mut schedules) if schedules.len() == 1 => Ok(schedules.swap_remove(0)),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a release of a finished generation.
    pub async fn promote(
        &self,
        alias: Name,
        generation: GenerationRef,
        report: Option<JobId>,
    ) -> ClientResult<Release> {
        self.release(ApiRequest::Promote { alias, generation, report }).await
    }

    /// Makes a release that brings an older one back; the one before what serves without a number.
    pub async fn rollback(&self, alias: Name, to: Option<u64>) -> ClientResult<Release> {
        self.release(ApiRequest::Rollback { alias, to }).await
    }

    async fn release(&self, request: ApiRequest) -> ClientResult<Release> {
        match self.api(request).await? {
            ApiReply::Release(release) => Ok(*release),
            other => Err(unexpected(&other)),
        }
    }

    /// Releases of an alias, oldest first; of all aliases without.
    pub async fn releases(&self, alias: Option<Name>) -> ClientResult<Vec<Release>> {
        match self.api(ApiRequest::Releases { alias }).await? {
            ApiReply::Releases(releases) => Ok(releases),
            other => Err(unexpected(&other)),
        }
    }

    /// Datasets with their newest version, without their skipped rows.
    pub async fn datasets(&self) -> ClientResult<Vec<DatasetManifest>> {
        match self.api(ApiRequest::Datasets).await? {
            ApiReply::Datasets(datasets) => Ok(datasets),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes items of a dataset down, or back. It is done when this returns; searchers are told and honour it within a moment.
    pub async fn change_items(
        &self,
        dataset: &Name,
        change: RemovalChange,
        items: Vec<String>,
    ) -> ClientResult<Removal> {
        let removal = removals::append(&self.store, dataset, change, items).await?;
        // Whoever does not hear of it looks by himself.
        let told = self.bus.client().publish(subjects::removed(dataset), "".into()).await;
        let flushed = self.bus.client().flush().await;
        if let (Err(_), _) | (_, Err(_)) = (told, flushed) {
            tracing::warn!(%dataset, "searchers could not be told of the removal");
        }
        Ok(removal)
    }

    /// Workers, queues, placement.
    pub async fn status(&self) -> ClientResult<Status> {
        match self.api(ApiRequest::Status).await? {
            ApiReply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// Compares store and broker now; returns how many tasks were published again.
    pub async fn reconcile(&self) -> ClientResult<u64> {
        match self.api(ApiRequest::Reconcile).await? {
            ApiReply::Reconciled { republished } => Ok(republished),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the searchers. For a moment in which none is there, because one leaves as another comes, it waits. One whose
    /// answer is later than most, perhaps because it died, is joined by another.
    pub async fn search(&self, request: &SearchRequest) -> ClientResult<SearchResults> {
        let timeout = Duration::from_millis(request.deadline_ms.into()) + SEARCH_SLACK;
        let asked = Instant::now();
        loop {
            match self.ask_searchers(request, timeout).await {
                Ok(SearchReply::Found(results)) => return Ok(*results),
                Ok(SearchReply::Error(error)) => return Err(ClientError::Search(error)),
                Err(error) if error.kind == ErrorKind::Unreachable && self.bus.is_connected() => {
                    if asked.elapsed() >= NOBODY_THERE {
                        let what = format!("no searcher is running at `{}`", self.bus.address());
                        return Err(Error::new(ErrorKind::Unreachable, what).because(error).into());
                    }
                    tokio::time::sleep(NOBODY_THERE / 10).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn ask_searchers(&self, request: &SearchRequest, timeout: Duration) -> crate::error::Result<SearchReply> {
        let (hedge, asked) = (&self.searches, Instant::now());
        hedge.on_request();
        let first = self.bus.request(subjects::SEARCH.into(), request, timeout);
        let silent = timeout / 3;
        let late = hedge.patience().min(silent);
        let second = async {
            tokio::time::sleep(late).await;
            if hedge.may_ask_more() {
                hedge.on_extra(1);
            } else {
                // Who says nothing for so long may be stuck: another is asked in any case.
                tokio::time::sleep(silent - late).await;
            }
            let subject = self.live_searcher(timeout / 6).await;
            Some(self.bus.request(subject, request, timeout.saturating_sub(asked.elapsed())).await)
        };
        let answer = first_answer(first, second).await;
        hedge.on_end(asked.elapsed());
        answer
    }

    /// Whether a searcher says that it is there.
    pub async fn has_searcher(&self) -> bool {
        self.bus.client().request(SEARCH_PING, "".into()).await.is_ok()
    }

    /// The subject of the searcher that is the first to say that it is there. One that is stuck goes on being dealt requests
    /// of the common subject, so that a second one there could meet it again.
    async fn live_searcher(&self, timeout: Duration) -> String {
        let ping = self.bus.client().request(SEARCH_PING, "".into());
        let worker = match tokio::time::timeout(timeout, ping).await {
            Ok(Ok(pong)) => searcher_of(&pong.payload),
            _ => None,
        };
        worker.map_or(subjects::SEARCH.into(), |worker| subjects::search_by(&worker))
    }
}

/// Who answered a ping; none for a searcher of before they had subjects of their own.
fn searcher_of(pong: &[u8]) -> Option<WorkerId> {
    let pong: serde_json::Value = serde_json::from_slice(pong).ok()?;
    WorkerId::new(pong["metadata"][subjects::SEARCH_WORKER].as_str()?).ok()
}

/// The answer that comes first; an error only when there is no other, or the second is not asked.
async fn first_answer<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Option<Result<T, E>>>,
) -> Result<T, E> {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    tokio::select! {
        biased;
        answer = &mut first => answer,
        another = &mut second => match another {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(_)) | None => first.await,
        },
    }
}

fn unexpected(reply: &ApiReply) -> ClientError {
    let name = format!("{reply:?}");
    let name = name.split(['(', ' ']).next().unwrap_or_default();
    Error::new(ErrorKind::Corrupt, format!("the coordinator answered something else: `{name}`")).into()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[test]
    fn a_pong_names_its_searcher() {
        let pong = br#"{"name":"likeness-search","id":"x","version":"0.1.0","metadata":{"worker":"host-1"}}"#;
        assert_eq!(searcher_of(pong), Some(WorkerId::new("host-1").unwrap()));
        for other in
            [br#"{"name":"likeness-search","metadata":{}}"#.as_slice(), br#"{"metadata":{"worker":"a.>"}}"#, b"?"]
        {
            assert_eq!(searcher_of(other), None);
        }
    }

    #[tokio::test]
    async fn a_searcher_that_died_with_the_request_is_not_waited_for() {
        let dead = pending::<Result<u8, &str>>();
        assert_eq!(first_answer(dead, ready(Some(Ok(2)))).await, Ok(2));
        assert_eq!(first_answer(ready(Ok::<u8, &str>(1)), pending()).await, Ok(1));
        let slow = async {
            tokio::task::yield_now().await;
            Ok::<u8, &str>(1)
        };
        assert_eq!(first_answer(slow, ready(Some(Err("gone")))).await, Ok(1));
        assert_eq!(first_answer(async { ready(Err::<u8, _>("refused")).await }, ready(None)).await, Err("refused"));
    }
}
