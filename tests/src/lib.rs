//! Harness and scenarios.
