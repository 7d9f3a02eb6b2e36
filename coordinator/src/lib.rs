//! The control plane of Likeness as a library: the pure decisions and the async shell around them.
//!
//! [`core`] decides: it has no clock, no I/O and no async, so every rule of jobs, runs and promotions is tested
//! without a broker. [`shell`] does: it holds the lease, reads the store, follows the events, answers the API and
//! carries out what the core decided. The command line in `main.rs` is a client of the same API.

pub mod core;
pub mod shell;
