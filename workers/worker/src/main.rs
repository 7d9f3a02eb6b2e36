//! `likeness-worker`: see [`likeness_worker`].

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::Parser;
use likeness_link::error::{Error, ErrorKind};
use likeness_link::telemetry;
use likeness_worker::args::{self, Args};
use likeness_worker::runtime::shutdown::{GRACE_RAN_OUT, Shutdown};
use likeness_worker::runtime::{self, LAST_WAIT, Leaving, StartError, device};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Wrong flags (`EX_USAGE`).
const WRONG_FLAGS: u8 = 64;
/// NATS or the store cannot be reached (`EX_UNAVAILABLE`).
const UNREACHABLE: u8 = 69;
/// Async threads: they only wait; computing has its own.
const ASYNC_THREADS: usize = 2;

fn main() -> ExitCode {
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let wrong = error.use_stderr();
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return if wrong { ExitCode::from(WRONG_FLAGS) } else { ExitCode::SUCCESS };
        }
    };
    if let Err(error) = telemetry::init(&args.log, args.log_format) {
        eprintln!("error: {:#}", anyhow::Error::from(error));
        return ExitCode::from(WRONG_FLAGS);
    }
    match work(args) {
        Ok(Leaving::Asked) => ExitCode::SUCCESS,
        Ok(Leaving::GraceRanOut) => {
            tracing::error!("the grace period ran out: another worker will redo the task");
            ExitCode::from(GRACE_RAN_OUT)
        }
        Ok(Leaving::TookItselfOut(why)) => {
            tracing::error!(%why, "this worker takes itself out");
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::from(status_of(&error))
        }
    }
}

fn work(args: Args) -> anyhow::Result<Leaving> {
    let metrics = args.metrics.clone();
    let settings = args.resolve(args::host_name(), SystemTime::now())?;
    likeness_kernels::configure_threads(settings.threads).context("cannot start the computing threads")?;
    let device = device::open(settings.device)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let shutdown = Shutdown::default();
    let leaving = runtime.block_on(async {
        shutdown.on_signals(settings.grace_period).context("cannot listen for signals")?;
        if let Some(address) = &metrics {
            telemetry::metrics::serve(address).await?;
        }
        Ok(runtime::run(settings, device, shutdown).await?)
    });
    runtime.shutdown_timeout(LAST_WAIT);
    leaving
}

fn status_of(error: &anyhow::Error) -> u8 {
    match error.chain().find_map(link_error).map(|error| error.kind) {
        Some(ErrorKind::Unreachable) => UNREACHABLE,
        Some(ErrorKind::Invalid) => WRONG_FLAGS,
        _ => 1,
    }
}

/// A `StartError` stands for the error that it wraps, which the chain leaves out.
fn link_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a Error> {
    match cause.downcast_ref() {
        Some(StartError::Link(error)) => Some(error),
        _ => cause.downcast_ref(),
    }
}
