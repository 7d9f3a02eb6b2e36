//! The public face: the NATS service `likeness-search`, discoverable with `nats micro`.
//!
//! Requests are JSON or bincode in the contract's envelope; the answer has the form of its request. All
//! searchers share the requests as one queue group. Each also has a subject of its own: whoever got no answer asks
//! `$SRV.PING.likeness-search`, and then the first who says that it is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::service::{Request, ServiceExt};
use bytes::Bytes;
use futures::StreamExt;
use likeness_contract::codec::{self, Encoding, MAX_MESSAGE_BYTES};
use likeness_contract::search::{SearchError, SearchErrorKind, SearchReply, SearchRequest, SearchResults};
use likeness_contract::subjects;
use likeness_link::Bus;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::query::invalid;
use super::{Searcher, root};
use crate::error::TaskError;

/// Name under which the service is found.
const SERVICE: &str = "likeness-search";
/// Header that names the form of a message.
const CONTENT_TYPE: &str = "content-type";
/// Longest wait for the requests that were on their way when the service closed.
const DRAIN_WAIT: Duration = Duration::from_secs(2);
/// Queries at once that a root takes in any case.
const LEAST_QUERIES: usize = 16;
/// Bytes that a reply's headers may take of the broker's payload limit.
const HEADER_BYTES: usize = 512;

/// Serves until the process leaves, then answers what it took.
///
/// The service has a connection of its own, because only a whole connection can be drained: closing a
/// subscription of a shared one loses the requests that are on their way.
pub async fn serve(searcher: Arc<Searcher>) -> Result<(), TaskError> {
    let cx = &searcher.cx;
    let front = Bus::connect(&cx.settings.nats, &format!("{}-search", cx.worker)).await?;
    let builder = front.client().service_builder();
    let builder = builder.description("Finds the images of a gallery that are like a query");
    let about = HashMap::from([(subjects::SEARCH_WORKER.to_string(), cx.worker.to_string())]);
    let builder = builder.queue_group(subjects::SEARCH_GROUP).metadata(about);
    let service = builder.start(SERVICE, env!("CARGO_PKG_VERSION")).await.map_err(TaskError::transient)?;
    let endpoint = service.endpoint_builder().name("search").add(subjects::SEARCH).await;
    let own = service.endpoint_builder().name("search-own").queue_group(cx.worker.as_str());
    let own = own.add(subjects::search_by(&cx.worker)).await.map_err(TaskError::transient)?;
    let mut requests = futures::stream::select(endpoint.map_err(TaskError::transient)?, own);
    let answering = Answering::new(Arc::clone(&searcher));
    loop {
        tokio::select! {
            () = cx.shutdown.cancelled() => break,
            request = requests.next() => match request {
                Some(request) => answering.take(request),
                None => return Err(TaskError::transient("the search service lost its subscription")),
            },
        }
    }
    answering.draining.store(true, Ordering::Release);
    front.client().drain().await.map_err(TaskError::transient)?;
    // What the server had sent before it heard of the drain comes, then the end.
    let rest = async {
        while let Some(request) = requests.next().await {
            answering.take(request);
        }
    };
    let _ = tokio::time::timeout(DRAIN_WAIT, rest).await;
    answering.under_way.close();
    answering.under_way.wait().await;
    Ok(())
}

/// Requests that are being answered.
#[derive(Clone)]
struct Answering {
    searcher: Arc<Searcher>,
    under_way: TaskTracker,
    /// Whether the service's own connection is about to close: answers go by the process's other one.
    draining: Arc<AtomicBool>,
}

impl Answering {
    fn new(searcher: Arc<Searcher>) -> Self {
        Self { searcher, under_way: TaskTracker::new(), draining: Arc::default() }
    }

    fn take(&self, request: Request) {
        let (this, received) = (self.clone(), Instant::now());
        let busy = self.under_way.len() >= self.most();
        self.under_way.spawn(async move { this.respond(request, received, busy).await });
    }

    /// Queries at once: this root's part of what the leaves bear.
    fn most(&self) -> usize {
        let roots = self.searcher.view().live(std::time::Instant::now()).max(1);
        (self.searcher.settings.waiting / roots).max(LEAST_QUERIES)
    }

    async fn respond(&self, request: Request, received: Instant, busy: bool) {
        let message = &request.message;
        let header = message.headers.as_ref().and_then(|headers| headers.get(CONTENT_TYPE));
        let encoding = Encoding::detect(header.map(|value| value.as_str()), &message.payload);
        let reply = match codec::decode::<SearchRequest>(&message.payload, encoding) {
            Err(error) => SearchReply::Error(invalid(error.to_string())),
            Ok(_) if busy => SearchReply::Error(SearchError {
                kind: SearchErrorKind::Overloaded,
                message: "this searcher is busy: too many searches at once".into(),
                nearest: Vec::new(),
            }),
            Ok(question) => root::answer(&self.searcher, question, received).await,
        };
        let client = self.searcher.cx.bus.client();
        let limit = client.max_payload().saturating_sub(HEADER_BYTES).min(MAX_MESSAGE_BYTES);
        let payload = encode(reply, encoding, limit);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, encoding.content_type());
        let sent = match (self.draining.load(Ordering::Acquire), message.reply.clone()) {
            (true, Some(inbox)) => client.publish_with_headers(inbox, headers, payload).await,
            _ => request.respond_with_headers(Ok(payload), headers).await,
        };
        if let Err(error) = sent {
            tracing::warn!(%error, "a search's answer could not be sent");
        }
    }
}

/// The reply's bytes, or those of an error that says how many results fit.
fn encode(reply: SearchReply, encoding: Encoding, limit: usize) -> Bytes {
    if let Some(bytes) = fitting(&reply, encoding, limit) {
        return bytes.into();
    }
    let error = match &reply {
        SearchReply::Found(results) => too_large(results, encoding, limit),
        SearchReply::Error(_) => invalid("the request can't be met, and the reason is too long to be sent"),
    };
    fitting(&SearchReply::Error(error), encoding, limit).map(Bytes::from).unwrap_or_default()
}

/// The reply's bytes, if they are within the limit and the receiver can decode them: its decoder counts numbers
/// at their full width, so that a large reply can be over its limit although its bytes are not.
fn fitting(reply: &SearchReply, encoding: Encoding, limit: usize) -> Option<Vec<u8>> {
    let bytes = codec::encode(reply, encoding).ok().filter(|bytes| bytes.len() <= limit)?;
    let surely = encoding == Encoding::Json || bytes.len() <= limit / 2;
    (surely || codec::decode::<SearchReply>(&bytes, encoding).is_ok()).then_some(bytes)
}

/// Says the largest K whose reply fits.
fn too_large(results: &SearchResults, encoding: Encoding, limit: usize) -> SearchError {
    let fits_with = |hits: usize| {
        let mut shortened = results.clone();
        shortened.hits.truncate(hits);
        shortened.explanation.iter_mut().for_each(|explanation| explanation.hits.truncate(hits));
        fitting(&SearchReply::Found(Box::new(shortened)), encoding, limit).is_some()
    };
    let (mut fits, mut over) = (0, results.hits.len());
    while over - fits > 1 {
        let middle = (fits + over) / 2;
        if fits_with(middle) { fits = middle } else { over = middle }
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
            matching: None,
            recall: None,
            next: None,
            explanation: None,
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
