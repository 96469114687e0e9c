//! Inputs that made their handler panic: after three panics an input is not tried again.
//!
//! An input is an entity, a method and a payload: a retry of the same request is the same input,
//! whatever its id. A keyed one gets a dedup record, which survives the primary; the others are
//! remembered here, within a fixed number, the least recent panic forgotten first.

use std::collections::BTreeMap;

use crate::id::{EntityId, MethodId};

/// Panics after which an input is quarantined.
const PANICS_MAX: u8 = 3;
/// Inputs that are remembered.
const INPUTS_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Input {
    pub(super) entity: EntityId,
    pub(super) method: MethodId,
    pub(super) payload_hash: u64,
}

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Panics of each input, and the number of its last one.
    inputs: BTreeMap<Input, (u8, u64)>,
    number: u64,
}

impl Quarantine {
    /// Nothing has panicked: the usual case, and the only cheap question.
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// An input panicked; says whether it is quarantined from now on.
    pub(super) fn handle_panic(&mut self, input: Input) -> bool {
        self.number += 1;
        let number = self.number;
        let panics = self.inputs.entry(input).or_insert((0, 0));
        *panics = ((panics.0 + 1).min(PANICS_MAX), number);
        let quarantined = panics.0 == PANICS_MAX;
        if self.inputs.len() > INPUTS_MAX {
            let oldest = self.inputs.iter().min_by_key(|(_, (_, number))| *number);
            if let Some(input) = oldest.map(|(input, _)| input.clone()) {
                self.inputs.remove(&input);
            }
        }
        quarantined
    }

    /// An input ran through.
    pub(super) fn handle_success(&mut self, input: &Input) {
        self.inputs.remove(input);
    }

    pub(super) fn contains(&self, input: &Input) -> bool {
        self.inputs.get(input).is_some_and(|&(panics, _)| panics >= PANICS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Key, KindId};

    fn input(n: u64) -> Input {
        let entity = EntityId { kind: KindId(1), key: Key::new("e").unwrap() };
        Input { entity, method: MethodId(1), payload_hash: n }
    }

    #[test]
    fn the_third_panic_quarantines_the_input_and_no_other() {
        let mut quarantine = Quarantine::default();
        assert!(!quarantine.handle_panic(input(1)));
        assert!(!quarantine.handle_panic(input(1)));
        assert!(!quarantine.contains(&input(1)));
        assert!(quarantine.handle_panic(input(1)));
        assert!(quarantine.contains(&input(1)) && !quarantine.contains(&input(2)));
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let mut quarantine = Quarantine::default();
        quarantine.handle_panic(input(1));
        quarantine.handle_panic(input(1));
        quarantine.handle_success(&input(1));
        assert!(!quarantine.handle_panic(input(1)));
    }

    #[test]
    fn the_memory_of_inputs_is_bounded() {
        let mut quarantine = Quarantine::default();
        for n in 0..10_000 {
            assert!(!quarantine.handle_panic(input(n)));
        }
        assert_eq!(quarantine.inputs.len(), INPUTS_MAX);
    }
}
