//! The composed machine, as facts. Interleavings and faults are the simulator's.

mod bounds;
mod copies;
mod endings;
mod freshness;
mod gates;
mod keys;
mod versions;

use bytes::Bytes;

use super::primary::Primary;
use super::*;
use crate::entry::{Entry, Op};
use crate::id::{DiskId, Key, KindId};
use crate::message::Outcome;
use crate::replication::in_sync::AckError;
use crate::time::Moment;

/// No record of the shard is newer.
const NEWEST: u64 = u64::MAX;

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
        freshness: None,
        pressure: Pressure::Refuse,
        idempotency: None,
        payload_hash: 7,
        if_version: None,
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

fn disk(name: &str) -> DiskId {
    let number = name.as_bytes()[1];
    DiskId::from_bytes([number; 16])
}

fn post(members: &[&str]) -> Post {
    let in_sync = members.iter().map(|name| (node(name), disk(name)));
    Post {
        shard: ShardId(3),
        epoch: Epoch(5),
        me: node("n1"),
        copies: Copies { in_sync: in_sync.collect(), ..Copies::default() },
        min_insync: u8::try_from(members.len().min(2)).unwrap(),
        timing: Timing::default(),
        serve_from: Instant::ZERO,
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
        self.primary.handle_durable(self.primary.last());
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
