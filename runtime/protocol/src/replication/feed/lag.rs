//! How far the copies of a shard are behind, as those see it who look after a cluster. Nothing is
//! decided by it.

use std::time::Duration;

use super::Feed;
use crate::entry::Segment;
use crate::id::{NodeId, Seq};
use crate::time::Instant;

/// A segment that is kept for those who lack it.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) segment: Segment,
    /// When it was appended; `None` when that was before this epoch.
    appended_at: Option<Instant>,
    /// Bytes of all segments up to this one, itself included.
    upto_bytes: u64,
}

/// What one copy is not known to hold, of what was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lag {
    /// Entries. Of a copy that said nothing yet: those that are kept.
    pub entries: u64,
    /// Bytes of them, as far as they are kept.
    pub bytes: u64,
    /// How long the oldest of them that is kept, and is of this epoch, has been waiting.
    pub age: Duration,
}

impl Lag {
    /// The greater of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            entries: self.entries.max(other.entries),
            bytes: self.bytes.max(other.bytes),
            age: self.age.max(other.age),
        }
    }
}

impl Feed {
    pub(super) fn keep(&mut self, segment: Segment, appended_at: Option<Instant>) {
        let bytes = segment.bytes.len() as u64;
        self.kept_bytes += bytes;
        self.fed_bytes += bytes;
        self.kept.push_back(Kept { segment, appended_at, upto_bytes: self.fed_bytes });
    }

    /// How far each other copy is behind. Takes a search in what is kept for each, no walk.
    pub fn lags(&self, now: Instant) -> impl Iterator<Item = (&NodeId, Lag)> {
        self.peers.iter().map(move |(node, peer)| (node, self.lag(peer.matched, now)))
    }

    /// Bytes of what is kept of entries after this one.
    pub(super) fn bytes_after(&self, seq: Seq) -> u64 {
        let first = self.kept.partition_point(|kept| kept.segment.last <= seq);
        let oldest = self.kept.get(first);
        oldest.map_or(0, |oldest| {
            self.fed_bytes - oldest.upto_bytes + oldest.segment.bytes.len() as u64
        })
    }

    fn lag(&self, matched: Seq, now: Instant) -> Lag {
        let last = self.history.last().seq;
        let first = self.kept.partition_point(|kept| kept.segment.last <= matched);
        let Some(oldest) = self.kept.get(first) else {
            let from = if matched == Seq(0) { self.history.base().seq } else { matched };
            return Lag { entries: last.0.saturating_sub(from.0), ..Lag::default() };
        };
        let from = if matched == Seq(0) { Seq(oldest.segment.first.0 - 1) } else { matched };
        // The epoch begins at one place of what is kept, and all before it has no time.
        let timed = self.kept.partition_point(|kept| kept.appended_at.is_none()).max(first);
        let since = self.kept.get(timed).and_then(|kept| kept.appended_at);
        Lag {
            entries: last.0.saturating_sub(from.0),
            bytes: self.bytes_after(matched),
            age: since.map_or(Duration::ZERO, |since| now.saturating_since(since)),
        }
    }
}
