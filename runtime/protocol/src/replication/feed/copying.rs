//! Copies of the states, and the entries that are kept beside them.
//!
//! ```text
//!   entries   ####base##########################last
//!                 ^    come while the states are sent, and until who got them holds them
//! ```
//! States that took longer than the entries behind them are kept for would have to be sent again, and
//! again: a shard that is large, or written to without a pause, would never get another copy. So more
//! is kept for them than for who merely lags, for a few at one time: the place that states are sent as
//! of is named when their turn has come, and until then nothing is kept. What comes during a copy is
//! the more the larger the shard is; no more than [`Config::copying_bytes`] of it are kept.
//!
//! [`Config::copying_bytes`]: super::Config::copying_bytes

use super::peer::{Peer, Stage};
use super::{Feed, Kept, Position, place};
use crate::id::{NodeId, Seq};
use crate::time::Instant;

impl Feed {
    /// The turn of a copy of the states has come: everything up to this place is to be in it, and
    /// entries after it follow. It can be saved. `None` when that copy needs none any more.
    pub fn handle_copy_turn(&mut self, to: &NodeId) -> Option<Position> {
        let base = place(&self.history, self.savable);
        let peer = self.peers.get_mut(to).filter(|peer| peer.stage == Stage::Waiting)?;
        peer.stage = Stage::Copying { base: base.seq };
        Some(base)
    }

    /// The copy of the states ended. If it did not arrive, it is made again when the other end
    /// says that it still needs one.
    pub fn handle_copied(&mut self, to: &NodeId, arrived: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(to) else { return };
        let Stage::Copying { base } = peer.stage else { return };
        let from = if arrived { base } else { Seq(0) };
        peer.catching_up = arrived.then(|| (base, now + self.config.catch_up));
        peer.ask(place(&self.history, from), now);
        self.pump(now);
    }

    /// Whether the turn of this copy lasts: its states are being sent, or it catches up.
    pub fn has_turn(&self, node: &NodeId) -> bool {
        self.peers.get(node).is_some_and(|peer| {
            peer.catching_up.is_some() || matches!(peer.stage, Stage::Copying { .. })
        })
    }

    /// A copy that lacks no more than what is kept for everybody has caught up.
    pub(super) fn note_caught_up(&mut self, node: &NodeId) {
        let Some(peer) = self.peers.get(node).filter(|peer| peer.catching_up.is_some()) else {
            return;
        };
        let near = self.bytes_after(peer.lacks_after()) <= self.config.retain_bytes;
        if let Some(peer) = self.peers.get_mut(node).filter(|_| near) {
            peer.catching_up = None;
        }
    }

    /// Whoever had long enough to catch up lacks entries like others.
    pub(super) fn end_catching_up(&mut self, now: Instant) {
        let over = |peer: &Peer| peer.catching_up.is_some_and(|(_, until)| now >= until);
        let mut ended = false;
        for peer in self.peers.values_mut().filter(|peer| over(peer)) {
            (peer.catching_up, ended) = (None, true);
        }
        if ended {
            self.forget();
        }
    }

    /// Lets go of entries that are more than are kept: of those that nobody lacks fewer are.
    pub(super) fn forget(&mut self) {
        let waits = |peer: &&Peer| peer.stage != Stage::Waiting;
        let fed = || self.peers.values().filter(waits);
        let least = |seq: Option<Seq>| seq.unwrap_or(self.committed);
        let held = least(fed().map(Peer::lacks_after).min());
        let gets_states = |peer: &&Peer| peer.gets_states() || peer.catching_up.is_some();
        let copied = least(fed().filter(gets_states).map(Peer::lacks_after).min());
        let config = &self.config;
        while let Some(Kept { segment: front, .. }) = self.kept.front() {
            let most = match front.last {
                last if last > copied => config.copying_bytes.max(config.retain_bytes),
                last if last > held => config.retain_bytes,
                _ => config.recent_bytes,
            };
            if self.kept_bytes <= most || front.last > self.savable {
                break;
            }
            self.kept_bytes -= front.bytes.len() as u64;
            self.history.forget_below(front.last);
            self.kept.pop_front();
        }
    }
}
