//! The simulated lane: activations by slot, handlers, turns that take a while, rollback.
//!
//! It activates from what is committed, as a lane activates from its dirty map and its snapshots,
//! and keeps the encoded bytes of the last good turn as the base of the next delta and of a
//! rollback.

use bytes::Bytes;
use mainstay_protocol::entry::Change;
use mainstay_protocol::id::Seq;
use mainstay_protocol::message::{Failure, Outcome};
use mainstay_protocol::replication::delta;
use mainstay_protocol::shard::{Done, Slot, Turn};

use super::Planted;
use super::clients::Call;
use super::model::{self, Method, States};

/// The callers in the machine.
pub type Caller = Call;

/// An entity in memory.
#[derive(Debug, Clone)]
struct Active {
    items: Vec<u64>,
    base: Option<Bytes>,
}

/// What a lane has in memory in one epoch.
#[derive(Debug)]
pub struct Scene {
    active: Vec<Option<Active>>,
    /// Turns that take a while.
    pub running: Vec<Turn<Caller>>,
    /// What activations read.
    pub stored: States,
    planted: Option<Planted>,
}

impl Scene {
    /// An empty lane that reads this state.
    pub const fn new(stored: States, planted: Option<Planted>) -> Self {
        Self { active: Vec::new(), running: Vec::new(), stored, planted }
    }

    /// Brings an entity into memory, and says its version.
    pub fn activate(&mut self, slot: Slot, entity: usize) -> Seq {
        let at = slot.0 as usize;
        if self.active.len() <= at {
            self.active.resize(at + 1, None);
        }
        let base = self.stored.bytes(entity).cloned();
        self.active[at] = Some(Active { items: self.stored.list(entity), base });
        self.stored.version(entity)
    }

    /// Lets an entity go.
    pub fn passivate(&mut self, slot: Slot) {
        self.active[slot.0 as usize] = None;
    }

    /// The slots with an activation.
    pub fn slots(&self) -> Vec<Slot> {
        let used = (0..).zip(&self.active).filter(|(_, active)| active.is_some());
        used.map(|(at, _)| Slot(at)).collect()
    }

    /// Runs a handler.
    ///
    /// # Panics
    /// When the entity was not activated.
    pub fn run(&mut self, slot: Slot, call: &Call) -> Done {
        let active = self.active.get_mut(slot.0 as usize).and_then(Option::as_mut);
        let active = active.expect("a turn that is not fresh has an activation");
        match call.method {
            Method::Append => {
                active.items.push(call.value);
                let next = model::encode(&active.items);
                let change = delta::change(active.base.as_deref(), &next);
                active.base = Some(next.clone());
                Done::Command { change, value: next }
            }
            Method::Touch => {
                Done::Command { change: Change::None, value: model::encode(&active.items) }
            }
            Method::Read => Done::Query { value: model::encode(&active.items) },
            Method::Refuse => {
                active.items.push(call.value);
                if self.planted != Some(Planted::RefusalKeepsState) {
                    active.roll_back();
                }
                Done::Refused { error: model::encode(&active.items) }
            }
            Method::Panic => {
                active.items.push(call.value);
                if self.planted != Some(Planted::PanicKeepsState) {
                    active.roll_back();
                }
                Done::Panicked
            }
        }
    }

    /// What becomes of a turn whose activation fails.
    pub fn not_activated() -> Done {
        let reason = "the state could not be read".to_owned();
        let failure = Failure::Unavailable { outcome: Outcome::NotExecuted, reason };
        Done::NotActivated { failure }
    }

    /// What becomes of a turn that is given up.
    pub const fn given_up() -> Done {
        Done::Failed { failure: Failure::Deadline { outcome: Outcome::Unknown } }
    }
}

impl Active {
    fn roll_back(&mut self) {
        self.items = self.base.as_deref().map(model::decode).unwrap_or_default();
    }
}
