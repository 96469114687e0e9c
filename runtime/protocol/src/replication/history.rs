//! Which epoch wrote which part of a log: what two copies compare to find where they agree.
//!
//! ```text
//!   seq      41   42 43 44   45 46 ...
//!   epoch     3  | 4  4  4  | 7  7
//!            base     runs          last
//! ```
//! `(epoch, seq)` names an entry for ever, so two logs that have the same epoch at a place have the
//! same entries up to there. Only the runs are kept: a log of a million entries written in three
//! epochs is three pairs. What lies at or below the base is committed, and the same everywhere.

use std::collections::VecDeque;

use super::Position;
use crate::id::{Epoch, Seq};

/// The epochs of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct History {
    base: Position,
    /// Where each epoch begins, in order; the first is right after the base.
    runs: VecDeque<(Seq, Epoch)>,
    last: Seq,
}

impl History {
    /// A log that ends at `base`, whose earlier entries are not asked about.
    pub const fn new(base: Position) -> Self {
        Self { base, runs: VecDeque::new(), last: base.seq }
    }

    /// The last entry.
    pub fn last(&self) -> Position {
        Position { epoch: self.runs.back().map_or(self.base.epoch, |run| run.1), seq: self.last }
    }

    /// Where it begins: everything up to there is committed.
    pub const fn base(&self) -> Position {
        self.base
    }

    /// The epoch of the entry at a place; `None` before the base and after the end.
    pub fn epoch_at(&self, seq: Seq) -> Option<Epoch> {
        if seq > self.last || seq < self.base.seq {
            return None;
        }
        let later = self.runs.partition_point(|(first, _)| *first <= seq);
        Some(later.checked_sub(1).map_or(self.base.epoch, |at| self.runs[at].1))
    }

    /// Entries up to `upto` are added at the end.
    ///
    /// # Panics
    /// When they are of an earlier epoch than the last entry: epochs of a log only grow.
    pub fn append(&mut self, epoch: Epoch, upto: Seq) {
        if upto <= self.last {
            return;
        }
        let last = self.last();
        assert!(last.epoch <= epoch, "epochs of a log only grow");
        if last.epoch < epoch || self.runs.is_empty() {
            self.runs.push_back((self.last.next(), epoch));
        }
        self.last = upto;
    }

    /// Everything from `seq` on is taken away.
    ///
    /// # Panics
    /// When that would take away the base: it is committed.
    pub fn truncate_from(&mut self, seq: Seq) {
        assert!(seq > self.base.seq, "what is committed stays");
        if seq > self.last {
            return;
        }
        self.last = Seq(seq.0 - 1);
        while self.runs.back().is_some_and(|(first, _)| *first > self.last) {
            self.runs.pop_back();
        }
    }

    /// Nobody will ask about entries before `seq` any more.
    pub fn forget_below(&mut self, seq: Seq) {
        if seq <= self.base.seq {
            return;
        }
        let seq = seq.min(self.last);
        let Some(epoch) = self.epoch_at(seq) else { return };
        self.base = Position { epoch, seq };
        while self.runs.get(1).is_some_and(|(first, _)| *first <= seq.next()) {
            self.runs.pop_front();
        }
        match self.runs.front_mut() {
            Some(_) if seq == self.last => self.runs.clear(),
            Some(front) => front.0 = front.0.max(seq.next()),
            None => {}
        }
    }

