//! Connections: how many there may be, and how long one may take to say what it wants.
//!
//! Whoever connects and says nothing, or a header letter by letter, holds a place that somebody else needs. So a header must be
//! there within [`Limits::header`], also between two requests of one connection, and beyond [`Limits::connections`] whoever comes waits
//! before the door until one ends. HTTP/1.1 only: what stands before a gateway to encrypt speaks it, too.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Pause after a connection could not be taken, as when there are no file handles left.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Longest time until a request's header is there.
    pub header: Duration,
}

/// Takes connections until `stopping`; then requests that are under way are finished.
pub async fn serve(router: Router, listener: TcpListener, limits: Limits, stopping: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.header);
    let open = GracefulShutdown::new();
    while let Some((stream, place)) = next(&listener, &places, &stopping).await {
        // Answers are written whole: there is nothing to wait for.
        let _slower = stream.set_nodelay(true);
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let served = open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    open.shutdown().await;
}

/// The next connection that there is a place for; none when it is time to stop.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    stopping: &CancellationToken,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let taken = async {
        let place = Arc::clone(places).acquire_owned().await.expect("places are never closed");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return (stream, place),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = stopping.cancelled() => None,
        taken = taken => Some(taken),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";

    struct Served {
        address: SocketAddr,
        /// `/slow` answers when told.
        go_on: Arc<Notify>,
        stopping: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn served(connections: usize, header: Duration) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, go_on, stopping) =
            (listener.local_addr().unwrap(), Arc::new(Notify::new()), CancellationToken::new());
        let wait = Arc::clone(&go_on);
        let slow = async move || {
            wait.notified().await;
            "late"
        };
        let router = Router::new().route("/", get("here")).route("/slow", get(slow));
        let task = tokio::spawn(serve(router, listener, Limits { connections, header }, stopping.clone()));
        Served { address, go_on, stopping, task }
    }

    async fn connect(served: &Served) -> TcpStream {
        TcpStream::connect(served.address).await.unwrap()
    }

    async fn read_until(stream: &mut TcpStream, end: &str) -> String {
        let mut text = String::new();
        while !text.ends_with(end) {
            let byte = stream.read_u8().await.unwrap_or_else(|error| panic!("{error} after `{text}`"));
            text.push(char::from(byte));
        }
        text
    }

    #[tokio::test]
    async fn whoever_says_nothing_or_half_a_header_is_sent_away_and_others_ask_again_and_again() {
        let served = served(8, Duration::from_millis(300)).await;
        for half in [&b""[..], b"GET / HTTP/1.1\r\nhost: he", b"PRI * HTTP/2.0\r\n"] {
            let mut stream = connect(&served).await;
            stream.write_all(half).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(!String::from_utf8_lossy(&rest).contains("200"), "{rest:?}");
        }
        let mut stream = connect(&served).await;
        for _ in 0..3 {
            stream.write_all(REQUEST).await.unwrap();
            assert!(read_until(&mut stream, "here").await.starts_with("HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn one_too_many_waits_until_another_goes() {
        let served = served(1, Duration::from_secs(60)).await;
        let mut first = connect(&served).await;
        first.write_all(REQUEST).await.unwrap();
        read_until(&mut first, "here").await;
        let mut second = connect(&served).await;
        second.write_all(REQUEST).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(200), second.readable()).await;
        assert!(early.is_err(), "there is no place for it");
        drop(first);
        read_until(&mut second, "here").await;
    }

    #[tokio::test]
    async fn what_is_under_way_is_finished_and_nobody_else_gets_in() {
        let served = served(8, Duration::from_secs(60)).await;
        let mut stream = connect(&served).await;
        stream.write_all(b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
        let mut idle = connect(&served).await;
        idle.write_all(REQUEST).await.unwrap();
        read_until(&mut idle, "here").await;
        served.stopping.cancel();
        assert_eq!(idle.read_to_end(&mut Vec::new()).await.unwrap(), 0, "an idle connection is closed");
        assert!(!served.task.is_finished());
        served.go_on.notify_one();
        read_until(&mut stream, "late").await;
        served.task.await.unwrap();
        assert!(TcpStream::connect(served.address).await.is_err());
    }
}
