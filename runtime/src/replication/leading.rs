//! Shards that this node is the primary of: promotion, feeds, and the end of a primacy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::feed::{self, Effect, Feed};
use mainstay_protocol::replication::standby::NotPromoted;
use mainstay_protocol::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

use super::Input;
use super::copying::{self, COPIES_OUT_MAX, CopyOut};
use super::keeper::{Env, Keeper};
use super::part::{Found, Leading, Part};
use super::shadow::Start;
use crate::chain::chain;
use crate::clock;
use crate::lane::Input as LaneInput;
use crate::shard::Records;
use crate::shard::copies::{Goes, Promoted, Told, Word};
use crate::transport::replication::Event;

/// Bytes on their way to one peer, over all shards; below what its connection may queue.
const PEER_WINDOW_BYTES: u64 = 48 << 20;
/// Bytes on their way to one copy, at least and at most.
const WINDOW_BYTES_MIN: u64 = 64 << 10;
const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// Bytes of entries that a node keeps for copies that lag, over all its shards; and for one of them,
/// at least and at most. At least as many are kept when nobody lacks them.
const RETAIN_BYTES: u64 = 512 << 20;
const RETAIN_BYTES_MIN: u64 = 1 << 20;
const RETAIN_BYTES_MAX: u64 = 8 << 20;
/// Bytes of entries that a node keeps beside the states that it sends, over all copies that have their
/// turn. A copy comes to its end when no more than its part of this is written while it is made.
const COPYING_BYTES: u64 = 256 << 20;

/// How long to wait after a copy that did not arrive.
const COPY_AGAIN: Duration = Duration::from_millis(200);

impl Keeper {
    /// Makes a standby the primary that the map wants, once the states that its log needs are read.
    pub(super) fn promote(&mut self, shard: ShardId) {
        let Some(Part::Following(following)) = self.parts.get_mut(&shard) else { return };
        let Some(epoch) = following.promoting else { return };
        let succession = match following.standby.promote(epoch) {
            Ok(succession) => succession,
            // Another member of the set takes over once this node is gone.
            Err(error @ NotPromoted::Incomplete) => {
                (self.env.fatal)(format!("shard {shard}, epoch {}: {error}", epoch.0));
                following.promoting = None;
                return;
            }
            Err(error @ NotPromoted::Promised { .. }) => {
                tracing::warn!(%shard, epoch = epoch.0, %error, "not promoted");
                following.promoting = None;
                return;
            }
        };
        // A save under way counts for nothing here: the primary saves again.
        if let Some(saving) = following.saving.take() {
            following.shadow.handle_saved(&saving, false);
        }
        let last = succession.history.last();
        let heritage = match following.shadow.poll_heritage(last) {
            Ok(Some(heritage)) => heritage,
            Ok(None) => return self.read_for(shard),
            Err(error) => {
                (self.env.fatal)(format!("shard {shard}: {}", chain(&error)));
                return;
            }
        };
        let (history, tail) = (succession.history, heritage.tail);
        let committed = succession.committed;
        let config = limits(self.env.map.shards.len());
        let committed = (committed, heritage.records.dirty.settled().seq);
        let feed = Feed::new(config, (shard, epoch), history, tail, committed);
        let (turns, wanting) = (BTreeMap::new(), BTreeMap::new());
        let leading = Leading { epoch, feed, turns, wanting };
        self.parts.insert(shard, Part::Leading(Box::new(leading)));
        let (map, records) = (Arc::clone(&self.env.map), heritage.records);
        let serve_from = succession.serve_from;
        let ascent = self.ascents.take(shard, epoch, clock::now());
        let promoted = Promoted { shard, epoch, serve_from, records, map, ascent };
        let lane = usize::from(self.env.lane(shard));
        drop(self.env.lanes[lane].push(LaneInput::Promoted(Box::new(promoted))));
        self.connect();
    }

    /// Keeps connections to those who are fed, and to nobody else.
    pub(super) fn connect(&self) {
        let mut wanted = BTreeSet::new();
        for (shard, part) in &self.parts {
            let Some(config) = self.env.map.shard(*shard) else { continue };
            if matches!(part, Part::Leading(_)) {
                wanted.extend(config.in_sync.keys().chain(&config.targets));
            }
        }
        wanted.remove(&self.env.me.node);
        for node in &wanted {
            if let Some(member) = self.env.map.members.get(*node) {
                self.env.replicator.connect(node, &member.peer_addr);
            }
        }
        self.env.replicator.retain(|node| wanted.contains(node));
    }

