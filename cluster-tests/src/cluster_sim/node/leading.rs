//! The primary of the simulated shard: its rules, its feed, and what a lane does for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{Claim, ClusterState, Expect, ShardConfig};
use mainstay_protocol::entry::{DedupRecord, Op};
use mainstay_protocol::id::{EntityId, Epoch, NodeId, Seq};
use mainstay_protocol::message::Failure;
use mainstay_protocol::replication::feed::{self, Feed};
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::replication::standby::Succession;
use mainstay_protocol::shard::primary::Primary;
use mainstay_protocol::shard::{Done, Post, Recovered};
use mainstay_protocol::time::{Instant, LogTime, Moment};

use super::number;
use super::wire::{Settings, To, Wire};
use crate::cluster_sim::disk::{Disk, Ticket, Write};
use crate::sim::clients::Call;
use crate::sim::cluster::{SHARD, Stored};
use crate::sim::model::States;
use crate::sim::scene::Scene;

/// After so long a copy that did not arrive is given up.
const COPY_TIMEOUT: Duration = Duration::from_millis(300);
/// Rounds are asked for this often at most.
const ROUND_EVERY: Duration = Duration::from_millis(5);

/// The end of a handoff is asked for this often at most.
const COMPLETE_EVERY: Duration = Duration::from_millis(20);

/// The primary's part.
#[derive(Debug)]
pub struct Leading {
    /// The rules.
    pub primary: Primary<Call>,
    pub(super) feed: Feed,
    pub(super) scene: Scene,
    pub(super) claim: Claim,
    pub(super) asked_round: Instant,
    pub(super) asked_complete: Instant,
    pub(super) copying: BTreeMap<NodeId, Instant>,
    pub(super) handing_to: Option<NodeId>,
}

impl Settings {
    pub(super) fn lead(
        &self,
        disk: &Disk,
        (epoch, copies, claim): (Epoch, &Copies, Claim),
        succession: &Succession,
        at: Moment,
    ) -> Leading {
        let (committed, serve_from) = (succession.committed, succession.serve_from);
        let image = &disk.seen;
        let last = image.last().seq;
        let post = Post {
            shard: SHARD,
            epoch,
            me: claim.node.clone(),
            copies: copies.clone(),
            min_insync: self.min_insync,
            timing: self.timing,
            serve_from,
        };
        let log_time = image.log.last().map_or(LogTime(0), |stored| stored.entry.log_time);
        let dedup = image.log.iter().filter_map(record_of).collect();
        let recovered = Recovered { last, log_time, dedup };
        let mut states = States::default();
        states.apply(&image.log, image.log.len()).expect("a log that was written applies");
        let from = Seq(committed.0.saturating_sub(self.tail));
        let history = image.history(from);
        let tail = image.segments(from, self.segment);
        let mut leading = Leading {
            primary: Primary::new(self.shard, post, recovered, at.wall),
            feed: Feed::new(self.feed, (SHARD, epoch), history, tail, (committed, committed)),
            scene: Scene::new(states, None),
            claim: claim.clone(),
            asked_round: Instant::ZERO,
            asked_complete: Instant::ZERO,
            copying: BTreeMap::new(),
            handing_to: None,
        };
        if let Some(mutant) = self.mutant {
            leading.primary.plant(mutant);
            leading.feed.plant(mutant);
        }
        leading.feed.handle_copies(&claim.node, copies, at.now);
        leading
    }
}

fn record_of(stored: &Stored) -> Option<(EntityId, LogTime, DedupRecord)> {
    let Op::Turn { entity, dedup: Some(record), .. } = &stored.entry.op else { return None };
    Some((entity.clone(), stored.entry.log_time, record.clone()))
}

impl Leading {
    pub(super) fn tick(&mut self, now: Instant) {
        self.primary.handle_timeout(now);
        self.feed.handle_timeout(now);
        let late: Vec<_> = self
            .copying
            .iter()
            .filter(|(_, since)| now >= **since + COPY_TIMEOUT)
            .map(|(node, _)| node.clone())
            .collect();
        for node in late {
            self.copying.remove(&node);
            self.feed.handle_copied(&node, false, now);
        }
    }

