//! The caller's side: request connections to other nodes, one per peer and lane.
//!
//! A [`Link`] is what calls go through; here are the set of all links, and the driver that a link
//! has while it is connecting or open: one task on the ingress runtime, which writes the link's
//! buffer in one go, hands over replies chunk by chunk, and ends calls at their deadlines.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_protocol::backoff;
use mainstay_protocol::credits::Credits;
use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{Purpose, Reply, Tag};
use mainstay_protocol::time::Instant;
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::Config;
use super::frame::{self, FrameBuffer, FrameError};
use super::handshake::{Identity, dial};
use super::link::{Shared, wake_all};
use super::meters::{self, Class, ConnectionMeters, Direction};
use super::stream::Writing;
use crate::chain::chain;
use crate::clock;
use crate::metrics::Counted;

pub use super::link::{Link, LinkCall};

/// Chunks that one poll reads before other tasks get their turn.
const CHUNKS_PER_POLL: u32 = 16;
/// How often a connecting link looks at its calls' deadlines.
const CONNECTING_TICK: Duration = Duration::from_millis(10);

/// All links of a process. Clones share them.
#[derive(Debug, Clone)]
pub struct Links(Arc<Set>);

#[derive(Debug)]
struct Set {
    driving: Arc<Driving>,
    links: RwLock<BTreeMap<(NodeId, u16), Link>>,
}

/// What all drivers share.
#[derive(Debug)]
pub(super) struct Driving {
    identity: Arc<Identity>,
    config: Config,
    runtime: tokio::runtime::Handle,
}

impl Links {
    /// No links yet. Their drivers run on `runtime`.
    pub fn new(identity: Arc<Identity>, config: Config, runtime: tokio::runtime::Handle) -> Self {
        let driving = Arc::new(Driving { identity, config, runtime });
        Self(Arc::new(Set { driving, links: RwLock::default() }))
    }

    /// The link to a lane of a peer that is reached at `addr`. Opens nothing.
    pub fn link(&self, peer: &NodeId, addr: &str, lane: u16) -> Link {
        let key = (peer.clone(), lane);
        let known = {
            let links = self.0.links.read().unwrap_or_else(PoisonError::into_inner);
            links.get(&key).cloned()
        };
        let link = known.unwrap_or_else(|| {
            let mut links = self.0.links.write().unwrap_or_else(PoisonError::into_inner);
            let driving = || Arc::clone(&self.0.driving);
            let new = || Link::new(peer.clone(), addr.to_owned(), lane, driving());
            links.entry(key).or_insert_with(new).clone()
        });
        link.set_addr(addr);
        link
    }

    /// Ends and forgets the links to nodes for which `keep` is false: they left, or went down.
    pub fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        let mut links = self.0.links.write().unwrap_or_else(PoisonError::into_inner);
        links.retain(|(peer, _), link| {
            let keep = keep(peer);
            if !keep {
                link.end("the peer is no member any more, or is down");
            }
            keep
        });
    }

    /// Ends all links.
    pub fn close(&self) {
        self.retain(|_| false);
    }
}

impl Driving {
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn backoff(&self) -> backoff::Config {
        backoff::Config { base: self.config.backoff_base, cap: self.config.backoff_max }
    }

    pub(super) fn start(&self, link: &Arc<Shared>) {
        let driver = Driver { link: Arc::clone(link), writing: Writing::default(), ended: false };
        self.runtime.spawn(driver.run());
    }
}

/// The life of one connection. Dropped half-way (its runtime ends), it fails the calls.
struct Driver {
    link: Arc<Shared>,
    writing: Writing,
    ended: bool,
}

impl Driver {
    async fn run(mut self) {
        let reason = match self.connect().await {
            Ok((stream, meters)) => {
                let reason = self.converse(stream, &meters).await;
                meters::cut(if reason.is_none() { "idle" } else { "failed" });
                reason
            }
            Err(reason) => Some(reason),
        };
        self.ended = true;
        let Some(reason) = reason else { return };
        let (peer, lane) = (&self.link.peer, self.link.lane);
        tracing::debug!(%peer, lane, reason, "a request connection ended");
        self.fail(&format!("the connection to {peer} failed: {reason}"));
    }

    fn fail(&self, reason: &str) {
        let wakers = self.link.lock().fail(reason, self.writing.written(), clock::now());
        wake_all(wakers);
    }

    async fn connect(&self) -> Result<(TcpStream, ConnectionMeters), String> {
        let Driving { identity, config, .. } = &*self.link.driving;
        let (addr, gauge) = {
            let state = self.link.lock();
            if state.failures() > 0 {
                state.meters.reconnects.increment(1);
            }
            (state.addr.clone(), state.meters.connecting.clone())
        };
        let _connecting = Counted::new(gauge);
        let purpose = Purpose::Requests { lane: self.link.lane };
        let to = Some(self.link.peer.clone());
        let mut dialing = pin!(dial(identity, config, &addr, to, purpose));
        let (stream, welcome) = loop {
            tokio::select! {
                biased;
                dialed = &mut dialing => break dialed.map_err(|error| chain(&error))?,
                () = tokio::time::sleep(CONNECTING_TICK) => {
                    let mut state = self.link.lock();
                    let wakers = state.expire(clock::now());
                    let ending = state.ending;
                    drop(state);
                    wake_all(wakers);
                    if let Some(reason) = ending {
                        return Err(reason.to_owned());
                    }
                }
            }
        };
        let meters = ConnectionMeters::new(Class::Reply, Class::Call);
        let wakers = self.link.lock().open(Credits::new(welcome.window), clock::now());
        wake_all(wakers);
        Ok((stream, meters))
    }

