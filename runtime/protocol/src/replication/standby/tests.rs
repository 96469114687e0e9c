//! What a standby takes and when it says so.

use super::*;
use crate::entry::{Entry, Op, SegmentWriter};
use crate::replication::freshness::Showing;
use crate::time::LogTime;

const SHARD: ShardId = ShardId(3);
const DISK: DiskId = DiskId::from_bytes([2; 16]);

fn at(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn segment(epoch: u64, first: u64, last: u64) -> Segment {
    let mut writer = SegmentWriter::new(SHARD, Epoch(epoch), Seq(first - 1));
    for seq in first..=last {
        writer.push(&Entry { seq: Seq(seq), log_time: LogTime(0), op: Op::Noop });
    }
    writer.take().unwrap()
}

fn append(epoch: u64, prev: Position, segments: Vec<Segment>, committed: u64) -> Append {
    let (shard, epoch, committed) = (SHARD, Epoch(epoch), Seq(committed));
    Append { shard, epoch, version: 1, sent_at: 5, lease: true, prev, segments, committed }
}

fn fresh() -> Standby {
    let history = History::new(Position::default());
    let kept = Kept { promised: Epoch(0), history, committed: Seq(0), whole: true };
    Standby::new((SHARD, DISK, 1), kept, Timing::default(), Instant::ZERO)
}

/// What it answered, and the ticket of what it wants durable.
fn effects(standby: &mut Standby) -> (Vec<Told>, Option<Ticket>) {
    let (mut told, mut ticket) = (Vec::new(), None);
    while let Some(effect) = standby.poll_effect() {
        match effect {
            Effect::Answer(answer) => told.push(answer.what),
            Effect::Persist { ticket: number, .. } => ticket = Some(number),
            Effect::Commit(_) | Effect::Discard => {}
        }
    }
    (told, ticket)
}

/// By the record of which all appends here are.
const fn held(upto: u64) -> Told {
    Told::Holds { upto: Seq(upto), version: 1 }
}

const HEARD: Told = Told::Heard { sent_at: 5, promised: true };

#[test]
fn it_answers_when_the_promise_and_the_entries_are_on_disk() {
    let mut standby = fresh();
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 3)], 0), Instant::ZERO).unwrap();
    let (told, ticket) = effects(&mut standby);
    assert_eq!(told, [HEARD]);
    standby.handle_durable(ticket.unwrap());
    assert_eq!(effects(&mut standby).0, [held(3)]);
    standby.handle_append(&append(1, at(1, 3), vec![], 3), Instant::ZERO).unwrap();
    assert_eq!(effects(&mut standby).0, [HEARD, held(3)]);
    assert_eq!(standby.committed(), Seq(3));
}

#[test]
fn a_promise_alone_is_on_disk_before_anything_is_acknowledged() {
    let mut standby = fresh();
    standby.handle_append(&append(2, at(1, 4), vec![], 0), Instant::ZERO).unwrap();
    let gap = Told::Gap { sent_at: 5, last: at(0, 0) };
    assert_eq!(effects(&mut standby), (vec![HEARD, gap], None));
    standby.handle_append(&append(2, at(0, 0), vec![], 0), Instant::ZERO).unwrap();
    let (told, ticket) = effects(&mut standby);
    assert_eq!(told, [HEARD], "nothing new, and still a promise to write");
    standby.handle_durable(ticket.unwrap());
    assert_eq!(effects(&mut standby).0, [held(0)]);
}

#[test]
fn a_deposed_primary_is_told_so() {
    let mut standby = fresh();
    standby.handle_append(&append(4, at(0, 0), vec![], 0), Instant::ZERO).unwrap();
    effects(&mut standby);
    standby.handle_append(&append(3, at(0, 0), vec![segment(3, 1, 1)], 0), Instant::ZERO).unwrap();
    let fenced = Told::Fenced { promised: Epoch(4) };
    assert_eq!(effects(&mut standby), (vec![fenced], None));
    assert_eq!(standby.last(), at(0, 0));
}

#[test]
fn an_acknowledgement_that_a_newer_epoch_overtook_is_not_sent() {
    let mut standby = fresh();
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 1)], 0), Instant::ZERO).unwrap();
    let (_, first) = effects(&mut standby);
    standby.handle_append(&append(2, at(1, 1), vec![segment(2, 2, 2)], 0), Instant::ZERO).unwrap();
    let (_, second) = effects(&mut standby);
    standby.handle_durable(first.unwrap());
    assert_eq!(effects(&mut standby).0, []);
    standby.handle_durable(second.unwrap());
    assert_eq!(effects(&mut standby).0, [held(2)]);
}

