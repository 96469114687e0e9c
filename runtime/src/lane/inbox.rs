//! The way into a lane: a queue that many threads push to and one future drains.
//!
//! ```text
//!   ingress, links, storage, control ---push---> [ Mutex<Vec> | waker ] ---swap---> drain
//! ```
//!
//! Data does not go through an actix address: an actix mailbox costs an allocation and a wake-up
//! per message and bounds nothing (see `docs/decisions/0002-credits-not-actix-capacity.md`). The
//! queue has no bound of its own; everything that is pushed holds a credit of a bounded window
//! (requests), answers something that the lane asked for (storage, timers), or waits there once
//! (the newest map).

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};

/// The sending half. Cheap to clone.
#[derive(Debug)]
pub struct Inbox<M>(Arc<Mutex<Queue<M>>>);

#[derive(Debug)]
struct Queue<M> {
    messages: Vec<M>,
    /// Of the drain, while it sleeps: only then does a push cost a wake-up.
    waker: Option<Waker>,
    closed: bool,
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for Inbox<M> {
    fn default() -> Self {
        let queue = Queue { messages: Vec::new(), waker: None, closed: false };
        Self(Arc::new(Mutex::new(queue)))
    }
}

impl<M> Inbox<M> {
    /// Pushes one message; gives it back when the lane is gone.
    ///
    /// # Errors
    /// The message itself, when the inbox is closed.
    pub fn push(&self, message: M) -> Result<(), M> {
        let wake = {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.closed {
                return Err(message);
            }
            queue.messages.push(message);
            queue.waker.take()
        };
        if let Some(waker) = wake {
            waker.wake();
        }
        Ok(())
    }

    /// Takes everything that was pushed, into `batch` (which must be empty). When there is
    /// nothing, arms the waker: the next push wakes the task of `context`.
    pub fn take(&self, batch: &mut Vec<M>, context: &Context<'_>) {
        debug_assert!(batch.is_empty(), "the last batch was worked off");
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut queue.messages, batch);
        if batch.is_empty() {
            queue.waker = Some(context.waker().clone());
        }
    }

    /// Refuses every later push, and gives back what was not taken.
    pub fn close(&self) -> Vec<M> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        queue.waker = None;
        std::mem::take(&mut queue.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    async fn next_batch(inbox: &Inbox<u32>) -> Vec<u32> {
        let mut batch = Vec::new();
        poll_fn(|context| {
            inbox.take(&mut batch, context);
            if batch.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        batch
    }

    #[tokio::test]
    async fn pushes_from_many_threads_all_arrive_in_each_senders_order() {
        let inbox = Inbox::default();
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let inbox = inbox.clone();
                std::thread::spawn(move || {
                    (0..1_000).for_each(|n| inbox.push(sender * 10_000 + n).unwrap());
                })
            })
            .collect();
        let mut got = Vec::new();
        while got.len() < 4_000 {
            got.extend(next_batch(&inbox).await);
        }
        for sender in senders {
            sender.join().unwrap();
        }
        for sender in 0..4 {
            let mine: Vec<_> = got.iter().filter(|n| **n / 10_000 == sender).collect();
            assert!(mine.is_sorted());
            assert_eq!(mine.len(), 1_000);
        }
    }

    #[test]
    fn a_closed_inbox_gives_the_message_back() {
        let inbox = Inbox::default();
        inbox.push(1).unwrap();
        assert_eq!(inbox.close(), [1]);
        assert_eq!(inbox.push(2), Err(2));
    }
}
