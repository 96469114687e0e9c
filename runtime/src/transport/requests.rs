//! The owner's end of a request connection: a future for the thread of the lane that it calls.
//!
//! ```text
//!   poll:  write what waits  ->  read a chunk  ->  decode it all  ->  on_batch(requests, cancels)
//!             ^                                                           |
//!             +--- one buffer, one write per poll <--- ReplyHandle::send -+ (now or later)
//! ```
//!
//! The window that the welcome promised is enforced: a peer that oversteps it is cut. A peer that
//! does not read its replies is not read from, and cut when that lasts; so is one that begins a
//! frame and does not end it.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_protocol::credits::{TakeError, entity_share};
use mainstay_protocol::message::{Caller, Cancel, Failure, Request, Tag};
use mainstay_protocol::time::Instant;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::Config;
use super::frame::{self, FrameBuffer, FrameError};
use super::intake::Intake;
use super::listener::Place;
use super::meters::{self, Class, ConnectionMeters, Direction};
use super::reply::{Envelope, Outbox, ReplyHandle, Taken};
use super::stream::Writing;
use crate::clock;

/// Chunks that one poll reads before the lane's other work gets its turn.
const CHUNKS_PER_POLL: u32 = 8;

/// What a caller sent.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are requests; a box would cost each one")]
pub enum Inbound {
    /// A request, inside its window.
    Request(Envelope),
    /// Nobody waits for this request of this source any more. Its envelope's reply says so too:
    /// [`ReplyHandle::is_gone`].
    Cancel {
        /// The envelope's source.
        source: u64,
        /// The request's correlation.
        correlation: u64,
    },
}

/// An accepted request connection, to be served on the thread of its lane.
#[derive(Debug)]
pub struct Accepted {
    pub(super) socket: std::net::TcpStream,
    pub(super) outbox: Arc<Outbox>,
    pub(super) source: u64,
    pub(super) intake: Intake,
    pub(super) config: Arc<Config>,
    // the place among the connections that this node takes
    pub(super) place: Place,
}

/// Why a request connection ended. Requests of it that are queued may still run; their answers go
/// nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The caller closed it.
    #[error("the caller closed the connection")]
    ByCaller,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    /// The caller sent what no caller sends.
    #[error("the caller broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// The caller sent more than its window.
    #[error("the caller overstepped its window: {0}")]
    Window(#[from] TakeError),
    /// The caller does not read its replies.
    #[error("the caller does not read: {bytes} bytes of replies wait")]
    SlowReader {
        /// Bytes that wait.
        bytes: usize,
    },
    /// The caller began a frame and did not end it.
    #[error("the caller did not end a frame in time")]
    SlowWriter,
    /// Nothing was asked for long.
    #[error("the connection was idle")]
    Idle,
}

impl Closed {
    fn word(&self) -> &'static str {
        match self {
            Self::ByCaller => "closed",
            Self::Io(_) => "io",
            Self::Frame(_) => "protocol",
            Self::Window(_) => "window",
            Self::SlowReader { .. } => "slow_reader",
            Self::SlowWriter => "slow_writer",
            Self::Idle => "idle",
        }
    }
}

impl Accepted {
    /// Names the connection in its envelopes. Greater than 0.
    pub fn source(&self) -> u64 {
        self.source
    }

    /// The lane that the caller means.
    pub fn lane(&self) -> u16 {
        self.outbox.lane
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.outbox.caller
    }
}

/// Serves one connection until it ends. Polls on the current thread's runtime; `on_batch` drains
/// what arrived with one read, and must leave the vector empty.
///
/// # Panics
/// Outside a tokio runtime with sockets.
pub async fn serve<F>(accepted: Accepted, on_batch: F) -> Closed
where
    F: FnMut(&mut Vec<Inbound>),
{
    let stream = match TcpStream::from_std(accepted.socket) {
        Ok(stream) => stream,
        Err(error) => return Closed::Io(error),
    };
    let tick = accepted.config.tick();
    let mut serving = Serving {
        stream,
        outbox: OutboxGuard(accepted.outbox),
        source: accepted.source,
        intake: accepted.intake,
        config: accepted.config,
        reading: FrameBuffer::default(),
        writing: Writing::default(),
        batch: Vec::new(),
        partial_since: None,
        busy_at: clock::now(),
        on_batch,
        meters: ConnectionMeters::new(Class::Call, Class::Reply),
    };
    let mut timer = Box::pin(tokio::time::sleep(tick));
    let closed = poll_fn(|cx| serving.poll(&mut timer, tick, cx)).await;
    meters::cut(closed.word());
    drop(accepted.place);
    closed
}

/// Closes the outbox however the future ends.
struct OutboxGuard(Arc<Outbox>);

impl Drop for OutboxGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

struct Serving<F> {
    stream: TcpStream,
    outbox: OutboxGuard,
    source: u64,
    intake: Intake,
    config: Arc<Config>,
    reading: FrameBuffer,
    writing: Writing,
    batch: Vec<Inbound>,
    partial_since: Option<Instant>,
    busy_at: Instant,
    on_batch: F,
    meters: ConnectionMeters,
}

