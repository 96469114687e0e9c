//! Looks at standbys: who waits for entries, whose state is read, and what each is shown.
//!
//! ```text
//!   Look --> Wait <--> Show --room--> dirty state ----------------> Seen
//!              | until its time        \--> tables --> the same copy? --^
//!              +--> Behind                                 no: again
//! ```
//! Whether a copy shows what it has is the standby's rule to say. It is asked when a look comes,
//! whenever the copy has applied more, and again after a wait for room. What was read of a copy that
//! was replaced meanwhile is shown to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mainstay_protocol::id::{Epoch, Seq, ShardId, Token};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::freshness::Showing;
use mainstay_protocol::time::{Instant, LogTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Input;
use super::keeper::{Env, Keeper};
use super::part::{Following, Part};
use crate::clock;
use crate::lane::Input as LaneInput;
use crate::shard::dirty::Row;
use crate::shard::looks::{Look, SHOWN_MAX, Seen, Shown, ShownState};
use crate::storage::{StorageError, StoredState};

/// Names a look that waits: those of a shard are in the order of what they wait for.
type Waits = (ShardId, Position, u64);

/// The looks that wait, and the room for those that do not.
#[derive(Debug)]
pub(super) struct Looks {
    waiting: BTreeMap<Waits, Look>,
    due: BTreeSet<(Instant, Waits)>,
    number: u64,
    room: Arc<Semaphore>,
}

/// A look for which the tables are read.
#[derive(Debug)]
pub struct Reading {
    look: Look,
    room: OwnedSemaphorePermit,
    copy: CopyId,
    applied: Position,
    log_time: LogTime,
}

/// Names what is here of a shard, until it is replaced: its life, and the states in that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyId {
    pub(super) life: u64,
    pub(super) states: u64,
}

impl Default for Looks {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(SHOWN_MAX));
        Self { waiting: BTreeMap::new(), due: BTreeSet::new(), number: 0, room }
    }
}

impl Looks {
    /// When the first of those that wait waits no longer.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    fn wait(&mut self, look: Look) {
        self.number += 1;
        let waits = (look.shard, look.token.position(), self.number);
        self.due.insert((look.until, waits));
        self.waiting.insert(waits, look);
    }

    /// A look of this shard that waits for no more than what is applied. Those that want more keep
    /// nobody waiting: of an earlier epoch there may be some, with tokens that nobody gave out.
    fn first_within(&self, shard: ShardId, applied: Position) -> Option<Waits> {
        let mut from = Position::default();
        loop {
            let (waits, _) = self.waiting.range((shard, from, 0)..).next()?;
            let (of, wanted, _) = *waits;
            if of != shard || wanted.epoch > applied.epoch {
                return None;
            }
            if wanted.seq <= applied.seq {
                return Some(*waits);
            }
            // All that come after it in its epoch want more still.
            from = Position { epoch: Epoch(wanted.epoch.0.checked_add(1)?), seq: Seq(0) };
        }
    }

    fn take(&mut self, waits: &Waits) -> Option<Look> {
        let look = self.waiting.remove(waits)?;
        self.due.remove(&(look.until, *waits));
        Some(look)
    }

    fn take_due(&mut self, now: Instant) -> Option<Look> {
        let (_, waits) = *self.due.first().filter(|(at, _)| *at <= now)?;
        self.take(&waits)
    }
}

impl Keeper {
    /// A query wants to be shown what is here. `room` is what it waited for, if it did.
    pub(super) fn handle_look(&mut self, look: Look, room: Option<OwnedSemaphorePermit>) {
        match self.copy_of(look.shard).map(|copy| copy.shows(look.token.position())) {
            None => self.env.seen(look, Shown::Elsewhere),
            Some(Showing::Wait) if look.until <= clock::now() => self.give_up(look),
            Some(Showing::Wait) => self.looks.wait(look),
            Some(Showing::Show) => match room {
                Some(room) => self.show(look, room),
                None => self.find_room(look),
            },
        }
    }

    fn copy_of(&mut self, shard: ShardId) -> Option<&mut Following> {
        self.parts.get_mut(&shard).and_then(Part::following)
    }

