//! A standby of one shard: takes the newest primary's entries, and answers when they are on disk.
//!
//! ```text
//!   handle_append --+--> Answer(Fenced | Gap)                        nothing was taken
//!                   +--> Answer(Heard) at once, Persist(ticket) ..> handle_durable --> Answer(Holds)
//! ```
//! What was promised and what was taken are made durable in one write, and only then counts: a
//! standby that forgot a promise would let two primaries write. An answer that was due when a newer
//! epoch came is never sent.
//!
//! An entry that conflicts with a new one, and all after it, go; never one that is known to be
//! committed: that would mean two histories, and the node must stop.

mod shape;
mod showing;

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

use self::shape::check_shape;
use super::history::History;
use super::{Answer, Append, Position, Timing, Told};
use crate::entry::{Segment, SegmentError};
use crate::id::{DiskId, Epoch, Seq, ShardId};
use crate::mutants::{Mutant, Planted};
use crate::time::Instant;

/// Names a write. The standby that a shard has after another one, in the same process, takes no
/// news of writes that the other one wanted: they say nothing of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    life: u64,
    number: u64,
}

/// What a standby wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Make this durable in one write, after all before it, and say so by the ticket.
    Persist {
        /// For [`Standby::handle_durable`].
        ticket: Ticket,
        /// The newest epoch promised: what older primaries write is refused from now on.
        promised: Epoch,
        /// Entries. The first may have a place that others had: those, and all after, are gone.
        segments: Vec<Segment>,
    },
    /// Send this to the primary of its epoch.
    Answer(Answer),
    /// Everything up to here is committed: it may be applied.
    Commit(Seq),
    /// What is here of the shard is part of a copy that will not be finished: forget all of it.
    Discard,
}

/// Why an append was not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It does not fit together. Whoever sent it is broken, as far as this shard goes. Drop it, not the
    /// connection: what others of its shards send on it is sound, and would begin anew each time.
    #[error("an append that does not fit together: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// Its entries do not decode.
    #[error("an append whose entries do not decode")]
    Segment(#[from] SegmentError),
    /// It would take away what is committed: there are two histories of this shard. Stop the node
    /// before it does harm; keep its data directory.
    #[error("an append would replace entry {at:?}, everything up to {committed:?} is committed")]
    BelowCommitted {
        /// The first entry that it would replace.
        at: Seq,
        /// What is committed.
        committed: Seq,
    },
}

/// Why a standby does not become primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotPromoted {
    /// It promised a newer epoch, or this one to somebody else: the map is older than that.
    #[error("epoch {promised:?} is promised")]
    Promised {
        /// The newest epoch promised.
        promised: Epoch,
    },
    /// Its copy is not complete, or was dropped: it cannot be in sync.
    #[error("the copy here is not complete, or was dropped")]
    Incomplete,
}

/// What a standby has, and goes on with after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The newest epoch promised.
    pub promised: Epoch,
    /// The epochs of its log.
    pub history: History,
    /// Everything up to here is known to be committed.
    pub committed: Seq,
    /// What is on disk is no part of a copy that did not arrive whole. If it is, it goes.
    pub whole: bool,
}

/// What a standby leaves to the primary that it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// The epochs of its log.
    pub history: History,
    /// Everything up to here is known to be committed.
    pub committed: Seq,
    /// The promise to the primary before ends then: nobody is answered earlier.
    pub serve_from: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    number: u64,
    epoch: Epoch,
    upto: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Copying {
    epoch: Epoch,
    ticket: Ticket,
}

/// A standby of one shard.
#[derive(Debug, Clone)]
pub struct Standby {
    shard: ShardId,
    disk: DiskId,
    life: u64,
    timing: Timing,
    promised: Epoch,
    /// The newest version of the shard's record that a primary went by.
    heard: u64,
    /// The newest promise that was given to the disk.
    written: Epoch,
    history: History,
    committed: Seq,
    promise_until: Instant,
    next_ticket: u64,
    waiting: VecDeque<Waiting>,
    /// The copy that is under way.
    copying: Option<Copying>,
    /// What was here is gone, and nothing has come in its place: this is no copy at all.
    void: bool,
    effects: VecDeque<Effect>,
    planted: Planted,
}

