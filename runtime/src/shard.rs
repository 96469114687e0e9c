//! A shard on its lane: the rules of [`mainstay_protocol::shard`], carried out.
//!
//! ```text
//!            recovered or opened            claim in the map, newer epoch
//!   (none) ---------------------> waiting ---------------------------------> serving
//!     ^                              ^                                          |
//!     |  dropped: it lives elsewhere |        stepped down, journal answered    |
//!     +------------------------------+------------------------------------------+
//! ```
//! Nothing about the domain is decided here: who may serve is in the map, what a request, a turn
//! and a commit lead to is in [`Primary`].

pub mod activation;
pub mod admission;
pub mod ascent;
pub mod caller;
pub mod commit;
pub mod copies;
pub mod dirty;
pub mod handoff;
pub mod looks;
pub mod port;
pub mod turn;

use std::collections::{BTreeMap, BTreeSet};

use mainstay_protocol::control::ShardConfig;
use mainstay_protocol::id::{Epoch, Seq, ShardId};
use mainstay_protocol::message::{Failure, Outcome};
use mainstay_protocol::passivation::ResidentId;
use mainstay_protocol::replication::Timing;
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::shard::handoff::Departing;
use mainstay_protocol::shard::primary::Primary;
use mainstay_protocol::shard::{self as rules, Held, Post, Slot};
use mainstay_protocol::time::{Instant, LogTime};

use crate::clock;
use crate::lane::env::Env;
use crate::storage::{self, OpenedShard, RecoveredShard, StorageError};
use activation::Activation;
use caller::Caller;
use copies::Promoted;
use dirty::{Dirty, Remembered, Row};
use port::GateOpener;

/// What is stored of a shard that does not serve.
#[derive(Debug, Default)]
pub struct Records {
    /// The epoch that wrote the last entry, or took over.
    pub epoch: Epoch,
    /// The log time of the last entry, or later.
    pub log_time: LogTime,
    /// The records that make commands take effect once.
    pub dedup: Vec<Remembered>,
    /// What no snapshot holds, and where the log ends.
    pub dirty: Dirty,
}

impl Records {
    /// Forgets that commands took effect whose entries were never written.
    fn forget(&mut self, unwritten: &[Remembered]) {
        let gone: BTreeSet<_> =
            unwritten.iter().map(|(entity, _, record)| (entity, &record.key)).collect();
        if !gone.is_empty() {
            self.dedup.retain(|(entity, _, record)| !gone.contains(&(entity, &record.key)));
        }
    }
}

impl From<RecoveredShard> for Records {
    fn from(found: RecoveredShard) -> Self {
        let row = |row: storage::DirtyRow| (row.entity, Row { seq: row.seq, bytes: row.bytes });
        // What lies above the mark is in the journal only; saving a record twice does no harm.
        let unsaved = if found.applied < found.last { found.dedup.clone() } else { Vec::new() };
        let rows = found.dirty.into_iter().map(row);
        Self {
            epoch: found.epoch,
            log_time: found.log_time,
            dirty: Dirty::recovered(found.history.base(), found.history.last(), rows, unsaved),
            dedup: found.dedup,
        }
    }
}

impl From<OpenedShard> for Records {
    fn from(found: OpenedShard) -> Self {
        let OpenedShard { epoch, applied, log_time, dedup } = found;
        let dirty = Dirty::recovered(applied, applied, [], Vec::new());
        Self { epoch, log_time, dedup, dirty }
    }
}

/// A shard's records were read from the tables, after it moved here.
#[derive(Debug)]
pub struct Opened {
    /// The shard.
    pub shard: ShardId,
    /// The epoch for which they were read.
    pub epoch: Epoch,
    /// The records, or why there are none.
    pub result: Result<Records, StorageError>,
}

/// One shard of a lane.
#[derive(Debug)]
pub struct ShardHost {
    /// The shard.
    pub shard: ShardId,
    /// It has other copies: when it is not served any more, those who follow it take it back.
    fed: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Its records are being read, to serve in this epoch.
    Opening(Epoch),
    /// It has records and does not serve.
    Waiting(Box<Records>),
    /// It serves.
    Serving(Box<Serving>),
    /// It served; the journal has not answered what is on its way.
    Closing(Box<Closing>),
}

