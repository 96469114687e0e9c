//! The shard machine, simulated: one thread, one seed, every fault, every invariant.
//!
//! ```text
//!   clients --> Primary --> segments --> members' journals (1 to 3; unsynced, then synced)
//!      ^           |                          |
//!      |           +--> scene: handlers       +--> acknowledgements, late, twice, out of order
//!      +---- replies
//! ```
//! A seed draws its own cluster (copies, bounds, speeds) and its own faults: crashes and power
//! cuts that lose what is unsynced, primaries that step down or hand over, standbys that restart,
//! wall clocks that jump, activations that fail, turns that are given up. After every step every
//! file of [`invariants`] is asked. Then the faults end, and everything must drain.
//!
//! Nothing here decides for the machine: the scene does what a lane does, and no more.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_protocol::mutants::Mutant;

pub mod clients;
pub mod cluster;
pub mod invariants;
pub mod model;
pub mod scene;
mod steps;
pub mod trace;
mod world;

use world::World;

/// A fault that is planted on purpose, to see it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A rule of the machine is broken.
    Rule(Mutant),
    /// The scene does not take the state back after a refusal.
    RefusalKeepsState,
    /// The scene does not take the state back after a panic.
    PanicKeepsState,
    /// Some entries are written twice.
    EntryTwice,
    /// Some callers are released and never told.
    ReleaseLost,
    /// Some callers are told twice.
    ReleaseTwice,
}

/// How a seed ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// A digest of everything that happened, in order.
    pub trace: u64,
    /// What happened, counted.
    pub counts: trace::Counts,
}

/// An invariant did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// Steps until then.
    pub step: u32,
    /// Which invariant: the name of its file, or "assertion" for one of the machine's own.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, invariant, detail } = self;
        write!(f, "seed {seed}, step {step}: {invariant}: {detail}\nmake sim SEED={seed}")
    }
}

/// Runs one seed.
///
/// # Errors
/// The first [`Violation`].
pub fn run(seed: u64, planted: Option<Planted>) -> Result<Outcome, Violation> {
    finish(seed, World::new(seed, planted))
}

fn finish(seed: u64, mut world: World) -> Result<Outcome, Violation> {
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let broken = match ran {
        Ok(Ok(())) => return Ok(world.outcome()),
        Ok(Err(broken)) => broken,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            invariants::Broken { invariant: "assertion", detail: text.unwrap_or_default() }
        }
    };
    let invariants::Broken { invariant, detail } = broken;
    Err(Violation { seed, step: world.step(), invariant, detail })
}

/// The first of `seeds`, counted from 1, in which one invariant, asked alone, finds a planted fault.
/// Asked with the others, one that notices nothing would hide behind one that notices first.
pub fn seeds_to_kill(planted: Planted, invariant: &str, seeds: u64) -> Option<u64> {
    (1..=seeds).find(|&seed| {
        let mut world = World::new(seed, Some(planted));
        world.ask_only(invariant);
        finish(seed, world).is_err_and(|violation| violation.invariant == invariant)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_set_of_seeds_holds() {
        let mut counts = trace::Counts::default();
        for seed in 1..=300 {
            match run(seed, None) {
                Ok(outcome) => counts.add(outcome.counts),
                Err(violation) => panic!("{violation}"),
            }
        }
        counts.assert_everything_happened();
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        let traces = |seed| run(seed, None).unwrap();
        for seed in [1, 7, 99] {
            assert_eq!(traces(seed), traces(seed));
        }
        assert_ne!(traces(1).trace, traces(2).trace);
    }

    /// Every planted fault, the number of seeds within which it must be found, and which
    /// invariant finds it by itself; "assertion" is one of the machine's own.
    const BUDGETS: [(Planted, u64, &str); 30] = [
        (Planted::Rule(Mutant::ReplyBeforeCommit), 3, "no_dirty_read"),
        (Planted::Rule(Mutant::ReplyBeforeCommit), 40, "real_time_order"),
        (Planted::Rule(Mutant::QueryNotGated), 3, "no_dirty_read"),
        (Planted::Rule(Mutant::UnchangedNotGated), 40, "no_dirty_read"),
        (Planted::Rule(Mutant::NoopNotGated), 300, "no_dirty_read"),
        (Planted::Rule(Mutant::NoDedup), 10, "each_key_once"),
        (Planted::Rule(Mutant::DedupVolatile), 10, "no_acked_loss"),
        (Planted::Rule(Mutant::NoJoin), 40, "assertion"),
        (Planted::Rule(Mutant::KeyConflictIgnored), 40, "own_answer"),
        (Planted::Rule(Mutant::DedupEvicts), 10, "nothing_evicted"),
        (Planted::Rule(Mutant::ExpiredRuns), 5, "expired_never_runs"),
        (Planted::Rule(Mutant::MailboxOffByOne), 3, "mailbox_bound"),
        (Planted::Rule(Mutant::WatermarkOfFastest), 3, "watermark"),
        (Planted::Rule(Mutant::WatermarkUnsynced), 10, "watermark"),
        (Planted::Rule(Mutant::LogTimeFollowsWall), 5, "assertion"),
        (Planted::Rule(Mutant::PassivateUncommitted), 40, "no_dirty_read"),
        (Planted::Rule(Mutant::TwoTurns), 3, "one_turn_each"),
        (Planted::Rule(Mutant::NoQuarantine), 120, "quarantine"),
        (Planted::Rule(Mutant::StepDownSwapped), 10, "not_executed"),
        (Planted::RefusalKeepsState, 3, "refusals_change_nothing"),
        (Planted::PanicKeepsState, 3, "refusals_change_nothing"),
        (Planted::EntryTwice, 3, "log_order"),
        (Planted::ReleaseLost, 3, "answered_once"),
        (Planted::ReleaseTwice, 3, "answered_once"),
        (Planted::Rule(Mutant::ShareOfAll), 20, "mailbox_bound"),
        (Planted::Rule(Mutant::ConditionAtAdmission), 20, "versions"),
        (Planted::Rule(Mutant::ConditionBeforeDedup), 20, "versions"),
        (Planted::Rule(Mutant::VersionOfLastEntry), 3, "versions"),
        (Planted::Rule(Mutant::ReplayShowsNow), 10, "versions"),
        (Planted::Rule(Mutant::UnchangedNotGated), 40, "versions"),
    ];

    #[test]
    fn every_planted_fault_is_found_within_its_budget_by_who_looks_for_it() {
        let alive: Vec<String> = BUDGETS
            .iter()
            .filter(|(planted, budget, finder)| seeds_to_kill(*planted, finder, *budget).is_none())
            .map(|(planted, budget, finder)| {
                format!("{planted:?}: {finder} does not find it in {budget} seeds")
            })
            .collect();
        assert!(alive.is_empty(), "{alive:#?}");
    }

    #[test]
    fn every_invariant_finds_a_planted_fault() {
        let names = invariants::Invariants::default().names();
        let finds = |name: &str| BUDGETS.iter().any(|(_, _, finder)| *finder == name);
        let idle: Vec<_> = names.into_iter().filter(|name| !finds(name)).collect();
        assert!(idle.is_empty(), "no planted fault is found by {idle:?}");
    }
}
