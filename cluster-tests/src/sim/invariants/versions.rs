//! A version names one state, and a state has one version, whoever is primary. A command under a
//! condition takes effect on the state of that version alone; who is refused is told of a committed
//! one, and nobody is whose command was answered before under the same key.

use std::collections::{BTreeMap, BTreeSet};

use mainstay_protocol::id::Seq;
use mainstay_protocol::message::{Failure, Success};

use super::{Event, Invariant, View, shown};
use crate::sim::clients::{Call, version_of};
use crate::sim::model::Method;

#[derive(Debug, Default)]
pub(super) struct Versions {
    /// The list of each version that was shown.
    lists: BTreeMap<(usize, Seq), Vec<u64>>,
    /// The version of each list that was shown.
    stood_at: BTreeMap<(usize, Vec<u64>), Seq>,
    /// Keys whose command was answered.
    done: BTreeSet<(usize, u64)>,
    /// Calls that were made after that.
    repeats: BTreeSet<u64>,
}

impl Versions {
    fn check(
        &mut self,
        call: &Call,
        result: &Result<Success, Failure>,
        committed: usize,
    ) -> Result<(), String> {
        let Some(version) = version_of(result) else {
            return Ok(());
        };
        let Some((list, replayed)) = shown(result) else {
            return self.check_refusal(call, version, committed);
        };
        self.done.extend(call.key.map(|key| (call.entity, key)));
        self.lists.entry((call.entity, Seq(0))).or_default();
        self.check_condition(call, version, &list, replayed)?;
        let (of, named) = ((call.entity, version), (call.entity, list.clone()));
        let same = *self.lists.entry(of).or_insert_with(|| list.clone()) == list
            && *self.stood_at.entry(named).or_insert(version) == version;
        if same { Ok(()) } else { Err(format!("{call:?}: {version:?} is {list:?}, and was not")) }
    }

    fn check_refusal(&self, call: &Call, version: Seq, committed: usize) -> Result<(), String> {
        let wanted = call.if_version == Some(version.0);
        let shows_too_much = version.0 > committed as u64;
        if wanted || shows_too_much || self.repeats.contains(&call.id) {
            return Err(format!("{call:?} was refused at {version:?} of {committed} committed"));
        }
        Ok(())
    }

    /// The version that a command names is the one from which it went.
    fn check_condition(
        &self,
        call: &Call,
        version: Seq,
        list: &[u64],
        replayed: bool,
    ) -> Result<(), String> {
        let Some(wanted) = call.if_version.map(Seq).filter(|_| !replayed) else {
            return Ok(());
        };
        let met = if call.method == Method::Append {
            let before = self.lists.get(&(call.entity, wanted));
            before.is_none_or(|before| list.split_last().is_some_and(|(_, rest)| rest == before))
        } else {
            version == wanted
        };
        if met { Ok(()) } else { Err(format!("{call:?} took effect, and showed {list:?}")) }
    }
}

impl Invariant for Versions {
    fn name(&self) -> &'static str {
        "versions"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Invoked(call) => {
                let key = call.key.map(|key| (call.entity, key));
                if key.is_some_and(|key| self.done.contains(&key)) {
                    self.repeats.insert(call.id);
                }
                Ok(())
            }
            Event::Refused(call, failure) => {
                let result = Err(failure.clone());
                self.check(call, &result, view.cluster.durable())
            }
            Event::Replied(call, result) => self.check(call, result, view.cluster.durable()),
            _ => Ok(()),
        }
    }
}