/// A shard whose primary stepped down.
#[derive(Debug)]
struct Closing {
    records: Records,
    /// Entries up to here are committed, if the journal holds them. Nobody knows of later ones: the
    /// next primary may have others in their place.
    committed: Seq,
    in_flight: u32,
}

/// A shard that this node is the primary of.
#[derive(Debug)]
pub struct Serving {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    pub(crate) primary: Primary<Caller>,
    pub(crate) dirty: Dirty,
    pub(crate) running: BTreeMap<Slot, turn::Running>,
    pub(crate) gates: Held<GateOpener>,
    pub(crate) unsent: commit::Unsent,
    pub(crate) handoff: Departing,
    pub(crate) pause: Option<handoff::Pause>,
    /// Set when the shard has other copies.
    pub(crate) feeding: Option<copies::Feeding>,
    /// Batches with entries of this shard that the journal has not answered.
    pub(crate) in_flight: u32,
    residents: Vec<Option<Resident>>,
    /// The lane has this shard on its list of shards with work.
    pub(crate) listed: bool,
    /// The shard has replies to release or entries to send.
    pub(crate) touched: bool,
}

/// One entity in memory.
#[derive(Debug)]
pub(crate) struct Resident {
    pub(crate) activation: Activation,
    pub(crate) id: ResidentId,
    pub(crate) kind: usize,
}

impl ShardHost {
    /// A shard with what recovery found of it.
    pub fn recovered(shard: ShardId, records: Records) -> Self {
        Self { shard, fed: false, stage: Stage::Waiting(Box::new(records)) }
    }

    /// A shard that moved here: its records have to be read first.
    pub const fn opening(shard: ShardId, epoch: Epoch) -> Self {
        Self { shard, fed: false, stage: Stage::Opening(epoch) }
    }

    /// The primary, when this node is it.
    pub fn serving(&mut self) -> Option<&mut Serving> {
        match &mut self.stage {
            Stage::Serving(serving) => Some(serving),
            Stage::Opening(_) | Stage::Waiting(_) | Stage::Closing(_) => None,
        }
    }

    /// The primary, when this node is it, to look at.
    pub fn is_serving(&self) -> Option<&Serving> {
        match &self.stage {
            Stage::Serving(serving) => Some(serving),
            Stage::Opening(_) | Stage::Waiting(_) | Stage::Closing(_) => None,
        }
    }

    /// Whether it waits for the records of this epoch.
    pub fn is_opening(&self, epoch: Epoch) -> bool {
        matches!(self.stage, Stage::Opening(of) if of == epoch)
    }

    /// Its records were read.
    pub fn handle_opened(&mut self, records: Records) {
        if matches!(self.stage, Stage::Opening(_)) {
            self.stage = Stage::Waiting(Box::new(records));
        }
    }

    /// The epoch of what is stored here, when it does not serve.
    pub fn waiting_epoch(&self) -> Option<Epoch> {
        match &self.stage {
            Stage::Waiting(records) => Some(records.epoch),
            Stage::Opening(_) | Stage::Serving(_) | Stage::Closing(_) => None,
        }
    }

