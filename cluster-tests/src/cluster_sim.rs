//! A cluster, simulated: the rules of replication and failover under every fault, from one seed.
//!
//! ```text
//!   clients --requests--> nodes: Primary + Feed, or Standby --appends, answers--> other nodes
//!      ^                    |      |                                                |
//!      +----- replies ------+      +--> disks (synced, and what a power cut takes)  |
//!                           |                                                       |
//!                           +--beats, proposals--> ClusterState + director --maps---+
//! ```
//! One thread, one seed, one queue of things to come. Messages are lost, doubled, late and out of
//! order; nodes die, stand still, lose their disks, are cut off both ways or one way, from each
//! other or from the control plane, and their clocks run at rates of their own. The protocol's own
//! times are drawn per seed: safety must not depend on them. After every step every file of
//! `invariants` is asked; then the faults end, and the cluster must heal.
//!
//! What is not simulated here: consensus itself, whose agreed order is taken as given, and what
//! [`crate::sim`] does for turns that take a while, panics and quarantine.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_protocol::mutants::Mutant;

pub mod clients;
pub mod disk;
pub mod faults;
pub mod invariants;
pub mod node;
pub mod plane;
mod world;

use invariants::Broken;
use world::World;

/// A fault that is planted on purpose, to see it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A rule of the machines is broken.
    Rule(Mutant),
    /// Whoever lives may be promoted.
    UncleanPromotion,
    /// A primary that starts again goes on in its epoch.
    SameEpochAfterRestart,
    /// The control plane accepts sets that were decided on an older record.
    SetChangeWithoutExpect,
    /// A promotion takes everybody else out of the set.
    PromotionRemoves,
}

/// Every fault that can be planted here.
pub const PLANTED: [Planted; 35] = [
    Planted::Rule(Mutant::NoFencing),
    Planted::Rule(Mutant::PromiseNotPersisted),
    Planted::Rule(Mutant::NoPromiseAfterStart),
    Planted::Rule(Mutant::NoWaitAtPromotion),
    Planted::Rule(Mutant::NoEpochInMatch),
    Planted::Rule(Mutant::AppendNoTruncate),
    Planted::Rule(Mutant::CommitBeyondMatch),
    Planted::Rule(Mutant::HoldsBeforeDurable),
    Planted::Rule(Mutant::StaleDeferredAck),
    Planted::Rule(Mutant::AckOfMajority),
    Planted::Rule(Mutant::IgnoreDisk),
    Planted::Rule(Mutant::JoinBeforeNoop),
    Planted::Rule(Mutant::JoinBehind),
    Planted::Rule(Mutant::AckOutlivesCopy),
    Planted::Rule(Mutant::JoiningNotRequired),
    Planted::Rule(Mutant::SetBelowMinimum),
    Planted::Rule(Mutant::ProposesBeforeServing),
    Planted::Rule(Mutant::LeavesBeforeConfirmed),
    Planted::Rule(Mutant::NeverLetsGo),
    Planted::Rule(Mutant::NoLease),
    Planted::Rule(Mutant::LeaseOfOne),
    Planted::Rule(Mutant::LeaseFromReceipt),
    Planted::Rule(Mutant::RoundCountsOlder),
    Planted::UncleanPromotion,
    Planted::SameEpochAfterRestart,
    Planted::SetChangeWithoutExpect,
    Planted::PromotionRemoves,
    Planted::Rule(Mutant::StepDownSwapped),
    Planted::Rule(Mutant::NoDedup),
    Planted::Rule(Mutant::ConditionAtAdmission),
    Planted::Rule(Mutant::ConditionBeforeDedup),
    Planted::Rule(Mutant::VersionOfLastEntry),
    Planted::Rule(Mutant::ReplayShowsNow),
    Planted::Rule(Mutant::StandbyShowsUncommitted),
    Planted::Rule(Mutant::StandbyIgnoresToken),
];

