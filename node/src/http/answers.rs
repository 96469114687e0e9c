//! Room for answers: bytes that were made and are not sent yet.
//!
//! An answer of up to [`FREE_BYTES`] needs none, since a connection has a buffer of that size
//! anyway. A greater one takes room that goes back with its last byte: to the socket, or into
//! nothing when the connection is cut. There is no waiting for it, since who waits holds the value
//! meanwhile: without room the answer is dropped, and its caller is told so.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use mainstay::protocol::message::{Mode, Outcome};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// What a caller is told to wait when there is no memory for its body, or for its answer.
pub(super) const RETRY_MEMORY: Duration = Duration::from_millis(100);
/// Bytes of an answer that takes no room.
pub const FREE_BYTES: u64 = 64 << 10;
/// Bytes per permit: a semaphore counts in 32 bits.
const BYTES_PER_PERMIT: u64 = 1 << 10;

/// The room of one API.
#[derive(Debug)]
pub struct Answers {
    room: Arc<Semaphore>,
    permits: u32,
}

/// Bytes on their way out, and the room that they take.
struct Sent {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answers {
    /// Room for this many bytes.
    pub fn new(bytes: u64) -> Self {
        let permits = u32::try_from(bytes / BYTES_PER_PERMIT).unwrap_or(u32::MAX >> 4).max(1);
        Self { room: Arc::new(Semaphore::new(permits as usize)), permits }
    }

    /// The same answer, in the room that it takes until it is sent; nothing when there is none.
    /// One that is larger than all the room takes all of it.
    pub async fn hold(&self, answer: Response) -> Option<Response> {
        let bytes = answer.body().size_hint().lower();
        if bytes <= FREE_BYTES {
            return Some(answer);
        }
        let permits = u32::try_from(bytes.div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX);
        let permits = permits.min(self.permits);
        let room = Arc::clone(&self.room).try_acquire_many_owned(permits).ok()?;
        let (head, body) = answer.into_parts();
        // a body that was made of bytes is whole at once, and an error of it is not possible
        let bytes = body.collect().await.ok()?.to_bytes();
        let sent = Bytes::from_owner(Sent { bytes, _room: room });
        Some(Response::from_parts(head, Body::from(sent)))
    }
}

/// The refusal of a call that ran, when there is no room for what it gave.
pub(super) fn unsent(mode: Mode, repeatable: bool) -> Problem {
    let outcome = if mode == Mode::Query { Outcome::NotExecuted } else { Outcome::Executed };
    let detail = "no room: memory, for the answer of a call that ran";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "MS-2101", detail)
        .retry_after(RETRY_MEMORY)
        .bound("memory".to_owned())
        .outcome(outcome)
        .retryable(repeatable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: u64) -> Response {
        Response::new(Body::from(vec![b'x'; usize::try_from(bytes).unwrap()]))
    }

    #[tokio::test]
    async fn an_answer_keeps_its_room_until_its_last_byte_is_gone() {
        let answers = Answers::new(1 << 20);
        let mut first = answers.hold(answer(600 << 10)).await.unwrap();
        assert_eq!(first.body().size_hint().exact(), Some(600 << 10));
        let bytes = first.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        drop(first);
        let half = bytes.slice(..10);
        drop(bytes);
        assert!(answers.hold(answer(600 << 10)).await.is_none(), "a part of it is not sent yet");
        assert!(answers.hold(answer(FREE_BYTES)).await.is_some(), "small ones need no room");
        drop(half);
        assert!(answers.hold(answer(600 << 10)).await.is_some());
    }

    #[test]
    fn a_command_whose_answer_found_no_room_is_told_as_executed() {
        let told = |mode| format!("{:?}", unsent(mode, false)).contains("\"executed\"");
        assert!(told(Mode::Command));
        assert!(!told(Mode::Query));
    }

    #[tokio::test]
    async fn an_answer_larger_than_all_the_room_takes_all_of_it() {
        let answers = Answers::new(1 << 20);
        let large = answers.hold(answer(3 << 20)).await.unwrap();
        assert!(answers.hold(answer(FREE_BYTES + 1)).await.is_none());
        drop(large);
        assert!(answers.hold(answer(FREE_BYTES + 1)).await.is_some());
    }
}
