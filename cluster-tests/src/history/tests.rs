//! Histories that must be accepted, histories that must not, and what is said of them.

use proptest::prelude::ProptestConfig;

use super::*;

mod agree;
mod corrupted;
mod good;
mod known_bad;
mod object;

const ENTITY: &str = "e";

/// `cases`, or what `PROPTEST_CASES` says when it is set.
fn cases(cases: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(), // has read it
        None => ProptestConfig::with_cases(cases),
    }
}

fn history(lines: &[Line]) -> History {
    let mut history = History::default();
    for line in lines {
        history.record(line.clone()).unwrap();
    }
    history
}

const fn append(value: u64) -> Op {
    Op::Append { value, key: None }
}

const fn append_if(length: u64, value: u64) -> Op {
    Op::AppendIf { length, value, key: None }
}

const fn keyed(value: u64) -> Op {
    Op::Append { value, key: Some(value) }
}

/// An operation that is answered.
fn seen(invoked: u64, answered: u64, op: Op, reply: Reply) -> Line {
    ended(invoked, answered, op, Outcome::Returned(reply))
}

/// An append that is answered with "done".
fn done(invoked: u64, answered: u64, op: Op) -> Line {
    seen(invoked, answered, op, Reply::Done)
}

/// A read.
fn read<const N: usize>(invoked: u64, answered: u64, list: [u64; N]) -> Line {
    seen(invoked, answered, Op::Read, Reply::List(list.to_vec()))
}

/// An operation of which nobody knows.
fn lost(invoked: u64, op: Op) -> Line {
    ended(invoked, invoked + 1, op, Outcome::Unknown)
}

fn not_executed(invoked: u64, ended_at: u64, op: Op) -> Line {
    ended(invoked, ended_at, op, Outcome::NotExecuted)
}

fn ended(invoked: u64, ended: u64, op: Op, outcome: Outcome) -> Line {
    Line { client: 0, entity: ENTITY.to_owned(), op, invoked, ended: Some((ended, outcome)) }
}

#[test]
fn what_no_history_can_hold_is_refused_and_changes_nothing() {
    let mut history = History::default();
    let first = history.invoke(1, ENTITY, append(7), 10).unwrap();
    let key = history.invoke(1, ENTITY, keyed(8), 10).unwrap();
    let twice = Misuse::ValueTwice { value: 7, first };
    assert_eq!(history.invoke(2, ENTITY, append(7), 11), Err(twice));
    let conflict = Misuse::KeyConflict { key: 8, first: key };
    let other = Op::Append { value: 9, key: Some(8) };
    assert_eq!(history.invoke(2, ENTITY, other, 11), Err(conflict));
    let backwards = Misuse::ClockBackwards { id: first, invoked: 10, ended: 9 };
    assert_eq!(history.end(first, Outcome::Unknown, 9), Err(backwards));
    let refused = Outcome::Returned(Reply::Refused(0));
    assert_eq!(history.end(first, refused, 12), Err(Misuse::WrongReply(first)));
    history.end(first, Outcome::Returned(Reply::Length(1)), 12).unwrap();
    assert_eq!(history.end(first, Outcome::Unknown, 13), Err(Misuse::EndedBefore(first)));
    let stranger = Id(77);
    assert_eq!(history.end(stranger, Outcome::Unknown, 13), Err(Misuse::NoSuch(stranger)));
    let reads = history.invoke(1, ENTITY, Op::Read, 14).unwrap();
    let done = Outcome::Returned(Reply::Done);
    assert_eq!(history.end(reads, done, 15), Err(Misuse::WrongReply(reads)));
    let long = Outcome::Returned(Reply::List(vec![0; LIST_VALUES_MAX + 1]));
    assert_eq!(history.end(reads, long, 15), Err(Misuse::Full("LIST_VALUES_MAX")));
    let Summary { operations, returned, unknown, .. } = history.check().unwrap();
    assert_eq!((operations, returned, unknown), (3, 1, 2));
}

#[test]
fn a_value_and_a_key_belong_to_one_entity() {
    let mut history = History::default();
    for entity in ["one", "two"] {
        let id = history.invoke(0, entity, keyed(5), 0).unwrap();
        history.end(id, Outcome::Returned(Reply::List(vec![5])), 1).unwrap();
    }
    assert_eq!(history.check().unwrap().entities, 2);
}

