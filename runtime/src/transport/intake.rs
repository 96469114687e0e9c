//! The bound on all requests inside one node: messages and bytes, from entrance to reply.
//!
//! Taken before a request is queued anywhere and given back with its reply. Requests from turns may
//! also use a reserve, a step of it for each entity on their chain: a turn that waits for its own
//! call must not wait for callers that wait for the turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mainstay_protocol::limits;
use mainstay_protocol::time::Instant;
use tokio::sync::Notify;

use crate::clock;

/// The reserve of calls from turns, beside the bound: one part in this many.
const RESERVE_SHARE: u64 = 4;

/// A shared bound. Clones share it.
#[derive(Debug, Clone)]
pub struct Intake(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    messages_max: u64,
    bytes_max: u64,
    messages: AtomicU64,
    bytes: AtomicU64,
    waiting: AtomicU64,
    given_back: Notify,
}

/// Room for one request; dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    intake: Intake,
    bytes: u64,
}

/// There is no room. Nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("as many requests are inside this node as it takes")]
pub struct Full;

impl Intake {
    /// A bound of so many requests and bytes outside turns.
    pub fn new(messages_max: u32, bytes_max: u64) -> Self {
        Self(Arc::new(Bound {
            messages_max: u64::from(messages_max),
            bytes_max,
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            given_back: Notify::new(),
        }))
    }

    /// Takes room for a request of so many bytes, with so many entities on its chain.
    ///
    /// # Errors
    /// [`Full`].
    pub fn try_take(&self, bytes: u32, depth: usize) -> Result<Permit, Full> {
        let bound = &*self.0;
        let bytes = u64::from(bytes);
        let steps = limits::CALL_CHAIN_MAX as u64;
        let depth = (depth as u64).min(steps);
        let reserve = |max: u64| max + (max.div_ceil(RESERVE_SHARE) * depth).div_ceil(steps);
        add(&bound.messages, 1, reserve(bound.messages_max))?;
        if let Err(full) = add(&bound.bytes, bytes, reserve(bound.bytes_max)) {
            bound.messages.fetch_sub(1, Ordering::SeqCst);
            return Err(full);
        }
        Ok(Permit { intake: self.clone(), bytes })
    }

    /// Waits for room until the deadline.
    ///
    /// # Errors
    /// [`Full`] when the deadline came first.
    pub async fn take(&self, bytes: u32, depth: usize, until: Instant) -> Result<Permit, Full> {
        let _waiting = Waiting::new(&self.0.waiting);
        let taken = async {
            loop {
                let given_back = self.0.given_back.notified();
                if let Ok(permit) = self.try_take(bytes, depth) {
                    return permit;
                }
                given_back.await;
            }
        };
        tokio::time::timeout_at(clock::to_tokio(until), taken).await.map_err(|_| Full)
    }

    /// Requests and bytes inside, now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> (u64, u64) {
        (self.0.messages.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let bound = &*self.intake.0;
        bound.messages.fetch_sub(1, Ordering::SeqCst);
        bound.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        if bound.waiting.load(Ordering::SeqCst) > 0 {
            bound.given_back.notify_one();
        }
    }
}

fn add(held: &AtomicU64, more: u64, max: u64) -> Result<(), Full> {
    let fits = |held: u64| held.checked_add(more).filter(|sum| *sum <= max);
    held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).map(drop).map_err(|_| Full)
}

struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_bounds_hold_and_a_refusal_takes_nothing() {
        let intake = Intake::new(2, 1000);
        let first = intake.try_take(600, 0).unwrap();
        assert!(intake.try_take(600, 0).is_err());
        let _second = intake.try_take(400, 0).unwrap();
        assert!(intake.try_take(0, 0).is_err(), "two messages are the bound");
        drop(first);
        assert_eq!(intake.held(), (1, 400));
    }

    #[test]
    fn turns_have_a_reserve_that_others_do_not_use() {
        let intake = Intake::new(8, 1 << 20);
        let held: Vec<_> = (0..8).map(|_| intake.try_take(1, 0).unwrap()).collect();
        assert!(intake.try_take(1, 0).is_err());
        let _nested = intake.try_take(1, 1).unwrap();
        assert!(intake.try_take(1, 1).is_err(), "the reserve has a bound too");
        let _deeper = intake.try_take(1, 16).unwrap();
        drop(held);
    }

    #[tokio::test]
    async fn a_waiter_gets_the_room_that_is_given_back_and_no_other() {
        let intake = Intake::new(1, 1000);
        let held = intake.try_take(1, 0).unwrap();
        let until = clock::now() + Duration::from_millis(300);
        let waiter = tokio::spawn({
            let intake = intake.clone();
            async move { intake.take(1, 0, until).await }
        });
        tokio::task::yield_now().await;
        drop(held);
        let _held = waiter.await.unwrap().unwrap();
        assert!(intake.take(1, 0, until).await.is_err(), "the deadline ends the wait");
        assert_eq!(intake.held(), (1, 1));
    }
}
