//! How many threads compute, decided once per process.

use candle_core::{Error, Result};

/// Sets the number of threads that every operation of this crate (and candle's matrix product) uses.
///
/// Call it first thing in `main`; results do not depend on the number. candle's own elementwise operations keep
/// another pool, which spins while it waits: set `CANDLE_NUM_THREADS=1` in the environment of the process to
/// keep them on the calling thread.
///
/// # Errors
/// When the pool was already in use, for instance by an earlier call.
pub fn configure_threads(threads: usize) -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|i| format!("kernel-{i}"))
        .build_global()
        .map_err(Error::wrap)
}

/// Runs `f` in a pool of its own size, whatever the process-wide setting is.
#[cfg(test)]
pub(crate) fn with_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of a few threads starts");
    pool.install(f)
}
