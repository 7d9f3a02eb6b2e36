//! How a task is taken, kept, committed and given back.

pub mod context;
pub mod device;
pub mod lease;
