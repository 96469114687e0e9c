//! The scopes that `make test` searches, and which planted fault each of them finds.

use super::*;
use scopes::{SMALL, Scope};

/// More states than any small scope has.
const MOST: usize = 100_000;

fn scope(name: &str) -> &'static Scope {
    SMALL.iter().find(|scope| scope.name == name).unwrap()
}

#[test]
fn every_state_of_small_clusters_holds() {
    let mut failed_over = 0;
    for scope in &SMALL {
        let report = search(scope, None, MOST).unwrap_or_else(|it| panic!("{}: {it}", scope.name));
        println!("{}: {report:?}", scope.name);
        assert!(!report.cut, "{}: states were left out", scope.name);
        failed_over += report.failed_over;
    }
    assert!(failed_over > 1000, "entries are committed after a failover: {failed_over} states");
}

/// Which planted fault is found where.
const FOUND: [(Planted, &str); 10] = [
    (Planted::Rule(Mutant::NoFencing), "two nodes take turns"),
    (Planted::Rule(Mutant::PromiseNotPersisted), "two nodes take turns"),
    (Planted::Rule(Mutant::HoldsBeforeDurable), "two nodes take turns"),
    (Planted::Rule(Mutant::CommitBeyondMatch), "a copy outside of the set follows"),
    (Planted::Rule(Mutant::JoiningNotRequired), "a copy joins"),
    (Planted::Rule(Mutant::JoinBehind), "a copy joins"),
    (Planted::Rule(Mutant::LeavesBeforeConfirmed), "a copy leaves"),
    (Planted::Rule(Mutant::AckOfMajority), "a copy leaves"),
    (Planted::Rule(Mutant::IgnoreDisk), "a disk is replaced"),
    (Planted::StartsWithoutMap, "two nodes, one crashes"),
];

#[test]
fn planted_faults_are_found() {
    let mut survive = Vec::new();
    for (planted, name) in FOUND {
        match search(scope(name), Some(planted), MOST) {
            Ok(report) => survive.push((planted, report)),
            Err(it) => {
                let (rule, steps, states) = (it.broken.rule, it.story.len(), it.states);
                println!("{planted:?}: {rule} after {steps} steps, {states} states");
            }
        }
    }
    assert!(survive.is_empty(), "{survive:?}");
}

/// `StaleDeferredAck` changes nothing that is checked here, as far as these scopes go: the set that
/// an older primary waits for has the newer one in it, which held on its disk whatever the older
/// one can still commit; and a standby that becomes primary and steps down has another life. What
/// a late answer does to queries and copies of states is for `cluster_sim` to find.
#[test]
fn a_late_answer_commits_nothing_that_the_next_primary_lacks() {
    let planted = Planted::Rule(Mutant::StaleDeferredAck);
    for name in ["two nodes take turns", "two nodes, one crashes"] {
        let found = search(scope(name), Some(planted), MOST);
        assert!(found.is_ok_and(|report| !report.cut), "{name}: found, or states were left out");
    }
}
