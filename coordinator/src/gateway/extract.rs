//! What handlers take out of requests; a request that is wrong is answered with a problem.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A body of JSON.
#[derive(Debug)]
pub struct Body<T>(pub T);

/// What stands after `?`.
#[derive(Debug)]
pub struct Asked<T>(pub T);

/// What stands in the path.
#[derive(Debug)]
pub struct At<T>(pub T);

/// Whether a request says that its body is JSON: a page of another host can't say that without asking first.
fn says_json(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type == "application/json" || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !says_json(request.headers()) {
            let (title, detail) =
                ("Another kind of body is needed", "the body must be `content-type: application/json`");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", title, detail));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(of_body)?;
        json(&bytes).map(Self)
    }
}

/// Reads JSON: 400 where it is none, 422 where it says something else than is expected.
pub fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    use serde_json::error::Category;
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => Problem::invalid(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => Problem::malformed(format!("the body is no JSON: {error}")),
    })
}

fn of_body(rejection: BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    Problem::malformed(rejection.body_text())
}

/// More bytes than the gateway takes.
pub fn too_large() -> Problem {
    let (title, detail) = ("The body is too large", "the body has more bytes than this gateway takes (--max-body)");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", title, detail)
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let asked = Query::<T>::from_request_parts(parts, state).await;
        asked
            .map(|Query(asked)| Self(asked))
            .map_err(|rejection: QueryRejection| Problem::malformed(rejection.body_text()))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let at = Path::<T>::from_request_parts(parts, state).await;
        at.map(|Path(at)| Self(at)).map_err(|rejection: PathRejection| Problem::malformed(rejection.body_text()))
    }
}

/// JSON of something that can always be written.
pub fn reply<T>(value: T) -> super::problem::Answer<Json<T>> {
    Ok(Json(value))
}

#[cfg(test)]
mod tests {
    use likeness_contract::search::SearchRequest;

    use super::*;

    #[test]
    fn a_question_needs_to_say_only_what_it_asks() {
        let asked: SearchRequest = json(br#"{"terms":[{"term":{"attributes":{"with":["Smiling"]}}}]}"#).unwrap();
        assert_eq!((asked.alias.as_str(), asked.k, asked.deadline_ms, asked.terms[0].weight), ("main", 20, 5_000, 1.0));
    }

    #[test]
    fn what_is_no_json_is_told_apart_from_what_is_not_understood() {
        assert_eq!(json::<SearchRequest>(b"{").unwrap_err().status, 400);
        let problem = json::<SearchRequest>(br#"{"fitler":{}}"#).unwrap_err();
        assert_eq!(problem.status, 422);
        assert!(problem.detail.contains("fitler") && problem.detail.contains("`filter`"), "{}", problem.detail);
        assert_eq!(json::<SearchRequest>(&[b'['; 100_000]).unwrap_err().status, 422, "it is not read to its end");
    }

    #[test]
    fn only_json_is_taken_for_json() {
        let said = |text: &'static str| says_json(&HeaderMap::from_iter([(CONTENT_TYPE, text.parse().unwrap())]));
        assert!(said("application/json") && said("Application/JSON; charset=utf-8") && said("application/vnd.x+json"));
        assert!(!said("text/plain") && !said("multipart/form-data") && !said("application/jsonp"));
        assert!(!says_json(&HeaderMap::new()));
    }
}
