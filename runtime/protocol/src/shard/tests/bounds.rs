//! Full windows and budgets refuse by name.

use super::*;

#[track_caller]
fn overloaded(answer: Result<Admitted, Failure>, want: &str) {
    match answer {
        Err(Failure::Overloaded { bound, .. }) => assert_eq!(bound, want),
        other => panic!("{want} was expected, not {other:?}"),
    }
}

#[test]
fn a_full_uncommitted_window_refuses_commands_and_serves_queries() {
    let mut rig = Rig::with(Config { uncommitted_entries_max: 2, ..Config::default() });
    rig.run(command("a"), '1', put());
    rig.ask(command("a"), '2').unwrap();
    overloaded(rig.ask(command("b"), '3'), "uncommitted");
    assert!(rig.ask(query("b"), '4').is_ok());
    rig.commit();
    assert!(rig.ask(command("b"), '5').is_ok());
}

#[test]
fn too_many_uncommitted_bytes_pause_turns() {
    let mut rig = Rig::with(Config { uncommitted_bytes_max: 20, ..Config::default() });
    rig.ask(command("b"), '2').unwrap();
    rig.run(command("a"), '1', put());
    overloaded(rig.ask(command("c"), '3'), "uncommitted");
    rig.commit();
    assert!(rig.ask(command("c"), '3').is_ok());
}

#[test]
fn every_bound_refuses_by_its_name() {
    let mut rig = Rig::new();
    for caller in '1'..='4' {
        rig.ask(command("a"), caller).unwrap();
    }
    overloaded(rig.ask(command("a"), '5'), "mailbox");
    let waits = Ask { pressure: Pressure::Wait, ..command("a") };
    assert!(matches!(rig.ask(waits, '5'), Ok(Admitted::Waiting(_))));

    let mut rig = Rig::with(Config { requests_max: 1, ..Config::default() });
    rig.ask(command("a"), '1').unwrap();
    overloaded(rig.ask(query("b"), '2'), "shard");

    let dedup = dedup::Config { bytes_max: 100, ..dedup::Config::default() };
    let mut rig = Rig::with(Config { dedup, ..Config::default() });
    rig.run(keyed("a", "k"), '1', put());
    overloaded(rig.ask(keyed("a", "l"), '2'), "dedup");
    assert_eq!(rig.ask(keyed("a", "k"), '3'), Ok(Admitted::Replayed), "nothing is evicted");
    assert!(rig.ask(command("a"), '4').is_ok());
}
