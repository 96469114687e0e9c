//! What is wrong with a history, told with the few operations that contradict each other.
//!
//! ```text
//! entity e1: real_time: by what was seen, #3 came before #1, but #1 was answered at 4 and #3 ..
//!    #1 client 0  append 7   1 long     1  4  |---------|
//!    #3 client 1  read       []         6  9                  |---------|
//! ```

use std::collections::HashSet;
use std::fmt;

use super::calls::Call;
use super::{End, Entity, History, Id, Operation, Shown};

/// Rows of a story.
const ROWS_MAX: usize = 12;
/// Values of a list in a row: its last ones.
const VALUES_MAX: usize = 6;
/// Columns of the picture of a story.
const COLUMNS: usize = 40;

/// What a history breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A list shows only what somebody appends.
    Phantom,
    /// A list shows a value once: it is appended once, however often its key is tried.
    Duplicate,
    /// What was not executed is in no list.
    NotExecuted,
    /// Of two lists, one begins with the other.
    Fork,
    /// The answer of an append shows its value as the last, and no list shows it elsewhere.
    OwnAnswer,
    /// What was answered is in all lists that are read later.
    Lost,
    /// A conditional append appends if its condition holds, and refuses if not.
    Condition,
    /// All answers under a key are the same.
    KeyAnswers,
    /// No two appends are the nth.
    SamePlace,
    /// A length that somebody saw can be reached by what was appended.
    TooLong,
    /// What was answered before something else was invoked comes before it.
    RealTime,
    /// There is an order in which all can have happened.
    NoOrder,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Phantom,
        Self::Duplicate,
        Self::NotExecuted,
        Self::Fork,
        Self::OwnAnswer,
        Self::Lost,
        Self::Condition,
        Self::KeyAnswers,
        Self::SamePlace,
        Self::TooLong,
        Self::RealTime,
        Self::NoOrder,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Phantom => "phantom",
            Self::Duplicate => "duplicate",
            Self::NotExecuted => "not_executed",
            Self::Fork => "fork",
            Self::OwnAnswer => "own_answer",
            Self::Lost => "lost",
            Self::Condition => "condition",
            Self::KeyAnswers => "key_answers",
            Self::SamePlace => "same_place",
            Self::TooLong => "too_long",
            Self::RealTime => "real_time",
            Self::NoOrder => "no_order",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No lists that take one operation at a time explain what clients saw of an entity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The entity.
    pub entity: String,
    /// What is broken.
    pub rule: Rule,
    /// How.
    pub detail: String,
    /// The operations that contradict each other, in order of time.
    pub rows: Vec<Row>,
    /// How many more there are.
    pub more: usize,
}

/// An operation of a story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The operation.
    pub id: Id,
    /// Whose it is.
    pub client: u32,
    /// What was asked.
    pub op: String,
    /// What was answered.
    pub answer: String,
    /// When it was invoked.
    pub invoked: u64,
    /// When it was answered.
    pub answered: Option<u64>,
}

/// A violation, before it is told.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) rule: Rule,
    pub(super) detail: String,
    /// The operations of the story.
    pub(super) ids: Vec<Id>,
}

impl Broken {
    /// Two calls that contradict each other.
    pub(super) fn between(rule: Rule, detail: String, one: &Call, two: &Call) -> Self {
        Self { rule, detail, ids: one.ids().chain(two.ids()).collect() }
    }
}

/// The search comes past the end of no more calls. The story is that call and those beside it.
pub(super) fn no_order(calls: &[Call], stuck: usize) -> Broken {
    let stuck = &calls[stuck];
    let beside = |call: &&Call| {
        let from = call.answered().is_none_or(|answered| answered >= stuck.invoked);
        from && stuck.answered().is_none_or(|answered| call.invoked <= answered)
    };
    let detail = format!(
        "no order of all calls lets {} be answered as it was; these are beside it",
        stuck.name()
    );
    let others = calls.iter().filter(beside).flat_map(Call::ids);
    Broken { rule: Rule::NoOrder, detail, ids: stuck.ids().chain(others).collect() }
}