#[test]
fn an_answer_of_any_size_is_judged_and_never_a_panic() {
    for length in [0, 2, 1 << 40, u64::MAX] {
        let shown = |op, reply| history(&[seen(0, 1, op, reply)]).check().unwrap_err().rule;
        let rule = if length == 0 { Rule::OwnAnswer } else { Rule::TooLong };
        assert_eq!(shown(append(1), Reply::Length(length)), rule, "{length}");
        if length > 0 {
            assert_eq!(shown(Op::Read, Reply::Length(length)), Rule::TooLong);
            assert_eq!(shown(append_if(0, 1), Reply::Refused(length)), Rule::TooLong);
        }
        let late = history(&[seen(0, u64::MAX, append_if(length, 1), Reply::Done)]);
        assert_eq!(late.check().is_ok(), length == 0, "{length}");
    }
}

#[test]
fn a_search_that_gives_up_is_counted_and_its_entity_named() {
    // Twelve values can be among the first nine, and no choice leaves the third place to the last.
    let mut lines: Vec<Line> = (1..=12).map(|value| lost(0, append(value))).collect();
    lines.push(seen(0, 9, append_if(9, 99), Reply::Done));
    lines.push(seen(10, 11, append_if(2, 98), Reply::Length(3)));
    let history = history(&lines);
    let violation = history.check().unwrap_err();
    assert_eq!(violation.rule, Rule::NoOrder, "{violation}");
    let summary = history.check_within(100).unwrap();
    assert_eq!((summary.searched, summary.undecided), (1, vec![ENTITY.to_owned()]));
}

#[test]
fn a_long_history_is_traced_and_not_searched() {
    let mut lines = Vec::new();
    for value in 0..20_000_u64 {
        // Five at once, answered by their length; some get no answer, some no effect.
        let at = value / 5 * 10;
        lines.push(match value % 7 {
            0 => lost(at, append(value)),
            1 => not_executed(at, at + 9, append(value)),
            _ => done(at, at + 9, append(value)),
        });
    }
    let list: Vec<u64> = (0..20_000).filter(|value| value % 7 != 1).collect();
    for known in [1_000_usize, 10_000, 15_000] {
        // By then at least these; a read at the end of their time.
        let last = list[known - 1];
        let at = last / 5 * 10 + 9;
        lines.push(seen(at, at, Op::Read, Reply::List(list[..known].to_vec())));
    }
    lines.push(seen(90_000, 90_001, Op::Read, Reply::List(list)));
    let summary = history(&lines).check().unwrap();
    assert_eq!((summary.searched, summary.unknown), (0, 2_858));
}

#[test]
fn a_file_holds_all_of_a_history() {
    let mut histories: Vec<_> = known_bad::table().into_iter().map(|(.., lines)| lines).collect();
    histories.push(vec![Line { ended: None, ..lost(4, keyed(9)) }, read(5, 6, [9])]);
    for lines in histories {
        let written = history(&lines);
        let mut file = Vec::new();
        written.write(&mut file).unwrap();
        let read = History::read(file.as_slice()).unwrap();
        assert_eq!(read.lines().collect::<Vec<_>>(), lines);
        assert_eq!(read.check(), written.check());
    }
}

#[test]
fn a_file_that_is_no_history_is_refused_with_the_number_of_the_line() {
    let good = r#"{"client":0,"entity":"e","op":{"append":{"value":1}},"invoked":5}"#;
    let refused = |second: &str| {
        let file = format!("{good}\n{second}\n");
        History::read(file.as_bytes()).unwrap_err().to_string()
    };
    let misuse = refused(good);
    assert_eq!(misuse, "line 2: value 1 is appended by #1 already");
    for bad in ["", "{", &good.replace("append", "remove"), &good.replace("client", "server")] {
        let error = refused(bad);
        assert!(error.starts_with("line 2 is no operation: "), "{error}");
    }
}

#[test]
fn a_violation_tells_a_story() {
    let story = history(&[
        done(0, 2, append(7)),
        seen(1, 4, append(8), Reply::Length(2)),
        lost(1, append(9)),
        read(5, 8, [7]),
        read(9, 10, [7, 8]),
    ]);
    let violation = story.check().unwrap_err();
    let expected = "\
entity e: real_time: by what was seen, #4 came before #2, but #2 was answered at 4 and #4 invoked at 5
  #2  client 0  append 8  2 long  1  4  |---------------|
  #4  client 0  read      [7]     5  8                        |----------------|";
    assert_eq!(violation.to_string(), expected);
}
