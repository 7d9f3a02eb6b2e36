//! `likeness`: the control plane and the command line of Likeness.
//!
//! Everything that the command line does goes through the coordinator's API and the store, as any other client
//! of the system would.

mod command;
mod gateway;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    command::run(std::env::args_os()).into()
}
