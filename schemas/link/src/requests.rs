//! Request and reply. An answer has the form of its request: JSON for JSON, bincode for bincode.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use likeness_contract::codec::{self, Encoding, Message};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::{Bus, CONTENT_TYPE};
use crate::error::{Error, ErrorKind, Result, chain};

/// Pause before a question that nobody took is asked once more.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Bus {
    /// Asks and waits for one answer. `Unreachable` when nobody serves the subject, also a moment later, `Transient` when
    /// the answer does not come in time.
    pub async fn request<Q: Message, A: Message>(&self, subject: String, question: &Q, timeout: Duration) -> Result<A> {
        let encoding = Encoding::Bincode;
        let payload = Bytes::from(codec::encode(question, encoding).map_err(|e| Error::of_codec("the request", e))?);
        let request = || Request::new().payload(payload.clone()).headers(content_type(encoding)).timeout(Some(timeout));
        let mut answer = self.client().send_request(subject.clone(), request()).await;
        if answer.as_ref().is_err_and(|error| error.kind() == RequestErrorKind::NoResponders) {
            // The server says so, too, when it had chosen one of several that was just leaving.
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
            answer = self.client().send_request(subject.clone(), request()).await;
        }
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                if let Some(refused) = self.forbidden(&subject) {
                    return Err(refused);
                }
                let failed = |kind, what: String| Error::new(kind, what);
                let error_of = match error.kind() {
                    RequestErrorKind::NoResponders => {
                        failed(ErrorKind::Unreachable, format!("nobody serves `{subject}` at `{}`", self.address()))
                    }
                    RequestErrorKind::TimedOut if !self.is_connected() => {
                        failed(ErrorKind::Unreachable, format!("no answer from NATS at `{}`", self.address()))
                    }
                    RequestErrorKind::TimedOut => {
                        let waited = timeout.as_secs_f64();
                        failed(ErrorKind::Transient, format!("no answer on `{subject}` within {waited:.1} s"))
                    }
                    RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                        failed(ErrorKind::Invalid, format!("can't ask on `{subject}`"))
                    }
                    RequestErrorKind::Other => failed(ErrorKind::Transient, format!("can't ask on `{subject}`")),
                };
                return Err(error_of.because(error));
            }
        };
        decode(&reply).map_err(|e| Error::of_codec(&format!("the answer on `{subject}`"), e))
    }

    /// Serves a subject until the returned handle is stopped or dropped: `handle` answers questions, at most
    /// `limit` of them at once; `refuse` makes the answer to a message that is no question (`Corrupt`, `Newer`)
    /// and to an answer that is too large to be sent (`Invalid`). Members of a `group` share the questions.
    pub async fn serve<Q, A, H, F>(
        &self,
        subject: String,
        group: Option<&str>,
        limit: usize,
        refuse: fn(&Error) -> A,
        handle: H,
    ) -> Result<Serving>
    where
        Q: Message + Send + 'static,
        A: Message + Send + 'static,
        H: Fn(Q) -> F + Clone + Send + 'static,
        F: Future<Output = A> + Send + 'static,
    {
        let client = self.client().clone();
        let subscribed = match group {
            Some(group) => client.queue_subscribe(subject.clone(), group.to_string()).await,
            None => client.subscribe(subject.clone()).await,
        };
        let failed = |e| Error::new(ErrorKind::Transient, format!("can't serve `{subject}`")).because(e);
        let mut questions = subscribed.map_err(failed)?;
        // The subscription stands on the server when this returns.
        client.flush().await.map_err(|e| Error::new(ErrorKind::Transient, "can't reach NATS").because(e))?;
        let stop = CancellationToken::new();
        let under_way = TaskTracker::new();
        let desk = Desk { client, permits: Arc::new(Semaphore::new(limit)), under_way: under_way.clone() };
        let stopped = stop.clone();
        under_way.spawn(async move {
            loop {
                let question = tokio::select! {
                    () = stopped.cancelled() => break,
                    question = questions.next() => question,
                };
                let Some(message) = question else { return };
                desk.take(message, refuse, handle.clone()).await;
            }
            // What the broker has handed over already is still answered.
            if questions.unsubscribe().await.is_ok() {
                while let Some(Some(message)) = questions.next().now_or_never() {
                    desk.take(message, refuse, handle.clone()).await;
                }
            }
        });
        under_way.close();
        Ok(Serving { stop, under_way })
    }
}

/// Where questions are answered, a limited number at once.
struct Desk {
    client: async_nats::Client,
    permits: Arc<Semaphore>,
    under_way: TaskTracker,
}

impl Desk {
    async fn take<Q, A, H, F>(&self, message: async_nats::Message, refuse: fn(&Error) -> A, handle: H)
    where
        Q: Message + Send + 'static,
        A: Message + Send + 'static,
        H: Fn(Q) -> F + Send + 'static,
        F: Future<Output = A> + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let client = self.client.clone();
        self.under_way.spawn(async move {
            answer(&client, message, refuse, handle).await;
            drop(permit);
        });
    }
}

/// A subject that is being served; dropping it stops the service without waiting.
#[derive(Debug)]
pub struct Serving {
    stop: CancellationToken,
    under_way: TaskTracker,
}

impl Serving {
    /// Takes no new questions and waits until those under way are answered.
    pub async fn stop(self) {
        self.stop.cancel();
        self.under_way.wait().await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn answer<Q, A, H, F>(
    client: &async_nats::Client,
    message: async_nats::Message,
    refuse: fn(&Error) -> A,
    handle: H,
) where
    Q: Message,
    A: Message,
    H: Fn(Q) -> F,
    F: Future<Output = A>,
{
    let Some(inbox) = message.reply.clone() else {
        tracing::debug!(subject = %message.subject, "question without a place for the answer");
        return;
    };
    let encoding = encoding_of(&message);
    let reply = match decode::<Q>(&message) {
        Ok(question) => handle(question).await,
        Err(error) => refuse(&Error::of_codec("the request", error)),
    };
    let payload = encoded(&reply, encoding, client.max_payload(), refuse);
    let sent = client.publish_with_headers(inbox, content_type(encoding), payload).await;
    if let Err(error) = sent {
        tracing::warn!(subject = %message.subject, error = %chain(&error), "answer not sent");
    }
}

fn encoded<A: Message>(reply: &A, encoding: Encoding, max_payload: usize, refuse: fn(&Error) -> A) -> Bytes {
    let error = match codec::encode(reply, encoding) {
        // The header counts too.
        Ok(bytes) if bytes.len() + 512 <= max_payload => return bytes.into(),
        Ok(bytes) => Error::new(
            ErrorKind::Invalid,
            format!("the answer of {} bytes is over the broker's limit of {max_payload}", bytes.len()),
        ),
        Err(error) => Error::of_codec("the answer", error),
    };
    codec::encode(&refuse(&error), encoding).map(Bytes::from).unwrap_or_default()
}

fn content_type(encoding: Encoding) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, encoding.content_type());
    headers
}

fn encoding_of(message: &async_nats::Message) -> Encoding {
    let header = message.headers.as_ref().and_then(|h| h.get(CONTENT_TYPE));
    Encoding::detect(header.map(|value| value.as_str()), &message.payload)
}

fn decode<M: Message>(message: &async_nats::Message) -> std::result::Result<M, codec::CodecError> {
    codec::decode(&message.payload, encoding_of(message))
}
