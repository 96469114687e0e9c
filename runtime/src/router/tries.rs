//! What is known of a call before its first attempt and after its last one.

use mainstay_protocol::id::EntityId;
use mainstay_protocol::limits;
use mainstay_protocol::message::{Failure, Outcome};
use mainstay_protocol::time::Instant;

use super::verdict::without_promise;
use crate::call::Call;
use crate::clock;

/// What the attempts of one call left known.
pub(super) struct Tries {
    unknown: bool,
    deadline: Instant,
}

impl Tries {
    pub(super) const fn new(deadline: Instant) -> Self {
        Self { unknown: false, deadline }
    }

    pub(super) fn note(&mut self, failure: &Failure) {
        self.unknown |= matches!(
            failure,
            Failure::Unavailable { outcome: Outcome::Unknown, .. }
                | Failure::Deadline { outcome: Outcome::Unknown }
        );
    }

    /// The last failure, with no promise that an earlier attempt has made void.
    pub(super) fn last(&self, failure: Failure) -> Failure {
        if self.unknown {
            return without_promise(failure);
        }
        match failure {
            Failure::NotPrimary { primary, .. } if clock::now() >= self.deadline => {
                let who = primary.map_or_else(|| "nobody".to_owned(), |node| node.to_string());
                let reason = format!("no primary until the deadline; the last word was {who}");
                Failure::Unavailable { outcome: Outcome::NotExecuted, reason }
            }
            failure => failure,
        }
    }
}

pub(super) fn unavailable(reason: &str) -> Failure {
    Failure::Unavailable { outcome: Outcome::NotExecuted, reason: reason.to_owned() }
}

/// Refuses what no attempt could carry.
pub(super) fn checked(call: &Call) -> Result<(), Failure> {
    let bytes = call.payload.len();
    if bytes > limits::PAYLOAD_BYTES_MAX {
        let limit = limits::PAYLOAD_BYTES_MAX;
        let reason = format!("the arguments have {bytes} bytes, the limit is {limit}");
        return Err(Failure::Malformed { reason });
    }
    if call.chain.is_empty() {
        return Ok(());
    }
    let entity = EntityId { kind: call.kind, key: call.key.clone() };
    if call.chain.contains(&entity.hash64()) || call.chain.len() > limits::CALL_CHAIN_MAX {
        return Err(Failure::Reentrant);
    }
    Ok(())
}
