//! Past versions of the coordinator's API, as they are still read.

use super::{ApiReply, ApiRequest, JobDetail};
use crate::jobs::JobSpec;
use crate::settings::TrainSettingsV1;

impl From<ApiRequest<TrainSettingsV1>> for ApiRequest {
    fn from(old: ApiRequest<TrainSettingsV1>) -> Self {
        match old {
            ApiRequest::Submit(request) => Self::Submit(request.into()),
            ApiRequest::Cancel { job } => Self::Cancel { job },
            ApiRequest::Retry { job } => Self::Retry { job },
            ApiRequest::List { limit } => Self::List { limit },
            ApiRequest::Show { job } => Self::Show { job },
            ApiRequest::Promote { alias, generation, report } => Self::Promote { alias, generation, report },
            ApiRequest::Rollback { alias, to } => Self::Rollback { alias, to },
            ApiRequest::Releases { alias } => Self::Releases { alias },
            ApiRequest::Datasets => Self::Datasets,
            ApiRequest::Status => Self::Status,
            ApiRequest::Reconcile => Self::Reconcile,
        }
    }
}

impl From<ApiReply<TrainSettingsV1>> for ApiReply {
    fn from(old: ApiReply<TrainSettingsV1>) -> Self {
        match old {
            ApiReply::Job(job) => Self::Job(job),
            ApiReply::Jobs(jobs) => Self::Jobs(jobs),
            ApiReply::JobDetail(detail) => Self::JobDetail(Box::new((*detail).into())),
            ApiReply::Release(release) => Self::Release(release),
            ApiReply::Releases(releases) => Self::Releases(releases),
            ApiReply::Datasets(datasets) => Self::Datasets(datasets),
            ApiReply::Status(status) => Self::Status(status),
            ApiReply::Reconciled { republished } => Self::Reconciled { republished },
            ApiReply::Error(error) => Self::Error(error),
        }
    }
}

impl From<JobDetail<TrainSettingsV1>> for JobDetail {
    fn from(old: JobDetail<TrainSettingsV1>) -> Self {
        let JobDetail { summary, spec, stages, active, troubles, device_ms, result, gate } = old;
        Self { summary, spec: JobSpec::from(spec), stages, active, troubles, device_ms, result, gate }
    }
}
