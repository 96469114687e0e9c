//! What may be outstanding towards one receiver: a window of messages and bytes.
//!
//! One [`Credits`] stands on each side of a connection, per source. The sender takes a credit
//! *before* it builds the message and gives it back when the reply comes; the receiver keeps the
//! same account and cuts a source that overruns it. Replies, acknowledgements and control messages
//! take none (write-path.md 10).
//!
//! ```text
//!   0            window x 3/4                             window
//!   |----------------|--|--|--|--|--|--|-- ... --|--|--|--|
//!     calls from       in-turn calls, one more step for each entity
//!     outside          on the call chain
//! ```
//!
//! A turn that calls another entity holds its own credit while it waits for the inner one. Were
//! both taken from one pool, enough outer calls would leave nothing for the inner ones that they
//! wait for. So each depth of a call chain may fill the window a step further than the one above:
//! the deepest calls always find room, end, and let the next ones end (Havender 1968: no deadlock
//! when resources are taken in order). In messages this holds from 64 on; in bytes, for messages
//! of at most one step.

use crate::limits;
use crate::message::Window;

/// A part of a window that is taken. Not to be cloned: it is given back once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a credit that is dropped is never given back"]
pub struct Credit {
    bytes: u64,
}

impl Credit {
    /// The bytes that it stands for.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Why no credit was given. Nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// As many messages are outstanding as may be. Wait for a reply, or refuse.
    #[error("{outstanding} messages are outstanding, the limit here is {messages_max}")]
    Messages {
        /// Without a reply so far.
        outstanding: u32,
        /// The limit at this depth of the call chain.
        messages_max: u32,
    },
    /// As many bytes are outstanding as may be. Wait for a reply, or refuse.
    #[error("{outstanding} of {bytes_max} bytes are outstanding, no room for {bytes} more")]
    Bytes {
        /// Without a reply so far.
        outstanding: u64,
        /// Of this message.
        bytes: u64,
        /// The limit at this depth of the call chain.
        bytes_max: u64,
    },
    /// The message never fits, however long it waits. Make it smaller.
    #[error("a message of {bytes} bytes does not fit into a window of {bytes_max}")]
    TooLarge {
        /// Of this message.
        bytes: u64,
        /// The limit at this depth of the call chain, with nothing outstanding.
        bytes_max: u64,
    },
}

/// The account of one source. Never more than the window is taken, never less than nothing.
#[derive(Debug)]
pub struct Credits {
    window: Window,
    taken: Window,
}

impl Credits {
    /// A window with nothing taken.
    pub const fn new(window: Window) -> Self {
        Self { window, taken: Window { messages: 0, bytes: 0 } }
    }

    /// Takes a credit for a message of `bytes` bytes. `depth` is the number of entities whose
    /// turns wait for it: 0 for a call from outside. The receiver's account, which only guards
    /// the window as a whole, passes [`limits::CALL_CHAIN_MAX`].
    ///
    /// # Errors
    /// [`TakeError`] by which bound has no room; nothing was taken.
    pub fn try_take(&mut self, depth: usize, bytes: u64) -> Result<Credit, TakeError> {
        let limit = self.limit(depth);
        if bytes > limit.bytes {
            return Err(TakeError::TooLarge { bytes, bytes_max: limit.bytes });
        }
        if self.taken.messages >= limit.messages {
            return Err(TakeError::Messages {
                outstanding: self.taken.messages,
                messages_max: limit.messages,
            });
        }
        if self.taken.bytes.saturating_add(bytes) > limit.bytes {
            return Err(TakeError::Bytes {
                outstanding: self.taken.bytes,
                bytes,
                bytes_max: limit.bytes,
            });
        }
        self.taken.messages += 1;
        self.taken.bytes += bytes;
        self.assert_invariants();
        Ok(Credit { bytes })
    }

    /// The reply came, or the message will never be sent.
    ///
    /// # Panics
    /// When the credit is of another account: more would be given back than was taken.
    #[expect(clippy::needless_pass_by_value, reason = "the credit ends here")]
    pub fn give_back(&mut self, credit: Credit) {
        let messages = self.taken.messages.checked_sub(1);
        self.taken.messages = messages.expect("a credit is given back where it was taken");
        let bytes = self.taken.bytes.checked_sub(credit.bytes);
        self.taken.bytes = bytes.expect("a credit is given back where it was taken");
        self.assert_invariants();
    }

    /// What is outstanding.
    pub const fn taken(&self) -> Window {
        self.taken
    }

    /// What a call of this depth could still take.
    pub fn available(&self, depth: usize) -> Window {
        let limit = self.limit(depth);
        Window {
            messages: limit.messages.saturating_sub(self.taken.messages),
            bytes: limit.bytes.saturating_sub(self.taken.bytes),
        }
    }

    /// How far calls of this depth may fill the window; see the picture above.
    fn limit(&self, depth: usize) -> Window {
        let steps = limits::CALL_CHAIN_MAX as u64;
        let kept = steps - (depth as u64).min(steps);
        let part = |whole: u64| whole - whole / RESERVE_SHARE * kept / steps;
        let messages = part(u64::from(self.window.messages));
        Window {
            messages: u32::try_from(messages).expect("a part of a u32"),
            bytes: part(self.window.bytes),
        }
    }

