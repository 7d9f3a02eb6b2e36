//! NATS as the other processes meet it: connections, the work queue, buckets, requests, the typed client.

mod connect;
mod queue;
mod server;
mod watch;
