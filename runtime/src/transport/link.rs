//! One request connection to one lane of one peer, seen by its callers.
//!
//! ```text
//!            call                 connected                 failed, closed
//!   Idle ------------> Connecting ----------> Open ------------------------> Backoff
//!    ^                     |  failed            | unused for long               |
//!    |                     +--------------------|----> Backoff --call, later--> Connecting
//!    +------------------------------------------+
//! ```
//!
//! A call takes its credit before it is encoded, straight into the connection's shared buffer, and
//! then awaits its slot; the driver ([`super::links`]) is woken only when it sleeps. When the
//! connection dies, a call whose frame was not wholly handed to the system certainly did not run;
//! the outcome of every other one is unknown.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{Failure, Outcome, Pressure, Request, Success};
use mainstay_protocol::time::Instant;

use super::frame;
use super::links::Driving;
use super::meters::LinkMeters;
use crate::clock;

mod state;
#[cfg(test)]
mod tests;
use state::{Need, Phase, Stage, State};

/// The milliseconds that a caller without credit is told to wait.
const RETRY_AFTER_MS: u64 = 20;

/// A connection to one lane of one peer, opened on demand. Clones share it.
#[derive(Debug, Clone)]
pub struct Link(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) peer: NodeId,
    pub(super) lane: u16,
    pub(super) driving: Arc<Driving>,
    state: Mutex<State>,
}

impl Link {
    pub(super) fn new(peer: NodeId, addr: String, lane: u16, driving: Arc<Driving>) -> Self {
        let meters = LinkMeters::new(peer.as_str());
        let state = State::new(addr, driving.backoff(), meters);
        Self(Arc::new(Shared { peer, lane, driving, state: Mutex::new(state) }))
    }

    /// The node at the other end.
    pub fn peer(&self) -> &NodeId {
        &self.0.peer
    }

    /// Carries one request; `request.correlation` and `remaining_us` are filled in. Dropping the
    /// future tells the owner that nobody waits.
    ///
    /// A failure of the connection is [`Failure::Unavailable`] with what is known.
    pub fn call(&self, request: Request, deadline: Instant) -> LinkCall {
        LinkCall { link: self.clone(), request, deadline, at: At::Start }
    }

    /// Bytes that wait to be written, and calls without an answer. For tests and status pages.
    pub fn queued(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.out.bytes.len(), state.slots.len())
    }

    /// Where the peer is reached from the next connection on.
    pub(super) fn set_addr(&self, addr: &str) {
        let mut state = self.0.lock();
        if state.addr != addr {
            addr.clone_into(&mut state.addr);
            // waiting out a backoff for the old address would be wrong
            if matches!(state.phase, Phase::Backoff { .. }) {
                state.phase = Phase::Idle;
            }
        }
    }

    /// Ends the connection; later calls open another one.
    pub(super) fn end(&self, reason: &'static str) {
        let mut state = self.0.lock();
        if matches!(state.phase, Phase::Connecting | Phase::Open(_)) {
            state.ending = Some(reason);
            let driver = state.driver.take();
            drop(state);
            wake_all(driver);
        }
    }
}

/// One call on a link.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct LinkCall {
    link: Link,
    request: Request,
    deadline: Instant,
    at: At,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Start,
    Slot(u64),
    End,
}

impl Future for LinkCall {
    type Output = Result<Success, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let polled = match this.at {
            At::Start => this.begin(cx),
            At::Slot(at) => this.look(at, cx),
            At::End => Poll::Ready(Err(unreachable_now("the call was answered before"))),
        };
        if polled.is_ready() {
            this.at = At::End;
        }
        polled
    }
}

impl LinkCall {
    fn begin(&mut self, cx: &mut Context<'_>) -> Poll<Result<Success, Failure>> {
        let now = clock::now();
        if now >= self.deadline {
            return Poll::Ready(Err(Failure::Deadline { outcome: Outcome::NotExecuted }));
        }
        let need = Need {
            bytes: u64::from(frame::cost(&self.request)),
            depth: self.request.chain.len(),
            refuse: self.request.pressure == Pressure::Refuse,
            deadline: self.deadline,
        };
        let shared = Arc::clone(&self.link.0);
        let waiting_max = shared.driving.config().waiting_max;
        let mut state = shared.lock();
        let begun = match state.begin(&need, waiting_max, now, cx.waker()) {
            Ok(begun) => begun,
            Err(failure) => return Poll::Ready(Err(failure)),
        };
        self.at = At::Slot(begun.at);
        let sent = if begun.granted { self.send(&mut state, begun.at, now) } else { Ok(()) };
        let driver = if begun.granted || begun.earlier { state.driver.take() } else { None };
        drop(state);
        if begun.start {
            shared.driving.start(&shared);
        }
        wake_all(driver);
        sent.map_or_else(|failure| Poll::Ready(Err(failure)), |()| Poll::Pending)
    }

    fn send(&mut self, state: &mut State, at: u64, now: Instant) -> Result<(), Failure> {
        let remaining = self.deadline.saturating_since(now);
        self.request.correlation = at;
        self.request.remaining_us = u64::try_from(remaining.as_micros()).unwrap_or(u64::MAX);
        state.send(at, &self.request)
    }

    fn look(&mut self, at: u64, cx: &mut Context<'_>) -> Poll<Result<Success, Failure>> {
        let shared = Arc::clone(&self.link.0);
        let mut state = shared.lock();
        let Some(slot) = state.slots.get_mut(at) else {
            return Poll::Ready(Err(unreachable_now("the call was lost")));
        };
        match &slot.stage {
            Stage::Done(_) => {
                let slot = state.slots.remove(at).expect("looked at above");
                let Stage::Done(result) = slot.stage else { unreachable!("looked at above") };
                Poll::Ready(result)
            }
            Stage::Expired(_) => {
                slot.abandon();
                Poll::Ready(Err(Failure::Deadline { outcome: Outcome::Unknown }))
            }
            Stage::Granted(_) => {
                slot.waker = Some(cx.waker().clone());
                let sent = self.send(&mut state, at, clock::now());
                let driver = state.driver.take();
                drop(state);
                wake_all(driver);
                sent.map_or_else(|failure| Poll::Ready(Err(failure)), |()| Poll::Pending)
            }
            Stage::Waiting { .. } | Stage::Sent { .. } | Stage::Abandoned(_) => {
                match &mut slot.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => slot.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for LinkCall {
    fn drop(&mut self) {
        let At::Slot(at) = self.at else { return };
        let mut state = self.link.0.lock();
        let wakers = state.give_up(at);
        drop(state);
        wake_all(wakers);
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

pub(super) fn not_sent(reason: &str) -> Failure {
    Failure::Unavailable { outcome: Outcome::NotExecuted, reason: reason.to_owned() }
}

fn unreachable_now(reason: &str) -> Failure {
    super::reply::gone(reason)
}

pub(super) fn overloaded() -> Failure {
    Failure::Overloaded { retry_after_ms: RETRY_AFTER_MS, bound: "window".to_owned() }
}
