//! A primary and its other copies, at the primary: what its lane tells those who feed them, and what
//! it hears. How far each is and what that lets out is decided in [`Primary`]'s rules.
//!
//! [`Primary`]: mainstay_protocol::shard::primary::Primary

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{ClusterState, Command, Expect};
use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{DiskId, Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::time::{Instant, LogTime};

use super::ascent::Ascent;
use super::{Records, Serving};
use crate::clock;
use crate::lane::env::Env;

/// Promises are asked for as long after a reply that needs a lease.
const LEASES_FOR: Duration = Duration::from_millis(200);
/// A round that is not answered is asked for again after this time.
const ROUND_EVERY: Duration = Duration::from_millis(10);

/// What a lane tells those who feed the other copies of its shards.
#[derive(Debug)]
pub enum Told {
    /// How a shard goes on.
    Goes(Goes),
    /// Everything up to here is in the tables.
    Saved {
        /// The shard.
        shard: ShardId,
        /// In which epoch.
        epoch: Epoch,
        /// Up to where.
        upto: Position,
        /// The log time there, or later.
        log_time: LogTime,
    },
    /// It is not served here any more, and the journal has what was appended.
    Left {
        /// The shard.
        shard: ShardId,
        /// What the primary leaves. What was not committed is in the journal only.
        records: Box<Records>,
    },
}

/// How a shard goes on, at its primary.
#[derive(Debug)]
pub struct Goes {
    /// The shard.
    pub shard: ShardId,
    /// In which epoch.
    pub epoch: Epoch,
    /// What was appended; the journal gets the same.
    pub segments: Vec<Segment>,
    /// Everything up to here is committed.
    pub committed: Seq,
    /// Everything up to here can be saved: the watermark, unless that is within a journal commit.
    pub savable: Seq,
    /// Who holds copies, or should, by the record that its primary goes by now.
    pub copies: Option<Copies>,
    /// Promises are wanted until then.
    pub leases: Option<Instant>,
    /// Replies wait until everybody has answered.
    pub round: bool,
}

/// What another copy said, in this epoch.
#[derive(Debug)]
pub struct Heard {
    /// The shard.
    pub shard: ShardId,
    /// In which epoch.
    pub epoch: Epoch,
    /// What.
    pub what: Word,
}

/// A word of another copy.
#[derive(Debug)]
pub enum Word {
    /// It holds everything up to here, and has heard of this version of the shard's record.
    Holds(NodeId, DiskId, (u64, Seq)),
    /// It heard what was sent then; and it keeps a promise.
    Heard(NodeId, DiskId, (Instant, bool)),
    /// It lost what it had acknowledged: it holds this at most.
    Regressed(NodeId, DiskId, Seq),
    /// There is a newer primary.
    Deposed(Epoch),
    /// Another one gets the states: everything up to here, which can be saved, is to be.
    WantsSaved(Seq),
}

/// A standby that was promoted: what its lane goes on from.
#[derive(Debug)]
pub struct Promoted {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that the map gave to this node.
    pub epoch: Epoch,
    /// Nobody is answered before.
    pub serve_from: Instant,
    /// What is here.
    pub records: Records,
    /// The map that says so; the lane may not have seen it yet.
    pub map: Arc<ClusterState>,
    /// Why, and since when; for those who look.
    pub ascent: Option<Ascent>,
}

/// What a primary with other copies remembers of what it told.
#[derive(Debug, Default)]
pub(crate) struct Feeding {
    /// Whoever feeds goes by the same record as the primary: what it says counts by that.
    copies_told: bool,
    /// The watermark, and what can be saved.
    committed: (Seq, Seq),
    leases_until: Instant,
    round_at: Instant,
    /// A query came since promises were asked for last.
    queried: bool,
    /// Somebody waits until everything up to here is saved.
    wants_saved: Option<Seq>,
    /// The promotion, until the shard answers.
    ascent: Option<Ascent>,
}

impl Feeding {
    /// A primary that was just promoted.
    pub(crate) fn new(ascent: Option<Ascent>) -> Self {
        Self { ascent, ..Self::default() }
    }
}

impl Serving {
    /// What is to be told of this shard, if there is something: new segments, the watermark, and
    /// whether replies wait for other copies.
    pub(crate) fn take_told(&mut self, segments: &[Segment], now: Instant) -> Option<Told> {
        self.note_active(now);
        let feeding = self.feeding.as_mut()?;
        let (committed, savable) = (self.primary.watermark(), self.dirty.settled().seq);
        let segments: Vec<_> =
            segments.iter().filter(|segment| segment.shard == self.shard).cloned().collect();
        let waits = self.primary.wants_round();
        // One round at a time, for all replies that wait; again if it is not answered for a while.
        let answered = self.primary.in_sync().is_confirmed_since(feeding.round_at);
        let round = waits && (answered || now >= feeding.round_at + ROUND_EVERY);
        let shows = waits || feeding.queried;
        let renews = shows && now + LEASES_FOR / 2 >= feeding.leases_until;
        let goes_on = (committed, savable) != feeding.committed || !feeding.copies_told;
        if segments.is_empty() && !goes_on && !round && !renews {
            return None;
        }
        feeding.committed = (committed, savable);
        let told = std::mem::replace(&mut feeding.copies_told, true);
        let copies = (!told).then(|| self.primary.in_sync().said().clone());
        if round {
            feeding.round_at = now;
        }
        let leases = renews.then_some(now + LEASES_FOR);
        if let Some(until) = leases {
            (feeding.leases_until, feeding.queried) = (until, false);
        }
        let (shard, epoch) = (self.shard, self.epoch);
        let goes = Goes { shard, epoch, segments, committed, savable, copies, leases, round };
        Some(Told::Goes(goes))
    }

    /// Says how long the promotion took, once the shard answers.
    fn note_active(&mut self, now: Instant) {
        let Some(feeding) = &mut self.feeding else { return };
        if feeding.ascent.is_some()
            && self.primary.is_active()
            && let Some(ascent) = feeding.ascent.take()
        {
            ascent.serves(now);
        }
    }

    /// A query comes in: its reply shows what a newer primary may have changed.
    pub(crate) fn note_query(&mut self) {
        if let Some(feeding) = &mut self.feeding {
            self.touched |= !feeding.queried;
            feeding.queried = true;
        }
    }

    /// Another copy said something of this epoch. `false` when there is a newer primary: step down.
    pub(crate) fn handle_heard(&mut self, env: &Env, what: Word, now: Instant) -> bool {
        // What does not count is not counted; that is all there is to do about it.
        match what {
            Word::Holds(node, disk, held) => drop(self.primary.handle_holds(&node, disk, held)),
            Word::Heard(node, disk, heard) => {
                drop(self.primary.handle_heard(&node, disk, heard, now));
            }
            Word::Regressed(node, disk, upto) => self.primary.handle_regressed(&node, disk, upto),
            Word::Deposed(_) => return false,
            Word::WantsSaved(upto) => {
                if let Some(feeding) = &mut self.feeding {
                    feeding.wants_saved = feeding.wants_saved.max(Some(upto));
                }
            }
        }
        self.settle_committed(env);
        self.touched = true;
        true
    }

    /// What the map says of the copies.
    pub(crate) fn handle_copies(&mut self, env: &Env, copies: Copies) {
        if let Some(feeding) = &mut self.feeding {
            feeding.copies_told &= *self.primary.in_sync().said() == copies;
            self.primary.handle_copies(copies, clock::now());
            self.settle_committed(env);
            self.touched = true;
        }
    }

    /// Time passed, as far as copies are concerned; and the set to propose, if one is.
    pub(crate) fn poll_proposal(&mut self, env: &Env, now: Instant) -> Option<Command> {
        self.feeding.as_ref()?;
        let before = self.primary.watermark();
        self.primary.handle_timeout(now);
        self.settle_committed(env);
        self.note_active(now);
        self.touched |= self.primary.wants_round() || self.primary.watermark() > before;
        let (version, in_sync) = self.primary.poll_proposal(now)?;
        let (shard, epoch) = (self.shard, self.epoch);
        let expect = Expect { epoch, version };
        Some(Command::ProposeInSync { shard, expect, from: env.me.clone(), in_sync })
    }

    /// Somebody waits for a save that is not made yet.
    pub(crate) fn is_save_wanted(&self) -> bool {
        self.feeding.as_ref().is_some_and(|feeding| feeding.wants_saved.is_some())
    }

    /// What was saved, when somebody waits for it.
    pub(crate) fn take_saved(&mut self) -> Option<Told> {
        let feeding = self.feeding.as_mut()?;
        let wanted = feeding.wants_saved?;
        let upto = self.dirty.saved_upto();
        if upto.seq < wanted {
            return None;
        }
        feeding.wants_saved = None;
        let (shard, epoch, log_time) = (self.shard, self.epoch, self.primary.log_time());
        Some(Told::Saved { shard, epoch, upto, log_time })
    }
}
