//! What a typed call can end with: one closed enum that says what is true and what to do next.

use std::time::Duration;

use mainstay_protocol::message::{Failure, Outcome};

use super::codec;
use super::message::AppError;

/// Why a call has no value.
///
/// A deadline or a lost connection is never "failed": [`outcome`](Self::outcome) says what is
/// known, and with an idempotency key `Unknown` is safe to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError<E> {
    /// The entity refused. Its state is as before.
    App(E),
    /// No room: a mailbox, a window, a budget. Not executed; ask again after the given time.
    Overloaded {
        /// How long to wait before the next try.
        retry_after: Duration,
        /// Which bound was reached.
        bound: String,
    },
    /// The deadline passed: in a queue (not executed), or later (unknown).
    Deadline {
        /// Whether it may have run.
        outcome: Outcome,
    },
    /// The entity's shard cannot serve, or cannot be reached. Ask again later.
    Unavailable {
        /// Whether it may have run.
        outcome: Outcome,
        /// Why, in one sentence.
        reason: String,
    },
    /// The idempotency key was used with other arguments or another method, or a call under it is
    /// under way with another condition. Not executed; each intent wants a key of its own.
    KeyConflict,
    /// The entity is not at the version that the command was to run at. Not executed, also when it
    /// is repeated; read the entity again, and decide anew.
    VersionMismatch {
        /// The entity's version, 0 when it was never written.
        current: u64,
    },
    /// The entity waits for this very call: A calls B calls A. Not executed; break the cycle.
    Reentrant,
    /// The handler panicked. Its state is as before; after three panics on one keyed input, that
    /// input is not tried again.
    Panicked {
        /// The input will not be tried again.
        quarantined: bool,
    },
    /// The cluster does not know the kind or the method. Not executed; it runs another build.
    Unknown {
        /// "kind" or "method".
        what: String,
    },
    /// No copy that could be asked shows a state as fresh as the query wants it. Not executed; ask
    /// again, or for less.
    Stale {
        /// What is wanted, and what there is.
        reason: String,
    },
    /// The entity's key, the idempotency key or the arguments are not valid. Not executed.
    Malformed {
        /// What is wrong, and where.
        reason: String,
    },
    /// A stored state or a reply is of a version that the reader does not know. Upgrade it.
    Version {
        /// Not executed when it is the state, executed when it is the reply.
        outcome: Outcome,
        /// What was found and what is understood.
        reason: String,
    },
}

impl<E> CallError<E> {
    /// What is known about the call's effect. A refusal is an execution; a panic left nothing.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::App(_) => Outcome::Executed,
            Self::Deadline { outcome }
            | Self::Unavailable { outcome, .. }
            | Self::Version { outcome, .. } => *outcome,
            Self::Overloaded { .. }
            | Self::KeyConflict
            | Self::VersionMismatch { .. }
            | Self::Reentrant
            | Self::Panicked { .. }
            | Self::Unknown { .. }
            | Self::Stale { .. }
            | Self::Malformed { .. } => Outcome::NotExecuted,
        }
    }

    /// How long to wait before the next try, if the cluster said so.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. } => Some(*retry_after),
            Self::App(_)
            | Self::Deadline { .. }
            | Self::Unavailable { .. }
            | Self::KeyConflict
            | Self::VersionMismatch { .. }
            | Self::Reentrant
            | Self::Panicked { .. }
            | Self::Unknown { .. }
            | Self::Stale { .. }
            | Self::Malformed { .. }
            | Self::Version { .. } => None,
        }
    }

    /// Whether the same call may succeed later, and cannot take effect twice even without an
    /// idempotency key. With a key, or for a query, an unknown outcome may be asked again too.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::Stale { .. } => true,
            Self::Deadline { outcome } | Self::Unavailable { outcome, .. } => {
                matches!(outcome, Outcome::NotExecuted)
            }
            Self::App(_)
            | Self::KeyConflict
            | Self::VersionMismatch { .. }
            | Self::Reentrant
            | Self::Panicked { .. }
            | Self::Unknown { .. }
            | Self::Malformed { .. }
            | Self::Version { .. } => false,
        }
    }

    /// The error's code, as `mainstay explain` knows it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::App(_) => "MS-2201",
            Self::Overloaded { .. } => "MS-2101",
            Self::Deadline { outcome: Outcome::NotExecuted } => "MS-2102",
            Self::Deadline { outcome: Outcome::Executed | Outcome::Unknown } => "MS-2103",
            Self::Unavailable { .. } => "MS-2105",
            Self::KeyConflict => "MS-2106",
            Self::VersionMismatch { .. } => "MS-2111",
            Self::Reentrant => "MS-2107",
            Self::Panicked { quarantined: false } => "MS-2108",
            Self::Panicked { quarantined: true } => "MS-2109",
            Self::Unknown { what } if what == "kind" => "MS-2001",
            Self::Unknown { .. } => "MS-2002",
            Self::Malformed { .. } => "MS-2004",
            Self::Version { .. } => "MS-2110",
            Self::Stale { .. } => "MS-2112",
        }
    }
}