    /// Shows a look something once there is room for it, unless its time is over then.
    fn find_room(&mut self, look: Look) {
        if let Ok(room) = Arc::clone(&self.looks.room).try_acquire_owned() {
            return self.show(look, room);
        }
        let (room, inbox) = (Arc::clone(&self.looks.room), self.env.inbox.clone());
        drop(self.env.runtime.spawn(async move {
            let until = clock::to_tokio(look.until);
            let room = tokio::time::timeout_at(until, room.acquire_owned()).await;
            let room = room.ok().and_then(Result::ok);
            drop(inbox.push(match room {
                Some(room) => Input::Look(Box::new(look), Some(room)),
                None => Input::NoRoom(Box::new(look)),
            }));
        }));
    }

    pub(super) fn handle_no_room(&self, look: Look) {
        self.env.seen(look, Shown::Full);
    }

    fn show(&mut self, look: Look, room: OwnedSemaphorePermit) {
        let Some(copy) = self.copy_of(look.shard) else {
            return self.env.seen(look, Shown::Elsewhere);
        };
        let (id, applied) = (copy.id(), copy.shadow.applied());
        let log_time = copy.shadow.log_time();
        if let Some(Row { seq: version, bytes }) = copy.shadow.unsaved(&look.entity).cloned() {
            let (bytes, place) = (Some(bytes), token(look.shard, applied));
            let state = ShownState { bytes, version, place, log_time, room };
            return self.env.seen(look, Shown::State(state));
        }
        let (shard, entity, inbox) = (look.shard, look.entity.clone(), self.env.inbox.clone());
        let reading = Box::new(Reading { look, room, copy: id, applied, log_time });
        let done = move |read| drop(inbox.push(Input::Looked(reading, read)));
        self.env.state.load(shard, entity, Box::new(done));
    }

    /// The tables were read for a look. What they held of another copy, or of one that is being
    /// removed, is nobody's to see.
    pub(super) fn handle_looked(
        &mut self,
        reading: Reading,
        read: Result<Option<StoredState>, StorageError>,
    ) {
        let Reading { mut look, room, copy, applied, log_time } = reading;
        let now = self.copy_of(look.shard).filter(|now| now.id() == copy && now.takes());
        let Some(now) = now.map(|now| now.shadow.applied()) else {
            return self.handle_look(look, Some(room));
        };
        match read {
            Ok(stored) => {
                let version = stored.as_ref().map_or(Seq(0), |stored| stored.seq);
                let Some(at) = place_of(version, [applied, now]) else {
                    look.token.seq = version;
                    return self.handle_look(look, Some(room));
                };
                let place = token(look.shard, at);
                let bytes = stored.map(|stored| stored.bytes);
                let state = ShownState { bytes, version, place, log_time, room };
                self.env.seen(look, Shown::State(state));
            }
            Err(error) => {
                let reason = format!("the entity's state cannot be read: {error}");
                self.env.seen(look, Shown::Unreadable { reason });
            }
        }
    }

    /// A copy may have applied what looks wait for.
    pub(super) fn show_waiting(&mut self, shard: ShardId) {
        if self.looks.waiting.is_empty() {
            return; // as nearly always, and this is asked after every append
        }
        while let Some(applied) = self.copy_of(shard).map(|copy| copy.shadow.applied())
            && let Some(waits) = self.looks.first_within(shard, applied)
            && self.copy_of(shard).is_some_and(|copy| copy.shows(waits.1) == Showing::Show)
            && let Some(look) = self.looks.take(&waits)
        {
            self.find_room(look);
        }
    }

    /// Time passed: who has waited long enough is told how far the copy is.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        while let Some(look) = self.looks.take_due(now) {
            self.give_up(look);
        }
    }

    fn give_up(&mut self, look: Look) {
        let shard = look.shard;
        let shown = self.copy_of(shard).map_or(Shown::Elsewhere, |copy| {
            let applied = copy.shadow.applied();
            let whole = copy.shows(Position::default()) == Showing::Show;
            Shown::Behind { have: whole.then(|| token(shard, applied)) }
        });
        self.env.seen(look, shown);
    }
}

