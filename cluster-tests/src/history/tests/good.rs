//! Histories that look wrong and are not.

use super::{
    Line, Op, Reply, append, append_if, done, history, keyed, lost, not_executed, read, seen,
};

fn table() -> Vec<(&'static str, Vec<Line>)> {
    [plain(), under_keys(), in_no_list()].concat()
}

fn plain() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        ("nothing happened", vec![]),
        ("an empty list", vec![read(0, 1, [])]),
        ("calls whose ends touch are concurrent", vec![read(0, 2, [1]), done(2, 3, append(1))]),
        (
            "an append under way is seen by one and not by the other",
            vec![done(0, 9, append(1)), read(1, 5, [1]), read(2, 6, [])],
        ),
        (
            "an unanswered append takes effect much later",
            vec![
                lost(0, append(1)),
                read(10, 11, []),
                done(12, 13, append(2)),
                read(20, 21, [2, 1]),
            ],
        ),
        (
            "an unanswered append never takes effect",
            vec![lost(0, append(1)), lost(0, append_if(0, 2)), read(10, 11, [])],
        ),
    ]
}

fn under_keys() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        (
            "a try that was not executed, and one that was",
            vec![
                not_executed(0, 1, keyed(1)),
                seen(2, 3, keyed(1), Reply::Length(1)),
                read(4, 5, [1]),
            ],
        ),
        (
            "a repetition shows the first answer, however old",
            vec![
                seen(0, 1, keyed(1), Reply::List(vec![1])),
                done(2, 3, append(2)),
                seen(4, 5, keyed(1), Reply::List(vec![1])),
                read(6, 7, [1, 2]),
            ],
        ),
        (
            "the first try is executed after the second was answered by nobody",
            vec![
                lost(0, keyed(1)),
                lost(5, keyed(1)),
                done(8, 9, append(2)),
                read(10, 11, [2]),
                read(20, 21, [2, 1]),
            ],
        ),
        (
            "the try that was invoked first is recorded last",
            vec![lost(5, keyed(1)), read(2, 3, [1]), lost(0, keyed(1))],
        ),
        (
            "a refusal under a key is repeated when the condition holds",
            vec![
                seen(0, 1, Op::AppendIf { length: 1, value: 1, key: Some(1) }, Reply::Refused(0)),
                done(2, 3, append(2)),
                seen(4, 5, Op::AppendIf { length: 1, value: 1, key: Some(1) }, Reply::Refused(0)),
                read(6, 7, [2]),
            ],
        ),
    ]
}

fn in_no_list() -> Vec<(&'static str, Vec<Line>)> {
    vec![
        (
            "an unanswered append fills the place that an answer left open",
            vec![
                lost(0, append(9)),
                lost(0, append(1)),
                seen(2, 3, append(2), Reply::Length(2)),
                seen(4, 5, append_if(2, 3), Reply::Done),
            ],
        ),
        (
            "answers in no list, in the only order that fits",
            vec![
                done(0, 9, append_if(2, 1)),
                done(0, 9, append_if(1, 2)),
                done(0, 9, append_if(0, 3)),
            ],
        ),
    ]
}

#[test]
fn what_looks_wrong_and_is_not_is_accepted() {
    for (name, lines) in table() {
        match history(&lines).check() {
            Ok(summary) => assert!(summary.undecided.is_empty(), "{name}"),
            Err(violation) => panic!("{name}: {violation}"),
        }
    }
}
