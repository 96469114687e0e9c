//! Here or elsewhere? Carries a call to the lane that owns its entity, by the map it holds.
//!
//! ```text
//!   kind -> affinity of the key -> shard -> this version of the map -> own lane | link to a node
//!                                                ^                              |
//!                                                +--- NotPrimary: a newer map --+
//! ```
//!
//! The map may be stale; the owner checks and refuses, the router refreshes and tries again. Which
//! failures may be repeated is `verdict`'s to say, how often the retry budget's: a target that
//! is down sees at most a tenth more attempts than calls. Whatever comes back names what is known
//! about the effect; once one attempt's outcome is unknown, no later refusal makes it "not
//! executed".

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mainstay_protocol::backoff;
use mainstay_protocol::credits::entity_share;
use mainstay_protocol::id::{NodeId, RequestId};
use mainstay_protocol::message::{Failure, Mode, Outcome, Pressure, Request, Success, Window};
use mainstay_protocol::retry_budget::{self, RetryBudget};
use mainstay_protocol::shard_map::ShardMap;
use mainstay_protocol::time::Instant;
use tokio::sync::watch;

use crate::call::{Answer, Call, CallFuture, CallPort, Retry};
use crate::clock;
use crate::entity::host;
use crate::journey::{self, Verb};
use crate::transport::LocalCalls;
use crate::transport::frame;
use crate::transport::intake::{Full, Intake, Permit};
use crate::transport::links::Links;
use crate::transport::reply::Envelope;
use crate::transport::requests::overloaded;

mod copies;
pub mod kinds;
pub mod locality;
mod tries;
mod verdict;
mod view;

use copies::{Choice, Known, Next, Pick};
use kinds::{KindTable, Place, RetryReason};
use locality::{Locality, LocalityRow};
use tries::{Tries, checked, unavailable};
use verdict::{Verdict, verdict};
use view::{Target, View};

/// Attempts of one call, whatever the deadline.
const ATTEMPTS_MAX: u16 = 64;
/// Waits before asking again a node that says it is not the primary.
const REROUTE: backoff::Config =
    backoff::Config { base: Duration::from_millis(5), cap: Duration::from_millis(250) };
/// Waits before repeating a call that failed for other reasons.
const REPEAT: backoff::Config =
    backoff::Config { base: Duration::from_millis(20), cap: Duration::from_secs(1) };
/// How long a call whose owner cannot be reached waits for a map that names another one.
const OTHER_OWNER_WAIT: Duration = Duration::from_millis(250);

/// The lanes of this process.
pub trait LocalLanes: Send + Sync {
    /// Passes a request on. The lane answers through the envelope, which answers by itself when
    /// it is dropped.
    fn deliver(&self, lane: u16, envelope: Envelope);
}

impl<F: Fn(u16, Envelope) + Send + Sync> LocalLanes for F {
    fn deliver(&self, lane: u16, envelope: Envelope) {
        self(lane, envelope);
    }
}

/// The lanes of this process, for a router that has some.
#[derive(Clone)]
pub struct Local {
    /// This node.
    pub node: NodeId,
    /// How many lanes it has.
    pub count: u16,
    /// The lanes.
    pub lanes: Arc<dyn LocalLanes>,
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What a router is made of.
pub struct Parts {
    /// The kinds that may be called.
    pub kinds: KindTable,
    /// The map, whenever it changes.
    pub map: watch::Receiver<Arc<ShardMap>>,
    /// Asks for a map newer than this version; must not block. Without effect is allowed.
    pub refresh: Arc<dyn Fn(u64) + Send + Sync>,
    /// The own lanes; a client has none.
    pub local: Option<Local>,
    /// The way to other nodes.
    pub links: Links,
    /// The bound on all requests inside this process, shared with the listener.
    pub intake: Intake,
    /// The limits that calls are held to.
    pub limits: Limits,
    /// What calls may repeat.
    pub retry: retry_budget::Config,
    /// Where background work runs.
    pub runtime: tokio::runtime::Handle,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// The limits that a router holds calls to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest deadline.
    pub deadline_max: Duration,
    /// Requests of this process; an eighth of them may wait for one entity.
    pub requests: u32,
}

/// Carries calls. Clones share everything.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    kinds: KindTable,
    locality: Locality,
    view: watch::Receiver<Arc<View>>,
    refresh: Arc<dyn Fn(u64) + Send + Sync>,
    lanes: Option<Arc<dyn LocalLanes>>,
    local_calls: LocalCalls,
    local_share: u32,
    intake: Intake,
    deadline_max: Duration,
    known: Known,
    budget: Mutex<RetryBudget>,
    caller: u64,
    numbers: AtomicU64,
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

impl Router {
    /// A router; it follows the map as long as the map's sender lives.
    pub fn start(parts: Parts) -> Self {
        let lanes = parts.local.as_ref().map_or(0, |local| local.count);
        let local_calls = LocalCalls::start(lanes, &parts.runtime);
        let own = parts.local.as_ref().map(|local| local.node.clone());
        let view = view::follow(parts.map, own, parts.links, &parts.runtime);
        let window = Window { messages: parts.limits.requests, bytes: 0 };
        Self(Arc::new(Inner {
            locality: Locality::new(&parts.kinds),
            kinds: parts.kinds,
            view,
            refresh: parts.refresh,
            lanes: parts.local.map(|local| local.lanes),
            local_calls,
            local_share: entity_share(window),
            intake: parts.intake,
            deadline_max: parts.limits.deadline_max,
            known: Known::default(),
            budget: Mutex::new(RetryBudget::new(parts.retry)),
            caller: fastrand::u64(1..),
            numbers: AtomicU64::new(1),
        }))
    }

