//! The in-sync set: which copies a write waits for, and how far they all are.
//!
//! ```text
//!   n1 (primary)  #########----      durable up to 9
//!   n2            ######-------      durable up to 6
//!   n3            ########-----      durable up to 8
//!                       ^ watermark 6: every member holds it on disk
//! ```
//! The watermark is the least durable seq of the set, only while the set has at least
//! `min_insync` members, and never runs backwards (invariant I2). A set of one is the single-copy
//! case and has no rules of its own.
//!
//! The set itself is the control plane's; this only counts.

use crate::id::{NodeId, Seq};

/// Why an acknowledgement was not counted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// It comes from a node that is not in the set. Ignore it.
    #[error("{member} is not in the in-sync set")]
    NotMember {
        /// The node.
        member: NodeId,
    },
    /// It is for entries that were never handed out: the member holds another history.
    #[error("{member} acknowledges seq {upto:?}, the log ends at {last:?}")]
    BeyondLog {
        /// The member.
        member: NodeId,
        /// What it says that it holds.
        upto: Seq,
        /// The last entry handed out.
        last: Seq,
    },
}

/// The members and how far each is.
#[derive(Debug, Clone)]
pub struct InSync {
    /// By name; a handful.
    members: Vec<(NodeId, Seq)>,
    min_insync: u8,
    watermark: Seq,
}

impl InSync {
    /// A set of members, with what each is known to hold durably.
    ///
    /// # Panics
    /// When `min_insync` is zero: an acknowledged write is on one disk at least.
    pub fn new(members: impl IntoIterator<Item = (NodeId, Seq)>, min_insync: u8) -> Self {
        assert!(min_insync > 0, "an acknowledged write is on one disk at least");
        let mut this = Self { members: Vec::new(), min_insync, watermark: Seq::default() };
        this.members.extend(members);
        this.members.sort();
        this.members.dedup_by(|later, kept| later.0 == kept.0);
        this.advance();
        this
    }

    /// A member holds everything up to `upto` durably. A late acknowledgement changes nothing.
    ///
    /// # Errors
    /// [`AckError::NotMember`].
    pub fn handle_durable(&mut self, member: &NodeId, upto: Seq) -> Result<(), AckError> {
        let found = self.members.iter_mut().find(|(name, _)| name == member);
        let Some((_, durable)) = found else {
            return Err(AckError::NotMember { member: member.clone() });
        };
        *durable = upto.max(*durable);
        self.advance();
        Ok(())
    }

    /// The control plane confirmed another set. Members that stay keep their place; new ones
    /// start at what they are known to hold.
    pub fn handle_members(&mut self, members: impl IntoIterator<Item = (NodeId, Seq)>) {
        let next = Self::new(
            members.into_iter().map(|(name, known)| {
                let held = self.durable(&name).unwrap_or_default();
                (name, held.max(known))
            }),
            self.min_insync,
        );
        self.members = next.members;
        self.advance();
    }

    fn advance(&mut self) {
        let least = self.members.iter().map(|&(_, durable)| durable).min().unwrap_or_default();
        if self.members.len() >= usize::from(self.min_insync) {
            self.watermark = self.watermark.max(least);
        }
    }

    /// The highest seq that every member holds durably.
    pub const fn watermark(&self) -> Seq {
        self.watermark
    }

    /// What a member holds durably, as far as it has said.
    pub fn durable(&self, member: &NodeId) -> Option<Seq> {
        self.members.iter().find(|(name, _)| name == member).map(|&(_, durable)| durable)
    }

    /// The members by name, with how far each is.
    pub fn members(&self) -> &[(NodeId, Seq)] {
        &self.members
    }

    /// What the fastest member holds.
    pub(crate) fn fastest(&self) -> Seq {
        self.members.iter().map(|&(_, durable)| durable).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(at: usize) -> NodeId {
        NodeId::new(&format!("n{at}")).unwrap()
    }

    fn set(count: usize, min_insync: u8) -> InSync {
        InSync::new((0..count).map(|at| (node(at), Seq(0))), min_insync)
    }

    #[test]
    fn one_member_is_the_single_copy_case() {
        let mut one = set(1, 1);
        one.handle_durable(&node(0), Seq(5)).unwrap();
        assert_eq!(one.watermark(), Seq(5));
    }

    #[test]
    fn the_slowest_member_holds_the_watermark() {
        let mut three = set(3, 2);
        three.handle_durable(&node(0), Seq(9)).unwrap();
        three.handle_durable(&node(2), Seq(8)).unwrap();
        assert_eq!(three.watermark(), Seq(0));
        three.handle_durable(&node(1), Seq(6)).unwrap();
        assert_eq!(three.watermark(), Seq(6));
    }

    #[test]
    fn late_ack_changes_nothing() {
        let mut one = set(1, 1);
        one.handle_durable(&node(0), Seq(5)).unwrap();
        one.handle_durable(&node(0), Seq(3)).unwrap();
        assert_eq!((one.watermark(), one.durable(&node(0))), (Seq(5), Some(Seq(5))));
    }

    #[test]
    fn a_set_below_the_minimum_commits_nothing() {
        let mut two = set(2, 2);
        two.handle_members([(node(0), Seq(0))]);
        two.handle_durable(&node(0), Seq(7)).unwrap();
        assert_eq!(two.watermark(), Seq(0));
        two.handle_members([(node(0), Seq(0)), (node(1), Seq(4))]);
        assert_eq!(two.watermark(), Seq(4));
    }

    #[test]
    fn a_stranger_is_not_counted() {
        let stranger = node(7);
        let refused = set(1, 1).handle_durable(&stranger, Seq(1)).unwrap_err();
        assert_eq!(refused, AckError::NotMember { member: stranger });
    }

    proptest! {
        #[test]
        fn the_watermark_never_runs_backwards_and_every_member_holds_it(
            ops in prop::collection::vec((0..4usize, 0..50u64, any::<bool>()), 0..100),
        ) {
            let mut set = set(3, 2);
            let mut before = Seq(0);
            for (at, upto, change) in ops {
                if change {
                    let stay: Vec<_> =
                        set.members().iter().filter(|(name, _)| *name != node(at)).cloned().collect();
                    let add = (node(at), Seq(upto));
                    set.handle_members(stay.into_iter().chain((upto % 2 == 0).then_some(add)));
                } else {
                    set.handle_durable(&node(at), Seq(upto)).ok();
                }
                prop_assert!(set.watermark() >= before);
                if set.watermark() > before {
                    prop_assert!(set.members().len() >= 2);
                    prop_assert!(set.members().iter().all(|(_, held)| *held >= set.watermark()));
                }
                before = set.watermark();
            }
        }
    }
}
