//! How a program calls entities: typed references, whatever carries their calls.
//!
//! A node's own [`Cluster`](crate::cluster), an external client and the context of a turn all give
//! the same references; only their [`CallPort`](crate::call::CallPort) differs.

pub mod remote;

pub use crate::entity::error::CallError;
pub use crate::entity::reference::{CommandCall, CommandFuture, Done, QueryCall, QueryFuture, Ref};
