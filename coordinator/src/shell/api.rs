//! The API: `likeness.v1.api.<verb>`, answered by the leader alone, in the form of the request.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use likeness_contract::documents::{DatasetManifest, Release, ReportManifest};
use likeness_contract::ids::{JobId, Name};
use likeness_contract::jobs::{DatasetRef, GenerationRef};
use likeness_contract::messages::{ApiError, ApiErrorKind, ApiReply, ApiRequest, JobDetail, JobSummary};
use likeness_contract::{keys, subjects};
use likeness_link::error::chain;
use likeness_link::requests::Serving;
use likeness_link::{Error, ErrorKind};

use super::context::Context;
use super::leader::{Inbox, Input};
use super::promote::{NoRelease, promote};
use super::{accept, events, facts, recover, releases, schedules, status, usage};
use crate::core::job::Job;
use crate::core::promote::{Replaces, Wanted};
use crate::core::reactor::Reactor;
use crate::core::resolve;

/// Requests that are answered at once; promotions wait long.
const AT_ONCE: usize = 64;
/// Two leaders share the questions instead of both answering.
const GROUP: &str = "coordinators";
/// Jobs that are looked up in the store at once.
const TALLIES_AT_ONCE: usize = 16;
/// Most rows of a list.
const MAX_LISTED: usize = 1000;

/// What a verb answers.
pub(super) type Answer<T> = Result<T, Refusal>;

/// Why a verb does nothing.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(api_error(&error))
    }
}

fn api_error(error: &Error) -> ApiError {
    let kind = match error.kind {
        ErrorKind::NotFound => ApiErrorKind::NotFound,
        ErrorKind::Invalid => ApiErrorKind::Invalid,
        // Nothing is wrong with the request: somebody must mend the store, or upgrade this program.
        ErrorKind::Corrupt | ErrorKind::Newer => ApiErrorKind::Conflict,
        ErrorKind::Unreachable | ErrorKind::Transient | ErrorKind::Full | ErrorKind::Refused => {
            ApiErrorKind::Unavailable
        }
    };
    ApiError { kind, message: chain(error), nearest: Vec::new() }
}

/// Something else stands there already.
pub(super) fn conflict(message: String) -> Refusal {
    Refusal(ApiError { kind: ApiErrorKind::Conflict, message, nearest: Vec::new() })
}

/// Try again.
pub(super) fn unavailable(message: String) -> Refusal {
    Refusal(ApiError { kind: ApiErrorKind::Unavailable, message, nearest: Vec::new() })
}

/// What the verbs need.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) cx: Arc<Context>,
    pub(super) inbox: Inbox,
}

/// Answers until the returned handle is dropped.
pub(super) async fn serve(cx: Arc<Context>, inbox: Inbox) -> likeness_link::Result<Serving> {
    let bus = cx.bus.clone();
    let api = Api { cx, inbox };
    let answer = move |request: ApiRequest| {
        let api = api.clone();
        async move { api.answer(request).await }
    };
    let refuse = |error: &Error| ApiReply::Error(api_error(error));
    bus.serve(subjects::API_ALL.into(), Some(GROUP), AT_ONCE, refuse, answer).await
}

impl Api {
    async fn answer(&self, request: ApiRequest) -> ApiReply {
        let verb = request.verb();
        match self.try_answer(request).await {
            Ok(reply) => reply,
            Err(Refusal(error)) => {
                tracing::info!(verb, kind = ?error.kind, error = %error.message, "request refused");
                ApiReply::Error(error)
            }
        }
    }

