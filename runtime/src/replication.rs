//! Replication: what a node does so that other nodes hold copies of its shards.

pub mod copying;
