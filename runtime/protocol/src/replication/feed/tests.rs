//! A feed and standbys, with everything between them in the test's hands.

use super::super::Timing;
use super::super::standby::{self, Kept, Standby};
use super::*;
use crate::entry::{Entry, Op, SegmentWriter};
use crate::time::LogTime;

const SHARD: ShardId = ShardId(3);

fn node(at: u8) -> NodeId {
    NodeId::new(&format!("n{at}")).unwrap()
}

fn disk(at: u8) -> DiskId {
    DiskId::from_bytes([at; 16])
}

fn segment(epoch: u64, first: u64, last: u64) -> Segment {
    let mut writer = SegmentWriter::new(SHARD, Epoch(epoch), Seq(first - 1));
    for seq in first..=last {
        writer.push(&Entry { seq: Seq(seq), log_time: LogTime(0), op: Op::Noop });
    }
    writer.take().unwrap()
}

fn at(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn history(runs: &[(u64, u64)]) -> History {
    let mut history = History::new(Position::default());
    for &(epoch, upto) in runs {
        history.append(Epoch(epoch), Seq(upto));
    }
    history
}

fn ms(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// n1 feeds n2 in epoch 5.
struct Rig {
    feed: Feed,
    standby: Standby,
    now: Instant,
    held: Seq,
    copies: Vec<Position>,
    /// Copies have their turn at once.
    turns: bool,
    appends: Vec<Append>,
    /// What the standby's disk has not synced yet, while it stalls.
    stalled: Option<Vec<standby::Ticket>>,
}

impl Rig {
    /// A primary with this log and this tail of it, and a standby with that log.
    fn new(ours: &[(u64, u64)], tail: Vec<Segment>, theirs: &[(u64, u64)]) -> Self {
        Self::with(Config::default(), ours, tail, theirs)
    }

    fn with(
        config: Config,
        ours: &[(u64, u64)],
        tail: Vec<Segment>,
        theirs: &[(u64, u64)],
    ) -> Self {
        let (history_of, committed) = (history(theirs), Seq(0));
        let kept = Kept { promised: Epoch(4), history: history_of, committed, whole: true };
        let standby = Standby::new((SHARD, disk(2), 1), kept, Timing::default(), Instant::ZERO);
        let known = tail.first().map_or(history(ours).last().seq, |it| Seq(it.first.0 - 1));
        let feed = Feed::new(config, (SHARD, Epoch(5)), history(ours), tail, (known, known));
        let (copies, turns, appends) = (Vec::new(), true, Vec::new());
        let (now, held, stalled) = (ms(1), Seq(0), None);
        let mut rig = Self { feed, standby, now, held, copies, turns, appends, stalled };
        rig.feeds(&[1, 2]);
        rig
    }

    fn feeds(&mut self, nodes: &[u8]) {
        let in_sync = nodes.iter().map(|at| (node(*at), disk(*at))).collect();
        let said = Copies { in_sync, ..Copies::default() };
        self.feed.handle_copies(&node(1), &said, self.now);
    }

    /// n2 is outside the set, and to join it, by this version of the record.
    fn teaches(&mut self, version: u64) {
        let claim = |at| BTreeMap::from([(node(at), disk(at))]);
        let said = Copies { version, in_sync: claim(1), wanted: claim(2), ..Copies::default() };
        self.feed.handle_copies(&node(1), &said, self.now);
    }

    fn append(&mut self, segment: Segment) {
        self.feed.handle_segment(segment, self.now);
    }

    /// Everything that is on its way arrives, until nothing is; `false` loses it.
    fn deliver(&mut self, arrives: bool) {
        while let Some(effect) = self.feed.poll_effect() {
            match effect {
                Effect::Send { append, .. } => {
                    self.appends.push(append.clone());
                    if arrives {
                        self.standby.handle_append(&append, self.now).unwrap();
                    }
                }
                Effect::Holds { upto, .. } => self.held = self.held.max(upto),
                Effect::Copy { to } => {
                    let base = self.turns.then(|| self.feed.handle_copy_turn(&to));
                    self.copies.extend(base.flatten());
                }
                Effect::Heard { .. } | Effect::Regressed { .. } | Effect::Deposed { .. } => {}
            }
            self.answer();
        }
    }

    /// The states as of this place arrive.
    fn copied(&mut self, base: Position) {
        let copy = self.standby.handle_copy_begins(Epoch(5), base).unwrap();
        assert!(self.standby.handle_copy_ends(copy));
        self.feed.handle_copied(&node(2), true, self.now);
        self.deliver(true);
    }

    /// An entry comes, and is committed.
    fn commit(&mut self, seq: u64) {
        self.append(segment(5, seq, seq));
        self.feed.handle_committed(Seq(seq), Seq(seq), self.now);
        self.deliver(true);
    }

    fn answer(&mut self) {
        while let Some(effect) = self.standby.poll_effect() {
            match effect {
                standby::Effect::Persist { ticket, .. } => match &mut self.stalled {
                    Some(tickets) => tickets.push(ticket),
                    None => self.standby.handle_durable(ticket),
                },
                standby::Effect::Answer(answer) => {
                    self.feed.handle_answer(&node(2), &answer, self.now);
                }
                standby::Effect::Commit(_) | standby::Effect::Discard => {}
            }
        }
    }

    fn sleep(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.feed.handle_timeout(self.now);
    }
}

#[test]
fn a_standby_that_is_where_it_should_be_gets_the_noop_first() {
    let mut rig = Rig::new(&[(4, 10)], vec![segment(4, 8, 10)], &[(4, 10)]);
    rig.append(segment(5, 11, 11));
    rig.deliver(true);
    assert_eq!((rig.held, rig.standby.last()), (Seq(11), at(5, 11)));
    let [asked, streamed] = &rig.appends[..] else { panic!("{:?}", rig.appends) };
    assert_eq!((asked.prev, asked.segments.len()), (at(4, 10), 0));
    assert_eq!((streamed.prev, streamed.segments.len()), (at(4, 10), 1));
}

#[test]
fn a_standby_whose_log_parted_is_led_back_to_where_it_did() {
    let tail = vec![segment(1, 1, 4), segment(3, 5, 9)];
    let mut rig = Rig::new(&[(1, 4), (3, 9)], tail, &[(1, 4), (2, 12)]);
    rig.append(segment(5, 10, 10));
    rig.deliver(true);
    assert_eq!((rig.held, rig.standby.last()), (Seq(10), at(5, 10)));
    assert!(rig.copies.is_empty());
}

#[test]
fn a_standby_that_is_too_far_behind_gets_the_states() {
    let mut rig = Rig::new(&[(4, 100)], vec![segment(4, 91, 100)], &[(4, 20)]);
    rig.append(segment(5, 101, 101));
    rig.feed.handle_committed(Seq(101), Seq(101), rig.now);
    rig.deliver(true);
    assert_eq!(rig.copies, [at(5, 101)]);
    rig.append(segment(5, 102, 102));
    rig.deliver(true);
    assert_eq!(rig.held, Seq(0), "nothing is sent meanwhile");
    rig.copied(at(5, 101));
    assert_eq!((rig.held, rig.standby.last()), (Seq(102), at(5, 102)));
}

/// It was dropped by one record and is wanted by a later one, and the shard rests: nothing else would
/// tell that what it acknowledged is gone.
#[test]
fn with_a_new_record_whoever_is_outside_the_set_is_asked_again() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.teaches(7);
    rig.deliver(true);
    let asked = rig.appends.len();
    rig.teaches(7);
    rig.deliver(true);
    assert_eq!(rig.appends.len(), asked, "nothing is new");
    let kept = Kept { promised: Epoch(4), history: history(&[]), committed: Seq(0), whole: true };
    rig.standby = Standby::new((SHARD, disk(2), 2), kept, Timing::default(), rig.now);
    rig.teaches(9);
    rig.deliver(true);
    assert_eq!(rig.copies, [at(4, 10)], "it gets the states again");
}

#[test]
fn what_was_lost_is_sent_again() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    rig.append(segment(5, 11, 11));
    rig.append(segment(5, 12, 12));
    rig.deliver(false);
    rig.sleep(99);
    rig.deliver(true);
    assert_eq!(rig.held, Seq(10));
    rig.sleep(1);
    rig.deliver(true);
    assert_eq!(rig.held, Seq(12));
}

