//! When a person or a supervisor wants the process to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes at the first Ctrl-C, SIGTERM or loss of the terminal.
pub async fn stop_requested() {
    tokio::select! {
        () = once(SignalKind::interrupt()) => {}
        () = once(SignalKind::terminate()) => {}
        () = once(SignalKind::hangup()) => {}
    }
}

/// Completes at the first Ctrl-C.
pub async fn interrupted() {
    once(SignalKind::interrupt()).await;
}

async fn once(kind: SignalKind) {
    match signal(kind) {
        Ok(mut stream) => {
            stream.recv().await;
        }
        // Without a handler the signal's default action ends the process: nothing to wait for.
        Err(_) => std::future::pending().await,
    }
}
