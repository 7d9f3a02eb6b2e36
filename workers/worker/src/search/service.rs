//! The public face: the NATS service `likeness-search`, discoverable with `nats micro`.
//!
//! Requests are JSON or bincode in the contract's envelope; the answer has the form of its request. All
//! searchers share the requests as one queue group.

use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::service::{Request, ServiceExt};
use bytes::Bytes;
use futures::StreamExt;
use likeness_contract::codec::{self, CodecError, Encoding, MAX_MESSAGE_BYTES};
use likeness_contract::search::{SearchError, SearchErrorKind, SearchReply, SearchRequest, SearchResults};
use likeness_contract::subjects;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::query::invalid;
use super::{Searcher, root};
use crate::error::TaskError;

/// Name under which the service is found.
const SERVICE: &str = "likeness-search";
/// Header that names the form of a message.
const CONTENT_TYPE: &str = "content-type";
/// Bytes that a reply's headers may take of the broker's payload limit.
const HEADER_BYTES: usize = 512;

/// Serves until the process leaves, then answers what it took.
pub async fn serve(searcher: Arc<Searcher>) -> Result<(), TaskError> {
    let builder = searcher.cx.bus.client().service_builder();
    let builder =
        builder.description("Finds the images of a gallery that are like a query").queue_group(subjects::SEARCH_GROUP);
    let service = builder.start(SERVICE, env!("CARGO_PKG_VERSION")).await.map_err(TaskError::transient)?;
    let endpoint = service.endpoint_builder().name("search").add(subjects::SEARCH).await;
    let mut endpoint = endpoint.map_err(TaskError::transient)?;
    let queries = Arc::new(Semaphore::new(searcher.settings.queries));
    let under_way = TaskTracker::new();
    let mut stopping = false;
    loop {
        let request = tokio::select! {
            () = searcher.cx.shutdown.cancelled(), if !stopping => {
                // What the server had sent before is still answered: the stream ends after it.
                stopping = true;
                endpoint.stop().await.map_err(TaskError::transient)?;
                continue;
            }
            request = endpoint.next() => request,
        };
        let Some(request) = request else { break };
        let (searcher, permit) = (Arc::clone(&searcher), Arc::clone(&queries).try_acquire_owned());
        let received = Instant::now();
        under_way.spawn(async move {
            let busy = permit.is_err();
            respond(&searcher, request, received, busy).await;
        });
    }
    under_way.close();
    under_way.wait().await;
    service.stop().await.map_err(TaskError::transient)
}

async fn respond(searcher: &Searcher, request: Request, received: Instant, busy: bool) {
    let message = &request.message;
    let header = message.headers.as_ref().and_then(|headers| headers.get(CONTENT_TYPE));
    let encoding = Encoding::detect(header.map(|value| value.as_str()), &message.payload);
    let reply = match codec::decode::<SearchRequest>(&message.payload, encoding) {
        Err(error) => SearchReply::Error(invalid(error.to_string())),
        Ok(_) if busy => SearchReply::Error(SearchError {
            kind: SearchErrorKind::Unavailable,
            message: "this searcher is busy: too many searches at once".into(),
            nearest: Vec::new(),
        }),
        Ok(question) => root::answer(searcher, question, received).await,
    };
    let limit = searcher.cx.bus.client().max_payload().saturating_sub(HEADER_BYTES).min(MAX_MESSAGE_BYTES);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, encoding.content_type());
    if let Err(error) = request.respond_with_headers(Ok(encode(reply, encoding, limit)), headers).await {
        tracing::warn!(%error, "a search's answer could not be sent");
    }
}

/// The reply's bytes, or those of an error that says how many results fit.
fn encode(reply: SearchReply, encoding: Encoding, limit: usize) -> Bytes {
    let fits = |reply: &SearchReply| codec::encode(reply, encoding).ok().filter(|bytes| bytes.len() <= limit);
    if let Some(bytes) = fits(&reply) {
        return bytes.into();
    }
    let error = match &reply {
        SearchReply::Found(results) => too_large(results, encoding, limit),
        SearchReply::Error(_) => invalid("the request can't be met, and the reason is too long to be sent"),
    };
    fits(&SearchReply::Error(error)).map(Bytes::from).unwrap_or_default()
}

/// Says the largest K whose reply is not over the broker's limit.
fn too_large(results: &SearchResults, encoding: Encoding, limit: usize) -> SearchError {
    let size = |hits: usize| {
        let shortened = SearchResults { hits: results.hits[..hits].to_vec(), ..results.clone() };
        match codec::encode(&SearchReply::Found(Box::new(shortened)), encoding) {
            Ok(bytes) => bytes.len(),
            Err(CodecError::TooLarge { bytes, .. }) => bytes,
            Err(_) => usize::MAX,
        }
    };
    let (mut fits, mut over) = (0, results.hits.len());
    while over - fits > 1 {
        let middle = (fits + over) / 2;
        if size(middle) <= limit { fits = middle } else { over = middle }
    }
    let hits = results.hits.len();
    let compact = if encoding == Encoding::Json { " (more in the compact form)" } else { "" };
    invalid(format!(
        "the answer of {hits} results is over the broker's limit of {limit} bytes; k up to {fits} fits{compact}"
    ))
}

#[cfg(test)]
mod tests {
    use likeness_contract::ids::{JobId, Name};
    use likeness_contract::jobs::GenerationRef;
    use likeness_contract::search::{Coverage, Hit, ImageRef};

    use super::*;

    fn results(hits: usize) -> SearchReply {
        let part = "datasets/avatars/ingest-0123456789abcdef/part-00000-0123456789abcdef.parquet".to_string();
        let hit = |i| Hit {
            item: format!("{i:06}.jpg"),
            distance: 1.0 / f64::from(i + 3),
            labels: vec![-1; 40],
            image: ImageRef { part: part.clone(), row: i },
        };
        SearchReply::Found(Box::new(SearchResults {
            release: 1,
            generation: GenerationRef { gallery: Name::new("g").unwrap(), generation: JobId::new("j").unwrap() },
            hits: (0..hits as u32).map(hit).collect(),
            coverage: Coverage { rows: 1, total_rows: 1, shards: 1, total_shards: 1, reasons: vec![] },
            vocabulary: vec!["Smiling".into(); 40],
            timings_ms: vec![],
        }))
    }

    #[test]
    fn an_answer_over_the_limit_says_how_many_results_fit() {
        let limit = MAX_MESSAGE_BYTES - HEADER_BYTES;
        for encoding in [Encoding::Json, Encoding::Bincode] {
            let bytes = encode(results(10_000), encoding, limit);
            let SearchReply::Error(error) = codec::decode(&bytes, encoding).unwrap() else { panic!("too large") };
            assert_eq!(error.kind, SearchErrorKind::Invalid);
            let fits: usize =
                error.message.split("k up to ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!(fits > 2_000, "{}", error.message);
            let whole = |hits| {
                matches!(codec::decode(&encode(results(hits), encoding, limit), encoding), Ok(SearchReply::Found(_)))
            };
            assert!(whole(fits) && !whole(fits + 1));
        }
    }
}