#[test]
fn a_copy_that_answers_nothing_costs_its_window() {
    let config = Config { window_bytes: 2_000, append_bytes: 500, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    let sent = rig.appends.len();
    for seq in 11..400 {
        rig.append(segment(5, seq, seq));
        rig.deliver(false);
        rig.sleep(10);
    }
    let bytes: u64 = rig.appends[sent..].iter().map(Append::bytes).sum();
    assert!((2_000..2_600).contains(&bytes), "{bytes}");
}

#[test]
fn a_copy_whose_disk_stalls_gets_every_entry_once() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    rig.stalled = Some(Vec::new());
    let sent = rig.appends.len();
    let new = [segment(5, 11, 11), segment(5, 12, 13)];
    for segment in new.clone() {
        rig.append(segment);
    }
    for _ in 0..10 {
        rig.deliver(true);
        rig.sleep(100);
    }
    let bytes: u64 = rig.appends[sent..].iter().map(Append::bytes).sum();
    assert_eq!(bytes, new.iter().map(|segment| segment.bytes.len() as u64).sum::<u64>());
    assert!(rig.appends.len() >= sent + 10, "it is asked all the same");
    for ticket in rig.stalled.take().unwrap() {
        rig.standby.handle_durable(ticket);
    }
    rig.deliver(true);
    rig.answer();
    assert_eq!(rig.feed.matched(), Seq(13));
}

