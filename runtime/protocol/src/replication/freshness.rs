//! How fresh the state is that a query shows, and who may show it.
//!
//! ```text
//!   (nothing said)    the primary, under a lease or after a round      linearizable
//!   Strict            the primary, after a round that began later      linearizable, without clocks
//!   AtLeast(token)    any whole copy that has applied the token        read your writes
//!   MaxStaleness(d)   any whole copy that has applied a place where    no older than d
//!                     the primary stood at most d ago
//! ```
//! **What staleness is counted from.** An append says what is committed, and reaches a standby an
//! unknown time later; a deposed primary sends such appends, too. So neither its receipt nor its
//! own number says how old the states are. What does is a question: whoever asks the primary notes
//! when, on its own clock, and the answer, which is linearizable, says where the shard stands. All
//! that was acknowledged before the question lies before that place, whoever acknowledged it.
//! [`Places`] keeps the last one of each shard; a copy that has applied it shows states at most as
//! old as the question. Who is cut off from the primary gets no newer place, and its states become
//! too old.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Position;
use crate::id::{ShardId, Token};
use crate::mutants::{Mutant, Planted};
use crate::time::Instant;

/// What a query asks for that does not want the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Freshness {
    /// Linearizable, and no clock is relied on: the primary asks the other copies in sync after the
    /// query came.
    Strict,
    /// A state that includes the entry of this token and all before it, at any copy.
    AtLeast(Token),
    /// A state that includes everything that was acknowledged so long before the query came, or
    /// earlier. The primary answers as to any query, and says where the whole shard stands.
    MaxStaleness(Duration),
}

impl Token {
    /// What a copy must have applied to include it: an entry, and one of the epoch that told of it.
    /// A primary tells nothing before the first entry of its epoch is committed, so there is one.
    pub const fn position(&self) -> Position {
        Position { epoch: self.epoch, seq: self.seq }
    }
}

/// Whether a copy shows a query what it has applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Showing {
    /// It does.
    Show,
    /// It has not applied enough, or is not whole. It may be, later.
    Wait,
}

/// Where a shard stood.
#[derive(Debug, Clone, Copy)]
struct Place {
    asked_at: Instant,
    token: Token,
}

/// Where shards stood when their primaries were asked last, as one process knows it: a place for
/// each shard at most.
#[derive(Debug, Default)]
pub struct Places {
    of: BTreeMap<ShardId, Place>,
    planted: Planted,
}

impl Places {
    /// Breaks a rule on purpose.
    #[cfg(feature = "mutants")]
    pub const fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
    }

    /// The primary was asked at `asked_at` and has answered, now, that the shard stands there.
    ///
    /// # Panics
    /// When the answer came before the question.
    pub fn handle_answer(&mut self, token: Token, asked_at: Instant, now: Instant) {
        assert!(asked_at <= now, "an answer follows its question");
        let late = self.planted.has(Mutant::StalenessFromReceipt);
        let asked_at = if late { now } else { asked_at };
        let known = self.of.get(&token.shard);
        if known.is_none_or(|known| known.asked_at < asked_at) {
            self.of.insert(token.shard, Place { asked_at, token });
        }
    }

    /// What a copy must have applied to show a query, which came at `arrived_at`, a state at most
    /// this old. `None` when only the primary can.
    pub fn place(
        &self,
        shard: ShardId,
        arrived_at: Instant,
        max_staleness: Duration,
    ) -> Option<Token> {
        let known = self.of.get(&shard)?;
        let fresh = arrived_at.saturating_since(known.asked_at) <= max_staleness;
        fresh.then_some(known.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, Seq};

    fn token(seq: u64) -> Token {
        Token { shard: ShardId(3), epoch: Epoch(1), seq: Seq(seq) }
    }

    fn place(places: &Places, arrived_at: u64, max_staleness: u64) -> Option<Token> {
        let max_staleness = Duration::from_millis(max_staleness);
        places.place(ShardId(3), Instant::from_millis(arrived_at), max_staleness)
    }

    fn answer(places: &mut Places, seq: u64, asked_at: u64, now: u64) {
        let [asked_at, now] = [asked_at, now].map(Instant::from_millis);
        places.handle_answer(token(seq), asked_at, now);
    }

    #[test]
    fn staleness_is_counted_from_the_question() {
        let mut places = Places::default();
        assert_eq!(place(&places, 0, 1_000), None);
        answer(&mut places, 7, 100, 190);
        assert_eq!(place(&places, 200, 100), Some(token(7)));
        assert_eq!(place(&places, 201, 100), None, "the answer was 90 ms on its way");
    }

    #[test]
    fn who_is_cut_off_becomes_too_old() {
        let mut places = Places::default();
        answer(&mut places, 7, 100, 101);
        assert!((0..=350).all(|later| place(&places, later, 250) == Some(token(7))));
        assert!((351..9_000).all(|later| place(&places, later, 250).is_none()));
    }

    #[test]
    fn an_answer_to_an_earlier_question_replaces_no_later_one() {
        let mut places = Places::default();
        answer(&mut places, 9, 200, 210);
        answer(&mut places, 7, 100, 220);
        assert_eq!(place(&places, 250, 50), Some(token(9)));
    }

    #[test]
    fn a_query_that_came_before_the_question_may_be_shown_its_answer() {
        let mut places = Places::default();
        answer(&mut places, 9, 200, 210);
        assert_eq!(place(&places, 150, 0), Some(token(9)));
        assert_eq!(place(&places, 201, 0), None);
    }

    #[test]
    #[cfg(feature = "mutants")]
    fn a_staleness_that_is_counted_from_the_receipt_is_found() {
        let mut places = Places::default();
        places.plant(Mutant::StalenessFromReceipt);
        answer(&mut places, 7, 100, 190);
        assert_eq!(place(&places, 201, 100), Some(token(7)), "a state of 101 ms ago");
    }
}