    pub(super) fn run_turns(&mut self, at: Moment) {
        while let Some(turn) = self.primary.next_turn(at) {
            if turn.fresh {
                let version = self.scene.activate(turn.slot, turn.item.entity);
                self.primary.handle_activated(turn.slot, version);
            }
            let done = if self.primary.meets_condition(turn.id) {
                self.scene.run(turn.slot, &turn.item)
            } else {
                Done::Unmet
            };
            let ended = self.primary.handle_turn_done(turn.id, done, turn.item, at);
            debug_assert!(ended.is_ok(), "a turn ends once");
        }
    }

    pub(super) fn write(&mut self, disk: &mut Disk, now: Instant) {
        let epoch = self.primary.epoch();
        while let Some(segment) = self.primary.take_segment() {
            let ticket = Ticket::Primary(epoch, segment.last);
            let segments = vec![segment.clone()];
            disk.write(ticket, Write::Append { promised: epoch, segments });
            self.feed.handle_segment(segment, now);
        }
    }

    /// Carries out what the feed wants; `true` when this primary is deposed.
    pub(super) fn exchange(
        &mut self,
        disk: &Disk,
        outbox: &mut VecDeque<(To, Wire)>,
        now: Instant,
    ) -> bool {
        if self.primary.wants_round() && now >= self.asked_round + ROUND_EVERY {
            self.asked_round = now;
            self.feed.ask_round(now);
        }
        while let Some(effect) = self.feed.poll_effect() {
            match effect {
                feed::Effect::Send { to, append } => {
                    outbox.push_back((To::Node(number(&to)), Wire::Append(append)));
                }
                feed::Effect::Copy { to } => {
                    let Some(base) = self.feed.handle_copy_turn(&to) else { continue };
                    let upto = usize::try_from(base.seq.0).unwrap_or(usize::MAX);
                    let log = disk.seen.log[..upto.min(disk.seen.log.len())].to_vec();
                    self.copying.insert(to.clone(), now);
                    let copy = Wire::Copy(self.primary.epoch(), base, log);
                    outbox.push_back((To::Node(number(&to)), copy));
                }
                feed::Effect::Holds { from, disk, upto, version } => {
                    // What does not count is not counted; that is all there is to do about it.
                    drop(self.primary.handle_holds(&from, disk, (version, upto)));
                }
                feed::Effect::Heard { from, disk, sent_at, promised } => {
                    drop(self.primary.handle_heard(&from, disk, (sent_at, promised), now));
                }
                feed::Effect::Regressed { from, disk, upto } => {
                    self.primary.handle_regressed(&from, disk, upto);
                }
                feed::Effect::Deposed { .. } => return true,
            }
        }
        false
    }

    pub(super) fn commit(&mut self, disk: &Disk, now: Instant) {
        let watermark = self.primary.watermark();
        self.feed.handle_committed(watermark, watermark, now);
        let upto = usize::try_from(watermark.0).unwrap_or(usize::MAX);
        let applied = self.scene.stored.apply(&disk.seen.log, upto);
        debug_assert!(applied.is_ok(), "a log that was written applies: {applied:?}");
    }

    pub(super) fn propose(
        &mut self,
        config: Option<&ShardConfig>,
        outbox: &mut VecDeque<(To, Wire)>,
        now: Instant,
    ) {
        let epoch = self.primary.epoch();
        if config.is_none_or(|config| config.epoch != epoch) {
            return;
        }
        if let Some((version, set)) = self.primary.poll_proposal(now) {
            let expect = Expect { epoch, version };
            outbox.push_back((To::Plane, Wire::Propose(self.claim.clone(), expect, set)));
        }
    }

    pub(super) fn hand_over(&mut self, to: Option<NodeId>) {
        if to == self.handing_to {
            return;
        }
        if to.is_some() {
            self.primary.stop_admission(Failure::NotPrimary { map_version: 0, primary: None });
        } else {
            self.primary.resume_admission();
        }
        self.handing_to = to;
    }

    pub(super) fn complete(
        &mut self,
        map: Option<&Arc<ClusterState>>,
        outbox: &mut VecDeque<(To, Wire)>,
        now: Instant,
    ) {
        let Some(map) = map.filter(|_| now >= self.asked_complete + COMPLETE_EVERY) else {
            return;
        };
        let (Some(to), Some(config)) = (&self.handing_to, map.shard(SHARD)) else { return };
        if config.epoch == self.primary.epoch()
            && self.primary.is_drained()
            && let Some(claim) = map.claim_of(to)
        {
            self.asked_complete = now;
            outbox.push_back((To::Plane, Wire::Complete(config.expect(), claim)));
        }
    }
}