#[test]
#[should_panic(expected = "reaches down to what is committed")]
fn entries_that_may_be_uncommitted_are_part_of_the_tail() {
    let tail = vec![segment(4, 8, 10)];
    Feed::new(Config::default(), (SHARD, Epoch(5)), history(&[(4, 10)]), tail, (Seq(5), Seq(5)));
}

#[test]
fn a_shard_at_rest_is_silent_once_everybody_knows_what_is_committed() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.append(segment(5, 11, 11));
    rig.deliver(true);
    rig.feed.handle_committed(Seq(11), Seq(11), rig.now);
    rig.deliver(true);
    assert_eq!(rig.standby.committed(), Seq(10), "the next append would tell it");
    assert!(rig.feed.poll_timeout().is_some());
    rig.sleep(25);
    rig.deliver(true);
    assert_eq!(rig.standby.committed(), Seq(11));
    assert_eq!(rig.feed.poll_timeout(), None);
}

#[test]
fn promises_are_asked_for_while_queries_are_served() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    rig.feed.ask_leases(ms(101));
    let before = rig.appends.len();
    for _ in 0..20 {
        rig.sleep(10);
        rig.deliver(true);
    }
    let asked = rig.appends[before..].iter().filter(|append| append.lease).count();
    assert!((3..=4).contains(&asked), "{asked} in 100 ms, one per 25");
    assert_eq!(rig.feed.poll_timeout(), None);
}

#[test]
fn a_newer_epoch_deposes() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    let what = Told::Fenced { promised: Epoch(6) };
    let answer = Answer { shard: SHARD, epoch: Epoch(5), disk: disk(2), what };
    rig.feed.handle_answer(&node(2), &answer, rig.now);
    assert_eq!(rig.feed.poll_effect(), Some(Effect::Deposed { by: Epoch(6) }));
}

