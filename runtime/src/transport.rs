//! Bytes between processes: frames, handshakes, and four kinds of connections over TCP.
//!
//! ```text
//!   caller's side                              accepter's side
//!   links     --- requests, per (peer, lane) -->  listener -> requests::serve, on that lane's thread
//!   control   --- questions ------------------>  listener -> control::serve, on the control thread
//!   snapshots --- shard state ---------------->  listener -> snapshots::serve
//!   replication - appends, answers back ------>  listener -> replication::serve, on its own thread
//! ```
//!
//! The four never share a connection, so a heartbeat is never behind a snapshot. News goes up
//! through [`listener::Recipients`]; the transport knows no room above it. Every queue here has a
//! bound, and a peer that oversteps one is cut. No connection is encrypted.

use std::time::Duration;

use mainstay_protocol::message::Window;

pub mod control;
pub mod frame;
pub mod handshake;
pub mod intake;
mod link;
pub mod links;
pub mod listener;
mod meters;
mod questions;
pub mod replication;
pub mod reply;
pub mod requests;
mod slots;
pub mod snapshots;
mod stream;

#[cfg(test)]
pub(crate) mod loopback;

#[cfg(test)]
pub(crate) use slots::LocalCall;
pub(crate) use slots::LocalCalls;

/// The settings of all connections. [`Config::default`] is the only default.
#[derive(Debug, Clone)]
pub struct Config {
    /// What a connected caller may have outstanding, told to it in the welcome. Its bytes should
    /// hold several payloads of the largest size.
    pub window: Window,
    /// Connections accepted at one time, unfinished handshakes included.
    pub connections: u32,
    /// The longest deadline that an accepted request may carry; longer ones are cut to it.
    pub deadline_max: Duration,
    /// From accepting or opening a socket to the end of its handshake.
    pub handshake_timeout: Duration,
    /// How long a begun frame may take to arrive whole. Cuts whoever sends a byte per second.
    pub frame_timeout: Duration,
    /// How long a peer may accept no byte while some wait for it. Cuts whoever stops reading.
    pub write_timeout: Duration,
    /// How long an accepted connection may be silent with nothing outstanding. Must be well above
    /// `retire_after`, so that the opening side closes first and no request meets a closing socket.
    pub idle_timeout: Duration,
    /// How long an opened connection stays without a request.
    pub retire_after: Duration,
    /// Bytes of unread replies at which no more requests are read from their peer.
    pub unread_bytes_soft: usize,
    /// Bytes of unread replies at which their peer is cut.
    pub unread_bytes_max: usize,
    /// Calls that wait for credits or a connection, per peer and lane; more are refused.
    pub waiting_max: usize,
    /// The first wait before a new attempt to connect; doubles, with full jitter.
    pub backoff_base: Duration,
    /// The longest wait before a new attempt to connect.
    pub backoff_max: Duration,
    /// How long the other end of a replication connection may leave a frame unheard. A stopped
    /// process accepts bytes for long. Costs a new connection, no failover: below a second a busy
    /// machine would pay it for nothing.
    pub silence_max: Duration,
    /// Bytes of appends that wait for one peer. Feeds have windows that keep far below it.
    pub append_queue_bytes: usize,
    /// Bytes of appends of one connection that came in and are not done with. Holds any one frame.
    pub append_room_bytes: u32,
    /// Answers of one connection that wait to be written.
    pub answers_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window: Window { messages: 2048, bytes: 16 << 20 },
            connections: 4096,
            deadline_max: Duration::from_secs(300),
            handshake_timeout: Duration::from_secs(3),
            frame_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(600),
            retire_after: Duration::from_secs(120),
            unread_bytes_soft: 1 << 20,
            unread_bytes_max: 64 << 20,
            waiting_max: 4096,
            backoff_base: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            silence_max: Duration::from_secs(1),
            append_queue_bytes: 64 << 20,
            append_room_bytes: 16 << 20,
            answers_max: 1 << 16,
        }
    }
}

impl Config {
    /// The settings that follow from a node's limits.
    pub fn of(limits: &crate::config::Limits) -> Self {
        Self {
            window: Window { messages: limits.window_messages, bytes: limits.window_bytes },
            connections: limits.connections,
            deadline_max: limits.deadline_max,
            ..Self::default()
        }
    }

    /// How often a connection looks at its timeouts.
    fn tick(&self) -> Duration {
        let shortest = self.frame_timeout.min(self.write_timeout).min(self.retire_after);
        (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}
