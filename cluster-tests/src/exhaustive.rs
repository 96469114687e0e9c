//! Every state of small clusters: promotion, fencing and changes of the set, over the real machines.
//!
//! ```text
//!   state --every step that may come next--> states --> seen before? --no--> checked, kept
//!                                                            \--yes--> nothing
//! ```
//! A breadth-first search of its own, over fingerprints, so that the first violation found has the
//! shortest story. Stateright would keep whole states that are `Eq` and `Hash`; the machines carry
//! numbers of tickets and of lives that differ from path to path and mean nothing, and the
//! network is better kept as what may have been sent than as messages (see `world`). What is left
//! for a library is this file.
//!
//! Real: `Standby`, `InSync`, the control plane's `apply`. Abstract: a primary is its count and its
//! log; of the feed only the check of an answer's epoch is repeated, and any append that a feed
//! could send is delivered; no copies of states; consensus is one agreed order. Time stands still
//! and every timeout may have passed: leases and promises of silence are left to `cluster_sim`.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_protocol::id::Epoch;
use mainstay_protocol::mutants::Mutant;

mod checks;
mod node;
mod plane;
pub mod scopes;
mod world;

pub use world::Step;

use world::World;

/// A fault that is planted on purpose, to see it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A rule of the machines is broken.
    Rule(Mutant),
    /// A standby that starts goes by its disk alone, not by the epoch of the map as well.
    StartsWithoutMap,
}

/// How often what is limited may still happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Promotions, after the first.
    pub epochs: u32,
    /// Entries beside the noops.
    pub writes: u32,
    /// Crashes.
    pub crashes: u32,
    /// Disks replaced.
    pub disks: u32,
    /// Sets accepted.
    pub sets: u32,
    /// Proposals on their way at once.
    pub proposals: usize,
    /// Entries of one append.
    pub entries: usize,
}

/// What was searched, and how far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// States.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// Steps to the farthest state.
    pub depth: usize,
    /// States in which an entry of a second or later epoch is committed.
    pub failed_over: usize,
    /// States were left out.
    pub cut: bool,
}

/// Something must never happen and does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The rule.
    pub rule: &'static str,
    /// What was seen.
    pub told: String,
}

/// A violation, with its shortest story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What is broken.
    pub broken: Broken,
    /// The steps from the beginning.
    pub story: Vec<Step>,
    /// States seen before it.
    pub states: usize,
}

impl Broken {
    fn new(rule: &'static str, told: impl Into<String>) -> Self {
        Self { rule, told: told.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in (1..).zip(&self.story) {
            writeln!(f, "{number:3} {step:?}")?;
        }
        write!(f, "{}: {} ({} states)", self.broken.rule, self.broken.told, self.states)
    }
}

/// The states of one breadth-first search.
struct Search {
    seen: HashSet<u64>,
    /// From which state, by which step.
    from: Vec<(usize, Option<Step>)>,
    report: Report,
}

impl Search {
    fn add(&mut self, world: &World, from: usize, step: Option<Step>) -> Option<usize> {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return None;
        }
        self.from.push((from, step));
        self.report.states += 1;
        let newest = world.committed.last().copied().unwrap_or_default();
        self.report.failed_over += usize::from(newest > Epoch(1));
        Some(self.from.len() - 1)
    }

    fn story(&self, mut at: usize, last: Step) -> Vec<Step> {
        let mut story = vec![last];
        while let (from, Some(step)) = &self.from[at] {
            story.push(step.clone());
            at = *from;
        }
        story.reverse();
        story
    }
}

/// Searches every state of a scope, or the first `most` of them.
///
/// # Errors
/// The first [`Violation`], one of the nearest.
pub fn search(
    scope: &scopes::Scope,
    planted: Option<Planted>,
    most: usize,
) -> Result<Report, Box<Violation>> {
    let mut search = Search { seen: HashSet::new(), from: Vec::new(), report: Report::default() };
    let first = scope.begin(planted);
    search.add(&first, 0, None);
    let mut level = vec![(0, first)];
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (at, world) in level {
            for step in world.steps() {
                let mut next = world.clone();
                let broken = match take(&mut next, &step) {
                    Ok(false) => continue,
                    Ok(true) => None,
                    Err(broken) => Some(broken),
                };
                search.report.steps += 1;
                if let Some(broken) = broken {
                    let (story, states) = (search.story(at, step), search.report.states);
                    return Err(Box::new(Violation { broken, story, states }));
                }
                if let Some(new) = search.add(&next, at, Some(step)) {
                    next_level.push((new, next));
                }
                if search.report.states >= most {
                    search.report.cut = true;
                    return Ok(search.report);
                }
            }
        }
        search.report.depth += usize::from(!next_level.is_empty());
        level = next_level;
    }
    Ok(search.report)
}

/// A step; an assertion of the machines that fails is a violation as well.
fn take(world: &mut World, step: &Step) -> Result<bool, Broken> {
    catch_unwind(AssertUnwindSafe(|| world.take(step))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(Broken::new("assertion", text.unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests;
