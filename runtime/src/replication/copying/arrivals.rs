//! Copies that arrive: what of each is stored, and when one counts.
//!
//! ```text
//!   Begin --> Standbys::begin --None--> refused, nothing is changed
//!                |
//!                v Some(copy)
//!             drop what is stored --> rows, records --> Finish: all there, at base? live, durably
//!                |                                         |
//!                | newer attempt, silence, failure         v
//!                +--> Standbys::broke_off(copy)         Standbys::end(copy, arrived)
//! ```
//! An attempt is known by its sender, its epoch and its number. A newer one replaces an older one
//! of the same shard; what an older one still says is refused. What is asked of the storage is
//! asked while it is certain whose turn it is, so nothing of an attempt is written after whatever
//! replaced it. What a copy that broke off leaves is not live, and goes with the next copy, the
//! next [`CopyIn::discard`] or the next start.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::snapshot::{Body, Head, Message, Reason, Remembered};
use mainstay_protocol::time::{Instant, LogTime};
use tokio::sync::oneshot;

use super::Numbers;
use super::pages::{self, Asked, answered, asked};
use crate::chain::chain;
use crate::clock;
use crate::storage::{Done, Generation, State, StorageError};

/// Copies that a node takes at one time; others are refused, and tried again by who sends them.
/// Each writes as fast as the one thread that also writes checkpoints.
pub const COPIES_IN_MAX: usize = 4;
/// How long a copy that was begun may be silent. Longer than its sender waits for an answer.
pub const COPY_IDLE_MAX: Duration = Duration::from_secs(15);

/// A copy that a primary wants to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The sender; whether it is the primary of the epoch is not checked here.
    pub from: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The epoch that the sender is in.
    pub epoch: Epoch,
    /// Everything up to here will be in the copy.
    pub base: Position,
}

/// What arrived: live in the tables, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// The shard.
    pub shard: ShardId,
    /// Everything up to here is in the tables; some rows may be newer.
    pub base: Position,
    /// The shard's log time at `base`, or later.
    pub log_time: LogTime,
    /// The records that make keyed commands take effect once.
    pub dedup: Vec<Remembered>,
}

/// The room that has the standbys, as far as copies go.
pub trait Standbys: Send + Sync + 'static {
    /// A copy that a standby takes. Comes back once, to [`Self::end`] or [`Self::broke_off`].
    type Copy: Send + 'static;

    /// Asks whether a copy is to be taken; `None` when not. Must come to an end, and with `Some`
    /// only when what was here of the shard is let go of: no segment of it is on its way into the
    /// journal, no save into the tables, and none will be before the copy ends or
    /// [`CopyIn::discard`] is done. What is stored of the shard is dropped right after.
    fn begin(&self, offer: Offer) -> impl Future<Output = Option<Self::Copy>> + Send;

    /// The copy is live, durably: whether the standby goes on from it. `false` when it does not
    /// want it any more, and has what is here of the shard discarded or replaced.
    fn end(&self, copy: Self::Copy, arrived: Arrived) -> impl Future<Output = bool> + Send;

    /// The copy will not be whole. A standby that waits for it must say so to its primary, which
    /// otherwise waits for the standby. Must not block, nor call back.
    fn broke_off(&self, copy: Self::Copy);
}

/// Why a message of a copy was not taken. The sender must begin another copy, if one is still
/// wanted; of this one nothing is or becomes live, unless the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It is part of a move. Nothing was changed.
    #[error("this is no copy for a standby")]
    Move,
    /// This node takes as many copies as it can. Nothing was changed; try later.
    #[error("{max} copies arrive here already")]
    Busy {
        /// How many it takes.
        max: usize,
    },
    /// A newer attempt is under way, or this one is no more. Nothing was changed.
    #[error("this copy is not, or not any more, the one that is under way")]
    NotUnderWay,
    /// The standby does not want it: the sender is deposed, or what is in it is here. Nothing was
    /// changed.
    #[error("no standby here takes this copy")]
    Refused,
    /// The copy ends elsewhere than it said when it began. It is over.
    #[error("the copy ends at {last:?}, it was to end at {base:?}")]
    OtherBase {
        /// Where it ends.
        last: Position,
        /// Where it was to end.
        base: Position,
    },
    /// It was not stored: something of it is missing, or the storage fails. It is over.
    #[error("the copy was not stored")]
    Storage(#[from] StorageError),
    /// The copy is live, but the standby did not go on from it.
    #[error("no standby here goes on from this copy")]
    NotWanted,
}

