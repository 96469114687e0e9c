//! The face of the runtime, from outside: entities, references, macros.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by its line")]

mod bank;
mod client;
mod compile;
mod direct_port;
mod journal;
mod json;
mod registry;
mod trait_layer;
