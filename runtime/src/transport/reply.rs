//! The way back of one request, whoever asked: a remote caller, or one in this process.
//!
//! A [`ReplyHandle`] answers exactly once. Dropped without an answer it says that the outcome is
//! unknown, so that no caller waits for its deadline and no credit is lost. Replies to one
//! connection gather in its outbox; the first one since the connection slept wakes it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use mainstay_protocol::credits::{Credit, Credits, TakeError};
use mainstay_protocol::limits;
use mainstay_protocol::message::{Caller, Failure, Outcome, Reply, Request, Success, Tag, Window};
use mainstay_protocol::time::Instant;

use super::frame;
use super::intake::Permit;
use super::slots::LocalAt;

/// One request as it reaches its lane.
#[derive(Debug)]
pub struct Envelope {
    /// The request.
    pub request: Request,
    /// When its caller stops waiting, on this process's clock.
    pub deadline: Instant,
    /// What it counts for in windows and budgets.
    pub bytes: u32,
    /// Where it came from: a connection, or 0 for this process.
    pub source: u64,
    /// How many waiters of one entity this source may have.
    pub source_share: u32,
    /// The way back.
    pub reply: ReplyHandle,
}

/// The way back of one request.
#[derive(Debug)]
pub struct ReplyHandle {
    to: To,
    // room in this node, given back with the answer
    _permit: Option<Permit>,
}

#[derive(Debug)]
enum To {
    Wire { outbox: Arc<Outbox>, correlation: u64, credit: Credit },
    Local(LocalAt),
    Answered,
}

impl ReplyHandle {
    pub(super) fn wire(
        outbox: Arc<Outbox>,
        correlation: u64,
        credit: Credit,
        permit: Option<Permit>,
    ) -> Self {
        Self { to: To::Wire { outbox, correlation, credit }, _permit: permit }
    }

    pub(super) fn local(at: LocalAt, permit: Option<Permit>) -> Self {
        Self { to: To::Local(at), _permit: permit }
    }

    /// Answers. Goes nowhere, silently, when the caller is gone.
    pub fn send(mut self, result: Result<Success, Failure>) {
        self.answer(result);
    }

    fn answer(&mut self, result: Result<Success, Failure>) {
        match std::mem::replace(&mut self.to, To::Answered) {
            To::Wire { outbox, correlation, credit } => {
                outbox.reply(credit, Reply { correlation, result });
            }
            To::Local(at) => at.answer(result),
            To::Answered => {}
        }
    }

    /// Whether nobody waits for the answer any more: the caller gave up, or its connection is
    /// gone. A queued request whose caller is gone need not run.
    pub fn is_gone(&self) -> bool {
        match &self.to {
            To::Wire { outbox, correlation, .. } => outbox.is_gone(*correlation),
            To::Local(at) => at.is_gone(),
            To::Answered => true,
        }
    }
}

impl Drop for ReplyHandle {
    fn drop(&mut self) {
        if !matches!(self.to, To::Answered) {
            self.answer(Err(gone("the request was dropped without an answer")));
        }
    }
}

pub(super) fn gone(reason: &str) -> Failure {
    Failure::Unavailable { outcome: Outcome::Unknown, reason: reason.to_owned() }
}

/// What waits to be written to one accepted connection, and what is outstanding on it.
///
/// It outlives the connection as long as requests of it are queued: the window of the caller's
/// next connection excludes them.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) caller: Caller,
    pub(super) lane: u16,
    unread_bytes_max: usize,
    closed: AtomicBool,
    any_cancelled: AtomicBool,
    window: Window,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    frames: u64,
    waker: Option<Waker>,
    credits: Credits,
    cancelled: Vec<u64>,
    overrun: bool,
}

/// What the writer took from an outbox.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many frames.
    Frames(u64),
    /// Nothing; the writer will be woken.
    Nothing,
    /// The peer does not read: cut it.
    Overrun,
}