impl Following {
    /// Whether a look is shown what is here. Nothing is while it is being replaced or promoted.
    fn shows(&self, wanted: Position) -> Showing {
        if self.takes() { self.standby.shows(wanted, self.shadow.applied()) } else { Showing::Wait }
    }
}

impl Env {
    /// Gives a look back to its lane. A lane that has ended drops it, which answers its caller.
    fn seen(&self, look: Look, shown: Shown) {
        let lane = usize::from(self.lane(look.shard));
        drop(self.lanes[lane].push(LaneInput::Seen(Box::new(Seen { look, shown }))));
    }
}

/// The first of these places of a copy that a row of this version is within. A row may be ahead of
/// what was applied when it was asked for; one that came with a copy of the states also of what is
/// applied now, and then of an epoch of which this copy has nothing yet. Its token would name an
/// earlier one, and be taken by who is deposed: so it has no place before its entry is applied.
fn place_of(version: Seq, places: [Position; 2]) -> Option<Position> {
    places.into_iter().find(|place| version <= place.seq)
}

fn token(shard: ShardId, at: Position) -> Token {
    Token { shard, epoch: at.epoch, seq: at.seq }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_protocol::id::{EntityId, Key, KindId};

    use super::*;
    use crate::shard::admission::Target;
    use crate::transport::LocalCalls;
    use crate::transport::loopback;
    use crate::transport::reply::Envelope;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn look(calls: &LocalCalls, shard: u32, wanted: Position) -> Look {
        let (shard, until) = (ShardId(shard), clock::now() + Duration::from_secs(1));
        let (reply, _) = calls.open(0, until, None);
        let request = loopback::request(bytes::Bytes::new());
        let envelope =
            Envelope { request, deadline: until, bytes: 0, source: 0, source_share: 1, reply };
        let entity = EntityId { kind: KindId(1), key: Key::new("a").unwrap() };
        let target = Target { kind: 0, method: 0 };
        Look { shard, entity, token: token(shard, wanted), until, target, envelope }
    }

    /// Looks were in the order of what they wait for, epochs first, and the first one was all that
    /// was looked at: one that waited for a place that nobody ever reached held up all the others.
    #[tokio::test]
    async fn a_look_that_wants_too_much_keeps_no_other_waiting() {
        let calls = LocalCalls::start(1, &tokio::runtime::Handle::current());
        let mut looks = Looks::default();
        for (shard, wanted) in [(6, at(1, 1)), (7, at(1, u64::MAX)), (7, at(3, 20)), (7, at(3, 30))]
        {
            looks.wait(look(&calls, shard, wanted));
        }
        looks.wait(look(&calls, 7, at(4, 1)));
        looks.wait(look(&calls, 8, at(1, 1)));
        let first = |looks: &Looks, applied| looks.first_within(ShardId(7), applied);
        assert_eq!(first(&looks, at(2, 50)), None, "nothing of epoch 3 is applied");
        assert_eq!(first(&looks, at(3, 19)), None);
        let waits = first(&looks, at(3, 20)).unwrap();
        assert_eq!(waits.1, at(3, 20));
        looks.take(&waits).unwrap();
        assert_eq!(first(&looks, at(3, 20)), None);
        assert_eq!(first(&looks, at(4, 29)).unwrap().1, at(4, 1), "and not the one for 30");
    }

    /// Its answer named the epoch of what was applied, which may be one before the row's.
    #[test]
    fn a_row_that_is_ahead_of_what_is_applied_has_no_place_yet() {
        let (before, now) = (at(1, 10), at(2, 14));
        assert_eq!(place_of(Seq(0), [before, now]), Some(before));
        assert_eq!(place_of(Seq(10), [before, now]), Some(before));
        assert_eq!(place_of(Seq(11), [before, now]), Some(now));
        assert_eq!(place_of(Seq(15), [before, now]), None);
        assert_eq!(place_of(Seq(11), [before, before]), None, "a copy of the states brought it");
    }
}
