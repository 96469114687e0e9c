//! Passivation: which idle entities leave memory, by idle time and by a budget of bytes.
//!
//! ```text
//!   activated -> busy <-> idle -> candidate -> released
//!                                     \-> idle again (it could not go yet)
//! ```
//! One of these serves a whole lane. An idle entity is a candidate when it has been idle for as
//! long as its kind allows, or when all entities together use more than the budget; then the one
//! that was used longest ago goes first. Kinds with the same idle time share a list in order of
//! last use, so that both questions look only at the fronts of a handful of lists.

use std::time::Duration;

use crate::list::{List, Pool};
use crate::time::Instant;

/// Names an entity in memory until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidentId(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Busy,
    Idle,
    Candidate,
}

#[derive(Debug)]
struct Resident<K> {
    key: K,
    bytes: u64,
    used_at: Instant,
    class: u16,
    state: State,
}

#[derive(Debug)]
struct Class {
    idle: Duration,
    list: List,
}

/// The entities in memory and when each was used last. `K` is how the lane finds one again.
#[derive(Debug)]
pub struct Passivation<K> {
    residents: Pool<Resident<K>>,
    classes: Vec<Class>,
    bytes: u64,
    bytes_max: u64,
}

impl<K: Copy> Passivation<K> {
    /// Nothing in memory yet. Beyond `bytes_max` the idlest entities are let go; entities that
    /// are busy are not, so that the budget can be passed by what is in use at once.
    pub const fn new(bytes_max: u64) -> Self {
        Self { residents: Pool::new(), classes: Vec::new(), bytes: 0, bytes_max }
    }

    /// An entity came into memory, and is busy. `idle` is how long its kind stays unused.
    ///
    /// # Panics
    /// When there are more than 65,535 different idle times.
    pub fn handle_activated(&mut self, key: K, bytes: u64, idle: Duration) -> ResidentId {
        let class = self.classes.iter().position(|class| class.idle == idle);
        let class = class.unwrap_or_else(|| {
            self.classes.push(Class { idle, list: List::new() });
            self.classes.len() - 1
        });
        let class = u16::try_from(class).expect("kinds have few different idle times");
        self.bytes += bytes;
        let resident = Resident { key, bytes, used_at: Instant::ZERO, class, state: State::Busy };
        ResidentId(self.residents.insert(resident))
    }

    /// An entity has work.
    ///
    /// # Panics
    /// When it was released.
    pub fn handle_busy(&mut self, id: ResidentId) {
        let resident = self.residents.get_mut(id.0).expect("a released entity has no work");
        let was = std::mem::replace(&mut resident.state, State::Busy);
        let class = usize::from(resident.class);
        if was == State::Idle {
            self.residents.unlink(&mut self.classes[class].list, id.0);
        }
    }

    /// An entity has no work, or a candidate could not be let go; its state takes `bytes`.
    ///
    /// # Panics
    /// When it was released.
    pub fn handle_idle(&mut self, id: ResidentId, bytes: u64, now: Instant) {
        self.handle_busy(id);
        let resident = self.residents.get_mut(id.0).expect("a released entity does not idle");
        self.bytes = self.bytes - resident.bytes + bytes;
        resident.bytes = bytes;
        resident.used_at = now;
        resident.state = State::Idle;
        let class = usize::from(resident.class);
        self.residents.push_back(&mut self.classes[class].list, id.0);
    }

    /// An entity left memory.
    pub fn handle_released(&mut self, id: ResidentId) {
        self.handle_busy(id);
        self.bytes -= self.residents.remove(id.0).bytes;
    }

    /// More bytes are in memory than the budget has.
    pub const fn over_budget(&self) -> bool {
        self.bytes > self.bytes_max
    }

    /// The entity to let go next, if one is to go. Answer with [`Self::handle_released`], or with
    /// [`Self::handle_idle`] when it must stay (after the last call of a pass: it is asked about
    /// again at once when memory is short).
    pub fn poll_candidate(&mut self, now: Instant) -> Option<(ResidentId, K)> {
        let over = self.bytes > self.bytes_max;
        let front = |class: &Class| Some((class.list.front()?, class.idle));
        let (_, class, id) = (0..)
            .zip(&self.classes)
            .filter_map(|(at, class)| front(class).map(|(id, idle)| (at, id, idle)))
            .map(|(at, id, idle)| (self.used_at(id), at, id, idle))
            .filter(|&(used_at, _, _, idle)| over || used_at + idle <= now)
            .map(|(used_at, at, id, _)| (used_at, at, id))
            .min()?;
        let class: usize = class;
        self.residents.unlink(&mut self.classes[class].list, id);
        let resident = self.residents.get_mut(id)?;
        resident.state = State::Candidate;
        Some((ResidentId(id), resident.key))
    }

