//! The primary of one shard in one epoch: the small machines of this crate, composed.
//!
//! What may come in is in `shard/admission.rs`, what runs in `shard/turns.rs`, what other copies say
//! in `shard/copies.rs`; here are its
//! beginning and end, the watermark, and the way out.

use std::collections::VecDeque;
use std::fmt;

use crate::dedup::{Expired, Flights, Kept, Table};
use crate::entry::{Op, Segment};
use crate::id::{EntityId, Epoch, NodeId, Seq, ShardId, Token};
use crate::list::Pool;
use crate::mailbox::{Mailboxes, SourceId};
use crate::message::{Failure, Success};
use crate::mutants::{Mutant, Planted};
use crate::replication::in_sync::InSync;
use crate::time::{Instant, LogTime};

use super::log::Log;
use super::quarantine::Quarantine;
use super::rows::{Activity, Rows};
use super::turns::Running;
use super::{Ask, Config, Counters, Held, Post, Recovered, Release, Slot, SteppedDown};

/// A request and its caller, while they wait.
pub(super) struct Parcel<T> {
    pub(super) ask: Ask,
    pub(super) item: T,
}

/// A caller and its reply, while they wait for the watermark.
pub(super) struct Pending<T> {
    pub(super) gate: Seq,
    pub(super) item: T,
    pub(super) result: Result<Success, Failure>,
}

/// A reply that shows state and is no entry, until it is certain that nobody else was primary.
pub(super) struct Unconfirmed<T> {
    /// When it was given.
    pub(super) since: Instant,
    /// A lease is not enough.
    pub(super) strict: bool,
    pub(super) pending: Pending<T>,
}

/// A shard in one epoch, on its primary. See [`crate::shard`] for how it is driven.
pub struct Primary<T> {
    pub(super) config: Config,
    shard: ShardId,
    epoch: Epoch,
    pub(super) me: NodeId,
    pub(super) in_sync: InSync,
    /// Nobody is answered before: another primary may have a lease until then.
    pub(super) serve_from: Instant,
    pub(super) serves: bool,
    pub(super) log: Log,
    /// The first entry of the epoch: every reply waits for it.
    noop: Seq,
    pub(super) rows: Rows,
    pub(super) mailboxes: Mailboxes<Parcel<T>>,
    pub(super) dedup: Table,
    pub(super) flights: Flights<Parcel<T>>,
    pub(super) quarantine: Quarantine,
    pub(super) turns: Pool<Running>,
    pub(super) turn_number: u64,
    pub(super) held: Held<Pending<T>>,
    /// Replies that show state and are no entry, in the order in which they were given: they wait
    /// for a lease or a round.
    pub(super) unconfirmed: VecDeque<Unconfirmed<T>>,
    /// Rows that lost their activation while they had something uncommitted.
    leaving: Held<u32>,
    /// Commands that are admitted and have not ended: each may become an entry.
    pub(super) commands: u32,
    /// What to refuse everyone with, while admission is stopped.
    pub(super) stopped: Option<Failure>,
    pub(super) counters: Counters,
    pub(super) planted: Planted,
}

impl<T> fmt::Debug for Primary<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Primary")
            .field("shard", &self.shard)
            .field("epoch", &self.epoch)
            .field("last", &self.last())
            .field("watermark", &self.watermark())
            .field("queued", &self.queued())
            .field("running", &self.running())
            .field("pending", &self.pending())
            .finish_non_exhaustive()
    }
}

