//! What a link knows between two events: its phase, its calls, what waits to be written.
//!
//! Nothing here awaits or wakes; who must be woken is returned, to be woken without the lock.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use mainstay_protocol::backoff::{self, Backoff};
use mainstay_protocol::credits::{Credit, Credits, TakeError};
use mainstay_protocol::message::{Cancel, Failure, Outcome, Reply, Request, Success, Tag};
use mainstay_protocol::time::Instant;

use super::super::frame;
use super::super::meters::LinkMeters;
use super::super::slots::{GRACE, Slab};
use super::{not_sent, overloaded};
use crate::clock;

#[derive(Debug)]
pub(in crate::transport) struct State {
    pub(in crate::transport) addr: String,
    pub(super) phase: Phase,
    pub(super) slots: Slab<Slot>,
    // slots that wait for credit or a connection; from turns first
    pub(super) nested: VecDeque<u64>,
    pub(super) plain: VecDeque<u64>,
    pub(super) out: Out,
    // of the driver, while it sleeps
    pub(super) driver: Option<Waker>,
    next_deadline: Option<Instant>,
    backoff: Backoff,
    pub(in crate::transport) ending: Option<&'static str>,
    pub(in crate::transport) meters: LinkMeters,
}

#[derive(Debug)]
pub(super) enum Phase {
    Idle,
    Connecting,
    Open(Credits),
    Backoff { until: Instant, reason: String },
}

/// What waits to be written, and where in the stream it ends.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) bytes: Vec<u8>,
    frames: u64,
    end: u64,
}

#[derive(Debug)]
pub(super) struct Slot {
    deadline: Instant,
    pub(super) waker: Option<Waker>,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// For a credit, or for the connection.
    Waiting { bytes: u64, depth: usize, refuse: bool, since: Instant },
    /// Has its credit; the caller encodes when it is polled.
    Granted(Credit),
    /// In the buffer or beyond; its frame ends there in the stream.
    Sent { credit: Credit, end: u64 },
    /// Given up after it was sent; the reply will bring the credit back.
    Abandoned(Credit),
    /// Given up, as above, and the caller is yet to be told.
    Expired(Credit),
    /// For the caller to take.
    Done(Result<Success, Failure>),
}

/// What a call needs before it can be sent.
#[derive(Debug)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) depth: usize,
    /// Refused rather than kept waiting for credit.
    pub(super) refuse: bool,
    pub(super) deadline: Instant,
}

/// A call that was let in.
#[derive(Debug)]
pub(super) struct Begun {
    /// Its slot.
    pub(super) at: u64,
    /// It has its credit, and is to be sent.
    pub(super) granted: bool,
    /// The driver is to be started.
    pub(super) start: bool,
    /// The driver is to be woken: the call's deadline is the first.
    pub(super) earlier: bool,
}

impl State {
    pub(super) fn new(addr: String, backoff: backoff::Config, meters: LinkMeters) -> Self {
        Self {
            addr,
            phase: Phase::Idle,
            slots: Slab::default(),
            nested: VecDeque::new(),
            plain: VecDeque::new(),
            out: Out::default(),
            driver: None,
            next_deadline: None,
            backoff: Backoff::new(backoff),
            ending: None,
            meters,
        }
    }

    /// Lets a call in, with its credit or to wait for one.
    pub(super) fn begin(
        &mut self,
        need: &Need,
        waiting_max: usize,
        now: Instant,
        waker: &Waker,
    ) -> Result<Begun, Failure> {
        let start = self.admit(now)?;
        let Need { bytes, depth, refuse, deadline } = *need;
        let stage = if let Some(credit) = self.take_credit(depth, bytes)? {
            Stage::Granted(credit)
        } else {
            let open = matches!(self.phase, Phase::Open(_));
            if (refuse && open) || self.nested.len() + self.plain.len() >= waiting_max {
                return Err(overloaded());
            }
            if open {
                self.meters.stalls.increment(1);
            }
            Stage::Waiting { bytes, depth, refuse, since: now }
        };
        let granted = matches!(stage, Stage::Granted(_));
        let at = self.slots.insert(Slot { deadline, waker: Some(waker.clone()), stage });
        if !granted {
            let queue = if depth > 0 { &mut self.nested } else { &mut self.plain };
            queue.push_back(at);
        }
        let earlier = self.next_deadline.is_none_or(|next| deadline < next);
        if earlier {
            self.next_deadline = Some(deadline);
        }
        Ok(Begun { at, granted, start, earlier })
    }

