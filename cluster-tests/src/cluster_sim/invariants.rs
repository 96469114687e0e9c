//! What must hold in a simulated cluster: a file each.

mod committed_once;
mod held_by_members;
mod heals;
mod key_once;
mod not_executed;
mod one_answers;
mod promises_kept;
mod real_time;
mod set_size;
mod standby_shows;
mod versions;

use mainstay_protocol::time::Instant;

use super::clients::{End, Op};
use super::node::Node;
use super::plane::Plane;
use crate::sim::cluster::Stored;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The name of its file.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

/// What an invariant sees.
#[derive(Debug)]
pub struct View<'w> {
    /// The nodes.
    pub nodes: &'w [Node],
    /// The control plane.
    pub plane: &'w Plane,
    /// Everything that was ever committed, in order.
    pub committed: &'w [Stored],
    /// The time that no node knows.
    pub now: Instant,
    /// The least in-sync set.
    pub min_insync: usize,
}

/// Something that must hold. Each remembers what it needs.
pub trait Invariant: std::fmt::Debug {
    /// The name of its file.
    fn name(&self) -> &'static str;

    /// Something happened.
    ///
    /// # Errors
    /// What does not hold.
    fn after_step(&mut self, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }

    /// An operation ended.
    ///
    /// # Errors
    /// What does not hold.
    fn ended(&mut self, _op: &Op, _end: &End, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }

    /// The faults are over and everything had its time.
    ///
    /// # Errors
    /// What does not hold.
    fn at_end(&mut self, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
#[derive(Debug)]
pub struct Invariants {
    all: Vec<Box<dyn Invariant>>,
}

impl Default for Invariants {
    fn default() -> Self {
        Self {
            all: vec![
                Box::<committed_once::CommittedOnce>::default(),
                Box::<held_by_members::HeldByMembers>::default(),
                Box::<one_answers::OneAnswers>::default(),
                Box::<promises_kept::PromisesKept>::default(),
                Box::<set_size::SetSize>::default(),
                Box::<standby_shows::StandbyShows>::default(),
                Box::<real_time::RealTime>::default(),
                Box::<key_once::KeyOnce>::default(),
                Box::<versions::Versions>::default(),
                Box::<not_executed::NotExecuted>::default(),
                Box::<heals::Heals>::default(),
            ],
        }
    }
}

impl Invariants {
    /// The names of all.
    pub fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|invariant| invariant.name()).collect()
    }

    /// Asks this one alone from here on.
    pub fn keep(&mut self, name: &str) {
        self.all.retain(|invariant| invariant.name() == name);
    }

    /// Asks all.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn ask(
        &mut self,
        mut question: impl FnMut(&mut dyn Invariant) -> Result<(), String>,
    ) -> Result<(), Broken> {
        for invariant in &mut self.all {
            let name = invariant.name();
            question(invariant.as_mut()).map_err(|detail| Broken { invariant: name, detail })?;
        }
        Ok(())
    }
}