impl<F: FnMut(&mut Vec<Inbound>)> Serving<F> {
    fn poll(
        &mut self,
        timer: &mut Pin<Box<Sleep>>,
        tick: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<Closed> {
        match self.poll_work(cx) {
            Ok(()) => {}
            Err(closed) => return Poll::Ready(closed),
        }
        while timer.as_mut().poll(cx).is_ready() {
            if let Some(closed) = self.overdue(clock::now()) {
                return Poll::Ready(closed);
            }
            timer.as_mut().reset(clock::to_tokio(clock::now() + tick));
        }
        Poll::Pending
    }

    /// Writes and reads until neither moves, or the lane should do something else.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Result<(), Closed> {
        for _ in 0..CHUNKS_PER_POLL {
            let written = self.poll_write(cx)?;
            if !written && self.unread_bytes() >= self.config.unread_bytes_soft {
                // we do not read, so an unfinished frame is not the peer's fault
                self.partial_since = self.partial_since.map(|_| clock::now());
                return Ok(());
            }
            match self.reading.poll_fill(&mut self.stream, cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(Closed::ByCaller),
                Poll::Ready(Ok(bytes)) => self.take_chunk(bytes)?,
                Poll::Ready(Err(error)) => return Err(Closed::Io(error)),
            }
        }
        self.poll_write(cx)?;
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// `true` when everything is written and the outbox will wake this task.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, Closed> {
        loop {
            if let Some(buffer) = self.writing.refill() {
                match self.outbox.0.take(buffer, cx.waker()) {
                    Taken::Nothing => return Ok(true),
                    Taken::Overrun => return Err(self.slow_reader()),
                    Taken::Frames(frames) => {
                        self.meters.count(Direction::Sent, frames, buffer.len());
                    }
                }
            }
            match self.writing.poll_write(&mut self.stream, cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Closed::Io(error)),
            }
        }
    }

    fn take_chunk(&mut self, bytes: usize) -> Result<(), Closed> {
        let now = clock::now();
        self.busy_at = now;
        let mut frames = 0;
        let decoded = self.decode_chunk(now, &mut frames);
        self.meters.count(Direction::Received, frames, bytes);
        if !self.batch.is_empty() {
            (self.on_batch)(&mut self.batch);
            debug_assert!(self.batch.is_empty(), "the lane takes the whole batch");
            self.batch.clear();
        }
        self.partial_since = match (self.reading.partial(), frames) {
            (false, _) => None,
            (true, 0) => self.partial_since.or(Some(now)),
            (true, _) => Some(now),
        };
        decoded
    }

    fn decode_chunk(&mut self, now: Instant, frames: &mut u64) -> Result<(), Closed> {
        while let Some((tag, body)) = self.reading.next_frame()? {
            *frames += 1;
            match tag {
                Tag::Request => {
                    let request = frame::decode_request(body)?;
                    let envelope = self.admit(request, now)?;
                    self.batch.extend(envelope.map(Inbound::Request));
                }
                Tag::Cancel => {
                    let Cancel { correlation } = frame::decode(body)?;
                    self.outbox.0.cancel(correlation);
                    self.batch.push(Inbound::Cancel { source: self.source, correlation });
                }
                other => return Err(FrameError::Tag { tag: other as u8 }.into()),
            }
        }
        Ok(())
    }

    /// The request on its way to the lane; `None` when it was answered for want of room.
    fn admit(&mut self, request: Request, now: Instant) -> Result<Option<Envelope>, Closed> {
        let cost = frame::cost(&request);
        let credit = self.outbox.0.admit(cost)?;
        let permit = self.intake.try_take(cost, request.chain.len()).ok();
        let room = permit.is_some();
        let outbox = Arc::clone(&self.outbox.0);
        let reply = ReplyHandle::wire(outbox, request.correlation, credit, permit);
        if !room {
            reply.send(Err(overloaded()));
            return Ok(None);
        }
        let remaining = Duration::from_micros(request.remaining_us);
        Ok(Some(Envelope {
            deadline: now + remaining.min(self.config.deadline_max),
            request,
            bytes: cost,
            source: self.source,
            source_share: entity_share(self.outbox.0.window()),
            reply,
        }))
    }

    fn unread_bytes(&self) -> usize {
        self.writing.pending() + self.outbox.0.unread_bytes()
    }

    fn slow_reader(&self) -> Closed {
        Closed::SlowReader { bytes: self.unread_bytes() }
    }

    fn overdue(&self, now: Instant) -> Option<Closed> {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_since(at));
        if since(self.writing.stuck_since()) >= self.config.write_timeout {
            return Some(self.slow_reader());
        }
        if since(self.partial_since) >= self.config.frame_timeout {
            return Some(Closed::SlowWriter);
        }
        let idle = now.saturating_since(self.busy_at) >= self.config.idle_timeout;
        (idle && self.outbox.0.outstanding().messages == 0).then_some(Closed::Idle)
    }
}

/// The refusal when as many requests are inside this node as it takes.
pub(crate) fn overloaded() -> Failure {
    Failure::Overloaded { retry_after_ms: 50, bound: "memory".to_owned() }
}