/// One try of a node to send a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Attempt {
    from: NodeId,
    head: Head,
    base: Position,
}

impl Attempt {
    const fn age(&self) -> (Epoch, u64) {
        (self.head.epoch, self.head.copy)
    }
}

/// The copies of one shard: the one that asks its standby, and the one that is stored.
struct Slot<T> {
    opening: Option<Attempt>,
    open: Option<Open<T>>,
}

/// A copy whose rows are stored.
struct Open<T> {
    attempt: Attempt,
    generation: Generation,
    heard_at: Instant,
    /// What the standby knows it by; gone when it ends.
    copy: Option<T>,
    /// Whoever watches for silence knows by this that the copy is over.
    _watched: oneshot::Sender<()>,
}

impl<T> Slot<T> {
    const fn new() -> Self {
        Self { opening: None, open: None }
    }

    /// The attempts that are known of.
    fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.opening.iter().chain(self.open.iter().map(|open| &open.attempt))
    }
}

type Slots<T> = BTreeMap<ShardId, Slot<T>>;

struct Inner<S: Standbys> {
    state: State,
    standbys: S,
    numbers: Numbers,
    idle_max: Duration,
    slots: Mutex<Slots<S::Copy>>,
}

/// Takes copies in. Cheap to clone.
pub struct CopyIn<S: Standbys>(Arc<Inner<S>>);

impl<S: Standbys> Clone for CopyIn<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Standbys> fmt::Debug for CopyIn<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyIn").finish_non_exhaustive()
    }
}

impl<S: Standbys> CopyIn<S> {
    /// Stores copies in these tables, as these standbys want.
    pub fn new(state: State, standbys: S) -> Self {
        Self::with_idle_max(state, standbys, COPY_IDLE_MAX)
    }

    /// The same, with another [`COPY_IDLE_MAX`].
    pub(super) fn with_idle_max(state: State, standbys: S, idle_max: Duration) -> Self {
        let (numbers, slots) = (Numbers::default(), Mutex::new(BTreeMap::new()));
        Self(Arc::new(Inner { state, standbys, numbers, idle_max, slots }))
    }