    /// The last place at which another log, that has `theirs` there, may agree with this one; the
    /// search for where they part goes on from it. `None` when only the part before the base could.
    pub fn agreement(&self, theirs: Position) -> Option<Position> {
        let upto = theirs.seq.min(self.last);
        if upto < self.base.seq {
            return None;
        }
        if self.epoch_at(upto).is_some_and(|epoch| epoch <= theirs.epoch) {
            return self.epoch_at(upto).map(|epoch| Position { epoch, seq: upto });
        }
        // They have an older epoch there: what this log has of newer ones is unknown to them.
        let newer = self.runs.iter().find(|(_, epoch)| *epoch > theirs.epoch);
        let seq = newer.map_or(self.last, |(first, _)| Seq(first.0 - 1));
        let epoch = self.epoch_at(seq)?;
        (epoch <= theirs.epoch).then_some(Position { epoch, seq })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch: Epoch(epoch), seq: Seq(seq) }
    }

    fn of(epochs: &[u64]) -> History {
        let mut history = History::new(at(0, 0));
        for (seq, epoch) in (1..).zip(epochs) {
            history.append(Epoch(*epoch), Seq(seq));
        }
        history
    }

    #[test]
    fn a_place_has_the_epoch_that_wrote_it() {
        let history = of(&[1, 1, 3, 3, 4]);
        let epochs: Vec<_> = (0..7).map(|seq| history.epoch_at(Seq(seq)).map(|it| it.0)).collect();
        assert_eq!(epochs, [Some(0), Some(1), Some(1), Some(3), Some(3), Some(4), None]);
        assert_eq!(history.last(), at(4, 5));
    }

    #[test]
    fn logs_that_parted_meet_again_before_the_first_epoch_that_one_does_not_know() {
        let ours = of(&[1, 1, 3, 3, 4]);
        assert_eq!(ours.agreement(at(1, 9)), Some(at(1, 2)), "they wrote on in epoch 1");
        assert_eq!(ours.agreement(at(2, 3)), Some(at(1, 2)), "epoch 2 is unknown here");
        assert_eq!(ours.agreement(at(3, 3)), Some(at(3, 3)));
        assert_eq!(ours.agreement(at(9, 4)), Some(at(3, 4)), "theirs is looked at from there");
        assert_eq!(ours.agreement(at(0, 0)), Some(at(0, 0)));
    }

    #[test]
    fn what_lies_before_the_base_is_not_known() {
        let mut ours = of(&[1, 1, 3, 3, 4]);
        ours.forget_below(Seq(3));
        assert_eq!(ours.base(), at(3, 3));
        assert_eq!((ours.epoch_at(Seq(2)), ours.epoch_at(Seq(4))), (None, Some(Epoch(3))));
        assert_eq!(ours.agreement(at(1, 2)), None);
        assert_eq!(ours.agreement(at(1, 4)), None, "theirs of epoch 1 end before the base");
    }

    /// Epochs that only grow, one per entry.
    fn logs() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(1..6_u64, 0..30).prop_map(|mut epochs| {
            epochs.sort_unstable();
            epochs
        })
    }

    proptest! {
        #[test]
        fn it_is_a_list_of_epochs(
            epochs in logs(), cut in 1..31_u64, more in logs(), base in 0..40_u64,
        ) {
            let mut history = of(&epochs);
            let mut model = epochs;
            history.truncate_from(Seq(cut));
            model.truncate(usize::try_from(cut - 1).unwrap());
            let least = model.last().copied().unwrap_or(1);
            for epoch in more.into_iter().filter(|epoch| *epoch >= least) {
                model.push(epoch);
                history.append(Epoch(epoch), Seq(model.len() as u64));
            }
            history.forget_below(Seq(base));
            let base = base.min(model.len() as u64);
            prop_assert_eq!(history.base().seq, Seq(base));
            for seq in 0..40_u64 {
                let known = usize::try_from(seq).unwrap().checked_sub(1);
                let epoch = known.map_or(Some(0), |at| model.get(at).copied());
                let expected = epoch.filter(|_| seq >= base);
                prop_assert_eq!(history.epoch_at(Seq(seq)).map(|it| it.0), expected, "{}", seq);
            }
        }

        /// Two logs with a common past: asking back and forth ends where they part, and no step
        /// passes by it.
        #[test]
        fn agreement_never_goes_below_the_common_past(
            past in prop::collection::vec(1..4_u64, 0..10), ours in 4..7_u64, theirs in 4..7_u64,
            our_len in 0..5_usize, their_len in 0..5_usize,
        ) {
            let mut past = past;
            past.sort_unstable();
            prop_assume!(ours != theirs);
            let log = |epoch, len| [past.clone(), vec![epoch; len]].concat();
            let (ours, theirs) = (of(&log(ours, our_len)), of(&log(theirs, their_len)));
            let common = past.len() as u64;
            let mut asked = ours.last();
            for _ in 0..10 {
                if theirs.epoch_at(asked.seq) == Some(asked.epoch) {
                    break;
                }
                let hint = theirs.agreement(asked).unwrap();
                let next = ours.agreement(hint).unwrap();
                prop_assert!(next.seq < asked.seq, "each step comes closer");
                prop_assert!(next.seq.0 >= common, "and none passes by");
                asked = next;
            }
            prop_assert_eq!(asked.seq.0, common, "the last common entry");
        }
    }
}
