//! Histories that no list explains, each with the rule that it breaks.

use super::{
    Line, Op, Reply, Rule, append, append_if, done, history, keyed, lost, not_executed, read, seen,
};

/// Name, rule, history.
pub(super) fn table() -> Vec<(&'static str, Rule, Vec<Line>)> {
    [shown(), ordered(), answered(), conditional(), searched()].concat()
}

/// What lists show.
fn shown() -> Vec<(&'static str, Rule, Vec<Line>)> {
    vec![
        ("a value from nowhere", Rule::Phantom, vec![done(0, 1, append(1)), read(2, 3, [1, 5])]),
        (
            "a value from nowhere in a list that nobody else saw",
            Rule::Phantom,
            vec![done(0, 1, append(1)), read(0, 2, [1]), read(2, 3, [5])],
        ),
        (
            "an append that is done twice",
            Rule::Duplicate,
            vec![lost(0, append(1)), read(2, 3, [1, 1])],
        ),
        (
            "a key that is executed twice",
            Rule::Duplicate,
            vec![lost(0, keyed(1)), done(2, 3, keyed(1)), read(4, 5, [1, 1])],
        ),
        (
            "executed, though its client was told that it was not",
            Rule::NotExecuted,
            vec![not_executed(0, 1, append(1)), read(2, 3, [1])],
        ),
        (
            "no try was executed",
            Rule::NotExecuted,
            vec![not_executed(0, 1, keyed(1)), not_executed(2, 3, keyed(1)), read(4, 5, [1])],
        ),
        (
            "two reads that saw different orders",
            Rule::Fork,
            vec![lost(0, append(1)), lost(0, append(2)), read(1, 2, [1, 2]), read(1, 2, [2])],
        ),
        (
            "an append overwritten by a new primary",
            Rule::Fork,
            vec![
                seen(0, 1, append(1), Reply::List(vec![1])),
                seen(2, 3, append(2), Reply::List(vec![1, 2])),
                seen(4, 5, append(3), Reply::List(vec![1, 3])),
            ],
        ),
    ]
}

/// What the order of lists says against time.
fn ordered() -> Vec<(&'static str, Rule, Vec<Line>)> {
    vec![
        (
            "a stale read",
            Rule::RealTime,
            vec![seen(0, 1, append(1), Reply::Length(1)), read(2, 3, []), read(4, 5, [1])],
        ),
        (
            "a second read that is older than the first",
            Rule::RealTime,
            vec![lost(0, append(1)), read(1, 2, [1]), read(3, 4, [])],
        ),
        ("a read of the future", Rule::RealTime, vec![read(0, 1, [1]), done(2, 3, append(1))]),
        (
            "a read of an unanswered append before it was invoked",
            Rule::RealTime,
            vec![read(0, 1, [1]), lost(2, append(1))],
        ),
        (
            "two appends in the other order",
            Rule::RealTime,
            vec![done(0, 1, append(1)), done(2, 3, append(2)), read(4, 5, [2, 1])],
        ),
        (
            "a refusal that saw the past",
            Rule::RealTime,
            vec![
                done(0, 1, append(1)),
                done(2, 3, append(2)),
                seen(4, 5, append_if(0, 3), Reply::Refused(1)),
                read(6, 7, [1, 2]),
            ],
        ),
        (
            "a key that takes effect after its first answer",
            Rule::RealTime,
            vec![
                seen(0, 1, keyed(1), Reply::Length(2)),
                done(2, 3, append(2)),
                seen(4, 5, keyed(1), Reply::Length(2)),
                read(6, 7, [2, 1]),
            ],
        ),
        (
            "a chain over concurrent calls",
            Rule::RealTime,
            vec![
                done(0, 9, append(1)),
                done(0, 9, append(2)),
                read(1, 2, [1]),
                read(3, 4, []),
                read(10, 11, [1, 2]),
            ],
        ),
        (
            "an answered append that a later read does not show",
            Rule::Lost,
            vec![done(0, 1, append(1)), read(2, 3, [])],
        ),
        (
            "an answered append whose place another one has",
            Rule::Lost,
            vec![seen(0, 1, append(1), Reply::Length(1)), done(2, 3, append(2)), read(4, 5, [2])],
        ),
    ]
}