#[test]
fn what_everybody_holds_is_not_kept() {
    let config = Config { recent_bytes: 0, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 10)], vec![segment(4, 5, 10)], &[(4, 10)]);
    for seq in 11..20 {
        rig.append(segment(5, seq, seq));
    }
    assert!(rig.feed.kept_bytes() > 0);
    rig.deliver(true);
    rig.feed.handle_committed(Seq(19), Seq(19), rig.now);
    assert_eq!((rig.feed.kept_bytes(), rig.feed.matched()), (0, Seq(19)));
}

/// A copy that restarts while others write, with so many recent bytes kept: the copies of states
/// that it takes.
fn copies_for_one_that_was_away(recent_bytes: u64) -> usize {
    let config = Config { recent_bytes, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 10)], vec![], &[(4, 10)]);
    rig.append(segment(5, 11, 11));
    rig.deliver(true);
    rig.feed.handle_committed(Seq(11), Seq(11), rig.now);
    rig.feeds(&[1]);
    for seq in 12..20 {
        rig.append(segment(5, seq, seq));
        rig.feed.handle_committed(Seq(seq), Seq(seq), rig.now);
    }
    assert!(rig.feed.kept_bytes() <= recent_bytes);
    rig.feeds(&[1, 2]);
    rig.deliver(true);
    assert_eq!(rig.copies.is_empty(), rig.standby.last() == at(5, 19));
    rig.copies.len()
}

#[test]
fn a_copy_that_was_away_for_a_moment_needs_no_states() {
    assert_eq!(copies_for_one_that_was_away(30), 1);
    assert_eq!(copies_for_one_that_was_away(1 << 20), 0);
}

#[test]
fn a_copy_that_falls_behind_what_is_kept_is_asked_where_that_begins() {
    let config = Config { retain_bytes: 30, window_bytes: 20, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    for seq in 11..40 {
        rig.append(segment(5, seq, seq));
        rig.feed.handle_committed(Seq(seq), Seq(seq), rig.now);
        rig.deliver(false);
    }
    rig.sleep(100);
    rig.deliver(true);
    assert_eq!(rig.copies, [at(5, 39)], "it has 10, which is not kept any more");
}

/// A primary that keeps little, and a standby that gets the states.
fn one_that_gets_states(copying_bytes: u64) -> Rig {
    let config = Config { retain_bytes: 30, recent_bytes: 30, copying_bytes, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 100)], vec![], &[(4, 20)]);
    rig.commit(101);
    assert_eq!(rig.copies, [at(5, 101)]);
    rig
}

/// It used to be copied again, and again: the entries were gone each time.
#[test]
fn what_comes_while_states_are_sent_is_kept_until_who_got_them_holds_it() {
    let mut rig = one_that_gets_states(1 << 20);
    (102..300).for_each(|seq| rig.commit(seq));
    assert!(rig.feed.has_turn(&node(2)));
    rig.feed.handle_connected(&node(2), rig.now);
    rig.commit(300);
    rig.copied(at(5, 101));
    assert_eq!((rig.held, rig.standby.last()), (Seq(300), at(5, 300)));
    assert_eq!(rig.copies.len(), 1);
    assert!(!rig.feed.has_turn(&node(2)) && rig.feed.kept_bytes() <= 30);
}

#[test]
fn who_got_the_states_and_does_not_catch_up_lacks_entries_like_others() {
    let mut rig = one_that_gets_states(1 << 20);
    (102..300).for_each(|seq| rig.commit(seq));
    let kept = rig.feed.kept_bytes();
    rig.feed.handle_copied(&node(2), true, rig.now);
    rig.deliver(false);
    assert!(rig.feed.has_turn(&node(2)));
    rig.append(segment(5, 300, 300));
    rig.feed.handle_committed(Seq(300), Seq(300), rig.now);
    assert!(rig.feed.kept_bytes() > kept);
    rig.sleep(30_000);
    assert!(!rig.feed.has_turn(&node(2)) && rig.feed.kept_bytes() <= 30);
}

