//! What clients saw of lists that only grow, recorded, and checked for linearizability.
//!
//! ```text
//!   invoke, end --> operations --> calls --> trace --> linearizable, or a story
//!                   (each try)    (each key)   |           ^
//!                                              +-> search -+--> undecided
//! ```
//! Entities are checked one by one. Values are unique, so the longest list that anyone was shown
//! fixes the order of all that it shows. To compare that order with real time takes O(n log n):
//! `trace`. Answers that stand in no list leave an order open: `search` tries orders, and gives up
//! after a number of steps. End a run with a read of every entity, and nothing is searched.
//!
//! Time is ticks of one clock. What ended before another was invoked comes before it; operations
//! whose ends touch are concurrent. One without an answer may take effect at any time after it was
//! invoked, or never.
//!
//! No crate does this. `todc-utils` panics on an operation without an end, has no bound on its
//! search, and says no without a reason. The tester of `stateright` tries all orders, for models of
//! a few operations. `porcupine` in Rust is something else.
//!
//! Memory: about 100 bytes an operation and 100 a value. A list is kept once for each entity, and
//! a reply that shows its beginning as a number; only lists that contradict it are kept whole.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

mod calls;
mod file;
pub mod register;
mod search;
mod session;
mod story;
#[cfg(test)]
mod tests;
mod trace;

pub use file::{Line, ReadError};
pub use session::{Older, Write, never_older_than};
pub use story::{Row, Rule, Violation};

use search::Found;

/// Operations of a history.
pub const OPERATIONS_MAX: usize = 1 << 24;

/// Values of a list.
pub const LIST_VALUES_MAX: usize = 1 << 20;

/// Steps of the search for an order, for each entity: calls tried, and words of memory filled.
pub const SEARCH_STEPS_MAX: u64 = 4_000_000;

/// What a client asks of an entity. The operations of an entity that carry the same key are tries
/// of the same thing, and take effect once at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Op {
    /// Append the value.
    Append {
        /// Unlike every other value of the entity.
        value: u64,
        /// Idempotency key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<u64>,
    },
    /// Append the value if the list has this length, otherwise refuse.
    AppendIf {
        /// The length.
        length: u64,
        /// Unlike every other value of the entity.
        value: u64,
        /// Idempotency key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<u64>,
    },
    /// Show the list.
    Read,
}

impl Op {
    /// The value to append.
    pub const fn value(self) -> Option<u64> {
        match self {
            Self::Append { value, .. } | Self::AppendIf { value, .. } => Some(value),
            Self::Read => None,
        }
    }

    /// The idempotency key.
    pub const fn key(self) -> Option<u64> {
        match self {
            Self::Append { key, .. } | Self::AppendIf { key, .. } => key,
            Self::Read => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { value, .. } => write!(f, "append {value}")?,
            Self::AppendIf { length, value, .. } => write!(f, "append {value} if {length} long")?,
            Self::Read => f.write_str("read")?,
        }
        self.key().map_or(Ok(()), |key| write!(f, ", key {key}"))
    }
}

/// What a reply shows: of an append, the list just after it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The list.
    List(Vec<u64>),
    /// Its length.
    Length(u64),
    /// That the value was appended, and nothing else.
    Done,
    /// That the condition does not hold: the list has this length.
    Refused(u64),
}

/// How an operation ended, as its client knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// With a reply.
    Returned(Reply),
    /// This try had no effect and never will.
    NotExecuted,
    /// Nobody knows: a timeout, a lost connection.
    Unknown,
}

/// An operation of a history. Shown as the number of its line in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(usize);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("#{}", self.0 + 1))
    }
}