    /// When the next entity has been idle for long enough.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = |class: &Class| Some(self.used_at(class.list.front()?) + class.idle);
        self.classes.iter().filter_map(due).min()
    }

    /// Bytes of all entities in memory.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Entities in memory.
    pub fn residents(&self) -> u32 {
        self.residents.len()
    }

    fn used_at(&self, id: u32) -> Instant {
        self.residents.get(id).expect("a listed entity is in the pool").used_at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn with(bytes_max: u64, idles: &[(u64, u64)]) -> (Passivation<usize>, Vec<ResidentId>) {
        let mut lane = Passivation::new(bytes_max);
        let ids = idles.iter().enumerate().map(|(key, &(idle, used_at))| {
            let id = lane.handle_activated(key, 0, Duration::from_millis(idle));
            lane.handle_idle(id, 10, at(used_at));
            id
        });
        let ids = ids.collect();
        (lane, ids)
    }

    #[test]
    fn an_entity_goes_when_its_kind_has_idled_long_enough() {
        let (mut lane, ids) = with(1000, &[(100, 0), (20, 5), (100, 7)]);
        assert_eq!(lane.poll_timeout(), Some(at(25)));
        assert_eq!(lane.poll_candidate(at(24)), None);
        assert_eq!(lane.poll_candidate(at(25)), Some((ids[1], 1)));
        assert_eq!(lane.poll_candidate(at(25)), None);
        lane.handle_released(ids[1]);
        assert_eq!((lane.bytes(), lane.residents(), lane.poll_timeout()), (20, 2, Some(at(100))));
    }

    #[test]
    fn short_memory_lets_the_idlest_go_first_whatever_its_kind() {
        let (mut lane, ids) = with(15, &[(20, 1), (100, 2), (20, 3)]);
        assert_eq!(lane.poll_candidate(at(4)), Some((ids[0], 0)));
        lane.handle_released(ids[0]);
        assert_eq!(lane.poll_candidate(at(4)), Some((ids[1], 1)));
        lane.handle_released(ids[1]);
        assert_eq!(lane.poll_candidate(at(4)), None);
    }

    #[test]
    fn the_busy_stay() {
        let (mut lane, ids) = with(0, &[(100, 3)]);
        lane.handle_busy(ids[0]);
        assert_eq!(lane.poll_candidate(at(1000)), None);
        lane.handle_idle(ids[0], 0, at(1001));
        assert_eq!(lane.poll_candidate(at(1002)), None, "its bytes are within the budget again");
    }

    #[test]
    fn a_candidate_that_must_stay_idles_anew() {
        let (mut lane, ids) = with(1000, &[(100, 0)]);
        assert_eq!(lane.poll_candidate(at(100)), Some((ids[0], 0)));
        lane.handle_idle(ids[0], 10, at(100));
        assert_eq!(lane.poll_timeout(), Some(at(200)));
    }

    proptest! {
        #[test]
        fn candidates_are_idle_and_the_budget_is_met_by_letting_idle_ones_go(
            ops in prop::collection::vec((0..3_u8, 0..8_usize, 1..50_u64), 1..200),
        ) {
            let mut lane: Passivation<usize> = Passivation::new(100);
            let mut ids: [Option<(ResidentId, bool)>; 8] = [None; 8];
            let mut now = 0;
            for (op, key, amount) in ops {
                now += 1;
                match (op, ids[key]) {
                    (0, None) => {
                        let idle = Duration::from_millis([10, 1000][key % 2]);
                        ids[key] = Some((lane.handle_activated(key, amount, idle), false));
                    }
                    (1, Some((id, _))) => {
                        lane.handle_busy(id);
                        ids[key] = Some((id, false));
                    }
                    (2, Some((id, _))) => {
                        lane.handle_idle(id, amount, at(now));
                        ids[key] = Some((id, true));
                    }
                    _ => now += amount,
                }
                while let Some((id, key)) = lane.poll_candidate(at(now)) {
                    prop_assert_eq!(ids[key], Some((id, true)));
                    lane.handle_released(id);
                    ids[key] = None;
                }
                let idle = ids.iter().flatten().any(|&(_, idle)| idle);
                prop_assert!(lane.bytes() <= 100 || !idle);
                prop_assert_eq!(lane.residents() as usize, ids.iter().flatten().count());
            }
        }
    }
}
