//! `likeness coordinator`: the control plane as a long-running service.

use std::time::Duration;

use clap::Args;
use likeness::shell::{self, CoordinatorSettings};
use tokio_util::sync::CancellationToken;

use crate::command::Global;
use crate::command::exit::{Exit, Failure, Outcome};
use crate::command::up::signals;

/// Flags of `likeness coordinator`.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Seconds to finish what is under way after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace_period: u64,
}

/// Runs until a signal, then within the grace period.
pub async fn run(global: &Global, args: CoordinatorArgs) -> Outcome {
    let address = global.connection.resolve()?;
    let shutdown = CancellationToken::new();
    let settings = CoordinatorSettings::new(address.nats, address.store);
    let mut service = tokio::spawn(shell::run(settings, shutdown.clone()));
    tokio::select! {
        ended = &mut service => return finished(ended),
        () = signals::stop_requested() => shutdown.cancel(),
    }
    match tokio::time::timeout(Duration::from_secs(args.grace_period), service).await {
        Ok(ended) => finished(ended),
        Err(_) => Ok(Exit::Grace),
    }
}

fn finished(ended: Result<likeness_link::Result<()>, tokio::task::JoinError>) -> Outcome {
    ended.map_err(Failure::failed)??;
    Ok(Exit::Done)
}