/// What no history can hold. Nothing was recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The id is of another history.
    #[error("there is no operation {0}")]
    NoSuch(Id),
    /// An operation ends once.
    #[error("operation {0} has ended already")]
    EndedBefore(Id),
    /// The clock ran backwards, or there are two.
    #[error("operation {id} ends at {ended}, before it was invoked at {invoked}")]
    ClockBackwards {
        /// The operation.
        id: Id,
        /// When it was invoked.
        invoked: u64,
        /// When it is said to end.
        ended: u64,
    },
    /// Values tell operations apart.
    #[error("value {value} is appended by {first} already")]
    ValueTwice {
        /// The value.
        value: u64,
        /// Who appends it.
        first: Id,
    },
    /// A key stands for one operation.
    #[error("key {key} stands for what {first} does")]
    KeyConflict {
        /// The key.
        key: u64,
        /// Who had it first.
        first: Id,
    },
    /// A read is not refused and is not "done"; a plain append is not refused.
    #[error("operation {0} cannot have this reply")]
    WrongReply(Id),
    /// More than [`OPERATIONS_MAX`] or [`LIST_VALUES_MAX`].
    #[error("there is no room: {0}")]
    Full(&'static str),
}

/// What a reply showed, against the longest list of its entity.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    /// The first so many of the longest list.
    First(u64),
    /// A list that neither begins the longest nor begins with it.
    Other(Vec<u64>),
    Length(u64),
    Done,
    Refused(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Returned(Shown),
    NotExecuted,
    Unknown,
}

#[derive(Debug)]
struct Operation {
    client: u32,
    entity: usize,
    op: Op,
    invoked: u64,
    ended: Option<(u64, End)>,
}

#[derive(Debug, Default)]
struct Entity {
    name: String,
    operations: Vec<Id>,
    /// The longest list that was shown, and by whom.
    longest: Vec<u64>,
    shown_by: Option<Id>,
    /// Who appends a value first.
    values: HashMap<u64, Id>,
    /// Who has a key first.
    keys: HashMap<u64, Id>,
}

/// What the clients of some entities did and saw.
#[derive(Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    entities: Vec<Entity>,
    names: HashMap<String, usize>,
}

/// What a check found in a history without a violation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use = "entities may be undecided"]
pub struct Summary {
    /// Entities.
    pub entities: usize,
    /// Operations.
    pub operations: usize,
    /// Operations with a reply.
    pub returned: usize,
    /// Operations that had no effect, as their clients were told.
    pub not_executed: usize,
    /// Operations of which nobody knows.
    pub unknown: usize,
    /// Entities for which an order had to be searched.
    pub searched: usize,
    /// Entities for which the search gave up: nothing is known of them.
    pub undecided: Vec<String>,
}

impl History {
    /// A client invokes an operation.
    ///
    /// # Errors
    /// [`Misuse`]: a value twice, a key for two things, or no room.
    pub fn invoke(&mut self, client: u32, entity: &str, op: Op, at: u64) -> Result<Id, Misuse> {
        if self.operations.len() >= OPERATIONS_MAX {
            return Err(Misuse::Full("OPERATIONS_MAX"));
        }
        let id = Id(self.operations.len());
        let known = self.names.get(entity).and_then(|&index| self.entities.get(index));
        let repeats = known.map_or(Ok(false), |known| self.repeats(known, op))?;
        let index = self.entity(entity);
        let known = &mut self.entities[index];
        known.operations.push(id);
        if !repeats {
            known.values.extend(op.value().map(|value| (value, id)));
            known.keys.extend(op.key().map(|key| (key, id)));
        }
        self.operations.push(Operation { client, entity: index, op, invoked: at, ended: None });
        Ok(id)
    }

    /// Whether an operation tries again what an earlier one tried.
    fn repeats(&self, entity: &Entity, op: Op) -> Result<bool, Misuse> {
        if let Some((key, &first)) = op.key().and_then(|key| Some((key, entity.keys.get(&key)?))) {
            let same = self.operations[first.0].op == op;
            return if same { Ok(true) } else { Err(Misuse::KeyConflict { key, first }) };
        }
        match op.value().and_then(|value| Some((value, *entity.values.get(&value)?))) {
            Some((value, first)) => Err(Misuse::ValueTwice { value, first }),
            None => Ok(false),
        }
    }

    fn entity(&mut self, name: &str) -> usize {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        self.entities.push(Entity { name: name.to_owned(), ..Entity::default() });
        self.names.insert(name.to_owned(), self.entities.len() - 1);
        self.entities.len() - 1
    }

