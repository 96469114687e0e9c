//! Replies, or anything else, that wait for the watermark.
//!
//! ```text
//!   seq        41      42      43          uncommitted, in order
//!   held      [a b]   [ ]     [c]          what waits for each, in order
//! ```
//! Holding and releasing cost O(1); what waits for a seq leaves in the order in which it came, and
//! never before the watermark is there (invariant I6).

use std::collections::VecDeque;

use crate::id::Seq;
use crate::list::{List, Pool};

/// What waits for seqs above the watermark. Also for a lane's own use: calls that a turn makes
/// wait like replies do.
#[derive(Debug)]
pub struct Held<H> {
    /// Everything up to this seq has been let go.
    released: Seq,
    /// What waits for `released + 1`, `released + 2`, ...
    gates: VecDeque<List>,
    waiting: Pool<H>,
    /// What may leave.
    open: List,
}

impl<H> Held<H> {
    /// Nothing waits; everything up to `watermark` is committed.
    pub const fn new(watermark: Seq) -> Self {
        Self {
            released: watermark,
            gates: VecDeque::new(),
            waiting: Pool::new(),
            open: List::new(),
        }
    }

    /// Holds something until the watermark reaches `gate`.
    ///
    /// # Panics
    /// When the gate is further ahead than memory is large.
    pub fn hold(&mut self, gate: Seq, held: H) {
        let Some(ahead) = gate.0.checked_sub(self.released.0 + 1) else {
            self.waiting.append(&mut self.open, held);
            return;
        };
        let ahead = usize::try_from(ahead).expect("what is uncommitted fits in memory");
        if self.gates.len() <= ahead {
            self.gates.resize(ahead + 1, List::new());
        }
        self.waiting.append(&mut self.gates[ahead], held);
    }

    /// Takes what may leave, one at a time.
    pub fn release(&mut self, watermark: Seq) -> Option<H> {
        while self.released < watermark {
            self.released = self.released.next();
            let mut gate = self.gates.pop_front().unwrap_or_else(List::new);
            while let Some(id) = self.waiting.pop_front(&mut gate) {
                self.waiting.push_back(&mut self.open, id);
            }
            if self.gates.is_empty() {
                self.released = watermark;
            }
        }
        self.waiting.take_front(&mut self.open)
    }

    /// How much is held.
    pub fn len(&self) -> u32 {
        self.waiting.len()
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.waiting.len() == 0
    }

    /// Gives everything up: first what may leave, then the rest in order.
    pub fn into_rest(mut self) -> Vec<H> {
        let last = Seq(self.released.0 + self.gates.len() as u64);
        std::iter::from_fn(|| self.release(last)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_leaves_before_its_gate() {
        let mut held = Held::new(Seq(4));
        held.hold(Seq(6), 'c');
        held.hold(Seq(4), 'a');
        held.hold(Seq(5), 'b');
        assert_eq!(held.release(Seq(4)), Some('a'));
        assert_eq!(held.release(Seq(4)), None);
        assert_eq!(held.release(Seq(5)), Some('b'));
        assert_eq!(held.release(Seq(5)), None);
        assert_eq!(held.into_rest(), ['c']);
    }

    proptest! {
        #[test]
        fn it_is_a_stable_sort_cut_at_the_watermark(
            ops in prop::collection::vec((0..12_u64, any::<bool>()), 0..200),
        ) {
            let mut held = Held::new(Seq(3));
            let mut model: Vec<(u64, usize)> = Vec::new();
            let mut watermark = 3;
            for (number, (amount, push)) in ops.into_iter().enumerate() {
                if push {
                    held.hold(Seq(watermark + amount - amount.min(3)), number);
                    model.push((watermark + amount - amount.min(3), number));
                } else {
                    watermark += amount / 4;
                }
                let mut due: Vec<_> = model.iter().filter(|it| it.0 <= watermark).copied().collect();
                due.sort_by_key(|it| it.0);
                model.retain(|it| it.0 > watermark);
                let got: Vec<usize> = std::iter::from_fn(|| held.release(Seq(watermark))).collect();
                prop_assert_eq!(got, due.into_iter().map(|it| it.1).collect::<Vec<_>>());
                prop_assert_eq!(held.len() as usize, model.len());
            }
        }
    }
}