    /// Nothing of it is on its way to the journal, and nobody is served.
    pub const fn is_quiet(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_) | Stage::Opening(_))
    }

    /// The map gave this node the shard: serve in the map's epoch.
    pub fn serve(&mut self, env: &Env, config: &ShardConfig, min_insync: u8) {
        let Stage::Waiting(records) = &mut self.stage else { return };
        let records = std::mem::take(&mut **records);
        let (version, in_sync) = (config.version, config.in_sync.clone());
        let post = Post {
            shard: self.shard,
            epoch: config.epoch,
            me: env.me.node.clone(),
            copies: Copies { version, in_sync, ..Copies::default() },
            min_insync,
            timing: Timing::default(),
            serve_from: Instant::ZERO,
        };
        let recovered = rules::Recovered {
            last: records.dirty.last().seq,
            log_time: records.log_time,
            dedup: records.dedup,
        };
        let serving = Serving::new(env, post, recovered, records.dirty, None);
        self.stage = Stage::Serving(Box::new(serving));
    }

    /// A shard whose standby here was promoted: it serves at once.
    pub fn promoted(env: &Env, promoted: Promoted, copies: Copies, min_insync: u8) -> Self {
        let Promoted { shard, epoch, serve_from, records, ascent, .. } = promoted;
        let (me, timing) = (env.me.node.clone(), Timing::default());
        let post = Post { shard, epoch, me, copies, min_insync, timing, serve_from };
        let Records { log_time, dedup, dirty, .. } = records;
        env.dirty_changed(0, dirty.bytes());
        let recovered = rules::Recovered { last: dirty.last().seq, log_time, dedup };
        let feeding = Some(copies::Feeding::new(ascent));
        let serving = Serving::new(env, post, recovered, dirty, feeding);
        Self { shard, fed: true, stage: Stage::Serving(Box::new(serving)) }
    }

    /// What is here of a shard that does not serve, and whether those who follow it want it.
    ///
    /// # Errors
    /// The host, while something of it is under way.
    pub fn into_records(self) -> Result<(Records, bool), Self> {
        match self.stage {
            Stage::Waiting(records) => Ok((*records, self.fed)),
            Stage::Opening(_) | Stage::Serving(_) | Stage::Closing(_) => Err(self),
        }
    }

    /// The map took the shard away, or gave it to this node anew: nobody is served any more.
    /// Everyone is answered; what was appended still goes to the journal.
    pub fn step_down(&mut self, env: &mut Env, failure: &Failure) {
        if !matches!(self.stage, Stage::Serving(_)) {
            return;
        }
        let Stage::Serving(serving) = std::mem::replace(&mut self.stage, Stage::Opening(Epoch(0)))
        else {
            unreachable!("the stage was just seen");
        };
        let (in_flight, committed) = (serving.in_flight, serving.commits_upto());
        let records = serving.end(env, failure);
        self.stage = Stage::Closing(Box::new(Closing { records, committed, in_flight }));
        self.close_if_answered(env);
    }

    /// Nothing of it is under way any more: neither a batch, nor, when others take it over, a save.
    pub(crate) fn close_if_answered(&mut self, env: &Env) {
        let fed = self.fed;
        if let Stage::Closing(closing) = &mut self.stage
            && closing.in_flight == 0
            && !(fed && closing.records.dirty.is_saving())
        {
            let mut records = std::mem::take(&mut closing.records);
            let before = records.dirty.bytes();
            records.dirty.settle(closing.committed);
            env.dirty_changed(before, records.dirty.bytes());
            self.stage = Stage::Waiting(Box::new(records));
        }
    }

    /// The journal holds a batch with entries of this shard.
    pub fn handle_committed(&mut self, env: &Env, part: commit::Part) {
        match &mut self.stage {
            Stage::Serving(serving) => serving.handle_committed(env, part),
            Stage::Closing(closing) => {
                closing.in_flight -= 1;
                closing.records.dirty.journaled(part.journaled);
                self.close_if_answered(env);
            }
            Stage::Opening(_) | Stage::Waiting(_) => {}
        }
    }

    /// The journal wrote nothing of this shard's part of a batch: this node has promised a newer
    /// primary. Nobody is served any more. What was not written is forgotten, so that the shard may
    /// serve again in a later epoch.
    pub fn handle_fenced(&mut self, env: &mut Env, part: &commit::Part, failure: &Failure) {
        self.step_down(env, failure);
        if let Stage::Closing(closing) = &mut self.stage {
            debug_assert_eq!(part.epoch, closing.records.epoch, "it closes before it serves anew");
            closing.records.forget(&part.journaled.dedup);
            closing.in_flight -= 1;
            self.close_if_answered(env);
        }
    }

    /// What no snapshot holds, wherever it is.
    pub fn dirty(&mut self) -> Option<&mut Dirty> {
        match &mut self.stage {
            Stage::Serving(serving) => Some(&mut serving.dirty),
            Stage::Waiting(records) => Some(&mut records.dirty),
            Stage::Closing(closing) => Some(&mut closing.records.dirty),
            Stage::Opening(_) => None,
        }
    }
}

/// The answer to everyone whose outcome is open when a primary steps down.
pub(crate) fn unknown() -> Failure {
    let reason = "the primary stepped down before the outcome was certain".to_owned();
    Failure::Unavailable { outcome: Outcome::Unknown, reason }
}