impl Standby {
    /// A standby with what its disk has of the shard. It may have promised something that it does
    /// not remember, so it keeps a promise from now on. `life` is a number that no standby of the
    /// shard had before in this process.
    pub fn new(
        (shard, disk, life): (ShardId, DiskId, u64),
        kept: Kept,
        timing: Timing,
        now: Instant,
    ) -> Self {
        let Kept { promised, history, committed, whole } = kept;
        let mut this = Self {
            shard,
            disk,
            life,
            timing,
            promised,
            heard: 0,
            written: promised,
            history,
            committed,
            promise_until: now + timing.promise,
            next_ticket: 1,
            waiting: VecDeque::new(),
            copying: None,
            void: false,
            effects: VecDeque::new(),
            planted: Planted::default(),
        };
        if !whole {
            this.discard();
        }
        this
    }

    /// Breaks a rule on purpose, for the simulator.
    #[cfg(feature = "mutants")]
    pub fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
        if mutant == Mutant::NoPromiseAfterStart {
            self.promise_until = Instant::ZERO;
        }
    }

    /// What to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The map says that the shard is in this epoch, or a later one, and that somebody else is its
    /// primary: nothing of an earlier one is taken any more. To be called before the first append.
    ///
    /// A node that was made primary may have sent entries and died before its disk had its promise.
    /// Started again, it must not take the side of the primary before: what that one commits by it
    /// would meet those entries, which are still on their way.
    pub fn handle_epoch(&mut self, epoch: Epoch) {
        self.promised = self.promised.max(epoch);
    }

    /// What was here was dropped before this standby began: whoever counts on it is mistaken.
    pub const fn note_dropped(&mut self) {
        self.void = true;
    }

    /// Whether a record of this version may end the following: one that wants no copy here. A primary
    /// may know a newer one, by which it counts on what was acknowledged here: a node that stood
    /// still sees maps of the past for a while, and dropped what it had just acknowledged.
    pub const fn may_leave(&self, version: u64) -> bool {
        version >= self.heard
    }

    /// Entries, or a heartbeat, of who says that it is the primary. Its segments were read when
    /// they came in: their places are what they say.
    ///
    /// # Errors
    /// [`AppendError`] by what is wrong; nothing was changed.
    pub fn handle_append(&mut self, append: &Append, now: Instant) -> Result<(), AppendError> {
        check_shape(self.shard, append)?;
        if append.epoch < self.promised && !self.planted.has(Mutant::NoFencing) {
            self.answer(append.epoch, Told::Fenced { promised: self.promised });
            return Ok(());
        }
        let agrees = self.agrees(append);
        let (new, cut) = if agrees { self.find_new(append)? } else { (Vec::new(), None) };
        self.promised = self.promised.max(append.epoch);
        self.heard = self.heard.max(append.version);
        if append.lease {
            self.promise_until = self.promise_until.max(now + self.timing.promise);
        }
        let heard = Told::Heard { sent_at: append.sent_at, promised: append.lease };
        self.answer(append.epoch, heard);
        match self.copying.map(|copy| copy.epoch) {
            Some(by) if by == append.epoch => return Ok(()),
            Some(_) => self.discard(),
            None if agrees => {
                self.take(append, new, cut);
                return Ok(());
            }
            None => {}
        }
        let last = self.history.agreement(append.prev).unwrap_or_else(|| self.history.base());
        self.answer(append.epoch, Told::Gap { sent_at: append.sent_at, last });
        Ok(())
    }

    /// Whether what is here goes on where the append begins. What lies before the base is
    /// committed, so that the primary has it too.
    fn agrees(&self, append: &Append) -> bool {
        let prev = append.prev;
        let epoch = self.history.epoch_at(prev.seq);
        prev.seq < self.history.base().seq
            || epoch == Some(prev.epoch)
            || epoch.is_some() && self.planted.has(Mutant::NoEpochInMatch)
    }

    /// The segments that are not here, cut to what is new, and the place from which on what is
    /// here has to go.
    fn find_new(&self, append: &Append) -> Result<(Vec<Segment>, Option<Seq>), AppendError> {
        let mut new = Vec::new();
        let mut cut = None;
        let base = self.history.base();
        for segment in &append.segments {
            // What it has at the base is older than what is here, and committed.
            if segment.last > base.seq && segment.epoch < base.epoch {
                let (at, committed) = (base.seq, self.committed.max(base.seq));
                return Err(AppendError::BelowCommitted { at, committed });
            }
            // A newer primary begins after all that was committed, unless it lacks some of it.
            if segment.epoch > base.epoch && segment.first <= base.seq {
                let (at, committed) = (segment.first, self.committed.max(base.seq));
                return Err(AppendError::BelowCommitted { at, committed });
            }
            if cut.is_some() || segment.first > self.history.last().seq {
                new.push(segment.clone());
                continue;
            }
            let first = segment.first.max(base.seq.next());
            let conflict = (first.0..=segment.last.0)
                .map(Seq)
                .find(|seq| self.history.epoch_at(*seq) != Some(segment.epoch));
            let Some(at) = conflict else { continue };
            if at <= self.history.last().seq {
                if at <= self.committed && !self.planted.has(Mutant::NoEpochInMatch) {
                    return Err(AppendError::BelowCommitted { at, committed: self.committed });
                }
                if self.planted.has(Mutant::AppendNoTruncate) {
                    continue;
                }
                cut = Some(at);
            }
            new.extend(segment.from(at)?);
        }
        Ok((new, cut))
    }

    fn take(&mut self, append: &Append, new: Vec<Segment>, cut: Option<Seq>) {
        if let Some(at) = cut.filter(|at| *at > self.history.base().seq) {
            self.history.truncate_from(at);
        }
        for segment in &new {
            self.history.append(segment.epoch, segment.last);
        }
        // Nothing is missing below: what is here begins at the beginning.
        self.void &= new.is_empty();
        let upto = append.last();
        let known = if self.planted.has(Mutant::CommitBeyondMatch) {
            append.committed.min(self.history.last().seq)
        } else {
            append.committed.min(upto)
        };
        if known > self.committed {
            self.committed = known;
            self.effects.push_back(Effect::Commit(known));
        }
        let epoch = append.epoch;
        let forgets = self.planted.has(Mutant::PromiseNotPersisted);
        if !new.is_empty() || self.written < self.promised && !forgets {
            let ticket = self.ticket();
            let promised = if forgets { self.written } else { self.promised };
            self.written = promised;
            self.effects.push_back(Effect::Persist { ticket, promised, segments: new });
            self.waiting.push_back(Waiting { number: ticket.number, epoch, upto });
            if self.planted.has(Mutant::HoldsBeforeDurable) {
                self.holds(epoch, upto);
            }
        } else if let Some(last) = self.waiting.back_mut().filter(|last| last.epoch == epoch) {
            last.upto = last.upto.max(upto);
        } else {
            self.holds(epoch, upto);
        }
    }

    /// A write is on disk, and all before it.
    pub fn handle_durable(&mut self, ticket: Ticket) {
        let mut last = None;
        let mine = ticket.life == self.life;
        while self.waiting.front().is_some_and(|front| mine && front.number <= ticket.number) {
            last = self.waiting.pop_front();
        }
        if let Some(Waiting { epoch, upto, .. }) = last
            && (epoch == self.promised || self.planted.has(Mutant::StaleDeferredAck))
        {
            self.holds(epoch, upto);
        }
    }

    /// The primary of this epoch sends a copy of everything up to `base`: what is here of the shard
    /// is replaced. The ticket names the copy, for its end. `None` when that primary is deposed, or
    /// everything up to there is here: then what is here may be acknowledged beyond it, and stays.
    pub fn handle_copy_begins(&mut self, epoch: Epoch, base: Position) -> Option<Ticket> {
        let here = base.seq <= self.history.base().seq
            || self.history.epoch_at(base.seq) == Some(base.epoch);
        let needless = here && self.copying.is_none() && base.seq > Seq(0);
        if epoch < self.promised || base.seq < self.committed || needless {
            return None;
        }
        self.promised = epoch;
        self.waiting.clear();
        self.history = History::new(base);
        let ticket = self.ticket();
        self.copying = Some(Copying { epoch, ticket });
        Some(ticket)
    }

    const fn ticket(&mut self) -> Ticket {
        let number = self.next_ticket;
        self.next_ticket += 1;
        Ticket { life: self.life, number }
    }

    /// The copy is whole and durable: from here on this is a standby like others. `false` when it
    /// was given up meanwhile, or another one was begun.
    pub fn handle_copy_ends(&mut self, ticket: Ticket) -> bool {
        let Some(Copying { epoch, .. }) = self.copying.filter(|copy| copy.ticket == ticket) else {
            return false;
        };
        if epoch != self.promised {
            return false;
        }
        self.written = self.written.max(epoch);
        (self.copying, self.void) = (None, false);
        let base = self.history.base().seq;
        if base > self.committed {
            self.committed = base;
            self.effects.push_back(Effect::Commit(base));
        }
        true
    }

    /// The copy that was under way broke off: what is left of it goes, so that its primary hears that
    /// another one is needed. Of a copy that was given up before, nothing is left.
    pub fn handle_copy_broke(&mut self, ticket: Ticket) {
        if self.copying.is_some_and(|copy| copy.ticket == ticket) {
            self.discard();
        }
    }

    fn discard(&mut self) {
        (self.copying, self.void) = (None, true);
        self.waiting.clear();
        self.history = History::new(Position::default());
        self.committed = Seq(0);
        self.effects.push_back(Effect::Discard);
    }

    /// Becomes the primary of an epoch that the map gave to this node.
    ///
    /// # Errors
    /// [`NotPromoted`]; it stays what it is.
    pub fn promote(&self, epoch: Epoch) -> Result<Succession, NotPromoted> {
        if epoch <= self.promised {
            return Err(NotPromoted::Promised { promised: self.promised });
        }
        if self.copying.is_some() || self.void {
            return Err(NotPromoted::Incomplete);
        }
        let waits = !self.planted.has(Mutant::NoWaitAtPromotion);
        Ok(Succession {
            history: self.history.clone(),
            committed: self.committed,
            serve_from: if waits { self.promise_until } else { Instant::ZERO },
        })
    }

    fn holds(&mut self, epoch: Epoch, upto: Seq) {
        self.answer(epoch, Told::Holds { upto, version: self.heard });
    }

    fn answer(&mut self, epoch: Epoch, what: Told) {
        let (shard, disk) = (self.shard, self.disk);
        self.effects.push_back(Effect::Answer(Answer { shard, epoch, disk, what }));
    }

    /// The newest epoch promised.
    pub const fn promised(&self) -> Epoch {
        self.promised
    }

    /// The last entry here.
    pub fn last(&self) -> Position {
        self.history.last()
    }

    /// Everything up to here is known to be committed.
    pub const fn committed(&self) -> Seq {
        self.committed
    }

    /// What is here is saved up to `seq`, and committed: it is not needed as entries any more.
    pub fn forget_below(&mut self, seq: Seq) {
        self.history.forget_below(seq.min(self.committed));
    }
}

/// What decides how it goes on. Tickets are left out: their numbers only say which write is which,
/// and those that wait are in order.
impl Hash for Standby {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let waiting: Vec<_> = self.waiting.iter().map(|it| (it.epoch, it.upto)).collect();
        let copying = (self.void, self.copying.map(|copy| copy.epoch));
        let log = (&self.history, self.committed);
        let promises = (self.promised, self.written, self.promise_until);
        (self.shard, self.disk, promises, log, waiting, copying).hash(hasher);
    }
}

#[cfg(test)]
mod tests;
