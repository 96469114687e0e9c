//! Looks for an order in which all calls can take effect: Wing and Gong, with Lowe's memory.
//!
//! Begins and ends of all calls stand in one chain, in order of time. A call whose begin stands
//! before the first end in the chain may take effect next. Taken, its begin and end leave the
//! chain. When the first end is reached and nothing fits, the last call that was taken is put back
//! and the next one is tried. What was taken and the state after it are remembered: the same again
//! leads nowhere again. A read that fits is never put back for another call: whatever comes after
//! it would come as well with the read taken.

use std::collections::HashSet;
use std::hash::Hash;

/// When a call can take effect.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Not before.
    pub(super) invoked: u64,
    /// Not after; without an answer, at any time or never.
    pub(super) answered: Option<u64>,
    /// It changes nothing, ever.
    pub(super) reads: bool,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There is an order.
    Order,
    /// There is none: no try comes past the end of this call.
    NoOrder {
        /// The call.
        stuck: usize,
    },
    /// The steps were used up.
    GaveUp,
}

/// The first link of the chain, before all others; it closes the ring.
const HEAD: usize = 0;

/// A begin or an end.
#[derive(Debug, Clone, Copy)]
struct Link {
    call: usize,
    ends: bool,
    before: usize,
    after: usize,
}

/// Begins and ends that are left, in order of time. At the same time, begins come first.
#[derive(Debug)]
struct Chain {
    links: Vec<Link>,
    /// Where each call begins and ends.
    of_call: Vec<(usize, Option<usize>)>,
}

impl Chain {
    fn new(spans: &[Span]) -> Self {
        let mut times = Vec::with_capacity(spans.len() * 2);
        for (call, span) in spans.iter().enumerate() {
            times.push((span.invoked, false, call));
            times.extend(span.answered.map(|answered| (answered, true, call)));
        }
        times.sort_unstable();
        let last = times.len();
        let mut links = vec![Link { call: 0, ends: true, before: last, after: HEAD }];
        let mut of_call = vec![(HEAD, None); spans.len()];
        for (_, ends, call) in times {
            let index = links.len();
            links.push(Link { call, ends, before: index - 1, after: HEAD });
            links[index - 1].after = index;
            if ends {
                of_call[call].1 = Some(index);
            } else {
                of_call[call].0 = index;
            }
        }
        Self { links, of_call }
    }

    fn unlink(&mut self, index: usize) {
        let Link { before, after, .. } = self.links[index];
        self.links[before].after = after;
        self.links[after].before = before;
    }

    fn relink(&mut self, index: usize) {
        let Link { before, after, .. } = self.links[index];
        self.links[before].after = index;
        self.links[after].before = index;
    }

    fn take(&mut self, call: usize) {
        let (begin, end) = self.of_call[call];
        self.unlink(begin);
        if let Some(end) = end {
            self.unlink(end);
        }
    }

    /// Puts the call back that was taken last.
    fn put_back(&mut self, call: usize) {
        let (begin, end) = self.of_call[call];
        if let Some(end) = end {
            self.relink(end);
        }
        self.relink(begin);
    }
}

/// A set of calls, a bit each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Calls(Box<[u64]>);

impl Calls {
    fn none_of(calls: usize) -> Self {
        Self(vec![0; calls.div_ceil(64)].into())
    }

    fn flip(&mut self, call: usize) {
        self.0[call / 64] ^= 1 << (call % 64);
    }
}

/// Looks for an order. `next` is the state after a call, if the call fits the state before it.
pub(super) fn search<S: Clone + Eq + Hash>(
    spans: &[Span],
    start: S,
    next: impl Fn(&S, usize) -> Option<S>,
    steps_max: u64,
) -> Found {
    let mut chain = Chain::new(spans);
    let mut state = start;
    let mut taken = Calls::none_of(spans.len());
    let mut tried = HashSet::new();
    let mut path: Vec<(usize, S)> = Vec::new();
    let mut left = spans.iter().filter(|span| span.answered.is_some()).count();
    let (mut at, mut furthest, mut steps) = (chain.links[HEAD].after, HEAD, 0);
    while left > 0 {
        let Link { call, ends, after, .. } = chain.links[at];
        if !ends {
            steps += 1;
            if steps > steps_max {
                return Found::GaveUp;
            }
            at = after;
            let Some(reached) = next(&state, call) else { continue };
            taken.flip(call);
            if !tried.insert((taken.clone(), reached.clone())) {
                taken.flip(call);
                continue;
            }
            steps += taken.0.len() as u64;
            chain.take(call);
            left -= usize::from(spans[call].answered.is_some());
            path.push((call, std::mem::replace(&mut state, reached)));
            at = chain.links[HEAD].after;
            continue;
        }
        furthest = furthest.max(at);
        loop {
            let Some((call, before)) = path.pop() else {
                return Found::NoOrder { stuck: chain.links[furthest].call };
            };
            chain.put_back(call);
            taken.flip(call);
            left += usize::from(spans[call].answered.is_some());
            state = before;
            if !spans[call].reads {
                at = chain.links[chain.of_call[call].0].after;
                break;
            }
        }
    }
    Found::Order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations of a register: written or read value, invoked, answered.
    enum Does {
        Writes(u8),
        Reads(u8),
    }
    use Does::{Reads, Writes};

    fn register(calls: &[(Does, u64, Option<u64>)], steps_max: u64) -> Found {
        let spans: Vec<Span> = calls
            .iter()
            .map(|(does, invoked, answered)| Span {
                invoked: *invoked,
                answered: *answered,
                reads: matches!(does, Reads(_)),
            })
            .collect();
        let next = |value: &u8, call: usize| match calls[call].0 {
            Writes(written) => Some(written),
            Reads(read) => (read == *value).then_some(read),
        };
        search(&spans, 0, next, steps_max)
    }

    #[test]
    fn a_write_under_way_may_be_seen_or_not_but_not_first_seen_and_then_not() {
        let write = || (Writes(1), 0, Some(9));
        let seen = [write(), (Reads(0), 1, Some(2)), (Reads(1), 3, Some(4))];
        assert_eq!(register(&seen, 100), Found::Order);
        let unseen = [write(), (Reads(1), 1, Some(2)), (Reads(0), 3, Some(4))];
        assert_eq!(register(&unseen, 100), Found::NoOrder { stuck: 2 });
    }

    #[test]
    fn an_unanswered_write_takes_effect_late_or_never() {
        let late = [(Writes(1), 0, None), (Reads(0), 5, Some(6)), (Reads(1), 7, Some(8))];
        assert_eq!(register(&late, 100), Found::Order);
        assert_eq!(register(&[(Writes(1), 0, None), (Reads(0), 5, Some(6))], 100), Found::Order);
        let early = [(Reads(1), 0, Some(1)), (Writes(1), 2, None)];
        assert_eq!(register(&early, 100), Found::NoOrder { stuck: 0 });
    }

    #[test]
    fn calls_whose_ends_touch_are_concurrent() {
        let touch = [(Reads(1), 0, Some(1)), (Writes(1), 1, Some(2))];
        assert_eq!(register(&touch, 100), Found::Order);
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        // Eight writes at once and a read of something else: 8! orders, 8 times 2^8 states.
        let mut calls: Vec<_> = (1..=8).map(|value| (Writes(value), 0, Some(10))).collect();
        calls.push((Reads(99), 0, Some(10)));
        assert!(matches!(register(&calls, 20_000), Found::NoOrder { .. }));
        assert_eq!(register(&calls, 1_000), Found::GaveUp);
    }
}
