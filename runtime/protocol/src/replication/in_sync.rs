//! The in-sync set, as its primary counts it: which copies a write waits for, and how far all are.
//!
//! ```text
//!   n1 primary   #########----      durable up to 9
//!   n2 member    ######-------      durable up to 6
//!   n3 joining   ########-----      durable up to 8: required, not counted towards the minimum
//!   n4 learner   ##-----------      fed, waited for by nobody
//!                      ^ watermark 6: all that are required hold it on disk
//! ```
//! The control plane keeps the set; its members are claims, a node with its disk. The primary
//! proposes another one, and until it knows the answer it waits for everybody in any set that may
//! be confirmed: members and joining (Kafka's maximal ISR). The rules, each of which a lost write
//! taught somebody:
//!
//! * only acknowledgements from a claim's own disk count;
//! * a learner joins when it holds the watermark, and this epoch's noop: then it holds whatever an
//!   earlier epoch committed. One that is near is waited for, or it might never hold it. It says so
//!   under the record that the primary goes by: what it said under an older one may be of a copy
//!   that a record between had it drop;
//! * a member leaves only by the primary's proposal, and only while `min_insync` of those that
//!   stay, the primary included, have acknowledged this epoch; otherwise the set may only grow;
//! * a proposal without an answer may have been accepted. It is made again until the record's
//!   version moves, which tells that no older one can be accepted any more.
//!
//! Leases and rounds are counted here too, since they ask the same copies.

mod copies;
mod joining;

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

pub use self::copies::Copies;
use self::joining::Chance;
use super::Timing;
use crate::id::{DiskId, NodeId, Seq};
use crate::mutants::{Mutant, Planted};
use crate::time::Instant;

