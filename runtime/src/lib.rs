//! A distributed actor-cluster runtime: stateful entities, placed where their state lives.

// what this crate's own macros expand to inside this crate
extern crate self as mainstay;

// -- 1 --
pub mod config;
pub mod clock;
mod chain;
pub mod metrics;
pub mod events;
pub mod journey;
pub mod call;
pub mod ingress;
pub mod entity;
// -- 2 --
pub mod storage;
pub mod transport;
// -- 4 --
pub mod shard;
pub mod lane;
// -- 5, 6 --
pub mod membership;
pub mod control;
// -- 7 --
pub mod replication;
pub mod handoff;
pub mod router;
// -- 8 --
pub mod client;
// -- 10 --
pub mod cluster;

pub use mainstay_macros::{data, entity, state};
pub use mainstay_protocol as protocol;

/// What a program that defines or calls entities needs.
pub mod prelude {
    pub use crate::client::{CallError, Done};
    pub use crate::entity::{Cx, Entity, Key, Migrate, Never, Registry};
    pub use crate::{data, entity, state};
}

/// What the macros' output names, so that a user's crate needs only this one.
#[doc(hidden)]
pub mod __private;
