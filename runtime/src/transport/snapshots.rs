//! Shard state on the move: one message out, one back, both opaque here.
//!
//! The receiving end may take its time over a message (it makes the state durable before it
//! answers), so the sender's only bound is its timeout. One message is outstanding at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mainstay_protocol::id::NodeId;
use mainstay_protocol::limits;
use mainstay_protocol::message::{Caller, Purpose, Tag};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Config;
use super::frame::{self, FrameError, ReadError};
use super::handshake::{DialError, Identity, dial};
use super::listener::Place;
use super::meters::{Class, ConnectionMeters, Direction};
use super::questions::{self, Questions};
use crate::chain::chain;

/// Answers one message. The error is for the sender's eyes.
pub type SnapshotHandler =
    Arc<dyn Fn(Caller, Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// An accepted snapshot connection.
#[derive(Debug)]
pub struct AcceptedSnapshots {
    pub(super) socket: std::net::TcpStream,
    pub(super) caller: Caller,
    pub(super) config: Arc<Config>,
    pub(super) place: Place,
}

/// Answers the messages of one connection until it ends. Polls on the current runtime.
pub async fn serve(accepted: AcceptedSnapshots, handler: SnapshotHandler) {
    let AcceptedSnapshots { socket, caller, config, place } = accepted;
    let questions =
        Questions { socket, config, place, tag: Tag::Snapshot, class: Class::Snapshot, at_once: 1 };
    let ended = questions::serve(questions, |body| {
        let answer = handler(caller.clone(), frame::decode(body)?);
        Ok(async move { answer_frame(&answer.await) })
    })
    .await;
    tracing::debug!(?caller, reason = %ended, "a snapshot connection ended");
}

fn answer_frame(answer: &Result<Bytes, String>) -> Vec<u8> {
    let mut out = Vec::new();
    if let Err(error) = frame::encode(Tag::SnapshotReply, answer, &mut out) {
        let answer: Result<Bytes, String> = Err(format!("the answer cannot be sent: {error}"));
        frame::encode(Tag::SnapshotReply, &answer, &mut out).expect("a short text fits its frame");
    }
    out
}

/// Why a message has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The message does not fit a frame. It was not sent; the link is as before.
    #[error("the message cannot be sent: {0}")]
    Unsendable(FrameError),
    /// The receiver refused the message, and says why. The link is as before.
    #[error("the receiver refused: {0}")]
    Refused(String),
    /// The connection failed. Whether the receiver took the message is unknown; open another link.
    #[error("the connection failed: {0}")]
    Lost(String),
    /// No answer in time. Whether the receiver took the message is unknown; open another link.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
}

/// The sending end of a snapshot connection.
#[derive(Debug)]
pub struct SnapshotLink {
    stream: Option<TcpStream>,
    timeout: Duration,
    meters: ConnectionMeters,
}

impl SnapshotLink {
    /// Opens a connection to this node at this address. `timeout` is given to every message.
    ///
    /// # Errors
    /// [`DialError`]; nothing was sent.
    pub async fn connect(
        identity: &Identity,
        config: &Config,
        addr: &str,
        to: NodeId,
        timeout: Duration,
    ) -> Result<Self, DialError> {
        let (stream, _) = dial(identity, config, addr, Some(to), Purpose::Snapshots).await?;
        let meters = ConnectionMeters::new(Class::Snapshot, Class::Snapshot);
        Ok(Self { stream: Some(stream), timeout, meters })
    }

    /// Sends one message and waits for its answer.
    ///
    /// # Errors
    /// [`SendError`], by what is known about the message.
    pub async fn send(&mut self, message: Bytes) -> Result<Bytes, SendError> {
        let mut out = Vec::with_capacity(message.len() + 16);
        frame::encode(Tag::Snapshot, &message, &mut out).map_err(SendError::Unsendable)?;
        // taken, so that a send that was dropped half-way leaves no half frame to continue after
        let Some(mut stream) = self.stream.take() else {
            return Err(SendError::Lost("an earlier message failed".to_owned()));
        };
        let answered = tokio::time::timeout(self.timeout, exchange(&mut stream, &out)).await;
        let answer = match answered {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(SendError::Lost(chain(&error))),
            Err(_) => return Err(SendError::Timeout(self.timeout)),
        };
        self.meters.count(Direction::Sent, 1, out.len());
        self.meters.count(Direction::Received, 1, answer.len());
        let answer: Result<Bytes, String> =
            frame::decode(&answer).map_err(|error| SendError::Lost(error.to_string()))?;
        self.stream = Some(stream);
        answer.map_err(SendError::Refused)
    }
}

async fn exchange(stream: &mut TcpStream, out: &[u8]) -> Result<Vec<u8>, ReadError> {
    stream.write_all(out).await?;
    match frame::read_frame(stream, limits::FRAME_BYTES_MAX).await? {
        (Tag::SnapshotReply, body) => Ok(body),
        (other, _) => Err(FrameError::Tag { tag: other as u8 }.into()),
    }
}