    /// A lane tells how a shard of its goes on.
    pub(super) fn handle_told(&mut self, told: Told) {
        match told {
            Told::Goes(goes) => self.handle_goes(goes),
            Told::Saved { shard, epoch, upto, log_time } => {
                let map = Arc::clone(&self.env.map);
                let Some(leading) = self.parts.get_mut(&shard).and_then(Part::leading) else {
                    return;
                };
                if leading.epoch != epoch {
                    return;
                }
                let wanting = std::mem::take(&mut leading.wanting);
                let (ready, later) =
                    wanting.into_iter().partition(|(_, base)| base.seq <= upto.seq);
                leading.wanting = later;
                let turns = leading.turns.clone();
                for (to, base) in BTreeMap::<NodeId, Position>::into_iter(ready) {
                    let addr = map.members.get(&to).map(|member| member.peer_addr.clone());
                    let addr = addr.unwrap_or_default();
                    let turn = turns.get(&to).cloned();
                    self.env.copy(CopyOut { shard, epoch, base, log_time, to, addr }, turn);
                }
            }
            Told::Left { shard, records } => self.handle_left(shard, *records),
        }
    }

    fn handle_goes(&mut self, goes: Goes) {
        let Goes { shard, epoch, segments, committed, savable, copies, leases, round } = goes;
        let (me, now) = (self.env.me.node.clone(), clock::now());
        self.with_feed_of(shard, epoch, |feed| {
            if let Some(until) = leases {
                feed.ask_leases(until);
            }
            for segment in segments {
                feed.handle_segment(segment, now);
            }
            // After the noop of the epoch: whoever is asked for the first time gets it at once.
            if let Some(copies) = copies {
                feed.handle_copies(&me, &copies, now);
            }
            feed.handle_committed(committed, savable, now);
            if round {
                feed.ask_round(now);
            }
        });
    }

    /// A lane let go of a shard: it is followed from here on, as its log goes.
    fn handle_left(&mut self, shard: ShardId, records: Records) {
        // What recovery gave to a lane is not led, and read from the disk again.
        let part = self.parts.remove(&shard);
        let Some(Part::Leading(leading)) = part else {
            self.parts.extend(part.map(|part| (shard, part)));
            return;
        };
        self.timers.set(shard, None);
        let Leading { epoch, feed, .. } = *leading;
        let Records { log_time, dedup, mut dirty, .. } = records;
        dirty.forget_unsettled();
        let applied = dirty.settled();
        let start = Start { applied, log_time, dedup, dirty };
        let (history, committed) = feed.into_log();
        let found = Found { promised: epoch, history, dropped: false };
        self.open(shard, found, Some((start, committed)));
        self.connect();
    }

    /// News of a connection to a node that is fed.
    pub(super) fn handle_event(&mut self, event: Event) {
        let now = clock::now();
        match event {
            Event::Connected { node, .. } => {
                self.ascents.handle_connected(&node);
                let led = |(shard, part): (&ShardId, &Part)| {
                    matches!(part, Part::Leading(_)).then_some(*shard)
                };
                let shards: Vec<_> = self.parts.iter().filter_map(led).collect();
                for shard in shards {
                    self.with_feed(shard, |feed| feed.handle_connected(&node, now));
                }
            }
            Event::Answers { node, answers } => {
                for answer in answers {
                    let shard = answer.shard;
                    self.with_feed(shard, |feed| feed.handle_answer(&node, &answer, now));
                }
            }
            Event::Lost { node, why } => {
                tracing::debug!(peer = %node, reason = chain(&why), "a standby's node is not fed");
                self.ascents.handle_lost(&node, now);
                (self.env.lost)(&node);
            }
            Event::Unreachable { .. } => {}
        }
    }

    /// A copy of a shard's states has its turn, which lasts as long as `turn` is kept.
    pub(super) fn handle_copy_turn(
        &mut self,
        (shard, epoch): (ShardId, Epoch),
        to: NodeId,
        turn: OwnedSemaphorePermit,
    ) {
        let led = self.parts.get_mut(&shard).and_then(Part::leading);
        if let Some(leading) = led.filter(|leading| leading.epoch == epoch)
            && let Some(base) = leading.feed.handle_copy_turn(&to)
        {
            leading.turns.insert(to.clone(), Arc::new(turn));
            leading.wanting.insert(to, base);
            self.env.hear(shard, epoch, Word::WantsSaved(base.seq));
        }
    }

