//! One register that is overwritten and read: is there an order in which all of it can happen?
//!
//! Values are unique, and an answered write shows the value before it. So each value that was
//! overwritten says who came next, and the search has few orders to try.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::SEARCH_STEPS_MAX;
use super::search::{Found, Span, search};

/// What a client did to the register. All tries under one key are one access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Who.
    pub client: u32,
    /// When it was tried first.
    pub invoked: u64,
    /// When it was answered, if it was: without an answer it may take effect later, or never.
    pub answered: Option<u64>,
    /// What.
    pub does: Does,
}

/// Writes or reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Does {
    /// Overwrites.
    Write {
        /// The new value, unlike every other one and the first.
        value: i64,
        /// The value before it, as the answer says.
        before: Option<i64>,
    },
    /// Reads.
    Read {
        /// What the answer says.
        value: i64,
    },
}

/// Whether the accesses have an order; `None` when the search gave up. The register begins with
/// `first`. Reads are answered.
///
/// # Errors
/// The access that no order comes past.
pub fn check(first: i64, accesses: &[Access]) -> Result<Option<()>, Access> {
    let shown: HashSet<i64> = accesses.iter().filter_map(|access| access.does.shows()).collect();
    // A write that nobody was told of and nobody saw is as good as none.
    let known = |access: &&Access| match access.does {
        Does::Write { value, .. } => access.answered.is_some() || shown.contains(&value),
        Does::Read { .. } => true,
    };
    let accesses: Vec<&Access> = accesses.iter().filter(known).collect();
    let next_writer: HashMap<i64, usize> = (accesses.iter().enumerate())
        .filter_map(|(at, access)| match access.does {
            Does::Write { before: Some(before), .. } => Some((before, at)),
            _ => None,
        })
        .collect();
    let spans: Vec<Span> = (accesses.iter())
        .map(|access| Span {
            invoked: access.invoked,
            answered: access.answered,
            reads: matches!(access.does, Does::Read { .. }),
        })
        .collect();
    let next = |now: &i64, at: usize| match accesses[at].does {
        Does::Read { value } => (value == *now).then_some(value),
        Does::Write { value, before } => {
            let fits = before.is_none_or(|before| before == *now);
            let turn = next_writer.get(now).is_none_or(|next| *next == at);
            (fits && turn).then_some(value)
        }
    };
    match search(&spans, first, next, SEARCH_STEPS_MAX) {
        Found::Order => Ok(Some(())),
        Found::GaveUp => Ok(None),
        Found::NoOrder { stuck } => Err(accesses[stuck].clone()),
    }
}

impl Does {
    /// The value that its answer shows.
    const fn shows(self) -> Option<i64> {
        match self {
            Self::Write { before, .. } => before,
            Self::Read { value } => Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(span: (u64, Option<u64>), value: i64, before: Option<i64>) -> Access {
        let does = Does::Write { value, before };
        Access { client: 1, invoked: span.0, answered: span.1, does }
    }

    fn read(span: (u64, u64), value: i64) -> Access {
        Access { client: 2, invoked: span.0, answered: Some(span.1), does: Does::Read { value } }
    }

    #[test]
    fn writes_one_after_the_other_and_reads_between_them_have_an_order() {
        let good = [
            write((0, Some(1)), 10, Some(0)),
            read((2, 3), 10),
            write((2, None), 20, None),
            write((4, Some(5)), 30, Some(20)),
            read((6, 7), 30),
        ];
        assert_eq!(check(0, &good), Ok(Some(())));
    }

    #[test]
    fn a_write_that_is_lost_is_found() {
        let bad = [write((0, Some(1)), 10, Some(0)), read((2, 3), 0)];
        assert_eq!(check(0, &bad), Err(bad[1].clone()));
    }

    #[test]
    fn a_write_that_is_applied_twice_is_found() {
        let twice =
            [write((0, Some(1)), 10, Some(0)), write((2, Some(3)), 20, Some(10)), read((4, 5), 10)];
        assert_eq!(check(0, &twice), Err(twice[2].clone()));
    }

    #[test]
    fn two_writes_over_the_same_value_are_found() {
        let fork = [write((0, Some(3)), 10, Some(0)), write((1, Some(4)), 20, Some(0))];
        assert!(check(0, &fork).is_err());
    }

    #[test]
    fn many_writes_without_an_answer_do_not_stop_the_search() {
        let mut accesses: Vec<Access> =
            (1..=40).map(|value| write((0, None), value, None)).collect();
        for value in 1..=40 {
            let at = 10 * u64::try_from(value).unwrap();
            accesses.push(write((at, Some(at + 5)), 1_000 + value, Some(value)));
        }
        assert_eq!(check(0, &accesses), Ok(Some(())));
    }
}
