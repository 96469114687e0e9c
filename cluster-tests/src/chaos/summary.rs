//! What a run amounts to, for people.

use std::collections::BTreeMap;
use std::fmt;

use super::faults::Kind;
use super::record::{Checked, Waits};

/// Counts of all rounds, and the longest waits.
#[derive(Debug, Default)]
pub struct Summary {
    faults: BTreeMap<Kind, u32>,
    entities: usize,
    calls: usize,
    acknowledged: usize,
    not_executed: usize,
    unknown: usize,
    undecided: Vec<String>,
    waits: Waits,
}

impl Summary {
    /// Adds a round that was checked and found good.
    pub(super) fn add(&mut self, kinds: &[Kind], round: &Checked) {
        for kind in kinds {
            *self.faults.entry(*kind).or_default() += 1;
        }
        self.entities += round.lists.entities + round.registers;
        self.calls += round.lists.operations + round.accesses;
        self.acknowledged += round.acknowledged;
        self.not_executed += round.lists.not_executed;
        self.unknown += round.lists.unknown + round.unknown;
        self.undecided.extend(round.undecided.iter().cloned());
        for (kind, wait) in &round.waits {
            let longest = self.waits.entry(*kind).or_default();
            longest.nobody = longest.nobody.max(wait.nobody);
            longest.one = longest.one.max(wait.one);
        }
    }

    /// Writes that were acknowledged.
    pub const fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// Entities for which the checker gave up: nothing is known of them.
    pub fn undecided(&self) -> &[String] {
        &self.undecided
    }

    /// The end of a run: waits by kind of fault, and the verdict.
    pub fn table(&self) -> String {
        let mut lines = vec![format!(
            "{:<8} {:>6} {:>26} {:>9} {:>21}",
            "after", "faults", "longest without any write", "in fault", "longest of one write"
        )];
        for (kind, wait) in &self.waits {
            let name = kind.map_or_else(|| "none yet".to_owned(), |kind| kind.to_string());
            let count = kind.map_or(0, |kind| self.faults.get(&kind).copied().unwrap_or(0));
            lines.push(format!(
                "{name:<8} {count:>6} {:>24.2} s {:>9} {:>19.2} s",
                wait.nobody.0.as_secs_f64(),
                format!("#{}", wait.nobody.1),
                wait.one.as_secs_f64()
            ));
        }
        let faults: u32 = self.faults.values().sum();
        lines.push(format!("{faults} faults, {self}"));
        lines.push(match self.undecided.as_slice() {
            [] => "every history is linearizable; nothing lost, nothing twice".to_owned(),
            some => format!("no violation, but nothing is known of {some:?}"),
        });
        lines.join("\n")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} calls of {} entities: {} writes acknowledged, {} tries not executed, {} unknown",
            self.calls, self.entities, self.acknowledged, self.not_executed, self.unknown
        )
    }
}
