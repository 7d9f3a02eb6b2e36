//! The worker: it pulls tasks from the broker, computes them on one device, leaves immutable objects and one
//! record per task in the store, and serves searches.
//!
//! Two halves. [`runtime`] knows how a task is taken, kept, committed and given back, and nothing of what it
//! computes; [`job`] knows what every kind of task computes, and reaches the world only through
//! [`runtime::context::TaskContext`]. [`search`] is the third role of a process: it answers queries beside
//! the tasks.
//!
//! What always holds: a record decides, so doing a task twice is harmless; a worker that was late with its
//! lease says nothing more about that message; compute never runs on a tokio thread.

pub mod args;
pub mod cache;
pub mod error;
pub mod job;
pub mod runtime;
pub mod search;

pub use error::{TaskError, TaskErrorKind};