impl<E: AppError> From<Failure> for CallError<E> {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::App { error, token: _, replayed: _ } => match codec::from_bytes(&error) {
                Ok(error) => Self::App(error),
                Err(error) => Self::unreadable("error", &error),
            },
            Failure::Overloaded { retry_after_ms, bound } => {
                Self::Overloaded { retry_after: Duration::from_millis(retry_after_ms), bound }
            }
            Failure::Deadline { outcome } => Self::Deadline { outcome },
            Failure::NotPrimary { map_version, primary: _ } => Self::Unavailable {
                outcome: Outcome::NotExecuted,
                reason: format!("the entity's shard is on the move, map version {map_version}"),
            },
            Failure::Unavailable { outcome, reason } => Self::Unavailable { outcome, reason },
            Failure::Unknown { what } => Self::Unknown { what },
            Failure::Malformed { reason } => Self::Malformed { reason },
            Failure::Stale { reason } => Self::Stale { reason },
            Failure::KeyConflict => Self::KeyConflict,
            Failure::VersionMismatch { token } => Self::VersionMismatch { current: token.seq.0 },
            Failure::Reentrant => Self::Reentrant,
            Failure::Panicked { quarantined } => Self::Panicked { quarantined },
            Failure::Version { reason } => Self::Version { outcome: Outcome::NotExecuted, reason },
        }
    }
}

impl<E> CallError<E> {
    /// The call ran, but this build does not understand what came back.
    pub(super) fn unreadable(what: &str, error: &codec::DecodeError) -> Self {
        let reason =
            format!("the {what} does not decode, the entity may run a newer build: {error}");
        Self::Version { outcome: Outcome::Executed, reason }
    }
}

impl<E: std::fmt::Display> std::fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::App(error) => write!(f, "{error}"),
            Self::Overloaded { retry_after, bound } => {
                write!(f, "overloaded ({bound}), try again in {retry_after:?}")
            }
            Self::Deadline { outcome } => write!(f, "the deadline passed, {}", words(*outcome)),
            Self::Unavailable { outcome, reason } => {
                write!(f, "unavailable, {}: {reason}", words(*outcome))
            }
            Self::KeyConflict => {
                f.write_str("the idempotency key was used with other arguments or another method")
            }
            Self::VersionMismatch { current } => {
                write!(f, "the entity is at version {current}, the command was to run at another")
            }
            Self::Reentrant => f.write_str("the entity waits for this very call"),
            Self::Panicked { quarantined: false } => f.write_str("the handler panicked"),
            Self::Panicked { quarantined: true } => {
                f.write_str("the handler panicked on this input too often, it is not tried again")
            }
            Self::Unknown { what } => write!(f, "the cluster does not know this {what}"),
            Self::Stale { reason } => write!(f, "no copy is fresh enough: {reason}"),
            Self::Malformed { reason } => write!(f, "malformed: {reason}"),
            Self::Version { outcome, reason } => {
                write!(f, "unknown version, {}: {reason}", words(*outcome))
            }
        }
    }
}

const fn words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotExecuted => "not executed",
        Outcome::Executed => "executed",
        Outcome::Unknown => "outcome unknown",
    }
}

impl<E: std::fmt::Debug + std::fmt::Display> std::error::Error for CallError<E> {}
