//! One shard of this node, in this room: opened, followed, or led.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mainstay_protocol::entry::{Entry, Segment, SegmentError};
use mainstay_protocol::id::{Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::feed::Feed;
use mainstay_protocol::replication::history::History;
use mainstay_protocol::replication::standby::{self, AppendError, Effect, Standby};
use mainstay_protocol::time::Instant;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::looking::CopyId;
use super::shadow::{Differs, Shadow, Start, Wanted};
use super::writes::{BatchNo, Writes};
use crate::shard::commit::Saving;
use crate::storage::{Recovered, RecoveredShard, StorageError, StoredState};
use crate::transport::replication::AnswerSender;

/// What is kept of a shard that is not opened: what its next standby goes on from.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The newest epoch promised.
    pub promised: Epoch,
    /// The epochs of its log, from what the tables hold on.
    pub history: History,
    /// It was here and was dropped, and nothing has come since.
    pub dropped: bool,
}

impl Found {
    /// What a start found of every shard.
    pub fn of(recovered: &Recovered) -> BTreeMap<ShardId, Self> {
        let each = recovered.shards.iter();
        let found = |found: &RecoveredShard| Self {
            promised: found.promised,
            history: found.history.clone(),
            dropped: found.dropped,
        };
        each.map(|(shard, it)| (*shard, found(it))).collect()
    }

    /// Whether anything of its states or log is here.
    pub(super) fn is_stored(&self) -> bool {
        self.history.last().seq > Seq(0)
    }
}

/// One shard.
#[derive(Debug)]
pub(super) enum Part {
    /// What is here is being read.
    Opening(Opening),
    /// A standby.
    Following(Box<Following>),
    /// Its lane has the primary, or gets it.
    Leading(Box<Leading>),
    /// What is here is being removed.
    Dropping(Found),
}

/// A shard whose tables or journal are being read.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) life: u64,
    pub(super) found: Found,
    /// Everything up to here is known to be committed.
    pub(super) committed: Seq,
    /// It could not be read: the next tick tries again.
    pub(super) failed: bool,
}

/// What was read of a shard.
#[derive(Debug)]
pub struct Opened {
    /// Its states.
    pub start: Start,
    /// The segments after them.
    pub tail: Vec<Segment>,
}

/// A shard that another node is the primary of.
#[derive(Debug)]
pub(super) struct Following {
    pub(super) shard: ShardId,
    pub(super) life: u64,
    pub(super) standby: Standby,
    pub(super) shadow: Shadow,
    /// How often its states were replaced.
    states: u64,
    /// The way to the primary that was heard last.
    way: Option<AnswerSender>,
    /// Batches with segments that are not durable, and the last entry of each that is still here.
    unwritten: VecDeque<(BatchNo, Seq)>,
    /// Everything up to here is known to be committed.
    committed: Seq,
    /// Everything up to here is on this disk.
    durable: Seq,
    /// The save under way.
    pub(super) saving: Option<Arc<Saving>>,
    /// Nothing is taken any more: it becomes primary in this epoch.
    pub(super) promoting: Option<Epoch>,
    /// Nothing is taken before this is done, which begins once everything is durable.
    pub(super) next: Option<Next>,
}

/// What waits until nothing of a shard is on its way to the journal.
#[derive(Debug)]
pub(super) enum Next {
    /// What is here is removed; the shard is followed from nothing.
    Discard,
    /// What is here is removed: the shard is not wanted any more.
    Leave,
    /// A copy may begin.
    Copy(standby::Ticket, oneshot::Sender<Option<standby::Ticket>>),
    /// It has begun: what is here is being removed.
    Removing,
}

/// A shard that this node is the primary of.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) epoch: Epoch,
    pub(super) feed: Feed,
    /// The turns of copies of the states, until who got them has caught up.
    pub(super) turns: BTreeMap<NodeId, Arc<OwnedSemaphorePermit>>,
    /// Copies that wait until everything up to their base is saved.
    pub(super) wanting: BTreeMap<NodeId, Position>,
}

