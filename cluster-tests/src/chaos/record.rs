//! What the clients of one round did and saw, and what is checked of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::faults::Kind;
use crate::history::register::{self, Access, Does};
use crate::history::{self, History, Id, Op, Outcome};

/// Answers that no fault explains which are kept, at most.
const ODD_MAX: usize = 20;

/// Everything of one round.
#[derive(Debug)]
pub(super) struct Record {
    began: Instant,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    history: History,
    registers: BTreeMap<String, Vec<Access>>,
    /// Appends that were acknowledged, by list.
    acknowledged: HashMap<String, Vec<u64>>,
    /// The fault that is under way, or was last, and its number.
    kind: Option<Kind>,
    number: u32,
    /// When a write was acknowledged last.
    last: Option<Instant>,
    waits: Waits,
    odd: Vec<String>,
}

/// The longest waits, after each kind of fault.
pub(super) type Waits = BTreeMap<Option<Kind>, Wait>;

/// How long it took until a write was acknowledged.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Wait {
    /// The longest time in which nobody had a write acknowledged, and the fault's number.
    pub(super) nobody: (Duration, u32),
    /// The longest that one client waited, with all its tries.
    pub(super) one: Duration,
}

/// What a round showed.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) lists: history::Summary,
    pub(super) registers: usize,
    pub(super) accesses: usize,
    /// Writes, of lists and registers.
    pub(super) acknowledged: usize,
    /// Tries to write a register of which nobody knows.
    pub(super) unknown: usize,
    /// Entities for which the search gave up.
    pub(super) undecided: Vec<String>,
    pub(super) waits: Waits,
    pub(super) odd: Vec<String>,
}

impl Default for Record {
    fn default() -> Self {
        Self { began: Instant::now(), all: Mutex::default() }
    }
}

impl Record {
    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds of this round.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A try of something with a list.
    pub(super) fn invoke(&self, client: u32, list: &str, op: Op) -> Result<Id> {
        let mut all = self.all();
        Ok(all.history.invoke(client, list, op, self.now())?)
    }

    /// How that try ended.
    pub(super) fn end(&self, id: Id, outcome: Outcome) -> Result<()> {
        let mut all = self.all();
        Ok(all.history.end(id, outcome, self.now())?)
    }

    /// An append was acknowledged that was tried first this long ago.
    pub(super) fn appended(&self, list: &str, value: u64, waited: Option<Duration>) {
        let mut all = self.all();
        all.acknowledged.entry(list.to_owned()).or_default().push(value);
        all.write_acknowledged(waited);
    }

    /// What was done to a register, with all its tries.
    pub(super) fn access(&self, register: &str, access: Access, waited: Option<Duration>) {
        let mut all = self.all();
        if matches!(access.does, Does::Write { before: Some(_), .. }) {
            all.write_acknowledged(waited);
        }
        all.registers.entry(register.to_owned()).or_default().push(access);
    }

    /// A fault begins.
    pub(super) fn fault(&self, kind: Kind, number: u32) {
        let mut all = self.all();
        (all.kind, all.number) = (Some(kind), number);
    }

    /// An answer that no fault explains.
    pub(super) fn odd(&self, text: String) {
        let mut all = self.all();
        if all.odd.len() < ODD_MAX {
            all.odd.push(text);
        }
    }

    /// Checks everything; `read` is what every door showed of each list in the end.
    pub(super) fn check(&self, read: &[(String, Vec<u64>)]) -> Result<Checked> {
        let all = self.all();
        for (list, items) in read {
            all.audit(list, items)?;
        }
        let lists = all.history.check().map_err(anyhow::Error::msg)?;
        let mut undecided = lists.undecided.clone();
        for (name, accesses) in &all.registers {
            match register::check(0, accesses) {
                Ok(Some(())) => {}
                Ok(None) => undecided.push(name.clone()),
                Err(stuck) => bail!("{name}: no order comes past {stuck:?}"),
            }
        }
        let accesses = || all.registers.values().flatten();
        let written = accesses().filter(|access| {
            matches!(access.does, Does::Write { .. }) && access.answered.is_some()
        });
        let appended: usize = all.acknowledged.values().map(Vec::len).sum();
        Ok(Checked {
            lists,
            registers: all.registers.len(),
            accesses: accesses().count(),
            acknowledged: appended + written.count(),
            unknown: accesses().filter(|access| access.answered.is_none()).count(),
            undecided,
            waits: all.waits.clone(),
            odd: all.odd.clone(),
        })
    }

    /// Keeps everything: the history of the lists, and the registers as JSON.
    pub(super) fn write(&self, lists: impl Write, registers: impl Write) -> io::Result<()> {
        let all = self.all();
        all.history.write(lists)?;
        Ok(serde_json::to_writer(registers, &all.registers)?)
    }
}

impl All {
    fn write_acknowledged(&mut self, waited: Option<Duration>) {
        let now = Instant::now();
        let nobody = self.last.map_or(Duration::ZERO, |last| now.duration_since(last));
        self.last = Some(now);
        let wait = self.waits.entry(self.kind).or_default();
        wait.nobody = wait.nobody.max((nobody, self.number));
        wait.one = wait.one.max(waited.unwrap_or_default());
    }

    /// The checker says the same, and more; this says it in two lines.
    fn audit(&self, list: &str, items: &[u64]) -> Result<()> {
        let found: HashSet<u64> = items.iter().copied().collect();
        if found.len() < items.len() {
            bail!("{list}: applied twice, in {items:?}");
        }
        let told = self.acknowledged.get(list).into_iter().flatten();
        let lost: Vec<&u64> = told.filter(|value| !found.contains(value)).collect();
        if !lost.is_empty() {
            bail!("{list}: acknowledged and gone: {lost:?}, of {items:?}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Reply;

    /// A round in which one client appended 1 and 2 and was told so, and another read.
    fn round(read: &[u64]) -> Result<Checked> {
        let record = Record::default();
        for value in [1, 2] {
            let id = record.invoke(0, "l", Op::Append { value, key: Some(value) })?;
            record.end(id, Outcome::Returned(Reply::Length(value)))?;
            record.appended("l", value, None);
        }
        let id = record.invoke(1, "l", Op::Read)?;
        record.end(id, Outcome::Returned(Reply::List(read.to_vec())))?;
        record.check(&[("l".to_owned(), read.to_vec())])
    }

    #[test]
    fn what_is_lost_or_doubled_or_in_another_order_is_found() {
        assert_eq!(round(&[1, 2]).unwrap().acknowledged, 2);
        let told = |read: &[u64]| round(read).unwrap_err().to_string();
        assert!(told(&[1]).contains("acknowledged and gone: [2]"), "{}", told(&[1]));
        assert!(told(&[1, 2, 1]).contains("applied twice"), "{}", told(&[1, 2, 1]));
        assert!(told(&[2, 1]).contains("own_answer"), "{}", told(&[2, 1]));
    }

    #[test]
    fn a_register_that_forgets_is_found() {
        let record = Record::default();
        let write = Does::Write { value: 7, before: Some(0) };
        record.access("r", Access { client: 0, invoked: 0, answered: Some(1), does: write }, None);
        let read = Does::Read { value: 0 };
        record.access("r", Access { client: 1, invoked: 2, answered: Some(3), does: read }, None);
        assert!(record.check(&[]).unwrap_err().to_string().contains("no order"));
    }
}
