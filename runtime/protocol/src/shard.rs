//! The shard: dedup, mailboxes, turns, log and watermark, decided together.

pub mod primary;