#[test]
fn what_conflicts_goes_and_what_is_committed_never() {
    let mut standby = fresh();
    let first = append(1, at(0, 0), vec![segment(1, 1, 5)], 2);
    standby.handle_append(&first, Instant::ZERO).unwrap();
    standby.handle_append(&append(3, at(1, 4), vec![segment(3, 5, 5)], 2), Instant::ZERO).unwrap();
    assert_eq!(standby.last(), at(3, 5));
    let wrong = append(4, at(1, 1), vec![segment(4, 2, 2)], 2);
    let refused = standby.handle_append(&wrong, Instant::ZERO);
    assert!(matches!(refused, Err(AppendError::BelowCommitted { at: Seq(2), .. })));
    assert_eq!((standby.last(), standby.promised()), (at(3, 5), Epoch(3)), "nothing was changed");
}

#[test]
fn a_segment_of_which_the_beginning_is_here_is_cut() {
    let mut standby = fresh();
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 2)], 0), Instant::ZERO).unwrap();
    effects(&mut standby);
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 4)], 0), Instant::ZERO).unwrap();
    let written = std::iter::from_fn(|| standby.poll_effect()).find_map(|effect| match effect {
        Effect::Persist { segments, .. } => Some(segments),
        _ => None,
    });
    assert_eq!(written, Some(vec![segment(1, 3, 4)]));
}

#[test]
fn appends_that_do_not_fit_together_are_refused() {
    let mut standby = fresh();
    let hole = append(2, at(0, 0), vec![segment(1, 1, 2), segment(1, 4, 4)], 0);
    let ahead = append(2, at(0, 0), vec![segment(3, 1, 2)], 0);
    let backwards = append(2, at(0, 0), vec![segment(2, 1, 2), segment(1, 3, 3)], 0);
    let other = Append { shard: ShardId(4), ..append(2, at(0, 0), vec![], 0) };
    for wrong in [hole, ahead, backwards, other] {
        let refused = standby.handle_append(&wrong, Instant::ZERO);
        assert!(matches!(refused, Err(AppendError::Malformed { .. })), "{wrong:?}");
    }
    assert_eq!(effects(&mut standby), (vec![], None));
}

#[test]
fn it_serves_only_when_its_promise_is_over_and_in_a_newer_epoch() {
    let mut standby = fresh();
    let soon = Instant::from_millis(30);
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 1)], 0), soon).unwrap();
    assert_eq!(standby.promote(Epoch(1)), Err(NotPromoted::Promised { promised: Epoch(1) }));
    let succession = standby.promote(Epoch(2)).unwrap();
    assert_eq!(succession.serve_from, Instant::from_millis(130));
    assert_eq!(succession.history.last(), at(1, 1));
}

#[test]
fn a_restarted_standby_keeps_the_promise_that_it_may_have_given() {
    assert_eq!(fresh().promote(Epoch(1)).unwrap().serve_from, Instant::from_millis(100));
}

#[test]
fn a_copy_counts_when_it_is_whole_and_is_forgotten_when_its_primary_is_deposed() {
    let mut standby = fresh();
    let first = standby.handle_copy_begins(Epoch(2), at(2, 30)).unwrap();
    let copy = standby.handle_copy_begins(Epoch(2), at(2, 40)).unwrap();
    assert!(!standby.handle_copy_ends(first), "found by the simulator: the disk has another one");
    standby.handle_append(&append(2, at(2, 40), vec![], 40), Instant::ZERO).unwrap();
    assert_eq!(effects(&mut standby).0, [HEARD], "it holds nothing yet");
    assert_eq!(standby.promote(Epoch(3)), Err(NotPromoted::Incomplete));
    assert!(standby.handle_copy_ends(copy));
    standby
        .handle_append(&append(2, at(2, 40), vec![segment(2, 41, 41)], 40), Instant::ZERO)
        .unwrap();
    let (_, ticket) = effects(&mut standby);
    standby.handle_durable(ticket.unwrap());
    assert_eq!(effects(&mut standby).0, [held(41)]);

    assert_eq!(standby.handle_copy_begins(Epoch(2), at(2, 30)), None, "it has more than that");
    let copy = standby.handle_copy_begins(Epoch(2), at(2, 50)).unwrap();
    standby.handle_append(&append(3, at(2, 45), vec![], 45), Instant::ZERO).unwrap();
    let effects: Vec<_> = std::iter::from_fn(|| standby.poll_effect()).collect();
    assert!(effects.contains(&Effect::Discard));
    assert_eq!(standby.last(), at(0, 0));
    assert!(!standby.handle_copy_ends(copy));
}

