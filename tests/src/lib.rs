//! The whole system under test: a nats-server of its own, a store in a temporary folder, and the real
//! programs as child processes that scenarios kill, stop, freeze and start again.
//!
//! Scenarios lie in `tests/scenarios`; each names an end state that must be reached whatever happened on the way.
//! They wait for conditions under a deadline and never sleep otherwise. They take turns, because
//! the times of leases are short.

pub mod broker;
pub mod chaos;
pub mod cluster;
pub mod faces;
pub mod galleries;
pub mod jobs;
pub mod meddling;
pub mod process;
pub mod proxy;
pub mod s3;
pub mod trio;
pub mod wait;

pub use broker::Broker;
pub use cluster::Cluster;
pub use process::Process;
pub use wait::until;
