//! The contract between the parts of Likeness: ids, messages, codecs, subjects, object keys, table schemas,
//! manifests and the ranking order.
//!
//! Pure on purpose: no clock, no I/O, no tokio, no tensors. Whatever two processes must agree on is here;
//! how it is spoken over NATS and object storage is in `likeness-link`.

pub mod codec;
pub mod datasets;
pub mod documents;
pub mod ids;
pub mod jobs;
pub mod keys;
pub mod messages;
pub mod names;
pub mod ranking;
pub mod retention;
pub mod schedules;
pub mod search;
pub mod searches;
pub mod settings;
pub mod subjects;
pub mod tables;
pub mod usage;
pub mod weights;
