//! Past versions of the coordinator's API, as they are still read; and written, where they say all of it.

use serde::{Deserialize, Serialize};

use super::{ApiReply, ApiRequest, JobDetail};
use crate::codec::Message;
use crate::jobs::{self, JobRequest, JobSpec, RequestOf, RequestV3, SpecOf, SpecV3, V1, V2};
use crate::schedules::ScheduleRequest;

/// A request as version 1 wrote it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV1(ApiRequest<RequestOf<V1>>);

impl Message for RequestV1 {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The same of version 2.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV2(ApiRequest<RequestOf<V2>>);

impl Message for RequestV2 {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 2;
}

/// The same of version 3.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV3Form(ApiRequest<RequestV3>);

impl Message for RequestV3Form {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 3;
}

/// The same of version 4.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV4(ApiRequest);

impl Message for RequestV4 {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 4;
}

/// The same of version 5.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV5(ApiRequest);

impl Message for RequestV5 {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 5;
}

/// A reply as version 1 wrote it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV1(ApiReply<SpecOf<V1>>);

impl Message for ReplyV1 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The same of version 2.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV2(ApiReply<SpecOf<V2>>);

impl Message for ReplyV2 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 2;
}

/// The same of version 3.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV3(ApiReply<SpecV3>);

impl Message for ReplyV3 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 3;
}

/// The same of version 4.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV4(ApiReply);

impl Message for ReplyV4 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 4;
}

/// The same of version 5.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV5(ApiReply);

impl Message for ReplyV5 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 5;
}

/// The request as version 1 wrote it, if that says all of it.
pub fn request_v1(request: &ApiRequest) -> Option<RequestV1> {
    known(request).then_some(())?;
    request.clone().map(|job| jobs::request_as_v1(&job)).map(RequestV1)
}

/// The same of version 2.
pub fn request_v2(request: &ApiRequest) -> Option<RequestV2> {
    known(request).then_some(())?;
    request.clone().map(|job| jobs::request_as_v2(&job)).map(RequestV2)
}

/// The same of version 3.
pub fn request_v3(request: &ApiRequest) -> Option<RequestV3Form> {
    known_to_v4(request).then_some(())?;
    request.clone().map(|job| jobs::request_as_v3(&job)).map(RequestV3Form)
}

/// The same of version 4.
pub fn request_v4(request: &ApiRequest) -> Option<RequestV4> {
    (known_to_v4(request) && !asks_for_rounds(request)).then(|| RequestV4(request.clone()))
}

/// The same of version 5.
pub fn request_v5(request: &ApiRequest) -> Option<RequestV5> {
    (!asks_for_rounds(request)).then(|| RequestV5(request.clone()))
}

/// The reply as version 1 wrote it, if that says all of it.
pub fn reply_v1(reply: &ApiReply) -> Option<ReplyV1> {
    known_reply(reply).then_some(())?;
    reply.clone().map(|spec| jobs::spec_as_v1(&spec)).map(ReplyV1)
}

/// The same of version 2.
pub fn reply_v2(reply: &ApiReply) -> Option<ReplyV2> {
    known_reply(reply).then_some(())?;
    reply.clone().map(|spec| jobs::spec_as_v2(&spec)).map(ReplyV2)
}

/// The same of version 3.
pub fn reply_v3(reply: &ApiReply) -> Option<ReplyV3> {
    known_reply_to_v4(reply).then_some(())?;
    reply.clone().map(|spec| jobs::spec_as_v3(&spec)).map(ReplyV3)
}

/// The same of version 4.
pub fn reply_v4(reply: &ApiReply) -> Option<ReplyV4> {
    (known_reply_to_v4(reply) && !tells_of_rounds(reply)).then(|| ReplyV4(reply.clone()))
}

/// The same of version 5.
pub fn reply_v5(reply: &ApiReply) -> Option<ReplyV5> {
    (!tells_of_rounds(reply)).then(|| ReplyV5(reply.clone()))
}

/// Whether it asks for a training in rounds of several slots, which only version 6 knows.
fn asks_for_rounds(request: &ApiRequest) -> bool {
    match request {
        ApiRequest::Submit(job) | ApiRequest::Plan(job) => jobs::asks_for_rounds(job),
        ApiRequest::Schedule(ScheduleRequest::Add { settings, .. }) => jobs::asks_for_rounds(&settings.job),
        _ => false,
    }
}

/// Whether it tells of such a training.
fn tells_of_rounds(reply: &ApiReply) -> bool {
    match reply {
        ApiReply::JobDetail(detail) => jobs::trains_in_rounds(&detail.spec),
        ApiReply::Schedules(all) => all.iter().any(|status| jobs::asks_for_rounds(&status.schedule.settings.job)),
        ApiReply::Schedule(detail) => jobs::asks_for_rounds(&detail.status.schedule.settings.job),
        _ => false,
    }
}

/// Whether versions 3 and 4 know this kind of request.
fn known_to_v4(request: &ApiRequest) -> bool {
    !matches!(request, ApiRequest::Schedule(_))
}

