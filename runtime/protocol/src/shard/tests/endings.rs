//! How turns, rows and epochs end.

use super::*;

#[test]
fn step_down_tells_what_ran_from_what_did_not() {
    let mut rig = Rig::new();
    rig.run(query("z"), 'r', answer());
    rig.run(command("a"), 'p', put());
    rig.ask(keyed("b", "k"), 'R').unwrap();
    let _running = rig.turn().unwrap();
    rig.ask(keyed("b", "k"), 'j').unwrap();
    rig.ask(keyed("b", "l"), 'q').unwrap();
    rig.ask(keyed("b", "l"), 'n').unwrap();
    let SteppedDown { released, mut not_executed, mut unknown } = rig.primary.step_down();
    not_executed.sort_unstable();
    unknown.sort_unstable();
    assert_eq!(released.into_iter().map(|it| it.item).collect::<Vec<_>>(), ['r']);
    assert_eq!((not_executed, unknown), (vec!['n', 'q'], vec!['j', 'p']));
}

#[test]
fn a_machine_that_admits_nobody_drains() {
    let mut rig = Rig::new();
    rig.ask(command("a"), '1').unwrap();
    let failure = Failure::NotPrimary { map_version: 9, primary: Some(node("n2")) };
    rig.primary.stop_admission(failure.clone());
    assert_eq!(rig.ask(command("a"), '2'), Err(failure));
    let turn = rig.turn().unwrap();
    rig.done(turn, put());
    assert!(!rig.primary.is_drained());
    rig.commit();
    assert!(!rig.primary.is_drained(), "a reply has not been taken");
    assert_eq!(rig.released(), "1");
    assert!(rig.primary.is_drained());
    rig.primary.resume_admission();
    assert!(rig.ask(command("a"), '3').is_ok());
}

#[test]
fn a_row_stays_while_anything_of_it_is_uncommitted() {
    let mut rig = Rig::new();
    rig.ask(command("a"), '1').unwrap();
    let slot = rig.primary.slot_of(&entity("a")).unwrap();
    assert!(!rig.primary.remove_row(slot), "it has work");
    let turn = rig.turn().unwrap();
    assert!(turn.fresh && !rig.primary.remove_row(slot), "it runs");
    rig.done(turn, put());
    assert!(!rig.primary.remove_row(slot), "it is not committed");
    assert_eq!(rig.primary.gate_of(slot), Seq(2));
    rig.commit();
    assert!(rig.primary.remove_row(slot));
    rig.ask(command("a"), '2').unwrap();
    assert!(rig.turn().unwrap().fresh, "it is activated anew");
}

#[test]
fn a_failed_activation_leaves_no_row_and_is_tried_again() {
    let mut rig = Rig::new();
    let failure = Failure::Unavailable { outcome: Outcome::NotExecuted, reason: "disk".to_owned() };
    rig.ask(command("a"), '1').unwrap();
    rig.ask(command("a"), '2').unwrap();
    for _ in 0..2 {
        let turn = rig.turn().unwrap();
        assert!(turn.fresh);
        rig.done(turn, Done::NotActivated { failure: failure.clone() });
    }
    assert_eq!((rig.primary.entities(), rig.released().as_str()), (0, "12"));
}

#[test]
fn an_activation_that_is_lost_keeps_its_row_until_it_is_committed() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    let failure = Failure::Version { reason: "newer".to_owned() };
    rig.run(command("a"), '2', Done::NotActivated { failure });
    assert_eq!(rig.primary.entities(), 1, "its gate is needed");
    rig.commit();
    assert_eq!(rig.primary.entities(), 0);
}

#[test]
fn a_cancelled_request_does_not_run() {
    let mut rig = Rig::new();
    let Ok(Admitted::Queued(ticket)) = rig.ask(command("a"), '1') else { panic!("there is room") };
    assert_eq!(rig.primary.handle_cancel(ticket), Some('1'));
    assert_eq!(rig.primary.handle_cancel(ticket), None);
    assert!(rig.turn().is_none());
    assert!(rig.primary.is_drained());
}
