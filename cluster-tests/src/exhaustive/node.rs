//! One node of the search: a disk, and a real standby or the real count of a primary over it.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use mainstay_protocol::control::Claim;
use mainstay_protocol::entry::{Entry, Op, Segment, SegmentWriter};
use mainstay_protocol::id::{BootId, DiskId, Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::mutants::Mutant;
use mainstay_protocol::replication::history::History;
use mainstay_protocol::replication::in_sync::InSync;
use mainstay_protocol::replication::standby::{Effect, Kept, Standby, Ticket};
use mainstay_protocol::replication::{Answer, Position, Timing};
use mainstay_protocol::time::{Instant, LogTime};

/// The one shard.
pub(super) const SHARD: ShardId = ShardId(0);

/// Time stands still: whoever asks whether a copy was waited for long enough hears yes.
pub(super) const TIMING: Timing = Timing {
    promise: std::time::Duration::ZERO,
    lease: std::time::Duration::ZERO,
    patience: std::time::Duration::ZERO,
    propose_again: std::time::Duration::ZERO,
};

/// What a disk holds: the epoch that wrote each entry. `(epoch, place)` names an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Image {
    pub(super) promised: Epoch,
    pub(super) log: Vec<Epoch>,
}

/// Who waits for a write. A standby's ticket is worth something in its life only.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waits {
    Standby(u64, Ticket),
    Primary(Epoch, Seq),
}

/// One write, whole or not at all: its entries replace what is at `keep` and later.
#[derive(Debug, Clone)]
pub(super) struct Write {
    waits: Waits,
    promised: Epoch,
    keep: usize,
    entries: Vec<Epoch>,
}

/// A primary, as far as promotion and fencing go.
#[derive(Debug, Clone, Hash)]
pub(super) struct Leading {
    pub(super) epoch: Epoch,
    pub(super) in_sync: InSync,
    /// The version of the map that it follows.
    pub(super) known: u64,
}

#[derive(Debug, Clone, Hash)]
pub(super) enum Role {
    Down,
    Standby(Box<Standby>),
    Primary(Box<Leading>),
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: NodeId,
    pub(super) disk: DiskId,
    pub(super) boot: BootId,
    /// What a crash leaves.
    pub(super) synced: Image,
    /// What the process sees.
    pub(super) seen: Image,
    pub(super) pending: VecDeque<Write>,
    pub(super) role: Role,
    /// Standbys so far.
    lives: u64,
}

impl Image {
    fn apply(&mut self, write: &Write) {
        self.promised = self.promised.max(write.promised);
        if !write.entries.is_empty() {
            self.log.truncate(write.keep);
            self.log.extend(&write.entries);
        }
    }

    pub(super) fn history(&self) -> History {
        let mut history = History::new(Position::default());
        for (place, epoch) in (1..).zip(&self.log) {
            history.append(*epoch, Seq(place));
        }
        history
    }
}

/// The place right after so many entries of a log.
pub(super) fn position(log: &[Epoch], len: usize) -> Position {
    let epoch = len.checked_sub(1).map_or(Epoch(0), |at| log[at]);
    Position { epoch, seq: Seq(len as u64) }
}

/// Entries of a log as they travel, one segment for each epoch.
pub(super) fn segments(log: &[Epoch], from: usize, upto: usize) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut before = Seq(from as u64);
    for run in log[from..upto].chunk_by(|one, next| one == next) {
        let mut writer = SegmentWriter::new(SHARD, run[0], before);
        for _ in run {
            before = before.next();
            writer.push(&Entry { seq: before, log_time: LogTime(0), op: Op::Noop });
        }
        segments.extend(writer.take());
    }
    segments
}

impl Node {
    pub(super) fn new(at: usize, name: NodeId) -> Self {
        let number = u8::try_from(at).unwrap_or(u8::MAX);
        Self {
            name,
            disk: DiskId::from_bytes([number; 16]),
            boot: BootId(1),
            synced: Image::default(),
            seen: Image::default(),
            pending: VecDeque::new(),
            role: Role::Down,
            lives: 0,
        }
    }

    pub(super) fn claim(&self) -> Claim {
        Claim { node: self.name.clone(), disk: self.disk, boot: self.boot }
    }

    /// A standby from what the process sees of its disk, that has promised `least` in any case.
    pub(super) fn stand_by(&mut self, (least, committed): (Epoch, Seq), mutant: Option<Mutant>) {
        self.lives += 1;
        let (promised, history) = (self.seen.promised, self.seen.history());
        let kept = Kept { promised, history, committed, whole: true };
        let name = (SHARD, self.disk, self.lives);
        let mut standby = Standby::new(name, kept, TIMING, Instant::ZERO);
        if let Some(mutant) = mutant {
            standby.plant(mutant);
        }
        standby.handle_epoch(least);
        self.role = Role::Standby(Box::new(standby));
    }

    fn write(&mut self, write: Write) {
        self.seen.apply(&write);
        self.pending.push_back(write);
    }

    /// The primary of this epoch appends an entry.
    pub(super) fn append_own(&mut self, epoch: Epoch) {
        let keep = self.seen.log.len();
        let waits = Waits::Primary(epoch, Seq(keep as u64 + 1));
        self.write(Write { waits, promised: epoch, keep, entries: vec![epoch] });
    }

    /// Carries out what the standby wants; returns what it answers.
    pub(super) fn carry_out(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while let Role::Standby(standby) = &mut self.role
            && let Some(effect) = standby.poll_effect()
        {
            match effect {
                Effect::Persist { ticket, promised, segments } => {
                    let keep = segments.first().map_or(0, |first| place(first.first) - 1);
                    let each = |it: &Segment| (it.first.0..=it.last.0).map(|_| it.epoch).collect();
                    let entries = segments.iter().flat_map::<Vec<_>, _>(each).collect();
                    let waits = Waits::Standby(self.lives, ticket);
                    self.write(Write { waits, promised, keep, entries });
                }
                Effect::Answer(answer) => answers.push(answer),
                Effect::Commit(_) => {}
                Effect::Discard => unreachable!("nothing is copied here"),
            }
        }
        answers
    }

    /// The oldest write that is not synced is on the disk now: who waits for it.
    pub(super) fn sync(&mut self) -> Option<Waits> {
        let write = self.pending.pop_front()?;
        self.synced.apply(&write);
        Some(write.waits)
    }

    /// The power is cut: the first `landed` writes are there.
    pub(super) fn crash(&mut self, landed: usize) {
        for _ in 0..landed {
            self.sync();
        }
        self.pending.clear();
        self.seen = self.synced.clone();
        self.role = Role::Down;
    }

    /// Another disk, with nothing on it.
    pub(super) fn replace_disk(&mut self) {
        let mut disk = *self.disk.as_bytes();
        disk[0] += 100;
        self.disk = DiskId::from_bytes(disk);
        (self.synced, self.seen) = (Image::default(), Image::default());
    }
}

/// Places count from 1.
pub(super) fn place(seq: Seq) -> usize {
    usize::try_from(seq.0).unwrap_or(usize::MAX)
}

/// What decides how it goes on: numbers of lives and tickets do not.
impl Hash for Node {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.disk, self.boot, &self.synced, &self.role).hash(hasher);
        for write in &self.pending {
            match write.waits {
                Waits::Standby(life, _) => (0_u8, life == self.lives).hash(hasher),
                Waits::Primary(epoch, upto) => (1_u8, epoch, upto).hash(hasher),
            }
            (write.promised, write.keep, &write.entries).hash(hasher);
        }
        self.pending.len().hash(hasher);
    }
}
