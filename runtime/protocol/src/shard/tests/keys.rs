//! Idempotency keys: joined, repeated, refused, forgotten, quarantined.

use super::*;

#[test]
fn a_call_with_a_key_in_flight_joins_and_hears_the_same() {
    let mut rig = Rig::new();
    rig.ask(keyed("a", "k"), '1').unwrap();
    assert_eq!(rig.ask(keyed("a", "k"), '2'), Ok(Admitted::Joined));
    let turn = rig.turn().unwrap();
    assert_eq!(rig.ask(keyed("a", "k"), '3'), Ok(Admitted::Joined));
    let beyond_its_share = rig.ask(keyed("a", "k"), '4').unwrap_err();
    assert!(matches!(beyond_its_share, Failure::Overloaded { .. }));
    rig.done(turn, put());
    assert!(rig.turn().is_none());
    rig.commit();
    let replayed: Vec<_> =
        rig.releases().into_iter().map(|(who, it)| (who, it.unwrap().replayed)).collect();
    assert_eq!(replayed, [('1', false), ('2', true), ('3', true)]);
}

#[test]
fn one_that_joined_takes_the_place_of_an_expired_call() {
    let mut rig = Rig::new();
    let soon = Ask { deadline: Instant::from_millis(5), ..keyed("a", "k") };
    rig.ask(soon, '1').unwrap();
    rig.ask(command("a"), 'x').unwrap();
    rig.ask(keyed("a", "k"), '2').unwrap();
    assert_eq!(rig.primary.poll_timeout(), Some(Instant::from_millis(5)));
    rig.at.now = Instant::from_millis(5);
    rig.primary.handle_timeout(rig.at.now);
    let expired = Failure::Deadline { outcome: Outcome::NotExecuted };
    assert_eq!(rig.releases(), [('1', Err(expired))]);
    assert_eq!(rig.turn().unwrap().item, '2', "in the place of the first");
    assert!(rig.primary.poll_timeout() == Some(Instant::from_millis(1000)));
}

#[test]
fn a_key_takes_effect_once_for_ever() {
    let mut rig = Rig::new();
    rig.run(keyed("a", "k"), '1', Done::Refused { error: value("no") });
    assert_eq!(rig.ask(keyed("a", "k"), '2'), Ok(Admitted::Replayed));
    assert_eq!(rig.released(), "", "the repetition waits like the first");
    let entries = rig.commit();
    assert_eq!(rig.released(), "12");
    let Op::Turn { entity, change: Change::None, dedup: Some(record) } = entries[0].op.clone()
    else {
        panic!("a refusal with a key is an entry with its record alone")
    };
    let dedup = vec![(entity, entries[0].log_time, record)];
    let recovered = Recovered { last: Seq(2), log_time: entries[0].log_time, dedup };
    let mut next = Rig::start(Config::default(), recovered);
    assert_eq!(next.ask(keyed("a", "k"), '3'), Ok(Admitted::Replayed));
    next.commit();
    let [('3', Err(Failure::App { error, replayed: true, .. }))] = &next.releases()[..] else {
        panic!("the stored refusal was expected")
    };
    assert_eq!(*error, value("no"));
}

#[test]
fn a_key_used_for_something_else_is_a_conflict() {
    let mut rig = Rig::new();
    rig.ask(keyed("a", "k"), '1').unwrap();
    let other_payload = Ask { payload_hash: 8, ..keyed("a", "k") };
    let other_method = Ask { method: MethodId(9), ..keyed("a", "k") };
    assert_eq!(rig.ask(other_payload.clone(), '2'), Err(Failure::KeyConflict));
    let turn = rig.turn().unwrap();
    rig.done(turn, put());
    assert_eq!(rig.ask(other_payload, '2'), Err(Failure::KeyConflict));
    assert_eq!(rig.ask(other_method, '2'), Err(Failure::KeyConflict));
    assert!(rig.ask(keyed("b", "k"), '2').is_ok(), "a key belongs to one entity");
}

#[test]
fn dedup_records_expire_by_log_time() {
    let retention = Duration::from_secs(10);
    let dedup = dedup::Config { retention, ..dedup::Config::default() };
    let mut rig = Rig::with(Config { dedup, ..Config::default() });
    rig.run(keyed("a", "k"), '1', put());
    rig.at.wall = LogTime(100 + 10_001);
    assert_eq!(rig.ask(keyed("a", "k"), '2'), Ok(Admitted::Replayed), "no entry has moved it");
    rig.run(command("b"), '3', put());
    assert!(rig.primary.dedup().is_empty());
}

#[test]
fn the_third_panic_of_an_input_is_its_last() {
    let mut rig = Rig::new();
    for (caller, key) in [('1', "k1"), ('2', "k2")] {
        rig.run(keyed("a", key), caller, Done::Panicked);
    }
    assert_eq!(rig.commit().len(), 0, "a panic leaves nothing behind");
    rig.ask(keyed("a", "k3"), '3').unwrap();
    rig.ask(keyed("a", "k4"), '4').unwrap();
    let turn = rig.turn().unwrap();
    rig.done(turn, Done::Panicked);
    assert!(rig.turn().is_none(), "what was queued is not tried either");
    assert_eq!(rig.ask(command("a"), '5'), Err(Failure::Panicked { quarantined: true }));
    assert!(rig.ask(Ask { payload_hash: 8, ..command("a") }, '6').is_ok(), "another input");
    let [Entry { op: Op::Turn { change: Change::None, dedup: Some(record), .. }, .. }] =
        &rig.commit()[..]
    else {
        panic!("a quarantined key is an entry with its record alone")
    };
    assert_eq!(record.reply, StoredReply::Quarantined);
    let quarantined: Vec<_> = rig
        .releases()
        .into_iter()
        .map(|(caller, it)| (caller, it == Err(Failure::Panicked { quarantined: true })))
        .collect();
    assert_eq!(quarantined, [('1', false), ('2', false), ('3', true), ('4', true)]);
}
