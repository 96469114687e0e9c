//! Queries that want more, or less, than the newest state under a lease.

use super::copies::{heard, holds, pair, sleep};
use super::*;
use crate::id::Token;
use crate::replication::freshness::Freshness;

fn strict(key: &str) -> Ask {
    Ask { freshness: Some(Freshness::Strict), ..query(key) }
}

fn at_least(epoch: u64, seq: u64) -> Ask {
    let token = Token { shard: ShardId(3), epoch: Epoch(epoch), seq: Seq(seq) };
    Ask { freshness: Some(Freshness::AtLeast(token)), ..query("a") }
}

/// A pair that holds a lease and knows of one strict query.
fn leased_with_a_strict_query(plant: impl FnOnce(&mut Rig)) -> Rig {
    let mut rig = pair();
    plant(&mut rig);
    heard(&mut rig, 1, true);
    sleep(&mut rig, 40);
    assert!(rig.primary.in_sync().has_lease(rig.at.now));
    rig.run(strict("a"), 's', answer());
    rig
}

#[test]
fn a_strict_query_trusts_no_lease() {
    let mut rig = leased_with_a_strict_query(|_| {});
    assert!(rig.primary.wants_round());
    assert_eq!(rig.released(), "");
    sleep(&mut rig, 41);
    heard(&mut rig, 40, true);
    assert_eq!(rig.released(), "", "that append may have been sent before the query");
    sleep(&mut rig, 42);
    heard(&mut rig, 41, false);
    assert_eq!(rig.released(), "s");
}

#[test]
#[cfg(feature = "mutants")]
fn a_strict_query_under_a_lease_is_found() {
    let plant = |rig: &mut Rig| rig.primary.plant(crate::mutants::Mutant::StrictTrustsLease);
    let mut rig = leased_with_a_strict_query(plant);
    assert_eq!(rig.released(), "s", "and its clock may be wrong");
}

#[test]
fn others_do_not_wait_behind_a_strict_query() {
    let mut rig = leased_with_a_strict_query(|_| {});
    rig.run(query("a"), 'q', answer());
    assert_eq!(rig.released(), "q");
    sleep(&mut rig, 100);
    rig.run(query("b"), 'r', answer());
    assert_eq!(rig.released(), "", "the lease is over");
    heard(&mut rig, 60, true);
    assert_eq!(rig.released(), "sr", "a round for the one, a lease for the other");
}

#[test]
fn a_strict_query_waits_for_nobody_where_there_is_nobody() {
    let mut rig = Rig::new();
    rig.run(strict("a"), 's', answer());
    assert_eq!(rig.released(), "s");
}

#[test]
fn a_token_that_is_not_in_the_log_is_refused_and_changes_nothing() {
    let mut rig = pair();
    heard(&mut rig, 1, true);
    for (epoch, seq) in [(5, 2), (6, 1)] {
        let refused = rig.ask(at_least(epoch, seq), 'x');
        assert!(matches!(refused, Err(Failure::Stale { .. })), "{refused:?}");
    }
    for (caller, (epoch, seq)) in [('1', (5, 1)), ('2', (4, 1)), ('3', (5, 0))] {
        rig.run(at_least(epoch, seq), caller, answer());
        assert_eq!(rig.released(), caller.to_string());
    }
}

#[test]
fn who_wants_a_token_waits_for_neither_lease_nor_round() {
    let mut rig = pair();
    rig.run(at_least(5, 1), 'q', answer());
    assert!(!rig.primary.wants_round());
    assert_eq!(rig.released(), "q");
    rig.run(command("a"), 'c', put());
    rig.run(at_least(5, 1), 'r', answer());
    assert_eq!(rig.released(), "", "it has seen what is not committed");
    rig.commit();
    holds(&mut rig);
    assert_eq!(rig.released(), "cr");
}

/// The token of an answer is its entity's version; the place of a shard covers all entities.
#[test]
fn a_query_of_some_age_learns_where_the_whole_shard_stands() {
    let mut rig = pair();
    heard(&mut rig, 1, true);
    rig.run(command("b"), 'c', put());
    rig.commit();
    holds(&mut rig);
    rig.run(command("c"), 'u', put());
    let aged = Some(Freshness::MaxStaleness(Duration::from_millis(50)));
    rig.run(query("a"), 'q', answer());
    rig.run(Ask { freshness: aged, ..query("a") }, 'a', answer());
    let released = rig.releases().into_iter();
    let told = released.map(|(caller, result)| (caller, result.unwrap()));
    let mut told: Vec<_> = told.map(|(caller, it)| (caller, it.token.seq, it.place)).collect();
    told.sort_unstable();
    let expected = [('a', Seq(0), Some(Seq(2))), ('c', Seq(2), None), ('q', Seq(0), None)];
    assert_eq!(told, expected, "committed, and no more");
}