    /// A copy of a shard's states ended.
    pub(super) fn handle_copied(
        &mut self,
        shard: ShardId,
        epoch: Epoch,
        to: &NodeId,
        arrived: bool,
    ) {
        let now = clock::now();
        self.with_feed_of(shard, epoch, |feed| feed.handle_copied(to, arrived, now));
    }

    /// Looks after feeds whose time has come.
    pub(super) fn handle_timers(&mut self) {
        let now = clock::now();
        while let Some(shard) = self.timers.take_due(now) {
            self.with_feed(shard, |feed| feed.handle_timeout(now));
        }
    }

    fn with_feed_of(&mut self, shard: ShardId, epoch: Epoch, act: impl FnOnce(&mut Feed)) {
        let led = self.parts.get_mut(&shard).and_then(Part::leading);
        if led.is_some_and(|leading| leading.epoch == epoch) {
            self.with_feed(shard, act);
        }
    }

    /// Does something with a feed, and carries out what it wants.
    fn with_feed(&mut self, shard: ShardId, act: impl FnOnce(&mut Feed)) {
        let Some(Part::Leading(leading)) = self.parts.get_mut(&shard) else { return };
        act(&mut leading.feed);
        let epoch = leading.epoch;
        while let Some(effect) = leading.feed.poll_effect() {
            let word = match effect {
                Effect::Send { to, append } => {
                    // Who is not connected hears it once he is.
                    drop(self.env.replicator.send(&to, append));
                    continue;
                }
                Effect::Copy { to } => {
                    self.env.ask_turn((shard, epoch), to);
                    continue;
                }
                Effect::Holds { from, disk, upto, version } => {
                    Word::Holds(from, disk, (version, upto))
                }
                Effect::Heard { from, disk, sent_at, promised } => {
                    Word::Heard(from, disk, (sent_at, promised))
                }
                Effect::Regressed { from, disk, upto } => Word::Regressed(from, disk, upto),
                Effect::Deposed { by } => Word::Deposed(by),
            };
            self.env.hear(shard, epoch, word);
        }
        leading.turns.retain(|to, _| leading.feed.has_turn(to));
        leading.wanting.retain(|to, _| leading.feed.has_turn(to));
        let next: Option<Instant> = leading.feed.poll_timeout();
        self.timers.set(shard, next);
    }
}

/// What the feed of one of so many shards may use: what waits for a peer, and what is kept by a node,
/// has a bound, and all shards may wait for the same one.
fn limits(shards: usize) -> feed::Config {
    let shards = u64::try_from(shards.max(1)).unwrap_or(u64::MAX);
    feed::Config {
        window_bytes: (PEER_WINDOW_BYTES / shards).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX),
        retain_bytes: (RETAIN_BYTES / shards).clamp(RETAIN_BYTES_MIN, RETAIN_BYTES_MAX),
        copying_bytes: COPYING_BYTES / COPIES_OUT_MAX as u64,
        ..feed::Config::default()
    }
}

impl Env {
    /// Waits for the turn of a copy of a shard's states.
    fn ask_turn(&self, (shard, epoch): (ShardId, Epoch), to: NodeId) {
        let (parts, inbox) = (Arc::clone(&self.copies), self.inbox.clone());
        drop(self.runtime.spawn(async move {
            let turn = parts.turn().await;
            drop(inbox.push(Input::CopyTurn((shard, epoch), to, turn)));
        }));
    }

    /// Sends a copy of a shard's states. Its turn lasts until then, though nobody may want it any more.
    fn copy(&self, copy: CopyOut, turn: Option<Arc<OwnedSemaphorePermit>>) {
        let (parts, inbox) = (Arc::clone(&self.copies), self.inbox.clone());
        drop(self.runtime.spawn(async move {
            let (shard, epoch, to) = (copy.shard, copy.epoch, copy.to.clone());
            let sent = copying::send(&parts, copy).await;
            drop(turn);
            if let Err(error) = &sent {
                tracing::debug!(%shard, %to, error = chain(error), "a copy did not arrive");
                // It is asked for again at once, and what fails now fails a moment later.
                tokio::time::sleep(COPY_AGAIN).await;
            }
            drop(inbox.push(Input::Copied(shard, epoch, to, sent.is_ok())));
        }));
    }
}
