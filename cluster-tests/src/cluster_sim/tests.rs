//! Fixed seeds, stories, and the planted faults with who finds them.

use std::collections::BTreeMap;

use mainstay_protocol::id::{EntityId, Key, KindId, NodeId, Seq};
use mainstay_protocol::replication::audit::{Comparison, Cure, Row, Said, Slice};

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
const BUDGETS: [(Planted, Option<usize>, u64, &str); 32] = [
    (Planted::Rule(Mutant::NoFencing), Some(1), 20, "standby"),
    (Planted::Rule(Mutant::PromiseNotPersisted), None, 5, "promises_kept"),
    (Planted::Rule(Mutant::NoPromiseAfterStart), Some(2), 20, "one_answers"),
    (Planted::Rule(Mutant::NoWaitAtPromotion), Some(1), 20, "one_answers"),
    (Planted::Rule(Mutant::NoEpochInMatch), Some(3), 120, "committed_once"),
    (Planted::Rule(Mutant::AppendNoTruncate), Some(3), 10, "held_by_members"),
    (Planted::Rule(Mutant::AppendNoTruncate), None, 10, "heals"),
    (Planted::Rule(Mutant::HoldsBeforeDurable), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::AckOfMajority), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::IgnoreDisk), None, 200, "heals"),
    (Planted::Rule(Mutant::JoinBeforeNoop), None, 120, "held_by_members"),
    (Planted::Rule(Mutant::JoinBehind), None, 40, "held_by_members"),
    (Planted::Rule(Mutant::JoiningNotRequired), Some(0), 5, "held_by_members"),
    (Planted::Rule(Mutant::LeavesBeforeConfirmed), Some(3), 10, "held_by_members"),
    (Planted::Rule(Mutant::NeverLetsGo), None, 20, "heals"),
    (Planted::Rule(Mutant::NoLease), Some(0), 5, "one_answers"),
    (Planted::Rule(Mutant::NoLease), Some(0), 40, "real_time"),
    (Planted::Rule(Mutant::LeaseOfOne), Some(3), 200, "one_answers"),
    (Planted::Rule(Mutant::LeaseFromReceipt), Some(1), 120, "one_answers"),
    (Planted::Rule(Mutant::RoundCountsOlder), Some(1), 10, "real_time"),
    (Planted::UncleanPromotion, None, 20, "held_by_members"),
    (Planted::SameEpochAfterRestart, None, 400, "committed_once"),
    (Planted::SetChangeWithoutExpect, Some(5), 1_000, "held_by_members"),
    (Planted::PromotionRemoves, None, 5, "set_size"),
    (Planted::Rule(Mutant::StepDownSwapped), None, 100, "not_executed"),
    (Planted::Rule(Mutant::NoDedup), None, 20, "key_once"),
    (Planted::Rule(Mutant::ConditionAtAdmission), None, 20, "versions"),
    (Planted::Rule(Mutant::ConditionBeforeDedup), None, 60, "not_executed"),
    (Planted::Rule(Mutant::VersionOfLastEntry), None, 5, "versions"),
    (Planted::Rule(Mutant::ReplayShowsNow), None, 60, "versions"),
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

/// A slice of one row.
fn slice(applied: u64, seq: u64, hash: u64) -> Slice {
    let entity = EntityId { kind: KindId(1), key: Key::new("a").unwrap() };
    Slice { upto: None, applied: Seq(applied), rows: vec![Row { entity, seq: Seq(seq), hash }] }
}

/// What becomes of the row of the first of these copies, with a fault or without one.
fn cure(planted: Option<Mutant>, primary: &Slice, copies: Vec<Slice>) -> Option<Cure> {
    let name = |at| NodeId::new(&format!("n{at}")).unwrap();
    let said = copies.into_iter().enumerate().map(|(at, copy)| (name(at), Said::Rows(copy)));
    let mut comparison = Comparison::default();
    if let Some(mutant) = planted {
        comparison.plant(mutant);
    }
    let findings = comparison.compare(primary, &said.collect::<BTreeMap<_, _>>());
    findings.wrong.first().map(|wrong| wrong.cure)
}

/// An audit reads tables, which no simulated node has: its rule is shown slices.
#[test]
fn the_planted_faults_of_an_audit_change_what_it_says() {
    let (primary, behind) = (slice(9, 9, 5), vec![slice(8, 3, 1)]);
    assert_eq!(cure(None, &primary, behind.clone()), None);
    let early = cure(Some(Mutant::AuditIgnoresPlace), &primary, behind);
    assert_eq!(early, Some(Cure::Replace), "an entry on its way is no fault");
    let agree = vec![slice(9, 9, 1), slice(9, 9, 1)];
    assert_eq!(cure(None, &primary, agree.clone()), Some(Cure::Outvoted));
    let believed = cure(Some(Mutant::AuditBelievesPrimary), &primary, agree);
    assert_eq!(believed, Some(Cure::Replace), "two copies against one");
}
