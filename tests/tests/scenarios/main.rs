//! Everything below is one test program; see the crate's documentation.

mod coordinators;
mod pipeline;
mod real_data;
mod search;
mod start;
mod training;
mod workers;
