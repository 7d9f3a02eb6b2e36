//! NATS as the other processes meet it: connections, the work queue, buckets, requests, the typed client.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod connect;
mod queue;
mod server;
mod watch;
