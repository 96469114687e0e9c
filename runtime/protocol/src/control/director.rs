//! What to propose next: the control leader's plan, as a function of what is known.
//!
//! The consensus leader calls [`plan`] whenever the state or a verdict changed, and proposes what
//! comes out, in order. It remembers nothing: a leader that takes over goes on from the state. What
//! it proposes is never refused by the state that it was made for; by a later one it is stale, and
//! the next plan is made for that one. A plan of a settled cluster is empty.
//!
//! ```text
//!   1. members that are dead          SetDown; with them only 2, for the shards that they leave
//!   2. primaries that restarted       Promote: the same node, a new epoch
//!      primaries that are lost        Promote: a copy that is in sync and heard
//!   3. moves that cannot end          AbortHandoff: something is said against an end, or the target
//!                                     is not wanted now
//!   4. members changed                SetTargets: the placement, then
//!   5. shards that never had one      Promote their first target
//!   6. shards elsewhere than wanted   BeginHandoff, a few at a time, drained members first
//!   7. drained members without shards Leave
//! ```
//!
//! A primary without a copy to take over is waited for. With standbys a shard moves only to a copy
//! that is in sync: its primary brings new targets in and lets old ones go. Without standbys, a
//! member that is down keeps its seat while it holds the only copy of anything: its shards can move
//! nowhere, and a restart must not move the others to and fro. A draining member has no seat.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claim, ClusterState, Command, Expect, Handoff, Health, MemberState, ShardConfig};
use crate::failure_detector::Verdict;
use crate::id::{BootId, DiskId, Epoch, NodeId, ShardId};
use crate::limits;
use crate::placement::{self, Seat};
use crate::ring::Ring;

/// What the leader's failure detector says about the members, each with the start that is judged.
/// Who is missing is not judged.
pub type View = BTreeMap<NodeId, (BootId, Verdict)>;

/// The bounds of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Moves under way at once. More ends a rebalance sooner and makes more shards pause together.
    pub moves_max: usize,
    /// A new cluster places nothing before it has so many members up, so that its shards need not
    /// move at once. The scene passes 0 after some seconds, lest one that never comes hold it up.
    pub members_min: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { moves_max: 8, members_min: 0 }
    }
}

/// What to propose next, in order. Empty when there is nothing to do but wait.
pub fn plan(state: &ClusterState, view: &View, config: Config) -> Vec<Command> {
    let director = Director { state, view, config };
    let mut commands = director.downs();
    if !commands.is_empty() {
        // Callers wait for a new primary: it is planned now, on the state as it will be.
        let mut after = state.clone();
        for down in &commands {
            drop(after.apply(down.clone()));
        }
        commands.extend(promote(&Director { state: &after, ..director }.successions()));
        return commands;
    }
    if state.cluster.is_none() || director.is_forming() {
        return commands;
    }
    let mut promotions = director.successions();
    let retarget = director.retarget();
    if retarget.is_none() {
        promotions.extend(director.starts());
    }
    commands.extend(promote(&promotions));
    commands.extend(director.aborts());
    if retarget.is_some() {
        commands.extend(retarget);
        return commands;
    }
    commands.extend(director.moves());
    commands.extend(director.leaves());
    commands
}

type Promotion = (ShardId, Expect, Claim);

fn promote(shards: &[Promotion]) -> impl Iterator<Item = Command> {
    let commands = shards.chunks(limits::PROMOTED_SHARDS_MAX);
    commands.map(|shards| Command::Promote { shards: shards.to_vec() })
}

struct Director<'a> {
    state: &'a ClusterState,
    view: &'a View,
    config: Config,
}

