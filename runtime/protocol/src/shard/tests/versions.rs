//! Versions of entities, and commands that run at one of them alone.

use super::*;

/// The same command, to run at this version alone.
fn at(version: u64, ask: Ask) -> Ask {
    Ask { if_version: Some(Seq(version)), ..ask }
}

/// The version that a reply shows.
fn version(result: &Result<Success, Failure>) -> u64 {
    match result {
        Ok(Success { token, .. })
        | Err(Failure::App { token, .. } | Failure::VersionMismatch { token }) => token.seq.0,
        Err(other) => panic!("{other:?} shows no version"),
    }
}

impl Rig {
    /// Callers, and the versions that they are shown.
    fn versions(&mut self) -> Vec<(char, u64)> {
        self.releases().into_iter().map(|(caller, it)| (caller, version(&it))).collect()
    }

    /// The next turn ends as its condition says; with a changed state where it holds.
    fn run_if_met(&mut self) -> bool {
        let turn = self.turn().unwrap();
        let met = self.primary.meets_condition(turn.id);
        self.done(turn, if met { put() } else { Done::Unmet });
        met
    }
}

/// The second was admitted while its version was the entity's.
#[test]
fn of_two_commands_for_one_version_the_second_is_refused_when_its_turn_begins() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.ask(at(2, command("a")), '2').unwrap();
    rig.ask(at(2, command("a")), '3').unwrap();
    assert!(rig.run_if_met());
    assert!(!rig.run_if_met());
    assert_eq!(rig.released(), "", "a refusal shows the version, which is not committed");
    assert_eq!(rig.commit().len(), 2, "it is no entry");
    let releases = rig.releases();
    let shown: Vec<_> = releases.iter().map(|(caller, it)| (*caller, version(it))).collect();
    assert_eq!(shown, [('1', 2), ('2', 3), ('3', 3)]);
    assert!(matches!(releases[2].1, Err(Failure::VersionMismatch { .. })));
    assert!(rig.primary.is_drained());
}

#[test]
fn version_0_is_that_of_an_entity_never_written() {
    let mut rig = Rig::new();
    rig.run(query("a"), 'q', answer());
    rig.ask(at(0, command("a")), '1').unwrap();
    rig.ask(at(0, command("a")), '2').unwrap();
    assert!(rig.run_if_met());
    assert!(!rig.run_if_met());
    rig.commit();
    assert_eq!(rig.versions(), [('q', 0), ('1', 2), ('2', 2)]);
}

#[test]
fn only_what_changes_an_entity_moves_its_version() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.run(command("b"), '2', put());
    rig.run(keyed("a", "k"), '3', unchanged());
    rig.run(keyed("a", "l"), '4', Done::Refused { error: value("no") });
    rig.run(query("a"), '5', answer());
    rig.run(keyed("a", "m"), '6', put());
    rig.commit();
    let expected = [('1', 2), ('2', 3), ('3', 2), ('4', 2), ('5', 2), ('6', 6)];
    assert_eq!(rig.versions(), expected);
}

/// It was the place of the epoch's first entry, or of the last entry, by turns.
#[test]
fn a_version_stays_through_passivation_and_a_new_epoch() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.run(command("b"), '2', put());
    rig.commit();
    let slot = rig.primary.slot_of(&entity("a")).unwrap();
    assert!(rig.primary.remove_row(slot));
    let recovered = Recovered { last: Seq(41), ..Recovered::default() };
    let mut next = Rig::start(Config::default(), recovered);
    next.commit();
    assert_eq!(rig.versions(), [('1', 2), ('2', 3)]);
    for rig in [&mut rig, &mut next] {
        rig.ask(query("a"), 'q').unwrap();
        let turn = rig.turn().unwrap();
        assert!(turn.fresh);
        rig.primary.handle_activated(turn.slot, Seq(2));
        rig.done(turn, answer());
        assert_eq!(rig.versions(), [('q', 2)]);
    }
}

#[test]
fn a_keyed_command_that_took_effect_is_answered_as_it_was_at_any_version() {
    let mut rig = Rig::new();
    rig.ask(at(0, keyed("a", "k")), '1').unwrap();
    assert!(rig.run_if_met());
    rig.run(command("a"), '2', put());
    assert_eq!(rig.ask(at(0, keyed("a", "k")), '3'), Ok(Admitted::Replayed));
    let entries = rig.commit();
    assert_eq!(rig.versions(), [('1', 2), ('2', 3), ('3', 2)]);

    let Op::Turn { entity, dedup: Some(record), .. } = entries[0].op.clone() else {
        panic!("a keyed command leaves a record")
    };
    let dedup = vec![(entity, entries[0].log_time, record)];
    let recovered = Recovered { last: Seq(3), log_time: entries[1].log_time, dedup };
    let mut next = Rig::start(Config::default(), recovered);
    assert_eq!(next.ask(at(0, keyed("a", "k")), '4'), Ok(Admitted::Replayed));
    next.commit();
    assert_eq!(next.versions(), [('4', 2)], "another primary knows it, too");
}

#[test]
fn a_key_that_was_refused_for_its_version_may_come_back_with_another_one() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.ask(at(1, keyed("a", "k")), '2').unwrap();
    assert_eq!(rig.ask(at(1, keyed("a", "k")), '3'), Ok(Admitted::Joined));
    let other = rig.ask(at(2, keyed("a", "k")), '4');
    assert_eq!(other, Err(Failure::KeyConflict), "the one under way may go another way");
    assert!(!rig.run_if_met());
    assert_eq!(rig.primary.dedup().len(), 0);
    rig.ask(at(2, keyed("a", "k")), '5').unwrap();
    assert!(rig.run_if_met());
    rig.commit();
    assert_eq!(rig.versions(), [('1', 2), ('2', 2), ('3', 2), ('5', 3)]);
    assert_eq!(rig.ask(at(1, keyed("a", "k")), '6'), Ok(Admitted::Replayed), "it took effect");
}

#[test]
#[should_panic(expected = "a handler runs at the version that its command names")]
fn a_scene_that_runs_a_refused_command_is_broken() {
    Rig::new().run(at(9, command("a")), '1', put());
}