/// What answers say of themselves.
fn answered() -> Vec<(&'static str, Rule, Vec<Line>)> {
    vec![
        (
            "an answer that does not show its own value",
            Rule::OwnAnswer,
            vec![done(0, 1, append(1)), seen(0, 1, append(2), Reply::List(vec![1]))],
        ),
        (
            "an answer that counts another place",
            Rule::OwnAnswer,
            vec![
                seen(0, 1, append(1), Reply::Length(2)),
                seen(0, 1, append(2), Reply::Length(1)),
                read(2, 3, [1, 2]),
            ],
        ),
        (
            "an append that leaves the list empty",
            Rule::OwnAnswer,
            vec![seen(0, 1, append(1), Reply::Length(0))],
        ),
        (
            "a repetition with a new answer",
            Rule::KeyAnswers,
            vec![
                seen(0, 1, keyed(1), Reply::Length(1)),
                done(2, 3, append(2)),
                seen(4, 5, keyed(1), Reply::Length(2)),
            ],
        ),
        (
            "more than was appended",
            Rule::TooLong,
            vec![
                done(0, 1, append(1)),
                lost(0, append(2)),
                not_executed(0, 1, append(3)),
                seen(2, 3, Op::Read, Reply::Length(3)),
            ],
        ),
    ]
}

/// What conditions say.
fn conditional() -> Vec<(&'static str, Rule, Vec<Line>)> {
    vec![
        (
            "a refusal at the very length",
            Rule::Condition,
            vec![done(0, 1, append(1)), seen(2, 3, append_if(1, 2), Reply::Refused(1))],
        ),
        (
            "refused, and executed all the same",
            Rule::Condition,
            vec![
                lost(0, append(1)),
                seen(2, 3, append_if(1, 2), Reply::Refused(0)),
                read(4, 5, [1, 2]),
            ],
        ),
        (
            "executed though the condition did not hold",
            Rule::Condition,
            vec![done(0, 1, append(1)), done(2, 3, append_if(0, 2)), read(4, 5, [1, 2])],
        ),
        (
            "unanswered, and executed though the condition did not hold",
            Rule::Condition,
            vec![done(0, 1, append(1)), lost(2, append_if(0, 2)), read(4, 5, [1, 2])],
        ),
        (
            "two conditional appends that both won",
            Rule::SamePlace,
            vec![
                seen(0, 2, append_if(0, 1), Reply::Length(1)),
                seen(0, 2, append_if(0, 2), Reply::Length(1)),
            ],
        ),
    ]
}

/// What only a search finds: no list shows who appended what.
fn searched() -> Vec<(&'static str, Rule, Vec<Line>)> {
    vec![
        (
            "counted before anything could fill the place",
            Rule::NoOrder,
            vec![seen(0, 1, append(1), Reply::Length(2)), lost(2, append(2))],
        ),
        (
            "two that were done at the only fitting length",
            Rule::NoOrder,
            vec![done(0, 1, append_if(0, 1)), done(0, 1, append_if(0, 2))],
        ),
        (
            "done, and not counted later",
            Rule::NoOrder,
            vec![
                done(0, 1, append(1)),
                done(0, 1, append(2)),
                seen(2, 3, Op::Read, Reply::Length(1)),
            ],
        ),
        (
            "a count that shrinks",
            Rule::RealTime,
            vec![
                done(0, 1, append(1)),
                done(0, 1, append(2)),
                seen(2, 3, Op::Read, Reply::Length(2)),
                seen(4, 5, Op::Read, Reply::Length(1)),
            ],
        ),
    ]
}

#[test]
fn every_known_bad_history_breaks_the_rule_it_is_there_for() {
    for (name, rule, lines) in table() {
        match history(&lines).check() {
            Ok(summary) => panic!("{name}: not found: {summary:?}"),
            Err(violation) => assert_eq!(violation.rule, rule, "{name}: {violation}"),
        }
    }
}

#[test]
fn every_rule_is_broken_by_a_known_bad_history() {
    let table = table();
    let broken = |rule: &Rule| table.iter().any(|(_, breaks, _)| breaks == rule);
    let idle: Vec<_> = Rule::ALL.into_iter().filter(|rule| !broken(rule)).collect();
    assert!(idle.is_empty(), "no history breaks {idle:?}");
}