impl Director<'_> {
    fn downs(&self) -> Vec<Command> {
        let members = self.state.members.iter();
        let dead = members.filter(|(node, member)| {
            member.state != MemberState::Down && self.verdict(node) == Some(Verdict::Dead)
        });
        dead.map(|(node, member)| Command::SetDown { node: node.clone(), boot: member.boot })
            .collect()
    }

    fn is_forming(&self) -> bool {
        let up = self.state.members.values().filter(|member| member.state == MemberState::Up);
        up.count() < self.config.members_min
            && self.state.shards.iter().all(|config| config.epoch == Epoch(0))
    }

    /// The shards whose primary restarted or is lost, and who serves them next.
    fn successions(&self) -> Vec<Promotion> {
        let succession = |(shard, config): (ShardId, &ShardConfig)| {
            Some((shard, config.expect(), self.successor(config)?))
        };
        self.state.shards().filter_map(succession).collect()
    }

    /// Who serves a shard next that its primary does not serve: the new start of the primary, or
    /// else of the copies that are in sync and heard the one that is wanted most.
    fn successor(&self, config: &ShardConfig) -> Option<Claim> {
        match self.state.health(config) {
            Health::Unassigned | Health::Served => None,
            Health::Restarted => self.state.claim_of(&config.primary.as_ref()?.node),
            Health::Down | Health::DiskLost => {
                let heard =
                    config.in_sync.iter().filter(|(node, disk)| self.is_heard(node, **disk));
                let place = |node: &NodeId| config.targets.iter().position(|at| at == node);
                let wanted = heard.min_by_key(|(node, _)| place(node).unwrap_or(usize::MAX));
                self.state.claim_of(wanted?.0)
            }
        }
    }

    /// Whether the registered start of a member is heard, on this disk: it holds what was written
    /// there. Everybody but the leader itself is judged.
    fn is_heard(&self, node: &NodeId, disk: DiskId) -> bool {
        let Some(member) = self.state.members.get(node) else { return false };
        let alive = (member.boot, Verdict::Alive);
        let heard = self.view.get(node).is_none_or(|judged| *judged == alive);
        member.disk == disk && member.state != MemberState::Down && heard
    }

    fn aborts(&self) -> Vec<Command> {
        let mut aborts = Vec::new();
        for (shard, config) in self.state.shards() {
            let Some(handoff) = &config.handoff else { continue };
            let health = self.state.health(config);
            let target = self.state.members.get(&handoff.to);
            let target_lost = target.is_none_or(|target| target.disk != handoff.disk)
                || !self.can_take(&handoff.to);
            let wanted = config.targets.first() == Some(&handoff.to);
            // one that cannot save would keep its moves for ever, and others from theirs
            let source = config.primary.as_ref();
            let source_stuck = source.is_some_and(|claim| !self.is_quiet(&claim.node));
            let stuck = health != Health::Served || target_lost || source_stuck || !wanted;
            // a source that is succeeded loses its move by that
            if stuck && self.successor(config).is_none() {
                aborts.push(Command::AbortHandoff { shard, expect: config.expect() });
            }
        }
        aborts
    }

    fn retarget(&self) -> Option<Command> {
        let seats = self.seats();
        if !seats.iter().any(|seat| seat.weight > 0) {
            return None;
        }
        let before: Vec<_> =
            self.state.shards.iter().map(|config| config.targets.clone()).collect();
        let wanted = placement::place(&seats, usize::from(self.state.standbys) + 1, &before);
        let shards = (0..).map(ShardId).zip(wanted).zip(&before);
        let changed = shards.filter(|((_, wanted), before)| wanted != *before);
        let targets: Vec<_> = changed.map(|(wanted, _)| wanted).collect();
        let from_version = self.state.version;
        (!targets.is_empty()).then_some(Command::SetTargets { from_version, targets })
    }

    fn seats(&self) -> Vec<Seat> {
        // With standbys others hold what a lost member held, and a set that has none to spare takes
        // no writes before somebody else has joined it.
        let waits = self.state.standbys == 0;
        let holders: BTreeSet<&NodeId> =
            self.state.shards.iter().flat_map(|config| config.in_sync.keys()).collect();
        let members = self.state.members.iter();
        let seated = members.filter(|(node, member)| {
            !self.state.draining.contains(*node)
                && (member.state == MemberState::Up || waits && holders.contains(node))
        });
        seated
            .map(|(node, member)| Seat {
                node: node.clone(),
                weight: member.weight,
                zone: member.zone.clone(),
            })
            .collect()
    }

    fn starts(&self) -> Vec<Promotion> {
        let fresh = |config: &ShardConfig| config.primary.is_none();
        if !self.state.shards.iter().any(fresh) {
            return Vec::new();
        }
        let mut seats: Vec<_> =
            self.seats().into_iter().map(|seat| (seat.node, seat.weight)).collect();
        seats.retain(|(node, _)| self.can_take(node));
        let ring = Ring::new(&seats);
        let start = |(shard, config): (ShardId, &ShardConfig)| {
            let target = config.targets.iter().find(|node| self.can_take(node));
            let node = target.or_else(|| Some(&seats[ring.walk(shard).next()?].0))?;
            let copies = 1 + self.state.standbys_at_start(config, node).count();
            let enough = copies >= usize::from(self.state.min_insync);
            let claim = self.state.claim_of(node).filter(|_| enough)?;
            Some((shard, config.expect(), claim))
        };
        self.state.shards().filter(|(_, config)| fresh(config)).filter_map(start).collect()
    }

    fn moves(&self) -> Option<Command> {
        let under_way = self.state.shards.iter().filter(|config| config.handoff.is_some()).count();
        let room = self.config.moves_max.saturating_sub(under_way);
        let mut moves = Vec::new();
        for (shard, config) in self.state.shards() {
            let (Some(primary), Some(to)) = (&config.primary, config.targets.first()) else {
                continue;
            };
            let at_rest = config.handoff.is_none() && self.state.health(config) == Health::Served;
            if at_rest && primary.node != *to && self.can_take(to) && self.is_quiet(&primary.node) {
                let disk = self.state.members[to].disk;
                if !self.state.can_move_to(config, to, disk) {
                    continue;
                }
                let stays = !self.state.draining.contains(&primary.node);
                let handoff = Handoff { to: to.clone(), disk, plan: config.version + 1 };
                moves.push((stays, (shard, config.expect(), handoff)));
            }
        }
        moves.sort_by_key(|(stays, _)| *stays);
        moves.truncate(room);
        let shards: Vec<_> = moves.into_iter().map(|(_, shard)| shard).collect();
        (!shards.is_empty()).then_some(Command::BeginHandoff { shards })
    }

    fn leaves(&self) -> Vec<Command> {
        let wanted: BTreeSet<&NodeId> =
            self.state.shards.iter().flat_map(|config| &config.targets).collect();
        let done = |node: &&NodeId| !wanted.contains(*node) && self.state.held_by(node) == 0;
        let leaving = self.state.draining.iter().filter(done);
        leaving.map(|node| Command::Leave { node: node.clone() }).collect()
    }

    /// Whether shards may be given to a member: up, and nothing is said against it.
    fn can_take(&self, node: &NodeId) -> bool {
        let member = self.state.members.get(node);
        member.is_some_and(|member| member.state == MemberState::Up) && self.is_quiet(node)
    }

    fn is_quiet(&self, node: &NodeId) -> bool {
        self.verdict(node).is_none_or(|verdict| verdict == Verdict::Alive)
    }

    /// The verdict on the registered start of a member.
    fn verdict(&self, node: &NodeId) -> Option<Verdict> {
        let member = self.state.members.get(node)?;
        let (boot, verdict) = self.view.get(node)?;
        (*boot == member.boot).then_some(*verdict)
    }
}
