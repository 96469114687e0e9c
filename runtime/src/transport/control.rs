//! Questions between nodes: heartbeats, consensus, joining, the map.
//!
//! One connection per address, opened when something is asked and closed when nothing was for
//! long. Every question has a timeout; what was sent and not answered has an unknown outcome. A
//! peer that answers nothing for long is given up, whether or not its askers still wait.
//! Clients may ask for the map and who is there, nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{
    Caller, ControlAnswer, ControlBody, ControlReply, ControlRequest, Purpose, Tag,
};
use mainstay_protocol::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::Config;
use super::frame::{self, FrameBuffer, FrameError, ReadError};
use super::handshake::{DialError, Identity, dial};
use super::listener::Place;
use super::meters::{self, Class, ConnectionMeters, Direction};
use super::questions::{self, Questions};
use crate::chain::chain;
use crate::clock;

/// Questions that wait to be sent to one address.
const QUEUE: usize = 256;
/// Questions without an answer on one connection.
const PENDING_MAX: usize = 1024;
/// Questions of one connection that are answered at the same time.
const ANSWERED_AT_ONCE: usize = 64;

/// Answers one question. The error is for the asker's eyes.
pub type ControlHandler = Arc<
    dyn Fn(Caller, ControlBody) -> BoxFuture<'static, Result<ControlAnswer, String>> + Send + Sync,
>;

/// An accepted control connection.
#[derive(Debug)]
pub struct AcceptedControl {
    pub(super) socket: std::net::TcpStream,
    pub(super) caller: Caller,
    pub(super) config: Arc<Config>,
    pub(super) place: Place,
}

impl AcceptedControl {
    /// Who asks.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// Answers the questions of one connection until it ends. Polls on the current runtime.
pub async fn serve(accepted: AcceptedControl, handler: ControlHandler) {
    let AcceptedControl { socket, caller, config, place } = accepted;
    let questions = Questions {
        socket,
        config,
        place,
        tag: Tag::ControlRequest,
        class: Class::Control,
        at_once: ANSWERED_AT_ONCE,
    };
    let ended = questions::serve(questions, |body| {
        let ControlRequest { correlation, body } = frame::decode(body)?;
        let answer = may_ask(&caller, &body).then(|| handler(caller.clone(), body));
        Ok(async move {
            let body = match answer {
                Some(answer) => answer.await,
                None => Err("clients may only ask for the map".to_owned()),
            };
            answer_frame(&ControlReply { correlation, body })
        })
    })
    .await;
    tracing::debug!(?caller, reason = %ended, "a control connection ended");
}

fn may_ask(caller: &Caller, body: &ControlBody) -> bool {
    match caller {
        Caller::Node { .. } => true,
        Caller::Client { .. } => {
            matches!(body, ControlBody::Map { .. } | ControlBody::Discover(_))
        }
    }
}

fn answer_frame(reply: &ControlReply) -> Vec<u8> {
    let mut out = Vec::new();
    if let Err(error) = frame::encode(Tag::ControlReply, reply, &mut out) {
        let body = Err(format!("the answer cannot be sent: {error}"));
        let reply = ControlReply { correlation: reply.correlation, body };
        frame::encode(Tag::ControlReply, &reply, &mut out).expect("a short text fits its frame");
    }
    out
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no connection. The question was not sent.
    #[error("{addr} is unreachable: {reason}")]
    Unreachable {
        /// The address.
        addr: String,
        /// Why, with its sources.
        reason: String,
        /// The peer's own refusal, when it refused the handshake.
        reject: Option<mainstay_protocol::message::Reject>,
    },
    /// Another node answers there. The question was not sent.
    #[error("{addr} is node {is}, not {meant}")]
    OtherNode {
        /// The address.
        addr: String,
        /// Who answers.
        is: NodeId,
        /// Who was meant.
        meant: NodeId,
    },
    /// Too many questions wait already. The question was not sent.
    #[error("too many questions wait for {addr}")]
    Overloaded {
        /// The address.
        addr: String,
    },
    /// The question is too large for a frame. It was not sent.
    #[error("the question cannot be sent: {0}")]
    Unsendable(FrameError),
    /// No answer in time. Whether the peer acted is unknown.
    #[error("no answer from {addr} in {timeout:?}")]
    Timeout {
        /// The address.
        addr: String,
        /// The time given.
        timeout: Duration,
    },
    /// The connection was lost before an answer. Whether the peer acted is unknown.
    #[error("the connection to {addr} was lost before an answer")]
    Lost {
        /// The address.
        addr: String,
    },
    /// The peer has no answer, and says why.
    #[error("{addr} answered: {reason}")]
    Refused {
        /// The address.
        addr: String,
        /// Its words.
        reason: String,
    },
}

impl AskError {
    /// Whether the question certainly never reached the peer.
    pub fn not_sent(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::OtherNode { .. }
            | Self::Overloaded { .. }
            | Self::Unsendable(_) => true,
            Self::Timeout { .. } | Self::Lost { .. } | Self::Refused { .. } => false,
        }
    }
}