    async fn try_answer(&self, request: ApiRequest) -> Answer<ApiReply> {
        Ok(match request {
            ApiRequest::Submit(request) => ApiReply::Job(accept::submit(self, &request).await?),
            ApiRequest::Cancel { job } => ApiReply::Job(accept::cancel(self, &job).await?),
            ApiRequest::Retry { job } => ApiReply::Job(accept::retry(self, &job).await?),
            ApiRequest::List { limit } => ApiReply::Jobs(self.list(limit).await?),
            ApiRequest::Show { job } => ApiReply::JobDetail(Box::new(self.show(&job).await?)),
            ApiRequest::Promote { alias, generation, report } => {
                ApiReply::Release(Box::new(self.promote(alias, generation, report).await?))
            }
            ApiRequest::Rollback { alias, to } => ApiReply::Release(Box::new(self.roll_back(alias, to).await?)),
            ApiRequest::Releases { alias } => ApiReply::Releases(self.releases(alias).await?),
            ApiRequest::Datasets => ApiReply::Datasets(self.datasets().await?),
            ApiRequest::Status => ApiReply::Status(status::status(self).await?),
            ApiRequest::Reconcile => ApiReply::Reconciled { republished: status::reconcile(self).await? },
            ApiRequest::Plan(request) => ApiReply::Estimate(Box::new(usage::plan(self, &request).await?)),
            ApiRequest::Sightings => ApiReply::Sightings(self.cx.roster.sightings()),
            ApiRequest::Schedule(request) => schedules::answer(self, request).await?,
            ApiRequest::Usage { jobs, in_full } => ApiReply::Usage(usage::usage(self, jobs, in_full).await?),
        })
    }

