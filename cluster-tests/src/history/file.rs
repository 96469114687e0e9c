//! A history as a file: JSON, an operation a line, so that a run that failed can be checked again.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{End, Entity, History, Misuse, Op, Outcome, Reply, Shown};

/// An operation, as its line says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Whose it is.
    pub client: u32,
    /// Of which entity.
    pub entity: String,
    /// What was asked.
    pub op: Op,
    /// When.
    pub invoked: u64,
    /// When it ended, and how. Nothing, if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<(u64, Outcome)>,
}

/// A file that holds no history.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("the history cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line is no operation.
    #[error("line {line} is no operation: {error}")]
    Json {
        /// Its number.
        line: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// A line does not fit those before it.
    #[error("line {line}: {error}")]
    Misuse {
        /// Its number.
        line: usize,
        /// What is wrong.
        error: Misuse,
    },
}

impl History {
    /// Records an operation that is over.
    ///
    /// # Errors
    /// [`Misuse`]; nothing is recorded then, but that it was invoked may be.
    pub fn record(&mut self, line: Line) -> Result<(), Misuse> {
        let Line { client, entity, op, invoked, ended } = line;
        let id = self.invoke(client, &entity, op, invoked)?;
        ended.map_or(Ok(()), |(at, outcome)| self.end(id, outcome, at))
    }

    /// The operations, in the order in which they were invoked.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        self.operations.iter().map(|operation| {
            let entity = &self.entities[operation.entity];
            let outcome = |end: &End| match end {
                End::Returned(shown) => Outcome::Returned(entity.reply(shown)),
                End::NotExecuted => Outcome::NotExecuted,
                End::Unknown => Outcome::Unknown,
            };
            Line {
                client: operation.client,
                entity: entity.name.clone(),
                op: operation.op,
                invoked: operation.invoked,
                ended: operation.ended.as_ref().map(|(at, end)| (*at, outcome(end))),
            }
        })
    }

    /// Writes the lines. Lists are written whole: a file can be much larger than its history.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        for line in self.lines() {
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(from: impl BufRead) -> Result<Self, ReadError> {
        let mut history = Self::default();
        for (index, text) in from.lines().enumerate() {
            let line = index + 1;
            let parsed =
                serde_json::from_str(&text?).map_err(|error| ReadError::Json { line, error })?;
            history.record(parsed).map_err(|error| ReadError::Misuse { line, error })?;
        }
        Ok(history)
    }
}

impl Entity {
    /// The first values of the longest list.
    pub(super) fn first(&self, length: u64) -> &[u64] {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.longest.get(..length).unwrap_or(&self.longest)
    }

    fn reply(&self, shown: &Shown) -> Reply {
        match shown {
            Shown::First(length) => Reply::List(self.first(*length).to_vec()),
            Shown::Other(list) => Reply::List(list.clone()),
            Shown::Length(length) => Reply::Length(*length),
            Shown::Done => Reply::Done,
            Shown::Refused(length) => Reply::Refused(*length),
        }
    }
}
