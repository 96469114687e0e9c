//! Which failures of an attempt allow another one, and after what.

use std::time::Duration;

use mainstay_protocol::message::{Failure, Outcome};

use crate::call::Retry;

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pass the failure on.
    Final,
    /// Ask another copy, at once.
    Other,
    /// The wrong node was asked: ask again by a newer map, or a little later. Not a repeat: the
    /// refusal cost nobody a turn.
    Reroute {
        /// The version of the map that the refuser holds.
        known: u64,
    },
    /// The owner cannot be reached, or there is none: only another owner is worth another
    /// attempt.
    OtherOwner {
        /// For a moment, or until the deadline.
        patient: bool,
    },
    /// Ask again when the retry budget allows, not before this span.
    Repeat {
        /// What the refuser asked for.
        after: Duration,
        /// When the budget does not allow it, another owner is worth waiting for.
        or_other_owner: bool,
    },
}

/// What a failure allows. `safe` says that running twice does no harm: queries, and commands with
/// an idempotency key.
pub(super) fn verdict(failure: &Failure, retry: Retry, safe: bool) -> Verdict {
    let repeat = |after| match retry {
        Retry::Safe => Verdict::Repeat { after, or_other_owner: false },
        Retry::StaleMap => Verdict::Final,
    };
    match failure {
        Failure::NotPrimary { map_version, .. } => Verdict::Reroute { known: *map_version },
        Failure::Overloaded { retry_after_ms, .. } => {
            repeat(Duration::from_millis(*retry_after_ms))
        }
        Failure::Unavailable { outcome: Outcome::NotExecuted, .. } => match retry {
            Retry::Safe => Verdict::Repeat { after: Duration::ZERO, or_other_owner: true },
            Retry::StaleMap => Verdict::OtherOwner { patient: false },
        },
        Failure::Unavailable { outcome: Outcome::Unknown, .. } if safe => repeat(Duration::ZERO),
        Failure::Unavailable { .. }
        | Failure::App { .. }
        | Failure::Deadline { .. }
        | Failure::Unknown { .. }
        | Failure::Malformed { .. }
        | Failure::KeyConflict
        | Failure::VersionMismatch { .. }
        | Failure::Reentrant
        | Failure::Panicked { .. }
        | Failure::Stale { .. }
        | Failure::Version { .. } => Verdict::Final,
    }
}

/// The failure of a call one attempt of which may have run: it promises no more that nothing did.
pub(super) fn without_promise(failure: Failure) -> Failure {
    let outcome = Outcome::Unknown;
    match failure {
        Failure::Deadline { outcome: Outcome::NotExecuted } => Failure::Deadline { outcome },
        Failure::Unavailable { outcome: Outcome::NotExecuted, reason } => {
            Failure::Unavailable { outcome, reason }
        }
        Failure::Overloaded { .. } => {
            let reason = "an earlier attempt was lost, the last one found no room".to_owned();
            Failure::Unavailable { outcome, reason }
        }
        Failure::NotPrimary { .. } => {
            let reason = "an earlier attempt was lost, the last one found no primary".to_owned();
            Failure::Unavailable { outcome, reason }
        }
        failure => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(outcome: Outcome) -> Failure {
        Failure::Unavailable { outcome, reason: String::new() }
    }

    #[test]
    fn an_unknown_outcome_is_repeated_only_when_that_does_no_harm() {
        let lost = unavailable(Outcome::Unknown);
        assert_eq!(verdict(&lost, Retry::Safe, false), Verdict::Final);
        assert_eq!(verdict(&lost, Retry::StaleMap, true), Verdict::Final);
        let repeat = Verdict::Repeat { after: Duration::ZERO, or_other_owner: false };
        assert_eq!(verdict(&lost, Retry::Safe, true), repeat);
    }

    #[test]
    fn what_was_executed_is_never_repeated() {
        for retry in [Retry::Safe, Retry::StaleMap] {
            let executed = unavailable(Outcome::Executed);
            assert_eq!(verdict(&executed, retry, true), Verdict::Final);
            let passed = Failure::Deadline { outcome: Outcome::Unknown };
            assert_eq!(verdict(&passed, retry, true), Verdict::Final);
        }
    }

    #[test]
    fn a_stale_map_is_followed_whatever_the_policy() {
        let stale = Failure::NotPrimary { map_version: 1, primary: None };
        let reroute = Verdict::Reroute { known: 1 };
        assert_eq!(verdict(&stale, Retry::StaleMap, false), reroute);
    }

    #[test]
    fn a_lost_attempt_takes_every_promise_back() {
        let refused = Failure::Overloaded { retry_after_ms: 1, bound: "window".to_owned() };
        let stale = Failure::NotPrimary { map_version: 1, primary: None };
        let passed = Failure::Deadline { outcome: Outcome::NotExecuted };
        for failure in [refused, stale, unavailable(Outcome::NotExecuted), passed] {
            assert!(matches!(
                without_promise(failure),
                Failure::Unavailable { outcome: Outcome::Unknown, .. }
                    | Failure::Deadline { outcome: Outcome::Unknown }
            ));
        }
    }
}
