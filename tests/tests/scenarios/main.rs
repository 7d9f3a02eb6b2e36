//! Everything below is one test program; see the crate's documentation.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that fails says where, one that is skipped says so"
)]

mod approximate;
mod coordinators;
mod datasets;
mod embedding;
mod failures;
mod gateway;
mod observability;
mod pipeline;
mod real_data;
mod replaced;
mod schedules;
mod search;
mod search_files;
mod search_load;
mod secured;
mod sharing;
mod sources;
mod start;
mod training;
mod upgrade;
mod workers;
