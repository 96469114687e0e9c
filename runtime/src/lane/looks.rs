//! Queries at shards that another node is the primary of: shown to whoever wants no more than the
//! standby here has. Their code runs on the lane, like all of the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::id::{EntityId, Token};
use mainstay_protocol::message::{Failure, Outcome, Success};
use mainstay_protocol::replication::freshness::Freshness;
use metrics::counter;

use super::core::Core;
use super::kinds::TurnOutcome;
use crate::clock;
use crate::entity::host::{TurnContext, TurnResult};
use crate::journey::{self, Verb};
use crate::shard::activation::Activation;
use crate::shard::admission;
use crate::shard::looks::{Look, PATIENCE, Seen, Shown, ShownState};
use crate::transport::reply::Envelope;

/// Looks that are run before others have their turn, and the time after which they are not.
const SHOWN_PER_PASS: usize = 64;
const SHOWN_TIME: Duration = Duration::from_millis(1);
/// What a query is told to wait when too many are shown.
const RETRY_AFTER_MS: u64 = 20;

impl Core {
    /// A request for a shard that is not served here. A query that a standby may answer is shown
    /// what it has, if there is one.
    pub(super) fn handle_unserved(&mut self, envelope: Envelope) {
        let shard = envelope.request.shard;
        let at_least = match envelope.request.freshness.as_deref() {
            Some(Freshness::AtLeast(token)) if self.map.standbys > 0 => Some(*token),
            _ => None,
        };
        let Some(token) = at_least else {
            let failure = self.env.not_primary(self.primary_of(shard));
            return envelope.reply.send(Err(failure));
        };
        let target = match admission::check(&mut self.env, &envelope.request) {
            Ok(target) => target,
            Err(failure) => return envelope.reply.send(Err(failure)),
        };
        let request = &envelope.request;
        let entity = EntityId { kind: request.kind, key: request.key.clone() };
        let until = envelope.deadline.min(clock::now() + PATIENCE);
        let look = Look { shard, entity, token, until, target, envelope };
        if let Err(look) = (self.env.look)(look) {
            self.seen.push_back(Seen { look: *look, shown: Shown::Elsewhere });
        }
    }

    /// Runs some of the queries to which something is shown; `true` when there are more.
    pub(super) fn show_some(&mut self) -> bool {
        if self.seen.is_empty() {
            return false;
        }
        let end = clock::now() + SHOWN_TIME;
        for _ in 0..SHOWN_PER_PASS {
            let Some(Seen { look, shown }) = self.seen.pop_front() else { break };
            let result = self.shown(&look, shown);
            look.envelope.reply.send(result);
            if clock::now() >= end {
                break;
            }
        }
        !self.seen.is_empty()
    }

    fn shown(&mut self, look: &Look, shown: Shown) -> Result<Success, Failure> {
        let refused = |reason| {
            counter!("mainstay_standby_refusals_total", "reason" => reason).increment(1);
        };
        match shown {
            Shown::State(state) => self.show(look, &state),
            Shown::Behind { have } => {
                refused("behind");
                let have =
                    have.map_or_else(|| "is not whole".to_owned(), |it| format!("is at {it}"));
                let reason = format!("the query wants {}, the standby {have}", look.token);
                Err(Failure::Stale { reason })
            }
            Shown::Elsewhere => {
                refused("elsewhere");
                Err(self.env.not_primary(self.primary_of(look.shard)))
            }
            Shown::Full => {
                refused("full");
                let bound = "memory".to_owned();
                Err(Failure::Overloaded { retry_after_ms: RETRY_AFTER_MS, bound })
            }
            Shown::Unreadable { reason } => {
                refused("unreadable");
                Err(Failure::Unavailable { outcome: Outcome::NotExecuted, reason })
            }
        }
    }

    /// Runs a query on a state that is its own, and gone when it ends.
    fn show(&mut self, look: &Look, state: &ShownState) -> Result<Success, Failure> {
        let (place, wanted) = (state.place, look.token);
        debug_assert!(place.seq >= wanted.seq && place.epoch >= wanted.epoch, "fresh enough");
        let began = clock::now();
        let Envelope { request, deadline, reply, .. } = &look.envelope;
        if *deadline <= began || reply.is_gone() {
            return Err(Failure::Deadline { outcome: Outcome::NotExecuted });
        }
        let kind = self.env.kinds.at(look.target.kind);
        let host = Arc::clone(&kind.host);
        let activation = Activation::new(&*host, &request.key, state.bytes.clone())
            .map_err(|error| Failure::Version { reason: error.to_string() })?;
        let trace = request.trace.filter(|trace| trace.sampled);
        let context = TurnContext {
            entity: look.entity.clone(),
            request: request.id,
            now: state.log_time,
            remaining: deadline.saturating_since(began),
            trace,
            port: Arc::clone(&self.env.no_port),
        };
        let method = look.target.method;
        let span = journey::span(Verb::Handle, trace.as_ref(), Some(&request.key)).entered();
        let result = catch_unwind(AssertUnwindSafe(|| {
            host.run_query(method, activation.state(), &context, &request.payload)
        }));
        drop(span);
        let (outcome, result) = judge(result.ok(), state.token());
        let took = clock::now().saturating_since(began);
        kind.standby_queries.add(1);
        kind.turn_ended(method, outcome, took);
        if took > self.env.slow_turn {
            kind.slow.add(1);
        }
        if outcome == TurnOutcome::Panic {
            kind.panics.add(1);
            let (kind, method) = (host.info().name, kind.info(method).name);
            tracing::error!(kind, method, "a query panicked at a standby");
        }
        result
    }
}

/// What a query's end is for its caller; `None` when it panicked.
fn judge(result: Option<TurnResult>, token: Token) -> (TurnOutcome, Result<Success, Failure>) {
    let replayed = false;
    match result {
        Some(TurnResult::Value(value)) => {
            (TurnOutcome::Ok, Ok(Success { value, token, replayed, place: None }))
        }
        Some(TurnResult::Refused(error)) => {
            (TurnOutcome::AppError, Err(Failure::App { error, token, replayed }))
        }
        Some(TurnResult::Malformed(reason)) => {
            (TurnOutcome::Cancelled, Err(Failure::Malformed { reason }))
        }
        None => (TurnOutcome::Panic, Err(Failure::Panicked { quarantined: false })),
    }
}