    /// An operation ends. One that never does is as good as [`Outcome::Unknown`].
    ///
    /// # Errors
    /// [`Misuse`]: not this operation, not now, or not with this outcome.
    pub fn end(&mut self, id: Id, outcome: Outcome, at: u64) -> Result<(), Misuse> {
        let operation = self.operations.get_mut(id.0).ok_or(Misuse::NoSuch(id))?;
        let invoked = operation.invoked;
        if operation.ended.is_some() {
            return Err(Misuse::EndedBefore(id));
        }
        if at < invoked {
            return Err(Misuse::ClockBackwards { id, invoked, ended: at });
        }
        let end = match outcome {
            Outcome::NotExecuted => End::NotExecuted,
            Outcome::Unknown => End::Unknown,
            Outcome::Returned(reply) => {
                let fits = match (&reply, operation.op) {
                    (Reply::List(_) | Reply::Length(_), _) => true,
                    (Reply::Done, op) => op != Op::Read,
                    (Reply::Refused(_), op) => matches!(op, Op::AppendIf { .. }),
                };
                if !fits {
                    return Err(Misuse::WrongReply(id));
                }
                End::Returned(self.entities[operation.entity].take_in(reply, id)?)
            }
        };
        operation.ended = Some((at, end));
        Ok(())
    }

    /// Whether all that was seen can be explained by lists that take one operation at a time.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check(&self) -> Result<Summary, Box<Violation>> {
        self.check_within(SEARCH_STEPS_MAX)
    }

    /// [`Self::check`] with another bound on the search for each entity.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn check_within(&self, steps_max: u64) -> Result<Summary, Box<Violation>> {
        let mut summary = self.count();
        for entity in &self.entities {
            let (searched, undecided) = self
                .check_entity(entity, steps_max)
                .map_err(|broken| Box::new(story::tell(self, entity, broken)))?;
            summary.searched += usize::from(searched);
            summary.undecided.extend(undecided.then(|| entity.name.clone()));
        }
        Ok(summary)
    }

    /// Whether an order had to be searched, and whether the search gave up.
    fn check_entity(&self, entity: &Entity, steps_max: u64) -> Result<(bool, bool), story::Broken> {
        let calls = calls::of(self, entity)?;
        let Some(tail) = trace::trace(entity, &calls)? else { return Ok((false, false)) };
        let next = |length: &u64, index| tail.next(*length, index);
        match search::search(&tail.spans(&calls), tail.longest, next, steps_max) {
            Found::Order => Ok((true, false)),
            Found::GaveUp => Ok((true, true)),
            Found::NoOrder { stuck } => Err(story::no_order(&calls, tail.among_all(stuck))),
        }
    }

    fn count(&self) -> Summary {
        let mut summary = Summary {
            entities: self.entities.len(),
            operations: self.operations.len(),
            ..Summary::default()
        };
        for operation in &self.operations {
            let counter = match operation.ended {
                Some((_, End::Returned(_))) => &mut summary.returned,
                Some((_, End::NotExecuted)) => &mut summary.not_executed,
                Some((_, End::Unknown)) | None => &mut summary.unknown,
            };
            *counter += 1;
        }
        summary
    }

    fn operation(&self, id: Id) -> &Operation {
        &self.operations[id.0]
    }
}

impl Entity {
    /// Keeps what a reply shows. A longer list that begins with the longest takes its place.
    fn take_in(&mut self, reply: Reply, id: Id) -> Result<Shown, Misuse> {
        let list = match reply {
            Reply::List(list) => list,
            Reply::Length(length) => return Ok(Shown::Length(length)),
            Reply::Done => return Ok(Shown::Done),
            Reply::Refused(length) => return Ok(Shown::Refused(length)),
        };
        if list.len() > LIST_VALUES_MAX {
            return Err(Misuse::Full("LIST_VALUES_MAX"));
        }
        let length = list.len() as u64;
        if self.longest.starts_with(&list) {
            return Ok(Shown::First(length));
        }
        if !list.starts_with(&self.longest) {
            return Ok(Shown::Other(list));
        }
        self.longest = list;
        self.shown_by = Some(id);
        Ok(Shown::First(length))
    }
}

/// The value at a place of a list, counted from 1.
fn value_at(list: &[u64], place: u64) -> Option<u64> {
    let index = usize::try_from(place.checked_sub(1)?).ok()?;
    list.get(index).copied()
}