/// The story of a violation.
pub(super) fn tell(history: &History, entity: &Entity, broken: Broken) -> Violation {
    let Broken { rule, detail, mut ids } = broken;
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    let more = ids.len().saturating_sub(ROWS_MAX);
    ids.truncate(ROWS_MAX);
    ids.sort_unstable_by_key(|&id| (history.operation(id).invoked, id));
    let rows = ids.into_iter().map(|id| row(history, entity, id)).collect();
    Violation { entity: entity.name.clone(), rule, detail, rows, more }
}

fn row(history: &History, entity: &Entity, id: Id) -> Row {
    let Operation { client, op, invoked, ref ended, .. } = *history.operation(id);
    let (answered, answer) = match ended {
        None => (None, "no answer".to_owned()),
        Some((_, End::Unknown)) => (None, "unknown".to_owned()),
        Some((at, End::NotExecuted)) => (Some(*at), "not executed".to_owned()),
        Some((at, End::Returned(shown))) => (Some(*at), text(entity, shown)),
    };
    Row { id, client, op: op.to_string(), answer, invoked, answered }
}

fn text(entity: &Entity, shown: &Shown) -> String {
    let list = match shown {
        Shown::First(length) => entity.first(*length),
        Shown::Other(list) => list,
        Shown::Length(length) => return format!("{length} long"),
        Shown::Done => return "done".to_owned(),
        Shown::Refused(length) => return format!("refused, {length} long"),
    };
    let hidden = list.len().saturating_sub(VALUES_MAX);
    let last: Vec<String> = list.iter().skip(hidden).map(u64::to_string).collect();
    match hidden {
        0 => format!("[{}]", last.join(" ")),
        _ => format!("[{hidden} more, {}]", last.join(" ")),
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entity, rule, detail, rows, more } = self;
        write!(f, "entity {entity}: {rule}: {detail}")?;
        let mut table = Vec::with_capacity(rows.len());
        for row in rows {
            let answered = row.answered.map_or("-".to_owned(), |answered| answered.to_string());
            table.push([
                row.id.to_string(),
                format!("client {}", row.client),
                row.op.clone(),
                row.answer.clone(),
                row.invoked.to_string(),
                answered,
            ]);
        }
        let mut widths = [0; 6];
        for (width, column) in widths.iter_mut().zip(0..) {
            *width = table.iter().map(|cells| cells[column].len()).max().unwrap_or(0);
        }
        for (cells, row) in table.iter().zip(rows) {
            f.write_str("\n  ")?;
            for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
                match column {
                    4.. => write!(f, "{cell:>width$}  ")?,
                    _ => write!(f, "{cell:<width$}  ")?,
                }
            }
            f.write_str(&self.bar(row))?;
        }
        if *more > 0 {
            write!(f, "\n  and {more} more")?;
        }
        Ok(())
    }
}

impl Violation {
    /// A row in the picture: from when it was invoked until it was answered.
    fn bar(&self, row: &Row) -> String {
        let first = self.rows.iter().map(|row| row.invoked).min().unwrap_or(0);
        let last = self.rows.iter().map(|row| row.answered.unwrap_or(row.invoked)).max();
        let span = u128::from(last.unwrap_or(first).saturating_sub(first).max(1));
        let column = |at: u64| {
            let column = u128::from(at.saturating_sub(first)) * (COLUMNS as u128 - 1) / span;
            usize::try_from(column).unwrap_or(COLUMNS).min(COLUMNS - 1)
        };
        let begin = column(row.invoked);
        let mut bar = " ".repeat(begin) + "|";
        let end = row.answered.map_or(COLUMNS, column);
        bar.push_str(&"-".repeat(end.saturating_sub(begin + 1)));
        match row.answered {
            None => bar.push('>'),
            Some(_) if end > begin => bar.push('|'),
            Some(_) => {}
        }
        bar
    }
}
