//! The simulated kind: an entity is a list that is only ever appended to, and every reply shows it.
//!
//! Values are unique, so that a list says which calls took effect, how often and in which order;
//! whatever a reply shows must be a prefix of what is committed.

use bytes::Bytes;
use mainstay_protocol::entry::{Change, Op};
use mainstay_protocol::id::{EntityId, Key, KindId, MethodId, Seq};
use mainstay_protocol::message::Mode;
use mainstay_protocol::replication::delta;

use super::cluster::Stored;

/// The kind of all simulated entities.
pub const KIND: KindId = KindId(1);

/// What can be asked of an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Appends the value.
    Append,
    /// A command that changes nothing.
    Touch,
    /// Appends the value, and then refuses: it must not stay.
    Refuse,
    /// Appends the value, and then panics: it must not stay.
    Panic,
    /// A query.
    Read,
}

impl Method {
    /// Its id on the wire.
    pub const fn id(self) -> MethodId {
        MethodId(self as u32 + 1)
    }

    /// Command or query.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Read => Mode::Query,
            Self::Append | Self::Touch | Self::Refuse | Self::Panic => Mode::Command,
        }
    }
}

/// The id of the entity with this number.
///
/// # Panics
/// Never: simulated keys are short.
pub fn entity(number: usize) -> EntityId {
    EntityId { kind: KIND, key: Key::new(&format!("e{number}")).expect("it is short") }
}

/// The number of an entity.
///
/// # Panics
/// When it is not a simulated one.
pub fn number(entity: &EntityId) -> usize {
    let digits = entity.key.as_str().strip_prefix('e').and_then(|digits| digits.parse().ok());
    digits.expect("simulated keys are an e and a number")
}

/// A list as bytes: of a state, and of a reply.
pub fn encode(items: &[u64]) -> Bytes {
    items.iter().flat_map(|item| item.to_le_bytes()).collect::<Vec<u8>>().into()
}

/// A list from its bytes.
pub fn decode(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect()
}

/// The states of all entities, built from entries as a standby or a recovery builds them.
#[derive(Debug, Clone, Default)]
pub struct States {
    states: std::collections::BTreeMap<usize, (Bytes, Seq)>,
    /// Entries applied.
    pub applied: usize,
}

impl States {
    /// Applies a log from where this stands up to an entry.
    ///
    /// # Errors
    /// What is wrong with an entry that does not apply.
    pub fn apply(&mut self, log: &[Stored], upto: usize) -> Result<(), String> {
        for stored in log.get(self.applied..upto).unwrap_or_default() {
            self.applied += 1;
            let Op::Turn { entity, change, .. } = &stored.entry.op else {
                continue;
            };
            if *change == Change::None {
                continue;
            }
            let number = number(entity);
            let seq = stored.entry.seq;
            let next = delta::apply_change(self.bytes(number), change)
                .map_err(|error| format!("entry {seq:?}: {error}"))?;
            self.states.extend(next.map(|next| (number, (next, seq))));
        }
        Ok(())
    }

    /// The encoded state of an entity, if it was ever written.
    pub fn bytes(&self, number: usize) -> Option<&Bytes> {
        self.states.get(&number).map(|(bytes, _)| bytes)
    }

    /// The entry that made the state of an entity, 0 if it was never written.
    pub fn version(&self, number: usize) -> Seq {
        self.states.get(&number).map_or(Seq(0), |(_, seq)| *seq)
    }

    /// The list of an entity.
    pub fn list(&self, number: usize) -> Vec<u64> {
        self.bytes(number).map(|bytes| decode(bytes)).unwrap_or_default()
    }

    /// All lists.
    pub fn lists(&self) -> impl Iterator<Item = (usize, Vec<u64>)> {
        self.states.iter().map(|(&number, (bytes, _))| (number, decode(bytes)))
    }
}