impl Serving {
    fn new(
        env: &Env,
        post: Post,
        recovered: rules::Recovered,
        dirty: Dirty,
        feeding: Option<copies::Feeding>,
    ) -> Self {
        let (shard, epoch, last) = (post.shard, post.epoch, recovered.last);
        let config = env.shard_limits();
        Self {
            shard,
            epoch,
            primary: Primary::new(config, post, recovered, clock::wall()),
            dirty,
            running: BTreeMap::new(),
            gates: Held::new(last),
            unsent: commit::Unsent::default(),
            handoff: Departing::No,
            pause: None,
            feeding,
            in_flight: 0,
            residents: Vec::new(),
            listed: false,
            touched: false,
        }
    }

    pub(crate) fn resident(&mut self, slot: Slot) -> &mut Resident {
        self.residents[slot.0 as usize].as_mut().expect("a turn runs on an activated entity")
    }

    pub(crate) fn is_resident(&self, slot: Slot) -> bool {
        self.residents.get(slot.0 as usize).is_some_and(Option::is_some)
    }

    pub(crate) fn put_resident(&mut self, slot: Slot, resident: Resident) {
        let at = slot.0 as usize;
        if self.residents.len() <= at {
            self.residents.resize_with(at + 1, || None);
        }
        debug_assert!(self.residents[at].is_none(), "a slot has one activation");
        self.residents[at] = Some(resident);
    }

    pub(crate) fn take_resident(&mut self, env: &mut Env, slot: Slot) -> Option<Resident> {
        let resident = self.residents.get_mut(slot.0 as usize)?.take()?;
        env.passivation.handle_released(resident.id);
        env.kinds.at(resident.kind).entities -= 1;
        Some(resident)
    }

    pub(crate) fn idle_if_done(&mut self, env: &mut Env, slot: Slot, now: Instant) {
        let busy = self.primary.row(slot).is_none_or(|(_, queued, waiting)| queued + waiting > 0);
        if busy || self.running.contains_key(&slot) {
            return;
        }
        if let Some(Some(resident)) = self.residents.get(slot.0 as usize) {
            env.passivation.handle_idle(resident.id, resident.activation.bytes(), now);
        }
    }

    /// Lets an idle entity go; `false` when it must stay, because something of it is uncommitted.
    pub(crate) fn passivate(&mut self, env: &mut Env, slot: Slot) -> Option<usize> {
        if !self.primary.remove_row(slot) {
            return None;
        }
        self.take_resident(env, slot).map(|resident| resident.kind)
    }

    /// Puts an entity that could not be let go back among the idle ones.
    pub(crate) fn stays(&mut self, env: &mut Env, slot: Slot, now: Instant) {
        if let Some(Some(resident)) = self.residents.get(slot.0 as usize) {
            env.passivation.handle_idle(resident.id, resident.activation.bytes(), now);
        }
    }

    /// Up to where entries are committed, if the journal holds them.
    fn commits_upto(&self) -> Seq {
        let alone = self.primary.in_sync().is_alone();
        if alone { Seq(u64::MAX) } else { self.primary.watermark() }
    }

    /// Ends the primacy: answers everyone, lets every entity go.
    fn end(mut self, env: &mut Env, failure: &Failure) -> Records {
        for slot in 0..self.residents.len() {
            let slot = Slot(u32::try_from(slot).expect("slots are numbered in 32 bits"));
            self.take_resident(env, slot);
        }
        for (_, running) in self.give_up_turns() {
            running.into_caller().reply.send(Err(unknown()));
        }
        let kept = self.primary.dedup().iter();
        let dedup = kept.map(|kept| (kept.entity.clone(), kept.log_time, kept.record.clone()));
        let mut records = Records {
            epoch: self.epoch,
            log_time: self.primary.log_time(),
            dedup: dedup.collect(),
            dirty: self.dirty,
        };
        records.forget(self.unsent.dedup());
        let everyone = self.primary.step_down();
        for mut release in everyone.released {
            release.item.leave_queue(&mut env.kinds);
            release.item.reply.send(release.result);
        }
        for mut caller in everyone.not_executed {
            caller.leave_queue(&mut env.kinds);
            caller.reply.send(Err(failure.clone()));
        }
        for mut caller in everyone.unknown {
            caller.leave_queue(&mut env.kinds);
            caller.reply.send(Err(unknown()));
        }
        records
        // Dropped gate openers refuse the calls that wait at their gates.
    }
}
