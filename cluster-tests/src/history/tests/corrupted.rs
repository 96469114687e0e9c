//! Histories of a list as it should be are accepted; with one thing wrong they are not.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::object::{run, step};
use super::{Line, Op, Outcome, Reply, Rule, cases, history};

#[test]
fn what_a_list_as_it_should_be_shows_is_accepted() {
    let steps = prop::collection::vec(step(5), 0..120);
    proptest!(cases(500), |(steps in steps, read_at_end in any::<bool>())| {
        let lines = run(&steps, read_at_end);
        match history(&lines).check() {
            Ok(summary) if read_at_end => prop_assert_eq!(summary.searched, 0),
            Ok(_) => {}
            Err(violation) => prop_assert!(false, "{}", violation),
        }
    });
}

/// One thing wrong, if the history has what it takes. The last line is a read of the end.
type Corruption = fn(&mut [Line]) -> Option<()>;

const CORRUPTIONS: [(&str, Corruption); 9] = [
    ("stale read", stale_read),
    ("lost append", lost_append),
    ("duplicate append", duplicate_append),
    ("reordered across real time", reordered),
    ("phantom value", phantom),
    ("refusal that lies", lying_refusal),
    ("executed though not executed", denied),
    ("two answers under a key", two_answers),
    ("answer of another place", wrong_place),
];

#[test]
fn one_thing_wrong_is_found() {
    let mut runner = TestRunner::deterministic();
    let histories = prop::collection::vec(step(4), 10..40);
    let mut found: BTreeMap<&str, BTreeMap<Rule, u32>> = BTreeMap::new();
    for _ in 0..400 {
        let steps = histories.new_tree(&mut runner).unwrap().current();
        let lines = run(&steps, true);
        for (name, corrupt) in CORRUPTIONS {
            let mut corrupted = lines.clone();
            if corrupt(&mut corrupted).is_some() {
                let checked = history(&corrupted).check();
                let violation = checked.expect_err(name);
                *found.entry(name).or_default().entry(violation.rule).or_default() += 1;
            }
        }
    }
    for (name, _) in CORRUPTIONS {
        let times: u32 = found.get(name).map_or(0, |rules| rules.values().sum());
        assert!(times >= 40, "{name}: only {times} times");
    }
}

/// The list of the last line.
fn last(lines: &mut [Line]) -> Option<&mut Vec<u64>> {
    match &mut lines.last_mut()?.ended {
        Some((_, Outcome::Returned(Reply::List(list)))) => Some(list),
        _ => None,
    }
}

fn answered(line: &Line) -> bool {
    matches!(line.ended, Some((_, Outcome::Returned(_))))
}

/// A value of the last list whose append was answered, and its index there.
fn answered_value(lines: &mut [Line]) -> Option<usize> {
    let list = last(lines)?.clone();
    list.iter().rposition(|&value| {
        lines.iter().any(|line| line.op.value() == Some(value) && answered(line))
    })
}

fn stale_read(lines: &mut [Line]) -> Option<()> {
    let index = answered_value(lines)?;
    last(lines)?.truncate(index);
    Some(())
}

fn lost_append(lines: &mut [Line]) -> Option<()> {
    let index = answered_value(lines)?;
    last(lines)?.remove(index);
    Some(())
}

fn duplicate_append(lines: &mut [Line]) -> Option<()> {
    let list = last(lines)?;
    list.push(*list.first()?);
    Some(())
}

fn phantom(lines: &mut [Line]) -> Option<()> {
    last(lines)?.push(9_999);
    Some(())
}

fn reordered(lines: &mut [Line]) -> Option<()> {
    let list = last(lines)?.clone();
    // Without a key, so that a line says when its value was appended.
    let line = |value: u64| lines.iter().find(|line| line.op.value() == Some(value));
    let alone = |value| line(value).filter(|line| line.op.key().is_none());
    let index = list.windows(2).position(|pair| {
        let (Some(one), Some(two)) = (alone(pair[0]), alone(pair[1])) else { return false };
        let end = one.ended.as_ref().map(|(at, _)| *at);
        answered(one) && end.is_some_and(|end| end < two.invoked)
    })?;
    last(lines)?.swap(index, index + 1);
    Some(())
}

fn lying_refusal(lines: &mut [Line]) -> Option<()> {
    lines.iter_mut().find_map(|line| match (line.op, &mut line.ended) {
        (
            Op::AppendIf { length: asked, .. },
            Some((_, Outcome::Returned(Reply::Refused(length)))),
        ) => {
            *length = asked;
            Some(())
        }
        _ => None,
    })
}

fn denied(lines: &mut [Line]) -> Option<()> {
    let list = last(lines)?.clone();
    let executed =
        |line: &Line| line.op.key().is_none() && line.op.value().is_some_and(|v| list.contains(&v));
    let line = lines.iter_mut().find(|line| executed(line))?;
    line.ended.as_mut()?.1 = Outcome::NotExecuted;
    Some(())
}

fn two_answers(lines: &mut [Line]) -> Option<()> {
    let mut keys = Vec::new();
    lines.iter_mut().filter(|line| answered(line)).find_map(|line| {
        let key = line.op.key()?;
        if !keys.contains(&key) {
            keys.push(key);
            return None;
        }
        change_length(line)
    })
}

fn wrong_place(lines: &mut [Line]) -> Option<()> {
    let append = |line: &&mut Line| matches!(line.op, Op::Append { .. });
    lines.iter_mut().filter(append).find_map(change_length)
}

/// Changes the length that an answer shows.
fn change_length(line: &mut Line) -> Option<()> {
    match &mut line.ended {
        Some((_, Outcome::Returned(Reply::Length(length) | Reply::Refused(length)))) => {
            *length += 1;
        }
        Some((_, Outcome::Returned(Reply::List(list)))) => {
            list.pop()?;
        }
        _ => return None,
    }
    Some(())
}
