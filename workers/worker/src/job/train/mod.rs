//! Training in rounds: checkpoint in, checkpoint out.

pub mod finish;
pub mod init;
pub mod outer;
pub mod slot;