    /// A message of a copy arrives, as [`pages::read`] gives it. Runs on a tokio runtime; what was
    /// begun goes on when this is dropped.
    ///
    /// # Errors
    /// Why it was not taken, for the sender's eyes.
    pub async fn take(&self, from: NodeId, message: Message) -> Result<Bytes, String> {
        let this = self.clone();
        // A connection that ends must not leave a standby with an answer that nobody heard.
        let taken = tokio::spawn(async move { this.carry_out(from, message).await });
        match taken.await {
            Ok(Ok(())) => Ok(Bytes::new()),
            Ok(Err(error)) => Err(chain(&error)),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Forgets all that is stored of a shard, a copy under way included; it breaks off. Once this
    /// has returned nothing of such a copy becomes live; once `done` is called, what was stored is
    /// gone, durably, and only then may a segment of the shard go into the journal. `done` must not
    /// call back.
    pub fn discard(&self, shard: ShardId, done: Done<()>) {
        let mut slots = self.slots();
        let slot = slots.remove(&shard);
        self.0.state.drop_shard(shard, done);
        drop(slots);
        self.break_off(slot.and_then(|slot| slot.open));
    }

    fn slots(&self) -> MutexGuard<'_, Slots<S::Copy>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the standby, outside the lock.
    fn break_off(&self, open: Option<Open<S::Copy>>) {
        if let Some(copy) = open.and_then(|open| open.copy) {
            self.0.standbys.broke_off(copy);
        }
    }

    async fn carry_out(&self, from: NodeId, message: Message) -> Result<(), ReceiveError> {
        let Message { head, body } = message;
        let Reason::Standby { base } = head.reason else { return Err(ReceiveError::Move) };
        let attempt = Attempt { from, head, base };
        match body {
            Body::Begin => self.begin(attempt).await,
            Body::Rows(_) | Body::Dedup(_) => self.part(attempt, body).await,
            Body::Finish { last, log_time, .. } => self.finish(attempt, body, last, log_time).await,
        }
    }

    async fn begin(&self, attempt: Attempt) -> Result<(), ReceiveError> {
        self.reserve(&attempt)?;
        let opening = Opening { of: self, attempt: &attempt };
        let Attempt { from, head: Head { shard, epoch, .. }, base } = attempt.clone();
        let taken = self.0.standbys.begin(Offer { from, shard, epoch, base }).await;
        let opened = taken.map(|copy| self.open(&attempt, copy));
        drop(opening);
        let (dropped, begun) = opened.ok_or(ReceiveError::Refused)??;
        let result = async { dropped.answer().await.and(begun.answer().await) }.await;
        result.map_err(|error| self.fail(&attempt, error))
    }

    /// Holds a place for an attempt while its standby is asked.
    fn reserve(&self, attempt: &Attempt) -> Result<(), ReceiveError> {
        let mut slots = self.slots();
        let shard = attempt.head.shard;
        if !slots.contains_key(&shard) && slots.len() >= COPIES_IN_MAX {
            return Err(ReceiveError::Busy { max: COPIES_IN_MAX });
        }
        let slot = slots.entry(shard).or_insert_with(Slot::new);
        if slot.attempts().any(|other| other.age() >= attempt.age()) {
            return Err(ReceiveError::NotUnderWay);
        }
        slot.opening = Some(attempt.clone());
        Ok(())
    }

    /// The standby wants this copy: it replaces an older one, and what is stored.
    fn open(
        &self,
        attempt: &Attempt,
        copy: S::Copy,
    ) -> Result<(Asked<()>, Asked<()>), ReceiveError> {
        let shard = attempt.head.shard;
        let generation = Generation(self.0.numbers.next());
        let (watched, over) = oneshot::channel();
        let mut slots = self.slots();
        let slot = slots.get_mut(&shard).filter(|slot| slot.opening.as_ref() == Some(attempt));
        let Some(slot) = slot else {
            drop(slots);
            self.0.standbys.broke_off(copy);
            return Err(ReceiveError::NotUnderWay);
        };
        let open = Open {
            attempt: attempt.clone(),
            generation,
            heard_at: clock::now(),
            copy: Some(copy),
            _watched: watched,
        };
        let older = slot.open.replace(open);
        let dropped = asked(|done| self.0.state.drop_shard(shard, done));
        let begun = pages::store(&self.0.state, &attempt.head, generation, Body::Begin);
        drop(slots);
        self.break_off(older);
        tokio::spawn(self.clone().watch(attempt.clone(), over));
        Ok((dropped, begun))
    }

    async fn part(&self, attempt: Attempt, body: Body) -> Result<(), ReceiveError> {
        let stored = self.with_open(&attempt, |open| {
            pages::store(&self.0.state, &attempt.head, open.generation, body)
        })?;
        stored.answer().await.map_err(|error| self.fail(&attempt, error))
    }

    async fn finish(
        &self,
        attempt: Attempt,
        body: Body,
        last: Position,
        log_time: LogTime,
    ) -> Result<(), ReceiveError> {
        let (shard, base) = (attempt.head.shard, attempt.base);
        if last != base {
            self.with_open(&attempt, |_| ())?;
            self.break_off(self.close(&attempt));
            return Err(ReceiveError::OtherBase { last, base });
        }
        let state = &self.0.state;
        let (copy, live) = self.with_open(&attempt, |open| {
            (open.copy.take(), pages::store(state, &attempt.head, open.generation, body))
        })?;
        let copy = copy.expect("a copy that is ending takes no messages");
        let opened = match live.answer().await {
            Ok(()) => answered(|done| state.open_shard(shard, done)).await,
            Err(error) => Err(error),
        };
        let still = self.close(&attempt).is_some();
        let failed = match opened {
            Ok(opened) if still => {
                let arrived = Arrived { shard, base, log_time, dedup: opened.dedup };
                let goes_on = self.0.standbys.end(copy, arrived).await;
                return if goes_on { Ok(()) } else { Err(ReceiveError::NotWanted) };
            }
            Ok(_) => ReceiveError::NotUnderWay,
            Err(error) => ReceiveError::Storage(error),
        };
        self.0.standbys.broke_off(copy);
        Err(failed)
    }

    /// Does something with the copy of this attempt, which is under way and not ending.
    fn with_open<R>(
        &self,
        attempt: &Attempt,
        act: impl FnOnce(&mut Open<S::Copy>) -> R,
    ) -> Result<R, ReceiveError> {
        let mut slots = self.slots();
        let open = slots.get_mut(&attempt.head.shard).and_then(|slot| slot.open.as_mut());
        let open = open.filter(|open| open.attempt == *attempt && open.copy.is_some());
        let open = open.ok_or(ReceiveError::NotUnderWay)?;
        open.heard_at = clock::now();
        Ok(act(open))
    }

    /// Takes the copy of this attempt away; `None` when it is not under way any more.
    fn close(&self, attempt: &Attempt) -> Option<Open<S::Copy>> {
        self.close_if(attempt, |_| true)
    }

    fn close_if(
        &self,
        attempt: &Attempt,
        over: impl FnOnce(&Open<S::Copy>) -> bool,
    ) -> Option<Open<S::Copy>> {
        let mut slots = self.slots();
        let slot = slots.get_mut(&attempt.head.shard)?;
        let closed = slot.open.take_if(|open| open.attempt == *attempt && over(open));
        clean(&mut slots, attempt.head.shard);
        closed
    }

    fn fail(&self, attempt: &Attempt, error: StorageError) -> ReceiveError {
        self.break_off(self.close(attempt));
        ReceiveError::Storage(error)
    }

    /// Breaks a copy off that is silent for too long; ends with it.
    async fn watch(self, attempt: Attempt, mut over: oneshot::Receiver<()>) {
        let idle_max = self.0.idle_max;
        let mut due = clock::now() + idle_max;
        while tokio::time::timeout_at(clock::to_tokio(due), &mut over).await.is_err() {
            let now = clock::now();
            let mut heard_at = now;
            let silent = self.close_if(&attempt, |open| {
                // One that is ending waits for the disk, which always answers.
                if open.copy.is_some() {
                    heard_at = open.heard_at;
                }
                now >= heard_at + idle_max
            });
            if silent.is_some() {
                let (shard, from) = (attempt.head.shard, &attempt.from);
                tracing::info!(%shard, %from, "a copy of a shard broke off: nothing more comes");
                self.break_off(silent);
                return;
            }
            due = heard_at + idle_max;
        }
    }
}

/// The place of an attempt while its standby is asked, given back however that ends.
struct Opening<'a, S: Standbys> {
    of: &'a CopyIn<S>,
    attempt: &'a Attempt,
}

impl<S: Standbys> Drop for Opening<'_, S> {
    fn drop(&mut self) {
        let mut slots = self.of.slots();
        let shard = self.attempt.head.shard;
        let Some(slot) = slots.get_mut(&shard) else { return };
        slot.opening.take_if(|opening| *opening == *self.attempt);
        clean(&mut slots, shard);
    }
}

/// A shard of which no copy is under way has no place.
fn clean<T>(slots: &mut Slots<T>, shard: ShardId) {
    if slots.get(&shard).is_some_and(|slot| slot.attempts().next().is_none()) {
        slots.remove(&shard);
    }
}