    /// Until the connection ends; `None` when it was let go unused.
    async fn converse(&mut self, stream: TcpStream, meters: &ConnectionMeters) -> Option<String> {
        let config = self.link.driving.config();
        let tick = config.tick();
        let mut conversation = Conversation {
            link: &self.link,
            config,
            stream,
            meters,
            writing: &mut self.writing,
            reading: FrameBuffer::default(),
            replies: Vec::new(),
            busy_at: clock::now(),
            partial_since: None,
            timer: Box::pin(tokio::time::sleep(tick)),
            tick,
            tick_at: clock::now() + tick,
        };
        poll_fn(|cx| conversation.poll(cx)).await.err()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !self.ended {
            self.fail("this process lets its connections go");
        }
    }
}

struct Conversation<'a> {
    link: &'a Shared,
    config: &'a Config,
    stream: TcpStream,
    meters: &'a ConnectionMeters,
    writing: &'a mut Writing,
    reading: FrameBuffer,
    replies: Vec<Reply>,
    busy_at: Instant,
    partial_since: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    tick: Duration,
    tick_at: Instant,
}

impl Conversation<'_> {
    /// Ready without error when the connection was let go unused.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        if let Err(reason) = self.poll_work(cx) {
            return Poll::Ready(Err(reason));
        }
        loop {
            let now = clock::now();
            let wakers = self.link.lock().expire(now);
            wake_all(wakers);
            if now >= self.tick_at {
                self.tick_at = now + self.tick;
                match self.overdue(now) {
                    Ok(true) => return Poll::Ready(Ok(())),
                    Ok(false) => {}
                    Err(reason) => return Poll::Ready(Err(reason.to_owned())),
                }
            }
            let expiry = self.link.lock().next_expiry();
            let at = expiry.map_or(self.tick_at, |expiry| expiry.min(self.tick_at));
            let at = clock::to_tokio(at);
            if self.timer.deadline() != at {
                self.timer.as_mut().reset(at);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_work(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        for _ in 0..CHUNKS_PER_POLL {
            let all = self.poll_write(cx)?;
            match self.reading.poll_fill(&mut self.stream, cx) {
                Poll::Ready(Ok(0)) => return Err("the peer closed it".to_owned()),
                Poll::Ready(Ok(bytes)) => self.take_chunk(bytes)?,
                Poll::Ready(Err(error)) => return Err(error.to_string()),
                Poll::Pending => {
                    let mut state = self.link.lock();
                    if let Some(reason) = state.ending {
                        return Err(reason.to_owned());
                    }
                    if state.sleep(cx.waker(), !all) {
                        return Ok(());
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Whether everything is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        loop {
            if let Some(buffer) = self.writing.refill() {
                let frames = self.link.lock().take_out(buffer);
                if frames == 0 {
                    return Ok(true);
                }
                self.busy_at = clock::now();
                self.meters.count(Direction::Sent, frames, buffer.len());
            }
            match self.writing.poll_write(&mut self.stream, cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(error.to_string()),
            }
        }
    }

    fn take_chunk(&mut self, bytes: usize) -> Result<(), String> {
        let now = clock::now();
        self.busy_at = now;
        let decoded = self.decode_chunk();
        let frames = self.replies.len() as u64;
        self.meters.count(Direction::Received, frames, bytes);
        self.partial_since = match (self.reading.partial(), frames) {
            (false, _) => None,
            (true, 0) => self.partial_since.or(Some(now)),
            (true, _) => Some(now),
        };
        let settled = self.link.lock().settle(&mut self.replies, now);
        match settled {
            Ok(wakers) => wake_all(wakers),
            Err(correlation) => return Err(format!("a reply to nothing: {correlation:x}")),
        }
        decoded.map_err(|error| error.to_string())
    }

    fn decode_chunk(&mut self) -> Result<(), FrameError> {
        while let Some((tag, body)) = self.reading.next_frame()? {
            if tag != Tag::Reply {
                return Err(FrameError::Tag { tag: tag as u8 });
            }
            self.replies.push(frame::decode(body)?);
        }
        Ok(())
    }

    /// Whether the connection was let go; an error when it has to end.
    fn overdue(&mut self, now: Instant) -> Result<bool, &'static str> {
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_since(at));
        if since(self.writing.stuck_since()) >= self.config.write_timeout {
            return Err("the peer does not read");
        }
        if since(self.partial_since) >= self.config.frame_timeout {
            return Err("the peer did not end a frame in time");
        }
        let mut state = self.link.lock();
        state.show_meters(self.writing.pending());
        let unused = now.saturating_since(self.busy_at) >= self.config.retire_after;
        Ok(unused && self.writing.pending() == 0 && state.retire())
    }
}
