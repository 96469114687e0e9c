//! The audit: copies of a shard are compared row by row, a slice of its keys at a time.
//!
//! ```text
//!   primary: slice of its tables --digest--> standby: the same slice of its own
//!                                <--Same, or its rows--
//!   compare --> every row is the same | moving | wrong --> report, and replace it or leave it
//! ```
//! **As of which place.** Copies never stand still at the same place, and need not. A row says
//! which entry made it, and a shard's seq names one committed entry for ever: two rows of an entity
//! that the same entry made are the same bytes, or one of them is wrong. When different entries made
//! them, the older row is wrong if its tables hold every entry up to the newer one's, by the mark
//! that was read with them; else the entry is on its way, and the next round sees what came of it.
//! A row that changes all the time is checked all the time: each patch names the hash of its base.
//!
//! **Who is believed.** The primary, from which callers heard, unless more copies agree on another
//! row: then nobody is, and a person has to look. So a slice is compared once every copy in sync has
//! said what it has of it: one that is not heard might have outvoted the primary. So might one whose
//! own row is on its way, or lies beyond what it said: then the next round tells.
//!
//! A wrong row is replaced by the primary's, and not the whole copy by another one: a member of the
//! in-sync set that lets its copy go may be promoted without it, and of two members none may leave.

mod schedule;

pub use schedule::Schedule;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::id::{EntityId, Epoch, NodeId, Seq, ShardId};
use crate::mutants::{Mutant, Planted};
use crate::snapshot;

/// One row of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The entity.
    pub entity: EntityId,
    /// The entry that made it; 0 when the row does not match its checksum.
    pub seq: Seq,
    /// `xxh3_64` of its state.
    pub hash: u64,
}

/// Rows of one copy: those that come after one entity, up to another one, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// The last entity that it reaches to; `None` when it reaches to the end of the shard.
    pub upto: Option<EntityId>,
    /// When the rows were read, every entry up to this one was in the tables.
    pub applied: Seq,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Slice {
    /// A number that two slices have in common if, and all but certainly only if, they have the
    /// same rows.
    pub fn digest(&self) -> u64 {
        let mut hasher = Xxh3Default::new();
        for Row { entity, seq, hash } in &self.rows {
            let key = entity.key.as_str().as_bytes();
            hasher.update(&entity.kind.0.to_le_bytes());
            hasher.update(&(key.len() as u64).to_le_bytes());
            hasher.update(key);
            hasher.update(&seq.0.to_le_bytes());
            hasher.update(&hash.to_le_bytes());
        }
        hasher.digest()
    }

    /// Whether its rows are in key order, each entity once: what a peer says is not believed.
    pub fn is_in_order(&self) -> bool {
        self.rows.is_sorted_by(|one, next| one.entity < next.entity)
    }

    fn reaches(&self, entity: &EntityId) -> bool {
        self.upto.as_ref().is_none_or(|upto| entity <= upto)
    }

    fn find(&self, entity: &EntityId) -> Option<&Row> {
        let at = self.rows.binary_search_by(|row| row.entity.cmp(entity)).ok()?;
        self.rows.get(at)
    }
}

/// What a primary asks a standby's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which the asking node is its primary.
    pub epoch: Epoch,
    /// What it asks.
    pub what: Ask,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Is this slice the same there?
    Compare {
        /// Only rows after this entity.
        after: Option<EntityId>,
        /// Only rows up to this entity.
        upto: Option<EntityId>,
        /// The primary's [`Slice::digest`].
        digest: u64,
    },
    /// These rows are wrong there: take the primary's.
    Replace(Vec<snapshot::Row>),
}

/// What a standby's node answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Said {
    /// The slice has the same rows.
    Same,
    /// It has these.
    Rows(Slice),
    /// So many rows were taken; others were changed by an entry meanwhile.
    Replaced(u32),
}

/// The first byte of a question. No message of a copy begins so: MessagePack never uses it.
const QUESTION: u8 = 0xc1;

impl Question {
    /// The question as bytes.
    ///
    /// # Errors
    /// When it does not encode.
    pub fn encode(&self) -> Result<Bytes, rmp_serde::encode::Error> {
        let mut bytes = vec![QUESTION];
        rmp_serde::encode::write(&mut bytes, self)?;
        Ok(bytes.into())
    }

    /// The question in these bytes; `None` when they are something else.
    ///
    /// # Errors
    /// When they begin like a question and are none.
    pub fn decode(bytes: &[u8]) -> Option<Result<Self, rmp_serde::decode::Error>> {
        let body = bytes.strip_prefix(&[QUESTION])?;
        Some(rmp_serde::from_slice(body))
    }
}