/// Asks nodes by address. Clones share the connections.
#[derive(Clone)]
pub struct ControlChannel(Arc<Channel>);

struct Channel {
    identity: Arc<Identity>,
    config: Arc<Config>,
    runtime: tokio::runtime::Handle,
    peers: Mutex<BTreeMap<String, mpsc::Sender<Ask>>>,
}

impl fmt::Debug for ControlChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlChannel").finish_non_exhaustive()
    }
}

type Answered = Result<ControlAnswer, AskError>;

struct Ask {
    to: Option<NodeId>,
    body: ControlBody,
    reply: oneshot::Sender<Answered>,
}

impl ControlChannel {
    /// A channel whose connections are polled on `runtime`.
    pub fn new(identity: Arc<Identity>, config: Config, runtime: tokio::runtime::Handle) -> Self {
        let (config, peers) = (Arc::new(config), Mutex::default());
        Self(Arc::new(Channel { identity, config, runtime, peers }))
    }

    /// Asks whoever listens at `addr`; with `to`, only that node.
    ///
    /// # Errors
    /// [`AskError`]; [`AskError::not_sent`] tells whether the peer may have acted.
    pub async fn ask(
        &self,
        addr: &str,
        to: Option<&NodeId>,
        body: ControlBody,
        timeout: Duration,
    ) -> Result<ControlAnswer, AskError> {
        let (reply, answer) = oneshot::channel();
        self.enqueue(addr, Ask { to: to.cloned(), body, reply })?;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AskError::Lost { addr: addr.to_owned() }),
            Err(_) => Err(AskError::Timeout { addr: addr.to_owned(), timeout }),
        }
    }

    fn enqueue(&self, addr: &str, ask: Ask) -> Result<(), AskError> {
        use mpsc::error::TrySendError;
        let mut peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = match peers.get(addr) {
            None => ask,
            Some(peer) => match peer.try_send(ask) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Closed(ask)) => ask,
                Err(TrySendError::Full(_)) => {
                    return Err(AskError::Overloaded { addr: addr.to_owned() });
                }
            },
        };
        peers.retain(|_, peer| !peer.is_closed());
        let (sender, asks) = mpsc::channel(QUEUE);
        sender.try_send(ask).map_err(|_| AskError::Overloaded { addr: addr.to_owned() })?;
        peers.insert(addr.to_owned(), sender);
        let (identity, config) = (Arc::clone(&self.0.identity), Arc::clone(&self.0.config));
        self.0.runtime.spawn(connection(identity, config, addr.to_owned(), asks));
        Ok(())
    }
}

/// One connection, from the first question to its end.
async fn connection(
    identity: Arc<Identity>,
    config: Arc<Config>,
    addr: String,
    mut asks: mpsc::Receiver<Ask>,
) {
    let dialed = dial(&identity, &config, &addr, None, Purpose::Control).await;
    let (reason, reject) = match dialed {
        Ok((stream, welcome)) => {
            let (reader, writer) = stream.into_split();
            let pending = Mutex::new(Pending::default());
            let meters = ConnectionMeters::new(Class::Control, Class::Control);
            let shared =
                Shared { addr: &addr, config: &config, pending: &pending, meters: &meters };
            let reason = tokio::select! {
                biased;
                error = read_answers(reader, &shared) => chain(&error),
                reason = write_questions(writer, &shared, &welcome.node, &mut asks) => reason,
            };
            meters::cut("closed");
            (reason, None)
        }
        Err(DialError::Rejected { reject, .. }) => (reject.to_string(), Some(reject)),
        Err(error) => (chain(&error), None),
    };
    tracing::debug!(addr, reason, "a control connection ended");
    asks.close();
    while let Ok(ask) = asks.try_recv() {
        let error = AskError::Unreachable {
            addr: addr.clone(),
            reason: reason.clone(),
            reject: reject.clone(),
        };
        // the asker may have given up
        drop(ask.reply.send(Err(error)));
    }
}

/// Questions without an answer.
#[derive(Default)]
struct Pending {
    /// Who asks, by correlation.
    askers: BTreeMap<u64, oneshot::Sender<Answered>>,
    /// How many the peer has not answered, whether or not somebody still waits.
    unanswered: u64,
    /// Since when it answers none of them.
    silent_since: Option<Instant>,
}

