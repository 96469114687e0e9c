//! Asking other nodes, as the control rooms see it: the transport stands behind it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{ControlAnswer, ControlBody, Reject};

/// Why a question on a control connection has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskFailure {
    /// The handshake was refused. Nothing was asked.
    #[error("the handshake was refused")]
    Rejected(#[source] Reject),
    /// There is no connection. Nothing was asked.
    #[error("not reached: {reason}")]
    NotSent {
        /// Why.
        reason: String,
    },
    /// The question was sent, the answer did not come. It may have been heard.
    #[error("no answer: {reason}")]
    NoAnswer {
        /// Why.
        reason: String,
    },
    /// The peer answered that it cannot. Nothing was changed.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// What [`PeerCaller::ask`] returns.
pub type AskFuture = Pin<Box<dyn Future<Output = Result<ControlAnswer, AskFailure>> + Send>>;

/// Asks other nodes over control connections.
pub trait PeerCaller: Send + Sync + 'static {
    /// Asks the node at `addr`, which must be `to` when that is given. Ends within `timeout`.
    fn ask(
        &self,
        addr: &str,
        to: Option<NodeId>,
        body: ControlBody,
        timeout: Duration,
    ) -> AskFuture;
}

impl fmt::Debug for dyn PeerCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerCaller")
    }
}
