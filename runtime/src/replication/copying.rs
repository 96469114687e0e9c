//! Copies of a shard's states, from one node to another.

pub mod pages;
