//! The simulated disk: what is synced survives, of the rest a part may have landed.

use std::collections::VecDeque;

use mainstay_protocol::entry::{Segment, SegmentWriter};
use mainstay_protocol::id::{DiskId, Epoch, Seq};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::history::History;
use mainstay_protocol::replication::standby;

use crate::sim::cluster::{SHARD, Stored};

/// What a disk holds of the shard. Place `n` of the log is seq `n + 1`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// The newest epoch promised.
    pub promised: Epoch,
    /// The entries.
    pub log: Vec<Stored>,
    /// A copy was begun and is not whole.
    pub incomplete: bool,
    /// What was here was removed, and nothing has come since.
    pub dropped: bool,
}

/// One write, whole or not at all.
#[derive(Debug, Clone)]
pub enum Write {
    /// Entries, which replace what has their places or later ones, and a promise.
    Append {
        /// The promise.
        promised: Epoch,
        /// The entries.
        segments: Vec<Segment>,
    },
    /// A copy is about to replace everything.
    CopyBegins {
        /// The promise.
        promised: Epoch,
    },
    /// The copy, whole.
    Copied {
        /// Its entries.
        log: Vec<Stored>,
    },
    /// Everything goes.
    Discard,
}

/// Who waits for a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticket {
    /// A standby.
    Standby(standby::Ticket),
    /// The primary of an epoch: its entries up to a place.
    Primary(Epoch, Seq),
    /// The standby that the primary of an epoch copies to.
    Copied(Epoch, standby::Ticket),
    /// Nobody.
    None,
}

/// A data directory.
#[derive(Debug)]
pub struct Disk {
    /// Its name, for ever.
    pub id: DiskId,
    /// What a power cut leaves.
    pub synced: Image,
    /// What the process sees.
    pub seen: Image,
    pending: VecDeque<(Ticket, Write)>,
    /// Writes that the sync under way covers; 0 for none.
    syncing: usize,
}

impl Image {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Append { promised, segments } => {
                self.promised = self.promised.max(*promised);
                self.dropped &= segments.is_empty();
                for segment in segments {
                    let keep = usize::try_from(segment.first.0 - 1).unwrap_or(usize::MAX);
                    self.log.truncate(keep);
                    let entries = segment.entries().expect("a simulated segment decodes");
                    let epoch = segment.epoch;
                    self.log.extend(entries.into_iter().map(|entry| Stored { epoch, entry }));
                }
            }
            Write::CopyBegins { promised } => {
                self.promised = self.promised.max(*promised);
                self.incomplete = true;
                self.log.clear();
            }
            Write::Copied { log } => {
                self.log.clone_from(log);
                (self.incomplete, self.dropped) = (false, false);
            }
            Write::Discard => {
                self.log.clear();
                (self.incomplete, self.dropped) = (false, true);
            }
        }
    }

    /// The last entry.
    pub fn last(&self) -> Position {
        self.position(self.log.len())
    }

    fn position(&self, len: usize) -> Position {
        let epoch = len.checked_sub(1).map_or(Epoch(0), |at| self.log[at].epoch);
        Position { epoch, seq: Seq(len as u64) }
    }

    /// The epochs of the log, from some place on.
    pub fn history(&self, base: Seq) -> History {
        let base = usize::try_from(base.0).unwrap_or(usize::MAX).min(self.log.len());
        let mut history = History::new(self.position(base));
        for stored in &self.log[base..] {
            history.append(stored.epoch, stored.entry.seq);
        }
        history
    }

    /// The entries after `from`, cut where the epoch changes and after every `most`.
    pub fn segments(&self, from: Seq, most: usize) -> Vec<Segment> {
        let from = usize::try_from(from.0).unwrap_or(usize::MAX).min(self.log.len());
        let mut segments = Vec::new();
        for run in self.log[from..].chunk_by(|one, next| one.epoch == next.epoch) {
            for part in run.chunks(most) {
                let before = Seq(part[0].entry.seq.0 - 1);
                let mut writer = SegmentWriter::new(SHARD, part[0].epoch, before);
                for stored in part {
                    writer.push(&stored.entry);
                }
                segments.extend(writer.take());
            }
        }
        segments
    }
}

impl Disk {
    /// An empty data directory.
    pub fn new(id: DiskId) -> Self {
        Self {
            id,
            synced: Image::default(),
            seen: Image::default(),
            pending: VecDeque::new(),
            syncing: 0,
        }
    }

    /// Writes without syncing.
    pub fn write(&mut self, ticket: Ticket, write: Write) {
        self.seen.apply(&write);
        self.pending.push_back((ticket, write));
    }

    /// Begins a sync of everything written so far; `false` when one is under way, or needless.
    pub fn begin_sync(&mut self) -> bool {
        let begins = self.syncing == 0 && !self.pending.is_empty();
        if begins {
            self.syncing = self.pending.len();
        }
        begins
    }

    /// The sync ended: who waited for what it covered.
    pub fn end_sync(&mut self) -> Vec<Ticket> {
        let covered = std::mem::take(&mut self.syncing).min(self.pending.len());
        self.land(covered)
    }

    fn land(&mut self, count: usize) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        for (ticket, write) in self.pending.drain(..count) {
            self.synced.apply(&write);
            tickets.push(ticket);
        }
        tickets
    }

    /// The power is cut: the first `landed` of the writes that were not synced are there, as far
    /// as there are so many.
    pub fn cut_power(&mut self, landed: usize) {
        let landed = landed.min(self.pending.len());
        self.land(landed);
        self.pending.clear();
        self.syncing = 0;
        self.seen = self.synced.clone();
    }
}