    /// The pairs of kinds that cost most remote bytes, at most `count`, most costly first.
    pub fn locality_top(&self, count: usize) -> Vec<LocalityRow> {
        self.0.locality.top(count)
    }

    /// The version of the map that calls go by, now.
    pub fn map_version(&self) -> u64 {
        self.0.view.borrow().version()
    }
}

impl CallPort for Router {
    fn call(&self, call: Call) -> CallFuture {
        Box::pin(Arc::clone(&self.0).carry(call))
    }
}

/// What one attempt came to.
struct Attempt {
    result: Result<Success, Failure>,
    place: Place,
    served_by: Option<NodeId>,
    // the map names no owner
    no_route: bool,
}

impl Attempt {
    fn of(result: Result<Success, Failure>, place: Place) -> Self {
        Self { result, place, served_by: None, no_route: false }
    }
}

impl Inner {
    async fn carry(self: Arc<Self>, call: Call) -> Result<Answer, Failure> {
        let begin = clock::now();
        let Some((kind, row)) = self.kinds.get(call.kind) else {
            return Err(Failure::Unknown { what: "kind".to_owned() });
        };
        let from = call.from_kind;
        let sent = call.payload.len() as u64;
        let carried = match checked(&call) {
            Ok(()) => self.attempts(call, row.affinity(), row, begin).await,
            Err(failure) => (Err(failure), Place::None),
        };
        let (result, place) = carried;
        let received = result.as_ref().map_or(0, |answer| answer.success.value.len() as u64);
        row.meters().count(place, &result, clock::now().saturating_since(begin));
        let from = from.and_then(|from| self.kinds.get(from)).map(|(at, _)| at);
        self.locality.count(from, kind, place, sent + received);
        result
    }

    /// Attempts until one succeeds or none may follow.
    async fn attempts(
        &self,
        call: Call,
        affinity: &kinds::Affinity,
        row: &kinds::Row,
        begin: Instant,
    ) -> (Result<Answer, Failure>, Place) {
        let deadline = begin + call.deadline.min(self.deadline_max);
        let safe = call.mode == Mode::Query || call.idempotency.is_some();
        let retry = call.retry;
        if retry == Retry::Safe {
            self.budget().handle_call();
        }
        let mut choice = Choice::new(&call, begin, deadline);
        let mut request = self.request(call);
        let mut tries = Tries::new(deadline);
        loop {
            let view = Arc::clone(&self.view.borrow());
            let attempt = self.attempt(&view, affinity, &mut request, &mut choice).await;
            let failure = match attempt.result {
                Ok(success) => {
                    let served_by = attempt.served_by;
                    return (Ok(Answer { success, served_by }), attempt.place);
                }
                Err(failure) => failure,
            };
            tries.note(&failure);
            let verdict = match (choice.next(&failure, &view, request.shard), attempt.place) {
                (Next::Other, _) => Verdict::Other,
                (Next::Again, _) => Verdict::Reroute { known: 0 },
                (Next::AsEver, Place::None) if attempt.no_route => {
                    Verdict::OtherOwner { patient: retry == Retry::Safe }
                }
                (Next::AsEver, _) => verdict(&failure, retry, safe),
            };
            if matches!(failure, Failure::NotPrimary { .. }) {
                row.meters().forwarded();
            }
            let again = request.attempt < ATTEMPTS_MAX
                && self.wait_for_next(verdict, &view, &request, deadline).await;
            if !again {
                let failure = choice.last(tries.last(failure), &view, request.shard);
                return (Err(failure), attempt.place);
            }
            row.meters().retried(RetryReason::of(&failure));
            request.attempt += 1;
        }
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, RetryBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, call: Call) -> Request {
        let number = || self.numbers.fetch_add(1, Ordering::Relaxed);
        Request {
            correlation: 0,
            id: call.id.unwrap_or_else(|| RequestId { caller: self.caller, number: number() }),
            shard: mainstay_protocol::id::ShardId(0),
            epoch: mainstay_protocol::id::Epoch(0),
            kind: call.kind,
            key: call.key,
            method: call.method,
            mode: call.mode,
            pressure: call.pressure,
            remaining_us: 0,
            idempotency: call.idempotency,
            chain: call.chain,
            attempt: 0,
            trace: call.trace,
            from_kind: call.from_kind,
            payload: call.payload,
            if_version: call.if_version,
            freshness: None,
        }
    }

