//! What happened, as the invariants hear it: one event at a time, digested and counted.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::hash::Hasher as _;

use mainstay_protocol::id::{Epoch, Seq};
use mainstay_protocol::message::{Failure, Success};
use mainstay_protocol::shard::{Admitted, Slot};
use mainstay_protocol::time::Instant;

use super::clients::Call;
use super::cluster::Stored;

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A client made a call.
    Invoked(Call),
    /// The machine took it in.
    Admitted(Call, Admitted),
    /// The machine refused it at the door.
    Refused(Call, Failure),
    /// Its turn began.
    TurnBegan(Call, Slot, Instant),
    /// Its handler panicked.
    Panicked(Call),
    /// Its turn ended.
    TurnEnded(Call, Slot),
    /// An entry was written into the primary's journal.
    Appended(Stored),
    /// The watermark is here.
    Watermark(Epoch, Seq),
    /// A caller was released with its reply.
    Replied(Call, Result<Success, Failure>),
    /// A caller was told that its call did not run, at step-down or when it gave up.
    NotExecuted(Call),
    /// A caller does not know: step-down, or a crash.
    Unknown(Call),
    /// A member became the primary of a new epoch.
    Promoted(Epoch),
    /// A fault.
    Fault(&'static str),
}

/// How often things happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls made.
    pub calls: u64,
    /// Refused at the door.
    pub refused: u64,
    /// Joined one in flight.
    pub joined: u64,
    /// Waited for room.
    pub waited: u64,
    /// Answered from the dedup table.
    pub replayed: u64,
    /// Turns.
    pub turns: u64,
    /// Entries.
    pub entries: u64,
    /// Replies with a value.
    pub values: u64,
    /// Refusals by the entity.
    pub app: u64,
    /// Expired in a queue.
    pub expired: u64,
    /// Refused for the version that they name.
    pub unmet: u64,
    /// Key conflicts.
    pub conflicts: u64,
    /// Quarantined inputs refused or recorded.
    pub quarantined: u64,
    /// Refused for want of room.
    pub overloaded: u64,
    /// New primaries.
    pub promotions: u64,
    /// Faults.
    pub faults: u64,
    /// Told that nothing ran, at step-down.
    pub not_executed: u64,
    /// Told that the outcome is unknown.
    pub unknown: u64,
}

impl Counts {
    /// Counts an event.
    fn count(&mut self, event: &Event) {
        let counter = match event {
            Event::Invoked(_) => &mut self.calls,
            Event::Admitted(_, Admitted::Joined) => &mut self.joined,
            Event::Admitted(_, Admitted::Waiting(_)) => &mut self.waited,
            Event::Admitted(_, Admitted::Replayed) => &mut self.replayed,
            Event::Refused(_, Failure::KeyConflict) => &mut self.conflicts,
            Event::Refused(_, Failure::Overloaded { .. }) => &mut self.overloaded,
            Event::Refused(_, Failure::Panicked { .. })
            | Event::Replied(_, Err(Failure::Panicked { quarantined: true })) => {
                &mut self.quarantined
            }
            Event::Refused(..) => &mut self.refused,
            Event::TurnBegan(..) => &mut self.turns,
            Event::Appended(_) => &mut self.entries,
            Event::Replied(_, Ok(_)) => &mut self.values,
            Event::Replied(_, Err(Failure::App { .. })) => &mut self.app,
            Event::Replied(_, Err(Failure::Deadline { .. })) => &mut self.expired,
            Event::Replied(_, Err(Failure::VersionMismatch { .. })) => &mut self.unmet,
            Event::Promoted(_) => &mut self.promotions,
            Event::Fault(_) => &mut self.faults,
            Event::NotExecuted(_) => &mut self.not_executed,
            Event::Unknown(_) => &mut self.unknown,
            Event::Admitted(..)
            | Event::Panicked(_)
            | Event::TurnEnded(..)
            | Event::Watermark(..)
            | Event::Replied(..) => return,
        };
        *counter += 1;
    }

    const fn fields(&mut self) -> [(&'static str, &mut u64); 18] {
        [
            ("calls", &mut self.calls),
            ("refused", &mut self.refused),
            ("joined", &mut self.joined),
            ("waited", &mut self.waited),
            ("replayed", &mut self.replayed),
            ("turns", &mut self.turns),
            ("entries", &mut self.entries),
            ("values", &mut self.values),
            ("app", &mut self.app),
            ("expired", &mut self.expired),
            ("unmet", &mut self.unmet),
            ("conflicts", &mut self.conflicts),
            ("quarantined", &mut self.quarantined),
            ("overloaded", &mut self.overloaded),
            ("promotions", &mut self.promotions),
            ("faults", &mut self.faults),
            ("not_executed", &mut self.not_executed),
            ("unknown", &mut self.unknown),
        ]
    }

    /// Adds the counts of another seed.
    pub fn add(&mut self, mut other: Self) {
        for ((_, sum), (_, more)) in self.fields().into_iter().zip(other.fields()) {
            *sum += *more;
        }
    }

    /// A simulation that never meets a case proves nothing about it.
    ///
    /// # Panics
    /// When something never happened.
    pub fn assert_everything_happened(mut self) {
        for (name, count) in self.fields() {
            assert!(*count > 0, "{name} never happened");
        }
    }
}

/// The digest and the counts of a run.
#[derive(Debug, Default)]
pub struct Trace {
    digest: DefaultHasher,
    /// The counts.
    pub counts: Counts,
    text: String,
}

impl Trace {
    /// Takes an event in.
    pub fn push(&mut self, event: &Event) {
        self.counts.count(event);
        self.text.clear();
        write!(self.text, "{event:?}").expect("a String takes any text");
        self.digest.write(self.text.as_bytes());
    }

    /// The digest of everything so far.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }
}
