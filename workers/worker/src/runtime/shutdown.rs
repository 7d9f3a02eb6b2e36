//! How a worker leaves: asked once, it takes nothing new and ends what it has; asked twice, it goes.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status when the grace period ran out before everything had ended.
pub const GRACE_RAN_OUT: u8 = 75;
/// Largest share of the grace period that is kept for giving a task back.
const RESERVE_SHARE: u32 = 5;
/// Longest time that is kept for it.
const LONGEST_RESERVE: Duration = Duration::from_secs(5);

/// A worker that leaves at once still takes its presence away, within this time.
const LONGEST_FAREWELL: Duration = Duration::from_secs(2);

/// The steps of leaving, each a token that is cancelled when it is reached.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take nothing new.
    pub leaving: CancellationToken,
    /// Give back the task at hand.
    pub give_back: CancellationToken,
    /// The grace period is over.
    pub over: CancellationToken,
}

impl Shutdown {
    /// Goes through the steps; ends when the grace period is over.
    pub async fn begin(&self, grace_period: Duration) {
        self.leaving.cancel();
        let reserve = (grace_period / RESERVE_SHARE).min(LONGEST_RESERVE);
        tokio::time::sleep(grace_period - reserve).await;
        self.give_back.cancel();
        tokio::time::sleep(reserve).await;
        self.over.cancel();
    }

    /// Begins at the first SIGTERM or SIGINT; at the second the grace period is over, and whatever hangs then is left.
    ///
    /// # Errors
    /// When the system refuses signal handlers.
    pub fn on_signals(&self, grace_period: Duration) -> std::io::Result<()> {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let shutdown = self.clone();
        tokio::spawn(async move {
            let mut asked = async || {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            };
            asked().await;
            tracing::info!(grace_s = grace_period.as_secs(), "leaving: no new tasks");
            tokio::select! {
                () = shutdown.begin(grace_period) => {}
                () = asked() => {
                    tracing::warn!("asked twice: leaving at once");
                    shutdown.over.cancel();
                    tokio::time::sleep(LONGEST_FAREWELL).await;
                    std::process::exit(i32::from(GRACE_RAN_OUT));
                }
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_given_back_before_the_grace_period_is_over() {
        let shutdown = Shutdown::default();
        let steps = shutdown.clone();
        let watcher = tokio::spawn(async move {
            steps.leaving.cancelled().await;
            let early = steps.give_back.is_cancelled();
            steps.give_back.cancelled().await;
            (early, steps.over.is_cancelled())
        });
        shutdown.begin(Duration::from_millis(500)).await;
        assert_eq!(watcher.await.unwrap(), (false, false));
        assert!(shutdown.over.is_cancelled());
    }
}