impl Outbox {
    pub(super) fn new(
        caller: Caller,
        lane: u16,
        window: Window,
        unread_bytes_max: usize,
    ) -> Arc<Self> {
        let state = State {
            bytes: Vec::new(),
            frames: 0,
            waker: None,
            credits: Credits::new(window),
            cancelled: Vec::new(),
            overrun: false,
        };
        Arc::new(Self {
            caller,
            lane,
            unread_bytes_max,
            closed: AtomicBool::new(false),
            any_cancelled: AtomicBool::new(false),
            window,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the caller was promised.
    pub(super) fn window(&self) -> Window {
        self.window
    }

    /// Counts a request in, unless it oversteps the window.
    pub(super) fn admit(&self, cost: u32) -> Result<Credit, TakeError> {
        self.lock().credits.try_take(limits::CALL_CHAIN_MAX, u64::from(cost))
    }

    fn reply(&self, credit: Credit, reply: Reply) {
        let mut state = self.lock();
        state.credits.give_back(credit);
        if !state.cancelled.is_empty() {
            state.cancelled.retain(|cancelled| *cancelled != reply.correlation);
        }
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let reply = within_limits(reply);
        frame::encode(Tag::Reply, &reply, &mut state.bytes)
            .expect("a reply within limits encodes within its frame");
        state.frames += 1;
        state.overrun |= state.bytes.len() > self.unread_bytes_max;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Notes that nobody waits for this request. Only a hint: when too many gather, they go.
    pub(super) fn cancel(&self, correlation: u64) {
        let mut state = self.lock();
        if state.cancelled.len() >= self.window.messages as usize {
            state.cancelled.clear();
        }
        state.cancelled.push(correlation);
        self.any_cancelled.store(true, Ordering::Relaxed);
    }

    fn is_gone(&self, correlation: u64) -> bool {
        self.closed.load(Ordering::Relaxed)
            || (self.any_cancelled.load(Ordering::Relaxed)
                && self.lock().cancelled.contains(&correlation))
    }

    /// Moves what waits into the writer's empty buffer; leaves the waker when nothing does.
    pub(super) fn take(&self, into: &mut Vec<u8>, waker: &Waker) -> Taken {
        debug_assert!(into.is_empty(), "the writer wrote everything");
        let mut state = self.lock();
        if state.overrun {
            return Taken::Overrun;
        }
        if state.bytes.is_empty() {
            state.waker = Some(waker.clone());
            return Taken::Nothing;
        }
        std::mem::swap(into, &mut state.bytes);
        Taken::Frames(std::mem::take(&mut state.frames))
    }

    /// Bytes that wait to be taken.
    pub(super) fn unread_bytes(&self) -> usize {
        self.lock().bytes.len()
    }

    /// Requests without a reply.
    pub(super) fn outstanding(&self) -> Window {
        self.lock().credits.taken()
    }

    /// The connection is gone: answers go nowhere from here on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        state.bytes = Vec::new();
        state.waker = None;
    }
}

/// The reply itself, or what can be said in its place when it does not fit a frame.
fn within_limits(reply: Reply) -> Reply {
    let bytes = match &reply.result {
        Ok(success) => success.value.len(),
        Err(Failure::App { error, .. }) => error.len(),
        Err(
            Failure::Unavailable { reason, .. }
            | Failure::Malformed { reason }
            | Failure::Version { reason }
            | Failure::Stale { reason },
        ) if reason.len() > 4096 => limits::PAYLOAD_BYTES_MAX + reason.len(),
        Err(_) => 0,
    };
    if bytes <= limits::PAYLOAD_BYTES_MAX {
        return reply;
    }
    let outcome = if reply.result.is_ok() { Outcome::Executed } else { Outcome::NotExecuted };
    let reason = format!("the reply has {bytes} bytes, the limit is {}", limits::PAYLOAD_BYTES_MAX);
    Reply { result: Err(Failure::Unavailable { outcome, reason }), ..reply }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mainstay_protocol::id::{Epoch, Seq, ShardId, Token};

    use super::super::intake::Intake;
    use super::*;

    const WINDOW: Window = Window { messages: 10, bytes: 1000 };

    fn outbox() -> Arc<Outbox> {
        Outbox::new(Caller::Client { name: "c".to_owned() }, 0, WINDOW, 1 << 20)
    }

    fn handle(outbox: &Arc<Outbox>, correlation: u64, intake: &Intake) -> ReplyHandle {
        let credit = outbox.admit(100).unwrap();
        let permit = intake.try_take(100, 0).unwrap();
        ReplyHandle::wire(Arc::clone(outbox), correlation, credit, Some(permit))
    }

    fn replies(outbox: &Outbox) -> Vec<Reply> {
        let mut bytes = Vec::new();
        outbox.take(&mut bytes, Waker::noop());
        let mut buffer = frame::FrameBuffer::default();
        buffer.extend(&bytes);
        std::iter::from_fn(|| {
            buffer.next_frame().unwrap().map(|(_, body)| frame::decode(body).unwrap())
        })
        .collect()
    }

    #[test]
    fn a_handle_answers_once_and_gives_everything_back() {
        let (outbox, intake) = (outbox(), Intake::new(10, 1000));
        let reply = handle(&outbox, 7, &intake);
        assert_eq!(outbox.outstanding(), Window { messages: 1, bytes: 100 });
        reply.send(Err(Failure::Reentrant));
        let expected = Reply { correlation: 7, result: Err(Failure::Reentrant) };
        assert_eq!(replies(&outbox), [expected]);
        assert_eq!(outbox.outstanding(), Window { messages: 0, bytes: 0 });
        assert_eq!(intake.held(), (0, 0));
    }

    #[test]
    fn a_dropped_handle_says_that_the_outcome_is_unknown() {
        let (outbox, intake) = (outbox(), Intake::new(10, 1000));
        drop(handle(&outbox, 7, &intake));
        let replies = replies(&outbox);
        assert!(matches!(
            replies[..],
            [Reply {
                correlation: 7,
                result: Err(Failure::Unavailable { outcome: Outcome::Unknown, .. })
            }]
        ));
    }

    #[test]
    fn an_answer_to_a_gone_connection_goes_nowhere_but_is_counted_back() {
        let (outbox, intake) = (outbox(), Intake::new(10, 1000));
        let reply = handle(&outbox, 7, &intake);
        outbox.close();
        assert!(reply.is_gone());
        reply.send(Err(Failure::Reentrant));
        assert_eq!(replies(&outbox), []);
        assert_eq!(outbox.outstanding(), Window { messages: 0, bytes: 0 });
        assert_eq!(intake.held(), (0, 0));
    }

    #[test]
    fn cancelled_requests_are_known_until_they_are_answered() {
        let (outbox, intake) = (outbox(), Intake::new(10, 1000));
        let (one, two) = (handle(&outbox, 1, &intake), handle(&outbox, 2, &intake));
        outbox.cancel(1);
        assert!(one.is_gone());
        assert!(!two.is_gone());
        one.send(Err(Failure::Reentrant));
        assert!(!outbox.is_gone(1), "the name may come back");
    }

    #[test]
    fn a_reply_over_the_limit_becomes_a_failure_that_says_it_was_executed() {
        let (outbox, intake) = (outbox(), Intake::new(10, 1000));
        let token = Token { shard: ShardId(0), epoch: Epoch(1), seq: Seq(1) };
        let value = Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX + 1]);
        handle(&outbox, 1, &intake).send(Ok(Success {
            value,
            token,
            replayed: false,
            place: None,
        }));
        assert!(matches!(
            replies(&outbox)[..],
            [Reply { result: Err(Failure::Unavailable { outcome: Outcome::Executed, .. }), .. }]
        ));
    }
}
