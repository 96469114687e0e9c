//! Shards that another node is the primary of: read, followed, and let go.

use std::collections::BTreeSet;
use std::time::Duration;

use mainstay_protocol::entry::{Entry, Op, Segment};
use mainstay_protocol::id::{EntityId, IdempotencyKey, NodeId, Seq, ShardId};
use mainstay_protocol::replication::standby::{self, Kept, Standby};
use mainstay_protocol::replication::wire::Arrived;
use mainstay_protocol::replication::{Answer, Told as Answered};
use mainstay_protocol::time::Instant;
use tokio::sync::oneshot;

use super::Input;
use super::copying::arrivals::Offer;
use super::copying::pages::answered;
use super::keeper::{Env, Keeper};
use super::part::{Broken, Following, Found, Next, Opened, Opening, Part};
use super::shadow::{Shadow, Start};
use crate::chain::chain;
use crate::clock;
use crate::shard::copies::Word;
use crate::storage::{Journal, JournalNews, StorageError};
use crate::transport::replication::{AnswerSender, Appended};

/// Bytes of a journal's tail that are read at once.
const TAIL_BYTES: usize = 4 << 20;
/// How long to wait before a removal that failed is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(1);

impl Keeper {
    /// Reads what is here of a shard: its tables, unless a lane leaves its states, and then what
    /// the journal has beyond.
    pub(super) fn open(&mut self, shard: ShardId, found: Found, left: Option<(Start, Seq)>) {
        self.lives += 1;
        let life = self.lives;
        let (start, committed) = left.map_or((None, Seq(0)), |(start, upto)| (Some(start), upto));
        let opening = Opening { life, found, committed, failed: false };
        self.parts.insert(shard, Part::Opening(opening));
        let (state, journal, inbox) =
            (self.env.state.clone(), self.env.journal.clone(), self.env.inbox.clone());
        drop(self.env.runtime.spawn(async move {
            let opened = match start {
                Some(start) => Ok(start),
                None => answered(|done| state.open_shard(shard, done)).await.map(Start::from),
            };
            let opened = match opened {
                Ok(start) => read_tail(journal, shard, start).await,
                Err(error) => Err(error),
            };
            drop(inbox.push(Input::Opened(shard, life, opened.map(Box::new))));
        }));
    }