impl Pending {
    fn handle_asked(&mut self, correlation: u64, reply: oneshot::Sender<Answered>) {
        self.askers.insert(correlation, reply);
        self.unanswered += 1;
        self.silent_since.get_or_insert_with(clock::now);
    }

    /// An answer arrived: whose it is, if somebody still waits for it.
    fn handle_answered(&mut self, correlation: u64) -> Option<oneshot::Sender<Answered>> {
        self.unanswered = self.unanswered.saturating_sub(1);
        self.silent_since = (self.unanswered > 0).then(clock::now);
        self.askers.remove(&correlation)
    }
}

struct Shared<'a> {
    addr: &'a str,
    config: &'a Config,
    pending: &'a Mutex<Pending>,
    meters: &'a ConnectionMeters,
}

impl Shared<'_> {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops questions whose askers gave up; says why the connection should end, if it should.
    fn handle_tick(&self, asked_at: Instant) -> Option<&'static str> {
        let mut pending = self.pending();
        let now = clock::now();
        let is_over = |since: Instant, limit| now.saturating_since(since) >= limit;
        if pending.silent_since.is_some_and(|since| is_over(since, self.config.write_timeout)) {
            return Some("the peer does not answer");
        }
        pending.askers.retain(|_, asker| !asker.is_closed());
        let idle = pending.askers.is_empty() && is_over(asked_at, self.config.retire_after);
        idle.then_some("the connection was idle")
    }
}

async fn read_answers(mut reader: OwnedReadHalf, shared: &Shared<'_>) -> ReadError {
    let mut reading = FrameBuffer::default();
    loop {
        match poll_fn(|cx| reading.poll_fill(&mut reader, cx)).await {
            Ok(0) => return ReadError::Closed,
            Ok(bytes) => shared.meters.count(Direction::Received, 1, bytes),
            Err(error) => return error.into(),
        }
        loop {
            let (tag, body) = match reading.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            if tag != Tag::ControlReply {
                return FrameError::Tag { tag: tag as u8 }.into();
            }
            let ControlReply { correlation, body } = match frame::decode(body) {
                Ok(reply) => reply,
                Err(error) => return error.into(),
            };
            let Some(asker) = shared.pending().handle_answered(correlation) else { continue };
            let addr = shared.addr.to_owned();
            // the asker may have given up
            drop(asker.send(body.map_err(|reason| AskError::Refused { addr, reason })));
        }
    }
}

async fn write_questions(
    mut writer: OwnedWriteHalf,
    shared: &Shared<'_>,
    node: &NodeId,
    asks: &mut mpsc::Receiver<Ask>,
) -> String {
    let (mut out, mut correlation) = (Vec::new(), 0);
    let mut asked_at = clock::now();
    let mut tick = tokio::time::interval(shared.config.tick());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let room = shared.pending().askers.len() < PENDING_MAX;
        let ask = tokio::select! {
            biased;
            _ = tick.tick() => match shared.handle_tick(asked_at) {
                Some(reason) => return reason.to_owned(),
                None => continue,
            },
            ask = asks.recv(), if room => ask,
        };
        asked_at = clock::now();
        let Some(ask) = ask else { return "nobody asks any more".to_owned() };
        out.clear();
        let mut frames = 0;
        let mut next = Some(ask);
        while let Some(ask) = next {
            correlation += 1;
            frames += u64::from(put(ask, correlation, shared, node, &mut out));
            next = (out.len() < 1 << 20).then(|| asks.try_recv().ok()).flatten();
        }
        let written = tokio::time::timeout(shared.config.write_timeout, writer.write_all(&out));
        match written.await {
            Ok(Ok(())) => shared.meters.count(Direction::Sent, frames, out.len()),
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "the peer does not read".to_owned(),
        }
    }
}

/// Encodes one question; `false` when it was answered with an error instead.
fn put(ask: Ask, correlation: u64, shared: &Shared<'_>, node: &NodeId, out: &mut Vec<u8>) -> bool {
    let addr = || shared.addr.to_owned();
    let error = match ask.to {
        Some(meant) if meant != *node => {
            AskError::OtherNode { addr: addr(), is: node.clone(), meant }
        }
        _ => {
            let request = ControlRequest { correlation, body: ask.body };
            match frame::encode(Tag::ControlRequest, &request, out) {
                Ok(()) => {
                    shared.pending().handle_asked(correlation, ask.reply);
                    return true;
                }
                Err(error) => AskError::Unsendable(error),
            }
        }
    };
    // the asker may have given up
    drop(ask.reply.send(Err(error)));
    false
}
