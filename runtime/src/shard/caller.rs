//! One caller as a lane carries it: what it asked, and the way back to it.

use bytes::Bytes;
use mainstay_protocol::id::RequestId;
use mainstay_protocol::message::TraceContext;
use mainstay_protocol::time::Instant;
use tracing::Span;

use crate::journey::{self, Verb};
use crate::lane::kinds::Kinds;
use crate::transport::reply::ReplyHandle;

/// What a lane keeps of a request beside what the rules keep ([`Ask`]).
///
/// [`Ask`]: mainstay_protocol::shard::Ask
#[derive(Debug)]
pub struct Caller {
    /// Where the kind is in the lane's table.
    pub kind: usize,
    /// The method's index in its kind.
    pub method: usize,
    /// The arguments.
    pub payload: Bytes,
    /// Names the request for ever.
    pub id: RequestId,
    /// The entities whose turns wait for this call, oldest first.
    pub chain: Vec<u64>,
    /// When it was admitted.
    pub arrived: Instant,
    /// It waits for its turn, and is counted so.
    pub queued: bool,
    /// The trace that it belongs to, when its caller records it.
    pub trace: Option<TraceContext>,
    /// The span of its waiting; boxed because few requests are recorded.
    pub waiting: Option<Box<Span>>,
    /// The way back.
    pub reply: ReplyHandle,
}

impl Caller {
    /// It waits no longer: its turn began, or it is answered without one.
    pub(crate) fn leave_queue(&mut self, kinds: &mut Kinds) {
        if std::mem::take(&mut self.queued) {
            kinds.at(self.kind).queued -= 1;
        }
    }

    /// The span of one of its stations; disabled when its caller does not record.
    pub fn span(&self, verb: Verb) -> Span {
        journey::span(verb, self.trace.as_ref(), None)
    }
}
