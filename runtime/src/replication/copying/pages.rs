//! What every copy of a shard is made of: pages of rows, one message after another.
//!
//! ```text
//!   Outgoing: begin --> states, page by page --> records, page by page --> finish
//!   store:    beside the live state, under its own generation ..........> live, if all is there
//! ```
//! Whether a copy may arrive, and what becomes of it, is not decided here: a move is planned by
//! the map, and a standby asks for its copy.

use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{NodeId, ShardId};
use mainstay_protocol::limits;
use mainstay_protocol::message::Caller;
use mainstay_protocol::replication::Position;
use mainstay_protocol::snapshot::{Body, Head, Message, Reason, Remembered, Row};
use mainstay_protocol::time::LogTime;
use tokio::sync::oneshot;

use crate::storage::{
    CopyRows, DedupRow, Done, Generation, ImportBatch, ShardMark, State, StateRow, StorageError,
};
use crate::transport;
use crate::transport::handshake::{DialError, Identity};
use crate::transport::snapshots::{SendError, SnapshotLink};

/// Bytes of states, or of dedup records, per message; the last one may go beyond.
pub const PAGE_BYTES: usize = 1 << 20;
/// How long a message of a copy may take.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a copy did not arrive. What the other end has of it counts for nothing.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The other end was not reached. Try again.
    #[error("the other end was not reached")]
    Dial(#[from] DialError),
    /// A message was not answered, or refused. Whether the last one was taken is unknown. Try again
    /// with another copy, if one is still wanted.
    #[error("the other end did not take a message")]
    Send(#[from] SendError),
    /// The own tables could not be read.
    #[error("the tables could not be read")]
    Storage(#[from] StorageError),
    /// A message could not be encoded.
    #[error("a page cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
    /// What is stored of the shard is not, or not for the whole time, what the copy was to hold:
    /// this node is not its primary in that epoch any more, or the shard was not saved before.
    #[error("what is stored of the shard was replaced while it was copied")]
    Replaced,
}

impl CopyError {
    /// Whether every other try will end like this one: what fails is here, not on the way.
    pub const fn is_hopeless(&self) -> bool {
        match self {
            Self::Storage(error) => !matches!(error, StorageError::Busy { .. }),
            Self::Encode(_) | Self::Replaced => true,
            Self::Dial(_) | Self::Send(_) => false,
        }
    }
}

/// The way to the other end of a copy.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// Who this node is.
    pub identity: &'a Identity,
    /// How it connects.
    pub config: &'a transport::Config,
    /// Where the other end listens.
    pub addr: &'a str,
    /// Who it is.
    pub to: &'a NodeId,
}

/// The sending end of a copy: counts what it sends, holds one page at a time.
#[derive(Debug)]
pub struct Outgoing {
    head: Head,
    link: SnapshotLink,
    sent: CopyRows,
}

impl Outgoing {
    /// Connects, and has the other end let go of what it has of the shard.
    ///
    /// # Errors
    /// [`CopyError`]; whether the copy began is unknown.
    pub async fn begin(way: Way<'_>, head: Head) -> Result<Self, CopyError> {
        let Way { identity, config, addr, to } = way;
        let link = SnapshotLink::connect(identity, config, addr, to.clone(), MESSAGE_TIMEOUT);
        let mut this = Self { head, link: link.await?, sent: CopyRows::default() };
        this.send(Body::Begin).await?;
        Ok(this)
    }

    async fn send(&mut self, body: Body) -> Result<(), CopyError> {
        let message = rmp_serde::to_vec(&Message { head: self.head, body })?;
        count_bytes("sent", &self.head, message.len());
        self.link.send(Bytes::from(message)).await?;
        Ok(())
    }

    /// Sends all states of the shard, as the tables have them when each page is read.
    ///
    /// # Errors
    /// [`CopyError`]; this copy is over.
    pub async fn states(&mut self, state: &State) -> Result<(), CopyError> {
        let shard = self.head.shard;
        let mut after = None;
        loop {
            let page = answered(|done| state.export(shard, after, PAGE_BYTES, done)).await?;
            after = page.rows.last().map(|row| row.entity.clone());
            self.sent.states += page.rows.len() as u64;
            self.send(Body::Rows(page.rows.into_iter().map(wire).collect())).await?;
            if page.last || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Sends a page of dedup records.
    ///
    /// # Errors
    /// [`CopyError`]; this copy is over.
    pub async fn records(&mut self, records: Vec<Remembered>) -> Result<(), CopyError> {
        self.sent.dedup += records.len() as u64;
        self.send(Body::Dedup(records)).await
    }

    /// Says that this was all, and what it is. The other end has it, durably, when this is `Ok`.
    ///
    /// # Errors
    /// [`CopyError`]; whether the copy counts is unknown when the answer was lost.
    pub async fn finish(mut self, last: Position, log_time: LogTime) -> Result<(), CopyError> {
        let CopyRows { states: rows, dedup } = self.sent;
        self.send(Body::Finish { last, log_time, rows, dedup }).await
    }
}

/// Cuts records into messages by their bytes.
pub fn pages(records: &[Remembered]) -> impl Iterator<Item = &[Remembered]> {
    let mut bytes = 0;
    records.chunk_by(move |before, _| {
        bytes += before.0.key.as_str().len() + before.2.bytes();
        let same = bytes < PAGE_BYTES;
        if !same {
            bytes = 0;
        }
        same
    })
}

/// Why bytes are no message of a copy. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It comes from no node.
    #[error("only a member may copy a shard")]
    NoMember,
    /// It does not decode.
    #[error("a message of a copy does not decode")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Its shard is beyond all that a cluster may have.
    #[error("shard {shard} is above all that a cluster may have, {}", limits::SHARDS_MAX)]
    Shard {
        /// The shard.
        shard: ShardId,
    },
}

/// Reads a message of a copy: who sends it, and what it says.
///
/// # Errors
/// [`ReadError`], by what is wrong.
pub fn read(from: Caller, message: &[u8]) -> Result<(NodeId, Message), ReadError> {
    let Caller::Node { node: from, .. } = from else { return Err(ReadError::NoMember) };
    let (bytes, message) = (message.len(), rmp_serde::from_slice::<Message>(message)?);
    let shard = message.head.shard;
    if shard.0 >= limits::SHARDS_MAX {
        return Err(ReadError::Shard { shard });
    }
    count_bytes("received", &message.head, bytes);
    Ok((from, message))
}

/// Counts a message of a copy for a standby; moves are counted as moves.
fn count_bytes(direction: &'static str, head: &Head, bytes: usize) {
    match head.reason {
        Reason::Standby { .. } => {
            metrics::counter!("mainstay_replication_copy_bytes_total", "direction" => direction)
                .increment(bytes as u64);
        }
        Reason::Move { .. } => {}
    }
}

/// Counts a copy for a standby that is over.
pub(in crate::replication) fn count_copy(direction: &'static str, outcome: &'static str) {
    metrics::counter!(
        "mainstay_replication_copies_total", "direction" => direction, "outcome" => outcome
    )
    .increment(1);
}

/// Has stored what a message brought: beside the live state, or, at the end, as the live one. The
/// order of the calls is the order in which it is done.
pub fn store(state: &State, head: &Head, generation: Generation, body: Body) -> Asked<()> {
    let &Head { shard, epoch, .. } = head;
    let mut batch = ImportBatch { shard, generation, ..ImportBatch::default() };
    match body {
        Body::Begin => batch.begin = true,
        Body::Rows(rows) => {
            batch.rows = rows.into_iter().map(|row| stored(shard, row)).collect();
        }
        Body::Dedup(records) => {
            let row = |(entity, log_time, record)| DedupRow { shard, entity, log_time, record };
            batch.dedup = records.into_iter().map(row).collect();
        }
        Body::Finish { last, log_time, rows, dedup } => {
            let mark = ShardMark { shard, applied: last, log_time, epoch };
            let rows = CopyRows { states: rows, dedup };
            return asked(|done| state.activate_generation(mark, generation, rows, done));
        }
    }
    asked(|done| state.import(batch, done))
}

fn wire(row: StateRow) -> Row {
    Row { entity: row.entity, seq: row.seq, bytes: row.bytes }
}

fn stored(shard: ShardId, row: Row) -> StateRow {
    StateRow { shard, entity: row.entity, seq: row.seq, bytes: row.bytes }
}

/// Something that storage was asked for.
#[derive(Debug)]
#[must_use = "what storage answers may be an error"]
pub struct Asked<T>(oneshot::Receiver<Result<T, StorageError>>);

impl<T> Asked<T> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// What storage answers; closed, when it never does.
    pub async fn answer(self) -> Result<T, StorageError> {
        self.0.await.unwrap_or(Err(StorageError::Closed))
    }
}

/// Asks storage at once, for an answer to wait for.
pub fn asked<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Asked<T> {
    let (done, answer) = oneshot::channel();
    ask(Box::new(move |result| drop(done.send(result))));
    Asked(answer)
}

/// Turns a storage callback into something to await.
///
/// # Errors
/// What storage answers; closed, when it never does.
pub async fn answered<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, StorageError> {
    asked(ask).answer().await
}
