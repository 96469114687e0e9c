//! Calls that wait for an answer: a slab, and the one for calls that stay in this process.
//!
//! A slot is named by index and generation, so that a late answer never meets a later call.
//! Deadlines are kept by one sweeper, not by a timer per call: an answer that the owner sends at
//! the deadline (it knows whether the call ran) has [`GRACE`] to arrive before the sweeper says
//! that the outcome is unknown.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay_protocol::message::{Failure, Outcome, Success};
use mainstay_protocol::time::Instant;
use tokio::sync::Notify;

use super::intake::Permit;
use super::reply::{ReplyHandle, gone};
use crate::clock;

/// How long after its deadline a call is given up here.
pub(crate) const GRACE: Duration = Duration::from_millis(20);

/// Values named by index and generation.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push((0, None));
            u32::try_from(self.entries.len() - 1).expect("bounded far below 2^32 by its users")
        });
        let (generation, place) = &mut self.entries[index as usize];
        debug_assert!(place.is_none(), "a free slot holds nothing");
        *place = Some(value);
        u64::from(*generation) << 32 | u64::from(index)
    }

    pub(super) fn get_mut(&mut self, at: u64) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(index(at))?;
        if *generation == generation_of(at) { value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, at: u64) -> Option<T> {
        self.get_mut(at)?;
        let (generation, value) = &mut self.entries[index(at)];
        *generation = generation.wrapping_add(1);
        self.free.push(u32::try_from(index(at)).expect("an index of 32 bits"));
        value.take()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Every value, by its name.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.entries.iter_mut().enumerate().filter_map(|(index, (generation, value))| {
            let at = u64::from(*generation) << 32 | index as u64;
            value.as_mut().map(|value| (at, value))
        })
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at & u64::from(u32::MAX)).expect("an index of 32 bits")
}

fn generation_of(at: u64) -> u32 {
    u32::try_from(at >> 32).expect("the upper 32 bits")
}

/// Calls from this process to its own lanes. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LocalCalls(Arc<Local>);

#[derive(Debug)]
struct Local {
    // one per lane, so that lanes do not wait for each other's callers
    shelves: Vec<Mutex<Shelf>>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Shelf {
    calls: Slab<Waiting>,
    next_deadline: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    deadline: Instant,
    waker: Option<Waker>,
    result: Option<Result<Success, Failure>>,
}

impl LocalCalls {
    /// A set for so many lanes; its sweeper runs on `runtime` as long as the set lives.
    pub(crate) fn start(lanes: u16, runtime: &tokio::runtime::Handle) -> Self {
        let shelves = (0..lanes.max(1)).map(|_| Mutex::default()).collect();
        let local = Arc::new(Local { shelves, earlier: Notify::new() });
        runtime.spawn(sweep(Arc::downgrade(&local)));
        Self(local)
    }

    /// Opens a call: what the lane answers through, and what the caller awaits. The permit is room
    /// in this node, held until the answer even when the caller does not wait for it.
    pub(crate) fn open(
        &self,
        lane: u16,
        deadline: Instant,
        permit: Option<Permit>,
    ) -> (ReplyHandle, LocalCall) {
        let at = LocalAt { set: self.clone(), shelf: usize::from(lane), slot: 0 };
        let mut shelf = at.shelf();
        let slot = shelf.calls.insert(Waiting { deadline, waker: None, result: None });
        let earlier = shelf.next_deadline.is_none_or(|next| deadline < next);
        if earlier {
            shelf.next_deadline = Some(deadline);
        }
        drop(shelf);
        if earlier {
            self.0.earlier.notify_one();
        }
        let at = LocalAt { slot, ..at };
        (ReplyHandle::local(at.clone(), permit), LocalCall { at })
    }
}

/// The place of one call.
#[derive(Debug, Clone)]
pub(super) struct LocalAt {
    set: LocalCalls,
    shelf: usize,
    slot: u64,
}

impl LocalAt {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        let shelves = &self.set.0.shelves;
        shelves[self.shelf % shelves.len()].lock().expect("nothing panics under this lock")
    }

