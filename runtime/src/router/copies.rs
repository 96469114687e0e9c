//! Which copy of its shard a query is carried to, when not the primary alone may answer it.
//!
//! ```text
//!   the standby of this node, if it has one -> the primary -> the other standbys in sync
//!        ^                                                            |
//!        +---------------- a pause, as long as one is behind <--------+
//! ```
//! A standby here costs no way at all, and the primary has everything. A query of some age goes to
//! the primary as long as it is not known where the shard stood within that age; the answer says so
//! to those that follow.

use std::sync::{Mutex, PoisonError};

use mainstay_protocol::id::{ShardId, Token};
use mainstay_protocol::message::{Failure, Mode, Outcome, Request, Success};
use mainstay_protocol::replication::freshness::{Freshness, Places};
use mainstay_protocol::time::Instant;

use super::view::{Target, View};
use crate::call::Call;
use crate::clock;

/// Where shards stood when this router's calls asked last.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Places>);

/// What a call wants of the copy that answers it, and which were tried.
pub(super) struct Choice {
    freshness: Option<Freshness>,
    arrived_at: Instant,
    /// When the call ends.
    pub(super) deadline: Instant,
    /// The last attempt was at one of several copies that may answer.
    choosing: bool,
    /// Attempts at copies.
    tried: usize,
    /// A copy of this round was behind, and what it said.
    behind: bool,
    stale: Option<String>,
}

/// The copy of one attempt.
pub(super) struct Pick<'v> {
    /// The copy.
    pub(super) target: &'v Target,
    /// What it is asked for.
    pub(super) freshness: Option<Freshness>,
}

/// What a failed attempt leads to, for a query that other copies may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another copy is asked at once.
    Other,
    /// All were asked, and one is behind: they are asked again a little later.
    Again,
    /// As for every other call.
    AsEver,
}

impl Choice {
    pub(super) fn new(call: &Call, arrived_at: Instant, deadline: Instant) -> Self {
        let freshness = call.freshness.filter(|_| call.mode == Mode::Query);
        let (choosing, tried, behind, stale) = (false, 0, false, None);
        Self { freshness, arrived_at, deadline, choosing, tried, behind, stale }
    }

    /// The copy to ask in this attempt.
    pub(super) fn pick<'v>(
        &mut self,
        view: &'v View,
        known: &Known,
        (shard, primary): (ShardId, &'v Target),
    ) -> Pick<'v> {
        let freshness = self.freshness;
        let at_least = match freshness {
            Some(Freshness::AtLeast(token)) => Some(token),
            Some(Freshness::MaxStaleness(span)) => {
                known.places().place(shard, self.arrived_at, span)
            }
            None | Some(Freshness::Strict) => None,
        };
        self.choosing = at_least.is_some();
        match (at_least, self.standby(view.standbys(shard))) {
            (Some(token), Some(target)) => {
                Pick { target, freshness: Some(Freshness::AtLeast(token)) }
            }
            (None, _) | (_, None) => Pick { target: primary, freshness },
        }
    }

    /// The standby whose turn it is; `None` when it is the primary's.
    fn standby<'v>(&self, standbys: &'v [Target]) -> Option<&'v Target> {
        let here = matches!(standbys.first(), Some(Target::Local { .. }));
        let turn = self.tried % (standbys.len() + 1);
        match turn {
            0 if here => standbys.first(),
            1 if here => None,
            turn => standbys.get(turn.checked_sub(1)?),
        }
    }

    /// An attempt failed.
    pub(super) fn next(&mut self, failure: &Failure, view: &View, shard: ShardId) -> Next {
        if !self.choosing {
            return Next::AsEver;
        }
        match failure {
            Failure::Stale { reason } => {
                (self.behind, self.stale) = (true, Some(reason.clone()));
            }
            // Of another build, without room for one more, or not to be asked: another may answer.
            Failure::NotPrimary { .. }
            | Failure::Overloaded { .. }
            | Failure::Version { .. }
            | Failure::Unknown { .. }
            | Failure::Unavailable { outcome: Outcome::NotExecuted | Outcome::Unknown, .. } => {}
            _ => return Next::AsEver,
        }
        self.tried += 1;
        if !self.tried.is_multiple_of(view.standbys(shard).len() + 1) {
            Next::Other
        } else if std::mem::take(&mut self.behind) {
            Next::Again
        } else {
            Next::AsEver
        }
    }

    /// The failure that the call ends with. Who wanted a state of some freshness, and met no copy
    /// that answered, is told that: a query has no effect that could be unknown.
    pub(super) fn last(&self, failure: Failure, view: &View, shard: ShardId) -> Failure {
        let why = match &failure {
            Failure::NotPrimary { .. } => "no primary was found in time",
            Failure::Deadline { .. } => "none answered in time",
            Failure::Unavailable { reason, .. } => reason,
            _ => return failure,
        };
        match (self.freshness, &self.stale) {
            (Some(Freshness::AtLeast(_)), Some(reason)) => {
                Failure::Stale { reason: format!("{reason}; of other copies: {why}") }
            }
            (Some(Freshness::MaxStaleness(span)), _) if !view.standbys(shard).is_empty() => {
                let reason = format!(
                    "no copy that could be asked is known to be at most {span:?} old: {why}"
                );
                Failure::Stale { reason }
            }
            _ => failure,
        }
    }
}

impl Known {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A query was answered that was asked then: the primary says where the shard stands to those
    /// that want a state of some age.
    pub(super) fn learn(&self, request: &Request, asked_at: Instant, success: &Success) {
        let aged = matches!(request.freshness.as_deref(), Some(Freshness::MaxStaleness(_)));
        let here = success.token.shard == request.shard;
        if let Some(seq) = success.place.filter(|_| aged && here) {
            let place = Token { seq, ..success.token };
            self.places().handle_answer(place, asked_at, clock::now());
        }
    }
}