    async fn attempt(
        &self,
        view: &View,
        affinity: &kinds::Affinity,
        request: &mut Request,
        choice: &mut Choice,
    ) -> Attempt {
        let nowhere = |failure| Attempt::of(Err(failure), Place::None);
        let route = journey::span(Verb::Route, request.trace.as_ref(), Some(&request.key));
        let routed =
            route.in_scope(|| host::affinity(affinity, &request.key).map(|key| view.route(key)));
        let (shard, primary) = match routed {
            Ok(routed) => routed,
            Err(error) => return nowhere(error.into()),
        };
        request.shard = shard;
        let Pick { target, freshness } = choice.pick(view, &self.known, (shard, primary));
        request.freshness = freshness.map(Box::new);
        let bytes = frame::cost(request);
        let permit = match self.room(bytes, request, choice.deadline).await {
            Ok(permit) => permit,
            Err(failure) => return nowhere(failure),
        };
        match target {
            Target::Local { lane, epoch } => {
                request.epoch = *epoch;
                self.attempt_here(*lane, request, (bytes, permit), choice.deadline).await
            }
            Target::Remote { link, epoch } => {
                request.epoch = *epoch;
                let trace = request.trace;
                let forward = journey::span(Verb::Forward, trace.as_ref(), Some(&request.key));
                let asked_at = clock::now();
                let called = forward.in_scope(|| link.call(request.clone(), choice.deadline));
                let result = called.await;
                drop(permit);
                if let Ok(success) = &result {
                    self.known.learn(request, asked_at, success);
                }
                let served_by = result.is_ok().then(|| link.peer().clone());
                Attempt { served_by, ..Attempt::of(result, Place::Remote) }
            }
            Target::None { reason } => Attempt { no_route: true, ..nowhere(unavailable(reason)) },
        }
    }

    /// An attempt at a lane of this process.
    async fn attempt_here(
        &self,
        lane: u16,
        request: &Request,
        (bytes, permit): (u32, Permit),
        deadline: Instant,
    ) -> Attempt {
        let Some(lanes) = &self.lanes else {
            let failure = unavailable("this process hosts no entities");
            return Attempt::of(Err(failure), Place::None);
        };
        let (reply, answer) = self.local_calls.open(lane, deadline, Some(permit));
        let remaining = deadline.saturating_since(clock::now());
        let mut request = request.clone();
        request.remaining_us = u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX);
        let (source, source_share) = (0, self.local_share);
        lanes.deliver(lane, Envelope { request, deadline, bytes, source, source_share, reply });
        Attempt::of(answer.await, Place::Local)
    }

    /// Room in this process for one request.
    async fn room(
        &self,
        bytes: u32,
        request: &Request,
        deadline: Instant,
    ) -> Result<Permit, Failure> {
        let depth = request.chain.len();
        match self.intake.try_take(bytes, depth) {
            Ok(permit) => Ok(permit),
            Err(Full) if request.pressure == Pressure::Refuse => Err(overloaded()),
            Err(Full) => self
                .intake
                .take(bytes, depth, deadline)
                .await
                .map_err(|Full| Failure::Deadline { outcome: Outcome::NotExecuted }),
        }
    }

    /// Waits until another attempt makes sense; `false` when none does.
    async fn wait_for_next(
        &self,
        verdict: Verdict,
        view: &View,
        request: &Request,
        deadline: Instant,
    ) -> bool {
        let now = clock::now();
        let left = deadline.saturating_since(now);
        let random = fastrand::u64(..);
        match verdict {
            Verdict::Final => false,
            Verdict::Other => now < deadline,
            Verdict::Reroute { known } => {
                (self.refresh)(view.version());
                // the refuser's newer map is worth the whole wait; else it may be the one to learn
                let delay = if known > view.version() {
                    REROUTE.cap
                } else {
                    REROUTE.delay(u32::from(request.attempt), random)
                };
                self.newer_map(view, delay.min(left)).await;
                clock::now() < deadline
            }
            Verdict::OtherOwner { patient } => {
                (self.refresh)(view.version());
                let wait = if patient { left } else { OTHER_OWNER_WAIT.min(left / 2) };
                self.other_target(view, request, now + wait).await
            }
            Verdict::Repeat { after, or_other_owner } => {
                (self.refresh)(view.version());
                let delay = after + REPEAT.delay(u32::from(request.attempt), random);
                if delay < left && self.budget().try_retry() {
                    // Another owner is not who wanted to be left alone.
                    self.other_target(view, request, now + delay).await;
                    return true;
                }
                or_other_owner && self.other_target(view, request, deadline).await
            }
        }
    }

    /// Until the map is newer, at most this long.
    async fn newer_map(&self, view: &View, at_most: Duration) {
        let mut views = self.view.clone();
        let newer = views.wait_for(|now| now.version() > view.version());
        // neither is an error: the next attempt finds out
        drop(tokio::time::timeout(at_most, newer).await);
    }

    /// Until the map names another owner for the request; `false` when none came in time.
    async fn other_target(&self, view: &View, request: &Request, until: Instant) -> bool {
        let mut views = self.view.clone();
        let other = views.wait_for(|now| !now.same_target(view, request.shard));
        matches!(tokio::time::timeout_at(clock::to_tokio(until), other).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
pub(crate) mod tests;