    /// Answers, unless the caller is gone or was answered.
    pub(super) fn answer(&self, result: Result<Success, Failure>) {
        let mut shelf = self.shelf();
        let Some(call) = shelf.calls.get_mut(self.slot) else { return };
        if call.result.is_none() {
            call.result = Some(result);
            let waker = call.waker.take();
            drop(shelf);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.shelf().calls.get_mut(self.slot).is_none_or(|call| call.result.is_some())
    }
}

/// The caller's end. Dropping it tells the lane that nobody waits.
#[derive(Debug)]
pub(crate) struct LocalCall {
    at: LocalAt,
}

impl Future for LocalCall {
    type Output = Result<Success, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut shelf = self.at.shelf();
        let Some(call) = shelf.calls.get_mut(self.at.slot) else {
            return Poll::Ready(Err(gone("the call was answered before")));
        };
        if let Some(result) = call.result.take() {
            shelf.calls.remove(self.at.slot);
            return Poll::Ready(result);
        }
        match &mut call.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => call.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for LocalCall {
    fn drop(&mut self) {
        self.at.shelf().calls.remove(self.at.slot);
    }
}

/// Ends calls whose deadline has passed, as long as the set lives.
async fn sweep(local: std::sync::Weak<Local>) {
    loop {
        let Some(set) = local.upgrade() else { return };
        let mut next: Option<Instant> = None;
        for shelf in &set.shelves {
            let (later, expired) = expire(shelf, clock::now());
            expired.into_iter().for_each(Waker::wake);
            next = [next, later].into_iter().flatten().min();
        }
        // at most a second, so that a set which nobody uses any more goes away
        let soon = clock::now() + Duration::from_secs(1);
        let at = next.map_or(soon, |next| soon.min(next + GRACE));
        let earlier = set.earlier.notified();
        tokio::select! {
            biased;
            () = earlier => {}
            () = tokio::time::sleep_until(clock::to_tokio(at)) => {}
        }
    }
}

fn expire(shelf: &Mutex<Shelf>, now: Instant) -> (Option<Instant>, Vec<Waker>) {
    let mut shelf = shelf.lock().expect("nothing panics under this lock");
    let mut wakers = Vec::new();
    if shelf.next_deadline.is_none_or(|next| now < next + GRACE) {
        return (shelf.next_deadline, wakers);
    }
    let mut next = None;
    for (_, call) in shelf.calls.iter_mut().filter(|(_, call)| call.result.is_none()) {
        if now >= call.deadline + GRACE {
            call.result = Some(Err(Failure::Deadline { outcome: Outcome::Unknown }));
            wakers.extend(call.waker.take());
        } else {
            next = Some(next.map_or(call.deadline, |next: Instant| next.min(call.deadline)));
        }
    }
    shelf.next_deadline = next;
    (next, wakers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn calls() -> LocalCalls {
        LocalCalls::start(2, &tokio::runtime::Handle::current())
    }

    fn refused() -> Result<Success, Failure> {
        Err(Failure::KeyConflict)
    }

    #[tokio::test]
    async fn an_answer_reaches_its_caller_and_no_later_one() {
        let calls = calls();
        let later = clock::now() + Duration::from_secs(5);
        let (reply, call) = calls.open(0, later, None);
        reply.send(refused());
        assert_eq!(call.await, refused());
        let (first_reply, first) = calls.open(0, later, None);
        drop(first);
        let (_second_reply, mut second) = calls.open(0, later, None);
        assert!(first_reply.is_gone());
        first_reply.send(refused());
        assert!(futures_util::poll!(&mut second).is_pending(), "the slot has a new owner");
    }

    #[tokio::test]
    async fn a_deadline_ends_a_call_with_an_unknown_outcome() {
        let calls = calls();
        let begin = clock::now();
        let (_long_reply, long) = calls.open(1, begin + Duration::from_secs(60), None);
        let (_reply, call) = calls.open(1, begin + Duration::from_millis(100), None);
        assert_eq!(call.await, Err(Failure::Deadline { outcome: Outcome::Unknown }));
        let took = clock::now().saturating_since(begin);
        assert!(took >= Duration::from_millis(100) && took < Duration::from_millis(200));
        drop(long);
    }

    #[tokio::test]
    async fn a_reply_that_is_dropped_unsent_still_answers() {
        let calls = calls();
        let (reply, call) = calls.open(0, clock::now() + Duration::from_secs(5), None);
        drop(reply);
        assert!(matches!(call.await, Err(Failure::Unavailable { outcome: Outcome::Unknown, .. })));
    }

    proptest! {
        #[test]
        fn a_slab_keeps_every_value_under_its_own_name(steps in proptest::collection::vec(
            (any::<bool>(), any::<prop::sample::Index>()), 0..200)) {
            let mut slab = Slab::default();
            let mut model: Vec<(u64, usize)> = Vec::new();
            let mut dead: Vec<u64> = Vec::new();
            for (number, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || model.is_empty() {
                    model.push((slab.insert(number), number));
                } else {
                    let (at, value) = model.swap_remove(pick.index(model.len()));
                    prop_assert_eq!(slab.remove(at), Some(value));
                    dead.push(at);
                }
                prop_assert_eq!(slab.len(), model.len());
                for (at, value) in &model {
                    prop_assert_eq!(slab.get_mut(*at).copied(), Some(*value));
                }
                for at in &dead {
                    prop_assert!(slab.get_mut(*at).is_none());
                }
            }
        }
    }
}