/// Whether versions 3 and 4 know this kind of reply.
fn known_reply_to_v4(reply: &ApiReply) -> bool {
    !matches!(reply, ApiReply::Schedules(_) | ApiReply::Schedule(_))
}

/// Whether versions before 3 know this kind of request.
fn known(request: &ApiRequest) -> bool {
    match request {
        ApiRequest::Submit(_)
        | ApiRequest::Cancel { .. }
        | ApiRequest::Retry { .. }
        | ApiRequest::List { .. }
        | ApiRequest::Show { .. }
        | ApiRequest::Promote { .. }
        | ApiRequest::Rollback { .. }
        | ApiRequest::Releases { .. }
        | ApiRequest::Datasets
        | ApiRequest::Status
        | ApiRequest::Reconcile => true,
        ApiRequest::Plan(_) | ApiRequest::Usage { .. } | ApiRequest::Sightings | ApiRequest::Schedule(_) => false,
    }
}

/// Whether versions before 3 know this kind of reply.
fn known_reply(reply: &ApiReply) -> bool {
    match reply {
        ApiReply::Job(_)
        | ApiReply::Jobs(_)
        | ApiReply::JobDetail(_)
        | ApiReply::Release(_)
        | ApiReply::Releases(_)
        | ApiReply::Datasets(_)
        | ApiReply::Status(_)
        | ApiReply::Reconciled { .. }
        | ApiReply::Error(_) => true,
        ApiReply::Estimate(_)
        | ApiReply::Usage(_)
        | ApiReply::Sightings(_)
        | ApiReply::Schedules(_)
        | ApiReply::Schedule(_) => false,
    }
}

impl<R: Into<JobRequest>> ApiRequest<R> {
    /// The same with a request of today.
    pub(super) fn upgraded(self) -> ApiRequest {
        self.map(|job| Some(job.into())).expect("every old request can be said")
    }
}

impl<S: Into<JobSpec>> ApiReply<S> {
    /// The same with a spec of today.
    pub(super) fn upgraded(self) -> ApiReply {
        self.map(|spec| Some(spec.into())).expect("every old reply can be said")
    }
}

impl<R> ApiRequest<R> {
    fn map<U>(self, f: impl FnOnce(R) -> Option<U>) -> Option<ApiRequest<U>> {
        Some(match self {
            Self::Submit(request) => ApiRequest::Submit(f(request)?),
            Self::Cancel { job } => ApiRequest::Cancel { job },
            Self::Retry { job } => ApiRequest::Retry { job },
            Self::List { limit } => ApiRequest::List { limit },
            Self::Show { job } => ApiRequest::Show { job },
            Self::Promote { alias, generation, report } => ApiRequest::Promote { alias, generation, report },
            Self::Rollback { alias, to } => ApiRequest::Rollback { alias, to },
            Self::Releases { alias } => ApiRequest::Releases { alias },
            Self::Datasets => ApiRequest::Datasets,
            Self::Status => ApiRequest::Status,
            Self::Reconcile => ApiRequest::Reconcile,
            Self::Plan(request) => ApiRequest::Plan(f(request)?),
            Self::Usage { jobs, in_full } => ApiRequest::Usage { jobs, in_full },
            Self::Sightings => ApiRequest::Sightings,
            Self::Schedule(request) => ApiRequest::Schedule(request),
        })
    }
}

impl<S> ApiReply<S> {
    fn map<U>(self, f: impl FnOnce(S) -> Option<U>) -> Option<ApiReply<U>> {
        Some(match self {
            Self::Job(job) => ApiReply::Job(job),
            Self::Jobs(jobs) => ApiReply::Jobs(jobs),
            Self::JobDetail(detail) => ApiReply::JobDetail(Box::new(detail.map(f)?)),
            Self::Release(release) => ApiReply::Release(release),
            Self::Releases(releases) => ApiReply::Releases(releases),
            Self::Datasets(datasets) => ApiReply::Datasets(datasets),
            Self::Status(status) => ApiReply::Status(status),
            Self::Reconciled { republished } => ApiReply::Reconciled { republished },
            Self::Error(error) => ApiReply::Error(error),
            Self::Estimate(estimate) => ApiReply::Estimate(estimate),
            Self::Usage(usage) => ApiReply::Usage(usage),
            Self::Sightings(sightings) => ApiReply::Sightings(sightings),
            Self::Schedules(schedules) => ApiReply::Schedules(schedules),
            Self::Schedule(detail) => ApiReply::Schedule(detail),
        })
    }
}

impl<S> JobDetail<S> {
    fn map<U>(self, f: impl FnOnce(S) -> Option<U>) -> Option<JobDetail<U>> {
        let Self { summary, spec, stages, active, troubles, device_ms, result, gate } = self;
        Some(JobDetail { summary, spec: f(spec)?, stages, active, troubles, device_ms, result, gate })
    }
}