/// Why a standby cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Its primary's appends do not fit.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Its states do not fit its log.
    #[error("this copy differs from its primary's: {0}")]
    Differs(#[from] Differs),
    /// The journal does not have the log that was led here.
    #[error("the journal ends at {found:?}, the log at {last:?}")]
    Log {
        /// What the journal has.
        found: Seq,
        /// What was led.
        last: Seq,
    },
    /// Its log does not decode any more.
    #[error("its log does not decode any more")]
    Segment(#[from] SegmentError),
}

impl Following {
    pub(super) fn new(
        (shard, life): (ShardId, u64),
        standby: Standby,
        shadow: Shadow,
        (committed, durable): (Seq, Seq),
    ) -> Self {
        Self {
            shard,
            life,
            standby,
            shadow,
            states: 0,
            way: None,
            unwritten: VecDeque::new(),
            committed,
            durable,
            saving: None,
            promoting: None,
            next: None,
        }
    }

    /// Whether it takes appends now. What it does not take is sent again.
    pub(super) const fn takes(&self) -> bool {
        self.promoting.is_none() && self.next.is_none()
    }

    /// Names what is here, until it is replaced.
    pub(super) const fn id(&self) -> CopyId {
        CopyId { life: self.life, states: self.states }
    }

    /// An append of who says that it is the primary.
    pub(super) fn handle_append(
        &mut self,
        writes: &mut Writes,
        arrived: mainstay_protocol::replication::wire::Arrived,
        way: &AnswerSender,
        now: Instant,
    ) -> Result<(), Broken> {
        self.way = Some(way.clone());
        self.standby.handle_append(&arrived.append, now)?;
        self.carry_out(writes, arrived.entries)
    }

    /// Carries out what the standby wants. `entries` are those of the append that it was given.
    pub(super) fn carry_out(
        &mut self,
        writes: &mut Writes,
        mut entries: Vec<Entry>,
    ) -> Result<(), Broken> {
        while let Some(effect) = self.standby.poll_effect() {
            match effect {
                Effect::Persist { ticket, promised, segments } => {
                    if let Some(first) = segments.first().map(|segment| segment.first) {
                        entries.retain(|entry| entry.seq >= first);
                        self.hold(first, segments.clone(), std::mem::take(&mut entries))?;
                    }
                    let last = segments.last().map(|segment| segment.last);
                    let batch = writes.add(self.shard, (promised, segments), Some(ticket));
                    self.unwritten.push_back((batch, last.unwrap_or(Seq(0))));
                }
                Effect::Answer(answer) => {
                    if let Some(way) = &self.way {
                        way.send(answer);
                    }
                }
                Effect::Commit(upto) => self.committed = self.committed.max(upto),
                Effect::Discard => self.next = Some(Next::Discard),
            }
        }
        self.apply()
    }

    /// Segments that are here from now on; what had their places is gone.
    fn hold(
        &mut self,
        first: Seq,
        segments: Vec<Segment>,
        entries: Vec<Entry>,
    ) -> Result<(), SegmentError> {
        let before = Seq(first.0 - 1);
        self.durable = self.durable.min(before);
        for (_, last) in &mut self.unwritten {
            *last = (*last).min(before);
        }
        self.shadow.hold(segments, entries)
    }

    /// Applies what is committed and on this disk.
    pub(super) fn apply(&mut self) -> Result<(), Broken> {
        Ok(self.shadow.commit(self.committed.min(self.durable))?)
    }

    /// A batch is durable.
    pub(super) fn handle_durable(
        &mut self,
        writes: &mut Writes,
        (batch, ticket): (BatchNo, Option<standby::Ticket>),
    ) -> Result<(), Broken> {
        while let Some((_, last)) = self.unwritten.front().filter(|(number, _)| *number <= batch) {
            self.durable = self.durable.max(*last);
            self.unwritten.pop_front();
        }
        if let Some(ticket) = ticket {
            self.standby.handle_durable(ticket);
        }
        self.carry_out(writes, Vec::new())
    }

    /// What is to be done now that nothing of the shard is on its way to the journal.
    pub(super) fn take_next(&mut self) -> Option<Next> {
        let waits = !self.unwritten.is_empty() || matches!(self.next, None | Some(Next::Removing));
        if waits { None } else { self.next.replace(Next::Removing) }
    }

    /// A promise that goes to the journal alone.
    pub(super) fn note_write(&mut self, batch: BatchNo) {
        self.unwritten.push_back((batch, Seq(0)));
    }

    /// Everything here is replaced.
    pub(super) fn replace(&mut self, shadow: Shadow, applied: Seq) {
        self.shadow = shadow;
        self.states += 1;
        self.saving = None;
        (self.committed, self.durable) = (applied, applied);
    }

    /// A base was read, or could not be.
    pub(super) fn handle_read(
        &mut self,
        wanted: Wanted,
        read: Result<Option<StoredState>, StorageError>,
    ) -> Result<(), Broken> {
        match read {
            Ok(stored) => self.shadow.handle_read(wanted, stored)?,
            // What does not match its checksum is older than any row.
            Err(StorageError::Corrupt { .. }) if self.shadow.is_replacing(&wanted.0) => {
                self.shadow.handle_read(wanted, None)?;
            }
            Err(_) => self.shadow.handle_read_failed(&wanted),
        }
        Ok(())
    }
}

impl Part {
    pub(super) fn following(&mut self) -> Option<&mut Following> {
        match self {
            Self::Following(following) => Some(following),
            Self::Opening(_) | Self::Leading(_) | Self::Dropping(_) => None,
        }
    }

    pub(super) fn leading(&mut self) -> Option<&mut Leading> {
        match self {
            Self::Leading(leading) => Some(leading),
            Self::Opening(_) | Self::Following(_) | Self::Dropping(_) => None,
        }
    }
}