#[test]
fn what_is_kept_beside_states_has_a_bound() {
    let mut rig = one_that_gets_states(60);
    (102..300).for_each(|seq| rig.commit(seq));
    assert!((31..=60).contains(&rig.feed.kept_bytes()), "{}", rig.feed.kept_bytes());
    rig.copied(at(5, 101));
    assert_eq!(rig.copies, [at(5, 101), at(5, 299)], "it is needed once more");
}

#[test]
fn states_that_wait_for_their_turn_are_sent_as_of_when_it_comes() {
    let config = Config { retain_bytes: 30, recent_bytes: 30, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 100)], vec![], &[(4, 20)]);
    rig.turns = false;
    (101..200).for_each(|seq| rig.commit(seq));
    assert!(rig.feed.kept_bytes() <= 30, "nothing is kept for it");
    assert_eq!(rig.feed.handle_copy_turn(&node(2)), Some(at(5, 199)));
    assert_eq!(rig.feed.handle_copy_turn(&node(2)), None, "it has its turn");
    rig.copied(at(5, 199));
    assert_eq!(rig.held, Seq(199));
}

/// The watermark may stand within a journal commit for ever, when the rest of that commit waits for a
/// member that this copy is to replace; and what is saved are whole commits.
#[test]
fn states_are_sent_as_of_a_place_that_can_be_saved() {
    let config = Config { retain_bytes: 0, recent_bytes: 0, ..Config::default() };
    let mut rig = Rig::with(config, &[(4, 100)], vec![], &[(4, 20)]);
    (101..106).for_each(|seq| rig.append(segment(5, seq, seq)));
    rig.feed.handle_committed(Seq(104), Seq(102), rig.now);
    rig.deliver(true);
    assert_eq!(rig.copies, [at(5, 102)]);
    rig.copied(at(5, 102));
    assert_eq!(rig.held, Seq(105));
}

#[test]
fn an_answer_that_comes_after_later_ones_changes_nothing() {
    let mut rig = Rig::new(&[(4, 10)], vec![], &[(4, 10)]);
    rig.deliver(true);
    rig.now = ms(50);
    rig.append(segment(5, 11, 11));
    rig.deliver(true);
    let what = Told::Gap { sent_at: ms(40).as_nanos(), last: at(4, 3) };
    let answer = Answer { shard: SHARD, epoch: Epoch(5), disk: disk(2), what };
    rig.feed.handle_answer(&node(2), &answer, rig.now);
    assert_eq!(rig.feed.poll_effect(), None);
}

#[test]
fn the_lag_of_a_copy_is_what_it_did_not_acknowledge() {
    let mut rig = Rig::new(&[(4, 3)], vec![segment(4, 1, 3)], &[(4, 3)]);
    rig.deliver(true);
    let lag = |rig: &Rig, now| rig.feed.lags(now).map(|(_, lag)| lag).next().unwrap();
    assert_eq!(lag(&rig, ms(500)), Lag::default(), "it holds everything");
    rig.now = ms(600);
    rig.append(segment(5, 4, 4));
    rig.now = ms(700);
    rig.append(segment(5, 5, 6));
    let bytes = segment(5, 4, 4).bytes.len() + segment(5, 5, 6).bytes.len();
    let expected = Lag { entries: 3, bytes: bytes as u64, age: Duration::from_millis(250) };
    assert_eq!(lag(&rig, ms(850)), expected);
    rig.deliver(true);
    assert_eq!(lag(&rig, ms(900)), Lag::default());
}

#[test]
fn a_copy_that_said_nothing_lacks_what_is_kept_and_no_more() {
    let mut rig = Rig::new(&[(3, 8)], vec![segment(3, 7, 8)], &[(3, 8)]);
    rig.append(segment(5, 9, 9));
    let (_, lag) = rig.feed.lags(ms(41)).next().unwrap();
    assert_eq!(lag.entries, 3);
    assert_eq!(lag.age, Duration::from_millis(40), "older ones have no time");
}