    pub(super) fn handle_opened(
        &mut self,
        shard: ShardId,
        life: u64,
        opened: Result<Box<Opened>, StorageError>,
    ) {
        let Some(Part::Opening(opening)) = self.parts.get_mut(&shard) else { return };
        if opening.life != life {
            return;
        }
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%shard, %error, "what is here of a shard cannot be read");
                opening.failed = true;
                return;
            }
        };
        let (found, committed) = (opening.found.clone(), opening.committed);
        match self.follow((shard, life), found, committed, *opened) {
            Ok(following) => {
                self.parts.insert(shard, Part::Following(Box::new(following)));
                self.with_following(shard, |following, _| following.apply());
                self.look_again(shard);
            }
            Err(broken) => self.stop_for((shard, &broken)),
        }
    }

    pub(super) fn follow(
        &self,
        (shard, life): (ShardId, u64),
        found: Found,
        committed: Seq,
        opened: Opened,
    ) -> Result<Following, Broken> {
        let Opened { mut start, tail } = opened;
        let mut entries = Vec::new();
        for segment in &tail {
            entries.append(&mut segment.entries()?);
        }
        forget_unapplied(&mut start, &entries);
        let applied = start.applied.seq;
        let last = tail.last().map_or(applied, |segment| segment.last);
        let Found { promised, history, dropped } = found;
        if history.last().seq != last {
            return Err(Broken::Log { found: last, last: history.last().seq });
        }
        let committed = committed.max(applied);
        let kept = Kept { promised, history, committed, whole: true };
        let disk = self.env.me.disk;
        let mut standby = Standby::new((shard, disk, life), kept, self.env.timing, clock::now());
        if dropped {
            standby.note_dropped();
        }
        let mut shadow = Shadow::new(shard, self.env.dedup, start);
        shadow.hold(tail, entries)?;
        Ok(Following::new((shard, life), standby, shadow, (committed, last)))
    }

    // -- following --

    /// Does something with a standby, and then what follows from it.
    pub(super) fn with_following(
        &mut self,
        shard: ShardId,
        act: impl FnOnce(&mut Following, &mut Env) -> Result<(), Broken>,
    ) {
        let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else { return };
        match act(following, &mut self.env) {
            Ok(()) => self.after(shard),
            Err(broken) => self.stop_for((shard, &broken)),
        }
    }

    /// What follows from any change of a standby.
    pub(super) fn after(&mut self, shard: ShardId) {
        self.read_for(shard);
        let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else { return };
        if following.promoting.is_some() {
            self.promote(shard);
        } else {
            self.go_on(shard);
            self.show_waiting(shard);
        }
    }

    /// Reads the states that a standby needs to go on.
    pub(super) fn read_for(&mut self, shard: ShardId) {
        let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else { return };
        let life = following.life;
        while let Some(wanted) = following.shadow.poll_wanted() {
            let inbox = self.env.inbox.clone();
            let (entity, number) = wanted;
            let asked = entity.clone();
            let done =
                move |read| drop(inbox.push(Input::Read(shard, life, (asked, number), read)));
            self.env.state.load(shard, entity, Box::new(done));
        }
    }

    /// A copy that cannot go on: what this node could do next may do harm.
    pub(super) fn stop_for(&self, (shard, broken): (ShardId, &Broken)) {
        match broken {
            Broken::Append(
                error @ (standby::AppendError::Malformed { .. } | standby::AppendError::Segment(_)),
            ) => {
                tracing::error!(%shard, %error, "a peer sent what does not fit together");
            }
            Broken::Append(standby::AppendError::BelowCommitted { .. })
            | Broken::Differs(_)
            | Broken::Log { .. }
            | Broken::Segment(_) => {
                (self.env.fatal)(format!("shard {shard}: {}", chain(broken)));
            }
        }
    }

    pub(super) fn handle_appended(&mut self, appended: Appended) {
        let Appended { from, appends, answers, room } = appended;
        let now = clock::now();
        for arrived in appends {
            self.handle_append(&from.node, arrived, &answers, now);
        }
        self.env.writes.keep(room);
    }

    pub(super) fn handle_append(
        &mut self,
        from: &NodeId,
        arrived: Arrived,
        answers: &AnswerSender,
        now: Instant,
    ) {
        let (shard, epoch) = (arrived.append.shard, arrived.append.epoch);
        match self.parts.get_mut(&shard) {
            Some(Part::Following(following)) if following.takes() => {
                self.with_following(shard, |following, env| {
                    following.handle_append(&mut env.writes, arrived, answers, now)
                });
            }
            Some(Part::Leading(leading)) if epoch < leading.epoch => {
                let what = Answered::Fenced { promised: leading.epoch };
                answers.send(Answer { shard, epoch, disk: self.env.me.disk, what });
            }
            Some(Part::Leading(leading)) if epoch > leading.epoch => {
                // It is sent again; by then this copy follows.
                let mine = leading.epoch;
                self.env.hear(shard, mine, Word::Deposed(epoch));
            }
            // Not here yet, or busy with itself: it is sent again.
            Some(_) | None => {
                tracing::trace!(%shard, %from, "an append is not taken");
            }
        }
    }

    pub(super) fn handle_journal(&mut self, news: &JournalNews) {
        match news {
            JournalNews::Committed { ticket: batch, .. } => {
                for (shard, ticket) in self.env.writes.handle_durable(*batch).tickets {
                    self.with_following(shard, |following, env| {
                        following.handle_durable(&mut env.writes, (*batch, ticket))
                    });
                }
            }
            JournalNews::Fenced { shard, promised, .. } => {
                let promised = promised.0;
                (self.env.fatal)(format!("shard {shard}: the journal has promised {promised}"));
            }
            JournalNews::Failed { error, .. } => {
                tracing::error!(%error, "the journal stopped: this node holds nothing more");
            }
        }
    }

    /// Does what waited until nothing of a shard is on its way to the journal.
    pub(super) fn go_on(&mut self, shard: ShardId) {
        let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else { return };
        match following.take_next() {
            None | Some(Next::Removing) => return,
            Some(Next::Discard) => {}
            Some(Next::Leave) => {
                let promised = following.standby.promised();
                let found = Found { promised, dropped: true, ..Found::default() };
                self.parts.insert(shard, Part::Dropping(found));
            }
            Some(Next::Copy(ticket, answer)) => {
                let shadow = Shadow::new(shard, self.env.dedup, Start::default());
                following.replace(shadow, Seq(0));
                following.next = None;
                // The copy removes what is here before it brings anything.
                answer.send(Some(ticket)).unwrap_or_default();
                return self.look_again(shard);
            }
        }
        self.remove(shard);
    }

    pub(super) fn remove(&self, shard: ShardId) {
        let inbox = self.env.inbox.clone();
        let done = move |result| drop(inbox.push(Input::Removed(shard, result)));
        self.env.arriving.discard(shard, Box::new(done));
    }

    pub(super) fn handle_removed(&mut self, shard: ShardId, result: Result<(), StorageError>) {
        if let Err(error) = result {
            tracing::warn!(%shard, %error, "a copy that is not wanted stays on disk for now");
            let (inbox, runtime) = (self.env.inbox.clone(), self.env.runtime.clone());
            let arriving = self.env.arriving.clone();
            drop(runtime.spawn(async move {
                tokio::time::sleep(REMOVE_AGAIN).await;
                let done = move |result| drop(inbox.push(Input::Removed(shard, result)));
                arriving.discard(shard, Box::new(done));
            }));
            return;
        }
        let (dedup, empty) = (self.env.dedup, Start::default());
        match self.parts.get_mut(&shard) {
            Some(Part::Dropping(found)) => {
                let found = std::mem::take(found);
                self.parts.remove(&shard);
                self.found.insert(shard, found);
            }
            Some(Part::Following(following)) => {
                following.replace(Shadow::new(shard, dedup, empty), Seq(0));
                following.next = None;
            }
            Some(Part::Opening(_) | Part::Leading(_)) | None => {}
        }
        self.look_again(shard);
    }

    // -- copies of the states, at their target --

    pub(super) fn handle_copy_begins(
        &mut self,
        offer: &Offer,
        answer: oneshot::Sender<Option<standby::Ticket>>,
    ) {
        let &Offer { shard, epoch, base, .. } = offer;
        let primary = self.env.map.shard(shard).filter(|config| config.epoch == epoch);
        let primary = primary.and_then(|config| config.primary.as_ref());
        let offered = primary.is_some_and(|claim| claim.node == offer.from);
        let following = self.parts.get_mut(&shard).and_then(Part::following).filter(|_| offered);
        let Some(following) = following.filter(|following| following.takes()) else {
            return answer.send(None).unwrap_or_default();
        };
        let Some(ticket) = following.standby.handle_copy_begins(epoch, base) else {
            return answer.send(None).unwrap_or_default();
        };
        let batch = self.env.writes.add(shard, (epoch, Vec::new()), None);
        following.note_write(batch);
        following.next = Some(Next::Copy(ticket, answer));
    }

    pub(super) fn handle_copy_ends(
        &mut self,
        shard: ShardId,
        ticket: standby::Ticket,
        start: Start,
    ) -> bool {
        let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else {
            return false;
        };
        let ends = following.standby.handle_copy_ends(ticket);
        if ends {
            let applied = start.applied.seq;
            following.replace(Shadow::new(shard, self.env.dedup, start), applied);
        }
        self.with_following(shard, |following, env| following.carry_out(&mut env.writes, vec![]));
        self.look_again(shard);
        ends
    }
}

/// Reads what the journal has of a shard beyond its states.
async fn read_tail(journal: Journal, shard: ShardId, start: Start) -> Result<Opened, StorageError> {
    let read = move || {
        let mut tail: Vec<Segment> = Vec::new();
        loop {
            let last = tail.last().map_or(start.applied.seq, |segment| segment.last);
            let more = journal.read(shard, last.next(), TAIL_BYTES)?;
            if more.is_empty() {
                return Ok(Opened { start, tail });
            }
            tail.extend(more);
        }
    };
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(StorageError::Closed))
}

/// Takes records out that entries brought which are not applied: they come again with those.
fn forget_unapplied(start: &mut Start, entries: &[Entry]) {
    let keys: BTreeSet<(&EntityId, &IdempotencyKey)> = entries
        .iter()
        .filter_map(|entry| match &entry.op {
            Op::Turn { entity, dedup: Some(record), .. } => Some((entity, &record.key)),
            Op::Turn { dedup: None, .. } | Op::Noop => None,
        })
        .collect();
    start.dedup.retain(|(entity, _, record)| !keys.contains(&(entity, &record.key)));
}