/// What is to be done about a row that differs from the primary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cure {
    /// The primary's takes its place.
    Replace,
    /// The primary has no row to put there. A person has to look.
    Extra,
    /// More copies agree on this row than on the primary's, or that one does not match its own
    /// checksum. A person has to look.
    Outvoted,
}

/// A row that cannot be right while the primary's is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// Whose.
    pub node: NodeId,
    /// Of which entity.
    pub entity: EntityId,
    /// What is to be done.
    pub cure: Cure,
}

/// What comparing a slice found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// Rows that an entry on its way will change, in some copy, and those that wait for such a one.
    pub moving: u32,
    /// Rows that differ.
    pub wrong: Vec<Wrong>,
}

/// How two rows of an entity stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Same,
    Moving,
    Wrong,
}

/// Compares the slice of a primary with what its other copies said.
#[derive(Debug, Clone, Copy, Default)]
pub struct Comparison {
    planted: Planted,
}

impl Comparison {
    /// Breaks a rule on purpose, for its test.
    #[cfg(feature = "mutants")]
    pub const fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
    }

    /// What is found of this slice, once every other copy in sync has said what it has of it.
    pub fn compare(self, primary: &Slice, said: &BTreeMap<NodeId, Said>) -> Findings {
        let mut findings = Findings::default();
        for (node, said_here) in said {
            let Said::Rows(copy) = said_here else { continue };
            for entity in entities(primary, copy) {
                match self.stand(primary, copy, entity) {
                    Stand::Same => {}
                    Stand::Moving => findings.moving += 1,
                    Stand::Wrong => match self.cure(primary, copy, (entity, said)) {
                        None => findings.moving += 1,
                        Some(cure) => {
                            let (node, entity) = (node.clone(), entity.clone());
                            findings.wrong.push(Wrong { node, entity, cure });
                        }
                    },
                }
            }
        }
        findings
    }

    fn stand(self, primary: &Slice, copy: &Slice, entity: &EntityId) -> Stand {
        let (ours, theirs) = (primary.find(entity), copy.find(entity));
        let seq = |row: Option<&Row>| row.map_or(Seq(0), |row| row.seq);
        let (older, newer) = match seq(ours).cmp(&seq(theirs)) {
            Ordering::Equal => {
                let same = ours.map(|row| row.hash) == theirs.map(|row| row.hash);
                return if same { Stand::Same } else { Stand::Wrong };
            }
            Ordering::Less => (primary, theirs),
            Ordering::Greater => (copy, ours),
        };
        let applied = older.applied >= seq(newer);
        if applied || self.planted.has(Mutant::AuditIgnoresPlace) {
            Stand::Wrong
        } else {
            Stand::Moving
        }
    }

    /// What is to be done about a row that differs from the primary's; `None` while a copy whose own
    /// row is on its way might yet outvote the primary.
    fn cure(
        self,
        primary: &Slice,
        copy: &Slice,
        (entity, said): (&EntityId, &BTreeMap<NodeId, Said>),
    ) -> Option<Cure> {
        let (ours, theirs) = (primary.find(entity), copy.find(entity));
        let (mut with, mut against, mut open) = (1, 0, 0);
        for said in said.values() {
            match said {
                Said::Same => with += 1,
                Said::Rows(slice) if !slice.reaches(entity) => open += 1,
                Said::Rows(slice) if slice.find(entity) == ours => with += 1,
                Said::Rows(slice) if slice.find(entity) == theirs => against += 1,
                Said::Rows(slice) if self.stand(primary, slice, entity) == Stand::Moving => {
                    open += 1;
                }
                Said::Rows(_) | Said::Replaced(_) => {}
            }
        }
        let rotten = ours.is_some_and(|row| row.seq == Seq(0));
        if !self.planted.has(Mutant::AuditBelievesPrimary) {
            if against > with || rotten {
                return Some(Cure::Outvoted);
            }
            if against + open > with {
                return None;
            }
        }
        Some(if ours.is_none() { Cure::Extra } else { Cure::Replace })
    }
}

/// The entities of two slices, as far as both reach, each once.
fn entities<'s>(primary: &'s Slice, copy: &'s Slice) -> impl Iterator<Item = &'s EntityId> {
    let ours = primary.rows.iter().map(|row| &row.entity);
    let theirs = copy.rows.iter().map(|row| &row.entity);
    let ours = ours.filter(move |entity| copy.reaches(entity));
    let theirs =
        theirs.filter(move |entity| primary.reaches(entity) && primary.find(entity).is_none());
    ours.chain(theirs)
}

#[cfg(test)]
mod tests;
