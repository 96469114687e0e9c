//! The composed machine, as facts. Interleavings and faults are the simulator's.

use bytes::Bytes;

use super::primary::Primary;
use super::*;
use crate::entry::{Entry, Op};
use crate::id::{Key, KindId};
use crate::message::Outcome;
use crate::replication::in_sync::AckError;
use crate::time::Moment;

/// A machine whose callers are letters, and its clocks.
struct Rig {
    primary: Primary<char>,
    at: Moment,
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(1), key: Key::new(key).unwrap() }
}

fn value(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn command(key: &str) -> Ask {
    Ask {
        entity: entity(key),
        method: MethodId(1),
        mode: Mode::Command,
        pressure: Pressure::Refuse,
        idempotency: None,
        payload_hash: 7,
        deadline: Instant::from_millis(1000),
        mailbox: 4,
        source: SourceId(1),
        source_share: 2,
    }
}

fn query(key: &str) -> Ask {
    Ask { mode: Mode::Query, method: MethodId(2), ..command(key) }
}

fn keyed(entity: &str, key: &str) -> Ask {
    Ask { idempotency: Some(IdempotencyKey::new(key).unwrap()), ..command(entity) }
}

fn post(members: &[&str]) -> Post {
    Post {
        shard: ShardId(3),
        epoch: Epoch(5),
        me: node("n1"),
        in_sync: members.iter().map(|name| (node(name), Seq(0))).collect(),
        min_insync: u8::try_from(members.len().min(2)).unwrap(),
    }
}

impl Rig {
    /// A single copy whose noop is committed.
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        let mut rig = Self::start(config, Recovered::default());
        rig.commit();
        rig
    }

    fn start(config: Config, recovered: Recovered) -> Self {
        let at = Moment { now: Instant::from_millis(1), wall: LogTime(100) };
        Self { primary: Primary::new(config, post(&["n1"]), recovered, at.wall), at }
    }

    fn ask(&mut self, ask: Ask, caller: char) -> Result<Admitted, Failure> {
        let asked = self.primary.handle_request(ask, caller, self.at.now);
        asked.map_err(|refused| refused.failure)
    }

    fn turn(&mut self) -> Option<Turn<char>> {
        self.primary.next_turn(self.at)
    }

    #[expect(clippy::needless_pass_by_value, reason = "a turn ends once")]
    fn done(&mut self, turn: Turn<char>, done: Done) -> Committing {
        self.primary.handle_turn_done(turn.id, done, turn.item, self.at).unwrap()
    }

    /// Admits, runs and ends a turn.
    fn run(&mut self, ask: Ask, caller: char, done: Done) -> Committing {
        self.ask(ask, caller).unwrap();
        let turn = self.turn().unwrap();
        self.done(turn, done)
    }

    fn entries(&mut self) -> Vec<Entry> {
        let segments = std::iter::from_fn(|| self.primary.take_segment());
        segments.flat_map(|segment| segment.entries().unwrap()).collect()
    }

    fn commit(&mut self) -> Vec<Entry> {
        let entries = self.entries();
        self.primary.handle_durable(&node("n1"), self.primary.last()).unwrap();
        entries
    }

    fn releases(&mut self) -> Vec<(char, Result<Success, Failure>)> {
        let releases = std::iter::from_fn(|| self.primary.poll_release());
        releases.map(|release| (release.item, release.result)).collect()
    }

    fn released(&mut self) -> String {
        self.releases().into_iter().map(|(caller, _)| caller).collect()
    }
}

fn put() -> Done {
    Done::Command { change: Change::Put(value("state")), value: value("v") }
}

fn unchanged() -> Done {
    Done::Command { change: Change::None, value: value("v") }
}

fn answer() -> Done {
    Done::Query { value: value("q") }
}

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
    let success = Success { value: value("v"), token, replayed: false };
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
    rig.primary.handle_durable(&node("n2"), Seq(1)).unwrap();
    assert_eq!(rig.released(), "");
    rig.primary.handle_durable(&node("n2"), Seq(2)).unwrap();
    assert_eq!(rig.released(), "c");
    assert!(matches!(
        rig.primary.handle_durable(&node("n2"), Seq(9)),
        Err(AckError::BeyondLog { .. })
    ));
}

#[test]
fn entities_take_turns_and_have_one_at_a_time() {
    let mut rig = Rig::new();
    for (name, caller) in [("a", '1'), ("a", '2'), ("a", '3'), ("b", '4'), ("b", '5')] {
        rig.ask(command(name), caller).unwrap();
    }
    let first = rig.turn().unwrap();
    let second = rig.turn().unwrap();
    assert_eq!((first.item, second.item), ('1', '4'));
    assert!(rig.turn().is_none(), "both run");
    rig.done(first, unchanged());
    rig.done(second, unchanged());
    let order: String = std::iter::from_fn(|| {
        let turn = rig.turn()?;
        let caller = turn.item;
        rig.done(turn, unchanged());
        Some(caller)
    })
    .collect();
    assert_eq!(order, "253");
}

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
fn an_expired_request_never_runs_and_its_unused_row_leaves() {
    let mut rig = Rig::new();
    rig.ask(Ask { deadline: Instant::from_millis(5), ..command("a") }, '1').unwrap();
    rig.at.now = Instant::from_millis(6);
    assert!(rig.turn().is_none());
    assert_eq!(rig.released(), "1");
    assert_eq!(rig.primary.entities(), 0);
    let late = rig.ask(Ask { deadline: Instant::from_millis(6), ..command("a") }, '2');
    assert_eq!(late, Err(Failure::Deadline { outcome: Outcome::NotExecuted }));
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
fn log_time_does_not_follow_the_wall_backwards() {
    let mut rig = Rig::new();
    rig.run(command("a"), '1', put());
    rig.at.wall = LogTime(3);
    rig.ask(command("a"), '2').unwrap();
    let turn = rig.turn().unwrap();
    assert_eq!(turn.log_time, LogTime(100));
    rig.done(turn, put());
    let times: Vec<_> = rig.entries().into_iter().map(|entry| entry.log_time).collect();
    assert_eq!(times, [LogTime(100), LogTime(100)]);
}

#[test]
fn a_turn_ends_once() {
    let mut rig = Rig::new();
    rig.ask(command("a"), '1').unwrap();
    let Turn { id, item, .. } = rig.turn().unwrap();
    assert!(rig.primary.handle_turn_done(id, put(), item, rig.at).is_ok());
    rig.ask(command("a"), '2').unwrap();
    let _second = rig.turn().unwrap();
    let stale = rig.primary.handle_turn_done(id, put(), 'x', rig.at).unwrap_err();
    assert_eq!(stale.item, 'x');
    assert_eq!((rig.primary.running(), rig.primary.uncommitted()), (1, 1));
}

#[test]
#[should_panic(expected = "a query does not change state")]
fn a_query_that_changed_state_is_a_broken_scene() {
    Rig::new().run(query("a"), 'q', put());
}

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
    rig.primary.handle_durable(&node("n1"), Seq(3)).unwrap();
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
    rig.primary.handle_durable(&node("n1"), Seq(2)).ok();
}
