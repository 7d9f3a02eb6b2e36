//! The pure core: what the coordinator decides, as plain functions over plain values.
//!
//! No clock, no I/O, no async: time comes in as milliseconds, everything that must happen goes out through an
//! [`outbox::Outbox`]. That is what makes the rules of runs, records and outcomes testable by the thousand.
//!
//! | module | decides |
//! |---|---|
//! | [`resolve`] | what a request means, or why it can't be met |
//! | [`earlier`] | which generation an embedding copies from |
//! | [`planner`] | which tasks a job has, and their order |
//! | [`reactor`] | what every piece of news does to the jobs |
//! | [`run`], [`attempts`] | which tasks are published, which are given up |
//! | [`shares`], [`workers`] | how many tasks of a job lie in the queue |
//! | [`usage`] | what a job takes, and is expected to |
//! | [`promote`] | whether a release may be made, and whether searchers are ready for it |
//! | [`schedule`] | when jobs are submitted by themselves |
//! | [`retention`] | which old things may be deleted |

pub mod attempts;
pub mod earlier;
#[cfg(test)]
mod fairness;
pub mod job;
pub mod outbox;
pub mod planner;
pub mod promote;
pub mod reactor;
pub mod resolve;
pub mod retention;
pub mod run;
pub mod schedule;
pub mod shares;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
pub mod usage;
pub mod validate;
pub mod workers;