    /// Encodes the request of a slot that has its credit.
    pub(super) fn send(&mut self, at: u64, request: &Request) -> Result<(), Failure> {
        let encoded = self.out.push(Tag::Request, request);
        let end = self.out.end;
        let slot = self.slots.get_mut(at).expect("the slot of a call that is not answered");
        let Stage::Granted(credit) = slot.take() else { unreachable!("sent only with a credit") };
        if let Err(error) = encoded {
            self.slots.remove(at);
            self.give_back(credit);
            return Err(Failure::Malformed { reason: error.to_string() });
        }
        slot.stage = Stage::Sent { credit, end };
        Ok(())
    }

    /// Whether a call may begin; `true` when it has to start the driver.
    fn admit(&mut self, now: Instant) -> Result<bool, Failure> {
        match &self.phase {
            Phase::Connecting | Phase::Open(_) => Ok(false),
            Phase::Backoff { until, reason } if now < *until => Err(not_sent(reason)),
            Phase::Idle | Phase::Backoff { .. } => {
                self.phase = Phase::Connecting;
                self.ending = None;
                Ok(true)
            }
        }
    }

    /// A credit, `None` when the call has to wait for one.
    fn take_credit(&mut self, depth: usize, bytes: u64) -> Result<Option<Credit>, Failure> {
        let behind = !self.nested.is_empty() || (depth == 0 && !self.plain.is_empty());
        let Phase::Open(credits) = &mut self.phase else { return Ok(None) };
        if behind {
            return Ok(None);
        }
        match credits.try_take(depth, bytes) {
            Ok(credit) => Ok(Some(credit)),
            Err(error @ TakeError::TooLarge { .. }) => {
                Err(Failure::Malformed { reason: error.to_string() })
            }
            Err(TakeError::Messages { .. } | TakeError::Bytes { .. }) => Ok(None),
        }
    }

    fn give_back(&mut self, credit: Credit) {
        match &mut self.phase {
            Phase::Open(credits) => credits.give_back(credit),
            // the window ended with its connection
            Phase::Idle | Phase::Connecting | Phase::Backoff { .. } => drop(credit),
        }
    }

    /// The caller of this slot is gone.
    pub(super) fn give_up(&mut self, at: u64) -> Vec<Waker> {
        let Some(slot) = self.slots.get_mut(at) else { return Vec::new() };
        match &slot.stage {
            Stage::Sent { .. } => {
                slot.abandon();
                // a cancel always fits its frame; it is a hint, and only to this connection
                if self.out.push(Tag::Cancel, &Cancel { correlation: at }).is_ok() {
                    return self.driver.take().into_iter().collect();
                }
                Vec::new()
            }
            Stage::Expired(_) => {
                slot.abandon();
                Vec::new()
            }
            Stage::Waiting { .. } | Stage::Granted(_) | Stage::Done(_) => {
                let slot = self.slots.remove(at).expect("looked at above");
                match slot.stage {
                    Stage::Granted(credit) => {
                        self.give_back(credit);
                        self.grant(clock::now())
                    }
                    Stage::Waiting { .. } => {
                        self.nested.retain(|waiting| *waiting != at);
                        self.plain.retain(|waiting| *waiting != at);
                        // what waited behind a large one may fit
                        self.grant(clock::now())
                    }
                    _ => Vec::new(),
                }
            }
            Stage::Abandoned(_) => Vec::new(),
        }
    }

