//! The node crate over real sockets and processes, with a fake node behind it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod admin;
mod calls;
mod cli;
mod connections;
mod fake;
mod kind;
mod openapi;
mod process;
