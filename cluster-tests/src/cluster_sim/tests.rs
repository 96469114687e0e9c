//! Fixed seeds, stories, and the planted faults with who finds them.

use super::*;

#[test]
fn a_fixed_set_of_seeds_holds() {
    let mut counts = Counts::default();
    for seed in 1..=2_000 {
        match run(seed, None, None) {
            Ok(outcome) => counts.add(outcome.counts),
            Err(violation) => panic!("{violation}"),
        }
    }
    counts.assert_everything_happened();
}

#[test]
fn every_story_ends_well() {
    for story in 0..faults::STORIES.len() {
        for seed in 1..=20 {
            if let Err(violation) = run(seed, Some(story), None) {
                panic!("{violation}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 99] {
        assert_eq!(run(seed, None, None).unwrap(), run(seed, None, None).unwrap());
    }
    assert_ne!(run(1, None, None).unwrap().trace, run(2, None, None).unwrap().trace);
}

/// Random faults, or a story; seeds within which a planted fault must be found; and who finds it
/// by itself: an invariant, or "standby", which stops its node.
const BUDGETS: [(Planted, Option<usize>, u64, &str); 28] = [
    (Planted::Rule(Mutant::NoFencing), Some(1), 20, "standby"),
    (Planted::Rule(Mutant::PromiseNotPersisted), None, 5, "promises_kept"),
    (Planted::Rule(Mutant::NoPromiseAfterStart), Some(2), 20, "one_answers"),
    (Planted::Rule(Mutant::NoWaitAtPromotion), Some(1), 20, "one_answers"),
    (Planted::Rule(Mutant::NoEpochInMatch), Some(3), 30, "committed_once"),
    (Planted::Rule(Mutant::AppendNoTruncate), Some(3), 10, "held_by_members"),
    (Planted::Rule(Mutant::AppendNoTruncate), None, 10, "heals"),
    (Planted::Rule(Mutant::HoldsBeforeDurable), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::AckOfMajority), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::IgnoreDisk), Some(4), 60, "held_by_members"),
    (Planted::Rule(Mutant::JoinBeforeNoop), None, 120, "held_by_members"),
    (Planted::Rule(Mutant::JoinBehind), None, 5, "held_by_members"),
    (Planted::Rule(Mutant::JoiningNotRequired), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::LeavesBeforeConfirmed), Some(3), 10, "held_by_members"),
    (Planted::Rule(Mutant::NeverLetsGo), None, 20, "heals"),
    (Planted::Rule(Mutant::NoLease), Some(0), 5, "one_answers"),
    (Planted::Rule(Mutant::NoLease), Some(0), 40, "real_time"),
    (Planted::Rule(Mutant::LeaseOfOne), Some(3), 200, "one_answers"),
    (Planted::Rule(Mutant::LeaseFromReceipt), Some(1), 20, "one_answers"),
    (Planted::Rule(Mutant::RoundCountsOlder), Some(1), 10, "real_time"),
    (Planted::UncleanPromotion, None, 5, "held_by_members"),
    (Planted::SameEpochAfterRestart, None, 60, "committed_once"),
    (Planted::SetChangeWithoutExpect, Some(5), 500, "held_by_members"),
    (Planted::PromotionRemoves, None, 5, "set_size"),
    (Planted::Rule(Mutant::StepDownSwapped), None, 100, "not_executed"),
    (Planted::Rule(Mutant::NoDedup), None, 20, "key_once"),
    (Planted::Rule(Mutant::StandbyShowsUncommitted), None, 5, "standby_shows"),
    (Planted::Rule(Mutant::StandbyIgnoresToken), None, 5, "standby_shows"),
];

#[test]
fn every_planted_fault_is_found_within_its_budget_by_who_looks_for_it() {
    let alive: Vec<String> = BUDGETS
        .iter()
        .filter(|(planted, story, budget, finder)| {
            !(1..=*budget).any(|seed| finds(*planted, *story, seed, finder))
        })
        .map(|(planted, story, budget, finder)| {
            format!("{planted:?}, story {story:?}: {finder} does not find it in {budget} seeds")
        })
        .collect();
    assert!(alive.is_empty(), "{alive:#?}");
}

#[test]
fn every_invariant_finds_a_planted_fault() {
    let finds = |name: &str| BUDGETS.iter().any(|(.., finder)| *finder == name);
    let names = invariants::Invariants::default().names();
    let idle: Vec<_> = names.into_iter().filter(|name| !finds(name)).collect();
    assert!(idle.is_empty(), "no planted fault is found by {idle:?}");
}
