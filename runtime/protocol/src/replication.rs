//! Replication: deltas of encoded states, and which copies a write waits for.

pub mod delta;
pub mod in_sync;
