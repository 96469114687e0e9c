//! The node: command line, settings, telemetry, HTTP API, signals.
//!
//! A program hands its entities to [`main`] and is a node, with all subcommands:
//!
//! ```text
//! fn main() -> std::process::ExitCode {
//!     mainstay_node::main(Registry::new().entity::<Counter>())
//! }
//! ```
//!
//! ```text
//!   cli -> settings -> telemetry -> run -> http (server -> calls, openapi, admin, health)
//!                                     \--> Launch -> Backend: the cluster
//! ```
//!
//! Everything below the HTTP layer is behind [`backend::Backend`].

pub mod backend;
pub mod banner;
pub mod cli;
pub mod explain;
pub mod http;
mod launch;
pub mod run;
pub mod settings;
pub mod telemetry;

pub use cli::main;

/// Under a load that comes and goes, glibc's allocator holds a little more memory every minute; this
/// one does not. See `docs/decisions/0007-allocator.md`.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