impl<T> Primary<T> {
    /// The primary of an epoch that has just begun. Its noop is ready in `take_segment`; requests
    /// are taken at once, and their replies wait for it.
    ///
    /// # Panics
    /// When this node is not in the in-sync set: the map gives primacy to members only.
    pub fn new(config: Config, post: Post, recovered: Recovered, wall: LogTime) -> Self {
        let Post { shard, epoch, me, copies, min_insync, timing, serve_from } = post;
        let Recovered { last, log_time, dedup } = recovered;
        let in_sync = InSync::new(me.clone(), copies, min_insync, last.next(), timing);
        let log_time = log_time.max(wall);
        let records =
            dedup.into_iter().map(|(entity, log_time, record)| Kept { entity, log_time, record });
        let mut this = Self {
            config,
            shard,
            epoch,
            me,
            in_sync,
            serve_from,
            serves: serve_from == Instant::ZERO,
            log: Log::new(shard, epoch, last, log_time),
            noop: last.next(),
            rows: Rows::new(config.hash_seed),
            mailboxes: Mailboxes::new(),
            dedup: Table::new(config.dedup, config.hash_seed, records.collect(), log_time),
            flights: Flights::default(),
            quarantine: Quarantine::default(),
            turns: Pool::new(),
            turn_number: 0,
            held: Held::new(last),
            unconfirmed: VecDeque::new(),
            leaving: Held::new(last),
            commands: 0,
            stopped: None,
            counters: Counters::default(),
            planted: Planted::default(),
        };
        this.append(Op::Noop);
        this
    }