/// Found by the simulator: a node with a slow disk was standby, primary and standby again, and a
/// write of the first standby acknowledged what the second had not on disk.
#[test]
fn news_of_an_earlier_standbys_write_say_nothing() {
    let mut standby = fresh();
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 1)], 0), Instant::ZERO).unwrap();
    effects(&mut standby);
    standby.handle_durable(Ticket { life: 0, number: 9 });
    assert_eq!(effects(&mut standby).0, []);
}

/// Found by the simulator: an old answer made the primary copy to a standby that lacked nothing,
/// and the copy took away what had been acknowledged after it.
#[test]
fn a_copy_of_what_is_here_is_not_taken() {
    let mut standby = fresh();
    standby.handle_append(&append(2, at(0, 0), vec![segment(2, 1, 9)], 4), Instant::ZERO).unwrap();
    assert_eq!(standby.handle_copy_begins(Epoch(2), at(2, 8)), None);
    assert_eq!(standby.last(), at(2, 9));
    assert!(standby.handle_copy_begins(Epoch(3), at(3, 12)).is_some(), "that one is ahead");
}

/// Found by the simulator: a node that died in the middle of a copy was sent the log from its
/// beginning, and took all of it for a part of that copy when it started again.
#[test]
fn a_part_of_a_copy_goes_before_anything_comes() {
    let mut history = History::new(at(2, 30));
    history.append(Epoch(2), Seq(40));
    let kept = Kept { promised: Epoch(2), history, committed: Seq(30), whole: false };
    let mut standby = Standby::new((SHARD, DISK, 1), kept, Timing::default(), Instant::ZERO);
    standby.handle_append(&append(3, at(0, 0), vec![segment(1, 1, 1)], 0), Instant::ZERO).unwrap();
    assert_eq!(standby.poll_effect(), Some(Effect::Discard));
    assert_eq!(standby.last(), at(1, 1));
}

#[test]
fn only_what_was_matched_is_taken_as_committed() {
    let mut standby = fresh();
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 5)], 0), Instant::ZERO).unwrap();
    standby.handle_append(&append(2, at(1, 2), vec![], 5), Instant::ZERO).unwrap();
    assert_eq!(standby.committed(), Seq(2), "what it has after that may be of another history");
}

/// Found by exhaustive search: a node that had been primary of epoch 2 for a moment forgot it with
/// its process, and helped the primary of epoch 1 to commit.
#[test]
fn what_the_map_has_left_behind_is_not_taken() {
    let mut standby = fresh();
    standby.handle_epoch(Epoch(2));
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 1)], 0), Instant::ZERO).unwrap();
    assert_eq!(effects(&mut standby), (vec![Told::Fenced { promised: Epoch(2) }], None));
    standby.handle_append(&append(2, at(0, 0), vec![], 0), Instant::ZERO).unwrap();
    assert!(effects(&mut standby).1.is_some(), "the promise is written before it counts");
}

#[test]
fn entries_of_an_epoch_older_than_what_is_committed_here_stop_the_node() {
    let kept = Kept {
        promised: Epoch(3),
        history: History::new(at(3, 10)),
        committed: Seq(10),
        whole: true,
    };
    let mut standby = Standby::new((SHARD, DISK, 1), kept, Timing::default(), Instant::ZERO);
    let append = append(9, at(1, 5), vec![segment(1, 6, 12)], 0);
    let refused = standby.handle_append(&append, Instant::ZERO);
    let Err(AppendError::BelowCommitted { at, committed }) = refused else { panic!("{refused:?}") };
    assert_eq!((at, committed), (Seq(10), Seq(10)));
}

