//! Three checkers agree on any small history: [`History::check`], the search over the list itself,
//! and every order tried by hand.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::search::{self, Found, Span};
use super::object::{Object, run, step};
use super::{Line, Op, Outcome, Reply, Rule, cases, history};

/// A change that a history may not survive.
#[derive(Debug, Clone, Copy)]
enum Change {
    Shorter,
    Longer(u64),
    Swapped,
    Later(u64),
    Sooner,
    Unknown,
    NotExecuted,
    Dropped,
    Done,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        2 => Just(Change::Shorter),
        2 => (99..108_u64).prop_map(Change::Longer),
        1 => Just(Change::Swapped),
        3 => (1..12_u64).prop_map(Change::Later),
        2 => Just(Change::Sooner),
        1 => Just(Change::Unknown),
        1 => Just(Change::NotExecuted),
        1 => Just(Change::Dropped),
        1 => Just(Change::Done),
    ]
}

fn apply(change: Change, lines: &mut Vec<Line>, index: usize) {
    if matches!(change, Change::Dropped) {
        lines.remove(index);
        return;
    }
    let line = &mut lines[index];
    let Some((at, outcome)) = &mut line.ended else { return };
    match (change, outcome) {
        (Change::Shorter, Outcome::Returned(Reply::List(list))) => {
            list.pop();
        }
        (Change::Longer(value), Outcome::Returned(Reply::List(list))) => list.push(value),
        (Change::Swapped, Outcome::Returned(Reply::List(list))) if list.len() > 1 => {
            let last = list.len() - 1;
            list.swap(last, last - 1);
        }
        (Change::Shorter, Outcome::Returned(Reply::Length(length) | Reply::Refused(length))) => {
            *length = length.saturating_sub(1);
        }
        (Change::Longer(_), Outcome::Returned(Reply::Length(length) | Reply::Refused(length))) => {
            *length += 1;
        }
        (Change::Done, Outcome::Returned(reply))
            if line.op.value().is_some() && line.op.key().is_none() && !refused(reply) =>
        {
            *reply = Reply::Done;
        }
        (Change::Later(ticks), _) => {
            line.invoked += ticks;
            *at += ticks;
        }
        (Change::Sooner, _) => *at = line.invoked,
        (Change::Unknown, outcome) => *outcome = Outcome::Unknown,
        (Change::NotExecuted, outcome) => *outcome = Outcome::NotExecuted,
        _ => {}
    }
}

fn refused(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(_))
}

/// The operations that may have had an effect: what was asked, the reply, and when.
struct Try {
    op: Op,
    reply: Option<Reply>,
    span: Span,
}

fn tries(lines: &[Line]) -> Vec<Try> {
    let of = |line: &Line| {
        let (answered, reply) = match line.ended.clone() {
            Some((_, Outcome::NotExecuted)) => return None,
            Some((at, Outcome::Returned(reply))) => (Some(at), Some(reply)),
            Some((_, Outcome::Unknown)) | None => (None, None),
        };
        let span = Span { invoked: line.invoked, answered, reads: line.op == Op::Read };
        Some(Try { op: line.op, reply, span })
    };
    lines.iter().filter_map(of).collect()
}

/// The object after a try, if it says what the reply says.
fn next(object: &Object, one: &Try) -> Option<Object> {
    let mut after = object.clone();
    let said = after.hear(one.op);
    one.reply.as_ref().is_none_or(|reply| said.fits(reply)).then_some(after)
}

/// Every order by hand: whether what is left can take effect from here.
fn some_order(object: &Object, tries: &[Try], left: u32) -> bool {
    let is_left = |index: usize| left & (1 << index) != 0;
    let all = || tries.iter().enumerate().filter(|(index, _)| is_left(*index));
    let first_answer = all().filter_map(|(_, one)| one.span.answered).min();
    let Some(first_answer) = first_answer else { return true };
    all().filter(|(_, one)| one.span.invoked <= first_answer).any(|(index, one)| {
        next(object, one).is_some_and(|after| some_order(&after, tries, left & !(1 << index)))
    })
}

#[test]
fn three_checkers_agree_on_any_small_history() {
    let counts = RefCell::new([0_u32; 4]);
    let history_of = (
        prop::collection::vec(step(3), 1..8),
        any::<bool>(),
        prop::collection::vec((change(), any::<Index>()), 0..4),
    );
    proptest!(cases(6_000), |((steps, read_at_end, changes) in history_of)| {
        let mut lines = run(&steps, read_at_end);
        for (change, index) in changes {
            if !lines.is_empty() {
                let index = index.index(lines.len());
                apply(change, &mut lines, index);
            }
        }
        let tries = tries(&lines);
        let by_hand = some_order(&Object::default(), &tries, (1_u32 << tries.len()) - 1);
        let spans: Vec<Span> = tries.iter().map(|one| one.span).collect();
        let over_lists = |object: &Object, index: usize| next(object, &tries[index]);
        let found = search::search(&spans, Object::default(), over_lists, 1_000_000);
        prop_assert_eq!(found == Found::Order, by_hand, "{:?}", found);
        let checked = history(&lines).check();
        prop_assert_eq!(checked.is_ok(), by_hand, "{:?}", checked);
        let mut counts = counts.borrow_mut();
        counts[usize::from(by_hand)] += 1;
        match checked {
            Ok(summary) => {
                prop_assert!(summary.undecided.is_empty());
                counts[2] += u32::from(summary.searched > 0);
            }
            Err(violation) => counts[3] += u32::from(violation.rule == Rule::NoOrder),
        }
    });
    // A property that never meets a case proves nothing about it.
    for (count, name) in counts.into_inner().iter().zip(["broken", "fits", "searched", "no order"])
    {
        assert!(*count > 20, "{name}: only {count}");
    }
}