    /// Asks the loop.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Reactor) -> T + Send + 'static,
    ) -> Answer<T> {
        events::ask(&self.inbox, question).await.ok_or_else(not_leading)
    }

    /// Tells the loop; what is asked afterwards is answered with that in mind.
    pub(super) async fn tell(&self, news: Input) -> Answer<()> {
        self.inbox.send(news).await.map_err(|_| not_leading())
    }

    /// Asks about one job; an unknown one is answered with the nearest ids.
    pub(super) async fn job<T: Send + 'static>(
        &self,
        id: &JobId,
        question: impl FnOnce(&Job) -> T + Send + 'static,
    ) -> Answer<T> {
        let id = id.clone();
        let asked = id.clone();
        let answer = self.ask(move |core| match core.job(&asked) {
            Some(job) => Ok(question(job)),
            None => Err(resolve::not_found("job", asked.as_str(), core.jobs().map(|job| job.id.as_str()))),
        });
        let unknown = match answer.await? {
            Ok(answer) => return Ok(answer),
            Err(unknown) => unknown,
        };
        // One whose documents are damaged was left out when this leader began: say what is wrong with them.
        recover::job(&self.cx.store, &id).await?;
        Err(unknown.into())
    }

    async fn list(&self, limit: u32) -> Answer<Vec<JobSummary>> {
        let limit = usize::try_from(limit).unwrap_or(MAX_LISTED).min(MAX_LISTED);
        let newest = move |core: &Reactor| {
            let mut jobs: Vec<&Job> = core.jobs().collect();
            jobs.sort_by(|a, b| (b.opened_ms, &b.id).cmp(&(a.opened_ms, &a.id)));
            jobs.truncate(limit);
            jobs.into_iter().map(|job| job.id.clone()).collect::<Vec<JobId>>()
        };
        let listed = self.ask(newest).await?;
        let tallies =
            futures::stream::iter(listed.clone()).map(|id| async move { self.ensure_tally(&id, false).await });
        tallies.buffer_unordered(TALLIES_AT_ONCE).try_collect::<()>().await?;
        let summaries = move |core: &Reactor| listed.iter().filter_map(|id| core.job(id)).map(Job::summary).collect();
        self.ask(summaries).await
    }

    async fn show(&self, id: &JobId) -> Answer<JobDetail> {
        self.ensure_tally(id, true).await?;
        self.job(id, Job::detail).await
    }

    /// A job that ended before this leader began is looked up in the store when somebody asks about it.
    async fn ensure_tally(&self, id: &JobId, in_full: bool) -> Answer<()> {
        let Some(closed) = self.job(id, move |job| job.untold(in_full)).await? else { return Ok(()) };
        let run = closed.outcome.run;
        let tally = recover::tally(&self.cx.store, id, closed, in_full).await?;
        self.tell(Input::Tally(id.clone(), run, tally)).await
    }

    async fn releases(&self, alias: Option<Name>) -> Answer<Vec<Release>> {
        let Some(alias) = alias else {
            let mut all = Vec::new();
            for alias in releases::aliases(&self.cx.store).await? {
                all.extend(releases::of_alias(&self.cx.store, &alias).await?);
            }
            return Ok(all);
        };
        self.releases_of(&alias).await
    }

    /// At least one; an unknown alias is answered with the nearest.
    async fn releases_of(&self, alias: &Name) -> Answer<Vec<Release>> {
        let releases = releases::of_alias(&self.cx.store, alias).await?;
        if releases.is_empty() {
            let known = releases::aliases(&self.cx.store).await?;
            return Err(resolve::not_found("alias", alias.as_str(), known.iter().map(Name::as_str)).into());
        }
        Ok(releases)
    }

    async fn promote(&self, alias: Name, generation: GenerationRef, report: Option<JobId>) -> Answer<Release> {
        let store = &self.cx.store;
        let Some(manifest) = facts::generation_manifest(store, &generation).await? else {
            return Err(resolve::unknown_generation(&generation, &facts::generations(store).await?).into());
        };
        if let Some(embedder) = manifest.embedder()
            && facts::model(store, &embedder.model).await?.is_none()
        {
            let message = format!("model `{}` of that generation is not in the store", embedder.model);
            return Err(ApiError { kind: ApiErrorKind::NotFound, message, nearest: Vec::new() }.into());
        }
        let report = self.report_of(&generation, report).await?;
        let model = manifest.model_name().clone();
        let (job, rolls_back_to, gate) = Default::default();
        let replaces = Replaces::Newest;
        self.release(Wanted { alias, job, replaces, rolls_back_to, model, generation, report, gate }).await
    }

    /// The report that a promotion names, or the one that the job of the generation made itself.
    async fn report_of(&self, generation: &GenerationRef, named: Option<JobId>) -> Answer<Option<JobId>> {
        let report = named.clone().unwrap_or_else(|| generation.generation.clone());
        let manifest: Option<ReportManifest> = self.cx.store.document(&keys::report_manifest(&report)).await?;
        let invalid = |message| ApiError { kind: ApiErrorKind::Invalid, message, nearest: Vec::new() };
        match (manifest, named) {
            (Some(manifest), _) if manifest.generation == *generation => Ok(Some(report)),
            (_, None) => Ok(None),
            (None, Some(_)) => Err(invalid(format!("job `{report}` made no report")).into()),
            (Some(manifest), Some(_)) => {
                let of = manifest.generation;
                Err(invalid(format!(
                    "report `{report}` is of {}@{}, not of this generation",
                    of.gallery, of.generation
                ))
                .into())
            }
        }
    }

    async fn roll_back(&self, alias: Name, to: Option<u64>) -> Answer<Release> {
        let releases = self.releases_of(&alias).await?;
        let target = resolve::rollback_target(&releases, to)?;
        let Release { number, model, generation, report, .. } = target.clone();
        let (job, gate) = Default::default();
        let (replaces, rolls_back_to) = (Replaces::Newest, Some(number));
        self.release(Wanted { alias, job, replaces, rolls_back_to, model, generation, report, gate }).await
    }

    async fn release(&self, wanted: Wanted) -> Answer<Release> {
        promote(&self.cx, &wanted, || true).await.map_err(|no_release| match no_release {
            NoRelease::Refused(why) => conflict(why),
            NoRelease::Link(error) => error.into(),
        })
    }

    async fn datasets(&self) -> Answer<Vec<DatasetManifest>> {
        let store = &self.cx.store;
        let mut datasets = Vec::new();
        for dataset in facts::dataset_names(store).await? {
            let versions = facts::complete_versions(store, &self.inbox, &dataset).await?;
            let Some(version) = versions.last().cloned() else { continue };
            let dataset = DatasetRef { dataset, version };
            let manifest = match facts::dataset(store, &dataset).await {
                Err(error) if !error.is_transient() => Some(unreadable(dataset, &error)),
                read => read?,
            };
            datasets.extend(manifest.map(|manifest| DatasetManifest { skipped: Vec::new(), ..manifest }));
        }
        Ok(datasets)
    }
}

/// What is listed of a dataset whose manifest is damaged: the others must be seen.
fn unreadable(dataset: DatasetRef, error: &Error) -> DatasetManifest {
    let warnings = vec![format!("its manifest can't be read: {}", chain(error))];
    let (vocabulary, parts, skipped) = Default::default();
    DatasetManifest { dataset, vocabulary, parts, skipped, warnings }
}

fn not_leading() -> Refusal {
    unavailable("this coordinator leads no longer, ask again".into())
}
