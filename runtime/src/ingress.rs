//! The door: what this node takes in at once, in requests and bytes.
//!
//! Credits are taken before a message is built (for HTTP: before its body is read), so a node at
//! its limit leaves the rest in the senders' sockets. They are given back with the reply. What an
//! entity's turn asks of other entities goes past the door: those calls are bounded by the turns
//! that run, and waiting here for credits that they hold themselves would be a deadlock.

use std::sync::Arc;

use futures_util::FutureExt;
use mainstay_protocol::message::{Failure, Outcome, Pressure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::call::{Call, CallFuture, CallPort};
use crate::clock;
use crate::config::Limits;

/// Bytes per credit of the byte budget: a semaphore counts in 32 bits.
const BYTES_PER_CREDIT: u64 = 64;

/// The credits of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    requests_max: u32,
    byte_credits_max: u32,
}

/// Room for one request; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    _request: OwnedSemaphorePermit,
    bytes: OwnedSemaphorePermit,
}

impl Permit {
    /// Gives back what is above `bytes`: a body of unknown length is reserved at its largest.
    pub fn shrink_to(&mut self, bytes: u64) {
        let keep = usize::try_from(bytes.div_ceil(BYTES_PER_CREDIT)).unwrap_or(usize::MAX);
        if let Some(surplus) = self.bytes.num_permits().checked_sub(keep) {
            drop(self.bytes.split(surplus));
        }
    }
}

impl Door {
    /// A door with these limits.
    pub fn new(limits: &Limits) -> Self {
        let credits = limits.request_bytes / BYTES_PER_CREDIT;
        let byte_credits_max = u32::try_from(credits).unwrap_or(u32::MAX >> 4).max(1);
        Self {
            requests: Arc::new(Semaphore::new(limits.requests.max(1) as usize)),
            bytes: Arc::new(Semaphore::new(byte_credits_max as usize)),
            requests_max: limits.requests.max(1),
            byte_credits_max,
        }
    }

    /// A request larger than the whole budget takes the whole budget, so it waits but gets in.
    fn credits(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(BYTES_PER_CREDIT))
            .unwrap_or(u32::MAX)
            .clamp(1, self.byte_credits_max)
    }

    /// Waits for room. Requests get in in the order in which they asked.
    ///
    /// # Panics
    /// Never: the semaphores are not closed.
    pub async fn reserve(&self, bytes: u64) -> Permit {
        let open = "a door is never closed";
        let request = Arc::clone(&self.requests).acquire_owned().await.expect(open);
        let credits = self.credits(bytes);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(credits).await.expect(open);
        Permit { _request: request, bytes }
    }

    /// Takes room if there is some at once.
    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(self.credits(bytes)).ok()?;
        Some(Permit { _request: request, bytes })
    }

    /// Requests inside.
    pub fn inside(&self) -> u32 {
        let free = u32::try_from(self.requests.available_permits()).unwrap_or(u32::MAX);
        self.requests_max.saturating_sub(free)
    }
}

/// The port of programs in this process: through the door, then the router.
#[derive(Clone)]
pub struct DoorPort {
    door: Door,
    out: Arc<dyn CallPort>,
}

impl std::fmt::Debug for DoorPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DoorPort").field("door", &self.door).finish_non_exhaustive()
    }
}

impl DoorPort {
    /// A port through this door.
    pub const fn new(door: Door, out: Arc<dyn CallPort>) -> Self {
        Self { door, out }
    }
}

impl CallPort for DoorPort {
    fn call(&self, mut call: Call) -> CallFuture {
        let bytes = (call.payload.len() + call.key.as_str().len()) as u64;
        if let Some(permit) = self.door.try_reserve(bytes) {
            let answer = self.out.call(call);
            return async move {
                let answer = answer.await;
                drop(permit);
                answer
            }
            .boxed();
        }
        if call.pressure == Pressure::Refuse {
            return std::future::ready(Err(full())).boxed();
        }
        let (door, out) = (self.door.clone(), Arc::clone(&self.out));
        async move {
            let started = clock::now();
            let Ok(permit) = tokio::time::timeout(call.deadline, door.reserve(bytes)).await else {
                return Err(Failure::Deadline { outcome: Outcome::NotExecuted });
            };
            call.deadline = call.deadline.saturating_sub(clock::now().saturating_since(started));
            let answer = out.call(call).await;
            drop(permit);
            answer
        }
        .boxed()
    }
}

fn full() -> Failure {
    Failure::Overloaded { retry_after_ms: 50, bound: "memory".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(requests: u32, bytes: u64) -> Door {
        let limits =
            Limits { requests, request_bytes: bytes, ..crate::config::Config::default().limits };
        Door::new(&limits)
    }

    #[tokio::test]
    async fn no_more_requests_get_in_than_there_are_credits() {
        let door = door(2, 1 << 20);
        let first = door.reserve(1).await;
        let _second = door.try_reserve(1).unwrap();
        assert!(door.try_reserve(1).is_none());
        assert_eq!(door.inside(), 2);
        drop(first);
        assert!(door.try_reserve(1).is_some());
    }

    #[tokio::test]
    async fn bytes_are_bounded_and_a_shrunk_permit_gives_the_rest_back() {
        let door = door(100, 1024);
        let mut all = door.reserve(1024).await;
        assert!(door.try_reserve(64).is_none());
        all.shrink_to(512);
        assert!(door.try_reserve(512).is_some());
    }

    #[tokio::test]
    async fn a_request_larger_than_the_budget_waits_for_all_of_it_instead_of_for_ever() {
        let door = door(100, 1024);
        let permit = door.reserve(1 << 30).await;
        assert!(door.try_reserve(1).is_none());
        drop(permit);
        assert!(door.try_reserve(1).is_some());
    }
}
