//! What replies wait for.

use super::*;

#[test]
fn replies_wait_for_the_noop_of_the_epoch() {
    let recovered = Recovered { last: Seq(41), ..Recovered::default() };
    let mut rig = Rig::start(Config::default(), recovered);
    let committing = rig.run(query("a"), 'q', answer());
    assert_eq!(committing, Committing { entry: None, gate: Seq(42) });
    assert_eq!(rig.released(), "");
    assert!(matches!(&rig.commit()[..], [Entry { seq: Seq(42), op: Op::Noop, .. }]));
    assert_eq!(rig.released(), "q");
}

#[test]
fn every_reply_waits_for_the_last_entry_of_its_entity_and_for_no_other() {
    let mut rig = Rig::new();
    rig.run(command("a"), 'c', put());
    rig.run(query("a"), 'q', answer());
    rig.run(command("a"), 'r', Done::Refused { error: value("no") });
    rig.run(command("a"), 'u', unchanged());
    rig.run(query("b"), 'x', answer());
    assert_eq!(rig.released(), "x");
    assert_eq!(rig.commit().len(), 1, "refusals and no-changes without a key are no entries");
    assert_eq!(rig.released(), "cqru");
}

#[test]
fn a_reply_says_where_its_entity_stood() {
    let mut rig = Rig::new();
    rig.run(command("a"), 'c', put());
    rig.commit();
    let token = Token { shard: ShardId(3), epoch: Epoch(5), seq: Seq(2) };
    let success = Success { value: value("v"), token, replayed: false, place: None };
    assert_eq!(rig.releases(), [('c', Ok(success))]);
}

#[test]
fn the_slowest_member_of_the_set_holds_replies_back() {
    let at = Moment { now: Instant::from_millis(1), wall: LogTime(1) };
    let primary =
        Primary::new(Config::default(), post(&["n1", "n2"]), Recovered::default(), at.wall);
    let mut rig = Rig { primary, at };
    rig.run(command("a"), 'c', put());
    rig.commit();
    assert_eq!(rig.released(), "");
    rig.primary.handle_holds(&node("n2"), disk("n2"), (NEWEST, Seq(1))).unwrap();
    assert_eq!(rig.released(), "");
    rig.primary.handle_holds(&node("n2"), disk("n2"), (NEWEST, Seq(2))).unwrap();
    assert_eq!(rig.released(), "c");
    assert!(matches!(
        rig.primary.handle_holds(&node("n2"), disk("n2"), (NEWEST, Seq(9))),
        Err(AckError::BeyondLog { .. })
    ));
}

#[test]
fn large_runs_come_in_parts() {
    let mut rig = Rig::with(Config { uncommitted_bytes_max: u64::MAX, ..Config::default() });
    let state = Bytes::from(vec![1; 700 << 10]);
    for caller in '1'..='4' {
        let done = Done::Command { change: Change::Put(state.clone()), value: value("v") };
        rig.run(command("a"), caller, done);
    }
    let first = rig.primary.take_segment().unwrap();
    assert_eq!((first.first, first.last), (Seq(2), Seq(3)));
    rig.primary.handle_durable(Seq(3));
    assert_eq!(rig.released(), "12");
    let second = rig.primary.take_segment().unwrap();
    assert_eq!((second.first, second.last), (Seq(4), Seq(5)));
    assert_eq!(rig.primary.take_segment(), None);
}

#[test]
#[should_panic(expected = "the journal commits only what it was given")]
fn the_own_journal_cannot_acknowledge_what_it_was_not_given() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.primary.handle_durable(Seq(2));
}