    /// Gives credits to those who wait longest, turns first.
    fn grant(&mut self, now: Instant) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let Phase::Open(credits) = &mut self.phase else { return wakers };
        for queue in [&mut self.nested, &mut self.plain] {
            while let Some(at) = queue.front() {
                let Some(slot) = self.slots.get_mut(*at) else {
                    queue.pop_front();
                    continue;
                };
                let Stage::Waiting { bytes, depth, since, .. } = slot.stage else {
                    queue.pop_front();
                    continue;
                };
                slot.stage = match credits.try_take(depth, bytes) {
                    Ok(credit) => Stage::Granted(credit),
                    Err(error @ TakeError::TooLarge { .. }) => {
                        Stage::Done(Err(Failure::Malformed { reason: error.to_string() }))
                    }
                    Err(TakeError::Messages { .. } | TakeError::Bytes { .. }) => return wakers,
                };
                self.meters.credit_wait.record(now.saturating_since(since).as_secs_f64());
                wakers.extend(slot.waker.take());
                queue.pop_front();
            }
        }
        wakers
    }

    /// The connection is open: whoever waits may send, whoever would not wait is refused.
    pub(in crate::transport) fn open(&mut self, credits: Credits, now: Instant) -> Vec<Waker> {
        self.phase = Phase::Open(credits);
        self.out = Out::default();
        let mut wakers = self.grant(now);
        for (_, slot) in self.slots.iter_mut() {
            if matches!(slot.stage, Stage::Waiting { refuse: true, .. }) {
                slot.stage = Stage::Done(Err(overloaded()));
                wakers.extend(slot.waker.take());
            }
        }
        self.tidy_queues();
        wakers
    }

    /// The connection is gone, or never came to be: every call on it is told what is known.
    /// `written` is how far the system took the stream.
    pub(in crate::transport) fn fail(
        &mut self,
        reason: &str,
        written: u64,
        now: Instant,
    ) -> Vec<Waker> {
        let delay = self.backoff.handle_failed(fastrand::u64(..));
        self.phase = Phase::Backoff { until: now + delay, reason: reason.to_owned() };
        self.driver = None;
        self.end_slots(reason, written)
    }

    fn end_slots(&mut self, reason: &str, written: u64) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut gone = Vec::new();
        for (at, slot) in self.slots.iter_mut() {
            let failure = match &slot.stage {
                Stage::Waiting { .. } | Stage::Granted(_) => not_sent(reason),
                Stage::Sent { end, .. } if *end > written => not_sent(reason),
                Stage::Sent { .. } => super::super::reply::gone(reason),
                Stage::Expired(_) => Failure::Deadline { outcome: Outcome::Unknown },
                Stage::Abandoned(_) => {
                    gone.push(at);
                    continue;
                }
                Stage::Done(_) => continue,
            };
            slot.stage = Stage::Done(Err(failure));
            wakers.extend(slot.waker.take());
        }
        for at in gone {
            self.slots.remove(at);
        }
        self.nested.clear();
        self.plain.clear();
        self.out = Out::default();
        self.meters.show(0, 0);
        wakers
    }

    /// Lets an unused connection go, unless a call came meanwhile.
    pub(in crate::transport) fn retire(&mut self) -> bool {
        let unused = self.slots.len() == 0 && self.out.bytes.is_empty();
        if unused {
            self.phase = Phase::Idle;
            self.driver = None;
            self.meters.show(0, 0);
        }
        unused
    }

    /// Replies came. An error names one that nobody asked for.
    pub(in crate::transport) fn settle(
        &mut self,
        replies: &mut Vec<Reply>,
        now: Instant,
    ) -> Result<Vec<Waker>, u64> {
        let mut wakers = Vec::with_capacity(replies.len());
        for Reply { correlation, result } in replies.drain(..) {
            let Some(slot) = self.slots.get_mut(correlation) else { return Err(correlation) };
            let credit = match slot.take() {
                Stage::Sent { credit, .. } => {
                    slot.stage = Stage::Done(result);
                    wakers.extend(slot.waker.take());
                    credit
                }
                Stage::Expired(credit) => {
                    slot.stage = Stage::Done(result);
                    credit
                }
                Stage::Abandoned(credit) => {
                    self.slots.remove(correlation);
                    credit
                }
                other @ (Stage::Waiting { .. } | Stage::Granted(_) | Stage::Done(_)) => {
                    slot.stage = other;
                    return Err(correlation);
                }
            };
            self.give_back(credit);
        }
        self.backoff.handle_succeeded();
        wakers.extend(self.grant(now));
        Ok(wakers)
    }

    /// Ends calls whose deadline has passed.
    pub(in crate::transport) fn expire(&mut self, now: Instant) -> Vec<Waker> {
        let mut wakers = Vec::new();
        if self.next_deadline.is_none_or(|next| now < next + GRACE) {
            return wakers;
        }
        let mut next: Option<Instant> = None;
        for (_, slot) in self.slots.iter_mut() {
            let waiting = matches!(slot.stage, Stage::Waiting { .. } | Stage::Granted(_));
            // a call that was not sent has no answer to hope for
            let grace = if waiting { Duration::ZERO } else { GRACE };
            let running = waiting || matches!(slot.stage, Stage::Sent { .. });
            if !running {
                continue;
            }
            if now < slot.deadline + grace {
                next = Some(next.map_or(slot.deadline, |next| next.min(slot.deadline)));
                continue;
            }
            slot.stage = match slot.take() {
                Stage::Sent { credit, .. } => Stage::Expired(credit),
                Stage::Granted(credit) => {
                    if let Phase::Open(credits) = &mut self.phase {
                        credits.give_back(credit);
                    }
                    Stage::Done(Err(Failure::Deadline { outcome: Outcome::NotExecuted }))
                }
                _ => Stage::Done(Err(Failure::Deadline { outcome: Outcome::NotExecuted })),
            };
            wakers.extend(slot.waker.take());
        }
        self.next_deadline = next;
        self.tidy_queues();
        wakers.extend(self.grant(now));
        wakers
    }

    fn tidy_queues(&mut self) {
        let slots = &mut self.slots;
        let mut waits = |at: &u64| {
            slots.get_mut(*at).is_some_and(|slot| matches!(slot.stage, Stage::Waiting { .. }))
        };
        self.nested.retain(&mut waits);
        self.plain.retain(&mut waits);
    }

    /// When [`Self::expire`] wants to be called.
    pub(in crate::transport) fn next_expiry(&self) -> Option<Instant> {
        self.next_deadline.map(|deadline| deadline + GRACE)
    }

    /// Moves what waits into the writer's empty buffer; how many frames.
    pub(in crate::transport) fn take_out(&mut self, into: &mut Vec<u8>) -> u64 {
        std::mem::swap(into, &mut self.out.bytes);
        std::mem::take(&mut self.out.frames)
    }

    /// The driver sleeps, unless it could write something. With `stuck` it could not: calls wake
    /// it all the same, for it looks after their deadlines.
    pub(in crate::transport) fn sleep(&mut self, waker: &Waker, stuck: bool) -> bool {
        let nothing = (stuck || self.out.bytes.is_empty()) && self.ending.is_none();
        if nothing {
            self.driver = Some(waker.clone());
        }
        nothing
    }

    pub(in crate::transport) fn show_meters(&mut self, writing: usize) {
        let credits = match &self.phase {
            Phase::Open(credits) => credits.available(0).messages,
            Phase::Idle | Phase::Connecting | Phase::Backoff { .. } => 0,
        };
        self.meters.show(credits, self.out.bytes.len() + writing);
    }

    /// Connections that failed since the last reply.
    pub(in crate::transport) fn failures(&self) -> u32 {
        self.backoff.failures()
    }
}

impl Slot {
    /// The stage, with something in its place until the next one is set.
    fn take(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Done(Err(Failure::Reentrant)))
    }

    pub(super) fn abandon(&mut self) {
        self.waker = None;
        self.stage = match self.take() {
            Stage::Sent { credit, .. } | Stage::Expired(credit) => Stage::Abandoned(credit),
            other => other,
        };
    }
}

impl Out {
    fn push<T: serde::Serialize>(&mut self, tag: Tag, body: &T) -> Result<(), frame::FrameError> {
        let before = self.bytes.len();
        frame::encode(tag, body, &mut self.bytes)?;
        self.end += (self.bytes.len() - before) as u64;
        self.frames += 1;
        Ok(())
    }
}