/// A node stood still, was fed again, and then saw the map of a moment at which nobody wanted its
/// copy. It dropped what it had just acknowledged, was taken for in sync, and was promoted with
/// nothing: acknowledged writes were gone. Found by chaos with cut networks.
#[test]
fn a_map_that_is_older_than_what_its_primary_goes_by_ends_no_following() {
    let (mut standby, now) = (fresh(), Instant::ZERO);
    standby.handle_append(&Append { version: 7, ..append(2, at(0, 0), vec![], 0) }, now).unwrap();
    assert!(!standby.may_leave(6));
    assert!(standby.may_leave(7));
    standby.handle_append(&Append { version: 9, ..append(1, at(0, 0), vec![], 0) }, now).unwrap();
    assert!(standby.may_leave(7), "a deposed primary knows nothing newer");
}

/// The other half of it: nobody acknowledges a primary that lacks what is committed here.
#[test]
fn a_newer_primary_that_begins_before_the_base_is_refused() {
    let (mut standby, now) = (fresh(), Instant::ZERO);
    standby.handle_append(&append(1, at(0, 0), vec![segment(1, 1, 5)], 5), now).unwrap();
    standby.forget_below(Seq(4));
    let refused = standby.handle_append(&append(3, at(0, 0), vec![segment(3, 1, 2)], 0), now);
    assert!(matches!(refused, Err(AppendError::BelowCommitted { at: Seq(1), .. })), "{refused:?}");
}

/// Five entries are here, of which two are known to be committed.
fn shown() -> Standby {
    let mut standby = fresh();
    let first = append(2, at(0, 0), vec![segment(2, 1, 5)], 2);
    standby.handle_append(&first, Instant::ZERO).unwrap();
    standby
}

#[test]
fn it_shows_what_is_applied_and_committed_to_who_wants_no_more() {
    let standby = shown();
    assert_eq!(standby.committed_at(), Some(at(2, 2)));
    for wanted in [at(0, 0), at(1, 2), at(2, 2)] {
        assert_eq!(standby.shows(wanted, at(2, 2)), Showing::Show, "{wanted:?}");
    }
    for wanted in [at(2, 3), at(3, 1), at(3, 3)] {
        assert_eq!(standby.shows(wanted, at(2, 2)), Showing::Wait, "{wanted:?}");
    }
    assert_eq!(standby.shows(at(2, 1), at(2, 5)), Showing::Wait, "more than is committed");
}

/// A primary of epoch 3 tells of an entry that epoch 2 wrote: whoever has applied the first entry of
/// epoch 3 has it, and nobody with the entries of epoch 2 alone can know that his is the one.
#[test]
fn a_token_of_a_later_epoch_waits_for_that_epoch() {
    let mut standby = shown();
    assert_eq!(standby.shows(at(3, 2), at(2, 2)), Showing::Wait);
    let next = append(3, at(2, 2), vec![segment(3, 3, 3)], 3);
    standby.handle_append(&next, Instant::ZERO).unwrap();
    assert_eq!(standby.shows(at(3, 2), at(3, 3)), Showing::Show);
    assert_eq!(standby.shows(at(2, 5), at(3, 3)), Showing::Wait, "it was never acknowledged");
}

#[test]
fn a_copy_on_its_way_and_one_that_is_given_up_show_nothing() {
    let mut standby = shown();
    let ticket = standby.handle_copy_begins(Epoch(3), at(3, 9)).unwrap();
    assert_eq!(standby.shows(at(0, 0), at(2, 2)), Showing::Wait);
    standby.handle_copy_broke(ticket);
    assert_eq!(standby.shows(at(0, 0), at(2, 2)), Showing::Wait, "what was applied is going");
    assert_eq!(standby.shows(at(0, 0), at(0, 0)), Showing::Wait, "this is no copy at all");
    let next = append(3, at(0, 0), vec![segment(3, 1, 2)], 2);
    standby.handle_append(&next, Instant::ZERO).unwrap();
    assert_eq!(standby.shows(at(2, 1), at(3, 2)), Showing::Show);
}

#[test]
#[cfg(feature = "mutants")]
fn a_standby_that_shows_too_much_or_too_little_is_found() {
    let mut standby = shown();
    standby.plant(Mutant::StandbyShowsUncommitted);
    assert_eq!(standby.shows(at(2, 1), at(2, 5)), Showing::Show);
    standby.plant(Mutant::StandbyIgnoresToken);
    assert_eq!(standby.shows(at(2, 3), at(2, 2)), Showing::Show);
}