    fn assert_invariants(&self) {
        assert!(self.taken.messages <= self.window.messages, "messages within the window");
        assert!(self.taken.bytes <= self.window.bytes, "bytes within the window");
        debug_assert!(self.taken.messages > 0 || self.taken.bytes == 0, "bytes have a message");
    }
}

/// The reserve for in-turn calls is one part in so many.
const RESERVE_SHARE: u64 = 4;

/// How many waiters of one source one entity may hold: an eighth of the source's window, so that
/// one stalled entity leaves room for the others.
pub const fn entity_share(window: Window) -> u32 {
    let share = window.messages / 8;
    if share == 0 { 1 } else { share }
}

/// The window of a connection that replaces another one of the same source, whose work is still
/// queued here: what is queued is not granted twice. An eighth is always granted, since a
/// connection keeps its window for life and must be able to work.
pub fn window_beside(full: Window, queued: Window) -> Window {
    Window {
        messages: full.messages.saturating_sub(queued.messages).max(full.messages / 8).max(1),
        bytes: full.bytes.saturating_sub(queued.bytes).max(full.bytes / 8),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Window = Window { messages: 64, bytes: 64_000 };

    #[test]
    fn a_full_window_gives_nothing_until_a_reply_comes() {
        let mut credits = Credits::new(WINDOW);
        let mut held: Vec<_> = (0..48).map(|_| credits.try_take(0, 1).unwrap()).collect();
        let full = TakeError::Messages { outstanding: 48, messages_max: 48 };
        assert_eq!(credits.try_take(0, 1), Err(full));
        credits.give_back(held.pop().unwrap());
        assert!(credits.try_take(0, 1).is_ok());
    }

    #[test]
    fn bytes_bound_as_well_as_messages() {
        let mut credits = Credits::new(WINDOW);
        let held = credits.try_take(0, 40_000).unwrap();
        assert_eq!(
            credits.try_take(0, 8_001),
            Err(TakeError::Bytes { outstanding: 40_000, bytes: 8_001, bytes_max: 48_000 })
        );
        assert_eq!(credits.try_take(0, 8_000).unwrap().bytes(), 8_000);
        credits.give_back(held);
        assert_eq!(credits.taken(), Window { messages: 1, bytes: 8_000 });
    }

    #[test]
    fn a_message_larger_than_the_window_never_fits() {
        let mut credits = Credits::new(WINDOW);
        let refused = credits.try_take(0, 48_001).unwrap_err();
        assert_eq!(refused, TakeError::TooLarge { bytes: 48_001, bytes_max: 48_000 });
    }

    #[test]
    fn every_depth_finds_room_when_all_above_it_are_full() {
        let mut credits = Credits::new(WINDOW);
        for depth in 0..=limits::CALL_CHAIN_MAX {
            let mut taken = 0;
            while let Ok(credit) = credits.try_take(depth, 1_000) {
                assert_eq!(credit.bytes(), 1_000);
                taken += 1;
            }
            assert!(taken > 0, "depth {depth} found no room");
        }
        assert_eq!(credits.taken(), WINDOW);
    }

    #[test]
    fn one_entity_holds_at_most_an_eighth() {
        assert_eq!(entity_share(Window { messages: 2048, bytes: 0 }), 256);
        assert_eq!(entity_share(Window { messages: 3, bytes: 0 }), 1);
    }

    #[test]
    fn a_new_connection_is_not_granted_what_the_old_one_still_holds() {
        let queued = Window { messages: 16, bytes: 1_000 };
        assert_eq!(window_beside(WINDOW, queued), Window { messages: 48, bytes: 63_000 });
        assert_eq!(window_beside(WINDOW, WINDOW), Window { messages: 8, bytes: 8_000 });
    }

    #[test]
    #[should_panic(expected = "given back where it was taken")]
    fn a_foreign_credit_is_noticed() {
        let credit = Credits::new(WINDOW).try_take(0, 5).unwrap();
        Credits::new(WINDOW).give_back(credit);
    }

    proptest! {
        /// Whatever is taken and given back in whatever order, the account equals what is held and
        /// stays within the window; and with everything back, the window is whole.
        #[test]
        fn the_account_equals_what_is_held(
            messages in 1_u32..200, bytes in 1_u64..100_000,
            steps in prop::collection::vec((0_usize..20, 1_u64..5_000, any::<bool>()), 0..300),
        ) {
            let window = Window { messages, bytes };
            let mut credits = Credits::new(window);
            let mut held: Vec<Credit> = Vec::new();
            for (pick, size, take) in steps {
                let limit = credits.available(pick);
                if take {
                    let got = credits.try_take(pick, size);
                    prop_assert_eq!(got.is_ok(), limit.messages > 0 && limit.bytes >= size);
                    held.extend(got);
                } else if !held.is_empty() {
                    credits.give_back(held.swap_remove(pick % held.len()));
                }
                prop_assert_eq!(credits.taken().messages as usize, held.len());
                prop_assert_eq!(credits.taken().bytes, held.iter().map(Credit::bytes).sum::<u64>());
                prop_assert!(credits.taken().messages <= messages && credits.taken().bytes <= bytes);
            }
            for credit in held {
                credits.give_back(credit);
            }
            prop_assert_eq!(credits.taken(), Window { messages: 0, bytes: 0 });
        }
    }
}
