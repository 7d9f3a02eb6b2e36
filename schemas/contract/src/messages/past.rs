//! Past versions of the coordinator's API, as they are still read; and written, where they say all of it.

use serde::{Deserialize, Serialize};

use super::{ApiReply, ApiRequest, JobDetail};
use crate::codec::Message;
use crate::jobs::{self, JobRequest, JobSpec};
use crate::settings::TrainSettingsV1;

/// See [`request_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestV1(ApiRequest<TrainSettingsV1>);

impl Message for RequestV1 {
    const NAME: &'static str = <ApiRequest as Message>::NAME;
    const VERSION: u16 = 1;
}

/// See [`reply_v1`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplyV1(ApiReply<TrainSettingsV1>);

impl Message for ReplyV1 {
    const NAME: &'static str = <ApiReply as Message>::NAME;
    const VERSION: u16 = 1;
}

/// The request as version 1 wrote it, if that says all of it.
pub fn request_v1(request: &ApiRequest) -> Option<RequestV1> {
    request.clone().map(|job| jobs::request_as_v1(&job)).map(RequestV1)
}

/// The reply as version 1 wrote it, if that says all of it.
pub fn reply_v1(reply: &ApiReply) -> Option<ReplyV1> {
    reply.clone().map(|spec| jobs::spec_as_v1(&spec)).map(ReplyV1)
}

impl From<ApiRequest<TrainSettingsV1>> for ApiRequest {
    fn from(old: ApiRequest<TrainSettingsV1>) -> Self {
        old.map(|job| Some(job.into())).expect("every old request can be said")
    }
}

impl From<ApiReply<TrainSettingsV1>> for ApiReply {
    fn from(old: ApiReply<TrainSettingsV1>) -> Self {
        old.map(|spec| Some(spec.into())).expect("every old reply can be said")
    }
}

impl<T> ApiRequest<T> {
    fn map<U>(self, f: impl FnOnce(JobRequest<T>) -> Option<JobRequest<U>>) -> Option<ApiRequest<U>> {
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
        })
    }
}

impl<T> ApiReply<T> {
    fn map<U>(self, f: impl FnOnce(JobSpec<T>) -> Option<JobSpec<U>>) -> Option<ApiReply<U>> {
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
        })
    }
}

impl<T> JobDetail<T> {
    fn map<U>(self, f: impl FnOnce(JobSpec<T>) -> Option<JobSpec<U>>) -> Option<JobDetail<U>> {
        let Self { summary, spec, stages, active, troubles, device_ms, result, gate } = self;
        Some(JobDetail { summary, spec: f(spec)?, stages, active, troubles, device_ms, result, gate })
    }
}