/// How often things happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Operations of clients.
    pub ops: u64,
    /// That were answered by the entity.
    pub shown: u64,
    /// Whose outcome stayed unknown.
    pub unknown: u64,
    /// That were said not to have happened.
    pub not_executed: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages lost.
    pub lost: u64,
    /// Faults.
    pub faults: u64,
    /// Disks lost.
    pub wipes: u64,
    /// Promotions.
    pub promotions: u64,
    /// Entries committed.
    pub committed: u64,
}

impl Counts {
    const fn fields(&mut self) -> [(&'static str, &mut u64); 10] {
        [
            ("ops", &mut self.ops),
            ("shown", &mut self.shown),
            ("unknown", &mut self.unknown),
            ("not_executed", &mut self.not_executed),
            ("messages", &mut self.messages),
            ("lost", &mut self.lost),
            ("faults", &mut self.faults),
            ("wipes", &mut self.wipes),
            ("promotions", &mut self.promotions),
            ("committed", &mut self.committed),
        ]
    }

    /// Adds the counts of another seed.
    pub fn add(&mut self, mut other: Self) {
        for ((_, sum), (_, more)) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }

    /// A simulation that never meets a case proves nothing about it.
    ///
    /// # Panics
    /// When something never happened.
    pub fn assert_everything_happened(mut self) {
        for (name, count) in self.fields() {
            assert!(*count > 0, "{name} never happened");
        }
    }
}

/// How a seed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// A digest of everything that happened, in order.
    pub trace: u64,
    /// What happened, counted.
    pub counts: Counts,
}

/// An invariant did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// The story, if it was one.
    pub story: Option<usize>,
    /// Steps until then.
    pub step: u32,
    /// Which invariant: the name of its file, or "assertion" for one of the machines' own.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, invariant, detail, story } = self;
        let told = story.map_or_else(String::new, |at| format!(", {}", faults::STORIES[at].0));
        write!(f, "seed {seed}{told}, step {step}: {invariant}: {detail}")
    }
}

/// Runs one seed; a story's faults are told, the others are drawn.
///
/// # Errors
/// The first [`Violation`].
pub fn run(
    seed: u64,
    story: Option<usize>,
    planted: Option<Planted>,
) -> Result<Outcome, Violation> {
    finish(seed, story, World::new(seed, planted, story))
}

/// Runs one seed, and tells what happened last and how things stand at its end.
pub fn tell(seed: u64, story: Option<usize>, planted: Option<Planted>) -> String {
    let mut world = World::new(seed, planted, story);
    world.tell_all();
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    format!("{}\n{ended:?}", world.describe())
}

fn finish(seed: u64, story: Option<usize>, mut world: World) -> Result<Outcome, Violation> {
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let Broken { invariant, detail } = match ran {
        Ok(Ok(())) => return Ok(Outcome { trace: world.digest(), counts: world.counts }),
        Ok(Err(broken)) => broken,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            Broken { invariant: "assertion", detail: text.unwrap_or_default() }
        }
    };
    Err(Violation { seed, story, step: world.steps, invariant, detail })
}

/// The first of `seeds`, counted from 1, in which something finds a planted fault: which one, and
/// what.
pub fn seeds_to_kill(
    planted: Planted,
    story: Option<usize>,
    seeds: u64,
) -> Option<(u64, &'static str)> {
    (1..=seeds).find_map(|seed| {
        let violation = run(seed, story, Some(planted)).err()?;
        Some((seed, violation.invariant))
    })
}

/// Whether one invariant, asked alone, finds a planted fault in this seed.
pub fn finds(planted: Planted, story: Option<usize>, seed: u64, invariant: &str) -> bool {
    let mut world = World::new(seed, Some(planted), story);
    world.ask_only(invariant);
    finish(seed, story, world).is_err_and(|violation| violation.invariant == invariant)
}

#[cfg(test)]
mod tests;
