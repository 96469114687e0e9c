//! Operations to calls: all that carry the same key are one call.
//!
//! They take effect once, in one of them, and each that is answered shows the reply of that one.
//! So the call takes effect after the first of them was invoked and before the first answer, and
//! two answers that differ break the rule. A try that was not executed is no part of it; a read
//! without an answer says nothing.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::story::{Broken, Rule};
use super::{End, Entity, History, Id, Op, Operation, Shown};

/// What takes effect once.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) op: Op,
    /// When it was invoked first, and in which operation.
    pub(super) invoked: u64,
    pub(super) by: Id,
    pub(super) answer: Option<Answer>,
}

/// The first answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) at: u64,
    pub(super) to: Id,
    pub(super) shown: Shown,
}

impl Call {
    pub(super) fn answered(&self) -> Option<u64> {
        self.answer.as_ref().map(|answer| answer.at)
    }

    /// The operations that say when it took effect.
    pub(super) fn ids(&self) -> impl Iterator<Item = Id> {
        [self.by].into_iter().chain(self.answer.as_ref().map(|answer| answer.to))
    }

    /// What a story calls it.
    pub(super) fn name(&self) -> String {
        let one = self.ids().all(|id| id == self.by);
        match self.op.key() {
            Some(key) if !one => format!("key {key}"),
            _ => self.by.to_string(),
        }
    }

    /// Takes in another operation under its key.
    fn join(&mut self, other: Self) -> Result<(), Broken> {
        if other.invoked < self.invoked {
            (self.invoked, self.by) = (other.invoked, other.by);
        }
        let first = match (self.answer.take(), other.answer) {
            (Some(one), Some(two)) if one.shown != two.shown => {
                let detail = format!("{} and {} have one key and two answers", one.to, two.to);
                return Err(Broken { rule: Rule::KeyAnswers, detail, ids: vec![one.to, two.to] });
            }
            (Some(one), Some(two)) => Some(if one.at <= two.at { one } else { two }),
            (one, two) => one.or(two),
        };
        self.answer = first;
        Ok(())
    }
}

/// The calls of an entity, without those that neither have nor show an effect.
pub(super) fn of(history: &History, entity: &Entity) -> Result<Vec<Call>, Broken> {
    let mut calls: Vec<Call> = Vec::new();
    let mut of_key: HashMap<u64, usize> = HashMap::new();
    for &by in &entity.operations {
        let Operation { op, invoked, ref ended, .. } = *history.operation(by);
        let answer = match ended {
            Some((_, End::NotExecuted)) => continue,
            Some((at, End::Returned(shown))) => {
                Some(Answer { at: *at, to: by, shown: shown.clone() })
            }
            Some((_, End::Unknown)) | None if op == Op::Read => continue,
            Some((_, End::Unknown)) | None => None,
        };
        let call = Call { op, invoked, by, answer };
        match op.key().map(|key| of_key.entry(key)) {
            Some(Entry::Occupied(known)) => calls[*known.get()].join(call)?,
            Some(Entry::Vacant(free)) => {
                free.insert(calls.len());
                calls.push(call);
            }
            None => calls.push(call),
        }
    }
    Ok(calls)
}