    /// Breaks a rule on purpose, for the simulator.
    #[cfg(feature = "mutants")]
    pub const fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
        self.in_sync.plant(mutant);
    }

    /// What was appended since the last call, for the journal and the standbys. Call until `None`:
    /// a large run comes in parts.
    pub fn take_segment(&mut self) -> Option<Segment> {
        self.log.take_segment()
    }

    pub(super) fn handle_commit(&mut self) {
        let watermark = self.watermark();
        assert!(watermark <= self.last(), "only entries that exist are committed");
        self.log.commit(watermark);
        while let Some(slot) = self.leaving.release(watermark) {
            self.remove_if_unused(slot);
        }
        self.assert_invariants();
    }

    /// The next caller whose reply may leave, with its reply.
    ///
    /// # Panics
    /// When the machine is broken, and a reply would leave above the watermark.
    pub fn poll_release(&mut self) -> Option<Release<T>> {
        let watermark = self.answered();
        let Pending { gate, item, result } = self.held.release(watermark)?;
        assert!(gate <= watermark, "no reply leaves above the watermark");
        Some(Release { item, result })
    }

    /// What replies may show: the watermark, and nothing of this epoch before it may answer.
    fn answered(&self) -> Seq {
        let before = Seq(self.noop.0 - 1);
        if self.serves { self.watermark() } else { self.watermark().min(before) }
    }

    /// Refuses everyone at the door from now on, with this failure; what is inside goes on.
    pub fn stop_admission(&mut self, failure: Failure) {
        self.stopped = Some(failure);
    }

    /// Takes requests again, in the same epoch: a handoff was given up.
    pub fn resume_admission(&mut self) {
        self.stopped = None;
    }

    /// Everything that was inside is done and out, and every entry is committed.
    pub fn is_drained(&self) -> bool {
        self.requests() == 0 && self.watermark() == self.last()
    }

    /// Ends this primacy. Turns that run are the lane's to give up; their callers are unknown too.
    pub fn step_down(mut self) -> SteppedDown<T> {
        let mut out = SteppedDown {
            released: std::iter::from_fn(|| self.poll_release()).collect(),
            not_executed: Vec::new(),
            unknown: Vec::new(),
        };
        while let Some(((slot, key), joined)) = self.flights.take_any() {
            let runs = |turn: &Running| turn.slot == slot && turn.key.as_ref() == Some(&key);
            let began = self.turns.iter().any(|(_, turn)| runs(turn));
            if began { &mut out.unknown } else { &mut out.not_executed }.push(joined.item);
        }
        out.not_executed.extend(self.mailboxes.into_letters().map(|parcel| parcel.item));
        out.unknown.extend(self.held.into_rest().into_iter().map(|pending| pending.item));
        out.unknown.extend(self.unconfirmed.into_iter().map(|it| it.pending.item));
        if self.planted.has(Mutant::StepDownSwapped) {
            std::mem::swap(&mut out.not_executed, &mut out.unknown);
        }
        out
    }

    /// Lets an entity's row go, after the scene has let its activation go: only when it idles and
    /// nothing of it is uncommitted. Says whether it went.
    pub fn remove_row(&mut self, slot: Slot) -> bool {
        let may_go = self.may_remove(slot);
        if may_go {
            self.rows.remove(slot.0);
        }
        may_go
    }

    /// Whether [`Self::remove_row`] would let it go.
    pub fn may_remove(&self, slot: Slot) -> bool {
        self.rows.get(slot.0).is_some_and(|row| {
            let committed = row.last <= self.watermark();
            let planted = self.planted.has(Mutant::PassivateUncommitted);
            row.activity == Activity::Idle && (committed || planted)
        })
    }

    /// A row that idles without an activation leaves; at once, or when it is committed.
    pub(super) fn remove_if_unused(&mut self, slot: u32) {
        let Some(row) = self.rows.get(slot) else {
            return;
        };
        if !row.fresh || row.activity != Activity::Idle {
            return;
        }
        if row.last <= self.watermark() {
            self.rows.remove(slot);
        } else {
            self.leaving.hold(row.last, slot);
        }
    }

    /// Appends an entry, and gives the operation back.
    pub(super) fn append(&mut self, op: Op) -> (Seq, Op) {
        let (seq, op) = self.log.append(op);
        if self.planted.has(Mutant::WatermarkUnsynced) {
            self.count_own(seq);
        }
        (seq, op)
    }

    /// Holds a caller until the watermark reaches `gate`.
    pub(super) fn hold(&mut self, gate: Seq, item: T, result: Result<Success, Failure>) {
        self.held.hold(gate, Pending { gate, item, result });
    }

    /// What a reply waits for that may show what `last`, and all before it, did to its entity.
    pub(super) fn gate(&self, last: Seq) -> Seq {
        if self.planted.has(Mutant::NoopNotGated) { last } else { last.max(self.noop) }
    }

    pub(super) const fn token(&self, seq: Seq) -> Token {
        Token { shard: self.shard, epoch: self.epoch, seq }
    }

    /// What a call of this entity's running turn must wait for before it leaves the node: its
    /// state includes everything up to there.
    pub fn gate_of(&self, slot: Slot) -> Seq {
        self.gate(self.rows.get(slot.0).map_or(Seq(0), |row| row.last))
    }

    /// Whether a turn in this slot became an entry, since its entity got the row.
    pub fn is_written(&self, slot: Slot) -> bool {
        self.rows.get(slot.0).is_some_and(|row| row.last > Seq(0))
    }

    /// The highest seq that every member of the in-sync set holds durably.
    pub fn watermark(&self) -> Seq {
        if self.planted.has(Mutant::WatermarkOfFastest) {
            return self.in_sync.fastest();
        }
        self.in_sync.watermark()
    }

    /// The noop of the epoch is committed: replies leave.
    pub fn is_active(&self) -> bool {
        self.serves && self.watermark() >= self.noop
    }

    /// The shard.
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// The epoch.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The copies and how far each is.
    pub const fn in_sync(&self) -> &InSync {
        &self.in_sync
    }

    /// The last entry.
    pub const fn last(&self) -> Seq {
        self.log.last()
    }

    /// The log time of the last turn or entry.
    pub const fn log_time(&self) -> LogTime {
        self.log.log_time()
    }

    /// Entries of this epoch that are not committed.
    pub fn uncommitted(&self) -> u32 {
        self.log.uncommitted()
    }

    /// Their bytes.
    pub const fn uncommitted_bytes(&self) -> u64 {
        self.log.uncommitted_bytes()
    }

    /// Requests in mailboxes and waiting rooms.
    pub fn queued(&self) -> u32 {
        self.mailboxes.len()
    }

    /// Turns that run.
    pub fn running(&self) -> u32 {
        self.turns.len()
    }

    /// Replies that wait for the watermark, a lease or a round, or to be polled.
    pub fn pending(&self) -> u32 {
        let unconfirmed = u32::try_from(self.unconfirmed.len()).unwrap_or(u32::MAX);
        self.held.len() + unconfirmed
    }

    /// Requests inside, wherever they are.
    pub fn requests(&self) -> u32 {
        self.queued() + self.flights.joined() + self.running() + self.pending()
    }

    /// Entities with a row.
    pub fn entities(&self) -> u32 {
        self.rows.len()
    }

    /// Entities that have work and no running turn.
    pub const fn ready(&self) -> u32 {
        self.rows.ready()
    }

    /// The row of an entity, if it has one.
    pub fn slot_of(&self, entity: &EntityId) -> Option<Slot> {
        self.rows.find(entity).map(Slot)
    }

    /// The entity of a row, and how many requests are in its mailbox and its waiting room.
    pub fn row(&self, slot: Slot) -> Option<(&EntityId, u32, u32)> {
        let row = self.rows.get(slot.0)?;
        Some((&row.entity, row.mailbox.queued(), row.mailbox.waiting()))
    }

    /// How many requests of a source wait before an entity, those that joined counted.
    pub fn waiting_of(&self, slot: Slot, source: SourceId) -> u32 {
        self.mailboxes.shares().held(slot.0, source)
    }

    /// The records that make commands take effect once.
    pub const fn dedup(&self) -> &Table {
        &self.dedup
    }

    /// Changes the budget of those records.
    pub const fn set_dedup_bytes_max(&mut self, bytes_max: u64) {
        self.dedup.set_bytes_max(bytes_max);
    }

    /// Time passed on this machine: log time goes on, and what is older than the retention is
    /// forgotten. Every later entry has at least this log time, so all copies forget it before
    /// they could miss it.
    pub fn pass_time(&mut self, wall: LogTime) {
        let log_time = self.log.pass(wall);
        self.dedup.expire(log_time);
    }

    /// See [`Table::take_expired`].
    pub fn take_expired(&mut self) -> Vec<Expired> {
        self.dedup.take_expired()
    }

    /// See [`Table::put_back_expired`].
    pub fn put_back_expired(&mut self, expired: Vec<Expired>) {
        self.dedup.put_back_expired(expired);
    }

    /// What happened since the epoch began.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Relations that hold between any two calls, cheap enough for every call of a debug build.
    pub(super) fn assert_invariants(&self) {
        debug_assert!(self.log.taken() <= self.last());
        debug_assert!(self.rows.ready() <= self.mailboxes.len());
        let window = self.commands + self.uncommitted();
        debug_assert!(window <= self.config.uncommitted_entries_max.max(1), "{self:?}");
        debug_assert!(self.flights.len() <= self.commands);
    }

    /// Walks everything and asserts that it fits together: for tests and simulators.
    ///
    /// # Panics
    /// When it does not.
    pub fn audit(&self) {
        self.assert_invariants();
        let (mut letters, mut ready, mut running) = (0, 0, 0);
        for (_, row) in self.rows.iter() {
            let inside = row.mailbox.queued() + row.mailbox.waiting();
            letters += inside;
            ready += u32::from(row.activity == Activity::Ready);
            running += u32::from(row.activity == Activity::Running);
            assert!(row.activity != Activity::Ready || inside > 0, "the ready have work");
            assert!(row.activity != Activity::Idle || inside == 0, "the idle have none");
            assert!(row.last.max(row.version) <= self.last(), "an entity's last entry exists");
            let unused = row.fresh && row.activity == Activity::Idle;
            assert!(!unused || row.last > self.watermark(), "an unused row has left");
        }
        assert_eq!(letters, self.mailboxes.len());
        assert_eq!(ready, self.rows.ready());
        assert!(running == self.turns.len() || self.planted.has(Mutant::TwoTurns));
    }
}