/// Why an acknowledgement was not counted. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// It comes from a copy that this primary does not know, or from another disk of its node.
    /// Ignore it.
    #[error("{node} with this disk holds no copy that counts")]
    NotCopy {
        /// The node.
        node: NodeId,
    },
    /// It heard an append that was not sent yet. Ignore it.
    #[error("{node} heard an append that was not sent")]
    NotSent {
        /// The node.
        node: NodeId,
    },
    /// It is for entries that were never handed out: the copy holds another history.
    #[error("{node} acknowledges seq {upto:?}, the log ends at {last:?}")]
    BeyondLog {
        /// The node.
        node: NodeId,
        /// What it says that it holds.
        upto: Seq,
        /// The last entry handed out.
        last: Seq,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Standing {
    /// In the confirmed set.
    Member,
    /// In a set that was proposed, or will be.
    Joining,
    /// Wanted, and not far enough.
    Learner,
}

#[derive(Debug, Clone, Hash)]
struct Copy {
    node: NodeId,
    disk: DiskId,
    standing: Standing,
    durable: Seq,
    /// It acknowledged this epoch.
    acked: bool,
    /// The primary sent the last append that it heard then.
    echoed: Instant,
    /// It keeps a promise until then, on the primary's clock.
    lease: Instant,
    /// Since when it holds writes up, and what it held then.
    behind: Option<(Instant, Seq)>,
    /// It lost what it had acknowledged, and does not hold it again yet.
    lost: bool,
    chance: Chance,
}

impl Copy {
    const fn new(node: NodeId, disk: DiskId, standing: Standing) -> Self {
        Self {
            node,
            disk,
            standing,
            durable: Seq(0),
            acked: false,
            echoed: Instant::ZERO,
            lease: Instant::ZERO,
            behind: None,
            lost: false,
            chance: Chance::Near,
        }
    }
}

/// When the scene is to look again. It decides nothing, and counts for no state.
#[derive(Debug, Clone, Default)]
struct Wake {
    /// Somebody joins, is lost or answers for the first time: a set may be proposed.
    changed: bool,
    /// The scene looked last then: it knows what was due.
    looked_at: Instant,
}

impl Hash for Wake {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}

/// The copies of a shard and how far each is, at its primary.
#[derive(Debug, Clone, Hash)]
pub struct InSync {
    me: NodeId,
    min_insync: u8,
    timing: Timing,
    /// What the control plane said last.
    said: Copies,
    /// By name; a handful.
    copies: Vec<Copy>,
    /// The first entry of the epoch.
    noop: Seq,
    watermark: Seq,
    /// When a set was proposed last under this version.
    proposed_at: Option<Instant>,
    wake: Wake,
    planted: Planted,
}

impl InSync {
    /// The copies at the start of an epoch. Nobody has acknowledged anything in it.
    ///
    /// # Panics
    /// When `min_insync` is zero, since an acknowledged write is on one disk at least, or this node
    /// is not in the set: the map gives primacy to members only.
    pub fn new(me: NodeId, copies: Copies, min_insync: u8, noop: Seq, timing: Timing) -> Self {
        assert!(min_insync > 0, "an acknowledged write is on one disk at least");
        let mut this = Self {
            me,
            min_insync,
            timing,
            said: Copies::default(),
            copies: Vec::new(),
            noop,
            watermark: Seq::default(),
            proposed_at: None,
            wake: Wake::default(),
            planted: Planted::default(),
        };
        this.set_copies(copies);
        this
    }

    /// Breaks a rule on purpose, for the simulator.
    #[cfg(feature = "mutants")]
    pub const fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
    }

    /// The control plane says something newer, or the same: then nothing happens.
    ///
    /// # Panics
    /// When this node is not in the set any more: then it is no primary.
    pub fn handle_copies(&mut self, copies: Copies) {
        let outdated = copies.version < self.said.version || copies == self.said;
        if !outdated {
            self.set_copies(copies);
            self.wake.changed = true;
            self.advance();
        }
    }

    fn set_copies(&mut self, copies: Copies) {
        assert!(copies.in_sync.contains_key(&self.me), "a primary is in its in-sync set");
        let moved = copies.version != self.said.version;
        let proposed = !moved && self.proposed_at.is_some();
        if moved {
            self.proposed_at = None;
        }
        let claims = copies.in_sync.iter().map(|claim| (claim, Standing::Member));
        // A node that came back with another disk is two copies: the claim, and one to be made.
        let others =
            copies.wanted.iter().filter(|(node, disk)| copies.in_sync.get(*node) != Some(*disk));
        let others = others.map(|claim| (claim, Standing::Learner));
        let ignores = self.planted.has(Mutant::IgnoreDisk);
        let mut before = std::mem::take(&mut self.copies);
        for ((node, disk), standing) in claims.chain(others) {
            let same = |copy: &Copy| copy.node == *node && (copy.disk == *disk || ignores);
            let known = before.iter().position(same).map(|at| before.swap_remove(at));
            let mut copy =
                known.unwrap_or_else(|| Copy::new(node.clone(), *disk, Standing::Learner));
            copy.disk = *disk;
            // No older proposal can be accepted once the version moved: who joined joins anew.
            if moved || standing == Standing::Member || copy.standing == Standing::Member {
                copy.standing = standing;
            }
            let keeps = self.planted.has(Mutant::AckOutlivesCopy);
            if moved && standing == Standing::Learner && !keeps {
                copy = Copy::new(node.clone(), *disk, standing);
            }
            self.copies.push(copy);
        }
        // What a proposal may have made a member stays required until the version moves.
        if proposed {
            let joining = before.into_iter().filter(|copy| copy.standing == Standing::Joining);
            self.copies.extend(joining);
        }
        self.copies.sort_by(|one, other| (&one.node, one.disk).cmp(&(&other.node, other.disk)));
        self.said = copies;
    }

    /// A copy holds everything up to `upto` durably, as this epoch has it, and heard of this version
    /// of the record by then. A late acknowledgement changes nothing.
    ///
    /// # Errors
    /// [`AckError::NotCopy`].
    pub fn handle_holds(
        &mut self,
        node: &NodeId,
        disk: DiskId,
        (version, upto): (u64, Seq),
    ) -> Result<(), AckError> {
        let watermark = self.watermark;
        let alone = self.copies.len() == 1;
        let outdated = version < self.said.version && !self.planted.has(Mutant::AckOutlivesCopy);
        let copy = self.copy_mut(node, disk)?;
        if outdated && copy.standing != Standing::Member {
            return Ok(());
        }
        let first = !copy.acked && !alone;
        copy.acked = true;
        copy.durable = upto.max(copy.durable);
        copy.lost &= upto < watermark;
        self.wake.changed |= first;
        self.advance();
        Ok(())
    }

    /// A copy says that it has nothing after `upto`, though it acknowledged more: an older disk was
    /// put under it. It counts for nothing until it holds everything again. A member is to leave;
    /// one that was to join, and is in no proposal yet, is a learner again.
    pub fn handle_regressed(&mut self, node: &NodeId, disk: DiskId, upto: Seq) {
        let proposed = self.proposed_at.is_some();
        if let Ok(copy) = self.copy_mut(node, disk)
            && upto < copy.durable
        {
            (copy.durable, copy.acked, copy.lost) = (upto, false, true);
            copy.chance = Chance::Near;
            if copy.standing == Standing::Joining && !proposed {
                copy.standing = Standing::Learner;
            }
            self.wake.changed = true;
        }
    }

    /// A copy heard an append that was sent then, and knew of no newer epoch.
    ///
    /// # Errors
    /// [`AckError::NotCopy`].
    pub fn handle_heard(
        &mut self,
        node: &NodeId,
        disk: DiskId,
        sent_at: Instant,
        promised: bool,
    ) -> Result<(), AckError> {
        let lease = sent_at + self.timing.lease;
        let copy = self.copy_mut(node, disk)?;
        copy.echoed = copy.echoed.max(sent_at);
        if promised {
            copy.lease = copy.lease.max(lease);
        }
        Ok(())
    }

    fn copy_mut(&mut self, node: &NodeId, disk: DiskId) -> Result<&mut Copy, AckError> {
        let any = self.planted.has(Mutant::IgnoreDisk);
        let mut copies = self.copies.iter_mut();
        let found = copies.find(|copy| copy.node == *node && (copy.disk == disk || any));
        found.ok_or_else(|| AckError::NotCopy { node: node.clone() })
    }

    fn advance(&mut self) {
        let majority = self.planted.has(Mutant::AckOfMajority);
        let mut durable: Vec<Seq> = self.required().map(|copy| copy.durable).collect();
        durable.sort_unstable();
        let at = if majority { (durable.len() - 1) / 2 } else { 0 };
        let least = durable.get(at).copied().unwrap_or_default();
        if self.said.in_sync.len() >= usize::from(self.min_insync) {
            self.watermark = self.watermark.max(least);
        }
        self.look_for_joining();
    }

    fn required(&self) -> impl Iterator<Item = &Copy> {
        let joining = !self.planted.has(Mutant::JoiningNotRequired);
        self.copies.iter().filter(move |copy| match copy.standing {
            Standing::Member => true,
            Standing::Joining => joining,
            Standing::Learner => false,
        })
    }

    /// Time passed, and the log ends at `last`: who holds writes up is noted. While nothing is
    /// proposed, who is too slow to be proposed is in no set that may be accepted, and is not waited
    /// for until it acknowledges something again: the watermark may move.
    pub fn handle_timeout(&mut self, last: Seq, now: Instant) {
        self.wake = Wake { changed: false, looked_at: now };
        for copy in &mut self.copies {
            copy.behind = match copy.behind {
                _ if copy.durable >= last => None,
                Some((since, held)) if held == copy.durable => Some((since, held)),
                _ => Some((now, copy.durable)),
            };
        }
        if self.proposed_at.is_some() {
            return;
        }
        let slow: Vec<_> = self.copies.iter().map(|copy| self.is_slow(copy, now)).collect();
        for (copy, slow) in self.copies.iter_mut().zip(slow) {
            if slow && copy.standing == Standing::Joining {
                (copy.standing, copy.acked) = (Standing::Learner, false);
                copy.chance = Chance::Missed;
            }
        }
        self.advance();
    }

    /// Somebody joins, is lost or answers for the first time: what [`Self::poll_timeout`] says is now.
    pub const fn has_news(&self) -> bool {
        self.wake.changed
    }

    /// When to call [`Self::handle_timeout`] and then [`Self::poll_proposal`]; the log ends at `last`.
    /// Once time was told, this is later.
    pub fn poll_timeout(&self, last: Seq) -> Option<Instant> {
        let behind = || self.others().filter(|copy| copy.durable < last);
        if self.wake.changed || behind().any(|copy| copy.behind.is_none()) {
            return Some(Instant::ZERO);
        }
        let untold = |due: &Instant| *due > self.wake.looked_at;
        let slow = behind().filter_map(|copy| {
            let (since, held) = copy.behind?;
            let due = since + self.timing.patience;
            (held != copy.durable || untold(&due)).then_some(due)
        });
        let again = self.proposed_at.map(|at| at + self.timing.propose_again);
        slow.chain(again.filter(untold)).min()
    }

    /// The set to propose now, if one is to be proposed: under [`Copies::version`].
    pub fn poll_proposal(&mut self, now: Instant) -> Option<BTreeMap<NodeId, DiskId>> {
        let again = self.timing.propose_again;
        if self.proposed_at.is_some_and(|at| now < at + again) {
            return None;
        }
        let set = self.proposed_set(now);
        if set == self.said.in_sync && self.proposed_at.is_none() {
            return None;
        }
        self.proposed_at = Some(now);
        if self.planted.has(Mutant::LeavesBeforeConfirmed) {
            self.copies.retain(|copy| set.contains_key(&copy.node));
        }
        Some(set)
    }

    fn proposed_set(&self, now: Instant) -> BTreeMap<NodeId, DiskId> {
        let wanted = |copy: &Copy| self.said.wanted.get(&copy.node) == Some(&copy.disk);
        let joins = |copy: &&Copy| {
            let joining = copy.standing == Standing::Joining;
            joining
                && self.is_complete(copy)
                && wanted(copy)
                && !copy.lost
                && !self.is_slow(copy, now)
        };
        let members = || self.copies.iter().filter(|copy| copy.standing == Standing::Member);
        // A set has one claim of a node: the one that it has stays while it may only grow.
        let claim = |copy: &Copy| (copy.node.clone(), copy.disk);
        let mut grown: BTreeMap<_, _> = self.copies.iter().filter(joins).map(claim).collect();
        grown.extend(members().map(claim));

        let mut wanted_claims = self.said.wanted.iter();
        let complete = wanted_claims.all(|(node, disk)| grown.get(node) == Some(disk));
        let stays = |copy: &&Copy| {
            let surplus = complete && !self.said.wanted.contains_key(&copy.node);
            let gone = self.said.gone.contains(&copy.node);
            let leaves = gone || surplus || copy.lost || self.is_slow(copy, now);
            copy.node == self.me || !leaves || self.planted.has(Mutant::NeverLetsGo)
        };
        let shrunk: Vec<_> =
            members().filter(stays).chain(self.copies.iter().filter(joins)).collect();
        let sure = shrunk.iter().filter(|copy| copy.acked).count();
        let enough = sure >= usize::from(self.min_insync);
        if enough || self.planted.has(Mutant::SetBelowMinimum) {
            shrunk.into_iter().map(claim).collect()
        } else {
            grown
        }
    }

    fn is_slow(&self, copy: &Copy, now: Instant) -> bool {
        let late = |since: Instant| now >= since + self.timing.patience;
        copy.behind.is_some_and(|(since, held)| held == copy.durable && late(since))
    }

    /// Everybody that a write waits for keeps a promise now: no newer primary answers anyone.
    pub fn has_lease(&self, now: Instant) -> bool {
        let others: Vec<_> = self.others().map(|copy| now < copy.lease).collect();
        if self.planted.has(Mutant::LeaseOfOne) {
            return others.is_empty() || others.contains(&true);
        }
        self.planted.has(Mutant::NoLease) || !others.contains(&false)
    }

    /// Everybody that a write waits for heard an append that was sent after this moment, and knew
    /// of no newer epoch.
    pub fn is_confirmed_since(&self, moment: Instant) -> bool {
        let late = self.planted.has(Mutant::RoundCountsOlder);
        self.others().all(|copy| copy.echoed > moment || late && copy.echoed > Instant::ZERO)
    }

    /// Those that a write waits for, without this node.
    fn others(&self) -> impl Iterator<Item = &Copy> {
        self.required().filter(|copy| copy.node != self.me)
    }

    /// The highest seq that every copy that is required holds durably.
    pub const fn watermark(&self) -> Seq {
        self.watermark
    }

    /// A write waits for nobody else: what this copy holds durably is committed.
    pub fn is_alone(&self) -> bool {
        self.said.in_sync.len() >= usize::from(self.min_insync)
            && self.required().all(|copy| copy.node == self.me)
    }

    /// What a copy holds durably, as far as it has said.
    pub fn durable(&self, node: &NodeId, disk: DiskId) -> Option<Seq> {
        let mut copies = self.copies.iter();
        copies.find(|copy| copy.node == *node && copy.disk == disk).map(|copy| copy.durable)
    }

    /// The copies by name: node, disk, how far it is, and whether a write waits for it.
    pub fn copies(&self) -> impl Iterator<Item = (&NodeId, DiskId, Seq, bool)> {
        let required = |copy: &Copy| copy.standing != Standing::Learner;
        self.copies.iter().map(move |copy| (&copy.node, copy.disk, copy.durable, required(copy)))
    }

    /// What the control plane said last.
    pub const fn said(&self) -> &Copies {
        &self.said
    }

    /// What the fastest member holds.
    pub(crate) fn fastest(&self) -> Seq {
        self.required().map(|copy| copy.durable).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
