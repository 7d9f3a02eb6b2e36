//! How the contract is spoken, once for everybody: NATS connection, object store with create-if-absent and
//! digests, telemetry, the typed client.
//!
//! `likeness-contract` says what is said; this crate says it. Nothing here decides: who wins is settled by a
//! create-if-absent in the [`store`], who leads by a `create` or `update` in a bucket ([`kv`]).

pub mod answers;
pub mod bus;
pub mod client;
pub mod error;
pub mod hedge;
pub mod images;
pub mod kv;
pub mod login;
pub mod pull;
pub mod remote;
pub mod removals;
pub mod requests;
pub mod rows;
pub mod settings;
pub mod store;
pub mod telemetry;
mod topology;
pub mod webhook;

pub use bus::{Bus, Published};
pub use client::{Client, ClientError, WatchEvent};
pub use error::{Error, ErrorKind, Result};
pub use images::{image_bytes, part_items};
pub use kv::Kv;
pub use pull::{Delivery, Pull};
pub use settings::{NatsSettings, Timings};
pub use store::{Adopted, Created, Listed, Store};
pub use webhook::{WebhookSecrets, WebhookSender};

/// TLS needs a default provider of cryptography; whoever comes first installs it.
pub(crate) fn install_crypto() {
    let _installed_already = rustls::crypto::ring::default_provider().install_default();
}

/// A number that no other process draws at the same time.
pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
