//! What a Mainstay cluster decides: pure state machines, driven from outside.
//!
//! Every machine here has one shape. Nothing reads a clock, opens a socket, starts a thread or
//! writes a log; time and randomness are arguments, so that a whole cluster can be replayed from
//! one seed.
//!
//! ```text
//!   handle_<input>(&mut self, .., now) -> Result<_, E>    something happened
//!   handle_timeout(&mut self, now)                        time passed
//!   poll_timeout(&self) -> Option<Instant>                wake me then
//!   poll_effect(&mut self) -> Option<Effect>              please do this, in this order
//! ```

// -- words --
pub mod time;
pub mod id;
pub mod limits;
pub mod message;
// -- helpers --
mod index;
mod list;
pub mod mutants;
#[cfg(test)]
mod properties;
// -- small machines, about a page each --
pub mod backoff;
pub mod retry_budget;
pub mod credits;
pub mod dedup;
pub mod mailbox;
pub mod passivation;
// -- placement --
pub mod ring;
pub mod shard_map;
pub mod placement;
// -- replication --
pub mod entry;
pub mod snapshot;
pub mod replication;
// -- the shard: small machines composed --
pub mod shard;
// -- the control plane --
pub mod failure_detector;
pub mod membership;
pub mod control;
