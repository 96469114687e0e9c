//! A bounded queue into a storage thread: pushing never waits, popping takes several at once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::error::StorageError;

/// A bounded queue with any number of threads on either side.
#[derive(Debug)]
pub(super) struct Queue<T> {
    name: &'static str,
    max: usize,
    inner: Mutex<Inner<T>>,
    filled: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

/// Locks, also after a panic: what storage keeps under its locks is whole at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Queue<T> {
    pub(super) fn new(name: &'static str, max: usize) -> Self {
        let inner = Inner { items: VecDeque::new(), closed: false };
        Self { name, max, inner: Mutex::new(inner), filled: Condvar::new() }
    }

    /// Adds an item, or gives it back with the reason.
    pub(super) fn push(&self, item: T) -> Result<(), (StorageError, T)> {
        let mut inner = lock(&self.inner);
        if inner.closed {
            return Err((StorageError::Closed, item));
        }
        if inner.items.len() >= self.max {
            return Err((StorageError::Busy { queue: self.name, max: self.max }, item));
        }
        inner.items.push_back(item);
        drop(inner);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for items and moves up to `max` of them into `taken`; `false` once the queue is
    /// closed and empty.
    pub(super) fn pop(&self, max: usize, taken: &mut Vec<T>) -> bool {
        let mut inner = lock(&self.inner);
        while inner.items.is_empty() && !inner.closed {
            inner = self.filled.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let count = inner.items.len().min(max);
        taken.extend(inner.items.drain(..count));
        if !inner.items.is_empty() {
            self.filled.notify_one();
        }
        count > 0
    }

    /// Takes no more items; what is queued can still be popped.
    pub(super) fn close(&self) {
        lock(&self.inner).closed = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let queue = Queue::new("load", 1);
        queue.push(1).unwrap();
        let (error, item) = queue.push(2).unwrap_err();
        assert_eq!((error.code(), item), ("MS-2101", 2));
    }

    #[test]
    fn a_closed_queue_is_emptied_first() {
        let queue = Queue::new("load", 8);
        queue.push(1).unwrap();
        queue.push(2).unwrap();
        queue.close();
        assert!(matches!(queue.push(3), Err((StorageError::Closed, 3))));
        let mut taken = Vec::new();
        assert!(queue.pop(1, &mut taken));
        assert!(queue.pop(8, &mut taken));
        assert_eq!(taken, [1, 2]);
        assert!(!queue.pop(8, &mut taken));
    }
}
