//! Why a request has no answer: problem details as RFC 9457 has them, with the nearest names where a name was wrong.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use likeness_contract::messages::{ApiError, ApiErrorKind};
use likeness_contract::search::{SearchError, SearchErrorKind};
use likeness_link::error::chain;
use likeness_link::{ClientError, Error, ErrorKind};
use schemars::JsonSchema;
use serde::Serialize;

use crate::command::exit::{Exit, Failure};

/// Result of a handler.
pub type Answer<T> = Result<T, Problem>;

/// Media type of what this module answers.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// Why there is no answer (RFC 9457).
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Problem {
    /// Names the kind of problem, the same for every occurrence.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The nearest names, when a name was wrong.
    pub nearest: Vec<String>,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u32>,
}

impl Problem {
    /// A problem of one kind; `kind` is its last word in `urn:likeness:problem:…`.
    pub fn new(status: StatusCode, kind: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:likeness:problem:{kind}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            nearest: Vec::new(),
            retry_after: None,
        }
    }

    /// The request is well formed and can't be met.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "The request can't be met as it is", detail)
    }

    /// The request is not well formed.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "The request is not well formed", detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    /// It was there.
    pub fn gone(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "gone", "It is no longer there", detail)
    }

    /// Something that is needed does not answer at the moment.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Try again later", detail);
        problem.after(1)
    }

    /// Nothing is wrong with the request.
    pub fn internal(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "Something is wrong here, not with the request",
            detail,
        )
    }

    /// Too much at once.
    pub fn too_many(detail: impl Into<String>, seconds: u32) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many requests", detail).after(seconds)
    }

    /// It took too long.
    pub fn too_slow(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline", "It took too long", detail)
    }

    /// Says who may ask.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "A key is needed", detail)
    }

    /// The key, or the place where the request comes from, does not suffice.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not allowed", detail)
    }

    /// Says when another try makes sense.
    pub fn after(self, seconds: u32) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Says what may have been meant.
    pub fn nearest(self, nearest: Vec<String>) -> Self {
        Self { nearest, ..self }
    }

    /// Its status.
    pub fn code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.code(), self.retry_after);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert("www-authenticate", HeaderValue::from_static("Bearer realm=\"likeness\""));
        }
        response
    }
}

impl From<ApiError> for Problem {
    fn from(error: ApiError) -> Self {
        let ApiError { kind, message, nearest } = error;
        let problem = match kind {
            ApiErrorKind::Invalid => Self::invalid(message),
            ApiErrorKind::NotFound => Self::not_found(message),
            ApiErrorKind::Conflict => {
                Self::new(StatusCode::CONFLICT, "conflict", "Something else stands there already", message)
            }
            ApiErrorKind::Unavailable => Self::unavailable(message),
        };
        problem.nearest(nearest)
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        let SearchError { kind, message, nearest } = error;
        let problem = match kind {
            SearchErrorKind::Invalid => Self::invalid(message),
            SearchErrorKind::NotFound => Self::not_found(message),
            SearchErrorKind::Coverage => {
                let title = "Too little of the gallery can be searched";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "coverage", title, message).after(1)
            }
            SearchErrorKind::Deadline => Self::too_slow(message),
            SearchErrorKind::Unavailable => Self::unavailable(message),
            SearchErrorKind::Overloaded => Self::too_many(message, 1),
            SearchErrorKind::Expired => Self::gone(message),
        };
        problem.nearest(nearest)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let text = chain(&error);
        match error.kind {
            ErrorKind::Unreachable | ErrorKind::Transient | ErrorKind::Full => Self::unavailable(text),
            ErrorKind::NotFound => Self::not_found(text),
            ErrorKind::Invalid => Self::invalid(text),
            ErrorKind::Corrupt | ErrorKind::Refused | ErrorKind::Newer => {
                tracing::error!(error = %text, "a request failed");
                Self::internal(text)
            }
        }
    }
}

impl From<ClientError> for Problem {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Link(error) => error.into(),
            ClientError::Api(error) => error.into(),
            ClientError::Search(error) => error.into(),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        match failure.exit {
            Exit::Usage => Self::invalid(text),
            Exit::Unavailable => Self::unavailable(text),
            _ => Self::internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_search(kind: SearchErrorKind) -> Problem {
        SearchError { kind, message: "no `Smilling`".into(), nearest: vec!["Smiling".into()] }.into()
    }

    #[test]
    fn every_kind_of_search_error_has_its_status() {
        use SearchErrorKind as K;
        let expected = [
            (K::Invalid, 422),
            (K::NotFound, 404),
            (K::Coverage, 503),
            (K::Deadline, 504),
            (K::Unavailable, 503),
            (K::Overloaded, 429),
            (K::Expired, 410),
        ];
        for (kind, status) in expected {
            assert_eq!(of_search(kind).status, status, "{kind:?}");
        }
    }

    #[test]
    fn a_wrong_name_comes_with_the_nearest_ones_and_the_media_type_of_problems() {
        let problem = of_search(SearchErrorKind::NotFound);
        assert_eq!(
            (problem.kind.as_str(), problem.nearest.as_slice()),
            ("urn:likeness:problem:not-found", &["Smiling".to_string()][..])
        );
        let response = of_search(SearchErrorKind::Overloaded).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            (json["type"].as_str(), json["status"].as_u64()),
            (Some("urn:likeness:problem:not-found"), Some(404))
        );
    }

    #[test]
    fn who_is_not_known_is_told_how_to_say_it() {
        let response = Problem::unauthorized("no key").into_response();
        assert!(response.headers().contains_key("www-authenticate"));
    }
}
