//! How a standby of this node becomes primary, for those who look after a cluster: why, and how
//! long each part took. Nothing is decided by it.
//!
//! ```text
//!   connection to the old primary lost --decide--> map names this node --promote--> its lane has
//!   the shard --serve--> it answers
//! ```
//! The parts are of this node's clock alone. What happened elsewhere between the loss and the map,
//! that is a verdict, a vote and the way of the map here, is one part.

use mainstay_protocol::control::{ClusterState, MemberState, ShardConfig};
use mainstay_protocol::id::{Epoch, NodeId};
use mainstay_protocol::time::Instant;
use metrics::{counter, histogram};

/// Why a standby becomes primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The shard never had a primary.
    Start,
    /// Its primary was an earlier start of this node, or this one in an earlier epoch.
    Restart,
    /// Its primary's node is down, gone, or another start of itself.
    Failover,
    /// Its primary handed it over.
    Handoff,
}

impl Cause {
    /// Why the map names this node, by the record of the shard that was seen before. When several
    /// were missed in between, this is why the last one seen ended.
    pub fn of(before: Option<&ShardConfig>, map: &ClusterState, me: &NodeId) -> Self {
        let Some(before) = before else { return Self::Start };
        let Some(primary) = &before.primary else { return Self::Start };
        if primary.node == *me {
            return Self::Restart;
        }
        let member = map.members.get(&primary.node);
        let lives = member
            .is_some_and(|member| member.state != MemberState::Down && member.boot == primary.boot);
        let planned = before.handoff.as_ref().is_some_and(|handoff| handoff.to == *me);
        // Who handed over its last shard may have left by now.
        if lives || planned && member.is_none() { Self::Handoff } else { Self::Failover }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Failover => "failover",
            Self::Handoff => "handoff",
        }
    }
}

/// One promotion under way.
#[derive(Debug, Clone)]
pub struct Ascent {
    /// The epoch that the map gave to this node.
    pub epoch: Epoch,
    /// Why.
    pub cause: Cause,
    /// When this node saw that map.
    pub named_at: Instant,
    /// When the connection to the old primary's node was lost, if this node had one.
    pub lost_at: Option<Instant>,
    promoted_at: Instant,
}

impl Ascent {
    /// The map names this node.
    pub const fn new(
        (epoch, cause): (Epoch, Cause),
        named_at: Instant,
        lost_at: Option<Instant>,
    ) -> Self {
        Self { epoch, cause, named_at, lost_at, promoted_at: named_at }
    }

    /// The standby is read and applied: its lane gets the shard.
    pub fn promoted(&mut self, now: Instant) {
        counter!("mainstay_promotions_total", "cause" => self.cause.word()).increment(1);
        self.promoted_at = now;
    }

    /// The shard answers.
    pub fn serves(&self, now: Instant) {
        let whole = now.saturating_since(self.named_at);
        histogram!("mainstay_promotion_duration_seconds", "cause" => self.cause.word())
            .record(whole.as_secs_f64());
        if self.cause != Cause::Failover {
            return;
        }
        let phase = |phase: &'static str, from: Instant, to: Instant| {
            histogram!("mainstay_failover_phase_duration_seconds", "phase" => phase)
                .record(to.saturating_since(from).as_secs_f64());
        };
        if let Some(lost_at) = self.lost_at {
            phase("decide", lost_at, self.named_at);
        }
        phase("promote", self.named_at, self.promoted_at);
        phase("serve", self.promoted_at, now);
    }
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::control::{Claim, Handoff, Member};
    use mainstay_protocol::id::{BootId, DiskId};

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn member(state: MemberState) -> Member {
        Member {
            disk: DiskId::from_bytes([1; 16]),
            boot: BootId(1),
            peer_addr: String::new(),
            http_addr: String::new(),
            zone: String::new(),
            weight: 1,
            lanes: 1,
            state,
            wire_max: 1,
        }
    }

    /// The shard was `n2`'s, in its first start.
    fn served() -> ShardConfig {
        let disk = DiskId::from_bytes([1; 16]);
        let primary = Some(Claim { node: node("n2"), disk, boot: BootId(1) });
        ShardConfig { primary, ..ShardConfig::fresh() }
    }

    fn cause(before: Option<&ShardConfig>, old: Option<Member>) -> Cause {
        let members = old.map(|member| (node("n2"), member)).into_iter().collect();
        let map = ClusterState { members, ..ClusterState::default() };
        Cause::of(before, &map, &node("n1"))
    }

    #[test]
    fn a_cause_is_told_by_who_was_primary_and_what_became_of_it() {
        let (up, down) = (member(MemberState::Up), member(MemberState::Down));
        assert_eq!(cause(None, None), Cause::Start);
        assert_eq!(cause(Some(&ShardConfig::fresh()), None), Cause::Start);
        assert_eq!(cause(Some(&served()), Some(up.clone())), Cause::Handoff);
        assert_eq!(cause(Some(&served()), Some(down)), Cause::Failover);
        assert_eq!(cause(Some(&served()), None), Cause::Failover);
        let restarted = Member { boot: BootId(2), ..up };
        assert_eq!(cause(Some(&served()), Some(restarted)), Cause::Failover);
        let map = ClusterState::default();
        assert_eq!(Cause::of(Some(&served()), &map, &node("n2")), Cause::Restart);
    }

    #[test]
    fn a_shard_that_a_leaving_node_handed_over_is_no_failover() {
        let disk = DiskId::from_bytes([1; 16]);
        let handoff = Some(Handoff { to: node("n1"), disk, plan: 1 });
        let planned = ShardConfig { handoff, ..served() };
        assert_eq!(cause(Some(&planned), None), Cause::Handoff);
        assert_eq!(cause(Some(&planned), Some(member(MemberState::Down))), Cause::Failover);
    }
}
